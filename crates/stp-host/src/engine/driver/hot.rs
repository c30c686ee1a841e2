//! Hot: what a program's thread does for its own stream's link alone, where the storage is memory.
//!
//! - A whole step costs more there than a small message. So between two whole steps, [`STEP_APART`] at the most, the
//!   thread writes the segments of its link, and looks at the one word that changes when its peer answers.
//! - Whatever else comes up, for another stream or another peer, waits for the next whole step; if the peer's segment
//!   brought it, that is due at once.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use stp_core::{IoAction, IoDone, IoFault, Node, PieceIo, StreamId, Time};
use stp_format::segment::{FIRST_BYTES_AT, SEGMENT_HEAD_BYTES, SEGMENT_SEQ_AT, peek_segment};
use stp_format::{LonePiece, Place, UNIT_BYTES, UnitBuf, VolumeId};
use stp_medium::{Medium, Memory, Spot};

use super::storage::ERRNO_IO;
use super::{Driver, Phase};
use crate::control::StreamToken;
use crate::control::lane::Write;
use crate::engine::clock::Clock;
use crate::engine::local::LocalSide;

/// How long a whole step may be away.
const STEP_APART: Duration = Duration::from_micros(200);
/// How long the medium's word is good that its memory is there.
const MEMORY_FOR: Duration = Duration::from_millis(1);
/// Segments of one link that are written in a row.
const WRITES_MAX: usize = 4;
/// Read of a segment before its length is known: a small one is there at once, and what comes from the other
/// processor's cache in one go costs little more than its first line.
const FRONT_BYTES: usize = 256;
/// A shorter piece that is not all in the front is copied twice: its checksum by parts costs more than that.
const PAST_MIN: usize = 8192;
const _: () = assert!(FRONT_BYTES >= SEGMENT_HEAD_BYTES && FRONT_BYTES <= UNIT_BYTES);

pub(super) struct Hot {
    volume: VolumeId,
    memory: Option<Arc<dyn Memory>>,
    /// When the medium was asked for it.
    asked_at: Option<Time>,
    /// The last whole step, unless one is due.
    stepped_at: Option<Time>,
    /// What it looked at is not taken in yet.
    looked: bool,
    /// Where the segment was last looked for, and where the next one goes: a place is found once.
    awaited: Option<Spot>,
    next: Option<Spot>,
    /// The last look found the segment there: the next thing is to read it.
    found: bool,
    /// Where a segment is checked whose bytes are copied twice.
    scratch: Box<[u8]>,
}

impl Hot {
    pub(super) fn new(volume: VolumeId) -> Self {
        Self {
            volume,
            memory: None,
            asked_at: None,
            stepped_at: None,
            looked: false,
            awaited: None,
            next: None,
            found: false,
            scratch: vec![0; LonePiece::segment_bytes(PAST_MIN)].into(),
        }
    }

    /// Whether no whole step is due.
    fn is_fresh(&self, now: Time) -> bool {
        let stepped = self.stepped_at;
        self.memory.is_some() && stepped.is_some_and(|at| now.since(at) < STEP_APART)
    }

    /// Whether the next segment of a stream's peer is there, by so many looks; then `awaited` is where.
    fn look_for(&mut self, node: &Node, id: StreamId, looks: u32) -> Option<bool> {
        let (place, seq) = node.awaited(id)?;
        let memory = self.memory.as_ref()?;
        let spot = find(&mut self.awaited, &**memory, place)?;
        let word = memory.word(spot, SEGMENT_SEQ_AT)?;
        let seq = seq.0.to_le();
        for _ in 0..looks {
            // The other end: the copy that stores the number last.
            if word.load(Ordering::Acquire) == seq {
                return Some(true);
            }
            std::hint::spin_loop();
        }
        Some(false)
    }

    /// Copies the next segment of a stream's peer straight into the program's memory, if it is there, fits, and is nothing
    /// but a piece of that stream: how many bytes. What was copied is what is checked; until it is found right, the program
    /// has nothing.
    fn read_past(
        &mut self,
        node: &mut Node,
        now: Time,
        id: StreamId,
        into: &mut [u8],
    ) -> Option<usize> {
        // What was found is not looked for again. If it was another stream's, or is taken in by now, its front says so.
        if !std::mem::take(&mut self.found) && !self.look_for(node, id, 1)? {
            return None;
        }
        let spot = self.awaited.as_ref()?;
        let memory = self.memory.as_ref()?;
        let mut front = [0; FRONT_BYTES];
        memory.read(spot, 0, &mut front).ok()?;
        let piece = node.poll_piece_of(id, &front)?;
        let into = into.get_mut(..piece.bytes)?;
        if piece.len <= FRONT_BYTES {
            into.copy_from_slice(piece.bytes_in(&front)?);
        } else if piece.bytes < PAST_MIN {
            let whole = self.scratch.get_mut(..piece.len)?;
            let (begin, rest) = whole.split_at_mut(FRONT_BYTES);
            begin.copy_from_slice(&front);
            memory.read(spot, FRONT_BYTES, rest).ok()?;
            into.copy_from_slice(piece.bytes_in(whole)?);
        } else {
            let known = &front[FIRST_BYTES_AT..];
            let (begin, rest) = into.split_at_mut(known.len());
            begin.copy_from_slice(known);
            memory.read(spot, FRONT_BYTES, rest).ok()?;
            if !piece.is_whole(&front, into) {
                return None;
            }
        }
        node.handle_piece_of(now, id, &piece);
        self.heed(node, id);
        Some(piece.bytes)
    }

    /// Has a whole step soon if more has come up than bytes for a stream's program.
    fn heed(&mut self, node: &Node, id: StreamId) {
        if !node.is_calm(id) {
            self.stepped_at = None;
        }
    }

    /// Writes to the slot of `place`, and makes ready for the one that comes `next`.
    fn write(&mut self, place: Place, bytes: &[u8], next: Option<Place>) -> std::io::Result<()> {
        let memory = self.memory.as_ref().ok_or(ErrorKind::Unsupported)?;
        let spot = find(&mut self.next, &**memory, place).ok_or(ErrorKind::InvalidInput)?;
        let written = memory.write(spot, bytes);
        if let Some(next) = next
            && let Some(spot) = find(&mut self.next, &**memory, next)
        {
            memory.prepare(spot, FRONT_BYTES);
        }
        written
    }
}

/// Where a place lies: mostly where the last one lay, or beside it.
fn find<'a>(known: &'a mut Option<Spot>, memory: &dyn Memory, place: Place) -> Option<&'a Spot> {
    if !known.as_mut().is_some_and(|spot| spot.step_to(place)) {
        *known = memory.spot(place);
    }
    known.as_ref()
}

impl<M: Medium + ?Sized, C: Clock, L: LocalSide> Driver<M, C, L> {
    /// A whole step is on its way, before it asks anything of the storage.
    pub(super) fn stepped(&mut self, now: Time) {
        let hot = &mut self.hot;
        hot.stepped_at = Some(now);
        hot.looked = true;
        if hot.asked_at.is_none_or(|at| now.since(at) >= MEMORY_FOR) {
            hot.asked_at = Some(now);
            hot.memory = self.medium.memory();
        }
    }

    /// Whether a stream's link may be served alone now.
    pub fn is_hot(&self, now: Time) -> bool {
        self.hot.is_fresh(now) && matches!(self.phase, Phase::Running)
    }

    /// Takes in what the last whole step has looked at: it comes before anything that is looked at now. Whether there
    /// was anything.
    pub fn begin_hot(&mut self) -> bool {
        let looked = self.hot.memory.is_some() && std::mem::take(&mut self.hot.looked);
        if looked {
            self.reap();
        }
        looked
    }

    /// The stream with this token.
    pub fn id_of(&self, token: StreamToken) -> Option<StreamId> {
        let last = self.last_asked.get();
        let known = self.streams.get(&last);
        if known.is_some_and(|stream| stream.token == token) {
            return Some(last);
        }
        let id = *self.by_token.get(&token)?;
        self.last_asked.set(id);
        Some(id)
    }

    /// Takes as many of the bytes that a program writes as have room, which go out by themselves as long as no whole step is
    /// due: how many.
    pub fn put_hot(&mut self, mut now: Time, write: Write<'_>) -> usize {
        if self.begin_hot() {
            now = self.clock.now();
        }
        let Some(id) = self.id_of(write.token) else {
            return 0;
        };
        if self.is_hot(now) && self.put_piece(now, id, write) {
            self.read_acks_hot(now, id);
            return write.bytes.len();
        }
        self.read_acks_hot(now, id);
        let mut done = 0;
        while done < write.bytes.len() && self.is_hot(now) {
            let rest = write.after(done);
            if self.put_piece(now, id, rest) {
                return write.bytes.len();
            }
            match self.put_some(now, rest) {
                Some(taken) if taken > 0 => done += taken,
                _ => break,
            }
            self.write_hot(now, id);
        }
        done
    }

    /// Writes the bytes as a segment of their own, if nothing waits before them.
    fn put_piece(&mut self, now: Time, id: StreamId, write: Write<'_>) -> bool {
        let stream = self.streams.get(&id);
        if !stream.is_some_and(|stream| stream.is_lane_free(write.written)) {
            return false;
        }
        let Some(piece) = self.node.poll_piece(now, id, write.bytes) else {
            return false;
        };
        let PieceIo { place, bytes, next } = piece;
        if self.hot.write(place, bytes, Some(next)).is_err() {
            self.node.handle_refused(now, id);
        }
        true
    }

    /// Writes the segments of a stream's link that are due.
    pub fn write_hot(&mut self, now: Time, id: StreamId) {
        for _ in 0..WRITES_MAX {
            if !self.node.is_write_due(now, id) {
                return;
            }
            let Some(segment) = self.node.poll_write_of(now, id) else {
                return;
            };
            let bytes = &segment.data.bytes()[..segment.bytes];
            let next = self.node.next_slot(id);
            let written = self.hot.write(segment.place, bytes, next);
            let done = IoDone {
                id: segment.id,
                buf: None,
                result: written.map_err(fault),
            };
            self.node.handle_io(now, done);
        }
    }

    /// A reader has taken something: what that has brought about is written, as long as no whole step is due. Whether one is
    /// for the sake of the stream.
    pub fn settle_hot(&mut self, now: Time, token: StreamToken) -> bool {
        let Some(id) = self.id_of(token) else {
            return false;
        };
        if !self.node.is_write_due(now, id) {
            return self.node.is_take_due(id);
        }
        if self.is_hot(now) {
            self.write_hot(now, id);
        }
        self.is_step_due_for(id)
    }

    /// Looks for the next segment of a stream's peer, `looks` times; `None` if it cannot be looked for in this way.
    pub fn watch_hot(&mut self, id: StreamId, looks: u32) -> Option<bool> {
        let found = self.hot.look_for(&self.node, id, looks);
        self.hot.found = found == Some(true);
        found
    }

    /// Takes in what acknowledges the segments of a stream's link, if many of them wait for that.
    fn read_acks_hot(&mut self, now: Time, id: StreamId) {
        if self.node.wants_acks(id) && self.is_hot(now) && self.watch_hot(id, 1) == Some(true) {
            self.read_hot(now, id);
        }
    }

    /// Moves what has arrived for a stream, or is there next, into the program's memory.
    pub(super) fn take_hot(&mut self, now: Time, id: StreamId, into: &mut [u8]) -> usize {
        if self.node.has_unread(id) {
            return self.node.take(now, id, into);
        }
        if !self.is_hot(now) {
            return 0;
        }
        let read = self.hot.read_past(&mut self.node, now, id, into);
        read.unwrap_or(0)
    }

    /// Takes in the next segment of a stream's peer, which is there.
    pub fn read_hot(&mut self, now: Time, id: StreamId) {
        let Some(memory) = self.hot.memory.clone() else {
            return;
        };
        let awaited = self.node.awaited(id);
        // A long one is read whole by a second look.
        for _ in 0..2 {
            let Some(io) = self.node.poll_look_of(now, id) else {
                break;
            };
            let IoAction::Read(mut buf) = io.action else {
                break;
            };
            let spot = find(&mut self.hot.awaited, &*memory, io.place);
            let read = fetch(&*memory, spot, self.hot.volume, &mut buf);
            let done = IoDone {
                id: io.id,
                buf: Some(buf),
                result: read.map_err(fault),
            };
            self.node.handle_io(now, done);
            if self.node.awaited(id) != awaited {
                break;
            }
        }
        self.hot.heed(&self.node, id);
    }
}

/// As much of a segment as means anything; of one that does not fit, the head.
fn fetch(
    memory: &dyn Memory,
    spot: Option<&Spot>,
    volume: VolumeId,
    buf: &mut UnitBuf,
) -> std::io::Result<()> {
    let spot = spot.ok_or(ErrorKind::InvalidInput)?;
    let (front, rest) = buf.bytes_mut().split_at_mut(FRONT_BYTES);
    memory.read(spot, 0, front)?;
    let len = peek_segment(front, volume).map_or(0, |(_, len)| len);
    match rest.get_mut(..len.saturating_sub(FRONT_BYTES)) {
        Some(rest) if !rest.is_empty() => memory.read(spot, FRONT_BYTES, rest),
        _ => Ok(()),
    }
}

fn fault(error: std::io::Error) -> IoFault {
    IoFault {
        errno: error.raw_os_error().unwrap_or(ERRNO_IO),
    }
}
