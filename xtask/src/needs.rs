//! The programs that the tests use beyond cargo, and the Debian packages that hold them.
//!
//! - Only root installs, and only what is missing; `--no-install` and `STP_TEST_NO_INSTALL=1` forbid it.
//! - What stays missing is named with its package: the tests that need it count as skipped, by name.

use std::process::Command;

use crate::repo::{self, Error};

/// A program that some test runs.
pub struct Need {
    /// The program's file name.
    pub program: &'static str,
    /// The Debian package that holds it.
    pub package: &'static str,
    /// What it is for.
    pub purpose: &'static str,
}

const fn need(program: &'static str, package: &'static str, purpose: &'static str) -> Need {
    Need {
        program,
        package,
        purpose,
    }
}

/// All of them.
pub const NEEDS: &[Need] = &[
    need("ip", "iproute2", "loopback of a test system's own"),
    need("unshare", "util-linux", "network and mount namespaces"),
    need("losetup", "mount", "loop devices"),
    need(
        "mkfs.ext4",
        "e2fsprogs",
        "a device that holds a file system; a full disk",
    ),
    need("tar", "tar", "folders through a pipe"),
    need("curl", "curl", "HTTP through a forward"),
    need("python3", "python3", "a web server"),
    need("sshd", "openssh-server", "a server of the test's own"),
    need("ssh", "openssh-client", "ProxyCommand"),
    need("rsync", "rsync", "rsync over ssh"),
    need("nbdkit", "nbdkit", "the stand-in for a shared LUN"),
    need("nbdfuse", "libnbd-bin", "the stand-in for a shared LUN"),
    need("fusermount3", "fuse3", "the stand-in for a shared LUN"),
];

/// The needs that this machine does not meet.
#[must_use]
pub fn missing() -> Vec<&'static Need> {
    NEEDS
        .iter()
        .filter(|need| repo::find_program(need.program).is_none())
        .collect()
}

/// Installs what is missing, where that is possible, and names what stays missing.
///
/// # Errors
/// Never for a failed installation: that is named on standard error, and the tests are skipped by name.
pub fn ensure(install: bool) -> Result<(), Error> {
    let lacking = missing();
    if lacking.is_empty() {
        return Ok(());
    }
    let packages: Vec<&str> = lacking.iter().map(|need| need.package).collect();
    if !install {
        eprintln!(
            "needs: not installing (asked not to): {}",
            packages.join(" ")
        );
    } else if !repo::is_root() {
        eprintln!(
            "needs: not root, so nothing is installed; run: sudo apt-get install {}",
            packages.join(" ")
        );
    } else if repo::find_program("apt-get").is_none() {
        eprintln!(
            "needs: no apt-get here; install these by hand: {}",
            packages.join(" ")
        );
    } else {
        eprintln!("needs: installing {}", packages.join(" "));
        apt(&["-qq", "update"]);
        let mut install = vec!["-qq", "install", "-y", "--no-install-recommends"];
        install.extend(&packages);
        if !apt(&install) {
            // One package that cannot be had must not take the others with it.
            for package in &packages {
                apt(&["-qq", "install", "-y", "--no-install-recommends", package]);
            }
        }
    }
    for need in missing() {
        eprintln!(
            "needs: missing: {} (Debian package {}), for: {}",
            need.program, need.package, need.purpose
        );
    }
    Ok(())
}

/// Runs apt-get without questions; says whether it succeeded.
pub fn apt(args: &[&str]) -> bool {
    let status = Command::new("apt-get")
        .args(args)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .status();
    match status {
        Ok(status) if status.success() => true,
        Ok(status) => {
            eprintln!("needs: apt-get {}: {status}", args.join(" "));
            false
        }
        Err(error) => {
            eprintln!("needs: apt-get: {error}");
            false
        }
    }
}

/// `cargo xtask needs [--install]`.
///
/// # Errors
/// As [`ensure`].
pub fn run(args: &[String]) -> Result<bool, Error> {
    if args.iter().any(|arg| arg == "--install") {
        ensure(true)?;
    }
    for need in NEEDS {
        let place = repo::find_program(need.program);
        let place = place.map_or_else(|| "MISSING".to_owned(), |path| path.display().to_string());
        println!(
            "{:12} {:16} {place:24} {}",
            need.program, need.package, need.purpose
        );
    }
    Ok(missing().is_empty())
}
