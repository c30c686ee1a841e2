//! Two systems on one volume in a temporary folder, each with a `stp engine` of its own.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "every test file uses a part of it"
)]

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// Nothing in these tests takes longer, unless it hangs.
pub const HANG: Duration = Duration::from_secs(90);

const SYSTEMS: [&str; 2] = ["alpha", "beta"];

pub struct World {
    pub folder: TempDir,
    engines: Vec<Running>,
}

impl World {
    /// A formatted volume and the engines of alpha and beta.
    pub fn new() -> Self {
        let mut world = Self::without_engines();
        for system in SYSTEMS {
            world.engines.push(world.start(system, &["engine"]));
        }
        for engine in &mut world.engines {
            engine.line("ready");
        }
        world
    }

    /// Only the volume: every program has an engine of its own.
    pub fn without_engines() -> Self {
        // Not in /tmp, which may be memory: this is about files.
        let folder = tempfile::Builder::new()
            .prefix("stp-cli-")
            .tempdir_in(env!("CARGO_TARGET_TMPDIR"))
            .unwrap();
        let world = Self {
            folder,
            engines: Vec::new(),
        };
        let mut format = stp();
        format.arg("format").arg(world.volume());
        format.args(["--group", "lab", "--size", "64MiB"]);
        let output = format.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        world
    }

    /// Ends a system's engine by a signal and starts another.
    pub fn restart_engine(&mut self, system: &str, signal: Signal) {
        let at = SYSTEMS.iter().position(|name| *name == system).unwrap();
        self.engines[at].signal(signal);
        self.engines[at].child.wait().unwrap();
        self.engines[at] = self.start(system, &["engine"]);
        self.engines[at].line("ready");
    }

    pub fn volume(&self) -> PathBuf {
        self.folder.path().join("volume")
    }

    /// `stp` on a system; the command is to be added.
    pub fn on(&self, system: &str) -> Command {
        let mut command = stp();
        command.env("STP_VOLUME", self.volume());
        command.env("STP_SYSTEM", system);
        command.env("STP_RUN_DIR", self.folder.path().join(system));
        command
    }

    /// The same with its arguments, running.
    pub fn start(&self, system: &str, args: &[&str]) -> Running {
        let mut command = self.on(system);
        command.args(args);
        Running::start(command)
    }
}

fn stp() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stp"));
    for name in ["STP_VOLUME", "STP_SYSTEM", "STP_RUN_DIR", "STP_LOG"] {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    command
}

/// A process whose lines on standard error are collected; killed when dropped.
pub struct Running {
    pub child: Child,
    lines: Receiver<String>,
    pub said: String,
}

impl Running {
    pub fn start(mut command: Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let stderr = child.stderr.take().unwrap();
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self {
            child,
            lines,
            said: String::new(),
        }
    }

    /// Waits for a line on standard error that contains `part`.
    pub fn line(&mut self, part: &str) -> String {
        let deadline = Instant::now() + HANG;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    self.said.push_str(&line);
                    self.said.push('\n');
                    if line.contains(part) {
                        return line;
                    }
                }
                Err(_) => panic!("no line with {part:?}, only:\n{}", self.said),
            }
        }
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().try_into().unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Its exit code (128 + signal as a shell has it) and what it said; it has to end by itself.
    pub fn end(mut self) -> (i32, String) {
        use std::os::unix::process::ExitStatusExt;
        let deadline = Instant::now() + HANG;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "it does not end; {}", self.said);
            std::thread::sleep(Duration::from_millis(5));
        };
        while let Ok(line) = self.lines.recv_timeout(Duration::from_secs(5)) {
            self.said.push_str(&line);
            self.said.push('\n');
        }
        let code = status.code().or(status.signal().map(|n| 128 + n)).unwrap();
        (code, std::mem::take(&mut self.said))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads a pipe to its end on a thread.
pub fn collect(mut pipe: impl Read + Send + 'static) -> Collected {
    let (sender, bytes) = channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).unwrap();
        let _ = sender.send(bytes);
    });
    Collected(bytes)
}

pub struct Collected(Receiver<Vec<u8>>);

impl Collected {
    /// Everything, once it has ended.
    pub fn whole(self) -> Vec<u8> {
        self.0.recv_timeout(HANG).expect("the pipe does not end")
    }
}

/// Bytes that no two positions confuse.
pub fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut noise = Vec::with_capacity(bytes + 8);
    while noise.len() < bytes {
        noise.extend_from_slice(&next().to_le_bytes());
    }
    noise.truncate(bytes);
    noise
}

pub fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
