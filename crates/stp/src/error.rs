//! Why a group cannot be opened; and how the calls' failures read.
//!
//! - Each names the culprit and the remedy.

use std::fmt;
use std::io;
use std::path::PathBuf;

use stp_format::{GroupName, NameError, SystemName};
use stp_host::rendezvous::RunDirError;
use stp_host::volume::VolumeError;
use stp_medium::SpecError;

/// Why a group cannot be opened.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// No volume was named.
    NoVolume,
    /// The text names no volume.
    VolumeName(SpecError),
    /// The volume cannot be used.
    Volume(Box<VolumeError>),
    /// The volume holds another group than the one asked for.
    OtherGroup {
        /// Which volume.
        volume: PathBuf,
        /// What it holds.
        found: Box<GroupName>,
        /// What was asked for.
        asked: Box<GroupName>,
    },
    /// The system's name is none.
    SystemName {
        /// The text.
        name: String,
        /// Where it came from.
        origin: &'static str,
        /// What is wrong with it.
        why: NameError,
    },
    /// The run directory cannot be used.
    RunDir(RunDirError),
    /// A shared engine was asked for, and none runs.
    NoSharedEngine {
        /// Which volume.
        volume: PathBuf,
        /// For which system.
        system: SystemName,
        /// Where it would answer.
        socket: PathBuf,
    },
    /// No thread can be started.
    NoThread(io::Error),
    /// The engine did not start, or did not answer.
    Engine {
        /// Which volume.
        volume: PathBuf,
        /// For which system.
        system: SystemName,
        /// What happened.
        source: io::Error,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoVolume => f.write_str("no volume: name one with --volume or STP_VOLUME"),
            Self::VolumeName(error) => error.fmt(f),
            Self::Volume(error) => error.fmt(f),
            Self::OtherGroup {
                volume,
                found,
                asked,
            } => write!(
                f,
                "volume {} holds the group {found}, not {asked}: name the volume of {asked}, or leave the group out",
                volume.display()
            ),
            Self::SystemName { name, origin, why } => write!(
                f,
                "{origin} {name:?} cannot be a system's name: {why}; name this system with --system or STP_SYSTEM"
            ),
            Self::RunDir(error) => error.fmt(f),
            Self::NoSharedEngine {
                volume,
                system,
                socket,
            } => write!(
                f,
                "no engine of system {system} runs for {} (nobody answers at {}): start `stp engine`, or let the program embed one",
                volume.display(),
                socket.display()
            ),
            Self::NoThread(source) => {
                write!(
                    f,
                    "cannot start a thread: {source}; raise the limit of processes"
                )
            }
            Self::Engine {
                volume,
                system,
                source,
            } => {
                let text = source.to_string();
                if text.contains(&*volume.to_string_lossy()) {
                    f.write_str(&text)
                } else {
                    write!(
                        f,
                        "engine of system {system} on {}: {text}",
                        volume.display()
                    )
                }
            }
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Engine { source, .. } | Self::NoThread(source) => Some(source),
            Self::Volume(error) => Some(error),
            Self::VolumeName(error) => Some(error),
            Self::RunDir(error) => Some(error),
            Self::SystemName { why, .. } => Some(why),
            _ => None,
        }
    }
}

impl From<SpecError> for Error {
    fn from(error: SpecError) -> Self {
        Self::VolumeName(error)
    }
}

impl From<VolumeError> for Error {
    fn from(error: VolumeError) -> Self {
        Self::Volume(Box::new(error))
    }
}

impl From<RunDirError> for Error {
    fn from(error: RunDirError) -> Self {
        Self::RunDir(error)
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::NoVolume
            | Error::VolumeName(_)
            | Error::OtherGroup { .. }
            | Error::SystemName { .. } => io::ErrorKind::InvalidInput,
            Error::Volume(_) => io::ErrorKind::InvalidData,
            Error::Engine { source, .. } | Error::NoThread(source) => source.kind(),
            Error::RunDir(_) => io::ErrorKind::PermissionDenied,
            Error::NoSharedEngine { .. } => io::ErrorKind::NotFound,
        };
        Self::new(kind, error)
    }
}
