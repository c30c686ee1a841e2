//! `stp engine`: the engine that the programs of a host share.

use crate::{CliError, Global};

/// Options of `stp engine`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// End when no program has used it for so many seconds
    #[arg(long, value_name = "SECS")]
    pub idle_exit: Option<u64>,
    /// Reads a second that polling may cost while nothing happens
    #[arg(long, value_name = "N")]
    pub poll_iops: Option<u32>,
}

/// Runs the command.
pub fn run(_global: &Global, _args: Args) -> Result<(), CliError> {
    Err(CliError::new("engine: not built yet"))
}
