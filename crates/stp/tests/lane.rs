//! Bytes that go past the socket and bytes that go through it: one order, whichever way each call takes.
//!
//! Each body runs on a file volume and, where this host has one, on mapped memory.

mod support;

use std::io::{ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, SendFlags};

const SHORT: Duration = Duration::from_millis(50);
/// Files here lie in memory.
const MEMORY: &str = "/dev/shm";

struct Pair {
    ours: stp::Stream,
    theirs: stp::Stream,
    groups: [stp::Group; 2],
    _root: tempfile::TempDir,
}

fn pair_on(root: tempfile::TempDir, volume: &str) -> Pair {
    let groups = ["alpha", "beta"].map(|system| {
        stp::Group::builder(volume)
            .system(system)
            .run_dir(root.path().join(format!("run-{system}")))
            .engine(stp::EngineChoice::Embedded)
            .open()
            .unwrap()
    });
    let listener = groups[1].listen(0).unwrap();
    let address = format!("beta:{}", listener.local_addr().unwrap().port);
    let ours = groups[0].connect(address.as_str()).unwrap();
    let (theirs, _) = listener.accept().unwrap();
    Pair {
        ours,
        theirs,
        groups,
        _root: root,
    }
}

/// Runs a body on every kind of volume.
fn on_each(body: impl Fn(Pair)) {
    let root = tempfile::tempdir().unwrap();
    let volume = root.path().join("volume");
    support::format(&volume);
    body(pair_on(root, &format!("file:{}", volume.display())));
    if Path::new(MEMORY).is_dir() {
        let root = tempfile::tempdir_in(MEMORY).unwrap();
        let volume: PathBuf = root.path().join("volume");
        support::format(&volume);
        body(pair_on(root, &format!("mem:{}", volume.display())));
    }
}

fn byte_at(offset: usize) -> u8 {
    (offset as u64)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .to_be_bytes()[0]
}

fn bytes_at(offset: usize, length: usize) -> Vec<u8> {
    (offset..offset + length).map(byte_at).collect()
}

#[track_caller]
fn check(offset: usize, bytes: &[u8]) {
    let wrong = bytes
        .iter()
        .zip(offset..)
        .find(|(byte, at)| **byte != byte_at(*at));
    assert!(
        wrong.is_none(),
        "a wrong byte: {wrong:?}, piece at {offset}"
    );
}

/// Sizes that are small for long, then large, without a pattern that repeats soon.
fn size_at(step: usize) -> usize {
    let most = [1, 64, 700, 5_000, 20_000, 70_000, 300_000][step * 7 / 3 % 7];
    1 + (step * 7919) % most
}

fn is_readable(socket: impl AsFd) -> bool {
    let mut watched = [PollFd::new(&socket, PollFlags::IN)];
    poll(&mut watched, Some(&Timespec::default())).unwrap() == 1
}

/// Writes `total` bytes in every way there is, in turn.
fn write_all_ways(stream: &stp::Stream, total: usize, exposed: bool) {
    let mut offset = 0;
    for step in 0.. {
        let bytes = bytes_at(offset, size_at(step).min(total - offset));
        let mut stream = stream;
        let count = match step % 5 {
            3 => {
                let (one, two) = bytes.split_at(bytes.len() / 2);
                stream
                    .write_vectored(&[IoSlice::new(one), IoSlice::new(two)])
                    .unwrap()
            }
            4 if exposed => rustix::net::send(stream, &bytes, SendFlags::NOSIGNAL).unwrap(),
            _ => stream.write(&bytes).unwrap(),
        };
        offset += count;
        if offset == total {
            return;
        }
    }
}

/// Reads to the end in every way there is, in turn.
fn read_all_ways(stream: &stp::Stream, total: usize, exposed: bool) {
    let mut offset = 0;
    let mut buf = vec![0; 128 << 10];
    for step in 0.. {
        let room = size_at(step * 3 + 1).min(buf.len());
        let mut stream = stream;
        let count = match step % 6 {
            2 => {
                let (one, two) = buf[..room].split_at_mut(room / 2);
                stream
                    .read_vectored(&mut [IoSliceMut::new(one), IoSliceMut::new(two)])
                    .unwrap()
            }
            3 => {
                let count = stream.peek(&mut buf[..room]).unwrap();
                check(offset, &buf[..count]);
                continue;
            }
            4 if exposed => {
                match rustix::net::recv(stream, &mut buf[..room], RecvFlags::DONTWAIT) {
                    Ok((count, _)) => count,
                    Err(_) => continue,
                }
            }
            _ => stream.read(&mut buf[..room]).unwrap(),
        };
        check(offset, &buf[..count]);
        offset += count;
        if count == 0 {
            break;
        }
    }
    assert_eq!(offset, total);
}

#[test]
fn both_ways_at_once_keep_the_order() {
    let total = 6 << 20;
    for exposed in [false, true] {
        on_each(|pair| {
            std::thread::scope(|scope| {
                for (writer, reader) in [(&pair.ours, &pair.theirs), (&pair.theirs, &pair.ours)] {
                    scope.spawn(move || {
                        write_all_ways(writer, total, exposed);
                        writer.shutdown(Shutdown::Write).unwrap();
                    });
                    scope.spawn(move || read_all_ways(reader, total, exposed));
                }
            });
        });
    }
}

#[test]
fn a_descriptor_that_is_asked_for_has_all_that_had_arrived() {
    on_each(|mut pair| {
        let sent = bytes_at(0, 200_000);
        pair.ours.write_all(&sent).unwrap();
        let mut buf = [0; 100];
        pair.theirs.read_exact(&mut buf).unwrap();
        check(0, &buf);
        pair.ours.write_all(&bytes_at(200_000, 10)).unwrap();
        // From here on only the descriptor is looked at.
        let mut offset = 100;
        let mut buf = vec![0; 7_000];
        while offset < 200_010 {
            let count = rustix::io::read(&pair.theirs, &mut buf).unwrap();
            check(offset, &buf[..count]);
            offset += count;
        }
        assert!(!is_readable(&pair.theirs));
        pair.ours.write_all(b"x").unwrap();
        assert_eq!(rustix::io::read(&pair.theirs, &mut buf).unwrap(), 1);
    });
}

#[test]
fn what_another_owner_of_the_descriptor_writes_keeps_its_place() {
    on_each(|mut pair| {
        let mut offset = 0;
        let mut copy = None;
        for step in 0..400 {
            let bytes = bytes_at(offset, 1 + step % 97);
            match &copy {
                Some(copy) if step % 3 == 0 => {
                    assert_eq!(rustix::io::write(copy, &bytes).unwrap(), bytes.len());
                }
                _ => pair.ours.write_all(&bytes).unwrap(),
            }
            offset += bytes.len();
            if step == 100 {
                copy = Some(rustix::io::dup(&pair.ours).unwrap());
            }
        }
        let mut received = vec![0; offset];
        pair.theirs.read_exact(&mut received).unwrap();
        check(0, &received);
    });
}

#[test]
fn closing_with_bytes_kept_for_a_reader_resets() {
    on_each(|mut pair| {
        pair.ours.write_all(&bytes_at(0, 150_000)).unwrap();
        pair.theirs.read_exact(&mut [0; 10]).unwrap();
        drop(pair.theirs);
        let error = pair.ours.read(&mut [0; 8]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    });
}

/// What a short visit writes behind its number.
fn visit_bytes(number: u8) -> usize {
    usize::from(number) % 5 * 700 + 2
}

/// Writes by the lane and by the socket, one behind the other, and closes at once; every fourth waits for the answer.
fn visit(mut stream: stp::Stream, number: u8) {
    let bytes = bytes_at(0, visit_bytes(number));
    let (one, two) = bytes.split_at(bytes.len() / 2);
    let number = [number];
    match number[0] % 2 {
        0 => {
            stream.write_all(&number).unwrap();
            stream.write_all(one).unwrap();
            let count = stream.write_vectored(&[IoSlice::new(two)]).unwrap();
            assert_eq!(count, two.len());
        }
        _ => {
            let all = [IoSlice::new(&number), IoSlice::new(one)];
            let count = stream.write_vectored(&all).unwrap();
            assert_eq!(count, 1 + one.len());
            stream.write_all(two).unwrap();
        }
    }
    if number[0] % 4 == 3 {
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        assert_eq!(answer, number);
    }
}

fn receive_visit(mut stream: stp::Stream) {
    let mut all = Vec::new();
    // An end that is not in order is an error.
    stream.read_to_end(&mut all).unwrap();
    let (number, bytes) = all.split_first().expect("nothing came");
    assert_eq!(bytes.len(), visit_bytes(*number), "visit {number}");
    check(0, bytes);
    if number % 4 == 3 {
        stream.write_all(&[*number]).unwrap();
    }
}

/// Many connect, write and close at the same time: what they wrote comes, then an end in order.
#[test]
fn what_was_written_before_a_close_comes_before_a_clean_end() {
    const VISITORS: u8 = 6;
    const VISITS: u8 = 30;
    on_each(|pair| {
        let listener = pair.groups[1].listen(0).unwrap();
        let address = format!("beta:{}", listener.local_addr().unwrap().port);
        let (begun, over) = (AtomicU32::new(0), AtomicBool::new(false));
        let (begun, over, address) = (&begun, &over, address.as_str());
        let group = &pair.groups[0];
        std::thread::scope(|scope| {
            let visitors: Vec<_> = (0..VISITORS)
                .map(|visitor| {
                    scope.spawn(move || {
                        for step in 0..VISITS {
                            let stream = group.connect(address).unwrap();
                            begun.fetch_add(1, Ordering::SeqCst);
                            visit(stream, visitor * VISITS + step);
                        }
                    })
                })
                .collect();
            scope.spawn(move || {
                for accepted in 0.. {
                    let (stream, _) = listener.accept().unwrap();
                    if over.load(Ordering::SeqCst) && accepted == begun.load(Ordering::SeqCst) {
                        return;
                    }
                    scope.spawn(move || receive_visit(stream));
                }
            });
            let done: Vec<_> = visitors.into_iter().map(|visitor| visitor.join()).collect();
            // One more, behind all that came before, also where some of them failed.
            over.store(true, Ordering::SeqCst);
            group.connect(address).unwrap();
            assert!(done.iter().all(Result::is_ok), "a visitor failed");
        });
    });
}

#[test]
fn a_reader_that_pauses_gets_everything() {
    on_each(|pair| {
        let total = 3 << 20;
        std::thread::scope(|scope| {
            let mut ours = &pair.ours;
            scope.spawn(move || {
                ours.write_all(&bytes_at(0, total)).unwrap();
                ours.shutdown(Shutdown::Write).unwrap();
            });
            let mut theirs = &pair.theirs;
            let mut buf = vec![0; 40_000];
            let mut offset = 0;
            loop {
                let count = theirs.read(&mut buf).unwrap();
                check(offset, &buf[..count]);
                offset += count;
                match count {
                    0 => break,
                    // Longer than anything is kept for it.
                    _ if offset % 8 == 0 => std::thread::sleep(SHORT / 10),
                    _ => {}
                }
            }
            assert_eq!(offset, total);
        });
    });
}

#[test]
fn a_writer_without_room_waits_no_longer_than_it_may() {
    on_each(|mut pair| {
        let block = bytes_at(0, 1 << 20);
        pair.ours.set_write_timeout(Some(SHORT)).unwrap();
        let mut sent = 0;
        let error = loop {
            let from = sent % block.len();
            match pair.ours.write(&block[from..]) {
                Ok(count) => sent += count,
                Err(error) => break error,
            }
            assert!(sent < 256 << 20, "taken without a reader");
        };
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        pair.ours.set_write_timeout(None).unwrap();
        pair.ours.set_nonblocking(true).unwrap();
        let error = loop {
            let from = sent % block.len();
            match pair.ours.write(&block[from..]) {
                Ok(count) => sent += count,
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        pair.ours.set_nonblocking(false).unwrap();
        // Now it waits, and is woken by the reader.
        let mut ours = pair.ours.try_clone().unwrap();
        let rest = block[sent % block.len()..].to_vec();
        let total = sent + rest.len();
        let writing = std::thread::spawn(move || ours.write_all(&rest).unwrap());
        let mut received = vec![0; 64 << 10];
        let mut offset = 0;
        while offset < total {
            let count = pair.theirs.read(&mut received).unwrap();
            for (at, byte) in (offset..).zip(&received[..count]) {
                assert_eq!(*byte, block[at % block.len()], "at {at}");
            }
            offset += count;
        }
        writing.join().unwrap();
    });
}

/// Writes without a reader, in a thread of its own, which ends with what a write failed by.
fn write_until_it_fails(stream: &stp::Stream) -> JoinHandle<ErrorKind> {
    let mut writer = stream.try_clone().unwrap();
    std::thread::spawn(move || {
        let block = vec![7; 1 << 20];
        loop {
            if let Err(error) = writer.write(&block) {
                return error.kind();
            }
        }
    })
}

#[test]
fn a_writer_that_waits_is_woken_by_the_streams_end() {
    on_each(|pair| {
        let writing = write_until_it_fails(&pair.ours);
        std::thread::sleep(SHORT);
        drop(pair.theirs);
        let expected = [ErrorKind::BrokenPipe, ErrorKind::ConnectionReset];
        assert!(expected.contains(&writing.join().unwrap()));
    });
    on_each(|pair| {
        let writing = write_until_it_fails(&pair.ours);
        std::thread::sleep(SHORT);
        pair.ours.shutdown(Shutdown::Write).unwrap();
        assert_eq!(writing.join().unwrap(), ErrorKind::BrokenPipe);
    });
}

#[test]
fn waiting_readers_hold_up_nobody() {
    on_each(|pair| {
        std::thread::scope(|scope| {
            // Two that wait for the same stream, while both directions of it are used.
            let mut readers = Vec::new();
            for _ in 0..2 {
                let mut theirs = &pair.theirs;
                readers.push(scope.spawn(move || {
                    let mut buf = [0; 64];
                    let mut total = 0;
                    loop {
                        match theirs.read(&mut buf).unwrap() {
                            0 => return total,
                            count => total += count,
                        }
                    }
                }));
            }
            let (mut theirs, mut ours) = (&pair.theirs, &pair.ours);
            for _ in 0..300 {
                theirs.write_all(&[1; 64]).unwrap();
                ours.read_exact(&mut [0; 64]).unwrap();
                ours.write_all(&[2; 64]).unwrap();
            }
            ours.shutdown(Shutdown::Write).unwrap();
            let total: usize = readers
                .into_iter()
                .map(|reader| reader.join().unwrap())
                .sum();
            assert_eq!(total, 300 * 64);
        });
    });
}
