//! The engine: one node in one seat, its thread, and the local ends of its streams.
//!
//! - One thread, `stp-engine`, owns the node, the medium and every local socket; handles reach it by a
//!   queue and share with it only the marks and verdicts of streams (`verdict`).
//! - A step does bounded work; between steps there is one wait, and none while there is work.
//! - Storage trouble, a taken seat and even a panic end in errors for callers, never in a hang.
//! - An engine belongs to the process that started it: a forked child's copy of a handle only errs.

mod attach;
mod board;
mod clock;
mod command;
mod driver;
mod error;
mod gifts;
mod giving;
mod handle;
mod helm;
mod local;
mod mailbox;
mod moves;
mod numbers;
mod ports;
mod registry;
mod sockets;
mod thread;
mod transfer;
mod verdict;
mod wait;

pub use attach::{Attached, attach};
pub use clock::{Clock, MonotonicClock};
pub use command::{Command, Reply};
pub use driver::{Driver, Over, Step};
pub use error::{AttachError, ListenError, Stopped};
pub use gifts::{GiftError, HandedEnd};
pub use handle::{EngineConfig, EngineHandle, VolumeInfo, start};
pub use local::{Delivery, LocalSide, Pulled, Pushed, Ready};
pub use registry::start_shared;
pub use sockets::{HostListener, HostSocket, HostSockets, Names, Place};
pub(crate) use sockets::{Made, made, stream_socket};
pub use transfer::transfer;
pub use verdict::{Ending, Verdicts};
