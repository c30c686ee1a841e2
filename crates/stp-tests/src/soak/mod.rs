//! The crash soak: what runs, what is done to it, and when it is judged. `stp-soak` is its command.
//!
//! - Two hosts with an engine each, a serving program on each, twenty client slots that never stay empty.
//! - What is wrong is collected, not panicked about: a run tells everything that it found.
//! - Nothing is concluded from a duration; waits end by what they wait for, and a guard names what hung.

pub mod judge;
mod rest;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::{Kind, Lab, Net, Proc};
use judge::{Ended, Held, Wanted};

/// Client programs at once.
const SLOTS: usize = 20;
/// Streams of one client program.
const STREAMS: u64 = 2;
/// How long a round does things before it comes to rest.
const ROUND: Duration = Duration::from_secs(25);
/// Guard of a client's end once nothing is done to it any more: leases and orphans take a minute each.
const END_MAX: Duration = Duration::from_secs(240);
/// Pause between two looks at the programs.
const LOOK: Duration = Duration::from_millis(50);
/// The port that both serving programs listen on.
const PORT: u16 = 7000;
const SYSTEMS: [&str; 2] = ["alpha", "beta"];

/// What to do.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// For how long.
    pub time: Duration,
    /// What chooses.
    pub seed: u64,
    /// On what; `None`: the worst that this machine has.
    pub storage: Option<Kind>,
    /// Break a promise secretly: the judges must notice.
    pub sabotage: bool,
}

/// Pseudo-random numbers (xorshift64*).
struct Rng(u64);

impl Rng {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % limit.max(1)
    }

    fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }
}

struct Client {
    process: Proc,
    keys: Vec<u64>,
    wanted: Wanted,
    /// Something that it needs was killed while it ran, or was dead when it began.
    killed: bool,
    host: usize,
}

#[derive(Default)]
struct Figures {
    done: BTreeMap<&'static str, u64>,
    programs: u64,
    whole: u64,
    broken: u64,
    bytes: u64,
    rounds: u64,
}

/// A soak under way.
pub struct Soak {
    // Programs before the lab: they end first.
    clients: Vec<Option<Client>>,
    servers: [Option<Proc>; 2],
    engines: [Option<Proc>; 2],
    lab: Lab,
    plan: Plan,
    rng: Rng,
    faulty: bool,
    next_key: u64,
    violent: bool,
    /// By key, what the client's end and the server's end said.
    called: BTreeMap<u64, Ended>,
    served: BTreeMap<u64, Ended>,
    wanted: BTreeMap<u64, Wanted>,
    /// What each engine held when it first came to rest, by process.
    held: [Option<(u32, Held)>; 2],
    broken: Vec<String>,
    figures: Figures,
}

impl Soak {
    /// Sets everything up; `None` if this machine has no such storage.
    #[must_use]
    pub fn new(plan: &Plan) -> Option<Self> {
        let worst_first = [Kind::FaultyLoop, Kind::FaultyLun, Kind::Loop, Kind::File];
        let kinds = plan.storage.map_or(worst_first.to_vec(), |kind| vec![kind]);
        let (kind, lab) = kinds.into_iter().find_map(|kind| {
            let lab = Lab::formatted("soak", kind, 256 << 20, &[], &SYSTEMS, Net::None)?;
            Some((kind, lab))
        })?;
        println!("storage {kind:?}");
        Some(Self {
            clients: (0..SLOTS).map(|_| None).collect(),
            servers: [None, None],
            engines: [None, None],
            lab,
            plan: *plan,
            rng: Rng(plan.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            faulty: matches!(kind, Kind::FaultyLoop | Kind::FaultyLun),
            next_key: 1,
            violent: false,
            called: BTreeMap::new(),
            served: BTreeMap::new(),
            wanted: BTreeMap::new(),
            held: [None, None],
            broken: Vec::new(),
            figures: Figures::default(),
        })
    }

    /// Runs to the end; everything that was wrong.
    pub fn run(&mut self) -> Vec<String> {
        let start = Instant::now();
        self.start_engines();
        self.start_servers();
        // At rest, before anything was done.
        self.rest();
        while self.figures.rounds < 2 || start.elapsed() < self.plan.time {
            self.violent = self.figures.rounds % 2 == 1;
            self.figures.rounds += 1;
            println!(
                "round {} ({}) after {} s: {}",
                self.figures.rounds,
                if self.violent { "violent" } else { "gentle" },
                start.elapsed().as_secs(),
                self.figures()
            );
            self.round();
            self.rest();
            if !self.broken.is_empty() {
                break;
            }
        }
        self.end();
        std::mem::take(&mut self.broken)
    }

    /// What was done, in one line.
    #[must_use]
    pub fn figures(&self) -> String {
        let Figures {
            done,
            programs,
            whole,
            broken,
            bytes,
            rounds,
        } = &self.figures;
        let done: Vec<String> = done
            .iter()
            .map(|(what, count)| format!("{count} {what}"))
            .collect();
        format!(
            "{rounds} rounds, {programs} client programs, {whole} streams whole, {broken} broken by kills, {} MB checked; done: {}",
            bytes / 1_000_000,
            if done.is_empty() {
                "nothing".to_owned()
            } else {
                done.join(", ")
            }
        )
    }

    fn round(&mut self) {
        let until = Instant::now() + ROUND;
        let mut sabotage = self.plan.sabotage && !self.violent;
        while Instant::now() < until {
            self.tend();
            if sabotage {
                sabotage = false;
                self.pause(3_000);
                self.kill_engine(0, false);
            }
            let wait = self.rng.between(100, 2_000);
            self.pause(wait);
            self.disturb();
        }
        // Healed: everything that was started must end.
    }

    /// One thing happens.
    fn disturb(&mut self) {
        let which = usize::from(self.rng.below(2) == 1);
        let gentle = if self.faulty { 6 } else { 3 };
        let violent = if self.violent { 5 } else { 0 };
        let choice = self.rng.below(gentle + violent);
        let what = match choice {
            _ if choice >= gentle => match choice - gentle {
                0 | 1 => {
                    self.kill_engine(which, true);
                    "engines killed"
                }
                2 => {
                    self.kill_server(which);
                    "servers killed"
                }
                3 => {
                    for _ in 0..self.rng.between(1, 5) {
                        self.kill_client();
                    }
                    "times clients killed"
                }
                _ => {
                    self.kill_frozen_engine(which);
                    "engines frozen, then killed"
                }
            },
            0 => {
                let ms = self.rng.between(200, 8_000);
                self.freeze(which, ms);
                "engines frozen"
            }
            1 => {
                self.freeze_program();
                "programs frozen"
            }
            2 => {
                let ms = self.rng.between(200, 2_000);
                self.pause(ms);
                "quiet times"
            }
            3 => {
                let ms = self.rng.between(500, 9_000);
                self.stall(ms);
                "storage stalls"
            }
            4 => {
                self.lab.volume().fail(true);
                let ms = self.rng.between(1_000, 6_000);
                self.pause(ms);
                self.lab.volume().fail(false);
                "times of storage errors"
            }
            _ => {
                self.lab.volume().fail(true);
                let ms = self.rng.between(500, 4_000);
                self.stall(ms);
                self.lab.volume().fail(false);
                "stalls among errors"
            }
        };
        *self.figures.done.entry(what).or_default() += 1;
    }

    fn stall(&mut self, ms: u64) {
        self.lab.volume().stall(true);
        self.pause(ms);
        self.lab.volume().stall(false);
    }

    fn freeze(&mut self, which: usize, ms: u64) {
        if let Some(engine) = &self.engines[which] {
            engine.signal(Signal::STOP);
            self.pause(ms);
            if let Some(engine) = &self.engines[which] {
                engine.signal(Signal::CONT);
            }
        }
    }

    fn freeze_program(&mut self) {
        let ms = self.rng.between(200, 4_000);
        let slot = self.rng.below(SLOTS as u64 + 2) as usize;
        let stop = |process: Option<&mut Proc>, signal| {
            if let Some(process) = process
                && process.ended().is_none()
            {
                process.signal(signal);
            }
        };
        for signal in [Signal::STOP, Signal::CONT] {
            match slot.checked_sub(SLOTS) {
                None => stop(self.clients[slot].as_mut().map(|c| &mut c.process), signal),
                Some(server) => stop(self.servers[server].as_mut(), signal),
            }
            if signal == Signal::STOP {
                // No slot is filled anew meanwhile: the one that is stopped stays the one that is continued.
                std::thread::sleep(Duration::from_millis(ms));
            }
        }
    }

    fn kill_client(&mut self) {
        let slot = self.rng.below(SLOTS as u64) as usize;
        if let Some(mut client) = self.clients[slot].take() {
            client.killed = true;
            if client.process.ended().is_none() {
                client.process.signal(Signal::KILL);
                client.process.wait();
            }
            self.judge(client);
        }
    }

    fn kill_server(&mut self, which: usize) {
        self.all_killed();
        if let Some(server) = self.servers[which].take() {
            self.hear_server(&server);
            server.crash();
        }
        self.pause_dead();
        self.start_server(which);
    }

    fn kill_engine(&mut self, which: usize, told: bool) {
        if told {
            self.all_killed();
        }
        if let Some(engine) = self.engines[which].take() {
            // A storage that is stalled must not keep the dead from being buried.
            engine.crash();
        }
        if told {
            self.pause_dead();
        }
        self.start_engine(which);
    }

    /// A frozen engine is killed while the storage stands still: what it had under way lands after its death.
    fn kill_frozen_engine(&mut self, which: usize) {
        self.all_killed();
        let Some(mut engine) = self.engines[which].take() else {
            return;
        };
        if self.faulty {
            self.lab.volume().stall(true);
        }
        engine.signal(Signal::STOP);
        let ms = self.rng.between(100, 3_000);
        self.pause(ms);
        engine.signal(Signal::KILL);
        if self.faulty {
            self.lab.volume().stall(false);
        }
        engine.wait();
        self.start_engine(which);
    }

    /// From now on every stream of this round may break.
    fn all_killed(&mut self) {
        for client in self.clients.iter_mut().flatten() {
            client.killed = true;
        }
    }

    fn pause_dead(&mut self) {
        let ms = self.rng.between(0, 2_000);
        self.pause(ms);
    }

    /// Time passes; programs that end are judged and replaced.
    fn pause(&mut self, ms: u64) {
        let until = Instant::now() + Duration::from_millis(ms);
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            std::thread::sleep(left.min(LOOK));
            self.tend();
        }
    }

    /// Fills empty slots and judges who has ended.
    fn tend(&mut self) {
        for slot in 0..SLOTS {
            let ended = self.clients[slot]
                .as_mut()
                .is_some_and(|client| client.process.ended().is_some());
            if ended && let Some(client) = self.clients[slot].take() {
                self.judge(client);
            }
            if self.clients[slot].is_none() {
                self.clients[slot] = Some(self.start_client());
            }
        }
        for (which, system) in SYSTEMS.iter().enumerate() {
            let server = self.servers[which].as_mut();
            if server.is_some_and(|server| server.ended().is_some())
                && let Some(server) = self.servers[which].take()
            {
                self.hear_server(&server);
                if !self.violent {
                    let what = format!("the server of {system} ended: {}", server.err());
                    self.broken.push(what);
                }
                self.start_server(which);
            }
            let engine = self.engines[which].as_mut();
            if engine.is_some_and(|engine| engine.ended().is_some())
                && let Some(engine) = self.engines[which].take()
            {
                let what = format!("the engine of {system} ended by itself: {}", engine.err());
                self.broken.push(what);
                self.all_killed();
                self.start_engine(which);
            }
        }
    }

    fn start_client(&mut self) -> Client {
        let host = self.rng.below(2) as usize;
        let wanted = Wanted {
            up: self.rng.between(0, 600_000),
            down: self.rng.between(0, 600_000),
        };
        let rate = self.rng.between(30_000, 300_000);
        let number = self.next_key;
        self.next_key += 1;
        let keys: Vec<u64> = (0..STREAMS)
            .map(|index| number.wrapping_mul(1_000_003).wrapping_add(index))
            .collect();
        for key in &keys {
            self.wanted.insert(*key, wanted);
        }
        let args = format!(
            "call {}:{PORT} --streams {STREAMS} --up {} --down {} --rate {rate} --key {number} --retry 120",
            SYSTEMS[1 - host],
            wanted.up,
            wanted.down
        );
        self.figures.programs += 1;
        let process = self.lab.hosts::<2>()[host].load(&args).spawn();
        Client {
            process,
            keys,
            wanted,
            killed: self.violent,
            host,
        }
    }

    fn start_engines(&mut self) {
        for which in 0..2 {
            self.start_engine(which);
        }
    }

    fn start_engine(&mut self, which: usize) {
        self.held[which] = None;
        self.engines[which] = Some(self.lab.hosts::<2>()[which].engine());
    }

    fn start_servers(&mut self) {
        for which in 0..2 {
            self.start_server(which);
        }
    }

    fn start_server(&mut self, which: usize) {
        let args = format!("serve {PORT} --streams 0 --rate 200000");
        let mut server = self.lab.hosts::<2>()[which].load(&args).spawn();
        let listens = server.listening();
        if let Err(why) = listens {
            self.broken
                .push(format!("no server on {}: {why}", SYSTEMS[which]));
        }
        self.servers[which] = Some(server);
    }

    fn hear_server(&mut self, server: &Proc) {
        let all = server.out();
        for ended in all.lines().filter_map(|line| Ended::parse(line, "served")) {
            self.served.insert(ended.key, ended);
        }
    }

    /// A client has ended: each of its streams is judged.
    fn judge(&mut self, client: Client) {
        let out = client.process.out();
        let ends: Vec<Ended> = out
            .lines()
            .filter_map(|line| Ended::parse(line, "called"))
            .collect();
        for ended in &ends {
            match &ended.kind {
                None => self.figures.whole += 1,
                Some(_) => self.figures.broken += 1,
            }
            self.figures.bytes += ended.received;
            if let Some(what) = judge::stream(ended, Some(client.wanted), client.killed) {
                self.broken
                    .push(format!("{what}\n  {out}\n  {}", client.process.err()));
            }
            self.called.insert(ended.key, ended.clone());
        }
        let missing = client.keys.len() - ends.len().min(client.keys.len());
        if missing > 0 && !client.killed {
            self.broken.push(format!(
                "{missing} streams of a client of {} said nothing: {out} {}",
                SYSTEMS[client.host],
                client.process.err()
            ));
        }
    }
}
