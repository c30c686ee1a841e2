//! The driver: one node, its medium and its local streams, moved on step by step.
//!
//! - It owns no thread and never waits: whoever calls [`Driver::step`] waits between the steps, until
//!   [`Step::wake_at`] or until something happens.
//! - A step does bounded work in this order: completions, sockets, deadlines, events, reads that are due, deliveries,
//!   pulls, submissions. What exceeds a budget is done in the next step ([`Step::more`]).
//! - A stream's socket is closed only after its last received byte was handed over, or when it is reset.
//! - A program's end without a mark is its death: the peer gets a reset, never a clean end.

mod gifts;
mod hot;
mod lane;
pub(super) mod leave;
mod moves;
mod openings;
mod storage;

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use stp_core::{Claimed, Event, Node, NodeConfig, ResetReason, SERVICE_PORT, StreamId, Time};
use stp_format::SystemName;
use stp_medium::Medium;

use self::hot::Hot;
use self::lane::{LaneEnd, Lanes};
use self::storage::Submitted;
use super::clock::Clock;
use super::command::{Command, Reply};
use super::error::connect_failure;
use super::gifts::Gifts;
use super::local::{LocalSide, Pulled, Pushed};
use super::moves::{Moves, fill};
use super::numbers::{NumberMap, StreamMap};
use super::ports::{Ports, WAIT_MAX, Waiting};
use super::verdict::{Ending, Verdicts};
use crate::control::{ConnectFailure, Connected, StreamToken};

/// Bounds of one step's work for each activity.
const READY_MAX: usize = 512;
const EVENTS_MAX: usize = 512;
const DELIVERIES_MAX: usize = 512;
const PULLS_MAX: usize = 512;
/// Bytes moved in one step each way: a heartbeat never waits behind more.
const STEP_BYTES_MAX: usize = 8 << 20;

/// What a step leaves to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// There is more to do at once: collect what happened, but do not wait.
    pub more: bool,
    /// Nothing happened but looks at a storage that answers at once: others may want the processor.
    pub idle_look: bool,
    /// So many transfers of many units were begun.
    pub large: usize,
    /// The latest time of the next step, if nothing happens before.
    pub wake_at: Option<Time>,
    /// The node is over; no further step does anything.
    pub over: Option<Over>,
}

/// How a node ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// It left its seat.
    Left,
    /// Its seat belongs to another node.
    Fenced,
    /// The volume was formatted anew.
    Reformatted,
}

/// One stream of a program of this host.
#[derive(Debug)]
struct Stream<S> {
    socket: S,
    token: StreamToken,
    raw: bool,
    /// The program's end of file has been seen and passed on.
    finished: bool,
    /// The program can neither send nor receive any more.
    hangup: bool,
    /// The program takes no more: received bytes are thrown away.
    deaf: bool,
    /// Written by the program of another host that had the stream before; sent first.
    carry: VecDeque<u8>,
    lane: LaneEnd,
}

/// A connection that a program of this host waits for.
#[derive(Debug)]
struct Opening<S> {
    ticket: u64,
    socket: S,
    /// Bytes to throw away before the stream's own.
    skip: u64,
    /// When nobody waits for it any more.
    give_up: Option<Time>,
    raw: bool,
    reply: Reply<Result<Connected, ConnectFailure>>,
}

#[derive(Debug)]
enum Phase {
    Running,
    /// Closed streams deliver what they hold until the deadline.
    Lingering {
        deadline: Time,
    },
    Leaving {
        deadline: Time,
    },
    Over(Over),
}

/// A node on its way: generic over its storage, its clock and its local side.
pub struct Driver<M: Medium + ?Sized, C: Clock, L: LocalSide> {
    node: Node,
    clock: C,
    local: L,
    streams: StreamMap<Stream<L::Socket>>,
    /// Each stream by its `token`.
    by_token: NumberMap<StreamToken, StreamId>,
    /// The stream that was last asked for by its token.
    last_asked: Cell<StreamId>,
    openings: BTreeMap<StreamId, Opening<L::Socket>>,
    /// None of them is given up before.
    give_up_at: Option<Time>,
    ports: Ports<L::Listener>,
    gifts: Gifts<L::Handle>,
    journeys: Moves<L>,
    system: SystemName,
    verdicts: Arc<Verdicts>,
    /// The last token given; the next is one further.
    last_token: u64,
    phase: Phase,
    /// Pieces of streams handed over so far, either way.
    moves: u64,
    /// The log says already that the volume has lost its end.
    lacks_told: bool,
    lanes: Lanes,
    hot: Hot,
    label: String,
    /// Last: the buffers under way belong to it.
    medium: Box<M>,
}

impl<M: Medium + ?Sized, C: Clock, L: LocalSide> Driver<M, C, L> {
    /// A node in the seat that was claimed for it. `label` names the volume in messages; tokens follow
    /// `last_token`.
    #[allow(clippy::too_many_arguments, reason = "its parts, each once")]
    pub fn new(
        config: NodeConfig,
        claimed: Claimed,
        medium: Box<M>,
        clock: C,
        local: L,
        verdicts: Arc<Verdicts>,
        label: String,
        last_token: u64,
    ) -> Self {
        let now = clock.now();
        let (system, volume) = (config.system, config.volume);
        let mut node = Node::new(config, claimed, now);
        node.set_buffers(medium.buffers());
        Self {
            node,
            clock,
            local,
            streams: StreamMap::default(),
            by_token: NumberMap::default(),
            last_asked: Cell::new(StreamId(0)),
            openings: BTreeMap::new(),
            give_up_at: None,
            ports: Ports::new(),
            gifts: Gifts::new(),
            journeys: Moves::new(),
            system,
            verdicts,
            last_token,
            phase: Phase::Running,
            moves: 0,
            lacks_told: false,
            lanes: Lanes::default(),
            hot: Hot::new(volume),
            label,
            medium,
        }
    }

    /// The node, for its getters.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Streams, connections that programs wait for, and openings that wait for a listener's queue.
    pub fn left_over(&self) -> (usize, usize, usize) {
        let waiting = self.ports.by_number.values().map(|port| port.waiting.len());
        (self.streams.len(), self.openings.len(), waiting.sum())
    }

    /// The local side, for whoever waits.
    pub fn local_mut(&mut self) -> &mut L {
        &mut self.local
    }

    /// The storage.
    pub fn medium(&self) -> &M {
        &self.medium
    }

    /// The storage, to say how it shall work.
    pub fn medium_mut(&mut self) -> &mut M {
        &mut self.medium
    }

    /// The time that a step would see.
    pub fn now(&self) -> Time {
        self.clock.now()
    }

    /// Does what there is to do, within the budgets.
    pub fn step(&mut self) -> Step {
        self.step_unless(&mut |_, _| false)
    }

    /// As [`Driver::step`], but ends early, before the storage is asked for anything new, if bytes were handed
    /// over and `ready` says that it is what the caller waits for.
    pub fn step_unless(&mut self, ready: &mut dyn FnMut(&mut Self, Time) -> bool) -> Step {
        let mut step = Step {
            more: false,
            idle_look: false,
            large: 0,
            wake_at: None,
            over: None,
        };
        if let Phase::Over(over) = self.phase {
            step.over = Some(over);
            return step;
        }
        let moves = self.moves;
        let mut more = self.reap();
        more |= self.drain_ready();
        let now = self.clock.now();
        if self.node.poll_timeout().is_some_and(|at| at <= now) {
            self.node.handle_timeout(now);
        }
        self.retry_openings(now);
        self.expire_openings(now);
        self.expire_gifts(now);
        self.expire_moves(now);
        self.drain_events(now);
        self.expire_kept(now);
        if self.node.has_deliveries() && !self.medium.is_inline() {
            self.read_ahead(now);
        }
        more |= self.deliver(now);
        if self.moves != moves && ready(self, now) {
            step.more = true;
            return step;
        }
        let now = self.clock.now();
        self.stepped(now);
        more |= self.pull(now);
        let now = self.clock.now();
        let Submitted {
            full,
            complete,
            large,
        } = self.submit(now);
        let now = self.clock.now();
        // What delivering and submitting brought about.
        more |= full | self.drain_events(now);
        self.tell_writers();
        self.move_on(now);
        let wake_at = [
            self.node.poll_timeout(),
            self.ports.poll_timeout(),
            self.give_up_at,
            self.gifts.poll_timeout(),
            self.kept_timeout(),
            (!self.gifts.standing.is_empty()).then_some(self.journeys.sweep_at),
            self.journeys
                .poll_timeout(|name| self.gifts.takers.iter().any(|t| t.name == *name)),
            match self.phase {
                Phase::Lingering { deadline } | Phase::Leaving { deadline } => Some(deadline),
                Phase::Running | Phase::Over(_) => None,
            },
        ];
        let over = match self.phase {
            Phase::Over(over) => Some(over),
            _ => None,
        };
        // A look that costs nothing but a copy; others have had the processor during any other.
        let free = complete && self.medium.wait_fd().is_none();
        Step {
            more: more || complete,
            idle_look: free && !more && self.moves == moves,
            large,
            wake_at: wake_at.into_iter().flatten().min(),
            over,
        }
    }

    /// Does what a handle asks for.
    pub fn handle_command(&mut self, command: Command<L>) {
        let now = self.clock.now();
        match command {
            Command::Listen {
                port,
                listener,
                raw,
                reply,
            } => self.listen(port, listener, raw, reply),
            Command::Unlisten { port } => self.unlisten(now, port),
            Command::Connect {
                ticket,
                to,
                port,
                local_port,
                socket,
                skip,
                within,
                raw,
                reply,
            } => {
                let give_up = within.map(|within| now + within);
                let opening = Opening {
                    ticket,
                    socket,
                    skip,
                    give_up,
                    raw,
                    reply,
                };
                self.connect(now, &to, port, local_port, opening);
            }
            Command::Join { token, socket } => self.join(now, token, socket),
            Command::Cancel { ticket } => self.cancel(now, ticket),
            Command::Abort { token } => {
                if let Some(id) = self.id_of(token) {
                    self.node.reset(now, id, ResetReason::Aborted);
                    self.forget(id, Some(Ending::Reset(ResetReason::Aborted)));
                }
            }
            Command::Give {
                offer,
                end,
                outcome,
                reply,
            } => self.give(now, *offer, end, outcome, reply),
            Command::Withdraw { gift } => self.withdraw_gift(now, gift),
            Command::Take {
                ticket,
                name,
                reply,
            } => self.take(now, ticket, name, reply),
            Command::CancelTake { ticket } => self.cancel_take(ticket),
            Command::Confirm { gift, reply } => self.confirm_gift(now, gift, reply),
            Command::PutBack { gift } => self.put_back(now, gift),
            Command::Peers { reply } => reply.send(self.node.peers().collect()),
            Command::Stats { reply } => reply.send(self.node.stats()),
            Command::Leave { linger } => {
                if matches!(self.phase, Phase::Running) {
                    self.begin_leave(now, now + linger);
                }
            }
        }
    }

    // --- local sockets

    fn drain_ready(&mut self) -> bool {
        for _ in 0..READY_MAX {
            let Some((id, ready)) = self.local.poll_ready() else {
                return false;
            };
            let Some(stream) = self.streams.get_mut(&id) else {
                if ready.hangup {
                    self.opener_gone(id);
                }
                continue;
            };
            if ready.writable {
                self.local.room_seen(id, &mut stream.socket);
                self.node.writable(id);
            }
            if ready.readable && !stream.finished {
                self.local.arrival_seen(&mut stream.socket, ready.plain);
                self.node.readable(id);
            }
            if ready.hangup && !stream.hangup {
                stream.hangup = true;
                if stream.finished && self.local.has_left_unread(&stream.socket) {
                    let now = self.clock.now();
                    self.program_broke(now, id);
                } else if stream.finished {
                    self.node.release(self.clock.now(), id);
                }
            }
        }
        true
    }

    fn deliver(&mut self, now: Time) -> bool {
        // A stream whose opening the node has not told yet has no socket here.
        self.drain_events(now);
        let mut bytes_left = STEP_BYTES_MAX;
        for _ in 0..DELIVERIES_MAX {
            if bytes_left == 0 {
                break;
            }
            let Some((id, bytes)) = self.node.poll_deliver() else {
                return false;
            };
            if self.openings.contains_key(&id) || self.journeys.adopting.contains_key(&id) {
                return true; // there were more events than are taken at once
            }
            let lane = self.streams.get_mut(&id).map(|stream| &mut stream.lane);
            let share = lane.map_or(usize::MAX, |lane| lane.share(now, bytes.len()));
            if share == 0 {
                self.keep_back(now, id);
                continue;
            }
            let bytes = &bytes[..bytes.len().min(share)];
            let single = match bytes {
                [byte] => Some([*byte]),
                _ => None,
            };
            let (bytes, urgent) = match &single {
                Some(byte) => (&byte[..], self.node.is_urgent(id)),
                None => (bytes, false),
            };
            let offered = bytes.len();
            let taken = match self.streams.get_mut(&id) {
                Some(stream) if !stream.deaf => match match bytes {
                    [byte] if urgent => self.local.send_urgent(&mut stream.socket, *byte),
                    bytes => self.local.send(&mut stream.socket, bytes),
                } {
                    Pushed::Bytes(taken) => {
                        if taken < offered {
                            self.local.await_room(id, &mut stream.socket);
                        }
                        stream.lane.told += 1;
                        taken.min(offered)
                    }
                    Pushed::Broken => {
                        stream.deaf = true;
                        offered
                    }
                },
                Some(_) => offered,
                None => {
                    if let Some(service) = self.journeys.services.get_mut(&id) {
                        service.inbox.extend_from_slice(bytes);
                    }
                    offered
                }
            };
            bytes_left = bytes_left.saturating_sub(taken);
            self.moves += 1;
            self.node.delivered(now, id, taken, taken == offered);
            if self.journeys.services.contains_key(&id) {
                self.read_messages(now, id);
            }
        }
        true
    }

    fn pull(&mut self, now: Time) -> bool {
        let mut bytes_left = STEP_BYTES_MAX;
        for _ in 0..PULLS_MAX {
            if bytes_left == 0 {
                break;
            }
            let Some((id, space)) = self.node.poll_fill(now) else {
                return false;
            };
            let pulled = match self.streams.get_mut(&id) {
                Some(stream) if !stream.carry.is_empty() => {
                    Pulled::Bytes(fill(&mut stream.carry, space))
                }
                Some(stream) if !stream.finished => self.local.recv(&mut stream.socket, space),
                Some(_) => Pulled::Empty,
                None => match self.journeys.services.get_mut(&id).map(|s| s.fill(space)) {
                    None | Some(0) => Pulled::Empty,
                    Some(count) => Pulled::Bytes(count),
                },
            };
            match pulled {
                Pulled::Bytes(count) | Pulled::Last(count) => {
                    bytes_left = bytes_left.saturating_sub(count);
                    self.moves += 1;
                    let more = matches!(pulled, Pulled::Bytes(_));
                    self.node.filled(now, id, count, more);
                }
                Pulled::Empty => self.node.filled(now, id, 0, false),
                Pulled::Mark => {
                    self.node.filled(now, id, 0, true);
                    self.node.mark_urgent(id);
                }
                Pulled::End => {
                    self.node.filled(now, id, 0, false);
                    self.program_finished(now, id);
                }
                Pulled::Broken => {
                    self.node.filled(now, id, 0, false);
                    self.program_broke(now, id);
                }
            }
        }
        true
    }

    /// The end of what the program sends.
    fn program_finished(&mut self, now: Time, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        if !stream.raw && !self.verdicts.is_marked(stream.token) {
            self.program_died(now, id);
            return;
        }
        stream.finished = true;
        self.node.finish(now, id);
        if stream.hangup {
            self.node.release(now, id);
        }
    }

    /// The program closed its end with received bytes unread: as a TCP socket does, it resets.
    fn program_broke(&mut self, now: Time, id: StreamId) {
        let Some(stream) = self.streams.get(&id) else {
            return;
        };
        if stream.raw || self.verdicts.is_marked(stream.token) {
            self.node.reset(now, id, ResetReason::Aborted);
            self.forget(id, Some(Ending::Reset(ResetReason::Aborted)));
        } else {
            self.program_died(now, id);
        }
    }

    fn program_died(&mut self, now: Time, id: StreamId) {
        self.node.reset(now, id, ResetReason::ProgramDied);
        self.forget(id, Some(Ending::Reset(ResetReason::ProgramDied)));
    }

    /// Closes the engine's end of a stream: in order if there is no ending to tell.
    fn forget(&mut self, id: StreamId, ending: Option<Ending>) {
        let Some(stream) = self.streams.remove(&id) else {
            return;
        };
        self.by_token.remove(&stream.token);
        let now = self.clock.now();
        self.forget_in_gifts(now, id);
        let clean = ending.is_none();
        if let Some(ending) = ending {
            self.verdicts.decide(stream.token, ending);
        }
        self.verdicts.end(stream.token);
        self.local.close(stream.socket, clean);
    }

    fn keep(&mut self, id: StreamId, token: StreamToken, socket: L::Socket, raw: bool) {
        let stream = Stream {
            socket,
            token,
            raw,
            finished: false,
            hangup: false,
            deaf: false,
            carry: VecDeque::new(),
            lane: LaneEnd::default(),
        };
        self.verdicts.open(token);
        self.by_token.insert(token, id);
        self.streams.insert(id, stream);
    }

    fn next_token(last: &mut u64) -> StreamToken {
        *last = last.wrapping_add(1);
        StreamToken(*last)
    }

    // --- what the node says

    fn drain_events(&mut self, now: Time) -> bool {
        let mut any = false;
        for _ in 0..EVENTS_MAX {
            let Some(event) = self.node.poll_event() else {
                return any;
            };
            any = true;
            self.handle_event(now, event);
        }
        true
    }

    fn handle_event(&mut self, now: Time, event: Event) {
        match event {
            Event::Listening(port) => {
                if let Some(entry) = self.ports.by_number.get_mut(&port) {
                    entry.published = true;
                    for reply in entry.replies.drain(..) {
                        reply.send(Ok(()));
                    }
                }
            }
            Event::Incoming {
                id,
                port,
                peer,
                peer_port,
            } => {
                if port == SERVICE_PORT {
                    return self.service_incoming(now, id);
                }
                let waiting = Waiting {
                    id,
                    peer,
                    peer_port,
                    give_up: now + WAIT_MAX,
                };
                self.incoming(now, port, waiting);
            }
            Event::Connected(id) if self.journeys.adopting.contains_key(&id) => {
                self.adopted(now, id)
            }
            Event::Connected(id) if self.journeys.services.contains_key(&id) => {
                self.node.readable(id)
            }
            Event::Connected(id) => self.connected(now, id),
            Event::Held(id) => self.held(now, id),
            Event::HoldLost(id) => self.hold_lost(now, id),
            Event::Resumed(id) => self.resumed(now, id),
            Event::Moved(id) => self.moved(now, id),
            Event::HoldBroken(id) => self.hold_broken(now, id),
            Event::PeerUp(..) => self.offer_gifts(now),
            Event::Failed(id, why) => {
                self.service_over(now, id);
                if self.adoption_failed(now, id, why) {
                    return;
                }
                if let Some(opening) = self.openings.remove(&id) {
                    self.local.close(opening.socket, false);
                    opening.reply.send(Err(connect_failure(why)));
                }
            }
            Event::PeerFinished(id) => {
                self.service_over(now, id);
                if let Some(stream) = self.streams.get_mut(&id) {
                    self.verdicts.decide(stream.token, Ending::Clean);
                    stream.lane.told += 1;
                    self.local.finish(&mut stream.socket);
                }
            }
            Event::Reset(id, reason) => {
                self.service_over(now, id);
                self.ports.withdraw(id);
                if let Some(opening) = self.openings.remove(&id) {
                    self.local.close(opening.socket, false);
                    let failure = ConnectFailure::Reset(reason.to_string());
                    opening.reply.send(Err(failure));
                }
                self.forget(id, Some(Ending::Reset(reason)));
            }
            Event::Closed(id) => {
                self.service_over(now, id);
                self.ports.withdraw(id);
                self.forget(id, None);
            }
            Event::StorageStalled(errno) => {
                let error = errno.map(std::io::Error::from_raw_os_error);
                tracing::warn!(
                    volume = %self.label,
                    error = error.as_ref().map(tracing::field::display),
                    "the storage does not take writes: streams wait until it does"
                );
            }
            Event::StorageBack => {
                tracing::warn!(volume = %self.label, "the storage takes writes again");
            }
            Event::NameTwice(seat) => tracing::warn!(
                volume = %self.label,
                %seat,
                "another host uses this system's name: give one of them another with --system"
            ),
            Event::PeerBroken(seat, what) => tracing::warn!(
                volume = %self.label,
                %seat,
                what,
                "a node writes what no node should: its streams were reset, run `stp check`"
            ),
            Event::StreamBroken(seat, what, frames) => tracing::warn!(
                volume = %self.label,
                %seat,
                what,
                frames,
                "a node's frames do not fit their streams: those were reset"
            ),
            Event::Fenced(_) => self.lose_seat(Over::Fenced),
            Event::Reformatted => self.lose_seat(Over::Reformatted),
            Event::Left => self.phase = Phase::Over(Over::Left),
            event => tracing::debug!(volume = %self.label, ?event, "a peer changed"),
        }
    }

    fn lose_seat(&mut self, over: Over) {
        self.reset_all(ResetReason::Fenced);
        self.phase = Phase::Over(over);
    }

    /// All streams, in an order that depends on nothing but them: equal runs stay equal.
    fn stream_ids(&self) -> Vec<StreamId> {
        let mut ids: Vec<StreamId> = self.streams.keys().copied().collect();
        ids.sort_unstable();
        ids
    }

    fn reset_all(&mut self, reason: ResetReason) {
        self.publish_all(self.clock.now());
        for id in self.stream_ids() {
            self.forget(id, Some(Ending::Reset(reason)));
        }
        for (_, opening) in std::mem::take(&mut self.openings) {
            self.local.close(opening.socket, false);
            // Dropping the reply tells that the engine is gone.
        }
    }
}

impl<M: Medium + ?Sized, C: Clock, L: LocalSide> Drop for Driver<M, C, L> {
    /// Programs see the end of every stream, even where a forked child holds copies of the sockets.
    fn drop(&mut self) {
        self.reset_all(ResetReason::EngineStopped);
    }
}
