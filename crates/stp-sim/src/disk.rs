//! The simulated storage: one volume, a handle for each life of a node, and everything that goes wrong.
//!
//! - What a read returns is what the pieces that landed by then left there, unless it is told to be stale.
//! - A write's pieces land one by one or together, before its end or after it, once, twice or never.
//! - Durable writes are never lost and never land after a good end: that much is asked of a storage.
//! - A handle that is dropped cancels nothing: what is under way lands, in part, or later.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use stp_format::{Geometry, Place, SeatId, SeatRecord, SeatState, UNIT_BYTES, UnitBuf};
use stp_medium::{Completion, Medium, Memory, Op, OpId, SeatLock};

use crate::figures::Figures;
use crate::memory::SimMemory;
use crate::monitor::Monitor;
use crate::mutation::Mutation;
use crate::options::{MemoryFaults, StorageFaults};
use crate::rng::{Rng, mix};

/// What is written or lost as one: a sector of old.
pub(crate) const PIECE_BYTES: usize = 512;
/// EIO.
pub(crate) const ERRNO_IO: i32 = 5;
const US: u64 = 1000;
const MS: u64 = 1_000_000;
/// One look may count this much silence before and after the judge's own writes succeed.
const JUDGED_MORE: u64 = 3000 * MS;

/// A node's life, as the storage knows it.
#[derive(Debug, Default)]
pub(crate) struct Handle {
    /// Its seat, once it has one; before, it may write claims.
    pub(crate) seat: Option<SeatId>,
    /// Since when.
    pub(crate) seated_at: u64,
    /// Its process lives.
    pub(crate) alive: bool,
    pub(crate) done: VecDeque<Completion>,
    pub(crate) under_way: usize,
    /// When a seat record newer than all before last landed whole, and its version.
    pub(crate) beat_at: u64,
    beat_version: u64,
    /// Its record was silent for so long that peers may have given it up.
    pub(crate) gap: u64,
    /// Silences of at least that length that are over: from when to when.
    gaps: Vec<(u64, u64)>,
    /// When its own writes of its record succeeded.
    pub(crate) acknowledged: Vec<u64>,
    /// When the last of its stores is seen that is not seen yet: they are seen in their order.
    pub(crate) stores_until: u64,
    /// Until then its process is between two of them.
    pub(crate) held_up_until: u64,
    /// No transfer ends well before then.
    pub(crate) lost_until: u64,
    /// Transfers fail at once meanwhile, or hang.
    pub(crate) lost_fails: bool,
    pub(crate) slow_until: u64,
    /// What it last wrote into its seat's record.
    pub(crate) last_record: Option<Arc<UnitBuf>>,
    /// It lost the device for good.
    pub(crate) lost_for_good: bool,
    /// What it read, unit by unit, and when.
    cache: HashMap<u64, (u64, Box<[u8]>)>,
}

impl Handle {
    fn gaps(&self, since: u64, now: u64) -> impl Iterator<Item = (u64, u64)> {
        let present = (self.beat_at, now);
        let gap = self.gap;
        let over = self.gaps.iter().copied().chain([present]);
        over.filter(move |(from, to)| *to >= since && to.saturating_sub(*from) >= gap)
    }

    /// Whether some peer may have given it up since `since`.
    pub(crate) fn gapped(&self, since: u64, now: u64) -> bool {
        self.gaps(since, now).next().is_some()
    }

    /// Whether `judge` may have given it up since `since`: silence counts only while the judge's own writes
    /// succeed, each of which is good for `healthy`.
    pub(crate) fn gapped_for(&self, judge: &Self, since: u64, now: u64, healthy: u64) -> bool {
        self.gaps(since, now).any(|(from, to)| {
            let mut counted = 0;
            let mut covered = from;
            for at in &judge.acknowledged {
                let begin = (*at).max(covered);
                let end = (at + healthy).min(to);
                counted += end.saturating_sub(begin);
                covered = covered.max(end);
            }
            counted + JUDGED_MORE >= self.gap
        })
    }
}

#[derive(Debug)]
pub(crate) enum Event {
    /// Bytes `from..to` of `data` land.
    Land {
        handle: usize,
        offset: u64,
        data: Arc<UnitBuf>,
        from: usize,
        to: usize,
        beat: bool,
    },
    /// As `Land`, of a copy into memory that `began` then.
    Store {
        handle: usize,
        offset: u64,
        data: Arc<UnitBuf>,
        from: usize,
        to: usize,
        beat: bool,
        began: u64,
    },
    Done {
        handle: usize,
        id: OpId,
        read: Option<(u64, UnitBuf)>,
        stale: bool,
        beat: bool,
        fails: bool,
    },
}

/// The volume and what is under way to it.
pub(crate) struct Disk {
    pub(crate) now: u64,
    pub(crate) geometry: Geometry,
    pub(crate) bytes: Vec<u8>,
    pub(crate) handles: Vec<Handle>,
    pub(crate) faults: StorageFaults,
    /// It is memory.
    pub(crate) memory: Option<MemoryFaults>,
    /// What was stored over lately: when, where, and what stood there.
    pub(crate) recent: VecDeque<(u64, u64, Box<[u8]>)>,
    /// When something changed it that no node wrote.
    pub(crate) spoiled_at: Option<u64>,
    pub(crate) figures: Figures,
    pub(crate) finding: Option<String>,
    pub(crate) trace: u64,
    transfer_us: u64,
    keeps_stale: bool,
    pub(crate) rng: Rng,
    pub(crate) monitor: Monitor,
    pub(crate) mutation: Option<Mutation>,
    /// Writes submitted so far, for mutations that wait for one of them.
    pub(crate) written: u64,
    /// What the volume once held.
    pub(crate) picture: Option<Vec<u8>>,
    /// Transfers beyond fail.
    pub(crate) ends_at: u64,
    /// Somebody's records were changed behind his back.
    pub(crate) disturbed: bool,
    pub(crate) events: BTreeMap<(u64, u64), Event>,
    serial: u64,
    /// Never becomes readable: the world knows when something is done.
    wait: File,
}

impl Disk {
    pub(crate) fn new(
        seed: u64,
        geometry: Geometry,
        faults: StorageFaults,
        transfer_us: u64,
    ) -> io::Result<Self> {
        Ok(Self {
            now: 0,
            geometry,
            bytes: vec![0; geometry.size_bytes as usize],
            handles: Vec::new(),
            faults,
            memory: None,
            recent: VecDeque::new(),
            spoiled_at: None,
            figures: Figures::default(),
            finding: None,
            trace: seed,
            transfer_us,
            keeps_stale: faults.stale > 0,
            rng: Rng::new(seed, 2),
            monitor: Monitor::default(),
            mutation: None,
            written: 0,
            picture: None,
            ends_at: u64::MAX,
            disturbed: false,
            events: BTreeMap::new(),
            serial: 0,
            wait: File::open("/dev/null")?,
        })
    }

    /// One more life; `gap` is the silence after which its peers may give it up.
    pub(crate) fn attach(&mut self, gap: u64) -> usize {
        self.handles.push(Handle {
            alive: true,
            beat_at: self.now,
            gap,
            ..Handle::default()
        });
        self.handles.len() - 1
    }

    /// Its process is gone. What it has under way lands or does not.
    pub(crate) fn detach(&mut self, handle: usize) {
        let this = &mut self.handles[handle];
        this.alive = false;
        this.done.clear();
        this.cache.clear();
        self.cut_stores(handle);
        let mut moved = Vec::new();
        for (key, event) in &self.events {
            if matches!(event, Event::Land { handle: of, .. } if *of == handle) {
                moved.push(*key);
            }
        }
        for key in moved {
            let Some(event) = self.events.remove(&key) else {
                continue;
            };
            match self.rng.below(10) {
                0..=2 => self.figures.fault("write cut off by a kill"),
                3 if self.faults.late_ms > 0 => {
                    self.figures.fault("write of the dead lands late");
                    let after = self.rng.within(0, self.faults.late_ms * MS);
                    self.schedule(key.0.max(self.now) + after, event);
                }
                _ => {
                    self.events.insert(key, event);
                }
            }
        }
    }

    /// Whether another life has taken the seat of this one.
    pub(crate) fn overtaken(&self, handle: usize) -> bool {
        let this = &self.handles[handle];
        let later = |other: &Handle| other.seat == this.seat && other.seated_at > this.seated_at;
        this.seat.is_some() && self.handles.iter().any(later)
    }

    pub(crate) fn note(&mut self, what: u64) {
        self.trace = mix(self.trace ^ what).wrapping_add(self.now);
    }

    pub(crate) fn find(&mut self, finding: String) {
        self.finding.get_or_insert(finding);
    }

    pub(crate) fn next_at(&self) -> Option<u64> {
        self.events.keys().next().map(|(at, _)| *at)
    }

    /// Handles the next event; the handle that has something to reap.
    pub(crate) fn step(&mut self) -> Option<usize> {
        let ((at, _), event) = self.events.pop_first()?;
        self.now = self.now.max(at);
        match event {
            Event::Land {
                handle,
                offset,
                data,
                from,
                to,
                beat,
            } => {
                self.land(handle, offset, &data, from..to, beat);
                None
            }
            Event::Store {
                handle,
                offset,
                data,
                from,
                to,
                beat,
                began,
            } => {
                self.land(handle, offset, &data, from..to, beat);
                self.check_number(handle, offset, &data, from..to, began);
                None
            }
            Event::Done {
                handle,
                id,
                read,
                stale,
                beat,
                fails,
            } => {
                let this = &mut self.handles[handle];
                if !this.alive {
                    return None;
                }
                // The device went away meanwhile.
                if this.lost_until > self.now && !fails {
                    let (at, fails) = if this.lost_fails {
                        (self.now + 2 * MS, true)
                    } else {
                        (this.lost_until, false)
                    };
                    let event = Event::Done {
                        handle,
                        id,
                        read,
                        stale,
                        beat,
                        fails,
                    };
                    self.figures.fault("transfer on a lost device");
                    self.schedule(at, event);
                    return None;
                }
                if self.mutation == Some(Mutation::LostCompletion) && self.written > 500 {
                    return None;
                }
                let this = &mut self.handles[handle];
                this.under_way -= 1;
                if beat && !fails {
                    this.acknowledged.push(at);
                }
                let buf = read.map(|(offset, mut buf)| {
                    if !fails {
                        self.read(handle, offset, &mut buf, stale);
                    } else if self.faults.short_read > 0 {
                        // Something came; nobody may look at it.
                        let part = buf.len() / 2;
                        let start = offset as usize;
                        buf.bytes_mut()[..part].copy_from_slice(&self.bytes[start..start + part]);
                    }
                    buf
                });
                let result = if fails {
                    Err(io::Error::from_raw_os_error(ERRNO_IO))
                } else {
                    Ok(())
                };
                self.note(id.0 ^ (handle as u64) << 48);
                let completion = Completion { id, buf, result };
                self.handles[handle].done.push_back(completion);
                Some(handle)
            }
        }
    }

    /// Bytes of a write take their place.
    pub(crate) fn land(
        &mut self,
        handle: usize,
        offset: u64,
        data: &UnitBuf,
        part: Range<usize>,
        beat: bool,
    ) {
        let Range {
            start: from,
            end: to,
        } = part;
        let start = offset as usize + from;
        if to == from {
            return;
        }
        if self.memory.is_some() {
            self.remember(start..start + (to - from));
        }
        self.bytes[start..start + (to - from)].copy_from_slice(&data.bytes()[from..to]);
        let now = self.now;
        let this = &mut self.handles[handle];
        if !this.cache.is_empty() {
            let first = start as u64 / UNIT_BYTES as u64;
            let last = (start + (to - from) - 1) as u64 / UNIT_BYTES as u64;
            for unit in first..=last {
                this.cache.remove(&unit);
            }
        }
        // The late landing of an older record is no sign of life.
        let version = SeatRecord::peek(data.bytes()).map_or(0, |(_, version, _)| version);
        if beat && version > this.beat_version {
            this.beat_version = version;
            if now.saturating_sub(this.beat_at) >= this.gap {
                this.gaps.push((this.beat_at, now));
            }
            this.beat_at = now;
        }
    }

    fn read(&mut self, handle: usize, offset: u64, buf: &mut UnitBuf, stale: bool) {
        let start = offset as usize;
        let length = buf.len();
        buf.bytes_mut()
            .copy_from_slice(&self.bytes[start..start + length]);
        if !self.keeps_stale {
            return;
        }
        let oldest = self.now.saturating_sub(self.faults.stale_ms * MS);
        let cache = &mut self.handles[handle].cache;
        for (index, unit) in buf.bytes_mut().chunks_exact_mut(UNIT_BYTES).enumerate() {
            let number = offset / UNIT_BYTES as u64 + index as u64;
            match cache.get_mut(&number) {
                Some((at, old)) if *at >= oldest => {
                    if stale && **old != *unit && self.rng.percent(50) {
                        unit.copy_from_slice(old);
                        self.figures.fault("stale unit");
                    }
                }
                Some((at, old)) => {
                    *at = self.now;
                    old.copy_from_slice(unit);
                }
                None => {
                    cache.insert(number, (self.now, Box::from(&*unit)));
                }
            }
        }
    }

    pub(crate) fn schedule(&mut self, at: u64, event: Event) {
        self.serial += 1;
        self.events.insert((at.max(self.now), self.serial), event);
    }

    /// Whether a fault of so many millionths strikes.
    pub(crate) fn strikes(&mut self, millionths: u64) -> bool {
        millionths > 0 && self.rng.below(1_000_000) < millionths
    }

    fn latency(&mut self, handle: usize, units: usize) -> u64 {
        let base = self.transfer_us * US;
        let mut latency = base / 2 + self.rng.below(base) + units as u64 * 2 * US;
        if self.handles[handle].slow_until > self.now {
            latency *= 1000;
            self.figures.fault("transfer on a slow device");
        } else if self.strikes(self.faults.slow) {
            // Not on top of a slow device: a transfer of minutes is a lost one, and kernels give those up.
            latency *= 1000;
            self.figures.fault("slow transfer");
        }
        latency
    }

    fn submit(&mut self, handle: usize, id: OpId, op: Op) {
        let (place, units) = match &op {
            Op::Read { place, buf } => (*place, buf.units()),
            Op::Write { place, units, .. } => (*place, *units),
        };
        let Some(offset) = self.geometry.offset(place, units) else {
            self.find(format!(
                "a transfer outside the volume: {units} units at {place:?}"
            ));
            return;
        };
        self.note(offset ^ (units as u64) << 40 ^ id.0 << 52);
        if self.memory.is_some() {
            return self.copy(handle, id, op, offset);
        }
        self.handles[handle].under_way += 1;
        let most = 32 + 64 * usize::from(self.geometry.seats);
        if self.handles[handle].under_way > most {
            self.find(format!("more than {most} transfers under way by one node"));
        }
        let latency = self.latency(handle, units);
        let end = self.now + latency;
        let length = (units * UNIT_BYTES) as u64;
        match op {
            Op::Read { buf, .. } => {
                self.figures.reads += 1;
                let mut offset = offset;
                let mut fails = self.strikes(self.faults.read_error);
                if fails {
                    self.figures.fault("read error");
                } else if offset + length > self.ends_at {
                    self.figures.fault("transfer beyond the end");
                    fails = true;
                } else if self.strikes(self.faults.short_read) {
                    self.figures.fault("short read");
                    fails = true;
                } else if self.strikes(self.faults.misdirected_read) {
                    self.figures.fault("misdirected read");
                    offset = self.elsewhere(units);
                }
                let stale = self.strikes(self.faults.stale);
                let event = Event::Done {
                    handle,
                    id,
                    read: Some((offset, buf)),
                    stale,
                    beat: false,
                    fails,
                };
                self.schedule(end, event);
            }
            Op::Write { data, durable, .. } => {
                let (place, data) = self.checked(handle, place, data, units);
                let fails = match offset + length > self.ends_at {
                    true => {
                        self.figures.fault("transfer beyond the end");
                        true
                    }
                    false => self.write(handle, place, offset, data, units, durable, latency),
                };
                let event = Event::Done {
                    handle,
                    id,
                    read: None,
                    stale: false,
                    beat: matches!(place, Place::Seat { .. }),
                    fails,
                };
                self.schedule(end, event);
            }
        }
    }

    /// What a node writes is counted and held against the protocol; a mutation may change it before.
    pub(crate) fn checked(
        &mut self,
        handle: usize,
        place: Place,
        data: Arc<UnitBuf>,
        units: usize,
    ) -> (Place, Arc<UnitBuf>) {
        self.figures.writes += 1;
        self.written += 1;
        let (place, data) = self.mutated(handle, place, data, units);
        self.check_owner(handle, place);
        let bytes = data.bytes().get(..units * UNIT_BYTES).unwrap_or_default();
        let bytes = self.meant(place, bytes);
        if let Err(what) = self.monitor.write(&self.geometry, handle, place, bytes) {
            self.find(what);
        }
        match place {
            Place::Slot { .. } => self.figures.segments += 1,
            Place::Seat { .. } => {
                self.handles[handle].last_record = Some(Arc::clone(&data));
            }
            _ => {}
        }
        (place, data)
    }

    fn check_owner(&mut self, handle: usize, place: Place) {
        let claims = matches!(place, Place::Seat { .. });
        let fits = match self.handles[handle].seat {
            Some(seat) => place.owner() == Some(seat),
            None => claims,
        };
        if !fits {
            let seat = self.handles[handle].seat;
            self.find(format!(
                "a write outside the own seat {seat:?}: at {place:?}"
            ));
        }
    }

    /// Schedules what of a write lands, and when; whether it is told to have failed.
    #[allow(clippy::too_many_arguments, reason = "all of one write")]
    fn write(
        &mut self,
        handle: usize,
        place: Place,
        offset: u64,
        data: Arc<UnitBuf>,
        units: usize,
        durable: bool,
        latency: u64,
    ) -> bool {
        let faults = self.faults;
        let beat = matches!(place, Place::Seat { .. });
        let (now, end) = (self.now, self.now + latency);
        let length = units * UNIT_BYTES;
        let lost_until = self.handles[handle].lost_until;
        let signs = |data: &UnitBuf| data.bytes()[20] == SeatState::Left as u8;
        match self.mutation {
            Some(Mutation::DeadStorage) if self.written > 500 => return false,
            Some(Mutation::SilentLeave) if beat && signs(&data) => return false,
            _ => {}
        }
        let whole = |this: &mut Self, at: u64| {
            let event = Event::Land {
                handle,
                offset,
                data: Arc::clone(&data),
                from: 0,
                to: length,
                beat,
            };
            this.schedule(at, event);
        };
        if lost_until > now {
            // It may be on its way in spite of all: it lands when the path is back, or never.
            self.figures.fault("write on a lost device");
            let after = self.rng.below(latency);
            if self.rng.percent(50) || !self.handles[handle].lost_fails {
                whole(self, lost_until + after);
            }
            return false;
        }
        let late = now + latency + self.rng.below(faults.late_ms * MS + 1);
        if self.strikes(faults.again) {
            self.figures.fault("write done twice");
            whole(self, late);
        }
        if self.strikes(faults.write_error) {
            self.figures.fault("write error, not done");
            return true;
        }
        if self.strikes(faults.error_done) {
            self.figures.fault("write error, yet done");
            whole(self, end - 1);
            return true;
        }
        if self.strikes(faults.late_error) {
            self.figures.fault("write error, done late");
            whole(self, late);
            return true;
        }
        if !durable && self.strikes(faults.late) {
            self.figures.fault("write lands late");
            whole(self, late);
            return false;
        }
        if !durable && self.strikes(faults.lost) {
            self.figures.fault("write lost");
            return false;
        }
        if !durable && self.strikes(faults.misdirected_write) {
            self.figures.fault("misdirected write");
            let event = Event::Land {
                handle,
                offset: self.elsewhere_to_spoil(units),
                data: Arc::clone(&data),
                from: 0,
                to: length,
                beat: false,
            };
            self.schedule(end - 1, event);
            return false;
        }
        if self.strikes(faults.short_write) {
            self.figures.fault("short write");
            let event = Event::Land {
                handle,
                offset,
                data: Arc::clone(&data),
                from: 0,
                to: self.rng.below((length / PIECE_BYTES) as u64) as usize * PIECE_BYTES,
                beat: false,
            };
            self.schedule(end - 1, event);
            return true;
        }
        let partial = self.strikes(faults.partial);
        if partial || self.strikes(faults.torn) {
            self.figures.fault(if partial {
                "write error, done in part"
            } else {
                "torn write"
            });
            // Large writes tear between units, the rest between sectors.
            let piece = if units > 8 { UNIT_BYTES } else { PIECE_BYTES };
            let pieces = length.div_ceil(piece);
            // Together the pieces that remain land at the end: the last is the beat.
            let whole_at = self.rng.below(pieces as u64) as usize;
            for index in 0..pieces {
                if partial && self.rng.percent(50) {
                    continue;
                }
                let at = match index == whole_at && !partial {
                    true => end - 1,
                    false => now + self.rng.below(latency.max(2) - 1),
                };
                let event = Event::Land {
                    handle,
                    offset,
                    data: Arc::clone(&data),
                    from: index * piece,
                    to: ((index + 1) * piece).min(length),
                    beat: beat && index == whole_at && !partial,
                };
                self.schedule(at, event);
            }
            return partial;
        }
        let at = now + latency / 4 + self.rng.below(latency / 2 + 1);
        let at = at.min(end - 1);
        whole(self, at);
        if self.strikes(faults.neighbours) {
            self.figures.fault("write puts back what lies beside");
            self.disturbed = true;
            for (offset, data) in self.neighbours(offset, length) {
                let event = Event::Land {
                    handle,
                    offset,
                    from: 0,
                    to: data.len(),
                    data,
                    beat: false,
                };
                self.schedule(at, event);
            }
        }
        false
    }
}

/// The storage, shared by the world and all handles.
#[derive(Clone)]
pub(crate) struct Shared(pub(crate) Arc<Mutex<Disk>>);

impl Shared {
    pub(crate) fn new(disk: Disk) -> Self {
        Self(Arc::new(Mutex::new(disk)))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A node's way to the storage.
    pub(crate) fn medium(&self, handle: usize) -> io::Result<SimMedium> {
        let disk = self.lock();
        // Where transfers are done at once there is nothing to wait for.
        let wait = disk.memory.is_none().then(|| disk.wait.try_clone());
        Ok(SimMedium {
            disk: self.clone(),
            handle,
            wait: wait.transpose()?,
            memory: Arc::new(SimMemory::new(self.clone(), handle)),
        })
    }
}

/// One life's handle.
pub(crate) struct SimMedium {
    disk: Shared,
    handle: usize,
    wait: Option<File>,
    memory: Arc<SimMemory>,
}

impl SimMedium {
    /// Whether something is done that was not asked for yet.
    pub(crate) fn has_done(&self) -> bool {
        !self.disk.lock().handles[self.handle].done.is_empty()
    }
}

impl Medium for SimMedium {
    fn set_geometry(&mut self, _geometry: Geometry) {}

    fn size_bytes(&self) -> io::Result<u64> {
        Ok(self.disk.lock().bytes.len() as u64)
    }

    fn submit(&mut self, id: OpId, op: Op) {
        self.disk.lock().submit(self.handle, id, op);
    }

    fn kick(&mut self) {}

    fn poll(&mut self) -> Option<Completion> {
        self.disk.lock().handles[self.handle].done.pop_front()
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        self.wait.as_ref().map(AsFd::as_fd)
    }

    fn memory(&mut self) -> Option<Arc<dyn Memory>> {
        let disk = self.disk.lock();
        let whole = disk.memory.is_some() && disk.ends_at == u64::MAX;
        whole.then(|| Arc::clone(&self.memory) as Arc<dyn Memory>)
    }

    fn depth(&self) -> usize {
        64
    }

    fn lock_seat(&mut self, _seat: SeatId) -> io::Result<SeatLock> {
        Ok(SeatLock::Unsupported)
    }

    fn unlock_seat(&mut self, _seat: SeatId) {}

    fn describe(&self) -> String {
        "simulated storage".into()
    }
}
