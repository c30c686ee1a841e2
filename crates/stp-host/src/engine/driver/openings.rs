//! Openings: connections that programs of this host ask for, and those that peers ask of them.
//!
//! - Every reply of a connection attempt is answered once: open, failed, given up, or the engine is gone.
//! - A listener's queue is the backlog; openings that do not fit wait in their order.

use stp_core::{ResetReason, StreamId, Time};
use stp_format::SystemName;
use stp_medium::Medium;

use super::{Driver, Opening, Phase};
use crate::control::{ConnectFailure, Connected, StreamToken};
use crate::engine::clock::Clock;
use crate::engine::command::Reply;
use crate::engine::error::{ListenError, connect_failure};
use crate::engine::local::{Delivery, LocalSide, Pulled};
use crate::engine::ports::{Port, Waiting};
use crate::engine::verdict::Ending;

/// Waiting openings tried in one step.
const OPENINGS_MAX: usize = 64;
/// Bytes skipped at once.
const SKIP_BYTES_MAX: u64 = 64 << 10;
const OPENER_GONE: &str = "the program closed its socket while the stream was opened";

impl<M: Medium + ?Sized, C: Clock, L: LocalSide> Driver<M, C, L> {
    pub(super) fn connect(
        &mut self,
        now: Time,
        to: &SystemName,
        port: u16,
        local_port: Option<u16>,
        mut opening: Opening<L::Socket>,
    ) {
        if !matches!(self.phase, Phase::Running) {
            self.local.close(opening.socket, false);
            return; // dropping the reply says it
        }
        match self.node.connect(now, to, port, local_port) {
            Ok(id) => {
                self.local.watch_end(id, &mut opening.socket);
                self.give_up_at = earlier(self.give_up_at, opening.give_up);
                self.openings.insert(id, opening);
            }
            Err(why) => {
                self.local.close(opening.socket, false);
                opening.reply.send(Err(connect_failure(why)));
            }
        }
    }

    pub(super) fn connected(&mut self, now: Time, id: StreamId) {
        let Some(mut opening) = self.openings.remove(&id) else {
            // Cancelled while the answer was on its way.
            self.node.reset(now, id, ResetReason::Aborted);
            return;
        };
        let ready = self.skip(&mut opening).and_then(|()| {
            self.local
                .watch(id, &mut opening.socket)
                .map_err(|error| format!("the stream's local socket cannot be watched: {error}"))
        });
        if let Err(what) = ready {
            self.node.reset(now, id, ResetReason::Aborted);
            self.local.close(opening.socket, false);
            opening.reply.send(Err(ConnectFailure::Failed(what)));
            return;
        }
        let token = Self::next_token(&mut self.last_token);
        let local_port = self.node.stream(id).map_or(0, |info| info.local_port);
        self.keep(id, token, opening.socket, opening.raw);
        self.moves += 1;
        opening.reply.send(Ok(Connected { token, local_port }));
    }

    /// Takes out what filled the program's socket while the stream was being opened: now it is writable.
    fn skip(&mut self, opening: &mut Opening<L::Socket>) -> Result<(), String> {
        let mut space = vec![0; opening.skip.min(SKIP_BYTES_MAX) as usize];
        while opening.skip > 0 {
            let wanted = opening.skip.min(SKIP_BYTES_MAX) as usize;
            match self.local.recv(&mut opening.socket, &mut space[..wanted]) {
                Pulled::Bytes(count) | Pulled::Last(count) => {
                    opening.skip = opening.skip.saturating_sub(count as u64);
                }
                Pulled::Mark => {}
                Pulled::Empty | Pulled::End | Pulled::Broken => {
                    return Err(OPENER_GONE.into());
                }
            }
        }
        Ok(())
    }

    /// A program's socket joins its stream, which was opened without it.
    pub(super) fn join(&mut self, now: Time, token: StreamToken, socket: L::Socket) {
        let found = self.id_of(token);
        let Some(stream) = found.and_then(|id| self.streams.get_mut(&id)) else {
            // It was reset meanwhile: the program shall see that.
            self.local.close(socket, false);
            return;
        };
        let id = found.unwrap_or(StreamId(0));
        if let Err(error) = self.local.join(id, &mut stream.socket, socket) {
            tracing::warn!(volume = %self.label, %error, "a stream's local socket cannot be watched: reset");
            self.node.reset(now, id, ResetReason::Aborted);
            self.forget(id, Some(Ending::Reset(ResetReason::Aborted)));
            return;
        }
        // What came before is handed over now.
        self.node.writable(id);
        self.node.readable(id);
    }

    pub(super) fn cancel(&mut self, now: Time, ticket: u64) {
        let found = self.openings.iter().find(|(_, o)| o.ticket == ticket);
        if let Some(id) = found.map(|(id, _)| *id) {
            self.give_up(now, id, Some(ConnectFailure::TimedOut));
        }
    }

    /// Gives up the openings whose time is over.
    pub(super) fn expire_openings(&mut self, now: Time) {
        if self.give_up_at.is_none_or(|at| at > now) {
            return;
        }
        let is_over = |opening: &Opening<L::Socket>| opening.give_up.is_some_and(|at| at <= now);
        let over = self.openings.iter().filter(|(_, opening)| is_over(opening));
        let over: Vec<StreamId> = over.map(|(id, _)| *id).collect();
        for id in over {
            self.give_up(now, id, Some(ConnectFailure::TimedOut));
        }
        self.give_up_at = self
            .openings
            .values()
            .filter_map(|opening| opening.give_up)
            .min();
    }

    /// The program has closed a socket: nobody waits for its stream any more.
    pub(super) fn opener_gone(&mut self, id: StreamId) {
        if self.openings.contains_key(&id) {
            let why = ConnectFailure::Failed(OPENER_GONE.into());
            self.give_up(self.clock.now(), id, Some(why));
        }
    }

    /// Stops opening a stream; without a reason the dropped reply tells that the engine is gone.
    pub(super) fn give_up(&mut self, now: Time, id: StreamId, why: Option<ConnectFailure>) {
        self.node.reset(now, id, ResetReason::Aborted);
        if let Some(opening) = self.openings.remove(&id) {
            self.local.close(opening.socket, false);
            if let Some(why) = why {
                opening.reply.send(Err(why));
            }
        }
    }

    pub(super) fn listen(
        &mut self,
        port: u16,
        listener: L::Listener,
        raw: bool,
        reply: Reply<Result<(), ListenError>>,
    ) {
        if !matches!(self.phase, Phase::Running) {
            return; // dropping the reply says it
        }
        if let Some(entry) = self.ports.by_number.get_mut(&port) {
            // The run directory settles who holds a port: a second call comes from its new holder.
            entry.listener = listener;
            entry.raw = raw;
            if entry.published {
                reply.send(Ok(()));
            } else {
                entry.replies.push(reply);
            }
            return;
        }
        match self.node.listen(port) {
            Ok(()) => {
                let mut entry = Port::new(listener, raw);
                entry.replies.push(reply);
                self.ports.by_number.insert(port, entry);
            }
            Err(why) => reply.send(Err(ListenError::Node { port, why })),
        }
    }

    pub(super) fn unlisten(&mut self, now: Time, port: u16) {
        let Some(entry) = self.ports.by_number.remove(&port) else {
            return;
        };
        self.node.unlisten(port);
        for reply in entry.replies {
            reply.send(Err(ListenError::Unlistened(port)));
        }
        for waiting in entry.waiting {
            self.node.refuse(now, waiting.id, ResetReason::Refused);
        }
    }

    pub(super) fn incoming(&mut self, now: Time, port: u16, waiting: Waiting) {
        let Some(entry) = self.ports.by_number.get(&port) else {
            self.node.refuse(now, waiting.id, ResetReason::Refused);
            return;
        };
        // Behind those that wait already.
        let tried = if entry.waiting.is_empty() {
            self.open(now, port, waiting)
        } else {
            Err(waiting)
        };
        if let Err(waiting) = tried
            && let Err(waiting) = self.ports.enqueue(port, waiting)
        {
            self.node.refuse(now, waiting.id, ResetReason::BacklogFull);
        }
    }

    /// Hands an opening to its listener; gives it back if it has to wait.
    pub(super) fn open(&mut self, now: Time, port: u16, waiting: Waiting) -> Result<(), Waiting> {
        let Some(entry) = self.ports.by_number.get_mut(&port) else {
            self.node.refuse(now, waiting.id, ResetReason::Refused);
            return Ok(());
        };
        let last_token = &mut self.last_token;
        let verdicts = &self.verdicts;
        let mut given = None;
        // The program may answer, mark and close before this thread goes on.
        let mut token = || {
            let token = Self::next_token(last_token);
            if let Some(unused) = given.replace(token) {
                verdicts.cancel(unused);
            }
            verdicts.open(token);
            token
        };
        let delivery = self.local.deliver(
            &entry.listener,
            &waiting.peer,
            waiting.peer_port,
            &mut token,
        );
        if !matches!(delivery, Delivery::Done(..))
            && let Some(unused) = given
        {
            verdicts.cancel(unused);
        }
        match delivery {
            Delivery::Done(mut socket, token) => {
                entry.went_through();
                let raw = entry.raw;
                if let Err(error) = self.local.watch(waiting.id, &mut socket) {
                    tracing::warn!(volume = %self.label, port, %error, "a connection cannot be watched: refused");
                    self.local.close(socket, false);
                    self.verdicts.cancel(token);
                    self.node.refuse(now, waiting.id, ResetReason::Refused);
                    return Ok(());
                }
                self.keep(waiting.id, token, socket, raw);
                self.node.accept(now, waiting.id);
                Ok(())
            }
            Delivery::Full => {
                entry.back_off(now);
                Err(waiting)
            }
            Delivery::Failed(error) => {
                if entry.is_first_try() {
                    tracing::warn!(volume = %self.label, port, %error, "a connection cannot be handed over yet");
                }
                entry.back_off(now);
                Err(waiting)
            }
            Delivery::Gone => {
                self.node.refuse(now, waiting.id, ResetReason::Refused);
                self.unlisten(now, port);
                Ok(())
            }
        }
    }

    pub(super) fn retry_openings(&mut self, now: Time) {
        for _ in 0..OPENINGS_MAX {
            let Some(port) = self.ports.due(now) else {
                return;
            };
            let entry = self.ports.by_number.get_mut(&port);
            let Some(waiting) = entry.and_then(|entry| entry.waiting.pop_front()) else {
                return;
            };
            if waiting.give_up <= now {
                self.node.refuse(now, waiting.id, ResetReason::BacklogFull);
            } else if let Err(waiting) = self.open(now, port, waiting)
                && let Some(entry) = self.ports.by_number.get_mut(&port)
            {
                entry.waiting.push_front(waiting);
            }
        }
    }
}

fn earlier(one: Option<Time>, other: Option<Time>) -> Option<Time> {
    one.into_iter().chain(other).min()
}
