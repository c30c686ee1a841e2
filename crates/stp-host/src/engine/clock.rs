//! The clock: where the node's integer time comes from.
//!
//! - Time starts near zero and never runs backwards; nothing compares it with another host's.
#![allow(unsafe_code)]

use stp_core::Time;

const NS_PER_S: u64 = 1_000_000_000;

/// A source of the node's time.
pub trait Clock {
    /// Nanoseconds since this clock was made.
    fn now(&self) -> Time;
}

/// The kernel's monotonic clock, from zero at its making.
#[derive(Clone, Copy, Debug)]
pub struct MonotonicClock {
    origin_ns: u64,
}

impl MonotonicClock {
    /// A clock that starts now.
    pub fn new() -> Self {
        Self {
            origin_ns: monotonic_ns(),
        }
    }
}

impl Default for MonotonicClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for MonotonicClock {
    fn now(&self) -> Time {
        Time(monotonic_ns().saturating_sub(self.origin_ns))
    }
}

/// What the kernel's clock shows; 64 bits of nanoseconds last for centuries. `std::time::Instant` takes twice as many
/// instructions to say the same, which a small message in memory notices.
fn monotonic_ns() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `now` is a timespec to be written. This clock exists on every Linux, so that the call cannot fail.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * NS_PER_S + now.tv_nsec as u64
}
