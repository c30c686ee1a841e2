//! Death, freeze and return: of programs, and of the engines under them.

use std::time::Duration;

use rustix::process::Signal;
use stp_tests::{Host, Kind, Lab, Net};

use crate::{end, number, serve, stories, was_reset, whole};

stories! {
    the_servers_engine_is_killed_and_started_again,
    the_callers_engine_is_killed_and_started_again,
    a_serving_program_is_killed_in_mid_stream,
    a_calling_program_is_killed_in_mid_stream,
    an_engine_is_frozen_and_goes_on,
}

/// New streams on the same port as before, whole.
fn works_again(alpha: &Host, beta: &Host) {
    let server = serve(beta, "7000 --streams 4");
    let ran = alpha
        .load("call beta:7000 --streams 4 --up 200000 --down 200000 --key 77")
        .ok();
    assert_eq!(whole(&ran.text()), 4, "{ran}");
    server.ok();
}

/// An endless pair of programs with bytes flowing both ways.
const SLOW: &str = "--up 100000000 --down 100000000 --rate 20000";

fn an_engine_is_killed(name: &str, kind: Kind, servers: bool) {
    let Some(lab) = Lab::with(name, kind, &["alpha", "beta"], Net::None) else {
        return;
    };
    let [alpha, beta] = lab.hosts();
    let (alphas, betas) = (alpha.engine(), beta.engine());
    let mut server = serve(beta, "7000 --streams 3 --rate 20000");
    let mut caller = alpha
        .load(&format!("call beta:7000 --streams 3 {SLOW}"))
        .spawn();
    let flows = |out: &str| (out.matches("receiving").count() == 3).then_some(());
    caller.wait_out("bytes on three streams", flows);
    server.wait_out("bytes on three streams", flows);
    let (killed, host, other) = if servers {
        (betas, beta, alphas)
    } else {
        (alphas, alpha, betas)
    };
    killed.crash();
    let _engine = host.engine();
    for (ran, head) in [(caller.finish(), "called"), (server.finish(), "served")] {
        let resets = ran
            .text()
            .lines()
            .filter(|line| was_reset(line, head))
            .count();
        assert_eq!(
            (ran.code(), resets),
            (1, 3),
            "each stream is reset, none ends cleanly: {ran}"
        );
    }
    works_again(alpha, beta);
    end(&lab);
    drop(other);
}

/// The engine under a server dies: its programs and their peers see a reset; after its return the port is free.
fn the_servers_engine_is_killed_and_started_again(kind: Kind) {
    an_engine_is_killed("the server's engine killed", kind, true);
}

/// The same on the other side.
fn the_callers_engine_is_killed_and_started_again(kind: Kind) {
    an_engine_is_killed("the caller's engine killed", kind, false);
}

/// A server has sent 200,000 bytes and dies before it ends the stream: the caller reads all of them and then a
/// reset, never an end of file; the port can be bound again at once.
fn a_serving_program_is_killed_in_mid_stream(kind: Kind) {
    let Some(lab) = Lab::with("a server killed", kind, &["alpha", "beta"], Net::None) else {
        return;
    };
    let [alpha, beta] = lab.hosts();
    let _engines = [alpha.engine(), beta.engine()];
    let mut server = serve(beta, "7000 --hold 1000");
    let caller = alpha
        .load("call beta:7000 --down 200000 --stalled 1 --stall 3")
        .spawn();
    server.wait_out("everything sent", |out| {
        out.contains("bytes=200000").then_some(())
    });
    server.crash();
    works_again(alpha, beta);
    let ran = caller.finish();
    assert!(was_reset(&ran.text(), "called"), "{ran}");
    assert_eq!(
        number(&ran.text(), "called", "received"),
        Some(200_000),
        "{ran}"
    );
    end(&lab);
}

/// The same for the side that called.
fn a_calling_program_is_killed_in_mid_stream(kind: Kind) {
    let Some(lab) = Lab::with("a caller killed", kind, &["alpha", "beta"], Net::None) else {
        return;
    };
    let [alpha, beta] = lab.hosts();
    let _engines = [alpha.engine(), beta.engine()];
    let server = serve(beta, "7000 --streams 1");
    let mut caller = alpha.load("call beta:7000 --up 200000 --hold 1000").spawn();
    caller.wait_out("everything sent", |out| {
        out.contains("bytes=200000").then_some(())
    });
    caller.crash();
    let ran = server.finish();
    assert!(was_reset(&ran.text(), "served"), "{ran}");
    assert_eq!(
        number(&ran.text(), "served", "received"),
        Some(200_000),
        "{ran}"
    );
    works_again(alpha, beta);
    end(&lab);
}

/// A program without a shared engine dies with the engine inside it: its peer sees a reset all the same, and a
/// correct beginning.
#[test]
fn a_program_with_its_own_engine_is_killed() {
    let Some(lab) = Lab::with(
        "an embedded engine killed",
        Kind::File,
        &["alpha", "beta"],
        Net::None,
    ) else {
        return;
    };
    let [alpha, beta] = lab.hosts();
    let server = serve(beta, "7000 --rate 20000");
    let mut caller = alpha.load(&format!("call beta:7000 {SLOW}")).spawn();
    caller.wait_out("bytes", |out| out.contains("receiving").then_some(()));
    server.crash();
    let ran = caller.finish();
    assert!(was_reset(&ran.text(), "called"), "{ran}");
    works_again(alpha, beta);
    end(&lab);
}

/// An engine stops for fifteen seconds (a frozen host, a paused virtual machine) and goes on: nothing is lost and
/// nothing is reset.
fn an_engine_is_frozen_and_goes_on(kind: Kind) {
    let Some(lab) = Lab::with("a frozen engine", kind, &["alpha", "beta"], Net::None) else {
        return;
    };
    let [alpha, beta] = lab.hosts();
    let (_alphas, betas) = (alpha.engine(), beta.engine());
    let mut server = serve(beta, "7000 --streams 6 --rate 20000");
    let mut caller = alpha
        .load("call beta:7000 --streams 6 --up 440000 --down 440000 --rate 20000")
        .spawn();
    let flows = |out: &str| (out.matches("receiving").count() == 6).then_some(());
    caller.wait_out("bytes on six streams", flows);
    server.wait_out("bytes on six streams", flows);
    betas.signal(Signal::STOP);
    std::thread::sleep(Duration::from_secs(15));
    assert!(
        caller.ended().is_none(),
        "ended while its peer was frozen: {}",
        caller.out()
    );
    betas.signal(Signal::CONT);
    let ran = caller.ok();
    assert_eq!(whole(&ran.text()), 6, "{ran}");
    let ran = server.ok();
    assert_eq!(whole(&ran.text()), 6, "{ran}");
    end(&lab);
}
