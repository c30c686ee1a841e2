//! Load generator: streams whose every byte is known to both ends, in both directions at once.
//!
//! - The client opens each stream with a header (key, bytes up, bytes down); both directions carry the keyed
//!   pattern, each its own, so that a foreign, lost, doubled or displaced byte shows at its offset.
//! - Each stream gives one line on standard output: what was sent and received, and how it ended.
//! - Exit code 0: every stream was whole and ended as sockets end.
//!
//! ```text
//! stp-load serve PORT [--streams N] [--rate BYTES_A_SECOND] [--hold SECONDS]
//! stp-load call SYSTEM:PORT [--streams N] [--up BYTES] [--down BYTES] [--rate BYTES_A_SECOND]
//!          [--hold SECONDS] [--stall SECONDS] [--stalled N] [--retry SECONDS] [--key KEY]
//! stp-load echo PORT                                one stream, every byte sent back
//! stp-load ping SYSTEM:PORT [--pings N]             round trips of 64 bytes; prints their quantiles
//! ```
//!
//! `--hold` waits after the last byte and before the end of the stream; `--stall` stops reading after the first
//! bytes, on the first `--stalled` streams.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use stp::{Group, Listener, Stream};
use stp_tests::pattern;

const MAGIC: [u8; 8] = *b"STPLOAD1";
const BLOCK: usize = 16 << 10;
const STACK: usize = 256 << 10;
/// The answer's key, so that a stream that is looped back onto itself shows.
const DOWN: u64 = 0x5555_5555_0000_0000;

#[derive(Clone, Copy, Debug)]
struct Options {
    streams: u64,
    up: u64,
    down: u64,
    rate: u64,
    stall: u64,
    stalled: u64,
    retry: u64,
    key: u64,
    hold: u64,
    pings: u64,
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (Some(role), Some(place)) = (args.first(), args.get(1)) else {
        eprintln!("usage: stp-load serve|echo PORT | call|ping SYSTEM:PORT [--OPTION NUMBER]...");
        return ExitCode::from(2);
    };
    let mut options = Options {
        streams: 1,
        up: 0,
        down: 0,
        rate: 0,
        stall: 0,
        stalled: 0,
        retry: 30,
        key: 1,
        hold: 0,
        pings: 1000,
    };
    for pair in args[2..].chunks(2) {
        let Some(Ok(number)) = pair.get(1).map(|number| number.parse()) else {
            eprintln!("stp-load: {} wants a number", pair[0]);
            return ExitCode::from(2);
        };
        match pair[0].as_str() {
            "--streams" => options.streams = number,
            "--up" => options.up = number,
            "--down" => options.down = number,
            "--rate" => options.rate = number,
            "--stall" => options.stall = number,
            "--stalled" => options.stalled = number,
            "--retry" => options.retry = number,
            "--key" => options.key = number,
            "--hold" => options.hold = number,
            "--pings" => options.pings = number,
            other => {
                eprintln!("stp-load: no option {other}");
                return ExitCode::from(2);
            }
        }
    }
    let done = match role.as_str() {
        "serve" => serve(place, options),
        "echo" => echo(place),
        "ping" => ping(place, options),
        _ => call(place, options),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("failed kind={:?} {error}", error.kind());
            eprintln!("stp-load {role} {place}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn group() -> io::Result<Group> {
    Group::from_env().map_err(|error| io::Error::other(error.to_string()))
}

fn listen(port: &str) -> io::Result<Listener> {
    let port = port
        .parse()
        .map_err(|_| io::Error::other("PORT is no number"))?;
    let listener = group()?.listen(port)?;
    say(&format!("listening {}", listener.local_addr()?));
    Ok(listener)
}

/// Sends back what one stream brings.
fn echo(port: &str) -> io::Result<bool> {
    let (stream, _) = listen(port)?.accept()?;
    let mut block = vec![0; BLOCK];
    loop {
        match (&stream).read(&mut block)? {
            0 => return Ok(true),
            n => (&stream).write_all(&block[..n])?,
        }
    }
}

/// Round trips, one after the other, each checked.
fn ping(place: &str, options: Options) -> io::Result<bool> {
    let stream = connect(&group()?, place, options)?;
    let mut took = Vec::new();
    // The first tenth warms up.
    let warm = options.pings / 10;
    for number in 0..options.pings + warm {
        let (mut sent, mut came) = ([0; 64], [0; 64]);
        pattern::fill(options.key, number * 64, &mut sent);
        let start = Instant::now();
        (&stream).write_all(&sent)?;
        (&stream).read_exact(&mut came)?;
        if sent != came {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("round trip {number} brought other bytes"),
            ));
        }
        if number >= warm {
            took.push(start.elapsed());
        }
    }
    took.sort_unstable();
    let at = |percent: usize| took.get(took.len() * percent / 100).copied();
    let (p50, p99) = (at(50).unwrap_or_default(), at(99).unwrap_or_default());
    say(&format!(
        "round trips={} p50={p50:?} p99={p99:?}",
        took.len()
    ));
    Ok(true)
}

/// Serves `--streams` streams (0: for ever).
fn serve(port: &str, options: Options) -> io::Result<bool> {
    let listener = listen(port)?;
    let failed = Arc::new(AtomicU64::new(0));
    let mut threads = Vec::new();
    let mut count = 0;
    while options.streams == 0 || count < options.streams {
        let (stream, peer) = listener.accept()?;
        let failed = Arc::clone(&failed);
        count += 1;
        threads.push(
            std::thread::Builder::new()
                .stack_size(STACK)
                .spawn(move || {
                    let mut head = [0; 32];
                    let outcome = (&stream).read_exact(&mut head).and_then(|()| {
                        if head[..8] != MAGIC {
                            return Err(io::Error::new(
                                io::ErrorKind::InvalidData,
                                "no header of stp-load",
                            ));
                        }
                        let number = |at: usize| {
                            u64::from_le_bytes(head[at..at + 8].try_into().unwrap_or_default())
                        };
                        let (key, up, down) = (number(8), number(16), number(24));
                        Ok((
                            key,
                            exchange(&stream, [key ^ DOWN, key], [down, up], options, false),
                        ))
                    });
                    let (key, outcome) = match outcome {
                        Ok((key, outcome)) => (key, outcome),
                        Err(error) => (
                            0,
                            Outcome {
                                sent: 0,
                                received: 0,
                                error: Some(error),
                            },
                        ),
                    };
                    drop(stream);
                    if !outcome.tell(&format!("served key={key} peer={peer}")) {
                        failed.fetch_add(1, Ordering::Relaxed);
                    }
                })?,
        );
    }
    for thread in threads {
        thread
            .join()
            .map_err(|_| io::Error::other("a stream's thread panicked"))?;
    }
    Ok(failed.load(Ordering::Relaxed) == 0)
}

/// Opens all streams at once and runs them at once.
fn call(place: &str, options: Options) -> io::Result<bool> {
    let start = Instant::now();
    let group = loop {
        match group() {
            Ok(group) => break group,
            // The host's engine may be frozen or just starting.
            Err(error) if start.elapsed() >= Duration::from_secs(options.retry) => {
                return Err(error);
            }
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    };
    let mut threads = Vec::new();
    for index in 0..options.streams {
        let (group, place) = (group.clone(), place.to_owned());
        threads.push(
            std::thread::Builder::new()
                .stack_size(STACK)
                .spawn(move || {
                    let key = options.key.wrapping_mul(1_000_003).wrapping_add(index);
                    let outcome = connect(&group, &place, options).and_then(|stream| {
                        say(&format!(
                            "connected key={key} local={}",
                            stream.local_addr()?
                        ));
                        let mut head = MAGIC.to_vec();
                        for number in [key, options.up, options.down] {
                            head.extend(number.to_le_bytes());
                        }
                        (&stream).write_all(&head)?;
                        let stalled = index < options.stalled;
                        Ok(exchange(
                            &stream,
                            [key, key ^ DOWN],
                            [options.up, options.down],
                            options,
                            stalled,
                        ))
                    });
                    let outcome = outcome.unwrap_or_else(|error| Outcome {
                        sent: 0,
                        received: 0,
                        error: Some(error),
                    });
                    outcome.tell(&format!("called key={key}"))
                })?,
        );
    }
    let mut whole = true;
    for thread in threads {
        whole &= thread
            .join()
            .map_err(|_| io::Error::other("a stream's thread panicked"))?;
    }
    Ok(whole)
}

/// Connects; while the other side is not there yet, again.
fn connect(group: &Group, place: &str, options: Options) -> io::Result<Stream> {
    let start = Instant::now();
    loop {
        match group.connect(place) {
            Ok(stream) => return Ok(stream),
            Err(error) if start.elapsed() >= Duration::from_secs(options.retry) => {
                return Err(error);
            }
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

struct Outcome {
    sent: u64,
    received: u64,
    error: Option<io::Error>,
}

impl Outcome {
    fn tell(&self, head: &str) -> bool {
        let Self {
            sent,
            received,
            error,
        } = self;
        match error {
            None => say(&format!("{head} sent={sent} received={received} whole")),
            Some(error) => say(&format!(
                "{head} sent={sent} received={received} kind={:?} {error}",
                error.kind()
            )),
        }
        error.is_none()
    }
}

/// Sends `lens[0]` bytes of `keys[0]` and receives `lens[1]` of `keys[1]` and the end, at once.
fn exchange(
    stream: &Stream,
    keys: [u64; 2],
    lens: [u64; 2],
    options: Options,
    stalled: bool,
) -> Outcome {
    std::thread::scope(|scope| {
        let sender = std::thread::Builder::new()
            .stack_size(STACK)
            .spawn_scoped(scope, || send(stream, keys[0], lens[0], options));
        let stall = if stalled { options.stall } else { 0 };
        let (received, receive_error) = receive(stream, keys[1], lens[1], stall);
        let (sent, send_error) = match sender.map(std::thread::ScopedJoinHandle::join) {
            Ok(Ok(sent)) => sent,
            _ => (0, Some(io::Error::other("the sender's thread failed"))),
        };
        Outcome {
            sent,
            received,
            error: receive_error.or(send_error),
        }
    })
}

fn send(mut stream: &Stream, key: u64, len: u64, options: Options) -> (u64, Option<io::Error>) {
    let rate = options.rate;
    let mut block = vec![0; if rate == 0 { BLOCK } else { 1024 }];
    let start = Instant::now();
    let mut at = 0;
    while at < len {
        let part = usize::try_from(len - at)
            .unwrap_or(usize::MAX)
            .min(block.len());
        pattern::fill(key, at, &mut block[..part]);
        if let Err(error) = stream.write_all(&block[..part]) {
            return (at, Some(error));
        }
        at += part as u64;
        if let Some(nanos) = at.saturating_mul(1_000_000_000).checked_div(rate) {
            std::thread::sleep(Duration::from_nanos(nanos).saturating_sub(start.elapsed()));
        }
    }
    say(&format!("sent key={key} bytes={at}"));
    std::thread::sleep(Duration::from_secs(options.hold));
    (at, stream.shutdown(Shutdown::Write).err())
}

fn receive(mut stream: &Stream, key: u64, len: u64, stall: u64) -> (u64, Option<io::Error>) {
    let mut block = vec![0; BLOCK];
    let mut at = 0;
    let mut stall = Some(Duration::from_secs(stall)).filter(|stall| !stall.is_zero());
    loop {
        if at > 0
            && let Some(stall) = stall.take()
        {
            say(&format!("stalling key={key} at={at}"));
            std::thread::sleep(stall);
        }
        match stream.read(&mut block) {
            Ok(0) if at == len => return (at, None),
            Ok(0) => {
                return (
                    at,
                    Some(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "a clean end before the last byte",
                    )),
                );
            }
            Ok(n) => {
                if at == 0 {
                    say(&format!("receiving key={key}"));
                }
                if let Some(place) = pattern::first_wrong(key, at, &block[..n]) {
                    return (
                        at,
                        Some(io::Error::new(
                            io::ErrorKind::InvalidData,
                            format!("wrong byte at {place}"),
                        )),
                    );
                }
                at += n as u64;
                if at > len {
                    return (
                        at,
                        Some(io::Error::new(
                            io::ErrorKind::InvalidData,
                            "more bytes than were sent",
                        )),
                    );
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (at, Some(error)),
        }
    }
}

/// One whole line at once: many threads speak.
fn say(line: &str) {
    let _ = io::stdout()
        .lock()
        .write_all(format!("{line}\n").as_bytes());
}
