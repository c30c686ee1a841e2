//! The incoming side of a link: where the next segment will be, and how often to look.
//!
//! - The reader knows the slot of the next segment; there is no head pointer to read.
//! - A first look reads one unit, or as many as the last segment had if those were few; a segment that is
//!   longer is then read whole.
//! - Looks at further slots begin when the one before is known to be there, up to the depth. Each look that comes too
//!   early costs as much as reading what it looks for: while large segments come one way, it is followed by a nap after
//!   which several will be there.
//! - The nap between two looks grows with the silence; after `link_idle` only the directory tells.
//! - What this node sends after that makes an answer likely, as long as the peer's answers come promptly: then it looks
//!   again from that moment on. For the answer to an opening it does so in any case.

use crate::config::Timings;
use crate::sender::Asks;
use crate::time::{Time, earliest};
use alloc::collections::VecDeque;
use core::time::Duration;
use stp_format::segment::peek_segment;
use stp_format::{
    Damage, Epoch, Geometry, Incarnation, Ring, SeatId, SegmentInfo, Seq, UnitBuf, VolumeId,
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
/// The part of the last gap in the mean.
const GAP_PART: u32 = 8;
/// The nap while this node sends in bulk and only acknowledgements come back.
const QUIET_NAP: Duration = Duration::from_millis(2);
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
    /// The segment is there; this many units.
    units: Option<usize>,
    segment: Option<UnitBuf>,
    look_at: Time,
}

impl Stage {
    /// What stands here cannot be right: late, torn or damaged. It is looked at again.
    fn late(&mut self, now: Time, looks_free: bool) -> Look {
        self.late = self.late.saturating_add(1);
        let pause = match looks_free {
            true => LATE_PAUSE_FREE * (1 << self.late.min(15)),
            false => LATE_PAUSE * (1 << self.late.min(9)),
        };
        self.look_at = now + pause.min(LATE_PAUSE_MAX);
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
    looks_free: bool,
    next_seq: Seq,
    stages: VecDeque<Stage>,
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
    pub(crate) fn new(geometry: &Geometry, ring: Ring, now: Time, looks_free: bool) -> Self {
        Self {
            ring,
            slots: geometry.ring_slots(ring),
            looks_free,
            next_seq: Seq(1),
            stages: VecDeque::new(),
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

    /// Whether a look at the next segment is under way, or has found it.
    pub(crate) fn is_looked_for(&self) -> bool {
        let head = self.stages.front();
        head.is_some_and(|head| head.reading || head.segment.is_some())
    }

    /// Something makes news likely: look again from now on.
    pub(crate) fn wake(&mut self, now: Time) {
        self.news_at = now;
        if let Some(head) = self.stages.front_mut() {
            head.look_at = now;
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

    fn nap(&self, now: Time, timings: &Timings, sends_bulk: bool) -> Duration {
        let silence = now.since(self.news_at);
        if silence < timings.poll_hot {
            let calm = sends_bulk && self.quiet && !self.looks_free;
            return if calm { QUIET_NAP } else { Duration::ZERO };
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

    /// A segment of so many units was seen for the first time. The gap before an answer says nothing about the next.
    fn learn_gap(&mut self, now: Time, units: usize) {
        let gap = now.since(self.sighted_at).min(BULK_NAP_MAX);
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
        let idle = self.idle(now, timings);
        let whole = usize::from(self.ring.slot_units);
        for ahead in 0..depth.min(self.slots as usize) {
            if ahead > 0 && self.stages[ahead - 1].units.is_none() {
                return None;
            }
            if ahead == self.stages.len() {
                self.stages.push_back(Stage {
                    look_at: now,
                    ..Stage::default()
                });
            }
            let guess = match self.last_units {
                units @ 1..=GUESS_UNITS_MAX => units,
                _ => 1,
            };
            let stage = &mut self.stages[ahead];
            let known = stage.units.is_some();
            if stage.reading || stage.segment.is_some() || stage.look_at > now || (idle && !known) {
                continue;
            }
            stage.reading = true;
            let units = stage.units.unwrap_or(guess);
            return Some((Seq(self.next_seq.0 + ahead as u64), units.min(whole)));
        }
        None
    }

    /// When the next look is due.
    pub(crate) fn due(&self, now: Time, timings: &Timings, depth: usize) -> Option<Time> {
        let idle = self.idle(now, timings);
        if self.stages.is_empty() {
            return (!idle).then_some(now);
        }
        let mut due = None;
        for (ahead, stage) in self.stages.iter().enumerate().take(depth) {
            let known = stage.units.is_some();
            if !stage.reading && stage.segment.is_none() && (known || !idle) {
                due = earliest(due, Some(stage.look_at));
            }
            let next_is_new = ahead + 1 == self.stages.len() && ahead + 1 < depth;
            if known && next_is_new && ahead + 1 < self.slots as usize {
                due = earliest(due, Some(now));
            }
        }
        due
    }

    /// A look has ended; a buffer that is not kept comes back.
    pub(crate) fn handle_read(
        &mut self,
        now: Time,
        seq: Seq,
        buf: Option<UnitBuf>,
        expected: &Expected,
        timings: &Timings,
        sends_bulk: bool,
    ) -> (Look, Option<UnitBuf>) {
        let nap = self.nap(now, timings, sends_bulk).max(self.bulk_nap());
        let whole = usize::from(self.ring.slot_units);
        let Some(stage) = seq
            .0
            .checked_sub(self.next_seq.0)
            .and_then(|at| self.stages.get_mut(at as usize))
        else {
            return (Look::Nothing, buf);
        };
        stage.reading = false;
        let Some(buf) = buf else {
            // The read failed.
            stage.look_at = now + nap.max(timings.poll_max);
            return (Look::Nothing, None);
        };
        match peek_segment(buf.bytes(), expected.volume) {
            Ok((info, len)) if expected.matches(&info, seq) => {
                let units = UnitBuf::units_for(len);
                if units > whole {
                    return (stage.late(now, self.looks_free), Some(buf));
                }
                let sighted = stage.units.replace(units).is_none();
                stage.look_at = now;
                self.news_at = now;
                let whole = units <= buf.units();
                let mut buf = Some(buf);
                if whole {
                    stage.segment = buf.take();
                }
                if sighted {
                    self.learn_gap(now, units);
                }
                (Look::Found, buf)
            }
            // Zeros, an older segment, another session's: nothing new yet.
            Ok(_) | Err(_) => {
                stage.look_at = now + nap;
                (Look::Nothing, Some(buf))
            }
        }
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
        if self.stages.is_empty() {
            self.stages.push_back(Stage::default());
        }
        self.stages[0].units = Some(units);
        self.advance(now, wants_ack, false);
    }

    /// The head was taken in.
    pub(crate) fn advance(&mut self, now: Time, wants_ack: bool, quiet: bool) {
        self.quiet = quiet;
        if !quiet && let Some(asked_at) = self.asked_at.take() {
            self.prompt = now.since(asked_at) < ANSWER_MAX;
        }
        if let Some(head) = self.stages.pop_front() {
            self.last_units = head.units.unwrap_or(1);
        }
        self.next_seq = self.next_seq.next();
        self.news_at = now;
        if wants_ack {
            self.owed += 1;
            self.owed_since.get_or_insert(now);
        }
    }

    /// When an acknowledgement must be sent even if nothing else is.
    pub(crate) fn ack_due(&self, timings: &Timings) -> Option<Time> {
        let since = self.owed_since?;
        let many = self.owed >= (self.slots / OWED_PART).max(1);
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
