//! The commands themselves, between two systems that share a volume.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::support::*;

const SIZE: usize = 96 << 20;

/// A volume, and what the two systems keep beside it.
struct Hosts {
    temp: tempfile::TempDir,
}

impl Hosts {
    fn new() -> Self {
        let hosts = Self {
            temp: tempfile::tempdir().unwrap(),
        };
        for folder in ["served", "local"] {
            fs::create_dir(hosts.at(folder)).unwrap();
        }
        let formatted = Command::new(env!("CARGO_BIN_EXE_stp"))
            .arg("format")
            .arg(hosts.at("volume"))
            .args(["--group", "g", "--size", "64MiB"])
            .output()
            .unwrap();
        assert!(formatted.status.success(), "{formatted:?}");
        hosts
    }

    fn at(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    fn stp(&self, system: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_stp"));
        command
            .env_remove("STP_LOG")
            .env("STP_VOLUME", self.at("volume"))
            .env("STP_SYSTEM", system)
            .env("STP_RUN_DIR", self.at("run"))
            .current_dir(self.at("local"));
        command
    }

    fn serve(&self) -> Serving {
        let mut child = self
            .stp("beta")
            .arg("serve")
            .arg(self.at("served"))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        assert!(line.contains("at beta:2121"), "{line}");
        // Its later words must not block it.
        std::thread::spawn(move || {
            let mut rest = String::new();
            let _ = lines.read_to_string(&mut rest);
        });
        Serving(child)
    }

    fn run(&self, args: &[&str]) -> Output {
        let output = self.stp("alpha").args(args).output().unwrap();
        print!("{}", String::from_utf8_lossy(&output.stderr));
        output
    }
}

struct Serving(Child);

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wait_for_bytes(path: &Path, bytes: u64) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while fs::metadata(path).map_or(0, |m| m.len()) < bytes {
        assert!(Instant::now() < deadline, "{} did not grow", path.display());
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_tree_goes_through_the_volume_and_back() {
    let hosts = Hosts::new();
    make_tree(&hosts.at("local/tree"));
    let mut serving = hosts.serve();
    assert!(hosts.run(&["cp", "-r", "tree", "beta:"]).status.success());
    assert_same(&hosts.at("local/tree"), &hosts.at("served/tree"));
    assert!(
        hosts
            .run(&["cp", "-qr", "beta:tree", "back"])
            .status
            .success()
    );
    assert_same(&hosts.at("local/tree"), &hosts.at("local/back"));

    let listed = hosts.run(&["ls", "--json", "beta:tree"]);
    let rows: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    let small = rows
        .as_array()
        .unwrap()
        .iter()
        .find(|r| r["name"] == "small")
        .unwrap();
    assert_eq!(
        (small["kind"].as_str(), small["size"].as_u64()),
        (Some("file"), Some(5))
    );
    assert_eq!(hosts.run(&["ls", "-l", "beta:none"]).status.code(), Some(1));
    assert_eq!(hosts.run(&["cp", "none", "beta:"]).status.code(), Some(1));
    assert_eq!(
        hosts.run(&["cp", "beta:a", "beta:b"]).status.code(),
        Some(2)
    );
    assert_eq!(hosts.run(&["cp", "gamma:a", "."]).status.code(), Some(1));

    // Asked to end, a server ends in order and at once.
    let pid = rustix::process::Pid::from_child(&serving.0);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(serving.0.wait().unwrap().success());
}

#[test]
fn a_killed_client_is_continued_by_the_next() {
    let hosts = Hosts::new();
    fs::write(hosts.at("local/big"), noise(SIZE, 21)).unwrap();
    let _serving = hosts.serve();
    let mut client = hosts
        .stp("alpha")
        .args(["cp", "-q", "big", "beta:"])
        .spawn()
        .unwrap();
    wait_for_bytes(&hosts.at("served/.big.stp-partial"), 8 << 20);
    client.kill().unwrap();
    client.wait().unwrap();
    assert!(!hosts.at("served/big").exists());
    let rest = hosts.run(&["cp", "big", "beta:"]);
    assert!(rest.status.success());
    assert!(String::from_utf8_lossy(&rest.stderr).contains("were there already"));
    same_contents(&hosts.at("local/big"), &hosts.at("served/big"));
    assert_eq!(names(&hosts.at("served")), ["big"]);
}

#[test]
fn a_killed_server_that_comes_back_is_found_again() {
    let hosts = Hosts::new();
    fs::write(hosts.at("served/big"), noise(SIZE, 22)).unwrap();
    let serving = hosts.serve();
    let client = hosts
        .stp("alpha")
        .args(["cp", "beta:big", "here"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for_bytes(&hosts.at("local/.here.stp-partial"), 8 << 20);
    drop(serving);
    let _serving = hosts.serve();
    let done = client.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    print!("{said}");
    assert!(done.status.success(), "{said}");
    // Continued, not begun again: only what was on its way when the line broke went twice.
    assert!(said.contains("connection lost"), "{said}");
    if let Some(again) = said
        .split(", ")
        .find_map(|part| part.trim().strip_suffix(" sent again"))
    {
        let (number, unit) = again.split_once(' ').unwrap();
        let few = number.parse::<f64>().unwrap() < 8.0;
        assert!(
            unit == "B" || unit == "KiB" || (unit == "MiB" && few),
            "{said}"
        );
    }
    same_contents(&hosts.at("served/big"), &hosts.at("local/here"));
}
