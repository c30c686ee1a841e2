//! The programs that the tests use beyond cargo, and the Debian packages that hold them.
//!
//! - Only root installs, and only what is missing; `--no-install` and `STP_TEST_NO_INSTALL=1` forbid it.
//! - Packages of servers start no service: a test starts its own. They are not told to start with the machine either.
//! - What stays missing is named with its package: the tests that need it count as skipped, by name.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::repo::{self, Error};

/// A program that some test runs.
pub struct Need {
    /// The program's file name; or the name of a module of the machine's Python.
    pub program: &'static str,
    /// Whether it is such a module.
    pub module: bool,
    /// The Debian package that holds it.
    pub package: &'static str,
    /// What it is for.
    pub purpose: &'static str,
}

const fn need(program: &'static str, package: &'static str, purpose: &'static str) -> Need {
    Need {
        program,
        module: false,
        package,
        purpose,
    }
}

const fn need_module(name: &'static str, package: &'static str, purpose: &'static str) -> Need {
    Need {
        module: true,
        ..need(name, package, purpose)
    }
}

impl Need {
    /// Where it is on this machine.
    fn place(&self) -> Option<PathBuf> {
        if self.module {
            let folder = Path::new("/usr/lib/python3/dist-packages").join(self.program);
            return folder.is_dir().then_some(folder);
        }
        // PostgreSQL's programs are in a folder a version, off the path.
        let versions = std::fs::read_dir("/usr/lib/postgresql")
            .into_iter()
            .flatten();
        versions
            .flatten()
            .map(|version| version.path().join("bin").join(self.program))
            .find(|path| path.is_file())
            .or_else(|| repo::find_program(self.program))
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
    need(
        "strace",
        "strace",
        "which calls `stp run` adds to a program",
    ),
    need("curl", "curl", "HTTP and FTP"),
    need("python3", "python3", "a web server, small programs"),
    need("sshd", "openssh-server", "a server of the test's own"),
    need("ssh", "openssh-client", "logins and copies"),
    need("rsync", "rsync", "rsync over ssh"),
    need("git", "git", "git daemon"),
    need("redis-server", "redis-server", "a database under load"),
    need("redis-benchmark", "redis-tools", "a database under load"),
    need(
        "postgres",
        "postgresql-15",
        "a database with a process a connection",
    ),
    need(
        "psql",
        "postgresql-client-15",
        "a database with a process a connection",
    ),
    need("memcached", "memcached", "a cache with threads"),
    need(
        "memccapable",
        "libmemcached-tools",
        "the protocol test of a cache",
    ),
    need("nginx", "nginx-light", "a web server with workers"),
    need("ab", "apache2-utils", "load for a web server"),
    need("wrk", "wrk", "load for a web server"),
    need("vsftpd", "vsftpd", "FTP with connections both ways"),
    need_module("pyftpdlib", "python3-pyftpdlib", "FTP in one process"),
    need("lftp", "lftp", "folders over FTP"),
    need("inetd", "openbsd-inetd", "connections handed over by exec"),
    need("telnetd", "inetutils-telnetd", "logins, urgent data"),
    need("telnet", "inetutils-telnet", "logins, urgent data"),
    need("expect", "expect", "a user at a terminal"),
    need("login", "login", "a login by password"),
    need("iperf3", "iperf3", "bulk data both ways"),
    need("java", "default-jre-headless", "Java's sockets"),
    need("javac", "default-jdk-headless", "Java's sockets"),
    need("node", "nodejs", "Node.js with a cluster"),
    need("nbdkit", "nbdkit", "the stand-in for a shared LUN"),
    need("nbdfuse", "libnbd-bin", "the stand-in for a shared LUN"),
    need("gcc", "gcc", "programs in C"),
    need("g++", "g++", "programs in C++"),
    need("clang", "clang", "programs in C, the other compiler"),
    need("pkg-config", "pkg-config", "the C library's users"),
    need("groff", "groff-base", "the man pages' form"),
    need("fusermount3", "fuse3", "the stand-in for a shared LUN"),
    need(
        "valgrind",
        "valgrind",
        "counting instructions (cargo xtask instructions)",
    ),
];

/// The needs that this machine does not meet.
#[must_use]
pub fn missing() -> Vec<&'static Need> {
    NEEDS.iter().filter(|need| need.place().is_none()).collect()
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
    let mut packages: Vec<&str> = lacking.iter().map(|need| need.package).collect();
    packages.sort_unstable();
    packages.dedup();
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
        let _quiet = NoServices::new();
        apt(&["-qq", "update"]);
        let mut install = vec!["-qq", "install", "-y", "--no-install-recommends"];
        install.extend(&packages);
        if !apt(&install) {
            // One package that cannot be had must not take the others with it.
            for package in &packages {
                apt(&["-qq", "install", "-y", "--no-install-recommends", package]);
            }
        }
        disable_services(&packages);
    }
    for need in missing() {
        eprintln!(
            "needs: missing: {} (Debian package {}), for: {}",
            need.program, need.package, need.purpose
        );
    }
    Ok(())
}

/// The word to Debian's packages that no service may be started; taken back on drop.
struct NoServices(Option<PathBuf>);

impl NoServices {
    fn new() -> Self {
        let path = PathBuf::from("/usr/sbin/policy-rc.d");
        // One that is there already is the machine's own word.
        let written = std::fs::File::create_new(&path)
            .and_then(|mut file| std::io::Write::write_all(&mut file, b"#!/bin/sh\nexit 101\n"))
            .and_then(|()| std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)));
        Self(written.is_ok().then_some(path))
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Services that the packages set up, by the packages' names.
const SERVICES: &[(&str, &str)] = &[
    ("redis-server", "redis-server"),
    ("postgresql-15", "postgresql"),
    ("memcached", "memcached"),
    ("nginx-light", "nginx"),
    ("vsftpd", "vsftpd"),
    ("openbsd-inetd", "inetd"),
    ("openssh-server", "ssh"),
    ("iperf3", "iperf3"),
];

/// Keeps the services of packages that were installed just now from starting with the machine.
fn disable_services(packages: &[&str]) {
    if repo::find_program("systemctl").is_none() {
        return;
    }
    for (package, service) in SERVICES {
        if packages.contains(package) {
            // Fails where there is no such service, which is as well.
            let _ = Command::new("systemctl")
                .args(["--quiet", "disable", service])
                .stdin(std::process::Stdio::null())
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::null())
                .status();
        }
    }
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
        let place = need.place();
        let place = place.map_or_else(|| "MISSING".to_owned(), |path| path.display().to_string());
        println!(
            "{:12} {:16} {place:24} {}",
            need.program, need.package, need.purpose
        );
    }
    Ok(missing().is_empty())
}
