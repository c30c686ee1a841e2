//! `stp forward`: TCP connections over the volume.

use crate::{CliError, Global};

/// Options of `stp forward`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Listen on TCP here, connect to SYSTEM:PORT on the volume
    #[arg(short = 'L', value_name = "[ADDR:]PORT:SYSTEM:PORT")]
    pub local: Vec<String>,
}

/// Runs the command.
pub fn run(_global: &Global, _args: Args) -> Result<(), CliError> {
    Err(CliError::new("forward: not built yet"))
}
