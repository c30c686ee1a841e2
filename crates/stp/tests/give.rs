//! Streams that change their owner within one system: the taker goes on at the exact byte, the peer notices
//! nothing, and there is one owner at any time.
//!
//! Each test runs with the stream between two systems (engines of the test's own and shared ones) and within one.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use stp::TakerName;
use stp_host::control::{Calls, Client};
use stp_host::rendezvous::RunDir;
use support::owners::{read_exactly, wander};
use support::{Net, Place, Stp};

const LONG: Duration = Duration::from_secs(60);

fn everywhere(test: fn(&Stp)) {
    for (name, net) in [
        ("across", Stp::across()),
        ("shared", Stp::shared()),
        ("direct", Stp::direct()),
    ] {
        println!("{name}");
        test(&net);
    }
}

#[test]
fn the_taker_goes_on_at_the_exact_byte_with_bytes_in_flight_both_ways() {
    everywhere(|net| {
        wander(net.pair(), 5, |_, ours| {
            let gift = ours.give(&TakerName::here("heir"), LONG).unwrap();
            let heir = net.from.take("heir", Some(LONG)).unwrap();
            gift.wait().unwrap();
            heir
        });
    });
}

#[test]
fn the_giver_can_only_close_and_sees_that_it_was_taken() {
    everywhere(|net| {
        let (mut ours, mut theirs) = net.pair();
        let gift = ours.give(&TakerName::here("heir"), LONG).unwrap();
        assert!(gift.poll().is_none());
        for refused in [
            ours.write(b"x").unwrap_err(),
            ours.read(&mut [0]).unwrap_err(),
            ours.shutdown(Shutdown::Both).unwrap_err(),
            ours.give(&TakerName::here("other"), LONG).unwrap_err(),
        ] {
            assert_eq!(refused.kind(), ErrorKind::ResourceBusy, "{refused}");
        }
        let mut heir = net.from.take("heir", Some(LONG)).unwrap();
        for flag in [PollFlags::IN, PollFlags::PRI] {
            let mut watched = [PollFd::from_borrowed_fd(gift.as_fd(), flag)];
            poll(&mut watched, None).unwrap();
            let found = watched[0].revents();
            assert!(found.contains(flag), "{found:?}");
        }
        gift.wait().unwrap();
        let refused = ours.write(b"x").unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::NotConnected, "{refused}");
        // The giver's end is not the stream's end.
        drop(ours);
        heir.write_all(b"still here").unwrap();
        assert_eq!(read_exactly(&mut theirs, 10), b"still here");
        theirs.write_all(b"so am I").unwrap();
        assert_eq!(read_exactly(&mut heir, 7), b"so am I");
        drop(heir);
        assert_eq!(theirs.read(&mut [0]).unwrap(), 0);
    });
}

#[test]
fn a_gift_that_nobody_takes_expires_and_the_stream_works() {
    everywhere(|net| {
        let (mut ours, mut theirs) = net.pair();
        theirs.write_all(b"unread").unwrap();
        let gift = ours.give(&TakerName::here("nobody"), Duration::from_millis(50));
        let error = gift.unwrap().wait().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
        assert!(error.to_string().contains("nobody"), "{error}");
        let gift = ours.give(&TakerName::here("nobody"), LONG).unwrap();
        gift.withdraw().unwrap();
        let none = net.from.take("nobody", Some(Duration::from_millis(50)));
        assert_eq!(none.unwrap_err().kind(), ErrorKind::TimedOut);
        assert_eq!(read_exactly(&mut ours, 6), b"unread");
        ours.write_all(b"on it goes").unwrap();
        assert_eq!(read_exactly(&mut theirs, 10), b"on it goes");
        drop(ours);
        assert_eq!(theirs.read(&mut [0]).unwrap(), 0);
    });
}

#[test]
fn a_half_closed_stream_changes_hands_as_it_is() {
    everywhere(|net| {
        let (mut ours, mut theirs) = net.pair();
        ours.write_all(b"that was all").unwrap();
        ours.shutdown(Shutdown::Write).unwrap();
        theirs.write_all(b"not ").unwrap();
        let gift = ours.give(&TakerName::here("heir"), LONG).unwrap();
        drop(ours); // before it is taken
        let mut heir = net.from.take("heir", Some(LONG)).unwrap();
        gift.wait().unwrap();
        let mut all = Vec::new();
        theirs.read_to_end(&mut all).unwrap();
        assert_eq!(all, b"that was all");
        theirs.write_all(b"yet").unwrap();
        theirs.shutdown(Shutdown::Write).unwrap();
        let mut all = Vec::new();
        heir.read_to_end(&mut all).unwrap();
        assert_eq!(all, b"not yet");
        assert!(heir.write(b"x").is_err());
    });
}

/// A giver that closes in order leaves its word that all is well. It must not speak for the taker.
#[test]
fn a_taker_that_aborts_is_seen_as_such_although_the_giver_had_closed() {
    everywhere(|net| {
        let (ours, mut theirs) = net.pair();
        let gift = ours.give(&TakerName::here("heir"), LONG).unwrap();
        drop(ours);
        let heir = net.from.take("heir", Some(LONG)).unwrap();
        gift.wait().unwrap();
        heir.abort().unwrap();
        drop(heir);
        let error = theirs.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    });
}

#[test]
fn a_giver_that_closes_before_anybody_comes_ends_the_stream_in_order() {
    everywhere(|net| {
        let (ours, mut theirs) = net.pair();
        (&ours).write_all(b"farewell").unwrap();
        let gift = ours.give(&TakerName::here("nobody"), Duration::from_millis(50));
        drop(ours);
        assert!(gift.unwrap().wait().is_err());
        let mut all = Vec::new();
        theirs.read_to_end(&mut all).unwrap();
        assert_eq!(all, b"farewell");
    });
}

#[test]
fn takers_wait_in_line_and_each_gets_one() {
    everywhere(|net| {
        let mut far = Vec::new();
        let mut gifts = Vec::new();
        thread::scope(|scope| {
            let takers: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| net.from.take("heir", Some(LONG)).unwrap()))
                .collect();
            for n in 0..4_u8 {
                let (ours, mut theirs) = net.pair();
                theirs.write_all(&[n]).unwrap();
                gifts.push(ours.give(&TakerName::here("heir"), LONG).unwrap());
                far.push((ours, theirs));
            }
            let mut found: Vec<_> = takers
                .into_iter()
                .map(|taker| read_exactly(&mut taker.join().unwrap(), 1)[0])
                .collect();
            found.sort_unstable();
            assert_eq!(found, [0, 1, 2, 3]);
        });
        for gift in gifts {
            gift.wait().unwrap();
        }
    });
}

/// A taker that is killed between being handed the stream and confirming it.
#[test]
fn a_taker_that_dies_in_the_middle_leaves_the_gift_to_the_next() {
    let place = Place::new();
    let _engines = [place.engine("alpha"), place.engine("beta")];
    let (alpha, beta) = (place.group("alpha"), place.group("beta"));
    let listener = beta.listen(7000).unwrap();
    let ours = alpha.connect("beta:7000").unwrap();
    let (mut theirs, _) = listener.accept().unwrap();
    let gift = ours.give(&TakerName::here("heir"), LONG).unwrap();
    let run = RunDir::open(&place.root.path().join("run-alpha")).unwrap();
    let dir = run.system(place.volume_id(), alpha.system()).unwrap();
    for _ in 0..3 {
        let taker = Client::connect(&dir).unwrap().unwrap();
        let handed = taker.take(&"heir".parse().unwrap(), LONG).unwrap();
        drop(taker);
        drop(handed);
    }
    assert!(gift.poll().is_none());
    let mut heir = alpha.take("heir", Some(LONG)).unwrap();
    gift.wait().unwrap();
    heir.write_all(b"alive").unwrap();
    assert_eq!(read_exactly(&mut theirs, 5), b"alive");
}

#[test]
fn what_cannot_be_given_is_refused_with_a_reason() {
    everywhere(|net| {
        let (ours, _theirs) = net.pair();
        let bad = ours.give(&TakerName::here("a name"), LONG).unwrap_err();
        assert_eq!(bad.kind(), ErrorKind::InvalidInput, "{bad}");
        assert!(net.from.take("", None).is_err());
        let clone = ours.try_clone().unwrap();
        let cloned = ours.give(&TakerName::here("heir"), LONG).unwrap_err();
        assert_eq!(cloned.kind(), ErrorKind::InvalidInput, "{cloned}");
        drop(clone);
        ours.give(&TakerName::here("heir"), LONG)
            .unwrap()
            .withdraw()
            .unwrap();
    });
}
