//! Streams that move from node to node while bytes are under way, on a volume in memory with its faults, with
//! deaths at each step, with both ends moving at once. What the peer receives, and what the owners receive one
//! after the other, is checked byte by byte as it comes.

mod world;

use std::time::Duration;
use stp_core::*;
use stp_format::segment::StreamKey;
use stp_format::{Incarnation, MoveToken, Place, SeatId, SeatRecord};
use world::{App, Faults, World, pattern};

const SEEDS: std::ops::Range<u64> = 1..9;
const GIVER: usize = 0;
const PEER: usize = 1;
const TAKER: usize = 2;

/// Three systems; beta serves on 7000 with an echo, on 7001 with a program that only sends.
fn three(seed: u64) -> World {
    let mut world = World::new(seed, 4, 8 << 20);
    for name in ["alpha", "beta", "gamma"] {
        world.add(name, true);
    }
    world.ready();
    for host in 0..3 {
        world.hosts[host].serve = |port| {
            Some(App {
                echo: port == 7000,
                stopped: port == 7002,
                ..App::default()
            })
        };
        for port in 7000..7003 {
            world.listen(host, port);
        }
    }
    // Everybody has seen everybody.
    world.run_until("all see all", |world| {
        let seen = |host: &world::Host| host.node.as_ref().map_or(0, |node| node.peers().count());
        world.hosts.iter().all(|host| seen(host) == 2)
    });
    world
}

fn talker(seed: u64, length: usize) -> App {
    let bytes = pattern(seed, length);
    App {
        expected: Some(bytes.clone()),
        to_send: bytes,
        finish: true,
        ..App::default()
    }
}

/// As [`talker`], but it stays open until [`done`].
fn open_talker(seed: u64, length: usize) -> App {
    App {
        finish: false,
        ..talker(seed, length)
    }
}

/// The program has nothing more to say once all is sent.
fn done(world: &mut World, host: usize, id: StreamId) {
    world.app_mut(host, id).finish = true;
    world.act(host, |node, _| node.readable(id));
}

fn events(world: &World, host: usize, wanted: &Event) -> usize {
    let events = world.hosts[host].events.iter();
    events.filter(|event| *event == wanted).count()
}

fn token(world: &mut World) -> MoveToken {
    let mut bytes = [0; 16];
    for byte in &mut bytes {
        *byte = world.rng.below(256) as u8;
    }
    MoveToken(bytes)
}

fn hold(world: &mut World, host: usize, id: StreamId) -> MoveToken {
    let token = token(world);
    world.act(host, |node, now| node.hold(now, id, token).unwrap());
    token
}

/// What has come of a hold.
fn wait_held(world: &mut World, host: usize, id: StreamId) -> bool {
    let before = events(world, host, &Event::Held(id));
    world.run_until("the stream is still or lost", |world| {
        events(world, host, &Event::Held(id)) > before || over(world, host, id)
    });
    events(world, host, &Event::Held(id)) > before
}

fn over(world: &World, host: usize, id: StreamId) -> bool {
    world.hosts[host]
        .node
        .as_ref()
        .is_none_or(|node| node.stream(id).is_none())
}

/// What the taker's node is told.
fn adoption(world: &World, host: usize, id: StreamId, token: MoveToken) -> Adoption {
    let node = world.hosts[host].node.as_ref().unwrap();
    Adoption {
        token,
        giver: node.seat(),
        giver_incarnation: node.incarnation(),
        stream: node.stillness(id).unwrap(),
    }
}

/// The taker's node adopts, its program goes on where the giver's stopped.
fn adopt(world: &mut World, from: usize, id: StreamId, to: usize, adoption: Adoption) -> StreamId {
    let gone = App {
        stopped: true,
        ..App::default()
    };
    let app = std::mem::replace(world.app_mut(from, id), gone);
    let mut new = None;
    world.act(to, |node, now| {
        new = Some(node.adopt(now, adoption).unwrap())
    });
    let new = new.unwrap();
    let connected = false;
    world.hosts[to].apps.insert(new, App { connected, ..app });
    new
}

/// Moves a stream from one host to another.
fn move_stream(world: &mut World, from: usize, id: StreamId, to: usize) -> StreamId {
    let token = hold(world, from, id);
    assert!(wait_held(world, from, id));
    let adoption = adoption(world, from, id, token);
    let new = adopt(world, from, id, to, adoption);
    world.run_until("it has moved", |world| {
        world.app(to, new).connected && events(world, from, &Event::Moved(id)) == 1
    });
    new
}

fn assert_quiet(world: &mut World) {
    world.run_until("nothing is left of any stream", |world| {
        let mut nodes = world.hosts.iter().flat_map(|host| &host.node);
        nodes.all(Node::is_quiet)
    });
}

fn finish(world: &mut World, host: usize, id: StreamId, length: usize) {
    world.run_until("the stream is through", |world| world.app(host, id).closed);
    let app = world.app(host, id);
    assert_eq!(app.received.len(), length);
    assert!(app.peer_finished && app.reset.is_none());
}

#[test]
fn a_stream_wanders_and_every_byte_arrives_once_both_ways() {
    for seed in SEEDS {
        let mut world = three(seed);
        if seed % 2 == 0 {
            world.faults = Faults {
                write_errors: 3,
                read_errors: 3,
                lost_writes: 3,
                partial_writes: 3,
                ..Faults::default()
            };
        }
        let length = 3_000_000;
        let mut id = world.connect(GIVER, "beta", 7000, open_talker(seed, length));
        world.run_until("it is open", |world| world.app(GIVER, id).connected);
        let mut at = GIVER;
        for _ in 0..6 {
            let pause = world.rng.below(2_000);
            world.run_for(Duration::from_micros(pause));
            let to = GIVER + TAKER - at;
            id = move_stream(&mut world, at, id, to);
            at = to;
        }
        done(&mut world, at, id);
        finish(&mut world, at, id, length);
        assert_quiet(&mut world);
    }
}

/// The end that did not open the stream moves it.
#[test]
fn the_accepting_end_moves_as_well() {
    for seed in SEEDS {
        let mut world = three(seed);
        let length = 1_000_000;
        let client = world.connect(GIVER, "beta", 7000, talker(seed, length));
        world.run_until("bytes have come", |world| {
            !world.app(GIVER, client).received.is_empty()
        });
        let served = *world.hosts[PEER].apps.keys().next().unwrap();
        let moved = move_stream(&mut world, PEER, served, TAKER);
        finish(&mut world, GIVER, client, length);
        world.run_until("the server is through", |world| {
            world.app(TAKER, moved).closed
        });
        assert_quiet(&mut world);
    }
}

#[test]
fn half_closed_either_way_it_moves_as_it_is() {
    for seed in SEEDS {
        for finished_by in [GIVER, PEER] {
            let mut world = three(seed);
            let bytes = pattern(seed, 400_000);
            // The program at beta that only sends; it finishes when told to.
            let app = App {
                expected: Some(bytes.clone()),
                to_send: pattern(seed + 1, 1000),
                finish: finished_by == GIVER,
                stopped: true,
                ..App::default()
            };
            let id = world.connect(GIVER, "beta", 7001, app);
            world.run_until("it is open", |world| world.app(GIVER, id).connected);
            world.run_until("beta has it", |world| !world.hosts[PEER].apps.is_empty());
            let served = *world.hosts[PEER].apps.keys().next().unwrap();
            {
                let app = world.app_mut(PEER, served);
                app.to_send = bytes.clone();
                app.finish = finished_by == PEER;
            }
            world.act(PEER, |node, _| node.readable(served));
            world.run_for(Duration::from_millis(200));
            let id = move_stream(&mut world, GIVER, id, TAKER);
            world.app_mut(TAKER, id).stopped = false;
            world.app_mut(TAKER, id).finish = true;
            world.app_mut(PEER, served).finish = true;
            world.act(TAKER, |node, _| node.writable(id));
            world.act(TAKER, |node, _| node.readable(id));
            world.act(PEER, |node, _| node.readable(served));
            finish(&mut world, TAKER, id, bytes.len());
            assert_eq!(world.app(PEER, served).received.len(), 1000);
            assert_quiet(&mut world);
        }
    }
}

/// Bytes of a stream that the far node has sent back, while the giver's program reads nothing.
const ECHO_BYTES: usize = 3000;

/// A stream whose whole echo waits at the giver, which has said its last.
fn answered(seed: u64) -> (World, StreamId) {
    let mut world = three(seed);
    let bytes = pattern(seed, ECHO_BYTES);
    let app = App {
        expected: Some(bytes.clone()),
        to_send: bytes,
        stopped: true,
        ..App::default()
    };
    let id = world.connect(GIVER, "beta", 7000, app);
    world.run_until("the echo waits at the giver", |world| {
        let served = world.hosts[PEER].apps.values().next();
        served.is_some_and(|app| app.sent == ECHO_BYTES)
    });
    done(&mut world, GIVER, id);
    (world, id)
}

/// The far node was through with the stream while it was held, or when it heard of its new owner, and forgot it before it
/// had said yes: the taker waited for minutes, the giver for ever.
#[test]
fn finished_both_ways_it_moves_to_its_end() {
    let mut moved = 0;
    for seed in 1..60 {
        let (mut world, id) = answered(seed);
        let pause = world.rng.below(3000);
        world.run_for(Duration::from_micros(pause));
        if over(&world, GIVER, id) {
            continue;
        }
        let token = token(&mut world);
        let mut holds = false;
        world.act(GIVER, |node, now| holds = node.hold(now, id, token).is_ok());
        world.run_for(Duration::from_secs(5));
        // The far node may have forgotten it before.
        if !holds || events(&world, GIVER, &Event::Held(id)) == 0 {
            continue;
        }
        let adoption = adoption(&world, GIVER, id, token);
        let new = adopt(&mut world, GIVER, id, TAKER, adoption);
        world.run_until("the taker knows", |world| {
            let app = world.app(TAKER, new);
            app.connected || app.failed.is_some() || app.reset.is_some()
        });
        assert!(world.app(TAKER, new).connected, "seed {seed}");
        world.app_mut(TAKER, new).stopped = false;
        world.act(TAKER, |node, _| node.writable(new));
        finish(&mut world, TAKER, new, ECHO_BYTES);
        assert_quiet(&mut world);
        moved += 1;
    }
    assert!(moved >= 5, "{moved} moved");
}

/// The giver had sent its end and asked the far node to hold the stream, which was through with it by then and
/// forgot it: its not knowing the stream came as a reset behind the giver's bytes.
#[test]
fn through_at_the_far_node_it_stays_and_ends_cleanly() {
    let mut forgotten = 0;
    for seed in 1..120 {
        let (mut world, id) = answered(seed);
        let pause = world.rng.below(1500);
        world.run_for(Duration::from_micros(pause));
        let token = token(&mut world);
        let mut holds = false;
        world.act(GIVER, |node, now| holds = node.hold(now, id, token).is_ok());
        // Asked back at once, or not.
        if seed % 2 == 0 {
            world.act(GIVER, |node, now| node.resume(now, id));
        }
        world.run_for(Duration::from_secs(5));
        if !holds || !world.hosts[PEER].node.as_ref().unwrap().is_quiet() {
            continue;
        }
        assert_eq!(events(&world, GIVER, &Event::HoldBroken(id)), 0);
        assert_eq!(
            events(&world, GIVER, &Event::Resumed(id)),
            1,
            "seed {seed}: nobody holds it"
        );
        world.app_mut(GIVER, id).stopped = false;
        world.act(GIVER, |node, _| node.writable(id));
        finish(&mut world, GIVER, id, ECHO_BYTES);
        assert_quiet(&mut world);
        forgotten += 1;
    }
    assert!(forgotten >= 2, "{forgotten} were forgotten");
}

/// The far node ends while the stream is on its way and the giver's socket is full: the giver's program waits for word of
/// its gift before it reads, and the stream's end waited for the program to read.
#[test]
fn a_broken_move_is_told_before_the_bytes_are_read() {
    for (seed, is_still) in (1..20).zip([true, false].into_iter().cycle()) {
        let mut world = three(seed);
        let bytes = pattern(seed, 5000);
        let app = App {
            expected: Some(bytes.clone()),
            to_send: bytes.clone(),
            stopped: true,
            ..App::default()
        };
        let id = world.connect(GIVER, "beta", 7000, app);
        world.run_until("the echo waits at the giver", |world| {
            let served = world.hosts[PEER].apps.values().next();
            served.is_some_and(|app| app.sent == bytes.len())
        });
        world.run_for(Duration::from_millis(50));
        hold(&mut world, GIVER, id);
        if is_still {
            assert!(wait_held(&mut world, GIVER, id));
        }
        world.act(PEER, |node, now| node.leave(now));
        world.run_until("the giver hears of it", |world| {
            events(world, GIVER, &Event::HoldBroken(id)) == 1
        });
        assert_eq!(world.app(GIVER, id).reset, None);
        world.app_mut(GIVER, id).stopped = false;
        world.act(GIVER, |node, _| node.writable(id));
        world.run_until("the stream is over", |world| {
            world.app(GIVER, id).reset.is_some()
        });
        assert_eq!(world.app(GIVER, id).received, bytes);
        assert!(!world.app(GIVER, id).peer_finished);
    }
}

/// Neither program reads: both windows are used up. The taker inherits what the giver's program never read, and
/// what it had written waits for credit at the taker's.
#[test]
fn with_credit_exhausted_both_ways_it_moves() {
    for seed in SEEDS {
        let mut world = three(seed);
        let length = 2_000_000;
        let app = App {
            stopped: true,
            ..talker(seed, length)
        };
        let id = world.connect(GIVER, "beta", 7002, app);
        world.run_until("it is open", |world| world.app(GIVER, id).connected);
        world.run_until("beta has it", |world| !world.hosts[PEER].apps.is_empty());
        let served = *world.hosts[PEER].apps.keys().next().unwrap();
        world.app_mut(PEER, served).to_send = pattern(seed, length);
        world.act(PEER, |node, _| node.readable(served));
        world.run_for(Duration::from_secs(2));
        let (sent, back) = (world.app(GIVER, id).sent, world.app(PEER, served).sent);
        assert!(sent < length && back < length, "there was credit left");
        let id = move_stream(&mut world, GIVER, id, TAKER);
        world.run_for(Duration::from_secs(1));
        assert_eq!(world.app(TAKER, id).sent, sent, "more than the credit");
        assert_eq!(world.app(PEER, served).sent, back, "more than the credit");
        for (host, id) in [(TAKER, id), (PEER, served)] {
            let app = world.app_mut(host, id);
            app.stopped = false;
            app.finish = true;
            world.act(host, |node, _| node.writable(id));
            world.act(host, |node, _| node.readable(id));
        }
        finish(&mut world, TAKER, id, length);
        world.run_until("beta is through", |world| world.app(PEER, served).closed);
        assert!(world.app(PEER, served).received == pattern(seed, length));
        assert_quiet(&mut world);
    }
}

#[test]
fn a_hold_that_is_taken_back_changes_nothing() {
    for seed in SEEDS {
        let mut world = three(seed);
        let length = 3_000_000;
        let id = world.connect(GIVER, "beta", 7000, open_talker(seed, length));
        world.run_until("it is open", |world| world.app(GIVER, id).connected);
        for round in 0..10 {
            let pause = world.rng.below(1_000);
            world.run_for(Duration::from_micros(pause));
            hold(&mut world, GIVER, id);
            // At once, while it is under way, or when the stream is still.
            match round % 3 {
                0 => {}
                1 => world.run_for(Duration::from_micros(300)),
                _ => assert!(wait_held(&mut world, GIVER, id)),
            }
            world.act(GIVER, |node, now| node.resume(now, id));
            world.run_until("it has resumed", |world| {
                events(world, GIVER, &Event::Resumed(id)) == round + 1
            });
        }
        done(&mut world, GIVER, id);
        finish(&mut world, GIVER, id, length);
        assert_quiet(&mut world);
    }
}

/// The giver takes the stream back while the taker's word is under way: the far node decides, and both givers
/// and takers learn the same.
#[test]
fn taking_back_and_adopting_race_and_one_of_them_has_the_stream() {
    let mut outcomes = [0, 0];
    for seed in 1..40 {
        let mut world = three(seed);
        let length = 500_000;
        let id = world.connect(GIVER, "beta", 7000, talker(seed, length));
        world.run_until("it is open", |world| world.app(GIVER, id).connected);
        let token = hold(&mut world, GIVER, id);
        assert!(wait_held(&mut world, GIVER, id));
        let adoption = adoption(&world, GIVER, id, token);
        let pause = world.rng.below(30_000);
        let new = adopt(&mut world, GIVER, id, TAKER, adoption);
        world.run_for(Duration::from_micros(pause));
        world.act(GIVER, |node, now| node.resume(now, id));
        world.run_until("both know", |world| {
            let taker = world.app(TAKER, new);
            let resumed = events(world, GIVER, &Event::Resumed(id)) == 1;
            let moved = events(world, GIVER, &Event::Moved(id)) == 1;
            assert!(!(resumed && taker.connected), "two owners");
            assert!(!(moved && taker.failed.is_some()), "no owner");
            (resumed || moved) && (taker.connected || taker.failed.is_some())
        });
        let moved = events(&world, GIVER, &Event::Moved(id)) == 1;
        outcomes[usize::from(moved)] += 1;
        let (host, id) = if moved {
            (TAKER, new)
        } else {
            let app = std::mem::take(world.app_mut(TAKER, new));
            assert_eq!(app.failed, Some(ConnectError::Reset(ResetReason::NotHeld)));
            let connected = true;
            *world.app_mut(GIVER, id) = App {
                connected,
                failed: None,
                ..app
            };
            world.act(GIVER, |node, _| node.readable(id));
            world.act(GIVER, |node, _| node.writable(id));
            (GIVER, id)
        };
        finish(&mut world, host, id, length);
        assert_quiet(&mut world);
    }
    assert!(outcomes.iter().all(|count| *count > 0), "{outcomes:?}");
}

/// Both ends are given away at the same moment: the end that opened the stream goes first, the other then.
#[test]
fn both_ends_move_at_once() {
    for seed in SEEDS {
        let mut world = three(seed);
        let length = 1_000_000;
        let client = world.connect(GIVER, "beta", 7000, talker(seed, length));
        world.run_until("bytes have come", |world| {
            !world.app(GIVER, client).received.is_empty()
        });
        let server = *world.hosts[PEER].apps.keys().next().unwrap();
        let first = hold(&mut world, GIVER, client);
        let second = token(&mut world);
        world.act(PEER, |node, now| node.hold(now, server, second).unwrap());
        world.run_until("one gave way", |world| {
            events(world, PEER, &Event::HoldLost(server)) == 1
                && events(world, GIVER, &Event::Held(client)) == 1
        });
        assert_eq!(events(&world, PEER, &Event::Held(server)), 0);
        world.act(PEER, |node, now| {
            assert_eq!(node.hold(now, server, second), Err(HoldError::Busy));
        });
        let adoption = adoption(&world, GIVER, client, first);
        let client = adopt(&mut world, GIVER, client, TAKER, adoption);
        world.run_until("it has moved", |world| world.app(TAKER, client).connected);
        // Now the other end, to where the first one came from.
        let server = move_stream(&mut world, PEER, server, GIVER);
        finish(&mut world, TAKER, client, length);
        world.run_until("the server is through", |world| {
            world.app(GIVER, server).closed
        });
        assert_quiet(&mut world);
    }
}

/// Who dies, and after which step.
#[test]
fn whoever_dies_at_whichever_step_the_stream_has_one_owner_or_is_reset() {
    for seed in 1..5 {
        for dead in [GIVER, PEER, TAKER] {
            for step in 0..5 {
                deaths(seed, dead, step);
            }
        }
    }
}

fn deaths(seed: u64, dead: usize, step: u32) {
    println!("host {dead} dies after step {step}");
    let mut world = three(seed);
    let length = 1_000_000;
    let id = world.connect(GIVER, "beta", 7000, open_talker(seed, length));
    world.run_until("bytes have come", |world| {
        !world.app(GIVER, id).received.is_empty()
    });
    let served = *world.hosts[PEER].apps.keys().next().unwrap();
    let kill_after = |world: &mut World, now: u32| {
        if now == step {
            world.kill(dead);
        }
        now >= step
    };
    let token = hold(&mut world, GIVER, id);
    let mut new = None;
    // 0: the hold frame is under way. 1: the stream is still. 2: the adopt frame is under way. 3: the far
    // node may have decided. 4: the taker knows.
    if !kill_after(&mut world, 0) && wait_held(&mut world, GIVER, id) {
        let adoption = adoption(&world, GIVER, id, token);
        if !kill_after(&mut world, 1) {
            let to = adopt(&mut world, GIVER, id, TAKER, adoption);
            new = Some(to);
            if !kill_after(&mut world, 2) {
                let pause = world.rng.below(30_000);
                world.run_for(Duration::from_micros(pause));
                if !kill_after(&mut world, 3) {
                    world.run_until("it has moved", |world| world.app(TAKER, to).connected);
                    kill_after(&mut world, 4);
                }
            }
        }
    }
    // As an engine does: a giver whose taker is gone wants the stream back.
    if dead == TAKER {
        world.act(GIVER, |node, now| node.resume(now, id));
    }
    let settled = |world: &World| {
        let giver = dead != GIVER && !over(world, GIVER, id);
        let taker = dead != TAKER && new.is_some_and(|new| !over(world, TAKER, new));
        let undecided = giver && world.hosts[GIVER].node.as_ref().unwrap().is_giving(id);
        let opening = taker && !world.app(TAKER, new.unwrap()).connected;
        let owners = usize::from(giver && !undecided) + usize::from(taker && !opening);
        assert!(owners < 2, "two owners");
        !undecided && !opening
    };
    world.run_until("it is settled", settled);
    if dead == PEER {
        // Nobody is left to talk to. What had come is still read.
        world.app_mut(GIVER, id).stopped = false;
        world.act(GIVER, |node, _| node.writable(id));
        assert_quiet(&mut world);
        return;
    }
    // Whoever has it goes on to the end, or the far end was reset.
    let moved = new.filter(|new| dead != TAKER && !over(&world, TAKER, *new));
    if let Some(new) = moved {
        done(&mut world, TAKER, new);
        finish(&mut world, TAKER, new, length);
    } else if dead == TAKER && !over(&world, GIVER, id) {
        if let Some(new) = new {
            let app = world.hosts[TAKER].apps.remove(&new);
            assert!(app.is_none(), "the dead have no programs");
            // The giver's program goes on from its own copy.
            let taken = world.hosts[GIVER]
                .node
                .as_ref()
                .unwrap()
                .stream(id)
                .unwrap();
            let app = App {
                connected: true,
                sent: taken.sent_bytes as usize,
                received: pattern(seed, length)[..taken.received_bytes as usize].to_vec(),
                ..open_talker(seed, length)
            };
            *world.app_mut(GIVER, id) = app;
            world.act(GIVER, |node, _| node.readable(id));
            world.act(GIVER, |node, _| node.writable(id));
        }
        done(&mut world, GIVER, id);
        finish(&mut world, GIVER, id, length);
    } else {
        world.run_until("the far end learns it", |world| {
            let app = world.app(PEER, served);
            assert!(!app.peer_finished, "a death looked like an end");
            app.reset.is_some()
        });
    }
    assert_quiet(&mut world);
}

/// What no node writes, or what comes from nobody's taker, changes nothing.
#[test]
fn a_stranger_cannot_adopt() {
    for seed in SEEDS {
        let mut world = three(seed);
        let length = 300_000;
        let id = world.connect(GIVER, "beta", 7000, talker(seed, length));
        world.run_until("it is open", |world| world.app(GIVER, id).connected);
        let right = hold(&mut world, GIVER, id);
        assert!(wait_held(&mut world, GIVER, id));
        let good = adoption(&world, GIVER, id, right);
        let key = StreamKey {
            number: 9999,
            ..good.stream.key
        };
        let other = Stillness {
            key,
            ..good.stream.clone()
        };
        let wrong = [
            Adoption {
                stream: other,
                ..good.clone()
            },
            Adoption {
                token: MoveToken([0; 16]),
                ..good.clone()
            },
            Adoption {
                giver: SeatId(3),
                ..good.clone()
            },
            Adoption {
                giver: SeatId(u16::MAX),
                ..good.clone()
            },
            Adoption {
                giver_incarnation: Incarnation(99),
                ..good.clone()
            },
        ];
        for wrong in wrong {
            let mut new = None;
            world.act(TAKER, |node, now| {
                new = Some(node.adopt(now, wrong).unwrap())
            });
            let new = new.unwrap();
            world.hosts[TAKER].apps.insert(new, App::default());
            world.run_until("it is refused", |world| {
                world.app(TAKER, new).failed.is_some()
            });
            let why = Some(ConnectError::Reset(ResetReason::NotHeld));
            assert_eq!(world.app(TAKER, new).failed, why);
        }
        let gone = Stillness {
            incarnation: Incarnation(99),
            ..good.stream.clone()
        };
        world.act(TAKER, |node, now| {
            let adoption = Adoption {
                stream: gone,
                ..good.clone()
            };
            assert_eq!(node.adopt(now, adoption), Err(ConnectError::SystemDead));
        });
        // What the far node may send the taker must hold.
        let greedy = Adoption {
            stream: Stillness {
                credit: good.stream.received + (1 << 40),
                ..good.stream.clone()
            },
            ..good.clone()
        };
        world.act(TAKER, |node, now| {
            let refused = Err(ConnectError::Reset(ResetReason::Protocol));
            assert_eq!(node.adopt(now, greedy), refused);
        });
        let new = adopt(&mut world, GIVER, id, TAKER, good);
        world.run_until("it has moved", |world| world.app(TAKER, new).connected);
        finish(&mut world, TAKER, new, length);
    }
}

/// Positions that do not agree would lose or double bytes: the stream is reset at all three.
#[test]
fn positions_that_disagree_reset_the_stream() {
    let mut world = three(3);
    // Nothing comes back: the giver's program, which is stopped, would have to take it before it learns of a reset.
    let id = world.connect(GIVER, "beta", 7001, talker(3, 300_000));
    world.run_until("it is open", |world| world.app(GIVER, id).connected);
    let token = hold(&mut world, GIVER, id);
    assert!(wait_held(&mut world, GIVER, id));
    let mut wrong = adoption(&world, GIVER, id, token);
    wrong.stream.sent += 1;
    let new = adopt(&mut world, GIVER, id, TAKER, wrong);
    let served = *world.hosts[PEER].apps.keys().next().unwrap();
    world.run_until("all know", |world| {
        world.app(TAKER, new).failed.is_some()
            && world.app(PEER, served).reset.is_some()
            && world.app(GIVER, id).reset.is_some()
    });
    assert_quiet(&mut world);
}

/// A node of the first release knows nothing of moving and would end the session with whoever asks.
#[test]
fn an_older_far_node_is_never_asked() {
    let mut world = three(5);
    let id = world.connect(GIVER, "beta", 7000, talker(5, 10));
    world.run_until("it is open", |world| world.app(GIVER, id).connected);
    let seat = world.hosts[PEER].node.as_ref().unwrap().seat();
    world.hosts[PEER].frozen = true;
    for copy in 0..2 {
        let place = Place::Seat { seat, copy };
        let units = usize::from(world.geometry.record_units);
        let at = world.geometry.offset(place, units).unwrap() as usize;
        let bytes = at..at + units * stp_format::UNIT_BYTES;
        let volume = world.hosts[PEER].config.volume;
        let found = &world.store[bytes.clone()];
        let mut record = SeatRecord::decode(found, volume, &world.geometry, seat).unwrap();
        record.record_version += 10;
        record.moves = false;
        let bytes_now = record.encode(&world.geometry);
        world.store[bytes].copy_from_slice(bytes_now.bytes());
    }
    world.run_for(Duration::from_millis(200));
    let token = token(&mut world);
    world.act(GIVER, |node, now| {
        let beta = "beta".parse().unwrap();
        assert_eq!(node.hold(now, id, token), Err(HoldError::OldPeer(beta)));
        assert_eq!(node.connect_service(now, seat), Err(ConnectError::Refused));
    });
    world.hosts[PEER].frozen = false;
}

#[test]
fn engines_talk_over_the_service_port() {
    let mut world = three(6);
    let seat = world.hosts[PEER].node.as_ref().unwrap().seat();
    let mut id = None;
    world.act(GIVER, |node, now| {
        id = Some(node.connect_service(now, seat).unwrap())
    });
    let id = id.unwrap();
    world.hosts[GIVER].apps.insert(id, talker(6, 100_000));
    world.hosts[PEER].serve = |port| {
        assert_eq!(port, SERVICE_PORT);
        Some(App {
            echo: true,
            ..App::default()
        })
    };
    finish(&mut world, GIVER, id, 100_000);
    assert_quiet(&mut world);
}
