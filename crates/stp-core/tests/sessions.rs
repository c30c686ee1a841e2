//! Sessions as a peer sees them whose records are written by hand: what a node answers, and what it waits for.

#[path = "world/hostile_peer.rs"]
#[allow(dead_code, reason = "it is honest here")]
mod hostile_peer;
mod world;

use hostile_peer::{Mallory, frame, open};
use stp_core::*;
use stp_format::segment::FrameBody;
use stp_format::*;
use world::{App, World};

/// A node, and a peer whose session with it stands.
fn joined() -> (World, Mallory) {
    let mut world = World::new(1, 4, 8 << 20);
    world.add("alpha", true);
    world.ready();
    world.hosts[0].serve = |_| Some(App::default());
    world.listen(0, 7000);
    let mut peer = Mallory::enter(&mut world, 3, 0);
    peer.wait(&mut world, 1000);
    let with = peer.victim_entry(&world);
    assert_eq!((with.epoch, with.acked_epoch), (Epoch(1), Epoch(1)));
    peer.entry(&world).acked_epoch = Epoch(1);
    peer.wait(&mut world, 1000);
    (world, peer)
}

/// Each of two nodes took the other's answer for a new end of the session and answered it: as long as they lived, no
/// stream between them stood for longer than a look at the directory takes.
#[test]
fn an_answer_is_not_answered() {
    let (mut world, mut peer) = joined();
    for epoch in 2..5 {
        peer.entry(&world).epoch = Epoch(epoch);
        peer.wait(&mut world, 1000);
        let with = peer.victim_entry(&world);
        assert_eq!((with.epoch, with.acked_epoch), (Epoch(1), Epoch(epoch)));
    }
    // One that ends the session by itself is with nobody yet, and is answered.
    let entry = peer.entry(&world);
    (entry.epoch, entry.acked_epoch) = (Epoch(5), Epoch(0));
    peer.wait(&mut world, 1000);
    let with = peer.victim_entry(&world);
    assert_eq!((with.epoch, with.acked_epoch), (Epoch(2), Epoch(5)));
}

/// A node whose own session is new took the peer's answer to an earlier one for the answer to this one.
#[test]
fn a_peer_that_is_with_an_earlier_session_is_waited_for() {
    let (mut world, mut peer) = joined();
    let entry = peer.entry(&world);
    (entry.epoch, entry.acked_epoch) = (Epoch(2), Epoch(0));
    peer.wait(&mut world, 1000);
    assert_eq!(peer.victim_entry(&world).epoch, Epoch(2));
    let entry = peer.entry(&world);
    (entry.epoch, entry.acked_epoch) = (Epoch(3), Epoch(1));
    peer.wait(&mut world, 1000);
    let with = peer.victim_entry(&world);
    assert_eq!((with.epoch, with.acked_epoch), (Epoch(2), Epoch(0)));
    // It has seen the new one.
    let entry = peer.entry(&world);
    (entry.epoch, entry.acked_epoch) = (Epoch(4), Epoch(2));
    peer.wait(&mut world, 1000);
    let with = peer.victim_entry(&world);
    assert_eq!((with.epoch, with.acked_epoch), (Epoch(2), Epoch(4)));
}

/// What the peer had opened in the session that is over ends with it.
#[test]
fn an_answer_ends_what_the_peer_had_opened() {
    let (mut world, mut peer) = joined();
    peer.send(&mut world, &[open(1)]);
    let hello = FrameBody::Data {
        offset: 0,
        bytes: b"hello",
    };
    peer.send(&mut world, &[frame(1, hello)]);
    peer.wait(&mut world, 1000);
    let apps = |world: &World| {
        let apps = world.hosts[0].apps.values();
        apps.map(|app| (app.received.len(), app.reset))
            .collect::<Vec<_>>()
    };
    assert_eq!(apps(&world), [(5, None)]);
    peer.entry(&world).epoch = Epoch(2);
    peer.wait(&mut world, 1000);
    assert_eq!(apps(&world), [(5, Some(ResetReason::PeerDied))]);
    assert_eq!(peer.victim_entry(&world).epoch, Epoch(1));
}
