//! Programs that die: the peer learns it, and the port is free at once.
//!
//! Each test starts this test binary again as the program that will die ([`program`]).

mod support;

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use support::{Place, Stp};

/// Not a test: the body of a program that another test kills.
#[test]
fn program() {
    let Ok(role) = std::env::var("STP_TEST_ROLE") else {
        return;
    };
    let root = std::env::var("STP_TEST_ROOT").unwrap();
    let system = std::env::var("STP_TEST_SYSTEM").unwrap();
    let root = Path::new(&root);
    let ready = || println!("\nready");
    if role == "engine" {
        let _engine = support::engine(root, &system);
        ready();
        return sleep();
    }
    let group = support::builder(root, &system)
        .dead_after(DEAD_AFTER)
        .open()
        .unwrap();
    match role.as_str() {
        "listener" => {
            let _listener = group.listen(7000).unwrap();
            ready();
            sleep();
        }
        "speaker" => {
            let mut stream = group.connect("alpha:7000").unwrap();
            stream.write_all(b"last words").unwrap();
            ready();
            sleep();
        }
        "quitter" => {
            let mut stream = group.connect("alpha:7000").unwrap();
            stream.write_all(b"last words").unwrap();
            std::process::exit(0); // without closing
        }
        "closer" => {
            let mut stream = group.connect("alpha:7000").unwrap();
            stream.write_all(b"last words").unwrap();
            drop(stream);
            drop(group);
            ready();
            sleep();
        }
        "finisher" => {
            let mut stream = group.connect("alpha:7000").unwrap();
            stream.write_all(b"last words").unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            ready();
            sleep();
        }
        "server" => {
            let listener = group.listen(7000).unwrap();
            ready();
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"last words").unwrap();
            sleep();
        }
        role => panic!("no such role: {role}"),
    }
}

/// A hang guard, for machines that have other things to do: nothing is concluded from it.
const HANG: Duration = Duration::from_secs(120);
/// How long the programs' own engines may be silent.
const DEAD_AFTER: Duration = Duration::from_secs(2);

fn sleep() {
    std::thread::sleep(Duration::from_secs(120));
}

/// A program of ours; killed with the value.
struct Program(Child);

impl Program {
    fn start(place: &Place, system: &str, role: &str) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "program", "--nocapture"])
            .env("STP_TEST_ROLE", role)
            .env("STP_TEST_ROOT", place.root.path())
            .env("STP_TEST_SYSTEM", system)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self(child)
    }

    fn ready(mut self) -> Self {
        let out = BufReader::new(self.0.stdout.take().unwrap());
        let mut lines = out.lines().map_while(Result::ok);
        assert!(lines.any(|line| line == "ready"), "it died too early");
        self
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn expect_last_words(stream: &mut stp::Stream) {
    let mut words = [0; 10];
    stream.read_exact(&mut words).unwrap();
    assert_eq!(&words, b"last words");
}

fn expect_reset(stream: &mut stp::Stream) {
    for _ in 0..2 {
        let error = stream.read(&mut [0; 8]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    }
}

/// Where the program that dies has its engine.
#[derive(Clone, Copy)]
enum Engine {
    /// It needs none: its peer is on its own system.
    None,
    /// Inside it: it dies as well.
    Own,
    /// The host's, which lives on.
    Shared,
}

/// A program on a system of its own, or on that of the listener.
struct Scene {
    place: Place,
    system: &'static str,
    _engine: Option<stp_host::control::Server>,
}

impl Scene {
    fn new(engine: Engine) -> Self {
        let place = Place::new();
        let system = match engine {
            Engine::None => "alpha",
            _ => "beta",
        };
        let shared = matches!(engine, Engine::Shared).then(|| place.engine(system));
        Self {
            place,
            system,
            _engine: shared,
        }
    }

    fn program(&self, role: &str) -> Program {
        Program::start(&self.place, self.system, role)
    }
}

fn a_killed_client_resets(engine: Engine) {
    let scene = Scene::new(engine);
    let group = scene.place.group("alpha");
    let listener = group.listen(7000).unwrap();
    let mut program = scene.program("speaker").ready();
    let (mut stream, peer) = listener.accept().unwrap();
    assert_eq!(peer.system.unwrap().as_str(), scene.system);
    // An engine that dies takes along what it has not written yet.
    while stream.peek(&mut [0; 16]).unwrap() < 10 {}
    program.kill();
    expect_last_words(&mut stream);
    expect_reset(&mut stream);
}

fn an_exit_without_close_resets(engine: Engine) {
    let scene = Scene::new(engine);
    let group = scene.place.group("alpha");
    let listener = group.listen(7000).unwrap();
    let mut program = scene.program("quitter");
    let (mut stream, _) = listener.accept().unwrap();
    match engine {
        // An engine that dies takes along what it has not written yet.
        Engine::Own => {
            let mut words = Vec::new();
            let error = stream.read_to_end(&mut words).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
            assert!(b"last words".starts_with(&words));
        }
        _ => expect_last_words(&mut stream),
    }
    expect_reset(&mut stream);
    program.0.wait().unwrap();
}

fn a_killed_server_resets(engine: Engine) {
    let scene = Scene::new(engine);
    let mut program = scene.program("server").ready();
    let group = scene.place.group("alpha");
    let mut stream = group.connect((scene.system, 7000)).unwrap();
    let mut words = [0; 10];
    while stream.peek(&mut words).unwrap() < words.len() {}
    program.kill();
    expect_last_words(&mut stream);
    expect_reset(&mut stream);
    let error = stream.write(b"x").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    // The port is free at once, and the new listener is the one that is reached.
    let successor = support::open(scene.place.root.path(), scene.system);
    let listener = successor.listen(7000).unwrap();
    let mut stream = group.connect((scene.system, 7000)).unwrap();
    stream.write_all(b"x").unwrap();
    let (mut theirs, _) = listener.accept().unwrap();
    theirs.read_exact(&mut [0]).unwrap();
}

/// The mark counts, not the life of the program after it.
fn an_orderly_end_is_one_whatever_comes_then(engine: Engine) {
    for role in ["closer", "finisher"] {
        let scene = Scene::new(engine);
        let group = scene.place.group("alpha");
        let listener = group.listen(7000).unwrap();
        let mut program = scene.program(role).ready();
        let (mut stream, _) = listener.accept().unwrap();
        match (engine, role) {
            // Its engine is alive with it; what it holds is not on the volume yet.
            (Engine::Own, "finisher") => {}
            _ => program.kill(), // before a byte is read
        }
        let mut words = String::new();
        stream.read_to_string(&mut words).unwrap();
        assert_eq!(words, "last words");
    }
}

macro_rules! scenes {
    ($($name:ident),*) => {
        $(mod $name {
            use super::Engine;

            #[test]
            fn within_one_system() {
                super::$name(Engine::None);
            }

            #[test]
            fn with_its_own_engine() {
                super::$name(Engine::Own);
            }

            #[test]
            fn with_a_shared_engine() {
                super::$name(Engine::Shared);
            }
        })*
    };
}

scenes!(
    a_killed_client_resets,
    an_exit_without_close_resets,
    a_killed_server_resets,
    an_orderly_end_is_one_whatever_comes_then
);

#[test]
fn a_port_is_one_processs_and_free_again_when_that_is_killed() {
    let place = Place::new();
    let mut program = Program::start(&place, "alpha", "listener").ready();
    let group = place.group("alpha");
    let error = group.listen(7000).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
    let mut waiting = group.connect(":7000").unwrap();
    program.kill();
    let listener = group.listen(7000).unwrap();
    expect_reset(&mut waiting);
    let mut stream = group.connect(":7000").unwrap();
    stream.write_all(b"x").unwrap();
    listener.accept().unwrap();
}

/// Each process has a node; the one that lists the port is the one that is reached.
#[test]
fn a_system_of_several_nodes_is_reached_at_the_right_one() {
    let place = Place::new();
    let beta = place.group("beta");
    let _other = beta.listen(7001).unwrap();
    let _program = Program::start(&place, "beta", "server").ready();
    let alpha = place.group("alpha");
    let mut stream = alpha.connect("beta:7000").unwrap();
    expect_last_words(&mut stream);
    let error = beta.listen(7000).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AddrInUse, "across processes");
    alpha.connect("beta:7001").unwrap();
    let mut direct = beta.connect("beta:7001").unwrap();
    direct.write_all(b"x").unwrap();
    let systems = alpha.systems().unwrap();
    let beta = systems.iter().find(|s| s.name.as_str() == "beta").unwrap();
    assert_eq!(beta.ports, [7000, 7001]);
}

/// Its programs learn at once, and their listeners are back with the next engine without their doing.
#[test]
fn a_shared_engine_that_is_killed_and_started_again() {
    let place = Place::new();
    let mut engine = Program::start(&place, "beta", "engine").ready();
    let beta = place.group("beta");
    let listener = beta.listen(7000).unwrap();
    let alpha = place.group("alpha");
    let mut stream = alpha.connect("beta:7000").unwrap();
    stream.write_all(b"x").unwrap();
    let (mut theirs, _) = listener.accept().unwrap();
    theirs.read_exact(&mut [0]).unwrap();

    engine.kill();
    expect_reset(&mut theirs);
    let error = beta.connect("alpha:1").unwrap_err();
    assert!(error.to_string().contains("stp engine"), "{error}");

    let _engine = Program::start(&place, "beta", "engine").ready();
    expect_reset(&mut stream); // the new incarnation tells
    drop((stream, theirs));
    let start = Instant::now();
    let mut stream = loop {
        match alpha.connect("beta:7000") {
            Ok(stream) => break stream,
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}"),
        }
        assert!(start.elapsed() < HANG);
        std::thread::sleep(Duration::from_millis(20));
    };
    stream.write_all(b"again").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let (mut theirs, _) = listener.accept().unwrap();
    let mut text = String::new();
    theirs.read_to_string(&mut text).unwrap();
    assert_eq!(text, "again");
    // Before its peer's engine: nothing is left to wait for.
    drop((stream, theirs, alpha));
}

#[test]
fn a_peer_that_is_stopped_for_a_while_loses_nothing() {
    let place = Place::new();
    let mut engine = Program::start(&place, "beta", "engine").ready();
    let (beta, alpha) = (place.group("beta"), place.group("alpha"));
    let listener = beta.listen(7000).unwrap();
    let mut stream = alpha.connect("beta:7000").unwrap();
    let (mut theirs, _) = listener.accept().unwrap();
    engine.signal(Signal::STOP);
    let sent: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
    let expected = sent.clone();
    let writing = std::thread::spawn(move || {
        stream.write_all(&sent).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        stream
    });
    let error = alpha
        .connect_timeout(&"beta:7000".parse().unwrap(), Duration::from_secs(1))
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    std::thread::sleep(Duration::from_secs(6)); // longer than it takes to be suspected
    engine.signal(Signal::CONT);
    let mut received = Vec::new();
    theirs.read_to_end(&mut received).unwrap();
    assert!(received == expected, "{} bytes", received.len());
    drop((writing.join().unwrap(), theirs, alpha));
    engine.kill();
}

#[test]
fn an_unknown_system_is_named_with_those_there_are() {
    let net = Stp::across();
    let start = Instant::now();
    let error = loop {
        let error = net.from.connect("gamma:7000").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
        // Beta's record may not have been read yet.
        if error.to_string().contains("beta") || start.elapsed() > HANG {
            break error.to_string();
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    for name in ["gamma", "alpha", "beta", "lab"] {
        assert!(error.contains(name), "{error}");
    }
    let systems = net.from.systems().unwrap();
    let names: Vec<_> = systems.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["alpha", "beta"]);
}
