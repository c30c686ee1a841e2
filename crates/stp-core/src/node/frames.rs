//! Taking in what a peer sends. Nothing here trusts the peer: what does not fit resets the stream, and what
//! no node writes ends the session.

use super::*;
use crate::chunks::Segment;
use crate::receiver::{Expected, Look};
use crate::sender::{Bulk, Outgoing};
use crate::stream::{Moving, Phase as StreamPhase, SendEnd, Stream};
use stp_format::segment::{StreamKey, decode_segment, peek_segment};
use stp_format::{Frame, FrameBody};

/// Looks for the next segment that must find nothing before a dead peer's link counts as read to its end: the first
/// may have begun before the death was known.
const ENDING_MISSES: u32 = 2;

/// This part of what all peers share is out of one peer's reach, so that none takes everything.
const RESERVE_PART: usize = 8;

/// What no node writes.
pub(super) type Broken = &'static str;

impl Node {
    /// Who must have written a peer's segments.
    pub(super) fn expected(&self, seat: SeatId, epoch: Epoch) -> Expected {
        Expected {
            volume: self.config.volume,
            writer: seat,
            writer_incarnation: self.links[usize::from(seat.0)].peer_incarnation,
            reader: self.seat,
            reader_incarnation: self.incarnation,
            epoch,
        }
    }

    pub(super) fn handle_look(
        &mut self,
        now: Time,
        seat: SeatId,
        epoch: Epoch,
        seq: Seq,
        buf: Option<UnitBuf>,
    ) {
        let expected = self.expected(seat, epoch);
        let link = &mut self.links[usize::from(seat.0)];
        let Some(incoming) = link.incoming.as_mut().filter(|_| link.peer_epoch == epoch) else {
            if let Some(buf) = buf {
                self.pool.give_back(buf);
            }
            return;
        };
        // A read that failed, a look behind the next segment and one that began before it came say nothing of its end.
        let at_end = buf.is_some() && seq == incoming.taken().next();
        let sends = link.outgoing.as_ref().map_or(Bulk::No, Outgoing::bulk);
        let timings = &self.config.timings;
        let (look, back) = incoming.handle_read(now, seq, buf, &expected, timings, sends);
        if let Some(buf) = back {
            self.pool.give_back(buf);
        }
        if look == Look::Nothing {
            self.counters.polls_empty += 1;
            if let Some(ending) = link.ending.as_mut().filter(|_| at_end) {
                ending.misses += 1;
                if ending.misses >= ENDING_MISSES {
                    let reason = ending.reason;
                    self.end_link(now, seat, reason);
                }
            }
            return;
        }
        self.active_at = now;
        if look == Look::Damaged {
            let what = "a segment stays longer than its slot";
            self.events.push_back(Event::PeerBroken(seat, what));
        }
        if let Err(broken) = self.take_in(now, seat) {
            self.cut_off(now, seat, broken);
        }
    }

    /// Takes in all segments that were read whole, in order.
    pub(super) fn take_in(&mut self, now: Time, seat: SeatId) -> Result<(), Broken> {
        loop {
            let link = &mut self.links[usize::from(seat.0)];
            let Some(incoming) = &mut link.incoming else {
                return Ok(());
            };
            let Some(segment) = incoming.head() else {
                return Ok(());
            };
            // One that cannot be read is as long as its buffer.
            let len = peek_segment(segment.bytes(), self.config.volume);
            let len = len.map_or(segment.len(), |(_, len)| len);
            let segment = Segment::new(segment, len);
            match decode_segment(segment.bytes(), self.config.volume) {
                Err(damage) => {
                    if incoming.retry(now, damage) == Look::Damaged {
                        let what = "a segment's checksum stays wrong";
                        self.events.push_back(Event::PeerBroken(seat, what));
                    }
                }
                Ok((info, frames)) => {
                    let quiet = !frames.clone().any(|frame| {
                        frame.is_ok_and(|frame| !matches!(frame.body, FrameBody::Credit { .. }))
                    });
                    incoming.advance(now, info.wants_ack, quiet);
                    if info.acked_epoch == link.my_epoch {
                        self.handle_acked(seat, info.acked_seq)?;
                    }
                    for frame in frames {
                        let frame = frame.map_err(|_| "a frame of impossible form")?;
                        self.handle_frame(now, seat, frame, &segment)?;
                    }
                }
            }
            if let Some(buf) = segment.into_buf() {
                self.pool.give_back(buf);
            }
        }
    }

    fn handle_frame(
        &mut self,
        now: Time,
        seat: SeatId,
        frame: Frame<'_>,
        segment: &Segment,
    ) -> Result<(), Broken> {
        let key = frame.key;
        if let FrameBody::Open {
            to_port,
            from_port,
            credit,
        } = frame.body
        {
            return self.handle_open(seat, key, to_port, from_port, credit);
        }
        if let FrameBody::Adopt(adopt) = frame.body {
            return self.handle_adopt(now, seat, key, adopt);
        }
        let Some(&id) = self.links[usize::from(seat.0)].keys.get(&key) else {
            // Credit and urgent marks may cross a reset; the others deserve an answer.
            let answered = matches!(
                frame.body,
                FrameBody::Data { .. }
                    | FrameBody::Fin { .. }
                    | FrameBody::Accept { .. }
                    | FrameBody::Hold { .. }
            );
            if answered {
                self.send_reset(seat, answer_key(key), ResetReason::UnknownStream);
            }
            return Ok(());
        };
        let Some(stream) = self.streams.get_mut(id) else {
            return Ok(());
        };
        let fits = match frame.body {
            FrameBody::Open { .. } | FrameBody::Adopt(_) => false,
            FrameBody::Accept { credit } => {
                let fits = stream.phase == StreamPhase::Opening && credit >= stream.sent;
                if fits {
                    stream.phase = StreamPhase::Open;
                    stream.send_limit = credit;
                    self.table.touch(stream.row);
                    self.events.push_back(Event::Connected(id));
                    self.queue_fill(id);
                    if self.streams.get(id).is_some_and(|s| s.adopt.is_some()) {
                        // What came with it.
                        self.queue_deliver(id);
                    }
                }
                fits
            }
            FrameBody::Data { offset, bytes } => {
                let end = offset.saturating_add(bytes.len() as u64);
                let fits = stream.takes(offset, bytes.len());
                if fits && stream.released.is_some() {
                    // Nobody is left to read this: the sender must know.
                    self.reset(now, id, ResetReason::Aborted);
                    return Ok(());
                }
                if fits {
                    let start = bytes.as_ptr().addr() - segment.bytes().as_ptr().addr();
                    stream.received.push(segment, start..start + bytes.len());
                    stream.recv_next = end;
                    self.counters.received_bytes += bytes.len() as u64;
                    self.queue_deliver(id);
                }
                fits
            }
            FrameBody::Credit { limit } => {
                let fits = stream.phase == StreamPhase::Open && limit >= stream.send_limit;
                if fits {
                    stream.send_limit = limit;
                    self.queue_fill(id);
                }
                fits
            }
            FrameBody::Urgent { offset } => {
                let fits = stream.phase == StreamPhase::Open;
                // A later one takes its place, as with TCP; one that comes too late is none.
                if fits && offset > stream.recv_next {
                    stream.urgent = Some(offset);
                }
                fits
            }
            FrameBody::Fin { offset } => {
                let fits = stream.phase == StreamPhase::Open
                    && !matches!(stream.moving, Moving::Held(_))
                    && !stream.fin_received
                    && offset == stream.recv_next;
                if fits {
                    stream.fin_received = true;
                    self.table.touch(stream.row);
                    self.queue_deliver(id);
                    self.close_if_done(id);
                }
                fits
            }
            FrameBody::Reset { reason } => {
                let reason = ResetReason::from_number(reason);
                match reason {
                    ResetReason::UnknownStream if stream.is_through_elsewhere() => self.resumed(id),
                    reason => self.end_stream(now, id, reason),
                }
                true
            }
            body @ (FrameBody::Hold { .. }
            | FrameBody::Held { .. }
            | FrameBody::Resume
            | FrameBody::Resumed
            | FrameBody::Moved) => self.handle_moving(id, body),
        };
        if !fits {
            let misfits = &mut self.links[usize::from(seat.0)].misfits;
            *misfits += 1;
            if misfits.is_power_of_two() {
                let told = Event::StreamBroken(seat, misfit(&frame.body), *misfits);
                self.events.push_back(told);
            }
            let key = answer_key(key);
            self.end_stream(now, id, ResetReason::Protocol);
            self.send_reset(seat, key, ResetReason::Protocol);
        }
        Ok(())
    }

    /// How much of a limit one peer may use up: where there are others, not all.
    fn share(&self, limit: usize) -> usize {
        match self.config.geometry.seats {
            ..=2 => limit,
            _ => limit - limit / RESERVE_PART,
        }
    }

    fn handle_open(
        &mut self,
        seat: SeatId,
        key: StreamKey,
        port: u16,
        peer_port: u16,
        credit: u64,
    ) -> Result<(), Broken> {
        let answer = answer_key(key);
        if !key.by_writer || self.links[usize::from(seat.0)].keys.contains_key(&key) {
            return Err("an open frame for a stream that exists");
        }
        if self.open_link(seat).is_err() {
            // No way to answer; the opener gives up in its own time.
            return Ok(());
        }
        let rows = self.config.geometry.scbs();
        let link = &self.links[usize::from(seat.0)];
        let refusal = if self.phase != Phase::Up {
            Some(ResetReason::EngineStopped)
        } else if port != SERVICE_PORT && !self.listeners.contains_key(&port) {
            Some(ResetReason::Refused)
        } else if self.offered >= self.limits().offered
            || link.offered >= self.share(self.limits().offered)
        {
            Some(ResetReason::BacklogFull)
        } else if self.streams.len() >= self.limits().streams
            || link.keys.len() >= self.share(self.limits().streams.min(rows))
        {
            Some(ResetReason::TooManyStreams)
        } else {
            None
        };
        if let Some(reason) = refusal {
            self.send_reset(seat, answer, reason);
            return Ok(());
        }
        let Some(peer) = self.directory.peer(seat).map(|peer| peer.record.system) else {
            return Ok(());
        };
        let stream = Stream {
            phase: StreamPhase::Offered,
            local_port: port,
            peer_port,
            send_limit: credit,
            ..self.new_stream(seat, answer, peer)
        };
        let Some(id) = self.insert_stream(stream) else {
            self.send_reset(seat, answer, ResetReason::TooManyStreams);
            return Ok(());
        };
        self.offered += 1;
        let link = &mut self.links[usize::from(seat.0)];
        link.offered += 1;
        link.keys.insert(key, id);
        self.events.push_back(Event::Incoming {
            id,
            port,
            peer,
            peer_port,
        });
        Ok(())
    }

    /// The peer has taken in all segments up to `seq`.
    pub(super) fn handle_acked(&mut self, seat: SeatId, seq: Seq) -> Result<(), Broken> {
        let link = &mut self.links[usize::from(seat.0)];
        let Some(outgoing) = &mut link.outgoing else {
            return Ok(());
        };
        let ended = outgoing
            .handle_acked(seq, &mut self.pool)
            .map_err(|()| "an acknowledgement of a segment that was never sent")?;
        for id in ended {
            if let Some(stream) = self.streams.get_mut(id) {
                stream.send_end = SendEnd::Acknowledged;
                self.table.touch(stream.row);
            }
            self.close_if_done(id);
        }
        Ok(())
    }
}

/// What is wrong with a frame that does not fit its stream.
fn misfit(body: &FrameBody<'_>) -> Broken {
    match body {
        FrameBody::Open { .. } => "an open frame for a stream that exists",
        FrameBody::Accept { .. } => "an accept frame for a stream that is open",
        FrameBody::Data { .. } => "data at a wrong offset, beyond its credit or after its end",
        FrameBody::Credit { .. } => "credit that is taken back",
        FrameBody::Urgent { .. } => "an urgent mark before the stream is open",
        FrameBody::Fin { .. } => "an end at a wrong offset",
        FrameBody::Reset { .. } => "a reset",
        FrameBody::Hold { .. } => "a hold frame twice, or at a wrong offset",
        FrameBody::Held { .. } => "a held frame that nobody asked for, or at a wrong offset",
        FrameBody::Resume => "a resume frame before the stream is open",
        FrameBody::Resumed | FrameBody::Moved => "word of a move that nobody began",
        FrameBody::Adopt(_) => "an adopt frame for a stream that exists",
    }
}

/// A stream's name as the other side writes it.
pub(super) fn answer_key(key: StreamKey) -> StreamKey {
    StreamKey {
        by_writer: !key.by_writer,
        number: key.number,
    }
}
