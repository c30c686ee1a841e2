//! Golden volumes: whole volumes of real runs, as text that any later version must still understand.
//!
//! - One line for each 16 bytes that are not all zero: offset, colon, hexadecimal digits. `xxd -r FILE > VOLUME`
//!   makes a volume of one without this code (but for zeros at its end).
//! - Kept files never change; `crates/stp-tests/golden/README.md` says what each one is.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

const LINE_BYTES: usize = 16;

/// The text of a volume.
#[must_use]
pub fn pack(volume: &[u8]) -> String {
    let mut text = String::new();
    for (index, line) in volume.chunks(LINE_BYTES).enumerate() {
        if line.iter().all(|byte| *byte == 0) {
            continue;
        }
        // Writing to a string cannot fail.
        let _ = write!(text, "{:08x}:", index * LINE_BYTES);
        for pair in line.chunks(2) {
            text.push(' ');
            for byte in pair {
                let _ = write!(text, "{byte:02x}");
            }
        }
        text.push('\n');
    }
    text
}

/// The volume of a text, `bytes` long.
///
/// # Panics
/// If the text is not what [`pack`] writes.
#[must_use]
pub fn unpack(text: &str, bytes: usize) -> Vec<u8> {
    let mut volume = vec![0; bytes];
    for line in text.lines() {
        let (offset, digits) = line.split_once(':').expect("an offset");
        let offset = usize::from_str_radix(offset, 16).expect("a hexadecimal offset");
        let digits: Vec<u8> = digits.bytes().filter(|b| *b != b' ').collect();
        for (index, pair) in digits.chunks(2).enumerate() {
            let pair = std::str::from_utf8(pair).expect("digits");
            volume[offset + index] = u8::from_str_radix(pair, 16).expect("two digits");
        }
    }
    volume
}

/// Where the volumes of a format version are kept.
#[must_use]
pub fn folder(version: u16) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("golden/v{version}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_is_unpacked() {
        let mut volume = vec![0; 8192];
        crate::pattern::fill(1, 0, &mut volume[4000..5001]);
        volume[8191] = 1;
        let text = pack(&volume);
        assert!(text.lines().count() < 66, "{}", text.lines().count());
        assert_eq!(unpack(&text, 8192), volume);
    }
}
