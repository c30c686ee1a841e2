//! The loop that accepts, shakes hands and carries bytes for every forwarding.
//!
//! - It never waits for one connection: sockets do not block, connecting happens elsewhere.
//! - At most [`CONNECTIONS_MAX`] connections at the same time; more wait where the kernel keeps them.
//! - Ids are never used twice, so a late event of a connection that is gone meets nothing.
//! - When it ends, connections under way are reset: a cut one must not look complete.

mod handshake;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::io::{self, Write};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::io::Errno;

use super::dial::{Dialed, Dialer, Job};
use super::relay::{Pair, Progress, Readiness};
use super::remote::{Answer, SERVICE_PORT, TOKEN_BYTES};
use super::socks::Handshake;
use super::spec::{Dynamic, Expose, Local, Remote, StpTarget, TcpTarget};
use super::{Askers, label};
use crate::CliError;
use crate::out::say;
use crate::signals::EndSignals;

/// Connections at the same time, those that are being opened included.
const CONNECTIONS_MAX: usize = 16_384;
/// Connections accepted from one listener before others have their turn.
const ACCEPTS_PER_TURN: usize = 64;
/// How long a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a listener rests when there is no room.
const REST: Duration = Duration::from_millis(200);
/// Bytes that pass through at once.
const SCRATCH_BYTES: usize = 256 << 10;
/// How long a system that stopped listening for us is left alone, at first and at most.
const ASK_AGAIN_MIN: Duration = Duration::from_millis(500);
const ASK_AGAIN_MAX: Duration = Duration::from_secs(15);
/// How long attempts under way may delay the end.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

const WAKE: u64 = 0;
const SIGNAL: u64 = 1;
const FIRST_ID: u64 = 2;

/// Everything that has an id.
#[derive(Debug)]
enum Source {
    /// Listens on TCP.
    Tcp(TcpListener, TcpPurpose, Arc<str>),
    /// Listens on the volume.
    Stp(stp::Listener, StpPurpose, Arc<str>),
    /// A SOCKS5 client that has not said where to.
    Socks(TcpStream, Handshake, Arc<str>),
    /// A stream that has not shown its token.
    Token(stp::Stream, Vec<u8>, stp::SystemName),
    /// A system that has not said what it wants.
    Asker(stp::Stream, Vec<u8>, stp::SystemName),
    /// A system that we listen for, and with which of our listeners.
    Client(stp::Stream, u64),
    /// A service, what it said, for which of our remotes; once it has answered it listens for us.
    Service(stp::Stream, Vec<u8>, usize, bool),
    /// A connection.
    Pair(Box<Pair>, Arc<str>),
}

#[derive(Clone, Debug)]
enum TcpPurpose {
    Local(StpTarget),
    Socks,
    /// For another system: brought to it with its token.
    For(StpTarget, String),
}

#[derive(Clone, Debug)]
enum StpPurpose {
    Expose(TcpTarget),
    /// Connections that other systems accepted for us.
    Back,
    Service(Askers),
}

/// One `-R`.
#[derive(Debug)]
struct Asked {
    spec: Remote,
    token: String,
    /// It has worked once: from then on it is tried again.
    worked: bool,
    wait: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    /// The handshake took too long.
    Expire(u64),
    /// The listener has rested.
    Resume(u64),
    /// Ask for this remote again.
    Ask(usize),
}

pub(super) struct Reactor {
    group: stp::Group,
    signals: EndSignals,
    epoll: OwnedFd,
    wake: Arc<OwnedFd>,
    dialer: Dialer,
    sources: HashMap<u64, Source>,
    next_id: u64,
    connections: usize,
    turns: VecDeque<u64>,
    timers: BinaryHeap<Reverse<(Instant, Timer)>>,
    remotes: Vec<Asked>,
    /// The port of this system that others bring connections back to.
    back: u16,
    scratch: Vec<u8>,
    failed: Option<CliError>,
}

impl Reactor {
    pub(super) fn new(group: stp::Group, signals: EndSignals) -> Result<Self, CliError> {
        let failed = |error: Errno| CliError::new(format_args!("cannot watch sockets: {error}"));
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(failed)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(failed)?;
        let watch = |fd: BorrowedFd<'_>, data| {
            epoll::add(&epoll, fd, EventData::new_u64(data), EventFlags::IN).map_err(failed)
        };
        watch(wake.as_fd(), WAKE)?;
        watch(signals.as_fd(), SIGNAL)?;
        let wake = Arc::new(wake);
        Ok(Self {
            dialer: Dialer::new(group.clone(), Arc::clone(&wake)),
            group,
            signals,
            epoll,
            wake,
            sources: HashMap::new(),
            next_id: FIRST_ID,
            connections: 0,
            turns: VecDeque::new(),
            timers: BinaryHeap::new(),
            remotes: Vec::new(),
            back: 0,
            scratch: vec![0; SCRATCH_BYTES],
            failed: None,
        })
    }

    pub(super) fn forward_local(&mut self, spec: &Local) -> Result<(), CliError> {
        let listener = listen_tcp(spec.listen)?;
        let here = bound(&listener, spec.listen);
        let label = label(format_args!("{here} (TCP) -> {}", spec.to));
        self.announce(&label);
        let purpose = TcpPurpose::Local(spec.to.clone());
        self.add(Source::Tcp(listener, purpose, label))
    }

    pub(super) fn forward_dynamic(&mut self, spec: &Dynamic) -> Result<(), CliError> {
        let listener = listen_tcp(spec.listen)?;
        let here = bound(&listener, spec.listen);
        let label = label(format_args!("{here} (SOCKS5) -> NAME.stp"));
        self.announce(&label);
        self.add(Source::Tcp(listener, TcpPurpose::Socks, label))
    }

    pub(super) fn expose(&mut self, spec: &Expose) -> Result<(), CliError> {
        let (listener, here) = self.listen_stp(spec.port)?;
        let label = label(format_args!("{here} -> {} (TCP)", spec.to));
        self.announce(&label);
        self.add(Source::Stp(
            listener,
            StpPurpose::Expose(spec.to.clone()),
            label,
        ))
    }

    pub(super) fn accept_remote(&mut self, askers: Askers) -> Result<(), CliError> {
        let (listener, here) = self.listen_stp(SERVICE_PORT)?;
        let label = label(format_args!("{here} listens for other systems (-R)"));
        self.announce(&label);
        self.add(Source::Stp(listener, StpPurpose::Service(askers), label))
    }

    pub(super) fn forward_remote(&mut self, specs: Vec<Remote>) -> Result<(), CliError> {
        if specs.is_empty() {
            return Ok(());
        }
        let (listener, here) = self.listen_stp(0)?;
        self.back = here.port;
        self.add(Source::Stp(
            listener,
            StpPurpose::Back,
            label("connections brought back"),
        ))?;
        for spec in specs {
            let mut random = [0; TOKEN_BYTES / 2];
            getrandom::fill(&mut random)
                .map_err(|error| CliError::new(format_args!("no random numbers: {error}")))?;
            let token = random.iter().map(|byte| format!("{byte:02x}")).collect();
            self.remotes.push(Asked {
                spec,
                token,
                worked: false,
                wait: ASK_AGAIN_MIN,
            });
            self.ask(self.remotes.len() - 1);
        }
        Ok(())
    }

    /// Carries until a signal, or until something fails that everything depends on.
    pub(super) fn run(mut self) -> Result<(), CliError> {
        let mut events = [MaybeUninit::uninit(); 256];
        while self.failed.is_none() && self.signals.seen().is_none() {
            let timeout = self.timeout();
            let events = match epoll::wait(&self.epoll, &mut events, timeout.as_ref()) {
                Ok((events, _)) => events,
                Err(Errno::INTR) => continue,
                Err(error) => return Err(CliError::new(format_args!("epoll: {error}"))),
            };
            for event in events.iter() {
                match event.data.u64() {
                    WAKE => self.handle_dialed(),
                    SIGNAL => {}
                    data => self.handle_event(data >> 1, (data & 1) as usize, event.flags),
                }
            }
            self.handle_timers();
            // Only those that are waiting now: who wants more comes after the next look at the events.
            for _ in 0..self.turns.len() {
                if let Some(id) = self.turns.pop_front() {
                    self.step(id);
                }
            }
        }
        self.close()
    }

    fn close(self) -> Result<(), CliError> {
        for source in self.sources.values() {
            if let Source::Pair(pair, _) = source {
                pair.abort();
            }
        }
        drop(self.sources);
        self.dialer.close(CLOSE_TIMEOUT);
        self.failed.map_or(Ok(()), Err)
    }

    fn announce(&self, label: &str) {
        say(format_args!("forward: {label}"));
    }

    fn listen_stp(&self, port: u16) -> Result<(stp::Listener, StpTarget), CliError> {
        let failed = |error: io::Error| CliError::new(format_args!("cannot listen: {error}"));
        let listener = self.group.listen(port).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let here = StpTarget {
            system: *self.group.system(),
            port: listener.local_addr().map_err(failed)?.port(),
        };
        Ok((listener, here))
    }

    // --- sources

    fn add(&mut self, source: Source) -> Result<(), CliError> {
        self.insert(source)
            .map(drop)
            .map_err(|error| CliError::new(format_args!("cannot watch a socket: {error}")))
    }

    /// Gives a source an id and watches it.
    fn insert(&mut self, source: Source) -> io::Result<u64> {
        let id = self.next_id;
        self.next_id += 1;
        let edges = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        let watch = |fd: BorrowedFd<'_>, end: u64, flags| {
            epoll::add(&self.epoll, fd, EventData::new_u64(id << 1 | end), flags)
        };
        match &source {
            Source::Tcp(listener, ..) => watch(listener.as_fd(), 0, EventFlags::IN)?,
            Source::Stp(listener, ..) => watch(listener.as_fd(), 0, EventFlags::IN)?,
            Source::Socks(client, ..) => watch(client.as_fd(), 0, EventFlags::IN)?,
            Source::Token(stream, ..)
            | Source::Asker(stream, ..)
            | Source::Client(stream, _)
            | Source::Service(stream, ..) => watch(stream.as_fd(), 0, EventFlags::IN)?,
            Source::Pair(pair, _) => {
                watch(pair.fd(0), 0, edges)?;
                watch(pair.fd(1), 1, edges)?;
            }
        }
        self.connections += source.is_connection();
        self.sources.insert(id, source);
        Ok(id)
    }

    /// Takes a source out; what is to go on living is no longer watched.
    fn remove(&mut self, id: u64) -> Option<Source> {
        let source = self.sources.remove(&id)?;
        self.connections -= source.is_connection();
        let unwatch = |fd: BorrowedFd<'_>| {
            // Not being watched any more is what is wanted: an error changes nothing.
            let _ = epoll::delete(&self.epoll, fd);
        };
        match &source {
            Source::Tcp(listener, ..) => unwatch(listener.as_fd()),
            Source::Stp(listener, ..) => unwatch(listener.as_fd()),
            Source::Socks(client, ..) => unwatch(client.as_fd()),
            Source::Token(stream, ..)
            | Source::Asker(stream, ..)
            | Source::Client(stream, _)
            | Source::Service(stream, ..) => unwatch(stream.as_fd()),
            Source::Pair(pair, _) => {
                unwatch(pair.fd(0));
                unwatch(pair.fd(1));
            }
        }
        Some(source)
    }

    /// Watches a newcomer that has to shake hands within the time for it.
    fn shake_hands(&mut self, source: Source) {
        match self.insert(source) {
            Ok(id) => self.set_timer(HANDSHAKE_TIMEOUT, Timer::Expire(id)),
            Err(error) => say(format_args!("cannot watch a connection: {error}")),
        }
    }

    fn handle_event(&mut self, id: u64, end: usize, flags: EventFlags) {
        match self.sources.get_mut(&id) {
            None => {}
            Some(Source::Tcp(..)) => self.accept_tcp(id),
            Some(Source::Stp(..)) => self.accept_stp(id),
            Some(Source::Socks(..)) => self.hear_socks(id),
            Some(Source::Token(..)) => self.hear_token(id),
            Some(Source::Asker(..)) => self.hear_asker(id),
            Some(Source::Client(..)) => self.hear_client(id),
            Some(Source::Service(..)) => self.hear_service(id),
            Some(Source::Pair(pair, _)) => {
                let ready = Readiness {
                    readable: flags.intersects(EventFlags::IN | EventFlags::RDHUP),
                    writable: flags.contains(EventFlags::OUT),
                    hangup: flags.intersects(EventFlags::HUP | EventFlags::ERR),
                };
                pair.handle_ready(end, ready);
                self.step(id);
            }
        }
    }

    /// A connection's turn.
    fn step(&mut self, id: u64) {
        let Some(Source::Pair(pair, label)) = self.sources.get_mut(&id) else {
            return;
        };
        match pair.step(&mut self.scratch) {
            Progress::Idle => {}
            Progress::More => self.turns.push_back(id),
            Progress::Done => drop(self.remove(id)),
            Progress::Broken(error) => {
                tracing::info!("{label}: {error}");
                drop(self.remove(id));
            }
        }
    }

    // --- listeners

    /// No room, or no descriptors: the listener rests, newcomers wait in the kernel.
    fn rest(&mut self, id: u64) {
        let data = EventData::new_u64(id << 1);
        let quiet = match self.sources.get(&id) {
            Some(Source::Tcp(listener, ..)) => {
                epoll::modify(&self.epoll, listener, data, EventFlags::empty())
            }
            Some(Source::Stp(listener, ..)) => {
                epoll::modify(&self.epoll, listener, data, EventFlags::empty())
            }
            _ => return,
        };
        if quiet.is_ok() {
            self.set_timer(REST, Timer::Resume(id));
        }
    }

    fn resume(&mut self, id: u64) {
        let data = EventData::new_u64(id << 1);
        let awake = match self.sources.get(&id) {
            Some(Source::Tcp(listener, ..)) => {
                epoll::modify(&self.epoll, listener, data, EventFlags::IN)
            }
            Some(Source::Stp(listener, ..)) => {
                epoll::modify(&self.epoll, listener, data, EventFlags::IN)
            }
            _ => return,
        };
        if awake.is_err() {
            self.set_timer(REST, Timer::Resume(id));
        }
    }

    fn is_full(&self) -> bool {
        self.connections + self.dialer.under_way() >= CONNECTIONS_MAX
    }

    fn accept_tcp(&mut self, id: u64) {
        for _ in 0..ACCEPTS_PER_TURN {
            if self.is_full() {
                return self.rest(id);
            }
            let Some(Source::Tcp(listener, purpose, label)) = self.sources.get(&id) else {
                return;
            };
            let client = match listener.accept() {
                Ok((client, _)) => client,
                Err(error) => match after_accept(&error) {
                    AfterAccept::Next => continue,
                    AfterAccept::Wait => return,
                    AfterAccept::Rest => {
                        say(format_args!("{label}: cannot accept: {error}"));
                        return self.rest(id);
                    }
                },
            };
            let (purpose, label) = (purpose.clone(), Arc::clone(label));
            // Small messages are batched by their sender, not by us.
            let _ = client.set_nodelay(true);
            if client.set_nonblocking(true).is_err() {
                continue;
            }
            let (to, token) = match purpose {
                TcpPurpose::Local(to) => (to, None),
                TcpPurpose::For(to, token) => (to, Some(token)),
                TcpPurpose::Socks => {
                    self.shake_hands(Source::Socks(client, Handshake::default(), label));
                    continue;
                }
            };
            self.dialer.dial(Job::Stp {
                client,
                to,
                socks: false,
                token,
                label,
            });
        }
    }

    fn accept_stp(&mut self, id: u64) {
        for _ in 0..ACCEPTS_PER_TURN {
            if self.is_full() {
                return self.rest(id);
            }
            let Some(Source::Stp(listener, purpose, label)) = self.sources.get(&id) else {
                return;
            };
            let (stream, peer) = match listener.accept() {
                Ok(accepted) => accepted,
                Err(error) => match after_accept(&error) {
                    AfterAccept::Next => continue,
                    AfterAccept::Wait => return,
                    AfterAccept::Rest => {
                        say(format_args!("{label}: cannot accept: {error}"));
                        return self.rest(id);
                    }
                },
            };
            let (purpose, label) = (purpose.clone(), Arc::clone(label));
            if stream.set_nonblocking(true).is_err() {
                continue;
            }
            let system = peer.system.unwrap_or(*self.group.system());
            match purpose {
                StpPurpose::Expose(to) => self.dialer.dial(Job::Tcp { stream, to, label }),
                StpPurpose::Back => self.shake_hands(Source::Token(stream, Vec::new(), system)),
                StpPurpose::Service(askers) if askers.includes(&system) => {
                    self.shake_hands(Source::Asker(stream, Vec::new(), system));
                }
                StpPurpose::Service(_) => {
                    say(format_args!(
                        "{label}: {system} is not among those that may ask"
                    ));
                    let refusal = Answer::refused("this system is not among those that may ask");
                    let _ = (&stream).write_all(&refusal.line());
                }
            }
        }
    }

    // --- what comes from elsewhere

    fn handle_dialed(&mut self) {
        // An eventfd: one read takes all.
        let _ = rustix::io::read(&*self.wake, &mut [0; 8]);
        while let Some(dialed) = self.dialer.result() {
            match dialed {
                Dialed::Refused => {}
                Dialed::Pair(pair, label) => {
                    tracing::info!("{label}: connected");
                    match self.insert(Source::Pair(Box::new(pair), label)) {
                        Ok(id) => self.turns.push_back(id),
                        Err(error) => say(format_args!("cannot watch a connection: {error}")),
                    }
                }
                Dialed::Asked(remote, stream) => {
                    self.shake_hands(Source::Service(stream, Vec::new(), remote, false));
                }
                Dialed::NotAsked(remote, error) => self.not_listening(remote, &error.to_string()),
            }
        }
    }

    fn set_timer(&mut self, after: Duration, timer: Timer) {
        self.timers.push(Reverse((Instant::now() + after, timer)));
    }

    fn timeout(&self) -> Option<Timespec> {
        let wait = if self.turns.is_empty() {
            let Reverse((due, _)) = self.timers.peek()?;
            due.saturating_duration_since(Instant::now())
        } else {
            Duration::ZERO
        };
        Some(Timespec {
            tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: wait.subsec_nanos().into(),
        })
    }

    fn handle_timers(&mut self) {
        let now = Instant::now();
        while let Some(Reverse((due, _))) = self.timers.peek()
            && *due <= now
            && let Some(Reverse((_, timer))) = self.timers.pop()
        {
            match timer {
                Timer::Expire(id) => self.expire(id),
                Timer::Resume(id) => self.resume(id),
                Timer::Ask(remote) => self.ask(remote),
            }
        }
    }

    fn expire(&mut self, id: u64) {
        match self.sources.get(&id) {
            Some(Source::Socks(..) | Source::Token(..) | Source::Asker(..)) => self.cut(id),
            Some(Source::Service(_, _, remote, false)) => {
                self.lost_service(id, *remote, "it does not answer".to_owned());
            }
            _ => {}
        }
    }

    /// Drops somebody who did not shake hands.
    fn cut(&mut self, id: u64) {
        match self.remove(id) {
            Some(Source::Token(stream, ..) | Source::Asker(stream, ..)) => {
                // It is dropped either way.
                let _ = stream.abort();
            }
            other => drop(other),
        }
    }
}

impl Source {
    fn is_connection(&self) -> usize {
        usize::from(!matches!(self, Self::Tcp(..) | Self::Stp(..)))
    }
}

enum AfterAccept {
    Next,
    Wait,
    Rest,
}

fn after_accept(error: &io::Error) -> AfterAccept {
    match error.kind() {
        io::ErrorKind::WouldBlock => AfterAccept::Wait,
        io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => AfterAccept::Next,
        _ => AfterAccept::Rest,
    }
}

fn listen_tcp(address: SocketAddr) -> Result<TcpListener, CliError> {
    TcpListener::bind(address)
        .and_then(|listener| {
            listener.set_nonblocking(true)?;
            Ok(listener)
        })
        .map_err(|error| {
            let remedy = match error.kind() {
                io::ErrorKind::AddrInUse => "choose another port, or 0 for a free one",
                io::ErrorKind::PermissionDenied => {
                    "ports below 1024 need privileges: choose another"
                }
                _ => "choose an address of this host",
            };
            CliError::new(format_args!("cannot listen on {address} (TCP): {error}")).remedy(remedy)
        })
}

/// Where it really listens: port 0 has become a number.
fn bound(listener: &TcpListener, asked: SocketAddr) -> SocketAddr {
    listener.local_addr().unwrap_or(asked)
}
