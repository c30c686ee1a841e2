//! Engines in one process on one volume, each with a run directory of its own, and programs that are plain Unix
//! sockets, as in life. Nothing is judged by time; a test that hangs is ended by [`PATIENCE`].

#![allow(unreachable_pub, dead_code, reason = "each test uses its part of it")]

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::{Duration, Instant};

use stp_core::Limits;
use stp_format::{Features, Geometry, Superblock, SystemName, VolumeId};
use stp_host::control::{Calls, ConnectFailure, Connected, StreamToken};
use stp_host::engine::{Ending, EngineConfig, EngineHandle, start};
use stp_host::rendezvous::{PeerName, PeerNameKind, RunDir, SystemDir};
use stp_medium::Medium;
use stp_medium::local::Store;
/// Longer than anything here takes.
pub const PATIENCE: Duration = Duration::from_secs(120);
pub const PORT: u16 = 7000;

pub struct World {
    pub store: Store,
    pub superblock: Superblock,
    pub root: tempfile::TempDir,
    pub limits: Limits,
}

pub struct Host {
    pub engine: EngineHandle,
    pub dir: SystemDir,
}

impl World {
    pub fn new() -> Self {
        let size = 64 << 20;
        let mut id = [0; 16];
        getrandom::fill(&mut id).unwrap();
        let superblock = Superblock {
            volume: VolumeId(id),
            group: "test".parse().unwrap(),
            geometry: Geometry::plan(size, 4).unwrap(),
            created_unix_s: 0,
            features: Features::default(),
        };
        Self {
            store: Store::new(size as usize),
            superblock,
            root: tempfile::tempdir().unwrap(),
            limits: Limits::default(),
        }
    }

    pub fn config(&self, name: &str, medium: Box<dyn Medium>) -> EngineConfig {
        let run = RunDir::open(&self.root.path().join(name)).unwrap();
        let dir = run.system(self.superblock.volume, &system(name)).unwrap();
        let host = run.host_id().unwrap();
        EngineConfig {
            limits: self.limits,
            ..EngineConfig::new(medium, "memory", self.superblock, dir, host)
        }
    }

    pub fn host(&self, name: &str) -> Host {
        let mut medium = self.store.attach();
        medium.set_geometry(self.superblock.geometry);
        let config = self.config(name, Box::new(medium));
        let dir = config.dir.clone();
        Host {
            engine: start(config).unwrap(),
            dir,
        }
    }

    pub fn pair(&self) -> (Host, Host) {
        (self.host("alpha"), self.host("beta"))
    }
}

impl Host {
    pub fn listen(&self, port: u16, raw: bool) -> UnixListener {
        let path = self.dir.port_socket(port);
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        self.engine.listen(port, &path, raw).unwrap();
        listener
    }

    pub fn connect(&self, to: &str, port: u16) -> End {
        self.try_connect(to, port, false).unwrap()
    }

    pub fn try_connect(&self, to: &str, port: u16, raw: bool) -> Result<End, ConnectFailure> {
        let (program, engine) = UnixStream::pair().unwrap();
        let socket = OwnedFd::from(engine);
        // A system that has just appeared is found at the next look at the directory.
        let Connected { token, .. } =
            self.engine
                .connect(&system(to), port, socket, raw, Some(PATIENCE))?;
        Ok(self.end(program, token))
    }

    pub fn accept(&self, listener: &UnixListener) -> (End, PeerName) {
        let (program, _) = listener.accept().unwrap();
        let name = peer_name(&program);
        assert_eq!(name.kind, PeerNameKind::Engine);
        (self.end(program, StreamToken(name.token)), name)
    }

    pub fn end(&self, socket: UnixStream, token: StreamToken) -> End {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
        End {
            socket,
            token,
            engine: self.engine.clone(),
        }
    }
}

/// A program's end of a stream, as the library treats it.
pub struct End {
    pub socket: UnixStream,
    pub token: StreamToken,
    pub engine: EngineHandle,
}

impl End {
    pub fn finish(&self) {
        self.engine.mark_clean(self.token);
        self.socket.shutdown(Shutdown::Write).unwrap();
    }

    pub fn close(self) {
        self.engine.mark_clean(self.token);
    }

    pub fn read_to_end(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.socket.read_to_end(&mut bytes).unwrap();
        bytes
    }

    pub fn ending(&self) -> Ending {
        self.engine.ending(self.token)
    }

    /// Waits until the stream has ended one way or the other.
    pub fn wait_ending(&self) -> Ending {
        eventually(|| Some(self.ending()).filter(|ending| *ending != Ending::Open))
    }
}

pub fn eventually<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "it never happened");
        thread::sleep(Duration::from_millis(2));
    }
}

pub fn system(name: &str) -> SystemName {
    name.parse().unwrap()
}

pub fn peer_name(socket: &UnixStream) -> PeerName {
    let address = rustix::net::getpeername(socket).unwrap().unwrap();
    let address = rustix::net::SocketAddrUnix::try_from(address).unwrap();
    PeerName::parse(address.abstract_name().unwrap()).unwrap()
}

/// Bytes that differ at every place and for every seed.
pub struct Pattern(u64);

impl Pattern {
    fn next(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            chunk.copy_from_slice(&self.0.to_le_bytes()[..chunk.len()]);
        }
    }
}

pub fn send_pattern(mut to: impl Write, seed: u64, total: usize) {
    let mut pattern = Pattern(seed);
    let mut chunk = vec![0; 64 << 10];
    let mut left = total;
    while left > 0 {
        let now = left.min(chunk.len());
        pattern.next(&mut chunk[..now]);
        to.write_all(&chunk[..now]).unwrap();
        left -= now;
    }
}

pub fn check_pattern(mut from: impl Read, seed: u64, total: usize) {
    let mut pattern = Pattern(seed);
    let (mut expected, mut found) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    let mut left = total;
    while left > 0 {
        let now = left.min(expected.len());
        pattern.next(&mut expected[..now]);
        from.read_exact(&mut found[..now]).unwrap();
        assert!(expected[..now] == found[..now], "{left} bytes from the end");
        left -= now;
    }
}
