//! How an STP volume is spelled: identifiers, geometry, records, segments, frames.
//!
//! - Every multi-byte integer on the volume is little-endian, on every host.
//! - Every record validates itself: magic, format version, volume, writer, checksum.
//! - All offset arithmetic lives in [`geometry`].
//! - A decoded value owns its bytes or borrows memory that nobody else can write;
//!   nothing here reads a buffer that a peer still shares.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod geometry;
pub mod ids;
pub mod unit;

pub use geometry::{Geometry, GeometryError, Place};
pub use ids::{Epoch, GroupName, Incarnation, NameError, SeatId, Seq, SystemName, VolumeId};
pub use unit::{UNIT_BYTES, UnitBuf};
