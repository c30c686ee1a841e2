//! The incoming side of a link: where the next segment will be, and how often to look.
//!
//! - The reader knows the slot of the next segment; there is no head pointer to read.
//! - A first look reads one unit, or as many as the last segment had if those were few; a segment that is
//!   longer is then read whole.
//! - Looks at further slots begin when the one before is known to be there, up to the depth. Each look that comes too
//!   early costs as much as reading what it looks for: while large segments come one way, it is followed by a nap after
//!   which several will be there.
//! - Then one look finds several: it is at a slot further on, and if that has its segment, those before it have theirs, or
//!   are about to. They are read whole, side by side. Only where it finds nothing is the next slot itself looked at.
//! - The nap between two looks grows with the silence; after `link_idle` only the directory tells.
//! - What this node sends after that makes an answer likely, as long as the peer's answers come promptly: then it looks
//!   again from that moment on. For the answer to an opening it does so in any case.

use crate::config::{Limits, Timings};
use crate::sender::{Asks, Bulk};
use crate::time::{Time, earliest};
use alloc::collections::VecDeque;
use core::time::Duration;
use stp_format::segment::peek_segment;
use stp_format::{
    Damage, Epoch, Geometry, Incarnation, Ring, SeatId, SegmentInfo, Seq, UNIT_BYTES, UnitBuf,
    VolumeId,
};

/// A segment is guessed to be as long as the last one up to this length; a wrong guess about a longer one would
/// cost more than looking twice.
const GUESS_UNITS_MAX: usize = 8;
/// While large segments come, a slot that was looked at too early is looked at again after this at the least; where
/// they are parts of an answer that somebody waits for, after no more than this.
const BULK_NAP_MIN: Duration = Duration::from_micros(100);
/// Where they come one way: after so many of the gaps between them, and this at the most.
const BULK_NAP_GAPS: u32 = 2;
const BULK_NAP_MAX: Duration = Duration::from_millis(1);
/// A ring of fewer slots holds up its writer if its reader naps longer than a gap.
const BULK_NAP_SLOTS: u32 = 8;
/// So many large segments are found by one look.
const FAR_SLOTS: usize = 4;
/// A segment that leaves no more than this part of its slot is as good as full.
const REST_PART: usize = 16;
/// Runs that are read side by side.
const RUNS_MAX: usize = 2;
/// The part of the last gap in the mean.
const GAP_PART: u32 = 8;
/// The nap while this node sends in bulk and only acknowledgements come back.
const QUIET_NAP: Duration = Duration::from_millis(2);
/// The same where the writer will soon have no room. Besides, it looks as soon as a run of its own is written.
const HUNGRY_NAP: Duration = Duration::from_micros(500);
/// An answer that takes longer than this to what was sent is none: the stream goes one way, or its end thinks.
const ANSWER_MAX: Duration = Duration::from_millis(50);
/// The nap is this part of the silence.
pub(crate) const NAP_PART: u32 = 8;
/// First pause after a bad checksum, doubling up to [`LATE_PAUSE_MAX`].
const LATE_PAUSE: Duration = Duration::from_micros(50);
const LATE_PAUSE_MAX: Duration = Duration::from_millis(20);
/// The same where looks are free.
const LATE_PAUSE_FREE: Duration = Duration::from_micros(1);
/// Bad checksums of one segment after which it is reported; about ten seconds.
const LATE_REPORT: u32 = 500;
/// Part of the ring's slots that may wait for an acknowledgement before it is sent at once.
const OWED_PART: u32 = 4;
/// The same where runs are read: what a run's bytes grow a stream's credit by goes out after each, and acknowledges it.
const OWED_PART_OF_RUNS: u32 = 2;

/// Who must have written a segment, and to whom.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected {
    pub(crate) volume: VolumeId,
    pub(crate) writer: SeatId,
    pub(crate) writer_incarnation: Incarnation,
    pub(crate) reader: SeatId,
    pub(crate) reader_incarnation: Incarnation,
    pub(crate) epoch: Epoch,
}

impl Expected {
    pub(crate) fn matches(&self, info: &SegmentInfo, seq: Seq) -> bool {
        info.writer == self.writer
            && info.writer_incarnation == self.writer_incarnation
            && info.reader == self.reader
            && info.reader_incarnation == self.reader_incarnation
            && info.epoch == self.epoch
            && info.seq == seq
    }
}

/// A slot that is looked at.
#[derive(Debug, Default)]
struct Stage {
    reading: bool,
    late: u32,
    /// The segment is there, or said to be; this many units.
    units: Option<usize>,
    segment: Option<UnitBuf>,
    /// When it is read again.
    read_at: Time,
}

impl Stage {
    fn is_unknown(&self) -> bool {
        self.units.is_none()
    }

    /// Whether it is to be read whole.
    fn is_to_read(&self) -> bool {
        self.units.is_some() && !self.reading && self.segment.is_none()
    }

    /// What stands here cannot be right: late, torn or damaged. It is looked at again.
    fn late(&mut self, now: Time, looks_free: bool) -> Look {
        self.late = self.late.saturating_add(1);
        let pause = match looks_free {
            true => LATE_PAUSE_FREE * (1 << self.late.min(15)),
            false => LATE_PAUSE * (1 << self.late.min(9)),
        };
        self.read_at = now + pause.min(LATE_PAUSE_MAX);
        if self.late == LATE_REPORT {
            Look::Damaged
        } else {
            Look::Found
        }
    }
}

/// What a finished look found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// Not there yet.
    Nothing,
    /// There, or nearly.
    Found,
    /// There, but its checksum has been wrong for long.
    Damaged,
}

#[derive(Debug)]
pub(crate) struct Incoming {
    ring: Ring,
    slots: u32,
    /// Slots that are read as one; 1: each by itself.
    run: usize,
    looks_free: bool,
    next_seq: Seq,
    /// Where that is: counted, as [`Outgoing`](crate::sender::Outgoing) does.
    next_slot: u32,
    stages: VecDeque<Stage>,
    /// When the first slot of which nothing is known is looked at.
    look_at: Time,
    /// That look may be at a slot further on; the one under way that is.
    far: bool,
    far_look: Option<Seq>,
    news_at: Time,
    last_units: usize,
    /// Between large segments that come one after the other, as a mean; 0 while none come.
    gap: Duration,
    sighted_at: Time,
    /// The last segment carried no data: only acknowledgements and credit come at present.
    quiet: bool,
    /// Since when an answer is waited for, and whether the last one came in time.
    asked_at: Option<Time>,
    prompt: bool,
    /// The last segment that the peer's record speaks of.
    hint: Seq,
    /// Segments taken in that want an acknowledgement, and since when the first waits.
    owed: u32,
    owed_since: Option<Time>,
}

impl Incoming {
    pub(crate) fn new(
        geometry: &Geometry,
        ring: Ring,
        now: Time,
        looks_free: bool,
        limits: &Limits,
    ) -> Self {
        let slots = geometry.ring_slots(ring);
        Self {
            ring,
            slots,
            run: limits.run_slots(slots, usize::from(ring.slot_units) * UNIT_BYTES),
            looks_free,
            next_seq: Seq(1),
            next_slot: 0,
            stages: VecDeque::new(),
            look_at: now,
            far: true,
            far_look: None,
            news_at: now,
            last_units: 1,
            gap: Duration::ZERO,
            sighted_at: now,
            quiet: false,
            asked_at: None,
            prompt: true,
            hint: Seq(0),
            owed: 0,
            owed_since: None,
        }
    }

    pub(crate) fn ring(&self) -> Ring {
        self.ring
    }

    pub(crate) fn slot_of(&self, seq: Seq) -> u32 {
        (seq.0.wrapping_sub(1) % u64::from(self.slots)) as u32
    }

    /// The slot of the next segment.
    pub(crate) fn next_slot(&self) -> u32 {
        self.next_slot
    }

    /// The last segment taken in.
    pub(crate) fn taken(&self) -> Seq {
        Seq(self.next_seq.0 - 1)
    }

    /// Whether a peer that keeps to its ring can have written segments up to `last`: it uses no slot again
    /// before this node has taken in what was there.
    pub(crate) fn may_be_last(&self, last: Seq) -> bool {
        last.0 < self.next_seq.0.saturating_add(u64::from(self.slots))
    }

    /// The peer's record says that segments up to `last` were written.
    pub(crate) fn handle_hint(&mut self, now: Time, last: Seq) {
        if last >= self.next_seq && last > self.hint {
            self.hint = last;
            self.wake(now);
        }
    }

    /// Whether the next segment in order was read whole: [`Incoming::head`].
    pub(crate) fn has_head(&self) -> bool {
        let head = self.stages.front();
        head.is_some_and(|head| head.segment.is_some())
    }

    /// Whether a look at the next segment is under way, or has found it.
    pub(crate) fn is_looked_for(&self) -> bool {
        let head = self.stages.front();
        head.is_some_and(|head| head.reading || head.segment.is_some())
    }

    /// Acknowledgements may have come, which are looked for seldom otherwise.
    pub(crate) fn look_soon(&mut self, now: Time) {
        if self.quiet {
            self.look_at = self.look_at.min(now);
        }
    }

    /// Something makes news likely: look again from now on.
    pub(crate) fn wake(&mut self, now: Time) {
        self.news_at = now;
        self.look_at = now;
        if let Some(head) = self.stages.front_mut() {
            head.read_at = now;
        }
    }

    /// This node sends the peer something that it may answer.
    pub(crate) fn ask(&mut self, now: Time, asks: Asks, timings: &Timings) {
        if asks == Asks::Nothing {
            return;
        }
        let asked_at = *self.asked_at.get_or_insert(now);
        self.prompt &= now.since(asked_at) < ANSWER_MAX;
        if asks == Asks::Surely || (self.prompt && self.idle(now, timings)) {
            self.wake(now);
        }
    }

    fn nap(&self, now: Time, timings: &Timings, sends: Bulk) -> Duration {
        let silence = now.since(self.news_at);
        if silence < timings.poll_hot {
            let calm = self.quiet && !self.looks_free;
            return match sends {
                Bulk::Fed if calm => QUIET_NAP,
                Bulk::Hungry if calm => HUNGRY_NAP,
                _ => Duration::ZERO,
            };
        }
        (silence / NAP_PART).clamp(timings.poll_min, timings.poll_max)
    }

    /// The nap after a look in vain, while large segments come.
    fn bulk_nap(&self) -> Duration {
        if self.looks_free || self.gap.is_zero() {
            return Duration::ZERO;
        }
        if self.asked_at.is_some() {
            return BULK_NAP_MIN;
        }
        let gaps = match self.slots {
            ..BULK_NAP_SLOTS => 1,
            _ => BULK_NAP_GAPS,
        };
        (self.gap * gaps).clamp(BULK_NAP_MIN, BULK_NAP_MAX)
    }

    /// So many segments of about so many units were seen for the first time. The gap before an answer says nothing about
    /// the next.
    fn learn_gap(&mut self, now: Time, units: usize, segments: u32) {
        let gap = (now.since(self.sighted_at) / segments).min(BULK_NAP_MAX);
        if units <= GUESS_UNITS_MAX {
            self.gap = Duration::ZERO;
        } else if self.asked_at.is_none() || self.gap.is_zero() {
            self.gap = (self.gap * (GAP_PART - 1) + gap) / GAP_PART;
        }
        self.sighted_at = now;
    }

    /// Whether only the directory tells of news.
    fn idle(&self, now: Time, timings: &Timings) -> bool {
        self.hint < self.next_seq && now.since(self.news_at) >= timings.link_idle
    }

    /// The next slot to read, and how many units of it.
    pub(crate) fn next_read(
        &mut self,
        now: Time,
        timings: &Timings,
        depth: usize,
    ) -> Option<(Seq, usize)> {
        let whole = usize::from(self.ring.slot_units);
        let known = self.known_to_read(depth).find(|(_, at)| *at <= now);
        let (ahead, units) = match known {
            Some((ahead, _)) => (ahead, self.stages[ahead].units?),
            None => self.next_look(now, timings, depth)?,
        };
        self.stages[ahead].reading = true;
        // One of a run is read to where the next begins.
        let reaches = self.run > 1 && units + whole / REST_PART >= whole;
        let units = if reaches { whole } else { units.min(whole) };
        Some((Seq(self.next_seq.0 + ahead as u64), units))
    }

    /// Slots that may be read side by side, `depth` transfers.
    fn slots_deep(&self, depth: usize) -> usize {
        match self.run {
            1 => depth,
            run => RUNS_MAX * run,
        }
    }

    /// The slots to be read whole, as far as there is room for them among the reads under way, and when.
    fn known_to_read(&self, depth: usize) -> impl Iterator<Item = (usize, Time)> {
        let depth = self.slots_deep(depth);
        let under_way = self.stages.iter().filter(|stage| stage.reading).count();
        let known = self.stages.iter().enumerate();
        let known = known.filter(move |(_, stage)| under_way < depth && stage.is_to_read());
        known.map(|(ahead, stage)| (ahead, stage.read_at))
    }

    /// The slot to be looked at, and how many units of it.
    fn next_look(&mut self, now: Time, timings: &Timings, depth: usize) -> Option<(usize, usize)> {
        let due = self.look_due(now, timings, depth)?;
        if due > now {
            return None;
        }
        let mut ahead = self.front();
        let mut units = 1;
        let far = self.far_ahead(ahead);
        if far > ahead
            && self.may_look_far(now, timings)
            && self.stages.get(far).is_none_or(Stage::is_unknown)
        {
            ahead = far;
            self.far_look = Some(Seq(self.next_seq.0 + far as u64));
        } else if (1..=GUESS_UNITS_MAX).contains(&self.last_units) {
            units = self.last_units;
        }
        while self.stages.len() <= ahead {
            self.stages.push_back(Stage::default());
        }
        Some((ahead, units))
    }

    /// Where a look tells of several segments, of which the next is at `front`: where runs end.
    fn far_ahead(&self, front: usize) -> usize {
        match self.run {
            1 => front + FAR_SLOTS - 1,
            run => {
                let slot = self.slot_of(Seq(self.next_seq.0 + front as u64)) as usize;
                front + run - 1 - slot % run
            }
        }
    }

    /// The first slot of which nothing is known.
    fn front(&self) -> usize {
        let unknown = self.stages.iter().position(Stage::is_unknown);
        unknown.unwrap_or(self.stages.len())
    }

    /// When the next look at a slot of which nothing is known is due, if none is under way.
    fn look_due(&self, now: Time, timings: &Timings, depth: usize) -> Option<Time> {
        let front = self.front();
        let looking = self.stages.get(front).is_some_and(|stage| stage.reading);
        let depth = self.slots_deep(depth).min(self.slots as usize);
        let may = front < depth && !looking && self.far_look.is_none();
        (may && !self.idle(now, timings)).then_some(self.look_at)
    }

    /// Whether a look at a slot further on is worth it.
    fn may_look_far(&self, now: Time, timings: &Timings) -> bool {
        self.far
            && !self.gap.is_zero()
            && self.asked_at.is_none()
            && !self.looks_free
            && self.slots >= BULK_NAP_SLOTS
            && now.since(self.news_at) < timings.poll_hot
    }

    /// When the next look is due.
    pub(crate) fn due(&self, now: Time, timings: &Timings, depth: usize) -> Option<Time> {
        let read = self.known_to_read(depth).map(|(_, at)| at).min();
        earliest(read, self.look_due(now, timings, depth))
    }

    /// A look has ended; a buffer that is not kept comes back.
    pub(crate) fn handle_read(
        &mut self,
        now: Time,
        seq: Seq,
        buf: Option<UnitBuf>,
        expected: &Expected,
        timings: &Timings,
        sends: Bulk,
    ) -> (Look, Option<UnitBuf>) {
        let nap = self.nap(now, timings, sends).max(self.bulk_nap());
        let whole = usize::from(self.ring.slot_units);
        let far = self.far_look == Some(seq);
        if far {
            self.far_look = None;
        }
        let ahead = seq.0.checked_sub(self.next_seq.0).map(|at| at as usize);
        let Some((ahead, stage)) = ahead.and_then(|at| Some((at, self.stages.get_mut(at)?))) else {
            return (Look::Nothing, buf);
        };
        stage.reading = false;
        let Some(buf) = buf else {
            // The read failed.
            let at = now + nap.max(timings.poll_max);
            stage.read_at = at;
            self.look_at = at;
            return (Look::Nothing, None);
        };
        let len = match peek_segment(buf.bytes(), expected.volume) {
            Ok((info, len)) if expected.matches(&info, seq) => len,
            // Zeros, an older segment, another session's: nothing new yet.
            Ok(_) | Err(_) => {
                stage.units = None;
                self.far = !far;
                self.look_at = if far { now } else { now + nap };
                return (Look::Nothing, Some(buf));
            }
        };
        let units = UnitBuf::units_for(len);
        if units > whole {
            let look = stage.late(now, self.looks_free);
            self.look_at = stage.read_at;
            return (look, Some(buf));
        }
        let sighted = stage.units.replace(units).is_none();
        stage.read_at = now;
        self.news_at = now;
        let mut buf = Some(buf);
        if units <= buf.as_ref().map_or(0, UnitBuf::units) {
            stage.segment = buf.take();
        }
        if sighted {
            self.handle_sighted(now, ahead, units, far);
        }
        (Look::Found, buf)
    }

    /// A segment was seen for the first time, by a look at a slot `far` ahead or at the next one.
    fn handle_sighted(&mut self, now: Time, ahead: usize, units: usize, far: bool) {
        let mut segments = 1;
        for stage in self.stages.iter_mut().take(ahead) {
            if stage.is_unknown() {
                stage.units = Some(units);
                stage.read_at = now;
                segments += 1;
            }
        }
        self.learn_gap(now, units, segments);
        // What was not found further on will be after a nap.
        let early = !far && !self.far;
        self.far = true;
        self.look_at = if early { now + self.bulk_nap() } else { now };
    }

    /// The next segment in order, if it was read whole. Take it in and call [`Incoming::advance`], or
    /// [`Incoming::retry`] if its checksum is wrong.
    pub(crate) fn head(&mut self) -> Option<UnitBuf> {
        self.stages.front_mut()?.segment.take()
    }

    /// The head's checksum is wrong: late or torn; read it again.
    pub(crate) fn retry(&mut self, now: Time, error: Damage) -> Look {
        debug_assert!(error != Damage::Blank);
        let Some(head) = self.stages.front_mut() else {
            return Look::Nothing;
        };
        head.late(now, self.looks_free)
    }

    /// The next segment in order was taken in past a look: nobody was looking for it.
    pub(crate) fn pass(&mut self, now: Time, units: usize, wants_ack: bool) {
        debug_assert!(!self.is_looked_for());
        self.stages.pop_front();
        self.last_units = units;
        self.count_taken(now, wants_ack, false);
    }

    /// The head was taken in.
    pub(crate) fn advance(&mut self, now: Time, wants_ack: bool, quiet: bool) {
        if let Some(head) = self.stages.pop_front() {
            self.last_units = head.units.unwrap_or(1);
        }
        self.count_taken(now, wants_ack, quiet);
    }

    fn count_taken(&mut self, now: Time, wants_ack: bool, quiet: bool) {
        self.quiet = quiet;
        if !quiet && let Some(asked_at) = self.asked_at.take() {
            self.prompt = now.since(asked_at) < ANSWER_MAX;
        }
        self.next_seq = self.next_seq.next();
        let next = self.next_slot + 1;
        self.next_slot = if next < self.slots { next } else { 0 };
        debug_assert_eq!(self.next_slot, self.slot_of(self.next_seq));
        self.news_at = now;
        if wants_ack {
            self.owed += 1;
            self.owed_since.get_or_insert(now);
        }
    }

    /// When an acknowledgement must be sent even if nothing else is.
    pub(crate) fn ack_due(&self, timings: &Timings) -> Option<Time> {
        let since = self.owed_since?;
        let part = match self.run {
            1 => OWED_PART,
            _ => OWED_PART_OF_RUNS,
        };
        let many = self.owed >= (self.slots / part).max(1);
        Some(if many {
            since
        } else {
            since + timings.ack_delay
        })
    }

    /// A segment with the newest acknowledgement was numbered.
    pub(crate) fn acknowledged(&mut self) {
        self.owed = 0;
        self.owed_since = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;
    use stp_format::SegmentBuilder;

    const VOLUME: VolumeId = VolumeId([7; 16]);
    const SLOT_UNITS: usize = 64;
    /// Longer than the naps here.
    const TICK: Duration = Duration::from_micros(400);

    fn expected() -> Expected {
        Expected {
            volume: VOLUME,
            writer: SeatId(0),
            writer_incarnation: Incarnation(1),
            reader: SeatId(1),
            reader_incarnation: Incarnation(2),
            epoch: Epoch(1),
        }
    }

    /// A reader of a ring of 16 large slots, and what its writer has written.
    struct Reader {
        incoming: Incoming,
        timings: Timings,
        now: Time,
        written: u64,
        /// Slots read since the last question, by the number of the segment, and units.
        reads: Vec<(u64, usize)>,
    }

    impl Reader {
        fn new(run: usize) -> Self {
            let geometry = Geometry::plan(256 << 20, 16).expect("the default");
            let ring = geometry.ring(0, 16);
            let now = Time::ZERO + Duration::from_secs(1);
            let limits = Limits {
                run_bytes: run * SLOT_UNITS * UNIT_BYTES,
                ..Limits::default()
            };
            Self {
                incoming: Incoming::new(&geometry, ring, now, false, &limits),
                timings: Timings::default(),
                now,
                written: 0,
                reads: Vec::new(),
            }
        }

        /// The first units of what stands in the slot of a segment.
        fn content(&self, seq: Seq, units: usize) -> UnitBuf {
            let mut buf = UnitBuf::zeroed(units);
            if seq.0 <= self.written {
                let mut builder = SegmentBuilder::new(UnitBuf::zeroed(SLOT_UNITS));
                let room = builder.data_room();
                let key = stp_format::StreamKey {
                    by_writer: true,
                    number: 1,
                };
                builder.append_data(key, 0, &vec![1; room]);
                let e = expected();
                let info = SegmentInfo {
                    writer: e.writer,
                    reader: e.reader,
                    writer_incarnation: e.writer_incarnation,
                    reader_incarnation: e.reader_incarnation,
                    epoch: e.epoch,
                    seq,
                    acked_epoch: Epoch(0),
                    acked_seq: Seq(0),
                    wants_ack: true,
                };
                let (segment, _) = builder.seal_bytes(VOLUME, &info);
                buf.bytes_mut()
                    .copy_from_slice(&segment.bytes()[..units * stp_format::UNIT_BYTES]);
            }
            buf
        }

        /// Does what is due now, to its end, and takes in what has come.
        fn work(&mut self) {
            while let Some((seq, units)) = self.incoming.next_read(self.now, &self.timings, 4) {
                self.reads.push((seq.0, units));
                let buf = Some(self.content(seq, units));
                let (now, timings) = (self.now, &self.timings);
                self.incoming
                    .handle_read(now, seq, buf, &expected(), timings, Bulk::No);
                while self.incoming.head().is_some() {
                    self.incoming.advance(self.now, true, false);
                }
            }
        }

        /// So many more segments are written, and the reader's nap is over.
        fn write(&mut self, segments: u64) {
            self.written += segments;
            self.now = self.now + TICK;
            self.work();
        }

        fn take_reads(&mut self) -> Vec<(u64, usize)> {
            core::mem::take(&mut self.reads)
        }
    }

    /// It has taken in a few large segments, one after the other.
    fn warm() -> Reader {
        warm_in_runs(1)
    }

    fn warm_in_runs(run: usize) -> Reader {
        let mut reader = Reader::new(run);
        for _ in 0..4 {
            reader.write(1);
        }
        reader.write(0);
        reader.write(0);
        assert_eq!(reader.incoming.taken(), Seq(4));
        reader.take_reads();
        reader
    }

    #[test]
    fn one_look_finds_several_large_segments() {
        let mut reader = warm();
        reader.write(4);
        let reads = reader.take_reads();
        assert_eq!(reader.incoming.taken(), Seq(8));
        let looks = reads.iter().filter(|(seq, units)| *units == 1 && *seq <= 8);
        assert_eq!(looks.copied().collect::<Vec<_>>(), [(8, 1)], "{reads:?}");
    }

    #[test]
    fn a_run_is_found_by_a_look_at_its_end_and_read_at_once() {
        let mut reader = warm_in_runs(4);
        reader.written = 8;
        reader.now = reader.now + TICK;
        let (now, timings) = (reader.now, reader.timings);
        let look = reader.incoming.next_read(now, &timings, 4);
        assert_eq!(look, Some((Seq(8), 1)));
        let buf = Some(reader.content(Seq(8), 1));
        reader
            .incoming
            .handle_read(now, Seq(8), buf, &expected(), &timings, Bulk::No);
        for seq in 5..=8 {
            let read = reader.incoming.next_read(now, &timings, 4);
            assert_eq!(read, Some((Seq(seq), SLOT_UNITS)));
        }
        // The next run is looked for meanwhile.
        let look = reader.incoming.next_read(now, &timings, 4);
        assert_eq!(look, Some((Seq(12), 1)));
    }

    #[test]
    fn a_run_that_was_cut_short_is_found_and_the_next_look_is_at_an_end_again() {
        let mut reader = warm_in_runs(4);
        reader.write(2);
        (0..4).for_each(|_| reader.write(0));
        assert_eq!(reader.incoming.taken(), Seq(6));
        reader.take_reads();
        reader.write(2);
        (0..4).for_each(|_| reader.write(0));
        assert_eq!(reader.incoming.taken(), Seq(8));
        let reads = reader.take_reads();
        let ahead = |(seq, units): &(u64, usize)| *units == 1 && *seq == 8;
        assert!(reads.iter().any(ahead), "{reads:?}");
    }

    #[test]
    fn where_fewer_came_the_next_slot_tells() {
        let mut reader = warm();
        reader.write(1);
        // What was missed further on does not hide it for longer than a nap.
        reader.write(0);
        assert_eq!(reader.incoming.taken(), Seq(5));
    }

    #[test]
    fn a_slot_that_was_said_to_be_filled_and_is_not_is_looked_at_again() {
        let mut reader = warm();
        reader.now = reader.now + TICK;
        let (now, timings) = (reader.now, reader.timings);
        let (seq, units) = reader.incoming.next_read(now, &timings, 4).expect("due");
        assert_eq!((seq, units), (Seq(8), 1));
        // The eighth is there, the fifth to the seventh are not yet.
        reader.written = 8;
        let buf = Some(reader.content(seq, units));
        reader.written = 4;
        reader
            .incoming
            .handle_read(now, seq, buf, &expected(), &timings, Bulk::No);
        reader.work();
        assert_eq!(reader.incoming.taken(), Seq(4));
        assert!(reader.take_reads().len() < 16);
        reader.write(4);
        reader.write(0);
        reader.write(0);
        assert_eq!(reader.incoming.taken(), Seq(8));
    }

    #[test]
    fn where_all_is_quiet_nothing_is_looked_at_further_on() {
        let mut reader = warm();
        for _ in 0..100 {
            reader.now = reader.now + Duration::from_millis(2);
            reader.work();
        }
        reader.take_reads();
        for _ in 0..10 {
            reader.now = reader.now + Duration::from_millis(5);
            reader.work();
        }
        assert!(reader.take_reads().iter().all(|(seq, _)| *seq == 5));
    }
}
