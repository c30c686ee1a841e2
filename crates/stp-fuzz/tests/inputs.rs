//! Every harness with the inputs that are kept and with some thousands of made ones, in every test run.
//!
//! - `fuzz/corpus/NAME` holds what fuzzing found worth keeping, `fuzz/regressions/NAME` what once broke something; both
//!   stay small.
//! - A failure names the input: it is written to a file, to be run again or kept.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use stp_fuzz::control::sockets;
use stp_fuzz::{Rng, TARGETS, Target, find};

fn folder(kind: &str, name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../fuzz/{kind}/{name}"))
}

fn kept(kind: &str, name: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let Ok(entries) = std::fs::read_dir(folder(kind, name)) else {
        return Vec::new();
    };
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
        .into_iter()
        .map(|path| (path.clone(), std::fs::read(path).unwrap()))
        .collect()
}

/// How much is made, and from which seed on.
struct Effort {
    seed: u64,
    times: u32,
    /// As many inputs as so long allows, instead.
    limit: Option<Duration>,
}

impl Effort {
    fn asked_for() -> Self {
        let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
        Self {
            seed: number("STP_FUZZ_SEED").unwrap_or(1),
            times: number("STP_FUZZ_TIMES").map_or(1, |times| times as u32),
            limit: number("STP_FUZZ_SECONDS").map(Duration::from_secs),
        }
    }

    fn is_over(&self, target: &Target, number: u32, begun: Instant) -> bool {
        match self.limit {
            Some(limit) => begun.elapsed() >= limit,
            None => number >= target.tests * self.times,
        }
    }
}

fn exercise(name: &str) {
    let target = find(name).expect("a target");
    let mut seeds = Vec::new();
    for kind in ["regressions", "corpus"] {
        for (path, input) in kept(kind, name) {
            eprintln!("{}", path.display());
            (target.run)(&input);
            seeds.push(input);
        }
    }
    let effort = Effort::asked_for();
    let seed = effort.seed;
    let (mut rng, begun) = (Rng::new(seed), Instant::now());
    let mut number = 0;
    while !effort.is_over(target, number, begun) {
        let input = rng.input(&seeds, target.bytes_max);
        if catch_unwind(AssertUnwindSafe(|| (target.run)(&input))).is_err() {
            let path = std::env::temp_dir().join(format!("stp-fuzz-{name}-{seed}-{number}"));
            std::fs::write(&path, &input).unwrap();
            panic!(
                "{name}: input {number} of seed {seed} is in {}; keep it in fuzz/regressions/{name}",
                path.display()
            );
        }
        number += 1;
    }
    println!(
        "{name}: {} kept and {number} made inputs of seed {seed}",
        seeds.len()
    );
}

macro_rules! targets {
    ($($name:ident),* $(,)?) => {
        $(#[test]
        fn $name() {
            exercise(stringify!($name));
        })*

        const EXERCISED: &[&str] = &[$(stringify!($name)),*];
    };
}

targets! {
    records, records_made, segment, gift, node, claim, volume, text, files, socks, control, control_client, run_wire,
}

/// The control socket with its threads and time-outs: few inputs, one after the other.
#[test]
fn control_over_its_own_sockets() {
    let mut rng = Rng::new(1);
    for name in ["control", "control_client"] {
        let kept: Vec<_> = kept("corpus", name)
            .into_iter()
            .map(|kept| kept.1)
            .collect();
        for _ in 0..40 {
            let input = rng.input(&kept, 800);
            match name {
                "control" => sockets::engine(&input),
                _ => sockets::program(&input),
            }
        }
    }
}

/// No harness is left out here or in the fuzzers' own workspace.
#[test]
fn every_harness_is_driven_both_ways() {
    let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
    assert_eq!(names, EXERCISED);
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/Cargo.toml");
    let manifest = std::fs::read_to_string(manifest).unwrap();
    for Target { name, .. } in TARGETS {
        assert!(
            manifest.contains(&format!("name = \"{name}\"")),
            "fuzz/Cargo.toml lacks {name}"
        );
        let file = folder("fuzz_targets", &format!("{name}.rs"));
        assert!(file.is_file(), "{} is missing", file.display());
    }
}

/// The checkers find what they are for: a write elsewhere, a text that is printed otherwise, a byte out of place.
#[test]
fn the_checkers_can_fail() {
    use stp_format::{Place, SeatId};
    let elsewhere = Place::Seat {
        seat: SeatId(1),
        copy: 0,
    };
    assert!(!stp_fuzz::node::may_write(SeatId(0), &elsewhere));
    assert!(stp_fuzz::node::may_write(SeatId(1), &elsewhere));
    let superblock = Place::Superblock { copy: 0 };
    assert!(!stp_fuzz::node::may_write(SeatId(0), &superblock));
}
