//! What a node holds in memory, and the most that it may hold: for whoever watches that nothing grows.

use super::Node;
use super::traffic::{GONE_MAX, RESETS_MAX};

/// Fills of a node's queues. Of two, one is within the other if no field is greater.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Streams.
    pub streams: u64,
    /// Streams that no program's queue has taken yet.
    pub offered: u64,
    /// Streams that wait for a look at the directory.
    pub resolving: u64,
    /// Places in the longest queue of streams with something to send on one link.
    pub queued: u64,
    /// Streams with something to deliver.
    pub deliver: u64,
    /// Resets of forgotten streams that wait on one link.
    pub resets: u64,
    /// Bytes that arrived and that no program has taken.
    pub received_bytes: u64,
    /// Bytes of segments that are not acknowledged.
    pub kept_bytes: u64,
    /// Extents that are taken and in no link's ring.
    pub extents_lost: u64,
}

impl Load {
    fn fields(&self) -> [(&'static str, u64); 9] {
        [
            ("streams", self.streams),
            ("offered", self.offered),
            ("resolving", self.resolving),
            ("queued", self.queued),
            ("deliver", self.deliver),
            ("resets", self.resets),
            ("received_bytes", self.received_bytes),
            ("kept_bytes", self.kept_bytes),
            ("extents_lost", self.extents_lost),
        ]
    }

    /// The first field that is greater than in `most`: its name, its value, and what it may be.
    pub fn exceeds(&self, most: &Self) -> Option<(&'static str, u64, u64)> {
        let pairs = self.fields().into_iter().zip(most.fields());
        pairs
            .map(|((name, is), (_, may))| (name, is, may))
            .find(|(_, is, may)| is > may)
    }

    /// The greater value of each field.
    pub fn max(&self, other: &Self) -> Self {
        Self {
            streams: self.streams.max(other.streams),
            offered: self.offered.max(other.offered),
            resolving: self.resolving.max(other.resolving),
            queued: self.queued.max(other.queued),
            deliver: self.deliver.max(other.deliver),
            resets: self.resets.max(other.resets),
            received_bytes: self.received_bytes.max(other.received_bytes),
            kept_bytes: self.kept_bytes.max(other.kept_bytes),
            extents_lost: self.extents_lost.max(other.extents_lost),
        }
    }
}

impl Node {
    /// What it holds now.
    pub fn load(&self) -> Load {
        let out = || self.links.iter().flat_map(|link| &link.outgoing);
        let longest = |of: fn(&crate::sender::Outgoing) -> usize| out().map(of).max().unwrap_or(0);
        let streams = self.streams.iter();
        Load {
            streams: self.streams.len() as u64,
            offered: self.offered as u64,
            resolving: self.resolving.len() as u64,
            queued: longest(|out| out.control.len().max(out.fill.len())) as u64,
            deliver: self.deliver.len() as u64,
            resets: longest(|out| out.farewells.len()) as u64,
            received_bytes: streams.map(|(_, stream)| stream.received.len()).sum(),
            kept_bytes: out().map(crate::sender::Outgoing::kept_bytes).sum(),
            extents_lost: self
                .extents
                .used()
                .saturating_sub(out().map(|out| u64::from(out.ring().extents)).sum()),
        }
    }

    /// The most that it may ever hold.
    pub fn load_max(&self) -> Load {
        let limits = &self.config.limits;
        let geometry = &self.config.geometry;
        let streams = limits.streams.min(geometry.scbs()) as u64;
        let queue = 2 * streams + GONE_MAX as u64;
        Load {
            streams,
            offered: limits.offered as u64,
            resolving: streams,
            queued: queue,
            deliver: queue,
            resets: RESETS_MAX as u64,
            received_bytes: self.windows_start + self.window_growth,
            kept_bytes: geometry.ring_bytes(),
            extents_lost: 0,
        }
    }
}
