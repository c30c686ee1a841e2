//! Between rounds: nothing is done any more, so everything must end, and nothing may be left.

use std::path::Path;
use std::time::Instant;

use rustix::process::Signal;
use serde_json::Value;

use super::judge::{self, Held};
use super::{END_MAX, LOOK, PORT, SLOTS, SYSTEMS, Soak};

impl Soak {
    /// Waits until every client has ended, compares both ends of every stream, and counts what is held.
    pub(super) fn rest(&mut self) {
        let limit = Instant::now() + END_MAX;
        while self.clients.iter().any(Option::is_some) {
            for slot in 0..SLOTS {
                let client = self.clients[slot].as_mut();
                let hangs = Instant::now() >= limit;
                let ended = client.is_some_and(|client| client.process.ended().is_some());
                if (ended || hangs)
                    && let Some(mut client) = self.clients[slot].take()
                {
                    if !ended {
                        let line = client.process.line().to_owned();
                        let what = format!("hang: {line}: {}", client.process.out());
                        self.broken.push(what);
                        client.killed = true;
                    }
                    self.judge(client);
                }
            }
            std::thread::sleep(LOOK);
        }
        self.compare(limit);
        self.quiet(limit);
        self.count();
    }

    /// The servers' ends of this round's streams, and whether they fit the clients'.
    fn compare(&mut self, limit: Instant) {
        loop {
            for which in 0..2 {
                if let Some(server) = self.servers[which].take() {
                    self.hear_server(&server);
                    self.servers[which] = Some(server);
                }
            }
            // A killed server cannot tell; in a gentle round each stream has two ends that are told.
            let untold = self
                .called
                .keys()
                .filter(|key| !self.served.contains_key(key));
            if self.violent || untold.count() == 0 {
                break;
            }
            if Instant::now() >= limit {
                self.broken
                    .push("hang: a server does not tell the end of every stream".into());
                break;
            }
            std::thread::sleep(LOOK);
        }
        let called = std::mem::take(&mut self.called);
        let served = std::mem::take(&mut self.served);
        for ended in called.values() {
            if let Some(other) = served.get(&ended.key) {
                self.broken.extend(judge::pair(ended, other));
            }
        }
        for ended in served.values() {
            // A server that ran through several rounds tells of the earlier ones again.
            let wanted = self.wanted.get(&ended.key);
            let wanted = wanted.map(|wanted| judge::Wanted {
                up: wanted.down,
                down: wanted.up,
            });
            if ended.key != 0 && wanted.is_some() {
                self.broken
                    .extend(judge::stream(ended, wanted, self.violent));
            }
        }
        self.wanted.clear();
    }

    /// Nothing is left on the volume, except the listeners, and one seat a system.
    fn quiet(&mut self, limit: Instant) {
        loop {
            let sockets = self.sockets(|state| state != "LISTEN");
            let seats = self.seats();
            let found = judge::volume(sockets, &seats, &SYSTEMS);
            if found.is_empty() {
                return;
            }
            if Instant::now() >= limit {
                self.broken.extend(found);
                return;
            }
            std::thread::sleep(LOOK * 10);
        }
    }

    fn report(&self, args: &[&str]) -> Value {
        let [alpha, _] = self.lab.hosts();
        let ran = alpha.stp(["--json"]).args(args).ok();
        serde_json::from_str(&ran.text()).unwrap_or_else(|error| panic!("{error}: {ran}"))
    }

    /// Sockets of living nodes. A dead node's table stays readable until its seat is taken again.
    fn sockets(&self, wanted: impl Fn(&str) -> bool) -> usize {
        let report = self.report(&["ss", "--all"]);
        let list = |name: &str| report[name].as_array().cloned().unwrap_or_default();
        let nodes = list("nodes");
        let lives = |seat: &Value| {
            let node = nodes.iter().find(|node| node["seat"] == *seat);
            node.is_some_and(|node| node["state"] == "up")
        };
        list("sockets")
            .iter()
            .filter(|socket| lives(&socket["seat"]))
            .filter(|socket| socket["state"].as_str().is_some_and(&wanted))
            .count()
    }

    fn seats(&self) -> Vec<(String, String)> {
        let report = self.report(&["info"]);
        let word = |seat: &Value, name: &str| seat[name].as_str().unwrap_or_default().to_owned();
        let seats = report["taken"].as_array().into_iter().flatten();
        seats
            .map(|seat| (word(seat, "system"), word(seat, "state")))
            .collect()
    }

    /// What each engine holds, against what it held when it first came to rest.
    fn count(&mut self) {
        for (which, system) in SYSTEMS.iter().enumerate() {
            let Some(engine) = &self.engines[which] else {
                continue;
            };
            let (id, name) = (engine.id(), format!("the engine of {system}"));
            match (&self.held[which], held(id)) {
                (Some((same, before)), Some(after)) if *same == id => {
                    self.broken.extend(judge::leak(&name, before, &after));
                }
                (_, Some(after)) => self.held[which] = Some((id, after)),
                (_, None) => self.broken.push(format!("{name} cannot be looked at")),
            }
        }
    }

    /// Servers and engines end in good order; then nothing is left at all.
    pub(super) fn end(&mut self) {
        for which in 0..2 {
            if let Some(server) = self.servers[which].take() {
                server.crash();
            }
        }
        let limit = Instant::now() + END_MAX;
        while self.sockets(|_| true) != 0 {
            if Instant::now() >= limit {
                self.broken
                    .push("listeners of dead programs stay in the tables".into());
                break;
            }
            std::thread::sleep(LOOK * 10);
        }
        for which in 0..2 {
            if let Some(mut engine) = self.engines[which].take() {
                engine.signal(Signal::TERM);
                let status = engine.wait_within(END_MAX);
                if !status.success() {
                    self.broken
                        .push(format!("an engine left with {status}: {}", engine.err()));
                }
            }
            let [alpha, beta] = self.lab.hosts();
            let host = [alpha, beta][which];
            let mut names = Vec::new();
            list(&host.run_dir(), "", &mut names);
            for file in judge::files(&names, &[PORT]) {
                self.broken.push(format!(
                    "{} leaves {file} in its run directory",
                    SYSTEMS[which]
                ));
            }
            let unix = host.unix_sockets();
            if unix.contains("@stp/") {
                self.broken
                    .push(format!("{} leaves sockets: {unix}", SYSTEMS[which]));
            }
        }
        let [alpha, _] = self.lab.hosts();
        let check = alpha.stp(["check"]).arg(self.lab.volume().path(0)).run();
        if !check.status.success() {
            self.broken.push(format!("the volume is damaged: {check}"));
        }
        self.lab.prove();
    }
}

/// Descriptors, threads and memory of a process.
fn held(process: u32) -> Option<Held> {
    let folder = Path::new("/proc").join(process.to_string());
    let status = std::fs::read_to_string(folder.join("status")).ok()?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse().ok()
    };
    Some(Held {
        descriptors: std::fs::read_dir(folder.join("fd")).ok()?.count() as u64,
        threads: field("Threads:")?,
        memory_kib: field("VmRSS:")?,
    })
}

fn list(folder: &Path, prefix: &str, names: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.path().is_dir() {
            list(&entry.path(), &format!("{name}/"), names);
        } else {
            names.push(name);
        }
    }
}
