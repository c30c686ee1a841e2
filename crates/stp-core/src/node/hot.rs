//! One link at a time: for a host whose storage answers at once, and whose program waits for that link alone.
//!
//! - What is done here is a part of what a step does, in the same order and by the same rules. Everything else waits for the
//!   next step: the host sees to it that it comes soon, and at once where the node is no longer calm.

use super::*;
use crate::event::StreamId;
use crate::receiver::Incoming;
use crate::sender::Asks;
use stp_format::{LonePiece, SegmentInfo};

/// A segment to be written.
#[derive(Debug)]
pub struct SegmentIo {
    /// As [`Io::id`].
    pub id: u64,
    /// Where.
    pub place: Place,
    /// The bytes; they do not change any more.
    pub data: Arc<UnitBuf>,
    /// How many units of them.
    pub units: usize,
    /// What of these means anything: storage that takes bytes may leave the rest as it was.
    pub bytes: usize,
}

/// A segment of one piece of a stream, to be written at once.
#[derive(Debug)]
pub struct PieceIo<'a> {
    /// Where.
    pub place: Place,
    /// What.
    pub bytes: &'a [u8],
    /// Where the next segment will be written.
    pub next: Place,
}

impl SegmentIo {
    pub(super) fn io(self) -> Io {
        Io {
            id: self.id,
            place: self.place,
            action: IoAction::Write {
                data: self.data,
                units: self.units,
                durable: false,
            },
        }
    }
}

impl Node {
    fn seat_of(&self, id: StreamId) -> Option<usize> {
        let up = matches!(self.phase, Phase::Up);
        let stream = self.streams.get(id).filter(|_| up)?;
        Some(usize::from(stream.seat.0))
    }

    /// The next segment to be written on a stream's link; as [`Node::poll_io`].
    pub fn poll_write_of(&mut self, now: Time, id: StreamId) -> Option<SegmentIo> {
        self.tick(now);
        let seat = self.seat_of(id)?;
        let io = self.poll_link(now, seat)?;
        self.count_write(io.place, io.units);
        Some(io)
    }

    /// A segment of these bytes of a stream and of nothing else, numbered and counted as written: the caller writes it now,
    /// and says [`Node::handle_refused`] if the storage does not take it. `None`, and nothing done, where looks are
    /// not free, where anything else waits on the stream's link, or where not all of it has room.
    pub fn poll_piece(&mut self, now: Time, id: StreamId, bytes: &[u8]) -> Option<PieceIo<'_>> {
        self.tick(now);
        let up = matches!(self.phase, Phase::Up);
        let timings = &self.config.timings;
        let writer = self.writer();
        let stream = self.streams.get_mut(id)?;
        let link = &mut self.links[usize::from(stream.seat.0)];
        let head = link.head(writer, stream.seat);
        let outgoing = link.outgoing.as_mut()?;
        let len = LonePiece::segment_bytes(bytes.len());
        let may = up
            && timings.looks_free
            && link.ending.is_none()
            && !bytes.is_empty()
            && bytes.len() <= stream.put_credit()
            && outgoing.may_pass(len)
            && !outgoing.needs_doorbell(now);
        if !may {
            return None;
        }
        self.active_at = now;
        let volume = self.config.volume;
        let (key, offset) = (stream.key, stream.sent);
        stream.sent += bytes.len() as u64;
        if let Some(incoming) = &mut link.incoming {
            incoming.acknowledged();
            incoming.ask(now, Asks::Perhaps, timings);
        }
        self.counters.sent_bytes += bytes.len() as u64;
        self.counters.writes += 1;
        self.counters.written_units += UnitBuf::units_for(len) as u64;
        let mut data = self.pool.take_boxed(UnitBuf::units_for(len));
        if let Some(buf) = Arc::get_mut(&mut data) {
            let seq = outgoing.last_seq().next();
            let info = SegmentInfo { seq, ..head };
            let segment = &mut buf.bytes_mut()[..len];
            LonePiece::seal(segment, volume, &info, key, offset, bytes);
        }
        let seat = self.seat;
        let (ring, slot) = outgoing.next_slot();
        let place = |slot| Place::Slot {
            seat,
            ring,
            slot,
            skip: 0,
        };
        let (bytes, next) = outgoing.pass(now, data, len, timings.rewrite);
        Some(PieceIo {
            place: place(slot),
            bytes,
            next: place(next),
        })
    }

    /// The storage did not take the last segment of [`Node::poll_piece`].
    pub fn handle_refused(&mut self, now: Time, id: StreamId) {
        let seat = self.seat_of(id);
        if let Some(outgoing) = seat.and_then(|seat| self.links[seat].outgoing.as_mut()) {
            outgoing.handle_refused(now);
        }
    }

    /// The next segment that a stream's peer writes, while nobody looks for it: on which link, and its number.
    fn next_of(&self, id: StreamId) -> Option<(usize, &Incoming, Seq)> {
        let seat = self.seat_of(id)?;
        let link = &self.links[seat];
        let bounded = self.config.timings.poll_iops > 0;
        let incoming = link.incoming.as_ref().filter(|_| !bounded)?;
        if link.ending.is_some() || incoming.is_looked_for() {
            return None;
        }
        Some((seat, incoming, incoming.taken().next()))
    }

    /// The slot and the number of the next segment that a stream's peer writes, while nobody looks for it.
    pub fn awaited(&self, id: StreamId) -> Option<(Place, Seq)> {
        let (seat, incoming, seq) = self.next_of(id)?;
        let place = Place::Slot {
            seat: SeatId(seat as u16),
            ring: incoming.ring(),
            slot: incoming.next_slot(),
            skip: 0,
        };
        Some((place, seq))
    }

    /// The look at that slot, where the segment is known to be; as [`Node::poll_io`].
    pub fn poll_look_of(&mut self, now: Time, id: StreamId) -> Option<Io> {
        self.tick(now);
        let (place, seq) = self.awaited(id)?;
        let seat = self.seat_of(id)?;
        let link = &mut self.links[seat];
        let epoch = link.peer_epoch;
        let incoming = link.incoming.as_mut()?;
        incoming.wake(now);
        let (found, units) = incoming.next_read(now, &self.config.timings, 1)?;
        debug_assert_eq!(found, seq);
        let seat = SeatId(seat as u16);
        let io = Io {
            id: self.op(Purpose::Slot { seat, epoch, seq }),
            place,
            action: IoAction::Read(self.pool.take(units)),
        };
        self.count_read(units);
        Some(io)
    }

    /// The next segment of a stream's peer by its front, if it is one piece of that stream, which may go straight into the
    /// program's memory: nothing is before it.
    pub fn poll_piece_of(&self, id: StreamId, front: &[u8]) -> Option<LonePiece> {
        let (seat, _, seq) = self.next_of(id)?;
        let link = &self.links[seat];
        let expected = self.expected(SeatId(seat as u16), link.peer_epoch);
        let piece = LonePiece::peek(front, expected.volume)?;
        let stream = self.streams.get(id)?;
        let is_next = expected.matches(&piece.info, seq)
            && link.keys.get(&piece.key) == Some(&id)
            && stream.takes(piece.offset, piece.bytes)
            && stream.received.is_empty()
            && stream.released.is_none()
            && stream.reset.is_none()
            && stream.urgent.is_none()
            && !stream.moving.is_giving();
        is_next.then_some(piece)
    }

    /// The program has that piece, whose checksum was right.
    pub fn handle_piece_of(&mut self, now: Time, id: StreamId, piece: &LonePiece) {
        self.tick(now);
        let Some(seat) = self.seat_of(id) else {
            return;
        };
        let units = UnitBuf::units_for(piece.len);
        self.count_read(units);
        let link = &mut self.links[seat];
        let acks_mine = piece.info.acked_epoch == link.my_epoch;
        let Some(incoming) = &mut link.incoming else {
            return;
        };
        incoming.pass(now, units, piece.info.wants_ack);
        let is_more_read = incoming.has_head();
        if let Some(stream) = self.streams.get_mut(id) {
            stream.recv_next += piece.bytes as u64;
            self.counters.received_bytes += piece.bytes as u64;
        }
        self.handed_over(now, id, piece.bytes);
        let seat = SeatId(seat as u16);
        let acked = match acks_mine {
            true => self.handle_acked(seat, piece.info.acked_seq),
            false => Ok(()),
        };
        // What was read ahead of it comes next.
        let taken_in = acked.and_then(|()| match is_more_read {
            true => self.take_in(now, seat),
            false => Ok(()),
        });
        if let Err(broken) = taken_in {
            self.cut_off(now, seat, broken);
        }
    }

    /// Whether a segment of a stream's link is to be written now, for its bytes, a control frame or an acknowledgement
    /// that is due.
    pub fn is_write_due(&self, now: Time, id: StreamId) -> bool {
        let Some(seat) = self.seat_of(id) else {
            return false;
        };
        let link = &self.links[seat];
        let timings = &self.config.timings;
        let ack_due = link.is_ack_due(now, timings);
        let depth = self.config.limits.write_depth;
        link.outgoing.as_ref().is_some_and(|outgoing| {
            !outgoing.control.is_empty()
                || outgoing.may_write(depth)
                || outgoing.may_seal(depth, ack_due)
        })
    }

    /// Where the next segment of a stream's link will be written.
    pub fn next_slot(&self, id: StreamId) -> Option<Place> {
        let seat = self.seat_of(id)?;
        let (ring, slot) = self.links[seat].outgoing.as_ref()?.next_slot();
        Some(Place::Slot {
            seat: self.seat,
            ring,
            slot,
            skip: 0,
        })
    }

    /// Whether so many segments of a stream's link wait for an acknowledgement that the peer has sent one, or soon will.
    pub fn wants_acks(&self, id: StreamId) -> bool {
        let link = self.seat_of(id).map(|seat| &self.links[seat]);
        let outgoing = link.and_then(|link| link.outgoing.as_ref());
        outgoing.is_some_and(|outgoing| outgoing.is_long())
    }

    /// Whether nothing has come up but bytes for this stream's program.
    pub fn is_calm(&self, id: StreamId) -> bool {
        self.events.is_empty() && self.deliver.iter().all(|other| *other == id)
    }
}
