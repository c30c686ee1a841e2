//! What every medium must do, as one suite for all of them.
//!
//! - It is for tests: a medium that fails it makes it panic, with what was expected.
//! - `open` gives one more handle on the same volume each time, as one more host would have it.
//! - The volume may hold anything before; it has at least [`VOLUME_BYTES`] bytes.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use stp_format::{Geometry, Place, SeatId, UNIT_BYTES, UnitBuf};

use crate::{Completion, Medium, Op, OpId, SeatLock};

/// Size of the volume that the suite works on.
pub const VOLUME_BYTES: u64 = 4 << 20;
const SEATS: u16 = 3;
/// Longest time that any operation may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// What differs between mediums without being wrong.
#[derive(Clone, Copy, Debug)]
pub struct Expect {
    /// What locking a seat gives.
    pub lock: SeatLock,
}

/// Runs everything.
pub fn run<M: Medium>(expect: Expect, mut open: impl FnMut() -> M) {
    let geometry = Geometry::plan(VOLUME_BYTES, SEATS).expect("the suite's geometry");
    only_superblocks_before_the_geometry(&mut open());
    let mut ready = || {
        let mut medium = open();
        medium.set_geometry(geometry);
        medium
    };
    says_what_it_is(&ready());
    reads_back_what_was_written(&mut ready(), &geometry);
    two_handles_see_each_other(&mut ready(), &mut ready(), &geometry);
    refuses_what_is_outside(&mut ready(), &geometry);
    takes_more_than_its_depth(&mut ready(), &geometry);
    wakes_by_its_descriptor(&mut ready());
    ends_with_operations_under_way(&mut ready, &geometry);
    locks_seats(expect, &mut ready);
}

/// Waits for one completion as an engine would: by the descriptor where there is one.
fn next(medium: &mut impl Medium) -> Completion {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(completion) = medium.poll() {
            return completion;
        }
        assert!(Instant::now() < until, "nothing completed in {PATIENCE:?}");
        match medium.wait_fd().filter(|_| !medium.is_inline()) {
            Some(fd) => {
                let second = rustix::time::Timespec {
                    tv_sec: 1,
                    tv_nsec: 0,
                };
                match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&second)) {
                    Ok(_) | Err(rustix::io::Errno::INTR) => {}
                    Err(error) => panic!("the descriptor cannot be polled: {error}"),
                }
            }
            None => panic!("inline, but an operation outlived the kick"),
        }
    }
}

fn filled(units: usize, tag: u8) -> UnitBuf {
    let mut buf = UnitBuf::zeroed(units);
    for (at, byte) in buf.bytes_mut().iter_mut().enumerate() {
        *byte = tag.wrapping_add((at / 7) as u8).wrapping_mul(31);
    }
    buf
}

fn write(medium: &mut impl Medium, place: Place, data: UnitBuf, durable: bool) -> io::Result<()> {
    let units = data.units();
    let data = Arc::new(data);
    let id = OpId(900);
    medium.submit(
        id,
        Op::Write {
            place,
            data: Arc::clone(&data),
            units,
            durable,
        },
    );
    medium.kick();
    let completion = next(medium);
    assert_eq!(completion.id, id);
    assert!(completion.buf.is_none(), "a write gives no buffer back");
    assert!(
        Arc::try_unwrap(data).is_ok(),
        "the medium kept a written buffer"
    );
    completion.result
}

fn read(medium: &mut impl Medium, place: Place, units: usize) -> io::Result<UnitBuf> {
    let id = OpId(901);
    let buf = UnitBuf::zeroed(units);
    medium.submit(id, Op::Read { place, buf });
    medium.kick();
    let completion = next(medium);
    assert_eq!(completion.id, id);
    let buf = completion.buf.expect("a read gives its buffer back");
    assert_eq!(buf.units(), units, "a read changed its buffer's length");
    completion.result.map(|()| buf)
}

fn slot(geometry: &Geometry, seat: u16, slot: u32) -> Place {
    Place::Slot {
        seat: SeatId(seat),
        ring: geometry.ring(0, geometry.extents),
        slot,
        skip: 0,
    }
}

fn slots(geometry: &Geometry) -> u32 {
    geometry.ring_slots(geometry.ring(0, geometry.extents))
}

fn slot_units(geometry: &Geometry) -> usize {
    geometry.ring(0, geometry.extents).slot_units.into()
}

fn says_what_it_is(medium: &impl Medium) {
    assert!(medium.size_bytes().expect("the size") >= VOLUME_BYTES);
    assert!(medium.depth() >= 1);
    let text = medium.describe();
    assert!(!text.is_empty() && !text.contains('\n'), "{text:?}");
}

fn only_superblocks_before_the_geometry(medium: &mut impl Medium) {
    for copy in 0..2 {
        read(medium, Place::Superblock { copy }, 1).expect("a superblock can be read at once");
    }
    let seat = Place::Seat {
        seat: SeatId(0),
        copy: 0,
    };
    for (place, units) in [
        (seat, 1),
        (Place::Superblock { copy: 0 }, 2),
        (Place::Superblock { copy: 2 }, 1),
    ] {
        let error = read(medium, place, units).expect_err("no geometry, no such place");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}

fn reads_back_what_was_written(medium: &mut impl Medium, geometry: &Geometry) {
    let seat = SeatId(1);
    let places = [
        (Place::Superblock { copy: 0 }, 1),
        (Place::Superblock { copy: 1 }, 1),
        (
            Place::Seat { seat, copy: 0 },
            usize::from(geometry.record_units),
        ),
        (
            Place::Seat { seat, copy: 1 },
            usize::from(geometry.record_units),
        ),
        (
            Place::Table {
                seat,
                copy: 1,
                unit: 0,
            },
            usize::from(geometry.table_units),
        ),
        (slot(geometry, 1, 2), slot_units(geometry)),
    ];
    for (tag, (place, units)) in places.into_iter().enumerate() {
        let data = filled(units, tag as u8);
        write(medium, place, data, tag % 2 == 0).unwrap_or_else(|e| panic!("{place:?}: {e}"));
    }
    for (tag, (place, units)) in places.into_iter().enumerate() {
        let found = read(medium, place, units).unwrap_or_else(|e| panic!("{place:?}: {e}"));
        assert!(
            found.bytes() == filled(units, tag as u8).bytes(),
            "{place:?} changed"
        );
    }
    // The directory is the records side by side.
    let units = geometry.directory_units(SEATS);
    let directory =
        read(medium, Place::Directory { first: SeatId(0) }, units).expect("the directory");
    let record_bytes = usize::from(geometry.record_units) * UNIT_BYTES;
    let record = &directory.bytes()[2 * record_bytes..3 * record_bytes];
    assert!(record == filled(geometry.record_units.into(), 2).bytes());
    // The front of a longer buffer.
    let data = Arc::new(filled(2, 90));
    medium.submit(
        OpId(1),
        Op::Write {
            place: slot(geometry, 1, 2),
            data,
            units: 1,
            durable: false,
        },
    );
    medium.kick();
    next(medium).result.expect("a write of a buffer's front");
    let found = read(medium, slot(geometry, 1, 2), 2).expect("its bytes");
    assert!(found.bytes()[..UNIT_BYTES] == filled(2, 90).bytes()[..UNIT_BYTES]);
    assert!(
        found.bytes()[UNIT_BYTES..] == filled(2, 5).bytes()[UNIT_BYTES..],
        "more was written than asked for"
    );
}

fn two_handles_see_each_other(one: &mut impl Medium, two: &mut impl Medium, geometry: &Geometry) {
    let (at_one, at_two) = (slot(geometry, 0, 0), slot(geometry, 2, 0));
    for round in 0..20 {
        write(one, at_one, filled(1, round), round % 4 == 0).expect("one writes");
        let seen = read(two, at_one, 1).expect("two reads");
        assert!(
            seen.bytes() == filled(1, round).bytes(),
            "round {round}: two sees old bytes"
        );
        write(two, at_two, filled(1, !round), false).expect("two writes");
        let seen = read(one, at_two, 1).expect("one reads");
        assert!(
            seen.bytes() == filled(1, !round).bytes(),
            "round {round}: one sees old bytes"
        );
    }
}

fn refuses_what_is_outside(medium: &mut impl Medium, geometry: &Geometry) {
    let seat = SeatId(SEATS);
    let outside = [
        Place::Superblock { copy: 2 },
        Place::Directory { first: seat },
        Place::Seat { seat, copy: 0 },
        Place::Table {
            seat: SeatId(0),
            copy: 0,
            unit: geometry.table_units.into(),
        },
        slot(geometry, 0, slots(geometry)),
        slot(geometry, SEATS, 0),
    ];
    for place in outside {
        let error = read(medium, place, 1).expect_err("a read outside");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{place:?}");
        let error = write(medium, place, filled(1, 0), false).expect_err("a write outside");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{place:?}");
    }
    let inside = slot(geometry, 0, 1);
    let too_long = slot_units(geometry) + 1;
    for units in [0, too_long] {
        let error = read(medium, inside, units).expect_err("a wrong length");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
    let directory = Place::Directory { first: SeatId(0) };
    let error = write(medium, directory, filled(1, 0), false).expect_err("a directory write");
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    read(medium, inside, 1).expect("it still works");
}

/// Of less than a slot each, and of whole ones, which lie side by side.
fn takes_more_than_its_depth(medium: &mut impl Medium, geometry: &Geometry) {
    let whole = slot_units(geometry);
    for (round, units) in (0..).zip([whole.min(3), whole]) {
        takes_many(medium, geometry, units, round * 100);
    }
}

fn takes_many(medium: &mut impl Medium, geometry: &Geometry, units: usize, mark: u8) {
    let count = medium.depth() * 3 + 5;
    let slots = slots(geometry);
    // Each slot is written once; then all are read, some of them several times.
    let written = (slots as usize).min(count);
    for at in 0..written {
        medium.submit(
            OpId(at as u64),
            Op::Write {
                place: slot(geometry, 2, at as u32),
                data: Arc::new(filled(units, mark + at as u8)),
                units,
                durable: at % 16 == 0,
            },
        );
    }
    medium.kick();
    let mut seen = HashMap::new();
    for _ in 0..written {
        let completion = next(medium);
        completion.result.expect("a write among many");
        assert!(seen.insert(completion.id, ()).is_none(), "completed twice");
    }
    for at in 0..count {
        medium.submit(
            OpId(at as u64),
            Op::Read {
                place: slot(geometry, 2, (at % written) as u32),
                buf: UnitBuf::zeroed(units),
            },
        );
        if at % 10 == 9 {
            medium.kick();
        }
    }
    medium.kick();
    let mut seen = HashMap::new();
    for _ in 0..count {
        let completion = next(medium);
        completion.result.expect("a read among many");
        let buf = completion.buf.expect("its buffer");
        let tag = completion.id.0 as usize % written;
        assert!(
            buf.bytes() == filled(units, mark + tag as u8).bytes(),
            "the bytes of another operation"
        );
        assert!(seen.insert(completion.id, ()).is_none(), "completed twice");
    }
    assert!(medium.poll().is_none(), "a completion nobody asked for");
}

fn wakes_by_its_descriptor(medium: &mut impl Medium) {
    for (place, good) in [
        (Place::Superblock { copy: 0 }, true),
        (Place::Superblock { copy: 9 }, false),
    ] {
        let buf = UnitBuf::zeroed(1);
        medium.submit(OpId(1), Op::Read { place, buf });
        medium.kick();
        if let Some(fd) = medium.wait_fd().filter(|_| !medium.is_inline()) {
            let wait = rustix::time::Timespec {
                tv_sec: PATIENCE.as_secs() as i64,
                tv_nsec: 0,
            };
            let ready = poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&wait));
            assert_eq!(ready, Ok(1), "the descriptor stays silent (good: {good})");
        }
        assert_eq!(next(medium).result.is_ok(), good);
        assert!(medium.poll().is_none());
        if let Some(fd) = medium.wait_fd().filter(|_| !medium.is_inline()) {
            let now = rustix::time::Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            };
            let ready = poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&now));
            assert_eq!(ready, Ok(0), "the descriptor speaks without a completion");
        }
    }
}

fn ends_with_operations_under_way<M: Medium>(open: &mut impl FnMut() -> M, geometry: &Geometry) {
    let units = slot_units(geometry);
    let data = Arc::new(filled(units, 1));
    for kicked in [true, false] {
        let mut medium = open();
        for at in 0..medium.depth() as u64 * 2 {
            let place = slot(geometry, 0, at as u32 % slots(geometry));
            let op = if at % 2 == 0 {
                Op::Write {
                    place,
                    data: Arc::clone(&data),
                    units,
                    durable: false,
                }
            } else {
                Op::Read {
                    place,
                    buf: UnitBuf::zeroed(units),
                }
            };
            medium.submit(OpId(at), op);
        }
        if kicked {
            medium.kick();
        }
        drop(medium);
    }
    let until = Instant::now() + PATIENCE;
    while Arc::strong_count(&data) > 1 {
        assert!(Instant::now() < until, "a dropped medium keeps buffers");
        std::thread::sleep(Duration::from_millis(1));
    }
    read(&mut open(), slot(geometry, 0, 0), 1).expect("the volume after a drop");
}

fn locks_seats<M: Medium>(expect: Expect, open: &mut impl FnMut() -> M) {
    let (mut one, mut two) = (open(), open());
    let lock = |medium: &mut M, seat| medium.lock_seat(SeatId(seat)).expect("an answer");
    assert_eq!(lock(&mut one, 1), expect.lock);
    if expect.lock == SeatLock::Held {
        assert_eq!(lock(&mut one, 1), SeatLock::Held, "held by itself");
        assert_eq!(lock(&mut two, 1), SeatLock::Busy);
        assert_eq!(lock(&mut two, 0), SeatLock::Held, "another seat");
        two.unlock_seat(SeatId(1));
        assert_eq!(lock(&mut two, 1), SeatLock::Busy, "not its own to give");
        two.unlock_seat(SeatId(0));
        assert_eq!(lock(&mut one, 0), SeatLock::Held, "let go of");
        assert_eq!(lock(&mut two, 0), SeatLock::Busy, "taken meanwhile");
        drop(one);
        // The kernel lets go of a ring's file a moment after the ring.
        let until = Instant::now() + PATIENCE;
        while lock(&mut two, 1) == SeatLock::Busy {
            assert!(Instant::now() < until, "a dropped medium keeps its lock");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
