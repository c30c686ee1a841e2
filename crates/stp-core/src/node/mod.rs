//! A node: one running engine's view of the volume, and everything it decides.
//!
//! - It writes only places of its own seat ([`Node::poll_io`] asserts it).
//! - A segment's frames are taken in exactly once, in order: slots are read by number, and only the head of
//!   the queue is decoded.
//! - After [`Event::Fenced`] it asks for no further write.
//!
//! `peers.rs` follows the directory, `frames.rs` takes in what peers send, `traffic.rs` moves bytes,
//! `lane.rs` past the programs' sockets, `hot.rs` one link at a time,
//! `sockets.rs` holds what programs ask for, `moving.rs` hands streams from node to node.

mod frames;
mod hot;
mod lane;
mod load;
mod moving;
mod peers;
mod sockets;
mod traffic;

pub use hot::{PieceIo, SegmentIo};
pub use load::Load;
pub use moving::{Adoption, Stillness};

use crate::claim::Claimed;
use crate::config::{Limits, NodeConfig, Timings};
use crate::directory::{Change, Directory, PeerInfo, PeerState};
use crate::event::{ConnectError, Event, ResetReason, StreamId};
use crate::io::{Io, IoAction, IoDone};
use crate::link::{Extents, Link};
use crate::own_seat::OwnSeat;
use crate::sender::{Bulk, Pool};
use crate::stream::Streams;
use crate::table::{Row, Table};
use crate::time::{Time, earliest};
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;
use stp_format::geometry::SCBS_PER_UNIT;
use stp_format::{
    Epoch, LinkEntry, Place, Scb, ScbState, SeatCounters, SeatId, SeatRecord, SeatState, Seq,
    SystemName, TableUnit, UNIT_BYTES, UnitBuf,
};

/// Longest that a leaving node waits for acknowledgements.
const LEAVE_MAX: Duration = Duration::from_secs(3);
/// Streams without a program are looked over this often.
const ORPHAN_SCAN: Duration = Duration::from_secs(1);

/// The port of the engines' own streams. No program's: port 0 cannot be listened on.
pub const SERVICE_PORT: u16 = 0;

/// What an operation under way is for.
#[derive(Clone, Copy, Debug)]
enum Purpose {
    Directory,
    Seat {
        left: bool,
    },
    Table {
        first: usize,
        units: usize,
    },
    Segment {
        seat: SeatId,
        epoch: Epoch,
    },
    Slot {
        seat: SeatId,
        epoch: Epoch,
        seq: Seq,
    },
}

#[derive(Debug)]
struct Listener {
    row: u32,
    /// It stands on the volume when the seat record's change of this number does.
    change: u64,
    told: bool,
}

/// How far this node's end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Up,
    /// Waits until everything sent is acknowledged, at most until then.
    Leaving(Time),
    /// The last record, in state left, is to be written.
    Signing,
    Left,
    Fenced,
}

/// What a node knows of one stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamInfo {
    /// Its state by the names of TCP.
    pub state: ScbState,
    /// Port on this system.
    pub local_port: u16,
    /// The other system.
    pub peer: SystemName,
    /// Port there.
    pub peer_port: u16,
    /// The seat of the node at the other end.
    pub seat: SeatId,
    /// The incarnation of the node at the other end.
    pub incarnation: stp_format::Incarnation,
    /// Bytes sent.
    pub sent_bytes: u64,
    /// Bytes that the program has taken.
    pub received_bytes: u64,
}

/// One node.
#[derive(Debug)]
pub struct Node {
    config: NodeConfig,
    seat: SeatId,
    incarnation: stp_format::Incarnation,
    started: Time,
    now: Time,
    phase: Phase,
    directory: Directory,
    /// Living nodes of this system's name on other hosts that were reported.
    namesakes: BTreeMap<SeatId, stp_format::Incarnation>,
    own: OwnSeat,
    /// By the peer's seat.
    links: Vec<Link>,
    extents: Extents,
    pool: Pool,
    streams: Streams,
    next_number: u64,
    next_port: u16,
    ports_taken: BTreeSet<u16>,
    listeners: BTreeMap<u16, Listener>,
    /// Streams that wait for a directory read that began after they asked.
    resolving: Vec<StreamId>,
    offered: usize,
    /// All streams' first windows.
    windows_start: u64,
    /// What all streams' windows have grown by.
    window_growth: u64,
    table: Table,
    table_unit_touched: Time,
    /// In the order of their numbers, which only rise.
    ops: Vec<(u64, Purpose)>,
    next_op: u64,
    directory_reading: bool,
    /// `resolving` streams up to this many asked before the read under way began.
    resolving_covered: usize,
    directory_at: Time,
    directory_full_at: Time,
    /// When a link last carried something.
    active_at: Time,
    looks_at: Time,
    /// The link whose slots are looked at first.
    look_turn: usize,
    /// The next look is at the directory, if one is due there.
    directory_turn: bool,
    link_turn: usize,
    deliver: VecDeque<StreamId>,
    events: VecDeque<Event>,
    orphans_at: Time,
    counters: SeatCounters,
}

impl Node {
    /// A node in a seat that was claimed.
    pub fn new(config: NodeConfig, claimed: Claimed, now: Time) -> Self {
        let geometry = config.geometry;
        let seats = usize::from(geometry.seats);
        let ports = sockets::EPHEMERAL_PORTS;
        let slice = (ports.end() - ports.start()) / geometry.seats;
        Self {
            seat: claimed.seat,
            incarnation: claimed.incarnation,
            started: now,
            now,
            phase: Phase::Up,
            directory: Directory::new(config.volume, geometry, claimed.seat),
            namesakes: BTreeMap::new(),
            own: OwnSeat::new(claimed, now),
            links: (0..seats).map(|_| Link::new()).collect(),
            extents: Extents::new(&geometry),
            pool: Pool::new(UnitBuf::zeroed),
            streams: Streams::default(),
            next_number: 1,
            next_port: ports.start() + slice * claimed.seat.0,
            ports_taken: BTreeSet::new(),
            listeners: BTreeMap::new(),
            resolving: Vec::new(),
            offered: 0,
            windows_start: 0,
            window_growth: 0,
            table: Table::new(geometry.scbs()),
            table_unit_touched: now,
            ops: Vec::new(),
            next_op: 1,
            directory_reading: false,
            resolving_covered: 0,
            directory_at: now,
            directory_full_at: now,
            active_at: now,
            looks_at: now,
            look_turn: 0,
            directory_turn: false,
            link_turn: 0,
            deliver: VecDeque::new(),
            events: VecDeque::new(),
            orphans_at: now,
            counters: SeatCounters::default(),
            config,
        }
    }

    /// From now on large buffers come from `source`, which is given their units; their content does not matter.
    pub fn set_buffers(&mut self, source: fn(usize) -> UnitBuf) {
        self.pool = Pool::new(source);
    }

    /// Its seat.
    pub fn seat(&self) -> SeatId {
        self.seat
    }

    /// Its incarnation.
    pub fn incarnation(&self) -> stp_format::Incarnation {
        self.incarnation
    }

    /// What it did so far.
    pub fn stats(&self) -> SeatCounters {
        SeatCounters {
            uptime_ms: self.now.since(self.started).as_millis() as u64,
            streams: self.streams.len() as u32,
            ..self.counters
        }
    }

    /// How many streams it has.
    pub fn stream_count(&self) -> usize {
        self.streams.len()
    }

    /// A stream's names and figures, while it exists.
    pub fn stream(&self, id: StreamId) -> Option<StreamInfo> {
        self.streams.get(id).map(|stream| StreamInfo {
            state: stream.state(),
            local_port: stream.local_port,
            peer: stream.peer,
            peer_port: stream.peer_port,
            seat: stream.seat,
            incarnation: self.links[usize::from(stream.seat.0)].peer_incarnation,
            sent_bytes: stream.sent,
            received_bytes: stream.taken,
        })
    }

    /// The other nodes of the volume, as far as this one has seen them.
    pub fn peers(&self) -> impl Iterator<Item = PeerInfo> + '_ {
        self.directory.peers.iter().flatten().map(|peer| PeerInfo {
            seat: peer.record.seat,
            system: peer.record.system,
            incarnation: peer.record.incarnation,
            state: peer.state,
            ports: peer.record.ports.clone(),
            moves: peer.record.moves,
        })
    }

    /// Whether nothing is left of any stream: for tests that look for leaks.
    pub fn is_quiet(&self) -> bool {
        self.streams.len() == 0
            && self.offered == 0
            && self.resolving.is_empty()
            && self.links.iter().all(|link| link.keys.is_empty())
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Time) {
        self.tick(now);
        if now >= self.orphans_at {
            self.orphans_at = now + ORPHAN_SCAN;
            self.drop_orphans(now);
            self.drop_held(now);
        }
        for seat in 0..self.links.len() {
            let ending = self.links[seat].ending;
            if let Some(ending) = ending.filter(|ending| now >= ending.deadline) {
                self.end_link(now, SeatId(seat as u16), ending.reason);
            }
        }
        let hangs = self.own.hangs(now, self.config.timings.suspect);
        if hangs && !self.own.stalled && self.phase == Phase::Up {
            self.own.stalled = true;
            self.events.push_back(Event::StorageStalled(None));
        }
        if let Phase::Leaving(until) = self.phase {
            let drained = self
                .links
                .iter()
                .all(|link| link.outgoing.as_ref().is_none_or(|out| out.drained()));
            if drained || now >= until {
                self.phase = Phase::Signing;
                self.own.ring();
            }
        }
    }

    /// A storage operation has ended.
    pub fn handle_io(&mut self, now: Time, done: IoDone) {
        self.tick(now);
        let Ok(at) = self.ops.binary_search_by_key(&done.id, |(id, _)| *id) else {
            debug_assert!(false, "a completion that nobody waits for");
            return;
        };
        let (_, purpose) = self.ops.remove(at);
        let good = done.result.is_ok();
        match purpose {
            Purpose::Directory => self.handle_directory(now, done),
            Purpose::Seat { left } => {
                let fault = done.result.err().map(|fault| fault.errno);
                self.handle_seat_written(now, fault, left);
            }
            Purpose::Table { first, units } => self.table.handle_written(first, units, good),
            Purpose::Segment { seat, epoch } => {
                let rewrite = self.config.timings.rewrite;
                let link = &mut self.links[usize::from(seat.0)];
                if link.my_epoch == epoch
                    && let Some(outgoing) = &mut link.outgoing
                {
                    outgoing.handle_written(now, done.id, good, rewrite);
                    if outgoing.bulk() == Bulk::Hungry
                        && let Some(incoming) = &mut link.incoming
                    {
                        incoming.look_soon(now);
                    }
                }
            }
            Purpose::Slot { seat, epoch, seq } => {
                let buf = done.buf.filter(|_| good);
                self.handle_look(now, seat, epoch, seq, buf);
            }
        }
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// The next storage operation. Events, deliveries and fills must be drained before.
    pub fn poll_io(&mut self, now: Time) -> Option<Io> {
        self.tick(now);
        if matches!(self.phase, Phase::Fenced | Phase::Left) {
            return None;
        }
        let io = self
            .poll_seat(now)
            .or_else(|| self.poll_segment(now))
            .or_else(|| self.poll_looks(now))
            .or_else(|| self.poll_table(now))?;
        self.count(&io);
        Some(io)
    }

    /// The next read, if one is due: nothing needs to be drained before.
    pub fn poll_read(&mut self, now: Time) -> Option<Io> {
        self.tick(now);
        if matches!(self.phase, Phase::Fenced | Phase::Left) {
            return None;
        }
        let io = self.poll_looks(now)?;
        self.count(&io);
        Some(io)
    }

    fn count(&mut self, io: &Io) {
        match &io.action {
            IoAction::Read(buf) => self.count_read(buf.units()),
            IoAction::Write { units, .. } => self.count_write(io.place, *units),
        }
    }

    /// Storage operations that it waits for.
    pub fn transfers(&self) -> usize {
        self.ops.len()
    }

    /// Whether one of them writes into its seat.
    pub fn is_writing(&self) -> bool {
        let reads =
            |purpose: &Purpose| matches!(purpose, Purpose::Directory | Purpose::Slot { .. });
        self.ops.iter().any(|(_, purpose)| !reads(purpose))
    }

    /// Whether bytes that arrived are to be handed over.
    pub fn has_deliveries(&self) -> bool {
        !self.deliver.is_empty()
    }

    fn count_read(&mut self, units: usize) {
        self.counters.reads += 1;
        self.counters.read_units += units as u64;
    }

    fn count_write(&mut self, place: Place, units: usize) {
        let owner = place.owner();
        assert_eq!(owner, Some(self.seat), "a write outside the own seat");
        self.counters.writes += 1;
        self.counters.written_units += units as u64;
    }

    /// When to call [`Node::handle_timeout`] and [`Node::poll_io`] again if nothing comes in before;
    /// `None` once the node has ended.
    pub fn poll_timeout(&self) -> Option<Time> {
        if matches!(self.phase, Phase::Fenced | Phase::Left) {
            return None;
        }
        if !self.events.is_empty() {
            return Some(self.now);
        }
        let timings = &self.config.timings;
        let depth = self.config.limits.read_depth;
        let mut due = earliest(self.own.due(), self.table.due());
        due = earliest(due, Some(self.orphans_at));
        if !self.directory_reading {
            due = earliest(due, Some(self.directory_at.max(self.looks_at)));
        }
        if let Phase::Leaving(until) = self.phase {
            due = earliest(due, Some(until.min(self.now + timings.poll_max)));
        }
        for (seat, link) in self.links.iter().enumerate() {
            due = earliest(due, link.ending.map(|ending| ending.deadline));
            let outgoing = link.outgoing.as_ref().filter(|_| link.ending.is_none());
            let write_depth = self.config.limits.write_depth;
            if let Some(outgoing) = outgoing {
                let patient = !self.peer_is_up(SeatId(seat as u16));
                due = earliest(due, outgoing.due(patient, write_depth));
            }
            if let Some(incoming) = &link.incoming {
                let look = incoming.due(self.now, timings, depth);
                due = earliest(due, look.map(|at| at.max(self.looks_at)));
                // Behind a write that is under way, its end is what to wait for.
                if outgoing.is_none_or(|out| out.full() || out.may_seal(write_depth, true)) {
                    due = earliest(due, incoming.ack_due(timings));
                }
            }
        }
        due
    }

    /// Leaves: every stream is reset, and once peers have taken that in, the seat is marked as left.
    pub fn leave(&mut self, now: Time) {
        self.tick(now);
        if self.phase != Phase::Up {
            return;
        }
        self.phase = Phase::Leaving(now + LEAVE_MAX);
        let ids: Vec<_> = self.streams.iter().map(|(id, _)| id).collect();
        for id in ids {
            let orderly = self
                .streams
                .get(id)
                .is_some_and(|stream| stream.released.is_some());
            if !orderly {
                self.reset(now, id, ResetReason::EngineStopped);
            }
        }
        for (_, listener) in core::mem::take(&mut self.listeners) {
            self.table.free(listener.row);
        }
        self.own.ring();
    }

    fn tick(&mut self, now: Time) {
        debug_assert!(now >= self.now, "time went backwards");
        self.now = self.now.max(now);
    }

    fn op(&mut self, purpose: Purpose) -> u64 {
        let op = self.next_op;
        self.next_op += 1;
        self.ops.push((op, purpose));
        op
    }

    /// The node's own writes succeed, so that it may judge others.
    fn healthy(&self, now: Time) -> bool {
        self.own.silent_for(now) < self.config.timings.heartbeat * 2 + Duration::from_millis(500)
    }

    /// The next look, at a slot or at the directory in turn: they may share a scarce budget.
    fn poll_looks(&mut self, now: Time) -> Option<Io> {
        let io = match self.directory_turn {
            true => self.poll_directory(now).or_else(|| self.poll_look(now)),
            false => self.poll_look(now).or_else(|| self.poll_directory(now)),
        }?;
        self.directory_turn = !matches!(io.place, Place::Directory { .. });
        if self.config.timings.poll_iops > 0 {
            self.looks_at = now + Duration::from_secs(1) / self.config.timings.poll_iops;
        }
        Some(io)
    }

    fn poll_seat(&mut self, now: Time) -> Option<Io> {
        if self.own.due().is_none_or(|due| due > now) {
            return None;
        }
        let left = self.phase == Phase::Signing;
        let op = self.op(Purpose::Seat { left });
        let copy = self.own.begin(now, op);
        let record = self.seat_record(left);
        let data = Arc::new(record.encode(&self.config.geometry));
        let units = data.units();
        let place = Place::Seat {
            seat: self.seat,
            copy,
        };
        Some(Io {
            id: op,
            place,
            action: IoAction::Write {
                data,
                units,
                durable: false,
            },
        })
    }

    fn seat_record(&self, left: bool) -> SeatRecord {
        let state = if left { SeatState::Left } else { SeatState::Up };
        SeatRecord {
            volume: self.config.volume,
            seat: self.seat,
            state,
            incarnation: self.incarnation,
            record_version: self.own.record_version,
            heartbeat: self.own.heartbeat,
            nonce: self.config.nonce,
            host: self.config.host,
            system: self.config.system,
            pid: self.config.pid,
            engine: crate::own_seat::engine_version(),
            timings: self.config.timings.published(),
            counters: self.stats(),
            ports: self.listeners.keys().copied().collect(),
            ports_overflow: false,
            moves: true,
            links: (0..)
                .zip(&self.links)
                .map(|(seat, link)| self.entry(SeatId(seat), link))
                .collect(),
        }
    }

    /// A link as it stands in the seat record. Without one, who was seen last in that seat: a node that
    /// overwrote its successor's records by late writes learns of it by that.
    fn entry(&self, seat: SeatId, link: &Link) -> LinkEntry {
        let seen = self
            .directory
            .peer(seat)
            .map(|peer| peer.record.incarnation);
        match seen.filter(|_| link.peer_incarnation == stp_format::Incarnation(0)) {
            Some(peer_incarnation) => LinkEntry {
                peer_incarnation,
                ..LinkEntry::default()
            },
            None => link.entry(),
        }
    }

    fn handle_seat_written(&mut self, now: Time, fault: Option<i32>, left: bool) {
        let heartbeat = self.config.timings.heartbeat;
        let stalled = self.own.stalled;
        if self.own.handle_written(now, fault.is_none(), heartbeat) {
            self.events.push_back(Event::StorageBack);
        }
        if fault.is_some() {
            let long = self.own.silent_for(now) >= self.config.timings.suspect;
            if long && !stalled {
                self.own.stalled = true;
                self.events.push_back(Event::StorageStalled(fault));
            }
            return;
        }
        if left {
            self.phase = Phase::Left;
            self.events.push_back(Event::Left);
        }
        let published = self.own.published;
        for (port, listener) in &mut self.listeners {
            if !listener.told && listener.change <= published {
                listener.told = true;
                self.events.push_back(Event::Listening(*port));
            }
        }
    }

    fn poll_table(&mut self, now: Time) -> Option<Io> {
        if now >= self.table_unit_touched + crate::table::TABLE_INTERVAL {
            self.table_unit_touched = now;
            self.touch_busy_rows();
        }
        if self.table.due().is_none_or(|due| due > now) {
            return None;
        }
        let op = self.next_op;
        let (first, copy, versions) = self.table.begin(op, now)?;
        let op = self.op(Purpose::Table {
            first,
            units: versions.len(),
        });
        let mut data = UnitBuf::zeroed(versions.len());
        for (index, (version, out)) in versions
            .iter()
            .zip(data.bytes_mut().chunks_exact_mut(UNIT_BYTES))
            .enumerate()
        {
            let unit = self.table_unit(first + index, *version);
            out.copy_from_slice(unit.encode().bytes());
        }
        let place = Place::Table {
            seat: self.seat,
            copy,
            unit: first as u32,
        };
        let units = data.units();
        let action = IoAction::Write {
            data: Arc::new(data),
            units,
            durable: false,
        };
        Some(Io {
            id: op,
            place,
            action,
        })
    }

    fn table_unit(&self, unit: usize, unit_version: u64) -> TableUnit {
        let mut scbs = Vec::with_capacity(SCBS_PER_UNIT);
        for row in self.table.rows_of(unit) {
            scbs.push(match *row {
                Row::Free => None,
                Row::Listener(port) => Some(self.listener_scb(port)),
                Row::Stream(id) => self.stream_scb(id),
            });
        }
        TableUnit {
            volume: self.config.volume,
            seat: self.seat,
            unit: unit as u32,
            incarnation: self.incarnation,
            unit_version,
            scbs,
        }
    }

    fn peer_is_up(&self, seat: SeatId) -> bool {
        self.directory
            .peer(seat)
            .is_some_and(|peer| peer.state == PeerState::Up)
    }

    fn timings(&self) -> Timings {
        self.config.timings
    }

    fn limits(&self) -> Limits {
        self.config.limits
    }
}
