//! Following the seat directory: who appears, falls silent, leaves, comes back; sessions begin and end.

use super::*;
use crate::directory::{Lost, Peer};
use crate::link::Ending;
use crate::receiver::Incoming;
use stp_format::Incarnation;

/// How long what a dead peer had published is still read.
const DRAIN_MAX: Duration = Duration::from_millis(500);
/// How long a peer that wrote what no node writes is cut off at first, doubling up to [`SHUN_MAX`].
const SHUN_FIRST: Duration = Duration::from_millis(100);
const SHUN_MAX: Duration = Duration::from_secs(60);
/// An idle node's pause between two looks at the directory is this part of the silence on all its links.
const IDLE_PART: u32 = 64;
/// The shortest pause between two looks for a ring that a peer is about to name.
const RING_NAP: Duration = Duration::from_millis(1);
/// Between two reads of the whole directory.
const FULL_INTERVAL: Duration = Duration::from_secs(1);

impl Node {
    pub(super) fn poll_directory(&mut self, now: Time) -> Option<Io> {
        if self.directory_reading || self.directory_at.max(self.looks_at) > now {
            return None;
        }
        self.directory_reading = true;
        self.resolving_covered = self.resolving.len();
        let geometry = self.config.geometry;
        let seats = match now >= self.directory_full_at {
            true => {
                self.directory_full_at = now + FULL_INTERVAL;
                geometry.seats
            }
            false => self.directory.seats_in_use(),
        };
        let buf = self.pool.take(geometry.directory_units(seats));
        let id = self.op(Purpose::Directory);
        let place = Place::Directory { first: SeatId(0) };
        Some(Io {
            id,
            place,
            action: IoAction::Read(buf),
        })
    }

    /// Until the next look at the directory. Where a first connection waits for the peer's ring to be named there, it
    /// is looked for more often, as links are.
    fn directory_nap(&self, now: Time) -> Duration {
        let timings = &self.config.timings;
        let waits = self.links.iter().filter_map(Link::awaits_ring).max();
        let silence = now.since(self.active_at);
        let idle = (silence / IDLE_PART).clamp(timings.poll_max, timings.poll_longest());
        waits.map_or(idle, |since| {
            (now.since(since) / crate::receiver::NAP_PART).clamp(RING_NAP, timings.poll_max)
        })
    }

    pub(super) fn handle_directory(&mut self, now: Time, done: IoDone) {
        self.directory_reading = false;
        self.directory_at = now + self.directory_nap(now);
        let Some(buf) = done.buf.filter(|_| done.result.is_ok()) else {
            // What was to be resolved by this read waits for the next.
            self.resolving_covered = 0;
            return;
        };
        let healthy = self.healthy(now);
        let mut changes = Vec::new();
        let own = crate::directory::Own {
            incarnation: self.incarnation,
            nonce: self.config.nonce,
            record_version: self.own.record_version,
        };
        let lost = self
            .directory
            .handle_read(now, buf.bytes(), healthy, &own, &mut changes);
        self.pool.give_back(buf);
        for (seat, what) in core::mem::take(&mut self.directory.oddities) {
            self.events.push_back(Event::PeerBroken(seat, what));
        }
        if let Some(lost) = lost {
            self.fence(now, lost);
            return;
        }
        if changes.is_empty() {
            self.counters.polls_empty += 1;
        }
        for (seat, change) in changes {
            self.follow(now, seat, change);
        }
        self.resolve(now);
    }

    /// Another node sits here: every stream is over, and nothing is written any more.
    fn fence(&mut self, now: Time, lost: Lost) {
        for seat in 0..self.links.len() {
            self.end_streams(now, SeatId(seat as u16), ResetReason::Fenced);
        }
        self.fail_resolving(ConnectError::Stopped);
        self.phase = Phase::Fenced;
        self.events.push_back(match lost {
            Lost::Seat(by) => Event::Fenced(by),
            Lost::Volume => Event::Reformatted,
        });
    }

    fn follow(&mut self, now: Time, seat: SeatId, change: Change) {
        let Some(peer) = self.directory.peer(seat) else {
            return;
        };
        let (state, system) = (peer.state, peer.record.system);
        let incarnation = peer.record.incarnation;
        // A record may be what a dead node left; only a moving heartbeat is a living namesake.
        let twice =
            peer.moved && system == self.config.system && peer.record.host != self.config.host;
        let link = &self.links[usize::from(seat.0)];
        let linked = link.peer_incarnation != Incarnation(0);
        if twice && self.namesakes.insert(seat, incarnation) != Some(incarnation) {
            self.events.push_back(Event::NameTwice(seat));
        }
        if change != Change::Record {
            match state {
                PeerState::Up => {
                    self.events.push_back(Event::PeerUp(seat, system));
                }
                PeerState::Suspect => self.events.push_back(Event::PeerSuspect(seat, system)),
                PeerState::Dead if change == Change::State => {
                    let gone = Event::PeerGone(seat, system, ResetReason::PeerDied);
                    self.events.push_back(gone);
                }
                PeerState::Left if change == Change::State => {
                    let gone = Event::PeerGone(seat, system, ResetReason::EngineStopped);
                    self.events.push_back(gone);
                }
                PeerState::Dead | PeerState::Left => {}
            }
        }
        let replaced = linked && link.peer_incarnation != incarnation;
        match state {
            _ if replaced => self.begin_ending(now, seat, ResetReason::PeerDied),
            PeerState::Dead if linked => self.begin_ending(now, seat, ResetReason::PeerDied),
            PeerState::Left if linked => self.begin_ending(now, seat, ResetReason::EngineStopped),
            PeerState::Up | PeerState::Suspect => self.sync_link(now, seat),
            PeerState::Dead | PeerState::Left => {}
        }
    }

    /// The peer is gone. What it had published is read to its end, then its streams are reset.
    fn begin_ending(&mut self, now: Time, seat: SeatId, reason: ResetReason) {
        let link = &mut self.links[usize::from(seat.0)];
        let ending = Ending {
            reason,
            deadline: now + DRAIN_MAX,
            misses: 0,
        };
        let running = *link.ending.get_or_insert(ending);
        match &mut link.incoming {
            Some(incoming) => incoming.wake(now),
            None => self.end_link(now, seat, running.reason),
        }
    }

    /// Ends both sessions with a peer and resets its streams; begins anew if the peer lives.
    pub(super) fn end_link(&mut self, now: Time, seat: SeatId, reason: ResetReason) {
        self.end_streams(now, seat, reason);
        let link = &mut self.links[usize::from(seat.0)];
        if let Some(ring) = link.end_sessions() {
            self.extents.give_back(ring);
        }
        let peer = self.directory.peer(seat);
        let alive = peer.is_some_and(|peer| {
            matches!(
                peer.state,
                PeerState::Up | PeerState::Suspect | PeerState::Dead
            )
        });
        let sitting = peer.map(|peer| peer.record.incarnation);
        let link = &mut self.links[usize::from(seat.0)];
        if !alive || sitting != Some(link.peer_incarnation) {
            link.peer_incarnation = Incarnation(0);
        }
        // The peer must see the new session number, above all if it only seemed dead.
        self.own.ring();
        if alive {
            self.sync_link(now, seat);
        }
    }

    /// The peer wrote what no node writes: its session ends, and each time the next begins later.
    pub(super) fn cut_off(&mut self, now: Time, seat: SeatId, what: &'static str) {
        self.events.push_back(Event::PeerBroken(seat, what));
        let link = &mut self.links[usize::from(seat.0)];
        let pause = (SHUN_FIRST * (1 << link.breaks.min(10))).min(SHUN_MAX);
        link.breaks = link.breaks.saturating_add(1);
        link.shunned_until = now + pause;
        self.end_link(now, seat, ResetReason::Protocol);
    }

    fn end_streams(&mut self, now: Time, seat: SeatId, reason: ResetReason) {
        let link = &mut self.links[usize::from(seat.0)];
        let ids: Vec<_> = core::mem::take(&mut link.keys).into_values().collect();
        for id in ids {
            self.end_stream(now, id, reason);
        }
    }

    /// Ends the streams that the peer has named.
    fn end_streams_of(&mut self, now: Time, seat: SeatId, reason: ResetReason) {
        let keys = &mut self.links[usize::from(seat.0)].keys;
        let named = keys.extract_if(.., |key, _| key.by_writer);
        let ids: Vec<_> = named.map(|(_, id)| id).collect();
        for id in ids {
            self.end_stream(now, id, reason);
        }
    }

    /// What a peer's record says of its link to this node.
    fn entry_of(&self, peer: &Peer) -> LinkEntry {
        let entry = peer.record.links.get(usize::from(self.seat.0));
        entry.copied().unwrap_or_default()
    }

    /// Up to where the sessions of a peer with which none stands are over: this node may have been through with those of one that
    /// came back.
    fn floor_of(&self, peer: &Peer) -> Epoch {
        let entry = self.entry_of(peer);
        match peer.returned() && entry.peer_incarnation == self.incarnation {
            true => entry.epoch,
            false => Epoch(0),
        }
    }

    /// Compares what the peer's record says of its link to this node with what this node knows.
    fn sync_link(&mut self, now: Time, seat: SeatId) {
        let Some(peer) = self.directory.peer(seat) else {
            return;
        };
        let incarnation = peer.record.incarnation;
        let entry = self.entry_of(peer);
        let (returned, floor) = (peer.returned(), self.floor_of(peer));
        let geometry = self.config.geometry;
        let link = &mut self.links[usize::from(seat.0)];
        let shunned = link.peer_incarnation == incarnation && link.shunned_until > now;
        if link.ending.is_some()
            || shunned
            || entry.peer_incarnation != self.incarnation
            || entry.epoch == Epoch(0)
        {
            return;
        }
        if link.peer_incarnation != incarnation {
            if link.peer_incarnation != Incarnation(0) {
                return self.begin_ending(now, seat, ResetReason::PeerDied);
            }
            link.begin_with(incarnation, floor);
            self.own.ring();
        }
        let link = &mut self.links[usize::from(seat.0)];
        if link.peer_epoch != Epoch(0) && entry.epoch > link.peer_epoch {
            self.follow_session(now, seat, entry);
        }
        let link = &mut self.links[usize::from(seat.0)];
        // A peer that still is in an earlier session of this node's begins a new one when it sees this one.
        // One that was thought gone must show that it has: its sessions of before are over.
        let is_first = entry.acked_epoch == Epoch(0) && !returned;
        let is_meant = entry.acked_epoch == link.my_epoch || is_first;
        if link.peer_epoch == Epoch(0) && entry.epoch > link.floor && is_meant {
            link.peer_epoch = entry.epoch;
            self.own.ring();
        }
        if link.peer_epoch != entry.epoch {
            // The peer took this node's new session for the first it ever saw, and still is in the one that
            // is over: a further new one tells it.
            let unaware = link.peer_epoch == Epoch(0)
                && entry.epoch <= link.floor
                && entry.acked_epoch == link.my_epoch;
            if unaware {
                self.end_link(now, seat, ResetReason::PeerDied);
            }
            return;
        }
        if link.incoming.is_none() && entry.ring.extents != 0 {
            let looks_free = self.config.timings.looks_free;
            let limits = &self.config.limits;
            let incoming = Incoming::new(&geometry, entry.ring, now, looks_free, limits);
            link.incoming = Some(incoming);
        }
        if let Some(incoming) = &mut link.incoming {
            if !incoming.may_be_last(entry.last_seq) {
                return self.cut_off(now, seat, "a last segment that its ring cannot hold");
            }
            incoming.handle_hint(now, entry.last_seq);
        }
        if entry.acked_epoch == link.my_epoch
            && let Err(broken) = self.handle_acked(seat, entry.acked_seq)
        {
            self.cut_off(now, seat, broken);
        }
    }

    /// The peer is in a new session.
    fn follow_session(&mut self, now: Time, seat: SeatId, entry: LinkEntry) {
        if entry.acked_epoch == Epoch(0) {
            // It ended the old one itself: it took this node for dead, or found it broken.
            self.end_streams(now, seat, ResetReason::PeerDied);
            let link = &mut self.links[usize::from(seat.0)];
            if let Some(ring) = link.end_sessions() {
                self.extents.give_back(ring);
            }
        } else {
            // An answer to a session of this node's. What this node opened in that stands: another new session
            // would be answered in turn, without end.
            self.end_streams_of(now, seat, ResetReason::PeerDied);
            self.links[usize::from(seat.0)].forget_peer_session();
        }
        self.links[usize::from(seat.0)].floor = Epoch(entry.epoch.0 - 1);
        self.own.ring();
    }

    /// An outgoing link to a living peer, begun if there is none.
    pub(super) fn open_link(&mut self, seat: SeatId) -> Result<(), ConnectError> {
        let peer = self
            .directory
            .peer(seat)
            .ok_or(ConnectError::UnknownSystem)?;
        let (incarnation, floor) = (peer.record.incarnation, self.floor_of(peer));
        if !matches!(peer.state, PeerState::Up | PeerState::Suspect) {
            return Err(ConnectError::SystemDead);
        }
        let geometry = self.config.geometry;
        let most = self.config.limits.ring_extents;
        let link = &mut self.links[usize::from(seat.0)];
        if link.ending.is_some() {
            return Err(ConnectError::SystemDead);
        }
        if link.outgoing.is_some() && link.peer_incarnation == incarnation {
            return Ok(());
        }
        if link.peer_incarnation == incarnation && link.shunned_until > self.now {
            return Err(ConnectError::PeerBroken);
        }
        let ring = self
            .extents
            .take(&geometry, most)
            .ok_or(ConnectError::NoRing)?;
        let link = &mut self.links[usize::from(seat.0)];
        link.begin_with(incarnation, floor);
        let limits = &self.config.limits;
        link.outgoing = Some(crate::sender::Outgoing::new(&geometry, ring, limits));
        link.begun_at = self.now;
        if link.incoming.is_none() {
            self.directory_at = self.directory_at.min(self.now + RING_NAP);
        }
        self.own.ring();
        Ok(())
    }
}
