//! How a program and an engine talk: the calls, and their way over `engine.sock`.
//!
//! - One control connection a process; its calls are multiplexed by number, so that one that waits
//!   delays no other.
//! - Every message is a SEQPACKET datagram of JSON within a named limit; descriptors travel beside it.
//! - Both ends check who the other is before the first call.
//! - What a peer sends is input: it can be refused, never make an engine panic.

mod bell;
mod calls;
mod client;
pub mod lane;
mod peer;
mod server;
#[cfg(test)]
mod tests;
mod wire;

pub use calls::{
    Calls, ConnectFailure, ConnectLater, ConnectReply, Connected, EndName, GiftId, Handed, Offer,
    Opening, Outcome, Peer, PeerState, StreamToken, Taken, Verdict,
};
pub use client::Client;
pub(crate) use peer::Admission;
pub use server::{Server, Session};
