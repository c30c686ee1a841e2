//! Why a call failed: the `errno` that TCP would give, a number of our own, and a sentence.
//!
//! - The `errno` of a failure is chosen here and nowhere else, unless the kernel has chosen it.
//! - The sentence names the culprit and the remedy; it is what `STPstrerror` tells.

use std::fmt;
use std::io;

use libc::c_int;

/// What `STPerror` tells. The numbers are part of the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Code {
    /// `errno` tells everything.
    None = 0,
    /// No volume is named, or it cannot be used.
    Volume = 1,
    /// The volume holds another group.
    Group = 2,
    /// The group has no such system, or the name is none.
    System = 3,
    /// The system is known, but no engine of it is alive.
    Dead = 4,
    /// Nobody listens there.
    Refused = 5,
    /// No answer in time.
    Timeout = 6,
    /// The port is in use, or none is left.
    Port = 7,
    /// The stream broke.
    Reset = 8,
    /// This program's engine is gone or does not answer.
    Engine = 9,
    /// A table or a limit is full.
    Limit = 10,
    /// The address is none.
    Address = 11,
    /// The option is unknown, or cannot be changed now.
    Option = 12,
    /// A flag that this call does not have.
    Flags = 13,
    /// The socket is not in a state for this call.
    State = 14,
    /// The descriptor is no STP socket.
    NotStp = 15,
    /// Giving or taking a socket failed.
    Give = 16,
    /// A mistake in the library.
    Bug = 17,
}

/// All codes, with what they mean in general.
pub const CODES: &[(Code, &str)] = &[
    (Code::None, "no further information: errno tells everything"),
    (
        Code::Volume,
        "no volume is named, or it cannot be used: set STP_VOLUME or STP_OPT_VOLUME",
    ),
    (Code::Group, "the volume holds another group"),
    (Code::System, "the group has no such system"),
    (
        Code::Dead,
        "no engine of the system is alive: start one there",
    ),
    (Code::Refused, "nobody listens there"),
    (Code::Timeout, "no answer in time"),
    (Code::Port, "the port is in use, or none is left"),
    (Code::Reset, "the stream broke"),
    (
        Code::Engine,
        "this program's engine is gone or does not answer",
    ),
    (Code::Limit, "a table or a limit is full"),
    (Code::Address, "the address is none: write SYSTEM:PORT"),
    (
        Code::Option,
        "the option is unknown, or cannot be changed now",
    ),
    (Code::Flags, "a flag that this call does not have"),
    (Code::State, "the socket is not in a state for this call"),
    (Code::NotStp, "the descriptor is no STP socket"),
    (Code::Give, "giving or taking the socket failed"),
    (Code::Bug, "a mistake in the STP library: please report it"),
];

/// A failed call.
#[derive(Clone, Debug)]
pub struct Fault {
    /// For the program.
    pub errno: c_int,
    /// For programs that know STP.
    pub code: Code,
    /// For people; empty where `errno` tells everything.
    pub text: String,
}

/// What a call comes to.
pub type Outcome<T> = Result<T, Fault>;

impl Fault {
    /// One with something to tell.
    pub fn new(errno: c_int, code: Code, text: impl Into<String>) -> Self {
        let text = text.into();
        Self { errno, code, text }
    }

    /// One that `errno` tells.
    pub fn plain(errno: c_int) -> Self {
        Self::new(errno, Code::None, "")
    }

    /// What the kernel has just said.
    pub fn last() -> Self {
        Self::plain(
            io::Error::last_os_error()
                .raw_os_error()
                .unwrap_or(libc::EIO),
        )
    }

    /// The socket is in the wrong state.
    pub(super) fn state(errno: c_int, text: &str) -> Self {
        Self::new(errno, Code::State, text)
    }

    /// The stream broke.
    pub(super) fn reset(text: impl Into<String>) -> Self {
        Self::new(libc::ECONNRESET, Code::Reset, text)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.text.is_empty() {
            write!(f, "{}", io::Error::from_raw_os_error(self.errno))
        } else {
            f.write_str(&self.text)
        }
    }
}

/// A failure of a call on a group: connecting, listening, asking.
impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        use io::ErrorKind as Kind;
        let (errno, code) = match error.kind() {
            Kind::AddrInUse => (libc::EADDRINUSE, Code::Port),
            Kind::AddrNotAvailable => (libc::EADDRNOTAVAIL, Code::Port),
            Kind::ConnectionRefused => (libc::ECONNREFUSED, Code::Refused),
            Kind::ConnectionReset => (libc::ECONNRESET, Code::Reset),
            Kind::HostUnreachable => (libc::EHOSTUNREACH, Code::Dead),
            Kind::NotFound => (libc::EHOSTUNREACH, Code::System),
            Kind::TimedOut => (libc::ETIMEDOUT, Code::Timeout),
            Kind::QuotaExceeded => (libc::ENOBUFS, Code::Limit),
            Kind::NotConnected => (libc::EIO, Code::Engine),
            Kind::PermissionDenied => (libc::EACCES, Code::Engine),
            Kind::InvalidInput => (libc::EINVAL, Code::Address),
            _ => (libc::EIO, Code::Engine),
        };
        let known = error.raw_os_error();
        match known {
            Some(errno) if error.get_ref().is_none() => Self::plain(errno),
            _ => Self::new(errno, code, error.to_string()),
        }
    }
}

/// A failure to open the group.
impl From<stp::Error> for Fault {
    fn from(error: stp::Error) -> Self {
        use stp::Error as Why;
        let (errno, code) = match &error {
            Why::NoVolume => (libc::ENODEV, Code::Volume),
            Why::VolumeName(_) => (libc::EINVAL, Code::Volume),
            Why::Volume(_) => (libc::ENODEV, Code::Volume),
            Why::OtherGroup { .. } => (libc::ENETUNREACH, Code::Group),
            Why::SystemName { .. } => (libc::EINVAL, Code::System),
            Why::RunDir(_) => (libc::EACCES, Code::Engine),
            Why::NoSharedEngine { .. } => (libc::ENETDOWN, Code::Engine),
            Why::NoThread(_) => (libc::EAGAIN, Code::Limit),
            Why::Engine { source, .. } => match source.kind() {
                io::ErrorKind::QuotaExceeded => (libc::ENOBUFS, Code::Limit),
                io::ErrorKind::AddrInUse => (libc::EADDRINUSE, Code::System),
                io::ErrorKind::PermissionDenied => (libc::EACCES, Code::Engine),
                _ => (libc::EIO, Code::Engine),
            },
            _ => (libc::EIO, Code::Engine),
        };
        Self::new(errno, code, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_number_and_a_meaning() {
        for (number, (code, text)) in CODES.iter().enumerate() {
            assert_eq!(*code as usize, number);
            assert!(!text.is_empty());
        }
    }

    #[test]
    fn a_kernels_error_stays_what_it_is_and_ours_keep_their_sentence() {
        let kernel = Fault::from(io::Error::from_raw_os_error(libc::EMFILE));
        assert_eq!((kernel.errno, kernel.code), (libc::EMFILE, Code::None));
        let ours = io::Error::new(io::ErrorKind::NotFound, "the group has no system x");
        let ours = Fault::from(ours);
        assert_eq!((ours.errno, ours.code), (libc::EHOSTUNREACH, Code::System));
        assert_eq!(ours.to_string(), "the group has no system x");
    }
}
