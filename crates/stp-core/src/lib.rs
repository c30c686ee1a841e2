//! An STP node as a state machine: it decides, others act.
//!
//! - No clock, no I/O, no threads: time and finished operations come in, operations and events go out.
//! - Four kinds of method: getters; `handle_*` for what comes in; verbs for what programs want;
//!   `poll_*` for what goes out.
//! - *Mutate, then drain*: after any `handle_*` or verb, drain `poll_event`, `poll_deliver`, `poll_fill`
//!   and `poll_io`, in this order, until each has nothing more.
//! - Work is bounded: every queue, loop and retry has a limit that is named in [`Limits`] or beside it.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod chunks;
pub mod claim;
mod config;
mod directory;
mod event;
mod io;
mod link;
mod node;
mod own_seat;
mod receiver;
mod sender;
mod stream;
mod table;
mod time;

pub use claim::{Claim, ClaimAnswer, ClaimAsk, ClaimError, Claimed};
pub use config::{Limits, NodeConfig, Timings};
pub use directory::{PeerInfo, PeerState};
pub use event::{ConnectError, Event, HoldError, ListenError, ResetReason, StreamId};
pub use io::{Io, IoAction, IoDone, IoFault};
pub use node::{Adoption, Load, Node, PieceIo, SERVICE_PORT, SegmentIo, Stillness, StreamInfo};
pub use time::Time;
