//! Moving a stream's end to another node: its giver holds it, the far node decides, the new owner adopts it.
//!
//! - The node at the far end alone knows whose the stream is, and changes it in one step, by taking an adopt
//!   frame in. Before that step everything can be undone; after it the giver can only forget the stream.
//! - A held stream is still: its giver has all that was ever sent to it, and the far node has all that the
//!   giver sent. So the new owner begins at the same offsets and nothing is sent twice.
//! - If both ends want to move at once, the end that opened the stream goes first.

use super::frames::answer_key;
use super::*;
use crate::event::HoldError;
use crate::stream::{Moving, Pending, Phase as StreamPhase, SendEnd, Stream};
use stp_format::segment::StreamKey;
use stp_format::{Adopt, FrameBody, Incarnation, MoveToken};

/// A held stream whose giver lives and neither resumes nor moves it is reset after this.
pub(super) const HELD_MAX: Duration = Duration::from_secs(120);

/// A still stream as its giver has it: what the new owner must know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stillness {
    /// The far node's seat.
    pub seat: SeatId,
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// The stream's name as the giver writes it.
    pub key: StreamKey,
    /// The giver's port.
    pub local_port: u16,
    /// The far system.
    pub peer: SystemName,
    /// The port there.
    pub peer_port: u16,
    /// Bytes sent in all.
    pub sent: u64,
    /// Bytes received in all.
    pub received: u64,
    /// Bytes that the far node may send in all.
    pub credit: u64,
    /// The giver has sent its fin.
    pub finished: bool,
    /// The far node has sent its fin.
    pub peer_finished: bool,
    /// What was received and not handed to the program.
    pub undelivered: Vec<u8>,
}

/// Bytes of a stream in one direction that no stream reaches.
const POSITION_MAX: u64 = 1 << 62;

/// More than this no giver has allowed the far node to send ahead of its program's reading: the taker must hold it.
const CREDIT_MAX: u64 = 64 << 20;

/// A stream that comes to this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adoption {
    /// Which move.
    pub token: MoveToken,
    /// The giver's seat.
    pub giver: SeatId,
    /// The giver's incarnation.
    pub giver_incarnation: Incarnation,
    /// What the giver had; `undelivered` are *all* bytes up to `received` that the program has not read.
    pub stream: Stillness,
}

impl Node {
    /// Whether [`Node::hold`] would do it now.
    pub fn may_hold(&self, id: StreamId) -> Result<(), HoldError> {
        let stream = self.streams.get(id).ok_or(HoldError::Over)?;
        let open = stream.phase == StreamPhase::Open;
        let done = stream.send_end != SendEnd::Open && stream.fin_received;
        if !open || done || stream.reset.is_some() || stream.released.is_some() {
            return Err(HoldError::Over);
        }
        let peer = self.directory.peer(stream.seat);
        if !peer.is_some_and(|peer| peer.record.moves) {
            return Err(HoldError::OldPeer(stream.peer));
        }
        match stream.moving {
            Moving::No => Ok(()),
            _ => Err(HoldError::Busy),
        }
    }

    /// Stops a stream, so that it can move: the far node answers, [`Event::Held`] tells. Nothing is pulled and
    /// nothing delivered from now on until [`Node::resume`], or until it has moved.
    pub fn hold(&mut self, now: Time, id: StreamId, token: MoveToken) -> Result<(), HoldError> {
        self.tick(now);
        self.may_hold(id)?;
        let stream = self.streams.get_mut(id).ok_or(HoldError::Over)?;
        stream.moving = Moving::Holding(token);
        stream.pending.hold = true;
        self.queue_control(id);
        Ok(())
    }

    /// The stream stays with this node. [`Event::Resumed`] tells that it does; [`Event::Moved`] that it was
    /// too late.
    pub fn resume(&mut self, now: Time, id: StreamId) {
        self.tick(now);
        let Some(stream) = self.streams.get_mut(id) else {
            return;
        };
        if !matches!(stream.moving, Moving::Holding(_) | Moving::Still(_)) {
            return;
        }
        if core::mem::take(&mut stream.pending.hold) {
            return self.resumed(id); // nobody has heard of it yet
        }
        stream.moving = Moving::Resuming;
        stream.pending.resume = true;
        self.queue_control(id);
    }

    /// Whether a stream is held by this node, or on its way back.
    pub fn is_giving(&self, id: StreamId) -> bool {
        let stream = self.streams.get(id);
        stream.is_some_and(|stream| stream.moving.is_giving())
    }

    /// What a still stream's new owner must know; `None` if it is not still.
    pub fn stillness(&self, id: StreamId) -> Option<Stillness> {
        let stream = self.streams.get(id)?;
        if !matches!(stream.moving, Moving::Still(_)) {
            return None;
        }
        Some(Stillness {
            seat: stream.seat,
            incarnation: self.links[usize::from(stream.seat.0)].peer_incarnation,
            key: stream.key,
            local_port: stream.local_port,
            peer: stream.peer,
            peer_port: stream.peer_port,
            sent: stream.sent,
            received: stream.recv_next,
            credit: stream.recv_limit,
            finished: matches!(stream.send_end, SendEnd::FinSent | SendEnd::Acknowledged),
            peer_finished: stream.fin_received,
            undelivered: stream.received.to_vec(),
        })
    }

    /// Becomes a stream's owner, if its far node agrees: [`Event::Connected`] tells that it did,
    /// [`Event::Failed`] that it did not.
    pub fn adopt(&mut self, now: Time, adoption: Adoption) -> Result<StreamId, ConnectError> {
        self.tick(now);
        if self.phase != Phase::Up {
            return Err(ConnectError::Stopped);
        }
        if self.streams.len() >= self.limits().streams {
            return Err(ConnectError::TooManyStreams);
        }
        let Adoption {
            token,
            giver,
            giver_incarnation,
            stream: still,
        } = adoption;
        let seat = still.seat;
        let unread = still.undelivered.len() as u64;
        // The giver is another engine, perhaps a broken one: positions leave room for sums of them.
        let beyond = still.sent.max(still.credit) > POSITION_MAX
            || still.credit.saturating_sub(still.received) > CREDIT_MAX
            || unread > CREDIT_MAX;
        if seat == self.seat || still.received < unread || still.credit < still.received || beyond {
            return Err(ConnectError::Reset(ResetReason::Protocol));
        }
        let peer = self.directory.peer(seat);
        let known = peer.filter(|peer| peer.record.incarnation == still.incarnation);
        if !known.is_some_and(|peer| peer.record.moves) {
            return Err(ConnectError::SystemDead);
        }
        self.open_link(seat)?;
        let key = StreamKey {
            by_writer: true,
            number: self.next_number,
        };
        self.next_number += 1;
        let frame = Adopt {
            token,
            giver,
            giver_incarnation,
            key: still.key,
            sent: still.sent,
            received: still.received,
            credit: still.credit,
        };
        let taken = still.received - unread;
        let fresh = self.new_stream(seat, key, still.peer);
        // It comes with what its peer was allowed by the giver.
        let window = fresh.window_start.max(still.credit - taken);
        let mut stream = Stream {
            phase: StreamPhase::Opening,
            window,
            window_start: window,
            local_port: still.local_port,
            peer_port: still.peer_port,
            sent: still.sent,
            send_limit: still.sent,
            // The far node has taken in what the giver sent, its fin included.
            send_end: match still.finished {
                true => SendEnd::Acknowledged,
                false => SendEnd::Open,
            },
            recv_next: still.received,
            taken,
            recv_limit: still.credit,
            fin_received: still.peer_finished,
            adopt: Some(frame),
            ..fresh
        };
        stream.received.push_own(still.undelivered);
        stream.pending.adopt = true;
        let id = self
            .insert_stream(stream)
            .ok_or(ConnectError::TooManyStreams)?;
        self.links[usize::from(seat.0)]
            .keys
            .insert(answer_key(key), id);
        self.queue_control(id);
        Ok(id)
    }

    /// The stream goes on with this node.
    pub(super) fn resumed(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(id) else {
            return;
        };
        stream.moving = Moving::No;
        self.events.push_back(Event::Resumed(id));
        self.queue_fill(id);
        self.queue_deliver(id);
        self.queue_control(id);
    }

    /// A frame that moves the stream it names. Whether it fits.
    pub(super) fn handle_moving(&mut self, id: StreamId, body: FrameBody<'_>) -> bool {
        let Some(stream) = self.streams.get_mut(id) else {
            return true;
        };
        let open = stream.phase == StreamPhase::Open;
        match (body, stream.moving) {
            (FrameBody::Hold { token, offset }, moving) if open && offset == stream.recv_next => {
                let own = matches!(
                    moving,
                    Moving::Holding(_) | Moving::Still(_) | Moving::Resuming
                );
                if own && stream.key.by_writer && !stream.pending.hold {
                    return true; // the far node gives way as soon as it sees this node's frame
                }
                // One that is not said yet may be taken back without a word: it gives way itself.
                if own {
                    self.events.push_back(Event::HoldLost(id));
                }
                stream.moving = Moving::Held(token);
                stream.held_at = self.now;
                stream.pending.hold = false;
                stream.pending.resume = false;
                stream.pending.held = true;
                // What was kept back while this end was holding goes on.
                self.queue_deliver(id);
                self.queue_control(id);
                !matches!(moving, Moving::Held(_))
            }
            (FrameBody::Held { offset }, Moving::Holding(token)) if offset == stream.recv_next => {
                stream.moving = Moving::Still(token);
                self.events.push_back(Event::Held(id));
                true
            }
            (FrameBody::Held { .. }, Moving::Resuming) => true,
            (FrameBody::Resume, Moving::Held(_)) => {
                stream.moving = Moving::No;
                stream.pending.resumed = true;
                self.queue_fill(id);
                self.queue_control(id);
                self.close_after(id, FrameBody::Resumed);
                true
            }
            // It gave way before it saw this.
            (FrameBody::Resume, _) => open,
            (FrameBody::Resumed, Moving::Resuming) => {
                self.resumed(id);
                true
            }
            (FrameBody::Moved, Moving::Holding(_) | Moving::Still(_) | Moving::Resuming) => {
                self.remove_stream(id);
                self.events.push_back(Event::Moved(id));
                true
            }
            _ => false,
        }
    }

    /// A stream that was held may have come to its end meanwhile: then this is all that is left to be said of it.
    fn close_after(&mut self, id: StreamId, last: FrameBody<'static>) {
        let Some((seat, key)) = self.streams.get(id).map(|s| (s.seat, s.key)) else {
            return;
        };
        self.close_if_done(id);
        if self.streams.get(id).is_none() {
            self.send_farewell(seat, key, last);
        }
    }

    /// A node says that a stream of this one has a new owner: itself.
    pub(super) fn handle_adopt(
        &mut self,
        now: Time,
        seat: SeatId,
        key: StreamKey,
        adopt: Adopt,
    ) -> Result<(), &'static str> {
        if !key.by_writer || self.links[usize::from(seat.0)].keys.contains_key(&key) {
            return Err("an adopt frame for a stream that exists");
        }
        if self.open_link(seat).is_err() {
            // No way to answer; the giver asks for the stream back in its own time.
            return Ok(());
        }
        let answer = answer_key(key);
        let old = usize::from(adopt.giver.0);
        let link = self.links.get(old);
        let link = link.filter(|link| link.peer_incarnation == adopt.giver_incarnation);
        let id = link.and_then(|link| link.keys.get(&adopt.key)).copied();
        let held = |stream: &&mut Stream| stream.moving == Moving::Held(adopt.token);
        let found = id.and_then(|id| Some((id, self.streams.get_mut(id).filter(held)?)));
        let Some((id, stream)) = found else {
            self.send_reset(seat, answer, ResetReason::NotHeld);
            return Ok(());
        };
        let agrees = adopt.sent == stream.recv_next
            && adopt.received == stream.sent
            && adopt.credit >= stream.sent
            && !stream.pending.held;
        if !agrees {
            let old_key = stream.key;
            self.send_reset(seat, answer, ResetReason::Protocol);
            self.end_stream(now, id, ResetReason::Protocol);
            self.send_reset(adopt.giver, old_key, ResetReason::Protocol);
            return Ok(());
        }
        // The step that decides: from here on the stream is the adopter's.
        let old_key = stream.key;
        let fin = stream.pending.fin;
        stream.key = answer;
        stream.seat = seat;
        stream.moving = Moving::No;
        stream.send_limit = adopt.credit;
        stream.in_fill = false;
        stream.in_control = false;
        stream.pending = Pending {
            accept: true,
            fin,
            ..Pending::default()
        };
        if stream.send_end == SendEnd::FinSent {
            // It was in front of the frame that made the stream still.
            stream.send_end = SendEnd::Acknowledged;
        }
        let credit = stream.recv_limit;
        self.table.touch(stream.row);
        let link = &mut self.links[old];
        link.keys.remove(&adopt.key);
        if let Some(outgoing) = &mut link.outgoing {
            outgoing.forget(id);
        }
        self.links[usize::from(seat.0)].keys.insert(key, id);
        self.send_farewell(adopt.giver, old_key, FrameBody::Moved);
        self.queue_control(id);
        self.queue_fill(id);
        self.close_after(id, FrameBody::Accept { credit });
        Ok(())
    }

    /// A giver that lives and does nothing must not keep a program waiting for ever.
    pub(super) fn drop_held(&mut self, now: Time) {
        let expired: Vec<_> = self
            .streams
            .iter()
            .filter(|(_, stream)| {
                matches!(stream.moving, Moving::Held(_)) && now.since(stream.held_at) >= HELD_MAX
            })
            .map(|(id, stream)| (id, stream.seat, stream.key))
            .collect();
        for (id, seat, key) in expired {
            if self.peer_is_up(seat) {
                self.end_stream(now, id, ResetReason::Aborted);
                self.send_reset(seat, key, ResetReason::Aborted);
            }
        }
    }

    /// Opens a stream of the engines' own to the node in `seat`: at the other end it comes as an
    /// [`Event::Incoming`] for [`SERVICE_PORT`].
    pub fn connect_service(&mut self, now: Time, seat: SeatId) -> Result<StreamId, ConnectError> {
        self.tick(now);
        if self.phase != Phase::Up {
            return Err(ConnectError::Stopped);
        }
        if self.streams.len() >= self.limits().streams {
            return Err(ConnectError::TooManyStreams);
        }
        let peer = self.directory.peer(seat);
        let peer = peer.ok_or(ConnectError::UnknownSystem)?;
        let system = peer.record.system;
        if !peer.record.moves {
            return Err(ConnectError::Refused);
        }
        self.open_link(seat)?;
        let key = StreamKey {
            by_writer: true,
            number: self.next_number,
        };
        self.next_number += 1;
        let mut stream = Stream {
            phase: StreamPhase::Opening,
            local_port: SERVICE_PORT,
            peer_port: SERVICE_PORT,
            ..self.new_stream(seat, key, system)
        };
        stream.pending.open = true;
        let id = self
            .insert_stream(stream)
            .ok_or(ConnectError::TooManyStreams)?;
        self.links[usize::from(seat.0)]
            .keys
            .insert(answer_key(key), id);
        self.queue_control(id);
        Ok(id)
    }
}
