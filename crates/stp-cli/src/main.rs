//! The `stp` command. Everything is in the library beside it, so that its parts can be tested and its
//! list of commands can be read by other tools.

use std::process::ExitCode;

fn main() -> ExitCode {
    stp_cli::main(std::env::args_os())
}
