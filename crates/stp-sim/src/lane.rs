//! Programs with an engine of their own: part of their bytes goes past their sockets.
//!
//! - They do what the library does (`stp::Stream`): a write goes by the lane as far as that takes it, waits for the bell
//!   or goes on by the socket; a read looks by the lane, then drives for a moment, waits at the socket or comes again.
//! - Nobody says when an engine must step: it is woken where the library would wake it, and nowhere else.
//! - What comes by the lane is held against the pattern as what comes by the socket is.

use std::sync::Arc;

use stp_host::control::StreamToken;
use stp_host::control::lane::{Bell, Close, Got, Put, Write};

use crate::local::End;
use crate::mutation::Mutation;
use crate::pattern;
use crate::world::{Engine, MS, State, US, World};

/// The most that a call moves.
const CALL_BYTES: u64 = 256 << 10;
/// How long a reader drives before it waits at its socket.
const LOAN: u64 = 2 * MS;
/// When a reader that does not wait comes again.
const COME_AGAIN: u64 = 5 * MS;
/// How far apart looks for one link alone are at the most, where others want the processor.
const LOOKS_APART: u64 = 60 * US;
/// How long the engine's own thread may stay away from a program that is served so; in percent, how often it does.
const AWAY: u64 = MS;
const STAYS_AWAY: u64 = 70;
/// In percent: how often a reader takes a segment straight into its memory, if that is possible.
const TAKES_ITSELF: u64 = 50;
/// In percent: writes and reads that go by the socket all the same; calls after which others see the descriptor.
const BY_SOCKET: u64 = 15;
const EXPOSED: u64 = 1;

/// A program's side of its stream's lane.
#[derive(Debug, Default)]
pub(crate) struct Lane {
    /// Writes into the socket.
    written: u64,
    /// Others may use the descriptor.
    public: bool,
    /// Something was read this way.
    used: bool,
    bell: Arc<Bell>,
    /// Waits for room since this ticket was drawn.
    waits: Option<u32>,
    drives: bool,
    /// Until when it drives, where it looks for its stream's link alone meanwhile.
    loan_until: u64,
}

impl Lane {
    /// Whether it waits for room, and the bell has not rung.
    pub(crate) fn is_waiting(&self) -> bool {
        self.waits == Some(self.bell.ticket())
    }
}

/// What a call by the lane came to.
pub(crate) enum Call {
    /// So many bytes; there may be more at once.
    Moved(u64),
    /// By the socket.
    Refused,
    /// Nothing, and what comes wakes the program.
    Waits,
}

impl World {
    /// A program's lane for its stream, if it has an engine of its own.
    pub(crate) fn new_lane(&mut self) -> Option<Lane> {
        let percent = self.options.lane;
        (percent > 0 && self.rng.percent(percent)).then(Lane::default)
    }

    /// The engine that a program of a node drives, unless it is held up.
    fn helm(&mut self, node: usize) -> Option<&mut Engine> {
        let local = self.nodes[node].rate.local(self.now);
        let frozen = self.stands_until(node) > self.now;
        let this = &mut self.nodes[node];
        match &mut this.state {
            State::Up(engine) if !frozen => {
                if engine.now() < local {
                    this.clock.set(local);
                }
                Some(engine)
            }
            _ => None,
        }
    }

    fn lane(&mut self, end: usize) -> Option<&mut Lane> {
        self.programs.get_mut(&end)?.lane.as_mut()
    }

    /// The descriptor is about to be seen by others.
    pub(crate) fn expose(&mut self, end: usize) {
        let Some(lane) = self.lane(end) else {
            return;
        };
        if !std::mem::replace(&mut lane.public, true) {
            self.publish(end, true);
        }
    }

    /// The next call looks at the socket itself.
    pub(crate) fn settle_lane(&mut self, end: usize) {
        if self.lane(end).is_some_and(|lane| lane.used) {
            self.publish(end, false);
        }
    }

    /// The program has announced its end and closes its socket; `read`: it has read that to the end.
    pub(crate) fn close_lane(&mut self, end: usize, read: bool) {
        let (node, token) = self.place(end);
        let lane = self.lane(end).filter(|lane| !lane.public);
        let written = lane.map(|lane| lane.written);
        let (Some(token), Some(written)) = (token, written) else {
            return self.settle_lane(end);
        };
        if let Some(engine) = self.helm(node) {
            let close = Close {
                token,
                written,
                read,
            };
            engine.close(engine.now(), close);
            self.stay_away(node);
        }
    }

    fn publish(&mut self, end: usize, from_now_on: bool) {
        let (node, token) = self.place(end);
        if let (Some(token), Some(engine)) = (token, self.helm(node)) {
            engine.publish(token, from_now_on);
        }
        self.poke(node, US);
    }

    fn place(&self, end: usize) -> (usize, Option<StreamToken>) {
        let sockets = self.host.lock();
        let this = &sockets.ends[end];
        (this.node, this.token.filter(|_| !this.engine_dead))
    }

    /// A bell has rung for a program that waits for room.
    pub(crate) fn heed_bells(&mut self) {
        if self.options.lane == 0 || self.options.mutation == Some(Mutation::SilentBell) {
            return;
        }
        let rung = |lane: &Lane| lane.waits.is_some() && !lane.is_waiting();
        let woken: Vec<usize> = self
            .programs
            .iter()
            .filter(|(_, program)| program.lane.as_ref().is_some_and(rung))
            .map(|(end, _)| *end)
            .collect();
        for end in woken {
            let after = self.rng.below(50 * US);
            self.wake_program(end, after);
        }
    }

    /// Reads at most so many bytes.
    pub(crate) fn read_by_lane(&mut self, end: usize, most: u64) -> Call {
        let (node, token) = self.place(end);
        let Some(token) = token.filter(|_| self.lane(end).is_some()) else {
            return Call::Refused;
        };
        let drives = self.lane(end).is_some_and(|lane| lane.drives);
        if !drives && self.rng.percent(BY_SOCKET) {
            self.settle_lane(end);
            return Call::Refused;
        }
        let mut into = vec![0; most.clamp(1, CALL_BYTES) as usize];
        let mut received = 0;
        let host = self.host.clone();
        let mut socket = |into: &mut [u8]| {
            let mut sockets = host.lock();
            let this = &mut sockets.ends[end];
            received = (this.delivered - this.consumed).min(into.len() as u64);
            this.consumed += received;
            let over = this.finished || this.engine_closed;
            if received > 0 {
                sockets.tell_room(end);
            }
            received > 0 || over
        };
        let may_go_on = drives && self.may_drive_on(end);
        let takes_itself = may_go_on && self.rng.percent(TAKES_ITSELF);
        let Some(engine) = self.helm(node) else {
            return Call::Refused;
        };
        let served = drives && steer_hot(engine, token, takes_itself);
        let got = engine.take_into(engine.now(), token, &mut into, &mut socket);
        let is_due = match got {
            Got::Nothing => engine.is_step_due(token),
            _ => engine.settle_hot(engine.now(), token),
        };
        if got == Got::Nothing && may_go_on {
            return self.drive_on(end, node, served);
        }
        if drives {
            match got {
                Got::Nothing => engine.reader_waits(token),
                _ => engine.reader_leaves(token),
            }
        }
        if is_due || received > 0 || drives {
            self.poke(node, US);
        }
        if let Some(lane) = self.lane(end) {
            (lane.used, lane.drives) = (true, false);
        }
        match got {
            Got::Bytes(count) => {
                self.check_taken(end, &into[..count]);
                Call::Moved(count as u64)
            }
            Got::Socket => Call::Moved(received),
            Got::Nothing if drives => Call::Waits,
            Got::Nothing => self.wait_for_bytes(end, node, token),
        }
    }

    /// How a reader that found nothing waits.
    fn wait_for_bytes(&mut self, end: usize, node: usize, token: StreamToken) -> Call {
        let manner = self.rng.below(3);
        let Some(engine) = self.helm(node) else {
            return Call::Waits;
        };
        match manner {
            0 => engine.reader_waits(token),
            1 => {
                engine.reader_drives(token);
                let until = self.now + LOAN;
                if let Some(lane) = self.lane(end) {
                    (lane.drives, lane.loan_until) = (true, until);
                }
                self.poke(node, US);
                let most = self.options.memory.map_or(LOAN, |_| LOOKS_APART);
                let after = self.rng.below(most);
                self.wake_program(end, after.max(US));
            }
            // It does not wait: it does something else, and looks again.
            _ => {
                let after = self.rng.below(COME_AGAIN);
                self.wake_program(end, after.max(US));
            }
        }
        Call::Waits
    }

    /// Whether a reader that drives looks on if it finds nothing.
    fn may_drive_on(&mut self, end: usize) -> bool {
        let (now, in_memory) = (self.now, self.options.memory.is_some());
        let lane = self.lane(end);
        in_memory && lane.is_some_and(|lane| now < lane.loan_until)
    }

    /// `served`: between two whole steps.
    fn drive_on(&mut self, end: usize, node: usize, served: bool) -> Call {
        match served {
            true => self.stay_away(node),
            false => self.poke(node, US),
        }
        let after = self.rng.below(LOOKS_APART);
        self.wake_program(end, after.max(US));
        Call::Waits
    }

    /// The engine's own thread leaves it to a program's.
    fn stay_away(&mut self, node: usize) {
        if self.rng.percent(STAYS_AWAY) {
            let until = self.now + self.rng.below(AWAY);
            let step_at = &mut self.nodes[node].step_at;
            *step_at = step_at.map(|at| at.max(until));
        }
    }

    /// What came by the lane is what the other side wrote next.
    fn check_taken(&mut self, end: usize, bytes: &[u8]) {
        let mut sockets = self.host.lock();
        let bytes = match sockets.mutation {
            Some(Mutation::LaneLosesKept) if bytes.len() > 1 => &bytes[1..],
            _ => bytes,
        };
        let count = bytes.len() as u64;
        let this = &sockets.ends[end];
        let End {
            connection,
            side,
            consumed,
            ..
        } = *this;
        let key = pattern::key(connection, 1 - side);
        if let Some(at) = pattern::differs(key, consumed, bytes) {
            sockets.find(format!(
                "connection {connection}, side {side}: a wrong byte at {at} of {count} taken by the lane at {consumed}"
            ));
            return;
        }
        if this.finished {
            sockets.find(format!(
                "connection {connection}: data after the end, by the lane"
            ));
        }
        sockets.check_urgent(end, count, false);
        let this = &mut sockets.ends[end];
        this.delivered += count;
        this.consumed += count;
        sockets.bytes += count;
        sockets.lane_taken += count;
    }

    /// Whether a call of the program is under way that it waits in, so that it can do nothing else with its stream.
    pub(crate) fn is_busy(&mut self, end: usize) -> bool {
        let Some(lane) = self.lane(end) else {
            return false;
        };
        let (drives, waits) = (lane.drives, lane.is_waiting());
        if drives {
            // Held up: it looks again when it can.
            self.wake_program(end, LOAN);
        }
        drives || waits
    }

    /// How many writes a program makes one after the other.
    pub(crate) fn calls(&mut self, end: usize) -> u64 {
        match self.lane(end) {
            Some(_) => self.rng.within(1, 3),
            None => 1,
        }
    }

    /// Writes at most so many bytes.
    pub(crate) fn write_by_lane(&mut self, end: usize, most: u64) -> Call {
        if most == 0 || self.lane(end).is_none() {
            return Call::Refused;
        }
        let (node, token) = self.place(end);
        if self.rng.percent(EXPOSED) {
            self.expose(end);
        }
        let by_socket = self.rng.percent(BY_SOCKET);
        let (key, offset) = {
            let sockets = self.host.lock();
            let this = &sockets.ends[end];
            (pattern::key(this.connection, this.side), this.written)
        };
        let Some(lane) = self.lane(end).filter(|lane| !lane.public && !by_socket) else {
            return Call::Refused;
        };
        if lane.is_waiting() {
            return Call::Waits;
        }
        lane.waits = None;
        let (written, bell) = (lane.written, Arc::clone(&lane.bell));
        let mut bytes = vec![0; most.min(CALL_BYTES) as usize];
        pattern::fill(key, offset, &mut bytes);
        let (Some(token), Some(engine)) = (token, self.helm(node)) else {
            return Call::Refused;
        };
        let write = Write {
            token,
            bytes: &bytes,
            written,
            bell: &bell,
        };
        let done = engine.put_hot(engine.now(), write);
        let put = match done == bytes.len() {
            true => Put::All,
            false => engine.put(
                engine.now(),
                Write {
                    bytes: &bytes[done..],
                    ..write
                },
            ),
        };
        if done == bytes.len() {
            self.stay_away(node);
        } else if put != Put::All || engine.is_step_due(token) {
            self.poke(node, US);
        }
        let taken = match put {
            Put::All => bytes.len(),
            Put::Full { taken, .. } => done + taken,
            Put::Refused => done,
        };
        {
            let mut sockets = self.host.lock();
            let this = &mut sockets.ends[end];
            this.written += taken as u64;
            this.pulled += taken as u64;
            sockets.lane_put += taken as u64;
        }
        match put {
            Put::Refused => Call::Refused,
            // It drives for a moment, and tries again.
            Put::Full { .. } if self.options.memory.is_some() && self.rng.percent(50) => {
                let after = self.rng.below(LOOKS_APART);
                self.wake_program(end, after.max(US));
                Call::Waits
            }
            Put::Full { ticket, .. } if self.rng.percent(70) => {
                if let Some(lane) = self.lane(end) {
                    lane.waits = Some(ticket);
                }
                Call::Waits
            }
            // It does not wait: the rest goes by the socket.
            Put::Full { .. } => Call::Refused,
            _ => Call::Moved(taken as u64),
        }
    }

    /// The program has written into its socket.
    pub(crate) fn socket_written(&mut self, end: usize) {
        if let Some(lane) = self.lane(end) {
            lane.written += 1;
        }
    }

    /// The program's stream has come to it from another owner.
    pub(crate) fn renew_lane(&mut self, end: usize) {
        let raw = self.host.lock().ends[end].raw;
        let lane = self.new_lane().filter(|_| !raw);
        if let Some(program) = self.programs.get_mut(&end) {
            program.lane = lane;
        }
    }
}

/// A look for what a stream's peer writes, unless the reader will take it straight from there; `false` when a whole step
/// is due.
fn steer_hot(engine: &mut Engine, token: StreamToken, takes_itself: bool) -> bool {
    let Some(id) = engine.id_of(token) else {
        return false;
    };
    let begun = engine.begin_hot();
    let now = engine.now();
    if begun {
        engine.write_hot(now, id);
    }
    if !takes_itself && engine.is_hot(now) && engine.watch_hot(id, 1) == Some(true) {
        engine.read_hot(now, id);
    }
    engine.is_hot(now)
}
