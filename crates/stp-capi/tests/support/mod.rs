//! What the tests of the C library share: an installed library, and compilers.
//!
//! - The library is installed as a user would, under the build's temporary folder; processes take turns.
//! - A compiler that the machine does not have is a skip by name.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use xtask::install::{Plan, install};

/// Folder of this crate.
pub(crate) fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Where the library is installed.
pub(crate) fn prefix() -> &'static Path {
    static PREFIX: OnceLock<PathBuf> = OnceLock::new();
    PREFIX.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        std::fs::create_dir_all(folder).unwrap();
        let lock = std::fs::File::create(folder.join("capi.lock")).unwrap();
        lock.lock().unwrap();
        let plan = Plan {
            prefix: folder.join("capi"),
            destdir: None,
            debug: true,
            library_only: true,
        };
        install(&plan).unwrap_or_else(|error| panic!("install: {error}"));
        plan.prefix
    })
}

/// Whether the machine has the program.
pub(crate) fn has(program: &str) -> bool {
    xtask::repo::find_program(program).is_some()
}

/// How a program is compiled.
#[derive(Clone, Copy, Debug)]
pub(crate) struct How<'a> {
    /// `gcc`, `clang`, `g++`, `clang++`.
    pub(crate) compiler: &'a str,
    /// `c99`, `c++17`, ...
    pub(crate) standard: &'a str,
    /// With `-lstp`.
    pub(crate) stp: bool,
    /// With the static library instead of the shared one.
    pub(crate) fixed: bool,
    /// More.
    pub(crate) flags: &'a [&'a str],
}

impl Default for How<'_> {
    fn default() -> Self {
        Self {
            compiler: "gcc",
            standard: "gnu99",
            stp: true,
            fixed: false,
            flags: &[],
        }
    }
}

/// Compiles and links `source` to a program named `name`.
pub(crate) fn compile(source: &Path, name: &str, how: How<'_>) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("programs");
    std::fs::create_dir_all(&folder).unwrap();
    // A program that runs cannot be written to.
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let program = folder.join(format!("{name}-{}-{number}", std::process::id()));
    let mut cc = Command::new(how.compiler);
    if how.compiler.ends_with("++") {
        cc.args(["-x", "c++"]);
    }
    cc.arg(format!("-std={}", how.standard))
        .args(["-Wall", "-Wextra", "-Werror", "-D_DEFAULT_SOURCE"])
        .args(how.flags)
        .arg(source)
        .args(["-x", "none"])
        .arg("-o")
        .arg(&program);
    if how.stp {
        cc.args(pkg_config(how.fixed));
    }
    let output = cc
        .output()
        .unwrap_or_else(|e| panic!("{}: {e}", how.compiler));
    assert!(output.status.success(), "{cc:?}\n{}", text(&output.stderr));
    program
}

/// What `pkg-config` says, and how to find the library when the program runs.
pub(crate) fn pkg_config(fixed: bool) -> Vec<String> {
    let lib = prefix().join("lib");
    if fixed {
        // By its name, so that the shared one is not found first.
        let said = ask_pkg_config(&["--cflags", "--libs", "--static"]);
        let archive = lib.join("libstp.a").display().to_string();
        return said
            .into_iter()
            .map(|word| {
                if word == "-lstp" {
                    archive.clone()
                } else {
                    word
                }
            })
            .collect();
    }
    let mut words = ask_pkg_config(&["--cflags", "--libs"]);
    words.push(format!("-Wl,-rpath,{}", lib.display()));
    words
}

fn ask_pkg_config(args: &[&str]) -> Vec<String> {
    let output = Command::new("pkg-config")
        .args(args)
        .arg("stp")
        .env("PKG_CONFIG_PATH", prefix().join("lib/pkgconfig"))
        .output()
        .expect("pkg-config");
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
        .split_whitespace()
        .map(str::to_owned)
        .collect()
}

/// As text.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Both outputs of a command that must succeed.
pub(crate) fn ok(output: &Output) -> String {
    assert!(
        output.status.success(),
        "{}{}",
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}
