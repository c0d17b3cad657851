//! Links to the other nodes of a cluster. Only this folder knows ractor_cluster and Redis.
//!
//! # Layout
//! * [`transport`]: what carries frames beside direct links

pub mod transport;
