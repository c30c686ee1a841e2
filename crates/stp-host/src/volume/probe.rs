//! What a storage does, measured from this host.
//!
//! - Nothing is written to the volume: only seats' own nodes may. Writes go to a scratch file beside a file
//!   volume, on the same file system, deleted at once; on a device they are not measured.
//! - What one host sees of itself is no proof of what two hosts see of each other.
//! - Every measurement ends after [`TIME_MAX`] or [`OPERATIONS_MAX`] operations.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use stp_format::{Geometry, GroupName, Place, SeatId, UNIT_BYTES, UnitBuf};
use stp_medium::{Access, IoChoice, Kind, Medium, SeatLock, VolumeSpec};

use super::transfer::Blocking;
use super::{VolumeError, format, from_medium};

/// Longest time of one measurement.
const TIME_MAX: Duration = Duration::from_secs(1);
/// Most operations of one measurement.
const OPERATIONS_MAX: usize = 2000;
/// Bytes of the scratch file.
const SCRATCH_BYTES: u64 = 1 << 20;

/// How long operations took, one at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Latency {
    /// Operations measured.
    pub operations: usize,
    /// Half took less, us.
    pub p50_us: f64,
    /// One of a hundred took longer, us.
    pub p99_us: f64,
    /// The longest, us.
    pub max_us: f64,
}

/// What reads saw while one unit was written again and again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tearing {
    /// Reads of one unit.
    pub reads: usize,
    /// Those with bytes of two writes.
    pub torn: usize,
    /// Those that gave an older write than an earlier read.
    pub backwards: usize,
}

/// What was found out.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ProbeReport {
    /// What kind of storage it is and how it is reached.
    pub storage: String,
    /// Its size.
    pub size_bytes: u64,
    /// The group on it, if there is one.
    pub group: Option<String>,
    /// Whether seats are held by locks that all hosts respect; `None` if that cannot be tried.
    pub seat_locks: Option<bool>,
    /// Sector sizes and caches that the kernel states of a device.
    pub device: Vec<(String, String)>,
    /// Reads of 4 KiB from the volume.
    pub read: Option<Latency>,
    /// Writes of 4 KiB to the scratch file.
    pub write: Option<Latency>,
    /// The same, durable.
    pub write_durable: Option<Latency>,
    /// From the start of a write until a second handle of this host has read it.
    pub seen: Option<Latency>,
    /// Reads against writes of the same unit, on this host.
    pub tearing: Option<Tearing>,
    /// What was not measured, and why.
    pub missing: Vec<String>,
}

/// Measures the storage of a volume, formatted or not.
pub fn probe(spec: &VolumeSpec) -> Result<ProbeReport, VolumeError> {
    let kind = spec.detect()?;
    let io = |what| {
        let spec = spec.clone();
        move |source| VolumeError::Io { spec, what, source }
    };
    let options = |access| stp_medium::OpenOptions {
        access,
        io: IoChoice::from_env(),
    };
    let mut medium = stp_medium::open(spec, &options(Access::Read))?;
    let mut report = ProbeReport {
        storage: medium.describe(),
        size_bytes: medium.size_bytes().map_err(io("asking for the size"))?,
        ..ProbeReport::default()
    };
    // An unformatted volume is read as if it had been formatted.
    let geometry = match from_medium(spec, stp_medium::open(spec, &options(Access::Read))?) {
        Ok(volume) => {
            let group: GroupName = volume.superblock().group;
            report.group = Some(group.to_string());
            Some(volume.superblock().geometry)
        }
        Err(_) => Geometry::plan(report.size_bytes, 2).ok(),
    };
    match geometry {
        Some(geometry) => {
            medium.set_geometry(geometry);
            let read = measure_reads(&mut *medium, &geometry);
            report.read = Some(read.map_err(io("reading"))?);
        }
        None => report.missing.push("reads: it is too small".into()),
    }
    drop(medium);
    match kind {
        Kind::Block => {
            report.device = device_facts(spec.path());
            report.seat_locks = Some(false);
            report
                .missing
                .push("writes: nothing but a node in its own seat may write to a device".into());
        }
        Kind::File | Kind::Mapped => match Scratch::make(spec) {
            Ok(scratch) => scratch
                .measure(&mut report)
                .map_err(io("measuring on a scratch file beside the volume"))?,
            Err(why) => report
                .missing
                .push(format!("writes: no scratch file beside the volume: {why}")),
        },
    }
    Ok(report)
}

fn measure(mut step: impl FnMut(usize) -> io::Result<()>) -> io::Result<Latency> {
    let mut taken = Vec::with_capacity(OPERATIONS_MAX);
    let begin = Instant::now();
    while taken.len() < OPERATIONS_MAX && begin.elapsed() < TIME_MAX {
        let start = Instant::now();
        step(taken.len())?;
        taken.push(start.elapsed().as_secs_f64() * 1e6);
    }
    taken.sort_by(f64::total_cmp);
    let at = |part: f64| {
        let last = taken.len().saturating_sub(1);
        taken
            .get((last as f64 * part) as usize)
            .copied()
            .unwrap_or_default()
    };
    Ok(Latency {
        operations: taken.len(),
        p50_us: at(0.5),
        p99_us: at(0.99),
        max_us: at(1.0),
    })
}

fn slot(geometry: &Geometry, seat: u16, number: usize) -> Place {
    let ring = geometry.ring(0, geometry.extents);
    Place::Slot {
        seat: SeatId(seat),
        ring,
        slot: (number % geometry.ring_slots(ring).max(1) as usize) as u32,
        skip: 0,
    }
}

fn measure_reads(medium: &mut dyn Medium, geometry: &Geometry) -> io::Result<Latency> {
    let mut blocking = Blocking::new(medium);
    // Tables: a format writes them, so that a file has blocks there and not only the promise of some.
    let units = u32::from(geometry.table_units);
    measure(|count| {
        let place = Place::Table {
            seat: SeatId((count % usize::from(geometry.seats)) as u16),
            copy: (count / 7 % 2) as u8,
            // A stride, so that no read-ahead helps.
            unit: (count as u32).wrapping_mul(7919) % units,
        };
        blocking.read(place, 1).map(drop)
    })
}

/// A file beside the volume, for writing; deleted when dropped.
struct Scratch {
    spec: VolumeSpec,
    path: PathBuf,
}

impl Scratch {
    fn make(volume: &VolumeSpec) -> io::Result<Self> {
        let target = volume.path().canonicalize()?;
        let name = format!(".stp-probe-{}", std::process::id());
        let path = target.with_file_name(name);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        let text = match volume.named_kind() {
            Some(kind) => format!("{}:{}", kind.prefix(), path.display()),
            None => path.display().to_string(),
        };
        let scratch = Self {
            spec: text.parse().map_err(io::Error::other)?,
            path,
        };
        format::write_zeros(&file, SCRATCH_BYTES)?;
        file.sync_all()?;
        Ok(scratch)
    }

    fn open(&self, geometry: Geometry) -> io::Result<Box<dyn Medium>> {
        let options = stp_medium::OpenOptions {
            access: Access::ReadWrite,
            io: IoChoice::from_env(),
        };
        let mut medium = stp_medium::open(&self.spec, &options).map_err(io::Error::other)?;
        medium.set_geometry(geometry);
        Ok(medium)
    }

    fn measure(&self, report: &mut ProbeReport) -> io::Result<()> {
        let geometry = Geometry::plan(SCRATCH_BYTES, 2).map_err(io::Error::other)?;
        let (mut one, mut two) = (self.open(geometry)?, self.open(geometry)?);
        report.seat_locks = Some(match one.lock_seat(SeatId(0))? {
            SeatLock::Held => two.lock_seat(SeatId(0))? == SeatLock::Busy,
            SeatLock::Busy | SeatLock::Unsupported => false,
        });
        let data = Arc::new(tagged(1));
        let mut writer = Blocking::new(&mut *one);
        for (durable, latency) in [
            (false, &mut report.write),
            (true, &mut report.write_durable),
        ] {
            *latency = Some(measure(|count| {
                writer.write(slot(&geometry, 0, count), Arc::clone(&data), durable)
            })?);
        }
        let mut reader = Blocking::new(&mut *two);
        let place = slot(&geometry, 1, 0);
        report.seen = Some(measure(|count| {
            let data = tagged(count as u64 + 1);
            let wanted = data.bytes()[..8].to_vec();
            writer.write(place, Arc::new(data), false)?;
            let until = Instant::now() + TIME_MAX;
            while reader.read(place, 1)?.bytes()[..8] != wanted {
                if Instant::now() > until {
                    return Err(io::Error::other(
                        "a second handle does not see what is written",
                    ));
                }
            }
            Ok(())
        })?);
        report.tearing = Some(measure_tearing(&mut *one, &mut *two, place)?);
        Ok(())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!("{} is left behind: {error}", self.path.display());
        }
    }
}

/// A unit of one number, over and over.
fn tagged(tag: u64) -> UnitBuf {
    let mut buf = UnitBuf::zeroed(1);
    for word in buf.bytes_mut().chunks_exact_mut(8) {
        word.copy_from_slice(&tag.to_le_bytes());
    }
    buf
}

fn measure_tearing(
    one: &mut dyn Medium,
    two: &mut dyn Medium,
    place: Place,
) -> io::Result<Tearing> {
    let stop = AtomicBool::new(false);
    let mut seen = Tearing::default();
    let mut writer = Blocking::new(one);
    let mut reader = Blocking::new(two);
    writer.write(place, Arc::new(tagged(0)), false)?;
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| {
            for tag in 1.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                writer.write(place, Arc::new(tagged(tag)), false)?;
            }
            Ok::<(), io::Error>(())
        });
        let begin = Instant::now();
        let mut newest = 0;
        let mut read = || -> io::Result<()> {
            while begin.elapsed() < TIME_MAX {
                let unit = reader.read(place, 1)?;
                let first = &unit.bytes()[..8];
                let tag = u64::from_le_bytes(first.try_into().unwrap_or_default());
                seen.reads += 1;
                seen.torn += usize::from(unit.bytes().chunks_exact(8).any(|w| w != first));
                seen.backwards += usize::from(tag < newest);
                newest = newest.max(tag);
            }
            Ok(())
        };
        let read = read();
        stop.store(true, Ordering::Relaxed);
        let written = writing
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the writer's thread failed")));
        read.and(written)
    })?;
    Ok(seen)
}

/// What the kernel states of a device's sectors and caches.
fn device_facts(path: &Path) -> Vec<(String, String)> {
    let Ok(found) = std::fs::metadata(path) else {
        return Vec::new();
    };
    let (major, minor) = (
        rustix::fs::major(found.rdev()),
        rustix::fs::minor(found.rdev()),
    );
    let device = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    // A partition has its queue one step up.
    let queue = [device.join("queue"), device.join("../queue")];
    let Some(queue) = queue.iter().find(|queue| queue.is_dir()) else {
        return Vec::new();
    };
    [
        "logical_block_size",
        "physical_block_size",
        "write_cache",
        "fua",
        "atomic_write_unit_max_bytes",
    ]
    .iter()
    .filter_map(|name| {
        let value = std::fs::read_to_string(queue.join(name)).ok()?;
        Some(((*name).to_owned(), value.trim().to_owned()))
    })
    .collect()
}

const _: () = assert!(SCRATCH_BYTES.is_multiple_of(UNIT_BYTES as u64));
