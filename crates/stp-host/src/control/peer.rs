//! Who may talk over a control socket.
//!
//! - The kernel says who connected; nothing that the other end writes is believed about it.
//! - Both ends ask: a program does not hand its bytes to a stranger's engine either.

use std::fmt;
use std::io;
use std::os::fd::AsFd;

use rustix::net::sockopt::socket_peercred;

/// Whom an end of a control connection admits: its own user.
///
/// A configured group of users would be one more field here, and one more case in [`Admission::check`];
/// the run directory's mode (0700 today) would have to follow.
#[derive(Clone, Copy, Debug)]
pub(super) struct Admission {
    uid: u32,
}

/// The other end is somebody else.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stranger {
    uid: u32,
    pid: i32,
    ours: u32,
}

impl Admission {
    /// This process's user only.
    pub(super) fn own_user() -> Self {
        Self {
            uid: rustix::process::geteuid().as_raw(),
        }
    }

    /// Refuses the connection if its other end is not admitted.
    pub(super) fn check(self, socket: impl AsFd) -> io::Result<()> {
        let peer = socket_peercred(socket)?;
        let uid = peer.uid.as_raw();
        if uid == self.uid {
            return Ok(());
        }
        let stranger = Stranger {
            uid,
            pid: peer.pid.as_raw_pid(),
            ours: self.uid,
        };
        Err(io::Error::new(io::ErrorKind::PermissionDenied, stranger))
    }
}

impl fmt::Display for Stranger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "process {} at the other end of the control socket belongs to user {}, this is user {}: run program and engine as one user",
            self.pid, self.uid, self.ours
        )
    }
}

impl std::error::Error for Stranger {}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    #[test]
    fn another_user_is_refused_and_named() {
        let (family, flags) = (AddressFamily::UNIX, SocketFlags::CLOEXEC);
        let (ours, _theirs) = socketpair(family, SocketType::SEQPACKET, flags, None).unwrap();
        let own = Admission::own_user();
        own.check(&ours).unwrap();
        let other = Admission { uid: own.uid + 1 };
        let error = other.check(&ours).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        assert!(error.to_string().contains("one user"), "{error}");
    }
}
