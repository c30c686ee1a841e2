//! Attaching: a seat is claimed over the medium before a node exists.
//!
//! - The node's seat is locked on this host for as long as the node lives, whatever the storage can do.
//! - What a claim tried and did not take is let go of.
//! - A claim ends: with a seat, or with an error that names the volume and what to do.

use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use stp_core::{Claim, ClaimAnswer, ClaimAsk, Claimed, IoDone, IoFault, NodeConfig};
use stp_format::SeatId;
use stp_medium::{Completion, Medium, SeatLock};

use super::clock::Clock;
use super::error::AttachError;
use super::transfer::transfer;
use crate::rendezvous::{FileLock, SystemDir};

/// The longest single wait: a storage without a descriptor is asked again this often.
const NAP_MAX: Duration = Duration::from_millis(100);

/// How often, in one claim, the storage's lock of a seat is tried again that no process of this host has any more: the kernel keeps
/// a killed one's until its last transfer has ended. Peers would go on asking that seat for what the next program listens at
/// until they know that it is dead.
const LATE_LOOKS: u32 = 100;
const LATE_PAUSE: Duration = Duration::from_millis(10);

/// A seat that is ours.
#[derive(Debug)]
pub struct Attached {
    /// What the claim settled.
    pub claimed: Claimed,
    /// Held for as long as the node lives.
    pub lock: FileLock,
}

/// Claims a seat of the volume on `medium` for a node of `dir`'s system. Blocks.
pub fn attach<M: Medium + ?Sized>(
    medium: &mut M,
    clock: &impl Clock,
    config: NodeConfig,
    dir: &SystemDir,
    label: &str,
) -> Result<Attached, AttachError> {
    let mut claim = Claim::new(config);
    let mut locks: Vec<(SeatId, FileLock)> = Vec::new();
    let mut late = LATE_LOOKS;
    loop {
        let now = clock.now();
        while let Some(Completion { id, buf, result }) = medium.poll() {
            let result = result.map_err(|error| IoFault {
                errno: error.raw_os_error().unwrap_or(Errno::IO.raw_os_error()),
            });
            let id = id.0;
            claim.handle_io(now, IoDone { id, buf, result });
        }
        if claim.poll_timeout().is_some_and(|at| at <= now) {
            claim.handle_timeout(now);
        }
        while let Some(ask) = claim.poll_ask() {
            let answer = match ask {
                // A seat that it had to pass over and tries again.
                ClaimAsk::LockHost(seat) if locks.iter().any(|(held, _)| *held == seat) => {
                    ClaimAnswer::Held
                }
                ClaimAsk::LockHost(seat) => match dir.lock_seat(seat.0) {
                    Ok(Some(lock)) => {
                        locks.push((seat, lock));
                        ClaimAnswer::Held
                    }
                    Ok(None) => ClaimAnswer::Busy,
                    Err(source) => {
                        let path = dir.path().join("seats");
                        return Err(AttachError::RunDir { path, source });
                    }
                },
                ClaimAsk::LockMedium(seat) => match lock_medium(medium, seat, &mut late) {
                    Ok(SeatLock::Held) => ClaimAnswer::Held,
                    Ok(SeatLock::Busy) => ClaimAnswer::Busy,
                    Ok(SeatLock::Unsupported) => ClaimAnswer::Unsupported,
                    Err(source) => {
                        let volume = label.to_owned();
                        return Err(AttachError::Storage { volume, source });
                    }
                },
            };
            claim.handle_answer(now, answer);
        }
        if let Some(outcome) = claim.outcome() {
            let claimed = outcome.map_err(|why| AttachError::Claim {
                volume: label.to_owned(),
                system: *dir.system(),
                why,
            })?;
            let at = locks.iter().position(|(seat, _)| *seat == claimed.seat);
            // The claim asks for the host's lock of every seat that it takes; asked here if it did not.
            let lock = match at {
                Some(at) => Some(locks.swap_remove(at).1),
                None => dir.lock_seat(claimed.seat.0).ok().flatten(),
            };
            let Some(lock) = lock else {
                let path = dir
                    .path()
                    .join("seats")
                    .join(format!("{}.lock", claimed.seat));
                let source = std::io::ErrorKind::ResourceBusy.into();
                return Err(AttachError::RunDir { path, source });
            };
            // Others may sit where this claim only tried.
            for (seat, _) in &locks {
                medium.unlock_seat(*seat);
            }
            return Ok(Attached { claimed, lock });
        }
        let mut submitted = false;
        while let Some(io) = claim.poll_io() {
            let (id, op) = transfer(io);
            medium.submit(id, op);
            submitted = true;
        }
        if submitted {
            medium.kick();
        }
        if submitted && medium.wait_fd().is_none() {
            continue;
        }
        let due = claim.poll_timeout().map(|at| at.since(clock.now()));
        nap(medium, due.map_or(NAP_MAX, |due| due.min(NAP_MAX)));
    }
}

/// The storage's lock of a seat whose lock on this host is held.
fn lock_medium<M: Medium + ?Sized>(
    medium: &mut M,
    seat: SeatId,
    late: &mut u32,
) -> std::io::Result<SeatLock> {
    loop {
        let lock = medium.lock_seat(seat)?;
        if lock != SeatLock::Busy || *late == 0 {
            return Ok(lock);
        }
        *late -= 1;
        std::thread::sleep(LATE_PAUSE);
    }
}

/// Waits for the storage, at most so long.
fn nap<M: Medium + ?Sized>(medium: &M, at_most: Duration) {
    let Some(fd) = medium.wait_fd() else {
        std::thread::sleep(at_most);
        return;
    };
    let timeout = Timespec {
        tv_sec: i64::try_from(at_most.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(at_most.subsec_nanos()),
    };
    // A failure only makes the wait shorter; the claim has deadlines of its own.
    let _ = poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout));
}
