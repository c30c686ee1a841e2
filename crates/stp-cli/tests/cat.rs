//! `stp cat` between two systems: whole transfers, and exit codes that tell when one is not.

mod common;

use std::io::{Read, Write};
use std::process::{ChildStdin, ChildStdout, Stdio};
use std::time::Duration;

use common::{Running, World, collect, noise, text};
use rustix::process::Signal;

/// `stp cat` with pipes on both sides.
fn piped(world: &World, system: &str, args: &[&str]) -> Running {
    let mut command = world.on(system);
    command.arg("cat").args(args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    Running::start(command)
}

#[test]
fn both_ways_with_half_close() {
    let world = World::new();
    let mut server = piped(&world, "beta", &["-l", "0"]);
    let line = server.line("listening on beta:");
    let address = line.rsplit(' ').next().unwrap().to_owned();
    let mut client = piped(&world, "alpha", &[&address]);
    let (question, answer) = (noise(3_000_000, 1), noise(5_000_001, 2));
    let asked = collect(server.child.stdout.take().unwrap());
    let answered = collect(client.child.stdout.take().unwrap());
    let mut stdin = client.child.stdin.take().unwrap();
    stdin.write_all(&question).unwrap();
    drop(stdin);
    // The question is whole before a byte of the answer is written: the end went one way only.
    assert!(asked.whole() == question);
    let mut stdin = server.child.stdin.take().unwrap();
    stdin.write_all(&answer).unwrap();
    drop(stdin);
    assert!(answered.whole() == answer);
    assert_eq!(client.end(), (0, String::new()));
    assert_eq!(server.end().0, 0);
}

#[test]
fn a_hundred_mebibytes_through_pipes() {
    let world = World::new();
    let mut server = piped(&world, "beta", &["-d", "-l", "7000"]);
    let received = collect(server.child.stdout.take().unwrap());
    let mut client = piped(&world, "alpha", &["--retry", "60", "beta:7000"]);
    let data = noise(100 << 20, 3);
    client.child.stdin.take().unwrap().write_all(&data).unwrap();
    assert_eq!(client.end(), (0, String::new()));
    assert_eq!(server.end(), (0, String::new()));
    assert!(received.whole() == data);
}

#[test]
fn what_cannot_be_reached_is_one_line_and_exit_code_1() {
    let world = World::new();
    let run = |args: &[&str]| {
        let output = world.on("alpha").arg("cat").args(args).output().unwrap();
        (output.status.code(), text(&output))
    };
    for (args, part) in [
        (&["beta:9"][..], "beta:9"),
        (&["gamma:9"], "gamma"),
        (&["no system:9"], "\"no system:9\" is no address"),
        (&["--system", ".x", "-l", "1"], "--system"),
        (&["-w", "0.3", "-l", "7001"], "nobody connected in time"),
    ] {
        let (code, line) = run(args);
        assert_eq!(code, Some(1), "{args:?}: {line}");
        assert!(line.starts_with("stp: ") && line.contains(part), "{line}");
        assert_eq!(line.lines().count(), 1, "{line}");
    }
    let server = piped(&world, "alpha", &["-l", "7002"]);
    let until = std::time::Instant::now() + common::HANG;
    while !run(&["-w", "0.1", "-l", "7002"]).1.contains("7002") {
        assert!(std::time::Instant::now() < until);
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(server);
    for args in [
        &[][..],
        &["beta"],
        &["beta:x"],
        &["-l", "1", "beta:1"],
        &["-w", "0", "beta:1"],
    ] {
        let (code, line) = run(args);
        assert_eq!(code, Some(2), "{args:?}: {line}");
    }
}

#[test]
fn a_sender_that_is_killed_leaves_no_complete_transfer() {
    let world = World::new();
    let mut server = piped(&world, "beta", &["-d", "-l", "7000"]);
    let received = collect(server.child.stdout.take().unwrap());
    let mut client = piped(&world, "alpha", &["--retry", "60", "beta:7000"]);
    let mut stdin = client.child.stdin.take().unwrap();
    let data = noise(1_000_000, 4);
    stdin.write_all(&data).unwrap();
    // Time for the bytes to get on their way.
    std::thread::sleep(Duration::from_millis(500));
    client.signal(Signal::KILL);
    let (code, said) = server.end();
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("not complete"), "{said}");
    assert!(data.starts_with(&received.whole()));
    drop(stdin);
}

/// The receiver has nothing to say and ends its half at once: no read tells the sender that it died later.
#[test]
fn a_receiver_that_is_killed_while_the_sender_pauses_fails_the_sender() {
    let world = World::new();
    let (server, client, mut stdin, stuck) = pause(&world);
    // More than its standard output takes, so that it dies with something unread.
    stdin.write_all(&noise(1_500_000, 5)).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    server.signal(Signal::KILL);
    drop((server, stuck));
    // Time for the news to arrive.
    std::thread::sleep(Duration::from_secs(1));
    drop(stdin);
    let (code, said) = client.end();
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("not complete"), "{said}");
}

/// The stream ends with the engine on the sender's host.
#[test]
fn an_engine_that_is_killed_while_the_sender_pauses_fails_the_sender() {
    let mut world = World::new();
    let (server, client, stdin, _stdout) = pause(&world);
    world.restart_engine("alpha", Signal::KILL);
    drop(stdin);
    let (code, said) = client.end();
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("not complete"), "{said}");
    assert_eq!(server.end().0, 1);
}

/// A transfer under way whose sender has more to come.
fn pause(world: &World) -> (Running, Running, ChildStdin, ChildStdout) {
    let mut server = piped(world, "beta", &["-d", "-l", "7000"]);
    let mut stdout = server.child.stdout.take().unwrap();
    let mut client = piped(world, "alpha", &["--retry", "60", "beta:7000"]);
    let mut stdin = client.child.stdin.take().unwrap();
    stdin.write_all(b"so far").unwrap();
    let mut so_far = [0; 6];
    stdout.read_exact(&mut so_far).unwrap();
    // The receiver's end of its own half arrives.
    let mut nothing = Vec::new();
    let mut received = client.child.stdout.take().unwrap();
    received.read_to_end(&mut nothing).unwrap();
    (server, client, stdin, stdout)
}

#[test]
fn a_sender_that_is_told_to_end_leaves_no_complete_transfer() {
    told_to_end(&World::new());
}

/// The engine goes with the program: it has to tell the peer before.
#[test]
fn a_sender_with_its_own_engine_tells_before_it_ends() {
    told_to_end(&World::without_engines());
}

fn told_to_end(world: &World) {
    let mut server = piped(world, "beta", &["-d", "-l", "7000"]);
    let mut stdout = server.child.stdout.take().unwrap();
    let mut client = piped(world, "alpha", &["--retry", "60", "beta:7000"]);
    let mut stdin = client.child.stdin.take().unwrap();
    stdin.write_all(b"so far").unwrap();
    let mut so_far = [0; 6];
    stdout.read_exact(&mut so_far).unwrap();
    client.signal(Signal::TERM);
    assert_eq!(client.end().0, 128 + 15);
    let (code, said) = server.end();
    assert_eq!(code, 1, "{said}");
    drop(stdin);
}

#[test]
fn a_receiver_that_stops_early_fails_the_sender_and_ends_like_a_filter() {
    let world = World::new();
    let mut server = piped(&world, "beta", &["-d", "-l", "7000"]);
    let mut stdout = server.child.stdout.take().unwrap();
    let mut client = piped(&world, "alpha", &["--retry", "60", "beta:7000"]);
    let mut stdin = client.child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || {
        let piece = vec![7; 1 << 20];
        // It fails once the sender gives up.
        while stdin.write_all(&piece).is_ok() {}
    });
    stdout.read_exact(&mut [0; 1000]).unwrap();
    drop(stdout);
    assert_eq!(server.end(), (128 + 13, String::new()));
    let (code, said) = client.end();
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("not complete"), "{said}");
    writer.join().unwrap();
}

#[test]
fn engines_of_their_own() {
    let world = World::without_engines();
    let mut server = piped(&world, "beta", &["-d", "-l", "0"]);
    let line = server.line("listening on beta:");
    let address = line.rsplit(' ').next().unwrap().to_owned();
    let received = collect(server.child.stdout.take().unwrap());
    let mut client = piped(&world, "alpha", &["--retry", "60", &address]);
    let data = noise(20 << 20, 6);
    client.child.stdin.take().unwrap().write_all(&data).unwrap();
    assert_eq!(client.end(), (0, String::new()));
    assert_eq!(server.end().0, 0);
    assert!(received.whole() == data);
    // Both have left in order, so the volume is nobody's.
    let output = world.on("alpha").args(["ss", "-a"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("No node"), "{text}");
}

#[test]
fn waiting_is_ended_by_a_signal() {
    let world = World::new();
    let mut server = piped(&world, "beta", &["-l", "0"]);
    server.line("listening on");
    server.signal(Signal::INT);
    assert_eq!(server.end().0, 128 + 2);
}
