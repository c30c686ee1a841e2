//! `stp format`: makes a volume.

use crate::{CliError, Global};

/// Options of `stp format`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The device or file
    #[arg(value_name = "VOL")]
    pub volume: Option<String>,
    /// The name of the group
    #[arg(long, value_name = "NAME")]
    pub group: stp_format::GroupName,
    /// How big a file is made [default: 256MiB; a device is used whole]
    #[arg(long, value_name = "SIZE")]
    pub size: Option<String>,
    /// How many nodes can be attached at the same time
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub seats: u16,
    /// Overwrite what is there
    #[arg(long)]
    pub force: bool,
}

/// Runs the command.
pub fn run(_global: &Global, _args: Args) -> Result<(), CliError> {
    Err(CliError::new("format: not built yet"))
}
