//! What is measured with: this process and its mate, on this host or another, each with a node of its own, and two
//! shared engines.
//!
//! - Only seats that the bench's own nodes have claimed are written to, under names that no other run has.
//! - Everything is taken down at the end, however it comes: nodes leave their seats, files are removed.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write;
use std::net::TcpStream;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use stp::{EngineChoice, Group};
use stp_format::{Geometry, SeatId, SystemName};
use stp_host::engine::{EngineConfig, EngineHandle, start_shared};
use stp_host::rendezvous::RunDir;
use stp_medium::VolumeSpec;

use super::conn::{Conn, Errand, Way};
use super::engines::Engine;
use super::floor::{Floor, fresh_base};
use super::mate::{PIPES, SOCKET};
use super::talk::{Answer, Ask, Spent, Talk};
use crate::CliError;

/// Where the mate listens, on every system of the bench.
pub(super) const PORT: u16 = 7001;

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

/// A name that no other bench has, on this host or another.
fn fresh_tag() -> Result<String, CliError> {
    Ok(format!("bench-{:08x}", fresh_base()? >> 32))
}

/// The system that a host's `stp bench --serve` is: beside what the host's programs use.
pub(super) fn served_name(system: &str) -> String {
    format!("bench-{system}")
}

/// The other process.
struct Mate {
    talk: Talk,
    /// A process of this host, if it is one.
    child: Option<Child>,
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
                talk: Talk::new(Box::new(to), Box::new(from)),
                child: Some(child),
            }),
            _ => Err(CliError::new("the bench's other process has no pipes")),
        }
    }

    /// One that serves on another host.
    fn reach(group: &Group, system: &str) -> Result<Self, CliError> {
        let failed = |error: std::io::Error| {
            CliError::new(format_args!("{system}: {error}"))
                .remedy("run `stp bench --serve` on that host, on this volume")
        };
        let address = format!("{}:{PORT}", served_name(system));
        let mut stream = group.connect(address.as_str()).map_err(failed)?;
        stream.write_all(&Errand::Bench.encode()).map_err(failed)?;
        let to = stream.try_clone().map_err(failed)?;
        Ok(Self {
            talk: Talk::new(Box::new(to), Box::new(stream)),
            child: None,
        })
    }
}

impl Drop for Mate {
    fn drop(&mut self) {
        let told = self.talk.tell(&Ask::End);
        if let Some(child) = &mut self.child {
            if told.is_err() {
                let _ = child.kill();
            }
            let _ = child.wait();
        }
    }
}

/// A folder for what a bench needs besides the volume.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    pub(super) fn run_dir(&self) -> PathBuf {
        self.0.join("run")
    }

    pub(super) fn make() -> Result<Self, CliError> {
        let path = std::env::temp_dir().join(format!("stp-{}", fresh_tag()?));
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
    shared: Option<Shared>,
    group: Group,
    pub(super) engine: EngineHandle,
    pub(super) floor: Option<Floor>,
    /// What could not be set up, and why.
    pub(super) missing: Vec<String>,
    /// The mate's system.
    there: String,
    /// Only on this host.
    tcp_port: Option<u16>,
    scratch: Scratch,
}

/// The way through shared engines.
struct Shared {
    group: Group,
    engine: Engine,
    /// The far one's system.
    there: String,
}

impl World {
    /// With a mate on this host, or with the one that serves on the host of system `with`.
    pub(super) fn new(volume: &str, shared: bool, with: Option<&str>) -> Result<Self, CliError> {
        let scratch = Scratch::make()?;
        let run_dir = scratch.run_dir();
        let tag = fresh_tag()?;
        let (mut mate, group, engine, there);
        let begun = match with {
            Some(system) => {
                (engine, group) = attach(volume, &run_dir, &format!("{tag}-a"))?;
                there = served_name(system);
                mate = Mate::reach(&group, system)?;
                mate.talk.ask(&Ask::Hello {
                    version: env!("CARGO_PKG_VERSION").to_owned(),
                })?
            }
            None => {
                make_pipes(scratch.path())?;
                mate = Mate::start()?;
                (engine, group) = attach(volume, &run_dir, &format!("{tag}-a"))?;
                there = format!("{tag}-b");
                mate.talk.ask(&Ask::Begin {
                    volume: volume.to_owned(),
                    run_dir: run_dir.clone(),
                    scratch: scratch.path().to_owned(),
                    system: there.clone(),
                })?
            }
        };
        let Answer::Begun { seat, tcp_port } = begun else {
            return Err(CliError::new("the bench's other process did not begin"));
        };
        let mut missing = Vec::new();
        let spec: VolumeSpec = volume.parse().map_err(CliError::new)?;
        let geometry = engine.volume().geometry;
        let floor = Floor::open(&spec, &geometry, engine.seat(), SeatId(seat))
            .map_err(|error| missing.push(format!("floor: {error}")))
            .ok();
        let mut world = Self {
            mate,
            shared: None,
            group,
            engine,
            floor,
            missing,
            there,
            tcp_port: with.is_none().then_some(tcp_port),
            scratch,
        };
        if shared && let Err(error) = world.share(volume, &format!("{tag}-e")) {
            world.missing.push(format!("shared: {error}"));
        }
        Ok(world)
    }

    /// A shared engine on both sides.
    fn share(&mut self, volume: &str, system: &str) -> Result<(), CliError> {
        let run_dir = self.scratch.run_dir();
        let engine = Engine::start(volume, &run_dir, system)?;
        let Answer::Shared { system: there } = self.mate.talk.ask(&Ask::Share)? else {
            return Err(CliError::new("the bench's other process did not begin"));
        };
        let group = Group::builder(volume)
            .system(system)
            .run_dir(&run_dir)
            .engine(EngineChoice::Shared)
            .open()
            .map_err(CliError::new)?;
        self.shared = Some(Shared {
            group,
            engine,
            there,
        });
        Ok(())
    }

    /// Whether this way is there to be measured.
    pub(super) fn has(&self, way: Way) -> bool {
        match way {
            Way::Floor => self.floor.is_some(),
            Way::Shared => self.shared.is_some(),
            Way::Embedded => true,
            Way::Tcp | Way::Unix | Way::Pipe => self.tcp_port.is_some(),
        }
    }

    pub(super) fn geometry(&self) -> Geometry {
        self.engine.volume().geometry
    }

    /// Starts the mate's echo on the bare storage.
    pub(super) fn echo_on_floor(&mut self, size: usize, base: u64) -> Result<(), CliError> {
        let other = self.engine.seat().0;
        self.mate.talk.ask(&Ask::Echo { other, size, base })?;
        Ok(())
    }

    /// A new connection to the mate, with the errand on its way.
    pub(super) fn connect(&mut self, way: Way, errand: Errand) -> Result<Conn, CliError> {
        if way == Way::Pipe {
            self.mate.talk.ask(&Ask::Pipe)?;
        }
        let mut conn = self.dialer(way)?.dial()?;
        conn.write_all(&errand.encode())
            .map_err(|error| failed(way, &error))?;
        Ok(conn)
    }

    /// What it takes to connect, for other threads too.
    pub(super) fn dialer(&self, way: Way) -> Result<Dialer, CliError> {
        let (group, there) = match (way, &self.shared) {
            (Way::Shared, Some(shared)) => (shared.group.clone(), &shared.there),
            _ => (self.group.clone(), &self.there),
        };
        Ok(Dialer {
            way,
            group,
            address: format!("{there}:{PORT}"),
            tcp_port: self.tcp_port.unwrap_or(0),
            scratch: self.scratch.path().to_owned(),
        })
    }

    /// What the mate's node has used so far.
    pub(super) fn mate_spent(&mut self) -> Result<Spent, CliError> {
        match self.mate.talk.ask(&Ask::Spent)? {
            Answer::Spent(spent) => Ok(spent),
            _ => Err(CliError::new(
                "the bench's other process did not say what it used",
            )),
        }
    }

    /// CPU seconds of everything that takes part in this way, so far.
    pub(super) fn cpu_seconds(&mut self, way: Way) -> Result<f64, CliError> {
        let there = self.mate_spent()?;
        let engines = match &self.shared {
            Some(shared) if way == Way::Shared => shared.engine.cpu_seconds() + there.engine_cpu_s,
            _ => 0.0,
        };
        Ok(cpu_seconds() + there.cpu_s + engines)
    }
}

/// The pipes by which a mate of this host is reached.
fn make_pipes(scratch: &Path) -> Result<(), CliError> {
    for pipe in PIPES {
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        let path = scratch.join(pipe);
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0)
            .map_err(|error| CliError::new(format_args!("{}: {error}", path.display())))?;
    }
    Ok(())
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
