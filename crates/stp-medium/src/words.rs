//! Copies out of and into memory that others write meanwhile, as atomic words.
//!
//! - A copy may be of several moments: each of its words is one that somebody wrote, and nothing more is promised of it.
//! - Copies keep their order: who finds a word of a copy that was put in finds all that its writer put in before, and
//!   what is put in after a copy out cannot show in that.
//! - `stp-sim` compiles this file a second time and tries it in every order that the memory may show
//!   (`tests/orders`).

use crate::sync::{AtomicU64, Ordering, fence};

pub(crate) const WORD_BYTES: usize = size_of::<u64>();
/// Words that are copied together.
const BLOCK_WORDS: usize = 8;
const BLOCK_BYTES: usize = BLOCK_WORDS * WORD_BYTES;

/// Copies `words` to `into`, which is as long.
pub(crate) fn copy_out(words: &[AtomicU64], into: &mut [u8]) {
    load(words, into);
    // What is read after this copy is not older than the copy. Pairs with the fence of `copy_in`.
    fence(Ordering::Acquire);
}

/// Copies `from`, which is as long, to `words`.
pub(crate) fn copy_in(words: &[AtomicU64], from: &[u8]) {
    // Who sees this copy also sees what was written before it. Pairs with the fence of `copy_out`.
    fence(Ordering::Release);
    store(words, from);
}

pub(crate) fn load(words: &[AtomicU64], into: &mut [u8]) {
    let (blocks, rest) = words.as_chunks::<BLOCK_WORDS>();
    let (into_blocks, into_rest) = into.as_chunks_mut::<BLOCK_BYTES>();
    for (into, block) in into_blocks.iter_mut().zip(blocks) {
        let words = block.each_ref().map(|word| word.load(Ordering::Relaxed));
        into.copy_from_slice(words.map(u64::to_ne_bytes).as_flattened());
    }
    let into_rest = into_rest.as_chunks_mut::<WORD_BYTES>().0;
    for (into, word) in into_rest.iter_mut().zip(rest) {
        *into = word.load(Ordering::Relaxed).to_ne_bytes();
    }
}

pub(crate) fn store(words: &[AtomicU64], from: &[u8]) {
    let (blocks, rest) = words.as_chunks::<BLOCK_WORDS>();
    let (from_blocks, from_rest) = from.as_chunks::<BLOCK_BYTES>();
    let store = |words: &[AtomicU64], from: &[u8]| {
        for (word, bytes) in words.iter().zip(from.as_chunks::<WORD_BYTES>().0) {
            word.store(u64::from_ne_bytes(*bytes), Ordering::Relaxed);
        }
    };
    for (block, from) in blocks.iter().zip(from_blocks) {
        store(block, from);
    }
    store(rest, from_rest);
}
