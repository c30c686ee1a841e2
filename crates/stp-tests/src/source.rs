//! Source packages of Debian, fetched at test time into the build's folder and never anywhere else.
//!
//! - A package is fetched from where this machine's apt gets its binaries, with apt's own check of signatures.
//! - What was fetched once is kept beside the build and used again.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The unpacked sources of a package, with Debian's patches.
///
/// # Errors
/// Why this machine cannot have them: for [`crate::skip`].
pub fn debian_source(package: &str) -> Result<PathBuf, String> {
    let folder = build_folder().join("sources");
    std::fs::create_dir_all(folder.join(package)).map_err(|e| format!("{folder:?}: {e}"))?;
    // Tests run side by side; one of them fetches.
    let lock = File::create(folder.join("lock")).map_err(|e| format!("{folder:?}: {e}"))?;
    lock.lock().map_err(|e| format!("{folder:?}: {e}"))?;
    let own = folder.join(package);
    if let Some(found) = unpacked(&own) {
        return Ok(found);
    }
    let (site, codename) = site()?;
    let list = folder.join("deb-src.list");
    let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
    let line = format!("deb-src [signed-by={keyring}] {site} {codename} main\n");
    std::fs::write(&list, line).map_err(|e| format!("{}: {e}", list.display()))?;
    for part in ["lists/partial", "cache/archives/partial"] {
        std::fs::create_dir_all(folder.join(part)).map_err(|e| format!("{part}: {e}"))?;
    }
    // Lists of its own: the machine's are not touched.
    let apt = |args: &[&str]| {
        let option = |name: &str, value: &Path| format!("{name}={}", value.display());
        run(Command::new("apt-get")
            .current_dir(&own)
            .arg("-qq")
            .args(["-o", &option("Dir::Etc::sourcelist", &list)])
            .args(["-o", "Dir::Etc::sourceparts=/dev/null"])
            .args(["-o", &option("Dir::State::lists", &folder.join("lists"))])
            .args(["-o", &option("Dir::Cache", &folder.join("cache"))])
            .args(args))
    };
    apt(&["update"])?;
    apt(&["source", "--download-only", package])?;
    let entries = std::fs::read_dir(&own).map_err(|e| format!("{}: {e}", own.display()))?;
    let description = entries
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|end| end == "dsc"))
        .ok_or_else(|| format!("apt-get source {package} brought no .dsc file"))?;
    run(Command::new("dpkg-source")
        .current_dir(&own)
        .arg("-x")
        .arg(&description))?;
    unpacked(&own).ok_or_else(|| format!("{} unpacked to nothing", description.display()))
}

/// The only folder in a package's own.
fn unpacked(own: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(own).ok()?;
    entries
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.is_dir())
}

/// Where Debian's packages come from here, and which release this is.
fn site() -> Result<(String, String), String> {
    let release = std::fs::read_to_string("/etc/os-release").map_err(|e| e.to_string())?;
    let codename = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .ok_or("/etc/os-release names no VERSION_CODENAME: no Debian")?;
    let mut lists: Vec<PathBuf> = vec!["/etc/apt/sources.list".into()];
    if let Ok(entries) = std::fs::read_dir("/etc/apt/sources.list.d") {
        lists.extend(entries.flatten().map(|entry| entry.path()));
    }
    let texts = lists
        .iter()
        .map(|path| std::fs::read_to_string(path).unwrap_or_default());
    let site = texts
        .flat_map(|text| {
            text.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        })
        .find(|word| word.contains("://") && word.trim_end_matches('/').ends_with("/debian"));
    let site = site.ok_or("no address of Debian's packages in /etc/apt")?;
    Ok((site, codename.to_owned()))
}

fn run(command: &mut Command) -> Result<(), String> {
    let line = format!("{command:?}");
    match command.output() {
        Ok(ran) if ran.status.success() => Ok(()),
        Ok(ran) => Err(format!(
            "{line}: {}: {}",
            ran.status,
            String::from_utf8_lossy(&ran.stderr).trim()
        )),
        Err(error) => Err(format!("{line}: {error}")),
    }
}

/// The folder of this build, where `stp` lies.
fn build_folder() -> PathBuf {
    crate::host::sibling("stp")
        .parent()
        .map_or_else(std::env::temp_dir, Path::to_owned)
}
