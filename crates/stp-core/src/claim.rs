//! Taking a seat.
//!
//! - A seat that this host had before is taken at once, under a lock of the host (`ClaimAsk::LockHost`).
//! - A seat whose lock the storage grants for all hosts (`ClaimAsk::LockMedium`) is taken at once.
//! - Any other is taken by the delta-lease rule: read it free, write a claim, wait longer than the slowest
//!   write may take, read again; it must still stand. A claim whose own write was too slow is begun anew.
//! - The claim is durable before anything else is written, with an incarnation above all seen in the seat:
//!   an incarnation is never used twice. Where both copies are unreadable it is far above.
//! - A live seat is never taken: alive is who holds a lock or moves its heartbeat. A silent seat is taken
//!   after three heartbeats if the storage grants its lock, else after its own `dead` time.

use crate::config::NodeConfig;
use crate::directory::is_later;
use crate::io::{Io, IoAction, IoDone, IoFault};
use crate::time::Time;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;
use stp_format::{
    Damage, Incarnation, LinkEntry, Place, SeatCounters, SeatId, SeatRecord, SeatState, UNIT_BYTES,
    UnitBuf,
};

/// More than millions of lives of a seat have added to its incarnation, of which no record is left; little enough for a peer's
/// word of it to be believed ([`is_later`]).
const LOST_LIVES: u64 = 1 << 30;
/// Rounds of a claim that others won, or that was too slow.
const ROUNDS_MAX: u32 = 16;
/// Directory reads that may fail one after the other.
const FAULTS_MAX: u32 = 5;
/// Pause after a failed operation.
const FAULT_PAUSE: Duration = Duration::from_millis(200);
/// Longest watch for a seat whose node might be dead.
const WATCH_MAX: Duration = Duration::from_secs(180);
/// Heartbeats of silence after which a seat is not taken for alive any more.
const SILENT_HEARTBEATS: u32 = 3;

/// A lock that the host shall try for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimAsk {
    /// The seat's lock among the processes of this host.
    LockHost(SeatId),
    /// The seat's lock among all hosts, kept by the storage.
    LockMedium(SeatId),
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimAnswer {
    /// Held now, until the node ends.
    Held,
    /// Somebody else holds it.
    Busy,
    /// There is no such lock here.
    Unsupported,
}

/// A seat taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claimed {
    /// Which.
    pub seat: SeatId,
    /// The node's incarnation.
    pub incarnation: Incarnation,
    /// Version of the claim's record.
    pub record_version: u64,
    /// The copy that holds the claim; the next write goes to the other.
    pub copy: u8,
}

/// Why no seat was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClaimError {
    /// Every seat is in use; holds their number.
    NoFreeSeat(u16),
    /// A live node of another host bears this system's name.
    SystemNameTaken {
        /// Its seat.
        seat: SeatId,
        /// Its process id there.
        pid: u32,
    },
    /// Others won every round.
    Lost,
    /// The storage failed again and again.
    Io(IoFault),
}

impl fmt::Display for ClaimError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoFreeSeat(seats) => write!(
                f,
                "all {seats} seats are in use: stop a node, or format a volume with more seats"
            ),
            Self::SystemNameTaken { seat, pid } => write!(
                f,
                "another host uses this system name (seat {seat}, process {pid} there): choose another with --system"
            ),
            Self::Lost => f.write_str("other nodes took every seat that was tried: try again"),
            Self::Io(fault) => write!(f, "the storage failed (error {})", fault.errno),
        }
    }
}

impl core::error::Error for ClaimError {}

/// What tells one valid copy from another: incarnation, record version, nonce.
type CopyKey = (Incarnation, u64, u64);

/// What was last seen of a seat, and since when it has been so, on this host's clock.
#[derive(Clone, Copy, Debug)]
struct Watched {
    incarnation: Incarnation,
    heartbeat: u64,
    copies: [Option<CopyKey>; 2],
    since: Time,
}

/// What a seat's two copies say.
#[derive(Clone, Debug)]
struct SeatView {
    /// The newest valid record, whatever its state, and its copy.
    newest: Option<(SeatRecord, u8)>,
    /// The newest of all is a claim.
    claimed: bool,
    copies: [Option<CopyKey>; 2],
    /// The highest incarnation in any valid copy, or that a peer knows of.
    incarnation: Incarnation,
    /// Neither copy was ever written.
    blank: bool,
}

impl SeatView {
    /// A number that no life in the seat has had, with a gap before it: `gap` is random.
    fn fresh(&self, gap: u64) -> Incarnation {
        let lost = !self.blank && self.copies == [None; 2];
        let step = gap + if lost { LOST_LIVES } else { 0 };
        Incarnation(self.incarnation.0.saturating_add(step))
    }
}

/// How good a seat is; the first kind is tried first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fitness {
    /// This host's, its node died there.
    KeptCrashed,
    /// This host's, left in good order.
    KeptLeft,
    /// Nobody's yet.
    NeverUsed,
    /// Another's, left in good order.
    Left,
    /// Another's, silent for as long as its record allows.
    Dead,
    /// Damaged in both copies.
    Damaged,
    /// Another's, perhaps alive: only the storage's lock can tell.
    Unclear,
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    seat: SeatId,
    fitness: Fitness,
}

/// What keeps others out of a seat that is being taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Guard {
    /// The storage's lock.
    Lock,
    /// It was this host's before, and the host's lock is held: others look for seats elsewhere first.
    Kept,
    /// Time alone.
    Time,
}

#[derive(Debug)]
enum Step {
    Read { at: Time },
    Reading,
    AskHost(Candidate),
    AskMedium(Candidate),
    Write { candidate: Candidate, guard: Guard },
    Writing { claimed: Claimed, guard: Guard },
    Stand { claimed: Claimed, until: Time },
    Rereading { claimed: Claimed },
    Done(Result<Claimed, ClaimError>),
}

/// The state machine of one claim.
#[derive(Debug)]
pub struct Claim {
    config: NodeConfig,
    step: Step,
    asked: bool,
    next_io: u64,
    /// When the read that the present decision rests on was submitted.
    read_at: Time,
    views: Vec<SeatView>,
    candidates: Vec<Candidate>,
    /// Per seat.
    watched: Vec<Option<Watched>>,
    now: Time,
    rounds: u32,
    faults: u32,
}

impl Claim {
    /// A claim of any seat that suits; times are on the clock that the node will use.
    pub fn new(config: NodeConfig) -> Self {
        let seats = usize::from(config.geometry.seats);
        Self {
            config,
            step: Step::Read { at: Time::ZERO },
            asked: false,
            next_io: 0,
            read_at: Time::ZERO,
            views: Vec::new(),
            candidates: Vec::new(),
            watched: alloc::vec![None; seats],
            now: Time::ZERO,
            rounds: 0,
            faults: 0,
        }
    }

    /// How it ended, once it has.
    pub fn outcome(&self) -> Option<Result<Claimed, ClaimError>> {
        match &self.step {
            Step::Done(outcome) => Some(outcome.clone()),
            _ => None,
        }
    }

    /// When to call [`Claim::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Time> {
        match self.step {
            Step::Read { at } => Some(at),
            Step::Stand { until, .. } => Some(until),
            _ => None,
        }
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Time) {
        self.now = self.now.max(now);
    }

    /// A lock to be tried for; answer with [`Claim::handle_answer`].
    pub fn poll_ask(&mut self) -> Option<ClaimAsk> {
        let ask = match &self.step {
            Step::AskHost(candidate) => ClaimAsk::LockHost(candidate.seat),
            Step::AskMedium(candidate) => ClaimAsk::LockMedium(candidate.seat),
            _ => return None,
        };
        (!core::mem::replace(&mut self.asked, true)).then_some(ask)
    }

    /// The answer to the last [`Claim::poll_ask`].
    pub fn handle_answer(&mut self, now: Time, answer: ClaimAnswer) {
        self.now = self.now.max(now);
        self.asked = false;
        match (&self.step, answer) {
            (Step::AskHost(candidate), ClaimAnswer::Held | ClaimAnswer::Unsupported) => {
                self.step = Step::AskMedium(*candidate);
            }
            // Its node may run where the storage's locks do not reach: only silence proves it dead.
            (&Step::AskMedium(candidate), ClaimAnswer::Held)
                if candidate.fitness == Fitness::Unclear && !self.silent(candidate.seat) =>
            {
                self.next_candidate();
            }
            (&Step::AskMedium(candidate), ClaimAnswer::Held) => {
                let guard = Guard::Lock;
                self.step = Step::Write { candidate, guard };
            }
            (&Step::AskMedium(candidate), ClaimAnswer::Unsupported)
                if candidate.fitness != Fitness::Unclear =>
            {
                // A claim of this host that came to nothing does not make the seat its own: another may have
                // read the seat before that was written.
                let claimed = self.views[usize::from(candidate.seat.0)].claimed;
                let guard = match candidate.fitness <= Fitness::KeptLeft && !claimed {
                    true => Guard::Kept,
                    false => Guard::Time,
                };
                self.step = Step::Write { candidate, guard };
            }
            (Step::AskHost(_) | Step::AskMedium(_), _) => self.next_candidate(),
            _ => debug_assert!(false, "an answer that nobody asked for"),
        }
    }

    /// The next storage operation.
    pub fn poll_io(&mut self) -> Option<Io> {
        let geometry = self.config.geometry;
        match self.step {
            Step::Read { at } if self.now >= at => {
                self.step = Step::Reading;
                self.read_at = self.now;
                let place = Place::Directory { first: SeatId(0) };
                let units = geometry.directory_units(geometry.seats);
                Some(self.io(place, IoAction::Read(UnitBuf::zeroed(units))))
            }
            Step::Write { candidate, guard } => Some(self.write_claim(candidate.seat, guard)),
            Step::Stand { claimed, until } if self.now >= until => {
                self.step = Step::Rereading { claimed };
                let place = Place::Directory {
                    first: claimed.seat,
                };
                let units = geometry.directory_units(1);
                Some(self.io(place, IoAction::Read(UnitBuf::zeroed(units))))
            }
            _ => None,
        }
    }

    /// A storage operation has ended.
    pub fn handle_io(&mut self, now: Time, done: IoDone) {
        self.now = self.now.max(now);
        if let Err(fault) = done.result {
            self.faults += 1;
            self.step = match self.faults < FAULTS_MAX {
                true => Step::Read {
                    at: self.now + FAULT_PAUSE,
                },
                false => Step::Done(Err(ClaimError::Io(fault))),
            };
            return;
        }
        match &self.step {
            Step::Reading => {
                let bytes = done.buf.unwrap_or_else(|| UnitBuf::zeroed(0));
                self.views = (0..self.config.geometry.seats)
                    .map(|seat| self.view(bytes.bytes(), 0, SeatId(seat)))
                    .collect();
                self.heed_peers();
                self.decide();
            }
            &Step::Writing { claimed, guard } => {
                let slow = self.now.since(self.read_at) > self.config.timings.claim_write;
                self.step = match (guard, slow) {
                    (Guard::Lock, _) | (Guard::Kept, false) => Step::Done(Ok(claimed)),
                    (Guard::Kept | Guard::Time, true) => self.again(),
                    (Guard::Time, false) => Step::Stand {
                        claimed,
                        until: self.now + self.config.timings.claim_wait,
                    },
                };
            }
            &Step::Rereading { claimed } => {
                let bytes = done.buf.unwrap_or_else(|| UnitBuf::zeroed(0));
                let view = self.view(bytes.bytes(), claimed.seat.0, claimed.seat);
                let stands = self.is_newest(bytes.bytes(), claimed);
                // Whoever took the seat at once meanwhile, or holds it still, wrote the other copy.
                let read = self.views[usize::from(claimed.seat.0)].copies;
                let own = (
                    claimed.incarnation,
                    claimed.record_version,
                    self.config.nonce,
                );
                let known = |key: &CopyKey| *key == own || read.contains(&Some(*key));
                let stands = stands && view.copies.iter().flatten().all(known);
                self.step = if stands {
                    Step::Done(Ok(claimed))
                } else {
                    self.again()
                };
            }
            _ => debug_assert!(false, "a completion that nobody waits for"),
        }
    }

    fn io(&mut self, place: Place, action: IoAction) -> Io {
        self.next_io += 1;
        Io {
            id: self.next_io,
            place,
            action,
        }
    }

    fn again(&mut self) -> Step {
        self.rounds += 1;
        if self.rounds >= ROUNDS_MAX {
            return Step::Done(Err(ClaimError::Lost));
        }
        // Claimers that met once part here: each waits another time.
        let spread = 1 + (self.config.nonce >> (self.rounds % 32)) % 256;
        Step::Read {
            at: self.now + Duration::from_millis(spread),
        }
    }

    /// What `bytes`, read from the directory from seat `first` on, say of `seat`.
    fn view(&self, bytes: &[u8], first: u16, seat: SeatId) -> SeatView {
        let geometry = &self.config.geometry;
        let record_bytes = usize::from(geometry.record_units) * UNIT_BYTES;
        let start = usize::from(seat.0 - first) * 2 * record_bytes;
        let mut view = SeatView {
            newest: None,
            claimed: false,
            copies: [None; 2],
            incarnation: Incarnation(0),
            blank: true,
        };
        let mut claim: Option<(SeatRecord, u8)> = None;
        for copy in 0..2u8 {
            let at = start + usize::from(copy) * record_bytes;
            let bytes = bytes.get(at..at + record_bytes).unwrap_or_default();
            match SeatRecord::decode(bytes, self.config.volume, geometry, seat) {
                Ok(record) => {
                    view.blank = false;
                    view.incarnation = view.incarnation.max(record.incarnation);
                    let (incarnation, version) = record.age_key();
                    view.copies[usize::from(copy)] = Some((incarnation, version, record.nonce));
                    let kind = match record.state {
                        SeatState::Claiming => &mut claim,
                        SeatState::Up | SeatState::Left => &mut view.newest,
                    };
                    let newer = kind
                        .as_ref()
                        .is_none_or(|(other, _)| record.age_key() > other.age_key());
                    if newer {
                        *kind = Some((record, copy));
                    }
                }
                Err(Damage::Blank) => {}
                Err(_) => view.blank = false,
            }
        }
        if let Some((record, copy)) = claim {
            let settled = view.newest.as_ref().map(|(settled, _)| settled);
            let newest = settled.is_none_or(|settled| record.age_key() > settled.age_key());
            // A claim may have come late: who sat here sits here yet. Only of a seat that nobody holds does
            // another's claim tell more.
            let held = settled.is_some_and(|settled| {
                self.kept(&record) || (settled.state == SeatState::Up && !self.kept(settled))
            });
            view.claimed = newest;
            if newest && !held {
                view.newest = Some((record, copy));
            }
        }
        view
    }

    /// Whether the newest record of a seat, read alone, is this very claim.
    fn is_newest(&self, bytes: &[u8], claimed: Claimed) -> bool {
        let record_bytes = usize::from(self.config.geometry.record_units) * UNIT_BYTES;
        let copies = bytes.chunks_exact(record_bytes).take(2);
        let records = copies.filter_map(|bytes| {
            let config = &self.config;
            SeatRecord::decode(bytes, config.volume, &config.geometry, claimed.seat).ok()
        });
        records
            .max_by_key(SeatRecord::age_key)
            .is_some_and(|record| {
                record.nonce == self.config.nonce
                    && record.age_key() == (claimed.incarnation, claimed.record_version)
            })
    }

    /// What others have seen in a seat counts too: both of its copies may have been lost to writes of older
    /// lives that landed late.
    fn heed_peers(&mut self) {
        for seat in 0..self.views.len() {
            let records = self.views.iter().flat_map(|view| &view.newest);
            let links = records.flat_map(|(record, _)| record.links.get(seat));
            if let Some(seen) = links.map(|link| link.peer_incarnation).max() {
                let view = &mut self.views[seat];
                if is_later(seen, view.incarnation) {
                    view.incarnation = seen;
                }
            }
        }
    }

    fn kept(&self, record: &SeatRecord) -> bool {
        record.host == self.config.host && record.system == self.config.system
    }

    /// After a read of the whole directory: whom to wait for, which seats to try.
    fn decide(&mut self) {
        let mut wait_until: Option<Time> = None;
        let mut wait = |at: Time| wait_until = Some(wait_until.map_or(at, |w: Time| w.min(at)));
        let mut candidates = Vec::new();
        for index in 0..self.views.len() {
            let seat = SeatId(index as u16);
            let view = &self.views[index];
            let Some((record, _)) = &view.newest else {
                let fitness = if view.blank {
                    Fitness::NeverUsed
                } else {
                    Fitness::Damaged
                };
                candidates.push(Candidate { seat, fitness });
                continue;
            };
            let seen = (record.incarnation, record.heartbeat);
            let before = self.watched[index];
            let moved = before.is_some_and(|before| (before.incarnation, before.heartbeat) != seen);
            // Another's claim is a sign of life, too: who comes second lets it stand.
            let same = |before: &Watched| !moved && before.copies == view.copies;
            let since = before.filter(same).map_or(self.now, |before| before.since);
            self.watched[index] = Some(Watched {
                incarnation: seen.0,
                heartbeat: seen.1,
                copies: view.copies,
                since,
            });
            let silent = self.now.since(since);
            let kept = self.kept(record);
            match record.state {
                SeatState::Left if kept => {
                    candidates.push(Candidate {
                        seat,
                        fitness: Fitness::KeptLeft,
                    });
                }
                SeatState::Left => candidates.push(Candidate {
                    seat,
                    fitness: Fitness::Left,
                }),
                SeatState::Claiming | SeatState::Up if kept => {
                    candidates.push(Candidate {
                        seat,
                        fitness: Fitness::KeptCrashed,
                    });
                }
                SeatState::Claiming | SeatState::Up => {
                    let beat = Duration::from_millis(record.timings.heartbeat_ms.into());
                    let watched = (beat * SILENT_HEARTBEATS).min(Duration::from_secs(30));
                    let dead = Duration::from_millis(record.timings.dead_ms.into());
                    if record.system == self.config.system && record.state == SeatState::Up {
                        if moved {
                            let taken = ClaimError::SystemNameTaken {
                                seat,
                                pid: record.pid,
                            };
                            self.step = Step::Done(Err(taken));
                            return;
                        }
                        if silent < watched {
                            wait(self.now + beat.max(Duration::from_millis(10)) / 2);
                        }
                    }
                    let fitness = match silent >= dead && dead >= watched {
                        true => Fitness::Dead,
                        false => Fitness::Unclear,
                    };
                    candidates.push(Candidate { seat, fitness });
                }
            }
        }
        if let Some(at) = wait_until {
            self.step = Step::Read { at };
            return;
        }
        candidates.sort_by_key(|c| (core::cmp::Reverse(c.fitness), core::cmp::Reverse(c.seat)));
        self.candidates = candidates;
        self.next_candidate();
    }

    /// Whether a seat's heartbeat was watched long enough, and did not move.
    fn silent(&self, seat: SeatId) -> bool {
        let index = usize::from(seat.0);
        let (Some((record, _)), Some(Watched { since, .. })) =
            (&self.views[index].newest, self.watched[index])
        else {
            return false;
        };
        let beat = Duration::from_millis(record.timings.heartbeat_ms.into());
        self.now.since(since) >= beat * SILENT_HEARTBEATS
    }

    fn next_candidate(&mut self) {
        if let Some(candidate) = self.candidates.pop() {
            self.step = Step::AskHost(candidate);
            return;
        }
        // Every seat is held or perhaps alive. Go on watching while one of them stays silent.
        let mut silent_one = None;
        for (index, view) in self.views.iter().enumerate() {
            let Some((record, _)) = &view.newest else {
                continue;
            };
            let Some(Watched { since, .. }) = self.watched[index] else {
                continue;
            };
            let beat = Duration::from_millis(record.timings.heartbeat_ms.into());
            let may_be_silent = self.now.since(since) >= beat * SILENT_HEARTBEATS
                || self.now.since(Time::ZERO) < beat * (SILENT_HEARTBEATS + 1);
            let patient = self.now < Time::ZERO + WATCH_MAX;
            if patient && may_be_silent && !self.kept(record) {
                let at = self.now + beat.clamp(Duration::from_millis(10), Duration::from_secs(5));
                silent_one = Some(silent_one.map_or(at, |s: Time| s.min(at)));
            }
        }
        self.step = match silent_one {
            Some(at) => Step::Read { at },
            None => Step::Done(Err(ClaimError::NoFreeSeat(self.config.geometry.seats))),
        };
    }

    fn write_claim(&mut self, seat: SeatId, guard: Guard) -> Io {
        let view = &self.views[usize::from(seat.0)];
        let (version, copy) = match &view.newest {
            Some((record, copy)) => (record.record_version + 1, 1 - copy),
            None => (1, 0),
        };
        // A gap of random width: two claimers that meet do not choose the same number.
        let step = 1 + (self.config.nonce & 0xff);
        let record = SeatRecord {
            volume: self.config.volume,
            seat,
            state: SeatState::Claiming,
            incarnation: view.fresh(step),
            record_version: version,
            heartbeat: 0,
            nonce: self.config.nonce,
            host: self.config.host,
            system: self.config.system,
            pid: self.config.pid,
            engine: crate::own_seat::engine_version(),
            timings: self.config.timings.published(),
            counters: SeatCounters::default(),
            ports: Vec::new(),
            ports_overflow: false,
            moves: false,
            links: alloc::vec![LinkEntry::default(); usize::from(self.config.geometry.seats)],
        };
        let claimed = Claimed {
            seat,
            incarnation: record.incarnation,
            record_version: record.record_version,
            copy,
        };
        let data = Arc::new(record.encode(&self.config.geometry));
        let units = data.units();
        self.step = Step::Writing { claimed, guard };
        self.io(
            Place::Seat { seat, copy },
            IoAction::Write {
                data,
                units,
                durable: true,
            },
        )
    }
}
