//! `stp engine` of one of the bench's systems.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::CliError;

/// How long a shared engine may take to leave.
const LEAVE_WAIT: Duration = Duration::from_secs(20);

/// A shared engine, ended when this is dropped.
pub(super) struct Engine {
    child: Child,
}

impl Engine {
    pub(super) fn start(volume: &str, run_dir: &Path, system: &str) -> Result<Self, CliError> {
        let failed = |error| CliError::new(format_args!("the shared engine of {system}: {error}"));
        let mut child = Command::new(std::env::current_exe().map_err(failed)?)
            .args(["engine", "-V", volume, "--system", system, "--run-dir"])
            .arg(run_dir)
            .env_remove("STP_LOG")
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        // It may warn first. Then it says that it is ready, or as its last word why it is not.
        let mut why = String::new();
        if let Some(stderr) = child.stderr.take() {
            let mut lines = BufReader::new(stderr);
            loop {
                let mut line = String::new();
                if lines.read_line(&mut line).map_err(failed)? == 0 {
                    break;
                }
                eprint!("{why}");
                if line.contains(" ready") {
                    std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::stderr()));
                    return Ok(Self { child });
                }
                why = line;
            }
        }
        let _ = child.wait();
        Err(CliError::new(format_args!(
            "the shared engine of {system}: {}",
            why.trim().trim_start_matches("stp: ")
        )))
    }

    /// CPU time so far, all its threads together.
    pub(super) fn cpu_seconds(&self) -> f64 {
        let Ok(tasks) = std::fs::read_dir(format!("/proc/{}/task", self.child.id())) else {
            return 0.0;
        };
        tasks
            .flatten()
            .filter_map(|task| {
                let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
                text.split_whitespace().next()?.parse::<f64>().ok()
            })
            .sum::<f64>()
            / 1e9
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let asked = pid.map(|pid| kill_process(pid, Signal::TERM));
        let until = Instant::now() + LEAVE_WAIT;
        while matches!(asked, Some(Ok(()))) && Instant::now() < until {
            if matches!(self.child.try_wait(), Ok(Some(_)) | Err(_)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
