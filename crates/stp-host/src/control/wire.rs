//! The control connection's messages, and their way through a SEQPACKET socket.
//!
//! - A datagram is a head (request number, whether more follows) and a piece of JSON, at most
//!   [`PIECE_BYTES_MAX`]; a request is one piece, an answer as many as it needs.
//! - A message carries at most two descriptors. Descriptors that nobody expects are closed.

use std::collections::HashMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};

use super::calls::{ConnectFailure, Connected, GiftId, Peer, StreamToken, Verdict};

/// The protocol's version. Both ends must have the same: they are of one host and one release.
pub(super) const VERSION: u32 = 2;

/// The most JSON in one datagram: well below what a socket's default buffer takes.
pub(super) const PIECE_BYTES_MAX: usize = 64 << 10;

/// The most JSON in one answer.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// Descriptors beside one message, at the most.
const FDS_MAX: usize = 2;

/// Number of the request, and a flag.
const HEAD_BYTES: usize = 9;

/// What a program asks.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Request {
    Hello {
        version: u32,
        pid: u32,
    },
    Listen {
        port: u16,
        path: Vec<u8>,
        raw: bool,
    },
    Unlisten {
        port: u16,
    },
    /// With a descriptor: the engine's end of the program's socket pair.
    Connect {
        to: String,
        port: u16,
        raw: bool,
        timeout_us: Option<u64>,
        local_port: Option<u16>,
        skip: u64,
    },
    MarkClean {
        token: StreamToken,
    },
    Hold {
        token: StreamToken,
    },
    Close {
        token: StreamToken,
    },
    Verdict {
        token: StreamToken,
    },
    Abort {
        token: StreamToken,
    },
    /// With two descriptors: a copy of the program's end, and where the outcome is told.
    Give {
        token: StreamToken,
        to: String,
        name: String,
        wait_us: u64,
        local: (String, u16),
        peer: (String, u16),
    },
    Withdraw {
        gift: GiftId,
    },
    Take {
        name: String,
        wait_us: u64,
    },
    Confirm {
        gift: GiftId,
    },
    PutBack {
        gift: GiftId,
    },
    Peers,
    Report {
        topic: String,
    },
}

/// What the engine answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    Welcome {
        version: u32,
        system: String,
    },
    Done,
    Failed {
        kind: Kind,
        text: String,
    },
    Connected(Connected),
    NotConnected(ConnectFailure),
    Verdict(Verdict),
    Given(GiftId),
    /// With a descriptor: the program's end of the stream.
    Handed(GiftId),
    Taken {
        token: StreamToken,
        local: (String, u16),
        peer: (String, u16),
    },
    Peers(Vec<Peer>),
    Report(String),
}

/// The kinds of errors that travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    AddrInUse,
    ConnectionReset,
    HostUnreachable,
    InvalidInput,
    NetworkDown,
    NotConnected,
    NotFound,
    PermissionDenied,
    QuotaExceeded,
    ResourceBusy,
    StorageFull,
    TimedOut,
    Unsupported,
    Other,
}

const KINDS: [(Kind, io::ErrorKind); 13] = [
    (Kind::AddrInUse, io::ErrorKind::AddrInUse),
    (Kind::ConnectionReset, io::ErrorKind::ConnectionReset),
    (Kind::HostUnreachable, io::ErrorKind::HostUnreachable),
    (Kind::InvalidInput, io::ErrorKind::InvalidInput),
    (Kind::NetworkDown, io::ErrorKind::NetworkDown),
    (Kind::NotConnected, io::ErrorKind::NotConnected),
    (Kind::NotFound, io::ErrorKind::NotFound),
    (Kind::PermissionDenied, io::ErrorKind::PermissionDenied),
    (Kind::QuotaExceeded, io::ErrorKind::QuotaExceeded),
    (Kind::ResourceBusy, io::ErrorKind::ResourceBusy),
    (Kind::StorageFull, io::ErrorKind::StorageFull),
    (Kind::TimedOut, io::ErrorKind::TimedOut),
    (Kind::Unsupported, io::ErrorKind::Unsupported),
];

impl Answer {
    pub(super) fn failed(error: &io::Error) -> Self {
        let kind = KINDS.iter().find(|(_, kind)| *kind == error.kind());
        Self::Failed {
            kind: kind.map_or(Kind::Other, |(kind, _)| *kind),
            text: error.to_string(),
        }
    }
}

/// An error that travelled.
pub(super) fn arrived(kind: Kind, text: String) -> io::Error {
    let kind = KINDS.iter().find(|(known, _)| *known == kind);
    io::Error::new(kind.map_or(io::ErrorKind::Other, |(_, kind)| *kind), text)
}

fn protocol(text: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text.into())
}

fn send_piece(
    socket: BorrowedFd<'_>,
    number: u64,
    more: bool,
    piece: &[u8],
    fds: &[BorrowedFd<'_>],
    how: SendFlags,
) -> io::Result<()> {
    let mut head = [0; HEAD_BYTES];
    head[..8].copy_from_slice(&number.to_le_bytes());
    head[8] = u8::from(more);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    let parts = [IoSlice::new(&head), IoSlice::new(piece)];
    loop {
        match sendmsg(socket, &parts, &mut control, SendFlags::NOSIGNAL | how) {
            Err(Errno::INTR) => {}
            sent => return sent.map(drop).map_err(io::Error::from),
        }
    }
}

/// Sends a request, with its descriptors.
pub(super) fn send_request(
    socket: impl AsFd,
    number: u64,
    request: &Request,
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let json = serde_json::to_vec(request)?;
    if json.len() > PIECE_BYTES_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "a request of {} bytes to the engine, {PIECE_BYTES_MAX} is the most",
                json.len()
            ),
        ));
    }
    send_piece(
        socket.as_fd(),
        number,
        false,
        &json,
        fds,
        SendFlags::empty(),
    )
}

/// Sends an answer, in as many pieces as it needs; a descriptor goes with the last.
pub(super) fn send_answer(
    socket: impl AsFd,
    number: u64,
    answer: &Answer,
    fd: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let json = serde_json::to_vec(answer)?;
    let mut rest = json.as_slice();
    loop {
        let (piece, behind) = rest.split_at(rest.len().min(PIECE_BYTES_MAX));
        let last = behind.is_empty();
        let fds: Vec<_> = fd.into_iter().filter(|_| last).collect();
        send_piece(
            socket.as_fd(),
            number,
            !last,
            piece,
            &fds,
            SendFlags::empty(),
        )?;
        if behind.is_empty() {
            return Ok(());
        }
        rest = behind;
    }
}

/// As [`send_answer`], but fails with `WouldBlock`, and has sent nothing, where that would have to wait.
pub(super) fn send_answer_now(socket: impl AsFd, number: u64, answer: &Answer) -> io::Result<()> {
    let json = serde_json::to_vec(answer)?;
    if json.len() > PIECE_BYTES_MAX {
        return Err(io::ErrorKind::WouldBlock.into());
    }
    send_piece(
        socket.as_fd(),
        number,
        false,
        &json,
        &[],
        SendFlags::DONTWAIT,
    )
}

/// One datagram as it came.
struct Piece {
    number: u64,
    more: bool,
    json: Vec<u8>,
    fds: Vec<OwnedFd>,
}

/// The receiving half: one reader a connection.
#[derive(Debug, Default)]
pub(super) struct Receiver {
    buffer: Vec<u8>,
    /// Answers of which pieces are missing.
    unfinished: HashMap<u64, Vec<u8>>,
}

impl Receiver {
    /// The next datagram; `None` at the connection's end.
    fn piece(&mut self, socket: BorrowedFd<'_>) -> io::Result<Option<Piece>> {
        self.buffer.resize(HEAD_BYTES + PIECE_BYTES_MAX, 0);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            let mut parts = [IoSliceMut::new(&mut self.buffer)];
            match recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Err(Errno::INTR) => {}
                Err(Errno::CONNRESET) => return Ok(None),
                received => break received?,
            }
        };
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                fds.extend(received);
            }
        }
        if received.bytes == 0 {
            return Ok(None);
        }
        if received.flags.contains(ReturnFlags::TRUNC) {
            return Err(protocol("a control message longer than the limit"));
        }
        let datagram = &self.buffer[..received.bytes];
        let Some((head, json)) = datagram.split_first_chunk::<HEAD_BYTES>() else {
            return Err(protocol("a control message without a head"));
        };
        let mut number = [0; 8];
        number.copy_from_slice(&head[..8]);
        Ok(Some(Piece {
            number: u64::from_le_bytes(number),
            more: head[8] & 1 != 0,
            json: json.to_vec(),
            fds,
        }))
    }

    /// The next request; `None` at the end.
    pub(super) fn request(
        &mut self,
        socket: impl AsFd,
    ) -> io::Result<Option<(u64, Request, Vec<OwnedFd>)>> {
        let Some(piece) = self.piece(socket.as_fd())? else {
            return Ok(None);
        };
        if piece.more {
            return Err(protocol("a request in several pieces"));
        }
        let request = serde_json::from_slice(&piece.json)
            .map_err(|e| protocol(format!("a request that is none: {e}")))?;
        Ok(Some((piece.number, request, piece.fds)))
    }

    /// The next whole answer; `None` at the end.
    pub(super) fn answer(
        &mut self,
        socket: impl AsFd,
    ) -> io::Result<Option<(u64, Answer, Vec<OwnedFd>)>> {
        loop {
            let Some(piece) = self.piece(socket.as_fd())? else {
                return Ok(None);
            };
            let mut json = self.unfinished.remove(&piece.number).unwrap_or_default();
            if json.len() + piece.json.len() > ANSWER_BYTES_MAX {
                return Err(protocol("an answer longer than the limit"));
            }
            json.extend_from_slice(&piece.json);
            if piece.more {
                self.unfinished.insert(piece.number, json);
                continue;
            }
            let answer = serde_json::from_slice(&json)
                .map_err(|e| protocol(format!("an answer that is none: {e}")))?;
            return Ok(Some((piece.number, answer, piece.fds)));
        }
    }
}
