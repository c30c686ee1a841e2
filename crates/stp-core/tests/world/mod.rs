//! A world of nodes on one volume in memory, driven by one seed.
//!
//! - Operations take random times; a write becomes visible unit by unit, in random order, before it ends.
//! - Time jumps to whatever is due next, so that a minute of silence costs nothing.
//! - Every program's stream is checked as it runs: what arrives is a prefix of what was sent.

#![allow(unreachable_pub)]
// Each test binary uses a part of it.
#![allow(dead_code)]

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use stp_core::*;
use stp_format::{Geometry, Place, SystemName, UNIT_BYTES, UnitBuf, VolumeId};

pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// What the storage does wrong, in percent of all operations.
#[derive(Clone, Copy, Default)]
pub struct Faults {
    pub write_errors: u64,
    pub read_errors: u64,
    /// Writes that are acknowledged and never happen.
    pub lost_writes: u64,
    /// Writes that happen only in part, with an error.
    pub partial_writes: u64,
    /// So many nanoseconds more for each read of more than one unit of a slot.
    pub long_reads: u64,
}

/// A program at one end of a stream.
#[derive(Default)]
pub struct App {
    pub to_send: Vec<u8>,
    pub sent: usize,
    /// Finishes once all is sent.
    pub finish: bool,
    pub finished: bool,
    pub received: Vec<u8>,
    pub expected: Option<Vec<u8>>,
    /// Takes nothing.
    pub stopped: bool,
    /// Places of urgent bytes in what it sends, in order; those it was handed.
    pub urgent: Vec<usize>,
    pub urgent_received: Vec<usize>,
    /// Sends back what it gets.
    pub echo: bool,
    pub connected: bool,
    pub peer_finished: bool,
    pub reset: Option<ResetReason>,
    pub failed: Option<ConnectError>,
    pub closed: bool,
}

enum Pending {
    Piece {
        place: Place,
        data: Arc<UnitBuf>,
        unit: usize,
    },
    Done {
        op: u64,
        read: Option<(Place, UnitBuf)>,
        fault: bool,
    },
}

pub struct Host {
    pub node: Option<Node>,
    claim: Option<Claim>,
    pub config: NodeConfig,
    pub claim_error: Option<ClaimError>,
    pub apps: BTreeMap<StreamId, App>,
    pub events: Vec<Event>,
    /// What a new incoming stream's program does.
    pub serve: fn(u16) -> Option<App>,
    pub frozen: bool,
    /// Its programs take the connections that come in; otherwise those wait.
    pub takes: bool,
    locks: bool,
    life: u64,
    started: u64,
}

pub struct World {
    pub now: u64,
    pub rng: Rng,
    pub geometry: Geometry,
    pub store: Vec<u8>,
    pub hosts: Vec<Host>,
    pub faults: Faults,
    /// No operation ends before.
    pub stalled_until: u64,
    pending: BTreeMap<(u64, u64), (usize, u64, Pending)>,
    serial: u64,
    held: BTreeMap<(u16, bool), usize>,
}

pub const VOLUME: VolumeId = VolumeId([9; 16]);

impl World {
    pub fn new(seed: u64, seats: u16, bytes: u64) -> Self {
        println!("seed {seed}");
        let geometry = Geometry::plan(bytes, seats).unwrap();
        Self {
            now: 1,
            rng: Rng::new(seed),
            geometry,
            store: vec![0; geometry.size_bytes as usize],
            hosts: Vec::new(),
            faults: Faults::default(),
            stalled_until: 0,
            pending: BTreeMap::new(),
            serial: 0,
            held: BTreeMap::new(),
        }
    }

    pub fn add(&mut self, system: &str, locks: bool) -> usize {
        let host = self.hosts.len();
        let config = NodeConfig {
            volume: VOLUME,
            geometry: self.geometry,
            system: system.parse().unwrap(),
            host: [host as u8 + 1; 16],
            pid: 100 + host as u32,
            nonce: self.rng.next(),
            timings: Timings::default(),
            limits: Limits::default(),
        };
        self.hosts.push(Host {
            node: None,
            claim: None,
            config,
            claim_error: None,
            apps: BTreeMap::new(),
            events: Vec::new(),
            serve: |_| Some(App::default()),
            frozen: false,
            takes: true,
            locks,
            life: 0,
            started: 0,
        });
        host
    }

    pub fn start(&mut self, host: usize) {
        let nonce = self.rng.next();
        let started = self.now;
        let this = &mut self.hosts[host];
        this.config.nonce = nonce;
        this.life += 1;
        this.started = started;
        this.claim_error = None;
        this.claim = Some(Claim::new(this.config.clone()));
        self.drain(host);
    }

    /// Kills a host's process: what it has under way may still land.
    pub fn kill(&mut self, host: usize) {
        let this = &mut self.hosts[host];
        this.node = None;
        this.claim = None;
        this.life += 1;
        this.apps.clear();
        self.held.retain(|_, holder| *holder != host);
    }

    pub fn time(&self, host: usize) -> Time {
        Time(self.now - self.hosts[host].started)
    }

    fn offset(&self, place: Place, units: usize) -> usize {
        self.geometry
            .offset(place, units)
            .expect("an operation outside the volume") as usize
    }

    fn schedule(&mut self, host: usize, after: u64, pending: Pending) {
        self.serial += 1;
        let at = (self.now + after).max(self.stalled_until);
        let life = self.hosts[host].life;
        self.pending
            .insert((at, self.serial), (host, life, pending));
    }

    fn submit(&mut self, host: usize, io: Io) {
        let base = 50_000 + self.rng.below(200_000);
        match io.action {
            IoAction::Read(buf) => {
                let fault = self.rng.chance(self.faults.read_errors);
                let longer = match io.place {
                    Place::Slot { .. } if buf.units() > 1 => self.faults.long_reads,
                    _ => 0,
                };
                let read = Some((io.place, buf));
                self.schedule(
                    host,
                    base + longer,
                    Pending::Done {
                        op: io.id,
                        read,
                        fault,
                    },
                );
            }
            IoAction::Write { data, units, .. } => {
                let lost = self.rng.chance(self.faults.lost_writes);
                let partial = self.rng.chance(self.faults.partial_writes);
                let fault = partial || self.rng.chance(self.faults.write_errors);
                for unit in 0..units {
                    if lost || (partial && self.rng.chance(50)) {
                        continue;
                    }
                    let after = self.rng.below(base);
                    let data = Arc::clone(&data);
                    self.schedule(
                        host,
                        after,
                        Pending::Piece {
                            place: io.place,
                            data,
                            unit,
                        },
                    );
                }
                self.offset(io.place, units);
                self.schedule(
                    host,
                    base,
                    Pending::Done {
                        op: io.id,
                        read: None,
                        fault,
                    },
                );
            }
        }
    }

    /// Handles the next thing that is due; whether there was one.
    pub fn step(&mut self) -> bool {
        let io_at = self.pending.keys().next().map(|(at, _)| *at);
        let mut timer: Option<(u64, usize)> = None;
        for host in 0..self.hosts.len() {
            if self.hosts[host].frozen {
                continue;
            }
            let this = &self.hosts[host];
            let due = match (&this.node, &this.claim) {
                (Some(node), _) => node.poll_timeout(),
                (None, Some(claim)) => claim.poll_timeout(),
                _ => None,
            };
            if let Some(due) = due {
                let at = (this.started + due.0).max(self.now + 1);
                if timer.is_none_or(|(first, _)| at < first) {
                    timer = Some((at, host));
                }
            }
        }
        match (io_at, timer) {
            (Some(at), timer) if timer.is_none_or(|(t, _)| at <= t) => {
                let ((at, _), (host, life, pending)) = self.pending.pop_first().unwrap();
                self.now = self.now.max(at);
                self.complete(host, life, pending);
                true
            }
            (_, Some((at, host))) => {
                self.now = at;
                let time = self.time(host);
                if let Some(node) = &mut self.hosts[host].node {
                    node.handle_timeout(time);
                } else if let Some(claim) = &mut self.hosts[host].claim {
                    claim.handle_timeout(time);
                }
                self.drain(host);
                true
            }
            _ => false,
        }
    }

    fn complete(&mut self, host: usize, life: u64, pending: Pending) {
        match pending {
            Pending::Piece { place, data, unit } => {
                let at = self.offset(place, unit + 1) + unit * UNIT_BYTES;
                let piece = &data.bytes()[unit * UNIT_BYTES..(unit + 1) * UNIT_BYTES];
                self.store[at..at + UNIT_BYTES].copy_from_slice(piece);
            }
            Pending::Done { op, read, fault } => {
                if self.hosts[host].life != life {
                    return;
                }
                if self.hosts[host].frozen {
                    self.schedule(host, 1_000_000, Pending::Done { op, read, fault });
                    return;
                }
                let buf = read.map(|(place, mut buf)| {
                    let at = self.offset(place, buf.units());
                    let length = buf.len();
                    buf.bytes_mut()
                        .copy_from_slice(&self.store[at..at + length]);
                    buf
                });
                let result = if fault {
                    Err(IoFault { errno: 5 })
                } else {
                    Ok(())
                };
                let done = IoDone {
                    id: op,
                    buf,
                    result,
                };
                let time = self.time(host);
                if let Some(node) = &mut self.hosts[host].node {
                    node.handle_io(time, done);
                } else if let Some(claim) = &mut self.hosts[host].claim {
                    claim.handle_io(time, done);
                }
                self.drain(host);
            }
        }
    }

    fn drain(&mut self, host: usize) {
        let time = self.time(host);
        if self.hosts[host].node.is_none() {
            self.drain_claim(host, time);
        }
        loop {
            let mut busy = false;
            let this = &mut self.hosts[host];
            let Some(node) = &mut this.node else { return };
            while let Some(event) = node.poll_event() {
                busy = true;
                if !this.takes && matches!(event, Event::Incoming { .. }) {
                    continue;
                }
                handle_event(node, time, &mut this.apps, this.serve, &event);
                this.events.push(event);
            }
            while let Some((id, bytes)) = node.poll_deliver() {
                busy = true;
                let bytes = bytes.to_vec();
                let urgent = node.is_urgent(id);
                assert!(!urgent || bytes.len() == 1, "an urgent byte comes alone");
                let app = this.apps.get_mut(&id).expect("bytes for an unknown stream");
                assert!(
                    app.reset.is_none() && !app.peer_finished,
                    "data after the end"
                );
                let take = match app.stopped {
                    true => 0,
                    false => (1 + self.rng.below(bytes.len() as u64)) as usize,
                };
                if urgent && take == 1 {
                    app.urgent_received.push(app.received.len());
                }
                app.received.extend_from_slice(&bytes[..take]);
                if let Some(expected) = &app.expected {
                    assert!(expected.starts_with(&app.received), "wrong bytes");
                }
                if app.echo {
                    app.to_send.extend_from_slice(&bytes[..take]);
                }
                node.delivered(time, id, take, !app.stopped);
                if app.echo {
                    node.readable(id);
                }
            }
            while let Some((id, space)) = node.poll_fill(time) {
                busy = true;
                let app = this
                    .apps
                    .get_mut(&id)
                    .expect("a fill for an unknown stream");
                let mut left = &app.to_send[app.sent..];
                match app.urgent.first().map(|at| at - app.sent) {
                    Some(0) => {
                        app.urgent.remove(0);
                        node.filled(time, id, 0, true);
                        node.mark_urgent(id);
                        continue;
                    }
                    Some(before) => left = &left[..left.len().min(before)],
                    None => {}
                }
                let length = left.len().min(space.len());
                space[..length].copy_from_slice(&left[..length]);
                app.sent += length;
                let more = app.sent < app.to_send.len();
                node.filled(time, id, length, more);
                if !more && app.finish && !app.finished {
                    app.finished = true;
                    node.finish(time, id);
                }
            }
            let mut ios = VecDeque::new();
            while let Some(io) = node.poll_io(time) {
                busy = true;
                ios.push_back(io);
            }
            for io in ios {
                self.submit(host, io);
            }
            if !busy {
                return;
            }
        }
    }

    fn drain_claim(&mut self, host: usize, time: Time) {
        loop {
            let this = &mut self.hosts[host];
            let Some(claim) = &mut this.claim else { return };
            if let Some(outcome) = claim.outcome() {
                match outcome {
                    Ok(claimed) => {
                        let node = Node::new(this.config.clone(), claimed, time);
                        this.node = Some(node);
                    }
                    Err(error) => this.claim_error = Some(error),
                }
                this.claim = None;
                return;
            }
            if let Some(ask) = claim.poll_ask() {
                let (seat, medium) = match ask {
                    ClaimAsk::LockHost(seat) => (seat.0, false),
                    ClaimAsk::LockMedium(seat) => (seat.0, true),
                };
                // Host locks of different hosts are different locks.
                let name = if medium {
                    (seat, true)
                } else {
                    (seat + 1000 * host as u16, false)
                };
                let answer = match self.held.get(&name) {
                    _ if medium && !this.locks => ClaimAnswer::Unsupported,
                    Some(holder) if *holder != host => ClaimAnswer::Busy,
                    _ => {
                        self.held.insert(name, host);
                        ClaimAnswer::Held
                    }
                };
                claim.handle_answer(time, answer);
                continue;
            }
            let Some(io) = claim.poll_io() else { return };
            self.submit(host, io);
        }
    }

    pub fn run_until(&mut self, what: &str, mut done: impl FnMut(&World) -> bool) {
        let limit = self.now + Duration::from_secs(600).as_nanos() as u64;
        let mut steps = 0u64;
        while !done(self) {
            assert!(self.step(), "nothing left to happen before: {what}");
            steps += 1;
            assert!(self.now < limit, "ten minutes passed before: {what}");
            assert!(steps < 20_000_000, "busy without progress before: {what}");
        }
    }

    pub fn run_for(&mut self, time: Duration) {
        let until = self.now + time.as_nanos() as u64;
        while self.now < until && self.step() {}
    }

    pub fn ready(&mut self) {
        for host in 0..self.hosts.len() {
            self.start(host);
        }
        self.run_until("all nodes are up", |world| {
            world.hosts.iter().all(|host| host.node.is_some())
        });
    }

    pub fn listen(&mut self, host: usize, port: u16) {
        self.hosts[host]
            .node
            .as_mut()
            .unwrap()
            .listen(port)
            .unwrap();
        self.drain(host);
        self.run_until("the port is published", |world| {
            world.hosts[host].events.contains(&Event::Listening(port))
        });
    }

    pub fn connect(&mut self, host: usize, to: &str, port: u16, app: App) -> StreamId {
        let time = self.time(host);
        let to: SystemName = to.parse().unwrap();
        let node = self.hosts[host].node.as_mut().unwrap();
        let id = node.connect(time, &to, port, None).unwrap();
        self.hosts[host].apps.insert(id, app);
        self.drain(host);
        id
    }

    /// Lets a program of a host's node act.
    pub fn act(&mut self, host: usize, act: impl FnOnce(&mut Node, Time)) {
        let time = self.time(host);
        act(self.hosts[host].node.as_mut().unwrap(), time);
        self.drain(host);
    }

    pub fn app(&self, host: usize, id: StreamId) -> &App {
        &self.hosts[host].apps[&id]
    }

    pub fn app_mut(&mut self, host: usize, id: StreamId) -> &mut App {
        self.hosts[host].apps.get_mut(&id).unwrap()
    }
}

fn handle_event(
    node: &mut Node,
    time: Time,
    apps: &mut BTreeMap<StreamId, App>,
    serve: fn(u16) -> Option<App>,
    event: &Event,
) {
    match event {
        Event::Incoming { id, port, .. } => match serve(*port) {
            Some(mut app) => {
                app.connected = true;
                apps.insert(*id, app);
                node.accept(time, *id);
                node.readable(*id);
            }
            None => node.refuse(time, *id, ResetReason::Refused),
        },
        Event::Connected(id) => {
            apps.get_mut(id).unwrap().connected = true;
            node.readable(*id);
        }
        Event::Failed(id, error) => apps.get_mut(id).unwrap().failed = Some(*error),
        Event::PeerFinished(id) => {
            let app = apps.get_mut(id).unwrap();
            app.peer_finished = true;
            if app.echo {
                app.finish = true;
                if app.sent == app.to_send.len() && !app.finished {
                    app.finished = true;
                    node.finish(time, *id);
                }
            }
        }
        Event::Reset(id, reason) => {
            if let Some(app) = apps.get_mut(id) {
                app.reset = Some(*reason);
            }
        }
        Event::Closed(id) => {
            if let Some(app) = apps.get_mut(id) {
                app.closed = true;
            }
        }
        _ => {}
    }
}

pub fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut rng = Rng::new(seed.wrapping_add(77));
    (0..length.div_ceil(8))
        .flat_map(|_| rng.next().to_le_bytes())
        .take(length)
        .collect()
}
