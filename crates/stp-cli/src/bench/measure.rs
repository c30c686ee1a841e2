//! The measurements: each fills its time and gives figures.
//!
//! - Nothing is measured cold: what a connection or a window needs to grow is done before the clock starts.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

use super::conn::{Conn, Errand, Way};
use super::floor::fresh_base;
use super::world::{World, failed};
use crate::CliError;

/// Bytes of a message where many streams are measured.
pub(super) const MANY_BYTES: usize = 64;
/// Part of a time that is spent before the clock starts.
const WARM_PART: u32 = 8;
/// How long the end of many streams is waited for, and how often it is looked for.
const LET_GO_MAX: Duration = Duration::from_secs(1);
const LET_GO_LOOK: Duration = Duration::from_millis(5);
/// Clients that connect at once.
pub(super) const CLIENTS: u64 = 32;
/// How long the answers of all streams may take.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// Times of round trips, in us, in the order measured; `None` if this way cannot carry such a message.
pub(super) fn round_trips(
    world: &mut World,
    way: Way,
    size: u64,
    time: Duration,
) -> Result<Option<Vec<f64>>, CliError> {
    if way == Way::Floor {
        let base = fresh_base()?;
        let Some(floor) = &mut world.floor else {
            return Ok(None);
        };
        let Some(size) = floor.carrier(size) else {
            return Ok(None);
        };
        floor.prepare(size, base)?;
        world.echo_on_floor(size, base)?;
        let Some(floor) = &mut world.floor else {
            return Ok(None);
        };
        let mut times = floor.round_trips(size, base, time + time / WARM_PART)?;
        times.drain(..times.len() / (WARM_PART as usize + 1));
        return Ok(Some(times));
    }
    let mut conn = world.connect(way, Errand::Echo(size))?;
    let mut message = vec![7; size as usize];
    let mut trip = || -> io::Result<f64> {
        let start = Instant::now();
        conn.write_all(&message)?;
        conn.read_exact(&mut message)?;
        Ok(start.elapsed().as_secs_f64() * 1e6)
    };
    let warm = Instant::now();
    while warm.elapsed() < time / WARM_PART {
        trip().map_err(|error| failed(way, &error))?;
    }
    let mut times = Vec::new();
    let begin = Instant::now();
    while begin.elapsed() < time || times.is_empty() {
        times.push(trip().map_err(|error| failed(way, &error))?);
    }
    Ok(Some(times))
}

/// What a stream achieved.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rate {
    pub(super) mb_per_s: f64,
    pub(super) cpu_s_per_gb: f64,
}

/// A stream of messages of one size, as fast as it goes. For the floor, the size is that of its slots.
pub(super) fn stream(
    world: &mut World,
    way: Way,
    size: u64,
    time: Duration,
) -> Result<Option<Rate>, CliError> {
    let rate = |bytes: u64, seconds: f64, cpu: f64| {
        Some(Rate {
            mb_per_s: bytes as f64 / 1e6 / seconds,
            cpu_s_per_gb: cpu / (bytes.max(1) as f64 / 1e9),
        })
    };
    if way == Way::Floor {
        let base = fresh_base()?;
        let before = super::world::cpu_seconds();
        let Some(floor) = &world.floor else {
            return Ok(None);
        };
        let (bytes, seconds) = floor.stream(size, base, time)?;
        return Ok(rate(bytes, seconds, super::world::cpu_seconds() - before));
    }
    let mut conn = world.connect(way, Errand::Sink)?;
    let message = vec![5; size as usize];
    let mut sent = 0_u64;
    let mut send = |conn: &mut Conn| -> Result<(), CliError> {
        conn.write_all(&message)
            .map_err(|error| failed(way, &error))?;
        sent += size;
        Ok(())
    };
    let warm = Instant::now();
    while warm.elapsed() < time / WARM_PART {
        send(&mut conn)?;
    }
    // What is still under way from before the clock started is as much as what will be at the end.
    let before = world.cpu_seconds(way)?;
    let start = Instant::now();
    let warm_bytes = sent;
    let mut send = |conn: &mut Conn| -> Result<(), CliError> {
        conn.write_all(&message)
            .map_err(|error| failed(way, &error))?;
        sent += size;
        Ok(())
    };
    while start.elapsed() < time {
        send(&mut conn)?;
    }
    let mut total = [0; 8];
    conn.finish_writing()
        .and_then(|()| conn.read_exact(&mut total))
        .map_err(|error| failed(way, &error))?;
    let seconds = start.elapsed().as_secs_f64();
    let cpu = world.cpu_seconds(way)? - before;
    if u64::from_le_bytes(total) != sent {
        return Err(CliError::new(format_args!(
            "{}: {} bytes were sent and {} arrived: this is a bug in stp",
            way.name(),
            sent,
            u64::from_le_bytes(total)
        )));
    }
    Ok(rate(sent - warm_bytes, seconds, cpu))
}

/// Messages a second of so many streams, each with one small message under way, echoed.
pub(super) fn many(
    world: &mut World,
    way: Way,
    streams: u64,
    time: Duration,
) -> Result<(f64, Vec<Conn>), CliError> {
    let io = |error: io::Error| failed(way, &error);
    let epoll = epoll::create(CreateFlags::CLOEXEC).map_err(|errno| io(errno.into()))?;
    let mut conns = BTreeMap::new();
    for (number, conn) in (0..).zip(connected(world, way, streams)?) {
        conn.set_nonblocking().map_err(io)?;
        epoll::add(&epoll, &conn, EventData::new_u64(number), EventFlags::IN)
            .map_err(|errno| io(errno.into()))?;
        conns.insert(number, (conn, 0));
    }
    let message = [9; MANY_BYTES];
    for (conn, _) in conns.values_mut() {
        conn.write_all(&message).map_err(io)?;
    }
    let mut answered = 0_u64;
    let mut events = Vec::with_capacity(256);
    let mut buf = [0; MANY_BYTES];
    let begin = Instant::now();
    let warm = time / WARM_PART;
    let (mut start, mut counted) = (begin, 0);
    let mut waiting = streams;
    while waiting > 0 {
        let over = begin.elapsed() >= time + warm;
        if begin.elapsed() > time + warm + ANSWER_MAX {
            return Err(CliError::new(format_args!(
                "{}: {waiting} of {streams} streams had no answer within {ANSWER_MAX:?}",
                way.name()
            )));
        }
        if start == begin && begin.elapsed() >= warm {
            (start, counted) = (Instant::now(), answered);
        }
        events.clear();
        let tick = Timespec {
            tv_sec: 0,
            tv_nsec: 100_000_000,
        };
        match epoll::wait(&epoll, spare_capacity(&mut events), Some(&tick)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(io(errno.into())),
        }
        for event in &events {
            let Some((conn, got)) = conns.get_mut(&event.data.u64()) else {
                continue;
            };
            match conn.read(&mut buf[..MANY_BYTES - *got]) {
                Ok(0) => return Err(io(io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => *got += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(io(error)),
            }
            if *got == MANY_BYTES {
                *got = 0;
                answered += 1;
                if over {
                    waiting -= 1;
                } else {
                    conn.write_all(&message).map_err(io)?;
                }
            }
        }
    }
    let rate = (answered - counted) as f64 / start.elapsed().as_secs_f64();
    Ok((rate, conns.into_values().map(|(conn, _)| conn).collect()))
}

/// Streams of this process's node.
pub(super) fn streams(world: &World) -> Result<u32, CliError> {
    Ok(world.engine.stats().map_err(CliError::new)?.streams)
}

/// Waits until no more streams are left than there were: the end of a thousand is no part of what is measured next.
pub(super) fn let_go(world: &World, before: u32) -> Result<(), CliError> {
    let start = Instant::now();
    while streams(world)? > before && start.elapsed() < LET_GO_MAX {
        thread::sleep(LET_GO_LOOK);
    }
    Ok(())
}

/// So many connections with [`Errand::Many`], made by several threads.
fn connected(world: &World, way: Way, streams: u64) -> Result<Vec<Conn>, CliError> {
    let dialer = world.dialer(way)?;
    let left = AtomicU64::new(streams);
    let take = || left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
    thread::scope(|scope| {
        let threads: Vec<_> = (0..streams.min(CLIENTS))
            .map(|_| {
                scope.spawn(|| {
                    let mut conns = Vec::new();
                    while take().is_ok() {
                        let mut conn = dialer.dial()?;
                        conn.write_all(&Errand::Many.encode())
                            .map_err(|error| failed(way, &error))?;
                        conns.push(conn);
                    }
                    Ok(conns)
                })
            })
            .collect();
        let mut conns = Vec::new();
        for thread in threads {
            let made: Result<Vec<Conn>, CliError> = thread
                .join()
                .unwrap_or_else(|_| Err(CliError::new("a thread of the bench failed")));
            conns.extend(made?);
        }
        Ok(conns)
    })
}

/// Connections a second: one after the other, or by many clients at once. Each is closed at once.
pub(super) fn connects(
    world: &World,
    way: Way,
    clients: u64,
    time: Duration,
) -> Result<f64, CliError> {
    let dialer = world.dialer(way)?;
    // The first one after a pause waits for the other node's next look at the directory.
    let warm = Instant::now();
    drop(dialer.dial()?);
    while warm.elapsed() < time / WARM_PART {
        drop(dialer.dial()?);
    }
    let done = AtomicU64::new(0);
    let start = Instant::now();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..clients)
            .map(|_| {
                scope.spawn(|| {
                    while start.elapsed() < time {
                        drop(dialer.dial()?);
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(())
                })
            })
            .collect();
        for thread in threads {
            thread
                .join()
                .unwrap_or_else(|_| Err(CliError::new("a thread of the bench failed")))?;
        }
        Ok::<(), CliError>(())
    })?;
    Ok(done.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64())
}

/// What one idle node costs.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub(super) struct Idle {
    /// Streams that stand and carry nothing.
    pub(super) streams: u64,
    pub(super) reads_per_s: f64,
    pub(super) writes_per_s: f64,
    /// Of one core.
    pub(super) cpu_percent: f64,
}

/// A while in which nothing happens, and how long before it nothing does either.
#[derive(Clone, Copy)]
pub(super) struct Rest {
    pub(super) settle: Duration,
    pub(super) time: Duration,
}

/// The mate's node while nothing happens.
pub(super) fn idle(world: &mut World, streams: u64, rest: Rest) -> Result<Idle, CliError> {
    thread::sleep(rest.settle);
    let before = world.mate_spent()?;
    let start = Instant::now();
    thread::sleep(rest.time);
    let after = world.mate_spent()?;
    let seconds = start.elapsed().as_secs_f64();
    Ok(Idle {
        streams,
        reads_per_s: (after.reads - before.reads) as f64 / seconds,
        writes_per_s: (after.writes - before.writes) as f64 / seconds,
        cpu_percent: (after.cpu_s - before.cpu_s) / seconds * 100.0,
    })
}
