//! The simulated storage as memory that all systems share: transfers are copies, done when they return.
//!
//! - What a node stores, others see in the order in which it was stored: at once, or one piece after the other over a
//!   while. A copy of a segment ends with the segment's number.
//! - A node that is killed or frozen is so between two stores: none follows, or the rest when it goes on.
//! - A copy out may be of several moments, word by word, none of them long ago.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use stp_format::segment::{
    SEGMENT_HEAD_BYTES, SEGMENT_SEQ_AT, SegmentBuilder, decode_segment, peek_segment,
};
use stp_format::{Epoch, Place, SegmentInfo, UNIT_BYTES, UnitBuf};
use stp_medium::{Completion, Memory, Op, OpId, Spot};

use crate::disk::{Disk, ERRNO_IO, Event, Shared};
use crate::mutation::Mutation;
use crate::world::{US, VOLUME};

const WORD_BYTES: usize = 8;
/// Pieces that a copy's stores are seen in, besides its head.
const PIECES_MAX: u64 = 5;
/// Runs of words that are old or not, of a copy out: of more words in a large one.
const RUNS: usize = 512;

fn failed() -> io::Error {
    io::Error::from_raw_os_error(ERRNO_IO)
}

impl Disk {
    /// A transfer.
    pub(crate) fn copy(&mut self, handle: usize, id: OpId, op: Op, offset: u64) {
        let (buf, result) = match op {
            Op::Read { mut buf, .. } => {
                self.figures.reads += 1;
                let result = self.copy_out(handle, offset, buf.bytes_mut());
                (Some(buf), result)
            }
            Op::Write {
                place, data, units, ..
            } => {
                let (place, data) = self.checked(handle, place, data, units);
                let result = self.copy_in(handle, place, offset, data, units * UNIT_BYTES);
                (None, result)
            }
        };
        let completion = Completion { id, buf, result };
        self.handles[handle].done.push_back(completion);
    }

    /// What of a write means anything.
    pub(crate) fn meant<'a>(&self, place: Place, bytes: &'a [u8]) -> &'a [u8] {
        match (self.memory, place) {
            (Some(_), Place::Slot { .. }) => {
                let length = peek_segment(bytes, VOLUME).map_or(bytes.len(), |(_, len)| len);
                bytes.get(..length).unwrap_or(bytes)
            }
            _ => bytes,
        }
    }

    fn copy_in(
        &mut self,
        handle: usize,
        place: Place,
        offset: u64,
        data: Arc<UnitBuf>,
        len: usize,
    ) -> io::Result<()> {
        if offset + len as u64 > self.ends_at {
            self.figures.fault("transfer beyond the end");
            return Err(failed());
        }
        let faults = self.memory.unwrap_or_default();
        let beat = matches!(place, Place::Seat { .. });
        let now = self.now;
        if beat {
            self.handles[handle].acknowledged.push(now);
        }
        let number_first = self.mutation == Some(Mutation::NumberFirst);
        let spread = self.strikes(faults.spread) || number_first;
        let held_up = self.strikes(faults.held_up);
        let waits = self.handles[handle].stores_until > now;
        if !spread && !held_up && !waits {
            self.land(handle, offset, &data, 0..len, beat);
            return Ok(());
        }
        let mut pieces = match spread || held_up {
            true => self.pieces(len),
            false => std::iter::once(0..len).collect(),
        };
        if number_first {
            pieces.rotate_right(1);
        }
        if spread {
            self.figures.fault("stores seen one after the other");
        }
        let stop = held_up.then(|| self.rng.below(pieces.len() as u64) as usize);
        if held_up {
            self.figures.fault("held up between two stores");
        }
        let last = pieces.len() - 1;
        for (index, Range { start, end }) in pieces.into_iter().enumerate() {
            let mut at = now;
            if spread {
                at += self.rng.below(faults.spread_us.max(1) * US);
            }
            at = at.max(self.handles[handle].stores_until);
            if stop == Some(index) {
                // And with it whoever copies.
                at += self.rng.spread(1, faults.held_up_us.max(1)) * US;
                self.handles[handle].held_up_until = at;
            }
            self.handles[handle].stores_until = at;
            let event = Event::Store {
                handle,
                offset,
                data: Arc::clone(&data),
                from: start,
                to: end,
                beat: beat && index == last,
                began: now,
            };
            self.schedule(at, event);
        }
        Ok(())
    }

    /// In which pieces a copy of so many bytes is stored: what follows the head in any order, the head, its number.
    fn pieces(&mut self, len: usize) -> Vec<Range<usize>> {
        if len < SEGMENT_HEAD_BYTES {
            return std::iter::once(0..len).collect();
        }
        let words = (len - SEGMENT_HEAD_BYTES) / WORD_BYTES;
        let mut cuts: Vec<usize> = (0..self.rng.below(PIECES_MAX))
            .map(|_| SEGMENT_HEAD_BYTES + self.rng.below(words as u64 + 1) as usize * WORD_BYTES)
            .chain([SEGMENT_HEAD_BYTES, len])
            .collect();
        cuts.sort_unstable();
        let bounds = cuts.windows(2).filter(|cut| cut[0] < cut[1]);
        let mut pieces: Vec<_> = bounds.map(|cut| cut[0]..cut[1]).collect();
        for at in (1..pieces.len()).rev() {
            pieces.swap(at, self.rng.below(at as u64 + 1) as usize);
        }
        let behind = SEGMENT_SEQ_AT + WORD_BYTES;
        pieces.extend([
            0..SEGMENT_SEQ_AT,
            behind..SEGMENT_HEAD_BYTES,
            SEGMENT_SEQ_AT..behind,
        ]);
        pieces
    }

    /// Stores that nobody has seen yet, by when they will be.
    fn unseen(&self, handle: usize) -> Vec<(u64, u64)> {
        let of = |event: &Event| matches!(event, Event::Store { handle: of, .. } if *of == handle);
        let events = self.events.iter().filter(|(_, event)| of(event));
        events.map(|(key, _)| *key).collect()
    }

    /// The process is killed: some of its stores may never have been made.
    pub(crate) fn cut_stores(&mut self, handle: usize) {
        let unseen = self.unseen(handle);
        if unseen.is_empty() {
            return;
        }
        let kept = self.rng.below(unseen.len() as u64 + 1) as usize;
        for key in &unseen[kept..] {
            self.events.remove(key);
        }
        if kept < unseen.len() {
            self.figures.fault("killed between two stores");
        }
    }

    /// The process stops in the middle of its stores.
    pub(crate) fn hold_up_stores(&mut self, handle: usize, until: u64) {
        let unseen = self.unseen(handle);
        if unseen.is_empty() {
            return;
        }
        self.figures.fault("frozen between two stores");
        for key in unseen {
            if let Some(event) = self.events.remove(&key) {
                self.schedule(until + (key.0 - self.now), event);
            }
        }
        let last = &mut self.handles[handle].stores_until;
        *last += until - self.now;
    }

    /// What is about to be stored over.
    pub(crate) fn remember(&mut self, range: Range<usize>) {
        let Some(faults) = self.memory.filter(|faults| faults.old > 0) else {
            self.recent.clear();
            return;
        };
        let oldest = self.now.saturating_sub(faults.old_us * US);
        while self.recent.front().is_some_and(|(at, ..)| *at < oldest) {
            self.recent.pop_front();
        }
        let old = Box::from(&self.bytes[range.clone()]);
        self.recent.push_back((self.now, range.start as u64, old));
    }

    fn copy_out(&mut self, handle: usize, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let (start, length) = (offset as usize, into.len());
        if offset + length as u64 > self.ends_at {
            self.figures.fault("transfer beyond the end");
            return Err(failed());
        }
        into.copy_from_slice(&self.bytes[start..start + length]);
        let faults = self.memory.unwrap_or_default();
        if self.strikes(faults.old) {
            self.age(start, into, faults.old_us);
        }
        self.note(offset ^ (handle as u64) << 48);
        Ok(())
    }

    /// Makes some words of a copy what they were a moment ago.
    fn age(&mut self, start: usize, into: &mut [u8], old_us: u64) {
        let moment = self.now.saturating_sub(self.rng.below(old_us * US + 1));
        let mut old = into.to_vec();
        for (_, from, bytes) in self
            .recent
            .iter()
            .rev()
            .take_while(|(at, ..)| *at >= moment)
        {
            let from = *from as usize;
            let (first, end) = (from.max(start), (from + bytes.len()).min(start + old.len()));
            if first < end {
                old[first - start..end - start].copy_from_slice(&bytes[first - from..end - from]);
            }
        }
        if *old == *into {
            return;
        }
        self.figures.fault("some words old");
        let run = (into.len() / RUNS)
            .next_multiple_of(WORD_BYTES)
            .max(WORD_BYTES);
        for (into, old) in into.chunks_mut(run).zip(old.chunks(run)) {
            if self.rng.percent(50) {
                into.copy_from_slice(old);
            }
        }
    }

    /// Whoever sees a segment's number sees the segment.
    pub(crate) fn check_number(
        &mut self,
        handle: usize,
        offset: u64,
        data: &UnitBuf,
        part: Range<usize>,
        began: u64,
    ) {
        let Ok((_, len)) = peek_segment(data.bytes(), VOLUME) else {
            return;
        };
        // Nor is it a node's doing that something else stands there by now.
        let seat = self.handles[handle].seat;
        let others = self.handles.iter().enumerate().any(|(other, this)| {
            other != handle && this.seat == seat && (this.alive || this.stores_until >= began)
        });
        let spoiled = self.spoiled_at.is_some_and(|at| at >= began);
        if !part.contains(&SEGMENT_SEQ_AT) || others || spoiled {
            return;
        }
        let start = offset as usize;
        if self.bytes[start..start + len] != data.bytes()[..len] {
            self.find(format!(
                "life {handle}: a segment's number is seen at {offset} before the segment"
            ));
        }
    }
}

/// One life's view of the memory.
pub(crate) struct SimMemory {
    disk: Shared,
    handle: usize,
    /// What was last looked at.
    looked: AtomicU64,
    /// The last segment that was read, for a mutation.
    last: Mutex<Option<(SegmentInfo, Vec<u8>)>>,
}

impl SimMemory {
    pub(crate) fn new(disk: Shared, handle: usize) -> Self {
        Self {
            disk,
            handle,
            looked: AtomicU64::new(0),
            last: Mutex::new(None),
        }
    }

    fn copy_out(&self, disk: &mut Disk, spot: &Spot, at: usize, into: &mut [u8]) -> io::Result<()> {
        let offset = spot.offset(at, into.len());
        let offset = offset.ok_or(io::ErrorKind::InvalidInput)?;
        disk.copy_out(self.handle, offset, into)
    }

    /// The last segment again, under the number of the one that is there.
    fn doubled(&self, disk: &mut Disk, spot: &Spot) -> Option<Vec<u8>> {
        let mut head = [0; SEGMENT_HEAD_BYTES];
        self.copy_out(disk, spot, 0, &mut head).ok()?;
        let (_, length) = peek_segment(&head, VOLUME).ok()?;
        let mut bytes = vec![0; length];
        self.copy_out(disk, spot, 0, &mut bytes).ok()?;
        let (info, _) = decode_segment(&bytes, VOLUME).ok()?;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some((before, old))
                if SegmentInfo {
                    seq: info.seq,
                    acked_epoch: info.acked_epoch,
                    acked_seq: info.acked_seq,
                    wants_ack: info.wants_ack,
                    ..*before
                } == info
                    && before.seq.next() == info.seq =>
            {
                let (buf, length) = sealed_as(old, &info)?;
                Some(buf.bytes()[..length].to_vec())
            }
            _ => {
                *last = Some((info, bytes));
                None
            }
        }
    }
}

/// A segment's frames under another head.
fn sealed_as(bytes: &[u8], info: &SegmentInfo) -> Option<(UnitBuf, usize)> {
    let (_, frames) = decode_segment(bytes, VOLUME).ok()?;
    let mut builder = SegmentBuilder::new(UnitBuf::zeroed(UnitBuf::units_for(bytes.len())));
    for frame in frames {
        if !builder.push(&frame.ok()?) {
            return None;
        }
    }
    Some(builder.seal_bytes(VOLUME, info))
}

impl Memory for SimMemory {
    fn spot(&self, place: Place) -> Option<Spot> {
        Spot::of(&self.disk.lock().geometry, place)
    }

    fn word(&self, spot: &Spot, at: usize) -> Option<&AtomicU64> {
        let mut word = [0; WORD_BYTES];
        let mut disk = self.disk.lock();
        self.copy_out(&mut disk, spot, at, &mut word).ok()?;
        self.looked
            .store(u64::from_ne_bytes(word), Ordering::Relaxed);
        Some(&self.looked)
    }

    fn read(&self, spot: &Spot, at: usize, into: &mut [u8]) -> io::Result<()> {
        let mut disk = self.disk.lock();
        if at == 0 {
            disk.figures.hot_reads += 1;
        }
        if disk.mutation == Some(Mutation::HotTwice)
            && let Some(doubled) = self.doubled(&mut disk, spot)
        {
            let part = doubled.get(at..).unwrap_or_default();
            let length = part.len().min(into.len());
            into[..length].copy_from_slice(&part[..length]);
            return Ok(());
        }
        self.copy_out(&mut disk, spot, at, into)
    }

    fn prepare(&self, _spot: &Spot, _len: usize) {}

    fn write(&self, spot: &Spot, bytes: &[u8]) -> io::Result<()> {
        let mut disk = self.disk.lock();
        let units = UnitBuf::units_for(bytes.len());
        let place = spot.place();
        let offset = spot.offset(0, bytes.len());
        let offset = offset.ok_or(io::ErrorKind::InvalidInput)?;
        let mut data = UnitBuf::zeroed(units);
        data.bytes_mut()[..bytes.len()].copy_from_slice(bytes);
        let (place, data) = match disk.mutation {
            Some(Mutation::HotOldSession) => (place, of_session_before(data)),
            Some(Mutation::HotWrongSlot) => (next_slot(place), data),
            _ => (place, data),
        };
        disk.figures.hot_writes += 1;
        disk.note(offset ^ (bytes.len() as u64) << 40);
        let (place, data) = disk.checked(self.handle, place, Arc::new(data), units);
        disk.copy_in(self.handle, place, offset, data, bytes.len())
    }
}

/// The same segment, of the session before.
fn of_session_before(data: UnitBuf) -> UnitBuf {
    let Ok((info, len)) = peek_segment(data.bytes(), VOLUME) else {
        return data;
    };
    let epoch = Epoch(info.epoch.0.saturating_sub(1));
    match sealed_as(&data.bytes()[..len], &SegmentInfo { epoch, ..info }) {
        Some((buf, _)) => buf,
        None => data,
    }
}

fn next_slot(place: Place) -> Place {
    match place {
        Place::Slot {
            seat,
            ring,
            slot,
            skip,
        } => Place::Slot {
            seat,
            ring,
            slot: slot + 1,
            skip,
        },
        other => other,
    }
}
