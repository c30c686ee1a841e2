//! The lane: bytes between a program's memory and segments, past its socket.
//!
//! - Whoever uses it has made sure that no byte of the same direction waits in the socket: the node keeps the order
//!   of what it is given.
//! - It takes nothing from streams that wait for their turn by [`Node::poll_fill`]: they find room in the segment.

use super::traffic::FILL_TURN;
use super::*;
use crate::sender::{Asks, Outgoing};

/// Streams for which room is left, if so many wait.
const TURNS_MAX: usize = 4;

impl Node {
    /// Puts as many of a stream's `bytes` into segments as its credit and the room allow: into the one that is being
    /// filled, and if that is full into the next.
    pub fn put(&mut self, now: Time, id: StreamId, bytes: &[u8]) -> usize {
        self.tick(now);
        let Some(seat) = self.streams.get(id).map(|s| usize::from(s.seat.0)) else {
            return 0;
        };
        let mut taken = 0;
        loop {
            taken += self.put_some(seat, id, &bytes[taken..]);
            let outgoing = self.links[seat].outgoing.as_ref();
            if taken == bytes.len() || !outgoing.is_some_and(Outgoing::may_seal_ahead) {
                return taken;
            }
            self.seal(now, seat);
        }
    }

    fn put_some(&mut self, seat: usize, id: StreamId, bytes: &[u8]) -> usize {
        // What the peer must know before it takes bytes of this stream.
        self.flush_control(seat);
        let room = self.put_room(id);
        let Some(stream) = self.streams.get_mut(id).filter(|_| room > 0) else {
            return 0;
        };
        let Some(outgoing) = &mut self.links[seat].outgoing else {
            return 0;
        };
        let bytes = &bytes[..bytes.len().min(room)];
        let builder = outgoing.builder(&mut self.pool);
        let count = builder.append_data(stream.key, stream.sent, bytes);
        if count > 0 {
            outgoing.ask(Asks::Perhaps);
        }
        stream.sent += count as u64;
        self.counters.sent_bytes += count as u64;
        count
    }

    /// Whether bytes have arrived for a stream that its program has not got.
    pub fn has_unread(&self, id: StreamId) -> bool {
        let stream = self.streams.get(id);
        stream.is_some_and(|stream| !stream.received.is_empty())
    }

    /// How many bytes [`Node::put`] would take now, at the most.
    pub fn put_room(&mut self, id: StreamId) -> usize {
        let Some(stream) = self.streams.get(id) else {
            return 0;
        };
        let credit = stream.put_credit();
        let link = &mut self.links[usize::from(stream.seat.0)];
        let Some(outgoing) = link.outgoing.as_mut().filter(|_| link.ending.is_none()) else {
            return 0;
        };
        if credit == 0 || !outgoing.can_fill() {
            return 0;
        }
        let others = outgoing.fill.iter().filter(|other| **other != id);
        let others = others.take(TURNS_MAX).count();
        let room = outgoing.builder(&mut self.pool).data_room();
        credit.min(room.saturating_sub(others * FILL_TURN))
    }

    /// Whether a segment to this stream's peer would be numbered by the next [`Node::poll_io`].
    pub fn is_put_due(&self, id: StreamId) -> bool {
        let depth = self.config.limits.write_depth;
        let seat = self.streams.get(id).map(|s| usize::from(s.seat.0));
        let outgoing = seat.and_then(|seat| self.links[seat].outgoing.as_ref());
        outgoing.is_some_and(|out| out.may_write(depth) || out.may_seal(depth, false))
    }

    /// Whether this node has something to say or to tell because of what [`Node::take`] took.
    pub fn is_take_due(&self, id: StreamId) -> bool {
        self.streams.get(id).is_some_and(|stream| {
            let ended = stream.fin_received && !stream.fin_told || stream.reset.is_some();
            stream.in_control || (ended && stream.received.is_empty())
        })
    }

    /// Moves what has arrived for a stream into the program's memory. Nothing while an urgent byte is among it: that
    /// goes by the socket.
    pub fn take(&mut self, now: Time, id: StreamId, into: &mut [u8]) -> usize {
        self.tick(now);
        let mut taken = 0;
        while taken < into.len() {
            let Some(stream) = self.streams.get(id) else {
                break;
            };
            let front = stream.received.front();
            if front.is_empty() || stream.urgent.is_some() || stream.moving.is_giving() {
                break;
            }
            let count = front.len().min(into.len() - taken);
            into[taken..taken + count].copy_from_slice(&front[..count]);
            taken += count;
            self.consumed(now, id, count);
        }
        if taken > 0
            && let Some(stream) = self.streams.get_mut(id)
            && stream.received.is_empty()
        {
            // Its end, if it has come, is told as after a delivery.
            stream.blocked = false;
            self.queue_deliver(id);
        }
        taken
    }
}
