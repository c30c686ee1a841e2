//! The digest of a file's contents.
//!
//! - Depends on the contents alone: not on how they were cut into pieces, nor on which zeros were holes.
//! - A hole costs nothing: the file is taken in blocks of 256 KiB, a block of zeros adds nothing, any other adds its number and
//!   its BLAKE3 hash to an outer BLAKE3 hash, which ends with the file's length.

use super::wire::DigestBytes;

/// Bytes of a block.
pub const BLOCK: usize = 256 << 10;

static ZEROS: [u8; 4096] = [0; 4096];

/// A running digest.
#[derive(Clone)]
pub struct Digest {
    outer: blake3::Hasher,
    inner: blake3::Hasher,
    pos: u64,
    /// The current block has something else than zeros; as long as it has not, `inner` is untouched.
    nonzero: bool,
}

impl Default for Digest {
    fn default() -> Self {
        Self {
            outer: blake3::Hasher::new(),
            inner: blake3::Hasher::new(),
            pos: 0,
            nonzero: false,
        }
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    // Most contents show a non-zero byte early; the rest goes by wide comparisons.
    bytes.chunks(ZEROS.len()).all(|c| c == &ZEROS[..c.len()])
}

impl Digest {
    /// Bytes taken in so far.
    pub fn pos(&self) -> u64 {
        self.pos
    }

    fn fill(&self) -> usize {
        (self.pos % BLOCK as u64) as usize
    }

    fn zeros_inner(&mut self, mut n: usize) {
        while n > 0 {
            let step = n.min(ZEROS.len());
            self.inner.update(&ZEROS[..step]);
            n -= step;
        }
    }

    fn close_block(&mut self, number: u64) {
        if self.nonzero {
            self.outer.update(&number.to_le_bytes());
            self.outer.update(self.inner.finalize().as_bytes());
            self.inner.reset();
            self.nonzero = false;
        }
    }

    /// Takes in the next bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let fill = self.fill();
            let (head, rest) = bytes.split_at(bytes.len().min(BLOCK - fill));
            if !self.nonzero && !is_zero(head) {
                self.zeros_inner(fill);
                self.nonzero = true;
            }
            if self.nonzero {
                self.inner.update(head);
            }
            let number = self.pos / BLOCK as u64;
            self.pos += head.len() as u64;
            if self.fill() == 0 {
                self.close_block(number);
            }
            bytes = rest;
        }
    }

    /// Takes in this many zeros, at a cost that does not grow with their number.
    pub fn update_zeros(&mut self, n: u64) {
        let fill = self.fill();
        let first = n.min((BLOCK - fill) as u64);
        if self.nonzero {
            self.zeros_inner(first as usize);
        }
        let number = self.pos / BLOCK as u64;
        self.pos = self.pos.saturating_add(n);
        if fill as u64 + first == BLOCK as u64 {
            self.close_block(number);
        }
    }

    /// The digest of what was taken in so far; the running one goes on.
    pub fn value(&self) -> DigestBytes {
        let mut outer = self.outer.clone();
        if self.nonzero {
            outer.update(&(self.pos / BLOCK as u64).to_le_bytes());
            outer.update(self.inner.finalize().as_bytes());
        }
        outer.update(&self.pos.to_le_bytes());
        *outer.finalize().as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(bytes: &[u8]) -> DigestBytes {
        let mut d = Digest::default();
        d.update(bytes);
        d.value()
    }

    #[test]
    fn pieces_and_holes_make_no_difference() {
        let mut bytes = vec![0u8; 5 * BLOCK + 1234];
        for (i, b) in bytes.iter_mut().enumerate() {
            if (100_000..200_000).contains(&i) || (3 * BLOCK - 5..3 * BLOCK + 7).contains(&i) {
                *b = (i * 31 % 255 + 1) as u8;
            }
        }
        let expected = whole(&bytes);
        for piece in [1000, 4096, 65_537, BLOCK, BLOCK + 1, usize::MAX >> 1] {
            let mut d = Digest::default();
            for chunk in bytes.chunks(piece) {
                if is_zero(chunk) {
                    d.update_zeros(chunk.len() as u64);
                } else {
                    d.update(chunk);
                }
            }
            assert_eq!(d.value(), expected, "pieces of {piece}");
            assert_eq!(d.pos(), bytes.len() as u64);
        }
    }

    #[test]
    fn every_byte_and_the_length_count() {
        let bytes = vec![7u8; BLOCK + 10];
        let expected = whole(&bytes);
        for at in [0, 1, BLOCK - 1, BLOCK, BLOCK + 9] {
            let mut other = bytes.clone();
            other[at] ^= 1;
            assert_ne!(whole(&other), expected);
            assert_ne!(whole(&bytes[..at]), expected);
        }
        assert_ne!(whole(&[]), whole(&[0]));
        assert_ne!(whole(&vec![0; BLOCK]), whole(&vec![0; 2 * BLOCK]));
        let mut shifted = vec![0u8; BLOCK];
        shifted.extend_from_slice(&bytes[..BLOCK]);
        let mut plain = bytes[..BLOCK].to_vec();
        plain.extend_from_slice(&vec![0; BLOCK]);
        assert_ne!(whole(&shifted), whole(&plain));
    }

    #[test]
    fn an_exbibyte_of_hole_is_instant() {
        let mut d = Digest::default();
        d.update(b"x");
        d.update_zeros(1 << 60);
        d.update(b"y");
        assert_eq!(d.pos(), (1 << 60) + 2);
        d.value();
    }
}
