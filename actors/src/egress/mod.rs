//! How frames leave: encoded once per wire form, written straight to each connection, queued only where the kernel
//! takes no more.
//!
//! # Layout
//! * [`sink`]: one connection's way out, with its bounds
//! * [`outlet`]: one join's way out, which opens with the join reply and shuts with its end
//! * [`fan_out`]: the same events to many outlets; [`roster`]: the many

pub mod fan_out;
pub mod outlet;
pub mod roster;
pub mod sink;

pub use fan_out::Burst;
pub use outlet::{Outlet, OutletId};
pub use roster::{OfOutlet, Roster};
pub use sink::{Class, Outcome, Sink, SinkLimits, Transport};
