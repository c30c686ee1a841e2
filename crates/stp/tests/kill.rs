//! Programs that die: the peer learns it, and the port is free at once.
//!
//! Each test starts this test binary again as the program that will die ([`program`]).

mod support;

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use support::Place;

/// Not a test: the body of a program that another test kills.
#[test]
fn program() {
    let Ok(role) = std::env::var("STP_TEST_ROLE") else {
        return;
    };
    let root = std::env::var("STP_TEST_ROOT").unwrap();
    let system = std::env::var("STP_TEST_SYSTEM").unwrap();
    let group = support::open(Path::new(&root), &system);
    let ready = || println!("\nready");
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

fn a_killed_client_resets(system: &str) {
    let place = Place::new();
    let group = place.group("alpha");
    let listener = group.listen(7000).unwrap();
    let mut program = Program::start(&place, system, "speaker").ready();
    let (mut stream, peer) = listener.accept().unwrap();
    assert_eq!(peer.system.unwrap().as_str(), system);
    program.kill();
    expect_last_words(&mut stream);
    expect_reset(&mut stream);
}

fn an_exit_without_close_resets(system: &str) {
    let place = Place::new();
    let group = place.group("alpha");
    let listener = group.listen(7000).unwrap();
    let mut program = Program::start(&place, system, "quitter");
    let (mut stream, _) = listener.accept().unwrap();
    expect_last_words(&mut stream);
    expect_reset(&mut stream);
    program.0.wait().unwrap();
}

fn a_closed_stream_ends_in_order_even_if_its_program_is_killed_then(system: &str, role: &str) {
    let place = Place::new();
    let group = place.group("alpha");
    let listener = group.listen(7000).unwrap();
    let mut program = Program::start(&place, system, role).ready();
    let (mut stream, _) = listener.accept().unwrap();
    if system == "alpha" {
        program.kill(); // before a byte of it is read
    }
    let mut words = String::new();
    stream.read_to_string(&mut words).unwrap();
    assert_eq!(words, "last words");
}

#[test]
fn a_killed_client_resets_within_one_system() {
    a_killed_client_resets("alpha");
}

#[test]
fn an_exit_without_close_resets_within_one_system() {
    an_exit_without_close_resets("alpha");
}

#[test]
fn an_orderly_end_is_one_within_one_system() {
    a_closed_stream_ends_in_order_even_if_its_program_is_killed_then("alpha", "closer");
    a_closed_stream_ends_in_order_even_if_its_program_is_killed_then("alpha", "finisher");
}

#[test]
fn a_killed_server_resets_within_one_system() {
    let place = Place::new();
    let mut program = Program::start(&place, "alpha", "server").ready();
    let group = place.group("alpha");
    let mut stream = group.connect("alpha:7000").unwrap();
    let mut words = [0; 10];
    while stream.peek(&mut words).unwrap() < words.len() {}
    program.kill();
    expect_last_words(&mut stream);
    expect_reset(&mut stream);
    let error = stream.write(b"x").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
}

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
