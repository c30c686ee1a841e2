//! Giver and taker: a stream of `stp-load serve` changes its owner in the middle, every byte known to both ends.
//!
//! - One line on standard output for every step; exit code 0: the stream was whole, or is another's now.
//! - A giver whose gift nobody takes goes on to the end itself.
//!
//! ```text
//! stp-gift give SYSTEM:PORT TAKER KEY UP DOWN AT WAIT_MS    gives after AT bytes each way
//! stp-gift take NAME KEY UP DOWN AT WAIT_MS                 goes on there
//! ```

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::process::ExitCode;
use std::time::Duration;

use stp::{Group, Stream, TakerName};
use stp_tests::pattern;

const BLOCK: usize = 16 << 10;
/// As in `stp-load`.
const MAGIC: [u8; 8] = *b"STPLOAD1";
const DOWN: u64 = 0x5555_5555_0000_0000;

/// What the stream carries, and from where on.
#[derive(Clone, Copy)]
struct Plan {
    key: u64,
    up: u64,
    down: u64,
    at: u64,
    wait: Duration,
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args.as_slice() {
        ["give", place, taker, rest @ ..] => plan(rest).and_then(|plan| give(place, taker, plan)),
        ["take", name, rest @ ..] => plan(rest).and_then(|plan| take(name, plan)),
        _ => Err(io::Error::other("give or take what?")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("failed kind={:?} {error}", error.kind()));
            eprintln!("stp-gift: {error}");
            ExitCode::FAILURE
        }
    }
}

fn plan(words: &[&str]) -> io::Result<Plan> {
    let numbers: Result<Vec<u64>, _> = words.iter().map(|word| word.parse()).collect();
    let Ok([key, up, down, at, wait]) = numbers.as_deref() else {
        return Err(io::Error::other("KEY UP DOWN AT WAIT_MS are five numbers"));
    };
    Ok(Plan {
        key: *key,
        up: *up,
        down: *down,
        at: *at,
        wait: Duration::from_millis(*wait),
    })
}

fn say(line: &str) {
    println!("{line}");
}

fn group() -> io::Result<Group> {
    Group::from_env().map_err(|error| io::Error::other(error.to_string()))
}

fn give(place: &str, taker: &str, plan: Plan) -> io::Result<()> {
    let group = group()?;
    let stream = group.connect(place)?;
    let mut head = MAGIC.to_vec();
    for number in [plan.key, plan.up, plan.down] {
        head.extend(number.to_le_bytes());
    }
    (&stream).write_all(&head)?;
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| send(&stream, plan.key, 0, plan.at));
        receive(&stream, plan.key ^ DOWN, 0, plan.at)?;
        sender
            .join()
            .map_err(|_| io::Error::other("the sender's thread panicked"))?
    })?;
    let taker: TakerName = taker.parse().map_err(io::Error::other)?;
    let gift = stream.give(&taker, plan.wait)?;
    say(&format!("given at={}", plan.at));
    match gift.wait() {
        Ok(()) => {
            say("taken");
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::TimedOut => {
            say(&format!("kept kind={:?} {error}", error.kind()));
            go_on(&stream, plan)
        }
        Err(error) => Err(error),
    }
}

fn take(name: &str, plan: Plan) -> io::Result<()> {
    let group = group()?;
    say("waiting");
    let stream = group.take(name, Some(plan.wait))?;
    say(&format!(
        "took local={} peer={}",
        stream.local_addr()?,
        stream.peer_addr()?
    ));
    go_on(&stream, plan)
}

/// Sends and receives the rest, and the end.
fn go_on(stream: &Stream, plan: Plan) -> io::Result<()> {
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            send(stream, plan.key, plan.at, plan.up)?;
            stream.shutdown(Shutdown::Write)
        });
        let received =
            receive(stream, plan.key ^ DOWN, plan.at, plan.down).and_then(
                |()| match (&mut &*stream).read(&mut [0])? {
                    0 => Ok(()),
                    _ => Err(io::Error::other("bytes behind the end")),
                },
            );
        let sent = sender
            .join()
            .map_err(|_| io::Error::other("the sender's thread panicked"))?;
        if received.is_err() && sent.is_ok() {
            say("sent all of it, with its end");
        }
        received.and(sent)
    })?;
    say(&format!(
        "went on from={} sent={} received={} whole",
        plan.at,
        plan.up - plan.at,
        plan.down - plan.at
    ));
    Ok(())
}

fn send(mut stream: &Stream, key: u64, from: u64, to: u64) -> io::Result<()> {
    let mut block = vec![0; BLOCK];
    let mut at = from;
    while at < to {
        let part = (to - at).min(BLOCK as u64) as usize;
        pattern::fill(key, at, &mut block[..part]);
        stream.write_all(&block[..part])?;
        at += part as u64;
    }
    Ok(())
}

fn receive(mut stream: &Stream, key: u64, from: u64, to: u64) -> io::Result<()> {
    let (mut block, mut wanted) = (vec![0; BLOCK], vec![0; BLOCK]);
    let mut at = from;
    while at < to {
        let part = (to - at).min(BLOCK as u64) as usize;
        let n = stream.read(&mut block[..part])?;
        if n == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("a clean end after {at} of {to} bytes"),
            ));
        }
        pattern::fill(key, at, &mut wanted[..n]);
        if block[..n] != wanted[..n] {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("other bytes than were sent at {at}"),
            ));
        }
        at += n as u64;
    }
    Ok(())
}
