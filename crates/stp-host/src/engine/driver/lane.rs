//! The lane: bytes between the programs' memory and the node, past their sockets.
//!
//! - Bytes go past a socket only while nothing of the same direction is in it. Into the program: `told` counts what was
//!   sent into the socket, and a reader that found it empty at that count need not look again. Out of it: the
//!   program counts its own writes into the socket.
//! - What has arrived may be kept for a reader that comes by the lane, never longer than [`KEEP`] after the last one
//!   came: then it goes into the socket, and so it does at once where somebody else may look at that.
//! - A reader that waits in the kernel is told by the socket: with the first bytes of a large piece, the rest is kept.
//! - A writer waits for room only while its stream stands: its place in the stream rings its bell when it goes.

use std::time::Duration;

use stp_core::{StreamId, Time};
use stp_medium::Medium;

use super::{Driver, Stream};
use crate::control::StreamToken;
use crate::control::lane::{Close, Got, Put, Ringer, Write};
use crate::engine::clock::Clock;
use crate::engine::local::LocalSide;

/// How long bytes are kept for a reader that has come by the lane.
const KEEP: Duration = Duration::from_millis(2);
/// A piece that is larger than this is not put into the socket as a whole for a reader that waits there.
const WHOLE_MAX: usize = 16 << 10;
/// What of it is.
const FIRST_BYTES: usize = 4096;

/// Where a stream's reader is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Reader {
    /// Unknown.
    #[default]
    Away,
    /// It drives, and looks for itself after each step.
    Driving,
    /// In the kernel, at the socket.
    Waiting,
}

/// The engine's end of a stream's lane.
#[derive(Debug, Default)]
pub(super) struct LaneEnd {
    /// How often something was sent into the socket, its end included.
    pub(super) told: u64,
    /// What `told` was when a reader found the socket empty.
    empty_at: Option<u64>,
    /// How often the program had written into the socket when that was found empty.
    drained_at: Option<u64>,
    reader: Reader,
    keep_until: Time,
    /// In the driver's list of streams whose bytes are kept.
    kept: bool,
    /// Nothing is kept any more.
    public: bool,
    /// Waits for room.
    writer: Option<Ringer>,
}

impl LaneEnd {
    /// How much of a piece that has arrived goes into the socket now.
    pub(super) fn share(&mut self, now: Time, bytes: usize) -> usize {
        match self.reader {
            Reader::Driving => 0,
            _ if self.public => usize::MAX,
            Reader::Away if now < self.keep_until => 0,
            Reader::Away => usize::MAX,
            Reader::Waiting => {
                self.reader = Reader::Away;
                if bytes <= WHOLE_MAX {
                    return usize::MAX;
                }
                self.keep_until = now + KEEP;
                FIRST_BYTES
            }
        }
    }

    /// Another program has the stream: it counts its own writes, from the beginning, and knows of none before.
    pub(super) fn pass_on(&mut self) {
        self.empty_at = None;
        self.drained_at = None;
        self.reader = Reader::Away;
        self.writer = None;
    }

    fn is_due(&self, now: Time) -> bool {
        self.reader != Reader::Driving && self.keep_until <= now
    }
}

impl<S> Stream<S> {
    /// Whether its program's bytes may go past the socket.
    fn has_lane(&self) -> bool {
        !self.raw && !self.finished && !self.hangup && self.carry.is_empty()
    }

    /// Whether they may now: the socket is known to be empty of what the program wrote there, so often.
    pub(super) fn is_lane_free(&self, written: u64) -> bool {
        self.has_lane() && self.lane.drained_at == Some(written)
    }
}

/// The streams whose lanes wait for something.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    kept: Vec<StreamId>,
    writers: Vec<StreamId>,
}

/// Where a stream's bytes from the program stand.
enum Way {
    /// None is on its way by the socket.
    Free,
    /// Some are, and there is no room for them.
    Behind,
    /// By the socket only.
    Socket,
}

impl<M: Medium + ?Sized, C: Clock, L: LocalSide> Driver<M, C, L> {
    /// Takes bytes that the program writes, as many as there is room for. Without room the bell rings when there is some.
    pub fn put(&mut self, now: Time, write: Write<'_>) -> Put {
        let Write { token, bell, .. } = write;
        let taken = match self.put_some(now, write) {
            Some(taken) if taken == write.bytes.len() => return Put::All,
            Some(taken) => taken,
            None => return Put::Refused,
        };
        let stream = self.id_of(token);
        let Some((id, stream)) = stream.and_then(|id| Some((id, self.streams.get_mut(&id)?)))
        else {
            return Put::Refused;
        };
        let lane = &mut stream.lane;
        if !lane.writer.as_ref().is_some_and(|waits| waits.is_for(bell)) {
            lane.writer = Some(Ringer::new(bell));
        }
        if !self.lanes.writers.contains(&id) {
            self.lanes.writers.push(id);
        }
        let ticket = bell.ticket();
        Put::Full { taken, ticket }
    }

    /// As [`Driver::put`], but nobody is told when there is room: how many were taken. `None`: by the socket.
    pub fn put_some(&mut self, now: Time, write: Write<'_>) -> Option<usize> {
        let id = self.id_of(write.token)?;
        match self.way_from(now, id, write.written) {
            Way::Free => Some(self.node.put(now, id, write.bytes)),
            Way::Behind => Some(0),
            Way::Socket => None,
        }
    }

    /// How bytes that the program writes now keep their order. What it wrote into the socket before is taken first.
    fn way_from(&mut self, now: Time, id: StreamId, written: u64) -> Way {
        for pulled in [false, true] {
            let Some(stream) = self.streams.get_mut(&id) else {
                return Way::Socket;
            };
            if !stream.has_lane() {
                return Way::Socket;
            }
            if stream.is_lane_free(written) {
                return Way::Free;
            }
            if self.local.is_drained(&mut stream.socket) {
                stream.lane.drained_at = Some(written);
                return Way::Free;
            }
            if !pulled {
                self.node.readable(id);
                self.pull(now);
            }
        }
        match self.node.put_room(id) {
            0 => Way::Behind,
            _ => Way::Socket,
        }
    }

    /// Rings for writers whose streams have room again.
    pub(super) fn tell_writers(&mut self) {
        if self.lanes.writers.is_empty() {
            return;
        }
        let mut writers = std::mem::take(&mut self.lanes.writers);
        writers.retain(|id| {
            let Some(stream) = self.streams.get_mut(id) else {
                return false;
            };
            let waits = self.node.put_room(*id) == 0 && !stream.finished && !stream.hangup;
            if !waits {
                stream.lane.writer = None;
            }
            waits
        });
        self.lanes.writers = writers;
    }

    /// Moves what has arrived into the program's memory; see [`Lane::take`](crate::control::lane::Lane::take).
    pub fn take_into(
        &mut self,
        now: Time,
        token: StreamToken,
        into: &mut [u8],
        socket: &mut dyn FnMut(&mut [u8]) -> bool,
    ) -> Got {
        let known = self.id_of(token);
        let Some((id, stream)) = known.and_then(|id| Some((id, self.streams.get_mut(&id)?))) else {
            // It has come to its end.
            return match socket(into) {
                true => Got::Socket,
                false => Got::Nothing,
            };
        };
        let lane = &mut stream.lane;
        if lane.empty_at != Some(lane.told) {
            if socket(into) {
                return Got::Socket;
            }
            lane.empty_at = Some(lane.told);
        }
        let taken = self.take_hot(now, id, into);
        if taken == 0 {
            return Got::Nothing;
        }
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.lane.keep_until = now + KEEP;
        }
        Got::Bytes(taken)
    }

    /// The program has announced its end and closes its socket; where that may hold something, the kernel will tell. See
    /// [`Lane::close`](crate::control::lane::Lane::close).
    pub fn close(&mut self, now: Time, close: Close) {
        let Close {
            token,
            written,
            read,
        } = close;
        let Some(id) = self.id_of(token) else {
            return;
        };
        if !self.verdicts.is_marked(token) {
            return;
        }
        if self.node.has_unread(id) {
            return self.program_broke(now, id);
        }
        let free = matches!(self.way_from(now, id, written), Way::Free);
        let Some(stream) = self.streams.get_mut(&id).filter(|_| free) else {
            return;
        };
        let lane = &stream.lane;
        if read || lane.told == 0 || lane.empty_at == Some(lane.told) {
            (stream.finished, stream.hangup, stream.deaf) = (true, true, true);
            self.local.let_go(&mut stream.socket);
            self.node.release(now, id);
        }
    }

    /// A stream's reader begins to drive; what arrives is kept for it.
    pub fn reader_drives(&mut self, token: StreamToken) {
        self.reader_is(token, Reader::Driving);
    }

    /// A stream's reader has what it waited for.
    pub fn reader_leaves(&mut self, token: StreamToken) {
        self.reader_is(token, Reader::Away);
    }

    /// A stream's reader waits in the kernel: what is there, or comes, is told by the socket.
    pub fn reader_waits(&mut self, token: StreamToken) {
        if let Some(id) = self.reader_is(token, Reader::Waiting) {
            self.release(id);
        }
    }

    fn reader_is(&mut self, token: StreamToken, reader: Reader) -> Option<StreamId> {
        let id = self.id_of(token)?;
        self.streams.get_mut(&id)?.lane.reader = reader;
        Some(id)
    }

    /// Whether a step is due for the sake of a stream whose bytes went past its socket.
    pub fn is_step_due(&self, token: StreamToken) -> bool {
        let id = self.id_of(token);
        id.is_some_and(|id| self.is_step_due_for(id))
    }

    pub(super) fn is_step_due_for(&self, id: StreamId) -> bool {
        self.node.is_put_due(id) || self.node.is_take_due(id)
    }

    /// Puts what is kept of a stream into its socket; `from_now_on`: nothing is kept any more.
    pub fn publish(&mut self, token: StreamToken, from_now_on: bool) {
        let Some(id) = self.id_of(token) else {
            return;
        };
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.lane.public |= from_now_on;
            stream.lane.keep_until = Time::ZERO;
        }
        self.release(id);
        self.deliver(self.clock.now());
    }

    /// Puts what is kept of any stream into its socket.
    pub(super) fn publish_all(&mut self, now: Time) {
        if self.lanes.kept.is_empty() {
            return;
        }
        for id in std::mem::take(&mut self.lanes.kept) {
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.lane.keep_until = Time::ZERO;
                stream.lane.reader = Reader::Away;
                self.release(id);
            }
        }
        self.deliver(now);
    }

    /// Leaves what has arrived where it is.
    pub(super) fn keep_back(&mut self, now: Time, id: StreamId) {
        self.moves += 1;
        self.node.delivered(now, id, 0, false);
        if let Some(stream) = self.streams.get_mut(&id)
            && !std::mem::replace(&mut stream.lane.kept, true)
        {
            self.lanes.kept.push(id);
        }
    }

    /// Nobody has come for it in time.
    pub(super) fn expire_kept(&mut self, now: Time) {
        let mut at = 0;
        while let Some(&id) = self.lanes.kept.get(at) {
            match self.streams.get(&id) {
                Some(stream) if !stream.lane.is_due(now) => at += 1,
                _ => self.release(id),
            }
        }
    }

    /// What was kept goes into the socket with the next delivery.
    fn release(&mut self, id: StreamId) {
        self.lanes.kept.retain(|kept| *kept != id);
        if let Some(stream) = self.streams.get_mut(&id)
            && std::mem::take(&mut stream.lane.kept)
        {
            self.node.writable(id);
        }
    }

    /// When what is kept goes into the sockets, unless somebody comes for it.
    pub(super) fn kept_timeout(&self) -> Option<Time> {
        let kept = self.lanes.kept.iter();
        let lanes = kept.filter_map(|id| Some(&self.streams.get(id)?.lane));
        lanes
            .filter(|lane| lane.reader != Reader::Driving)
            .map(|lane| lane.keep_until)
            .min()
    }
}
