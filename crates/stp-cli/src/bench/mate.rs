//! The other process: it does what the first one asks for, see [`talk`](super::talk).
//!
//! - On the first one's host it is a process of its own, which ends with the first: its input ends, and the kernel sees to
//!   it besides. On another host it is `stp bench --serve`, which serves one bench at a time until it is asked to end.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::{self, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, TryLockError, mpsc};
use std::thread;
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, set_parent_process_death_signal};
use stp::{EngineChoice, Group};
use stp_format::SeatId;
use stp_host::engine::EngineHandle;
use stp_medium::VolumeSpec;

use super::conn::{Conn, Errand};
use super::engines::Engine;
use super::floor::Floor;
use super::talk::{Answer, Ask, Spent, next_line};
use super::world::{PORT, Scratch, attach, cpu_seconds, served_name};
use crate::signals::EndSignals;
use crate::{CliError, Global};

/// Bytes read at once by whoever only counts them.
const SINK_BYTES: usize = 256 << 10;
/// Connections that wait to be accepted.
const QUEUE: i32 = 4096;
/// Names of the two pipes in the scratch folder.
pub(super) const PIPES: [&str; 2] = ["there", "back"];
pub(super) const SOCKET: &str = "unix.sock";

struct Mate {
    engine: EngineHandle,
    spec: VolumeSpec,
    scratch: PathBuf,
    run_dir: PathBuf,
    volume: String,
    /// The system that its shared engine is.
    shared_system: String,
    shared: Mutex<Option<Engine>>,
    /// Threads that wait for a connection to serve.
    idle: Mutex<Vec<mpsc::SyncSender<Conn>>>,
    reactor: Reactor,
    /// Held while a bench of another host is under way.
    busy: Mutex<()>,
}

/// Serves the first process of this host until the input ends.
pub(super) fn run() -> Result<(), CliError> {
    let failed = |error| CliError::new(format_args!("the bench's other process: {error}"));
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(failed)?;
    let mut input = io::stdin().lock();
    let begun = next_line(&mut input)?.map(|line| serde_json::from_str(&line));
    let (volume, run_dir, scratch, system) = match begun {
        Some(Ok(Ask::Begin {
            volume,
            run_dir,
            scratch,
            system,
        })) => (volume, run_dir, scratch, system),
        // The first process could not begin either, and says so.
        None | Some(Ok(Ask::End)) => return Ok(()),
        Some(_) => return Err(CliError::new("the bench's other process was not begun")),
    };
    let mut say = |answer: &Answer| {
        let text = serde_json::to_string(answer).map_err(CliError::new)?;
        crate::out::data(format_args!("{text}\n"))
    };
    let place = Place {
        volume,
        run_dir,
        scratch,
        shared_system: format!("{system}-e"),
        system,
    };
    let begun = Mate::begin(place).and_then(|mate| {
        let tcp_port = mate.serve_local()?;
        Ok((mate, tcp_port))
    });
    let (mate, tcp_port) = match begun {
        Ok(begun) => begun,
        Err(error) => return say(&Answer::Failed(error.to_string())),
    };
    say(&Answer::Begun {
        seat: mate.engine.seat().0,
        tcp_port,
    })?;
    let stdin = io::stdin();
    let ended = mate.session(&mut input, stdin.as_fd(), &mut say);
    mate.leave();
    ended
}

/// Serves benches of other hosts until a signal comes.
pub(super) fn serve(global: &Global) -> Result<(), CliError> {
    let system = global.system_name()?;
    let signals = EndSignals::watch()?;
    let scratch = Scratch::make()?;
    let name = served_name(system.as_str());
    let place = Place {
        volume: global.volume()?.to_owned(),
        run_dir: scratch.run_dir(),
        scratch: scratch.path().to_owned(),
        shared_system: format!("{name}-e"),
        system: name,
    };
    let mate = Mate::begin(place)?;
    crate::out::say(format_args!(
        "serving benches on {}; on another host: stp bench -V VOL --with {system}",
        mate.volume
    ));
    signals.wait(None);
    mate.leave();
    Ok(())
}

/// Where a mate is.
struct Place {
    volume: String,
    run_dir: PathBuf,
    scratch: PathBuf,
    system: String,
    shared_system: String,
}

impl Mate {
    /// A node of its own that serves connections.
    fn begin(place: Place) -> Result<Arc<Self>, CliError> {
        let (engine, group) = attach(&place.volume, &place.run_dir, &place.system)?;
        let mate = Arc::new(Self {
            spec: place.volume.parse().map_err(CliError::new)?,
            engine,
            scratch: place.scratch,
            run_dir: place.run_dir,
            volume: place.volume,
            shared_system: place.shared_system,
            shared: Mutex::default(),
            idle: Mutex::default(),
            reactor: Reactor::start().map_err(|error| failed_io("epoll", &error))?,
            busy: Mutex::default(),
        });
        mate.serve_stp(&group)?;
        Ok(mate)
    }

    /// Serves what a host has without a volume, too; gives the port of TCP.
    fn serve_local(self: &Arc<Self>) -> Result<u16, CliError> {
        let tcp = TcpListener::bind("127.0.0.1:0").map_err(|error| failed_io("TCP", &error))?;
        // A queue that overflows costs a second each time: clients here are faster than the threads that serve them.
        rustix::net::listen(&tcp, QUEUE).map_err(|error| failed_io("TCP", &error.into()))?;
        let address = tcp.local_addr().map_err(|error| failed_io("TCP", &error))?;
        self.accept(move || {
            let (stream, _) = tcp.accept()?;
            stream.set_nodelay(true)?;
            Ok(Conn::Tcp(stream))
        });
        let path = self.scratch.join(SOCKET);
        let unix = UnixListener::bind(&path).map_err(|error| failed_io("Unix socket", &error))?;
        self.accept(move || Ok(Conn::Unix(unix.accept()?.0)));
        Ok(address.port())
    }

    fn serve_stp(self: &Arc<Self>, group: &Group) -> Result<(), CliError> {
        let listener = group.listen(PORT).map_err(CliError::new)?;
        self.accept(move || Ok(Conn::Stp(listener.accept()?.0)));
        Ok(())
    }

    fn accept(self: &Arc<Self>, mut accept: impl FnMut() -> io::Result<Conn> + Send + 'static) {
        let mate = Arc::clone(self);
        thread::spawn(move || {
            loop {
                match accept() {
                    Ok(conn) => mate.hand_over(conn),
                    // A connection that broke before it was accepted, or the end of everything.
                    Err(_) => thread::sleep(Duration::from_millis(1)),
                }
            }
        });
    }

    /// Has a connection served by a thread that has nothing to do: what is measured is connections, not the start of threads.
    fn hand_over(self: &Arc<Self>, conn: Conn) {
        let idle = lock(&self.idle).pop();
        let conn = match idle {
            None => conn,
            Some(thread) => match thread.send(conn) {
                Ok(()) => return,
                Err(back) => back.0,
            },
        };
        let mate = Arc::clone(self);
        thread::spawn(move || {
            let (here, next) = mpsc::sync_channel(1);
            let mut conn = Some(conn);
            while let Some(begun) = conn {
                // Its end, in whatever way, is the other side's business.
                let _ = mate.serve(begun);
                lock(&mate.idle).push(here.clone());
                conn = next.recv().ok();
            }
        });
    }

    /// Threads that wait for connections hold it too: it is not dropped.
    fn leave(&self) {
        *lock(&self.shared) = None;
        self.engine.leave();
    }

    /// Does what is asked until the other side ends; `fd` tells when it says something, or is gone.
    fn session(
        self: &Arc<Self>,
        from: &mut dyn io::BufRead,
        fd: BorrowedFd<'_>,
        say: &mut dyn FnMut(&Answer) -> Result<(), CliError>,
    ) -> Result<(), CliError> {
        while let Some(line) = next_line(from)? {
            let answer = match serde_json::from_str(&line) {
                Ok(Ask::End) => break,
                Ok(Ask::Echo { other, size, base }) => {
                    match self.echo(SeatId(other), size, base, fd, say) {
                        Ok(()) => continue,
                        Err(error) => Answer::Failed(error.to_string()),
                    }
                }
                Ok(ask) => self
                    .answer(ask)
                    .unwrap_or_else(|error| Answer::Failed(error.to_string())),
                Err(error) => Answer::Failed(format!("not understood: {error}")),
            };
            say(&answer)?;
        }
        Ok(())
    }

    /// Echoes on the bare storage until it is told to stop there, or by a word of the other side, or by its end.
    fn echo(
        &self,
        other: SeatId,
        size: usize,
        base: u64,
        fd: BorrowedFd<'_>,
        say: &mut dyn FnMut(&Answer) -> Result<(), CliError>,
    ) -> Result<(), CliError> {
        let geometry = self.engine.volume().geometry;
        let mut floor = Floor::open(&self.spec, &geometry, self.engine.seat(), other)?;
        if floor.carrier(size as u64) != Some(size) {
            return Err(CliError::new(
                "no message of the bare storage has this size",
            ));
        }
        floor.echo(size, base, || say(&Answer::Done), || is_silent(fd))
    }

    fn answer(self: &Arc<Self>, ask: Ask) -> Result<Answer, CliError> {
        match ask {
            Ask::Hello { version } if version == env!("CARGO_PKG_VERSION") => Ok(Answer::Begun {
                seat: self.engine.seat().0,
                tcp_port: 0,
            }),
            Ask::Hello { version } => Err(CliError::new(format_args!(
                "stp {version} here and stp {} there: bench with the same version on both hosts",
                env!("CARGO_PKG_VERSION")
            ))),
            Ask::Share => {
                self.share()?;
                Ok(Answer::Shared {
                    system: self.shared_system.clone(),
                })
            }
            Ask::Pipe => {
                let [there, back] = PIPES.map(|name| self.scratch.join(name));
                let mate = Arc::clone(self);
                thread::spawn(move || {
                    // Opening waits for the other end; both sides open in the same order.
                    let from = OpenOptions::new().read(true).open(there)?;
                    let to = Some(OpenOptions::new().write(true).open(back)?);
                    mate.serve(Conn::Pipe { from, to })
                });
                Ok(Answer::Done)
            }
            Ask::Spent => Ok(Answer::Spent(self.spent()?)),
            Ask::Begin { .. } | Ask::Echo { .. } | Ask::End => {
                Err(CliError::new("asked for at the wrong time"))
            }
        }
    }

    /// Serves through a shared engine, too, from now on.
    fn share(self: &Arc<Self>) -> Result<(), CliError> {
        let mut shared = lock(&self.shared);
        if shared.is_some() {
            return Ok(());
        }
        let engine = Engine::start(&self.volume, &self.run_dir, &self.shared_system)?;
        let group = Group::builder(&self.volume)
            .system(&self.shared_system)
            .run_dir(&self.run_dir)
            .engine(EngineChoice::Shared)
            .open()
            .map_err(CliError::new)?;
        self.serve_stp(&group)?;
        *shared = Some(engine);
        Ok(())
    }

    fn spent(&self) -> Result<Spent, CliError> {
        let stats = self.engine.stats().map_err(CliError::new)?;
        let engine = lock(&self.shared).as_ref().map(Engine::cpu_seconds);
        Ok(Spent {
            reads: stats.reads,
            writes: stats.writes,
            cpu_s: cpu_seconds(),
            engine_cpu_s: engine.unwrap_or(0.0),
        })
    }

    /// A bench of another host, over its connection.
    fn serve_bench(self: &Arc<Self>, conn: Conn) -> Result<(), CliError> {
        let mut to = conn;
        let from = to.try_clone().map_err(CliError::new)?;
        let watched = from.try_clone().map_err(CliError::new)?;
        let mut say = |answer: &Answer| {
            let text = serde_json::to_string(answer).map_err(CliError::new)?;
            writeln!(to, "{text}").map_err(CliError::new)
        };
        let mut from = BufReader::new(from);
        let _busy = match self.busy.try_lock() {
            Ok(busy) => busy,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                let text = "another bench is under way there: try again when it is over";
                return say(&Answer::Failed(text.to_owned()));
            }
        };
        self.session(&mut from, watched.as_fd(), &mut say)
    }

    /// One connection's errand; its end, in whatever way, ends this.
    fn serve(self: &Arc<Self>, mut conn: Conn) -> io::Result<()> {
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
            Some(Errand::Many) => self.reactor.take(conn),
            Some(Errand::Bench) => self
                .serve_bench(conn)
                .map_err(|error| io::Error::other(error.to_string())),
            None => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

fn failed_io(what: &str, error: &io::Error) -> CliError {
    CliError::new(format_args!("the bench's other process: {what}: {error}"))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Nothing is to be read there, and it has not ended.
fn is_silent(fd: BorrowedFd<'_>) -> bool {
    let at_once = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    matches!(poll(&mut fds, Some(&at_once)), Ok(0))
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
