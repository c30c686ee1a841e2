//! Streams on their way between engines: the engines' own streams to each other, and what comes over them.
//!
//! - A service stream speaks of one gift; its end takes the offer back.
//! - Everything that waits for the other engine has a deadline of its own.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use stp_core::{StreamId, Time};
use stp_format::{GiftMessage, GiftState, Incarnation, ProcessName, SeatId};

use super::command::Reply;
use super::gifts::Confirmed;
use super::local::LocalSide;
use crate::control::GiftId;

/// Offers of other engines that are remembered; more are turned away.
pub(super) const OFFERS_MAX: usize = 1024;
/// What may wait to be read from another engine while no stream's state is expected.
pub(super) const TALK_BYTES_MAX: usize = 4096;
/// How long a move may take from a taker's word until the far node has decided.
pub(super) const MOVE_MAX: Duration = Duration::from_secs(30);
/// How long the far node's decision is waited for: it gives up a stream that is held sooner.
pub(super) const ADOPT_MAX: Duration = Duration::from_secs(150);
/// How long to wait before an offer is asked for again.
pub(super) const RETRY: Duration = Duration::from_millis(50);
/// How often gifts are offered to nodes that have not been told.
pub(super) const SWEEP: Duration = Duration::from_secs(1);

/// On which side of a gift this engine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Giver(GiftId),
    Taker,
}

/// A stream between two engines.
#[derive(Debug)]
pub(super) struct Service {
    pub(super) role: Role,
    pub(super) seat: SeatId,
    pub(super) incarnation: Incarnation,
    pub(super) inbox: Vec<u8>,
    outbox: VecDeque<u8>,
}

impl Service {
    pub(super) fn new(role: Role, seat: SeatId, incarnation: Incarnation) -> Self {
        Self {
            role,
            seat,
            incarnation,
            inbox: Vec::new(),
            outbox: VecDeque::new(),
        }
    }

    pub(super) fn say(&mut self, message: &GiftMessage) {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        self.outbox.extend(bytes);
    }

    /// Moves bytes to be sent into `space`.
    pub(super) fn fill(&mut self, space: &mut [u8]) -> usize {
        fill(&mut self.outbox, space)
    }
}

/// Moves bytes from a queue's front into `space`.
pub(super) fn fill(queue: &mut VecDeque<u8>, space: &mut [u8]) -> usize {
    let count = queue.len().min(space.len());
    for (place, byte) in space.iter_mut().zip(queue.drain(..count)) {
        *place = byte;
    }
    count
}

/// How far an offer of another engine has come.
#[derive(Debug)]
pub(super) enum Stage<L: LocalSide> {
    /// It may be asked for, but not before.
    Idle(Time),
    /// It was asked for; given up then.
    Wanted(Time),
    /// The stream's state is here, and a taker of this host has to confirm it until then.
    Handed {
        gift: GiftId,
        until: Time,
        end: L::Handle,
        socket: L::Socket,
        state: Box<GiftState>,
    },
}

/// An offer of another engine.
#[derive(Debug)]
pub(super) struct Coming<L: LocalSide> {
    pub(super) name: ProcessName,
    pub(super) stage: Stage<L>,
}

/// A stream that the far node is to say yes to.
#[derive(Debug)]
pub(super) struct Adopting<L: LocalSide> {
    pub(super) service: StreamId,
    pub(super) name: ProcessName,
    pub(super) end: L::Handle,
    pub(super) socket: L::Socket,
    pub(super) state: Box<GiftState>,
    pub(super) until: Time,
    pub(super) reply: Reply<Confirmed>,
}

/// Everything on its way.
#[derive(Debug)]
pub(super) struct Moves<L: LocalSide> {
    pub(super) services: HashMap<StreamId, Service>,
    pub(super) coming: BTreeMap<StreamId, Coming<L>>,
    pub(super) adopting: BTreeMap<StreamId, Adopting<L>>,
    pub(super) sweep_at: Time,
}

impl<L: LocalSide> Moves<L> {
    pub(super) fn new() -> Self {
        Self {
            services: HashMap::new(),
            coming: BTreeMap::new(),
            adopting: BTreeMap::new(),
            sweep_at: Time::ZERO,
        }
    }

    /// How many offers to `name` were asked for and not answered.
    pub(super) fn wanted(&self, name: &ProcessName) -> usize {
        let wanted =
            |coming: &&Coming<L>| coming.name == *name && matches!(coming.stage, Stage::Wanted(_));
        self.coming.values().filter(wanted).count()
    }

    /// The first offer to `name` that may be asked for.
    pub(super) fn idle(&self, now: Time, name: &ProcessName) -> Option<StreamId> {
        let idle = |coming: &Coming<L>| {
            coming.name == *name && matches!(coming.stage, Stage::Idle(at) if at <= now)
        };
        let mut coming = self.coming.iter();
        coming.find(|(_, coming)| idle(coming)).map(|(id, _)| *id)
    }

    /// When something is to be given up, or asked for again by one of those who wait.
    pub(super) fn poll_timeout(&self, waits: impl Fn(&ProcessName) -> bool) -> Option<Time> {
        let due = |coming: &Coming<L>| match coming.stage {
            Stage::Idle(at) => waits(&coming.name).then_some(at),
            Stage::Wanted(until) | Stage::Handed { until, .. } => Some(until),
        };
        let coming = self.coming.values().filter_map(due);
        coming
            .chain(self.adopting.values().map(|adopting| adopting.until))
            .min()
    }
}
