//! libuv's own tests (`uv_run_tests`): its TCP, poll, shutdown and IPC cases among all others.
//!
//! - The source is Debian's, built with cmake beside cargo's output.
//! - It insists on not being root; as root it is run by `nobody`.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use super::source::{self, step};
use super::{Outcome, Outcomes, Over, Stage, Suite, length, run_while};
use crate::repo::{self, Error};

/// How long one case may take.
const LIMIT: Duration = Duration::from_secs(300);

/// The words in the names of the cases that a short run takes.
const SHORT: &[&str] = &[
    "tcp_",
    "shutdown_",
    "poll_",
    "ipc_",
    "ping_pong",
    "getsockname",
];

/// The suite.
pub(super) struct Libuv {
    source: PathBuf,
    version: String,
    short: bool,
}

impl Libuv {
    /// The suite, fetched and built if it is not there yet.
    ///
    /// # Errors
    /// When it cannot be.
    pub(super) fn get(short: bool) -> Result<Self, Error> {
        let (source, version) = source::debian("libuv1", "libuv1-")?;
        if !source.join("build/uv_run_tests").is_file() {
            let options = ["-DBUILD_TESTING=ON", "-DQEMU=OFF"];
            source::cmake(&source, &options, "uv_run_tests")?;
        }
        Ok(Self {
            source,
            version,
            short,
        })
    }
}

impl Libuv {
    /// A folder that the user of the tests may write to, with what they read.
    fn place(&self, stage: &Stage) -> Result<PathBuf, Error> {
        let place = stage.folder().join("libuv");
        if !place.exists() {
            std::fs::create_dir_all(place.join("test"))?;
            let program = self.source.join("build/uv_run_tests");
            std::fs::copy(program, place.join("uv_run_tests"))?;
            let fixtures = self.source.join("test/fixtures");
            step(
                Command::new("cp")
                    .arg("-a")
                    .arg(fixtures)
                    .arg(place.join("test")),
            )?;
            // The library, should it be a shared one.
            step(
                Command::new("sh")
                    .arg("-c")
                    .arg("cp -a \"$1\"/build/libuv.so* \"$2\"")
                    .args(["sh".as_ref(), self.source.as_os_str(), place.as_os_str()]),
            )?;
            if repo::is_root() {
                step(
                    Command::new("chown")
                        .args(["-R", "nobody:nogroup"])
                        .arg(&place),
                )?;
            }
        }
        Ok(place)
    }

    fn command(&self, stage: &Stage, over: Over) -> Result<Command, Error> {
        let place = self.place(stage)?;
        let program = place.join("uv_run_tests");
        let mut command = if repo::is_root() {
            let setpriv = repo::find_program("setpriv").ok_or("no setpriv: install util-linux")?;
            let mut command = stage.command(over, &setpriv);
            command.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups", "--"]);
            command.arg(program);
            command
        } else {
            stage.command(over, &program)
        };
        command
            .env("LD_LIBRARY_PATH", &place)
            .env("HOME", &place)
            .env("TMPDIR", &place)
            .current_dir(&place);
        Ok(command)
    }
}

impl Suite for Libuv {
    fn title(&self) -> String {
        let part = if self.short { ", short" } else { "" };
        format!("libuv {}{part}", self.version)
    }

    fn run(&self, stage: &Stage, over: Over, only: Option<&[String]>) -> Result<Outcomes, Error> {
        let log = stage.folder().join("libuv.log");
        let run = |args: &[&str]| -> Result<String, Error> {
            let mut command = self.command(stage, over)?;
            let file = std::fs::File::create(&log)?;
            command.args(args).stdout(file.try_clone()?).stderr(file);
            if !run_while(&mut command, LIMIT, || length(&log))? {
                eprintln!("suites: libuv over {over:?}: hung");
            }
            Ok(String::from_utf8_lossy(&std::fs::read(&log)?).into_owned())
        };
        let names = match only {
            Some(names) => names.to_vec(),
            None if self.short => {
                let mut names = listed(&run(&["--list"])?);
                names.retain(|name| SHORT.iter().any(|word| name.contains(word)));
                names
            }
            None => return Ok(parse(&run(&[])?)),
        };
        let mut outcomes = Outcomes::new();
        for name in &names {
            // Alone, a case speaks of itself in the same form.
            let mut alone = parse(&run(&[name])?);
            let outcome = alone.remove(name).unwrap_or(Outcome::Missing);
            outcomes.insert(name.clone(), outcome);
        }
        Ok(outcomes)
    }
}

fn listed(text: &str) -> Vec<String> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .map(str::to_owned)
        .collect()
}

/// TAP: `ok N - NAME`, `not ok N - NAME`, `ok N - NAME # SKIP REASON`; after a failure, lines `# ...` say what it said.
fn parse(text: &str) -> Outcomes {
    let mut outcomes = Outcomes::new();
    let mut failed = None;
    for line in text.lines() {
        if let (Some(name), Some(words)) = (&failed, line.strip_prefix('#'))
            && let Some(Outcome::Fail(said)) = outcomes.get_mut(name)
        {
            let words = words.trim();
            if said.len() + words.len() < 200
                && !words.starts_with('=')
                && !words.starts_with("Output")
            {
                said.push_str(words);
                said.push(' ');
            }
            continue;
        }
        let (passed, rest) = match (line.strip_prefix("ok "), line.strip_prefix("not ok ")) {
            (Some(rest), _) => (true, rest),
            (_, Some(rest)) => (false, rest),
            _ => continue,
        };
        let Some((_, rest)) = rest.split_once(" - ") else {
            continue;
        };
        let (name, skip) = match rest.split_once(" # SKIP") {
            Some((name, _)) => (name.trim().to_owned(), true),
            None => (rest.trim().to_owned(), false),
        };
        let outcome = match (passed, skip) {
            (_, true) => Outcome::Skip,
            (true, _) => Outcome::Pass,
            (false, _) => Outcome::Fail(String::new()),
        };
        failed = matches!(outcome, Outcome::Fail(_)).then(|| name.clone());
        outcomes.insert(name, outcome);
    }
    outcomes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tap_is_read() {
        let text = "1..4\nok 1 - a\nnot ok 2 - b\n# exit code 134\n# Output from process `b`:\n# assertion\n\
            ok 3 - c # SKIP no TTY\nok 4 - d\n";
        let outcomes = parse(text);
        assert_eq!(outcomes["a"], Outcome::Pass);
        assert_eq!(
            outcomes["b"],
            Outcome::Fail("exit code 134 assertion ".into())
        );
        assert_eq!(outcomes["c"], Outcome::Skip);
        assert_eq!(outcomes["d"], Outcome::Pass);
    }
}
