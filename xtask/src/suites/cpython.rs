//! CPython's own tests of sockets and of what stands on them.
//!
//! - They are the machine's: of the first Python that has them.
//! - A process a file, so that a file that hangs takes no other with it. `*VSOCK*` is left out: it hangs on TCP too.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::{Outcome, Outcomes, Over, Stage, Suite, length, run_while};
use crate::repo::{self, Error};

/// What to do where no Python has its tests.
pub(super) const MISSING: &str =
    "no Python here has its tests: install libpython3.11-testsuite (Debian)";

const DRIVER: &str = include_str!("driver.py");

/// Files of the test package, the longest first.
const FILES: &[&str] = &[
    "test_asyncio",
    "test_socket",
    "test_socketserver",
    "test_ssl",
    "test_select",
    "test_selectors",
    "test_epoll",
    "test_poll",
    "test_asyncore",
    "test_asynchat",
    "test_ftplib",
    "test_telnetlib",
    "test_poplib",
    "test_smtplib",
    "test_imaplib",
    "test_nntplib",
    "test_httplib",
    "test_httpservers",
    "test_urllib2_localnet",
    "test_xmlrpc",
    "test_multiprocessing_main_handling",
];

/// What is left out.
const ALL: &str = "^(?!.*VSOCK)";

/// What a short run takes of `test_socket`: streams.
const SHORT: &str = "^test_socket\\.(?!.*(VSOCK|UDP|UDPLITE|RDS|SCTP|CAN|Bluetooth|Hyperv|ALG))\
    (BasicTCP|NonBlockingTCP|TCPTimeout|TestExceptions|NetworkConnection|FileObject|Unbuffered|LineBuffered|SmallBuffered|\
    Sendfile|SendmsgTCP|Recvmsg(Into)?TCP|SendmsgStream|InheritanceTest|NonblockConstant|ContextManager|TCPCloser|\
    GeneralModuleTests|SendRecvFdsTests|CreateServer|InterruptedRecvTimeout)";

/// How many files run beside each other.
const BESIDE: usize = 3;

/// How long one case may take.
const LIMIT: Duration = Duration::from_secs(300);

/// How often a file is run that hangs or ends early: some cases do on a machine without a free core, on TCP as well.
const TRIES: usize = 3;

/// The suite.
pub(super) struct Cpython {
    python: PathBuf,
    version: String,
    short: bool,
}

impl Cpython {
    /// The first Python that has its tests.
    ///
    /// # Errors
    /// When none can be asked.
    pub(super) fn find(short: bool) -> Result<Option<Self>, Error> {
        let names = [
            "python3",
            "python3.11",
            "python3.12",
            "python3.13",
            "/usr/bin/python3",
        ];
        for python in names.iter().filter_map(|name| repo::find_program(name)) {
            // A wrapper that chooses a Python is not what is to run.
            let script = "import sys, test.test_socket, test.test_ssl; print(sys.executable, sys.version.split()[0])";
            let asked = Command::new(python).args(["-c", script]).output()?;
            let said = String::from_utf8_lossy(&asked.stdout).into_owned();
            let mut words = said.split_whitespace();
            if let (true, Some(path), Some(version)) =
                (asked.status.success(), words.next(), words.next())
            {
                return Ok(Some(Self {
                    python: path.into(),
                    version: version.to_owned(),
                    short,
                }));
            }
        }
        Ok(None)
    }

    /// All files, some beside each other: they mostly wait. As root each has a network of its own; else one at a time.
    fn run_files(&self, stage: &Stage, over: Over) -> Result<Outcomes, Error> {
        let next = AtomicUsize::new(0);
        let all = Mutex::new(Ok(Outcomes::new()));
        let work = || {
            while let Some(file) = FILES.get(next.fetch_add(1, Ordering::Relaxed)) {
                let ran = self.run_file(stage, over, file, ALL);
                let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
                match (ran, &mut *all) {
                    (Ok(mut outcomes), Ok(all)) => all.append(&mut outcomes),
                    (Err(error), all) => *all = Err(error),
                    (Ok(_), Err(_)) => {}
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..if repo::is_root() { BESIDE } else { 1 } {
                scope.spawn(work);
            }
        });
        all.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    fn run_file(
        &self,
        stage: &Stage,
        over: Over,
        file: &str,
        pattern: &str,
    ) -> Result<Outcomes, Error> {
        for _ in 1..TRIES {
            let (outcomes, whole) = self.try_file(stage, over, file, pattern)?;
            if whole {
                return Ok(outcomes);
            }
        }
        Ok(self.try_file(stage, over, file, pattern)?.0)
    }

    /// What became of a file's cases, and whether it came to its end.
    fn try_file(
        &self,
        stage: &Stage,
        over: Over,
        file: &str,
        pattern: &str,
    ) -> Result<(Outcomes, bool), Error> {
        let driver = stage.folder().join(format!("{file}.{over:?}.py"));
        std::fs::write(&driver, DRIVER)?;
        let results = stage.folder().join(format!("{file}.{over:?}.results"));
        let _ = std::fs::remove_file(&results);
        let log = std::fs::File::create(stage.folder().join(format!("{file}.{over:?}.log")))?;
        let mut command = stage.command(over, &self.python);
        command
            .args(["-W", "ignore"])
            .arg(&driver)
            .args([file, pattern])
            .arg(&results)
            .stdout(log.try_clone()?)
            .stderr(log);
        command.env_remove("PYTHONPATH").stdin(Stdio::null());
        let ended = run_while(&mut command, LIMIT, || length(&results))?;
        let text = std::fs::read_to_string(&results).unwrap_or_default();
        let outcomes = parse(&text);
        let whole = text.lines().any(|line| line.starts_with("end\t"));
        if !whole {
            let how = if ended { "ended early" } else { "hung" };
            eprintln!("suites: {file} over {over:?}: {how}");
            keep_log(stage.folder(), file, over);
        }
        Ok((outcomes, whole))
    }
}

/// Shows the end of what a file said.
fn keep_log(folder: &Path, file: &str, over: Over) {
    let text = std::fs::read(folder.join(format!("{file}.{over:?}.log"))).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    for line in &lines[lines.len().saturating_sub(15)..] {
        eprintln!("    {line}");
    }
}

impl Suite for Cpython {
    fn title(&self) -> String {
        let part = if self.short { ", short" } else { "" };
        format!("CPython {}{part}", self.version)
    }

    fn run(&self, stage: &Stage, over: Over, only: Option<&[String]>) -> Result<Outcomes, Error> {
        let mut outcomes = Outcomes::new();
        if let Some(cases) = only {
            for case in cases {
                let file = case.split('.').next().unwrap_or_default();
                let pattern = format!("^{}$", case.replace('.', "\\."));
                outcomes.append(&mut self.run_file(stage, over, file, &pattern)?);
            }
        } else if self.short {
            outcomes = self.run_file(stage, over, "test_socket", SHORT)?;
        } else {
            outcomes = self.run_files(stage, over)?;
        }
        Ok(outcomes)
    }
}

/// What the driver wrote. A case that began and did not end is missing; those after it are not known.
fn parse(text: &str) -> Outcomes {
    let mut outcomes = Outcomes::new();
    for line in text.lines() {
        let mut fields = line.splitn(3, '\t');
        let (Some(kind), Some(name)) = (fields.next(), fields.next()) else {
            continue;
        };
        let outcome = match kind {
            "start" => Outcome::Missing,
            "pass" => Outcome::Pass,
            "skip" => Outcome::Skip,
            "fail" => Outcome::Fail(fields.next().unwrap_or_default().to_owned()),
            _ => continue,
        };
        outcomes.insert(name.to_owned(), outcome);
    }
    outcomes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_that_never_ended_is_missing() {
        let text =
            "start\ta.B.c\npass\ta.B.c\nstart\ta.B.d\nfail\ta.B.d\tError: no\nstart\ta.B.e\n";
        let outcomes = parse(text);
        assert_eq!(outcomes["a.B.c"], Outcome::Pass);
        assert_eq!(outcomes["a.B.d"], Outcome::Fail("Error: no".into()));
        assert_eq!(outcomes["a.B.e"], Outcome::Missing);
    }
}
