//! The superblock: what this volume is. Written at format, never changed.
//!
//! - Two copies, far apart; either is enough.
//! - An unknown *incompatible* feature bit forbids any use, an unknown *read-only compatible* one
//!   forbids writing, an unknown *compatible* one is nobody's business.

use crate::damage::{Damage, FORMAT_VERSION, seal, unseal};
use crate::geometry::Geometry;
use crate::ids::{GroupName, VolumeId};
use crate::layout::record;
use crate::unit::{UNIT_BYTES, UnitBuf};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// First bytes of a volume.
pub const SUPERBLOCK_MAGIC: [u8; 8] = *b"STPvol\r\n";

record! {
    /// The superblock's layout; the rest of its unit is zero.
    struct SuperblockBytes[256] {
        /// `STPvol\r\n`
        magic: [u8; 8],
        /// XXH3-64 of the rest of the unit
        checksum: U64,
        /// format version
        version: U16,
        /// number of seats
        seats: U16,
        /// units of one copy of a seat record
        record_units: U16,
        /// units of one copy of a socket table
        table_units: U16,
        /// units of an extent
        extent_units: U16,
        /// extents of a seat
        extents: U16,
        /// bytes of a unit: 4096
        unit_bytes: U32,
        /// bytes of the volume
        size_bytes: U64,
        /// compatible feature bits
        features_compatible: U32,
        /// read-only compatible feature bits
        features_read_only: U32,
        /// incompatible feature bits
        features_incompatible: U32,
        /// zero
        reserved_a: U32,
        /// the volume's random identity
        volume: [u8; 16],
        /// when it was formatted, seconds since 1970; for people only
        created_unix_s: U64,
        /// the group's name, zero-padded
        group: [u8; 64],
        /// zero
        reserved_b: [u8; 112],
    }
}

/// Feature bits: what a volume was made with. This version knows none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// Unknown ones mean nothing.
    pub compatible: u32,
    /// Unknown ones forbid writing.
    pub read_only: u32,
    /// Unknown ones forbid any use.
    pub incompatible: u32,
}

impl Features {
    /// The read-only compatible bits that this version does not know: with any, it may look and not write.
    pub fn unknown_read_only(&self) -> u32 {
        self.read_only
    }

    /// The incompatible bits that this version does not know.
    pub fn unknown_incompatible(&self) -> u32 {
        self.incompatible
    }
}

/// A superblock that was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// The volume's identity.
    pub volume: VolumeId,
    /// The group's name.
    pub group: GroupName,
    /// The volume's measures.
    pub geometry: Geometry,
    /// Seconds since 1970 at format; for people only.
    pub created_unix_s: u64,
    /// What it was made with; no unknown incompatible bit is among them.
    pub features: Features,
}

impl Superblock {
    /// As one unit.
    pub fn encode(&self) -> UnitBuf {
        let geometry = &self.geometry;
        let mut head = SuperblockBytes::new_zeroed();
        head.version = FORMAT_VERSION.into();
        head.seats = geometry.seats.into();
        head.record_units = geometry.record_units.into();
        head.table_units = geometry.table_units.into();
        head.extent_units = geometry.extent_units.into();
        head.extents = geometry.extents.into();
        head.unit_bytes = (UNIT_BYTES as u32).into();
        head.size_bytes = geometry.size_bytes.into();
        head.features_compatible = self.features.compatible.into();
        head.features_read_only = self.features.read_only.into();
        head.features_incompatible = self.features.incompatible.into();
        head.volume = self.volume.0;
        head.created_unix_s = self.created_unix_s.into();
        head.group = self.group.padded();
        let mut unit = UnitBuf::zeroed(1);
        unit.bytes_mut()[..256].copy_from_slice(head.as_bytes());
        seal(unit.bytes_mut(), &SUPERBLOCK_MAGIC);
        unit
    }

    /// From one unit.
    pub fn decode(unit: &[u8]) -> Result<Self, Damage> {
        let length = Damage::Length(unit.len() as u64);
        let unit = unit.get(..UNIT_BYTES).ok_or(length)?;
        let (head, _) = SuperblockBytes::ref_from_prefix(unit).map_err(|_| length)?;
        // The version first: another version may checksum another way.
        if head.magic == SUPERBLOCK_MAGIC && head.version != FORMAT_VERSION {
            return Err(Damage::Version(head.version.get()));
        }
        unseal(unit, &SUPERBLOCK_MAGIC)?;
        let features = Features {
            compatible: head.features_compatible.get(),
            read_only: head.features_read_only.get(),
            incompatible: head.features_incompatible.get(),
        };
        if features.unknown_incompatible() != 0 {
            return Err(Damage::Features(features.unknown_incompatible()));
        }
        if head.unit_bytes != UNIT_BYTES as u32 {
            return Err(Damage::Field("unit_bytes"));
        }
        let geometry = Geometry {
            size_bytes: head.size_bytes.get(),
            seats: head.seats.get(),
            record_units: head.record_units.get(),
            table_units: head.table_units.get(),
            extent_units: head.extent_units.get(),
            extents: head.extents.get(),
        };
        Ok(Self {
            volume: VolumeId(head.volume),
            group: GroupName::from_padded(&head.group).map_err(|e| Damage::Name("group", e))?,
            geometry: geometry
                .validated()
                .map_err(|_| Damage::Field("geometry"))?,
            created_unix_s: head.created_unix_s.get(),
            features,
        })
    }
}
