//! The same bodies on the kernel's TCP, then on ours: what passes on the first must pass on the others.

mod support;

use std::io::{ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use support::{Conn, Listen, Net, Stp, Tcp};

/// A hang guard, for machines that have other things to do: nothing is concluded from it.
const HANG: Duration = Duration::from_secs(120);
const SHORT: Duration = Duration::from_millis(100);

/// Runs a body on TCP, within one system, and between two: with a model of engines, with engines in this
/// process, and with the shared engines of two hosts.
macro_rules! parity {
    ($(#[$doc:meta])* fn $name:ident($net:ident) $body:block) => {
        $(#[$doc])*
        mod $name {
            use super::*;

            fn body(#[allow(unused)] $net: &impl Net) $body

            #[test]
            fn tcp() {
                body(&Tcp);
            }

            #[test]
            fn direct() {
                body(&Stp::direct());
            }

            #[test]
            fn modelled() {
                body(&Stp::modelled());
            }

            #[test]
            fn across() {
                body(&Stp::across());
            }

            #[test]
            fn shared() {
                body(&Stp::shared());
            }
        }
    };
}

fn readable(socket: &impl Conn, within: Duration) -> bool {
    let mut watched = [PollFd::new(socket, PollFlags::IN)];
    let timeout = Timespec::try_from(within).unwrap();
    poll(&mut watched, Some(&timeout)).unwrap() == 1
}

parity! {
    fn bytes_go_both_ways_and_end_in_order(net) {
        let (mut ours, mut theirs) = net.pair();
        ours.write_all(b"question").unwrap();
        ours.shutdown(Shutdown::Write).unwrap();
        let mut text = String::new();
        theirs.read_to_string(&mut text).unwrap();
        assert_eq!(text, "question");
        theirs.write_all(b"answer").unwrap();
        drop(theirs);
        text.clear();
        ours.read_to_string(&mut text).unwrap();
        assert_eq!(text, "answer");
        assert_eq!(ours.read(&mut [0; 8]).unwrap(), 0, "the end stays the end");
    }
}

parity! {
    fn both_halves_closed_at_once_end_in_order(net) {
        for _ in 0..20 {
            let (mut ours, mut theirs) = net.pair();
            let other = std::thread::spawn(move || {
                theirs.shutdown(Shutdown::Write).unwrap();
                assert_eq!(theirs.read(&mut [0; 8]).unwrap(), 0);
            });
            ours.shutdown(Shutdown::Write).unwrap();
            assert_eq!(ours.read(&mut [0; 8]).unwrap(), 0);
            other.join().unwrap();
        }
    }
}

parity! {
    fn addresses_mirror_each_other(net) {
        let listener = net.listen(0).unwrap();
        assert_ne!(listener.port(), 0);
        let ours = net.connect(listener.port()).unwrap();
        let second = net.connect(listener.port()).unwrap();
        let (theirs, from) = listener.accept().unwrap();
        assert_eq!(ours.peer(), listener.local());
        assert_eq!(theirs.local(), listener.local());
        assert_eq!(theirs.peer(), ours.local());
        assert_eq!(from, ours.local());
        assert_ne!(ours.local(), second.local(), "two streams, two addresses");
    }
}

parity! {
    fn a_read_timeout_is_would_block_after_its_time(net) {
        let (mut ours, _theirs) = net.pair();
        ours.set_read_timeout(Some(SHORT)).unwrap();
        assert_eq!(ours.read_timeout().unwrap(), Some(SHORT));
        let start = Instant::now();
        let error = ours.read(&mut [0; 8]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        assert!(start.elapsed() >= SHORT / 2);
        let error = ours.peek(&mut [0; 8]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        ours.set_read_timeout(None).unwrap();
        assert_eq!(ours.read_timeout().unwrap(), None);
    }
}

parity! {
    fn a_write_timeout_is_would_block_when_nobody_reads(net) {
        let (mut ours, _theirs) = net.pair();
        ours.set_write_timeout(Some(SHORT)).unwrap();
        assert_eq!(ours.write_timeout().unwrap(), Some(SHORT));
        let block = vec![7; 1 << 20];
        let error = (0..256)
            .find_map(|_| ours.write(&block).err())
            .expect("256 MiB were taken without a reader");
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
    }
}

parity! {
    fn a_timeout_of_zero_is_refused(net) {
        let listener = net.listen(0).unwrap();
        let ours = net.connect(listener.port()).unwrap();
        let zero = Some(Duration::ZERO);
        let kind = |error: std::io::Error| error.kind();
        assert_eq!(ours.set_read_timeout(zero).map_err(kind), Err(ErrorKind::InvalidInput));
        assert_eq!(ours.set_write_timeout(zero).map_err(kind), Err(ErrorKind::InvalidInput));
        let connected = net.connect_timeout(listener.port(), Duration::ZERO);
        assert_eq!(connected.map(drop).map_err(kind), Err(ErrorKind::InvalidInput));
        net.connect_timeout(listener.port(), HANG).unwrap();
    }
}

parity! {
    fn nonblocking_reads_and_writes_never_wait(net) {
        let (mut ours, mut theirs) = net.pair();
        ours.set_nonblocking(true).unwrap();
        assert_eq!(ours.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::WouldBlock);
        theirs.write_all(b"x").unwrap();
        assert!(readable(&ours, HANG));
        assert_eq!(ours.read(&mut [0; 8]).unwrap(), 1);
        let block = vec![7; 1 << 20];
        let error = loop {
            if let Err(error) = ours.write(&block) {
                break error;
            }
        };
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        ours.set_nonblocking(false).unwrap();
        theirs.write_all(b"y").unwrap();
        assert_eq!(ours.read(&mut [0; 8]).unwrap(), 1);
    }
}

parity! {
    fn nonblocking_accept_never_waits(net) {
        let listener = net.listen(0).unwrap();
        listener.set_nonblocking(true).unwrap();
        let error = listener.accept().map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        let _ours = net.connect(listener.port()).unwrap();
        let start = Instant::now();
        loop {
            match listener.accept() {
                Ok(_) => break,
                Err(e) => assert_eq!(e.kind(), ErrorKind::WouldBlock),
            }
            assert!(start.elapsed() < HANG);
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

parity! {
    fn an_accepted_stream_blocks_even_if_its_listener_does_not(net) {
        let listener = net.listen(0).unwrap();
        let mut ours = net.connect(listener.port()).unwrap();
        listener.set_nonblocking(true).unwrap();
        let mut theirs = loop {
            if let Ok((theirs, _)) = listener.accept() {
                break theirs;
            }
        };
        let late = std::thread::spawn(move || {
            std::thread::sleep(SHORT);
            ours.write_all(b"x").unwrap();
        });
        assert_eq!(theirs.read(&mut [0; 8]).unwrap(), 1);
        late.join().unwrap();
    }
}

parity! {
    fn peek_takes_nothing_out(net) {
        let (mut ours, mut theirs) = net.pair();
        ours.write_all(b"abc").unwrap();
        let mut bytes = [0; 8];
        while theirs.peek(&mut bytes).unwrap() < 3 {}
        assert_eq!(theirs.peek(&mut bytes).unwrap(), 3);
        assert_eq!(theirs.read(&mut bytes).unwrap(), 3);
        assert_eq!(&bytes[..3], b"abc");
        drop(ours);
        assert_eq!(theirs.peek(&mut bytes).unwrap(), 0);
        assert_eq!(theirs.read(&mut bytes).unwrap(), 0);
    }
}

parity! {
    fn a_clone_is_the_same_stream_and_the_last_one_ends_it(net) {
        let (ours, mut theirs) = net.pair();
        let mut second = ours.try_clone().unwrap();
        let third = second.try_clone().unwrap();
        drop(ours);
        second.write_all(b"still here").unwrap();
        let mut bytes = [0; 10];
        theirs.read_exact(&mut bytes).unwrap();
        theirs.set_read_timeout(Some(SHORT)).unwrap();
        assert_eq!(theirs.read(&mut bytes).unwrap_err().kind(), ErrorKind::WouldBlock);
        theirs.set_read_timeout(None).unwrap();
        third.set_read_timeout(Some(SHORT)).unwrap();
        assert_eq!(second.read_timeout().unwrap(), Some(SHORT), "options are the socket's");
        drop(second);
        drop(third);
        assert_eq!(theirs.read(&mut bytes).unwrap(), 0);
    }
}

parity! {
    fn after_shutdown_write_the_other_way_goes_on(net) {
        let (mut ours, mut theirs) = net.pair();
        ours.shutdown(Shutdown::Write).unwrap();
        assert_eq!(ours.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
        assert_eq!(theirs.read(&mut [0; 8]).unwrap(), 0);
        for _ in 0..10 {
            theirs.write_all(b"on").unwrap();
            ours.read_exact(&mut [0; 2]).unwrap();
        }
    }
}

parity! {
    fn shutdown_read_wakes_a_reader_with_the_end(net) {
        let (ours, _theirs) = net.pair();
        let mut reader = ours.try_clone().unwrap();
        let reading = std::thread::spawn(move || reader.read(&mut [0; 8]).unwrap());
        std::thread::sleep(SHORT);
        ours.shutdown(Shutdown::Read).unwrap();
        assert_eq!(reading.join().unwrap(), 0);
    }
}

parity! {
    fn after_shutdown_read_the_other_way_goes_on(net) {
        let (mut ours, mut theirs) = net.pair();
        ours.shutdown(Shutdown::Read).unwrap();
        for _ in 0..10 {
            ours.write_all(b"on").unwrap();
            theirs.read_exact(&mut [0; 2]).unwrap();
        }
        assert_eq!(ours.read(&mut [0; 8]).unwrap(), 0);
        drop(ours);
        assert_eq!(theirs.read(&mut [0; 8]).unwrap(), 0);
    }
}

parity! {
    fn shutdown_both_ends_both(net) {
        let (mut ours, mut theirs) = net.pair();
        ours.write_all(b"last").unwrap();
        ours.shutdown(Shutdown::Both).unwrap();
        assert_eq!(ours.read(&mut [0; 8]).unwrap(), 0);
        assert_eq!(ours.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
        let mut text = String::new();
        theirs.read_to_string(&mut text).unwrap();
        assert_eq!(text, "last");
    }
}

parity! {
    fn nobody_listening_is_connection_refused(net) {
        let port = net.listen(0).unwrap().port();
        let error = net.connect(port).map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    }
}

parity! {
    fn a_port_has_one_listener_at_a_time(net) {
        let listener = net.listen(0).unwrap();
        let error = net.listen(listener.port()).map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
        let clone = listener.try_clone().unwrap();
        let port = listener.port();
        drop(listener);
        assert!(net.listen(port).is_err(), "a clone holds it");
        drop(clone);
        net.listen(port).unwrap();
    }
}

parity! {
    fn a_connection_stands_before_it_is_accepted(net) {
        let listener = net.listen(0).unwrap();
        let mut all = Vec::new();
        for number in 0..20_u8 {
            let mut ours = net.connect(listener.port()).unwrap();
            ours.write_all(&[number]).unwrap();
            all.push(ours);
        }
        for number in 0..20_u8 {
            let mut theirs = listener.first_incoming().unwrap();
            let mut byte = [0];
            theirs.read_exact(&mut byte).unwrap();
            assert_eq!(byte, [number], "in order");
        }
    }
}

parity! {
    fn a_listener_that_goes_resets_what_it_did_not_accept(net) {
        let listener = net.listen(0).unwrap();
        let mut ours = net.connect(listener.port()).unwrap();
        drop(listener);
        let error = ours.read(&mut [0; 8]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
}

parity! {
    fn closing_with_bytes_unread_resets(net) {
        let (mut ours, theirs) = net.pair();
        ours.write_all(b"never read").unwrap();
        while theirs.peek(&mut [0; 16]).unwrap() < 10 {}
        drop(theirs);
        let error = ours.read(&mut [0; 8]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
}

parity! {
    fn writing_to_one_that_is_gone_fails(net) {
        let (mut ours, theirs) = net.pair();
        drop(theirs);
        assert_eq!(ours.read(&mut [0; 8]).unwrap(), 0);
        let start = Instant::now();
        let error = loop {
            if let Err(error) = ours.write(b"x") {
                break error;
            }
            assert!(start.elapsed() < HANG);
            std::thread::sleep(Duration::from_millis(1));
        };
        let expected = [ErrorKind::BrokenPipe, ErrorKind::ConnectionReset];
        assert!(expected.contains(&error.kind()), "{error:?}");
    }
}

parity! {
    fn vectored_io_keeps_the_order(net) {
        let (mut ours, mut theirs) = net.pair();
        let parts = [IoSlice::new(b"ab"), IoSlice::new(b""), IoSlice::new(b"cde")];
        assert_eq!(ours.write_vectored(&parts).unwrap(), 5);
        while theirs.peek(&mut [0; 8]).unwrap() < 5 {}
        let (mut one, mut two) = ([0; 3], [0; 4]);
        let mut into = [IoSliceMut::new(&mut one), IoSliceMut::new(&mut two)];
        assert_eq!(theirs.read_vectored(&mut into).unwrap(), 5);
        assert_eq!((&one, &two[..2]), (b"abc", &b"de"[..]));
        drop(ours);
        let mut into = [IoSliceMut::new(&mut one)];
        assert_eq!(theirs.read_vectored(&mut into).unwrap(), 0);
    }
}

parity! {
    fn empty_reads_and_writes_do_nothing(net) {
        let (mut ours, mut theirs) = net.pair();
        assert_eq!(ours.write(b"").unwrap(), 0);
        theirs.write_all(b"x").unwrap();
        assert_eq!(ours.read(&mut []).unwrap(), 0);
        assert_eq!(ours.read(&mut [0; 8]).unwrap(), 1);
        assert!(ours.take_error().unwrap().is_none());
        ours.flush().unwrap();
    }
}

parity! {
    fn what_was_written_before_a_close_arrives(net) {
        let (mut ours, mut theirs) = net.pair();
        let sent: Vec<u8> = (0..4_000_000_u32).map(|i| (i % 251) as u8).collect();
        let expected = sent.clone();
        let writing = std::thread::spawn(move || ours.write_all(&sent).unwrap());
        let mut received = Vec::new();
        theirs.read_to_end(&mut received).unwrap();
        writing.join().unwrap();
        assert!(received == expected, "{} bytes", received.len());
    }
}

parity! {
    fn both_directions_at_once(net) {
        let (ours, theirs) = net.pair();
        let sides = [ours, theirs].map(|side| {
            let mut reader = side.try_clone().unwrap();
            let reading = std::thread::spawn(move || {
                let mut received = Vec::new();
                reader.read_to_end(&mut received).unwrap();
                received.len()
            });
            let writing = std::thread::spawn(move || {
                let mut side = side;
                side.write_all(&vec![5; 2 << 20]).unwrap();
                side.shutdown(Shutdown::Write).unwrap();
            });
            (reading, writing)
        });
        for (reading, writing) in sides {
            writing.join().unwrap();
            assert_eq!(reading.join().unwrap(), 2 << 20);
        }
    }
}

parity! {
    fn a_descriptor_can_be_polled(net) {
        let (ours, mut theirs) = net.pair();
        assert!(!readable(&ours, Duration::from_millis(20)));
        theirs.write_all(b"x").unwrap();
        assert!(readable(&ours, HANG));
    }
}

parity! {
    /// Within one system the kernel tells the writer, where TCP takes and keeps what nobody will read.
    fn one_that_does_not_read_any_more_can_still_write(net) {
        let (mut ours, mut theirs) = net.pair();
        theirs.shutdown(Shutdown::Read).unwrap();
        for _ in 0..20 {
            if let Err(error) = ours.write(b"x") {
                assert_eq!(error.kind(), ErrorKind::BrokenPipe);
            }
            theirs.write_all(b"on").unwrap();
            ours.read_exact(&mut [0; 2]).unwrap();
        }
    }
}
