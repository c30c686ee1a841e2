//! Gifts: streams that are to have another owner, and the programs that wait for one.
//!
//! - A stream has one owner at any time. A gift is the giver's until it is confirmed, and the taker's from
//!   then on; what is handed out and not confirmed in [`CONFIRM_MAX`] goes back.
//! - Every gift ends in exactly one [`Outcome`]; one that is dropped with the engine ends without.
//! - While a gift stands, the engine holds a copy of the program's end: the giver may close its own.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::time::Duration;

use stp_core::{StreamId, Time};
use stp_format::{MoveToken, ProcessName, SystemName};

use super::command::Reply;
use super::error::Stopped;
use crate::control::{GiftId, Offer, Outcome, StreamToken, Taken};

/// Gifts that stand at once, and programs that wait for one.
pub(super) const GIFTS_MAX: usize = 1024;
pub(super) const TAKERS_MAX: usize = 1024;
/// How long a taker may think before it confirms.
pub(super) const CONFIRM_MAX: Duration = Duration::from_secs(5);

/// Why a stream cannot be given, taken or kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GiftError {
    /// The engine knows no such stream.
    Over,
    /// It is being given already.
    Twice,
    /// Too many gifts stand, or too many programs wait.
    TooMany,
    /// Nothing came in time.
    None,
    /// The gift is not the taker's any more.
    Gone,
    /// The local socket cannot be copied.
    Socket(String),
    /// The stream cannot be moved to that system.
    Impossible(String),
    /// No engine.
    Stopped(Stopped),
}

impl fmt::Display for GiftError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Over => f.write_str("the stream is over: there is nothing left to give"),
            Self::Twice => {
                f.write_str("the stream is being given already: withdraw that gift first")
            }
            Self::TooMany => write!(
                f,
                "{GIFTS_MAX} gifts stand already, or as many programs wait for one: take or withdraw some"
            ),
            Self::None => f.write_str("nobody gave a stream under that name in time"),
            Self::Gone => f.write_str(
                "the gift was withdrawn, has expired or went to another taker: take again",
            ),
            Self::Socket(why) => {
                write!(f, "the stream's local socket cannot be handed over: {why}")
            }
            Self::Impossible(why) => f.write_str(why),
            Self::Stopped(stopped) => stopped.fmt(f),
        }
    }
}

impl std::error::Error for GiftError {}

impl From<GiftError> for io::Error {
    fn from(error: GiftError) -> Self {
        let kind = match &error {
            GiftError::Over => io::ErrorKind::NotConnected,
            GiftError::Twice => io::ErrorKind::ResourceBusy,
            GiftError::TooMany => io::ErrorKind::QuotaExceeded,
            GiftError::None => io::ErrorKind::TimedOut,
            GiftError::Gone => io::ErrorKind::NotFound,
            GiftError::Socket(_) => io::ErrorKind::Other,
            GiftError::Impossible(_) => io::ErrorKind::Unsupported,
            GiftError::Stopped(stopped) => return stopped.clone().into(),
        };
        io::Error::new(kind, error)
    }
}

/// A gift that was handed out; `H` is a program's end.
#[derive(Debug)]
pub struct HandedEnd<H> {
    /// Which.
    pub gift: GiftId,
    /// A copy of the program's end of the stream.
    pub end: H,
}

/// Who has a gift just now.
#[derive(Debug)]
pub(super) enum Held {
    /// The giver; anybody may come for it.
    Giver,
    /// A taker of this host who has to confirm it until then.
    Taker(Time),
    /// It is on its way to the engine at the other end of `service`; the stream is not the giver's to use.
    Moving {
        service: StreamId,
        token: MoveToken,
        step: Step,
        until: Time,
    },
}

/// How far a stream has come on its way.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    /// The far node is asked to hold it.
    Stopping,
    /// The taker's engine has its state, and may be adopting it.
    Told,
    /// It is asked back; what becomes of the gift when it is here.
    Returning(Option<Outcome>),
}

/// One gift.
#[derive(Debug)]
pub(super) struct Gift<H> {
    /// `None` once the node has nothing more to do with it; bytes may still wait in the socket.
    pub(super) stream: Option<StreamId>,
    pub(super) token: StreamToken,
    pub(super) offer: Offer,
    pub(super) end: H,
    pub(super) deadline: Time,
    pub(super) held: Held,
    /// The service streams over which other engines know of it.
    pub(super) offers: Vec<StreamId>,
    pub(super) outcome: Reply<Outcome>,
}

/// A program that waits for a gift.
#[derive(Debug)]
pub(super) struct Taker<H> {
    pub(super) ticket: u64,
    /// Its time is over; it waits only for what is under way.
    pub(super) late: bool,
    pub(super) name: ProcessName,
    pub(super) reply: Reply<Result<HandedEnd<H>, GiftError>>,
}

/// All gifts and takers of an engine.
#[derive(Debug)]
pub(super) struct Gifts<H> {
    pub(super) standing: BTreeMap<GiftId, Gift<H>>,
    pub(super) takers: VecDeque<Taker<H>>,
    last: u64,
}

impl<H> Gifts<H> {
    pub(super) fn new() -> Self {
        Self {
            standing: BTreeMap::new(),
            takers: VecDeque::new(),
            last: 0,
        }
    }

    pub(super) fn next_id(&mut self) -> GiftId {
        self.last += 1;
        GiftId(self.last)
    }

    /// The oldest gift to `name` that nobody has.
    pub(super) fn free(&self, system: &SystemName, name: &ProcessName) -> Option<GiftId> {
        let free = |gift: &Gift<H>| {
            let offer = &gift.offer;
            matches!(gift.held, Held::Giver) && (&offer.to, &offer.name) == (system, name)
        };
        let mut gifts = self.standing.iter();
        gifts.find(|(_, gift)| free(gift)).map(|(id, _)| *id)
    }

    /// When something is to be given up.
    pub(super) fn poll_timeout(&self) -> Option<Time> {
        let due = |gift: &Gift<H>| match gift.held {
            Held::Giver => gift.deadline,
            Held::Taker(until) | Held::Moving { until, .. } => until,
        };
        self.standing.values().map(due).min()
    }
}

/// What a confirmed gift is to its taker.
pub(super) type Confirmed = Result<Taken, GiftError>;
