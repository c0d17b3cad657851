//! The front end: connections, requests, upgrades. Only this folder knows hyper.
//!
//! # Layout
//! * [`listener`]: accepts connections, with their limits; [`tls`]
//! * [`front`]: sends each request where it belongs; [`answer`]: the envelope of every REST answer
//! * [`upgrade`]: WebSocket handshakes; [`longpoll`]: the same sockets over GET and POST; [`rest`]: the REST routes; [`event_stream`]: SSE
//! * [`addresses`]: who a request comes from
//! * [`client`] and [`phoenix_client`]: the clients that the command line and the demo use

pub mod addresses;
pub mod answer;
pub mod client;
pub mod event_stream;
pub mod front;
pub mod listener;
pub mod longpoll;
pub mod patience;
pub mod phoenix_client;
pub mod rest;
pub mod tls;
pub mod upgrade;
pub mod webhook_client;
