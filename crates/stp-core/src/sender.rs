//! The outgoing side of a link: segments that are filled, under way, or kept until acknowledged.
//!
//! - A segment's bytes never change once it has a number; it is written again, as it is, when its write
//!   failed or its acknowledgement does not come.
//! - A slot is reused only after its segment was acknowledged *and* no write to it is under way.
//! - Group commit: with nothing under way, whatever there is goes out at once; otherwise only a segment that
//!   is nearly full does, up to the depth.
//! - A full segment may have its number before it can be written: a program's writes are not held up by each.

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
/// Full segments that wait for their turn to be written, at the most.
const AHEAD_MAX: usize = 2;
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

    /// A box with at least the front `bytes` of `buf`, which comes back where it can.
    fn keep(&mut self, buf: UnitBuf, bytes: usize, whole: bool) -> Arc<UnitBuf> {
        let units = UnitBuf::units_for(bytes);
        if units > SMALL_UNITS || buf.units() == units {
            let mut buf = buf;
            fill_up(&mut buf, bytes, whole);
            return Arc::new(buf);
        }
        let mut kept = self.take_boxed(units);
        if let Some(small) = Arc::get_mut(&mut kept) {
            small.bytes_mut()[..bytes].copy_from_slice(&buf.bytes()[..bytes]);
            fill_up(small, bytes, whole);
        }
        self.give_back(buf);
        kept
    }

    /// A box of exactly `units` units, which nobody else has.
    fn take_boxed(&mut self, units: usize) -> Arc<UnitBuf> {
        let reused = if units == 1 { self.boxed.pop() } else { None };
        reused.unwrap_or_else(|| Arc::new(self.take(units)))
    }

    /// Takes back what was kept, unless a write of it is still under way.
    fn let_go(&mut self, mut kept: Arc<UnitBuf>) {
        let own = Arc::get_mut(&mut kept).is_some();
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
fn fill_up(buf: &mut UnitBuf, bytes: usize, whole: bool) {
    if whole {
        let end = UnitBuf::units_for(bytes) * UNIT_BYTES;
        buf.bytes_mut()[bytes..end].fill(0);
    }
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
    kept: VecDeque<Kept>,
    /// Writes under way to slots of segments that were acknowledged meanwhile.
    lingering: Vec<(u64, u32)>,
    in_flight: usize,
    /// The newest in `kept` that were never written.
    unwritten: usize,
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
    pub(crate) fn new(geometry: &Geometry, ring: Ring) -> Self {
        Self {
            ring,
            slots: geometry.ring_slots(ring),
            next_seq: Seq(1),
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
        (self.ring, self.slot_of(self.next_seq))
    }

    /// Whether the next segment has a slot.
    fn has_slot(&self) -> bool {
        let slot = self.slot_of(self.next_seq);
        self.kept.len() < self.slots as usize && !self.lingering.iter().any(|(_, s)| *s == slot)
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

    /// Whether the peer is being sent large segments and has acknowledged enough of them to go on.
    pub(crate) fn is_bulk(&self) -> bool {
        !self.crowded()
            && self
                .kept
                .back()
                .is_some_and(|kept| kept.units > SMALL_UNITS)
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
        self.builder
            .as_ref()
            .is_some_and(|builder| builder.used_bytes() >= self.slot_bytes() / 4 * 3)
    }

    /// Whether a new segment shall be numbered now; `ack_due` asks for one even without frames.
    pub(crate) fn may_seal(&self, depth: usize, ack_due: bool) -> bool {
        let under_way = self.in_flight + self.unwritten;
        (self.has_frames() || ack_due)
            && self.has_slot()
            && (under_way == 0 || (under_way < depth && self.nearly_full()))
    }

    /// Whether a program that writes more than there is room for may number the segment being filled, though it cannot
    /// be written yet: then the program goes on, and whoever writes finds several.
    pub(crate) fn may_seal_ahead(&self) -> bool {
        self.nearly_full() && self.unwritten < AHEAD_MAX && self.has_slot()
    }

    /// Whether a segment that has a number can be written for the first time.
    pub(crate) fn may_write(&self, depth: usize) -> bool {
        self.unwritten > 0 && self.in_flight < depth
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
        let units = UnitBuf::units_for(bytes);
        let data = pool.keep(buf, bytes, whole);
        self.next_seq = seq.next();
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

    /// Numbers a segment past the one that is being filled, and counts it as written: `seal` fills its bytes. The segment,
    /// and the slot of the one behind it.
    pub(crate) fn pass(
        &mut self,
        now: Time,
        pool: &mut Pool,
        bytes: usize,
        rewrite: Duration,
        seal: impl FnOnce(&mut [u8], Seq),
    ) -> (&[u8], u32) {
        let seq = self.next_seq;
        let units = UnitBuf::units_for(bytes);
        let mut data = pool.take_boxed(units);
        if let Some(buf) = Arc::get_mut(&mut data) {
            seal(&mut buf.bytes_mut()[..bytes], seq);
        }
        self.next_seq = seq.next();
        self.sealed_at = Some(now);
        let next = self.slot_of(self.next_seq);
        self.kept.push_back(Kept {
            seq,
            data,
            units,
            bytes,
            wants_ack: true,
            writing: None,
            again_at: now + rewrite,
            tries: 1,
        });
        let data = self.kept.back().map(|kept| &kept.data.bytes()[..bytes]);
        (data.unwrap_or_default(), next)
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

    /// The segment that was numbered last.
    pub(crate) fn newest(&self) -> Option<usize> {
        self.kept.len().checked_sub(1)
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
        self.in_flight += 1;
        let kept = &mut self.kept[at];
        let again = kept.tries > 0;
        self.unwritten -= usize::from(!again);
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
            0 => self.in_flight < depth,
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
