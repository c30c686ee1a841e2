//! The outgoing side of a link: segments that are filled, under way, or kept until acknowledged.
//!
//! - A segment's bytes never change once it has a number; it is written again, as it is, when its write
//!   failed or its acknowledgement does not come.
//! - A slot is reused only after its segment was acknowledged *and* no write to it is under way.
//! - Group commit: with nothing under way, whatever there is goes out at once; otherwise only a segment that
//!   is nearly full does, up to the depth.
//! - A full segment may have its number before it can be written: a program's writes are not held up by each.
//! - Where neighbouring slots are written as one, full segments wait for each other while there is a write under way, and
//!   go out as a *run*; with none under way, whatever there is goes out.

use crate::config::Limits;
use crate::event::StreamId;
use crate::time::{Time, earliest};
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;
use stp_format::segment::StreamKey;
use stp_format::{FrameBody, Geometry, Ring, SegmentBuilder, Seq, UNIT_BYTES, UnitBuf};

/// A failed write is tried again after this, doubling.
const FAULT_PAUSE: Duration = Duration::from_millis(10);
/// Bound of every pause between two writes of one segment.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// A segment that only acknowledges is written again after this many times the usual pause: the seat
/// record acknowledges it in time.
const QUIET_FACTOR: u32 = 6;
/// Unacknowledged segments that are looked at for a second write.
const REWRITE_SCAN: usize = 8;
/// Buffers kept for reuse, small ones and large ones each.
const POOL_BUFS: usize = 24;
/// Large buffers that are on the heap: whoever moves little uses no more, and little of these.
const HEAP_BUFS: usize = 4;
/// A segment of at most this many units is copied to a buffer of its size, and the large one reused.
const SMALL_UNITS: usize = 8;
/// Full segments that wait for their turn to be written, at the most; a run, if that is more.
const AHEAD_MAX: usize = 2;
/// Runs under way on one link.
const RUNS_MAX: usize = 2;
/// Silence after which the peer is taken not to look at the link but only at the directory.
const DOORBELL_AFTER: Duration = Duration::from_millis(100);

/// Buffers that are used again and again: fresh memory costs more than what it carries.
#[derive(Debug)]
pub(crate) struct Pool {
    /// Where large ones come from, after the first few.
    source: fn(usize) -> UnitBuf,
    large_made: usize,
    small: Vec<UnitBuf>,
    large: Vec<UnitBuf>,
    /// Of one unit, each in the box that it was kept in.
    boxed: Vec<Arc<UnitBuf>>,
}

impl Pool {
    pub(crate) fn new(source: fn(usize) -> UnitBuf) -> Self {
        Self {
            source,
            large_made: 0,
            small: Vec::new(),
            large: Vec::new(),
            boxed: Vec::new(),
        }
    }

    fn shelf(&mut self, units: usize) -> &mut Vec<UnitBuf> {
        if units <= SMALL_UNITS {
            &mut self.small
        } else {
            &mut self.large
        }
    }

    /// A buffer of exactly `units` units; its content is whatever it was.
    pub(crate) fn take(&mut self, units: usize) -> UnitBuf {
        let shelf = self.shelf(units);
        match shelf.iter().rposition(|buf| buf.units() == units) {
            Some(at) => shelf.swap_remove(at),
            None if units <= SMALL_UNITS => UnitBuf::zeroed(units),
            None => {
                self.large_made += 1;
                match self.large_made <= HEAP_BUFS {
                    true => UnitBuf::zeroed(units),
                    false => (self.source)(units),
                }
            }
        }
    }

    /// A box with at least the front `bytes` of `buf`, which comes back where it can, and so many units.
    fn keep(&mut self, buf: UnitBuf, bytes: usize, units: usize, whole: bool) -> Arc<UnitBuf> {
        if units > SMALL_UNITS || buf.units() == units {
            let mut buf = buf;
            fill_up(&mut buf, bytes, units, whole);
            return Arc::new(buf);
        }
        let mut kept = self.take_boxed(units);
        if let Some(small) = Arc::get_mut(&mut kept) {
            small.bytes_mut()[..bytes].copy_from_slice(&buf.bytes()[..bytes]);
            fill_up(small, bytes, units, whole);
        }
        self.give_back(buf);
        kept
    }

    /// A box of exactly `units` units, which nobody else has.
    pub(crate) fn take_boxed(&mut self, units: usize) -> Arc<UnitBuf> {
        let reused = if units == 1 { self.boxed.pop() } else { None };
        reused.unwrap_or_else(|| Arc::new(self.take(units)))
    }

    /// Takes back what was kept, unless a write of it is still under way.
    fn let_go(&mut self, kept: Arc<UnitBuf>) {
        let own = Arc::strong_count(&kept) == 1;
        if own && kept.units() == 1 && self.boxed.len() < POOL_BUFS {
            self.boxed.push(kept);
        } else if let Ok(buf) = Arc::try_unwrap(kept) {
            self.give_back(buf);
        }
    }

    pub(crate) fn give_back(&mut self, buf: UnitBuf) {
        let shelf = self.shelf(buf.units());
        if shelf.len() >= POOL_BUFS {
            // Sizes change as rings do: the oldest makes room.
            shelf.swap_remove(0);
        }
        shelf.push(buf);
    }
}

/// Whoever writes whole units wants zeros behind the bytes that count.
fn fill_up(buf: &mut UnitBuf, bytes: usize, units: usize, whole: bool) {
    if whole {
        buf.bytes_mut()[bytes..units * UNIT_BYTES].fill(0);
    }
}

/// Whether the peer is being sent large segments, and has acknowledged enough of them to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bulk {
    No,
    /// There is room for more.
    Fed,
    /// Room is getting scarce, and they are written several at a time: an acknowledgement that is not seen holds up many.
    Hungry,
}

/// What a segment asks of the peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Asks {
    #[default]
    Nothing,
    /// Data: many programs answer.
    Perhaps,
    /// A connection: it is answered.
    Surely,
}

/// A segment with a number.
#[derive(Debug)]
struct Kept {
    seq: Seq,
    data: Arc<UnitBuf>,
    units: usize,
    /// What of them means anything.
    bytes: usize,
    wants_ack: bool,
    writing: Option<u64>,
    /// When it may be written again, unless it is acknowledged before.
    again_at: Time,
    tries: u32,
}

/// What [`Outgoing::begin_write`] wants written.
#[derive(Debug)]
pub(crate) struct SegmentWrite {
    pub(crate) slot: u32,
    pub(crate) data: Arc<UnitBuf>,
    pub(crate) units: usize,
    pub(crate) bytes: usize,
}

#[derive(Debug)]
pub(crate) struct Outgoing {
    ring: Ring,
    slots: u32,
    next_seq: Seq,
    /// Where that goes: counted, since the remainder of a division costs as much as all else about a small segment.
    next_slot: u32,
    kept: VecDeque<Kept>,
    /// Writes under way to slots of segments that were acknowledged meanwhile.
    lingering: Vec<(u64, u32)>,
    in_flight: usize,
    /// The newest in `kept` that were never written.
    unwritten: usize,
    /// Slots that are written as one; 1: each by itself.
    run: usize,
    /// The first so many of `unwritten` are the rest of a run that has begun.
    begun: usize,
    builder: Option<SegmentBuilder>,
    /// What the builder holds makes the peer say something soon.
    asks: Asks,
    /// Streams whose fin frame is in the builder.
    builder_fins: Vec<StreamId>,
    /// Streams whose fin frame is in a segment that is not acknowledged.
    fins: VecDeque<(Seq, StreamId)>,
    /// Streams with control frames to send.
    pub(crate) control: VecDeque<StreamId>,
    /// Streams to pull bytes for.
    pub(crate) fill: VecDeque<StreamId>,
    /// Last words, resets for the most part, of streams that this node has forgotten.
    pub(crate) farewells: VecDeque<(StreamKey, FrameBody<'static>)>,
    sealed_at: Option<Time>,
}

impl Outgoing {
    pub(crate) fn new(geometry: &Geometry, ring: Ring, limits: &Limits) -> Self {
        let slots = geometry.ring_slots(ring);
        Self {
            ring,
            slots,
            run: limits.run_slots(slots, usize::from(ring.slot_units) * UNIT_BYTES),
            begun: 0,
            next_seq: Seq(1),
            next_slot: 0,
            kept: VecDeque::new(),
            lingering: Vec::new(),
            in_flight: 0,
            unwritten: 0,
            builder: None,
            asks: Asks::Nothing,
            builder_fins: Vec::new(),
            fins: VecDeque::new(),
            control: VecDeque::new(),
            fill: VecDeque::new(),
            farewells: VecDeque::new(),
            sealed_at: None,
        }
    }

    pub(crate) fn ring(&self) -> Ring {
        self.ring
    }

    pub(crate) fn last_seq(&self) -> Seq {
        Seq(self.next_seq.0 - 1)
    }

    fn slot_bytes(&self) -> usize {
        usize::from(self.ring.slot_units) * UNIT_BYTES
    }

    fn slot_of(&self, seq: Seq) -> u32 {
        ((seq.0 - 1) % u64::from(self.slots)) as u32
    }

    /// The slot of the next segment, whether it is free or not.
    pub(crate) fn next_slot(&self) -> (Ring, u32) {
        (self.ring, self.next_slot)
    }

    /// The next number, which is used up with this.
    fn take_number(&mut self) -> Seq {
        let seq = self.next_seq;
        self.next_seq = seq.next();
        let next = self.next_slot + 1;
        self.next_slot = if next < self.slots { next } else { 0 };
        debug_assert_eq!(self.next_slot, self.slot_of(self.next_seq));
        seq
    }

    /// Whether the next segment has a slot.
    fn has_slot(&self) -> bool {
        let lingers = |(_, slot): &(u64, u32)| *slot == self.next_slot;
        self.kept.len() < self.slots as usize && !self.lingering.iter().any(lingers)
    }

    /// Whether so many segments wait for an acknowledgement that even one that carries only
    /// acknowledgements must ask for one. One that asks is enough: with more, two nodes would answer each
    /// other's acknowledgements for ever.
    pub(crate) fn crowded(&self) -> bool {
        self.kept.len() >= self.slots as usize / 2 && !self.kept.iter().any(|kept| kept.wants_ack)
    }

    /// Whether as many segments are kept as the peer acknowledges at once.
    pub(crate) fn is_long(&self) -> bool {
        self.kept.len() >= self.slots as usize / 4
    }

    /// Whether large segments are being sent, and how soon an acknowledgement will be wanted.
    pub(crate) fn bulk(&self) -> Bulk {
        let large = self.kept.back();
        if self.crowded() || large.is_none_or(|kept| kept.units <= SMALL_UNITS) {
            return Bulk::No;
        }
        let written = self.kept.len() - self.unwritten;
        match self.run > 1 && written >= self.slots as usize / 2 {
            true => Bulk::Hungry,
            false => Bulk::Fed,
        }
    }

    /// Whether no segment can be numbered until the peer acknowledges.
    pub(crate) fn full(&self) -> bool {
        self.kept.len() >= self.slots as usize
    }

    /// Bytes of memory that segments hold until they are acknowledged.
    pub(crate) fn kept_bytes(&self) -> u64 {
        self.kept.iter().map(|kept| kept.data.len() as u64).sum()
    }

    /// Whether everything sent is acknowledged.
    pub(crate) fn drained(&self) -> bool {
        self.kept.is_empty() && self.builder.as_ref().is_none_or(SegmentBuilder::is_empty)
    }

    /// The segment that is being filled.
    pub(crate) fn builder(&mut self, pool: &mut Pool) -> &mut SegmentBuilder {
        let units = usize::from(self.ring.slot_units);
        self.builder
            .get_or_insert_with(|| SegmentBuilder::new(pool.take(units)))
    }

    /// The stream is on another link now.
    pub(crate) fn forget(&mut self, id: StreamId) {
        self.control.retain(|queued| *queued != id);
        self.fill.retain(|queued| *queued != id);
    }

    /// Something was put into the segment being filled that may be answered.
    pub(crate) fn ask(&mut self, asks: Asks) {
        self.asks = self.asks.max(asks);
    }

    pub(crate) fn fin_in_builder(&mut self, id: StreamId) {
        self.builder_fins.push(id);
    }

    /// Whether more bytes may be pulled into the segment being filled: it has room, and it is worth it.
    pub(crate) fn can_fill(&self) -> bool {
        match &self.builder {
            Some(builder) => builder.data_room() >= self.fill_min(),
            None => true,
        }
    }

    /// A segment with less room than this is as good as full.
    fn fill_min(&self) -> usize {
        self.slot_bytes() / 16
    }

    fn nearly_full(&self) -> bool {
        self.builder.as_ref().is_some_and(|builder| match self.run {
            1 => builder.used_bytes() >= self.slot_bytes() / 4 * 3,
            // Only full ones lie side by side.
            _ => builder.data_room() < self.fill_min(),
        })
    }

    /// Whether a new segment shall be numbered now; `ack_due` asks for one even without frames.
    pub(crate) fn may_seal(&self, depth: usize, ack_due: bool) -> bool {
        let under_way = self.in_flight + self.unwritten;
        let most = match self.run {
            1 => depth,
            run => (RUNS_MAX + 1) * run,
        };
        (self.has_frames() || ack_due)
            && self.has_slot()
            && (under_way == 0 || (under_way < most && self.nearly_full()))
    }

    /// Whether a segment may be written for the first time: where runs are written, with the rest of one, as a whole one,
    /// or when nothing else is.
    fn may_begin(&self, depth: usize) -> bool {
        match self.run {
            1 => self.in_flight < depth,
            run => {
                let whole = self.unwritten >= self.next_run();
                let room = self.in_flight + run <= RUNS_MAX * run;
                self.begun > 0 || self.in_flight == 0 || (whole && room)
            }
        }
    }

    /// How many segments the next run has if it is whole: runs end where every so many slots do, as whoever reads them
    /// expects.
    fn next_run(&self) -> usize {
        let first = Seq(self.next_seq.0 - self.unwritten as u64);
        self.run - self.slot_of(first) as usize % self.run
    }

    /// Whether a program that writes more than there is room for may number the segment being filled, though it cannot
    /// be written yet: then the program goes on, and whoever writes finds several.
    pub(crate) fn may_seal_ahead(&self) -> bool {
        self.nearly_full() && self.unwritten < AHEAD_MAX.max(self.run) && self.has_slot()
    }

    /// Whether a segment that has a number can be written for the first time.
    pub(crate) fn may_write(&self, depth: usize) -> bool {
        self.unwritten > 0 && self.may_begin(depth)
    }

    /// The segment that is written for the first time next, if one may be.
    pub(crate) fn next_new(&self, depth: usize) -> Option<usize> {
        let first = self.kept.len() - self.unwritten;
        self.may_write(depth).then_some(first)
    }

    /// Whether the segment being filled has frames.
    pub(crate) fn has_frames(&self) -> bool {
        self.builder
            .as_ref()
            .is_some_and(|builder| !builder.is_empty())
    }

    /// Whether the peer may have stopped looking at this link.
    pub(crate) fn needs_doorbell(&self, now: Time) -> bool {
        self.sealed_at
            .is_none_or(|at| now.since(at) >= DOORBELL_AFTER)
    }

    /// Numbers the segment being filled. `seal` puts head and checksum on and says how many bytes count; whoever writes
    /// whole units wants zeros behind them (`whole`). What it asks of the peer.
    pub(crate) fn seal(
        &mut self,
        now: Time,
        pool: &mut Pool,
        wants_ack: bool,
        whole: bool,
        seal: impl FnOnce(SegmentBuilder, Seq) -> (UnitBuf, usize),
    ) -> Asks {
        let seq = self.next_seq;
        let units = usize::from(self.ring.slot_units);
        let builder = self
            .builder
            .take()
            .unwrap_or_else(|| SegmentBuilder::new(pool.take(units)));
        let (buf, bytes) = seal(builder, seq);
        // One of a run goes on to where the next begins.
        let reaches = self.run > 1 && bytes + self.fill_min() >= self.slot_bytes();
        let units = match reaches {
            true => usize::from(self.ring.slot_units),
            false => UnitBuf::units_for(bytes),
        };
        let data = pool.keep(buf, bytes, units, whole);
        self.take_number();
        self.unwritten += 1;
        self.sealed_at = Some(now);
        let fins = core::mem::take(&mut self.builder_fins);
        self.fins.extend(fins.into_iter().map(|id| (seq, id)));
        self.kept.push_back(Kept {
            seq,
            data,
            units,
            bytes,
            wants_ack,
            writing: None,
            again_at: now,
            tries: 0,
        });
        core::mem::take(&mut self.asks)
    }

    /// Whether a segment of so many bytes may be numbered and written at once: nothing waits before it, and nothing is
    /// under way.
    pub(crate) fn may_pass(&self, bytes: usize) -> bool {
        self.in_flight == 0
            && self.unwritten == 0
            && !self.has_frames()
            && self.control.is_empty()
            && self.fill.is_empty()
            && self.farewells.is_empty()
            && UnitBuf::units_for(bytes) <= SMALL_UNITS.min(usize::from(self.ring.slot_units))
            && self.has_slot()
    }

    /// Numbers a segment past the one that is being filled, and counts it as written: the front `bytes` of `data`, sealed
    /// with the number behind [`Outgoing::last_seq`]. These, and the slot of the one behind it.
    pub(crate) fn pass(
        &mut self,
        now: Time,
        data: Arc<UnitBuf>,
        bytes: usize,
        rewrite: Duration,
    ) -> (&[u8], u32) {
        let seq = self.take_number();
        self.sealed_at = Some(now);
        self.kept.push_back(Kept {
            seq,
            data,
            units: UnitBuf::units_for(bytes),
            bytes,
            wants_ack: true,
            writing: None,
            again_at: now + rewrite,
            tries: 1,
        });
        let kept = self.kept.back().map(|kept| &kept.data.bytes()[..bytes]);
        (kept.unwrap_or_default(), self.next_slot)
    }

    /// The storage has refused what was numbered last.
    pub(crate) fn handle_refused(&mut self, now: Time) {
        if let Some(kept) = self.kept.back_mut() {
            kept.again_at = now + FAULT_PAUSE * (1 << kept.tries.min(9));
        }
    }

    fn pause(&self, kept: &Kept, rewrite: Duration) -> Duration {
        let factor = if kept.wants_ack { 1 } else { QUIET_FACTOR };
        (rewrite * factor * (1 << kept.tries.saturating_sub(1).min(6))).min(PAUSE_MAX)
    }

    /// The write of a kept segment that is due begins. The second value says whether it is a repetition of one that
    /// had succeeded.
    pub(crate) fn begin_write(
        &mut self,
        now: Time,
        at: usize,
        op: u64,
        rewrite: Duration,
    ) -> (SegmentWrite, bool) {
        let again = self.kept[at].tries > 0;
        if !again {
            if self.begun == 0 {
                self.begun = self.unwritten.min(self.next_run());
            }
            self.begun -= 1;
            self.unwritten -= 1;
        }
        self.in_flight += 1;
        let kept = &mut self.kept[at];
        kept.writing = Some(op);
        kept.tries += 1;
        let (seq, data) = (kept.seq, Arc::clone(&kept.data));
        let (units, bytes) = (kept.units, kept.bytes);
        self.kept[at].again_at = now + self.pause(&self.kept[at], rewrite);
        let slot = self.slot_of(seq);
        let write = SegmentWrite {
            slot,
            data,
            units,
            bytes,
        };
        (write, again)
    }

    /// The oldest few and the newest segments are the ones that may be due.
    fn scanned(&self) -> impl Iterator<Item = usize> {
        let kept = self.kept.len();
        let newest = kept - self.unwritten.max(1).min(kept);
        let oldest = kept.min(REWRITE_SCAN).min(newest);
        (0..oldest).chain(newest..kept)
    }

    fn may_be_due(&self, kept: &Kept, patient: bool, depth: usize) -> bool {
        let may = match kept.tries {
            0 => self.may_begin(depth),
            _ => !patient,
        };
        may && kept.writing.is_none()
    }

    /// The next write that is due: a new segment's first, or another one of a segment whose acknowledgement does not come.
    /// `patient`: the peer is silent, so write nothing again.
    pub(crate) fn next_due_write(&self, now: Time, patient: bool, depth: usize) -> Option<usize> {
        self.scanned().find(|at| {
            let kept = &self.kept[*at];
            kept.again_at <= now && self.may_be_due(kept, patient, depth)
        })
    }

    /// A write has ended.
    pub(crate) fn handle_written(&mut self, now: Time, op: u64, good: bool, rewrite: Duration) {
        if let Some(at) = self
            .lingering
            .iter()
            .position(|(lingering, _)| *lingering == op)
        {
            self.lingering.swap_remove(at);
            self.in_flight = self.in_flight.saturating_sub(1);
            return;
        }
        let Some(at) = self.kept.iter().position(|kept| kept.writing == Some(op)) else {
            return;
        };
        self.in_flight = self.in_flight.saturating_sub(1);
        let pause = match good {
            true => self.pause(&self.kept[at], rewrite),
            false => (FAULT_PAUSE * (1 << self.kept[at].tries.min(9))).min(PAUSE_MAX),
        };
        let kept = &mut self.kept[at];
        kept.writing = None;
        kept.again_at = now + pause;
    }

    /// The peer has taken in all segments up to `seq`. Streams whose end is acknowledged by that; an
    /// error if `seq` was never written.
    pub(crate) fn handle_acked(&mut self, seq: Seq, pool: &mut Pool) -> Result<Vec<StreamId>, ()> {
        if seq.0 >= self.next_seq.0 - self.unwritten as u64 {
            return Err(());
        }
        while let Some(kept) = self.kept.front()
            && kept.seq <= seq
        {
            if let Some(op) = kept.writing {
                let slot = self.slot_of(kept.seq);
                self.lingering.push((op, slot));
            }
            if let Some(kept) = self.kept.pop_front() {
                pool.let_go(kept.data);
            }
        }
        let mut ended = Vec::new();
        while let Some((at, id)) = self.fins.front()
            && *at <= seq
        {
            ended.push(*id);
            self.fins.pop_front();
        }
        Ok(ended)
    }

    /// When the next write is due.
    pub(crate) fn due(&self, patient: bool, depth: usize) -> Option<Time> {
        self.scanned()
            .map(|at| &self.kept[at])
            .filter(|kept| self.may_be_due(kept, patient, depth))
            .fold(None, |due, kept| earliest(due, Some(kept.again_at)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use stp_format::StreamKey as Key;

    const SLOT_UNITS: usize = 64;
    const REWRITE: Duration = Duration::from_millis(500);

    /// A ring of sixteen large slots of which four are written as one.
    struct Writer {
        outgoing: Outgoing,
        pool: Pool,
        now: Time,
        last_op: u64,
    }

    impl Writer {
        fn new() -> Self {
            let geometry = Geometry::plan(256 << 20, 16).expect("the default");
            let ring = geometry.ring(0, 16);
            let limits = Limits {
                run_bytes: 4 * SLOT_UNITS * UNIT_BYTES,
                ..Limits::default()
            };
            Self {
                outgoing: Outgoing::new(&geometry, ring, &limits),
                pool: Pool::new(UnitBuf::zeroed),
                now: Time::ZERO,
                last_op: 0,
            }
        }

        /// A program writes so many bytes; what is full is numbered, as far as that goes.
        fn put(&mut self, bytes: usize) -> usize {
            let mut left = bytes;
            while left > 0 {
                let key = Key {
                    by_writer: true,
                    number: 1,
                };
                let builder = self.outgoing.builder(&mut self.pool);
                let count = builder.data_room().min(left);
                left -= builder.append_data(key, 0, &vec![1; count]);
                if !self.outgoing.may_seal_ahead() {
                    break;
                }
                self.seal();
            }
            bytes - left
        }

        fn seal(&mut self) {
            let sealed = |builder: SegmentBuilder, _| {
                let bytes = builder.used_bytes();
                (UnitBuf::zeroed(SLOT_UNITS), bytes)
            };
            let (now, pool) = (self.now, &mut self.pool);
            self.outgoing.seal(now, pool, true, true, sealed);
        }

        /// Begins the writes that may be; their slots and units.
        fn write(&mut self) -> Vec<(u32, usize)> {
            let mut begun = Vec::new();
            loop {
                let mut due = self.outgoing.next_due_write(self.now, false, 4);
                if due.is_none() && self.outgoing.may_seal(4, false) {
                    self.seal();
                    due = self.outgoing.next_new(4);
                }
                let Some(at) = due else { return begun };
                self.last_op += 1;
                let (write, again) = self
                    .outgoing
                    .begin_write(self.now, at, self.last_op, REWRITE);
                assert!(!again);
                begun.push((write.slot, write.units));
            }
        }

        /// The writes with these numbers end.
        fn written(&mut self, ops: core::ops::RangeInclusive<u64>) {
            for op in ops {
                self.outgoing.handle_written(self.now, op, true, REWRITE);
            }
        }

        fn acked(&mut self, seq: u64) {
            let ended = self.outgoing.handle_acked(Seq(seq), &mut self.pool);
            assert!(ended.is_ok());
        }
    }

    fn full(slots: core::ops::Range<u32>) -> Vec<(u32, usize)> {
        slots.map(|slot| (slot, SLOT_UNITS)).collect()
    }

    const SLOT: usize = SLOT_UNITS * UNIT_BYTES;

    #[test]
    fn full_segments_go_out_in_runs_that_end_every_four_slots() {
        let mut writer = Writer::new();
        writer.put(SLOT + 100);
        // Nothing is under way: what there is goes.
        assert_eq!(writer.write(), full(0..1));
        writer.put(2 * SLOT);
        assert_eq!(writer.write(), [], "it waits for company");
        writer.put(SLOT);
        assert_eq!(writer.write(), full(1..4));
        writer.put(8 * SLOT);
        assert_eq!(writer.write(), full(4..8));
        writer.put(8 * SLOT);
        assert_eq!(writer.write(), [], "two runs are under way");
        writer.written(1..=4);
        assert_eq!(writer.write(), full(8..12));
    }

    #[test]
    fn what_waits_for_company_goes_when_nothing_is_under_way() {
        let mut writer = Writer::new();
        writer.put(SLOT + 100);
        assert_eq!(writer.write(), full(0..1));
        writer.put(SLOT);
        assert_eq!(writer.write(), []);
        assert_eq!(writer.outgoing.due(false, 4), None);
        writer.written(1..=1);
        assert_eq!(writer.outgoing.due(false, 4), Some(writer.now));
        assert_eq!(writer.write(), full(1..2));
        writer.written(2..=2);
        // The rest, which fills no slot.
        let rest = writer.write();
        assert!(rest.len() == 1 && rest[0].1 < SLOT_UNITS, "{rest:?}");
    }

    #[test]
    fn a_full_ring_waits_and_goes_on() {
        let mut writer = Writer::new();
        let mut slots = Vec::new();
        for _ in 0..8 {
            writer.put(4 * SLOT);
            slots.extend(writer.write());
            writer.written(1..=writer.last_op);
        }
        slots.extend(writer.write());
        assert_eq!(slots, full(0..16));
        assert!(writer.outgoing.full());
        assert_eq!(writer.outgoing.bulk(), Bulk::Hungry);
        writer.acked(12);
        assert_eq!(writer.outgoing.bulk(), Bulk::Fed);
        // What was being filled, and one more.
        writer.put(SLOT);
        assert_eq!(writer.write(), full(0..2));
    }

    #[test]
    fn an_acknowledgement_of_what_was_never_written_is_an_error() {
        let mut writer = Writer::new();
        writer.put(4 * SLOT);
        let begun = writer.write().len() as u64;
        let ahead = writer
            .outgoing
            .handle_acked(Seq(begun + 1), &mut writer.pool);
        assert!(ahead.is_err());
    }
}
