//! The step from a place to bytes, shared by every medium that has its bytes in a row.
//!
//! - An operation is checked once, here, before any byte moves.
//! - Nothing is ever written to a place that has no single writer, but superblocks at format.

use std::io;

use stp_format::{Geometry, Place, UNIT_BYTES};

use crate::Op;

/// Whether writing is allowed at all.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Writable {
    Yes,
    No,
}

/// The byte range of an operation, or why it cannot be.
pub(crate) fn locate(
    geometry: Option<&Geometry>,
    op: &Op,
    writable: Writable,
) -> io::Result<(u64, usize)> {
    let (place, units) = match op {
        Op::Read { place, buf } => (*place, buf.units()),
        Op::Write {
            place, data, units, ..
        } => {
            if writable == Writable::No {
                return Err(io::Error::new(
                    io::ErrorKind::PermissionDenied,
                    "the volume is open for reading only",
                ));
            }
            if *units > data.units() {
                return Err(invalid("more units to write than the buffer has"));
            }
            if matches!(place, Place::Directory { .. }) {
                return Err(invalid("the directory is written seat by seat"));
            }
            (*place, *units)
        }
    };
    if units == 0 {
        return Err(invalid("a transfer of no units"));
    }
    let offset = match (geometry, place) {
        (Some(geometry), _) => geometry.offset(place, units),
        (None, Place::Superblock { copy }) if copy < 2 && units == 1 => {
            Some(Geometry::superblock_offset(copy))
        }
        (None, _) => None,
    };
    let offset = offset.ok_or_else(outside)?;
    Ok((offset, units * UNIT_BYTES))
}

pub(crate) fn outside() -> io::Error {
    invalid("a place outside the volume")
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}
