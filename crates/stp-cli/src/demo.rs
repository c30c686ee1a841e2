//! `stp demo`: shows it working on this machine.

use crate::{CliError, Global};

/// Options of `stp demo`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Keep the temporary folder
    #[arg(long)]
    pub keep: bool,
}

/// Runs the command.
pub fn run(_global: &Global, _args: Args) -> Result<(), CliError> {
    Err(CliError::new("demo: not built yet"))
}
