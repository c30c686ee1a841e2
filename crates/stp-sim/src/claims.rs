//! Claims and seats: the claim moved on step by step, the locks that it asks for, and who sits where.
//!
//! - A seat is one life's: at once where locks are kept, else once both lives could have seen each other.

use stp_core::{ClaimAnswer, ClaimAsk, IoDone, IoFault, Time};
use stp_host::engine::transfer;
use stp_medium::Medium;

use crate::mutation::Mutation;
use crate::options::Locks;
use crate::world::{Node, SECOND, State, US, World};

/// A lock that expires does so after this silence of its holder.
const LOCK_LEASE: u64 = 10 * SECOND;
/// Two lives in one seat, both awake and with a storage that works, must be one after this.
const FENCED_WITHIN: u64 = 15 * SECOND;

impl World {
    /// As `stp_host::engine::attach` does it, without its thread.
    pub(crate) fn step_claim(&mut self, node: usize, now: Time) {
        loop {
            let life = self.nodes[node].life;
            let State::Claiming(claim, medium) = &mut self.nodes[node].state else {
                return;
            };
            while let Some(done) = medium.poll() {
                let result = done.result.map_err(|_| IoFault { errno: 5 });
                let (id, buf) = (done.id.0, done.buf);
                claim.handle_io(now, IoDone { id, buf, result });
            }
            if claim.poll_timeout().is_some_and(|at| at <= now) {
                claim.handle_timeout(now);
            }
            if let Some(ask) = claim.poll_ask() {
                let answer = self.answer(node, life, ask);
                if let State::Claiming(claim, _) = &mut self.nodes[node].state {
                    claim.handle_answer(now, answer);
                }
                continue;
            }
            if let Some(outcome) = claim.outcome() {
                match outcome {
                    Ok(claimed) => self.begin(node, claimed),
                    Err(error) => {
                        self.say(|| format!("node {node} gets no seat: {error}"));
                        self.end_life(node, SECOND);
                    }
                }
                return;
            }
            let Some(io) = claim.poll_io() else {
                if medium.has_done() {
                    continue;
                }
                let due = claim.poll_timeout();
                let this = &mut self.nodes[node];
                this.step_at = due.map(|at| this.rate.world(at).max(self.now + US));
                return;
            };
            let (id, op) = transfer(io);
            medium.submit(id, op);
        }
    }

    fn answer(&mut self, node: usize, life: usize, ask: ClaimAsk) -> ClaimAnswer {
        let locks_of = self.nodes[node].locks_of;
        if self.options.mutation == Some(Mutation::LockForAll) {
            return ClaimAnswer::Held;
        }
        let hostile = self.hostile_seat();
        if matches!(ask, ClaimAsk::LockMedium(seat) if hostile == Some(seat))
            && self.options.locks != Locks::Unsupported
        {
            return ClaimAnswer::Busy;
        }
        let holder = match ask {
            ClaimAsk::LockHost(seat) => *self.host_locks.entry((locks_of, seat.0)).or_insert(life),
            ClaimAsk::LockMedium(_) if self.options.locks == Locks::Unsupported => {
                return ClaimAnswer::Unsupported;
            }
            ClaimAsk::LockMedium(seat) => {
                let holder = *self.medium_locks.entry(seat.0).or_insert(life);
                let silent = self
                    .now
                    .saturating_sub(self.disk.lock().handles[holder].beat_at);
                if self.options.locks == Locks::Expiring && holder != life && silent > LOCK_LEASE {
                    self.disk.lock().figures.fault("lock expired");
                    self.medium_locks.insert(seat.0, life);
                    return ClaimAnswer::Held;
                }
                holder
            }
        };
        if holder == life {
            ClaimAnswer::Held
        } else {
            ClaimAnswer::Busy
        }
    }

    /// Two lives never hold one seat past the fencing rule.
    pub(crate) fn check_seats(&mut self, node: usize) {
        let seat_of = |this: &Node| match &this.state {
            State::Up(engine) => Some(engine.node().seat()),
            _ => None,
        };
        let Some(seat) = seat_of(&self.nodes[node]) else {
            return;
        };
        let holders: Vec<usize> = (0..self.nodes.len())
            .filter(|other| seat_of(&self.nodes[*other]) == Some(seat))
            .collect();
        if holders.len() < 2 {
            self.shared_since.remove(&seat.0);
            return;
        }
        if self.options.locks == Locks::Kept {
            self.find(format!("{holders:?} sit in seat {seat} in spite of locks"));
        }
        let disk = self.disk.lock();
        let disturbed = holders.iter().any(|holder| {
            let this = &self.nodes[*holder];
            let handle = &disk.handles[this.life];
            this.frozen_until > self.now
                || handle.lost_until > self.now
                || handle.slow_until > self.now
        });
        drop(disk);
        let since = *self.shared_since.entry(seat.0).or_insert(self.now);
        if disturbed {
            self.shared_since.insert(seat.0, self.now);
        } else if self.now - since > FENCED_WITHIN {
            self.find(format!("{holders:?} go on sitting in seat {seat}"));
        }
    }

    /// A lock that nobody needs any more.
    pub(crate) fn stale_lock(&self) -> Option<String> {
        let seats = |life: &usize| self.disk.lock().handles[*life].seat.map(|seat| seat.0);
        let host = self.host_locks.iter().map(|((_, seat), life)| (seat, life));
        let mut all = host.chain(&self.medium_locks);
        all.find(|(seat, life)| self.lives[**life].ended.is_some() || seats(life) != Some(**seat))
            .map(|(seat, life)| format!("life {life} still holds the lock of seat {seat}"))
    }
}
