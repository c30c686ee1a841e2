//! What happened in a run, counted.

use std::collections::BTreeMap;
use std::fmt;

use stp_core::Load;

/// Counts of one run, or of many.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Runs.
    pub seeds: u64,
    /// Milliseconds of the worlds' time.
    pub virtual_ms: u64,
    /// Steps of engines.
    pub steps: u64,
    /// Storage reads.
    pub reads: u64,
    /// Storage writes.
    pub writes: u64,
    /// Writes of segments.
    pub segments: u64,
    /// Bytes that programs were handed.
    pub bytes: u64,
    /// Connections asked for.
    pub connects: u64,
    /// Connections that came to be.
    pub streams: u64,
    /// Ends of streams that ended cleanly.
    pub clean: u64,
    /// Ends of streams that were reset, each with an excuse.
    pub resets: u64,
    /// Streams offered to other programs.
    pub gifts: u64,
    /// Those taken within an engine.
    pub gifts_handed: u64,
    /// Those taken by another node.
    pub gifts_moved: u64,
    /// Those that their givers had again.
    pub gifts_returned: u64,
    /// Bytes that came as urgent.
    pub urgent_bytes: u64,
    /// Bytes that went past the sockets of the programs that wrote them.
    pub lane_put: u64,
    /// Bytes that went past the sockets of the programs that read them.
    pub lane_taken: u64,
    /// Segments written, and looks that found something, for one link alone.
    pub hot_writes: u64,
    /// See `hot_writes`.
    pub hot_reads: u64,
    /// Lives of nodes.
    pub lives: u64,
    /// Nodes that found themselves replaced.
    pub fenced: u64,
    /// The most that any engine's queues held.
    pub load: Load,
    /// Faults by class.
    pub faults: BTreeMap<&'static str, u64>,
}

impl Figures {
    /// Counts a fault.
    pub(crate) fn fault(&mut self, class: &'static str) {
        *self.faults.entry(class).or_default() += 1;
    }

    /// All faults.
    pub fn faults_total(&self) -> u64 {
        self.faults.values().sum()
    }

    /// Adds another run's.
    pub fn add(&mut self, other: &Self) {
        self.seeds += other.seeds;
        self.virtual_ms += other.virtual_ms;
        self.steps += other.steps;
        self.reads += other.reads;
        self.writes += other.writes;
        self.segments += other.segments;
        self.bytes += other.bytes;
        self.connects += other.connects;
        self.streams += other.streams;
        self.clean += other.clean;
        self.resets += other.resets;
        self.gifts += other.gifts;
        self.gifts_handed += other.gifts_handed;
        self.gifts_moved += other.gifts_moved;
        self.gifts_returned += other.gifts_returned;
        self.urgent_bytes += other.urgent_bytes;
        self.lane_put += other.lane_put;
        self.lane_taken += other.lane_taken;
        self.hot_writes += other.hot_writes;
        self.hot_reads += other.hot_reads;
        self.lives += other.lives;
        self.fenced += other.fenced;
        self.load = self.load.max(&other.load);
        for (class, count) in &other.faults {
            *self.faults.entry(class).or_default() += count;
        }
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} seeds, {} s of virtual time, {} steps, {} reads, {} writes, {} segments, {} bytes",
            self.seeds,
            self.virtual_ms / 1000,
            self.steps,
            self.reads,
            self.writes,
            self.segments,
            self.bytes
        )?;
        writeln!(
            f,
            "{} connects, {} streams, {} clean ends, {} excused resets, {} lives of nodes, {} fenced",
            self.connects, self.streams, self.clean, self.resets, self.lives, self.fenced
        )?;
        writeln!(
            f,
            "{} gifts, {} taken within a system, {} moved, {} given back; {} urgent bytes; {} bytes put and {} taken by the lane; {} segments written and {} read for one link alone",
            self.gifts,
            self.gifts_handed,
            self.gifts_moved,
            self.gifts_returned,
            self.urgent_bytes,
            self.lane_put,
            self.lane_taken,
            self.hot_writes,
            self.hot_reads
        )?;
        writeln!(f, "most in one engine: {:?}", self.load)?;
        write!(f, "{} faults", self.faults_total())?;
        for (class, count) in &self.faults {
            write!(f, "; {class} {count}")?;
        }
        Ok(())
    }
}
