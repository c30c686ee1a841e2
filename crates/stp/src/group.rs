//! A group, seen from one system: the door to listeners and streams.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use stp_format::{GroupName, Superblock, SystemName, VolumeId};
use stp_host::control::{Calls, ConnectFailure, PeerState};
use stp_host::rendezvous::{RunDir, SystemDir, direct};
use stp_medium::VolumeSpec;

use crate::addr::{Addr, ToAddr};
use crate::error::Error;
use crate::listener::Listener;
use crate::node;
use crate::stream::{Fate, Stream};

/// Where a program's engine runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineChoice {
    /// The host's shared engine if one runs for this volume and system, else one in this process.
    #[default]
    Auto,
    /// One in this process.
    Embedded,
    /// The host's shared engine; an error if none runs.
    Shared,
}

/// A volume opened under a system's name. Cheap to clone; clones share one engine.
#[derive(Clone)]
pub struct Group {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    volume: PathBuf,
    superblock: Superblock,
    pub(crate) dir: SystemDir,
    pub(crate) calls: Arc<dyn Calls>,
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group")
            .field("name", self.name())
            .field("system", self.system())
            .field("volume", &self.inner.volume)
            .finish_non_exhaustive()
    }
}

/// How a group is opened.
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `open`"]
pub struct Builder {
    volume: Option<PathBuf>,
    group: Option<GroupName>,
    system: Option<String>,
    run_dir: Option<PathBuf>,
    engine: EngineChoice,
    tuning: Tuning,
}

/// What an engine of this process does otherwise than by default.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tuning {
    pub(crate) dead_after: Option<Duration>,
    pub(crate) poll_max: Option<Duration>,
    pub(crate) poll_iops: Option<u32>,
    pub(crate) window_max: Option<u64>,
    pub(crate) ring_extents: Option<u16>,
}

impl Builder {
    /// This system's name; else `STP_SYSTEM`, else the host's name.
    pub fn system(mut self, name: impl AsRef<str>) -> Self {
        self.system = Some(name.as_ref().to_owned());
        self
    }

    /// The group that the volume must hold; else whichever it holds.
    pub fn group(mut self, name: GroupName) -> Self {
        self.group = Some(name);
        self
    }

    /// The run directory; else `STP_RUN_DIR`, `$XDG_RUNTIME_DIR/stp`, `/run/stp`, `/tmp/stp-<uid>`.
    pub fn run_dir(mut self, path: impl AsRef<Path>) -> Self {
        self.run_dir = Some(path.as_ref().to_owned());
        self
    }

    /// Where the engine runs.
    pub fn engine(mut self, choice: EngineChoice) -> Self {
        self.engine = choice;
        self
    }

    /// How long an engine of this process may be silent before its peers give it up and reset its streams; one
    /// second at least, 60 unless told otherwise. A shared engine has its own; an engine that runs already keeps
    /// what it has.
    pub fn dead_after(mut self, silence: Duration) -> Self {
        self.tuning.dead_after = Some(silence);
        self
    }

    /// The longest interval between two looks of an engine of this process at the volume, between 0.1 ms and a second.
    /// Unless told otherwise it is 20 ms, and 50 ms after seconds of silence.
    pub fn poll_interval(mut self, longest: Duration) -> Self {
        self.tuning.poll_max = Some(longest);
        self
    }

    /// The most looks a second of an engine of this process; 0, the default, is no bound.
    pub fn poll_iops(mut self, most: u32) -> Self {
        self.tuning.poll_iops = Some(most);
        self
    }

    /// How many bytes a peer may send ahead of a slow reader, for an engine of this process; 4 MiB unless told
    /// otherwise, 64 KiB at least.
    pub fn window(mut self, bytes: u64) -> Self {
        self.tuning.window_max = Some(bytes);
        self
    }

    /// How many extents of its seat an engine of this process gives one link's ring at the most; 16 unless told
    /// otherwise.
    pub fn ring_extents(mut self, most: u16) -> Self {
        self.tuning.ring_extents = Some(most);
        self
    }

    /// Opens the group.
    pub fn open(self) -> Result<Group, Error> {
        let volume = self.volume.ok_or(Error::NoVolume)?;
        let system = system_name(self.system)?;
        let spec = match volume.to_str() {
            Some(text) => text.parse::<VolumeSpec>()?,
            None => VolumeSpec::from(volume.as_path()),
        };
        // Looking writes nothing; a node of this process opens it once more.
        let superblock = node::aside(|| {
            let volume = stp_host::volume::open_read_only(&spec)?;
            Ok::<_, Error>(*volume.superblock())
        })??;
        if let Some(asked) = self.group.filter(|asked| *asked != superblock.group) {
            return Err(Error::OtherGroup {
                volume,
                found: Box::new(superblock.group),
                asked: Box::new(asked),
            });
        }
        let run = RunDir::open_default(self.run_dir.as_deref())?;
        let dir = run.system(superblock.volume, &system)?;
        let calls = node::attach(&spec, &run, &dir, self.engine, self.tuning)?;
        Ok(Group {
            inner: Arc::new(Inner {
                volume,
                superblock,
                dir,
                calls,
            }),
        })
    }
}

/// The name given, else the environment's, else the host's.
fn system_name(given: Option<String>) -> Result<SystemName, Error> {
    let environment = || std::env::var("STP_SYSTEM").ok().filter(|n| !n.is_empty());
    let (name, origin) = match (given, environment()) {
        (Some(name), _) => (name, "the system name"),
        (None, Some(name)) => (name, "STP_SYSTEM"),
        (None, None) => {
            let host = rustix::system::uname();
            let host = host.nodename().to_string_lossy().into_owned();
            (host, "this host's name")
        }
    };
    name.parse()
        .map_err(|why| Error::SystemName { name, origin, why })
}

impl Group {
    /// Opens the group on `volume`.
    pub fn open(volume: impl AsRef<Path>) -> Result<Self, Error> {
        Self::builder(volume).open()
    }

    /// Opens the group on `volume`, with more to say.
    pub fn builder(volume: impl AsRef<Path>) -> Builder {
        Builder {
            volume: Some(volume.as_ref().to_owned()),
            group: None,
            system: None,
            run_dir: None,
            engine: EngineChoice::Auto,
            tuning: Tuning::default(),
        }
    }

    /// Opens the group that `STP_VOLUME` names.
    pub fn from_env() -> Result<Self, Error> {
        let volume = std::env::var_os("STP_VOLUME").filter(|v| !v.is_empty());
        Self::open(volume.ok_or(Error::NoVolume)?)
    }

    /// The group's name.
    pub fn name(&self) -> &GroupName {
        &self.inner.superblock.group
    }

    /// This system's name.
    pub fn system(&self) -> &SystemName {
        self.inner.dir.system()
    }

    /// The volume's identity.
    pub fn volume_id(&self) -> VolumeId {
        self.inner.superblock.volume
    }

    /// The volume, as it was named.
    pub fn volume(&self) -> &Path {
        &self.inner.volume
    }

    /// Listens on `port` of this system; 0 picks a free one.
    ///
    /// `AddrInUse` if any process of this system listens there. Returns when every system can connect.
    pub fn listen(&self, port: u16) -> io::Result<Listener> {
        Listener::bind(&self.inner, port)
    }

    /// Connects to `addr`. Waits as long as the engine does for an answer.
    ///
    /// `ConnectionRefused` if nobody listens there, `NotFound` if the group has no such system,
    /// `TimedOut` if it does not answer.
    pub fn connect(&self, addr: impl ToAddr) -> io::Result<Stream> {
        self.connect_within(&addr.to_addr()?, None)
    }

    /// Connects to `addr`, for at most `timeout`, which must not be zero.
    pub fn connect_timeout(&self, addr: &Addr, timeout: Duration) -> io::Result<Stream> {
        if timeout.is_zero() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a time-out of zero: give a longer one, or call connect",
            ));
        }
        self.connect_within(addr, Some(timeout))
    }

    fn connect_within(&self, addr: &Addr, timeout: Option<Duration>) -> io::Result<Stream> {
        if let Some(asked) = addr.group.filter(|asked| asked != self.name()) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "{addr}: the volume {} holds the group {}, not {asked}; open the volume of {asked}",
                    self.inner.volume.display(),
                    self.name()
                ),
            ));
        }
        if addr.port == 0 {
            return Err(io::Error::new(
                io::ErrorKind::AddrNotAvailable,
                format!("{addr}: port 0 cannot be connected to; name the listener's port"),
            ));
        }
        let here = *self.system();
        let system = addr.system.unwrap_or(here);
        let peer = Addr::new(system, addr.port);
        if system == here {
            let joined = direct::connect(&self.inner.dir, addr.port, timeout)?;
            let local = Addr::new(here, joined.local_port);
            let fate = Fate::Direct(joined.marks);
            return Ok(Stream::new(
                joined.socket,
                &self.inner.dir,
                local,
                peer,
                fate,
            ));
        }
        let (ours, engines) = pair()?;
        let calls = &self.inner.calls;
        let connected = calls
            .connect(&system, addr.port, engines, false, timeout)
            .map_err(|failure| self.failure(&peer, timeout, failure))?;
        let local = Addr::new(here, connected.local_port);
        let fate = Fate::Engine {
            calls: Arc::clone(calls),
            token: connected.token,
        };
        Ok(Stream::new(ours, &self.inner.dir, local, peer, fate))
    }

    pub(crate) fn failure(
        &self,
        to: &Addr,
        timeout: Option<Duration>,
        failure: ConnectFailure,
    ) -> io::Error {
        use io::ErrorKind as Kind;
        let (kind, text) = match failure {
            ConnectFailure::UnknownSystem => {
                let system = to.system.map(|name| name.to_string()).unwrap_or_default();
                let text = format!(
                    "the group {} has no system {system} ({}); check the name, or start an engine or program there",
                    self.name(),
                    self.known_systems()
                );
                (Kind::NotFound, text)
            }
            ConnectFailure::SystemDead => (
                Kind::HostUnreachable,
                format!(
                    "{to}: the system is known but none of its engines is alive; start one there"
                ),
            ),
            ConnectFailure::Refused => (
                Kind::ConnectionRefused,
                format!(
                    "connection refused by {to}: nobody listens there; start the program there, or name a port that `stp ss --all` shows"
                ),
            ),
            ConnectFailure::TimedOut => (
                Kind::TimedOut,
                match timeout {
                    Some(timeout) => format!("{to} did not answer within {timeout:?}"),
                    None => format!("{to} did not answer in time"),
                },
            ),
            ConnectFailure::NoPort => (
                Kind::AddrNotAvailable,
                format!("{to}: every local port of this engine is in use; close some streams"),
            ),
            ConnectFailure::TooManyStreams => (
                Kind::QuotaExceeded,
                format!("{to}: this engine's socket table is full; close some streams"),
            ),
            ConnectFailure::Reset(why) => (
                Kind::ConnectionReset,
                format!("connection reset by {to}: {why}"),
            ),
            ConnectFailure::EngineGone(why) => (Kind::NotConnected, format!("{to}: {why}")),
            ConnectFailure::Failed(why) => (Kind::Other, format!("{to}: {why}")),
        };
        io::Error::new(kind, text)
    }

    fn known_systems(&self) -> String {
        let others = self.systems().unwrap_or_default();
        let names: Vec<_> = others.iter().map(|s| s.name.to_string()).collect();
        format!("it has: {}", names.join(", "))
    }

    /// Every system of the group that this engine knows, this one included, by name.
    pub fn systems(&self) -> io::Result<Vec<SystemInfo>> {
        let mut systems = vec![SystemInfo {
            name: *self.system(),
            state: SystemState::Here,
            ports: self.inner.dir.ports()?,
        }];
        for peer in self.inner.calls.peers()? {
            let Ok(name) = peer.system.parse::<SystemName>() else {
                continue;
            };
            let state = SystemState::from(peer.state);
            match systems.iter_mut().find(|known| known.name == name) {
                Some(known) if known.state == SystemState::Here => {}
                Some(known) => {
                    known.state = known.state.min(state);
                    known.ports.extend(peer.ports);
                }
                None => systems.push(SystemInfo {
                    name,
                    state,
                    ports: peer.ports,
                }),
            }
        }
        for system in &mut systems {
            system.ports.sort_unstable();
            system.ports.dedup();
        }
        systems.sort_by_key(|system| system.name);
        Ok(systems)
    }
}

/// A fresh pair of joined sockets: the program's end and the engine's.
fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (family, flags) = (AddressFamily::UNIX, SocketFlags::CLOEXEC);
    Ok(socketpair(family, SocketType::STREAM, flags, None)?)
}

/// A system of the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SystemInfo {
    /// Its name.
    pub name: SystemName,
    /// Its best engine's state.
    pub state: SystemState,
    /// The ports that its programs listen on.
    pub ports: Vec<u16>,
}

/// How a system fares, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SystemState {
    /// It is this one.
    Here,
    /// An engine of it is alive.
    Up,
    /// It has missed a heartbeat.
    Suspect,
    /// Its last engine died.
    Dead,
    /// Its last engine left in order.
    Left,
}

impl From<PeerState> for SystemState {
    fn from(state: PeerState) -> Self {
        match state {
            PeerState::Up => Self::Up,
            PeerState::Suspect => Self::Suspect,
            PeerState::Dead => Self::Dead,
            PeerState::Left => Self::Left,
        }
    }
}
