//! `cargo xtask suites`: test suites that others wrote for TCP, on TCP and under `stp run`, compared case by case.
//!
//! - TCP first: what fails there is not ours. A case is ours if it passes on TCP and does not under `stp run`.
//! - Such a case is run again five times on both before it is believed.
//! - Each has a row with a reason in `docs/SUITES.md`, or the chore fails. The rows are written here, the reasons by hand.
//! - Suites are outside the repository: CPython's are the machine's, the others are fetched beside cargo's output.

mod cpython;
mod libuv;
mod source;
mod table;
mod told;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::repo::{self, Error};

/// How often a case is run again when its outcomes differ.
const AGAIN: usize = 5;

/// Runs the words that follow in a network of their own that is loopback only.
const APART: [&str; 6] = [
    "unshare",
    "--net",
    "sh",
    "-c",
    "PATH=$PATH:/usr/sbin:/sbin ip link set lo up && exec \"$@\"",
    "sh",
];

/// What became of a case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It passed.
    Pass,
    /// It was not run, by its own word.
    Skip,
    /// It failed, with the first words of why.
    Fail(String),
    /// The run ended or hung before it, or in it.
    Missing,
}

/// Cases by name.
pub(crate) type Outcomes = BTreeMap<String, Outcome>;

/// Over what a suite runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Over {
    /// The kernel's TCP.
    Tcp,
    /// `stp run`.
    Stp,
}

/// A suite.
pub(crate) trait Suite {
    /// Its name and version.
    fn title(&self) -> String;
    /// Runs all cases, or those that are named.
    ///
    /// # Errors
    /// When it cannot be started.
    fn run(&self, stage: &Stage, over: Over, only: Option<&[String]>) -> Result<Outcomes, Error>;
}

/// A case that does not pass under `stp run` as it does on TCP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Difference {
    /// The case.
    pub case: String,
    /// Runs that passed on TCP, of how many.
    pub tcp: (usize, usize),
    /// Runs that passed under `stp run`, of how many.
    pub stp: (usize, usize),
    /// What it said.
    pub words: String,
}

/// What a suite came to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    /// Name and version.
    pub title: String,
    /// How many cases there are.
    pub cases: usize,
    /// How many passed on TCP.
    pub tcp: usize,
    /// How many passed under `stp run`.
    pub stp: usize,
    /// How many skip themselves on both.
    pub skipped: usize,
    /// How many fail on TCP.
    pub fail_on_tcp: usize,
    /// The cases that are ours.
    pub differences: Vec<Difference>,
}

/// All suites.
const NAMES: [&str; 5] = ["cpython", "libuv", "libevent", "ruby", "tcl"];

/// `cargo xtask suites [NAME]... [--short]`
///
/// # Errors
/// When a suite cannot be had, built or started.
pub fn run(args: &[String]) -> Result<bool, Error> {
    let mut short = false;
    let mut wanted: Vec<&str> = Vec::new();
    for arg in args {
        match arg.as_str() {
            "--short" => short = true,
            name if NAMES.contains(&name) => wanted.push(name),
            other => return Err(format!("no suite {other:?}; see cargo xtask help").into()),
        }
    }
    if wanted.is_empty() {
        wanted = if short {
            vec!["cpython"]
        } else {
            NAMES.to_vec()
        };
    }
    let stage = Stage::new()?;
    let mut tallies = Vec::new();
    for name in wanted {
        let suite: Box<dyn Suite> = match name {
            "libuv" => Box::new(libuv::Libuv::get(short)?),
            "libevent" => Box::new(told::libevent()?),
            "ruby" => Box::new(told::ruby()?),
            "tcl" => Box::new(told::tcl()?),
            _ => match cpython::Cpython::find(short)? {
                Some(suite) => Box::new(suite),
                None if short => {
                    eprintln!("suites: SKIPPED: {}", cpython::MISSING);
                    return Ok(true);
                }
                None => return Err(cpython::MISSING.into()),
            },
        };
        tallies.push(compare(&stage, suite.as_ref())?);
    }
    table::settle(&tallies, !short)
}

fn compare(stage: &Stage, suite: &dyn Suite) -> Result<Tally, Error> {
    let timed = |over| {
        let start = Instant::now();
        let outcomes = suite.run(stage, over, None)?;
        eprintln!(
            "suites: {} over {over:?}: {} cases in {} s",
            suite.title(),
            outcomes.len(),
            start.elapsed().as_secs()
        );
        Ok::<_, Error>(outcomes)
    };
    let (tcp, stp) = (timed(Over::Tcp)?, timed(Over::Stp)?);
    let passed = |outcomes: &Outcomes, case: &str| outcomes.get(case) == Some(&Outcome::Pass);
    let suspects: Vec<String> = tcp
        .keys()
        .filter(|case| passed(&tcp, case) && !passed(&stp, case))
        .cloned()
        .collect();
    let mut tally = Tally {
        title: suite.title(),
        cases: tcp.len(),
        tcp: tcp
            .values()
            .filter(|outcome| **outcome == Outcome::Pass)
            .count(),
        stp: tcp.keys().filter(|case| passed(&stp, case)).count(),
        skipped: tcp
            .iter()
            .filter(|(case, outcome)| {
                **outcome == Outcome::Skip && stp.get(*case) == Some(&Outcome::Skip)
            })
            .count(),
        fail_on_tcp: tcp
            .values()
            .filter(|outcome| matches!(outcome, Outcome::Fail(_) | Outcome::Missing))
            .count(),
        differences: Vec::new(),
    };
    for case in &suspects {
        let alone = std::slice::from_ref(case);
        let again = |over| -> Result<(usize, String), Error> {
            let (mut passes, mut words) = (0, String::new());
            for _ in 0..AGAIN {
                match suite.run(stage, over, Some(alone))?.remove(case) {
                    Some(Outcome::Pass) => passes += 1,
                    Some(Outcome::Fail(said)) => words = said,
                    Some(Outcome::Skip) => "skips itself".clone_into(&mut words),
                    Some(Outcome::Missing) | None => "does not end".clone_into(&mut words),
                }
            }
            Ok((passes, words))
        };
        let (stp_passes, mut words) = again(Over::Stp)?;
        let (tcp_passes, _) = again(Over::Tcp)?;
        if stp_passes == AGAIN {
            // Once in a run of everything, never alone: counted, and told.
            eprintln!("suites: {case}: failed once under stp run, then passed {AGAIN} times");
            tally.stp += 1;
            continue;
        }
        if words.is_empty() {
            words = match stp.get(case) {
                Some(Outcome::Fail(said)) => said.clone(),
                Some(Outcome::Skip) => "skips itself".into(),
                _ => "does not end".into(),
            };
        }
        eprintln!(
            "suites: {case}: TCP {tcp_passes}/{AGAIN}, stp run {stp_passes}/{AGAIN}: {words}"
        );
        tally.differences.push(Difference {
            case: case.clone(),
            tcp: (tcp_passes, AGAIN),
            stp: (stp_passes, AGAIN),
            words,
        });
    }
    Ok(tally)
}

/// Where suites run: a volume, a system on it with its engine, and, for root, a network of their own that is loopback only.
pub(crate) struct Stage {
    folder: tempfile::TempDir,
    stp: PathBuf,
    _engine: Ended,
}

/// A process that ends with its owner.
struct Ended(std::process::Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Stage {
    fn new() -> Result<Self, Error> {
        repo::build_command()?;
        let stp = repo::target_directory()?.join("debug/stp");
        let folder = tempfile::Builder::new().prefix("stp-suites-").tempdir()?;
        std::fs::set_permissions(
            folder.path(),
            std::os::unix::fs::PermissionsExt::from_mode(0o755),
        )?;
        let volume = folder.path().join("volume");
        std::fs::File::create_new(&volume)?.set_len(256 << 20)?;
        let command = |apart: bool, words: &[&str]| {
            let mut command = if apart && repo::is_root() {
                let mut command = Command::new(APART[0]);
                command.args(&APART[1..]).arg(&stp);
                command
            } else {
                Command::new(&stp)
            };
            command.args(words).env("STP_VOLUME", &volume);
            command
                .env("STP_SYSTEM", "alpha")
                .env("STP_RUN_DIR", folder.path().join("run"));
            command.stdin(Stdio::null());
            command
        };
        let formatted = command(false, &["format"])
            .arg(&volume)
            .args(["--group", "suites"])
            .output()?;
        if !formatted.status.success() {
            return Err(String::from_utf8_lossy(&formatted.stderr)
                .into_owned()
                .into());
        }
        // Programs under `stp run` are where their engine is.
        let mut engine = command(true, &["engine"]);
        engine.stderr(std::fs::File::create(folder.path().join("engine.log"))?);
        let mut engine = Ended(engine.spawn()?);
        let serves = || {
            let volumes = std::fs::read_dir(folder.path().join("run"))
                .into_iter()
                .flatten();
            volumes
                .flatten()
                .any(|volume| volume.path().join("alpha/engine.sock").exists())
        };
        while !serves() {
            if let Some(status) = engine.0.try_wait()? {
                let log = std::fs::read_to_string(folder.path().join("engine.log"))?;
                return Err(format!("stp engine: {status}: {}", log.trim()).into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(Self {
            folder,
            stp,
            _engine: engine,
        })
    }

    /// The temporary folder.
    #[must_use]
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A program over `over`; as root among no other programs' ports.
    #[must_use]
    pub(crate) fn command(&self, over: Over, program: &Path) -> Command {
        let mut words: Vec<&OsStr> = Vec::new();
        if repo::is_root() {
            words.extend(APART.map(OsStr::new));
        }
        if over == Over::Stp {
            words.extend([self.stp.as_os_str(), OsStr::new("run"), OsStr::new("--")]);
        }
        words.push(program.as_os_str());
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        command
            .env("STP_VOLUME", self.folder().join("volume"))
            .env("STP_SYSTEM", "alpha")
            .env("STP_RUN_DIR", self.folder().join("run"))
            .current_dir(self.folder())
            .stdin(Stdio::null());
        command
    }
}

/// Runs a command, in a process group that ends with it, as long as it gets on: until `done`, which counts what is done,
/// has stood still for `limit`. Says whether it ended by itself.
fn run_while(
    command: &mut Command,
    limit: Duration,
    done: impl Fn() -> u64,
) -> Result<bool, Error> {
    use std::os::unix::process::CommandExt;
    let mut child = command.process_group(0).spawn()?;
    let (mut last, mut since) = (done(), Instant::now());
    let ended = loop {
        if child.try_wait()?.is_some() {
            break true;
        }
        let now = done();
        if now != last {
            (last, since) = (now, Instant::now());
        }
        if since.elapsed() > limit {
            break false;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    // What it left behind goes as well.
    let _ = Command::new("kill")
        .args(["-KILL", "--", &format!("-{}", child.id())])
        .stderr(Stdio::null())
        .status();
    child.wait()?;
    Ok(ended)
}

/// The length of a file that grows as its writer gets on.
fn length(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |found| found.len())
}
