//! What programs ask for: listen, connect, accept, finish, reset, release.

use super::frames::answer_key;
use super::*;
use crate::chunks::Chunks;
use crate::event::ListenError;
use crate::stream::{Moving, Pending, Phase as StreamPhase, SendEnd, Stream};
use core::ops::RangeInclusive;
use stp_format::segment::StreamKey;

/// Ports that are given to outgoing connections. Each seat begins at another place, so that nodes of
/// one system rarely choose the same.
pub(super) const EPHEMERAL_PORTS: RangeInclusive<u16> = 32768..=60999;

/// A new stream's window is at most this part of what is left for first windows, and at least that.
const WINDOW_PART: u64 = 16;
const WINDOW_LEAST: u64 = 16 << 10;

impl Node {
    /// Listens on a port of this system. [`Event::Listening`] tells when peers can see it.
    pub fn listen(&mut self, port: u16) -> Result<(), ListenError> {
        if self.phase != Phase::Up {
            return Err(ListenError::Stopped);
        }
        if self.listeners.contains_key(&port) {
            return Err(ListenError::InUse);
        }
        let row = self
            .table
            .take(Row::Listener(port))
            .ok_or(ListenError::TableFull)?;
        let change = self.own.ring();
        self.listeners.insert(
            port,
            Listener {
                row,
                change,
                told: false,
            },
        );
        Ok(())
    }

    /// Listens no more; connections that were accepted stay.
    pub fn unlisten(&mut self, port: u16) {
        if let Some(listener) = self.listeners.remove(&port) {
            self.table.free(listener.row);
            self.own.ring();
        }
    }

    /// Connects to a port of another system. The outcome is [`Event::Connected`] or [`Event::Failed`].
    pub fn connect(
        &mut self,
        now: Time,
        to: &SystemName,
        port: u16,
        local_port: Option<u16>,
    ) -> Result<StreamId, ConnectError> {
        self.tick(now);
        if self.phase != Phase::Up {
            return Err(ConnectError::Stopped);
        }
        if self.streams.len() >= self.limits().streams {
            return Err(ConnectError::TooManyStreams);
        }
        let local_port = local_port.unwrap_or_else(|| self.free_port());
        let key = StreamKey {
            by_writer: true,
            number: self.next_number,
        };
        self.next_number += 1;
        let stream = Stream {
            phase: StreamPhase::Resolving,
            local_port,
            peer_port: port,
            owns_port: true,
            ..self.new_stream(self.seat, key, *to)
        };
        let id = self
            .insert_stream(stream)
            .ok_or(ConnectError::TooManyStreams)?;
        self.ports_taken.insert(local_port);
        match self.locate(to, port) {
            Ok(seat) if !self.is_ending(seat) => self.open(id, seat),
            _ => {
                // What is known may be old: the answer comes from a fresh look.
                self.resolving.push(id);
                self.directory_at = now;
                self.directory_full_at = now;
            }
        }
        Ok(id)
    }

    fn is_ending(&self, seat: SeatId) -> bool {
        self.links[usize::from(seat.0)].ending.is_some()
    }

    fn free_port(&mut self) -> u16 {
        let ports = EPHEMERAL_PORTS;
        for _ in ports.clone() {
            let port = self.next_port;
            self.next_port = if port == *ports.end() {
                *ports.start()
            } else {
                port + 1
            };
            if !self.ports_taken.contains(&port) && !self.listeners.contains_key(&port) {
                return port;
            }
        }
        // As many connections as ports: numbers repeat, streams have names of their own.
        self.next_port
    }

    /// The seat whose node listens on a port of a system, as far as the last look at the directory tells.
    fn locate(&self, to: &SystemName, port: u16) -> Result<SeatId, ConnectError> {
        let mut error = ConnectError::UnknownSystem;
        let mut found = None;
        for peer in self.directory.peers.iter().flatten() {
            if peer.record.system != *to {
                continue;
            }
            if !matches!(peer.state, PeerState::Up | PeerState::Suspect) {
                if error == ConnectError::UnknownSystem {
                    error = ConnectError::SystemDead;
                }
                continue;
            }
            error = ConnectError::Refused;
            let listed = peer.record.ports.binary_search(&port).is_ok();
            let up = peer.state == PeerState::Up;
            let fitness = (listed, up, peer.record.ports_overflow);
            let may = listed || peer.record.ports_overflow;
            if may && found.is_none_or(|(best, _)| fitness > best) {
                found = Some((fitness, peer.record.seat));
            }
        }
        found.map(|(_, seat)| seat).ok_or(error)
    }

    /// After a look at the directory: those who asked before it began have their answer.
    pub(super) fn resolve(&mut self, now: Time) {
        let covered = core::mem::take(&mut self.resolving_covered).min(self.resolving.len());
        let asked: Vec<_> = self.resolving.drain(..covered).collect();
        let mut waiting = Vec::new();
        for id in asked {
            let Some(stream) = self.streams.get(id) else {
                continue;
            };
            match self.locate(&stream.peer, stream.peer_port) {
                // What the seat's former node published is still being read: soon.
                Ok(seat) if self.is_ending(seat) => waiting.push(id),
                Ok(seat) => self.open(id, seat),
                Err(error) => self.fail(id, error),
            }
        }
        if !self.resolving.is_empty() {
            self.directory_at = now;
        }
        self.resolving.append(&mut waiting);
    }

    pub(super) fn fail_resolving(&mut self, error: ConnectError) {
        for id in core::mem::take(&mut self.resolving) {
            self.fail(id, error);
        }
        self.resolving_covered = 0;
    }

    fn fail(&mut self, id: StreamId, error: ConnectError) {
        self.remove_stream(id);
        self.events.push_back(Event::Failed(id, error));
    }

    fn open(&mut self, id: StreamId, seat: SeatId) {
        if let Err(error) = self.open_link(seat) {
            return self.fail(id, error);
        }
        let Some(stream) = self.streams.get_mut(id) else {
            return;
        };
        stream.phase = StreamPhase::Opening;
        stream.seat = seat;
        stream.pending.open = true;
        self.links[usize::from(seat.0)]
            .keys
            .insert(answer_key(stream.key), id);
        self.queue_control(id);
    }

    /// The program's queue has taken an [`Event::Incoming`] connection.
    pub fn accept(&mut self, now: Time, id: StreamId) {
        self.tick(now);
        let Some(stream) = self.streams.get_mut(id) else {
            return;
        };
        if stream.phase != StreamPhase::Offered {
            return;
        }
        stream.phase = StreamPhase::Open;
        stream.pending.accept = true;
        self.offered -= 1;
        self.links[usize::from(stream.seat.0)].offered -= 1;
        self.table.touch(stream.row);
        self.queue_control(id);
    }

    /// An [`Event::Incoming`] connection is not wanted.
    pub fn refuse(&mut self, now: Time, id: StreamId, reason: ResetReason) {
        self.reset(now, id, reason);
    }

    /// The program sends no more: the peer is told after all that was pulled.
    pub fn finish(&mut self, now: Time, id: StreamId) {
        self.tick(now);
        let Some(stream) = self.streams.get_mut(id) else {
            return;
        };
        if stream.send_end != SendEnd::Open || stream.phase != StreamPhase::Open {
            return;
        }
        stream.send_end = SendEnd::FinQueued;
        stream.pending.fin = true;
        self.table.touch(stream.row);
        self.queue_control(id);
    }

    /// Ends a stream at once; the peer is told why, after what was pulled. The stream is gone.
    pub fn reset(&mut self, now: Time, id: StreamId, reason: ResetReason) {
        self.tick(now);
        let Some(stream) = self.streams.get(id) else {
            return;
        };
        let (seat, key, reset) = (stream.seat, stream.key, stream.reset);
        let unheard = stream.pending.open || stream.pending.adopt;
        let opened = stream.phase != StreamPhase::Resolving && !unheard;
        if stream.phase == StreamPhase::Resolving
            && let Some(at) = self.resolving.iter().position(|waiting| *waiting == id)
        {
            self.resolving.remove(at);
            self.resolving_covered -= usize::from(at < self.resolving_covered);
        }
        self.remove_stream(id);
        if opened && reset.is_none() {
            self.send_reset(seat, key, reason);
        }
        self.events.push_back(Event::Closed(id));
    }

    /// The program's socket is gone. What it sent is delivered; what it did not read is lost, and the peer
    /// learns that by a reset.
    pub fn release(&mut self, now: Time, id: StreamId) {
        self.tick(now);
        let Some(stream) = self.streams.get_mut(id) else {
            return;
        };
        if stream.reset.is_some()
            || !stream.received.is_empty()
            || stream.phase != StreamPhase::Open
        {
            stream.received.clear();
            return self.reset(now, id, ResetReason::Aborted);
        }
        stream.released.get_or_insert(now);
        self.finish(now, id);
        self.close_if_done(id);
    }

    /// Streams without a program do not wait for ever for a peer that does not finish.
    pub(super) fn drop_orphans(&mut self, now: Time) {
        let limit = self.timings().orphan;
        let expired: Vec<_> = self
            .streams
            .iter()
            .filter(|(_, stream)| {
                stream.send_end == SendEnd::Acknowledged
                    && stream
                        .released
                        .is_some_and(|since| now.since(since) >= limit)
            })
            .map(|(id, _)| id)
            .collect();
        for id in expired {
            self.reset(now, id, ResetReason::Aborted);
        }
    }

    pub(super) fn close_if_done(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get(id) else {
            return;
        };
        // Whoever holds it will ask for it.
        let held = matches!(stream.moving, Moving::Held(_));
        if !held
            && stream.send_end == SendEnd::Acknowledged
            && stream.fin_received
            && stream.received.is_empty()
            && (stream.fin_told || stream.released.is_some())
        {
            self.remove_stream(id);
            self.events.push_back(Event::Closed(id));
        }
    }

    /// A stream's beginnings; the caller sets phase and ports.
    pub(super) fn new_stream(&self, seat: SeatId, key: StreamKey, peer: SystemName) -> Stream {
        let limits = self.limits();
        let left = limits.windows_start.saturating_sub(self.windows_start);
        let window = limits
            .window_start
            .min((left / WINDOW_PART).max(WINDOW_LEAST));
        Stream {
            phase: StreamPhase::Resolving,
            seat,
            key,
            local_port: 0,
            peer_port: 0,
            peer,
            row: 0,
            row_bytes: 0,
            sent: 0,
            send_limit: 0,
            send_end: SendEnd::Open,
            has_bytes: false,
            in_fill: false,
            pending: Pending::default(),
            in_control: false,
            recv_next: 0,
            taken: 0,
            recv_limit: window,
            window,
            window_start: window,
            granted_at: self.now,
            received: Chunks::default(),
            urgent: None,
            blocked: false,
            in_deliver: false,
            fin_received: false,
            fin_told: false,
            reset: None,
            released: None,
            moving: Moving::No,
            held_at: self.now,
            adopt: None,
            owns_port: false,
        }
    }

    /// Gives a stream a row of the socket table, if there is one.
    pub(super) fn insert_stream(&mut self, stream: Stream) -> Option<StreamId> {
        let row = self.table.take(Row::Free)?;
        self.windows_start += stream.window_start;
        let id = self.streams.insert(Stream { row, ..stream });
        self.table.set(row, Row::Stream(id));
        Some(id)
    }

    pub(super) fn remove_stream(&mut self, id: StreamId) {
        let Some(stream) = self.streams.remove(id) else {
            return;
        };
        self.table.free(stream.row);
        self.windows_start -= stream.window_start;
        self.window_growth -= stream.window - stream.window_start;
        let link = &mut self.links[usize::from(stream.seat.0)];
        let keys = &mut link.keys;
        let key = answer_key(stream.key);
        // After a reset the name may already be free; a later stream never has the same number.
        if keys.get(&key) == Some(&id) {
            keys.remove(&key);
        }
        if stream.phase == StreamPhase::Offered {
            self.offered -= 1;
            link.offered -= 1;
        }
        if stream.owns_port {
            self.ports_taken.remove(&stream.local_port);
        }
    }

    /// Marks the rows of streams that moved bytes since their row was written.
    pub(super) fn touch_busy_rows(&mut self) {
        let busy: Vec<_> = self
            .streams
            .iter()
            .filter(|(_, stream)| stream.row_bytes != stream.sent + stream.taken)
            .map(|(id, _)| id)
            .collect();
        for id in busy {
            if let Some(stream) = self.streams.get_mut(id) {
                stream.row_bytes = stream.sent + stream.taken;
                self.table.touch(stream.row);
            }
        }
    }

    pub(super) fn listener_scb(&self, port: u16) -> Scb {
        Scb {
            state: ScbState::Listen,
            local_port: port,
            peer_port: 0,
            peer_seat: SeatId(0),
            pid: self.config.pid,
            backlog: 0,
            peer_incarnation: stp_format::Incarnation(0),
            stream: 0,
            sent_bytes: 0,
            received_bytes: 0,
            peer_system: None,
        }
    }

    pub(super) fn stream_scb(&self, id: StreamId) -> Option<Scb> {
        let stream = self.streams.get(id)?;
        let link = &self.links[usize::from(stream.seat.0)];
        Some(Scb {
            state: stream.state(),
            local_port: stream.local_port,
            peer_port: stream.peer_port,
            peer_seat: stream.seat,
            pid: self.config.pid,
            backlog: 0,
            peer_incarnation: link.peer_incarnation,
            stream: stream.key.number,
            sent_bytes: stream.sent,
            received_bytes: stream.taken,
            peer_system: Some(stream.peer),
        })
    }
}
