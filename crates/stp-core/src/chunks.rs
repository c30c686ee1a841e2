//! Received bytes that wait for their program.
//!
//! - A large piece stays in the segment it came in; small ones are copied together, so that no small
//!   piece keeps a large buffer alive.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;
use stp_format::{UNIT_BYTES, UnitBuf};

/// A piece stays in its segment if it is at least this part of the segment.
const SHARE_PART: usize = 4;
/// So no piece of a shorter segment stays.
const SMALL_BYTES: usize = UNIT_BYTES / SHARE_PART;
/// Copied pieces are gathered up to about this many bytes.
const GATHER_BYTES: usize = 16 << 10;
/// An emptied piece of this size is kept for the next one: a stream of small messages then needs no memory anew.
const SPARE_BYTES: usize = 512;

#[derive(Debug)]
enum Chunk {
    Owned {
        bytes: Vec<u8>,
        at: usize,
    },
    Shared {
        segment: Arc<UnitBuf>,
        range: Range<usize>,
    },
}

impl Chunk {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Owned { bytes, at } => &bytes[*at..],
            Self::Shared { segment, range } => &segment.bytes()[range.clone()],
        }
    }
}

/// A queue of bytes.
#[derive(Debug, Default)]
pub(crate) struct Chunks {
    chunks: VecDeque<Chunk>,
    bytes: usize,
    /// An emptied piece, to be filled again.
    spare: Vec<u8>,
}

/// A segment that has come.
#[derive(Debug)]
pub(crate) enum Segment {
    /// Pieces of it may stay in its buffer.
    Shared(Arc<UnitBuf>),
    /// So small that its pieces are copied: it needs no box.
    Small(UnitBuf),
}

impl Segment {
    pub(crate) fn new(buf: UnitBuf, bytes: usize) -> Self {
        if bytes < SMALL_BYTES {
            Self::Small(buf)
        } else {
            Self::Shared(Arc::new(buf))
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::Shared(buf) => buf.bytes(),
            Self::Small(buf) => buf.bytes(),
        }
    }

    /// Its buffer, unless pieces stay in it.
    pub(crate) fn into_buf(self) -> Option<UnitBuf> {
        match self {
            Self::Shared(buf) => Arc::try_unwrap(buf).ok(),
            Self::Small(buf) => Some(buf),
        }
    }
}

impl Chunks {
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    pub(crate) fn len(&self) -> u64 {
        self.bytes as u64
    }

    pub(crate) fn clear(&mut self) {
        self.chunks.clear();
        self.bytes = 0;
    }

    /// Appends `range` of a segment.
    pub(crate) fn push(&mut self, segment: &Segment, range: Range<usize>) {
        self.bytes += range.len();
        if let Segment::Shared(segment) = segment
            && range.len() * SHARE_PART >= segment.len()
        {
            self.chunks.push_back(Chunk::Shared {
                segment: Arc::clone(segment),
                range,
            });
            return;
        }
        let piece = &segment.bytes()[range];
        if let Some(Chunk::Owned { bytes, .. }) = self.chunks.back_mut()
            && bytes.len() + piece.len() <= GATHER_BYTES
        {
            bytes.extend_from_slice(piece);
            return;
        }
        let mut bytes = core::mem::take(&mut self.spare);
        bytes.extend_from_slice(piece);
        self.chunks.push_back(Chunk::Owned { bytes, at: 0 });
    }

    /// Appends bytes of the caller's own.
    pub(crate) fn push_own(&mut self, bytes: Vec<u8>) {
        if !bytes.is_empty() {
            self.bytes += bytes.len();
            self.chunks.push_back(Chunk::Owned { bytes, at: 0 });
        }
    }

    /// A copy of all.
    pub(crate) fn to_vec(&self) -> Vec<u8> {
        let mut all = Vec::with_capacity(self.bytes);
        for chunk in &self.chunks {
            all.extend_from_slice(chunk.bytes());
        }
        all
    }

    /// The bytes in front, as far as they lie together; empty if there are none.
    pub(crate) fn front(&self) -> &[u8] {
        self.chunks.front().map(Chunk::bytes).unwrap_or_default()
    }

    /// Drops `count` bytes of [`Chunks::front`]. A segment's buffer that nothing else holds comes back.
    pub(crate) fn consume(&mut self, count: usize) -> Option<UnitBuf> {
        let Some(front) = self.chunks.front_mut() else {
            debug_assert_eq!(count, 0);
            return None;
        };
        let count = count.min(front.bytes().len());
        match front {
            Chunk::Owned { at, .. } => *at += count,
            Chunk::Shared { range, .. } => range.start += count,
        }
        self.bytes -= count;
        if !front.bytes().is_empty() {
            return None;
        }
        match self.chunks.pop_front()? {
            Chunk::Owned { mut bytes, .. } => {
                if bytes.capacity() <= SPARE_BYTES {
                    bytes.clear();
                    self.spare = bytes;
                }
                None
            }
            Chunk::Shared { segment, .. } => Arc::try_unwrap(segment).ok(),
        }
    }
}
