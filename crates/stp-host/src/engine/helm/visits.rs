//! Visits: what a program's thread comes to the helm for, besides bytes by the lane.
//!
//! - Who finds another program's thread driving does not wait for it: its request goes the way of all others, or is left
//!   for whoever drives.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Core, Helm, LOAN_MAX, lock};
use crate::control::StreamToken;
use crate::control::lane::Close;
use crate::engine::clock::Clock;
use crate::engine::command::Command;
use crate::engine::handle::Shared;
use crate::engine::sockets::HostSockets;

/// Writes into a socket of more bytes than this are the engine's thread's to send.
const NUDGE_BYTES_MAX: usize = 16 << 10;
/// How long a stream that is to be published may be held up by somebody who drives.
const PUBLISH_MAX: Duration = Duration::from_millis(20);

impl Helm {
    /// Has a command done for a program's thread that waits for the answer: it drives until it is `answered`, for a
    /// moment at the most. Gives the command back if somebody else drives.
    pub(in super::super) fn drive_for(
        &self,
        shared: &Shared,
        command: Command<HostSockets>,
        time: Duration,
        answered: &mut dyn FnMut() -> bool,
    ) -> Option<Command<HostSockets>> {
        let Some(mut guard) = self.enter() else {
            return Some(command);
        };
        let Some(core) = guard.as_mut() else {
            return Some(command);
        };
        if !self.may_be_inline(core) || self.lent.swap(true, Ordering::SeqCst) {
            return Some(command);
        }
        let mut done = false;
        self.guarded(|| {
            core.obey(shared);
            core.driver.handle_command(command);
            let now = core.driver.now();
            let time = time.min(LOAN_MAX);
            self.steer(shared, core, now, time, None, &mut |_, _| {
                done = done || answered();
                done
            });
        });
        let alone = guard.as_ref().is_some_and(Core::is_alone);
        drop(guard);
        if done && alone {
            // What it writes first is answered.
            self.wrote.store(false, Ordering::Relaxed);
        }
        self.hand_back(shared, self.clock.now(), done && alone);
        None
    }

    /// See [`Lane::close`](crate::control::lane::Lane::close).
    pub(in super::super) fn close(&self, shared: &Shared, close: Close) {
        let Some(mut guard) = self.enter() else {
            // The descriptor's end wakes the engine up, if nothing else does before.
            return self.closes.leave([close]);
        };
        let Some(core) = guard.as_mut() else {
            return;
        };
        self.guarded(|| {
            core.driver.close(core.driver.now(), close);
            match core.is_memory() {
                true => self.send(shared, core),
                // Who is away comes back soon, unless the program's next message takes the end along.
                false if !self.is_away() => self.rouse(shared),
                false => {}
            }
        });
    }

    /// See [`Lane::publish`](crate::control::lane::Lane::publish).
    pub(in super::super) fn publish(&self, shared: &Shared, token: StreamToken, from_now_on: bool) {
        let until = Instant::now() + PUBLISH_MAX;
        loop {
            if let Some(mut guard) = self.enter() {
                if let Some(core) = guard.as_mut() {
                    self.guarded(|| core.driver.publish(token, from_now_on));
                }
                return self.rouse(shared);
            }
            if Instant::now() >= until {
                // Whoever drives is at the storage for long, and nothing comes from there.
                return self.readers.leave([token]);
            }
            std::thread::yield_now();
        }
    }

    /// The program has just written so many bytes into a socket: if the engine's thread is away, they are taken now.
    pub(in super::super) fn nudge(&self, shared: &Shared, bytes: usize) {
        let small = bytes <= NUDGE_BYTES_MAX;
        let again = self.wrote.swap(small, Ordering::Relaxed);
        if !self.is_away() {
            return;
        }
        if again || !small {
            return self.call_back();
        }
        if self.lent.swap(true, Ordering::SeqCst) {
            return;
        }
        let mut alone = false;
        self.guarded(|| {
            if let Some(core) = lock(&self.core).as_mut() {
                let now = core.driver.now();
                self.steer(shared, core, now, Duration::ZERO, None, &mut |_, _| true);
                alone = core.is_alone();
            }
        });
        self.hand_back(shared, self.clock.now(), alone);
    }
}
