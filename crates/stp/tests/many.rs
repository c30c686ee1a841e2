//! Many streams at once, of one process and of one link.

mod support;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use support::{Conn, Listen, Net, Stp};

const STREAMS: usize = 150;

/// What stream `number` sends; no two the same.
fn text(number: usize) -> Vec<u8> {
    let length = 10_000 + 997 * (number % 41);
    (0..length)
        .map(|i| (i.wrapping_mul(number + 7) >> 3) as u8)
        .collect()
}

/// Echoes every stream on a thread of its own; one more stream stops reading and must not hold up the others.
fn every_stream_gets_its_own_bytes_back(net: &Stp) {
    let listener = net.listen(0).unwrap();
    let port = listener.port();
    let stalled = net.connect(port).unwrap();
    let (mut stalled_peer, _) = listener.accept().unwrap();
    stalled_peer
        .set_write_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    while stalled_peer.write(&[9; 1 << 16]).is_ok() {}

    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..STREAMS {
                let (stream, _) = listener.accept().unwrap();
                scope.spawn(move || {
                    std::io::copy(&mut &stream, &mut &stream).unwrap();
                });
            }
        });
        for number in 0..STREAMS {
            scope.spawn(move || {
                let mut stream = net.connect(port).unwrap();
                let mut writer = Conn::try_clone(&stream).unwrap();
                let sent = text(number);
                let expected = sent.clone();
                let writing = std::thread::spawn(move || {
                    writer.write_all(&sent).unwrap();
                    writer.shutdown(Shutdown::Write).unwrap();
                });
                let mut received = Vec::new();
                stream.read_to_end(&mut received).unwrap();
                writing.join().unwrap();
                assert!(received == expected, "stream {number}");
            });
        }
    });
    drop(stalled);
}

#[test]
fn within_one_system() {
    every_stream_gets_its_own_bytes_back(&Stp::direct());
}

#[test]
fn across() {
    every_stream_gets_its_own_bytes_back(&Stp::across());
}

#[test]
fn through_shared_engines() {
    every_stream_gets_its_own_bytes_back(&Stp::shared());
}

/// As a server that is opened and closed by the hour: nothing piles up.
#[test]
fn streams_and_listeners_come_and_go() {
    let net = Stp::across();
    let before = descriptors();
    for _ in 0..5 {
        let listener = net.listen(7000).unwrap();
        for _ in 0..20 {
            let mut ours = net.connect(7000).unwrap();
            let (mut theirs, _) = listener.accept().unwrap();
            ours.write_all(b"x").unwrap();
            theirs.read_exact(&mut [0]).unwrap();
            drop(ours);
            assert_eq!(theirs.read(&mut [0]).unwrap(), 0);
        }
    }
    let start = std::time::Instant::now();
    while descriptors() > before + 4 {
        let seconds = start.elapsed().as_secs();
        assert!(seconds < 20, "{before} before, {} now", descriptors());
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}
