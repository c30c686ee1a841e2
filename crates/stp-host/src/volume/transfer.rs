//! One operation after the other on a medium, for tools that have nothing else to do meanwhile.
//!
//! - Waits for each operation, at most [`Blocking::PATIENCE`]; then the storage counts as silent.
//! - For a medium that nobody else drives.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use stp_format::{Place, UnitBuf};
use stp_medium::{Completion, Medium, Op, OpId};

/// A medium, driven by calls that wait.
pub struct Blocking<'a> {
    medium: &'a mut dyn Medium,
    next: u64,
}

/// Ids that an engine, which counts from zero, never gives.
const FIRST_ID: u64 = 1 << 63;

impl<'a> Blocking<'a> {
    /// Longest wait for one operation.
    pub const PATIENCE: Duration = Duration::from_secs(60);

    /// Drives a medium.
    pub fn new(medium: &'a mut dyn Medium) -> Self {
        Self {
            medium,
            next: FIRST_ID,
        }
    }

    /// Reads `units` units.
    pub fn read(&mut self, place: Place, units: usize) -> io::Result<UnitBuf> {
        let buf = UnitBuf::zeroed(units);
        let completion = self.run(Op::Read { place, buf })?;
        completion.result?;
        completion
            .buf
            .ok_or_else(|| io::Error::other("the medium kept the buffer"))
    }

    /// Writes all of a buffer so that it would survive a loss of power.
    pub fn write_durable(&mut self, place: Place, data: UnitBuf) -> io::Result<()> {
        self.write(place, Arc::new(data), true)
    }

    /// Writes all of a buffer.
    pub fn write(&mut self, place: Place, data: Arc<UnitBuf>, durable: bool) -> io::Result<()> {
        let units = data.units();
        let op = Op::Write {
            place,
            data,
            units,
            durable,
        };
        self.run(op)?.result
    }

    fn run(&mut self, op: Op) -> io::Result<Completion> {
        let id = OpId(self.next);
        self.next += 1;
        self.medium.submit(id, op);
        self.medium.kick();
        let until = Instant::now() + Self::PATIENCE;
        loop {
            while let Some(completion) = self.medium.poll() {
                // A late answer to what an earlier call gave up is dropped.
                if completion.id == id {
                    return Ok(completion);
                }
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the storage does not answer",
                ));
            }
            match self.medium.wait_fd() {
                Some(fd) => {
                    let wait = Timespec {
                        tv_sec: left.as_secs() as _,
                        tv_nsec: left.subsec_nanos() as _,
                    };
                    match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&wait)) {
                        Ok(_) | Err(rustix::io::Errno::INTR) => {}
                        Err(errno) => return Err(errno.into()),
                    }
                }
                None => std::thread::yield_now(),
            }
        }
    }
}
