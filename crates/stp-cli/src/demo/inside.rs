//! One of the demo's systems: takes away what the other must not be reached by, then becomes `stp`.

use std::ffi::OsString;
use std::net::UdpSocket;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::process::{Signal, set_parent_process_death_signal};
use rustix::thread::UnshareFlags;

use crate::CliError;
use crate::out::say;

/// What the demo tells its own processes.
#[derive(clap::Args, Debug)]
pub(super) struct Inside {
    /// Be this system of the demo
    #[arg(long, hide = true)]
    inside: Option<String>,

    /// Leave the network, and see nothing in this folder
    #[arg(long, hide = true, requires = "inside")]
    hide: Option<PathBuf>,

    /// What to run then
    #[arg(last = true, hide = true, requires = "inside")]
    command: Vec<OsString>,
}

impl Inside {
    pub(super) fn name(&self) -> Option<&str> {
        self.inside.as_deref()
    }
}

/// Does not return unless it fails.
pub(super) fn become_system(name: &str, inside: &Inside) -> Result<(), CliError> {
    // Whatever becomes of the demo, its systems end with it.
    set_parent_process_death_signal(Some(Signal::TERM)).map_err(|error| failed(name, error))?;
    if let Some(hidden) = &inside.hide {
        isolate(hidden).map_err(|error| failed(name, error))?;
        say(format_args!("{name}: {}", network()?));
    }
    let program = std::env::current_exe().map_err(|error| failed(name, error))?;
    Err(failed(
        name,
        Command::new(program).args(&inside.command).exec(),
    ))
}

fn failed(name: &str, error: impl std::fmt::Display) -> CliError {
    CliError::new(format_args!("the demo's {name} cannot start: {error}"))
}

/// A network namespace of our own, where nothing is set up, and a mount namespace without the folder.
fn isolate(hidden: &Path) -> Result<(), Errno> {
    #[expect(
        deprecated,
        reason = "what is unsafe is to unshare descriptors, which these two flags leave alone"
    )]
    rustix::thread::unshare(UnshareFlags::NEWNET | UnshareFlags::NEWNS)?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private)?;
    let flags = MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID;
    mount("none", hidden, "tmpfs", flags, c"size=4k")
}

/// Makes sure that there is no way out but storage, and says so.
fn network() -> Result<String, CliError> {
    let table = std::fs::read_to_string("/proc/thread-self/net/dev")
        .map_err(|error| CliError::new(format_args!("cannot list network interfaces: {error}")))?;
    let interfaces = interfaces(&table);
    if interfaces.iter().any(|name| *name != "lo") {
        return Err(CliError::new(format_args!(
            "the demo's system has network interfaces: {}",
            interfaces.join(", ")
        )));
    }
    // With `lo` down there is not even a way to ourselves.
    let reached = UdpSocket::bind("0.0.0.0:0").and_then(|socket| socket.connect("127.0.0.1:9"));
    match reached {
        Ok(()) => Err(CliError::new(
            "the demo's system has a loopback interface that is up",
        )),
        Err(error) => Ok(format!(
            "network interfaces: {}, down; connecting to 127.0.0.1: {error}",
            interfaces.join(", ")
        )),
    }
}

/// The names in the kernel's table: two lines of heading, then `name: numbers`.
fn interfaces(table: &str) -> Vec<&str> {
    table
        .lines()
        .skip(2)
        .filter_map(|line| Some(line.split_once(':')?.0.trim()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_read() {
        let table =
            "Inter-|   Receive   |  Transmit\n face |bytes |bytes\n    lo: 0 0\n  eth0: 1 2\n";
        assert_eq!(interfaces(table), ["lo", "eth0"]);
    }
}
