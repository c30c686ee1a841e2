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

pub mod damage;
pub mod geometry;
pub mod gift;
pub mod ids;
pub mod layout;
pub mod seat;
pub mod segment;
pub mod superblock;
pub mod table;
pub mod unit;

pub use damage::{Damage, FORMAT_VERSION};
pub use geometry::{Geometry, GeometryError, Place, Ring};
pub use gift::{GiftMessage, GiftState};
pub use ids::{
    Epoch, GroupName, Incarnation, NameError, ProcessName, SeatId, Seq, SystemName, VolumeId,
};
pub use seat::{LinkEntry, SeatCounters, SeatRecord, SeatState, SeatTimings};
pub use segment::{
    Adopt, Frame, FrameBody, LonePiece, MoveToken, SegmentBuilder, SegmentInfo, StreamKey,
};
pub use superblock::{Features, Superblock};
pub use table::{Scb, ScbState, TableUnit};
pub use unit::{Lender, UNIT_BYTES, UnitBuf};
