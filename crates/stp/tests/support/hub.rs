//! A model of the engines of several systems: it joins their streams in memory, by the engines' rules.
//!
//! The parity tests run on it as well as on real engines, so that a failure tells whose it is.

use std::collections::HashMap;
use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use stp_host::control::{
    Calls, ConnectFailure, Connected, Opening, Peer, PeerState, Server, StreamToken, Verdict,
};
use stp_host::rendezvous::{PeerName, PeerNameKind, RunDir, SocketPath};

#[derive(Default)]
struct Table {
    systems: Vec<stp::SystemName>,
    ports: HashMap<(stp::SystemName, u16), PathBuf>,
    marked: HashMap<u64, bool>,
    verdicts: HashMap<u64, Verdict>,
    sockets: HashMap<u64, Arc<UnixStream>>,
    next: u64,
}

type Shared = Arc<Mutex<Table>>;

/// The systems' engines.
#[derive(Default)]
pub struct Hub {
    table: Shared,
    servers: Vec<Server>,
}

impl Hub {
    /// Starts the engine of `system` for the group of `root`.
    pub fn start(&mut self, root: &Path, id: stp::VolumeId, system: &str) {
        let system = system.parse().unwrap();
        self.table.lock().unwrap().systems.push(system);
        let run = RunDir::open(&root.join(format!("run-{system}"))).unwrap();
        let dir = run.system(id, &system).unwrap();
        let engine = Engine {
            system,
            table: Arc::clone(&self.table),
        };
        self.servers
            .push(Server::start(&dir, Arc::new(engine)).unwrap());
    }
}

struct Engine {
    system: stp::SystemName,
    table: Shared,
}

impl Engine {
    fn open(&self, to: &stp::SystemName, port: u16, socket: OwnedFd) -> Option<Connected> {
        let (path, ours, theirs) = {
            let mut table = self.table.lock().unwrap();
            table.next += 2;
            let next = table.next;
            (table.ports.get(&(*to, port))?.clone(), next, next + 1)
        };
        let (family, flags) = (AddressFamily::UNIX, SocketFlags::CLOEXEC);
        let local_port = 32768 + (ours / 2) as u16;
        let name = PeerName {
            kind: PeerNameKind::Engine,
            system: self.system,
            port: local_port,
            token: theirs,
        };
        let far = rustix::net::socket_with(family, SocketType::STREAM, flags, None).unwrap();
        rustix::net::bind(&far, &name.address().unwrap()).unwrap();
        let path = SocketPath::new(&path).unwrap();
        // Known before the program at the far end can ask.
        let (near, far) = (
            Arc::new(UnixStream::from(socket)),
            Arc::new(UnixStream::from(far)),
        );
        {
            let mut table = self.table.lock().unwrap();
            table.sockets.insert(ours, Arc::clone(&near));
            table.sockets.insert(theirs, Arc::clone(&far));
        }
        rustix::net::connect(&*far, path.address()).ok()?;
        for (from, to, from_token, to_token) in [
            (Arc::clone(&near), Arc::clone(&far), ours, theirs),
            (far, near, theirs, ours),
        ] {
            let table = Arc::clone(&self.table);
            std::thread::spawn(move || pump(&table, &from, &to, from_token, to_token));
        }
        Some(Connected {
            token: StreamToken(ours),
            local_port,
        })
    }
}

/// Carries one direction until it ends, and tells the other side how it ended.
fn pump(table: &Shared, from: &UnixStream, to: &UnixStream, from_token: u64, to_token: u64) {
    let mut buffer = vec![0; 64 << 10];
    let broken = |why: &str| {
        let mut table = table.lock().unwrap();
        for token in [from_token, to_token] {
            let verdict = Verdict::Reset(why.to_owned());
            table.verdicts.entry(token).or_insert(verdict);
            if let Some(socket) = table.sockets.remove(&token) {
                let _ = socket.shutdown(Shutdown::Both);
            }
        }
    };
    loop {
        let n = match rustix::net::recv(from, &mut buffer, RecvFlags::empty()) {
            Ok((0, _)) => break,
            Ok((n, _)) => n,
            Err(Errno::INTR) => continue,
            Err(_) => return broken("the peer closed it with bytes unread"),
        };
        let mut rest = &buffer[..n];
        while !rest.is_empty() {
            match rustix::net::send(to, rest, SendFlags::NOSIGNAL) {
                Ok(n) => rest = &rest[n..],
                Err(Errno::INTR) => {}
                // One that only does not read any more gets nothing; one that is gone is told of.
                Err(_) if !is_gone(to) => break,
                Err(_) => return broken("the peer is gone"),
            }
        }
    }
    {
        let mut table = table.lock().unwrap();
        if table.marked.contains_key(&from_token) && table.sockets.contains_key(&from_token) {
            table.verdicts.insert(to_token, Verdict::Clean);
            drop(table);
            let _ = to.shutdown(Shutdown::Write);
            return;
        }
    }
    broken("the program there ended without closing the stream");
}

fn is_gone(socket: &UnixStream) -> bool {
    let mut watched = [PollFd::new(socket, PollFlags::RDHUP)];
    poll(&mut watched, Some(&Timespec::default())).is_ok_and(|ready| ready == 1)
}

impl Calls for Engine {
    fn listen(&self, port: u16, path: &Path, _raw: bool) -> io::Result<()> {
        let mut table = self.table.lock().unwrap();
        table.ports.insert((self.system, port), path.to_owned());
        Ok(())
    }

    fn unlisten(&self, port: u16) {
        self.table
            .lock()
            .unwrap()
            .ports
            .remove(&(self.system, port));
    }

    fn connect_with(
        &self,
        to: &stp::SystemName,
        port: u16,
        socket: OwnedFd,
        how: Opening,
    ) -> Result<Connected, ConnectFailure> {
        if how.local_port.is_some() || how.skip > 0 {
            let what = "the hub opens streams from ports of its own choice only";
            return Err(ConnectFailure::Failed(what.to_owned()));
        }
        if !self.table.lock().unwrap().systems.contains(to) {
            return Err(ConnectFailure::UnknownSystem);
        }
        self.open(to, port, socket).ok_or(ConnectFailure::Refused)
    }

    fn mark_clean(&self, token: StreamToken) {
        self.table.lock().unwrap().marked.insert(token.0, true);
    }

    fn verdict(&self, token: StreamToken) -> Verdict {
        let table = self.table.lock().unwrap();
        table
            .verdicts
            .get(&token.0)
            .cloned()
            .unwrap_or(Verdict::Open)
    }

    fn abort(&self, token: StreamToken) {
        let mut table = self.table.lock().unwrap();
        if let Some(socket) = table.sockets.remove(&token.0) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    fn peers(&self) -> io::Result<Vec<Peer>> {
        let table = self.table.lock().unwrap();
        let others = table.systems.iter().filter(|name| **name != self.system);
        let peer = |name: &stp::SystemName| Peer {
            seat: 0,
            system: name.to_string(),
            incarnation: 1,
            state: PeerState::Up,
            ports: Vec::new(),
        };
        Ok(others.map(peer).collect())
    }
}
