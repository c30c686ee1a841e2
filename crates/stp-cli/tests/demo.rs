//! `stp demo` keeps its promises: it ends by itself, says what it compared, and leaves nothing behind.

mod common;

use std::path::Path;
use std::process::{Command, Stdio};

use common::{HANG, Running};
use rustix::process::Signal;

fn demo(dir: &Path, mib: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stp"));
    command.args(["demo", "--mib", mib, "--dir"]).arg(dir);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).unwrap().next().is_none()
}

#[test]
fn it_copies_compares_and_cleans_up() {
    let dir = folder();
    let mut running = Running::start(demo(dir.path(), "8"));
    let stdout = common::collect(running.child.stdout.take().unwrap());
    let (code, said) = running.end();
    let text = String::from_utf8(stdout.whole()).unwrap();
    assert_eq!(code, 0, "{text}{said}");
    assert!(text.contains("all the same"), "{text}");
    assert!(text.contains("MiB/s"), "{text}");
    assert!(is_empty(dir.path()));
}

#[test]
fn interrupted_it_cleans_up_too() {
    let dir = folder();
    let mut running = Running::start(demo(dir.path(), "200"));
    let _stdout = common::collect(running.child.stdout.take().unwrap());
    let until = std::time::Instant::now() + HANG;
    while is_empty(dir.path()) && std::time::Instant::now() < until {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    std::thread::sleep(std::time::Duration::from_millis(700));
    running.signal(Signal::INT);
    assert_eq!(running.end().0, 128 + 2);
    assert!(is_empty(dir.path()));
}
