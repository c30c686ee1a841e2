//! The engine of `stp run`: found, or started apart from the program, and kept alive as long as it is used.
//!
//! - Three processes make it: one that is waited for, so that the program inherits no child; the keeper, which starts the
//!   engine anew when it dies; the engine, which leaves when nobody uses it, and with it the keeper.
//! - They write to `engine.log` in the system's place of the run directory, never to the program's terminal.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use stp_host::rendezvous::SystemDir;
use stp_host::run::{Client, Error, Hello};
use stp_medium::VolumeSpec;

use crate::out::say;
use crate::{CliError, Global};

/// How long an engine may take to be ready: a seat of a storage without locks is claimed by waiting, and a busy storage is
/// slow.
const READY_MAX: Duration = Duration::from_secs(60);
/// How long an engine that somebody else started may serve without a door.
const DOOR_MAX: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(10);
/// An engine that `stp run` started leaves when nobody has used it for so long.
pub(crate) const IDLE_EXIT: Duration = Duration::from_secs(30);
/// The keeper's pauses, and how often in a row an engine may fail before it is left alone.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
const FAILURES_MAX: u32 = 40;
/// An engine that lived so long did not fail to start.
const LIVED: Duration = Duration::from_secs(10);

/// The volume as other processes find it, wherever they are.
pub(super) fn absolute(spec: &VolumeSpec) -> OsString {
    let mut text = OsString::new();
    if let Some(kind) = spec.named_kind() {
        text.push(kind.prefix());
        text.push(":");
    }
    text.push(std::path::absolute(spec.path()).unwrap_or_else(|_| spec.path().to_owned()));
    text
}

/// Makes sure that an engine of `dir` runs and has a door; says who it is.
pub(super) fn ensure(global: &Global, dir: &SystemDir, client: &Client) -> Result<Hello, CliError> {
    match client.hello() {
        Ok(hello) => return Ok(hello),
        Err(Error::NoEngine(_)) => {}
        Err(error) => return Err(CliError::new(error)),
    }
    let log = dir.engine_log();
    let begun = Instant::now();
    let mut started = false;
    loop {
        match client.hello() {
            Ok(hello) => return Ok(hello),
            Err(Error::NoEngine(_)) => {}
            Err(error) => return Err(CliError::new(error)),
        }
        let kept = dir.has_keeper().map_err(CliError::new)?;
        let engine = dir.has_engine().map_err(CliError::new)?;
        if !kept && !engine && !started {
            start(global, dir)?;
            started = true;
            continue;
        }
        // Without a keeper nobody will start one any more.
        if !kept && !engine || begun.elapsed() >= READY_MAX {
            return Err(why_not(dir, &log));
        }
        if !kept && begun.elapsed() >= DOOR_MAX {
            return Err(CliError::new(format_args!(
                "the engine of system {} has no door for `stp run`",
                dir.system()
            ))
            .remedy("its own message says why; often: `ip link set lo up`, then start it again"));
        }
        thread::sleep(LOOK);
    }
}

fn why_not(dir: &SystemDir, log: &Path) -> CliError {
    let text = fs::read_to_string(log).unwrap_or_default();
    let last = text.lines().rev().find(|line| !line.trim().is_empty());
    CliError::new(format_args!(
        "no engine of system {} could be started: {}",
        dir.system(),
        last.unwrap_or("it did not say why")
    ))
    .remedy(format_args!("see {}", log.display()))
}

/// Starts the first of the three processes and waits for its end.
fn start(global: &Global, dir: &SystemDir) -> Result<(), CliError> {
    let failed = |error: io::Error| CliError::new(format_args!("cannot start an engine: {error}"));
    let log = dir.open_engine_log().map_err(CliError::new)?;
    log.set_len(0).map_err(failed)?;
    let mut command = engine_command(global)?;
    command.arg("--detach");
    quiet(&mut command, log).map_err(failed)?;
    let status = command.status().map_err(failed)?;
    if !status.success() {
        return Err(CliError::new(format_args!(
            "cannot start an engine: {status}"
        )));
    }
    Ok(())
}

/// `stp engine` with this command's own volume, system and run directory, and none of what `stp run` set for a program.
fn engine_command(global: &Global) -> Result<Command, CliError> {
    let exe = std::env::current_exe()
        .map_err(|error| CliError::new(format_args!("/proc/self/exe: {error}")))?;
    let mut command = Command::new(exe);
    command
        .arg("engine")
        .arg("-V")
        .arg(absolute(&global.volume_spec()?));
    command.arg("--system").arg(global.system_name()?.as_str());
    if let Some(run_dir) = &global.run_dir {
        let run_dir = std::path::absolute(run_dir).unwrap_or_else(|_| run_dir.clone());
        command.arg("--run-dir").arg(run_dir);
    }
    command
        .arg("--door")
        .arg("--idle-exit")
        .arg(IDLE_EXIT.as_secs().to_string());
    command.env_remove("LD_PRELOAD").current_dir("/");
    Ok(command)
}

fn quiet(command: &mut Command, log: File) -> io::Result<()> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::from(log.try_clone()?))
        .stderr(Stdio::from(log));
    Ok(())
}

/// The first process: starts the keeper and is done. The keeper's standard input is the lock of its office, so that
/// whoever sees this process end well finds the lock held as long as the keeper lives.
pub(crate) fn detach(global: &Global, dir: &SystemDir) -> Result<(), CliError> {
    let Some(lock) = dir.lock_keeper().map_err(CliError::new)? else {
        return Ok(()); // another one was faster
    };
    let mut command = engine_command(global)?;
    // Its own group: what the terminal sends to the program is not for it.
    command
        .arg("--keep")
        .stdin(lock.into_file().map_or_else(Stdio::null, Stdio::from))
        .process_group(0);
    command
        .spawn()
        .map(drop)
        .map_err(|error| CliError::new(format_args!("cannot start an engine's keeper: {error}")))
}

/// The keeper: starts the engine, and starts it again when it dies.
pub(crate) fn keep(global: &Global, dir: &SystemDir) -> Result<(), CliError> {
    let (mut failures, mut pause) = (0, PAUSE_MIN);
    loop {
        let begun = Instant::now();
        let mut command = engine_command(global)?;
        // The lock is not for the engine.
        let status = command
            .stdin(Stdio::null())
            .status()
            .map_err(|error| CliError::new(format_args!("cannot start an engine: {error}")))?;
        if status.success() {
            return Ok(());
        }
        if begun.elapsed() >= LIVED {
            (failures, pause) = (0, PAUSE_MIN);
        }
        failures += 1;
        // One that never ran is not wanted by anybody yet: whoever waits for it is told at once.
        let ran = status.code().is_none() || begun.elapsed() >= LIVED || failures > 1;
        if !ran || failures >= FAILURES_MAX {
            return Err(CliError::silent());
        }
        say(format_args!("engine of {}: {status}", dir.system()));
        thread::sleep(pause);
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Tells the engine that it is used as long as this process lives, which is going to be the program.
pub(super) fn stay(client: &Client) -> Result<(), CliError> {
    let pid = rustix::process::getpid();
    let process = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty());
    let process = process.map_err(|errno| {
        CliError::new(format_args!(
            "this process cannot be named: {}",
            io::Error::from(errno)
        ))
    })?;
    client.stay(process).map_err(CliError::new)
}

/// Goes where the engine's door is, if that is another network namespace.
pub(super) fn enter(client: &Client) -> Result<(), CliError> {
    let theirs = client.namespaces().map_err(CliError::new)?;
    let Some(network) = theirs.first() else {
        return Ok(());
    };
    if is_own("net", network) {
        return Ok(());
    }
    let failed = |errno: rustix::io::Errno| {
        CliError::new(format_args!(
            "cannot enter the network namespace of the engine's door: {}",
            io::Error::from(errno)
        ))
        .remedy("`ip link set lo up` here, end the engine and try again")
    };
    if let Some(users) = theirs.get(1).filter(|users| !is_own("user", users)) {
        move_into_link_name_space(users.as_fd(), Some(LinkNameSpaceType::User)).map_err(failed)?;
    }
    move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network)).map_err(failed)
}

fn is_own(kind: &str, theirs: &OwnedFd) -> bool {
    let ours = PathBuf::from("/proc/self/ns").join(kind);
    let (Ok(ours), Ok(theirs)) = (rustix::fs::stat(&ours), rustix::fs::fstat(theirs)) else {
        return false;
    };
    (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_means_the_same_to_a_process_elsewhere() {
        for text in ["mem:/dev/shm/v", "file:/x/v", "block:/dev/sda", "/x/v"] {
            let spec: VolumeSpec = text.parse().unwrap();
            assert_eq!(absolute(&spec), text);
            assert_eq!(VolumeSpec::from(Path::new(&absolute(&spec))), spec);
        }
        let here = std::env::current_dir().unwrap();
        let spec = "mem:v".parse().unwrap();
        assert_eq!(
            absolute(&spec).to_str().unwrap(),
            format!("mem:{}/v", here.display())
        );
    }
}
