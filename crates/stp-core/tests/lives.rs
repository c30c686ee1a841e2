//! Lives of one seat whose order is not what their incarnations say: a node that could not know what was before it, and old
//! records that come back.

#[path = "world/hostile_peer.rs"]
#[allow(dead_code, reason = "it is honest here")]
mod hostile_peer;
mod world;

use hostile_peer::{Mallory, open};
use stp_core::*;
use stp_format::*;
use world::{App, World};

/// The first life in the seat, whose record comes back.
const FIRST: Incarnation = Incarnation(249);
/// More than the silence after which it is dead.
const DEAD_MS: u64 = 61_000;

/// A node that is with a peer, and the record of a life before it, with a higher incarnation.
fn joined() -> (World, Mallory, SeatRecord) {
    let mut world = World::new(1, 4, 8 << 20);
    world.add("alpha", true);
    world.ready();
    world.hosts[0].serve = |_| Some(App::default());
    world.listen(0, 7000);
    let mut peer = Mallory::enter(&mut world, 3, 0);
    peer.wait(&mut world, 1000);
    peer.entry(&world).acked_epoch = Epoch(1);
    peer.send(&mut world, &[open(1)]);
    peer.wait(&mut world, 1000);
    assert_eq!(resets(&world), [None]);
    let mut first = peer.record.clone();
    first.incarnation = FIRST;
    first.nonce = 1;
    first.record_version = 1000;
    (world, peer, first)
}

/// What became of the streams that the peer opened.
fn resets(world: &World) -> Vec<Option<ResetReason>> {
    let apps = world.hosts[0].apps.values();
    apps.map(|app| app.reset).collect()
}

/// Writes a record where the peer writes its own.
fn show(world: &mut World, peer: &mut Mallory, record: &SeatRecord) {
    let bytes = record.encode(&world.geometry);
    peer.write_record(world, bytes.bytes());
}

/// As which incarnation the node knows its peer, and whether it lives.
fn known(world: &World) -> (Incarnation, PeerState) {
    let node = world.hosts[0].node.as_ref().unwrap();
    let peer = node.peers().find(|peer| peer.seat == SeatId(3)).unwrap();
    (peer.incarnation, peer.state)
}

/// A session begins as with a node that notices that it was thought dead.
fn join_again(world: &mut World, peer: &mut Mallory) {
    let with = peer.victim_entry(world);
    assert_eq!(with.peer_incarnation, peer.record.incarnation);
    assert_eq!(with.acked_epoch, Epoch(0));
    let entry = peer.entry(world);
    entry.epoch = Epoch(entry.epoch.0 + 1);
    entry.acked_epoch = with.epoch;
    entry.last_seq = Seq(0);
    peer.next_seq = 1;
    peer.wait(world, 1000);
    assert_eq!(
        peer.victim_entry(world).acked_epoch,
        peer.entry(world).epoch
    );
}

/// An old record is taken for a new node in the seat; who lives there was not heard any more until one of the two began anew.
/// (Seed 10000130 of the simulator.)
#[test]
fn who_lives_is_heard_again_once_what_came_back_is_dead() {
    let (mut world, mut peer, first) = joined();
    let second = peer.record.incarnation;
    show(&mut world, &mut peer, &first);
    peer.wait(&mut world, 2000);
    assert_eq!(known(&world), (FIRST, PeerState::Up));
    assert_eq!(resets(&world), [Some(ResetReason::PeerDied)]);
    peer.wait(&mut world, 50_000);
    assert_eq!(known(&world), (FIRST, PeerState::Suspect));
    peer.wait(&mut world, 11_000);
    assert_eq!(known(&world), (second, PeerState::Up));
    // The session that was before is over, though the peer still shows it, with nobody's number beside it.
    peer.entry(&world).acked_epoch = Epoch(0);
    peer.wait(&mut world, 2000);
    assert_eq!(resets(&world).len(), 1, "the opening was taken in again");
    join_again(&mut world, &mut peer);
    peer.send(&mut world, &[open(2)]);
    peer.wait(&mut world, 1000);
    assert_eq!(resets(&world)[1..], [None]);
    // What was once found to be old stays so.
    for _ in 0..3 {
        show(&mut world, &mut peer, &first);
        peer.wait(&mut world, 1000);
    }
    assert_eq!(known(&world), (second, PeerState::Up));
    assert_eq!(resets(&world)[1..], [None]);
}

/// The life after one that came back has a number between the two, and need not wait for the death of either.
#[test]
fn the_next_life_is_known_by_its_heart() {
    let (mut world, mut peer, first) = joined();
    show(&mut world, &mut peer, &first);
    peer.wait(&mut world, DEAD_MS + 2000);
    join_again(&mut world, &mut peer);
    peer.record.incarnation.0 += 10;
    peer.record.nonce += 1;
    peer.wait(&mut world, 3000);
    assert_eq!(known(&world), (peer.record.incarnation, PeerState::Up));
    // One that is above all is known at once.
    peer.record.incarnation.0 = FIRST.0 + 1;
    peer.wait(&mut world, 100);
    assert_eq!(known(&world), (peer.record.incarnation, PeerState::Up));
}

/// Records that come back without a heart that beats bring nobody back.
#[test]
fn old_records_bring_nobody_back() {
    let (mut world, mut peer, first) = joined();
    let mut old = peer.record.clone();
    show(&mut world, &mut peer, &first);
    world.run_for(std::time::Duration::from_millis(DEAD_MS));
    assert_eq!(known(&world), (FIRST, PeerState::Dead));
    // Both copies of it, at two moments; and again, as they are.
    for beat in [1, 2, 1, 2, 2] {
        (old.record_version, old.heartbeat) = (2000 + beat, 2000 + beat);
        show(&mut world, &mut peer, &old);
        world.run_for(std::time::Duration::from_secs(2));
        assert_eq!(known(&world), (FIRST, PeerState::Dead));
    }
    // Nor does one whose versions rise and whose heart does not beat.
    for version in 2003..2010 {
        old.record_version = version;
        show(&mut world, &mut peer, &old);
        world.run_for(std::time::Duration::from_secs(2));
        assert_eq!(known(&world), (FIRST, PeerState::Dead));
    }
}

/// While the newest lives, nobody else in its seat is heard, however its heart beats.
#[test]
fn who_beats_beside_the_newest_is_not_heard() {
    let (mut world, mut peer, mut first) = joined();
    for _ in 0..100 {
        first.record_version += 1;
        first.heartbeat += 1;
        show(&mut world, &mut peer, &first);
        world.run_for(std::time::Duration::from_secs(1));
        peer.beat(&mut world);
        world.run_for(std::time::Duration::from_secs(1));
        assert_eq!(known(&world), (FIRST, PeerState::Up));
    }
}

/// A host that wakes up in a seat that was another's, which is dead by now, finds that out before anybody hears it.
#[test]
fn who_wakes_up_after_its_successor_is_dead_is_not_heard() {
    let mut world = World::new(4, 4, 8 << 20);
    world.add("alpha", true);
    world.add("beta", true);
    world.ready();
    world.hosts[1].frozen = true;
    let clone = world.add("beta", false);
    world.hosts[clone].config.host = world.hosts[1].config.host;
    world.start(clone);
    world.run_until("the clone sits", |world| world.hosts[clone].node.is_some());
    world.run_for(std::time::Duration::from_secs(2));
    let node = world.hosts[clone].node.as_ref().unwrap();
    let (seat, successor) = (node.seat(), node.incarnation());
    world.kill(clone);
    world.run_for(std::time::Duration::from_millis(DEAD_MS + 2000));
    world.hosts[1].frozen = false;
    world.run_for(std::time::Duration::from_secs(5));
    let fenced = |event: &Event| *event == Event::Fenced(successor);
    assert!(world.hosts[1].events.iter().any(fenced));
    let node = world.hosts[0].node.as_ref().unwrap();
    let peer = node.peers().find(|peer| peer.seat == seat).unwrap();
    assert_eq!((peer.incarnation, peer.state), (successor, PeerState::Dead));
}

/// No record tells a node how many lives there were before it: it begins far above all of them.
#[test]
fn where_both_copies_are_unreadable_a_life_begins_above_all_before() {
    for seed in 1..20 {
        let mut world = World::new(seed, 2, 8 << 20);
        world.add("alpha", true);
        world.add("beta", true);
        // Alpha in the first seat, which is tried first.
        for host in [0, 0, 0, 0, 0, 1, 0] {
            world.kill(host);
            world.start(host);
            world.run_until("it sits", |world| world.hosts[host].node.is_some());
            world.run_for(std::time::Duration::from_secs(2));
        }
        let node = world.hosts[0].node.as_ref().unwrap();
        let (seat, before) = (node.seat(), node.incarnation());
        world.kill(0);
        world.kill(1);
        world.run_for(std::time::Duration::from_secs(1));
        // Beta's record would tell, too.
        for (seat, copy) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let seat = SeatId(seat);
            let place = Place::Seat { seat, copy };
            let at = world.geometry.offset(place, 1).unwrap() as usize;
            world.store[at + 100] ^= 1;
        }
        world.start(0);
        world.run_until("it sits", |world| world.hosts[0].node.is_some());
        let node = world.hosts[0].node.as_ref().unwrap();
        assert_eq!(node.seat(), seat);
        assert!(node.incarnation() > before, "{:?}", node.incarnation());
    }
}
