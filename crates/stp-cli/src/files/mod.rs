//! Files between systems: `stp serve`, `stp cp`, `stp ls`.

use std::path::PathBuf;

use crate::{CliError, Global};

/// Options of `stp serve`.
#[derive(clap::Args, Debug)]
pub struct ServeArgs {
    /// The folder to serve
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// The port to listen on
    #[arg(long, value_name = "PORT", default_value_t = 2121)]
    pub port: u16,
    /// Refuse everything that would change the folder
    #[arg(long)]
    pub read_only: bool,
}

/// Options of `stp cp`.
#[derive(clap::Args, Debug)]
pub struct CpArgs {
    /// Copy folders with everything in them
    #[arg(short, long)]
    pub recursive: bool,
    /// Sources, then the destination; SYSTEM:PATH is on another system
    #[arg(value_name = "SRC... DST", num_args = 2.., required = true)]
    pub paths: Vec<String>,
}

/// Options of `stp ls`.
#[derive(clap::Args, Debug)]
pub struct LsArgs {
    /// What to list
    #[arg(value_name = "SYSTEM:PATH")]
    pub path: String,
}

/// Runs `stp serve`.
pub fn serve(_global: &Global, _args: ServeArgs) -> Result<(), CliError> {
    Err(CliError::new("serve: not built yet"))
}

/// Runs `stp cp`.
pub fn cp(_global: &Global, _args: CpArgs) -> Result<(), CliError> {
    Err(CliError::new("cp: not built yet"))
}

/// Runs `stp ls`.
pub fn ls(_global: &Global, _args: LsArgs) -> Result<(), CliError> {
    Err(CliError::new("ls: not built yet"))
}
