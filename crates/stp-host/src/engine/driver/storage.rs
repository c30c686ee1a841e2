//! The driver's transfers: what the node wants of the storage, and what came of it.
//!
//! - Nothing here waits for the storage, but for a lone look of an idle node, and that not for long.

use std::io::ErrorKind;
use std::time::Duration;

use stp_core::{IoAction, IoDone, IoFault, Time};
use stp_format::Place;
use stp_medium::{Completion, Medium};

use super::Driver;
use crate::engine::clock::Clock;
use crate::engine::local::LocalSide;
use crate::engine::transfer::transfer;

/// Bounds of one step's work.
const COMPLETIONS_MAX: usize = 256;
const SUBMISSIONS_MAX: usize = 256;
/// A transfer of more units is a part of something large.
const LARGE_UNITS: usize = 8;
/// An idle node's look at the directory is waited for so long: a program that writes meanwhile waits, too.
const LOOK_WAIT: Duration = Duration::from_millis(1);
/// Reported for a storage error that carries no number: EIO.
pub(super) const ERRNO_IO: i32 = 5;
/// Reported for a place outside the volume: EINVAL.
const ERRNO_INVALID: i32 = 22;

/// What came of handing operations to the storage.
pub(super) struct Submitted {
    /// The budget was used up.
    pub(super) full: bool,
    /// The storage has completed them.
    pub(super) complete: bool,
    /// Those of many units.
    pub(super) large: usize,
}

impl<M: Medium + ?Sized, C: Clock, L: LocalSide> Driver<M, C, L> {
    /// Passes on what the storage has done; whether there is more.
    pub(super) fn reap(&mut self) -> bool {
        for _ in 0..COMPLETIONS_MAX {
            let Some(Completion { id, buf, result }) = self.medium.poll() else {
                return false;
            };
            let result = result.map_err(|error| {
                tracing::debug!(volume = %self.label, %error, "a transfer failed");
                let invalid = error.kind() == ErrorKind::InvalidInput;
                let unnamed = if invalid { ERRNO_INVALID } else { ERRNO_IO };
                // A read behind the end, a write behind a device's.
                let lacks = matches!(
                    error.kind(),
                    ErrorKind::UnexpectedEof | ErrorKind::StorageFull
                );
                if lacks && !std::mem::replace(&mut self.lacks_told, true) {
                    tracing::error!(
                        volume = %self.label,
                        %error,
                        "the volume has lost its end, or its file system has no room for it: \
                         streams wait until it has the size that `stp info` tells"
                    );
                }
                IoFault {
                    errno: error.raw_os_error().unwrap_or(unnamed),
                }
            });
            let done = IoDone {
                id: id.0,
                buf,
                result,
            };
            self.node.handle_io(self.clock.now(), done);
        }
        true
    }

    /// Begins the reads that are due, so that what comes next is read while other things are done.
    pub(super) fn read_ahead(&mut self, now: Time) {
        let mut any = false;
        while let Some(io) = self.node.poll_read(now) {
            let (id, op) = transfer(io);
            self.medium.submit(id, op);
            any = true;
        }
        if any {
            self.medium.kick();
        }
    }

    /// Hands over what the node wants.
    pub(super) fn submit(&mut self, now: Time) -> Submitted {
        let mut submitted = 0;
        let mut large = 0;
        let mut idle_look = false;
        while submitted < SUBMISSIONS_MAX {
            let Some(io) = self.node.poll_io(now) else {
                break;
            };
            let units = match &io.action {
                IoAction::Read(buf) => buf.units(),
                IoAction::Write { units, .. } => *units,
            };
            let is_large = matches!(io.place, Place::Slot { .. }) && units > LARGE_UNITS;
            large += usize::from(is_large);
            idle_look = matches!(io.place, Place::Directory { .. }) && self.node.transfers() == 1;
            let (id, op) = transfer(io);
            self.medium.submit(id, op);
            submitted += 1;
        }
        if idle_look && !self.medium.is_inline() {
            self.medium.kick_and_wait(LOOK_WAIT);
            self.reap();
        } else if submitted > 0 {
            self.medium.kick();
        }
        Submitted {
            full: submitted == SUBMISSIONS_MAX,
            complete: submitted > 0 && self.medium.is_inline(),
            large,
        }
    }
}
