//! `stp forward`: TCP connections over the volume.
//!
//! - Nothing is open unless it was named; what listens on TCP does so on 127.0.0.1 unless an address was
//!   named too; another system can have this one listen only with `--accept-remote`.
//! - Half-close and resets are carried both ways ([`relay`]); one bad connection harms no other.
//! - One thread carries all connections; connecting is done by a few others (`dial`).

mod dial;
mod reactor;
pub mod relay;
pub mod remote;
pub mod socks;
pub mod spec;

use std::sync::Arc;

use crate::signals::EndSignals;
use crate::{CliError, Global};
use reactor::Reactor;
use spec::{Dynamic, Expose, Local, Remote};

const EXAMPLES: &str = "\
Examples:
  stp forward --expose 80=localhost:8080       this host's web server, for the group, as port 80
  stp forward -L 8080:beta:80                  curl http://localhost:8080/ reaches beta's
  stp forward -D 1080                          curl -x socks5h://localhost:1080 http://beta.stp/
  stp forward --accept-remote=alpha            on beta: let alpha ask for ports
  stp forward -R beta:8080:localhost:3000      on alpha: beta's localhost:8080 reaches our port 3000

Several of each can stand in one command. It runs until SIGINT or SIGTERM.";

/// Options of `stp forward`.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Listen on TCP here, and connect to SYSTEM:PORT on the volume
    #[arg(short = 'L', long, value_name = "[ADDR:]PORT:SYSTEM:PORT")]
    pub local: Vec<Local>,

    /// Have SYSTEM listen on TCP, on its 127.0.0.1:PORT, and connect to HOST:HOSTPORT from here; needs
    /// --accept-remote there
    #[arg(short = 'R', long, value_name = "SYSTEM:PORT:HOST:HOSTPORT")]
    pub remote: Vec<Remote>,

    /// Be a SOCKS5 proxy here: the name NAME.stp, or NAME, is the system NAME
    #[arg(short = 'D', long, value_name = "[ADDR:]PORT")]
    pub dynamic: Vec<Dynamic>,

    /// Listen on STPPORT of this system on the volume, and connect to HOST:PORT by TCP from here
    #[arg(long, value_name = "STPPORT=HOST:PORT")]
    pub expose: Vec<Expose>,

    /// Let other systems have this one listen on its 127.0.0.1 (-R there); with names: only these
    #[arg(
        long,
        value_name = "SYSTEM,...",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "*"
    )]
    pub accept_remote: Option<String>,
}

/// Which systems may have this one listen.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Askers {
    Any,
    These(Vec<stp::SystemName>),
}

impl Askers {
    fn parse(text: &str) -> Result<Self, CliError> {
        if text == "*" {
            return Ok(Self::Any);
        }
        let names = text.split(',').map(|name| {
            name.parse().map_err(|error| {
                CliError::usage(format_args!("--accept-remote: {name:?}: {error}"))
                    .remedy("name systems, with commas between them")
            })
        });
        names.collect::<Result<_, _>>().map(Self::These)
    }

    fn includes(&self, system: &stp::SystemName) -> bool {
        match self {
            Self::Any => true,
            Self::These(names) => names.contains(system),
        }
    }
}

/// Runs until a signal.
pub fn run(global: &Global, args: Args) -> Result<(), CliError> {
    let askers = args
        .accept_remote
        .as_deref()
        .map(Askers::parse)
        .transpose()?;
    let nothing = args.local.is_empty()
        && args.remote.is_empty()
        && args.dynamic.is_empty()
        && args.expose.is_empty()
        && askers.is_none();
    if nothing {
        return Err(CliError::usage("nothing to forward").remedy(
            "name it with -L, -R, -D, --expose or --accept-remote (see stp forward --help)",
        ));
    }
    let signals = EndSignals::watch()?;
    allow_many_descriptors();
    let group = global.group()?;
    let mut reactor = Reactor::new(group, signals)?;
    for spec in &args.local {
        reactor.forward_local(spec)?;
    }
    for spec in &args.dynamic {
        reactor.forward_dynamic(spec)?;
    }
    for spec in &args.expose {
        reactor.expose(spec)?;
    }
    if let Some(askers) = askers {
        reactor.accept_remote(askers)?;
    }
    reactor.forward_remote(args.remote)?;
    reactor.run()
}

/// Raises the soft limit of open files to the hard one: a connection needs two, or four with an engine
/// in this process.
fn allow_many_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!(
            "the limit of open files stays at {:?}: {error}",
            limit.current
        );
    }
}

fn label(text: impl std::fmt::Display) -> Arc<str> {
    text.to_string().into()
}
