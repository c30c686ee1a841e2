//! How much the machine did besides: without that no figure means anything.

use serde::Serialize;

/// Processor time of the machine so far, in ticks.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ticks {
    total: u64,
    idle: u64,
    steal: u64,
}

impl Ticks {
    /// As the kernel counts it now; zeros if it does not.
    pub(super) fn now() -> Self {
        std::fs::read_to_string("/proc/stat")
            .ok()
            .and_then(|text| Self::parse(&text))
            .unwrap_or_default()
    }

    fn parse(text: &str) -> Option<Self> {
        let line = text.lines().find(|line| line.starts_with("cpu "))?;
        let fields: Vec<u64> = line
            .split_whitespace()
            .skip(1)
            .map_while(|field| field.parse().ok())
            .collect();
        // user nice system idle iowait irq softirq steal; what guests use is in user already.
        let [user, nice, system, idle, iowait, irq, softirq, steal, ..] = fields[..] else {
            return None;
        };
        Some(Self {
            total: user + nice + system + idle + iowait + irq + softirq + steal,
            idle: idle + iowait,
            steal,
        })
    }

    fn share(part: u64, since: &Self, now: &Self) -> f64 {
        part as f64 * 100.0 / now.total.saturating_sub(since.total).max(1) as f64
    }

    /// Percent of all processors' time that was used since.
    pub(super) fn busy_since(&self, since: &Self) -> f64 {
        100.0 - Self::share(self.idle.saturating_sub(since.idle), since, self)
    }

    /// Percent that the host of this machine gave to others meanwhile.
    pub(super) fn steal_since(&self, since: &Self) -> f64 {
        Self::share(self.steal.saturating_sub(since.steal), since, self)
    }
}

/// The machine during a run.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Noise {
    /// Processors.
    pub(super) processors: usize,
    /// Percent of all processors' time that others used just before the run.
    pub(super) busy_before_percent: f64,
    /// Percent that the host gave to others during the run.
    pub(super) steal_percent: f64,
    /// Load average of the last minute, before and after.
    pub(super) load: [f64; 2],
    /// By how much the rounds of the floor's round trip differ, in percent of their median; `None` without a floor.
    pub(super) floor_spread_percent: Option<f64>,
}

impl Noise {
    /// Whether another run would give other figures.
    pub(super) fn verdict(&self) -> &'static str {
        let spread = self.floor_spread_percent.unwrap_or(0.0);
        if self.busy_before_percent > 20.0 || self.steal_percent > 5.0 || spread > 50.0 {
            "noisy: compare columns of one row, and repeat it on a quiet machine"
        } else if self.busy_before_percent > 5.0 || self.steal_percent > 1.0 || spread > 20.0 {
            "somewhat noisy: compare columns of one row"
        } else {
            "quiet"
        }
    }
}

/// Load average of the last minute.
pub(super) fn load() -> f64 {
    std::fs::read_to_string("/proc/loadavg")
        .ok()
        .and_then(|text| text.split_whitespace().next()?.parse().ok())
        .unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_come_from_the_kernels_counters() {
        let before = Ticks::parse("cpu  100 0 100 800 0 0 0 0 0 0\ncpu0 1 1 1 1\n").unwrap();
        let after = Ticks::parse("cpu  150 0 150 870 20 0 0 10 0 0\n").unwrap();
        assert!((after.busy_since(&before) - 55.0).abs() < 1e-9);
        assert!((after.steal_since(&before) - 5.0).abs() < 1e-9);
        assert!(Ticks::parse("cpu  1 2").is_none());
    }
}
