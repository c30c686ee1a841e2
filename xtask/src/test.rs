//! `cargo xtask test`: every test, one count.
//!
//! - The last line is `N passed, N failed, N skipped`; the chore fails if one failed or none ran.
//! - A skipped test is named with its reason. A test that skips itself (or a part of itself) appends a line
//!   `test|part TAB name TAB reason` to the file that `STP_TEST_SKIPS` names; the harness in `stp-tests` does that.
//! - With cargo-nextest if it is installed, else with `cargo test`: the same tests, the same count.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use crate::needs;
use crate::repo::{self, Error};

/// Tests that mostly wait for engines and disks run beside each other even on two cores.
const THREADS: usize = 4;

/// What the runs came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// How many tests ran and passed.
    pub passed: usize,
    /// The names of those that failed.
    pub failed: Vec<String>,
    /// Name and reason of what was not run.
    pub skipped: Vec<(String, String)>,
    /// Whether a runner failed without naming a test (a build error, a crash).
    pub broken: Vec<String>,
}

/// `cargo xtask test [--no-install] [FILTER]...`
///
/// # Errors
/// When cargo itself cannot be run.
pub fn run(args: &[String]) -> Result<bool, Error> {
    let mut install = std::env::var_os("STP_TEST_NO_INSTALL").is_none();
    let mut filters = Vec::new();
    for arg in args {
        match arg.as_str() {
            "--no-install" => install = false,
            flag if flag.starts_with('-') => {
                return Err(format!("no option {flag}; see cargo xtask help").into());
            }
            filter => filters.push(filter.to_owned()),
        }
    }
    needs::ensure(install)?;

    let target = repo::target_directory()?;
    std::fs::create_dir_all(&target)?;
    let skips = target.join(format!("skipped-tests.{}", std::process::id()));
    std::fs::write(&skips, "")?;

    let mut tally = Tally::default();
    let built = repo::build_command();
    if built.is_ok() {
        let environment = |command: &mut Command| {
            command
                .env("STP_TEST_BIN", target.join("debug/stp"))
                .env("STP_TEST_SKIPS", &skips)
                .stdin(Stdio::null());
        };
        let nextest = repo::cargo()
            .args(["nextest", "--version"])
            .output()
            .is_ok_and(|out| out.status.success());
        if nextest {
            run_nextest(&filters, &environment, &mut tally)?;
        } else {
            let mut command = repo::cargo();
            command.args([
                "test",
                "--locked",
                "--workspace",
                "--all-features",
                "--no-fail-fast",
                "--lib",
                "--bins",
                "--examples",
                "--tests",
            ]);
            command
                .args(["--", &format!("--test-threads={THREADS}")])
                .args(&filters);
            environment(&mut command);
            run_libtest(command, "cargo test", &mut tally)?;
        }
        // Examples in the documentation: no other runner knows them.
        let mut command = repo::cargo();
        command
            .args([
                "test",
                "--locked",
                "--workspace",
                "--all-features",
                "--no-fail-fast",
                "--doc",
                "--",
            ])
            .args(&filters);
        environment(&mut command);
        run_libtest(command, "cargo test --doc", &mut tally)?;
    }
    if let Err(error) = built {
        tally.broken.push(error.to_string());
    }
    add_own_skips(&std::fs::read_to_string(&skips)?, &mut tally);
    std::fs::remove_file(&skips)?;
    Ok(report(&tally))
}

fn report(tally: &Tally) -> bool {
    println!();
    for name in &tally.failed {
        println!("FAILED  {name}");
    }
    for what in &tally.broken {
        println!("BROKEN  {what}");
    }
    for (name, reason) in &tally.skipped {
        println!("SKIPPED {name}: {reason}");
    }
    let failed = tally.failed.len() + tally.broken.len();
    println!(
        "{} passed, {failed} failed, {} skipped",
        tally.passed,
        tally.skipped.len()
    );
    failed == 0 && tally.passed > 0
}

fn run_nextest(
    filters: &[String],
    environment: &dyn Fn(&mut Command),
    tally: &mut Tally,
) -> Result<(), Error> {
    // Its reports go there wherever CARGO_TARGET_DIR points.
    let junit = repo::root().join("target/nextest/all/junit.xml");
    if junit.exists() {
        std::fs::remove_file(&junit)?;
    }
    let common = ["--locked", "--workspace", "--all-features"];
    let mut command = repo::cargo();
    command.args(["nextest", "run"]).args(common).args([
        "--profile",
        "all",
        "--no-fail-fast",
        "--no-tests",
        "pass",
    ]);
    command.args([
        "--status-level",
        "pass",
        "--final-status-level",
        "fail",
        "--test-threads",
        &THREADS.to_string(),
    ]);
    command.args(filters);
    environment(&mut command);
    let status = command.status()?;
    let before = tally.failed.len();
    match std::fs::read_to_string(&junit) {
        Ok(text) => add_junit(&text, tally),
        Err(error) => tally.broken.push(format!(
            "cargo nextest left no {}: {error}",
            junit.display()
        )),
    }
    if !status.success() && tally.failed.len() == before && tally.broken.is_empty() {
        tally.broken.push(format!("cargo nextest run: {status}"));
    }
    // Ignored tests do not show in the report.
    let mut list = repo::cargo();
    list.args(["nextest", "list"]).args(common).args([
        "--profile",
        "all",
        "--message-format",
        "json",
    ]);
    list.args(["--run-ignored", "only"])
        .args(filters)
        .stderr(Stdio::null());
    let listed = list.output()?;
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap_or_default();
    let suites = listed["rust-suites"].as_object().into_iter().flatten();
    for (suite, content) in suites {
        for (name, case) in content["testcases"].as_object().into_iter().flatten() {
            if case["ignored"] == true && case["filter-match"]["status"] == "matches" {
                tally
                    .skipped
                    .push((format!("{suite} {name}"), "marked #[ignore]".into()));
            }
        }
    }
    Ok(())
}

/// Adds a JUnit report: one `<testcase` a test, a `<failure` or `<error` inside one that failed.
fn add_junit(text: &str, tally: &mut Tally) {
    for case in text.split("<testcase ").skip(1) {
        let head = case.split('>').next().unwrap_or_default();
        let body = case.split("</testcase>").next().unwrap_or(case);
        let body = if head.ends_with('/') { "" } else { body };
        if body.contains("<failure") || body.contains("<error") {
            tally.failed.push(format!(
                "{} {}",
                attribute(head, "classname"),
                attribute(head, "name")
            ));
        } else {
            tally.passed += 1;
        }
    }
}

fn attribute(head: &str, name: &str) -> String {
    let key = format!(" {name}=\"");
    let head = format!(" {head}");
    let value = head
        .split(&key)
        .nth(1)
        .and_then(|rest| rest.split('"').next());
    value
        .unwrap_or("?")
        .replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&amp;", "&")
}

/// Runs libtest binaries by cargo, shows their output, and counts its lines.
fn run_libtest(mut command: Command, what: &str, tally: &mut Tally) -> Result<(), Error> {
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let output = child.stdout.take().ok_or("no output of cargo")?;
    let before = tally.failed.len();
    for line in BufReader::new(output).lines() {
        let line = line?;
        println!("{line}");
        add_libtest_line(&line, tally);
    }
    let status = child.wait()?;
    if !status.success() && tally.failed.len() == before {
        tally.broken.push(format!("{what}: {status}"));
    }
    Ok(())
}

fn add_libtest_line(line: &str, tally: &mut Tally) {
    let Some((name, outcome)) = line
        .strip_prefix("test ")
        .and_then(|rest| rest.rsplit_once(" ... "))
    else {
        return;
    };
    // A doc test that is only compiled is called "name - compile".
    match outcome.split([',', ' ']).next().unwrap_or_default() {
        "ok" => tally.passed += 1,
        "FAILED" => tally.failed.push(name.to_owned()),
        "ignored" => tally
            .skipped
            .push((name.to_owned(), "marked #[ignore]".into())),
        _ => {}
    }
}

/// Adds the tests that skipped themselves: they count as passed until here.
fn add_own_skips(lines: &str, tally: &mut Tally) {
    let lines: BTreeSet<&str> = lines.lines().collect();
    for line in lines {
        let mut fields = line.splitn(3, '\t');
        let (Some(kind), Some(name), Some(reason)) = (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        if kind == "test" {
            tally.passed = tally.passed.saturating_sub(1);
        }
        tally.skipped.push((name.to_owned(), reason.to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn junit_is_counted() {
        let text = r#"<testsuites><testsuite name="a">
<testcase name="one &lt;x&gt;" classname="a" time="0.1"></testcase>
<testcase name="two" classname="a"/>
<testcase name="three" classname="b::c" time="1"><failure type="x">message</failure></testcase>
</testsuite></testsuites>"#;
        let mut tally = Tally::default();
        add_junit(text, &mut tally);
        assert_eq!(tally.passed, 2);
        assert_eq!(tally.failed, ["b::c three"]);
    }

    #[test]
    fn libtest_is_counted() {
        let mut tally = Tally::default();
        for line in [
            "running 3 tests",
            "test a::b ... ok",
            "test crates/stp/src/lib.rs - open (line 3) - compile ... ok",
            "test a::c ... FAILED",
            "test a::d ... ignored, takes an hour",
            "test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out",
        ] {
            add_libtest_line(line, &mut tally);
        }
        assert_eq!(
            (tally.passed, tally.failed.len(), tally.skipped.len()),
            (2, 1, 1)
        );
    }

    #[test]
    fn own_skips_move_from_passed_to_skipped_and_parts_are_added() {
        let mut tally = Tally {
            passed: 5,
            ..Tally::default()
        };
        add_own_skips(
            "test\tlun\tno nbdkit\ntest\tlun\tno nbdkit\npart\tproof\tnot root\n",
            &mut tally,
        );
        assert_eq!(tally.passed, 4);
        assert_eq!(tally.skipped.len(), 2);
    }

    #[test]
    fn a_run_without_a_test_or_with_a_broken_runner_fails() {
        assert!(!report(&Tally::default()));
        assert!(!report(&Tally {
            passed: 3,
            broken: vec!["x".into()],
            ..Tally::default()
        }));
        assert!(report(&Tally {
            passed: 3,
            ..Tally::default()
        }));
    }
}
