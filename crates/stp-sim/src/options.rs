//! What a seed stands for: the world's measures, its programs' habits, the faults that it knows.
//!
//! - Swarm: each seed knows only some classes of faults, so that rare combinations meet undisturbed.

use std::fmt;
use std::time::Duration;

use stp_core::{Limits, Timings};

use crate::mutation::Mutation;
use crate::rng::Rng;

/// Seeds from here on know more faults. Those below know the first ones only: they stay what they were when they
/// found something.
pub const ALL_FAULTS: u64 = 100_000;

/// Seeds from here on know moving streams, urgent bytes, and storage that shrinks or puts back what lies beside.
pub const MOVES: u64 = 1_000_000;

/// Seeds from here on know programs with an engine of their own, whose bytes go past their sockets.
pub const LANES: u64 = 2_000_000;

/// Among the seeds from here on are some whose storage is memory that all systems share.
pub const MEMORY: u64 = 10_000_000;

/// In percent: how many of them.
const IN_MEMORY: u64 = 40;

/// Locks of seats that the storage keeps for all hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locks {
    /// None: seats are claimed by time.
    Unsupported,
    /// Kept until the process ends.
    Kept,
    /// Kept, but a host that is silent for ten seconds loses them without being told.
    Expiring,
}

/// All choices of one run that are made before it.
#[derive(Clone, Debug)]
pub struct Options {
    /// The seed.
    pub seed: u64,
    /// Nodes of each system.
    pub nodes: Vec<usize>,
    /// Further hosts that want seats too until the faults end; `Some` is a copy of that node's host, which
    /// bears its name and identity and knows nothing of its locks.
    pub spares: Vec<Option<usize>>,
    /// Seats of the volume.
    pub seats: u16,
    /// Bytes asked for the volume.
    pub volume_bytes: u64,
    /// What the storage knows of locks.
    pub locks: Locks,
    /// Of every node.
    pub timings: Timings,
    /// Of every node.
    pub limits: Limits,
    /// How much faster than the world's each node's clock runs, in parts of a million.
    pub rates_ppm: Vec<i64>,
    /// How long things break, in ms.
    pub break_ms: u64,
    /// Connections at a time.
    pub streams_at_once: usize,
    /// Connections in all.
    pub streams_total: usize,
    /// Most bytes that one end sends.
    pub bytes_max: u64,
    /// Bytes that a program's socket holds each way.
    pub socket_bytes: u64,
    /// Connections that a listener's queue holds.
    pub backlog: usize,
    /// In percent of all ends of streams: programs that die, abort, close early, are slow.
    pub ends: Ends,
    /// Storage transfer time without load, in us.
    pub transfer_us: u64,
    /// Storage faults, in millionths of all transfers.
    pub storage: StorageFaults,
    /// The storage is memory: what befalls stores and looks.
    pub memory: Option<MemoryFaults>,
    /// Mean intervals of faults that befall hosts, in ms; 0: never.
    pub hosts: HostFaults,
    /// Programs that give their stream away, in percent.
    pub gives: u64,
    /// Writes whose last byte is urgent, in percent.
    pub urgent: u64,
    /// Programs with an engine of their own, in percent.
    pub lane: u64,
    /// A peer that lies sits in a seat of its own.
    pub hostile: bool,
    /// Both copies of a record may be spoiled, not always the same one.
    pub rot_anywhere: bool,
    /// Steps that come too late, in millionths, and how late at the most, in ms.
    pub late_steps: u64,
    /// See `late_steps`.
    pub late_steps_ms: u64,
    /// What is broken on purpose, to show that a checker notices.
    pub mutation: Option<Mutation>,
}

/// How ends of streams end, in percent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ends {
    /// Without closing.
    pub die: u64,
    /// By a reset.
    pub abort: u64,
    /// Closed before everything is read.
    pub early: u64,
    /// Read slowly.
    pub slow: u64,
    /// Without marks, as TCP programs.
    pub raw: u64,
}

/// Storage faults, in millionths.
#[derive(Clone, Copy, Debug, Default)]
pub struct StorageFaults {
    /// Writes whose pieces land one by one, in any order.
    pub torn: u64,
    /// Writes that fail after some of their pieces have landed.
    pub partial: u64,
    /// Writes that fail and have not happened.
    pub write_error: u64,
    /// Writes that fail and have happened.
    pub error_done: u64,
    /// Writes that fail and land much later.
    pub late_error: u64,
    /// Writes that are reported and land later.
    pub late: u64,
    /// Writes that land once more, later.
    pub again: u64,
    /// Writes that are reported and never land.
    pub lost: u64,
    /// Reads that fail.
    pub read_error: u64,
    /// Reads of which some units are old.
    pub stale: u64,
    /// How old, at most, in ms.
    pub stale_ms: u64,
    /// How late, at most, in ms.
    pub late_ms: u64,
    /// Transfers that take a thousand times as long.
    pub slow: u64,
    /// Writes that land in another place.
    pub misdirected_write: u64,
    /// Reads that bring what lies in another place.
    pub misdirected_read: u64,
    /// Writes that end with an error behind their first part.
    pub short_write: u64,
    /// Reads that end with an error behind their first part.
    pub short_read: u64,
    /// Writes that put back what the units beside them were when they began.
    pub neighbours: u64,
}

/// What befalls copies into and out of memory, in millionths of them.
#[derive(Clone, Copy, Debug, Default)]
pub struct MemoryFaults {
    /// Copies in whose stores others see one after the other.
    pub spread: u64,
    /// From one to the next at the most, in us.
    pub spread_us: u64,
    /// Copies in that are held up between two stores.
    pub held_up: u64,
    /// For how long at the most, in us.
    pub held_up_us: u64,
    /// Copies out, single words too, of which some words are old.
    pub old: u64,
    /// How old, at most, in us.
    pub old_us: u64,
}

/// Mean intervals of faults that befall hosts, in ms; 0: never.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostFaults {
    /// A node's process is killed.
    pub kill: u64,
    /// A node leaves in good order.
    pub leave: u64,
    /// A node's process stops and goes on later.
    pub freeze: u64,
    /// One node loses the device for a while.
    pub outage_one: u64,
    /// All nodes lose the device for a while.
    pub outage_all: u64,
    /// The device is a thousand times slower for one node.
    pub slow: u64,
    /// A piece of a record or slot turns to garbage.
    pub rot: u64,
    /// A listener goes and comes back.
    pub unlisten: u64,
    /// The volume, a seat or a record goes back to what it was.
    pub rollback: u64,
    /// One node loses the device again and again for a moment.
    pub flap: u64,
    /// One node loses the device for good.
    pub lose: u64,
    /// The volume loses its end for a while, and what stood there.
    pub shrink: u64,
}

impl Options {
    /// The same with short streams and more of them: more segments for the time that a run takes.
    #[must_use]
    pub fn small(mut self) -> Self {
        self.bytes_max = self.bytes_max.min(6000);
        self.streams_total *= 8;
        self
    }

    /// The same on memory that all systems share: what only devices do is left out, what befalls stores and looks comes
    /// instead, and some programs have an engine of their own, whose threads serve their streams' links alone.
    #[must_use]
    pub fn memory(mut self) -> Self {
        let mut rng = Rng::new(self.seed, 4);
        let r = &mut rng;
        self.limits.run_bytes = 0;
        self.memory = Some(MemoryFaults {
            spread: swarm(r, 60, 1000, 500_000),
            spread_us: r.spread(1, 200),
            held_up: swarm(r, 40, 100, 20_000),
            held_up_us: r.spread(10, 50_000),
            old: swarm(r, 50, 1000, 300_000),
            old_us: r.spread(1, 500),
        });
        self.timings.looks_free = true;
        self.storage = StorageFaults {
            late_ms: 500,
            ..StorageFaults::default()
        };
        self.hosts = HostFaults {
            outage_one: 0,
            outage_all: 0,
            slow: 0,
            flap: 0,
            lose: 0,
            ..self.hosts
        };
        self.lane = r.within(50, 100);
        self
    }

    /// What a seed stands for.
    pub fn from_seed(seed: u64) -> Self {
        let mut rng = Rng::new(seed, 1);
        let r = &mut rng;
        let systems = r.within(2, 4) as usize;
        let nodes: Vec<usize> = (0..systems)
            .map(|_| if r.percent(25) { 2 } else { 1 })
            .collect();
        let all: usize = nodes.iter().sum();
        let seats = (all as u64 + r.below(3)).max(2) as u16;
        let spares: Vec<Option<usize>> = (0..r.below(4).saturating_sub(1))
            .map(|_| r.percent(30).then(|| r.below(all as u64) as usize))
            .collect();
        let heartbeat = [100, 250, 500, 1000][r.below(4) as usize];
        let suspect = heartbeat * r.within(3, 6);
        let dead = (suspect * r.within(2, 4)).max(3000);
        let ms = Duration::from_millis;
        let timings = Timings {
            heartbeat: ms(heartbeat),
            suspect: ms(suspect),
            dead: ms(dead),
            orphan: ms(dead.max(20_000)),
            poll_iops: if r.percent(20) { 5000 } else { 0 },
            ..Timings::default()
        };
        let limits = Limits {
            window_start: r.spread(4 << 10, 256 << 10),
            window_max: r.spread(256 << 10, 4 << 20),
            write_depth: r.within(1, 6) as usize,
            read_depth: r.within(1, 6) as usize,
            ring_extents: r.spread(1, 16) as u16,
            // A stream of its own: older seeds stay what they were otherwise.
            run_bytes: [0, 16 << 10, 1 << 20][Rng::new(seed, 21).below(3) as usize],
            ..Limits::default()
        };
        let rates_ppm = (0..all + spares.len())
            .map(|_| r.within(0, 40_000) as i64 - 20_000)
            .collect();
        let storage = StorageFaults {
            torn: swarm(r, 50, 1000, 300_000),
            partial: swarm(r, 35, 100, 50_000),
            write_error: swarm(r, 35, 100, 50_000),
            error_done: swarm(r, 35, 100, 50_000),
            late_error: swarm(r, 35, 100, 30_000),
            late: swarm(r, 35, 100, 30_000),
            again: swarm(r, 35, 100, 30_000),
            lost: swarm(r, 35, 100, 30_000),
            read_error: swarm(r, 35, 100, 50_000),
            stale: swarm(r, 35, 1000, 300_000),
            stale_ms: r.spread(1, 400),
            late_ms: r.spread(10, 8000),
            slow: swarm(r, 25, 10, 2000),
            ..StorageFaults::default()
        };
        let hosts = HostFaults {
            kill: swarm(r, 50, 500, 20_000),
            leave: swarm(r, 30, 1000, 20_000),
            freeze: swarm(r, 45, 500, 20_000),
            outage_one: swarm(r, 35, 1000, 20_000),
            outage_all: swarm(r, 25, 2000, 20_000),
            slow: swarm(r, 25, 1000, 20_000),
            rot: swarm(r, 40, 20, 3000),
            unlisten: swarm(r, 25, 500, 20_000),
            ..HostFaults::default()
        };
        let ends = Ends {
            die: swarm(r, 50, 1, 20),
            abort: swarm(r, 50, 1, 20),
            early: swarm(r, 50, 1, 20),
            slow: swarm(r, 50, 1, 60),
            raw: swarm(r, 50, 10, 100),
        };
        let mut options = Self {
            seed,
            nodes,
            spares,
            seats,
            volume_bytes: r.spread(4 << 20, 32 << 20),
            locks: [Locks::Unsupported, Locks::Kept, Locks::Expiring][r.below(3) as usize],
            timings,
            limits,
            rates_ppm,
            break_ms: r.within(5_000, 60_000),
            streams_at_once: r.spread(2, 300) as usize,
            streams_total: r.spread(40, 3000) as usize,
            bytes_max: r.spread(100, 4 << 20),
            socket_bytes: r.spread(2 << 10, 512 << 10),
            backlog: r.spread(1, 128) as usize,
            ends,
            transfer_us: r.spread(20, 2000),
            storage,
            memory: None,
            hosts,
            gives: 0,
            urgent: 0,
            lane: 0,
            hostile: false,
            rot_anywhere: false,
            late_steps: 0,
            late_steps_ms: 1,
            mutation: None,
        };
        if seed >= ALL_FAULTS {
            options.storage.misdirected_write = swarm(r, 30, 50, 20_000);
            options.storage.misdirected_read = swarm(r, 30, 50, 20_000);
            options.storage.short_write = swarm(r, 30, 50, 20_000);
            options.storage.short_read = swarm(r, 30, 50, 20_000);
            options.hosts.rollback = swarm(r, 30, 500, 20_000);
            options.hosts.flap = swarm(r, 30, 1000, 20_000);
            options.hosts.lose = swarm(r, 20, 5000, 60_000);
            options.hostile = r.percent(40);
            options.rot_anywhere = r.percent(40);
            options.late_steps = swarm(r, 30, 100, 50_000);
            options.late_steps_ms = r.spread(1, 50);
            options.seats += u16::from(options.hostile);
        }
        if seed >= MOVES {
            options.gives = swarm(r, 80, 2, 60);
            options.urgent = swarm(r, 50, 1, 50);
            options.storage.neighbours = swarm(r, 30, 50, 20_000);
            options.hosts.shrink = swarm(r, 25, 2000, 20_000);
        }
        if seed >= LANES {
            options.lane = swarm(r, 85, 10, 100);
        }
        if seed >= MEMORY && r.percent(IN_MEMORY) {
            options = options.memory();
        }
        options
    }
}

/// A value for some seeds, 0 for the others.
fn swarm(r: &mut Rng, percent: u64, low: u64, high: u64) -> u64 {
    match r.percent(percent) {
        true => r.spread(low, high),
        false => 0,
    }
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "seed {}: nodes {:?}, spares {:?}, {} seats, {} KiB, locks {:?}, {} at once of {} streams up to {} bytes, sockets {} bytes, backlog {}, {} us, {} ms of faults\n  {:?}\n  {:?}\n  {:?}\n  {:?}\n  {:?} rates {:?}, hostile {}, rot anywhere {}, late steps {} up to {} ms, gives {}, urgent {}, lane {}, memory {:?}",
            self.seed,
            self.nodes,
            self.spares,
            self.seats,
            self.volume_bytes >> 10,
            self.locks,
            self.streams_at_once,
            self.streams_total,
            self.bytes_max,
            self.socket_bytes,
            self.backlog,
            self.transfer_us,
            self.break_ms,
            self.storage,
            self.hosts,
            self.ends,
            self.timings,
            self.limits,
            self.rates_ppm,
            self.hostile,
            self.rot_anywhere,
            self.late_steps,
            self.late_steps_ms,
            self.gives,
            self.urgent,
            self.lane,
            self.memory
        )
    }
}
