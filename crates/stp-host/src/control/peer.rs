//! Who may talk over a control socket.
//!
//! - The kernel says who connected; nothing that the other end writes is believed about it.
//! - Both ends ask: a program does not hand its bytes to a stranger's engine either.

use std::fmt;
use std::io;
use std::os::fd::AsFd;

use crate::rendezvous::Sharing;
use crate::run::sys::{self, Peer};

/// Whom an end of a control connection admits: its own user; an engine also the members of the group that shares
/// its run directory, a program also that directory's owner.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Admission {
    uid: u32,
    owner: u32,
    group: Option<u32>,
}

/// The other end is somebody else.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stranger {
    uid: u32,
    pid: Option<u32>,
    ours: u32,
}

impl Admission {
    /// By an engine.
    pub(crate) fn of_programs(sharing: Sharing) -> Self {
        let uid = rustix::process::geteuid().as_raw();
        Self {
            uid,
            owner: uid,
            group: sharing.group,
        }
    }

    /// By a program.
    pub(super) fn of_engine(sharing: Sharing) -> Self {
        Self {
            uid: rustix::process::geteuid().as_raw(),
            owner: sharing.owner,
            group: None,
        }
    }

    /// Refuses the connection if its other end is not admitted.
    pub(crate) fn check(self, socket: impl AsFd) -> io::Result<()> {
        let Peer {
            process: pid,
            user: uid,
            group: own_group,
        } = sys::peer(socket)?;
        // Of a process that is not seen here only its first group is known.
        let member =
            |group| own_group == group || pid.is_some_and(|process| has_group(process, group));
        if uid == self.uid || uid == self.owner || self.group.is_some_and(member) {
            return Ok(());
        }
        let ours = self.uid;
        let stranger = Stranger { uid, pid, ours };
        Err(io::Error::new(io::ErrorKind::PermissionDenied, stranger))
    }
}

/// Whether a process that is connected has a group beside its own. The socket's mode has asked the same before.
fn has_group(pid: u32, group: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let groups = status.lines().find_map(|line| line.strip_prefix("Groups:"));
    groups.is_some_and(|groups| {
        let mut groups = groups.split_whitespace();
        groups.any(|found| found.parse() == Ok(group))
    })
}

impl fmt::Display for Stranger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let process = self
            .pid
            .map_or("a process of another PID namespace".to_owned(), |pid| {
                format!("process {pid}")
            });
        write!(
            f,
            "{process} at the other end of the control socket belongs to user {}, this is user {}: run program and engine as one user, or let the engine share its run directory with a group (--group-access)",
            self.uid, self.ours
        )
    }
}

impl std::error::Error for Stranger {}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    fn pair() -> (std::os::fd::OwnedFd, std::os::fd::OwnedFd) {
        let (family, flags) = (AddressFamily::UNIX, SocketFlags::CLOEXEC);
        socketpair(family, SocketType::SEQPACKET, flags, None).unwrap()
    }

    #[test]
    fn another_user_is_refused_and_named() {
        let (ours, _theirs) = pair();
        let uid = rustix::process::geteuid().as_raw();
        let sharing = Sharing {
            owner: uid,
            group: None,
        };
        Admission::of_programs(sharing).check(&ours).unwrap();
        let other = Admission {
            uid: uid + 1,
            owner: uid + 1,
            group: None,
        };
        let error = other.check(&ours).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        assert!(error.to_string().contains("one user"), "{error}");
    }

    #[test]
    fn a_group_is_admitted_by_the_engine_and_its_owner_by_programs() {
        let (ours, _theirs) = pair();
        let (uid, gid) = (
            rustix::process::geteuid().as_raw(),
            rustix::process::getegid().as_raw(),
        );
        let by = |group| Admission {
            uid: uid + 1,
            owner: uid + 1,
            group,
        };
        by(Some(gid)).check(&ours).unwrap();
        assert!(by(Some(gid + 4711)).check(&ours).is_err());
        let owner = Admission {
            owner: uid,
            ..by(None)
        };
        owner.check(&ours).unwrap();
    }
}
