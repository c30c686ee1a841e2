//! Streams between nodes on a volume in memory: opening, data, credit, ends, faults, deaths. Each test runs
//! over several seeds, that is, over several orders in which operations land and end.

mod world;

use std::time::Duration;
use stp_core::*;
use stp_format::{Place, SeatRecord, UNIT_BYTES, VolumeId};
use world::{App, Faults, VOLUME, World, pattern};

/// As long as a segment of these worlds can be.
const SEGMENT_BYTES: usize = 256 << 10;
const SEEDS: std::ops::Range<u64> = 1..9;

fn two(seed: u64) -> World {
    let mut world = World::new(seed, 4, 8 << 20);
    world.add("alpha", true);
    world.add("beta", true);
    world.ready();
    world.hosts[1].serve = |_| {
        Some(App {
            echo: true,
            ..App::default()
        })
    };
    world.listen(1, 7000);
    world
}

fn sender(seed: u64, length: usize) -> App {
    let bytes = pattern(seed, length);
    App {
        expected: Some(bytes.clone()),
        to_send: bytes,
        finish: true,
        ..App::default()
    }
}

/// A stream from alpha to beta that has carried a thousand bytes there and back, and stays open.
fn echoed(seed: u64) -> (World, StreamId) {
    let mut world = two(seed);
    let mut app = sender(seed, 1000);
    app.finish = false;
    let id = world.connect(0, "beta", 7000, app);
    world.run_until("the echo is here", |world| {
        world.app(0, id).received.len() == 1000
    });
    (world, id)
}

fn assert_quiet(world: &mut World) {
    world.run_until("nothing is left of any stream", |world| {
        world
            .hosts
            .iter()
            .flat_map(|host| &host.node)
            .all(Node::is_quiet)
    });
}

#[test]
fn an_echo_comes_back_whole_and_both_ends_close() {
    for seed in SEEDS {
        let mut world = two(seed);
        let lengths = [0, 1, 100, 5000, 300_000, 3_000_000];
        let ids: Vec<_> = lengths
            .iter()
            .map(|length| world.connect(0, "beta", 7000, sender(seed, *length)))
            .collect();
        world.run_until("all echoes are closed", |world| {
            ids.iter().all(|id| world.app(0, *id).closed)
        });
        for (id, length) in ids.iter().zip(lengths) {
            let app = world.app(0, *id);
            assert_eq!(app.received.len(), length);
            assert!(app.peer_finished && app.reset.is_none());
        }
        assert_quiet(&mut world);
    }
}

/// A program that writes past its socket is not held up by each segment: some are full before they can be written.
#[test]
fn what_is_written_past_the_socket_runs_ahead_of_the_storage_and_arrives_in_order() {
    for seed in SEEDS {
        let mut world = two(seed);
        world.hosts[1].serve = |_| Some(App::default());
        let id = world.connect(0, "beta", 7000, App::default());
        world.run_until("the stream is open", |world| world.app(0, id).connected);
        if seed % 2 == 0 {
            world.faults.write_errors = 20;
            world.faults.lost_writes = 5;
        }
        let bytes = pattern(seed, 6_000_000);
        let (mut written, mut most) = (0, 0);
        while written < bytes.len() {
            world.act(0, |node, now| {
                let count = node.put(now, id, &bytes[written..]);
                (written, most) = (written + count, most.max(count));
            });
            world.step();
        }
        world.faults = Faults::default();
        // Two full segments and the one that is being filled.
        assert!(most > SEGMENT_BYTES, "{most} bytes at once");
        assert!(most <= 3 * SEGMENT_BYTES, "{most} bytes at once");
        let received = |world: &World| world.hosts[1].apps.values().next().unwrap().received.len();
        world.run_until("all is there", |world| received(world) == bytes.len());
        let app = world.hosts[1].apps.values().next().unwrap();
        assert!(app.received == bytes);
    }
}

#[test]
fn urgent_bytes_keep_their_place_and_arrive_as_urgent() {
    for seed in SEEDS {
        let mut world = two(seed);
        world.hosts[1].serve = |_| Some(App::default());
        let bytes = pattern(seed, 700_000);
        // Far apart: one that comes before the last was taken stands for both, as with TCP.
        let urgent = vec![0, 1000, 350_000, bytes.len() - 1];
        let app = App {
            to_send: bytes.clone(),
            urgent: urgent.clone(),
            finish: true,
            ..App::default()
        };
        let id = world.connect(0, "beta", 7000, app);
        world.run_until("everything is there", |world| {
            let mut apps = world.hosts[1].apps.values();
            apps.next().is_some_and(|app| app.peer_finished)
        });
        let received = world.hosts[1].apps.values().next().unwrap();
        assert!(received.received == bytes);
        // Every one that was told is one; the last always is.
        let told = &received.urgent_received;
        assert!(told.iter().all(|at| urgent.contains(at)), "{told:?}");
        assert_eq!(told.last(), urgent.last());
        assert!(world.app(0, id).reset.is_none());
    }
}

#[test]
fn an_urgent_byte_that_waits_for_its_program_is_urgent_when_it_is_taken() {
    for seed in SEEDS {
        let mut world = two(seed);
        world.hosts[1].serve = |_| {
            Some(App {
                stopped: true,
                ..App::default()
            })
        };
        let app = App {
            to_send: pattern(seed, 5000),
            urgent: vec![4321],
            finish: true,
            ..App::default()
        };
        let id = world.connect(0, "beta", 7000, app);
        world.run_until("all is sent", |world| world.app(0, id).finished);
        world.run_for(Duration::from_millis(200));
        let (far, _) = world.hosts[1].apps.first_key_value().unwrap();
        let far = *far;
        world.app_mut(1, far).stopped = false;
        world.act(1, |node, _| node.writable(far));
        world.run_until("all is there", |world| world.app(1, far).peer_finished);
        let app = world.app(1, far);
        assert_eq!(app.received, pattern(seed, 5000));
        assert_eq!(app.urgent_received, [4321]);
    }
}

#[test]
fn a_storage_that_errs_and_loses_writes_delays_and_does_not_harm() {
    for seed in SEEDS {
        let mut world = two(seed);
        world.faults = Faults {
            write_errors: 5,
            read_errors: 5,
            lost_writes: 3,
            partial_writes: 5,
            ..Faults::default()
        };
        let ids: Vec<_> = (0..10)
            .map(|n| world.connect(0, "beta", 7000, sender(seed + n, 200_000)))
            .collect();
        world.run_until("all echoes are closed", |world| {
            ids.iter().all(|id| world.app(0, *id).closed)
        });
        for id in &ids {
            let app = world.app(0, *id);
            assert_eq!(app.received.len(), 200_000);
            assert!(app.reset.is_none());
        }
        assert_quiet(&mut world);
    }
}

#[test]
fn two_thousand_streams_share_a_link() {
    let mut world = World::new(3, 2, 64 << 20);
    world.add("alpha", true);
    world.add("beta", true);
    world.ready();
    world.hosts[1].serve = |_| {
        Some(App {
            echo: true,
            ..App::default()
        })
    };
    world.listen(1, 7000);
    let ids: Vec<_> = (0..2000)
        .map(|n| world.connect(0, "beta", 7000, sender(n, 2000)))
        .collect();
    world.run_until("all echoes are closed", |world| {
        ids.iter().all(|id| world.app(0, *id).closed)
    });
    assert!(
        ids.iter()
            .all(|id| world.app(0, *id).received.len() == 2000)
    );
    assert_quiet(&mut world);
}

#[test]
fn refused_unknown_and_departed_are_told_apart() {
    let mut world = two(1);
    let refused = world.connect(0, "beta", 7001, App::default());
    let unknown = world.connect(0, "gamma", 7000, App::default());
    world.run_until("both have failed", |world| {
        [refused, unknown]
            .iter()
            .all(|id| world.app(0, *id).failed.is_some())
    });
    assert_eq!(world.app(0, refused).failed, Some(ConnectError::Refused));
    assert_eq!(
        world.app(0, unknown).failed,
        Some(ConnectError::UnknownSystem)
    );
    world.act(1, Node::leave);
    world.run_until("beta has left", |world| {
        world.hosts[1].events.contains(&Event::Left)
    });
    let departed = world.connect(0, "beta", 7000, App::default());
    world.run_until("it has failed", |world| {
        world.app(0, departed).failed.is_some()
    });
    assert_eq!(
        world.app(0, departed).failed,
        Some(ConnectError::SystemDead)
    );
    assert_quiet(&mut world);
}

#[test]
fn a_slow_reader_stalls_only_itself() {
    for seed in SEEDS {
        let mut world = two(seed);
        world.hosts[1].serve = |port| {
            Some(App {
                echo: port == 7000,
                stopped: port == 7001,
                ..App::default()
            })
        };
        world.listen(1, 7001);
        let slow = world.connect(0, "beta", 7001, sender(seed, 5_000_000));
        world.run_for(Duration::from_secs(2));
        let fast = world.connect(0, "beta", 7000, sender(seed, 1_000_000));
        world.run_until("the fast one is through", |world| world.app(0, fast).closed);
        let sent = world.app(0, slow).sent;
        assert!(
            sent <= 1 << 20,
            "{sent} bytes were sent to a program that reads nothing"
        );
        // It wakes up: every byte is there.
        let id = *world.hosts[1]
            .apps
            .iter()
            .find(|(_, app)| app.stopped)
            .unwrap()
            .0;
        let app = world.app_mut(1, id);
        app.stopped = false;
        app.echo = true;
        world.act(1, |node, _| node.writable(id));
        world.run_until("the slow one is through", |world| world.app(0, slow).closed);
        assert_eq!(world.app(0, slow).received.len(), 5_000_000);
        assert_quiet(&mut world);
    }
}

#[test]
fn a_reset_arrives_behind_the_bytes_before_it() {
    for seed in SEEDS {
        let mut world = two(seed);
        world.hosts[1].serve = |_| {
            Some(App {
                to_send: pattern(5, 100_000),
                ..App::default()
            })
        };
        let app = App {
            expected: Some(pattern(5, 100_000)),
            ..App::default()
        };
        let id = world.connect(0, "beta", 7000, app);
        world.run_until("all is sent", |world| {
            world.hosts[1].apps.values().any(|app| app.sent == 100_000)
        });
        let there = *world.hosts[1].apps.keys().next().unwrap();
        world.act(1, |node, now| {
            node.reset(now, there, ResetReason::ProgramDied)
        });
        world.run_until("it is reset", |world| world.app(0, id).reset.is_some());
        assert_eq!(world.app(0, id).reset, Some(ResetReason::ProgramDied));
        assert_eq!(world.app(0, id).received.len(), 100_000);
        assert_quiet(&mut world);
    }
}

#[test]
fn a_killed_node_resets_its_streams_when_it_comes_back() {
    for seed in SEEDS {
        let (mut world, id) = echoed(seed);
        world.kill(1);
        world.run_for(Duration::from_secs(10));
        assert!(
            world.app(0, id).reset.is_none(),
            "a silence of ten seconds resets nothing"
        );
        world.start(1);
        world.run_until("it is reset", |world| world.app(0, id).reset.is_some());
        assert_eq!(world.app(0, id).reset, Some(ResetReason::PeerDied));
        world.hosts[1].events.clear();
        world.listen(1, 7000);
        let again = world.connect(0, "beta", 7000, sender(seed, 50_000));
        world.run_until("a new stream works", |world| world.app(0, again).closed);
        assert_eq!(world.app(0, again).received.len(), 50_000);
        assert_quiet(&mut world);
    }
}

#[test]
fn a_dead_node_is_given_up_after_its_own_time_and_recognised_if_it_was_only_frozen() {
    for seed in SEEDS {
        let (mut world, id) = echoed(seed);
        let there = *world.hosts[1].apps.keys().next().unwrap();
        world.hosts[1].frozen = true;
        let since = world.now;
        world.run_until("it is reset", |world| world.app(0, id).reset.is_some());
        let silence = Duration::from_nanos(world.now - since);
        assert!(
            silence >= Duration::from_secs(59),
            "reset after {silence:?}"
        );
        world.hosts[1].frozen = false;
        world.run_until("the zombie knows", |world| {
            world.app(1, there).reset.is_some()
        });
        let again = world.connect(0, "beta", 7000, sender(seed, 50_000));
        world.run_until("a new stream works", |world| world.app(0, again).closed);
        assert_eq!(world.app(0, again).received.len(), 50_000);
        assert_quiet(&mut world);
    }
}

#[test]
fn a_freeze_or_a_stall_below_the_limit_loses_nothing() {
    for seed in SEEDS {
        let mut world = two(seed);
        let id = world.connect(0, "beta", 7000, sender(seed, 3_000_000));
        world.run_until("bytes flow", |world| {
            world.app(0, id).received.len() > 500_000
        });
        world.hosts[1].frozen = true;
        world.run_for(Duration::from_secs(15));
        world.hosts[1].frozen = false;
        world.run_until("bytes flow", |world| {
            world.app(0, id).received.len() > 1_000_000
        });
        world.stalled_until = world.now + Duration::from_secs(90).as_nanos() as u64;
        world.run_until("the echo is closed", |world| world.app(0, id).closed);
        assert_eq!(world.app(0, id).received.len(), 3_000_000);
        assert!(world.app(0, id).reset.is_none());
        assert_quiet(&mut world);
    }
}

#[test]
fn an_idle_node_costs_few_looks_and_one_heartbeat_and_still_answers() {
    let mut world = two(1);
    let ids: Vec<_> = (0..500)
        .map(|n| {
            let mut app = sender(n, 10);
            app.finish = false;
            world.connect(0, "beta", 7000, app)
        })
        .collect();
    world.run_until("all are open", |world| {
        ids.iter().all(|id| world.app(0, *id).received.len() == 10)
    });
    world.run_for(Duration::from_secs(5));
    let before = world.hosts[0].node.as_ref().unwrap().stats();
    world.run_for(Duration::from_secs(10));
    let after = world.hosts[0].node.as_ref().unwrap().stats();
    assert!(
        after.reads - before.reads <= 220,
        "{} reads",
        after.reads - before.reads
    );
    assert!(
        after.writes - before.writes <= 15,
        "{} writes",
        after.writes - before.writes
    );
    // The peer is as idle: it looks within 50 ms, and more often from then on.
    let asked_at = world.now;
    let id = world.connect(0, "beta", 7000, sender(501, 10));
    world.run_until("it is answered", |world| {
        world.app(0, id).received.len() == 10
    });
    let waited = Duration::from_nanos(world.now - asked_at);
    assert!(waited < Duration::from_millis(100), "{waited:?}");
    let before = world.hosts[1].node.as_ref().unwrap().stats();
    world.run_for(Duration::from_secs(1));
    let after = world.hosts[1].node.as_ref().unwrap().stats();
    assert!(after.reads - before.reads >= 45);
}

#[test]
fn claims_without_locks_never_give_a_seat_twice() {
    for seed in 1..60 {
        let mut world = World::new(seed, 3, 4 << 20);
        for system in ["alpha", "beta", "gamma", "delta"] {
            world.add(system, false);
        }
        for host in 0..4 {
            world.start(host);
        }
        world.run_until("three have a seat and one has none", |world| {
            world
                .hosts
                .iter()
                .filter(|host| host.node.is_some())
                .count()
                == 3
                && world.hosts.iter().any(|host| host.claim_error.is_some())
        });
        let mut seats: Vec<_> = world
            .hosts
            .iter()
            .flat_map(|host| &host.node)
            .map(|node| node.seat())
            .collect();
        seats.sort();
        seats.dedup();
        assert_eq!(seats.len(), 3);
        world.run_for(Duration::from_secs(5));
        let fenced = world.hosts.iter().flat_map(|host| &host.events);
        assert_eq!(
            fenced
                .filter(|event| matches!(event, Event::Fenced(_)))
                .count(),
            0
        );
    }
}

#[test]
fn a_second_host_of_the_same_name_is_refused() {
    let mut world = two(2);
    let twin = world.add("beta", true);
    world.start(twin);
    world.run_until("the twin is refused", |world| {
        world.hosts[twin].claim_error.is_some()
    });
    assert!(matches!(
        world.hosts[twin].claim_error,
        Some(ClaimError::SystemNameTaken { .. })
    ));
}

#[test]
fn a_node_whose_seat_is_taken_over_stops_at_once() {
    let mut world = two(4);
    let id = world.connect(0, "beta", 7000, App::default());
    world.run_until("it is open", |world| world.app(0, id).connected);
    // A clone of the host: same identity, and locks that do not know of each other.
    world.hosts[1].frozen = true;
    let clone = world.add("beta", false);
    world.hosts[clone].config.host = world.hosts[1].config.host;
    world.start(clone);
    world.run_until("the clone sits", |world| world.hosts[clone].node.is_some());
    world.run_for(Duration::from_secs(1));
    world.hosts[1].frozen = false;
    world.run_until("the old one is fenced", |world| {
        world.hosts[1]
            .events
            .iter()
            .any(|event| matches!(event, Event::Fenced(_)))
    });
    assert!(
        world.hosts[1]
            .node
            .as_ref()
            .unwrap()
            .poll_timeout()
            .is_none()
    );
    world.run_until("the peer is reset", |world| {
        world.app(0, id).reset.is_some()
    });
}

#[test]
fn a_silent_seat_is_taken_and_a_live_one_beyond_the_locks_is_not() {
    let mut world = World::new(6, 2, 4 << 20);
    world.add("alpha", false);
    world.add("beta", true);
    world.ready();
    let seat = world.hosts[1].node.as_ref().unwrap().seat();
    let gamma = world.add("gamma", true);
    world.start(gamma);
    world.run_until("gamma has its answer", |world| {
        world.hosts[gamma].claim_error.is_some() || world.hosts[gamma].node.is_some()
    });
    assert_eq!(
        world.hosts[gamma].claim_error,
        Some(ClaimError::NoFreeSeat(2))
    );
    world.kill(1);
    world.start(gamma);
    world.run_until("gamma sits", |world| world.hosts[gamma].node.is_some());
    assert_eq!(world.hosts[gamma].node.as_ref().unwrap().seat(), seat);
    world.run_for(Duration::from_secs(5));
    let fenced = world.hosts[0].events.iter();
    assert_eq!(
        fenced
            .filter(|event| matches!(event, Event::Fenced(_)))
            .count(),
        0
    );
}

#[test]
fn a_node_given_up_before_it_saw_its_peers_first_session_is_heard_again() {
    let mut world = two(8);
    let id = world.connect(0, "beta", 7000, App::default());
    world.run_until("beta is asked", |world| {
        let asked = |event: &Event| matches!(event, Event::Incoming { .. });
        world.hosts[1].events.iter().any(asked)
    });
    // Alpha has not seen the answer, nor the session that carries it.
    world.hosts[0].frozen = true;
    world.run_until("beta gives alpha up", |world| {
        let gone = |event: &Event| matches!(event, Event::PeerGone(..));
        world.hosts[1].events.iter().any(gone)
    });
    world.run_for(Duration::from_secs(2));
    world.hosts[0].frozen = false;
    world.run_until("alpha learns that it was given up", |world| {
        let app = world.app(0, id);
        app.reset.is_some() || app.failed.is_some()
    });
    let again = world.connect(0, "beta", 7000, sender(8, 5000));
    world.run_until("a new stream gets through", |world| {
        world.app(0, again).closed
    });
    assert!(world.app(0, again).reset.is_none());
}

#[test]
fn a_dead_namesake_is_no_second_host_of_that_name() {
    // Either copy of the record may be the newer one.
    for lived in 0..4 {
        let mut world = two(3);
        world.run_for(Duration::from_secs(lived));
        world.kill(1);
        let heir = world.add("beta", true);
        world.start(heir);
        world.run_until("the heir sits", |world| world.hosts[heir].node.is_some());
        world.run_for(Duration::from_secs(5));
        let twice = |event: &Event| matches!(event, Event::NameTwice(_));
        assert!(!world.hosts[heir].events.iter().any(twice), "{lived}");
    }
}

/// What a node wrote before it died is handed over, however long reading it takes.
#[test]
fn a_killed_nodes_last_segment_is_read_although_reading_takes_longer_than_looking() {
    for seed in SEEDS {
        let (mut world, id) = echoed(seed);
        world.faults.long_reads = 20_000_000;
        let last = pattern(seed + 100, 100_000);
        let app = world.app_mut(0, id);
        let said = [app.expected.take().unwrap(), last.clone()].concat();
        app.expected = Some(said);
        let there = *world.hosts[1].apps.keys().next().unwrap();
        // Alpha sees the new life and the segment at the same look.
        world.hosts[0].frozen = true;
        world.app_mut(1, there).to_send.extend_from_slice(&last);
        world.act(1, |node, _| node.readable(there));
        world.run_for(Duration::from_millis(50));
        assert_eq!(world.app(1, there).sent, 101_000, "one segment");
        world.kill(1);
        world.start(1);
        world.run_until("beta lives again", |world| world.hosts[1].node.is_some());
        world.run_for(Duration::from_secs(2));
        world.hosts[0].frozen = false;
        world.run_until("it is reset", |world| world.app(0, id).reset.is_some());
        assert_eq!(world.app(0, id).received.len(), 101_000);
    }
}

#[test]
fn a_node_under_which_the_volume_was_formatted_anew_stops() {
    let mut world = two(5);
    let id = world.connect(0, "beta", 7000, App::default());
    world.run_until("it is open", |world| world.app(0, id).connected);
    let seat = world.hosts[0].node.as_ref().unwrap().seat();
    // What a node of the new volume writes into the same seat.
    let geometry = world.geometry;
    let place = Place::Seat { seat, copy: 0 };
    let units = usize::from(geometry.record_units);
    let at = geometry.offset(place, units).unwrap() as usize;
    let here = at..at + units * UNIT_BYTES;
    let mut record =
        SeatRecord::decode(&world.store[here.clone()], VOLUME, &geometry, seat).unwrap();
    record.volume = VolumeId([10; 16]);
    let foreign = record.encode(&geometry);
    world.store[here.clone()].copy_from_slice(foreign.bytes());
    // Once may be a read that went astray; this one stays until it is written over.
    world.run_for(Duration::from_millis(30));
    assert!(!world.hosts[0].events.contains(&Event::Reformatted));
    for _ in 0..100 {
        world.store[here.clone()].copy_from_slice(foreign.bytes());
        world.run_for(Duration::from_millis(20));
    }
    assert!(world.hosts[0].events.contains(&Event::Reformatted));
    assert_eq!(world.app(0, id).reset, Some(ResetReason::Fenced));
}
