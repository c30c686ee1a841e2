//! Why a volume cannot be used: culprit, reason and remedy in one line.

use std::fmt;
use std::io;

use stp_format::{Damage, GeometryError, GroupName, SeatId, SystemName};
use stp_medium::signature::Found;
use stp_medium::{OpenError, VolumeSpec};

/// Why a volume cannot be opened, formatted or read.
#[derive(Debug)]
pub enum VolumeError {
    /// Its storage cannot be opened.
    Open(OpenError),
    /// No superblock: nothing or something else is there.
    NoGroup {
        /// Which volume.
        spec: VolumeSpec,
    },
    /// Made by another version.
    Version {
        /// Which volume.
        spec: VolumeSpec,
        /// What the superblock says.
        found: u16,
    },
    /// Made with features that this version does not know.
    Features {
        /// Which volume.
        spec: VolumeSpec,
        /// The unknown incompatible bits.
        bits: u32,
    },
    /// Made with features that this version may look at and not write with.
    ReadOnlyFeatures {
        /// Which volume.
        spec: VolumeSpec,
        /// The unknown read-only compatible bits.
        bits: u32,
    },
    /// Neither copy of the superblock is whole.
    Damaged {
        /// Which volume.
        spec: VolumeSpec,
        /// What is wrong with each.
        copies: [Damage; 2],
    },
    /// Both copies are whole, but not the same.
    CopiesDiffer {
        /// Which volume.
        spec: VolumeSpec,
        /// The groups that they name.
        groups: Box<[GroupName; 2]>,
    },
    /// The storage is smaller than the volume.
    TooShort {
        /// Which volume.
        spec: VolumeSpec,
        /// Bytes there are.
        found: u64,
        /// Bytes that the geometry needs.
        needed: u64,
    },
    /// Another group than the one wanted.
    OtherGroup {
        /// Which volume.
        spec: VolumeSpec,
        /// The one found and the one wanted.
        names: Box<[GroupName; 2]>,
    },
    /// Format: a group is there.
    GroupExists {
        /// Which volume.
        spec: VolumeSpec,
        /// Its name, if its superblock can be read.
        group: Option<Box<GroupName>>,
    },
    /// Format: something else is there.
    Occupied {
        /// Which volume.
        spec: VolumeSpec,
        /// What.
        found: Vec<Found>,
    },
    /// Format: a node works there.
    InUse {
        /// Which volume.
        spec: VolumeSpec,
        /// In which seat.
        seat: SeatId,
        /// Its system, if its record can be read.
        system: Option<Box<SystemName>>,
    },
    /// Format: no superblock can be read, but a seat record changes: a node is at work.
    Moving {
        /// Which volume.
        spec: VolumeSpec,
    },
    /// Format: the size or the number of seats cannot be.
    Geometry {
        /// Which volume.
        spec: VolumeSpec,
        /// Why.
        source: GeometryError,
    },
    /// Format: a device has fewer bytes than asked for.
    DeviceTooSmall {
        /// Which volume.
        spec: VolumeSpec,
        /// Bytes it has.
        found: u64,
        /// Bytes asked for.
        asked: u64,
    },
    /// Format: only devices lie there, and this one does not exist.
    NoDevice {
        /// Which volume.
        spec: VolumeSpec,
    },
    /// The file system has no room.
    NoSpace {
        /// Which volume.
        spec: VolumeSpec,
        /// Bytes asked for.
        asked: u64,
    },
    /// Anything else that the storage refused.
    Io {
        /// Which volume.
        spec: VolumeSpec,
        /// At what.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

impl VolumeError {
    /// The error for two superblock copies that are both unusable.
    pub(super) fn of_damage(spec: &VolumeSpec, copies: [Damage; 2]) -> Self {
        let spec = spec.clone();
        let version = copies.iter().find_map(|damage| match damage {
            Damage::Version(found) => Some(*found),
            _ => None,
        });
        let features = copies.iter().find_map(|damage| match damage {
            Damage::Features(bits) => Some(*bits),
            _ => None,
        });
        let foreign =
            |damage: &Damage| matches!(damage, Damage::Blank | Damage::Magic | Damage::Length(_));
        if let Some(found) = version {
            Self::Version { spec, found }
        } else if let Some(bits) = features {
            Self::Features { spec, bits }
        } else if copies.iter().all(foreign) {
            Self::NoGroup { spec }
        } else {
            Self::Damaged { spec, copies }
        }
    }

    /// The volume.
    pub fn spec(&self) -> &VolumeSpec {
        match self {
            Self::Open(error) => error.spec(),
            Self::NoGroup { spec }
            | Self::Version { spec, .. }
            | Self::Features { spec, .. }
            | Self::ReadOnlyFeatures { spec, .. }
            | Self::Damaged { spec, .. }
            | Self::CopiesDiffer { spec, .. }
            | Self::TooShort { spec, .. }
            | Self::OtherGroup { spec, .. }
            | Self::GroupExists { spec, .. }
            | Self::Occupied { spec, .. }
            | Self::InUse { spec, .. }
            | Self::Moving { spec }
            | Self::Geometry { spec, .. }
            | Self::DeviceTooSmall { spec, .. }
            | Self::NoDevice { spec }
            | Self::NoSpace { spec, .. }
            | Self::Io { spec, .. } => spec,
        }
    }
}

impl From<OpenError> for VolumeError {
    fn from(error: OpenError) -> Self {
        Self::Open(error)
    }
}

impl fmt::Display for VolumeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Self::Open(error) = self {
            return error.fmt(f);
        }
        write!(f, "volume {}: ", self.spec())?;
        match self {
            Self::Open(_) => Ok(()),
            Self::NoGroup { .. } => {
                f.write_str("holds no STP group: check the path, or make a group with `stp format`")
            }
            Self::Version { found, .. } => write!(
                f,
                "has format version {found}, this program reads version {}: use the version of stp that made it",
                stp_format::FORMAT_VERSION
            ),
            Self::Features { bits, .. } => write!(
                f,
                "uses features that this version of stp does not know (incompatible bits {bits:#x}): \
                 use the version that made it, or a newer one"
            ),
            Self::ReadOnlyFeatures { bits, .. } => write!(
                f,
                "has features that this version of stp cannot write with (read-only compatible bits {bits:#x}): \
                 `stp info`, `stp check` and `stp ss --all` work; to take part, use the version that made it, or a newer one"
            ),
            Self::Damaged {
                copies: [one, two], ..
            } => write!(
                f,
                "both copies of the superblock are damaged (first: {one}; second: {two}): \
                 restore it from a backup, or start anew with `stp format --force`"
            ),
            Self::CopiesDiffer { groups, .. } => write!(
                f,
                "the copies of the superblock are of different groups ({} and {}): \
                 a format was interrupted, or two devices are mixed; `stp format --force` starts anew",
                groups[0], groups[1]
            ),
            Self::TooShort { found, needed, .. } => write!(
                f,
                "has {found} bytes, but its group was made with {needed}: it was cut off, or is a part of the \
                 device only; restore its size"
            ),
            Self::OtherGroup { names, .. } => write!(
                f,
                "holds the group {}, not {}: check the path or the group's name",
                names[0], names[1]
            ),
            Self::GroupExists { group, .. } => {
                match group {
                    Some(group) => write!(f, "holds the group {group} already")?,
                    None => {
                        f.write_str("holds a group already (of another version, or damaged)")?
                    }
                }
                f.write_str(": choose another volume, or give up what is there with --force")
            }
            Self::Occupied { found, .. } => {
                f.write_str("holds ")?;
                for (at, what) in found.iter().enumerate() {
                    let comma = if at == 0 { "" } else { " and " };
                    write!(f, "{comma}{what}")?;
                }
                f.write_str(": choose another volume, or give up what is there with --force")
            }
            Self::InUse { seat, system, .. } => {
                write!(f, "a node is at work in seat {seat}")?;
                if let Some(system) = system {
                    write!(f, " (system {system})")?;
                }
                f.write_str(": end it first; --force does not format under a live node")
            }
            Self::Moving { .. } => f.write_str(
                "a node is at work on it, although no superblock of this version can be read: end every engine on every host first; \
                 --force does not format under a live node",
            ),
            Self::Geometry { source, .. } => {
                write!(f, "{source}: choose another --size or number of --seats")
            }
            Self::DeviceTooSmall { found, asked, .. } => write!(
                f,
                "the device has {found} bytes, {asked} were asked for: leave --size out to use all of it"
            ),
            Self::NoDevice { .. } => f.write_str(
                "there is no such device: attach it, or check the path; no files are made in /dev",
            ),
            Self::NoSpace { asked, .. } => write!(
                f,
                "no room for {asked} bytes in its file system: make room, or choose a smaller --size"
            ),
            Self::Io { what, source, .. } => write!(
                f,
                "{what}: {source}: see whether the storage is in order and this user may use it"
            ),
        }
    }
}

impl std::error::Error for VolumeError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Open(error) => Some(error),
            Self::Geometry { source, .. } => Some(source),
            Self::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}
