//! What must hold at the end: everything ends, fresh streams succeed, nothing is left.

use stp_core::Load;
use stp_format::{Place, SeatRecord, SeatState, TableUnit, UNIT_BYTES};

use crate::mutation::Mutation;
use crate::world::{MS, Phase, SECOND, State, VOLUME, World};

impl World {
    fn dead(&self) -> u64 {
        self.options.timings.dead.as_nanos() as u64
    }

    /// Whether the run goes on.
    pub(crate) fn phase_moves_on(&mut self) -> bool {
        let passed = self.now - self.phase_at;
        match self.phase {
            Phase::Breaking => {}
            Phase::Healing => {
                // What was late may be dead by then, and orphans have their time.
                let orphan = self.options.timings.orphan.as_nanos() as u64;
                let late = self.options.storage.late_ms * MS;
                if self.open.is_empty() {
                    self.enter(Phase::Settling);
                } else if passed > 3 * self.dead() + orphan + late + 120 * SECOND {
                    let stuck = self.open.first().copied().unwrap_or_default();
                    let what = self.describe(stuck);
                    self.find(format!("{} streams do not end: {what}", self.open.len()));
                }
            }
            Phase::Settling => {
                let late = self.options.storage.late_ms * MS;
                if self.settled_segments.is_none() && passed > self.dead() + late + 5 * SECOND {
                    self.settled_segments = Some(self.disk.lock().figures.segments);
                }
                if passed > 2 * self.dead() + late + 10 * SECOND {
                    for node in 0..self.nodes.len() {
                        if self.nodes[node].spare {
                            continue;
                        }
                        if !matches!(self.nodes[node].state, State::Up(_)) {
                            let claim = match &self.nodes[node].state {
                                State::Claiming(claim, _) => format!("{claim:?}"),
                                _ => "it is not there".into(),
                            };
                            self.find(format!("node {node} got no seat: {claim}"));
                        } else if !self.nodes[node].published {
                            self.find(format!("node {node}'s listener does not get published"));
                        }
                    }
                    let before = self.settled_segments.unwrap_or_default();
                    let segments = self.disk.lock().figures.segments - before;
                    if segments > 20 * self.nodes.len() as u64 {
                        self.find(format!(
                            "{segments} segments were written while no stream was open"
                        ));
                    }
                    self.enter(Phase::Probing);
                    for client in 0..self.nodes.len() {
                        for server in 0..self.nodes.len() {
                            let spare = self.nodes[client].spare || self.nodes[server].spare;
                            if !spare && self.nodes[client].system != self.nodes[server].system {
                                self.connect(client, server, true);
                            }
                        }
                    }
                }
            }
            Phase::Probing => {
                if self.open.is_empty() {
                    self.enter(Phase::Quieting);
                } else if passed > 30 * SECOND {
                    let stuck = self.open.first().copied().unwrap_or_default();
                    let what = self.describe(stuck);
                    self.find(format!("a fresh stream does not get through: {what}"));
                }
            }
            Phase::Quieting => {
                let orphan = self.options.timings.orphan.as_nanos() as u64;
                let quiet = self.nodes.iter().all(|node| match &node.state {
                    State::Up(engine) => engine.node().is_quiet(),
                    _ => true,
                });
                if quiet && passed > 4 * SECOND {
                    self.check_tables();
                    self.check_empty();
                    self.enter(Phase::Leaving);
                    for node in 0..self.nodes.len() {
                        if !self.nodes[node].spare {
                            self.leave(node);
                        }
                    }
                } else if passed > 10 * SECOND + orphan {
                    let loud: Vec<_> = self
                        .nodes
                        .iter()
                        .map(|node| match &node.state {
                            State::Up(engine) => {
                                (engine.node().is_quiet(), engine.node().stats().streams)
                            }
                            _ => (true, 0),
                        })
                        .collect();
                    self.find(format!("streams are left: (quiet, streams) {loud:?}"));
                }
            }
            Phase::Leaving => {
                let up = self
                    .nodes
                    .iter()
                    .any(|node| !matches!(node.state, State::Off));
                if !up {
                    self.check_left();
                    return false;
                }
                if passed > 20 * SECOND {
                    self.find("a node does not get away".into());
                }
            }
        }
        true
    }

    /// The newest record of a seat as it stands.
    pub(crate) fn record(&self, seat: stp_format::SeatId) -> Option<SeatRecord> {
        let disk = self.disk.lock();
        let length = usize::from(disk.geometry.record_units) * UNIT_BYTES;
        let copies = (0..2).filter_map(|copy| {
            let place = Place::Seat { seat, copy };
            let at = disk.geometry.offset(place, 1)? as usize;
            let bytes = disk.bytes.get(at..at + length)?;
            SeatRecord::decode(bytes, VOLUME, &disk.geometry, seat).ok()
        });
        copies.max_by_key(SeatRecord::age_key)
    }

    /// Every row of the socket tables is free but the listeners'.
    fn check_tables(&mut self) {
        for node in 0..self.nodes.len() {
            let Some(seat) = self.seat(node) else {
                continue;
            };
            let Some(record) = self.record(seat) else {
                self.find(format!("node {node}'s record cannot be read"));
                return;
            };
            let disk = self.disk.lock();
            let mut rows = 0;
            for unit in 0..u32::from(disk.geometry.table_units) {
                let copies = (0..2).filter_map(|copy| {
                    let place = Place::Table { seat, copy, unit };
                    let at = disk.geometry.offset(place, 1)? as usize;
                    let bytes = disk.bytes.get(at..at + UNIT_BYTES)?;
                    TableUnit::decode(bytes, VOLUME, seat, unit).ok()
                });
                let newest = copies
                    .filter(|table| table.incarnation == record.incarnation)
                    .max_by_key(TableUnit::age_key);
                let used = newest.map_or(0, |table| table.scbs.iter().flatten().count());
                rows += used;
            }
            if self.options.mutation == Some(Mutation::LeakedRow) {
                rows += 1;
            }
            drop(disk);
            // A spoiled table is not written again before it changes: the older copy counts until then.
            let hosts = &self.options.hosts;
            let storage = &self.options.storage;
            let spoiled = hosts.rot + hosts.rollback + hosts.shrink > 0
                || storage.misdirected_write + storage.neighbours > 0;
            if rows != 1 && !spoiled {
                self.find(format!(
                    "node {node}: {rows} rows of its socket table are in use, 1 listener is there"
                ));
            }
        }
    }

    /// No engine holds anything of any stream, and no socket, queue or lock is left.
    fn check_empty(&mut self) {
        let mut found = None;
        for (number, node) in self.nodes.iter().enumerate() {
            let State::Up(engine) = &node.state else {
                continue;
            };
            let load = engine.node().load();
            if load != Load::default() || engine.left_over() != (0, 0, 0) {
                found = Some(format!(
                    "node {number} holds {:?} and {load:?}",
                    engine.left_over()
                ));
            }
        }
        let sockets = self.host.lock();
        let open = |end: &crate::local::End| end.stream.is_some() && !end.engine_closed;
        if let Some(end) = sockets.ends.iter().find(|end| open(end)) {
            found = Some(format!("a socket is left open: {end:?}"));
        }
        if let Some(queue) = sockets
            .backlogs
            .iter()
            .find(|queue| !queue.waiting.is_empty())
        {
            found = Some(format!("a listener's queue is left: {queue:?}"));
        }
        let open = |end: &&usize| !sockets.ends[**end].engine_closed;
        if let Some(end) = sockets.shared.iter().find(open) {
            let end = &sockets.ends[*end];
            found = Some(format!("a socket that was given is left open: {end:?}"));
        }
        drop(sockets);
        let found = found.or_else(|| self.gifts.left_over(self.now));
        if let Some(found) = found.or_else(|| self.stale_lock()) {
            self.find(found);
        }
    }

    /// Every seat says that its node has left.
    fn check_left(&mut self) {
        for node in 0..self.nodes.len() {
            if self.nodes[node].spare {
                continue;
            }
            let life = self.nodes[node].life;
            let seat = self.disk.lock().handles[life].seat;
            let Some(record) = seat.and_then(|seat| self.record(seat)) else {
                self.find(format!("node {node} left no record"));
                return;
            };
            if record.state != SeatState::Left {
                self.find(format!(
                    "node {node} left, its record says {:?}",
                    record.state
                ));
            }
        }
    }
}
