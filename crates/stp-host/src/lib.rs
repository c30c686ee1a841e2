//! stp-host

pub mod control;
pub mod rendezvous;
pub mod volume;
