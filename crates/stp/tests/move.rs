//! Streams that move to another system: alpha gives, gamma takes, beta at the far end notices nothing.
//!
//! Each test runs with an engine in each program's process and with the hosts' shared engines.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::thread;
use std::time::Duration;

use stp::{Group, Listener, Stream, TakerName};
use stp_host::control::Server;
use support::Place;
use support::owners::{pattern, read_exactly, wander};

const LONG: Duration = Duration::from_secs(60);

struct Three {
    alpha: Group,
    beta: Group,
    gamma: Group,
    listener: Listener,
    place: Place,
    engines: Vec<Server>,
}

impl Three {
    fn new(shared: bool) -> Self {
        let place = Place::new();
        let names = ["alpha", "beta", "gamma"];
        let engines: Vec<_> = names
            .iter()
            .filter(|_| shared)
            .map(|name| place.engine(name))
            .collect();
        let [alpha, beta, gamma] = names.map(|name| place.group(name));
        let listener = beta.listen(7000).unwrap();
        let three = Self {
            alpha,
            beta,
            gamma,
            listener,
            place,
            engines,
        };
        // The taker's system is known before anything is given.
        drop(three.pair());
        three
    }

    fn pair(&self) -> (Stream, Stream) {
        let ours = self.alpha.connect("beta:7000").unwrap();
        (ours, self.listener.accept().unwrap().0)
    }
}

fn both(test: fn(&Three)) {
    for shared in [false, true] {
        println!("shared engines: {shared}");
        let three = Three::new(shared);
        test(&three);
        assert_eq!(three.engines.len(), if shared { 3 } else { 0 });
        assert!(three.place.root.path().exists());
    }
}

fn heir(group: &Group) -> TakerName {
    TakerName::on(*group.system(), "heir")
}

#[test]
fn a_stream_wanders_between_systems_with_bytes_in_flight_both_ways() {
    both(|three| {
        wander(three.pair(), 6, |owner, ours| {
            let to = [&three.gamma, &three.alpha][owner % 2];
            let gift = ours.give(&heir(to), LONG).unwrap();
            let heir = to.take("heir", Some(LONG)).unwrap();
            gift.wait().unwrap();
            let refused = ours.read(&mut [0]).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::NotConnected);
            heir
        });
    });
}

/// Nobody reads: every buffer on the way is full in both directions when the stream moves.
#[test]
fn full_in_both_directions_it_moves_and_nothing_is_lost() {
    both(|three| {
        let (ours, theirs) = three.pair();
        let length = 24 << 20;
        let (there, back) = (pattern(3, length), pattern(4, length));
        let stuff = |stream: &Stream, bytes: &[u8]| {
            let timeout = Some(Duration::from_millis(300));
            stream.set_write_timeout(timeout).unwrap();
            let mut sent = 0;
            while let Ok(n) = (&mut &*stream).write(&bytes[sent..]) {
                sent += n;
            }
            stream.set_write_timeout(None).unwrap();
            sent
        };
        let (sent, returned) = (stuff(&ours, &there), stuff(&theirs, &back));
        assert!(sent < length && returned < length, "{sent} {returned}");
        let gift = ours.give(&heir(&three.gamma), LONG).unwrap();
        let heir = three.gamma.take("heir", Some(LONG)).unwrap();
        gift.wait().unwrap();
        println!("{sent} bytes were under way one way, {returned} the other");
        thread::scope(|scope| {
            for (stream, rest) in [(&heir, &there[sent..]), (&theirs, &back[returned..])] {
                scope.spawn(move || {
                    (&mut &*stream).write_all(rest).unwrap();
                    stream.shutdown(Shutdown::Write).unwrap();
                });
            }
            for (stream, expected) in [(&heir, &back), (&theirs, &there)] {
                scope.spawn(move || {
                    let mut found = Vec::new();
                    (&mut &*stream).read_to_end(&mut found).unwrap();
                    assert!(found == *expected, "{} of {length}", found.len());
                });
            }
        });
    });
}

#[test]
fn half_closed_streams_move_as_they_are() {
    both(|three| {
        // The giver has finished.
        let (mut ours, mut theirs) = three.pair();
        ours.write_all(b"that was all").unwrap();
        ours.shutdown(Shutdown::Write).unwrap();
        theirs.write_all(b"not ").unwrap();
        let gift = ours.give(&heir(&three.gamma), LONG).unwrap();
        drop(ours);
        let mut taken = three.gamma.take("heir", Some(LONG)).unwrap();
        gift.wait().unwrap();
        let mut all = Vec::new();
        theirs.read_to_end(&mut all).unwrap();
        assert_eq!(all, b"that was all");
        theirs.write_all(b"yet").unwrap();
        drop(theirs);
        let mut all = Vec::new();
        taken.read_to_end(&mut all).unwrap();
        assert_eq!(all, b"not yet");
        assert_eq!(taken.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
        // The far end has finished.
        let (mut ours, mut theirs) = three.pair();
        theirs.write_all(b"the end").unwrap();
        theirs.shutdown(Shutdown::Write).unwrap();
        ours.write_all(b"begun ").unwrap();
        read_exactly(&mut ours, 4);
        let gift = ours.give(&heir(&three.gamma), LONG).unwrap();
        let mut taken = three.gamma.take("heir", Some(LONG)).unwrap();
        gift.wait().unwrap();
        taken.write_all(b"and done").unwrap();
        let mut all = Vec::new();
        taken.read_to_end(&mut all).unwrap();
        assert_eq!(all, b"end");
        drop(taken);
        let mut all = Vec::new();
        theirs.read_to_end(&mut all).unwrap();
        assert_eq!(all, b"begun and done");
    });
}

#[test]
fn nobody_takes_and_the_stream_works() {
    both(|three| {
        let (mut ours, mut theirs) = three.pair();
        theirs.write_all(b"unread").unwrap();
        let gift = ours.give(&heir(&three.gamma), Duration::from_millis(200));
        // One who waits for another name, and one on another system, get nothing.
        let wait = Some(Duration::from_millis(50));
        for (group, name) in [(&three.gamma, "other"), (&three.beta, "heir")] {
            let none = group.take(name, wait).unwrap_err();
            assert_eq!(none.kind(), ErrorKind::TimedOut, "{none}");
        }
        let error = gift.unwrap().wait().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
        let gift = ours.give(&heir(&three.gamma), LONG).unwrap();
        gift.withdraw().unwrap();
        assert_eq!(read_exactly(&mut ours, 6), b"unread");
        ours.write_all(b"on it goes").unwrap();
        assert_eq!(read_exactly(&mut theirs, 10), b"on it goes");
        // A system that nobody knows may still appear.
        let nowhere = TakerName::on("nowhere".parse().unwrap(), "heir");
        let gift = ours.give(&nowhere, Duration::from_millis(50)).unwrap();
        assert_eq!(gift.wait().unwrap_err().kind(), ErrorKind::TimedOut);
        drop(ours);
        assert_eq!(theirs.read(&mut [0]).unwrap(), 0);
    });
}

/// The taker's system joins the group after the stream was given.
#[test]
fn a_taker_may_come_later() {
    let place = Place::new();
    let (alpha, beta) = (place.group("alpha"), place.group("beta"));
    let listener = beta.listen(7000).unwrap();
    let mut ours = alpha.connect("beta:7000").unwrap();
    let (mut theirs, _) = listener.accept().unwrap();
    ours.write_all(b"first ").unwrap();
    let late = TakerName::on("gamma".parse().unwrap(), "heir");
    let gift = ours.give(&late, LONG).unwrap();
    let gamma = place.group("gamma");
    let mut taken = gamma.take("heir", Some(LONG)).unwrap();
    gift.wait().unwrap();
    // The giver's engine is not needed any more.
    drop(ours);
    drop(alpha);
    taken.write_all(b"second").unwrap();
    assert_eq!(read_exactly(&mut theirs, 12), b"first second");
    theirs.write_all(b"third").unwrap();
    assert_eq!(read_exactly(&mut taken, 5), b"third");
    drop(taken);
    assert_eq!(theirs.read(&mut [0]).unwrap(), 0);
}

/// A node is not its own peer: who waits there neither gets the stream nor disturbs it, until the other end has gone.
#[test]
fn it_is_not_taken_where_its_other_end_is() {
    both(|three| {
        let (ours, mut theirs) = three.pair();
        let gift = ours.give(&heir(&three.beta), LONG).unwrap();
        let wait = Some(Duration::from_millis(300));
        let none = three.beta.take("heir", wait).unwrap_err();
        assert_eq!(none.kind(), ErrorKind::TimedOut, "{none}");
        theirs.write_all(b"from afar").unwrap();
        let other = theirs.give(&heir(&three.gamma), LONG).unwrap();
        let mut theirs = three.gamma.take("heir", Some(LONG)).unwrap();
        other.wait().unwrap();
        let mut taken = three.beta.take("heir", Some(LONG)).unwrap();
        gift.wait().unwrap();
        assert_eq!(read_exactly(&mut taken, 9), b"from afar");
        taken.write_all(b"x").unwrap();
        assert_eq!(read_exactly(&mut theirs, 1), b"x");
    });
}

#[test]
fn both_ends_are_given_at_once() {
    both(|three| {
        let (mut ours, mut theirs) = three.pair();
        ours.write_all(b"one way").unwrap();
        theirs.write_all(b"or another").unwrap();
        let first = ours.give(&heir(&three.gamma), LONG).unwrap();
        let second = theirs
            .give(&TakerName::on(*three.alpha.system(), "twin"), LONG)
            .unwrap();
        thread::scope(|scope| {
            let near = scope.spawn(|| three.gamma.take("heir", Some(LONG)).unwrap());
            let far = scope.spawn(|| three.alpha.take("twin", Some(LONG)).unwrap());
            let (mut near, mut far) = (near.join().unwrap(), far.join().unwrap());
            first.wait().unwrap();
            second.wait().unwrap();
            assert_eq!(read_exactly(&mut near, 10), b"or another");
            assert_eq!(read_exactly(&mut far, 7), b"one way");
            near.write_all(b"x").unwrap();
            assert_eq!(read_exactly(&mut far, 1), b"x");
            drop(near);
            assert_eq!(far.read(&mut [0]).unwrap(), 0);
        });
    });
}

/// Many streams move at the same time, to several takers.
#[test]
fn many_move_at_once() {
    both(|three| {
        let pairs: Vec<_> = (0..20).map(|_| three.pair()).collect();
        thread::scope(|scope| {
            let takers: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        (0..5)
                            .map(|_| three.gamma.take("heir", Some(LONG)).unwrap())
                            .collect::<Vec<_>>()
                    })
                })
                .collect();
            let mut gifts = Vec::new();
            for (number, (ours, _)) in (0..).zip(&pairs) {
                (&mut &*ours).write_all(&[number; 1000]).unwrap();
                gifts.push(ours.give(&heir(&three.gamma), LONG).unwrap());
            }
            let taken = takers.into_iter().flat_map(|taker| taker.join().unwrap());
            let taken: Vec<_> = taken.collect();
            for gift in gifts {
                gift.wait().unwrap();
            }
            for stream in taken {
                drop(stream);
            }
        });
        for (number, (_, theirs)) in (0..).zip(&pairs) {
            let mut all = Vec::new();
            (&mut &*theirs).read_to_end(&mut all).unwrap();
            assert_eq!(all, [number; 1000]);
        }
    });
}

/// A giver with an engine of its own closes its stream and leaves before anybody came: what it sent arrives.
#[test]
fn a_giver_that_leaves_takes_its_gift_along_and_ends_the_stream_in_order() {
    let three = Three::new(false);
    let (mut ours, mut theirs) = three.pair();
    ours.write_all(b"farewell").unwrap();
    let gift = ours.give(&heir(&three.gamma), LONG).unwrap();
    drop(ours);
    let Three { alpha, gamma, .. } = three;
    drop(alpha);
    drop(gift);
    let mut all = Vec::new();
    theirs.read_to_end(&mut all).unwrap();
    assert_eq!(all, b"farewell");
    let none = gamma.take("heir", Some(Duration::from_millis(100)));
    assert_eq!(none.unwrap_err().kind(), ErrorKind::TimedOut);
}
