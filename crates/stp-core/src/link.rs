//! The pair of links with one peer, and the sessions on them.
//!
//! - Each direction has a session number (epoch), chosen by its writer, that only rises within the
//!   writer's incarnation. Beside it stands the peer's number that it is with, 0 while it waits for that.
//! - Whoever sees the peer's number rise beside a 0 ends all streams with it and raises their own. A rise beside a number
//!   is an answer, which is never answered. A peer that is with an earlier number than the own one is waited for.
//! - An ended session's numbers never come back: `floor` keeps the highest that is over.

use crate::config::Timings;
use crate::event::{ResetReason, StreamId};
use crate::receiver::Incoming;
use crate::sender::Outgoing;
use crate::time::Time;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use stp_format::segment::StreamKey;
use stp_format::{Epoch, Geometry, Incarnation, LinkEntry, Ring, SeatId, SegmentInfo, Seq};

/// The peer is gone; what it had published is still read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ending {
    pub(crate) reason: ResetReason,
    /// Ends here even if more keeps coming.
    pub(crate) deadline: Time,
    /// Looks that found nothing more.
    pub(crate) misses: u32,
}

#[derive(Debug)]
pub(crate) struct Link {
    /// The peer's incarnation that the sessions are with; 0: none.
    pub(crate) peer_incarnation: Incarnation,
    /// This node's session number; 0 before the first.
    pub(crate) my_epoch: Epoch,
    /// The peer's session number; 0 while none was seen since this node raised its own.
    pub(crate) peer_epoch: Epoch,
    pub(crate) floor: Epoch,
    pub(crate) outgoing: Option<Outgoing>,
    /// When `outgoing` began.
    pub(crate) begun_at: Time,
    pub(crate) incoming: Option<Incoming>,
    /// By the name that the *peer* writes.
    pub(crate) keys: BTreeMap<StreamKey, StreamId>,
    pub(crate) ending: Option<Ending>,
    /// Streams that the peer asked for and that no program's queue has taken yet.
    pub(crate) offered: usize,
    /// How often this incarnation of the peer was cut off, and until when it still is.
    pub(crate) breaks: u32,
    pub(crate) shunned_until: Time,
    /// Frames of it that did not fit their streams.
    pub(crate) misfits: u64,
}

impl Link {
    pub(crate) fn new() -> Self {
        Self {
            peer_incarnation: Incarnation(0),
            my_epoch: Epoch(0),
            peer_epoch: Epoch(0),
            floor: Epoch(0),
            outgoing: None,
            begun_at: Time::ZERO,
            incoming: None,
            keys: BTreeMap::new(),
            ending: None,
            offered: 0,
            breaks: 0,
            shunned_until: Time::ZERO,
            misfits: 0,
        }
    }

    /// Starts over with a peer, or with another incarnation of it, whose sessions up to `floor` are over.
    pub(crate) fn begin_with(&mut self, peer: Incarnation, floor: Epoch) {
        if self.peer_incarnation != peer {
            self.peer_incarnation = peer;
            self.peer_epoch = Epoch(0);
            self.floor = floor;
            self.breaks = 0;
            self.shunned_until = Time::ZERO;
            self.misfits = 0;
        }
        if self.my_epoch == Epoch(0) {
            self.my_epoch = Epoch(1);
        }
    }

    /// Ends both sessions. Its ring, to be given back.
    pub(crate) fn end_sessions(&mut self) -> Option<Ring> {
        self.floor = self.floor.max(self.peer_epoch);
        self.peer_epoch = Epoch(0);
        self.my_epoch = Epoch(self.my_epoch.0 + 1);
        self.incoming = None;
        self.keys.clear();
        self.ending = None;
        self.outgoing.take().map(|outgoing| outgoing.ring())
    }

    /// Ends the peer's session only.
    pub(crate) fn forget_peer_session(&mut self) {
        self.peer_epoch = Epoch(0);
        self.incoming = None;
    }

    /// Whether what was taken in is to be acknowledged now.
    pub(crate) fn is_ack_due(&self, now: Time, timings: &Timings) -> bool {
        let incoming = self.incoming.as_ref();
        let due = incoming.and_then(|incoming| incoming.ack_due(timings));
        due.is_some_and(|due| due <= now)
    }

    /// The head of this node's next segment to the `reader`, with the newest acknowledgement; without its number.
    pub(crate) fn head(&self, writer: (SeatId, Incarnation), reader: SeatId) -> SegmentInfo {
        SegmentInfo {
            writer: writer.0,
            reader,
            writer_incarnation: writer.1,
            reader_incarnation: self.peer_incarnation,
            epoch: self.my_epoch,
            seq: Seq(0),
            acked_epoch: self.peer_epoch,
            acked_seq: self.acked_seq(),
            wants_ack: true,
        }
    }

    /// As it stands in this node's seat record.
    pub(crate) fn entry(&self) -> LinkEntry {
        LinkEntry {
            peer_incarnation: self.peer_incarnation,
            epoch: self.my_epoch,
            acked_epoch: self.peer_epoch,
            ring: self
                .outgoing
                .as_ref()
                .map(Outgoing::ring)
                .unwrap_or_default(),
            last_seq: self
                .outgoing
                .as_ref()
                .map(Outgoing::last_seq)
                .unwrap_or_default(),
            acked_seq: self.acked_seq(),
        }
    }

    /// Streams here wait for the peer's first word, whose ring its record is about to name: since when.
    pub(crate) fn awaits_ring(&self) -> Option<Time> {
        let waits = self.outgoing.is_some() && self.incoming.is_none() && !self.keys.is_empty();
        waits.then_some(self.begun_at)
    }

    /// The last incoming segment taken in.
    pub(crate) fn acked_seq(&self) -> Seq {
        self.incoming
            .as_ref()
            .map(Incoming::taken)
            .unwrap_or_default()
    }
}

/// Which extents of this seat's area are part of a ring.
#[derive(Debug)]
pub(crate) struct Extents {
    used: Vec<bool>,
    rings: usize,
}

impl Extents {
    pub(crate) fn new(geometry: &Geometry) -> Self {
        Self {
            used: alloc::vec![false; usize::from(geometry.extents)],
            rings: 0,
        }
    }

    /// A ring for one more peer: as many extents as leave one for every peer that has none yet, at
    /// most `most`, lying together.
    pub(crate) fn take(&mut self, geometry: &Geometry, most: u16) -> Option<Ring> {
        let free = self.used.iter().filter(|used| !**used).count();
        let others = usize::from(geometry.seats).saturating_sub(2 + self.rings);
        let wanted = free
            .saturating_sub(others)
            .clamp(1, usize::from(most.max(1)));
        // Rings come and go in any order; a shorter run is better than none.
        (1..=wanted).rev().find_map(|length| {
            let first = self
                .used
                .windows(length)
                .position(|run| run.iter().all(|used| !used))?;
            self.used[first..first + length].fill(true);
            self.rings += 1;
            Some(geometry.ring(first as u16, length as u16))
        })
    }

    /// How many are part of a ring.
    pub(crate) fn used(&self) -> u64 {
        self.used.iter().filter(|used| **used).count() as u64
    }

    pub(crate) fn give_back(&mut self, ring: Ring) {
        let first = usize::from(ring.first_extent);
        self.used[first..first + usize::from(ring.extents)].fill(false);
        self.rings = self.rings.saturating_sub(1);
    }
}
