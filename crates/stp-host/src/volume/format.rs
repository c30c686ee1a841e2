//! Making a volume of a file or a device.
//!
//! - Nothing is overwritten that was not looked at first; `force` gives up what is there, but never
//!   a volume on which a node is at work.
//! - Order: old superblocks are wiped, records and tables zeroed, the new superblocks written, each step
//!   durable before the next. Interrupted, there is no volume, never half a one.
//! - Rings are not zeroed: what they hold names another volume.
//! - A file gets all its space at once and never grows later; a new one is its owner's alone (mode 0600).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::{FallocateFlags, OFlags, SeekFrom};
use rustix::io::Errno;
use stp_format::geometry::{SEATS_MAX, SEATS_MIN};
use stp_format::{
    Features, Geometry, GroupName, Place, SeatId, SeatRecord, Superblock, UNIT_BYTES, UnitBuf,
    VolumeId,
};
use stp_medium::signature::{self, Found};
use stp_medium::{Access, IoChoice, Kind, Medium, OpenError, SeatLock, VolumeSpec};

use super::transfer::Blocking;
use super::{Liveness, Volume, VolumeError};

/// Numbers of seats, of which the highest that fits is looked through for a volume that cannot be read.
const SEAT_COUNTS: [u16; 6] = [SEATS_MAX, 64, 32, 16, 8, SEATS_MIN];

/// What changes of a seat record while its node lives.
type Beat = (stp_format::Incarnation, u64, u64);

/// Size of a new file unless another is asked for.
pub const SIZE_BYTES_DEFAULT: u64 = 256 << 20;

/// What to make.
#[derive(Clone, Debug)]
pub struct FormatOptions {
    /// The group's name.
    pub group: GroupName,
    /// Bytes; `None`: all of a device, an existing file as it is, [`SIZE_BYTES_DEFAULT`] for a new one.
    pub size_bytes: Option<u64>,
    /// Number of seats.
    pub seats: u16,
    /// Whether to overwrite what is there.
    pub force: bool,
}

/// What was made.
#[derive(Clone, Debug)]
pub struct Formatted {
    /// The new superblock.
    pub superblock: Superblock,
    /// What kind of storage it is on, for people.
    pub storage: String,
    /// What was overwritten.
    pub overwritten: Vec<Found>,
}

/// Makes a volume.
pub fn format(spec: &VolumeSpec, options: &FormatOptions) -> Result<Formatted, VolumeError> {
    let job = Job { spec, options };
    match spec.detect() {
        Ok(kind) => job.existing(kind),
        Err(error) if error.is_missing() => job.new_file().map_err(|e| e.unwrap_or(error.into())),
        Err(error) => Err(error.into()),
    }
}

struct Job<'a> {
    spec: &'a VolumeSpec,
    options: &'a FormatOptions,
}

impl Job<'_> {
    /// Makes a file where nothing is. `Err(None)`: nothing can be made there.
    fn new_file(&self) -> Result<Formatted, Option<VolumeError>> {
        let path = self.spec.path();
        let parent = match path.parent() {
            Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
            Some(parent) => parent,
            None => return Err(None),
        };
        if self.spec.named_kind() == Some(Kind::Block) {
            return Err(None);
        }
        let real = parent.canonicalize().map_err(|_| None)?;
        if real.starts_with("/dev") && !real.starts_with("/dev/shm") {
            let spec = self.spec.clone();
            return Err(Some(VolumeError::NoDevice { spec }));
        }
        let size = self.options.size_bytes.unwrap_or(SIZE_BYTES_DEFAULT);
        let geometry = self.plan(size).map_err(Some)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(|source| match Errno::from_io_error(&source) {
                Some(Errno::ACCESS | Errno::PERM) => {
                    self.io("making the file in its folder", source)
                }
                _ => OpenError::of(self.spec, source, Access::ReadWrite).into(),
            })?;
        let made = self
            .allocate(&file, geometry.size_bytes)
            .and_then(|()| self.write(geometry, Vec::new()))
            .and_then(|formatted| {
                File::open(parent)
                    .and_then(|dir| dir.sync_all())
                    .map_err(|source| self.io("syncing the directory", source))?;
                Ok(formatted)
            });
        if made.is_err() {
            // It is ours, and of no use to anybody.
            let _ = std::fs::remove_file(path);
        }
        made.map_err(Some)
    }

    fn existing(&self, kind: Kind) -> Result<Formatted, VolumeError> {
        let path = self.spec.path();
        // On a device, O_EXCL is refused while it is mounted or part of another device.
        let exclusive = match kind {
            Kind::Block => OFlags::EXCL,
            Kind::File | Kind::Mapped => OFlags::empty(),
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags((exclusive | OFlags::NOCTTY).bits() as i32)
            .open(path)
            .map_err(|source| OpenError::of(self.spec, source, Access::ReadWrite))?;
        let bytes = rustix::fs::seek(&file, SeekFrom::End(0))
            .map_err(|errno| self.io("asking for the size", errno.into()))?;
        // What a device has cannot be made longer.
        let given = kind == Kind::Block || stp_medium::is_device_memory(&file);
        let size = match self.options.size_bytes {
            Some(asked) if given && asked > bytes => {
                return Err(VolumeError::DeviceTooSmall {
                    spec: self.spec.clone(),
                    found: bytes,
                    asked,
                });
            }
            Some(asked) => asked,
            None if given => bytes,
            None if bytes == 0 => SIZE_BYTES_DEFAULT,
            None => bytes,
        };
        let geometry = self.plan(size)?;
        let found = signature::scan(&file, kind == Kind::Block)
            .map_err(|source| self.io("looking at what is there", source))?;
        if found.contains(&Found::Group) {
            // One that may not be written may still be in use.
            let volume = super::open(self.spec).or_else(|_| super::open_read_only(self.spec));
            if !self.options.force {
                return Err(VolumeError::GroupExists {
                    spec: self.spec.clone(),
                    group: volume.ok().map(|volume| volume.superblock.group.into()),
                });
            }
            match volume {
                Ok(volume) => self.refuse_if_in_use(volume)?,
                Err(_) => self.refuse_if_moving(bytes)?,
            }
        } else if !found.is_empty() && !self.options.force {
            return Err(VolumeError::Occupied {
                spec: self.spec.clone(),
                found,
            });
        } else {
            self.refuse_if_moving(bytes)?;
        }
        if !given {
            if bytes < geometry.size_bytes {
                // Longer only now, never again.
                file.set_len(geometry.size_bytes)
                    .map_err(|source| self.io("making the file longer", source))?;
            }
            self.allocate(&file, geometry.size_bytes)?;
        }
        self.write(geometry, found)
    }

    fn plan(&self, size: u64) -> Result<Geometry, VolumeError> {
        Geometry::plan(size, self.options.seats).map_err(|source| VolumeError::Geometry {
            spec: self.spec.clone(),
            source,
        })
    }

    /// A held seat lock or an advancing heartbeat is a node at work.
    fn refuse_if_in_use(&self, mut volume: Volume) -> Result<(), VolumeError> {
        for seat in (0..volume.superblock.geometry.seats).map(SeatId) {
            if let Ok(SeatLock::Busy) = volume.medium.lock_seat(seat) {
                let views = volume.read_directory()?;
                let view = views.into_iter().find(|view| view.seat == seat);
                return Err(self.in_use(seat, view.and_then(|view| view.record)));
            }
        }
        let seats = volume.watch()?;
        match seats
            .into_iter()
            .find(|(_, liveness)| *liveness == Liveness::Alive)
        {
            Some((view, _)) => Err(self.in_use(view.seat, view.record)),
            None => Ok(()),
        }
    }

    /// The same where no superblock tells where the seats are: they begin at the same place in every version.
    fn refuse_if_moving(&self, bytes: u64) -> Result<(), VolumeError> {
        let widest = SEAT_COUNTS
            .into_iter()
            .find_map(|seats| Geometry::plan(bytes, seats).ok());
        let Some(geometry) = widest else {
            return Ok(());
        };
        let options = stp_medium::OpenOptions {
            access: Access::ReadWrite,
            io: IoChoice::from_env(),
        };
        let mut medium = stp_medium::open(self.spec, &options)?;
        medium.set_geometry(geometry);
        for seat in (0..SEATS_MAX).map(SeatId) {
            if let Ok(SeatLock::Busy) = medium.lock_seat(seat) {
                return Err(self.in_use(seat, None));
            }
        }
        let mut look = || {
            beats(&mut *medium, &geometry).map_err(|source| self.io("looking for nodes", source))
        };
        let first = look()?;
        let until = Instant::now() + super::read::WATCH_MAX;
        while first.iter().any(Option::is_some) && Instant::now() < until {
            std::thread::sleep(super::read::WATCH_PAUSE);
            if look()? != first {
                let spec = self.spec.clone();
                return Err(VolumeError::Moving { spec });
            }
        }
        Ok(())
    }

    fn in_use(&self, seat: SeatId, record: Option<stp_format::SeatRecord>) -> VolumeError {
        VolumeError::InUse {
            spec: self.spec.clone(),
            seat,
            system: record.map(|record| record.system.into()),
        }
    }

    /// Gives a file all its space.
    fn allocate(&self, file: &File, size: u64) -> Result<(), VolumeError> {
        let failed = |error: io::Error| match Errno::from_io_error(&error) {
            Some(Errno::NOSPC | Errno::DQUOT | Errno::FBIG) => VolumeError::NoSpace {
                spec: self.spec.clone(),
                asked: size,
            },
            _ => self.io("allocating the file's space", error),
        };
        loop {
            match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, size) {
                Ok(()) => break,
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                    write_zeros(file, size).map_err(failed)?;
                    break;
                }
                Err(errno) => return Err(failed(errno.into())),
            }
        }
        match file.sync_all() {
            // Some FUSE servers have nothing to sync.
            Err(error) if Errno::from_io_error(&error) != Some(Errno::NOSYS) => Err(failed(error)),
            _ => Ok(()),
        }
    }

    fn write(&self, geometry: Geometry, overwritten: Vec<Found>) -> Result<Formatted, VolumeError> {
        let options = stp_medium::OpenOptions {
            access: Access::ReadWrite,
            io: IoChoice::from_env(),
        };
        let mut medium = stp_medium::open(self.spec, &options)?;
        let mut volume = [0; 16];
        getrandom::fill(&mut volume)
            .map_err(|error| self.io("drawing the volume's identity", io::Error::other(error)))?;
        let created = SystemTime::now().duration_since(UNIX_EPOCH);
        let superblock = Superblock {
            volume: VolumeId(volume),
            group: self.options.group,
            geometry,
            created_unix_s: created.map_or(0, |since| since.as_secs()),
            features: Features::default(),
        };
        write_volume(&mut *medium, &superblock).map_err(|source| {
            match Errno::from_io_error(&source) {
                Some(Errno::NOSPC | Errno::DQUOT) => VolumeError::NoSpace {
                    spec: self.spec.clone(),
                    asked: geometry.size_bytes,
                },
                _ => self.io("writing the volume", source),
            }
        })?;
        Ok(Formatted {
            superblock,
            storage: medium.describe(),
            overwritten,
        })
    }

    fn io(&self, what: &'static str, source: io::Error) -> VolumeError {
        VolumeError::Io {
            spec: self.spec.clone(),
            what,
            source,
        }
    }
}

/// What each unit of the directory shows, as far as seat records begin there.
fn beats(medium: &mut dyn Medium, geometry: &Geometry) -> io::Result<Vec<Option<Beat>>> {
    let mut blocking = Blocking::new(medium);
    let mut beats = Vec::new();
    for seat in (0..geometry.seats).map(SeatId) {
        for copy in 0..2 {
            let place = Place::Seat { seat, copy };
            let record = blocking.read(place, geometry.record_units.into())?;
            beats.extend(record.bytes().chunks(UNIT_BYTES).map(SeatRecord::peek));
        }
    }
    Ok(beats)
}

/// Lays an empty volume down on a medium that is big enough.
pub(super) fn write_volume(medium: &mut dyn Medium, superblock: &Superblock) -> io::Result<()> {
    let geometry = superblock.geometry;
    medium.set_geometry(geometry);
    let mut blocking = Blocking::new(medium);
    for copy in 0..2 {
        blocking.write_durable(Place::Superblock { copy }, UnitBuf::zeroed(1))?;
    }
    for seat in (0..geometry.seats).map(SeatId) {
        for copy in 0..2 {
            let record = UnitBuf::zeroed(geometry.record_units.into());
            blocking.write_durable(Place::Seat { seat, copy }, record)?;
            let place = Place::Table {
                seat,
                copy,
                unit: 0,
            };
            blocking.write_durable(place, UnitBuf::zeroed(geometry.table_units.into()))?;
        }
    }
    for copy in [1, 0] {
        blocking.write_durable(Place::Superblock { copy }, superblock.encode())?;
    }
    Ok(())
}

pub(super) fn write_zeros(file: &File, size: u64) -> io::Result<()> {
    let zeros = vec![0; 256 * UNIT_BYTES];
    let mut offset = 0;
    while offset < size {
        let len = (size - offset).min(zeros.len() as u64) as usize;
        file.write_all_at(&zeros[..len], offset)?;
        offset += len as u64;
    }
    Ok(())
}
