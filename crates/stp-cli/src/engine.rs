//! `stp engine`: the engine that the programs of a host share.
//!
//! - In the foreground, one a system: a second one is refused before it touches the volume.
//! - It ends by SIGTERM or SIGINT, and then leaves its seat in order; a second signal ends it at once.

mod place;

use std::sync::Arc;
use std::time::{Duration, Instant};

use stp_host::control::{Calls, Server};
use stp_host::engine::{EngineConfig, EngineHandle, start};
use stp_host::rendezvous::{RunDir, SystemDir};

use crate::out::say;
use crate::signals::EndSignals;
use crate::{CliError, Global};

/// How often it is looked whether the engine still runs, and whether anybody uses it.
const LOOK: Duration = Duration::from_millis(250);

const EXAMPLES: &str = "\
Examples:
  stp engine -V /dev/sdb                     until SIGTERM or SIGINT
  stp engine -V /dev/sdb --idle-exit 600     also ends after ten minutes without a program
  stp engine -V /dev/sdb --group-access stp  serves every user of the group stp; they set STP_RUN_DIR

Programs of this host find it by the run directory. Without it each program runs an engine of its own.";

/// Options of `stp engine`.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// End when no program has used it for so many seconds
    #[arg(long, value_name = "SECS", value_parser = crate::cat::seconds)]
    pub idle_exit: Option<Duration>,

    /// Start an engine apart, which is kept alive while it is used: for `stp run`
    #[arg(long, hide = true)]
    pub detach: bool,

    /// End at once if programs under `stp run` cannot be served: it is for them
    #[arg(long, hide = true)]
    pub door: bool,

    /// Start an engine and start it again when it dies: for `stp run`
    #[arg(long, hide = true, conflicts_with = "detach")]
    pub keep: bool,

    /// Reads a second that looking for news may cost while nothing happens; 0: no bound
    #[arg(long, value_name = "N")]
    pub poll_iops: Option<u32>,

    /// Share the run directory, and this engine, with the users of a group (its name or number); lasts until
    /// `chmod 700` takes it back
    #[arg(long, value_name = "GROUP")]
    pub group_access: Option<String>,
}

/// Runs until a signal.
pub fn run(global: &Global, args: Args) -> Result<(), CliError> {
    let system = global.system_name()?;
    let spec = global.volume_spec()?;
    let looked_at = stp_host::volume::open_read_only(&spec).map_err(CliError::new)?;
    let superblock = *looked_at.superblock();
    drop(looked_at);
    let mut run_dir = RunDir::open_default(global.run_dir.as_deref()).map_err(CliError::new)?;
    if let Some(group) = &args.group_access {
        run_dir.share(group_id(group)?).map_err(CliError::new)?;
    }
    let dir = run_dir
        .system(superblock.volume, &system)
        .map_err(CliError::new)?;
    if args.detach {
        return crate::run::detach(global, &dir);
    }
    // Before there is a second thread.
    let private = stp_host::run::namespace::ensure(&dir).map_err(CliError::new);
    if args.keep {
        private?;
        return crate::run::keep(global, &dir);
    }
    refuse_second(&dir)?;
    let volume = stp_host::volume::open(&spec).map_err(CliError::new)?;
    let signals = EndSignals::watch()?;
    raise_descriptor_limit();
    let host = run_dir.host_id().map_err(CliError::new)?;
    let label = volume.spec().to_string();
    let mut config = EngineConfig::new(volume.into_medium(), label, superblock, dir.clone(), host);
    if let Some(iops) = args.poll_iops {
        config.timings.poll_iops = iops;
    }
    let engine = start(config).map_err(CliError::new)?;
    match private {
        Ok(false) => {}
        Ok(true) => say(format_args!(
            "engine of {system}: no interface is up here: programs under `stp run` get a network namespace of their own"
        )),
        Err(error) => say(format_args!("engine of {system}: {error}")),
    }
    let calls: Arc<dyn Calls> = Arc::new(engine.clone());
    let server = Server::start(&dir, calls).map_err(CliError::new)?;
    let door = match stp_host::run::Server::start(&dir, engine.clone()) {
        Ok(door) => Some(door),
        Err(error) => {
            let text = format!("engine of {system}: no door for `stp run`: {error}");
            if args.door {
                engine.leave();
                return Err(CliError::new(text));
            }
            // Everything else works; programs under `stp run` are told.
            say(format_args!("{text}"));
            None
        }
    };
    let info = engine.volume();
    say(format_args!(
        "engine of {system} ready: group {}, volume {} ({}), seat {}",
        info.group,
        info.label,
        info.storage,
        engine.seat()
    ));
    if let Err(error) = place::watch(spec.path(), system) {
        say(format_args!(
            "engine of {system}: {}: {error}: it is not watched whether the volume stays there",
            spec.path().display()
        ));
    }
    let ended = serve(&signals, &engine, &server, door.as_ref(), args.idle_exit);
    signals.restore_default();
    drop(door);
    drop(server);
    match ended {
        Ended::Asked => engine.leave(),
        Ended::Idle => {
            say(format_args!("engine of {system}: nobody uses it any more"));
            engine.leave();
        }
        Ended::Stopped(why) => return Err(CliError::new(why)),
    }
    Ok(())
}

/// A descriptor a stream: as many as the system allows.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!(%error, "the limit of open files stays");
    }
}

/// The number of a group: itself, or as `/etc/group` has it.
fn group_id(group: &str) -> Result<u32, CliError> {
    if let Ok(number) = group.parse() {
        return Ok(number);
    }
    let list = std::fs::read_to_string("/etc/group").unwrap_or_default();
    let number = list.lines().find_map(|line| {
        let mut fields = line.split(':');
        let found = fields.next() == Some(group);
        fields.nth(1).filter(|_| found)?.parse().ok()
    });
    number.ok_or_else(|| {
        CliError::new(format_args!(
            "--group-access {group}: /etc/group has no such group"
        ))
        .remedy("make it with `groupadd`, or give its number")
    })
}

/// Why it ends.
enum Ended {
    Asked,
    Idle,
    Stopped(String),
}

fn serve(
    signals: &EndSignals,
    engine: &EngineHandle,
    server: &Server,
    door: Option<&stp_host::run::Server>,
    idle_exit: Option<Duration>,
) -> Ended {
    let mut used = Instant::now();
    loop {
        if signals.wait(Some(LOOK)).is_some() {
            return Ended::Asked;
        }
        if let Some(why) = engine.stopped() {
            return Ended::Stopped(why.to_string());
        }
        if let Some(limit) = idle_exit {
            let streams = || engine.stats().map_or(0, |stats| stats.streams);
            let users = server.clients() + door.map_or(0, stp_host::run::Server::users);
            if users > 0 || streams() > 0 {
                used = Instant::now();
            } else if used.elapsed() >= limit {
                return Ended::Idle;
            }
        }
    }
}

/// The lock is taken for good when the server starts; here it is only looked at, before anything is done
/// that a second engine should not do.
fn refuse_second(dir: &SystemDir) -> Result<(), CliError> {
    match dir.lock_engine() {
        Ok(Some(_)) => Ok(()),
        Ok(None) => Err(CliError::new(format_args!(
            "an engine of system {} runs already ({})",
            dir.system(),
            dir.path().display()
        ))
        .remedy("use that one, stop it, or name another system with --system")),
        Err(error) => Err(
            CliError::new(format_args!("{}: {error}", dir.path().display()))
                .remedy("check the permissions of the run directory"),
        ),
    }
}
