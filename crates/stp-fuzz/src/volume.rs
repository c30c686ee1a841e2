//! A volume of a real run, some of its bytes changed: everything that looks at volumes.
//!
//! - Looking, checking and reading tables end, whatever stands there, and write nothing.
//! - What is reported stays in proportion: no more findings than records.

use std::sync::OnceLock;

use arbitrary::{Result, Unstructured};
use stp_format::{Superblock, UNIT_BYTES};
use stp_host::volume::from_medium;
use stp_medium::VolumeSpec;
use stp_medium::local::Store;

const SIZE_BYTES: usize = 1 << 20;
/// Findings per unit of the volume, at the most.
const FINDINGS_MAX: usize = 4 * SIZE_BYTES / UNIT_BYTES;

/// Two systems, three streams, segments unread.
const GOLDEN: &str = include_str!("../../stp-tests/golden/v1/crashed.hex");

fn golden() -> &'static [u8] {
    static VOLUME: OnceLock<Vec<u8>> = OnceLock::new();
    VOLUME.get_or_init(|| {
        let mut volume = vec![0; SIZE_BYTES];
        for line in GOLDEN.lines() {
            let (at, digits) = line.split_once(':').unwrap_or_default();
            let at = usize::from_str_radix(at, 16).unwrap_or(SIZE_BYTES);
            let digits = digits.replace(' ', "");
            for (index, place) in volume[at..].iter_mut().take(digits.len() / 2).enumerate() {
                let digits = &digits[2 * index..2 * index + 2];
                *place = u8::from_str_radix(digits, 16).unwrap_or_default();
            }
        }
        volume
    })
}

/// Changes the volume as the input says and looks at all of it.
pub fn mutated(data: &[u8]) {
    let mut volume = golden().to_vec();
    let mut u = Unstructured::new(data);
    while !u.is_empty() && change(&mut volume, &mut u).is_ok() {}
    look(volume);
}

/// Changes a few bytes of a written unit; mostly its checksum is made right again.
fn change(volume: &mut [u8], u: &mut Unstructured<'_>) -> Result<()> {
    let written: Vec<usize> = (0..volume.len() / UNIT_BYTES)
        .filter(|unit| volume[unit * UNIT_BYTES] != 0)
        .collect();
    let unit = match written.len() {
        0 => 0,
        count => written[u.choose_index(count)?],
    };
    let at = unit * UNIT_BYTES;
    let record = &mut volume[at..at + UNIT_BYTES];
    for _ in 0..u.int_in_range(1..=4)? {
        // Heads are worth more than what follows.
        let len = if u.ratio(3, 4)? { 256 } else { UNIT_BYTES };
        let place = u.choose_index(len)?;
        let value = u.int_in_range(0..=3)?;
        record[place] = match value {
            0 => 0,
            1 => 0xff,
            2 => record[place].wrapping_add(1),
            _ => u.arbitrary()?,
        };
    }
    if u.ratio(5, 6)? {
        let segment = record.starts_with(b"STPsegm\n");
        let len = u32::from_le_bytes([record[80], record[81], record[82], record[83]]) as usize;
        let end = if segment {
            len.clamp(128, UNIT_BYTES)
        } else {
            UNIT_BYTES
        };
        let sum = xxhash_rust::xxh3::xxh3_64(&record[16..end]).to_le_bytes();
        record[8..16].copy_from_slice(&sum);
    }
    if u.ratio(1, 6)? {
        // Both copies of a superblock say the same.
        let copy = volume[..UNIT_BYTES].to_vec();
        if Superblock::decode(&copy).is_ok() {
            volume[16 * UNIT_BYTES..17 * UNIT_BYTES].copy_from_slice(&copy);
        }
    }
    Ok(())
}

/// Everything that `stp info`, `stp check` and `stp ss --all` read.
fn look(bytes: Vec<u8>) {
    let store = Store::new(0);
    store.with_bytes(|contents| contents.clone_from(&bytes));
    let spec: VolumeSpec = "fuzzed".parse().unwrap_or_else(|e| panic!("{e}"));
    match from_medium(&spec, Box::new(store.attach())) {
        Err(error) => assert!(error.to_string().contains("fuzzed"), "{error}"),
        Ok(mut volume) => {
            volume.assume_still();
            let seats = usize::from(volume.superblock().geometry.seats);
            let scbs = volume.superblock().geometry.scbs();
            if let Ok(views) = volume.read_directory() {
                assert_eq!(views.len(), seats);
                for view in &views {
                    if let Ok(rows) = volume.read_table(view) {
                        assert!(rows.len() <= scbs);
                    }
                }
            }
            if let Ok(seen) = volume.watch() {
                assert_eq!(seen.len(), seats);
            }
            if let Ok(rows) = volume.read_tables() {
                assert!(rows.len() <= seats * scbs);
            }
            if let Ok(report) = volume.check() {
                assert!(report.findings.len() <= FINDINGS_MAX);
                for finding in &report.findings {
                    assert!(!finding.what.is_empty() && !finding.record.is_empty());
                }
            }
        }
    }
    store.with_bytes(|contents| assert!(*contents == bytes, "looking wrote to the volume"));
}
