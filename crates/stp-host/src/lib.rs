//! The floor with threads and a clock: what drives a node over a medium for programs on this host.
//!
//! - [`engine`] is the only room that owns a node; every other room talks to it through an
//!   [`engine::EngineHandle`].
//! - Nothing here decides what a frame means (that is `stp-core`) or where a byte lies (`stp-format`).

pub mod address;
pub mod control;
pub mod engine;
pub mod forks;
pub mod rendezvous;
pub mod run;
mod sync;
pub mod volume;
