//! What is measured with: this process and its mate, each with a node of its own, and two shared engines.
//!
//! - Only seats that the bench's own nodes have claimed are written to, under names that no other run has.
//! - Everything is taken down at the end, however it comes: nodes leave their seats, files are removed.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, kill_process};
use stp::{EngineChoice, Group};
use stp_format::{Geometry, SeatId, SystemName};
use stp_host::engine::{EngineConfig, EngineHandle, start_shared};
use stp_host::rendezvous::RunDir;
use stp_medium::VolumeSpec;

use super::conn::{Conn, Errand, Way};
use super::floor::Floor;
use super::mate::{Answer, Ask, PIPES, SOCKET, Spent};
use crate::CliError;

/// Where the mate listens, on every system of the bench.
pub(super) const PORT: u16 = 7001;
/// How long a shared engine may take to be ready, or to leave.
const ENGINE_WAIT: Duration = Duration::from_secs(20);

/// An embedded node, and the group that uses it.
pub(super) fn attach(
    volume: &str,
    run_dir: &Path,
    system: &str,
) -> Result<(EngineHandle, Group), CliError> {
    let name: SystemName = system.parse().map_err(CliError::new)?;
    let spec: VolumeSpec = volume.parse().map_err(CliError::new)?;
    let opened = stp_host::volume::open(&spec).map_err(CliError::new)?;
    let superblock = *opened.superblock();
    let run = RunDir::open_default(Some(run_dir)).map_err(CliError::new)?;
    let dir = run
        .system(superblock.volume, &name)
        .map_err(CliError::new)?;
    let host = run.host_id().map_err(CliError::new)?;
    let medium = opened.into_medium();
    let config = EngineConfig::new(medium, spec.to_string(), superblock, dir, host);
    let engine = start_shared(config).map_err(|error| {
        CliError::new(error).remedy("the bench needs two free seats for its own two nodes")
    })?;
    let group = Group::builder(volume)
        .system(system)
        .run_dir(run_dir)
        .engine(EngineChoice::Embedded)
        .open()
        .map_err(CliError::new)?;
    Ok((engine, group))
}

/// CPU time of this process so far.
pub(super) fn cpu_seconds() -> f64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

/// CPU time of another process so far, all its threads together.
fn cpu_seconds_of(pid: u32) -> f64 {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
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

/// `stp engine` of one of the bench's systems.
struct Engine {
    child: Child,
}

impl Engine {
    fn start(volume: &str, run_dir: &Path, system: &str) -> Result<Self, CliError> {
        let failed = |error| CliError::new(format_args!("the shared engine of {system}: {error}"));
        let mut child = Command::new(std::env::current_exe().map_err(failed)?)
            .args(["engine", "-V", volume, "--system", system, "--run-dir"])
            .arg(run_dir)
            .env_remove("STP_LOG")
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let mut said = String::new();
        if let Some(stderr) = child.stderr.take() {
            let mut lines = BufReader::new(stderr);
            // It says that it is ready, or why it is not, and then nothing for long.
            lines.read_line(&mut said).map_err(failed)?;
            std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::stderr()));
        }
        if said.contains("ready") {
            return Ok(Self { child });
        }
        let _ = child.wait();
        Err(CliError::new(format_args!(
            "the shared engine of {system}: {}",
            said.trim().trim_start_matches("stp: ")
        )))
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let asked = pid.map(|pid| kill_process(pid, rustix::process::Signal::TERM));
        let until = Instant::now() + ENGINE_WAIT;
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

/// The other process.
struct Mate {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Mate {
    fn start() -> Result<Self, CliError> {
        let failed = |error| CliError::new(format_args!("the bench's other process: {error}"));
        let mut child = Command::new(std::env::current_exe().map_err(failed)?)
            .args(["bench", "--mate"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        match (child.stdin.take(), child.stdout.take()) {
            (Some(to), Some(from)) => Ok(Self {
                child,
                to,
                from: BufReader::new(from),
            }),
            _ => Err(CliError::new("the bench's other process has no pipes")),
        }
    }

    fn ask(&mut self, ask: &Ask) -> Result<Answer, CliError> {
        let gone = |error| CliError::new(format_args!("the bench's other process: {error}"));
        let text = serde_json::to_string(ask).map_err(CliError::new)?;
        writeln!(self.to, "{text}").map_err(gone)?;
        let mut line = String::new();
        if self.from.read_line(&mut line).map_err(gone)? == 0 {
            return Err(CliError::new("the bench's other process has ended"));
        }
        match serde_json::from_str(&line).map_err(CliError::new)? {
            Answer::Failed(why) => Err(CliError::new(why)),
            answer => Ok(answer),
        }
    }
}

impl Drop for Mate {
    fn drop(&mut self) {
        let text = serde_json::to_string(&Ask::End).unwrap_or_default();
        if writeln!(self.to, "{text}").is_err() {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

struct Scratch(PathBuf);

impl Scratch {
    fn make() -> Result<Self, CliError> {
        let path = std::env::temp_dir().join(format!("stp-bench-{}", std::process::id()));
        let failed = |error| CliError::new(format_args!("{}: {error}", path.display()));
        let mut builder = DirBuilder::new();
        builder.mode(0o700).create(&path).map_err(failed)?;
        builder.create(path.join("run")).map_err(failed)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Everything that is measured with. Fields are dropped from top to bottom.
pub(super) struct World {
    mate: Mate,
    shared: Option<(Group, [Engine; 2])>,
    group: Group,
    pub(super) engine: EngineHandle,
    pub(super) floor: Option<Floor>,
    /// What could not be set up, and why.
    pub(super) missing: Vec<String>,
    volume: String,
    names: [String; 4],
    tcp_port: u16,
    scratch: Scratch,
}

impl World {
    pub(super) fn new(volume: &str, shared: bool) -> Result<Self, CliError> {
        let scratch = Scratch::make()?;
        let run_dir = scratch.0.join("run");
        let tag = std::process::id();
        let names = ["a", "b", "c", "d"].map(|which| format!("bench-{tag}-{which}"));
        for pipe in PIPES {
            let mode = rustix::fs::Mode::from_raw_mode(0o600);
            let path = scratch.0.join(pipe);
            rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0)
                .map_err(|error| CliError::new(format_args!("{}: {error}", path.display())))?;
        }
        let mut mate = Mate::start()?;
        let (engine, group) = attach(volume, &run_dir, &names[0])?;
        let begun = mate.ask(&Ask::Begin {
            volume: volume.to_owned(),
            run_dir: run_dir.clone(),
            scratch: scratch.0.clone(),
            system: names[1].clone(),
        })?;
        let Answer::Begun { seat, tcp_port } = begun else {
            return Err(CliError::new("the bench's other process did not begin"));
        };
        let mut missing = Vec::new();
        let mate_seat = SeatId(seat);
        let spec: VolumeSpec = volume.parse().map_err(CliError::new)?;
        let geometry = engine.volume().geometry;
        let floor = Floor::open(&spec, &geometry, engine.seat(), mate_seat)
            .map_err(|error| missing.push(format!("floor: {error}")))
            .ok();
        let mut world = Self {
            mate,
            shared: None,
            group,
            engine,
            floor,
            missing,
            volume: volume.to_owned(),
            names,
            tcp_port,
            scratch,
        };
        if shared && let Err(error) = world.share(&run_dir) {
            world.missing.push(format!("shared: {error}"));
        }
        Ok(world)
    }

    /// Shared engines for two more systems.
    fn share(&mut self, run_dir: &Path) -> Result<(), CliError> {
        let [_, _, near, far] = &self.names;
        let engines = [
            Engine::start(&self.volume, run_dir, near)?,
            Engine::start(&self.volume, run_dir, far)?,
        ];
        self.mate.ask(&Ask::Share {
            run_dir: run_dir.to_owned(),
            system: far.clone(),
        })?;
        let group = Group::builder(&self.volume)
            .system(near)
            .run_dir(run_dir)
            .engine(EngineChoice::Shared)
            .open()
            .map_err(CliError::new)?;
        self.shared = Some((group, engines));
        Ok(())
    }

    /// Whether this way is there to be measured.
    pub(super) fn has(&self, way: Way) -> bool {
        match way {
            Way::Floor => self.floor.is_some(),
            Way::Shared => self.shared.is_some(),
            Way::Embedded | Way::Tcp | Way::Unix | Way::Pipe => true,
        }
    }

    pub(super) fn geometry(&self) -> Geometry {
        self.engine.volume().geometry
    }

    /// Starts the mate's echo on the bare storage.
    pub(super) fn echo_on_floor(&mut self, size: usize, base: u64) -> Result<(), CliError> {
        let other = self.engine.seat().0;
        self.mate.ask(&Ask::Echo { other, size, base })?;
        Ok(())
    }

    /// A new connection to the mate, with the errand on its way.
    pub(super) fn connect(&mut self, way: Way, errand: Errand) -> Result<Conn, CliError> {
        if way == Way::Pipe {
            self.mate.ask(&Ask::Pipe)?;
        }
        let mut conn = self.dialer(way)?.dial()?;
        conn.write_all(&errand.encode())
            .map_err(|error| failed(way, &error))?;
        Ok(conn)
    }

    /// What it takes to connect, for other threads too.
    pub(super) fn dialer(&self, way: Way) -> Result<Dialer, CliError> {
        let (group, system) = match (way, &self.shared) {
            (Way::Shared, Some((group, _))) => (group.clone(), &self.names[3]),
            _ => (self.group.clone(), &self.names[1]),
        };
        Ok(Dialer {
            way,
            group,
            address: format!("{system}:{PORT}"),
            tcp_port: self.tcp_port,
            scratch: self.scratch.0.clone(),
        })
    }

    /// What the mate's node has used so far.
    pub(super) fn mate_spent(&mut self) -> Result<Spent, CliError> {
        match self.mate.ask(&Ask::Spent)? {
            Answer::Spent(spent) => Ok(spent),
            _ => Err(CliError::new(
                "the bench's other process did not say what it used",
            )),
        }
    }

    /// CPU seconds of everything that takes part in this way, so far.
    pub(super) fn cpu_seconds(&mut self, way: Way) -> Result<f64, CliError> {
        let programs = cpu_seconds() + self.mate_spent()?.cpu_s;
        let engines = match &self.shared {
            Some((_, engines)) if way == Way::Shared => engines
                .iter()
                .map(|engine| cpu_seconds_of(engine.child.id()))
                .sum(),
            _ => 0.0,
        };
        Ok(programs + engines)
    }
}

/// Makes connections of one kind.
#[derive(Clone)]
pub(super) struct Dialer {
    way: Way,
    group: Group,
    address: String,
    tcp_port: u16,
    scratch: PathBuf,
}

impl Dialer {
    pub(super) fn dial(&self) -> Result<Conn, CliError> {
        let pipe = |name: &str, write: bool| -> std::io::Result<File> {
            let path = self.scratch.join(name);
            OpenOptions::new().read(!write).write(write).open(path)
        };
        let conn = match self.way {
            Way::Embedded | Way::Shared => self.group.connect(self.address.as_str()).map(Conn::Stp),
            Way::Tcp => TcpStream::connect(("127.0.0.1", self.tcp_port)).and_then(|stream| {
                stream.set_nodelay(true)?;
                Ok(Conn::Tcp(stream))
            }),
            Way::Unix => UnixStream::connect(self.scratch.join(SOCKET)).map(Conn::Unix),
            // In the mate's order.
            Way::Pipe => pipe(PIPES[0], true).and_then(|to| {
                let from = pipe(PIPES[1], false)?;
                Ok(Conn::Pipe { from, to: Some(to) })
            }),
            Way::Floor => Err(std::io::ErrorKind::Unsupported.into()),
        };
        conn.map_err(|error| failed(self.way, &error))
    }
}

pub(super) fn failed(way: Way, error: &std::io::Error) -> CliError {
    CliError::new(format_args!("{}: {error}", way.name()))
}
