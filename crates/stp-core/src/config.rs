//! What a node is told at its start: names, time-outs, limits.

use core::time::Duration;
use stp_format::{Geometry, SeatTimings, SystemName, VolumeId};

/// Who this node is and on which volume.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// The volume's identity.
    pub volume: VolumeId,
    /// The volume's measures.
    pub geometry: Geometry,
    /// This system's name.
    pub system: SystemName,
    /// Identity of this host's run directory: processes with equal values share local locks.
    pub host: [u8; 16],
    /// Process id, for people who read the volume.
    pub pid: u32,
    /// A random number of this start.
    pub nonce: u64,
    /// Time-outs and intervals.
    pub timings: Timings,
    /// Bounds of everything that could grow.
    pub limits: Limits,
}

/// Time-outs and intervals of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timings {
    /// Between two heartbeats.
    pub heartbeat: Duration,
    /// Silence of this node after which its peers suspend.
    pub suspect: Duration,
    /// Silence of this node after which its peers reset its streams.
    pub dead: Duration,
    /// Shortest nap between two looks at a link that has just been busy.
    pub poll_min: Duration,
    /// Longest interval between two looks at the seat directory while there was traffic lately.
    pub poll_max: Duration,
    /// Longest interval between two looks at the seat directory after seconds of silence.
    pub poll_idle: Duration,
    /// How long after news a link is looked at without a nap.
    pub poll_hot: Duration,
    /// Silence of a link after which only the directory tells of news.
    pub link_idle: Duration,
    /// Most looks a second at links and directory together, once the hot time is over; 0: no bound.
    pub poll_iops: u32,
    /// How long an acknowledgement may wait for company.
    pub ack_delay: Duration,
    /// Silence after which an unacknowledged segment is written again, at first.
    pub rewrite: Duration,
    /// Longest a claim's write may take before the claim is begun anew.
    pub claim_write: Duration,
    /// How long a claim must stand before it counts: more than a heartbeat and two `claim_write`, so that a node
    /// that holds the seat is seen to.
    pub claim_wait: Duration,
    /// How long a stream without a program waits for its peer's end.
    pub orphan: Duration,
    /// A look costs next to nothing: the storage is memory. Then a look too many is better than one too late.
    pub looks_free: bool,
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(1),
            suspect: Duration::from_secs(5),
            dead: Duration::from_secs(60),
            poll_min: Duration::from_micros(100),
            poll_max: Duration::from_millis(20),
            poll_idle: Duration::from_millis(50),
            poll_hot: Duration::from_millis(2),
            link_idle: Duration::from_millis(250),
            poll_iops: 0,
            ack_delay: Duration::from_millis(20),
            rewrite: Duration::from_millis(500),
            claim_write: Duration::from_secs(1),
            claim_wait: Duration::from_millis(3500),
            orphan: Duration::from_secs(60),
            looks_free: false,
        }
    }
}

impl Timings {
    /// The longest interval between two looks at the seat directory at all.
    pub(crate) fn poll_longest(&self) -> Duration {
        self.poll_idle.max(self.poll_max)
    }

    /// The part that peers read.
    pub(crate) fn published(&self) -> SeatTimings {
        let ms = |d: Duration| u32::try_from(d.as_millis()).unwrap_or(u32::MAX);
        SeatTimings {
            heartbeat_ms: ms(self.heartbeat),
            suspect_ms: ms(self.suspect),
            dead_ms: ms(self.dead),
            poll_max_us: u32::try_from(self.poll_longest().as_micros()).unwrap_or(u32::MAX),
        }
    }
}

/// Large slots in a run, at the most.
const RUN_SLOTS_MAX: usize = 4;

/// Bounds of everything that could grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Streams of a node; never more than its socket table has rows.
    pub streams: usize,
    /// Streams that were asked for and that no program's queue has taken yet.
    pub offered: usize,
    /// Segments under way on one link.
    pub write_depth: usize,
    /// Slots looked at side by side on one link.
    pub read_depth: usize,
    /// Neighbouring slots of so many bytes together are written or read as one, for the price of one; 0: they are not.
    pub run_bytes: usize,
    /// Bytes that a peer may send at first on a new stream.
    pub window_start: u64,
    /// Bytes that a peer may send ahead of the reader at the most.
    pub window_max: u64,
    /// Bytes of all streams' first windows together, about: the more streams, the smaller a new one begins.
    pub windows_start: u64,
    /// Bytes by which all windows together may grow.
    pub window_growth: u64,
    /// Extents that one ring takes at the most.
    pub ring_extents: u16,
}

impl Limits {
    /// Slots of a ring that are written, or read, as one: a part of it, so that there are others meanwhile.
    pub(crate) fn run_slots(&self, slots: u32, slot_bytes: usize) -> usize {
        let most = RUN_SLOTS_MAX.min(slots as usize / 4).max(1);
        (self.run_bytes / slot_bytes.max(1)).clamp(1, most)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            streams: 65_536,
            offered: 4096,
            write_depth: 4,
            read_depth: 4,
            run_bytes: 0,
            window_start: 256 << 10,
            window_max: 4 << 20,
            windows_start: 1 << 30,
            window_growth: 256 << 20,
            ring_extents: 16,
        }
    }
}
