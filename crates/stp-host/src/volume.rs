//! A volume as a whole: opening, formatting, looking at it.
//!
//! - Opening writes nothing. One readable copy of the superblock is enough; a bad one is reported.
//! - Every error is one line that names the volume and says what to do.
//! - What is read of a live volume may be late or torn: it is read again, a named number of times.

mod check;
mod error;
mod format;
mod probe;
mod read;
mod transfer;

use std::time::Duration;

use stp_format::{Damage, GroupName, Place, Superblock, UnitBuf};
use stp_medium::{Access, IoChoice, Medium, OpenOptions, VolumeSpec};

pub use check::{CheckReport, Finding, Severity};
pub use error::VolumeError;
pub use format::{FormatOptions, Formatted, SIZE_BYTES_DEFAULT, format};
pub use probe::{Latency, ProbeReport, Tearing, probe};
pub use read::{Liveness, SeatView, SocketView};
pub use transfer::Blocking;

/// How often a record that does not validate is read again before that is believed.
pub const REREADS_MAX: u32 = 10;
/// Pause between two of those.
pub const REREAD_PAUSE: Duration = Duration::from_millis(20);

/// A volume whose superblock was read and whose storage is big enough for it.
pub struct Volume {
    spec: VolumeSpec,
    superblock: Superblock,
    /// Per copy of the superblock, what is wrong with it.
    damage: [Option<String>; 2],
    medium: Box<dyn Medium>,
    size_bytes: u64,
    /// Nobody writes: nothing is late, and nobody is waited for.
    still: bool,
}

impl std::fmt::Debug for Volume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Volume")
            .field("spec", &self.spec)
            .field("superblock", &self.superblock)
            .finish_non_exhaustive()
    }
}

/// Opens a volume for a node.
pub fn open(spec: &VolumeSpec) -> Result<Volume, VolumeError> {
    open_with(spec, Access::ReadWrite)
}

/// Opens a volume to look at it; needs no permission to write.
pub fn open_read_only(spec: &VolumeSpec) -> Result<Volume, VolumeError> {
    open_with(spec, Access::Read)
}

/// In a thread of its own, which ends with that. The kernel ties an io_uring to each thread that has used it, and when the
/// ring goes it interrupts whatever call that thread waits in: the program's `epoll_wait`, if it were the caller.
fn open_with(spec: &VolumeSpec, access: Access) -> Result<Volume, VolumeError> {
    std::thread::scope(|scope| {
        let opener = std::thread::Builder::new().name("stp-open".to_owned());
        match opener.spawn_scoped(scope, || open_here(spec, access)) {
            Ok(opener) => opener
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            // No thread can be had: then with the interruption.
            Err(_) => open_here(spec, access),
        }
    })
}

fn open_here(spec: &VolumeSpec, access: Access) -> Result<Volume, VolumeError> {
    let options = OpenOptions {
        access,
        io: IoChoice::from_env(),
    };
    let medium = stp_medium::open(spec, &options)?;
    let volume = from_medium(spec, medium)?;
    let bits = volume.superblock.features.unknown_read_only();
    if access == Access::ReadWrite && bits != 0 {
        let spec = spec.clone();
        return Err(VolumeError::ReadOnlyFeatures { spec, bits });
    }
    Ok(volume)
}

/// A volume on a medium that is open already. `spec` is its name in messages.
pub fn from_medium(spec: &VolumeSpec, mut medium: Box<dyn Medium>) -> Result<Volume, VolumeError> {
    let io = |source| VolumeError::Io {
        spec: spec.clone(),
        what: "reading the superblock",
        source,
    };
    let size_bytes = medium.size_bytes().map_err(io)?;
    let mut blocking = Blocking::new(&mut *medium);
    let mut read = || [0, 1].map(|copy| read_superblock(&mut blocking, copy, size_bytes));
    let mut copies = read();
    for _ in 0..REREADS_MAX {
        // A storage that fails now and then keeps nobody out.
        let good = copies.iter().any(|copy| matches!(copy, Ok(Ok(_))));
        if good || copies.iter().all(Result::is_ok) {
            break;
        }
        std::thread::sleep(REREAD_PAUSE);
        copies = read();
    }
    let (superblock, damage) = match copies {
        [Ok(Ok(one)), Ok(Ok(two))] if one != two => {
            return Err(VolumeError::CopiesDiffer {
                spec: spec.clone(),
                groups: Box::new([one.group, two.group]),
            });
        }
        [Ok(Ok(one)), other] => (one, [None, damage_of(other)]),
        [other, Ok(Ok(two))] => (two, [damage_of(other), None]),
        [Ok(Err(one)), Ok(Err(two))] => return Err(VolumeError::of_damage(spec, [one, two])),
        [Err(source), _] | [_, Err(source)] => return Err(io(source)),
    };
    for (copy, damage) in damage.iter().enumerate() {
        if let Some(damage) = damage {
            tracing::warn!(
                "volume {spec}: copy {copy} of the superblock: {damage}; using the other"
            );
        }
    }
    if size_bytes < superblock.geometry.size_bytes {
        return Err(VolumeError::TooShort {
            spec: spec.clone(),
            found: size_bytes,
            needed: superblock.geometry.size_bytes,
        });
    }
    medium.set_geometry(superblock.geometry);
    Ok(Volume {
        spec: spec.clone(),
        superblock,
        damage,
        medium,
        size_bytes,
        still: false,
    })
}

type SuperblockCopy = std::io::Result<Result<Superblock, Damage>>;

/// What is wrong with a copy.
fn damage_of(copy: SuperblockCopy) -> Option<String> {
    match copy {
        Ok(Ok(_)) => None,
        Ok(Err(damage)) => Some(damage.to_string()),
        Err(error) => Some(format!("cannot be read: {error}")),
    }
}

fn read_superblock(blocking: &mut Blocking<'_>, copy: u8, size_bytes: u64) -> SuperblockCopy {
    let end = stp_format::Geometry::superblock_offset(copy) + stp_format::UNIT_BYTES as u64;
    if end > size_bytes {
        return Ok(Err(Damage::Blank));
    }
    let unit: UnitBuf = blocking.read(Place::Superblock { copy }, 1)?;
    Ok(Superblock::decode(unit.bytes()))
}

impl Volume {
    /// Its name, as the user gave it.
    pub fn spec(&self) -> &VolumeSpec {
        &self.spec
    }

    /// What it is.
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// Per copy of the superblock, what is wrong with it.
    pub fn superblock_damage(&self) -> &[Option<String>; 2] {
        &self.damage
    }

    /// Bytes of the storage under it; at least those of its geometry.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Says that nobody writes to this storage, as with a copy of a volume: what does not validate is not read again,
    /// and whether nodes live is not waited for.
    pub fn assume_still(&mut self) {
        self.still = true;
    }

    /// How often a record that does not validate is read again.
    fn rereads_max(&self) -> u32 {
        if self.still { 0 } else { REREADS_MAX }
    }

    /// What kind of storage that is, for people.
    pub fn describe(&self) -> String {
        self.medium.describe()
    }

    /// The storage, with the geometry set.
    pub fn medium(&mut self) -> &mut dyn Medium {
        &mut *self.medium
    }

    /// Gives the storage away, with the geometry set.
    pub fn into_medium(self) -> Box<dyn Medium> {
        self.medium
    }

    /// An error unless this is the group that the caller wants.
    pub fn expect_group(&self, wanted: &GroupName) -> Result<(), VolumeError> {
        if self.superblock.group == *wanted {
            return Ok(());
        }
        Err(VolumeError::OtherGroup {
            spec: self.spec.clone(),
            names: Box::new([self.superblock.group, *wanted]),
        })
    }
}
