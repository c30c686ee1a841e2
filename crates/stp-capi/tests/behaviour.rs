//! One program in C, compiled for TCP and for STP: every call in every state answers alike, or the difference is listed.
//!
//! - TCP runs first: it is the yardstick, not our memory of it.
//! - `differences.txt` is compared both ways: an unlisted difference fails, and so does a listed one that is none.

mod support;

use std::collections::BTreeMap;
use std::process::Command;

use stp_tests::{Kind, Lab, Net};
use support::{How, compile, here, ok, text};

type Answers = BTreeMap<String, String>;

fn answers(output: &str) -> Answers {
    let mut all = Answers::new();
    for line in output.lines() {
        let (label, answer) = line
            .split_once(" =")
            .unwrap_or_else(|| panic!("the program says {line:?}"));
        let twice = all.insert(label.to_owned(), answer.trim().to_owned());
        assert_eq!(twice, None, "{label:?} twice: labels are unique");
    }
    assert_eq!(all.get("done").map(String::as_str), Some("1"), "{output}");
    all
}

fn behave(stp: bool) -> std::path::PathBuf {
    let flags: &[&str] = if stp {
        &["-D_GNU_SOURCE", "-DUSE_STP"]
    } else {
        &["-D_GNU_SOURCE"]
    };
    let how = How {
        stp,
        flags: &[flags, &["-Wno-unused-result"]].concat(),
        ..How::default()
    };
    let name = if stp { "behave-stp" } else { "behave-tcp" };
    compile(&here().join("tests/c/behave.c"), name, how)
}

/// `SCOPE | LABEL | STP's answer | why`; the scope is `all`, `here` (one system) or `there` (two).
fn listed(scope: &str) -> Answers {
    let list = std::fs::read_to_string(here().join("tests/differences.txt")).unwrap();
    let mut all = Answers::new();
    for line in list
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        let fields: Vec<&str> = line.split('|').map(str::trim).collect();
        let [place, label, answer, why] = fields[..] else {
            panic!("differences.txt: {line}");
        };
        assert!(!why.is_empty(), "no reason: {line}");
        if place == "all" || place == scope {
            all.insert(label.to_owned(), answer.to_owned());
        }
    }
    all
}

fn compare(scope: &str, tcp: &Answers, stp: &Answers) {
    let list = listed(scope);
    let mut findings = Vec::new();
    let labels: std::collections::BTreeSet<_> = tcp.keys().chain(stp.keys()).collect();
    let (mut same, mut differ) = (0, 0);
    for label in labels {
        let (tcp, stp) = (tcp.get(label), stp.get(label));
        match list.get(label) {
            None if tcp == stp => same += 1,
            Some(answer) if tcp != stp && stp == Some(answer) => differ += 1,
            listed => findings.push(format!(
                "{label}: TCP {tcp:?}, STP {stp:?}, listed {listed:?}"
            )),
        }
    }
    println!("{scope}: {same} answers same, {differ} differ as documented");
    assert!(findings.is_empty(), "{scope}:\n{}", findings.join("\n"));
    assert_eq!(
        differ,
        list.len(),
        "{scope}: differences.txt names a label that there is not"
    );
}

fn tcp(args: &[&str]) -> Answers {
    let output = Command::new(behave(false)).args(args).output().unwrap();
    answers(&ok(&output))
}

fn lab(name: &str) -> Option<Lab> {
    Lab::with(name, Kind::File, &["alpha", "beta"], Net::None)
}

fn run(scope: &str, lab: &Lab, there: bool, args: &[&str]) {
    let [alpha, _] = lab.hosts();
    let mut command = alpha.cmd(behave(true)).args(args);
    if there {
        command = command
            .env("MAIN_SYSTEM", "alpha")
            .env("PEER_SYSTEM", "beta")
            .env("PEER_RUN_DIR", alpha.path("run-of-beta"));
    }
    let ran = command.ok();
    assert_eq!(ran.err, "", "it complained");
    compare(scope, &tcp(args), &answers(&text(&ran.out)));
}

#[test]
fn two_programs_of_one_system() {
    if let Some(lab) = lab("behaviour within a system") {
        run("here", &lab, false, &["urgent"]);
    }
}

#[test]
fn two_systems_with_engines_of_their_own() {
    if let Some(lab) = lab("behaviour between systems") {
        run("there", &lab, true, &["urgent"]);
    }
}

#[test]
fn two_systems_with_shared_engines() {
    let Some(lab) = lab("behaviour with shared engines") else {
        return;
    };
    let [alpha, _] = lab.hosts();
    let _ours = alpha.engine();
    let run_dir = alpha.path("run-of-beta");
    let mut theirs = alpha
        .stp(["engine"])
        .env("STP_SYSTEM", "beta")
        .env("STP_RUN_DIR", &run_dir)
        .spawn();
    stp_tests::wait_for("beta's engine", stp_tests::HANG, || {
        let ended = theirs.ended();
        assert!(ended.is_none(), "{}", theirs.err());
        let volumes = std::fs::read_dir(&run_dir).ok()?;
        let mut sockets = volumes.flatten().map(|v| v.path().join("beta/engine.sock"));
        sockets.any(|socket| socket.exists()).then_some(())
    });
    run("there", &lab, true, &["urgent"]);
}
