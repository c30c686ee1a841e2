//! `stp bench` on a volume that others use.

mod common;

use std::process::Command;

use common::World;

/// It measures every way that it names, and leaves the volume as it found it: whole, its own seats left, those of
/// others untouched.
#[test]
fn a_bench_measures_and_leaves_no_trace() {
    let world = World::new();
    let picture = world.folder.path().join("bench.svg");
    let output = Command::new(env!("CARGO_BIN_EXE_stp"))
        .args(["bench", "--seconds", "1", "--json", "--plot"])
        .arg(&picture)
        .args(["--only", "trip,connect,idle", "-V"])
        .arg(world.volume())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        report["not_measured"].as_array().unwrap().len(),
        0,
        "{said}"
    );
    let ways = |table: &str| -> Vec<String> {
        let rows = report[table].as_array().unwrap().iter();
        let mut ways: Vec<_> = rows
            .map(|row| row["way"].as_str().unwrap().to_owned())
            .collect();
        ways.sort();
        ways.dedup();
        ways
    };
    let all = ["embedded", "floor", "pipe", "shared", "tcp", "unix"];
    assert_eq!(ways("round_trips"), all);
    assert_eq!(
        ways("connects_per_s"),
        ["embedded", "shared", "tcp", "unix"]
    );
    for row in report["round_trips"].as_array().unwrap() {
        assert!(row["p50_us"].as_f64().unwrap() > 0.0, "{row}");
        assert!(row["p50_us"].as_f64() <= row["p999_us"].as_f64(), "{row}");
    }
    assert!(report["wake_up_us"].as_f64().unwrap() > 0.0);
    assert!(report["idle"][0]["reads_per_s"].as_f64().unwrap() > 0.0);
    let svg = std::fs::read_to_string(picture).unwrap();
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));

    let stp = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_stp"));
        let output = command.args(args).arg(world.volume()).output().unwrap();
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    stp(&["check"]);
    let info: serde_json::Value = serde_json::from_str(&stp(&["info", "--json"])).unwrap();
    let nodes = info["taken"].as_array().unwrap();
    let states: Vec<_> = nodes
        .iter()
        .map(|node| {
            (
                node["system"].as_str().unwrap_or(""),
                node["state"].as_str().unwrap_or(""),
            )
        })
        .collect();
    for (system, state) in &states {
        let up = ["alpha", "beta"].contains(system);
        assert_eq!(*state == "up", up, "{states:?}");
    }
}

/// Two benches one after the other with a host that serves; what a host has without a volume is not measured, and one that
/// does not serve is named with the remedy.
#[test]
fn a_bench_is_run_with_another_host() {
    let world = World::without_engines();
    let mut server = world.start("beta", &["bench", "--serve"]);
    let told = server.line("--with beta");
    assert!(told.contains("stp bench -V VOL --with beta"), "{told}");
    for _ in 0..2 {
        let mut client = world.on("alpha");
        client.args(["bench", "--with", "beta", "--seconds", "1", "--json"]);
        let output = client.args(["--only", "trip,stream"]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["with"], "beta");
        assert_eq!(report["not_measured"].as_array().unwrap().len(), 0);
        for table in ["round_trips", "streams"] {
            let rows = report[table].as_array().unwrap().iter();
            let mut ways: Vec<_> = rows.map(|row| row["way"].as_str().unwrap()).collect();
            ways.sort_unstable();
            ways.dedup();
            assert_eq!(ways, ["embedded", "floor", "shared"], "{table}");
        }
    }
    let mut nobody = world.on("alpha");
    let output = nobody.args(["bench", "--with", "gamma"]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("gamma") && said.contains("stp bench --serve"),
        "{said}"
    );
    server.signal(rustix::process::Signal::INT);
    let (code, said) = server.end();
    assert_eq!(code, 0, "{said}");
}

/// A volume that is not there, or no volume, is one line and its exit code.
#[test]
fn what_cannot_be_measured_is_said_in_one_line() {
    let stp = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_stp"));
        command.env_remove("STP_VOLUME").arg("bench").args(args);
        let output = command.output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        (output.status.code().unwrap(), said)
    };
    let (code, said) = stp(&[]);
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("no volume"), "{said}");
    let (code, said) = stp(&["-V", "/nowhere/at/all"]);
    assert_eq!((code, said.lines().count()), (1, 1), "{said}");
    assert!(said.contains("no such file"), "{said}");
}
