//! Options that every command takes, and the group they lead to.

use std::path::PathBuf;

use clap::Args;
use stp_format::{NameError, SystemName};
use stp_medium::VolumeSpec;

use crate::CliError;

/// Options that every command takes.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// The volume: a device or a file; or `file:PATH`, `block:PATH`, `mem:PATH` to say which kind
    #[arg(
        short = 'V',
        long = "volume",
        value_name = "VOL",
        env = "STP_VOLUME",
        global = true,
        hide_env_values = true
    )]
    pub volume: Option<String>,

    /// The name of this system in the group [default: the host name]
    #[arg(
        long,
        value_name = "NAME",
        env = "STP_SYSTEM",
        global = true,
        hide_env_values = true
    )]
    pub system: Option<String>,

    /// Where the programs of this host meet [default: $XDG_RUNTIME_DIR/stp, or /run/stp for root, or
    /// /tmp/stp-UID]
    #[arg(
        long,
        value_name = "DIR",
        env = "STP_RUN_DIR",
        global = true,
        hide_env_values = true
    )]
    pub run_dir: Option<PathBuf>,

    /// Write data as JSON
    #[arg(long, global = true)]
    pub json: bool,

    /// Say what happens on standard error; twice and three times say more (STP_LOG overrides)
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub verbose: u8,
}

impl Global {
    /// The volume that the command works on; an error that says how to name one if there is none.
    pub fn volume(&self) -> Result<&str, CliError> {
        match self.volume.as_deref() {
            Some(volume) if !volume.is_empty() => Ok(volume),
            _ => Err(CliError::usage("no volume named")
                .remedy("say which with -V VOL or the environment variable STP_VOLUME")),
        }
    }

    /// The same as a checked name.
    pub fn volume_spec(&self) -> Result<VolumeSpec, CliError> {
        let volume = self.volume()?;
        volume
            .parse()
            .map_err(|error| CliError::usage(format_args!("volume {volume}: {error}")))
    }

    /// The name of this system: as it was given, else the host's.
    pub fn system_name(&self) -> Result<SystemName, CliError> {
        if let Some(system) = &self.system {
            return name("system name", "--system or STP_SYSTEM", system);
        }
        let host = rustix::system::uname();
        let host = host.nodename().to_string_lossy();
        name(
            "the host name, used as system name,",
            "--system or STP_SYSTEM",
            &host,
        )
    }

    /// Opens the group on the volume, by the host's shared engine or one in this process.
    pub fn group(&self) -> Result<stp::Group, CliError> {
        let mut builder = stp::Group::builder(self.volume()?);
        if self.system.is_some() {
            builder = builder.system(self.system_name()?.as_str());
        }
        if let Some(run_dir) = &self.run_dir {
            builder = builder.run_dir(run_dir);
        }
        builder.open().map_err(CliError::new)
    }

    /// The volume for commands that take it as an argument too: the argument first, then the option.
    pub fn volume_or<'a>(&'a self, argument: Option<&'a str>) -> Result<&'a str, CliError> {
        match argument {
            Some(volume) if !volume.is_empty() => Ok(volume),
            _ => self.volume(),
        }
    }
}

/// Checks a name that was given by `option`. The failure is one line that names it and what to do.
pub fn name<N: std::str::FromStr<Err = NameError>>(
    what: &str,
    option: &str,
    text: &str,
) -> Result<N, CliError> {
    text.parse().map_err(|error| {
        CliError::new(format_args!("{what} {text:?}: {error}"))
            .remedy(format_args!("give another with {option}"))
    })
}
