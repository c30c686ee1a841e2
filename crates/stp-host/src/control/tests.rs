//! Client against server, with an engine that only pretends.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, send, socket_with};
use stp_format::{SystemName, VolumeId};

use super::wire::{Answer, Receiver, Request, send_request};
use super::*;
use crate::rendezvous::{RunDir, SocketPath, SystemDir};

/// A hang guard, for machines that have other things to do: nothing is concluded from it.
const HANG: Duration = Duration::from_secs(120);

/// Connects to port 1 wait until [`Pretender::release`]; to others they echo the port.
#[derive(Default)]
struct Pretender {
    log: Mutex<Vec<String>>,
    gate: Mutex<bool>,
    opened: Condvar,
}

impl Pretender {
    fn note(&self, text: String) {
        self.log.lock().unwrap().push(text);
    }

    fn release(&self) {
        *self.gate.lock().unwrap() = true;
        self.opened.notify_all();
    }

    fn noted(&self, text: &str) -> bool {
        self.log.lock().unwrap().iter().any(|line| line == text)
    }

    fn wait_noted(&self, text: &str) {
        let start = Instant::now();
        while !self.noted(text) {
            assert!(start.elapsed() < HANG, "never: {text}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Calls for Pretender {
    fn listen(&self, port: u16, path: &Path, raw: bool) -> io::Result<()> {
        if port == 13 {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "port 13 is taken"));
        }
        self.note(format!("listen {port} {} {raw}", path.display()));
        Ok(())
    }

    fn unlisten(&self, port: u16) {
        self.note(format!("unlisten {port}"));
    }

    fn connect_with(
        &self,
        to: &SystemName,
        port: u16,
        socket: OwnedFd,
        how: Opening,
    ) -> Result<Connected, ConnectFailure> {
        let Opening { raw, timeout, .. } = how;
        self.note(format!("connect {to}:{port} {raw} {timeout:?}"));
        match port {
            1 => {
                let mut open = self.gate.lock().unwrap();
                while !*open {
                    open = self.opened.wait(open).unwrap();
                }
            }
            2 => return Err(ConnectFailure::UnknownSystem),
            _ => {}
        }
        rustix::io::write(&socket, b"hi").unwrap();
        Ok(Connected {
            token: StreamToken(u64::MAX - u64::from(port)),
            local_port: port,
        })
    }

    fn mark_clean(&self, token: StreamToken) {
        self.note(format!("clean {token}"));
    }

    fn verdict(&self, token: StreamToken) -> Verdict {
        match token.0 {
            1 => Verdict::Clean,
            2 => Verdict::Open,
            _ => Verdict::Reset("it died".to_owned()),
        }
    }

    fn abort(&self, token: StreamToken) {
        self.note(format!("abort {token}"));
    }

    fn peers(&self) -> io::Result<Vec<Peer>> {
        let peer = |seat| Peer {
            seat,
            system: "s".repeat(63),
            incarnation: 1,
            state: PeerState::Up,
            ports: (0..1000).collect(),
        };
        Ok((0..64).map(peer).collect()) // longer than a piece
    }
}

struct Place {
    dir: SystemDir,
    _root: tempfile::TempDir,
}

impl Place {
    fn listen(&self, client: &Client, port: u16) {
        let path = self.dir.port_socket(port);
        client.listen(port, &path, false).unwrap();
    }
}

fn place() -> Place {
    let root = tempfile::tempdir().unwrap();
    let dir = RunDir::open(&root.path().join("run"))
        .and_then(|run| run.system(VolumeId([1; 16]), &"alpha".parse().unwrap()))
        .unwrap();
    Place { dir, _root: root }
}

fn pair() -> (OwnedFd, OwnedFd) {
    let (family, flags) = (AddressFamily::UNIX, SocketFlags::CLOEXEC);
    rustix::net::socketpair(family, SocketType::STREAM, flags, None).unwrap()
}

#[test]
fn every_call_arrives_and_is_answered() {
    let place = place();
    assert!(Client::connect(&place.dir).unwrap().is_none());
    let engine = Arc::new(Pretender::default());
    let server = Server::start(&place.dir, engine.clone()).unwrap();
    let again = Server::start(&place.dir, engine.clone()).unwrap_err();
    assert_eq!(again.kind(), io::ErrorKind::AddrInUse);

    let client = Client::connect(&place.dir).unwrap().unwrap();
    let path = place.dir.port_socket(7000);
    client.listen(7000, &path, true).unwrap();
    assert!(engine.noted(&format!("listen 7000 {} true", path.display())));
    let path = place.dir.port_socket(13);
    let taken = client.listen(13, &path, false).unwrap_err();
    assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
    assert!(taken.to_string().contains("port 13"), "{taken}");

    let beta = "beta".parse().unwrap();
    let (ours, theirs) = pair();
    let timeout = Some(Duration::from_millis(1500));
    let connected = client.connect(&beta, 5, theirs, false, timeout).unwrap();
    assert_eq!(connected.token, StreamToken(u64::MAX - 5));
    assert!(engine.noted("connect beta:5 false Some(1.5s)"));
    let mut hi = [0; 2];
    rustix::io::read(&ours, &mut hi).unwrap();
    assert_eq!(&hi, b"hi");
    let failure = client.connect(&beta, 2, pair().1, false, None).unwrap_err();
    assert_eq!(failure, ConnectFailure::UnknownSystem);

    client.mark_clean(StreamToken(5));
    assert!(engine.noted("clean 0000000000000005"));
    client.abort(StreamToken(6));
    assert!(engine.noted("abort 0000000000000006"));
    assert_eq!(client.verdict(StreamToken(1)), Verdict::Clean);
    assert_eq!(client.verdict(StreamToken(2)), Verdict::Open);
    let reset = Verdict::Reset("it died".to_owned());
    assert_eq!(client.verdict(StreamToken(3)), reset);
    assert_eq!(client.peers().unwrap(), engine.peers().unwrap());
    let none = client.report("weather").unwrap_err();
    assert_eq!(none.kind(), io::ErrorKind::Unsupported);

    client.unlisten(7000);
    assert!(engine.noted("unlisten 7000"));
    drop(server);
    assert!(!place.dir.engine_socket().exists());
}

/// The engine connects as its own user, which a program of its group is not.
#[test]
fn a_program_listens_at_its_ports_own_place_only() {
    let place = place();
    let engine = Arc::new(Pretender::default());
    let _server = Server::start(&place.dir, engine.clone()).unwrap();
    let client = Client::connect(&place.dir).unwrap().unwrap();
    let ports = place.dir.path().join("ports");
    for path in [
        place.dir.engine_socket(),
        place.dir.port_socket(7001),
        ports.join("../ports/7000.sock"),
        ports.join("../../../elsewhere/7000.sock"),
    ] {
        let error = client.listen(7000, &path, false).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{path:?}");
        assert!(error.to_string().contains("port 7000"), "{error}");
    }
    assert!(engine.log.lock().unwrap().is_empty());
    place.listen(&client, 7000);
}

#[test]
fn a_call_that_waits_delays_neither_its_own_program_nor_another() {
    let place = place();
    let engine = Arc::new(Pretender::default());
    let _server = Server::start(&place.dir, engine.clone()).unwrap();
    let client = Client::connect(&place.dir).unwrap().unwrap();
    let other = Client::connect(&place.dir).unwrap().unwrap();
    let beta: SystemName = "beta".parse().unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| client.connect(&beta, 1, pair().1, false, None));
        engine.wait_noted("connect beta:1 false None");
        assert_eq!(client.verdict(StreamToken(1)), Verdict::Clean);
        assert!(client.connect(&beta, 7, pair().1, false, None).is_ok());
        assert!(other.connect(&beta, 8, pair().1, false, None).is_ok());
        assert!(!waiting.is_finished());
        engine.release();
        assert!(waiting.join().unwrap().is_ok());
    });
}

/// Opens streams without waiting, all of them at once.
struct Prompt(Pretender);

impl Calls for Prompt {
    fn listen(&self, port: u16, path: &Path, raw: bool) -> io::Result<()> {
        self.0.listen(port, path, raw)
    }

    fn unlisten(&self, port: u16) {
        self.0.unlisten(port);
    }

    fn connect_with(
        &self,
        _: &SystemName,
        _: u16,
        _: OwnedFd,
        _: Opening,
    ) -> Result<Connected, ConnectFailure> {
        unreachable!("nobody waits for this engine")
    }

    fn later(&self) -> Option<&dyn ConnectLater> {
        Some(self)
    }

    fn mark_clean(&self, token: StreamToken) {
        self.0.mark_clean(token);
    }

    fn verdict(&self, token: StreamToken) -> Verdict {
        self.0.verdict(token)
    }

    fn abort(&self, token: StreamToken) {
        self.0.abort(token);
    }

    fn peers(&self) -> io::Result<Vec<Peer>> {
        self.0.peers()
    }
}

impl ConnectLater for Prompt {
    fn connect_later(
        &self,
        _: &SystemName,
        port: u16,
        _: OwnedFd,
        _: Opening,
        reply: ConnectReply,
    ) {
        reply(Ok(Connected {
            token: StreamToken(port.into()),
            local_port: port,
        }));
        self.0.note(format!("told {port}"));
    }
}

/// More answers than its connection holds: whoever learns how a connection went goes on, and none is lost.
#[test]
fn a_program_that_reads_its_answers_late_holds_up_nobody_and_gets_them_all() {
    const CONNECTIONS: u16 = 900;
    let place = place();
    let engine = Arc::new(Prompt(Pretender::default()));
    let _server = Server::start(&place.dir, engine.clone()).unwrap();
    let (family, flags) = (AddressFamily::UNIX, SocketFlags::CLOEXEC);
    let socket = socket_with(family, SocketType::SEQPACKET, flags, None).unwrap();
    let path = SocketPath::new(&place.dir.engine_socket()).unwrap();
    connect(&socket, path.address()).unwrap();
    let ports = 10..10 + CONNECTIONS;
    for port in ports.clone() {
        let request = Request::Connect {
            to: "beta".to_owned(),
            port,
            raw: false,
            timeout_us: None,
            local_port: None,
            skip: 0,
        };
        let (_program, theirs) = pair();
        send_request(&socket, port.into(), &request, &[theirs.as_fd()]).unwrap();
    }
    engine.0.wait_noted(&format!("told {}", ports.end - 1));
    let mut receiver = Receiver::default();
    let mut missing: BTreeSet<u16> = ports.collect();
    while let Some(port) = missing.first() {
        let heard = receiver.answer(&socket).unwrap();
        let Some((_, Answer::Connected(connected), _)) = heard else {
            panic!("{heard:?} while {port} and others are missing");
        };
        assert!(missing.remove(&connected.local_port));
    }
}

#[test]
fn a_program_that_goes_takes_its_ports_along_but_not_its_successors() {
    let place = place();
    let engine = Arc::new(Pretender::default());
    let server = Server::start(&place.dir, engine.clone()).unwrap();
    let first = Client::connect(&place.dir).unwrap().unwrap();
    let second = Client::connect(&place.dir).unwrap().unwrap();
    place.listen(&first, 1000);
    place.listen(&first, 1001);
    place.listen(&second, 1001);
    drop(first);
    engine.wait_noted("unlisten 1000");
    while server.clients() > 1 {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(!engine.noted("unlisten 1001"));
}

#[test]
fn a_port_that_a_forked_child_uses_too_stays_until_both_are_gone() {
    let place = place();
    let engine = Arc::new(Pretender::default());
    let server = Server::start(&place.dir, engine.clone()).unwrap();
    let parent = Client::connect(&place.dir).unwrap().unwrap();
    let child = Client::connect(&place.dir).unwrap().unwrap();
    place.listen(&parent, 1000);
    place.listen(&child, 1000);
    drop(child);
    while server.clients() > 1 {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(!engine.noted("unlisten 1000"));
    drop(parent);
    engine.wait_noted("unlisten 1000");
}

#[test]
fn when_the_engine_goes_calls_fail_and_when_it_is_back_ports_are_published_again() {
    let place = place();
    let engine = Arc::new(Pretender::default());
    let server = Server::start(&place.dir, engine.clone()).unwrap();
    let client = Client::connect(&place.dir).unwrap().unwrap();
    place.listen(&client, 1000);
    let beta: SystemName = "beta".parse().unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| client.connect(&beta, 1, pair().1, false, None));
        engine.wait_noted("connect beta:1 false None");
        drop(server);
        let failure = waiting.join().unwrap().unwrap_err();
        assert!(
            matches!(failure, ConnectFailure::EngineGone(_)),
            "{failure:?}"
        );
    });
    engine.release();
    assert!(matches!(client.verdict(StreamToken(1)), Verdict::Reset(_)));
    let error = client.peers().unwrap_err().to_string();
    assert!(error.contains("stp engine"), "{error}");

    let successor = Arc::new(Pretender::default());
    let _server = Server::start(&place.dir, successor.clone()).unwrap();
    let path = place.dir.port_socket(1000);
    successor.wait_noted(&format!("listen 1000 {} false", path.display()));
    let start = Instant::now();
    while client.verdict(StreamToken(1)) != Verdict::Clean {
        assert!(start.elapsed() < HANG);
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn nonsense_ends_its_own_connection_only() {
    let place = place();
    let engine = Arc::new(Pretender::default());
    let _server = Server::start(&place.dir, engine.clone()).unwrap();
    let client = Client::connect(&place.dir).unwrap().unwrap();
    for nonsense in [
        &b"x"[..],
        &[0; 9],
        &[1; 200],
        b"\0\0\0\0\0\0\0\0\0{\"peers\":7}",
    ] {
        let (family, flags) = (AddressFamily::UNIX, SocketFlags::CLOEXEC);
        let socket = socket_with(family, SocketType::SEQPACKET, flags, None).unwrap();
        let path = SocketPath::new(&place.dir.engine_socket()).unwrap();
        connect(&socket, path.address()).unwrap();
        send(&socket, nonsense, rustix::net::SendFlags::NOSIGNAL).unwrap();
        let mut byte = [0];
        let ended = rustix::io::read(&socket, &mut byte);
        assert!(matches!(ended, Ok(0) | Err(_)), "{nonsense:?}");
    }
    assert_eq!(client.verdict(StreamToken(1)), Verdict::Clean);
}
