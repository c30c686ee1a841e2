//! `stp ss` and `stp engine`: what is on the volume, seen from anywhere.

mod common;

use std::process::Stdio;

use common::{HANG, Running, World};
use rustix::process::Signal;
use serde_json::Value;

fn ss(world: &World, system: &str, args: &[&str]) -> Value {
    let output = world
        .on(system)
        .args(["ss", "--json"])
        .args(args)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn sockets_and_nodes_are_seen_from_everywhere() {
    let world = World::new();
    let mut command = world.on("beta");
    command.args(["cat", "-l", "7000"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let _server = Running::start(command);
    let mut command = world.on("alpha");
    command.args(["cat", "--retry", "60", "beta:7000"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let _client = Running::start(command);

    // The table is written lazily.
    let deadline = std::time::Instant::now() + HANG;
    let report = loop {
        let report = ss(&world, "alpha", &["--all"]);
        let established = |system: &str, peer: &str| {
            report["sockets"].as_array().unwrap().iter().any(|socket| {
                socket["state"] == "ESTAB"
                    && socket["system"] == system
                    && socket["peer_system"] == peer
            })
        };
        if established("alpha", "beta") && established("beta", "alpha") {
            break report;
        }
        assert!(std::time::Instant::now() < deadline, "{report:#}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    };
    let nodes = report["nodes"].as_array().unwrap();
    assert_eq!(nodes.len(), 2, "{report:#}");
    for node in nodes {
        assert_eq!(node["state"], "up");
        assert!(node["rates"]["reads_per_s"].as_f64().unwrap() > 0.0);
        assert!(node["rates"]["writes_per_s"].as_f64().unwrap() > 0.0);
    }
    let mine = ss(&world, "alpha", &["-q"]);
    let mine = mine["sockets"].as_array().unwrap();
    assert!(!mine.is_empty());
    assert!(mine.iter().all(|socket| socket["system"] == "alpha"));
}

#[test]
fn one_engine_a_system_and_a_clean_end() {
    let world = World::new();
    let (code, said) = world.start("alpha", &["engine"]).end();
    assert_eq!(code, 1);
    assert!(said.contains("runs already"), "{said}");
    let mut third = world.start("gamma", &["engine"]);
    third.line("ready");
    third.signal(Signal::TERM);
    assert_eq!(third.end().0, 0);
    let report = ss(&world, "alpha", &["--all", "-q"]);
    assert_eq!(report["nodes"].as_array().unwrap().len(), 2);
    let mut idle = world.start("gamma", &["engine", "--idle-exit", "0.5"]);
    idle.line("ready");
    assert_eq!(idle.end().0, 0);
}
