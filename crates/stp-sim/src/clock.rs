//! A node's clock: the world's time, counted from the node's start at the host's own rate.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use stp_core::Time;
use stp_host::engine::Clock;

const MILLION: i128 = 1_000_000;

/// What the engine reads; the world sets it before each step.
#[derive(Clone, Debug, Default)]
pub(crate) struct SimClock(Arc<AtomicU64>);

impl SimClock {
    pub(crate) fn set(&self, now: Time) {
        self.0.store(now.0, Ordering::Relaxed);
    }
}

impl Clock for SimClock {
    fn now(&self) -> Time {
        Time(self.0.load(Ordering::Relaxed))
    }
}

/// How a host's clock runs against the world's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    pub(crate) origin: u64,
    /// Parts in a million that it runs fast.
    pub(crate) fast_ppm: i64,
}

impl Rate {
    /// The host's time at a moment of the world.
    pub(crate) fn local(self, world: u64) -> Time {
        let elapsed = i128::from(world.saturating_sub(self.origin));
        Time((elapsed * (MILLION + i128::from(self.fast_ppm)) / MILLION) as u64)
    }

    /// The first moment of the world at which the host's clock shows `local`.
    pub(crate) fn world(self, local: Time) -> u64 {
        let rate = MILLION + i128::from(self.fast_ppm);
        let elapsed = (i128::from(local.0) * MILLION + rate - 1) / rate;
        self.origin.saturating_add(elapsed as u64)
    }
}
