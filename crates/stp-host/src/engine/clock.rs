//! The clock: where the node's integer time comes from.
//!
//! - Time starts near zero and never runs backwards; nothing compares it with another host's.

use std::time::Instant;

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
    origin: Instant,
}

impl MonotonicClock {
    /// A clock that starts now.
    pub fn new() -> Self {
        Self {
            origin: Instant::now(),
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
        let elapsed = self.origin.elapsed();
        // 64 bits of nanoseconds last for centuries.
        Time(elapsed.as_secs() * NS_PER_S + u64::from(elapsed.subsec_nanos()))
    }
}
