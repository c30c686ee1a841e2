//! Connections of every kind that is compared, behind one face.
//!
//! - The first bytes of each say what the other side is to do with it: [`Errand`].

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use serde::{Deserialize, Serialize};

/// What carries the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Way {
    /// The storage alone.
    Floor,
    /// STP, the engine in the program.
    Embedded,
    /// STP, the engine shared by the host's programs.
    Shared,
    Tcp,
    Unix,
    Pipe,
}

impl Way {
    pub(super) const ALL: [Self; 6] = [
        Self::Floor,
        Self::Embedded,
        Self::Shared,
        Self::Tcp,
        Self::Unix,
        Self::Pipe,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Floor => "floor",
            Self::Embedded => "embedded",
            Self::Shared => "shared",
            Self::Tcp => "TCP",
            Self::Unix => "Unix",
            Self::Pipe => "pipe",
        }
    }

    /// Whether connections are made by it.
    pub(super) fn connects(self) -> bool {
        !matches!(self, Self::Floor | Self::Pipe)
    }
}

/// What the mate does with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Errand {
    /// Sends back messages of so many bytes.
    Echo(u64),
    /// Reads to the end, then says how much it was.
    Sink,
    /// Sends back whatever comes, with many others on one thread.
    Many,
    /// Does what a bench of another host asks for.
    Bench,
}

impl Errand {
    pub(super) const BYTES: usize = 16;

    pub(super) fn encode(self) -> [u8; Self::BYTES] {
        let (kind, size) = match self {
            Self::Echo(size) => (1, size),
            Self::Sink => (2, 0),
            Self::Many => (3, 0_u64),
            Self::Bench => (4, 0),
        };
        let mut bytes = [0; Self::BYTES];
        bytes[0] = kind;
        bytes[8..].copy_from_slice(&size.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8; Self::BYTES]) -> Option<Self> {
        let mut size = [0; 8];
        size.copy_from_slice(&bytes[8..]);
        Some(match bytes[0] {
            1 => Self::Echo(u64::from_le_bytes(size)),
            2 => Self::Sink,
            3 => Self::Many,
            4 => Self::Bench,
            _ => return None,
        })
    }
}

/// One connection.
pub(super) enum Conn {
    Stp(stp::Stream),
    Tcp(TcpStream),
    Unix(UnixStream),
    Pipe { from: File, to: Option<File> },
}

impl Conn {
    pub(super) fn finish_writing(&mut self) -> io::Result<()> {
        match self {
            Self::Stp(stream) => stream.shutdown(Shutdown::Write),
            Self::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Self::Unix(stream) => stream.shutdown(Shutdown::Write),
            Self::Pipe { to, .. } => {
                *to = None;
                Ok(())
            }
        }
    }

    /// The same connection once more.
    pub(super) fn try_clone(&self) -> io::Result<Self> {
        match self {
            Self::Stp(stream) => stream.try_clone().map(Self::Stp),
            Self::Tcp(stream) => stream.try_clone().map(Self::Tcp),
            Self::Unix(stream) => stream.try_clone().map(Self::Unix),
            Self::Pipe { .. } => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    pub(super) fn set_nonblocking(&self) -> io::Result<()> {
        match self {
            Self::Stp(stream) => stream.set_nonblocking(true),
            Self::Tcp(stream) => stream.set_nonblocking(true),
            Self::Unix(stream) => stream.set_nonblocking(true),
            Self::Pipe { .. } => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

impl Read for Conn {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Stp(stream) => stream.read(buf),
            Self::Tcp(stream) => stream.read(buf),
            Self::Unix(stream) => stream.read(buf),
            Self::Pipe { from, .. } => from.read(buf),
        }
    }
}

impl Write for Conn {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Stp(stream) => stream.write(buf),
            Self::Tcp(stream) => stream.write(buf),
            Self::Unix(stream) => stream.write(buf),
            Self::Pipe { to: Some(to), .. } => to.write(buf),
            Self::Pipe { to: None, .. } => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for Conn {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Stp(stream) => stream.as_fd(),
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
            Self::Pipe { from, .. } => from.as_fd(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errands_are_understood() {
        for errand in [
            Errand::Echo(1 << 20),
            Errand::Sink,
            Errand::Many,
            Errand::Bench,
        ] {
            assert_eq!(Errand::decode(&errand.encode()), Some(errand));
        }
        assert_eq!(Errand::decode(&[9; Errand::BYTES]), None);
    }
}
