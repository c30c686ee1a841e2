//! The doors: what `stp` understands on its command line, and where each command goes.
//!
//! - A door routes: what a command does lives in the floors below, or in the one module named after it.
//! - Exit codes: 0 done, 1 failed, 2 wrong usage. A failure is one line on standard error that says what,
//!   where and what to do ([`CliError`]).
//! - Standard output carries data only; everything said to people goes to standard error.
//! - When the reader of standard output goes away, `stp` ends by SIGPIPE as other filters do.

pub mod bench;
pub mod cat;
pub mod check;
pub mod cli;
pub mod demo;
pub mod engine;
pub mod error;
pub mod files;
pub mod format;
pub mod forward;
pub mod global;
pub mod info;
pub mod logging;
pub mod out;
pub mod probe;
pub mod run;
pub mod signals;
pub mod ss;
mod sys;

use std::error::Error as _;
use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};

pub use cli::{Cli, Command};
pub use error::CliError;
pub use global::Global;

/// The whole program: parses, runs the command, reports its failure.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match parse(args) {
        Ok(cli) => cli,
        Err(error) => return report_usage(&error),
    };
    logging::start(cli.global.verbose);
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error.report(),
    }
}

/// Reads a command line.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let mut command = Cli::command();
    let mut matches = command.try_get_matches_from_mut(args)?;
    Cli::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command))
}

/// Runs the command that was asked for.
pub fn run(cli: Cli) -> Result<(), CliError> {
    let global = &cli.global;
    match cli.command {
        Command::Format(args) => format::run(global, args),
        Command::Info(args) => info::run(global, args),
        Command::Check(args) => check::run(global, args),
        Command::Probe(args) => probe::run(global, args),
        Command::Engine(args) => engine::run(global, args),
        Command::Cat(args) => cat::run(global, args),
        Command::Serve(args) => files::serve(global, args),
        Command::Cp(args) => files::cp(global, args),
        Command::Ls(args) => files::ls(global, args),
        Command::Run(args) => run::run(global, &args),
        Command::Forward(args) => forward::run(global, args),
        Command::Ss(args) => ss::run(global, args),
        Command::Bench(args) => bench::run(global, args),
        Command::Demo(args) => demo::run(global, args),
    }
}

/// Prints help and version to standard output, everything else to standard error; 2 for wrong usage. An address
/// with a name that is none is no wrong usage: one line, as for every failure.
fn report_usage(error: &clap::Error) -> ExitCode {
    if let Some(bad) = error.source()
        && bad
            .source()
            .is_some_and(|name| name.is::<stp_format::NameError>())
    {
        return CliError::new(bad).report();
    }
    let printed = error.print();
    if !error.use_stderr() {
        return match printed {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => CliError::from_stdout(error).report(),
        };
    }
    ExitCode::from(2)
}
