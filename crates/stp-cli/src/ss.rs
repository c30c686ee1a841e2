//! `stp ss`: sockets, and what polling costs.

use crate::{CliError, Global};

/// Options of `stp ss`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Sockets of all systems
    #[arg(short, long)]
    pub all: bool,
    /// Only listening sockets
    #[arg(short, long)]
    pub listening: bool,
}

/// Runs the command.
pub fn run(_global: &Global, _args: Args) -> Result<(), CliError> {
    Err(CliError::new("ss: not built yet"))
}
