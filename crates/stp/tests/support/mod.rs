//! What the tests share: temporary places, and one face for `std::net` and for `stp`.
#![allow(unreachable_pub, dead_code, reason = "each test file uses its part")]

mod hub;
pub mod owners;

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

pub use hub::Hub;
use stp_host::control::Server;
use stp_host::engine::EngineConfig;
use stp_host::rendezvous::RunDir;
use stp_host::volume::FormatOptions;
use stp_medium::VolumeSpec;

/// A volume and run directories that go with the value.
pub struct Place {
    pub root: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        format(&root.path().join("volume"));
        Self { root }
    }

    pub fn volume_id(&self) -> stp::VolumeId {
        let spec = VolumeSpec::from(self.root.path().join("volume").as_path());
        aside(|| {
            let volume = stp_host::volume::open_read_only(&spec).unwrap();
            volume.superblock().volume
        })
    }

    /// Starts the shared engine of `system`'s host, in this process.
    pub fn engine(&self, system: &str) -> Server {
        engine(self.root.path(), system)
    }

    pub fn group(&self, system: &str) -> stp::Group {
        open(self.root.path(), system)
    }
}

pub fn format(path: &Path) {
    let options = FormatOptions {
        group: "lab".parse().unwrap(),
        size_bytes: Some(64 << 20),
        seats: 8,
        force: false,
    };
    let spec = VolumeSpec::from(path);
    aside(|| stp_host::volume::format(&spec, &options).unwrap());
}

/// The kernel interrupts a thread that has used an io_uring when that goes: the tests' own threads must not.
fn aside<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(work).join().unwrap())
}

/// Starts the shared engine of `system`'s host, in this process.
pub fn engine(root: &Path, system: &str) -> Server {
    let spec = VolumeSpec::from(root.join("volume").as_path());
    aside(|| {
        let run = RunDir::open(&root.join(format!("run-{system}"))).unwrap();
        let volume = stp_host::volume::open(&spec).unwrap();
        let superblock = *volume.superblock();
        let dir = run.system(superblock.volume, &system.parse().unwrap());
        let (dir, host) = (dir.unwrap(), run.host_id().unwrap());
        let medium = volume.into_medium();
        let config = EngineConfig::new(medium, spec.to_string(), superblock, dir.clone(), host);
        let handle = stp_host::engine::start(config).unwrap();
        Server::start(&dir, std::sync::Arc::new(handle)).unwrap()
    })
}

/// Opens the group of `root` as `system`; each system has a run directory of its own, as two hosts have.
pub fn open(root: &Path, system: &str) -> stp::Group {
    builder(root, system).open().unwrap()
}

pub fn builder(root: &Path, system: &str) -> stp::Builder {
    stp::Group::builder(root.join("volume"))
        .system(system)
        .run_dir(root.join(format!("run-{system}")))
}

/// A stream of either kind.
pub trait Conn: Read + Write + AsFd + Send + Sized + 'static {
    fn local(&self) -> String;
    fn peer(&self) -> String;
    fn shutdown(&self, how: Shutdown) -> io::Result<()>;
    fn try_clone(&self) -> io::Result<Self>;
    fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()>;
    fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()>;
    fn read_timeout(&self) -> io::Result<Option<Duration>>;
    fn write_timeout(&self) -> io::Result<Option<Duration>>;
    fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()>;
    fn peek(&self, buf: &mut [u8]) -> io::Result<usize>;
    fn take_error(&self) -> io::Result<Option<io::Error>>;
}

/// A listener of either kind.
pub trait Listen: AsFd + Send + Sync + Sized + 'static {
    type Conn: Conn;
    fn accept(&self) -> io::Result<(Self::Conn, String)>;
    fn local(&self) -> String;
    fn port(&self) -> u16;
    fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()>;
    fn try_clone(&self) -> io::Result<Self>;
    fn first_incoming(&self) -> io::Result<Self::Conn>;
}

/// A network of either kind.
pub trait Net: Send + Sync {
    type Listen: Listen;
    fn listen(&self, port: u16) -> io::Result<Self::Listen>;
    fn connect(&self, port: u16) -> io::Result<Conned<Self>>;
    fn connect_timeout(&self, port: u16, timeout: Duration) -> io::Result<Conned<Self>>;

    /// A connected pair: the connecting end, the accepting end.
    fn pair(&self) -> (Conned<Self>, Conned<Self>) {
        let listener = self.listen(0).unwrap();
        let ours = self.connect(listener.port()).unwrap();
        let (theirs, _) = listener.accept().unwrap();
        (ours, theirs)
    }
}

pub type Conned<N> = <<N as Net>::Listen as Listen>::Conn;

macro_rules! conn {
    ($stream:ty, $listener:ty) => {
        impl Conn for $stream {
            fn local(&self) -> String {
                self.local_addr().unwrap().to_string()
            }
            fn peer(&self) -> String {
                self.peer_addr().unwrap().to_string()
            }
            fn shutdown(&self, how: Shutdown) -> io::Result<()> {
                <$stream>::shutdown(self, how)
            }
            fn try_clone(&self) -> io::Result<Self> {
                <$stream>::try_clone(self)
            }
            fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
                <$stream>::set_read_timeout(self, timeout)
            }
            fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
                <$stream>::set_write_timeout(self, timeout)
            }
            fn read_timeout(&self) -> io::Result<Option<Duration>> {
                <$stream>::read_timeout(self)
            }
            fn write_timeout(&self) -> io::Result<Option<Duration>> {
                <$stream>::write_timeout(self)
            }
            fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
                <$stream>::set_nonblocking(self, nonblocking)
            }
            fn peek(&self, buf: &mut [u8]) -> io::Result<usize> {
                <$stream>::peek(self, buf)
            }
            fn take_error(&self) -> io::Result<Option<io::Error>> {
                <$stream>::take_error(self)
            }
        }

        impl Listen for $listener {
            type Conn = $stream;
            fn accept(&self) -> io::Result<(Self::Conn, String)> {
                <$listener>::accept(self).map(|(stream, peer)| (stream, peer.to_string()))
            }
            fn local(&self) -> String {
                self.local_addr().unwrap().to_string()
            }
            fn port(&self) -> u16 {
                self.local_addr().unwrap().port()
            }
            fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
                <$listener>::set_nonblocking(self, nonblocking)
            }
            fn try_clone(&self) -> io::Result<Self> {
                <$listener>::try_clone(self)
            }
            fn first_incoming(&self) -> io::Result<Self::Conn> {
                self.incoming().next().unwrap()
            }
        }
    };
}

conn!(TcpStream, TcpListener);
conn!(stp::Stream, stp::Listener);

/// The kernel's TCP, over the loopback interface.
pub struct Tcp;

impl Net for Tcp {
    type Listen = TcpListener;

    fn listen(&self, port: u16) -> io::Result<TcpListener> {
        TcpListener::bind(("127.0.0.1", port))
    }

    fn connect(&self, port: u16) -> io::Result<TcpStream> {
        TcpStream::connect(("127.0.0.1", port))
    }

    fn connect_timeout(&self, port: u16, timeout: Duration) -> io::Result<TcpStream> {
        TcpStream::connect_timeout(&([127, 0, 0, 1], port).into(), timeout)
    }
}

/// STP, between `from` and `to`; one system if they are the same.
pub struct Stp {
    pub from: stp::Group,
    pub to: stp::Group,
    _place: Place,
    _hub: Hub,
    _engines: Vec<Server>,
}

impl Stp {
    /// From `alpha` to `beta`, each with an engine in this process.
    pub fn across() -> Self {
        let place = Place::new();
        Self {
            from: place.group("alpha"),
            to: place.group("beta"),
            _place: place,
            _hub: Hub::default(),
            _engines: Vec::new(),
        }
    }

    /// From `alpha` to `beta`, each through the shared engine of its host.
    pub fn shared() -> Self {
        let place = Place::new();
        let engines = vec![place.engine("alpha"), place.engine("beta")];
        Self {
            from: place.group("alpha"),
            to: place.group("beta"),
            _place: place,
            _hub: Hub::default(),
            _engines: engines,
        }
    }

    /// From `alpha` to `beta`, joined by the model.
    pub fn modelled() -> Self {
        let place = Place::new();
        let mut hub = Hub::default();
        let id = place.volume_id();
        hub.start(place.root.path(), id, "alpha");
        hub.start(place.root.path(), id, "beta");
        Self {
            from: place.group("alpha"),
            to: place.group("beta"),
            _place: place,
            _hub: hub,
            _engines: Vec::new(),
        }
    }

    /// Both ends on one system.
    pub fn direct() -> Self {
        let place = Place::new();
        Self {
            from: place.group("alpha"),
            to: place.group("alpha"),
            _place: place,
            _hub: Hub::default(),
            _engines: Vec::new(),
        }
    }
}

impl Net for Stp {
    type Listen = stp::Listener;

    fn listen(&self, port: u16) -> io::Result<stp::Listener> {
        self.to.listen(port)
    }

    fn connect(&self, port: u16) -> io::Result<stp::Stream> {
        self.from.connect((self.to.system(), port))
    }

    fn connect_timeout(&self, port: u16, timeout: Duration) -> io::Result<stp::Stream> {
        let addr = stp::Addr::new(*self.to.system(), port);
        self.from.connect_timeout(&addr, timeout)
    }
}
