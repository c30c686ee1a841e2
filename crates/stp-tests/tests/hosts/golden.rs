//! Golden volumes: what real runs of each format version left on the storage is read by every later version, or
//! refused with a clear word.
//!
//! - Every kept volume is looked at, checked and attached to; what a run leaves today passes the same.
//! - `STP_BLESS=1` writes the volumes of a *new* format version; those of an old one never change.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rustix::process::Signal;
use serde_json::Value;
use stp_format::geometry::Geometry;
use stp_format::{FORMAT_VERSION, Features, Superblock, UNIT_BYTES};
use stp_tests::{HANG, Host, Kind, Lab, Net, golden, wait_for};

use crate::{end, failed_well, serve, whole};

const SIZE_BYTES: usize = 1 << 20;

/// What every stream of the runs carries.
const CALL: &str = "call beta:7000 --streams 3 --up 700 --down 500 --hold 1000";

/// What a volume is a snapshot of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// Formatted.
    Fresh,
    /// Two engines run.
    Up,
    /// Three streams are open, two ports listen.
    Streams,
    /// Both engines were killed, one of them frozen before, so that segments lie there unread.
    Crashed,
    /// Both engines left in good order.
    Left,
}

impl Stage {
    const ALL: [Self; 5] = [
        Self::Fresh,
        Self::Up,
        Self::Streams,
        Self::Crashed,
        Self::Left,
    ];

    fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }

    fn seats(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Fresh => &[],
            Self::Up | Self::Streams | Self::Crashed => &[("alpha", "silent"), ("beta", "silent")],
            Self::Left => &[("alpha", "left"), ("beta", "left")],
        }
    }
}

/// The volume while nobody writes to it.
fn snapshot(lab: &Lab) -> Vec<u8> {
    let read = || std::fs::read(lab.volume().path(0)).unwrap();
    let mut last = read();
    wait_for("a quiet volume", HANG, || {
        let now = read();
        let quiet = now == last;
        last = now;
        quiet.then_some(())
    });
    last
}

/// One run, from format to leave.
fn run() -> Option<BTreeMap<Stage, Vec<u8>>> {
    let systems = ["alpha", "beta"];
    let lab = Lab::formatted(
        "golden volumes",
        Kind::File,
        SIZE_BYTES as u64,
        &["--seats", "4"],
        &systems,
        Net::None,
    )?;
    let [alpha, beta] = lab.hosts();
    let mut stages = BTreeMap::from([(Stage::Fresh, snapshot(&lab))]);
    let engines = [alpha.engine(), beta.engine()];
    let freeze = |stage, stages: &mut BTreeMap<_, _>| {
        engines
            .iter()
            .for_each(|engine| engine.signal(Signal::STOP));
        stages.insert(stage, snapshot(&lab));
        engines
            .iter()
            .for_each(|engine| engine.signal(Signal::CONT));
    };
    freeze(Stage::Up, &mut stages);

    let idle = serve(alpha, "7001");
    let mut server = serve(beta, "7000 --streams 4 --hold 1000");
    let caller = alpha.load(CALL).spawn();
    server.wait_out("three streams", |out| {
        (out.matches("bytes=500").count() == 3).then_some(())
    });
    wait_for("a socket table that shows them", HANG, || {
        let sockets = sockets(alpha, lab.volume().path(0).as_path());
        let open = sockets.iter().filter(|s| s["state"] == "ESTAB");
        let all = open.filter(|s| s["sent_bytes"] != 0 && s["received_bytes"] != 0);
        (sockets.len() == 8 && all.count() == 6).then_some(())
    });
    freeze(Stage::Streams, &mut stages);

    // What beta's frozen engine does not take stays in alpha's ring.
    let mut late = alpha
        .load("call beta:7000 --up 100000 --rate 4000 --key 9")
        .spawn();
    late.wait_out("a stream", |out| out.contains("connected").then_some(()));
    let [alphas, betas] = engines;
    betas.signal(Signal::STOP);
    std::thread::sleep(std::time::Duration::from_secs(1));
    alphas.crash();
    betas.crash();
    stages.insert(Stage::Crashed, snapshot(&lab));
    drop((idle, server, caller, late));

    let mut engines = [alpha.engine(), beta.engine()];
    let server = serve(beta, "7000 --streams 1");
    alpha.load("call beta:7000 --up 700 --down 500").ok();
    server.ok();
    for engine in &mut engines {
        engine.signal(Signal::TERM);
        assert!(engine.wait().success(), "{}", engine.err());
    }
    stages.insert(Stage::Left, snapshot(&lab));
    end(&lab);
    Some(stages)
}

fn json(host: &Host, path: &Path, args: &[&str]) -> Value {
    let ran = host.stp(["--json", "-V"]).arg(path).args(args).ok();
    serde_json::from_str(&ran.text()).unwrap_or_else(|error| panic!("{error}: {ran}"))
}

fn sockets(host: &Host, path: &Path) -> Vec<Value> {
    let report = json(host, path, &["ss", "--all", "--quick"]);
    report["sockets"].as_array().unwrap().clone()
}

/// This version reads it: what it is, who was on it, which sockets there were; every record is sound; and two more
/// systems can come and talk.
fn understands(name: &str, stage: Stage, volume: &[u8]) {
    let mut lab = Lab::new(&format!("golden volume {name}"));
    let path = lab.folder().join("volume");
    std::fs::write(&path, volume).unwrap();
    lab.host_on("gamma", &path, Net::None);
    lab.host_on("delta", &path, Net::None);
    let [gamma, delta] = lab.hosts();

    let info = json(gamma, &path, &["info"]);
    assert_eq!(info["group"], "lab", "{name}");
    assert_eq!(info["seats"], 4, "{name}");
    assert_eq!(info["size_bytes"], SIZE_BYTES, "{name}");
    let taken = info["taken"].as_array().unwrap();
    let seats: Vec<_> = taken
        .iter()
        .map(|seat| {
            (
                seat["system"].as_str().unwrap(),
                seat["state"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(seats, stage.seats(), "{name}");

    let check = json(gamma, &path, &["check"]);
    assert_eq!(check["damaged"], false, "{name}: {check}");
    assert_eq!(check["findings"], Value::Array(Vec::new()), "{name}");
    let segments = check["segments"].as_u64().unwrap();
    match stage {
        // What was acknowledged on a segment only counts as unread until the record says so.
        Stage::Streams => {}
        Stage::Crashed => assert!(segments > 0, "{name}: {check}"),
        Stage::Fresh | Stage::Up | Stage::Left => assert_eq!(segments, 0, "{name}: {check}"),
    }

    let report = json(gamma, &path, &["ss", "--all"]);
    let sockets = report["sockets"].as_array().unwrap();
    let shown: Vec<String> = sockets
        .iter()
        .map(|s| format!("{} {}:{}", s["state"], s["system"], s["port"]).replace('"', ""))
        .collect();
    let count = |what: &str| shown.iter().filter(|line| line.contains(what)).count();
    match stage {
        Stage::Fresh | Stage::Up | Stage::Left => assert_eq!(shown, [""; 0], "{name}"),
        Stage::Streams | Stage::Crashed => {
            assert_eq!(count("LISTEN alpha:7001"), 1, "{name}: {shown:?}");
            assert_eq!(count("LISTEN beta:7000"), 1, "{name}: {shown:?}");
            assert!(count("ESTAB alpha:") >= 3, "{name}: {shown:?}");
            assert!(count("ESTAB beta:7000") >= 3, "{name}: {shown:?}");
            let bytes = |system: &str, field: &str| {
                let of = sockets
                    .iter()
                    .filter(|s| s["system"] == system && s["sent_bytes"] != 0);
                of.map(|s| s[field].as_u64().unwrap()).min().unwrap()
            };
            // A header of 32 bytes, then the pattern.
            assert_eq!(
                (bytes("alpha", "sent_bytes"), bytes("beta", "sent_bytes")),
                (732, 500)
            );
        }
    }

    let _engines = [gamma.engine(), delta.engine()];
    let server = serve(delta, "7000 --streams 2");
    let ran = gamma
        .load("call delta:7000 --streams 2 --up 100000 --down 100000")
        .ok();
    assert_eq!(whole(&ran.text()), 2, "{name}: {ran}");
    server.ok();
    let info = json(gamma, &path, &["info"]);
    let up = info["taken"].as_array().unwrap().iter();
    assert_eq!(up.filter(|seat| seat["state"] == "up").count(), 2, "{info}");
    gamma.stp(["check"]).arg(&path).ok();
}

/// What every release of this format version has left on storage is understood.
#[test]
fn kept_volumes_are_understood() {
    for version in 1..=FORMAT_VERSION {
        for stage in Stage::ALL {
            let name = format!("v{version}/{}", stage.name());
            let path = golden::folder(version).join(format!("{}.hex", stage.name()));
            let text = std::fs::read_to_string(&path)
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            understands(&name, stage, &golden::unpack(&text, SIZE_BYTES));
        }
    }
}

/// What a run leaves today is what the kept volumes are: the same stages, understood the same.
#[test]
fn a_run_of_today_leaves_the_same() {
    let Some(stages) = run() else { return };
    for (stage, volume) in stages {
        let folder = golden::folder(FORMAT_VERSION);
        let path = folder.join(format!("{}.hex", stage.name()));
        if std::env::var_os("STP_BLESS").is_some() && !path.exists() {
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(&path, golden::pack(&volume)).unwrap();
        }
        understands(&format!("today's {}", stage.name()), stage, &volume);
    }
}

/// The kept volume with three streams, its superblock changed.
fn changed(change: impl FnOnce(&mut Vec<u8>)) -> (Lab, PathBuf) {
    let mut lab = Lab::new("golden volume of tomorrow");
    let text = std::fs::read_to_string(golden::folder(1).join("streams.hex")).unwrap();
    let mut volume = golden::unpack(&text, SIZE_BYTES);
    change(&mut volume);
    let path = lab.folder().join("volume");
    std::fs::write(&path, volume).unwrap();
    lab.host_on("gamma", &path, Net::None);
    (lab, path)
}

fn with_features(features: Features) -> (Lab, PathBuf) {
    changed(|volume| {
        let superblock = Superblock::decode(volume).unwrap();
        let unit = Superblock {
            features,
            ..superblock
        }
        .encode();
        for copy in 0..2 {
            let at = usize::try_from(Geometry::superblock_offset(copy)).unwrap();
            volume[at..at + UNIT_BYTES].copy_from_slice(unit.bytes());
        }
    })
}

const LOOKING: [&[&str]; 3] = [&["info"], &["check"], &["ss", "--all"]];
const USING: [&[&str]; 3] = [&["engine"], &["cat", "-l", "7000"], &["ls", "beta:"]];

/// These commands refuse the volume with these words, and none changes it.
fn refuse(host: &Host, path: &Path, commands: &[&[&str]], words: &[&str]) {
    let before = std::fs::read(path).unwrap();
    for args in commands {
        let ran = host.stp(["-V"]).arg(path).args(*args).run();
        failed_well(&ran, words);
    }
    assert!(std::fs::read(path).unwrap() == before, "changed");
}

/// A later format version is refused by name, whatever its checksum says.
#[test]
fn a_later_version_is_refused() {
    for version in [0, FORMAT_VERSION + 1, u16::MAX] {
        let (lab, path) = changed(|volume| {
            for copy in 0..2 {
                let at = usize::try_from(Geometry::superblock_offset(copy)).unwrap();
                volume[at + 16..at + 18].copy_from_slice(&version.to_le_bytes());
            }
        });
        let [gamma] = lab.hosts();
        let words = ["format version", &version.to_string(), "reads version 1"];
        refuse(gamma, &path, &LOOKING, &words);
        refuse(gamma, &path, &USING, &words);
    }
}

/// A seat record of a later version in a volume of this one is nobody's: it is named, and never followed.
#[test]
fn a_seat_record_of_a_later_version_is_named() {
    let (lab, path) = changed(|volume| {
        let geometry = Superblock::decode(volume).unwrap().geometry;
        for copy in 0..2 {
            let place = stp_format::Place::Seat {
                seat: stp_format::SeatId(1),
                copy,
            };
            let at = usize::try_from(geometry.offset(place, 1).unwrap()).unwrap();
            volume[at + 16] = 2;
        }
    });
    let [gamma] = lab.hosts();
    let ran = gamma.stp(["check"]).arg(&path).run();
    assert_eq!(ran.code(), 1, "{ran}");
    assert!(ran.text().contains("format version 2"), "{ran}");
    let ran = gamma.stp(["ss", "--all", "-V"]).arg(&path).ok();
    assert!(!ran.text().contains("LISTEN  beta"), "{ran}");
}

/// An unknown incompatible feature forbids any use.
#[test]
fn incompatible_features_are_refused() {
    let (lab, path) = with_features(Features {
        incompatible: 0x10,
        ..Features::default()
    });
    let [gamma] = lab.hosts();
    let words = ["features", "0x10", "incompatible"];
    refuse(gamma, &path, &LOOKING, &words);
    refuse(gamma, &path, &USING, &words);
}

/// An unknown read-only compatible feature forbids taking part, not looking.
#[test]
fn read_only_features_may_be_looked_at() {
    let (lab, path) = with_features(Features {
        read_only: 0x8000_0000,
        ..Features::default()
    });
    let [gamma] = lab.hosts();
    refuse(
        gamma,
        &path,
        &USING,
        &["features", "0x80000000", "read-only"],
    );
    let before = std::fs::read(&path).unwrap();
    for args in LOOKING {
        gamma.stp(["-V"]).arg(&path).args(args).ok();
    }
    assert!(std::fs::read(&path).unwrap() == before, "looking wrote");
    let ran = gamma
        .stp(["format", "--group", "new", "--seats", "4"])
        .arg(&path)
        .run();
    failed_well(&ran, &["lab", "already"]);
}

/// An unknown compatible feature is nobody's business.
#[test]
fn compatible_features_mean_nothing() {
    let (lab, path) = with_features(Features {
        compatible: u32::MAX,
        ..Features::default()
    });
    let volume = std::fs::read(&path).unwrap();
    drop(lab);
    understands("compatible features", Stage::Streams, &volume);
}
