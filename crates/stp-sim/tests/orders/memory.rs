//! Shared memory: a segment is put in, then the record that tells of it; who reads the record reads the segment.

use std::sync::Arc;

use loom::thread;

use crate::sync::AtomicU64;
use crate::words::{copy_in, copy_out, load, store};
use crate::{every_order, is_found};

type CopyIn = fn(&[AtomicU64], &[u8]);
type CopyOut = fn(&[AtomicU64], &mut [u8]);

/// Two segments one after the other in a slot of two words, and the record behind it.
fn publish(copy_in: CopyIn, copy_out: CopyOut) {
    let place = Arc::new([AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0)]);
    let writer = thread::spawn({
        let place = Arc::clone(&place);
        move || {
            for number in 1..=2_u64 {
                copy_in(&place[..2], [number.to_ne_bytes(); 2].as_flattened());
                copy_in(&place[2..], &number.to_ne_bytes());
            }
        }
    });
    let mut record = [0; 8];
    copy_out(&place[2..], &mut record);
    let mut segment = [[0; 8]; 2];
    copy_out(&place[..2], segment.as_flattened_mut());
    let told = u64::from_ne_bytes(record);
    for word in segment.map(u64::from_ne_bytes) {
        assert!(
            word >= told,
            "segment {told} is told of, and {word} is there"
        );
    }
    writer.join().unwrap();
}

#[test]
fn what_a_record_tells_of_is_there() {
    every_order(|| publish(copy_in, copy_out));
}

#[test]
fn a_copy_that_does_not_release_is_found() {
    is_found(|| publish(store, copy_out));
}

#[test]
fn a_copy_that_does_not_acquire_is_found() {
    is_found(|| publish(copy_in, load));
}
