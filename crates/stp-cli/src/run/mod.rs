//! `stp run`: an unmodified program, whose TCP sockets reach the systems of a volume.
//!
//! - The program takes the place of `stp run`: its process number, its exit code, its signals, its terminal are its own.
//! - Before that it is made sure that an engine runs (started apart, kept alive, gone when nobody uses it), that the
//!   program can be reached by a preloaded library, and that every system named exists.

mod elf;
mod engine;
mod library;
mod program;

pub(crate) use engine::{detach, keep};

use std::ffi::OsString;
use std::net::IpAddr;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use stp_format::SystemName;
use stp_host::address::SystemNumber;
use stp_host::rendezvous::RunDir;
use stp_host::run::{RELEASE, Way, env};

use crate::{CliError, Global};

const EXAMPLES: &str = "\
Examples:
  stp run -- redis-server --port 6379                    on alpha: its port is on the volume
  stp run -- redis-cli -h alpha.stp -p 6379              on beta
  stp run --map 10.0.0.7=alpha -- psql -h 10.0.0.7       a configured address means a system

SYSTEM.stp resolves to a system's address, the same on every host. Loopback means this system.
Static, Go and setuid programs cannot be reached so: use `stp forward` for them.";

/// Options of `stp run`.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Let a real address mean a system; may be given more than once
    #[arg(long, value_name = "IP=SYSTEM", value_parser = mapping)]
    pub map: Vec<(IpAddr, SystemName)>,

    /// The program and its arguments
    #[arg(
        value_name = "CMD",
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    pub command: Vec<OsString>,
}

fn mapping(text: &str) -> Result<(IpAddr, SystemName), String> {
    let (ip, system) = text
        .split_once('=')
        .ok_or("an address, '=' and a system: 10.0.0.7=alpha")?;
    let ip: IpAddr = ip.parse().map_err(|_| format!("{ip:?} is no IP address"))?;
    let system = system
        .parse()
        .map_err(|error| format!("system {system:?}: {error}"))?;
    Ok((ip, system))
}

/// Becomes the program; returns only if that fails.
pub fn run(global: &Global, args: &Args) -> Result<(), CliError> {
    let (name, arguments) = args
        .command
        .split_first()
        .ok_or_else(|| CliError::usage("no program named"))?;
    let program = program::find(name)?;
    program::examine(&program)?;
    let library = library::find()?;
    library::check(&library)?;
    let system = global.system_name()?;
    let spec = global.volume_spec()?;
    let volume = stp_host::volume::open_read_only(&spec).map_err(CliError::new)?;
    let volume_id = volume.superblock().volume;
    drop(volume);
    let run_dir = RunDir::open_default(global.run_dir.as_deref()).map_err(CliError::new)?;
    let dir = run_dir.system(volume_id, &system).map_err(CliError::new)?;
    let way = || Way::of(&dir).map_err(CliError::new);
    let hello = engine::ensure(global, &dir, &way()?.client().map_err(CliError::new)?)?;
    // As it is now: the engine may have made a new key.
    let way = way()?;
    let client = way.client().map_err(CliError::new)?;
    if hello.release.as_str() != RELEASE {
        return Err(CliError::new(format_args!(
            "the engine of system {system} is stp {}, this is stp {RELEASE}",
            hello.release
        ))
        .remedy("end that engine and try again, or use one release"));
    }
    for (_, mapped) in &args.map {
        check_known(&client, mapped)?;
    }
    engine::enter(&client)?;
    engine::stay(&client)?;

    let mut map: Vec<String> = Vec::new();
    // What an outer `stp run` maps stays, unless it is mapped anew.
    if let Ok(outer) = std::env::var(env::RUN_MAP) {
        let ours = |entry: &str| {
            let ip = entry.split('=').next().and_then(|ip| ip.parse().ok());
            args.map.iter().any(|(known, _)| Some(*known) == ip)
        };
        let outer = outer.split(',').filter(|entry| !entry.is_empty());
        map.extend(outer.filter(|entry| !ours(entry)).map(str::to_owned));
    }
    map.extend(args.map.iter().map(|(ip, system)| format!("{ip}={system}")));

    let mut command = Command::new(&program);
    command.arg0(name).args(arguments);
    command
        .env(env::VOLUME, engine::absolute(&spec))
        .env(env::SYSTEM, system.as_str())
        .env(env::RUN_DIR, run_dir.path())
        .env(env::RUN_VOLUME_ID, volume_id.to_string())
        .env(env::RUN_SOCKET, OsString::from_vec(way.variable()))
        .env(env::RUN_KEY, way.key().to_hex())
        .env(env::RUN_USERS, way.users())
        .env(env::RUN_MAP, map.join(","))
        .env(env::RUN_VERSION, RELEASE)
        .env("LD_PRELOAD", library::with_others(&library));
    let error = command.exec();
    Err(
        CliError::new(format_args!("{}: {error}", program.display()))
            .remedy("is it a program for this machine, with its interpreter installed?"),
    )
}

fn check_known(client: &stp_host::run::Client, system: &SystemName) -> Result<(), CliError> {
    let found: Option<SystemNumber> = client.resolve(system).map_err(CliError::new)?;
    if found.is_some() {
        return Ok(());
    }
    let known = client.systems().map_err(CliError::new)?;
    let known: Vec<&str> = known.iter().map(|entry| entry.name.as_str()).collect();
    Err(CliError::new(format_args!(
        "--map: no system {system} on this volume, only {}",
        known.join(", ")
    ))
    .remedy("check the name, or start an engine there first"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_is_an_address_and_a_system() {
        let (ip, system) = mapping("10.0.0.7=alpha").unwrap();
        assert_eq!(
            (ip.to_string(), system.as_str()),
            ("10.0.0.7".to_owned(), "alpha")
        );
        assert!(mapping("fe80::1=a.b").is_ok());
        for bad in [
            "alpha",
            "alpha=10.0.0.7",
            "10.0.0.7=",
            "10.0.0.7=-x",
            "=alpha",
        ] {
            assert!(mapping(bad).is_err(), "{bad}");
        }
    }
}
