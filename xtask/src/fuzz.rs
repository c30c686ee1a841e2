//! `cargo xtask fuzz`: libFuzzer on every harness of `stp-fuzz`, one after the other.
//!
//! - Runs on the stable compiler; needs cargo-fuzz and a C++ compiler. Without cargo-fuzz the same harnesses run with
//!   inputs made from the kept ones (`crates/stp-fuzz/tests/inputs.rs`), for as long, but blind to what they cover.
//! - What it learns stays in the build folder; the kept inputs in `fuzz/corpus` are read, never written.
//! - The last line is `N executions, N finds`; a find is a file to keep in `fuzz/regressions`, and fails the chore.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::repo::{self, Error};

/// Bounds of one input: memory, one allocation, time. What goes beyond is a find.
const BOUNDS: &[&str] = &["-rss_limit_mb=1536", "-malloc_limit_mb=256", "-timeout=30"];

/// What one target came to.
struct Outcome {
    executions: u64,
    coverage: u64,
    find: Option<String>,
}

/// What was asked for.
struct Wanted {
    targets: Vec<String>,
    /// For each of them.
    seconds: u64,
}

impl Wanted {
    fn from_args(args: &[String]) -> Result<Self, Error> {
        let (mut minutes, mut each, mut targets) = (1.0, false, Vec::new());
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--minutes" | "--minutes-each" => {
                    let number = args.next().and_then(|text| text.parse::<f64>().ok());
                    let number = number.filter(|n| *n > 0.0);
                    minutes = number.ok_or(format!("{arg} wants a number"))?;
                    each = arg == "--minutes-each";
                }
                flag if flag.starts_with('-') => {
                    return Err(format!("no option {flag}; see cargo xtask help").into());
                }
                name => targets.push(name.to_owned()),
            }
        }
        let all = self::targets()?;
        if let Some(unknown) = targets.iter().find(|name| !all.contains(name)) {
            return Err(format!("no target {unknown}; there are: {}", all.join(" ")).into());
        }
        if targets.is_empty() {
            targets = all;
        }
        let shares = if each { 1 } else { targets.len() };
        let seconds = ((minutes * 60.0 / shares as f64) as u64).max(1);
        Ok(Self { targets, seconds })
    }
}

/// `cargo xtask fuzz [--minutes N | --minutes-each N] [TARGET]...`: so many minutes in all, shared out evenly, or for
/// each target.
///
/// # Errors
/// When the harnesses do not build.
pub fn run(args: &[String]) -> Result<bool, Error> {
    let wanted = Wanted::from_args(args)?;
    let version = repo::cargo().args(["fuzz", "--version"]).output();
    if !version.is_ok_and(|output| output.status.success()) {
        println!("cargo-fuzz is missing (cargo install cargo-fuzz --locked): made inputs only");
        return made_inputs(&wanted);
    }
    let built = cargo_fuzz("build").status()?;
    if !built.success() {
        return Err(format!("cargo fuzz build: {built}").into());
    }
    let (mut executions, mut finds) = (0, Vec::new());
    for target in &wanted.targets {
        let seconds = wanted.seconds;
        let outcome = fuzz(target, seconds)?;
        println!(
            "{target:16} {seconds:6} s {:12} executions {:7} covered{}",
            outcome.executions,
            outcome.coverage,
            outcome
                .find
                .as_deref()
                .map_or(String::new(), |find| format!("  FIND {find}"))
        );
        executions += outcome.executions;
        finds.extend(outcome.find);
    }
    println!("{executions} executions, {} finds", finds.len());
    Ok(finds.is_empty() && executions > 0)
}

/// The harnesses as tests, each for its time, one after the other.
fn made_inputs(wanted: &Wanted) -> Result<bool, Error> {
    let (mut executions, mut finds) = (0, 0);
    for target in &wanted.targets {
        let mut command = repo::cargo();
        command.args([
            "test",
            "--quiet",
            "--package",
            "stp-fuzz",
            "--test",
            "inputs",
        ]);
        command.args(["--", "--exact", "--nocapture", target]);
        command.env("STP_FUZZ_SECONDS", wanted.seconds.to_string());
        let output = command.stdin(Stdio::null()).output()?;
        let told = String::from_utf8_lossy(&output.stdout);
        let line = told.lines().find_map(|line| made(line, target));
        match line.filter(|_| output.status.success()) {
            Some(count) => {
                println!("{target:16} {:6} s {count:12} made inputs", wanted.seconds);
                executions += count;
            }
            None => {
                finds += 1;
                println!(
                    "{target:16} FIND\n{}",
                    String::from_utf8_lossy(&output.stderr)
                );
            }
        }
    }
    println!("{executions} executions, {finds} finds");
    Ok(finds == 0 && executions > 0)
}

/// How many inputs a target's test has made.
fn made(line: &str, target: &str) -> Option<u64> {
    let (_, rest) = line.split_once(&format!("{target}: "))?;
    let (_, rest) = rest.split_once(" kept and ")?;
    rest.split_once(" made inputs")?.0.parse().ok()
}

/// Names of the binaries of `fuzz/Cargo.toml`.
fn targets() -> Result<Vec<String>, Error> {
    let manifest = std::fs::read_to_string(repo::root().join("fuzz/Cargo.toml"))?;
    let bins = manifest.split("[[bin]]").skip(1);
    let name = |bin: &str| {
        let line = bin.lines().find_map(|line| line.strip_prefix("name = "))?;
        Some(line.trim_matches('"').to_owned())
    };
    Ok(bins.filter_map(name).collect())
}

fn cargo_fuzz(verb: &str) -> Command {
    let mut command = repo::cargo();
    // No sanitizer: there is no `unsafe` here for it to watch, and it would need the nightly compiler.
    command.args(["fuzz", verb, "--fuzz-dir", "fuzz", "--sanitizer", "none"]);
    command.env("RUSTC_BOOTSTRAP", "1").stdin(Stdio::null());
    command
}

fn fuzz(target: &str, seconds: u64) -> Result<Outcome, Error> {
    let learnt = repo::target_directory()?.join("fuzz-corpus").join(target);
    std::fs::create_dir_all(&learnt)?;
    let mut command = cargo_fuzz("run");
    command.arg(target).arg(&learnt);
    for kept in ["corpus", "regressions"] {
        let kept = repo::root().join("fuzz").join(kept).join(target);
        if kept.is_dir() {
            command.arg(kept);
        }
    }
    command
        .arg("--")
        .args(BOUNDS)
        .args(["-print_final_stats=1", "-verbosity=1"]);
    command.args([&format!("-max_total_time={seconds}"), "-close_fd_mask=0"]);
    let log = learnt.with_extension("log");
    let mut child = command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let output = child.stderr.take().ok_or("no output of cargo fuzz")?;
    let mut text = String::new();
    let mut outcome = Outcome {
        executions: 0,
        coverage: 0,
        find: None,
    };
    for line in BufReader::new(output).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        heed(&line, &mut outcome);
        text.push_str(&line);
        text.push('\n');
    }
    std::fs::write(&log, text)?;
    let status = child.wait()?;
    if !status.success() && outcome.find.is_none() {
        outcome.find = Some(format!("{status}, see {}", log.display()));
    }
    Ok(outcome)
}

/// What a line of libFuzzer tells.
fn heed(line: &str, outcome: &mut Outcome) {
    let words: Vec<&str> = line.split_whitespace().collect();
    let after = |word: &str| {
        let at = words.iter().position(|found| *found == word)?;
        words.get(at + 1)?.parse::<u64>().ok()
    };
    if let Some(count) = after("stat::number_of_executed_units:") {
        outcome.executions = count;
    }
    if let Some(covered) = after("cov:") {
        outcome.coverage = covered;
    }
    if let Some((_, path)) = line.split_once("Test unit written to ") {
        outcome.find = Some(Path::new(path.trim()).display().to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libfuzzer_is_understood() {
        let mut outcome = Outcome {
            executions: 0,
            coverage: 0,
            find: None,
        };
        for line in [
            "#2048\tpulse  cov: 812 ft: 1200 corp: 3/12b lim: 8 exec/s: 1024 rss: 40Mb",
            "stat::number_of_executed_units: 4711",
        ] {
            heed(line, &mut outcome);
        }
        assert_eq!((outcome.executions, outcome.coverage), (4711, 812));
        assert!(outcome.find.is_none());
        heed(
            "artifact_prefix='a/'; Test unit written to fuzz/artifacts/node/crash-1",
            &mut outcome,
        );
        assert_eq!(outcome.find.as_deref(), Some("fuzz/artifacts/node/crash-1"));
    }

    #[test]
    fn time_is_shared_out_or_given_to_each() {
        let wanted = |args: &[&str]| {
            let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
            Wanted::from_args(&args).map(|wanted| (wanted.targets.len() as u64, wanted.seconds))
        };
        let all = targets().unwrap().len() as u64;
        assert_eq!(wanted(&["--minutes", "60"]).unwrap(), (all, 3600 / all));
        assert_eq!(wanted(&["--minutes-each", "60"]).unwrap(), (all, 3600));
        assert_eq!(wanted(&["--minutes", "1", "node"]).unwrap(), (1, 60));
        assert!(wanted(&["--minutes"]).is_err() && wanted(&["nobody"]).is_err());
    }

    #[test]
    fn made_inputs_are_counted() {
        let line = "test node ... node: 12 kept and 345 made inputs of seed 1";
        assert_eq!(made(line, "node"), Some(345));
        assert_eq!(made(line, "volume"), None);
    }

    #[test]
    fn the_targets_are_those_of_the_manifest() {
        let names = targets().unwrap();
        assert!(
            names.len() > 5 && names.contains(&"node".to_owned()),
            "{names:?}"
        );
    }
}
