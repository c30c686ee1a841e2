//! `stp cat`: standard input and output over a stream.

use crate::{CliError, Global};

/// Options of `stp cat`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// SYSTEM:PORT to connect to
    #[arg(value_name = "SYSTEM:PORT", required_unless_present = "listen")]
    pub address: Option<String>,
    /// Listen on this port (0: a free one, said on standard error) and take one connection
    #[arg(short, long, value_name = "PORT", conflicts_with = "address")]
    pub listen: Option<u16>,
    /// Give up when no connection stands after so many seconds
    #[arg(short = 'w', long, value_name = "SECS")]
    pub timeout: Option<f64>,
    /// Keep trying for so many seconds while nobody listens there yet
    #[arg(long, value_name = "SECS", conflicts_with = "listen")]
    pub retry: Option<f64>,
}

/// Runs the command.
pub fn run(_global: &Global, _args: Args) -> Result<(), CliError> {
    Err(CliError::new("cat: not built yet"))
}
