//! The world: nodes, their hosts' fates, and time, which jumps to whatever is next.
//!
//! - Everything happens in the order of (time, serial number): equal seeds are equal runs.
//! - Phases: things break; then nothing does and all must end; then fresh streams must succeed at once;
//!   then all is quiet, and all leave.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use stp_core::{Claim, NodeConfig};
use stp_format::{Geometry, SeatId, SystemName, VolumeId};
use stp_host::control::{ConnectFailure, Connected};
use stp_host::engine::{Command, Driver, Over, Reply, Verdicts};

use crate::Outcome;
use crate::clock::{Rate, SimClock};
use crate::disk::{Disk, Shared, SimMedium};
use crate::gifts::{GiftTask, Gifts};
use crate::hostile::Hostile;
use crate::local::{Host, SimLocal, Sockets};
use crate::mutation::Mutation;
use crate::options::Options;
use crate::programs::{Connection, Program};
use crate::rng::Rng;

pub(crate) const US: u64 = 1000;
pub(crate) const MS: u64 = 1_000_000;
pub(crate) const SECOND: u64 = 1_000_000_000;
pub(crate) const VOLUME: VolumeId = VolumeId(*b"simulated volume");
/// Steps of a node from one look at what it holds to the next.
const LOAD_STEPS: u64 = 61;
/// Looks in vain at memory are so far apart at the most, in us.
const LOOKS_APART: u64 = 300;
/// Steps without anything to do in a row: the engine spins.
const IDLE_STEPS_MAX: u32 = 20_000;

pub(crate) type Engine = Driver<SimMedium, SimClock, SimLocal>;
/// Answers to commands, by connection.
pub(crate) type Inbox = Arc<Mutex<Vec<(usize, Option<Result<Connected, ConnectFailure>>)>>>;

/// What becomes of a node's process.
pub(crate) enum State {
    Off,
    Claiming(Box<Claim>, SimMedium),
    Up(Box<Engine>),
}

/// A place where a node runs, one life after the other.
pub(crate) struct Node {
    pub(crate) system: SystemName,
    host: [u8; 16],
    /// Hosts that know of each other's locks.
    pub(crate) locks_of: usize,
    /// Not wanted once the faults end.
    pub(crate) spare: bool,
    pub(crate) rate: Rate,
    pub(crate) state: State,
    /// Its present or last life: its handle at the storage.
    pub(crate) life: usize,
    pub(crate) clock: SimClock,
    pub(crate) step_at: Option<u64>,
    pub(crate) frozen_until: u64,
    pub(crate) verdicts: Arc<Verdicts>,
    pub(crate) raw: bool,
    /// Its listener stands on the volume.
    pub(crate) published: bool,
    pub(crate) leaving: bool,
    /// When it last came, went, or changed its listener.
    pub(crate) disturbed_at: u64,
    idle_steps: u32,
    steps: u64,
    /// The listener comes back.
    pub(crate) relisten: bool,
}

/// One life of a node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Life {
    pub(crate) node: usize,
    pub(crate) ended: Option<u64>,
}

/// What is to be done at a time.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Task {
    Program(usize),
    Accept(usize),
    Connect,
    Cancel(usize),
    Gift(GiftTask),
    Start(usize),
    Thaw(usize),
    Relisten(usize),
    Fault(Fault),
    Flap(usize, u64),
    Grow,
    Hostile,
    Heal,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    Kill,
    Leave,
    Freeze,
    OutageOne,
    OutageAll,
    Slow,
    Rot,
    Unlisten,
    RollBack,
    Flap,
    Lose,
    Shrink,
}

/// How far the run has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Breaking,
    /// All that is open must end.
    Healing,
    /// Time for everybody to see everybody.
    Settling,
    /// Fresh streams must succeed.
    Probing,
    /// Nothing must be left.
    Quieting,
    Leaving,
}

pub(crate) struct World {
    pub(crate) options: Options,
    verbose: bool,
    pub(crate) rng: Rng,
    pub(crate) now: u64,
    pub(crate) disk: Shared,
    pub(crate) host: Host,
    pub(crate) nodes: Vec<Node>,
    pub(crate) lives: Vec<Life>,
    pub(crate) connections: Vec<Connection>,
    /// By end.
    pub(crate) programs: BTreeMap<usize, Program>,
    agenda: BTreeMap<(u64, u64), Task>,
    serial: u64,
    pub(crate) inbox: Inbox,
    pub(crate) gifts: Gifts,
    pub(crate) open: BTreeSet<usize>,
    pub(crate) connects: usize,
    pub(crate) next_port: u16,
    pub(crate) host_locks: BTreeMap<(usize, u16), usize>,
    pub(crate) medium_locks: BTreeMap<u16, usize>,
    /// Since when two lives share a seat undisturbed.
    pub(crate) shared_since: BTreeMap<u16, u64>,
    pub(crate) phase: Phase,
    pub(crate) phase_at: u64,
    pub(crate) clean: u64,
    pub(crate) resets: u64,
    pub(crate) streams: u64,
    pub(crate) finding: Option<String>,
    /// Segments written when all had settled.
    pub(crate) settled_segments: Option<u64>,
    pub(crate) liar: Option<Hostile>,
}

impl World {
    pub(crate) fn new(options: &Options, verbose: bool) -> Self {
        let geometry = Geometry::plan(options.volume_bytes.max(4 << 20), options.seats)
            .or_else(|_| Geometry::plan(64 << 20, options.seats))
            .expect("a geometry for few seats");
        let mut disk = Disk::new(options.seed, geometry, options.storage, options.transfer_us)
            .expect("/dev/null can be opened");
        disk.mutation = options.mutation;
        disk.memory = options.memory;
        disk.monitor.deaf = options.mutation == Some(Mutation::UnheededAcks);
        let count = options.nodes.iter().sum::<usize>() + options.spares.len();
        let mut sockets = Sockets::new(count, options.socket_bytes, options.backlog);
        sockets.mutation = options.mutation;
        let mut rng = Rng::new(options.seed, 3);
        let mut nodes = Vec::new();
        let mut places: Vec<(usize, usize)> = Vec::new();
        for (system, count) in options.nodes.iter().enumerate() {
            places.extend(std::iter::repeat_n((system, system), *count));
        }
        let wanted = places.len();
        for (spare, of) in options.spares.iter().enumerate() {
            let number = options.nodes.len() + spare;
            places.push((of.map_or(number, |of| places[of].0), number));
        }
        for (node, (system, locks_of)) in places.into_iter().enumerate() {
            let name = format!("system-{system}");
            nodes.push(Node {
                system: name.parse().expect("a good name"),
                host: [system as u8 + 1; 16],
                locks_of,
                spare: node >= wanted,
                rate: Rate {
                    origin: 0,
                    fast_ppm: options.rates_ppm[node],
                },
                state: State::Off,
                life: usize::MAX,
                clock: SimClock::default(),
                step_at: None,
                frozen_until: 0,
                verdicts: Arc::default(),
                raw: rng.percent(options.ends.raw),
                published: false,
                leaving: false,
                disturbed_at: 0,
                idle_steps: 0,
                steps: 0,
                relisten: false,
            });
        }
        let mut world = Self {
            options: options.clone(),
            verbose,
            rng,
            now: 0,
            disk: Shared::new(disk),
            host: Host::new(sockets),
            nodes,
            lives: Vec::new(),
            connections: Vec::new(),
            programs: BTreeMap::new(),
            agenda: BTreeMap::new(),
            serial: 0,
            inbox: Arc::default(),
            gifts: Gifts::default(),
            open: BTreeSet::new(),
            connects: 0,
            next_port: 2000,
            host_locks: BTreeMap::new(),
            medium_locks: BTreeMap::new(),
            shared_since: BTreeMap::new(),
            phase: Phase::Breaking,
            phase_at: 0,
            clean: 0,
            resets: 0,
            streams: 0,
            finding: None,
            settled_segments: None,
            liar: None,
        };
        for node in 0..world.nodes.len() {
            // Some start at the same moment, so that they meet at a seat.
            let after = match world.rng.percent(50) {
                true => world.rng.below(2 * MS),
                false => world.rng.below(500 * MS),
            };
            world.at(after, Task::Start(node));
        }
        if options.hostile {
            world.sit_hostile();
        }
        world.at(10 * MS, Task::Connect);
        world.at(world.options.break_ms * MS, Task::Heal);
        for fault in [
            Fault::Kill,
            Fault::Leave,
            Fault::Freeze,
            Fault::OutageOne,
            Fault::OutageAll,
            Fault::Slow,
            Fault::Rot,
            Fault::Unlisten,
            Fault::RollBack,
            Fault::Flap,
            Fault::Lose,
            Fault::Shrink,
        ] {
            world.plan_fault(fault);
        }
        world
    }

    pub(crate) fn at(&mut self, after: u64, task: Task) {
        self.serial += 1;
        self.agenda.insert((self.now + after, self.serial), task);
    }

    pub(crate) fn find(&mut self, finding: String) {
        self.finding.get_or_insert(finding);
    }

    pub(crate) fn say(&self, what: impl FnOnce() -> String) {
        if self.verbose {
            eprintln!("{:>14.6} {}", self.now as f64 / 1e9, what());
        }
    }

    /// Runs to the end or to the first finding.
    pub(crate) fn run(mut self) -> Outcome {
        while self.finding.is_none() && self.phase_moves_on() {
            self.turn();
        }
        let mut disk = self.disk.lock();
        let mut figures = std::mem::take(&mut disk.figures);
        figures.seeds = 1;
        figures.virtual_ms = self.now / MS;
        figures.connects = self.connects as u64;
        figures.clean = self.clean;
        figures.resets = self.resets;
        figures.streams = self.streams;
        figures.lives = self.lives.len() as u64;
        figures.gifts = self.gifts.all.len() as u64;
        figures.gifts_handed = self.gifts.handed;
        figures.gifts_moved = self.gifts.moved;
        figures.gifts_returned = self.gifts.returned;
        let sockets = self.host.lock();
        (figures.bytes, figures.urgent_bytes) = (sockets.bytes, sockets.urgent_bytes);
        (figures.lane_put, figures.lane_taken) = (sockets.lane_put, sockets.lane_taken);
        drop(sockets);
        let trace = disk.trace;
        drop(disk);
        Outcome {
            figures,
            trace,
            finding: self.finding.take().map(|finding| {
                format!(
                    "at {:.6} s, {:?}: {finding}",
                    self.now as f64 / 1e9,
                    self.phase
                )
            }),
        }
    }

    /// Handles what is next.
    fn turn(&mut self) {
        let io_at = self.disk.lock().next_at();
        let task_at = self.agenda.keys().next().map(|(at, _)| *at);
        let step = (0..self.nodes.len())
            .filter_map(|node| self.nodes[node].step_at.map(|at| (at, node)))
            .min();
        let step_at = step.map(|(at, _)| at);
        let Some(at) = [io_at, task_at, step_at].into_iter().flatten().min() else {
            self.find("nothing is left to happen".into());
            return;
        };
        self.now = self.now.max(at);
        self.disk.lock().now = self.now;
        if io_at == Some(at) {
            let handle = self.disk.lock().step();
            if let Some(handle) = handle {
                self.poke(self.lives[handle].node, US);
            }
        } else if task_at == Some(at) {
            if let Some((_, task)) = self.agenda.pop_first() {
                self.perform(task);
            }
        } else if let Some((_, node)) = step {
            self.step(node);
        }
        self.look_after();
    }

    /// Something happened that a node's engine would wake up for.
    pub(crate) fn poke(&mut self, node: usize, after: u64) {
        let at = (self.now + after).max(self.nodes[node].frozen_until);
        let this = &mut self.nodes[node];
        if matches!(this.state, State::Off) {
            return;
        }
        this.idle_steps = 0;
        this.step_at = Some(this.step_at.map_or(at, |step_at| step_at.min(at)));
    }

    fn perform(&mut self, task: Task) {
        match task {
            Task::Program(end) => self.program(end),
            Task::Accept(node) => self.accept(node),
            Task::Connect => self.connect_some(),
            Task::Cancel(connection) => self.cancel(connection),
            Task::Gift(task) => self.perform_gift(task),
            Task::Start(node) => self.start(node),
            Task::Thaw(node) => self.poke(node, 0),
            Task::Relisten(node) => {
                if self.nodes[node].relisten {
                    self.listen(node);
                }
            }
            Task::Fault(fault) => {
                if self.phase == Phase::Breaking {
                    self.strike(fault);
                    self.plan_fault(fault);
                }
            }
            Task::Flap(life, until) => self.flap(life, until),
            Task::Grow => self.disk.lock().grow(),
            Task::Hostile => self.hostile(),
            Task::Heal => self.heal(),
        }
    }

    // --- lives

    fn start(&mut self, node: usize) {
        let unwanted = self.nodes[node].spare && self.phase != Phase::Breaking;
        if unwanted || !matches!(self.nodes[node].state, State::Off) {
            return;
        }
        let gap = self.gap();
        let life = self.disk.lock().attach(gap);
        self.lives.push(Life { node, ended: None });
        let nonce = self.rng.next();
        let this = &mut self.nodes[node];
        this.life = life;
        this.rate.origin = self.now;
        this.clock = SimClock::default();
        this.verdicts = Arc::default();
        this.published = false;
        this.leaving = false;
        this.disturbed_at = self.now;
        let config = self.config(node, nonce);
        let medium = self.disk.medium(life).expect("a handle of a file");
        self.nodes[node].state = State::Claiming(Box::new(Claim::new(config)), medium);
        self.nodes[node].step_at = Some(self.now);
        self.say(|| format!("node {node} starts life {life}"));
    }

    fn config(&self, node: usize, nonce: u64) -> NodeConfig {
        let this = &self.nodes[node];
        NodeConfig {
            volume: VOLUME,
            geometry: self.disk.lock().geometry,
            system: this.system,
            host: this.host,
            pid: 100 + node as u32,
            nonce,
            timings: self.options.timings,
            limits: self.options.limits,
        }
    }

    /// The shortest silence for which a peer may take a node for dead.
    fn gap(&self) -> u64 {
        let timings = &self.options.timings;
        let nanos = |d: Duration| d.as_nanos() as u64;
        let slack = nanos(timings.heartbeat) * 3 / 2 + (self.options.storage.stale_ms + 100) * MS;
        (nanos(timings.dead) / 100 * 95).saturating_sub(slack)
    }

    /// The process is gone; `again` is when the next life begins.
    pub(crate) fn end_life(&mut self, node: usize, again: u64) {
        let life = self.nodes[node].life;
        if matches!(self.nodes[node].state, State::Off) {
            return;
        }
        self.say(|| format!("node {node}: life {life} ends"));
        self.lives[life].ended.get_or_insert(self.now);
        let state = std::mem::replace(&mut self.nodes[node].state, State::Off);
        self.kill_sockets(node);
        drop(state);
        self.disk.lock().detach(life);
        let now = self.now;
        let this = &mut self.nodes[node];
        this.step_at = None;
        this.frozen_until = 0;
        this.published = false;
        this.relisten = false;
        this.disturbed_at = now;
        self.host_locks.retain(|_, holder| *holder != life);
        self.medium_locks.retain(|_, holder| *holder != life);
        if self.options.mutation != Some(Mutation::GoneForGood) {
            self.at(again, Task::Start(node));
        }
    }

    fn step(&mut self, node: usize) {
        let stands_until = self.stands_until(node);
        let this = &mut self.nodes[node];
        if stands_until > self.now {
            this.step_at = Some(stands_until);
            return;
        }
        this.step_at = None;
        let local = this.rate.local(self.now);
        this.clock.set(local);
        match &mut this.state {
            State::Off => {}
            State::Claiming(..) => self.step_claim(node, local),
            State::Up(engine) => {
                let mut step = engine.step();
                step.more |= self.options.mutation == Some(Mutation::Spin);
                this.steps += 1;
                if this.steps.is_multiple_of(LOAD_STEPS) {
                    let (load, mut most) = (engine.node().load(), engine.node().load_max());
                    if self.options.mutation == Some(Mutation::NoRoom) {
                        most.kept_bytes = 0;
                    }
                    if let Some((what, is, may)) = load.exceeds(&most) {
                        self.finding.get_or_insert(format!(
                            "node {node} holds {is} of {what}, {may} is the most"
                        ));
                    }
                    let figures = &mut self.disk.lock().figures;
                    figures.load = figures.load.max(&load);
                }
                self.disk.lock().figures.steps += 1;
                let at = if step.more && step.idle_look {
                    // Others have the processor for a while.
                    Some(self.now + self.rng.spread(2, LOOKS_APART) * US)
                } else if step.more {
                    Some(self.now + 2 * US)
                } else {
                    let due = step.wake_at.map(|at| this.rate.world(at));
                    due.map(|at| at.max(self.now + 2 * US))
                };
                let at = if self.host.lock().has_ready(node) {
                    Some(self.now + 2 * US)
                } else {
                    at
                };
                this.idle_steps += 1;
                if this.idle_steps > IDLE_STEPS_MAX && at == Some(self.now + 2 * US) {
                    let what = format!(
                        "node {node} spins: {IDLE_STEPS_MAX} steps in which nothing came in, wakes at {:?}, now {local:?}, more {}",
                        step.wake_at, step.more
                    );
                    self.find(what);
                }
                if at != Some(self.now + 2 * US) {
                    self.nodes[node].idle_steps = 0;
                }
                self.nodes[node].step_at = self.later(at);
                match step.over {
                    Some(Over::Left) => {
                        let again = self.restart_after();
                        self.end_life(node, again);
                    }
                    Some(Over::Reformatted) => {
                        self.find(format!("node {node} takes the volume for another"));
                    }
                    Some(Over::Fenced) => {
                        self.disk.lock().figures.fenced += 1;
                        self.say(|| format!("node {node} is fenced"));
                        let again = self.restart_after();
                        self.end_life(node, again);
                    }
                    None => self.check_seats(node),
                }
            }
        }
    }

    /// Until when a node's process is frozen, or held up.
    pub(crate) fn stands_until(&self, node: usize) -> u64 {
        let this = &self.nodes[node];
        let disk = self.disk.lock();
        let handle = disk.handles.get(this.life);
        this.frozen_until
            .max(handle.map_or(0, |handle| handle.held_up_until))
    }

    /// A timer that goes off too late.
    fn later(&mut self, at: Option<u64>) -> Option<u64> {
        let late = self.options.late_steps;
        if self.phase != Phase::Breaking || late == 0 || self.rng.below(1_000_000) >= late {
            return at;
        }
        self.disk.lock().figures.fault("late timer");
        let after = self.rng.spread(1, self.options.late_steps_ms) * MS;
        at.map(|at| at + after)
    }

    pub(crate) fn restart_after(&mut self) -> u64 {
        match self.phase {
            Phase::Breaking => self.rng.spread(MS, 5 * SECOND),
            Phase::Leaving => 1000 * SECOND,
            _ => 10 * MS,
        }
    }

    pub(crate) fn begin(&mut self, node: usize, claimed: stp_core::Claimed) {
        let nonce = self.rng.next();
        let config = self.config(node, nonce);
        let state = std::mem::replace(&mut self.nodes[node].state, State::Off);
        let State::Claiming(_, medium) = state else {
            return;
        };
        let life = self.nodes[node].life;
        self.say(|| format!("node {node}, life {life} has {claimed:?}"));
        {
            let handle = &mut self.disk.lock().handles[life];
            handle.seat = Some(claimed.seat);
            handle.seated_at = self.now;
        }
        let seat = claimed.seat.0;
        self.host_locks
            .retain(|(_, held), holder| *holder != life || *held == seat);
        self.medium_locks
            .retain(|held, holder| *holder != life || *held == seat);
        let local = SimLocal {
            node,
            host: self.host.clone(),
        };
        let this = &mut self.nodes[node];
        let engine = Driver::new(
            config,
            claimed,
            Box::new(medium),
            this.clock.clone(),
            local,
            Arc::clone(&this.verdicts),
            "simulated".into(),
            (life as u64) << 32,
        );
        this.state = State::Up(Box::new(engine));
        this.step_at = Some(self.now);
        self.listen(node);
    }

    pub(crate) fn listen(&mut self, node: usize) {
        let published = Arc::clone(&self.inbox);
        let marker = usize::MAX - node;
        let reply = Reply::new(move |answer: Option<Result<(), _>>| {
            if matches!(answer, Some(Ok(()))) {
                let mut inbox = published.lock().unwrap_or_else(PoisonError::into_inner);
                inbox.push((marker, None));
            }
        });
        self.host.lock().backlogs[node].open = true;
        let raw = self.nodes[node].raw;
        self.nodes[node].relisten = false;
        self.nodes[node].disturbed_at = self.now;
        self.command(
            node,
            Command::Listen {
                port: port_of(node),
                listener: node,
                raw,
                reply,
            },
        );
    }

    pub(crate) fn command(&mut self, node: usize, command: Command<SimLocal>) {
        let this = &mut self.nodes[node];
        let local = this.rate.local(self.now);
        if let State::Up(engine) = &mut this.state {
            // A command is taken up by a process that runs.
            if engine.now() < local && this.frozen_until <= self.now {
                this.clock.set(local);
            }
            engine.handle_command(command);
        }
        self.poke(node, US);
    }

    /// What the engines, sockets and the storage have left to be done.
    fn look_after(&mut self) {
        let answers = {
            let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *inbox)
        };
        for (connection, answer) in answers {
            if connection > usize::MAX / 2 {
                let node = usize::MAX - connection;
                self.nodes[node].published = true;
                self.nodes[node].disturbed_at = self.now;
            } else {
                self.answered(connection, answer);
            }
        }
        self.hear_gifts();
        let (accepted, touched, finding) = {
            let mut sockets = self.host.lock();
            (
                std::mem::take(&mut sockets.accepted),
                std::mem::take(&mut sockets.touched),
                sockets.finding.take(),
            )
        };
        for end in accepted {
            self.handed_over(end);
        }
        for end in touched {
            let after = self.rng.below(100 * US);
            self.wake_program(end, after);
        }
        self.heed_bells();
        if let Some(finding) = finding {
            self.find(finding);
        }
        let mut disk = self.disk.lock();
        let (finding, disturbed) = (disk.finding.take(), std::mem::take(&mut disk.disturbed));
        drop(disk);
        if let Some(finding) = finding {
            self.find(finding);
        }
        if disturbed {
            self.disturb_all();
        }
    }

    pub(crate) fn is_up(&self, node: usize) -> bool {
        matches!(self.nodes[node].state, State::Up(_)) && !self.nodes[node].leaving
    }

    pub(crate) fn seat(&self, node: usize) -> Option<SeatId> {
        match &self.nodes[node].state {
            State::Up(engine) => Some(engine.node().seat()),
            _ => None,
        }
    }
}

/// The port that a node listens on.
pub(crate) fn port_of(node: usize) -> u16 {
    1000 + node as u16
}
