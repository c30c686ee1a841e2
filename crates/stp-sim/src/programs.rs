//! The programs: what they ask for, write, read, and how they end; what they may see.
//!
//! - A program believes only what sockets show it: bytes, an end of file, and the verdict on it.
//! - A reset needs an excuse: a program or an engine at either end that ended, or a silence beyond the
//!   limit. A clean end needs the other program's clean end, and every byte before it.

use std::sync::PoisonError;

use stp_core::ResetReason;
use stp_host::control::{ConnectFailure, Connected, StreamToken};
use stp_host::engine::{Command, Ending, Reply};

use crate::lane::{Call, Lane};
use crate::local::{Asked, End, SimSocket};
use crate::mutation::Mutation;
use crate::world::{MS, Phase, SECOND, State, US, World, port_of};

/// Older knowledge of the directory than this, beyond some heartbeats, excuses no refusal.
const KNOWLEDGE: u64 = 3 * SECOND;

/// One connection that a program asked for.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) client: usize,
    client_life: usize,
    pub(crate) server: usize,
    server_life: Option<usize>,
    /// The client's.
    port: u16,
    /// Where the sides are now, if they were given away.
    moved: [Option<usize>; 2],
    /// Lives that may have come to own a side.
    pub(crate) candidates: [Vec<usize>; 2],
    asked_at: u64,
    pub(crate) connected: bool,
    answered: bool,
    /// Why it may break.
    pub(crate) excuse: Option<&'static str>,
    /// Bytes that each side wrote before it ended cleanly.
    pub(crate) totals: [Option<u64>; 2],
    ends: [Option<usize>; 2],
    /// Must succeed: nothing breaks any more.
    pub(crate) probe: bool,
}

impl Connection {
    /// Where a side is.
    pub(crate) fn node(&self, side: usize) -> usize {
        self.moved[side].unwrap_or([self.client, self.server][side])
    }

    /// A side's address, which it keeps wherever it goes, and its peer's: the systems' first nodes, and ports.
    pub(crate) fn names(&self, side: usize) -> [(usize, u16); 2] {
        let mut names = [
            (self.client, self.port),
            (self.server, port_of(self.server)),
        ];
        names.rotate_left(side);
        names
    }

    /// A side has another owner, and with it another socket.
    pub(crate) fn pass_on(&mut self, side: usize, end: usize, node: usize, life: usize) {
        self.ends[side] = Some(end);
        self.moved[side] = Some(node);
        self.candidates[side].clear();
        match side {
            0 => self.client_life = life,
            _ => self.server_life = Some(life),
        }
    }
}

/// How a program ends its stream, after so many bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    Clean,
    Die(u64),
    Abort(u64),
    Early(u64),
}

/// What a program saw of the other's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Nothing,
    Clean,
    Reset,
}

/// A program at one end of a connection.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) send: u64,
    write_most: u64,
    read_most: u64,
    pause: u64,
    manner: Manner,
    /// It gives its stream away after so many bytes.
    pub(crate) gives: Option<u64>,
    /// It has its socket.
    pub(crate) running: bool,
    pub(crate) wake_at: Option<u64>,
    seen: Seen,
    pub(crate) done: bool,
    pub(crate) lane: Option<Lane>,
}

impl Program {
    /// It has an engine of its own, with whose end it ends: it does not die alone.
    fn take_lane(&mut self, lane: Option<Lane>, raw: bool) {
        self.lane = lane.filter(|_| !raw);
        if let (Manner::Die(at), Some(_)) = (self.manner, &self.lane) {
            self.manner = Manner::Abort(at);
        }
    }
}

impl World {
    fn new_program(&mut self, probe: bool) -> Program {
        let ends = self.options.ends;
        let most = self.options.bytes_max;
        let r = &mut self.rng;
        let send = if r.percent(10) { 0 } else { r.spread(1, most) };
        let at = r.below(2 * most + 1);
        let manner = match r.below(100) {
            _ if probe => Manner::Clean,
            n if n < ends.die => Manner::Die(at),
            n if n < ends.die + ends.abort => Manner::Abort(at),
            n if n < ends.die + ends.abort + ends.early => Manner::Early(at),
            _ => Manner::Clean,
        };
        let slow = r.percent(ends.slow) && !probe;
        let send = if probe { 50_000 } else { send };
        let chunk = r.spread(1, 256 << 10).max(send / 500 + 1);
        Program {
            send,
            write_most: chunk,
            read_most: if slow { chunk / 4 + 1 } else { 1 << 30 },
            pause: if slow { r.spread(100, 20_000) * US } else { 0 },
            manner,
            gives: None,
            running: false,
            wake_at: None,
            seen: Seen::Nothing,
            done: false,
            lane: None,
        }
    }

    pub(crate) fn wake_program(&mut self, end: usize, after: u64) {
        let at = self.now + after;
        let Some(program) = self.programs.get_mut(&end) else {
            return;
        };
        if program.done || !program.running || program.wake_at.is_some_and(|wake_at| wake_at <= at)
        {
            return;
        }
        program.wake_at = Some(at);
        self.at(after, crate::world::Task::Program(end));
    }

    // --- connecting

    pub(crate) fn connect_some(&mut self) {
        if self.phase != Phase::Breaking || self.connects >= self.options.streams_total {
            return;
        }
        let pause = self.options.break_ms * MS / self.options.streams_total as u64;
        let after = self.rng.within(1, 2 * pause);
        self.at(after, crate::world::Task::Connect);
        if self.open.len() >= self.options.streams_at_once {
            return;
        }
        let client = self.rng.below(self.nodes.len() as u64) as usize;
        let server = self.rng.below(self.nodes.len() as u64) as usize;
        if self.nodes[client].system != self.nodes[server].system {
            self.connect(client, server, false);
        }
    }

    pub(crate) fn connect(&mut self, client: usize, server: usize, probe: bool) {
        if self.nodes[client].leaving || !matches!(self.nodes[client].state, State::Up(_)) {
            return;
        }
        let number = self.connections.len();
        let port = self.next_port;
        self.next_port = if port >= 60_000 { 2000 } else { port + 1 };
        self.connects += 1;
        let raw = self.rng.percent(self.options.ends.raw);
        let end = {
            let mut sockets = self.host.lock();
            sockets.ends.push(End {
                connection: number,
                side: 0,
                node: client,
                holders: 1,
                raw,
                ..End::default()
            });
            let asked = Asked {
                connection: number,
                target: server,
                accepted: false,
                ends: [Some(sockets.ends.len() - 1), None],
            };
            sockets
                .asked
                .insert((self.nodes[client].system, port), asked);
            sockets.ends.len() - 1
        };
        self.connections.push(Connection {
            client,
            client_life: self.nodes[client].life,
            server,
            server_life: None,
            port,
            moved: [None; 2],
            candidates: [Vec::new(), Vec::new()],
            asked_at: self.now,
            connected: false,
            answered: false,
            excuse: None,
            totals: [None; 2],
            ends: [Some(end), None],
            probe,
        });
        let mut program = self.new_program(probe);
        program.gives = self.next_gift(number, program.send);
        program.take_lane(self.new_lane(), raw);
        self.programs.insert(end, program);
        self.open.insert(number);
        let inbox = self.inbox.clone();
        let reply = Reply::new(move |answer| {
            let mut inbox = inbox.lock().unwrap_or_else(PoisonError::into_inner);
            inbox.push((number, answer));
        });
        let to = self.nodes[server].system;
        self.command(
            client,
            Command::Connect {
                ticket: number as u64,
                to,
                port: port_of(server),
                local_port: Some(port),
                socket: SimSocket(end),
                skip: 0,
                within: None,
                raw,
                reply,
            },
        );
        if self.rng.percent(10) && !probe {
            let after = self.rng.spread(MS, 10 * SECOND);
            self.at(after, crate::world::Task::Cancel(number));
        }
    }

    pub(crate) fn cancel(&mut self, number: usize) {
        let connection = &mut self.connections[number];
        if connection.answered {
            return;
        }
        connection
            .excuse
            .get_or_insert("the program gave up connecting");
        let (client, life) = (connection.client, connection.client_life);
        if self.nodes[client].life == life {
            let ticket = number as u64;
            self.command(client, Command::Cancel { ticket });
        }
    }

    pub(crate) fn answered(
        &mut self,
        number: usize,
        answer: Option<Result<Connected, ConnectFailure>>,
    ) {
        let connection = &mut self.connections[number];
        connection.answered = true;
        let Some(end) = connection.ends[0] else {
            return;
        };
        match answer {
            Some(Ok(Connected { token, .. })) => {
                connection.connected = true;
                if connection.ends[1].is_none() {
                    self.find(format!("connection {number}: open, but nobody took it"));
                }
                self.streams += 1;
                self.host.lock().ends[end].token = Some(token);
                if let Some(program) = self.programs.get_mut(&end) {
                    program.running = true;
                }
                let after = self.rng.below(MS);
                self.wake_program(end, after);
            }
            failure => {
                if let Some(finding) = self.judge_failure(number, failure.and_then(Result::err)) {
                    self.find(finding);
                }
                self.connections[number].excuse.get_or_insert("it failed");
                self.host.lock().ends[end].closed = true;
                self.program_done(end);
            }
        }
    }

    /// What is wrong with a connection's failure.
    fn judge_failure(&self, number: usize, why: Option<ConnectFailure>) -> Option<String> {
        let connection = &self.connections[number];
        let (client, server) = (connection.client, connection.server);
        let text = format!("{why:?}");
        self.say(|| format!("connection {number} fails: {text}"));
        let known = KNOWLEDGE
            + self.options.timings.heartbeat.as_nanos() as u64 * 4
            + self.options.storage.late_ms * MS;
        let since = connection.asked_at.saturating_sub(known);
        let disk = self.disk.lock();
        let gapped = |node: usize| {
            let handle = disk.handles.get(self.nodes[node].life);
            handle.is_none_or(|handle| handle.gapped(since, self.now))
        };
        let excused = connection.excuse.is_some()
            || self.lives[connection.client_life].ended.is_some()
            || !self.nodes[server].published
            || self.nodes[server].disturbed_at >= since
            || self.nodes[client].disturbed_at >= since
            || gapped(client)
            || gapped(server)
            || disk.overtaken(self.nodes[client].life)
            || disk.overtaken(self.nodes[server].life)
            || matches!(&why, Some(ConnectFailure::Reset(text)) if text.contains("queue stayed full"));
        if excused && !connection.probe {
            return None;
        }
        let peers: Vec<_> = match &self.nodes[client].state {
            State::Up(engine) => engine.node().peers().collect(),
            _ => Vec::new(),
        };
        Some(format!(
            "connection {number} from node {client} to node {server}, asked for at {:.6} s, failed without an excuse: {text}; it sees {peers:?}",
            connection.asked_at as f64 / 1e9
        ))
    }

    /// The engine has put a connection into a listener's queue.
    pub(crate) fn handed_over(&mut self, end: usize) {
        let (number, node) = {
            let sockets = self.host.lock();
            (sockets.ends[end].connection, sockets.ends[end].node)
        };
        let raw = self.nodes[node].raw;
        self.host.lock().ends[end].raw = raw;
        let connection = &mut self.connections[number];
        connection.ends[1] = Some(end);
        // The client may have given up meanwhile.
        self.open.insert(number);
        connection.server_life = Some(self.nodes[node].life);
        let probe = connection.probe;
        let mut program = self.new_program(probe);
        program.gives = self.next_gift(number, program.send);
        program.take_lane(self.new_lane(), raw);
        self.programs.insert(end, program);
        let after = self.rng.spread(10 * US, 20 * MS);
        self.at(after, crate::world::Task::Accept(node));
        // The engine may have ended in the step that handed it over, and the queue with it.
        if self.host.lock().ends[end].closed {
            self.program_done(end);
        }
    }

    pub(crate) fn accept(&mut self, node: usize) {
        let end = self.host.lock().backlogs[node].waiting.pop_front();
        let Some(end) = end else {
            return;
        };
        if let Some(program) = self.programs.get_mut(&end) {
            program.running = true;
        }
        self.wake_program(end, US);
    }

    pub(crate) fn unlisten(&mut self, node: usize) {
        self.nodes[node].disturbed_at = self.now;
        self.nodes[node].published = false;
        self.close_backlog(node);
        if self.rng.percent(50) {
            let port = port_of(node);
            self.command(node, Command::Unlisten { port });
        }
    }

    /// A listening socket is closed with what waits in its queue.
    pub(crate) fn close_backlog(&mut self, node: usize) {
        let waiting = {
            let mut sockets = self.host.lock();
            sockets.backlogs[node].open = false;
            std::mem::take(&mut sockets.backlogs[node].waiting)
        };
        for end in waiting {
            let number = self.host.lock().ends[end].connection;
            self.connections[number]
                .excuse
                .get_or_insert("the listener went");
            self.host.lock().ends[end].embryo = true;
            self.close(end);
        }
    }

    /// A node's process is gone: its sockets break.
    pub(crate) fn kill_sockets(&mut self, node: usize) {
        let mut sockets = self.host.lock();
        let waiting = std::mem::take(&mut sockets.backlogs[node].waiting);
        sockets.forget_node(node);
        let life = self.nodes[node].life;
        let open: Vec<usize> = self.open.iter().copied().collect();
        for number in open {
            let connection = &self.connections[number];
            let lives = [Some(connection.client_life), connection.server_life];
            for (end, lives_in) in connection.ends.iter().zip(lives) {
                if let (Some(end), true) = (*end, lives_in == Some(life)) {
                    sockets.ends[end].engine_dead = true;
                    sockets.ends[end].engine_closed = true;
                    sockets.touched.push(end);
                }
            }
        }
        sockets.break_shared(node);
        drop(sockets);
        for end in waiting {
            let number = self.host.lock().ends[end].connection;
            self.connections[number]
                .excuse
                .get_or_insert("the listener went");
            self.host.lock().ends[end].embryo = true;
            self.close(end);
        }
    }

    // --- running

    pub(crate) fn close(&mut self, end: usize) {
        let node = {
            let mut sockets = self.host.lock();
            sockets.release(end);
            sockets.ends[end].node
        };
        self.poke(node, US);
        self.program_done(end);
    }

    pub(crate) fn program_done(&mut self, end: usize) {
        if let Some(program) = self.programs.get_mut(&end) {
            program.done = true;
        }
        let number = self.host.lock().ends[end].connection;
        let connection = &self.connections[number];
        let mut ends = connection.ends.iter().flatten();
        if connection.answered && ends.all(|end| self.programs.get(end).is_none_or(|p| p.done)) {
            self.open.remove(&number);
            for end in connection.ends.iter().flatten() {
                self.programs.remove(end);
            }
        }
    }

    fn mark(&mut self, end: usize) {
        let sockets = self.host.lock();
        let this = &sockets.ends[end];
        if let (Some(token), false) = (this.token, this.raw || this.engine_dead) {
            self.nodes[this.node].verdicts.mark_clean(token);
        }
        let (connection, side, written) = (this.connection, this.side, this.written);
        self.connections[connection].totals[side].get_or_insert(written);
    }

    /// A program does what it can, and ends if it is done.
    pub(crate) fn program(&mut self, end: usize) {
        let now = self.now;
        let Some(program) = self.programs.get_mut(&end) else {
            return;
        };
        if program.done || program.wake_at != Some(now) {
            return;
        }
        program.wake_at = None;
        if self.phase != Phase::Breaking {
            program.pause = 0;
            program.read_most = program.read_most.max(64 << 10);
        }
        let (send, write_most, read_most) = (program.send, program.write_most, program.read_most);
        let (manner, pause, gives) = (program.manner, program.pause, program.gives);
        let urgent = self.options.urgent > 0 && self.rng.percent(self.options.urgent);
        let mut more = self.read_some(end, read_most);
        more |= self.write_some(end, send, write_most, urgent);
        let busy = self.is_busy(end);
        let sockets = self.host.lock();
        let this = &sockets.ends[end];
        let (number, side, node, raw) = (this.connection, this.side, this.node, this.raw);
        let (moved, written) = (this.consumed + this.written, this.written);
        let drained = this.consumed == this.delivered;
        let (finished, gone, dead) = (this.finished, this.engine_closed, this.engine_dead);
        let (token, shut) = (this.token, this.shut);
        drop(sockets);
        if let (Some(at), Some(token)) = (gives, token)
            && moved >= at
            && !dead
            && !busy
            && self.phase == Phase::Breaking
            && self.is_up(node)
        {
            self.expose(end);
            if let Some(program) = self.programs.get_mut(&end) {
                (program.running, program.gives, program.wake_at) = (false, None, None);
            }
            return self.give(end, token);
        }
        match manner {
            Manner::Die(at) if moved >= at && !busy => {
                self.connections[number]
                    .excuse
                    .get_or_insert("a program died");
                if raw {
                    self.connections[number].totals[side].get_or_insert(written);
                }
                return self.close(end);
            }
            Manner::Abort(at) if moved >= at && !busy => {
                self.connections[number]
                    .excuse
                    .get_or_insert("a program aborted");
                if let (Some(token), false) = (token, dead) {
                    self.command(node, Command::Abort { token });
                }
                return self.close(end);
            }
            Manner::Early(at) if moved >= at && !busy => {
                self.connections[number]
                    .excuse
                    .get_or_insert("a program closed early");
                self.mark(end);
                self.close_lane(end, false);
                return self.close(end);
            }
            _ => {}
        }
        if written == send && !shut {
            self.mark(end);
            let read = drained && (finished || gone);
            match read {
                true => self.close_lane(end, true),
                false => self.settle_lane(end),
            }
            let mut sockets = self.host.lock();
            sockets.ends[end].shut = true;
            sockets.tell_readable(end);
            drop(sockets);
            self.poke(node, US);
        }
        if drained && (finished || gone) {
            let seen = self.look_at_end(end, token);
            if let Some(program) = self.programs.get_mut(&end) {
                program.seen = seen;
            }
            if seen == Seen::Reset || (seen == Seen::Clean && written == send) {
                match seen {
                    Seen::Reset => self.resets += 1,
                    _ => self.clean += 1,
                }
                return self.close(end);
            }
            if seen == Seen::Clean && gone {
                return self.close(end);
            }
        }
        if more || !drained {
            let after = pause + self.rng.below(50 * US);
            self.wake_program(end, after.max(US));
        }
    }

    /// Reads at most so many bytes; whether there may be more at once.
    fn read_some(&mut self, end: usize, most: u64) -> bool {
        match self.read_by_lane(end, most) {
            Call::Moved(count) => return count > 0,
            Call::Waits => return false,
            Call::Refused => {}
        }
        let mut sockets = self.host.lock();
        let this = &mut sockets.ends[end];
        let (take, node) = ((this.delivered - this.consumed).min(most), this.node);
        this.consumed += take;
        if take > 0 {
            sockets.tell_room(end);
            drop(sockets);
            self.poke(node, US);
        }
        false
    }

    /// Writes of `send` bytes what is left, in calls of at most `most` bytes; whether there may be room for more at once.
    fn write_some(&mut self, end: usize, send: u64, most: u64, urgent: bool) -> bool {
        let mut more = false;
        for _ in 0..self.calls(end) {
            let left = self.host.lock().ends[end].left(send);
            if urgent {
                self.expose(end);
            }
            more = match self.write_by_lane(end, most.min(left)) {
                Call::Moved(count) => count < left,
                Call::Waits => return false,
                Call::Refused => self.write_socket(end, send, most, urgent),
            };
        }
        more
    }

    fn write_socket(&mut self, end: usize, send: u64, most: u64, urgent: bool) -> bool {
        let mut sockets = self.host.lock();
        let capacity = sockets.capacity;
        let this = &mut sockets.ends[end];
        let left = this.left(send);
        let room = capacity - (this.written - this.pulled);
        let give = room.min(most).min(left);
        if give == 0 {
            return false;
        }
        this.written += give;
        if urgent {
            this.mark_urgent();
        }
        let node = this.node;
        sockets.tell_readable(end);
        drop(sockets);
        self.socket_written(end);
        self.poke(node, US);
        give < left && room > give
    }

    /// The program has read everything and sees the end of the stream.
    fn look_at_end(&mut self, end: usize, token: Option<StreamToken>) -> Seen {
        let sockets = self.host.lock();
        let this = &sockets.ends[end];
        let (number, side, node) = (this.connection, this.side, this.node);
        let (dead, gone, delivered) = (this.engine_dead, this.engine_closed, this.delivered);
        drop(sockets);
        let mut ending = match token {
            Some(token) if !dead => self.nodes[node].verdicts.ending(token),
            _ => return Seen::Reset,
        };
        match self.options.mutation {
            Some(Mutation::FalseEnd) if matches!(ending, Ending::Reset(_)) => {
                ending = Ending::Clean
            }
            Some(Mutation::BareReset) if number == 20 => {
                self.connections[number].excuse = None;
                ending = Ending::Reset(ResetReason::Aborted);
            }
            _ => {}
        }
        match ending {
            Ending::Clean => {
                let total = self.connections[number].totals[1 - side];
                if total != Some(delivered) {
                    self.find(format!(
                        "connection {number}, side {side}: a clean end after {delivered} bytes; the other side's clean end was after {total:?}"
                    ));
                }
                Seen::Clean
            }
            Ending::Open if gone => {
                self.find(format!(
                    "connection {number}, side {side}: closed without a verdict"
                ));
                Seen::Reset
            }
            Ending::Open => Seen::Nothing,
            Ending::Reset(reason) => {
                if !self.may_reset(number) {
                    self.find(format!(
                        "connection {number}, side {side}: reset without an excuse: {reason:?} ({:?})",
                        self.connections[number]
                    ));
                }
                Seen::Reset
            }
        }
    }

    fn may_reset(&self, number: usize) -> bool {
        let connection = &self.connections[number];
        let owners = [Some(connection.client_life), connection.server_life];
        let mut lives = connection.candidates.clone();
        for (lives, owner) in lives.iter_mut().zip(owners) {
            lives.extend(owner);
        }
        let since = connection.asked_at.saturating_sub(SECOND);
        let disk = self.disk.lock();
        if connection.probe {
            return false;
        }
        let ended = |life: &usize| self.lives[*life].ended.is_some() || disk.overtaken(*life);
        if connection.excuse.is_some() || lives.iter().flatten().any(ended) {
            return true;
        }
        let heartbeat = self.options.timings.heartbeat.as_nanos() as u64;
        let healthy = (2 * heartbeat + 500 * MS) / 100 * 103;
        let silent = |of: usize, to: usize| {
            let (of, to) = (&disk.handles[of], &disk.handles[to]);
            of.gapped_for(to, since, self.now, healthy)
        };
        let [clients, servers] = &lives;
        let mut pairs = clients
            .iter()
            .flat_map(|client| servers.iter().map(move |server| (*client, *server)));
        pairs.any(|(client, server)| silent(client, server) || silent(server, client))
            || self.gifts.held_long(number, self.now)
    }

    /// What a connection that does not end looks like.
    pub(crate) fn describe(&self, number: usize) -> String {
        let connection = &self.connections[number];
        let sockets = self.host.lock();
        let ends: Vec<_> = connection
            .ends
            .iter()
            .flatten()
            .map(|end| (&sockets.ends[*end], self.programs.get(end)))
            .collect();
        format!("{connection:?}\n  {ends:?}")
    }
}
