//! One end of one stream, and the slab that holds them all.
//!
//! - Bytes are counted by offsets from the stream's start: `sent <= send_limit`, and
//!   `taken <= recv_next <= recv_limit`.
//! - A stream is in a queue at most once; its flags say in which.

use crate::chunks::Chunks;
use crate::event::{ResetReason, StreamId};
use crate::time::Time;
use alloc::vec::Vec;
use stp_format::segment::StreamKey;
use stp_format::{Adopt, MoveToken, ScbState, SeatId, SystemName};

/// How far the connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Asked for; the system's node is being looked for in a fresh directory.
    Resolving,
    /// Asked for; the open frame is queued or under way.
    Opening,
    /// A peer asks; no program's queue has taken it yet.
    Offered,
    /// Open.
    Open,
}

/// How far sending has come to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SendEnd {
    /// More bytes may come.
    Open,
    /// The program sends no more; the fin frame is queued.
    FinQueued,
    /// The fin frame is in a segment.
    FinSent,
    /// The peer has taken the fin frame in.
    Acknowledged,
}

/// Whether the stream is to have another node at one end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moving {
    No,
    /// This node wants to give it away and has asked the far node to hold it.
    Holding(MoveToken),
    /// The far node holds it: nothing is under way in either direction.
    Still(MoveToken),
    /// This node keeps it after all and waits for the far node's word.
    Resuming,
    /// The far node wants to give it away: this node sends nothing, and will obey whoever adopts it.
    Held(MoveToken),
}

impl Moving {
    /// This node is the giver: nothing is pulled, delivered or allowed to the peer.
    pub(crate) fn is_giving(self) -> bool {
        matches!(self, Self::Holding(_) | Self::Still(_) | Self::Resuming)
    }
}

/// Control frames that wait for the next segment.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pending {
    pub(crate) open: bool,
    pub(crate) accept: bool,
    pub(crate) credit: bool,
    pub(crate) fin: bool,
    pub(crate) urgent: bool,
    pub(crate) adopt: bool,
    pub(crate) hold: bool,
    pub(crate) held: bool,
    pub(crate) resume: bool,
    pub(crate) resumed: bool,
}

impl Pending {
    pub(crate) fn any(self) -> bool {
        self.open
            || self.accept
            || self.credit
            || self.fin
            || self.urgent
            || self.adopt
            || self.hold
            || self.held
            || self.resume
            || self.resumed
    }
}

#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) phase: Phase,
    /// The seat of the node at the other end; this node's own while it is being looked for.
    pub(crate) seat: SeatId,
    /// Its name in frames that *this* node writes.
    pub(crate) key: StreamKey,
    pub(crate) local_port: u16,
    pub(crate) peer_port: u16,
    pub(crate) peer: SystemName,
    /// Row of the socket table.
    pub(crate) row: u32,
    /// Bytes moved either way when the row was last written.
    pub(crate) row_bytes: u64,

    /// Bytes put into segments.
    pub(crate) sent: u64,
    /// Bytes that the peer allows in all.
    pub(crate) send_limit: u64,
    pub(crate) send_end: SendEnd,
    /// The host says that the program's socket has bytes.
    pub(crate) has_bytes: bool,
    /// In the link's queue of streams to pull from.
    pub(crate) in_fill: bool,
    pub(crate) pending: Pending,
    /// In the link's queue of streams with control frames.
    pub(crate) in_control: bool,

    /// Offset of the next byte to arrive.
    pub(crate) recv_next: u64,
    /// Bytes that the program has taken.
    pub(crate) taken: u64,
    /// Bytes allowed to the peer in all.
    pub(crate) recv_limit: u64,
    pub(crate) window: u64,
    /// What the window was at first.
    pub(crate) window_start: u64,
    /// When the limit was last moved on.
    pub(crate) granted_at: Time,
    pub(crate) received: Chunks,
    /// Where the last urgent byte ends that is not handed over yet.
    pub(crate) urgent: Option<u64>,
    /// The program's socket was full.
    pub(crate) blocked: bool,
    /// In the node's queue of streams to deliver to.
    pub(crate) in_deliver: bool,
    pub(crate) fin_received: bool,
    pub(crate) fin_told: bool,
    /// The stream is over; told once what had arrived is delivered.
    pub(crate) reset: Option<ResetReason>,
    /// The program's socket is gone, since when.
    pub(crate) released: Option<Time>,

    pub(crate) moving: Moving,
    /// Since when the far node wants it held.
    pub(crate) held_at: Time,
    /// With which words this node adopts it, until they are answered.
    pub(crate) adopt: Option<Adopt>,
    /// `local_port` was taken for it by this node.
    pub(crate) owns_port: bool,
}

impl Stream {
    /// The state by the names of TCP.
    pub(crate) fn state(&self) -> ScbState {
        match (self.phase, self.send_end, self.fin_received) {
            (Phase::Resolving | Phase::Opening, ..) => ScbState::SynSent,
            (Phase::Offered, ..) => ScbState::SynReceived,
            (Phase::Open, SendEnd::Open, false) => ScbState::Established,
            (Phase::Open, SendEnd::Open, true) => ScbState::CloseWait,
            (Phase::Open, SendEnd::Acknowledged, _) => ScbState::FinWait2,
            (Phase::Open, _, false) => ScbState::FinWait1,
            (Phase::Open, _, true) => ScbState::LastAck,
        }
    }

    /// Whether bytes may be pulled from the program's socket now.
    pub(crate) fn can_fill(&self) -> bool {
        self.phase == Phase::Open
            && self.has_bytes
            && self.send_end == SendEnd::Open
            && self.sent < self.send_limit
            && self.reset.is_none()
            && self.moving == Moving::No
    }

    /// How many bytes of the program may be put into segments now, past its socket.
    pub(crate) fn put_credit(&self) -> usize {
        let open = self.phase == Phase::Open
            && self.send_end == SendEnd::Open
            && self.reset.is_none()
            && self.moving == Moving::No
            && !self.pending.any();
        match open {
            true => usize::try_from(self.send_limit - self.sent).unwrap_or(usize::MAX),
            false => 0,
        }
    }

    /// Whether so many bytes may come from this offset on.
    pub(crate) fn takes(&self, offset: u64, bytes: usize) -> bool {
        self.phase == Phase::Open
            && !matches!(self.moving, Moving::Held(_))
            && !self.fin_received
            && offset == self.recv_next
            && offset.saturating_add(bytes as u64) <= self.recv_limit
    }

    /// The control frames that may be sent now: a stream that is held does not finish before it is known whose
    /// it is.
    pub(crate) fn due(&self) -> Pending {
        let may_finish = self.moving == Moving::No || self.pending.hold;
        Pending {
            fin: self.pending.fin && may_finish,
            ..self.pending
        }
    }

    /// Whether the far node's not knowing the stream any more, which it says to a hold frame, means only that it has
    /// come to its end there: both ends are known on both sides.
    pub(crate) fn is_through_elsewhere(&self) -> bool {
        let sent = matches!(self.send_end, SendEnd::FinSent | SendEnd::Acknowledged);
        matches!(self.moving, Moving::Holding(_) | Moving::Resuming) && sent && self.fin_received
    }

    /// Whether the peer shall be allowed more: half the window is used up, or a quarter where bytes come in runs, which are
    /// large: it would have no room for the next.
    pub(crate) fn wants_credit(&self, in_runs: bool) -> bool {
        let used = match in_runs {
            true => self.window / 4,
            false => self.window / 2,
        };
        !self.fin_received
            && !self.moving.is_giving()
            && self.recv_limit - self.taken <= self.window - used
    }
}

fn place_of(id: StreamId) -> usize {
    id.0 as u32 as usize
}

fn tenant_of(id: StreamId) -> u32 {
    (id.0 >> 32) as u32
}

/// All streams of a node. A handle's low half is a place, its high half counts the place's tenants.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    slots: Vec<(u32, Option<Stream>)>,
    free: Vec<u32>,
}

impl Streams {
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(crate) fn insert(&mut self, stream: Stream) -> StreamId {
        let place = self.free.pop().unwrap_or_else(|| {
            self.slots.push((0, None));
            (self.slots.len() - 1) as u32
        });
        let (tenant, slot) = &mut self.slots[place as usize];
        *tenant = tenant.wrapping_add(1);
        *slot = Some(stream);
        StreamId(u64::from(*tenant) << 32 | u64::from(place))
    }

    pub(crate) fn get(&self, id: StreamId) -> Option<&Stream> {
        let (tenant, stream) = self.slots.get(place_of(id))?;
        stream.as_ref().filter(|_| *tenant == tenant_of(id))
    }

    pub(crate) fn get_mut(&mut self, id: StreamId) -> Option<&mut Stream> {
        let (tenant, stream) = self.slots.get_mut(place_of(id))?;
        stream.as_mut().filter(|_| *tenant == tenant_of(id))
    }

    pub(crate) fn remove(&mut self, id: StreamId) -> Option<Stream> {
        let (tenant, slot) = self.slots.get_mut(place_of(id))?;
        let stream = slot.take_if(|_| *tenant == tenant_of(id))?;
        self.free.push(place_of(id) as u32);
        Some(stream)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (StreamId, &Stream)> {
        self.slots
            .iter()
            .enumerate()
            .filter_map(|(place, (tenant, slot))| {
                let id = StreamId(u64::from(*tenant) << 32 | place as u64);
                slot.as_ref().map(|stream| (id, stream))
            })
    }
}
