//! What a node tells its host, and why things end.

use core::fmt;
use stp_format::{Incarnation, SeatId, SystemName};

/// A stream's handle; never reused within a node's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u64);

/// Something that the host must know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A port stands on the volume: peers can connect to it.
    Listening(u16),
    /// A peer asks for a connection. Answer with `accept` or `refuse`.
    Incoming {
        /// The new stream.
        id: StreamId,
        /// The port asked for.
        port: u16,
        /// Who asks.
        peer: SystemName,
        /// From which port.
        peer_port: u16,
    },
    /// A connection asked for is open.
    Connected(StreamId),
    /// A connection asked for did not come about; the stream is gone.
    Failed(StreamId, ConnectError),
    /// The peer has finished sending, and every byte before that was handed out.
    PeerFinished(StreamId),
    /// The stream is over, after every byte that had arrived was handed out; it is gone.
    Reset(StreamId, ResetReason),
    /// Both directions are done and acknowledged; the stream is gone.
    Closed(StreamId),
    /// A stream that was to be held is still: [`crate::Node::stillness`] has what its new owner needs.
    Held(StreamId),
    /// The far end of a stream that was to be held moves itself, and goes first: try again later.
    HoldLost(StreamId),
    /// A stream that was held goes on as before.
    Resumed(StreamId),
    /// A stream that was held has another owner; it is gone here.
    Moved(StreamId),
    /// A stream that was held is over. What had arrived is still handed out, then [`Event::Reset`] tells why.
    HoldBroken(StreamId),
    /// A peer appeared or is heard again.
    PeerUp(SeatId, SystemName),
    /// A peer is silent; its streams wait.
    PeerSuspect(SeatId, SystemName),
    /// A peer is gone; its streams were reset.
    PeerGone(SeatId, SystemName, ResetReason),
    /// A peer wrote what no node writes; its streams were reset.
    PeerBroken(SeatId, &'static str),
    /// A peer's frame did not fit its stream, which was reset; how many such frames it has sent by now. Told
    /// for the first, the second, the fourth, and so on.
    StreamBroken(SeatId, &'static str, u64),
    /// A live node of another host bears this system's name.
    NameTwice(SeatId),
    /// Another incarnation sits in this seat: the node must stop at once.
    Fenced(Incarnation),
    /// A node of another volume sits in this seat, because the volume was formatted anew: the node must stop at once.
    Reformatted,
    /// The node's own writes have not succeeded for a while; it judges nobody.
    StorageStalled(Option<i32>),
    /// The node's own writes succeed again.
    StorageBack,
    /// The node has left; nothing more will come.
    Left,
}

/// Why a connection did not come about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectError {
    /// No node of such a system sits on the volume.
    UnknownSystem,
    /// The system has no living node.
    SystemDead,
    /// Nobody listens on that port.
    Refused,
    /// The node has as many streams as its socket table has rows.
    TooManyStreams,
    /// No extent is left for a link to that peer.
    NoRing,
    /// The system's node wrote what no node writes, and is cut off for a while.
    PeerBroken,
    /// The peer ended it meanwhile.
    Reset(ResetReason),
    /// This node is leaving or fenced.
    Stopped,
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownSystem => f.write_str("no such system on this volume"),
            Self::SystemDead => f.write_str("the system has left or is dead"),
            Self::Refused => f.write_str("nobody listens on that port"),
            Self::TooManyStreams => f.write_str("this node's socket table is full"),
            Self::NoRing => f.write_str("this seat has no space left for another link"),
            Self::PeerBroken => f.write_str("the system's engine breaks the protocol"),
            Self::Reset(reason) => write!(f, "reset while connecting: {reason}"),
            Self::Stopped => f.write_str("this engine is stopping"),
        }
    }
}

impl core::error::Error for ConnectError {}

/// Why a stream cannot be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HoldError {
    /// It is over, or not open yet.
    Over,
    /// It is being moved already, by one end or the other.
    Busy,
    /// The far system's node does not know how streams move.
    OldPeer(SystemName),
}

impl fmt::Display for HoldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Over => f.write_str("the stream is over"),
            Self::Busy => f.write_str("the stream is being moved already"),
            Self::OldPeer(system) => write!(
                f,
                "the engine of {system} is of a release that cannot move streams: update it"
            ),
        }
    }
}

impl core::error::Error for HoldError {}

/// Why a port cannot be listened on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenError {
    /// This node listens on it already.
    InUse,
    /// The node's socket table has no free row.
    TableFull,
    /// This node is leaving or fenced.
    Stopped,
}

impl fmt::Display for ListenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::InUse => "the port is in use on this system",
            Self::TableFull => "this node's socket table is full",
            Self::Stopped => "this engine is stopping",
        })
    }
}

impl core::error::Error for ListenError {}

/// Why a stream was reset. The numbers travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum ResetReason {
    /// Nobody listens on the port.
    Refused = 1,
    /// The program ended without closing the stream.
    ProgramDied = 2,
    /// The program asked for it, or closed with bytes unread.
    Aborted = 3,
    /// The other side broke the protocol.
    Protocol = 4,
    /// The other side's engine left.
    EngineStopped = 5,
    /// The receiver of a frame knows no such stream.
    UnknownStream = 6,
    /// The answering node has no room for another stream.
    TooManyStreams = 7,
    /// The other side's node died, or a new one took its seat.
    PeerDied = 8,
    /// This node lost its seat.
    Fenced = 9,
    /// The program's queue did not take the connection in time.
    BacklogFull = 10,
    /// The stream to be adopted is not held for that: it stayed with its owner, or went to another.
    NotHeld = 11,
}

impl ResetReason {
    /// From the number that travelled; unknown ones are [`ResetReason::Aborted`].
    pub fn from_number(number: u64) -> Self {
        match number {
            1 => Self::Refused,
            2 => Self::ProgramDied,
            4 => Self::Protocol,
            5 => Self::EngineStopped,
            6 => Self::UnknownStream,
            7 => Self::TooManyStreams,
            8 => Self::PeerDied,
            9 => Self::Fenced,
            10 => Self::BacklogFull,
            11 => Self::NotHeld,
            _ => Self::Aborted,
        }
    }
}

impl fmt::Display for ResetReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Refused => "refused",
            Self::ProgramDied => "the program at the other end died",
            Self::Aborted => "aborted by the other end",
            Self::Protocol => "protocol violated",
            Self::EngineStopped => "the engine at the other end stopped",
            Self::UnknownStream => "the other end does not know the stream",
            Self::TooManyStreams => "the other end has too many streams",
            Self::PeerDied => "the engine at the other end died",
            Self::Fenced => "this engine lost its seat to another",
            Self::BacklogFull => "the listener's queue stayed full",
            Self::NotHeld => "the stream was not to be had any more",
        })
    }
}
