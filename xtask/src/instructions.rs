//! `cargo xtask instructions`: how many instructions the micro-benchmarks take, compared with what is committed.
//!
//! - Counted by valgrind: the figures do not depend on how busy a machine is. They do depend on the compiler, and a
//!   little on the C library: hence a tolerance, and `--update` for whoever changes either on purpose.
//! - A case that takes more than its figure and the tolerance fails the chore; one that takes less than that is named,
//!   so that the gain is kept by committing the new figure.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::repo::{self, Error};

/// Where the figures are kept.
const FIGURES: &str = "crates/stp-host/benches/instructions.txt";
/// By how much a case may differ from its figure, in percent.
const TOLERANCE_PERCENT: f64 = 5.0;

/// `cargo xtask instructions [--update]`.
///
/// # Errors
/// When valgrind is missing or the benchmarks do not build.
pub fn run(args: &[String]) -> Result<bool, Error> {
    let update = match args {
        [] => false,
        [flag] if flag == "--update" => true,
        [other, ..] => return Err(format!("no option {other}; see cargo xtask help").into()),
    };
    if repo::find_program("valgrind").is_none() {
        return Err("valgrind is missing: apt-get install valgrind".into());
    }
    let binary = build()?;
    let path = repo::root().join(FIGURES);
    let kept = parse(&std::fs::read_to_string(&path).unwrap_or_default());
    let mut counted = BTreeMap::new();
    for case in cases(&binary)? {
        let count = count(&binary, &case)?;
        println!("{}", line(&case, count, kept.get(&case).copied()));
        counted.insert(case, count);
    }
    if update {
        std::fs::write(&path, text(&counted))?;
        println!("written to {FIGURES}");
        return Ok(true);
    }
    let worse: Vec<_> = counted
        .iter()
        .filter(|(case, count)| match kept.get(*case) {
            Some(kept) => percent(**count, *kept) > TOLERANCE_PERCENT,
            None => true,
        })
        .map(|(case, _)| case.as_str())
        .collect();
    if worse.is_empty() {
        println!("{} cases, none takes more than it did", counted.len());
        return Ok(true);
    }
    println!(
        "more than {TOLERANCE_PERCENT} % beyond its figure, or without one: {}; if that is meant: cargo xtask instructions --update",
        worse.join(" ")
    );
    Ok(false)
}

/// Builds the benchmarks; where they are.
fn build() -> Result<PathBuf, Error> {
    let output = repo::cargo()
        .args([
            "bench",
            "--locked",
            "--package",
            "stp-host",
            "--bench",
            "micro",
        ])
        .args(["--no-run", "--message-format", "json"])
        .stderr(Stdio::inherit())
        .output()?;
    if !output.status.success() {
        return Err(format!("cargo bench --no-run: {}", output.status).into());
    }
    let found = String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == "micro")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from));
    Ok(found.ok_or("cargo names no binary of the benchmarks")?)
}

fn cases(binary: &Path) -> Result<Vec<String>, Error> {
    let output = Command::new(binary).arg("--list").output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().map(str::to_owned).collect())
}

fn count(binary: &Path, case: &str) -> Result<u64, Error> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(binary)
        .args(["--once", case])
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("valgrind on {case}: {}\n{said}", output.status).into());
    }
    collected(&said).ok_or_else(|| format!("valgrind counted nothing for {case}:\n{said}").into())
}

/// The total that callgrind says at its end: `==1234== Collected : 56789`.
fn collected(said: &str) -> Option<u64> {
    let line = said.lines().find(|line| line.contains("Collected :"))?;
    line.rsplit(':').next()?.trim().parse().ok()
}

fn percent(count: u64, kept: u64) -> f64 {
    (count as f64 / kept.max(1) as f64 - 1.0) * 100.0
}

fn line(case: &str, count: u64, kept: Option<u64>) -> String {
    match kept {
        None => format!("{case:<18} {count:>12}  new"),
        Some(kept) => {
            let change = percent(count, kept);
            let gain = match change < -TOLERANCE_PERCENT {
                true => "  fewer: keep it with --update",
                false => "",
            };
            format!("{case:<18} {count:>12}  {change:+.1} %{gain}")
        }
    }
}

fn text(counted: &BTreeMap<String, u64>) -> String {
    let mut text = String::from(
        "# Instructions of each micro-benchmark; written by `cargo xtask instructions --update`.\n",
    );
    for (case, count) in counted {
        text.push_str(&format!("{case} {count}\n"));
    }
    text
}

fn parse(text: &str) -> BTreeMap<String, u64> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let (case, count) = line.split_once(' ')?;
            Some((case.to_owned(), count.trim().parse().ok()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_kept_as_they_are_read() {
        let counted = BTreeMap::from([("a_case".to_owned(), 12), ("b".to_owned(), 3_000_000)]);
        assert_eq!(parse(&text(&counted)), counted);
    }

    #[test]
    fn valgrinds_total_is_found() {
        let said = "==7== Events    : Ir\n==7== Collected : 123456\n==7== \n==7== I   refs:      123,456\n";
        assert_eq!(collected(said), Some(123_456));
        assert_eq!(collected("==7== nothing"), None);
    }

    #[test]
    fn more_is_told_from_less() {
        assert!(percent(106, 100) > TOLERANCE_PERCENT);
        assert!(percent(104, 100) < TOLERANCE_PERCENT);
        assert!(line("x", 90, Some(100)).contains("fewer"));
    }
}
