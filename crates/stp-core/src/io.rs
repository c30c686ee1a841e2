//! Storage operations as data: what the core wants done, and what came of it.

use alloc::sync::Arc;
use stp_format::{Place, UnitBuf};

/// An operation that the host shall carry out.
#[derive(Debug)]
pub struct Io {
    /// Comes back in [`IoDone::id`]; unique among those under way.
    pub id: u64,
    /// Where.
    pub place: Place,
    /// What.
    pub action: IoAction,
}

/// Read or write.
#[derive(Debug)]
pub enum IoAction {
    /// Fill this buffer.
    Read(UnitBuf),
    /// Write units from the front of a buffer.
    Write {
        /// The bytes; they do not change any more.
        data: Arc<UnitBuf>,
        /// How many units.
        units: usize,
        /// Must survive a loss of power before it completes.
        durable: bool,
    },
}

/// A finished operation.
#[derive(Debug)]
pub struct IoDone {
    /// Which.
    pub id: u64,
    /// A read's buffer.
    pub buf: Option<UnitBuf>,
    /// How it ended. After a fault the bytes on the volume are unknown.
    pub result: Result<(), IoFault>,
}

/// The storage refused or failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoFault {
    /// The operating system's error number; 0 if it has none.
    pub errno: i32,
}
