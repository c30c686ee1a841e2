//! Files between systems: `stp serve`, `stp cp`, `stp ls`. `docs/FILES.md` has the protocol and the behaviour.
//!
//! - Everything below [`stream`] works over any pair of byte streams; only that module knows groups.
//! - A transfer has a sender and a receiver; either may be the server.

pub mod client;
mod codec;
mod commit;
pub mod digest;
pub mod link;
pub mod listing;
pub mod paths;
pub mod progress;
pub mod receive;
pub mod report;
pub mod send;
pub mod server;
pub mod source;
pub mod stream;
pub mod target;
#[allow(missing_docs)] // the fields are named by their messages
pub mod wire;

use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use crate::signals::EndSignals;
use crate::{CliError, Global};

/// The port of the file service.
pub const PORT: u16 = 2121;

/// Options of `stp serve`.
#[derive(clap::Args, Debug)]
pub struct ServeArgs {
    /// The folder to serve
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// The port to listen on
    #[arg(long, value_name = "PORT", default_value_t = PORT)]
    pub port: u16,
    /// Refuse everything that would change the folder
    #[arg(long)]
    pub read_only: bool,
}

/// Options of `stp cp`.
#[derive(clap::Args, Debug)]
pub struct CpArgs {
    /// Copy folders with everything in them; symbolic links are copied as links
    #[arg(short, long)]
    pub recursive: bool,
    /// Say nothing but what failed
    #[arg(short, long)]
    pub quiet: bool,
    /// How often to try again after a lost connection before giving up; counts anew when something has moved
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub retries: u32,
    /// The port that the other system serves files on
    #[arg(long, value_name = "PORT", default_value_t = PORT)]
    pub port: u16,
    /// Sources, then the destination; SYSTEM:PATH is below the folder that another system serves
    #[arg(value_name = "SRC... DST", num_args = 2.., required = true)]
    pub paths: Vec<OsString>,
}

/// Options of `stp ls`.
#[derive(clap::Args, Debug)]
pub struct LsArgs {
    /// With mode, size and time (UTC)
    #[arg(short, long)]
    pub long: bool,
    /// Names that begin with a dot too
    #[arg(short, long)]
    pub all: bool,
    /// The port that the other system serves files on
    #[arg(long, value_name = "PORT", default_value_t = PORT)]
    pub port: u16,
    /// What to list, below the folder that the system serves
    #[arg(value_name = "SYSTEM:PATH")]
    pub path: OsString,
}

/// Runs `stp serve`.
pub fn serve(global: &Global, args: ServeArgs) -> Result<(), CliError> {
    let shown = args.dir.display();
    let root = std::fs::File::open(&args.dir).map_err(|e| {
        CliError::new(format_args!("folder {shown}: {e}")).remedy("name a folder that can be read")
    })?;
    if !root.metadata().is_ok_and(|m| m.is_dir()) {
        return Err(CliError::new(format_args!("{shown}: not a folder"))
            .remedy("name the folder that holds it"));
    }
    paths::raise_open_files();
    let signals = EndSignals::watch()?;
    let group = global.group()?;
    let acceptor = stream::listen(&group, args.port)?;
    let access = if args.read_only { " (read-only)" } else { "" };
    crate::out::say(format_args!(
        "serving {shown} at {}{access}",
        acceptor.address()
    ));
    let server = server::Server::new(OwnedFd::from(root), args.read_only);
    server.run(&acceptor, signals.as_fd()).map_err(|e| {
        CliError::new(format_args!(
            "serving {shown} at {}: {e}",
            acceptor.address()
        ))
    })
}

/// Runs `stp cp`.
pub fn cp(global: &Global, args: CpArgs) -> Result<(), CliError> {
    let connector = stream::Systems::new(global, args.port);
    connector.group()?;
    let options = client::Options {
        recursive: args.recursive,
        quiet: args.quiet,
        retries: args.retries,
    };
    client::copy(&connector, &args.paths, options).map(|_| ())
}

/// Runs `stp ls`.
pub fn ls(global: &Global, args: LsArgs) -> Result<(), CliError> {
    let client::Operand::Remote { system, path } = client::Operand::parse(&args.path) else {
        return Err(CliError::usage(format_args!(
            "{}: not on another system",
            args.path.display()
        ))
        .remedy("name it as SYSTEM:PATH (SYSTEM: is the served folder itself)"));
    };
    let connector = stream::Systems::new(global, args.port);
    connector.group()?;
    let mut entries = client::list(&connector, &system, &path)?;
    if !args.all && entries.len() > 1 {
        entries.retain(|(name, _)| name.first() != Some(&b'.'));
    }
    if global.json {
        crate::out::json(&listing::json(&entries))
    } else {
        crate::out::data(listing::text(&entries, args.long))
    }
}
