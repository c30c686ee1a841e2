//! Suites whose programs tell of each case in what they print: Ruby's, Tcl's, libevent's.
//!
//! - Sources are Debian's. Interpreters are the machine's, of the same release; libevent's tests are built beside cargo's output.
//! - A part of a suite is a process of its own, so that one that hangs takes no other with it. A case's name begins with its part.

use std::path::PathBuf;
use std::time::Duration;

use super::{Outcome, Outcomes, Over, Stage, Suite, length, run_while, source};
use crate::repo::{self, Error};

/// How long one case may take.
const LIMIT: Duration = Duration::from_secs(120);

/// A suite.
pub(super) struct Told {
    title: String,
    folder: PathBuf,
    program: PathBuf,
    parts: &'static [&'static str],
    /// The arguments that run a part, or one case of it.
    words: fn(&str, Option<&str>) -> Vec<String>,
    /// What a part's output says.
    parse: fn(&str) -> Outcomes,
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn interpreter(name: &str, package: &str) -> Result<PathBuf, Error> {
    repo::find_program(name)
        .ok_or_else(|| format!("no {name} here: install {package} (Debian)").into())
}

/// Ruby's tests of sockets and of what stands on them.
///
/// # Errors
/// When they cannot be had.
pub(super) fn ruby() -> Result<Told, Error> {
    let program = interpreter("ruby", "ruby")?;
    let (folder, version) = source::debian("ruby3.1", "ruby-")?;
    Ok(Told {
        title: format!("Ruby {version}"),
        folder,
        program,
        parts: &[
            "test/socket",
            "test/net",
            "test/fiber",
            "test/drb",
            "test/open-uri",
            "test/openssl/test_ssl.rb",
            "test/openssl/test_ssl_session.rb",
            "test/io/wait",
            "test/io/nonblock",
            "test/resolv",
            "test/ruby/test_io.rb",
        ],
        words: |part, case| {
            let all = ["-I", "tool/lib", "-I", "test/lib", "tool/test/runner.rb"];
            let mut all = words(&[&all[..], &["-v", part]].concat());
            if let Some(case) = case {
                all.extend(words(&["-n", case]));
            }
            all
        },
        parse: parse_ruby,
    })
}

/// Tcl's tests of sockets, channels and HTTP.
///
/// # Errors
/// When they cannot be had.
pub(super) fn tcl() -> Result<Told, Error> {
    let program = interpreter("tclsh", "tcl")?;
    let (folder, version) = source::debian("tcl8.6", "tcl")?;
    Ok(Told {
        title: format!("Tcl {version}"),
        folder: folder.join("tests"),
        program,
        parts: &[
            "socket.test",
            "http.test",
            "http11.test",
            "httpold.test",
            "httpPipeline.test",
            "io.test",
            "chanio.test",
            "ioCmd.test",
        ],
        words: |part, case| {
            let case = case.unwrap_or("*");
            words(&[part, "-verbose", "pse", "-match", case])
        },
        parse: parse_tcl,
    })
}

/// libevent's tests.
///
/// # Errors
/// When they cannot be had or built.
pub(super) fn libevent() -> Result<Told, Error> {
    let (folder, version) = source::debian("libevent", "libevent-")?;
    let program = folder.join("build/bin/regress");
    if !program.is_file() {
        let options = [
            "-DEVENT__DISABLE_OPENSSL=ON",
            "-DEVENT__DISABLE_MBEDTLS=ON",
            "-DEVENT__DISABLE_BENCHMARK=ON",
            "-DEVENT__DISABLE_SAMPLES=ON",
        ];
        source::cmake(&folder, &options, "regress")?;
    }
    Ok(Told {
        title: format!("libevent {}", version.trim_end_matches("-stable")),
        folder,
        program,
        parts: &[
            "main/..",
            "et/..",
            "util/..",
            "bufferevent/..",
            "evbuffer/..",
            "listener/..",
            "http/..",
            "rpc/..",
            "dns/..",
            "signal/..",
            "thread/..",
        ],
        words: |part, case| words(&[case.unwrap_or(part)]),
        parse: parse_libevent,
    })
}

impl Suite for Told {
    fn title(&self) -> String {
        self.title.clone()
    }

    fn run(&self, stage: &Stage, over: Over, only: Option<&[String]>) -> Result<Outcomes, Error> {
        let mut outcomes = Outcomes::new();
        let runs: Vec<(&str, Option<&str>)> = match only {
            None => self.parts.iter().map(|part| (*part, None)).collect(),
            Some(cases) => cases
                .iter()
                .filter_map(|name| name.split_once(' '))
                .map(|(part, case)| (part, Some(case)))
                .collect(),
        };
        let log = stage.folder().join("told.log");
        for (part, case) in runs {
            let file = std::fs::File::create(&log)?;
            let mut command = stage.command(over, &self.program);
            command
                .args((self.words)(part, case))
                .current_dir(&self.folder)
                .stdout(file.try_clone()?)
                .stderr(file);
            if !run_while(&mut command, LIMIT, || length(&log))? {
                eprintln!("suites: {} {part} over {over:?}: hung", self.title);
            }
            let said = String::from_utf8_lossy(&std::fs::read(&log)?).into_owned();
            for (case, outcome) in (self.parse)(&said) {
                outcomes.insert(format!("{part} {case}"), outcome);
            }
        }
        Ok(outcomes)
    }
}

/// `[N/M] CASE = TIME s` when a case has ended; at the end ` N) Failure:`, `Error:` or `Skipped:`, then `CASE [PLACE]:` or
/// `CASE:`, then why.
fn parse_ruby(text: &str) -> Outcomes {
    let mut outcomes = Outcomes::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        if let Some((case, rest)) = line
            .strip_prefix('[')
            .and_then(|line| line.split_once("] "))
            .and_then(|(_, rest)| rest.split_once(" = "))
        {
            let ended = rest.contains(" s");
            let outcome = if ended {
                Outcome::Pass
            } else {
                Outcome::Missing
            };
            outcomes.insert(case.to_owned(), outcome);
            continue;
        }
        let Some((number, kind)) = line.trim_start().split_once(") ") else {
            continue;
        };
        let kinds = ["Failure:", "Error:", "Skipped:"];
        if number.parse::<u32>().is_err() || !kinds.contains(&kind) {
            continue;
        }
        let Some(case) = lines.next() else { break };
        let case = case
            .split(" [")
            .next()
            .unwrap_or(case)
            .trim_end_matches(':');
        let why = lines.peek().copied().unwrap_or_default();
        let outcome = match kind {
            "Skipped:" => Outcome::Skip,
            _ => Outcome::Fail(why.to_owned()),
        };
        outcomes.insert(case.to_owned(), outcome);
    }
    outcomes
}

/// `---- CASE start`, `++++ CASE PASSED`, `++++ CASE SKIPPED: WHY`, `==== CASE WHAT FAILED`.
fn parse_tcl(text: &str) -> Outcomes {
    let mut outcomes = Outcomes::new();
    for line in text.lines() {
        let (mark, rest) = line.split_at_checked(5).unwrap_or_default();
        let (case, words) = rest.split_once(' ').unwrap_or_default();
        let outcome = match (mark, words) {
            ("---- ", "start") => Outcome::Missing,
            ("++++ ", "PASSED") => Outcome::Pass,
            ("++++ ", words) if words.starts_with("SKIPPED") => Outcome::Skip,
            ("==== ", words) => match words.strip_suffix(" FAILED") {
                Some(what) => Outcome::Fail(what.to_owned()),
                None => continue,
            },
            _ => continue,
        };
        outcomes.insert(case.to_owned(), outcome);
    }
    outcomes
}

/// `GROUP/CASE: [forking] OK`, `SKIPPED` or `DISABLED`; else lines of why, and `[CASE FAILED]`.
fn parse_libevent(text: &str) -> Outcomes {
    let mut outcomes = Outcomes::new();
    let mut open: Option<String> = None;
    for line in text.lines() {
        let told = line
            .split_once(": ")
            .filter(|(case, _)| case.contains('/') && case.chars().all(|c| c.is_ascii_graphic()));
        if let Some((case, rest)) = told {
            open = None;
            let outcome = match rest.split_whitespace().last() {
                Some("OK") => Outcome::Pass,
                Some("SKIPPED" | "DISABLED") => Outcome::Skip,
                _ => {
                    open = Some(case.to_owned());
                    Outcome::Missing
                }
            };
            outcomes.insert(case.to_owned(), outcome);
            continue;
        }
        let Some(outcome) = open.as_ref().and_then(|case| outcomes.get_mut(case)) else {
            continue;
        };
        let words = line.trim();
        match words {
            "OK" => *outcome = Outcome::Pass,
            "SKIPPED" => *outcome = Outcome::Skip,
            _ if (words.starts_with("FAIL ") || words.ends_with("FAILED]"))
                && !matches!(outcome, Outcome::Fail(_)) =>
            {
                *outcome = Outcome::Fail(words.to_owned());
            }
            _ => {}
        }
    }
    outcomes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rubys_words_are_read() {
        let text = "[1/3] TestA#test_x = 0.00 s\n[2/3] TestA#test_y = 0.10 s\n[3/3] TestB#test_z = 0.00 s\n\n  \
            1) Failure:\nTestA#test_y [a.rb:7]:\nexpected 1\n\n  2) Skipped:\nTestB#test_z [b.rb:1]:\nno\n";
        let outcomes = parse_ruby(text);
        assert_eq!(outcomes["TestA#test_x"], Outcome::Pass);
        assert_eq!(outcomes["TestA#test_y"], Outcome::Fail("expected 1".into()));
        assert_eq!(outcomes["TestB#test_z"], Outcome::Skip);
    }

    #[test]
    fn tcls_words_are_read() {
        let text = "---- a-1 start\n++++ a-1 PASSED\n++++ a-2 SKIPPED: win\n---- a-3 start\n\n==== a-3 bytes FAILED\n\
            ---- a-4 start\n";
        let outcomes = parse_tcl(text);
        assert_eq!(outcomes["a-1"], Outcome::Pass);
        assert_eq!(outcomes["a-2"], Outcome::Skip);
        assert_eq!(outcomes["a-3"], Outcome::Fail("bytes".into()));
        assert_eq!(outcomes["a-4"], Outcome::Missing);
    }

    #[test]
    fn libevents_words_are_read() {
        let text = "main/a: [forking] OK\nmain/b: SKIPPED\nmain/c: \n  FAIL c.c:7: assert(x)\n  [c FAILED]\n\
            main/d: [forking] \nnoise\nOK\n";
        let outcomes = parse_libevent(text);
        assert_eq!(outcomes["main/a"], Outcome::Pass);
        assert_eq!(outcomes["main/b"], Outcome::Skip);
        assert_eq!(
            outcomes["main/c"],
            Outcome::Fail("FAIL c.c:7: assert(x)".into())
        );
        assert_eq!(outcomes["main/d"], Outcome::Pass);
    }
}
