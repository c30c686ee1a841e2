//! `stp info`: shows what a volume is.

use crate::{CliError, Global};

/// Options of `stp info`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The device or file
    #[arg(value_name = "VOL")]
    pub volume: Option<String>,
}

/// Runs the command.
pub fn run(_global: &Global, _args: Args) -> Result<(), CliError> {
    Err(CliError::new("info: not built yet"))
}
