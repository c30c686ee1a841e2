//! A claim on a directory of any contents, with locks and storage that answer anything.
//!
//! - It ends, within a bounded number of steps and three minutes of its own time.
//! - It writes nothing but one copy of the record of a seat that it tries, and never one whose lock is refused.
//! - A seat that it gets has a higher incarnation than any valid record there.

use std::time::Duration;

use arbitrary::{Result, Unstructured};
use stp_core::*;
use stp_format::*;

use crate::records::{VOLUME, geometry, number, seat_record};

/// Looks, writes and answers of one claim at the most: three minutes at ten milliseconds a look, and some.
const STEPS_MAX: usize = 40_000;

/// Drives a claim through an input.
pub fn run(data: &[u8]) {
    let mut u = Unstructured::new(data);
    let _ = claim(&mut u);
}

fn claim(u: &mut Unstructured<'_>) -> Result<()> {
    let geometry = geometry();
    let mut store = vec![0; geometry.directory_units(geometry.seats) * UNIT_BYTES];
    let config = NodeConfig {
        volume: VOLUME,
        geometry,
        system: "alpha".parse().unwrap_or_else(|e| panic!("{e}")),
        host: [1; 16],
        pid: 1,
        nonce: u.arbitrary()?,
        timings: Timings::default(),
        limits: Limits::default(),
    };
    let record_bytes = usize::from(geometry.record_units) * UNIT_BYTES;
    let copy_at =
        |seat: SeatId, copy: u8| (usize::from(seat.0) * 2 + usize::from(copy)) * record_bytes;
    let put = |store: &mut Vec<u8>, u: &mut Unstructured<'_>| -> Result<()> {
        let seat = SeatId(u.int_in_range(0..=geometry.seats - 1)?);
        let at = copy_at(seat, u8::from(u.arbitrary::<bool>()?));
        let record = seat_record(u, &geometry, seat)?.encode(&geometry);
        store[at..at + record_bytes].copy_from_slice(record.bytes());
        if u.ratio(1, 5)? {
            store[at + u.choose_index(record_bytes)?] ^= 0x40;
        }
        Ok(())
    };
    for _ in 0..u.int_in_range(0..=8)? {
        put(&mut store, u)?;
    }
    let mut claim = Claim::new(config);
    let mut now = Time::ZERO;
    let mut refused = Vec::new();
    // What the last look at the whole directory could tell.
    let mut seen = vec![Incarnation(0); geometry.seats.into()];
    for _ in 0..STEPS_MAX {
        if let Some(outcome) = claim.outcome() {
            if let Ok(claimed) = outcome {
                judge(claimed, &refused);
            }
            return Ok(());
        }
        if let Some(ask) = claim.poll_ask() {
            // With the input used up, every lock is refused: that ends every claim.
            let answer = match u.int_in_range(0..=3).unwrap_or(0) {
                0 => ClaimAnswer::Busy,
                1 => ClaimAnswer::Unsupported,
                _ => ClaimAnswer::Held,
            };
            let (ClaimAsk::LockHost(seat) | ClaimAsk::LockMedium(seat)) = ask;
            refused.retain(|other| *other != seat);
            if answer == ClaimAnswer::Busy {
                refused.push(seat);
            }
            claim.handle_answer(now, answer);
            continue;
        }
        if let Some(io) = claim.poll_io() {
            let took = *u.choose(&[1, 1, 5, 900, 1500]).unwrap_or(&1);
            now = now + Duration::from_millis(took);
            let fault = u.ratio(1, 10).unwrap_or(false);
            let buf = match io.action {
                IoAction::Read(mut buf) => {
                    let Place::Directory { first } = io.place else {
                        panic!("a look at {:?}", io.place);
                    };
                    let at = copy_at(first, 0);
                    let len = buf.len();
                    buf.bytes_mut().copy_from_slice(&store[at..at + len]);
                    if len == store.len() {
                        for (seat, seen) in seen.iter_mut().enumerate() {
                            *seen = highest(&store, &geometry, SeatId(seat as u16));
                        }
                    }
                    Some(buf)
                }
                IoAction::Write {
                    data,
                    units,
                    durable,
                } => {
                    let Place::Seat { seat, copy } = io.place else {
                        panic!("a write to {:?}", io.place);
                    };
                    assert!(
                        !refused.contains(&seat),
                        "a write to a seat whose lock was refused"
                    );
                    assert!(durable, "a claim that a loss of power could undo");
                    let record = SeatRecord::decode(data.bytes(), VOLUME, &geometry, seat);
                    let record = record.unwrap_or_else(|damage| panic!("{damage}"));
                    assert_eq!(record.state, SeatState::Claiming);
                    let highest = seen[usize::from(seat.0)];
                    assert!(
                        record.incarnation > highest || highest.0 == u64::MAX,
                        "incarnation {} after {highest}",
                        record.incarnation
                    );
                    let at = copy_at(seat, copy);
                    if !fault {
                        let len = units * UNIT_BYTES;
                        store[at..at + len].copy_from_slice(&data.bytes()[..len]);
                    }
                    None
                }
            };
            let result = if fault {
                Err(IoFault { errno: 5 })
            } else {
                Ok(())
            };
            claim.handle_io(
                now,
                IoDone {
                    id: io.id,
                    buf,
                    result,
                },
            );
            if u.ratio(1, 4).unwrap_or(false) {
                put(&mut store, u)?;
            }
            continue;
        }
        let Some(due) = claim.poll_timeout() else {
            panic!("a claim that waits for nothing");
        };
        now = if due > now {
            due
        } else {
            now + Duration::from_nanos(1)
        };
        if u.ratio(1, 20).unwrap_or(false) {
            now = now + Duration::from_millis(number(u)?.min(200_000));
        }
        claim.handle_timeout(now);
    }
    panic!("a claim without end");
}

fn judge(claimed: Claimed, refused: &[SeatId]) {
    assert!(
        !refused.contains(&claimed.seat),
        "a seat whose lock was refused"
    );
    assert!(claimed.incarnation > Incarnation(0));
    assert!(claimed.copy < 2);
}

/// The highest incarnation of a seat's valid copies.
fn highest(store: &[u8], geometry: &Geometry, seat: SeatId) -> Incarnation {
    let record_bytes = usize::from(geometry.record_units) * UNIT_BYTES;
    let at = usize::from(seat.0) * 2 * record_bytes;
    (0..2)
        .filter_map(|copy| {
            let at = at + copy * record_bytes;
            let bytes = &store[at..at + record_bytes];
            SeatRecord::decode(bytes, VOLUME, geometry, seat).ok()
        })
        .map(|record| record.incarnation)
        .max()
        .unwrap_or_default()
}
