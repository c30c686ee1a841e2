//! Where the checkout is, what git knows of it, and how to call cargo.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// An error of a chore: a sentence for the person who ran it.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// The top folder of this checkout.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// `cargo`, as this run was started, in the checkout.
#[must_use]
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// What `cargo metadata` says, resolved for this repository's platform.
///
/// # Errors
/// When cargo cannot be run or its answer is no JSON.
pub fn metadata() -> Result<Value, Error> {
    let output = cargo()
        .args([
            "metadata",
            "--format-version",
            "1",
            "--all-features",
            "--locked",
        ])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .output()?;
    if !output.status.success() {
        return Err(format!(
            "cargo metadata failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )
        .into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// The folder that cargo builds into.
///
/// # Errors
/// As [`metadata`].
pub fn target_directory() -> Result<PathBuf, Error> {
    let metadata = metadata()?;
    let path = metadata["target_directory"]
        .as_str()
        .ok_or("cargo metadata names no target directory")?;
    Ok(PathBuf::from(path))
}

/// Builds the `stp` command and the library that `stp run` loads into programs.
///
/// # Errors
/// When cargo cannot be run or the build fails.
pub fn build_command() -> Result<(), Error> {
    let mut build = cargo();
    build.args([
        "build",
        "--locked",
        "--package",
        "stp-cli",
        "--package",
        "stp-preload",
    ]);
    let status = build.status()?;
    if status.success() {
        return Ok(());
    }
    Err(format!("cargo build --package stp-cli --package stp-preload: {status}").into())
}

/// Every file of the checkout that is, or would be, committed; relative to `root`.
///
/// # Errors
/// When the folder cannot be read.
pub fn files(root: &Path) -> Result<Vec<PathBuf>, Error> {
    let listed = Command::new("git")
        .args([
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ])
        .current_dir(root)
        .output();
    if let Ok(output) = listed
        && output.status.success()
    {
        let mut files: Vec<PathBuf> = output
            .stdout
            .split(|b| *b == 0)
            .filter(|name| !name.is_empty())
            .map(|name| PathBuf::from(String::from_utf8_lossy(name).into_owned()))
            .filter(|path| root.join(path).is_file())
            .collect();
        files.sort();
        files.dedup();
        return Ok(files);
    }
    // An unpacked source archive has no git: walk it.
    let mut files = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(root.join(&folder))? {
            let entry = entry?;
            let path = folder.join(entry.file_name());
            let kind = entry.file_type()?;
            if kind.is_dir() && entry.file_name() != "target" && entry.file_name() != ".git" {
                folders.push(path);
            } else if kind.is_file() {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Whether this process is root.
#[must_use]
pub fn is_root() -> bool {
    std::fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|status| {
            let line = status.lines().find(|line| line.starts_with("Uid:"))?;
            line.split_whitespace().nth(2).map(|uid| uid == "0")
        })
        .unwrap_or(false)
}

/// Where `program` is, on the path or in the system folders that an ordinary user's path lacks.
#[must_use]
pub fn find_program(program: &str) -> Option<PathBuf> {
    if program.contains('/') {
        return Some(PathBuf::from(program)).filter(|path| path.is_file());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|candidate| candidate.is_file())
}
