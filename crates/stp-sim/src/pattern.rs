//! What streams carry: bytes that tell their connection, direction and offset.

use crate::rng::mix;

/// One direction of one connection.
pub(crate) fn key(connection: usize, side: usize) -> u64 {
    mix(((connection as u64) << 1 | side as u64).wrapping_add(0x0005_717e))
}

fn word(key: u64, index: u64) -> [u8; 8] {
    mix(key.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15))).to_le_bytes()
}

/// The bytes from `offset` on.
pub(crate) fn fill(key: u64, offset: u64, out: &mut [u8]) {
    let mut at = 0;
    while at < out.len() {
        let position = offset + at as u64;
        let word = word(key, position / 8);
        let skip = (position % 8) as usize;
        let length = (8 - skip).min(out.len() - at);
        out[at..at + length].copy_from_slice(&word[skip..skip + length]);
        at += length;
    }
}

/// The first place where `bytes` are not what they should be.
pub(crate) fn differs(key: u64, offset: u64, bytes: &[u8]) -> Option<u64> {
    let mut expected = [0; 512];
    let mut at = 0;
    for piece in bytes.chunks(512) {
        let expected = &mut expected[..piece.len()];
        fill(key, offset + at, expected);
        if expected != piece {
            let wrong = expected.iter().zip(piece).position(|(a, b)| a != b);
            return Some(offset + at + wrong.unwrap_or(0) as u64);
        }
        at += piece.len() as u64;
    }
    None
}
