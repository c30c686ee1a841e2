//! What a transfer tells the one who started it.

use super::wire::{Fault, Kind};

/// Hears how a transfer goes. `key` is an entry's path below the target; calls come from several threads.
pub trait Report: Sync {
    /// How much there will be in this session, once the sender has counted it.
    fn total(&self, _files: u64, _bytes: u64) {}
    /// The contents of a file begin to move.
    fn started(&self, _key: &[u8]) {}
    /// Contents that went over the connection.
    fn moved(&self, _bytes: u64) {}
    /// Contents that did not need to: holes.
    fn hole(&self, _bytes: u64) {}
    /// Contents that the receiver had already.
    fn present(&self, _bytes: u64) {}
    /// Contents that count no more: the copy of this file failed or starts over.
    fn undone(&self, _bytes: u64) {}
    /// An entry is in place.
    fn done(&self, _key: &[u8], _kind: Kind, _size: u64) {}
    /// An entry could not be copied.
    fn failed(&self, _key: &[u8], _fault: &Fault) {}
    /// An entry is not copied on purpose.
    fn skipped(&self, _key: &[u8], _fault: &Fault) {}
    /// Whether an earlier connection of this transfer brought this entry to its place.
    fn seen(&self, _key: &[u8]) -> bool {
        false
    }
}

/// Hears nothing: the server's side.
pub struct Silent;

impl Report for Silent {}
