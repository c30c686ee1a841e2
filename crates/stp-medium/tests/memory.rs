//! The storage as memory: the same bytes as by transfers, nothing outside the volume, and only while all of it is there.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use stp_format::segment::SEGMENT_SEQ_AT;
use stp_format::{Geometry, Place, SeatId, UnitBuf};
use stp_medium::{Access, Medium, Memory, Op, OpId, OpenOptions, Spot, open};

const VOLUME_BYTES: u64 = 4 << 20;

fn medium(path: &Path, access: Access) -> Box<dyn Medium> {
    let spec = format!("mem:{}", path.display()).parse().unwrap();
    let options = OpenOptions {
        access,
        ..OpenOptions::default()
    };
    let mut medium = open(&spec, &options).unwrap();
    medium.set_geometry(Geometry::plan(VOLUME_BYTES, 2).unwrap());
    medium
}

fn slot(slot: u32) -> Place {
    let geometry = Geometry::plan(VOLUME_BYTES, 2).unwrap();
    Place::Slot {
        seat: SeatId(0),
        ring: geometry.ring(0, geometry.extents),
        slot,
        skip: 0,
    }
}

/// A volume in memory, or none where this host has no such file system.
fn volume() -> Option<(tempfile::TempDir, std::path::PathBuf)> {
    let dir = tempfile::tempdir_in("/dev/shm").ok()?;
    let path = dir.path().join("volume");
    std::fs::write(&path, vec![0; VOLUME_BYTES as usize]).unwrap();
    Some((dir, path))
}

#[test]
fn a_step_leads_where_a_search_does() {
    let geometry = Geometry::plan(VOLUME_BYTES, 2).unwrap();
    let ring = geometry.ring(0, geometry.extents);
    let slots = geometry.ring_slots(ring);
    let mut spot = Spot::of(&geometry, slot(0)).unwrap();
    for to in (0..slots).chain([0, slots - 1, 1, 1]) {
        assert!(spot.step_to(slot(to)));
        assert_eq!(Some(spot), Spot::of(&geometry, slot(to)));
    }
    let here = spot;
    let shorter = geometry.ring(0, geometry.extents - 1);
    let elsewhere = [
        (SeatId(1), ring, 0, 0),
        (SeatId(0), shorter, 0, 0),
        (SeatId(0), ring, slots, 0),
        (SeatId(0), ring, 0, 1),
    ];
    for (seat, ring, slot, skip) in elsewhere {
        let place = Place::Slot {
            seat,
            ring,
            slot,
            skip,
        };
        assert!(!spot.step_to(place), "{place:?}");
    }
    assert!(!spot.step_to(Place::Superblock { copy: 0 }));
    assert_eq!(spot, here);
}

#[test]
fn what_is_copied_in_is_what_a_transfer_finds() {
    let Some((_dir, path)) = volume() else { return };
    let mut one = medium(&path, Access::ReadWrite);
    let mut two = medium(&path, Access::ReadWrite);
    let memory = one.memory().unwrap();
    let theirs = two.memory().unwrap();
    let spot = memory.spot(slot(1)).unwrap();
    // Below, at and above what is copied in one go, with a tail.
    for (number, len) in [8, 120, 128, 136, 2040, 2048, 2056, 5000, 20_000]
        .into_iter()
        .enumerate()
    {
        let bytes: Vec<u8> = (0..len).map(|at| (at * 7 + number + 1) as u8).collect();
        memory.prepare(&spot, len);
        memory.write(&spot, &bytes).unwrap();
        // A buffer at any place of its page.
        let mut found = vec![0; len];
        theirs.read(&spot, 0, &mut found).unwrap();
        assert!(found == bytes, "{len} bytes");
        let place = slot(1);
        let buf = UnitBuf::zeroed(UnitBuf::units_for(len));
        two.submit(OpId(1), Op::Read { place, buf });
        two.kick();
        let buf = two.poll().unwrap().buf.unwrap();
        assert!(buf.bytes()[..len] == bytes, "{len} bytes by a transfer");
        if len > SEGMENT_SEQ_AT {
            let word = theirs
                .word(&spot, SEGMENT_SEQ_AT)
                .unwrap()
                .load(Ordering::Acquire);
            assert_eq!(
                word.to_ne_bytes(),
                bytes[SEGMENT_SEQ_AT..SEGMENT_SEQ_AT + 8]
            );
        }
        let mut tail = [0; 8];
        theirs.read(&spot, len - 8, &mut tail).unwrap();
        assert_eq!(tail, bytes[len - 8..]);
    }
}

#[test]
fn nothing_is_reached_outside_the_volume_or_written_where_nobody_may() {
    let Some((_dir, path)) = volume() else { return };
    let memory: Arc<dyn Memory> = medium(&path, Access::ReadWrite).memory().unwrap();
    let beyond = [
        slot(1_000_000),
        Place::Seat {
            seat: SeatId(2),
            copy: 0,
        },
    ];
    for place in beyond {
        assert!(memory.spot(place).is_none(), "{place:?}");
    }
    // One that another volume's measures have.
    let larger = Geometry::plan(16 * VOLUME_BYTES, 2).unwrap();
    let place = Place::Slot {
        seat: SeatId(1),
        ring: larger.ring(0, larger.extents),
        slot: 1,
        skip: 0,
    };
    let foreign = Spot::of(&larger, place).unwrap();
    // Nor by a step from one that is within.
    assert!(!memory.spot(slot(0)).unwrap().step_to(place));
    assert!(memory.word(&foreign, 0).is_none());
    let refused = memory.read(&foreign, 0, &mut [0; 64]).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidInput);
    let refused = memory.write(&foreign, &[0; 64]).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidInput);
    memory.prepare(&foreign, 64);
    // Neither beyond a slot's end nor in the middle of a word.
    let spot = memory.spot(slot(0)).unwrap();
    assert!(memory.write(&spot, &vec![0; 1 << 20]).is_err());
    assert!(memory.read(&spot, usize::MAX - 7, &mut [0; 8]).is_err());
    assert!(memory.write(&spot, &[0; 12]).is_err());
    assert!(memory.word(&spot, 4).is_none());
    assert!(memory.spot(Place::Superblock { copy: 0 }).is_none());
    let memory = medium(&path, Access::Read).memory().unwrap();
    let refused = memory.write(&spot, &[0; 64]).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::PermissionDenied);
}

#[test]
fn a_file_that_lacks_pages_is_no_memory() {
    let Some((_dir, path)) = volume() else { return };
    let mut medium = medium(&path, Access::ReadWrite);
    assert!(medium.memory().is_some());
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_len(VOLUME_BYTES / 2).unwrap();
    assert!(medium.memory().is_none());
    // What is to be had without touching the map still is.
    file.set_len(VOLUME_BYTES).unwrap();
    assert!(medium.memory().is_none(), "a hole is no memory");
}
