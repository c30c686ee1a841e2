//! The other process: it does what the first one asks for by lines of JSON on standard input.
//!
//! - It ends with the first one: its input ends, and the kernel sees to it besides.
//! - Whatever goes wrong is an answer, not a silence.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::{self, BufRead, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::process::{Signal, set_parent_process_death_signal};
use serde::{Deserialize, Serialize};
use stp::{EngineChoice, Group};
use stp_format::SeatId;
use stp_host::engine::EngineHandle;
use stp_medium::VolumeSpec;

use super::conn::{Conn, Errand};
use super::floor::Floor;
use super::world::{PORT, attach, cpu_seconds};
use crate::CliError;

/// Bytes read at once by whoever only counts them.
const SINK_BYTES: usize = 256 << 10;
/// Connections that wait to be accepted.
const QUEUE: i32 = 4096;
/// Names of the two pipes in the scratch folder.
pub(super) const PIPES: [&str; 2] = ["there", "back"];
pub(super) const SOCKET: &str = "unix.sock";

/// What the mate is asked for.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Ask {
    /// Begin: be this system of this volume.
    Begin {
        volume: String,
        run_dir: PathBuf,
        scratch: PathBuf,
        system: String,
    },
    /// Serve through the shared engine of this system too.
    Share { run_dir: PathBuf, system: String },
    /// Echo on the bare storage.
    Echo { other: u16, size: usize, base: u64 },
    /// Open the pipes and serve one connection over them.
    Pipe,
    /// Reads and writes of the storage, and CPU seconds, so far.
    Spent,
    /// Leave.
    End,
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    /// It serves.
    Begun {
        seat: u16,
        tcp_port: u16,
    },
    Done,
    Spent(Spent),
    Failed(String),
}

/// What a node has used so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Spent {
    pub(super) reads: u64,
    pub(super) writes: u64,
    pub(super) cpu_s: f64,
}

pub(super) fn spent(engine: &EngineHandle) -> Result<Spent, CliError> {
    let stats = engine.stats().map_err(CliError::new)?;
    Ok(Spent {
        reads: stats.reads,
        writes: stats.writes,
        cpu_s: cpu_seconds(),
    })
}

struct Mate {
    engine: EngineHandle,
    spec: VolumeSpec,
    scratch: PathBuf,
    volume: String,
    reactor: Arc<Reactor>,
}

/// Serves until the input ends.
pub(super) fn run() -> Result<(), CliError> {
    let failed = |error| CliError::new(format_args!("the bench's other process: {error}"));
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(failed)?;
    let mut mate = None;
    for line in io::stdin().lock().lines() {
        let line = line.map_err(|error| failed_io("its input", &error))?;
        let ask = serde_json::from_str(&line)
            .map_err(|error| CliError::new(format_args!("the bench's other process: {error}")))?;
        if matches!(ask, Ask::End) {
            break;
        }
        let answer = match handle(&mut mate, ask) {
            Ok(Some(answer)) => answer,
            Ok(None) => continue,
            Err(error) => Answer::Failed(error.to_string()),
        };
        say(&answer)?;
    }
    if let Some(mate) = mate {
        // Threads that wait for connections hold it too.
        mate.engine.leave();
    }
    Ok(())
}

fn failed_io(what: &str, error: &io::Error) -> CliError {
    CliError::new(format_args!("the bench's other process: {what}: {error}"))
}

fn say(answer: &Answer) -> Result<(), CliError> {
    let text = serde_json::to_string(answer).map_err(CliError::new)?;
    crate::out::data(format_args!("{text}\n"))
}

fn handle(mate: &mut Option<Mate>, ask: Ask) -> Result<Option<Answer>, CliError> {
    let Some(mate) = mate else {
        let Ask::Begin {
            volume,
            run_dir,
            scratch,
            system,
        } = ask
        else {
            return Err(CliError::new("the bench's other process was not begun"));
        };
        let (begun, answer) = Mate::begin(volume, &run_dir, scratch, &system)?;
        *mate = Some(begun);
        return Ok(Some(answer));
    };
    match ask {
        Ask::Share { run_dir, system } => {
            let group = Group::builder(&mate.volume)
                .system(&system)
                .run_dir(&run_dir)
                .engine(EngineChoice::Shared)
                .open()
                .map_err(CliError::new)?;
            mate.serve_stp(&group)?;
            Ok(Some(Answer::Done))
        }
        Ask::Echo { other, size, base } => {
            let geometry = mate.engine.volume().geometry;
            let own = mate.engine.seat();
            let mut floor = Floor::open(&mate.spec, &geometry, own, SeatId(other))?;
            floor.echo(size, base, || say(&Answer::Done))?;
            Ok(None)
        }
        Ask::Pipe => {
            let [there, back] = PIPES.map(|name| mate.scratch.join(name));
            let reactor = Arc::clone(&mate.reactor);
            thread::spawn(move || {
                // Opening waits for the other end; both sides open in the same order.
                let from = OpenOptions::new().read(true).open(there)?;
                let to = Some(OpenOptions::new().write(true).open(back)?);
                serve(Conn::Pipe { from, to }, &reactor)
            });
            Ok(Some(Answer::Done))
        }
        Ask::Spent => Ok(Some(Answer::Spent(spent(&mate.engine)?))),
        Ask::Begin { .. } | Ask::End => Ok(None),
    }
}

impl Mate {
    fn begin(
        volume: String,
        run_dir: &Path,
        scratch: PathBuf,
        system: &str,
    ) -> Result<(Self, Answer), CliError> {
        let (engine, group) = attach(&volume, run_dir, system)?;
        let reactor = Reactor::start().map_err(|error| failed_io("epoll", &error))?;
        let mate = Self {
            spec: volume.parse().map_err(CliError::new)?,
            engine,
            scratch,
            volume,
            reactor: Arc::new(reactor),
        };
        mate.serve_stp(&group)?;
        let tcp = TcpListener::bind("127.0.0.1:0").map_err(|error| failed_io("TCP", &error))?;
        // A queue that overflows costs a second each time: clients here are faster than the threads that serve them.
        rustix::net::listen(&tcp, QUEUE).map_err(|error| failed_io("TCP", &error.into()))?;
        let address = tcp.local_addr().map_err(|error| failed_io("TCP", &error))?;
        mate.accept(move || {
            let (stream, _) = tcp.accept()?;
            stream.set_nodelay(true)?;
            Ok(Conn::Tcp(stream))
        });
        let path = mate.scratch.join(SOCKET);
        let unix = UnixListener::bind(&path).map_err(|error| failed_io("Unix socket", &error))?;
        mate.accept(move || Ok(Conn::Unix(unix.accept()?.0)));
        let answer = Answer::Begun {
            seat: mate.engine.seat().0,
            tcp_port: address.port(),
        };
        Ok((mate, answer))
    }

    fn serve_stp(&self, group: &Group) -> Result<(), CliError> {
        let listener = group.listen(PORT).map_err(CliError::new)?;
        self.accept(move || Ok(Conn::Stp(listener.accept()?.0)));
        Ok(())
    }

    fn accept(&self, mut accept: impl FnMut() -> io::Result<Conn> + Send + 'static) {
        let reactor = Arc::clone(&self.reactor);
        thread::spawn(move || {
            loop {
                match accept() {
                    Ok(conn) => {
                        let reactor = Arc::clone(&reactor);
                        thread::spawn(move || serve(conn, &reactor));
                    }
                    // A connection that broke before it was accepted, or the end of everything.
                    Err(_) => thread::sleep(Duration::from_millis(1)),
                }
            }
        });
    }
}

/// One connection's errand; its end, in whatever way, ends this.
fn serve(mut conn: Conn, reactor: &Reactor) -> io::Result<()> {
    let mut head = [0; Errand::BYTES];
    conn.read_exact(&mut head)?;
    match Errand::decode(&head) {
        Some(Errand::Echo(size)) => {
            let mut message = vec![0; usize::try_from(size).unwrap_or(usize::MAX).min(1 << 24)];
            loop {
                conn.read_exact(&mut message)?;
                conn.write_all(&message)?;
            }
        }
        Some(Errand::Sink) => {
            let mut buf = vec![0; SINK_BYTES];
            let mut total = 0;
            loop {
                match conn.read(&mut buf)? {
                    0 => break,
                    count => total += count as u64,
                }
            }
            conn.write_all(&total.to_le_bytes())?;
            conn.finish_writing()
        }
        Some(Errand::Many) => reactor.take(conn),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Many connections, echoed by one thread.
struct Reactor {
    shared: Arc<Table>,
}

struct Table {
    epoll: std::os::fd::OwnedFd,
    conns: Mutex<(u64, HashMap<u64, Conn>)>,
}

impl Reactor {
    fn start() -> io::Result<Self> {
        let shared = Arc::new(Table {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            conns: Mutex::default(),
        });
        let table = Arc::clone(&shared);
        thread::Builder::new()
            .name("many".to_owned())
            .spawn(move || table.echo())?;
        Ok(Self { shared })
    }

    fn take(&self, conn: Conn) -> io::Result<()> {
        conn.set_nonblocking()?;
        let table = &self.shared;
        let mut conns = table.conns.lock().unwrap_or_else(PoisonError::into_inner);
        conns.0 += 1;
        let number = conns.0;
        epoll::add(
            &table.epoll,
            &conn,
            EventData::new_u64(number),
            EventFlags::IN,
        )?;
        conns.1.insert(number, conn);
        Ok(())
    }
}

impl Table {
    fn echo(&self) {
        let mut events = Vec::with_capacity(256);
        let mut buf = [0; 4096];
        loop {
            events.clear();
            if epoll::wait(&self.epoll, spare_capacity(&mut events), None).is_err() {
                continue;
            }
            let mut conns = self.conns.lock().unwrap_or_else(PoisonError::into_inner);
            for event in &events {
                let number = event.data.u64();
                let Some(conn) = conns.1.get_mut(&number) else {
                    continue;
                };
                let echoed = match conn.read(&mut buf) {
                    Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(count) => conn.write_all(&buf[..count]),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
                    Err(error) => Err(error),
                };
                if echoed.is_err() {
                    conns.1.remove(&number);
                }
            }
        }
    }
}
