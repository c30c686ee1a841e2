//! The floor that both C doors stand on: descriptors, socket addresses and `errno` on one side, STP on the other.
//!
//! - Nothing here is exported under a C name: a door (`stp-capi`, `stp-preload`) does that, so that
//!   linking this crate never takes over a program's calls.

pub mod calls;
pub mod inet;
