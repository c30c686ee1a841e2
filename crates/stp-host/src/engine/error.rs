//! What can go wrong between a program and its engine; each says what, where and what to do.

use std::fmt;
use std::io;
use std::path::PathBuf;

use stp_core::ClaimError;
use stp_format::{SeatId, SystemName};

use crate::control::ConnectFailure;

/// Why an engine is no longer there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// It left its seat in order.
    Left,
    /// Another node took its seat.
    Fenced {
        /// The volume.
        volume: String,
        /// The seat that was lost.
        seat: SeatId,
    },
    /// The volume was formatted anew while the engine stood still.
    Reformatted {
        /// The volume.
        volume: String,
    },
    /// Its thread failed.
    Panicked(String),
    /// The kernel refused what it cannot do without.
    Failed(String),
    /// The handle was made before a `fork`, by the parent.
    Forked,
}

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Left => f.write_str("the engine has stopped: open the group again"),
            Self::Fenced { volume, seat } => write!(
                f,
                "{volume}: another node has taken seat {seat}, this engine has stopped: open the group again"
            ),
            Self::Reformatted { volume } => write!(
                f,
                "{volume}: was formatted anew while this engine stood still, it has stopped: open the group again"
            ),
            Self::Panicked(what) => write!(
                f,
                "the engine failed ({what}): this is a bug in stp, open the group again"
            ),
            Self::Failed(what) => write!(f, "the engine cannot go on: {what}"),
            Self::Forked => f.write_str(
                "the engine belongs to the process before fork(): open the group again in the child",
            ),
        }
    }
}

impl std::error::Error for Stopped {}

impl From<Stopped> for io::Error {
    fn from(stopped: Stopped) -> Self {
        io::Error::new(io::ErrorKind::NetworkDown, stopped)
    }
}

/// Why a volume could not be attached.
#[derive(Debug)]
pub enum AttachError {
    /// No seat was to be had.
    Claim {
        /// The volume.
        volume: String,
        /// The system that wanted a seat.
        system: SystemName,
        /// What stood in the way.
        why: ClaimError,
    },
    /// The storage cannot lock a seat.
    Storage {
        /// The volume.
        volume: String,
        /// What it said.
        source: io::Error,
    },
    /// The run directory cannot keep the seats' locks.
    RunDir {
        /// The file or directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// No thread, epoll or event descriptor for the engine.
    Resources(io::Error),
}

impl fmt::Display for AttachError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Claim {
                volume,
                system,
                why,
            } => match why {
                ClaimError::Io(fault) => write!(
                    f,
                    "{volume}: the seats cannot be read or written: {}: check the storage and the permissions",
                    io::Error::from_raw_os_error(fault.errno)
                ),
                ClaimError::SystemNameTaken { .. } => write!(f, "{volume}: {system}: {why}"),
                why => write!(f, "{volume}: {why}"),
            },
            Self::Storage { volume, source } => write!(
                f,
                "{volume}: a seat cannot be locked: {source}: check the storage and the permissions"
            ),
            Self::RunDir { path, source } => write!(
                f,
                "{}: {source}: name a directory of your own with --run-dir or STP_RUN_DIR",
                path.display()
            ),
            Self::Resources(source) => write!(
                f,
                "no resources to start an engine: {source}: raise the limits of open files and threads"
            ),
        }
    }
}

impl std::error::Error for AttachError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Claim { .. } => None,
            Self::Storage { source, .. }
            | Self::RunDir { source, .. }
            | Self::Resources(source) => Some(source),
        }
    }
}

impl From<AttachError> for io::Error {
    fn from(error: AttachError) -> Self {
        let kind = match &error {
            AttachError::Claim { why, .. } => match why {
                ClaimError::NoFreeSeat(_) => io::ErrorKind::QuotaExceeded,
                ClaimError::SystemNameTaken { .. } => io::ErrorKind::AddrInUse,
                _ => io::ErrorKind::Other,
            },
            AttachError::Storage { source, .. }
            | AttachError::RunDir { source, .. }
            | AttachError::Resources(source) => source.kind(),
        };
        io::Error::new(kind, error)
    }
}

/// Why a port cannot be listened on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenError {
    /// The node refused.
    Node {
        /// The port.
        port: u16,
        /// What it said.
        why: stp_core::ListenError,
    },
    /// The port was given up again before it was on the volume.
    Unlistened(u16),
    /// No engine.
    Stopped(Stopped),
}

impl fmt::Display for ListenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node { port, why } => write!(f, "port {port}: {why}"),
            Self::Unlistened(port) => write!(f, "port {port}: closed while it was being opened"),
            Self::Stopped(stopped) => stopped.fmt(f),
        }
    }
}

impl std::error::Error for ListenError {}

impl From<ListenError> for io::Error {
    fn from(error: ListenError) -> Self {
        match error {
            ListenError::Stopped(stopped) => stopped.into(),
            error => io::Error::new(io::ErrorKind::AddrInUse, error),
        }
    }
}

/// What a node's refusal means to a program.
pub(super) fn connect_failure(why: stp_core::ConnectError) -> ConnectFailure {
    use stp_core::ConnectError as Why;
    match why {
        Why::UnknownSystem => ConnectFailure::UnknownSystem,
        Why::SystemDead => ConnectFailure::SystemDead,
        Why::Refused => ConnectFailure::Refused,
        Why::TooManyStreams => ConnectFailure::TooManyStreams,
        Why::Reset(reason) => ConnectFailure::Reset(reason.to_string()),
        why @ Why::Stopped => ConnectFailure::EngineGone(why.to_string()),
        why @ (Why::NoRing | Why::PeerBroken) => ConnectFailure::Failed(why.to_string()),
    }
}

impl From<Stopped> for ConnectFailure {
    fn from(stopped: Stopped) -> Self {
        ConnectFailure::EngineGone(stopped.to_string())
    }
}
