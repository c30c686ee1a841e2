//! The floor: what the storage does with nothing on top of it.
//!
//! - *Round trip*: this process writes one message into its own window, the mate reads there until it sees it,
//!   and answers in the same way in its own. *Stream*: one writer and one reader with several slots under way.
//! - A message carries its number in its first and its last word; numbers of two measurements differ.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use stp_format::{Geometry, SeatId, UnitBuf};
use stp_medium::VolumeSpec;
use stp_medium::bare::{Bare, Window};

use crate::CliError;

/// Bytes of a window where the seat has them.
const WINDOW_BYTES: u64 = 4 << 20;
/// Slots under way side by side in a stream.
const DEPTH: usize = 4;
/// Bytes of a transfer where writes or reads are measured alone.
const ALONE_BYTES: u64 = 256 << 10;
/// A longer message is looked for by its last word first.
const WHOLE_LOOK_BYTES: usize = 16 << 10;
/// Looks without a pause; then others may have the processor, in case the one who writes is among them.
const LOOKS_MAX: u32 = 4096;
/// The same on storage that has to be asked.
const STORAGE_LOOKS_MAX: u32 = 64;
/// How long an answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Ends an echo. Numbers of messages never get there.
const STOP: u64 = u64::MAX;
const WORD_BYTES: usize = size_of::<u64>();

/// The bare storage with this process's window, and the other side's.
pub(super) struct Floor {
    bare: Bare,
    own: Window,
    other: Window,
    buf: UnitBuf,
}

/// What the storage does when it only writes, or only reads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Alone {
    pub(super) write_mb_per_s: f64,
    pub(super) read_mb_per_s: f64,
}

/// How many extents of each seat are used: few enough to stay away from those of links.
fn extents(geometry: &Geometry) -> u16 {
    let bytes = u64::from(geometry.extent_units) * stp_format::UNIT_BYTES as u64;
    ((WINDOW_BYTES / bytes) as u16).min(geometry.extents / 2)
}

fn window(geometry: &Geometry, seat: SeatId) -> Option<Window> {
    let extents = extents(geometry);
    (extents > 0).then(|| Window::last_extents(geometry, seat, extents))?
}

impl Floor {
    pub(super) fn open(
        spec: &VolumeSpec,
        geometry: &Geometry,
        own: SeatId,
        other: SeatId,
    ) -> Result<Self, CliError> {
        let windows = window(geometry, own).zip(window(geometry, other));
        let Some((own, other)) = windows else {
            return Err(CliError::new(
                "the seats are too small for a bare measurement",
            ));
        };
        Ok(Self {
            bare: Bare::open(spec, own).map_err(CliError::new)?,
            own,
            other,
            buf: UnitBuf::zeroed(UnitBuf::units_for(own.len() as usize)),
        })
    }

    /// Bytes that carry a message of `size` bytes; `None` if the window is too small for it.
    pub(super) fn carrier(&self, size: u64) -> Option<usize> {
        let grain = self.bare.grain_bytes();
        let size = usize::try_from(size).ok()?.max(WORD_BYTES);
        let size = size.next_multiple_of(grain);
        (size as u64 <= self.own.len()).then_some(size)
    }

    fn put(&mut self, size: usize, number: u64) -> io::Result<()> {
        stamp(&mut self.buf.bytes_mut()[..size], number);
        self.bare.write(0, &self.buf.bytes()[..size])
    }

    /// Reads the other's window until a number other than `old` is there, whole; `None` if it is given up before: `go_on`
    /// is asked now and then.
    fn look(&mut self, size: usize, old: u64, go_on: &dyn Fn() -> bool) -> io::Result<Option<u64>> {
        let grain = self.bare.grain_bytes();
        let ask_every = match self.bare.is_memory() {
            true => LOOKS_MAX,
            false => STORAGE_LOOKS_MAX,
        };
        let mut looks = 0_u32;
        loop {
            looks = looks.wrapping_add(1);
            if looks.is_multiple_of(ask_every) && !go_on() {
                return Ok(None);
            }
            let bytes = &mut self.buf.bytes_mut()[..size];
            if self.bare.is_memory() || size > WHOLE_LOOK_BYTES {
                let tail = size - grain;
                self.bare
                    .read(&self.other, tail as u64, &mut bytes[..grain])?;
                if last(&bytes[..grain]) == old {
                    match looks % LOOKS_MAX {
                        0 => std::thread::yield_now(),
                        _ => std::hint::spin_loop(),
                    }
                    continue;
                }
            }
            self.bare.read(&self.other, 0, bytes)?;
            let number = first(bytes);
            if number != old && number == last(bytes) {
                return Ok(Some(number));
            }
        }
    }

    /// The mate's part, until it is told to stop or `go_on` says no: prepares the answer's place, says `ready`, echoes.
    pub(super) fn echo(
        &mut self,
        size: usize,
        base: u64,
        ready: impl FnOnce() -> Result<(), CliError>,
        go_on: impl Fn() -> bool,
    ) -> Result<(), CliError> {
        self.put(size, base).map_err(failed)?;
        ready()?;
        let mut seen = base;
        loop {
            match self.look(size, seen, &go_on).map_err(failed)? {
                None | Some(STOP) => return Ok(()),
                Some(number) => seen = number,
            }
            self.put(size, seen).map_err(failed)?;
        }
    }

    /// Where the echo starts from: to be called before the mate is.
    pub(super) fn prepare(&mut self, size: usize, base: u64) -> Result<(), CliError> {
        self.put(size, base).map_err(failed)
    }

    /// Round trips until the time is over, in us.
    pub(super) fn round_trips(
        &mut self,
        size: usize,
        base: u64,
        time: Duration,
    ) -> Result<Vec<f64>, CliError> {
        let mut times = Vec::new();
        let begin = Instant::now();
        let mut number = base;
        while begin.elapsed() < time {
            let start = Instant::now();
            self.put(size, number + 1).map_err(failed)?;
            let answered = self.look(size, number, &|| start.elapsed() < ANSWER_MAX);
            let Some(answer) = answered.map_err(failed)? else {
                return Err(CliError::new(format_args!(
                    "the bare storage: the other side did not answer within {ANSWER_MAX:?}"
                )));
            };
            times.push(start.elapsed().as_secs_f64() * 1e6);
            number += 1;
            if answer != number {
                return Err(CliError::new(
                    "the storage gave an answer that nobody wrote",
                ));
            }
        }
        self.put(size, STOP).map_err(failed)?;
        Ok(times)
    }

    /// Sizes of slots to try for a stream.
    pub(super) fn slot_sizes(&self) -> &'static [u64] {
        if self.bare.is_memory() {
            &[16 << 10, 64 << 10, 256 << 10]
        } else {
            &[64 << 10, 256 << 10, 1 << 20]
        }
    }

    /// Bytes and seconds of a stream from this process's window to itself, by two open files' worth of
    /// transfers side by side.
    pub(super) fn stream(
        &self,
        slot: u64,
        base: u64,
        time: Duration,
    ) -> Result<(u64, f64), CliError> {
        let slots = self.own.len() / slot;
        let lanes = match self.bare.is_memory() {
            true => 1,
            false => DEPTH.min(slots as usize),
        };
        if lanes == 0 {
            return Ok((0, time.as_secs_f64()));
        }
        // Each lane has slots of its own.
        let slots = slots - slots % lanes as u64;
        let taken: Vec<_> = (0..lanes).map(|_| AtomicU64::new(0)).collect();
        let ends: Vec<_> = (0..lanes).map(|_| AtomicU64::new(u64::MAX)).collect();
        let place = |number: u64| number % slots * slot;
        let start = Instant::now();
        let outcome: io::Result<Vec<u64>> = std::thread::scope(|scope| {
            let mut work = Vec::new();
            for lane in 0..lanes {
                let (taken, ends) = (&taken[lane], &ends[lane]);
                // Numbers of messages begin at one: zero is what nobody has taken.
                let first_number = lane as u64 + slots;
                taken.store(first_number, Ordering::Relaxed);
                work.push(scope.spawn(move || {
                    let mut buf = UnitBuf::zeroed(UnitBuf::units_for(slot as usize));
                    let mut number = first_number;
                    while start.elapsed() < time {
                        while number >= taken.load(Ordering::Acquire) + slots {
                            std::thread::yield_now();
                        }
                        let bytes = &mut buf.bytes_mut()[..slot as usize];
                        stamp(bytes, base + number);
                        if let Err(error) = self.bare.write(place(number), bytes) {
                            ends.store(0, Ordering::Release);
                            return Err(error);
                        }
                        number += lanes as u64;
                    }
                    ends.store(number, Ordering::Release);
                    Ok((number - first_number) / lanes as u64 * slot)
                }));
                work.push(scope.spawn(move || {
                    let mut buf = UnitBuf::zeroed(UnitBuf::units_for(slot as usize));
                    let mut number = first_number;
                    while number < ends.load(Ordering::Acquire) {
                        if self.take(place(number), &mut buf, slot as usize, base + number)? {
                            number += lanes as u64;
                            taken.store(number, Ordering::Release);
                        }
                    }
                    // However it ended, the writer does not wait for ever.
                    taken.store(u64::MAX / 2, Ordering::Release);
                    Ok(0)
                }));
            }
            joined(work)
        });
        let bytes = outcome.map_err(failed)?.iter().sum();
        Ok((bytes, start.elapsed().as_secs_f64()))
    }

    /// MB/s of writes alone, then of reads alone, of this process's window; `None` in memory, where a transfer is a copy.
    pub(super) fn alone(&self, time: Duration) -> Result<Option<Alone>, CliError> {
        let slots = self.own.len() / ALONE_BYTES;
        if self.bare.is_memory() || slots == 0 {
            return Ok(None);
        }
        let write_mb_per_s = self.repeat(slots, time, |at, buf| self.bare.write(at, buf))?;
        let read_mb_per_s =
            self.repeat(slots, time, |at, buf| self.bare.read(&self.own, at, buf))?;
        Ok(Some(Alone {
            write_mb_per_s,
            read_mb_per_s,
        }))
    }

    /// MB/s of one transfer over and over, several side by side.
    fn repeat(
        &self,
        slots: u64,
        time: Duration,
        transfer: impl Fn(u64, &mut [u8]) -> io::Result<()> + Sync,
    ) -> Result<f64, CliError> {
        let lanes = slots.min(DEPTH as u64);
        let start = Instant::now();
        let moved = std::thread::scope(|scope| {
            let work: Vec<_> = (0..lanes)
                .map(|lane| {
                    let transfer = &transfer;
                    scope.spawn(move || {
                        let mut buf = UnitBuf::zeroed(UnitBuf::units_for(ALONE_BYTES as usize));
                        let mut number = lane;
                        while start.elapsed() < time {
                            transfer(number % slots * ALONE_BYTES, buf.bytes_mut())?;
                            number += lanes;
                        }
                        Ok((number - lane) / lanes * ALONE_BYTES)
                    })
                })
                .collect();
            joined(work)
        });
        let bytes: u64 = moved.map_err(failed)?.iter().sum();
        Ok(bytes as f64 / 1e6 / start.elapsed().as_secs_f64())
    }

    /// Whether the slot with this number is there, whole.
    fn take(&self, at: u64, buf: &mut UnitBuf, slot: usize, number: u64) -> io::Result<bool> {
        let bytes = &mut buf.bytes_mut()[..slot];
        if self.bare.is_memory() {
            let mut word = [0; WORD_BYTES];
            let tail = at + (slot - WORD_BYTES) as u64;
            self.bare.read(&self.own, tail, &mut word)?;
            if u64::from_le_bytes(word) != number {
                std::hint::spin_loop();
                return Ok(false);
            }
        }
        self.bare.read(&self.own, at, bytes)?;
        Ok(first(bytes) == number && last(bytes) == number)
    }
}

/// What the threads of a measurement have moved.
fn joined(work: Vec<ScopedJoinHandle<'_, io::Result<u64>>>) -> io::Result<Vec<u64>> {
    work.into_iter()
        .map(|thread| {
            thread
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("a thread of the bench failed")))
        })
        .collect()
}

fn failed(error: io::Error) -> CliError {
    CliError::new(format_args!("the bare storage: {error}"))
}

fn stamp(bytes: &mut [u8], number: u64) {
    let tail = bytes.len() - WORD_BYTES;
    bytes[..WORD_BYTES].copy_from_slice(&number.to_le_bytes());
    bytes[tail..].copy_from_slice(&number.to_le_bytes());
}

fn word(bytes: &[u8]) -> u64 {
    bytes.try_into().map_or(0, u64::from_le_bytes)
}

fn first(bytes: &[u8]) -> u64 {
    word(&bytes[..WORD_BYTES])
}

fn last(bytes: &[u8]) -> u64 {
    word(&bytes[bytes.len() - WORD_BYTES..])
}

/// A number that no earlier measurement began at.
pub(super) fn fresh_base() -> Result<u64, CliError> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes)
        .map_err(|error| CliError::new(format_args!("no random numbers: {error}")))?;
    // Room to count from there, and never STOP.
    Ok(u64::from_le_bytes(bytes) >> 1 & !0xffff_ffff)
}
