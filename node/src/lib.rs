//! Where it runs: the node behind the `muster` binary.
//!
//! # Layout
//! * [`config`], [`logging`], [`run`], [`cli`], [`demo`]: the program
//! * [`http`], [`websocket`], [`longpoll`], [`mcp`], [`app`], [`auth`]: the front end; only [`http`] knows hyper
//! * [`cluster`]: links to other nodes; only this folder knows ractor_cluster and Redis
//! * [`store`]: the store's backends; only this folder knows SQL
//! * [`documents`], [`metric_definitions`], [`system_clock`], [`tls`]

pub mod agreement;
pub mod app;
pub mod auth;
pub mod background;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod demo;
pub mod documents;
pub mod http;
pub mod logging;
pub mod longpoll;
pub mod mcp;
pub mod metric_definitions;
pub mod run;
pub mod store;
pub mod system_clock;
pub mod tls;
pub mod websocket;
