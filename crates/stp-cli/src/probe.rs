//! `stp probe`: measures a storage.

use crate::{CliError, Global};

/// Options of `stp probe`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The device or file
    #[arg(value_name = "VOL")]
    pub volume: Option<String>,
}

/// Runs the command.
pub fn run(_global: &Global, _args: Args) -> Result<(), CliError> {
    Err(CliError::new("probe: not built yet"))
}
