//! The private network namespace: loopback for hosts that have no interface up.
//!
//! - Made by the engine's process before it has a second thread, and by nobody else. Nothing of the outer namespace changes.
//! - Root takes a network namespace alone; everybody else a user namespace with it, in which the user stays who it is.
//! - The next engine finds the one before it by a program that still lives there, so that programs outlive their engine.
//! - Programs under `stp run` enter it by descriptors that the engine hands out.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use super::sys;
use crate::rendezvous::{SystemDir, read_file};

/// Which namespace it was, for the next engine.
const NOTE: &str = "run.namespace";
const OWN: &str = "/proc/self/ns/net";
const LOOPBACK: &str = "lo";
/// How long a thread that was joined is waited for.
const JOINED_LOOKS_MAX: u32 = 1000;
const JOINED_PAUSE: Duration = Duration::from_millis(1);
const UP: i16 = libc::IFF_UP as i16;

/// Sees to it that this process has loopback: `true` if it took a namespace of its own for that.
pub fn ensure(dir: &SystemDir) -> io::Result<bool> {
    if has_loopback() {
        return Ok(false);
    }
    if let Some(name) = interface_up()? {
        return Err(io::Error::new(
            io::ErrorKind::AddrNotAvailable,
            format!(
                "the loopback interface is down, and {name} is up: `ip link set lo up`, then try again"
            ),
        ));
    }
    await_single_thread();
    if enter_earlier(dir) {
        return Ok(true);
    }
    take().map_err(|error| {
        io::Error::new(
            error.kind(),
            format!(
                "no interface is up here, and a network namespace is not to be had ({error}): `ip link set lo up`, then try again"
            ),
        )
    })?;
    // Losing it costs only what the next engine would know.
    if let Ok(found) = rustix::fs::stat(OWN) {
        let _ = dir.leave_note(NOTE, &format!("{} {}\n", found.st_dev, found.st_ino));
    }
    Ok(true)
}

/// The kernel gives a user namespace to nobody who has a second thread; one that was joined is gone only a moment later.
fn await_single_thread() {
    for _ in 0..JOINED_LOOKS_MAX {
        if fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() == 1) {
            return;
        }
        std::thread::sleep(JOINED_PAUSE);
    }
}

/// Goes where the engine before this one was, if a process still lives there.
fn enter_earlier(dir: &SystemDir) -> bool {
    let Ok(noted) = read_file(&dir.note(NOTE)) else {
        return false;
    };
    let Ok(processes) = fs::read_dir("/proc") else {
        return false;
    };
    for process in processes.flatten() {
        let network = process.path().join("ns/net");
        let Ok(found) = rustix::fs::stat(&network) else {
            continue;
        };
        if format!("{} {}", found.st_dev, found.st_ino) != noted.trim() {
            continue;
        }
        let Ok(network) = File::open(&network) else {
            continue;
        };
        if move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network)).is_ok() {
            return has_loopback();
        }
        // Its user namespace comes first where the user is not root.
        let users = File::open(process.path().join("ns/user"));
        let entered = users.is_ok_and(|users| {
            move_into_link_name_space(users.as_fd(), Some(LinkNameSpaceType::User)).is_ok()
        });
        let kind = Some(LinkNameSpaceType::Network);
        if entered && move_into_link_name_space(network.as_fd(), kind).is_ok() {
            return has_loopback();
        }
    }
    false
}

/// Whether loopback is up here. In a fresh namespace the kernel lets a socket be bound to it even if it is not.
pub(super) fn has_loopback() -> bool {
    let flags = probe().and_then(|socket| sys::interface_flags(&socket, LOOPBACK));
    flags.is_ok_and(|flags| flags.is_some_and(|flags| flags & UP != 0))
}

fn probe() -> io::Result<OwnedFd> {
    let (family, flags) = (AddressFamily::INET, SocketFlags::CLOEXEC);
    Ok(socket_with(family, SocketType::DGRAM, flags, None)?)
}

/// An interface that is up.
fn interface_up() -> io::Result<Option<String>> {
    let socket = probe()?;
    let list = fs::read_to_string("/proc/thread-self/net/dev")?;
    for line in list.lines().skip(2) {
        let Some((name, _)) = line.split_once(':') else {
            continue;
        };
        let flags = sys::interface_flags(&socket, name.trim())?;
        if flags.is_some_and(|flags| flags & UP != 0) {
            return Ok(Some(name.trim().to_owned()));
        }
    }
    Ok(None)
}

fn take() -> io::Result<()> {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    let network = UnshareFlags::NEWNET;
    // SAFETY: neither flag takes anything from this thread that other threads share with it.
    let alone = unsafe { unshare_unsafe(network) };
    if alone.is_err() {
        // SAFETY: as above.
        unsafe { unshare_unsafe(network | UnshareFlags::NEWUSER) }?;
        // Everybody stays who they are: files and sockets show the same owners inside and outside.
        fs::write("/proc/self/setgroups", "deny")?;
        fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
        fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))?;
    }
    let socket = probe()?;
    let flags = sys::interface_flags(&socket, LOOPBACK)?.unwrap_or(0);
    sys::set_interface_flags(&socket, LOOPBACK, flags | UP)
}
