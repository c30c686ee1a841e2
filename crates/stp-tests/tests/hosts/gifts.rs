//! Streams that change their owner between programs of one system and between systems: alpha gives, gamma takes,
//! beta serves and notices nothing.

use std::time::Duration;

use rustix::process::Signal;
use stp_tests::{Cmd, Host, Kind, Lab, Net, Proc};

use crate::{end, serve, stories, whole};

stories! {
    a_stream_moves_to_another_system_and_its_giver_is_not_needed_any_more,
    the_givers_engine_dies_at_any_moment_of_a_move,
    the_takers_engine_dies_at_any_moment_of_a_move,
    programs_of_one_system_hand_a_stream_on,
}

fn three(name: &str, kind: Kind) -> Option<Lab> {
    Lab::with(name, kind, &["alpha", "beta", "gamma"], Net::None)
}

fn gift(host: &Host, args: &str) -> Cmd {
    host.cmd(env!("CARGO_BIN_EXE_stp-gift"))
        .args(args.split_whitespace())
}

fn wait_line(process: &mut Proc, line: &str) {
    process.wait_out(line, |out| out.contains(line).then_some(()));
}

fn a_stream_moves_to_another_system_and_its_giver_is_not_needed_any_more(kind: Kind) {
    let Some(lab) = three("a stream moves", kind) else {
        return;
    };
    let [alpha, beta, gamma] = lab.hosts();
    let engine = alpha.engine();
    let _engines = [beta.engine(), gamma.engine()];
    let server = serve(beta, "7000 --streams 2");
    // Shared engines; and a taker whose engine is its own.
    let plan = "7 40000000 50000000 3000017 60000";
    let mut taker = gift(gamma, &format!("take heir {plan}")).spawn();
    wait_line(&mut taker, "waiting");
    let giver = gift(alpha, &format!("give beta:7000 gamma/heir {plan}")).ok();
    assert!(giver.text().contains("taken"), "{giver}");
    // The giver's program has ended; its engine is killed while the stream goes on.
    wait_line(&mut taker, "took local=alpha:");
    engine.crash();
    let taker = taker.ok();
    assert!(taker.text().contains("peer=beta:7000"), "{taker}");
    assert_eq!(whole(&taker.text()), 1, "{taker}");
    // A gift that nobody takes: its giver goes on.
    let plan = "8 2000000 2000000 500009 300";
    let giver = gift(alpha, &format!("give beta:7000 gamma/nobody {plan}")).ok();
    assert!(giver.text().contains("kept kind=TimedOut"), "{giver}");
    assert_eq!(whole(&giver.text()), 1, "{giver}");
    let server = server.ok();
    assert_eq!(whole(&server.text()), 2, "{server}");
    end(&lab);
}

fn the_givers_engine_dies_at_any_moment_of_a_move(kind: Kind) {
    engines_die("the giver's engine dies", kind, Victim::Giving);
}

fn the_takers_engine_dies_at_any_moment_of_a_move(kind: Kind) {
    engines_die("the taker's engine dies", kind, Victim::Taking);
}

#[derive(Clone, Copy)]
enum Victim {
    Giving,
    Taking,
}

/// Round by round an engine is killed a little later after the stream was given. Whatever the moment, either the
/// giver or the taker has the stream and ends it whole, or the far end sees a reset: never a clean end too early, never
/// two owners.
fn engines_die(name: &str, kind: Kind, victim: Victim) {
    let Some(lab) = three(name, kind) else {
        return;
    };
    let [alpha, beta, gamma] = lab.hosts();
    let rounds = 4;
    let _engine = beta.engine();
    let mut server = serve(beta, &format!("7000 --streams {rounds}"));
    let (mut wholes, mut resets, mut unreceived) = (0, 0, 0);
    for round in 0..rounds {
        let victims = [alpha.engine(), gamma.engine()];
        let plan = format!("{} 3000000 3000000 700001 5000", 100 + round);
        let mut taker = gift(gamma, &format!("take heir {plan}")).spawn();
        wait_line(&mut taker, "waiting");
        let mut giver = gift(alpha, &format!("give beta:7000 gamma/heir {plan}")).spawn();
        wait_line(&mut giver, "given");
        std::thread::sleep(Duration::from_millis(40 * round));
        let [giving, taking] = victims;
        match victim {
            Victim::Giving => giving.crash(),
            Victim::Taking => taking.crash(),
        }
        let (giver, taker) = (giver.finish(), taker.finish());
        let owners = whole(&giver.text()) + whole(&taker.text());
        assert!(owners < 2, "two owners: {giver} {taker}");
        wholes += owners;
        resets += 1 - owners;
        if owners == 1 {
            // The other engine ends with the round, and what it still holds with it.
            let line = format!("served key={} ", 100 + round);
            server.wait_out(&line, |out| out.contains(&line).then_some(()));
        }
        for ran in [giver, taker] {
            let text = ran.text();
            unreceived += usize::from(text.contains("sent all of it"));
            assert!(
                !text.contains("UnexpectedEof") && !text.contains("InvalidData"),
                "{ran}"
            );
        }
    }
    let server = server.finish();
    let text = server.text();
    let of_kind = |kind: &str| {
        let served = text.lines().filter(|line| line.starts_with("served "));
        served.filter(|line| line.contains(kind)).count()
    };
    let (whole, broken) = (of_kind(" whole"), of_kind("kind=ConnectionReset"));
    assert_eq!(whole + broken, wholes + resets, "{server}");
    // An owner may have sent and seen everything, and its engine die before the far end hears of the end; or the far end
    // have sent and seen everything, and the owner's engine die before the owner has received all of it.
    let unended = of_kind("sent=3000000 received=3000000 kind=ConnectionReset");
    assert!(
        whole <= wholes + unreceived && wholes <= whole + unended,
        "{wholes} owners were whole, {unreceived} had sent everything: {server}"
    );
    println!("{wholes} streams whole at their owner, {whole} at the far end, {broken} reset");
    end(&lab);
}

/// A giver that is killed after it has given, takers that are killed while they wait: the next one gets it.
fn programs_of_one_system_hand_a_stream_on(kind: Kind) {
    let Some(lab) = three("a stream handed on", kind) else {
        return;
    };
    let [alpha, beta, _] = lab.hosts();
    let _engines = [alpha.engine(), beta.engine()];
    let server = serve(beta, "7000 --streams 1");
    let plan = "9 5000000 5000000 1000003 60000";
    let mut lost = gift(alpha, &format!("take heir {plan}")).spawn();
    wait_line(&mut lost, "waiting");
    lost.signal(Signal::KILL);
    lost.wait();
    let mut giver = gift(alpha, &format!("give beta:7000 heir {plan}")).spawn();
    wait_line(&mut giver, "given");
    giver.crash();
    let taker = gift(alpha, &format!("take heir {plan}")).ok();
    assert_eq!(whole(&taker.text()), 1, "{taker}");
    let server = server.ok();
    assert_eq!(whole(&server.text()), 1, "{server}");
    end(&lab);
}
