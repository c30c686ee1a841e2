//! What a program's descriptor costs by its kind: a Unix socket pair, and TCP over loopback.
//!
//! - Round trips of one byte between two threads, and one stream of large writes; the best of five rounds each.
//! - Nothing of STP is measured: it is what `stp run` had to choose between (`docs/RUN.md`).

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

const ROUNDS: usize = 5;
const TRIPS: u32 = 20_000;
const WRITE_BYTES: usize = 64 << 10;
const WRITES: usize = 16_384;

fn main() -> io::Result<()> {
    println!(
        "{:<14} {:>14} {:>12}",
        "descriptor", "round trip", "one way"
    );
    row("Unix pair", UnixStream::pair)?;
    row("TCP loopback", || {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let client = TcpStream::connect(listener.local_addr()?)?;
        let (server, _) = listener.accept()?;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        Ok((client, server))
    })
}

fn row<S: Read + Write + Send + 'static>(
    name: &str,
    pair: impl Fn() -> io::Result<(S, S)>,
) -> io::Result<()> {
    let (mut trip, mut rate) = (Duration::MAX, 0.0_f64);
    for _ in 0..ROUNDS {
        trip = trip.min(trips(pair()?)? / TRIPS);
        let bytes = (WRITE_BYTES * WRITES) as f64;
        rate = rate.max(bytes / stream(pair()?)?.as_secs_f64() / 1e6);
    }
    println!(
        "{name:<14} {:>11.1} us {rate:>7.0} MB/s",
        trip.as_secs_f64() * 1e6
    );
    Ok(())
}

fn trips<S: Read + Write + Send + 'static>((mut near, mut far): (S, S)) -> io::Result<Duration> {
    let echo = thread::spawn(move || -> io::Result<()> {
        let mut byte = [0];
        for _ in 0..TRIPS {
            far.read_exact(&mut byte)?;
            far.write_all(&byte)?;
        }
        Ok(())
    });
    let begun = Instant::now();
    let mut byte = [0];
    for _ in 0..TRIPS {
        near.write_all(&byte)?;
        near.read_exact(&mut byte)?;
    }
    let took = begun.elapsed();
    echo.join()
        .map_err(|_| io::Error::other("the echo failed"))??;
    Ok(took)
}

fn stream<S: Read + Write + Send + 'static>((mut near, mut far): (S, S)) -> io::Result<Duration> {
    let begun = Instant::now();
    let reader = thread::spawn(move || -> io::Result<()> {
        let mut space = vec![0; WRITE_BYTES];
        for _ in 0..WRITES {
            far.read_exact(&mut space)?;
        }
        Ok(())
    });
    let bytes = vec![7; WRITE_BYTES];
    for _ in 0..WRITES {
        near.write_all(&bytes)?;
    }
    reader
        .join()
        .map_err(|_| io::Error::other("the reader failed"))??;
    Ok(begun.elapsed())
}
