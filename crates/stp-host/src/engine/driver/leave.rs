//! The clean leave: what closed streams hold is delivered, then the seat is signed off.
//!
//! - It ends in bounded time, whatever peers and storage do.

use std::time::Duration;

use stp_core::{ResetReason, StreamId, Time};
use stp_format::ScbState;
use stp_medium::Medium;

use super::{Driver, Over, Phase};
use crate::engine::clock::Clock;
use crate::engine::local::LocalSide;
use crate::engine::verdict::Ending;

/// How long a clean leave may take once nothing is left to deliver.
pub(in crate::engine) const LEAVE_MAX: Duration = Duration::from_secs(5);

impl<M: Medium + ?Sized, C: Clock, L: LocalSide> Driver<M, C, L> {
    /// Takes the ports back, resets what programs still hold open, lets what they closed deliver.
    pub(super) fn begin_leave(&mut self, now: Time, deadline: Time) {
        self.publish_all(now);
        let mut ports: Vec<u16> = self.ports.by_number.keys().copied().collect();
        ports.sort_unstable();
        for port in ports {
            self.unlisten(now, port);
        }
        let openings: Vec<StreamId> = self.openings.keys().copied().collect();
        for id in openings {
            self.give_up(now, id, None);
        }
        // Nobody can take them any more; what their givers closed is delivered as usual.
        self.withdraw_gifts(now);
        for id in self.stream_ids() {
            let Some(stream) = self.streams.get_mut(&id) else {
                continue;
            };
            stream.hangup |= self.local.is_hung_up(&stream.socket);
            if stream.finished {
                // A program that still reads must not wonder why nothing more comes.
                let stopped = Ending::Reset(ResetReason::EngineStopped);
                self.verdicts.decide(stream.token, stopped);
                stream.hangup = true;
                self.node.release(now, id);
            } else if !stream.hangup {
                self.node.reset(now, id, ResetReason::EngineStopped);
                self.forget(id, Some(Ending::Reset(ResetReason::EngineStopped)));
            }
        }
        self.phase = Phase::Lingering { deadline };
    }

    /// Moves a leave on: deliveries first, then the seat.
    pub(super) fn move_on(&mut self, now: Time) {
        match self.phase {
            Phase::Lingering { deadline } => {
                let holding = self.streams.keys().filter(|id| self.holds_bytes(**id));
                let holding = holding.count();
                if holding > 0 && now < deadline {
                    return;
                }
                if holding > 0 {
                    tracing::warn!(
                        volume = %self.label,
                        streams = holding,
                        "left with bytes that the peers have not taken: these streams are reset"
                    );
                }
                for id in self.stream_ids() {
                    self.node.reset(now, id, ResetReason::EngineStopped);
                }
                self.reset_all(ResetReason::EngineStopped);
                self.node.leave(now);
                let deadline = now + LEAVE_MAX;
                self.phase = Phase::Leaving { deadline };
            }
            Phase::Leaving { deadline } if deadline <= now => {
                tracing::warn!(
                    volume = %self.label,
                    "the storage did not take the leave in time: peers will see this seat as dead"
                );
                self.phase = Phase::Over(Over::Left);
            }
            _ => {}
        }
    }

    /// Whether the peer's node has yet to take in what this stream's program sent.
    pub(super) fn holds_bytes(&self, id: StreamId) -> bool {
        let info = self.node.stream(id);
        info.is_some_and(|info| info.state != ScbState::FinWait2)
    }
}
