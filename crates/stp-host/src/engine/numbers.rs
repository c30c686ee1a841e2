//! Maps by numbers that this engine gives itself.
//!
//! - Nobody else chooses the keys, so spreading them costs one multiplication, and equal runs stay equal.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// A map by [`stp_core::StreamId`] or [`crate::control::StreamToken`].
pub(super) type NumberMap<K, V> = HashMap<K, V, BuildHasherDefault<NumberHasher>>;

/// Spreads one number.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes
            .iter()
            .for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, number: u64) {
        // The map takes its place from the low bits and a tag from the high ones: both depend on all of the number.
        let spread = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = spread ^ (spread >> 32);
    }
}
