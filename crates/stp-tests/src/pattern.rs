//! Keyed pattern: every byte of a stream depends on the stream's key and its own place.
//!
//! - A foreign, missing, duplicated or displaced byte shows at its offset: eight bytes agree by chance once in 2^64.

/// Fills `bytes`, which stand at offset `at` of the stream `key`.
pub fn fill(key: u64, at: u64, bytes: &mut [u8]) {
    let mut at = at;
    let mut rest = bytes;
    while !rest.is_empty() {
        let word = word(key, at / 8).to_le_bytes();
        let skip = usize::try_from(at % 8).unwrap_or(0);
        let part = rest.len().min(8 - skip);
        rest[..part].copy_from_slice(&word[skip..skip + part]);
        rest = &mut rest[part..];
        at += part as u64;
    }
}

/// The offset (in the stream) of the first byte that is not the pattern's.
#[must_use]
pub fn first_wrong(key: u64, at: u64, bytes: &[u8]) -> Option<u64> {
    let mut expected = [0; 4096];
    let mut place = at;
    for part in bytes.chunks(expected.len()) {
        let want = &mut expected[..part.len()];
        fill(key, place, want);
        if want != part {
            let index = want.iter().zip(part).position(|(want, got)| want != got)?;
            return Some(place + index as u64);
        }
        place += part.len() as u64;
    }
    None
}

/// A well mixed word for each key and index (the finaliser of MurmurHash3 over both).
fn word(key: u64, index: u64) -> u64 {
    let mut x = key.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ index.wrapping_add(0x6a09_e667_f3bc_c909);
    x = (x ^ (x >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    x = (x ^ (x >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ (x >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_cut_of_the_stream_is_the_same_stream() {
        let mut whole = vec![0; 10_000];
        fill(7, 0, &mut whole);
        for cut in [1, 3, 8, 4095, 4097] {
            let mut part = vec![0; 1000];
            fill(7, cut, &mut part);
            let cut = usize::try_from(cut).unwrap();
            assert_eq!(part, whole[cut..cut + 1000]);
            assert_eq!(first_wrong(7, cut as u64, &part), None);
        }
    }

    #[test]
    fn a_wrong_byte_is_found_at_its_place() {
        let mut bytes = vec![0; 9000];
        fill(1, 100, &mut bytes);
        bytes[5000] ^= 1;
        assert_eq!(first_wrong(1, 100, &bytes), Some(5100));
        fill(2, 100, &mut bytes);
        assert!(first_wrong(1, 100, &bytes).unwrap() < 116);
    }
}
