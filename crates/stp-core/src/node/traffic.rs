//! Moving bytes: from programs into segments, from segments to programs, and the storage operations for it.

use super::frames::answer_key;
use super::*;
use crate::sender::Asks;
use crate::stream::{Moving, Phase as StreamPhase, SendEnd};
use stp_format::segment::StreamKey;
use stp_format::{Frame, FrameBody, Incarnation, SegmentInfo};

/// Bytes that one stream may put in a row while others wait on the same link.
pub(super) const FILL_TURN: usize = 32 << 10;
/// A program that takes half its window in this time keeps up with its peer.
const KEEPS_UP: Duration = Duration::from_millis(50);
/// Resets of forgotten streams that wait for a segment, at the most: as many as there can be streams.
pub(super) const RESETS_MAX: usize = 65_536;

/// A queue grows by this before streams that are gone are swept out of it.
pub(super) const GONE_MAX: usize = 64;

/// Streams that are gone leave a queue when it is their turn, which may never come where a peer does not
/// acknowledge: without this, a queue would grow with every stream that is given up.
fn forget_gone(queue: &mut VecDeque<StreamId>, streams: &Streams) {
    if queue.len() > 2 * streams.len() + GONE_MAX {
        queue.retain(|id| streams.get(*id).is_some());
    }
}

impl Node {
    /// The program's socket has bytes, or its end.
    pub fn readable(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(id) {
            stream.has_bytes = true;
            self.queue_fill(id);
        }
    }

    /// The program's socket takes bytes again.
    pub fn writable(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(id) {
            stream.blocked = false;
            self.queue_deliver(id);
        }
    }

    /// Space for bytes of a stream, to be filled from its program's socket; answer with
    /// [`Node::filled`].
    pub fn poll_fill(&mut self, now: Time) -> Option<(StreamId, &mut [u8])> {
        self.tick(now);
        let links = self.links.len();
        let (seat, id, room) = (0..links).find_map(|step| {
            let seat = (self.link_turn + step) % links;
            self.next_fill(seat).map(|(id, room)| (seat, id, room))
        })?;
        self.link_turn = seat;
        let outgoing = self.links[seat].outgoing.as_mut()?;
        Some((id, outgoing.builder(&mut self.pool).data_space(room)))
    }

    /// The next stream of a link to pull bytes for, and how many at the most.
    fn next_fill(&mut self, seat: usize) -> Option<(StreamId, usize)> {
        if self.links[seat].outgoing.as_ref()?.fill.is_empty() || self.links[seat].ending.is_some()
        {
            return None;
        }
        self.flush_control(seat);
        let outgoing = self.links[seat].outgoing.as_mut()?;
        if !outgoing.can_fill() {
            return None;
        }
        let alone = outgoing.fill.len() == 1;
        while let Some(&id) = outgoing.fill.front() {
            match self.streams.get_mut(id) {
                // The mark goes before the byte that it marks: it finds room in the next segment.
                Some(stream) if stream.pending.urgent => return None,
                Some(stream) if stream.can_fill() => {
                    let credit = usize::try_from(stream.send_limit - stream.sent);
                    let turn = if alone { usize::MAX } else { FILL_TURN };
                    let room = outgoing.builder(&mut self.pool).data_room();
                    return Some((id, room.min(turn).min(credit.unwrap_or(usize::MAX))));
                }
                stream => {
                    if let Some(stream) = stream {
                        stream.in_fill = false;
                    }
                    outgoing.fill.pop_front();
                }
            }
        }
        None
    }

    /// `bytes` bytes were put into the space that [`Node::poll_fill`] gave. `more`: the program's socket
    /// may have more; otherwise call [`Node::readable`] when it has.
    pub fn filled(&mut self, now: Time, id: StreamId, bytes: usize, more: bool) {
        self.tick(now);
        let Some(stream) = self.streams.get_mut(id) else {
            return;
        };
        let seat = usize::from(stream.seat.0);
        let Some(outgoing) = &mut self.links[seat].outgoing else {
            return;
        };
        debug_assert_eq!(outgoing.fill.front(), Some(&id), "filled without poll_fill");
        stream.has_bytes = more;
        stream.in_fill = false;
        if outgoing.fill.front() == Some(&id) {
            outgoing.fill.pop_front();
        }
        if bytes > 0 {
            outgoing
                .builder(&mut self.pool)
                .commit_data(stream.key, stream.sent, bytes);
            outgoing.ask(Asks::Perhaps);
            stream.sent += bytes as u64;
            self.counters.sent_bytes += bytes as u64;
        }
        self.queue_fill(id);
        self.link_turn = (seat + 1) % self.links.len();
    }

    /// The next byte of the program is urgent: the peer will be told before it comes.
    pub fn mark_urgent(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(id)
            && stream.phase == StreamPhase::Open
            && stream.send_end == SendEnd::Open
            && stream.reset.is_none()
        {
            stream.pending.urgent = true;
            self.queue_control(id);
        }
    }

    /// Whether the bytes that [`Node::poll_deliver`] gave for this stream are an urgent one: a single byte, to be handed
    /// over as such.
    pub fn is_urgent(&self, id: StreamId) -> bool {
        let stream = self.streams.get(id);
        stream.is_some_and(|stream| stream.urgent == Some(stream.taken + 1))
    }

    /// Bytes that arrived for a stream; answer with [`Node::delivered`]. They end before an urgent byte, which comes
    /// alone.
    pub fn poll_deliver(&mut self) -> Option<(StreamId, &[u8])> {
        let id = loop {
            let id = *self.deliver.front()?;
            match self.streams.get(id) {
                Some(stream)
                    if !stream.received.is_empty()
                        && !stream.blocked
                        && !stream.moving.is_giving() =>
                {
                    break id;
                }
                _ => {
                    self.deliver.pop_front();
                    self.delivery_done(id);
                }
            }
        };
        self.streams.get(id).map(|stream| {
            let bytes = stream.received.front();
            let before = match stream.urgent.map(|end| end - stream.taken) {
                None => usize::MAX,
                Some(1) => 1,
                Some(ahead) => usize::try_from(ahead - 1).unwrap_or(usize::MAX),
            };
            (id, &bytes[..bytes.len().min(before)])
        })
    }

    /// The program's socket took `bytes` bytes. `more`: it may take more; otherwise call
    /// [`Node::writable`] when it does.
    pub fn delivered(&mut self, now: Time, id: StreamId, bytes: usize, more: bool) {
        self.tick(now);
        let Some(stream) = self.streams.get_mut(id) else {
            return;
        };
        stream.blocked = !more;
        self.consumed(now, id, bytes);
        // Turn by turn: the next delivery is another stream's.
        if self.deliver.len() > 1 && self.deliver.front() == Some(&id) {
            self.deliver.rotate_left(1);
        }
    }

    /// The program has taken `bytes` of what lies in front.
    pub(super) fn consumed(&mut self, now: Time, id: StreamId, bytes: usize) {
        if let Some(stream) = self.streams.get_mut(id)
            && let Some(buf) = stream.received.consume(bytes)
        {
            self.pool.give_back(buf);
        }
        self.handed_over(now, id, bytes);
    }

    /// The program has `bytes` more of what came.
    pub(super) fn handed_over(&mut self, now: Time, id: StreamId, bytes: usize) {
        let Some(stream) = self.streams.get_mut(id) else {
            return;
        };
        stream.taken += bytes as u64;
        stream.urgent = stream.urgent.filter(|end| *end > stream.taken);
        let in_runs = self.config.limits.run_bytes > 0;
        if stream.wants_credit(in_runs) && stream.reset.is_none() {
            let limits = &self.config.limits;
            // A program that keeps up may be sent more ahead.
            let growth = stream
                .window
                .min(limits.window_max.saturating_sub(stream.window));
            if now.since(stream.granted_at) < KEEPS_UP
                && self.window_growth + growth <= limits.window_growth
            {
                stream.window += growth;
                self.window_growth += growth;
            }
            stream.granted_at = now;
            // A stream that came from another node may have been allowed more.
            stream.recv_limit = stream.recv_limit.max(stream.taken + stream.window);
            stream.pending.credit = true;
            self.queue_control(id);
        }
    }

    /// Nothing more can be delivered now: tells the stream's end, if this is it.
    fn delivery_done(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(id) else {
            return;
        };
        stream.in_deliver = false;
        if !stream.received.is_empty() || stream.moving.is_giving() {
            return;
        }
        let reset = stream.reset;
        if stream.fin_received && !stream.fin_told {
            // What the peer finished in order stays finished, whatever became of it since.
            stream.fin_told = true;
            self.events.push_back(Event::PeerFinished(id));
        }
        match reset {
            Some(reason) => {
                self.remove_stream(id);
                self.events.push_back(Event::Reset(id, reason));
            }
            None => self.close_if_done(id),
        }
    }

    pub(super) fn queue_fill(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(id) else {
            return;
        };
        if stream.in_fill || !stream.can_fill() {
            return;
        }
        if let Some(outgoing) = &mut self.links[usize::from(stream.seat.0)].outgoing {
            stream.in_fill = true;
            outgoing.fill.push_back(id);
            forget_gone(&mut outgoing.fill, &self.streams);
        }
    }

    pub(super) fn queue_deliver(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(id) else {
            return;
        };
        if !stream.in_deliver {
            stream.in_deliver = true;
            self.deliver.push_back(id);
        }
    }

    pub(super) fn queue_control(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(id) else {
            return;
        };
        if stream.in_control || !stream.due().any() {
            return;
        }
        if let Some(outgoing) = &mut self.links[usize::from(stream.seat.0)].outgoing {
            stream.in_control = true;
            outgoing.control.push_back(id);
            forget_gone(&mut outgoing.control, &self.streams);
        }
    }

    pub(super) fn send_reset(&mut self, seat: SeatId, key: StreamKey, reason: ResetReason) {
        let reason = reason as u64;
        self.send_farewell(seat, key, FrameBody::Reset { reason });
    }

    /// A word about a stream that this node has forgotten.
    pub(super) fn send_farewell(&mut self, seat: SeatId, key: StreamKey, body: FrameBody<'static>) {
        if let Some(outgoing) = &mut self.links[usize::from(seat.0)].outgoing
            && outgoing.farewells.len() < RESETS_MAX
        {
            outgoing.farewells.push_back((key, body));
        }
    }

    /// Moves waiting control frames into the segment being filled, as far as they fit.
    pub(super) fn flush_control(&mut self, seat: usize) {
        let Some(outgoing) = &mut self.links[seat].outgoing else {
            return;
        };
        while let Some(&id) = outgoing.control.front() {
            let Some(stream) = self.streams.get_mut(id) else {
                outgoing.control.pop_front();
                continue;
            };
            let key = stream.key;
            let builder = outgoing.builder(&mut self.pool);
            let mut put = |due: &mut bool, body: FrameBody<'_>| {
                if *due && builder.push(&Frame { key, body }) {
                    *due = false;
                    return true;
                }
                false
            };
            let open = FrameBody::Open {
                to_port: stream.peer_port,
                from_port: stream.local_port,
                credit: stream.recv_limit,
            };
            let opens = put(&mut stream.pending.open, open);
            if let Some(adopt) = stream.adopt {
                put(&mut stream.pending.adopt, FrameBody::Adopt(adopt));
            }
            put(
                &mut stream.pending.accept,
                FrameBody::Accept {
                    credit: stream.recv_limit,
                },
            );
            put(
                &mut stream.pending.credit,
                FrameBody::Credit {
                    limit: stream.recv_limit,
                },
            );
            let urgent = FrameBody::Urgent {
                offset: stream.sent + 1,
            };
            put(&mut stream.pending.urgent, urgent);
            let mut fin = stream.due().fin;
            let was_due = fin;
            if put(
                &mut fin,
                FrameBody::Fin {
                    offset: stream.sent,
                },
            ) {
                stream.send_end = SendEnd::FinSent;
                outgoing.fin_in_builder(id);
            }
            if opens {
                outgoing.ask(Asks::Surely);
            }
            // Behind everything else: they say that nothing more comes.
            let offset = stream.sent;
            let builder = outgoing.builder(&mut self.pool);
            let mut put = |due: &mut bool, body: FrameBody<'_>| {
                *due = *due && !builder.push(&Frame { key, body });
            };
            if was_due {
                stream.pending.fin = fin;
            }
            if !fin {
                // The peer's move is answered before one of this node's own begins; the longest comes last, so that none goes
                // before one that found no room.
                put(&mut stream.pending.held, FrameBody::Held { offset });
                put(&mut stream.pending.resumed, FrameBody::Resumed);
                put(&mut stream.pending.resume, FrameBody::Resume);
                if let Moving::Holding(token) = stream.moving {
                    put(&mut stream.pending.hold, FrameBody::Hold { token, offset });
                }
            }
            if stream.due().any() {
                return;
            }
            stream.in_control = false;
            outgoing.control.pop_front();
        }
        while let Some(&(key, body)) = outgoing.farewells.front() {
            let frame = Frame { key, body };
            if !outgoing.builder(&mut self.pool).push(&frame) {
                return;
            }
            outgoing.farewells.pop_front();
        }
    }

    /// The next segment to be written.
    pub(super) fn poll_segment(&mut self, now: Time) -> Option<Io> {
        (0..self.links.len()).find_map(|seat| Some(self.poll_link(now, seat)?.io()))
    }

    /// The next segment of one link to be written.
    pub(super) fn poll_link(&mut self, now: Time, seat: usize) -> Option<SegmentIo> {
        self.flush_control(seat);
        let silent = !self.peer_is_up(SeatId(seat as u16));
        let depth = self.config.limits.write_depth;
        let link = &mut self.links[seat];
        let ack_due = link.is_ack_due(now, &self.config.timings);
        let Some(outgoing) = link.outgoing.as_mut().filter(|_| link.ending.is_none()) else {
            self.acknowledge_by_record(seat, ack_due);
            return None;
        };
        let mut due = outgoing.next_due_write(now, silent, depth);
        if ack_due && outgoing.full() {
            self.acknowledge_by_record(seat, true);
        } else if due.is_none() && outgoing.may_seal(depth, ack_due) {
            self.seal(now, seat);
            due = self.links[seat].outgoing.as_ref()?.next_new(depth);
        }
        self.begin_write(now, seat, due?)
    }

    /// Numbers the segment that is being filled, with the newest acknowledgement in it.
    pub(super) fn seal(&mut self, now: Time, seat: usize) {
        let timings = &self.config.timings;
        let writer = self.writer();
        let link = &mut self.links[seat];
        let head = link.head(writer, SeatId(seat as u16));
        if let Some(outgoing) = &mut link.outgoing {
            self.active_at = now;
            let wants_ack = outgoing.has_frames() || outgoing.crowded();
            let doorbell = outgoing.needs_doorbell(now);
            let info = SegmentInfo { wants_ack, ..head };
            let volume = self.config.volume;
            let whole = !timings.looks_free;
            let asks = outgoing.seal(now, &mut self.pool, wants_ack, whole, |builder, seq| {
                builder.seal_bytes(volume, &SegmentInfo { seq, ..info })
            });
            if let Some(incoming) = &mut link.incoming {
                incoming.acknowledged();
                incoming.ask(now, asks, timings);
            }
            if doorbell {
                self.own.ring();
            }
        }
    }

    /// Who writes this node's segments.
    pub(super) fn writer(&self) -> (SeatId, Incarnation) {
        (self.seat, self.incarnation)
    }

    /// No segment can carry the acknowledgement: the seat record does.
    fn acknowledge_by_record(&mut self, seat: usize, due: bool) {
        if due && let Some(incoming) = &mut self.links[seat].incoming {
            incoming.acknowledged();
            self.own.ring();
        }
    }

    /// The write of the segment that is due.
    fn begin_write(&mut self, now: Time, seat: usize, due: usize) -> Option<SegmentIo> {
        let rewrite = self.config.timings.rewrite;
        let op = self.next_op;
        let link = &mut self.links[seat];
        let epoch = link.my_epoch;
        let outgoing = link.outgoing.as_mut()?;
        let (write, again) = outgoing.begin_write(now, due, op, rewrite);
        let ring = outgoing.ring();
        if again {
            self.counters.rewrites += 1;
        }
        let id = self.op(Purpose::Segment {
            seat: SeatId(seat as u16),
            epoch,
        });
        let place = Place::Slot {
            seat: self.seat,
            ring,
            slot: write.slot,
            skip: 0,
        };
        Some(SegmentIo {
            id,
            place,
            data: write.data,
            units: write.units,
            bytes: write.bytes,
        })
    }

    /// The next slot to look at.
    pub(super) fn poll_look(&mut self, now: Time) -> Option<Io> {
        if self.looks_at > now {
            return None;
        }
        let timings = &self.config.timings;
        let depth = self.config.limits.read_depth;
        let links = self.links.len();
        let (seat, epoch, place, seq, units) = (0..links).find_map(|step| {
            let seat = (self.look_turn + step) % links;
            let link = &mut self.links[seat];
            let incoming = link.incoming.as_mut()?;
            let (seq, units) = incoming.next_read(now, timings, depth)?;
            let seat = SeatId(seat as u16);
            let place = Place::Slot {
                seat,
                ring: incoming.ring(),
                slot: incoming.slot_of(seq),
                skip: 0,
            };
            Some((seat, link.peer_epoch, place, seq, units))
        })?;
        self.look_turn = (usize::from(seat.0) + 1) % links;
        let id = self.op(Purpose::Slot { seat, epoch, seq });
        Some(Io {
            id,
            place,
            action: IoAction::Read(self.pool.take(units)),
        })
    }

    /// The stream is over for the program, once it has what had arrived.
    pub(super) fn end_stream(&mut self, now: Time, id: StreamId, reason: ResetReason) {
        let Some(stream) = self.streams.get_mut(id) else {
            return;
        };
        let key = answer_key(stream.key);
        let seat = usize::from(stream.seat.0);
        match stream.phase {
            StreamPhase::Resolving | StreamPhase::Opening => {
                let error = match reason {
                    ResetReason::Refused => ConnectError::Refused,
                    ResetReason::EngineStopped | ResetReason::PeerDied => ConnectError::SystemDead,
                    reason => ConnectError::Reset(reason),
                };
                self.remove_stream(id);
                self.events.push_back(Event::Failed(id, error));
            }
            StreamPhase::Open if stream.released.is_some() => {
                self.remove_stream(id);
                self.events.push_back(Event::Closed(id));
            }
            StreamPhase::Open => {
                if stream.moving.is_giving() {
                    // Its program waits to hear that before it takes anything.
                    self.events.push_back(Event::HoldBroken(id));
                    // Somebody else may have the stream already, and its end with it.
                    stream.fin_told |= !matches!(stream.moving, Moving::Holding(_));
                }
                // What had arrived is delivered first.
                stream.reset = Some(reason);
                stream.has_bytes = false;
                stream.blocked &= !stream.received.is_empty();
                stream.pending = Default::default();
                stream.moving = Moving::No;
                self.links[seat].keys.remove(&key);
                self.queue_deliver(id);
            }
            StreamPhase::Offered => {
                self.remove_stream(id);
                self.events.push_back(Event::Reset(id, reason));
            }
        }
        self.tick(now);
    }
}
