//! A medium around a medium that misbehaves on purpose, for tests and simulation.
//!
//! - The same seed, rules and calls give the same faults: there is no clock in here, delays count
//!   calls of [`Medium::poll`].
//! - Without rules every operation passes unchanged.
//! - What it does to an operation, some real storage was seen to do.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, epoll, eventfd};
use stp_format::{Geometry, Place, SeatId, UnitBuf};

use crate::trace::PlaceKind;
use crate::{Completion, Medium, Op, OpId, SeatLock};

/// The piece in which a torn write lands or does not.
const PIECE_BYTES: usize = 512;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Fails with this errno; nothing was done.
    Error(i32),
    /// Fails with this errno, but was done.
    ErrorDone(i32),
    /// Begins so many polls later: a late write.
    Late(u32),
    /// Is done at once, but completes so many polls later.
    Slow(u32),
    /// A write of which some 512-byte pieces land and others do not; reported as good. On a read: nothing.
    Torn,
    /// A write of which nothing lands; reported as good. On a read: nothing.
    Lost,
    /// A read that gives what this handle read there last; reported as good. On a write, or a first read: nothing.
    Stale,
}

/// Which operations a rule counts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Matching {
    /// Only reads (`Some(true)`) or only writes (`Some(false)`).
    pub reads: Option<bool>,
    /// Only at this kind of place.
    pub kind: Option<PlaceKind>,
    /// Only at places of this seat.
    pub seat: Option<SeatId>,
}

impl Matching {
    /// Only writes.
    pub fn writes() -> Self {
        Self {
            reads: Some(false),
            ..Self::default()
        }
    }

    /// Only reads.
    pub fn reads() -> Self {
        Self {
            reads: Some(true),
            ..Self::default()
        }
    }

    /// Only at this kind of place.
    pub fn at(self, kind: PlaceKind) -> Self {
        Self {
            kind: Some(kind),
            ..self
        }
    }

    fn takes(&self, place: &Place, is_read: bool) -> bool {
        self.reads.is_none_or(|reads| reads == is_read)
            && self.kind.is_none_or(|kind| kind == PlaceKind::of(place))
            && self.seat.is_none_or(|seat| place.owner() == Some(seat))
    }
}

/// Which of the counted operations a rule strikes.
#[derive(Clone, Copy, Debug)]
pub enum When {
    /// All of them.
    Always,
    /// The n-th, from 1.
    Nth(u64),
    /// So many of a million, drawn by the seed.
    PerMillion(u32),
}

/// One way to misbehave.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// On which operations.
    pub on: Matching,
    /// How often.
    pub when: When,
    /// What happens.
    pub fault: Fault,
}

/// The rules of a [`Faulty`] medium, to be changed while it works; the first rule that strikes wins.
#[derive(Clone, Default)]
pub struct Faults(Arc<Mutex<Plan>>);

#[derive(Default)]
struct Plan {
    /// Each with the operations it has counted.
    rules: Vec<(Rule, u64)>,
    random: u64,
    struck: u64,
}

impl Faults {
    /// Replaces all rules; counts begin anew.
    pub fn set(&self, rules: impl IntoIterator<Item = Rule>) {
        self.lock().rules = rules.into_iter().map(|rule| (rule, 0)).collect();
    }

    /// How many operations were struck so far.
    pub fn struck(&self) -> u64 {
        self.lock().struck
    }

    fn lock(&self) -> MutexGuard<'_, Plan> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn draw(&self) -> u64 {
        self.lock().draw()
    }

    fn pick(&self, place: &Place, is_read: bool) -> Option<Fault> {
        let mut plan = self.lock();
        let mut picked = None;
        for at in 0..plan.rules.len() {
            let (rule, counted) = &mut plan.rules[at];
            if !rule.on.takes(place, is_read) {
                continue;
            }
            *counted += 1;
            let (rule, counted) = (*rule, *counted);
            let strikes = match rule.when {
                When::Always => true,
                When::Nth(n) => counted == n,
                When::PerMillion(rate) => plan.draw() % 1_000_000 < u64::from(rate),
            };
            if strikes && picked.is_none() {
                picked = Some(rule.fault);
            }
        }
        plan.struck += u64::from(picked.is_some());
        picked
    }
}

impl Plan {
    /// SplitMix64.
    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// An operation that the inner medium has, under an id of ours.
struct Flight {
    id: OpId,
    place: Place,
    then: Then,
}

enum Then {
    Pass,
    /// Completes with this errno instead.
    Fail(i32),
    /// Completes so many polls later.
    Slow(u32),
    /// The old bytes are being read; some pieces of these go over them.
    Tear {
        data: Arc<UnitBuf>,
        units: usize,
        durable: bool,
    },
    /// A read whose bytes are replaced by these.
    Replace(UnitBuf),
}

enum Held {
    Begin(OpId, Op),
    Finish(Completion),
}

/// Passes operations on, or does not, as its rules say.
pub struct Faulty<M> {
    inner: M,
    faults: Faults,
    flights: HashMap<OpId, Flight>,
    next: u64,
    polls: u64,
    /// What waits for a later poll, with that poll's number.
    held: Vec<(u64, Held)>,
    done: VecDeque<Completion>,
    /// What was read last at each place, while a rule may want it.
    last_read: HashMap<Place, UnitBuf>,
    /// Readable while something is held, done, or to be had from an inner medium without a descriptor.
    event: OwnedFd,
    signalled: bool,
    /// `event` and the inner medium's descriptor.
    both: OwnedFd,
}

impl<M: Medium> Faulty<M> {
    /// Around a medium, without rules yet.
    pub fn new(inner: M, seed: u64) -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let both = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let interest = epoll::EventFlags::IN;
        epoll::add(&both, &event, epoll::EventData::new_u64(0), interest)?;
        if let Some(fd) = inner.wait_fd() {
            epoll::add(&both, fd, epoll::EventData::new_u64(1), interest)?;
        }
        let faults = Faults::default();
        faults.lock().random = seed;
        Ok(Self {
            inner,
            faults,
            flights: HashMap::new(),
            next: 0,
            polls: 0,
            held: Vec::new(),
            done: VecDeque::new(),
            last_read: HashMap::new(),
            event,
            signalled: false,
            both,
        })
    }

    /// Its rules, to keep and change.
    pub fn faults(&self) -> Faults {
        self.faults.clone()
    }

    fn pass(&mut self, id: OpId, op: Op, then: Then) {
        let place = match &op {
            Op::Read { place, .. } | Op::Write { place, .. } => *place,
        };
        self.next += 1;
        let inner_id = OpId(self.next);
        self.flights.insert(inner_id, Flight { id, place, then });
        self.inner.submit(inner_id, op);
    }

    fn hold(&mut self, polls: u32, held: Held) {
        self.held.push((self.polls + u64::from(polls), held));
    }

    fn release_due(&mut self) {
        let now = self.polls;
        let mut begun = false;
        let mut at = 0;
        while at < self.held.len() {
            if self.held[at].0 > now {
                at += 1;
                continue;
            }
            match self.held.remove(at).1 {
                Held::Begin(id, op) => {
                    self.pass(id, op, Then::Pass);
                    begun = true;
                }
                Held::Finish(completion) => self.done.push_back(completion),
            }
        }
        if begun {
            self.inner.kick();
        }
    }

    /// Takes in what the inner medium finished.
    fn settle(&mut self, inner: Completion) {
        let Some(flight) = self.flights.remove(&inner.id) else {
            return;
        };
        let mut completion = Completion {
            id: flight.id,
            ..inner
        };
        match flight.then {
            Then::Pass => {}
            Then::Fail(errno) => completion.result = Err(io::Error::from_raw_os_error(errno)),
            Then::Slow(polls) => return self.hold(polls, Held::Finish(completion)),
            Then::Replace(old) => completion.buf = Some(old),
            Then::Tear {
                data,
                units,
                durable,
            } => {
                let (Ok(()), Some(mut old)) = (&completion.result, completion.buf.take()) else {
                    completion.buf = None;
                    return self.done.push_back(completion);
                };
                let pieces = old.bytes_mut().chunks_exact_mut(PIECE_BYTES);
                for (old, new) in pieces.zip(data.bytes().chunks_exact(PIECE_BYTES)) {
                    if self.faults.draw() & 1 == 0 {
                        old.copy_from_slice(new);
                    }
                }
                let op = Op::Write {
                    place: flight.place,
                    data: Arc::new(old),
                    units,
                    durable,
                };
                self.pass(flight.id, op, Then::Pass);
                return self.inner.kick();
            }
        }
        if let (Some(buf), Ok(())) = (&completion.buf, &completion.result)
            && self.wants_old_reads()
        {
            self.last_read.insert(flight.place, buf.clone());
        }
        self.done.push_back(completion);
    }

    fn wants_old_reads(&self) -> bool {
        let plan = self.faults.lock();
        plan.rules
            .iter()
            .any(|(rule, _)| rule.fault == Fault::Stale)
    }

    fn signal(&mut self) {
        let wanted = !self.held.is_empty()
            || !self.done.is_empty()
            || (self.inner.wait_fd().is_none() && !self.flights.is_empty());
        if wanted != self.signalled {
            self.signalled = wanted;
            // Neither can fail: the counter is 0 or 1.
            let _ = if wanted {
                rustix::io::write(&self.event, &1_u64.to_ne_bytes())
            } else {
                rustix::io::read(&self.event, &mut [0; 8])
            };
        }
    }
}

impl<M: Medium> Medium for Faulty<M> {
    fn set_geometry(&mut self, geometry: Geometry) {
        self.inner.set_geometry(geometry);
    }

    fn size_bytes(&self) -> io::Result<u64> {
        self.inner.size_bytes()
    }

    fn submit(&mut self, id: OpId, op: Op) {
        let (place, is_read) = match &op {
            Op::Read { place, .. } => (*place, true),
            Op::Write { place, .. } => (*place, false),
        };
        match (self.faults.pick(&place, is_read), op) {
            (Some(Fault::Error(errno)), op) => self.done.push_back(Completion {
                id,
                buf: match op {
                    Op::Read { buf, .. } => Some(buf),
                    Op::Write { .. } => None,
                },
                result: Err(io::Error::from_raw_os_error(errno)),
            }),
            (Some(Fault::ErrorDone(errno)), op) => self.pass(id, op, Then::Fail(errno)),
            (Some(Fault::Late(polls)), op) => self.hold(polls, Held::Begin(id, op)),
            (Some(Fault::Slow(polls)), op) => self.pass(id, op, Then::Slow(polls)),
            (
                Some(Fault::Torn),
                Op::Write {
                    data,
                    units,
                    durable,
                    ..
                },
            ) => {
                let then = Then::Tear {
                    data,
                    units,
                    durable,
                };
                let buf = UnitBuf::zeroed(units);
                self.pass(id, Op::Read { place, buf }, then);
            }
            (Some(Fault::Lost), Op::Write { .. }) => self.done.push_back(Completion {
                id,
                buf: None,
                result: Ok(()),
            }),
            (Some(Fault::Stale), Op::Read { buf, .. }) => {
                let old = self.last_read.get(&place).cloned();
                let then = match old.filter(|old| old.units() == buf.units()) {
                    Some(old) => Then::Replace(old),
                    None => Then::Pass,
                };
                self.pass(id, Op::Read { place, buf }, then);
            }
            (_, op) => self.pass(id, op, Then::Pass),
        }
        self.signal();
    }

    fn kick(&mut self) {
        self.inner.kick();
    }

    fn poll(&mut self) -> Option<Completion> {
        self.polls += 1;
        self.release_due();
        while self.done.is_empty() {
            let Some(completion) = self.inner.poll() else {
                break;
            };
            self.settle(completion);
        }
        let completion = self.done.pop_front();
        self.signal();
        completion
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.both.as_fd())
    }

    fn run_bytes(&self) -> usize {
        self.inner.run_bytes()
    }

    fn depth(&self) -> usize {
        self.inner.depth()
    }

    fn lock_seat(&mut self, seat: SeatId) -> io::Result<SeatLock> {
        self.inner.lock_seat(seat)
    }

    fn unlock_seat(&mut self, seat: SeatId) {
        self.inner.unlock_seat(seat);
    }

    fn describe(&self) -> String {
        format!("{}, with faults", self.inner.describe())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::Store;

    const PLACE: Place = Place::Superblock { copy: 0 };

    fn faulty(fault: Fault, on: Matching, when: When) -> Faulty<crate::local::Local> {
        let medium = Faulty::new(Store::new(1 << 20).attach(), 7).unwrap();
        medium.faults().set([Rule { on, when, fault }]);
        medium
    }

    fn finish(medium: &mut impl Medium) -> (Completion, u32) {
        medium.kick();
        for polls in 1..100 {
            if let Some(completion) = medium.poll() {
                return (completion, polls);
            }
        }
        panic!("nothing completed");
    }

    fn write(medium: &mut impl Medium, byte: u8) -> (io::Result<()>, u32) {
        let mut data = UnitBuf::zeroed(1);
        data.bytes_mut().fill(byte);
        let op = Op::Write {
            place: PLACE,
            data: Arc::new(data),
            units: 1,
            durable: false,
        };
        medium.submit(OpId(1), op);
        let (completion, polls) = finish(medium);
        (completion.result, polls)
    }

    fn read(medium: &mut impl Medium) -> Vec<u8> {
        let buf = UnitBuf::zeroed(1);
        medium.submit(OpId(2), Op::Read { place: PLACE, buf });
        let (completion, _) = finish(medium);
        completion.result.unwrap();
        completion.buf.unwrap().bytes().to_vec()
    }

    #[test]
    fn the_nth_write_fails_and_leaves_the_old_bytes() {
        let mut medium = faulty(Fault::Error(5), Matching::writes(), When::Nth(2));
        write(&mut medium, 1).0.unwrap();
        assert_eq!(write(&mut medium, 2).0.unwrap_err().raw_os_error(), Some(5));
        assert_eq!(read(&mut medium), [1; 4096]);
        write(&mut medium, 3).0.unwrap();
        assert_eq!(read(&mut medium), [3; 4096]);
        assert_eq!(medium.faults().struck(), 1);
    }

    #[test]
    fn torn_lost_stale_and_slow_are_what_they_say() {
        let mut medium = faulty(Fault::Torn, Matching::writes(), When::Nth(2));
        write(&mut medium, 1).0.unwrap();
        write(&mut medium, 2).0.unwrap();
        let bytes = read(&mut medium);
        assert!(bytes.contains(&1) && bytes.contains(&2));
        assert!(
            bytes
                .chunks(PIECE_BYTES)
                .all(|p| p.iter().all(|b| b == &p[0]))
        );

        let mut medium = faulty(Fault::Lost, Matching::writes(), When::Nth(2));
        write(&mut medium, 1).0.unwrap();
        write(&mut medium, 2).0.unwrap();
        assert_eq!(read(&mut medium), [1; 4096]);

        let mut medium = faulty(Fault::Stale, Matching::reads(), When::Nth(2));
        write(&mut medium, 1).0.unwrap();
        assert_eq!(read(&mut medium), [1; 4096]);
        write(&mut medium, 2).0.unwrap();
        assert_eq!(read(&mut medium), [1; 4096]);
        assert_eq!(read(&mut medium), [2; 4096]);

        let mut medium = faulty(Fault::Slow(5), Matching::writes(), When::Always);
        assert_eq!(write(&mut medium, 1).1, 6);
        let mut medium = faulty(Fault::Late(5), Matching::writes(), When::Always);
        assert_eq!(write(&mut medium, 1).1, 5);
        assert_eq!(read(&mut medium), [1; 4096]);
    }

    #[test]
    fn the_same_seed_strikes_the_same_operations() {
        let strikes = |seed| {
            let mut medium = Faulty::new(Store::new(1 << 20).attach(), seed).unwrap();
            medium.faults().set([Rule {
                on: Matching::writes(),
                when: When::PerMillion(300_000),
                fault: Fault::Error(5),
            }]);
            (0..50)
                .map(|_| write(&mut medium, 1).0.is_err())
                .collect::<Vec<_>>()
        };
        assert_eq!(strikes(1), strikes(1));
        assert_ne!(strikes(1), strikes(2));
    }
}
