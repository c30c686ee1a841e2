//! Commands: what handles ask of the engine, and how they are answered.
//!
//! - Every [`Reply`] is called exactly once: with an answer, or with `None` when the engine drops it.

use std::fmt;
use std::time::Duration;

use stp_core::PeerInfo;
use stp_format::{ProcessName, SeatCounters, SystemName};

use super::error::ListenError;
use super::gifts::{GiftError, HandedEnd};
use super::local::LocalSide;
use crate::control::{ConnectFailure, Connected, GiftId, Offer, Outcome, StreamToken, Taken};

/// Where an answer goes. Runs on the engine's thread: it must not block.
pub struct Reply<T>(Option<Box<dyn FnOnce(Option<T>) + Send>>);

impl<T> Reply<T> {
    /// An answer that calls `tell`: with `None` if the engine stopped first.
    pub fn new(tell: impl FnOnce(Option<T>) + Send + 'static) -> Self {
        Self(Some(Box::new(tell)))
    }

    /// Answers.
    pub fn send(mut self, answer: T) {
        if let Some(tell) = self.0.take() {
            tell(Some(answer));
        }
    }
}

impl<T> Drop for Reply<T> {
    fn drop(&mut self) {
        if let Some(tell) = self.0.take() {
            tell(None);
        }
    }
}

impl<T> fmt::Debug for Reply<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reply")
    }
}

/// One request to the engine.
#[derive(Debug)]
pub enum Command<L: LocalSide> {
    /// Publish a port and hand its connections to a listener.
    Listen {
        /// Which port.
        port: u16,
        /// Where its connections go.
        listener: L::Listener,
        /// Its streams end as TCP's do: no mark is needed for a clean end.
        raw: bool,
        /// When it stands on the volume.
        reply: Reply<Result<(), ListenError>>,
    },
    /// Take a port back.
    Unlisten {
        /// Which.
        port: u16,
    },
    /// Open a stream.
    Connect {
        /// Names the attempt for [`Command::Cancel`].
        ticket: u64,
        /// To whom.
        to: SystemName,
        /// To which port.
        port: u16,
        /// From which port; the node chooses if `None`.
        local_port: Option<u16>,
        /// The engine's end of the program's socket.
        socket: L::Socket,
        /// Bytes in the program's socket that are not the stream's.
        skip: u64,
        /// Given up after this, unless it is cancelled before.
        within: Option<Duration>,
        /// It ends as TCP does: no mark is needed for a clean end.
        raw: bool,
        /// When it is open or has failed.
        reply: Reply<Result<Connected, ConnectFailure>>,
    },
    /// The program's socket joins a stream that was opened without it.
    Join {
        /// Which stream.
        token: StreamToken,
        /// The engine's end.
        socket: L::Socket,
    },
    /// Nobody waits for this connection any more.
    Cancel {
        /// Which attempt.
        ticket: u64,
    },
    /// Break a stream at once.
    Abort {
        /// Which.
        token: StreamToken,
    },
    /// Offer a stream to other programs.
    Give {
        /// Which, to whom, how long.
        offer: Box<Offer>,
        /// A copy of the program's end.
        end: L::Handle,
        /// When it is settled.
        outcome: Reply<Outcome>,
        /// At once.
        reply: Reply<Result<GiftId, GiftError>>,
    },
    /// Take a gift back.
    Withdraw {
        /// Which.
        gift: GiftId,
    },
    /// Wait for a gift.
    Take {
        /// Names the attempt for [`Command::CancelTake`].
        ticket: u64,
        /// Under which name.
        name: ProcessName,
        /// When there is one.
        reply: Reply<Result<HandedEnd<L::Handle>, GiftError>>,
    },
    /// Nobody waits for this gift any more.
    CancelTake {
        /// Which attempt.
        ticket: u64,
    },
    /// The taker has a gift and wants it.
    Confirm {
        /// Which.
        gift: GiftId,
        /// When it is the taker's.
        reply: Reply<Result<Taken, GiftError>>,
    },
    /// The taker does not want it, or is gone.
    PutBack {
        /// Which.
        gift: GiftId,
    },
    /// Who else is there.
    Peers {
        /// The list.
        reply: Reply<Vec<PeerInfo>>,
    },
    /// What it has done so far.
    Stats {
        /// The counters.
        reply: Reply<SeatCounters>,
    },
    /// Deliver what closed streams still hold, for at most `linger`, and leave the seat.
    Leave {
        /// How long to wait for deliveries.
        linger: Duration,
    },
}
