//! What can be wrong with a record, and the checksum that finds it.
//!
//! - A checksum covers everything behind itself in its record; the magic before it is compared.
//! - A bad checksum alone proves nothing: the write may still be under way. Read again.

use crate::ids::{NameError, VolumeId};
use core::fmt;
use core::hash::Hasher as _;

/// The version of the format that this code writes, and the newest that it reads.
pub const FORMAT_VERSION: u16 = 1;

/// Why bytes are not the record that was looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// Zeros: nothing was ever written here.
    Blank,
    /// Other bytes than the record's magic; something else lies here.
    Magic,
    /// A format version that this code does not know.
    Version(u16),
    /// Incompatible feature bits that this code does not know.
    Features(u32),
    /// A record of another volume.
    Volume(VolumeId),
    /// The checksum does not match: late, torn, or damaged.
    Checksum,
    /// A length that cannot be.
    Length(u64),
    /// A field with a value that no writer writes.
    Field(&'static str),
    /// A name that is none.
    Name(&'static str, NameError),
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blank => f.write_str("blank, never written"),
            Self::Magic => f.write_str("not an STP record (wrong magic)"),
            Self::Version(found) => {
                write!(
                    f,
                    "format version {found}; this program reads version {FORMAT_VERSION}"
                )
            }
            Self::Features(bits) => write!(f, "unknown incompatible features {bits:#x}"),
            Self::Volume(id) => write!(f, "belongs to another volume ({id})"),
            Self::Checksum => f.write_str("checksum mismatch"),
            Self::Length(found) => write!(f, "impossible length {found}"),
            Self::Field(name) => write!(f, "impossible value in field {name:?}"),
            Self::Name(name, error) => write!(f, "field {name:?}: {error}"),
        }
    }
}

impl core::error::Error for Damage {}

/// The checksum of a record whose covered part is `covered`: XXH3, 64 bits.
pub(crate) fn checksum(covered: &[u8]) -> u64 {
    twox_hash::XxHash3_64::oneshot(covered)
}

/// The same of two parts that lie apart.
pub(crate) fn checksum_of_parts(front: &[u8], rest: &[u8]) -> u64 {
    let mut hasher = twox_hash::xxhash3_64::Hasher::new();
    hasher.write(front);
    hasher.write(rest);
    hasher.finish()
}

/// Bytes of magic and checksum in front of every record's covered part.
pub(crate) const SEAL_BYTES: usize = 16;

/// Checks magic and checksum of the record that fills `bytes`.
pub(crate) fn unseal(bytes: &[u8], magic: &[u8; 8]) -> Result<(), Damage> {
    let found = bytes.get(..8).ok_or(Damage::Length(bytes.len() as u64))?;
    if found != magic {
        let blank = found.iter().all(|b| *b == 0);
        return Err(if blank { Damage::Blank } else { Damage::Magic });
    }
    let stored = bytes
        .get(8..SEAL_BYTES)
        .ok_or(Damage::Length(bytes.len() as u64))?;
    if stored != checksum(&bytes[SEAL_BYTES..]).to_le_bytes() {
        return Err(Damage::Checksum);
    }
    Ok(())
}

/// Puts magic and checksum in front of a finished record.
pub(crate) fn seal(bytes: &mut [u8], magic: &[u8; 8]) {
    let sum = checksum(&bytes[SEAL_BYTES..]).to_le_bytes();
    bytes[..8].copy_from_slice(magic);
    bytes[8..SEAL_BYTES].copy_from_slice(&sum);
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    /// Each way through XXH3 has lengths of its own.
    #[test]
    fn checksums_are_those_of_another_implementation() {
        let bytes: Vec<u8> = (0..300_000_u32)
            .map(|at| (at.wrapping_mul(at) >> 7) as u8)
            .collect();
        let short = 0..=600;
        let long = [1023, 1024, 1025, 4080, 4096, 65_536, 262_128, 300_000];
        for len in short.chain(long) {
            let covered = &bytes[..len];
            let other = xxhash_rust::xxh3::xxh3_64(covered);
            assert_eq!(checksum(covered), other, "{len} bytes");
            let (front, rest) = covered.split_at(len.min(136));
            assert_eq!(checksum_of_parts(front, rest), other, "{len} bytes");
        }
    }
}
