//! Source packages of Debian: fetched once, beside cargo's output, by the machine's own apt from its own mirrors.
//!
//! - The machine's lists are not touched. Nothing of a package is in the repository, and none of Debian's patches are applied.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::repo::{self, Error};

/// The unpacked source of a package, a folder `PREFIX-VERSION`, and the version.
///
/// # Errors
/// When it cannot be had.
pub(super) fn debian(package: &str, prefix: &str) -> Result<(PathBuf, String), Error> {
    let place = repo::target_directory()?.join("suites");
    std::fs::create_dir_all(&place)?;
    if let Some(found) = find(&place, prefix)? {
        return Ok(found);
    }
    fetch(&place, package)?;
    let lost = || format!("apt-get source {package} gave no folder {prefix}*").into();
    find(&place, prefix)?.ok_or_else(lost)
}

fn find(place: &Path, prefix: &str) -> Result<Option<(PathBuf, String)>, Error> {
    for entry in std::fs::read_dir(place)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(version) = name.strip_prefix(prefix)
            && version.starts_with(|first: char| first.is_ascii_digit())
            && entry.path().is_dir()
        {
            return Ok(Some((entry.path(), version.to_owned())));
        }
    }
    Ok(None)
}

fn fetch(place: &Path, package: &str) -> Result<(), Error> {
    let apt = place.join("apt");
    let parts = apt.join("parts");
    std::fs::create_dir_all(&parts)?;
    std::fs::create_dir_all(apt.join("lists/partial"))?;
    let mut found = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(folder) = std::fs::read_dir("/etc/apt/sources.list.d") {
        found.extend(folder.flatten().map(|entry| entry.path()));
    }
    for path in found {
        let Ok(text) = std::fs::read_to_string(&path) else {
            continue;
        };
        let sources = text
            .replace("Types: deb\n", "Types: deb-src\n")
            .lines()
            .map(|line| match line.strip_prefix("deb ") {
                Some(rest) => format!("deb-src {rest}\n"),
                None => format!("{line}\n"),
            })
            .collect::<String>();
        std::fs::write(parts.join(path.file_name().unwrap_or_default()), sources)?;
    }
    let apt_get = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        for (name, value) in [
            ("Dir::Etc::sourcelist", Path::new("/dev/null")),
            ("Dir::Etc::sourceparts", &parts),
            ("Dir::State::lists", &apt.join("lists")),
        ] {
            command.arg("-o").arg(format!("{name}={}", value.display()));
        }
        command.args(args).current_dir(place);
        step(&mut command)
    };
    // A source that has no source packages makes an update fail and does no harm.
    let _ = apt_get(&["-qq", "update"]);
    apt_get(&["-qq", "source", "--download-only", package])?;
    for entry in std::fs::read_dir(place)? {
        let path = entry?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if name.starts_with(&format!("{package}_"))
            && name.contains(".orig.tar.")
            && !name.ends_with(".asc")
        {
            step(Command::new("tar").arg("-xf").arg(&path).current_dir(place))?;
        }
    }
    Ok(())
}

/// Runs a command to its end and insists on success.
///
/// # Errors
/// With what it said, when it fails.
pub(super) fn step(command: &mut Command) -> Result<(), Error> {
    let name = format!("{command:?}");
    let output = command.stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(format!("{name}: {}: {}", output.status, said.trim()).into())
}

/// Builds a target of a source with cmake, in its folder `build`.
///
/// # Errors
/// With what it said, when it fails.
pub(super) fn cmake(source: &Path, options: &[&str], target: &str) -> Result<(), Error> {
    let cmake = |args: &[&str]| step(Command::new("cmake").args(args).current_dir(source));
    cmake(&[&["-S", ".", "-B", "build"], options].concat())?;
    cmake(&["--build", "build", "--target", target, "--parallel", "2"])
}
