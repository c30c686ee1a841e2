//! `cargo xtask soak`: the crash soak of `stp-tests`, built and run.
//!
//! - Everything after the chore's name is for `stp-soak`, which prints the seed first and the figures last.

use std::process::Stdio;

use crate::needs;
use crate::repo::{self, Error};

/// `cargo xtask soak [--minutes N] [--seed N] [--storage KIND] [--sabotage 1]`
///
/// # Errors
/// When cargo itself cannot be run.
pub fn run(args: &[String]) -> Result<bool, Error> {
    needs::ensure(std::env::var_os("STP_TEST_NO_INSTALL").is_none())?;
    let packages = ["--package", "stp-cli", "--package", "stp-tests"];
    let built = repo::cargo()
        .args(["build", "--locked", "--bins"])
        .args(packages)
        .status()?;
    if !built.success() {
        return Err(format!("cargo build: {built}").into());
    }
    let folder = repo::target_directory()?.join("debug");
    let status = std::process::Command::new(folder.join("stp-soak"))
        .args(args)
        .env("STP_TEST_BIN", folder.join("stp"))
        .stdin(Stdio::null())
        .status()?;
    Ok(status.success())
}
