//! A stream whose near end changes its owner again and again, with checked bytes on their way in both directions.

use std::io::{Read, Write};
use std::thread;

use stp::Stream;

/// Bytes that are told apart by their place.
pub fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    };
    (0..length).map(|_| next()).collect()
}

pub fn read_exactly(stream: &mut Stream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

/// Each owner sends and receives its part, and `hand_over` gives the stream to the next; the last one does the rest.
pub fn wander(
    (mut ours, theirs): (Stream, Stream),
    owners: usize,
    mut hand_over: impl FnMut(usize, &mut Stream) -> Stream,
) {
    let length = 6_000_001;
    let (there, back) = (pattern(1, length), pattern(2, length));
    let (local, peer) = (ours.local_addr().unwrap(), ours.peer_addr().unwrap());
    thread::scope(|scope| {
        scope.spawn(|| (&theirs).write_all(&back).unwrap());
        scope.spawn(|| {
            let mut found = vec![0; length];
            (&theirs).read_exact(&mut found).unwrap();
            assert!(found == there, "what arrived is not what was sent");
        });
        let (mut sent, mut read) = (0, Vec::new());
        for owner in 0..owners {
            // Odd amounts, so that no gift falls on a boundary.
            let step = 100_003 + owner * 7;
            ours.write_all(&there[sent..sent + step]).unwrap();
            sent += step;
            read.extend(read_exactly(&mut ours, step + 1));
            ours = hand_over(owner, &mut ours);
            assert_eq!(ours.local_addr().unwrap(), local);
            assert_eq!(ours.peer_addr().unwrap(), peer);
        }
        thread::scope(|scope| {
            scope.spawn(|| (&ours).write_all(&there[sent..]).unwrap());
            let mut rest = vec![0; length - read.len()];
            (&ours).read_exact(&mut rest).unwrap();
            read.extend(rest);
        });
        assert!(read == back, "what came back is not what was sent");
    });
    drop(ours);
    assert_eq!((&theirs).read(&mut [0]).unwrap(), 0);
}
