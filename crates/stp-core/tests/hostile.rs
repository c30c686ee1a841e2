//! A peer that lies, in all the ways that a seat gives it. Whatever it writes: no panic, the stream or the peer
//! pays for it and the log hears of it, and a third node's stream with the victim goes on as if nothing were.

#[path = "world/hostile_peer.rs"]
mod hostile_peer;
mod world;

use hostile_peer::{FIRST_FRAME, Mallory, frame, mine, open, yours};
use std::time::Duration;
use stp_core::*;
use stp_format::segment::StreamKey;
use stp_format::*;
use world::{App, World, pattern};

/// The most that the honest stream carries.
const HONEST_BYTES: usize = 8 << 20;
const MALLORY: SeatId = SeatId(3);

/// What the victim is to say.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Told {
    Nothing,
    /// A stream was reset.
    Stream,
    /// The peer was cut off, or reported.
    Peer,
}

/// alpha streams to beta and back all the while; Mallory attacks beta.
fn siege(attack: impl Fn(&mut Mallory, &mut World), told: Told) -> World {
    let mut world = World::new(1, 4, 8 << 20);
    world.add("alpha", true);
    world.add("beta", true);
    world.ready();
    for host in 0..2 {
        world.hosts[host].serve = |_| {
            Some(App {
                echo: true,
                ..App::default()
            })
        };
        world.listen(host, 7000);
    }
    let bytes = pattern(5, HONEST_BYTES);
    let honest = App {
        to_send: bytes[..200_000].to_vec(),
        expected: Some(bytes),
        ..App::default()
    };
    let id = world.connect(0, "beta", 7000, honest);
    world.run_until("the honest stream runs", |world| {
        world.app(0, id).received.len() > 100_000
    });
    let mut mallory = Mallory::enter(&mut world, MALLORY.0, 1);
    mallory.honest = Some(id);
    attack(&mut mallory, &mut world);
    mallory.wait(&mut world, 3000);
    for host in &world.hosts {
        let node = host.node.as_ref().expect("an honest node is gone");
        assert_eq!(node.load().exceeds(&node.load_max()), None);
    }
    let events = &world.hosts[1].events;
    let said = |event: &&Event| match event {
        Event::StreamBroken(seat, ..) => *seat == MALLORY && told == Told::Stream,
        Event::PeerBroken(seat, _) => *seat == MALLORY && told == Told::Peer,
        _ => false,
    };
    let broken = |event: &&Event| {
        matches!(event, Event::StreamBroken(..) | Event::PeerBroken(..)) && !said(event)
    };
    assert_eq!(events.iter().find(broken), None, "wanted {told:?}");
    let heard = events.iter().any(|event| said(&event));
    assert_eq!(heard, told != Told::Nothing, "wanted {told:?}");
    // The honest stream went on and ends well; a fresh one succeeds too.
    let fresh = App {
        to_send: pattern(6, 1000),
        finish: true,
        ..App::default()
    };
    let fresh = world.connect(0, "beta", 7000, fresh);
    let length = world.app(0, id).to_send.len();
    world.app_mut(0, id).finish = true;
    world.act(0, |node, _| node.readable(id));
    world.run_until("the honest streams are done", |world| {
        [id, fresh].iter().all(|id| world.app(0, *id).closed)
    });
    for (id, length) in [(id, length), (fresh, 1000)] {
        let app = world.app(0, id);
        assert!(app.peer_finished && app.reset.is_none() && app.received.len() == length);
    }
    // Mallory falls silent, is given up, and nothing is left of its streams.
    world.run_until("nothing is left of any stream", |world| {
        let nodes = world.hosts.iter().flat_map(|host| &host.node);
        nodes.into_iter().all(Node::is_quiet)
    });
    world
}

fn data(number: u64, offset: u64, bytes: &[u8]) -> Frame<'_> {
    frame(number, FrameBody::Data { offset, bytes })
}

#[test]
fn frames_for_unknown_streams_are_answered_and_harmless() {
    siege(
        |mallory, world| {
            let bodies = [
                FrameBody::Data {
                    offset: 0,
                    bytes: b"x",
                },
                FrameBody::Fin { offset: 9 },
                FrameBody::Accept { credit: 1 },
                FrameBody::Credit { limit: u64::MAX },
                FrameBody::Urgent { offset: 1 },
                FrameBody::Reset { reason: u64::MAX },
            ];
            for body in bodies {
                // Also by the name of the honest stream, which is another link's.
                for key in [mine(1), yours(1), mine(u64::MAX), yours(u64::MAX)] {
                    mallory.send(world, &[Frame { key, body }]);
                }
            }
        },
        Told::Nothing,
    );
}

/// Opens stream 1, then sends frames that do not fit it.
fn misfits(frames: &[FrameBody<'_>]) {
    siege(
        |mallory, world| {
            mallory.send(world, &[open(1)]);
            let mut all = Vec::new();
            for body in frames {
                all.push(frame(1, *body));
            }
            mallory.send(world, &all);
        },
        Told::Stream,
    );
}

#[test]
fn data_that_does_not_fit_resets_its_stream() {
    let at = |offset| FrameBody::Data {
        offset,
        bytes: b"data",
    };
    for offset in [1, 4, u64::MAX, u64::MAX - 3] {
        misfits(&[at(offset)]);
    }
    // Backwards.
    misfits(&[at(0), at(0)]);
    misfits(&[at(0), FrameBody::Fin { offset: 4 }, at(4)]);
    misfits(&[FrameBody::Fin { offset: 1 }]);
    misfits(&[FrameBody::Fin { offset: 0 }, FrameBody::Fin { offset: 0 }]);
    misfits(&[FrameBody::Accept { credit: 5 }]);
    misfits(&[
        FrameBody::Credit { limit: u64::MAX },
        FrameBody::Credit { limit: 0 },
    ]);
}

#[test]
fn more_data_than_its_credit_resets_the_stream() {
    siege(
        |mallory, world| {
            // Its program reads nothing.
            world.hosts[1].serve = |_| {
                Some(App {
                    stopped: true,
                    ..App::default()
                })
            };
            mallory.send(world, &[open(1)]);
            let bytes = [7; 16_000];
            for part in 0..20 {
                mallory.send(world, &[data(1, part * 16_000, &bytes)]);
            }
            let ids: Vec<_> = world.hosts[1].apps.keys().copied().collect();
            for id in ids {
                world.app_mut(1, id).stopped = false;
                world.act(1, |node, _| node.writable(id));
            }
            world.hosts[1].serve = |_| {
                Some(App {
                    echo: true,
                    ..App::default()
                })
            };
        },
        Told::Stream,
    );
}

#[test]
fn opening_what_is_open_or_not_its_own_cuts_the_peer_off() {
    for key in [mine(1), yours(2)] {
        siege(
            |mallory, world| {
                mallory.send(world, &[open(1)]);
                let again = Frame { key, ..open(1) };
                mallory.send(world, &[again]);
            },
            Told::Peer,
        );
    }
}

/// A frame that stands behind what broke the session was taken in: it opened a stream on a session that was over.
#[test]
fn nothing_is_taken_in_behind_what_broke_the_session() {
    let world = siege(
        |mallory, world| {
            mallory.send(world, &[open(1)]);
            mallory.wait(world, 2000);
            let acked_epoch = mallory.victim_epoch(world);
            mallory.send_as(
                world,
                &[open(2)],
                |info| (info.acked_epoch, info.acked_seq) = (acked_epoch, Seq(1 << 40)),
                |_| {},
            );
        },
        Told::Peer,
    );
    let incoming = |event: &&Event| match event {
        Event::Incoming { peer, .. } => peer.as_str() == "mallory",
        _ => false,
    };
    assert_eq!(world.hosts[1].events.iter().filter(incoming).count(), 1);
}

#[test]
fn impossible_frames_under_a_right_checksum_cut_the_peer_off() {
    let spoils: [fn(&mut [u8]); 5] = [
        |bytes| bytes[FIRST_FRAME] = 99,
        |bytes| bytes[FIRST_FRAME + 4..FIRST_FRAME + 8].fill(0xff),
        // An open frame without its ports; data without bytes.
        |bytes| bytes[FIRST_FRAME + 4] = 0,
        |bytes| (bytes[FIRST_FRAME], bytes[FIRST_FRAME + 4]) = (3, 0),
        // More frames than there are.
        |bytes| bytes[84..88].fill(0xff),
    ];
    for spoil in spoils {
        siege(
            |mallory, world| {
                mallory.send_as(world, &[open(1)], |_| {}, spoil);
            },
            Told::Peer,
        );
    }
}

#[test]
fn a_segment_longer_than_its_slot_is_reported() {
    siege(
        |mallory, world| {
            let info = mallory.info(world);
            let mut builder = SegmentBuilder::new(UnitBuf::zeroed(1));
            builder.push(&open(1));
            let (mut buf, _) = builder.seal(world::VOLUME, &info);
            buf.bytes_mut()[80..84].copy_from_slice(&(1u32 << 30).to_le_bytes());
            mallory.put(world, 1, buf.bytes());
            mallory.entry(world).last_seq = Seq(1);
            mallory.wait(world, 30_000);
        },
        Told::Peer,
    );
}

#[test]
fn segments_of_another_place_time_or_volume_are_not_there() {
    let changes: [fn(&mut SegmentInfo); 7] = [
        |info| info.writer = SeatId(0),
        |info| info.reader = SeatId(0),
        |info| info.writer_incarnation.0 += 1,
        |info| info.reader_incarnation.0 -= 1,
        |info| info.epoch.0 += 1,
        |info| info.seq.0 += 1,
        |info| info.seq.0 = 0,
    ];
    for change in changes {
        siege(
            |mallory, world| {
                mallory.send_as(world, &[open(1)], change, |_| {});
            },
            Told::Nothing,
        );
    }
    siege(
        |mallory, world| {
            mallory.send_as(world, &[open(1)], |_| {}, |bytes| bytes[24] ^= 1);
            mallory.next_seq -= 1;
            mallory.send_as(world, &[open(1)], |_| {}, |bytes| bytes[16] = 9);
        },
        Told::Nothing,
    );
}

#[test]
fn replayed_segments_do_nothing() {
    siege(
        |mallory, world| {
            mallory.send(world, &[open(1)]);
            let old = mallory.send(world, &[data(1, 0, b"once")]);
            for seq in 1..5 {
                mallory.put(world, seq, &old);
            }
            mallory.wait(world, 2000);
            mallory.begin(world, 2);
            for seq in 1..5 {
                mallory.put(world, seq, &old);
            }
            mallory.wait(world, 2000);
        },
        Told::Nothing,
    );
}

#[test]
fn records_that_speak_of_segments_that_cannot_be_cut_the_peer_off() {
    siege(
        |mallory, world| {
            mallory.entry(world).last_seq = Seq(u64::MAX);
            mallory.wait(world, 1000);
        },
        Told::Peer,
    );
    siege(
        |mallory, world| {
            mallory.send(world, &[open(1)]);
            let epoch = mallory.victim_epoch(world);
            let entry = mallory.entry(world);
            (entry.acked_epoch, entry.acked_seq) = (epoch, Seq(u64::MAX));
            mallory.wait(world, 1000);
        },
        Told::Peer,
    );
}

/// It comes back at once each time: the pauses grow, and so does not the log.
#[test]
fn a_peer_that_is_cut_off_again_and_again_is_heard_less_and_less() {
    let world = siege(
        |mallory, world| {
            for epoch in 2..200 {
                mallory.begin(world, epoch);
                mallory.entry(world).last_seq = Seq(u64::MAX);
                mallory.wait(world, 500);
            }
        },
        Told::Peer,
    );
    let told = |event: &&Event| matches!(event, Event::PeerBroken(..));
    let times = world.hosts[1].events.iter().filter(told).count();
    assert!((5..20).contains(&times), "told {times} times in minutes");
}

#[test]
fn records_with_lies_about_sessions_change_nothing_for_others() {
    siege(
        |mallory, world| {
            mallory.send(world, &[open(1)]);
            // Epochs back and far ahead; the same extents for every link; another ring in mid-session.
            for epoch in [9, 3, 0, u32::MAX, 1, u32::MAX - 1, u32::MAX] {
                mallory.entry(world).epoch = Epoch(epoch);
                mallory.wait(world, 500);
            }
            let entry = *mallory.entry(world);
            for link in &mut mallory.record.links {
                *link = entry;
                link.acked_epoch = Epoch(u32::MAX);
            }
            mallory.entry(world).ring = world.geometry.ring(1, 1);
            mallory.wait(world, 1000);
            // It judges itself by silly times, and bears another's name.
            mallory.record.timings = SeatTimings {
                heartbeat_ms: 0,
                suspect_ms: 0,
                dead_ms: 0,
                poll_max_us: 0,
            };
            mallory.wait(world, 1000);
            mallory.record.system = "alpha".parse().unwrap();
            mallory.record.ports = vec![7000, 7000, 1, 0];
            mallory.record.ports_overflow = true;
            mallory.wait(world, 1000);
        },
        Told::Nothing,
    );
}

#[test]
fn sealed_records_that_no_node_writes_are_reported() {
    let geometry = Geometry::plan(8 << 20, 4).unwrap();
    let bytes = |mallory: &Mallory, change: fn(&mut SeatRecord)| {
        let mut record = mallory.record.clone();
        record.record_version += 1;
        change(&mut record);
        record.encode(&geometry).bytes().to_vec()
    };
    let changes: [fn(&mut SeatRecord); 5] = [
        |record| record.volume = VolumeId([8; 16]),
        |record| record.incarnation = Incarnation(u64::MAX),
        |record| record.record_version = u64::MAX,
        |record| {
            record.links[0].ring = Ring {
                first_extent: u16::MAX,
                extents: u16::MAX,
                slot_units: 1,
            };
        },
        |record| {
            record.links[1].ring = Ring {
                first_extent: 0,
                extents: 1,
                slot_units: 0,
            };
        },
    ];
    for change in changes {
        siege(
            |mallory, world| {
                let bytes = bytes(mallory, change);
                for _ in 0..2 {
                    mallory.write_record(world, &bytes);
                }
                world.run_for(Duration::from_secs(10));
            },
            Told::Peer,
        );
    }
    // Another format version.
    siege(
        |mallory, world| {
            let mut bytes = bytes(mallory, |_| {});
            bytes[16] = 2;
            let sum = xxhash_rust::xxh3::xxh3_64(&bytes[16..]).to_le_bytes();
            bytes[8..16].copy_from_slice(&sum);
            for _ in 0..2 {
                mallory.write_record(world, &bytes);
            }
            world.run_for(Duration::from_secs(10));
        },
        Told::Peer,
    );
}

/// A peer's word that a seat has another node by now ended that node: one that lies could end all.
#[test]
fn a_false_word_of_a_successor_ends_nobody_who_is_seen_by_others() {
    siege(
        |mallory, world| {
            for link in &mut mallory.record.links {
                link.peer_incarnation.0 += 5;
            }
            for host in 0..2 {
                let node = world.hosts[host].node.as_ref().unwrap();
                let link = &mut mallory.record.links[usize::from(node.seat().0)];
                link.peer_incarnation = Incarnation(node.incarnation().0 + 1);
            }
            mallory.wait(world, 3000);
        },
        Told::Nothing,
    );
}

/// A host that is restored from a picture of itself while it still runs: both write as one node.
#[test]
fn a_copy_of_a_running_node_is_noticed() {
    let mut world = World::new(1, 4, 8 << 20);
    world.add("alpha", true);
    world.ready();
    world.run_for(Duration::from_secs(2));
    let node = world.hosts[0].node.as_ref().unwrap();
    let (seat, own) = (node.seat(), node.incarnation());
    let place = Place::Seat { seat, copy: 0 };
    let at = world.geometry.offset(place, 1).unwrap() as usize;
    let length = usize::from(world.geometry.record_units) * UNIT_BYTES;
    let bytes = &world.store[at..at + length];
    let mut record = SeatRecord::decode(bytes, world::VOLUME, &world.geometry, seat).unwrap();
    record.record_version += 10;
    world.store[at..at + length].copy_from_slice(record.encode(&world.geometry).bytes());
    world.run_until("the node has noticed", |world| {
        world.hosts[0].events.contains(&Event::Fenced(own))
    });
}

/// One peer took every row of the socket table, and nobody else could connect.
#[test]
fn endless_opens_leave_room_for_others() {
    siege(
        |mallory, world| {
            let geometry = world.geometry;
            let mut number = 1;
            while number < 2 * geometry.scbs() as u64 {
                let opens: Vec<_> = (0..100).map(|at| open(number + at)).collect();
                mallory.send(world, &opens);
                number += 100;
            }
            let node = world.hosts[1].node.as_ref().unwrap();
            let (load, most) = (node.load(), node.load_max());
            assert!(load.streams > most.streams / 2, "{load:?} of {most:?}");
            assert!(load.streams < most.streams, "{load:?} of {most:?}");
        },
        Told::Nothing,
    );
}

/// Nobody takes its connections: they wait, and the others' do not wait behind them for ever.
#[test]
fn a_huge_backlog_leaves_room_for_others() {
    let mut world = World::new(1, 4, 8 << 20);
    world.add("alpha", true);
    world.add("beta", true);
    for host in &mut world.hosts {
        host.config.limits.offered = 64;
        host.takes = false;
    }
    world.ready();
    world.listen(1, 7000);
    let mut mallory = Mallory::enter(&mut world, MALLORY.0, 1);
    for part in 0..10 {
        let opens: Vec<_> = (0..20).map(|at| open(part * 20 + at)).collect();
        mallory.send(&mut world, &opens);
    }
    let load = |world: &World| world.hosts[1].node.as_ref().unwrap().load();
    assert_eq!(load(&world).offered, 56);
    let id = world.connect(0, "beta", 7000, App::default());
    world.run_until("alpha's connection waits too", |world| {
        load(world).offered == 57
    });
    assert!(world.app(0, id).failed.is_none());
}

/// A victim that connects to it, and gives up, again and again: each attempt left a place in a queue behind.
#[test]
fn a_peer_that_never_acknowledges_costs_no_memory() {
    let mut world = World::new(1, 4, 8 << 20);
    world.add("alpha", true);
    world.add("beta", true);
    world.ready();
    let mut mallory = Mallory::enter(&mut world, MALLORY.0, 1);
    for round in 0..200 {
        for _ in 0..100 {
            let id = world.connect(1, "mallory", 6666, App::default());
            world.act(1, |node, now| node.reset(now, id, ResetReason::Aborted));
        }
        if round % 20 == 0 {
            mallory.wait(&mut world, 100);
        }
    }
    let load = world.hosts[1].node.as_ref().unwrap().load();
    assert_eq!(load.streams, 0);
    assert!(load.queued < 200, "{load:?}");
    assert!(load.resets <= 20_000, "{load:?}");
}

/// Thousands of streams begin with smaller windows: what they may hold together stays bounded.
#[test]
fn many_streams_share_a_bounded_room_for_what_arrives() {
    let mut world = World::new(1, 4, 8 << 20);
    world.add("alpha", true);
    world.add("beta", true);
    for host in &mut world.hosts {
        host.config.limits.windows_start = 64 << 20;
    }
    world.ready();
    let mut mallory = Mallory::enter(&mut world, MALLORY.0, 1);
    world.listen(1, 7000);
    for part in 0..50 {
        let opens: Vec<_> = (0..20).map(|at| open(part * 20 + at)).collect();
        mallory.send(&mut world, &opens);
    }
    let node = world.hosts[1].node.as_ref().unwrap();
    assert!(node.load().streams > 500, "{:?}", node.load());
    let most = node.load_max().received_bytes;
    assert!(most > 60 << 20 && most < 90 << 20, "{most} bytes");
}

/// Any frames at all, in any order, thousands of them: nothing panics, and the rules above hold.
#[test]
fn random_frames_harm_nobody() {
    for seed in 1..9 {
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
        let bytes = pattern(5, 3_000_000);
        let honest = App {
            expected: Some(bytes.clone()),
            to_send: bytes,
            finish: true,
            ..App::default()
        };
        let id = world.connect(0, "beta", 7000, honest);
        let mut mallory = Mallory::enter(&mut world, MALLORY.0, 1);
        for round in 0..300 {
            let frames: Vec<_> = (0..world.rng.below(30)).map(|_| any(&mut world)).collect();
            mallory.send(&mut world, &frames);
            if round % 30 == 0 {
                mallory.begin(&mut world, 2 + round);
            }
            let node = world.hosts[1].node.as_ref().unwrap();
            assert_eq!(node.load().exceeds(&node.load_max()), None);
        }
        world.run_until("the honest stream is done", |world| world.app(0, id).closed);
        assert_eq!(world.app(0, id).received.len(), 3_000_000);
        world.run_until("nothing is left of any stream", |world| {
            let nodes = world.hosts.iter().flat_map(|host| &host.node);
            nodes.into_iter().all(Node::is_quiet)
        });
    }
}

fn any(world: &mut World) -> Frame<'static> {
    let rng = &mut world.rng;
    let value = match rng.below(4) {
        0 => rng.next(),
        1 => u64::MAX,
        _ => rng.below(40),
    };
    let body = match rng.below(12) {
        0..=3 => return open(1 + rng.below(40)),
        4..=6 => FrameBody::Data {
            offset: value,
            bytes: &[1, 2, 3, 4, 5][..1 + rng.below(5) as usize],
        },
        7 => FrameBody::Accept { credit: value },
        8 => FrameBody::Credit { limit: value },
        9 => FrameBody::Urgent { offset: value },
        10 => FrameBody::Fin { offset: value },
        _ => FrameBody::Reset { reason: value },
    };
    let key = StreamKey {
        by_writer: rng.chance(80),
        number: rng.below(40),
    };
    Frame { key, body }
}
