//! The calls that a program makes to its engine, whichever way it reaches it.
//!
//! - [`Calls`] has two implementations: the handle of an engine inside this process, and the
//!   [`Client`](super::Client) of one shared by the host. Both behave alike.
//! - Every method may be called from many threads at once; a call that waits delays no other.
//! - A call to an engine that is gone answers with an error, never by waiting for ever.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use stp_format::{ProcessName, SystemName};

use super::lane::Lane;

/// One stream's name between a program and its engine.
///
/// An engine never uses a token twice, and two engines of one host practically never share one:
/// an engine that is asked for a token that it did not give answers [`Verdict::Reset`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StreamToken(pub u64);

impl fmt::Display for StreamToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// What an engine knows about the peer's direction of a stream whose bytes have all been handed out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// Nothing has ended it.
    Open,
    /// The peer finished it in order.
    Clean,
    /// It broke; the text says how, as the end of a sentence.
    Reset(String),
}

/// A connection that stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connected {
    /// Its name in further calls.
    pub token: StreamToken,
    /// The port of this end.
    pub local_port: u16,
}

/// Why a connection did not come to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConnectFailure {
    /// The group has no such system.
    UnknownSystem,
    /// The system is known, but none of its nodes is alive.
    SystemDead,
    /// Nobody listens there.
    Refused,
    /// No answer in time.
    TimedOut,
    /// Every local port is taken.
    NoPort,
    /// The socket table of this node's seat is full.
    TooManyStreams,
    /// The peer answered with a reset; the text says how, as the end of a sentence.
    Reset(String),
    /// The engine is gone; the text says which and what to do.
    EngineGone(String),
    /// The engine could not do it; the text says why.
    Failed(String),
}

/// How a peer's life is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PeerState {
    /// Its heart beats.
    Up,
    /// It has missed a beat.
    Suspect,
    /// Its lease is over.
    Dead,
    /// It left in order.
    Left,
}

/// Another node of the group, as this engine sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Its seat.
    pub seat: u16,
    /// Its system.
    pub system: String,
    /// Its life's number.
    pub incarnation: u64,
    /// How it is judged.
    pub state: PeerState,
    /// The ports that its programs listen on.
    pub ports: Vec<u16>,
}

/// How a stream is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Opening {
    /// The end of the program's socket is the end of the stream, without [`Calls::mark_clean`].
    pub raw: bool,
    /// How long to wait; `None`: as long as the engine itself does.
    pub timeout: Option<Duration>,
    /// From which port; `None`: any free one.
    pub local_port: Option<u16>,
    /// So many bytes are in the engine's end already and are not the stream's: they keep the program's end from
    /// being writable, and are thrown away when the stream is open.
    pub skip: u64,
}

/// A gift's number with the engine that holds it; never used twice by one engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GiftId(pub u64);

/// One end of a stream, as programs name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndName {
    /// The system.
    pub system: SystemName,
    /// The port.
    pub port: u16,
}

/// A stream that is to have another owner.
#[derive(Clone, Copy, Debug)]
pub struct Offer {
    /// Which.
    pub token: StreamToken,
    /// The system whose programs may take it.
    pub to: SystemName,
    /// The name by which they take.
    pub name: ProcessName,
    /// How long it stands.
    pub wait: Duration,
    /// The stream's address on the giver's side.
    pub local: EndName,
    /// The far end.
    pub peer: EndName,
}

/// A gift that was handed to a taker, who has to confirm it before it is theirs.
#[derive(Debug)]
pub struct Handed {
    /// Which.
    pub gift: GiftId,
    /// The program's end of the stream. Not to be used before [`Calls::confirm`] has succeeded.
    pub end: OwnedFd,
}

/// A stream that has changed its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Its name in further calls; the giver's means nothing any more.
    pub token: StreamToken,
    /// Its address on the giver's side, which it keeps.
    pub local: EndName,
    /// The far end.
    pub peer: EndName,
}

/// What became of a gift: one byte that the giver's notice socket receives, followed by another as urgent
/// data and the end. An end without a byte: the engine is gone, and the stream with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Outcome {
    /// Another program owns the stream now: the giver may only close it.
    Taken = b'T',
    /// Nobody took it in time: the giver still has it.
    Expired = b'X',
    /// The giver took it back.
    Withdrawn = b'W',
    /// The stream broke before somebody took it.
    Broken = b'B',
    /// It cannot be moved there: the giver still has it.
    Impossible = b'I',
}

impl Outcome {
    /// From the byte that was received.
    pub fn from_byte(byte: u8) -> Option<Self> {
        let all = [
            Self::Taken,
            Self::Expired,
            Self::Withdrawn,
            Self::Broken,
            Self::Impossible,
        ];
        all.into_iter().find(|outcome| *outcome as u8 == byte)
    }
}

/// Told how a connection attempt went: once, by whichever thread knows it, which it must not keep.
pub type ConnectReply = Box<dyn FnOnce(Result<Connected, ConnectFailure>) + Send>;

/// What an engine in this process can do besides: open streams without a thread that waits for each.
pub trait ConnectLater {
    /// As [`Calls::connect_with`], without waiting.
    fn connect_later(
        &self,
        to: &SystemName,
        port: u16,
        socket: OwnedFd,
        how: Opening,
        reply: ConnectReply,
    );
}

/// What a program asks of its engine.
pub trait Calls: Send + Sync {
    /// Publishes `port`; connections to it are delivered to the listening Unix socket at `path`.
    /// With `raw`, the end of such a connection's socket is the end of the stream, without
    /// [`Calls::mark_clean`]. Returns when it is on the volume.
    fn listen(&self, port: u16, path: &Path, raw: bool) -> io::Result<()>;

    /// Withdraws `port`.
    fn unlisten(&self, port: u16);

    /// Opens a stream to `port` of `to`. `socket` is the engine's end of the program's socket pair.
    /// With `raw`, the end of that socket is the end of the stream, without [`Calls::mark_clean`].
    /// `None` waits as long as the engine itself does.
    fn connect(
        &self,
        to: &SystemName,
        port: u16,
        socket: OwnedFd,
        raw: bool,
        timeout: Option<Duration>,
    ) -> Result<Connected, ConnectFailure> {
        let how = Opening {
            raw,
            timeout,
            ..Opening::default()
        };
        self.connect_with(to, port, socket, how)
    }

    /// As [`Calls::connect`], with more to say.
    fn connect_with(
        &self,
        to: &SystemName,
        port: u16,
        socket: OwnedFd,
        how: Opening,
    ) -> Result<Connected, ConnectFailure>;

    /// Streams can be opened without waiting for each, if it can do that.
    fn later(&self) -> Option<&dyn ConnectLater> {
        None
    }

    /// Says that the end of the program's bytes, which the engine is about to see, is meant.
    /// When it returns, the engine knows.
    fn mark_clean(&self, token: StreamToken);

    /// One more process, forked from the one that opened the stream, goes on with it: the end is meant only if
    /// each of them says so with [`Calls::mark_clean`].
    fn hold(&self, _token: StreamToken) {}

    /// Whether marks, holds and verdicts also work in a forked child.
    fn serves_children(&self) -> bool {
        false
    }

    /// As [`Calls::mark_clean`], by the program's last handle: it will not ask about the stream again.
    fn close(&self, token: StreamToken) {
        self.mark_clean(token);
    }

    /// What became of the peer's direction.
    fn verdict(&self, token: StreamToken) -> Verdict;

    /// Resets the stream at once.
    fn abort(&self, token: StreamToken);

    /// Offers a stream to whoever takes by the offer's name. `end` is a copy of the program's descriptor;
    /// until the gift's [`Outcome`] is told on `notice`, the program must not use its own.
    fn give(&self, offer: &Offer, end: OwnedFd, notice: OwnedFd) -> io::Result<GiftId> {
        let _ = (offer, end, notice);
        Err(no_gifts())
    }

    /// Takes a gift back, unless somebody has taken it: the outcome says which.
    fn withdraw(&self, gift: GiftId) {
        let _ = gift;
    }

    /// Waits for a gift to `name`, for at most `wait`; `TimedOut` if none comes.
    fn take(&self, name: &ProcessName, wait: Duration) -> io::Result<Handed> {
        let _ = (name, wait);
        Err(no_gifts())
    }

    /// Makes a gift that was handed out the taker's own. An error: it is not theirs, and another taker or
    /// the giver has it.
    fn confirm(&self, gift: GiftId) -> io::Result<Taken> {
        let _ = gift;
        Err(no_gifts())
    }

    /// The taker does not want, or does not live to want, a gift that was handed to it.
    fn put_back(&self, gift: GiftId) {
        let _ = gift;
    }

    /// The way past the sockets, if the engine is in this process.
    fn lane(&self) -> Option<&dyn Lane> {
        None
    }

    /// Every other node that this engine knows.
    fn peers(&self) -> io::Result<Vec<Peer>>;

    /// A report for people and tools, as JSON; `topic` is one of the engine's own words.
    fn report(&self, topic: &str) -> io::Result<String> {
        Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!("this engine has no report on {topic:?}"),
        ))
    }
}

fn no_gifts() -> io::Error {
    io::Error::new(
        io::ErrorKind::Unsupported,
        "this engine cannot give or take streams: run one of this release",
    )
}
