//! Ports: the listeners of this host that a node publishes, and the openings that wait for them.
//!
//! - The listener's own queue is the backlog; what does not fit waits here, at most [`WAITING_MAX`] a
//!   port and [`WAIT_MAX`] long.
//! - One port's full queue delays no other port.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use stp_core::{StreamId, Time};
use stp_format::SystemName;

use super::command::Reply;
use super::error::ListenError;

/// Openings that wait for room in one listener's queue; more are refused.
pub(super) const WAITING_MAX: usize = 1024;
/// How long an opening waits for room before it is refused.
pub(super) const WAIT_MAX: Duration = Duration::from_secs(60);
/// The first pause before a full queue is tried again, and the longest.
const RETRY_MIN: Duration = Duration::from_millis(1);
const RETRY_MAX: Duration = Duration::from_millis(50);

/// An opening that the listener has no room for yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    pub(super) id: StreamId,
    pub(super) peer: SystemName,
    pub(super) peer_port: u16,
    pub(super) give_up: Time,
}

/// One published port.
#[derive(Debug)]
pub(super) struct Port<Listener> {
    pub(super) listener: Listener,
    pub(super) raw: bool,
    pub(super) published: bool,
    pub(super) replies: Vec<Reply<Result<(), ListenError>>>,
    pub(super) waiting: VecDeque<Waiting>,
    retry_at: Time,
    pause: Duration,
}

impl<Listener> Port<Listener> {
    pub(super) fn new(listener: Listener, raw: bool) -> Self {
        Self {
            listener,
            raw,
            published: false,
            replies: Vec::new(),
            waiting: VecDeque::new(),
            retry_at: Time::ZERO,
            pause: RETRY_MIN,
        }
    }

    /// The queue was full: waits longer each time.
    pub(super) fn back_off(&mut self, now: Time) {
        self.retry_at = now + self.pause;
        self.pause = (self.pause * 2).min(RETRY_MAX);
    }

    /// Nothing has stood in the way since the last success.
    pub(super) fn is_first_try(&self) -> bool {
        self.pause == RETRY_MIN
    }

    /// The queue had room.
    pub(super) fn went_through(&mut self) {
        self.pause = RETRY_MIN;
    }
}

/// All published ports.
#[derive(Debug)]
pub(super) struct Ports<Listener> {
    pub(super) by_number: HashMap<u16, Port<Listener>>,
    /// Ports with openings that wait.
    backlogged: Vec<u16>,
}

impl<Listener> Ports<Listener> {
    pub(super) fn new() -> Self {
        Self {
            by_number: HashMap::new(),
            backlogged: Vec::new(),
        }
    }

    /// Puts an opening behind the others; gives it back if too many wait.
    pub(super) fn enqueue(&mut self, port: u16, waiting: Waiting) -> Result<(), Waiting> {
        let Some(entry) = self.by_number.get_mut(&port) else {
            return Err(waiting);
        };
        if entry.waiting.len() >= WAITING_MAX {
            return Err(waiting);
        }
        entry.waiting.push_back(waiting);
        if !self.backlogged.contains(&port) {
            self.backlogged.push(port);
        }
        Ok(())
    }

    /// An opening was withdrawn.
    pub(super) fn withdraw(&mut self, id: StreamId) {
        for port in &self.backlogged {
            if let Some(entry) = self.by_number.get_mut(port) {
                entry.waiting.retain(|waiting| waiting.id != id);
            }
        }
    }

    /// The next port whose waiting openings are to be tried now.
    pub(super) fn due(&mut self, now: Time) -> Option<u16> {
        let by_number = &self.by_number;
        self.backlogged.retain(|port| {
            by_number
                .get(port)
                .is_some_and(|entry| !entry.waiting.is_empty())
        });
        let due = |port: &&u16| by_number.get(port).is_some_and(|p| p.retry_at <= now);
        self.backlogged.iter().find(due).copied()
    }

    /// When the next port is due.
    pub(super) fn poll_timeout(&self) -> Option<Time> {
        let entries = self.backlogged.iter();
        entries
            .filter_map(|port| self.by_number.get(port))
            .filter(|entry| !entry.waiting.is_empty())
            .map(|entry| entry.retry_at)
            .min()
    }
}
