//! The engine's side of `stp run`: answers the programs' calls, and sees their connections through the door.
//!
//! - One thread, one epoll; every exchange is one request and one answer. A program that asks and does not listen delays
//!   nobody.
//! - Admitted: processes of the engine's own user, and those that have the key.
//! - Whoever has not said the key yet takes no place from those who have: of other users few may be silent at once, and
//!   not for long.
//! - Listeners that are gone are noticed within [`SWEEP`] and taken off the volume.

mod connections;
mod here;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind,
    listen, recvmsg, send, sendmsg, socket_with,
};
use stp_core::{PeerInfo, PeerState};
use stp_format::SystemName;

use self::here::Knock;
use super::attempts::{Act, Attempts, Far};
use super::door::Door;
use super::listeners;
use super::places::Places;
use super::relay::Relays;
use super::sys;
use super::way::Way;
use super::wire::{
    Answer, Hello, Key, MESSAGE_BYTES_MAX, Malformed, Peer, Request, SystemEntry, Text,
};
use crate::address::SystemNumber;
use crate::control::{Admission, Calls, ConnectFailure, Connected};
use crate::engine::{EngineHandle, HostSocket, ListenError, Names, Place, Reply};
use crate::rendezvous::{SocketPath, SystemDir, shared_as_its_folder};

/// How often listeners are looked after.
const SWEEP: Duration = Duration::from_secs(1);
/// How long a listening program waits for its port to be on the volume; it will be there a little later.
const PUBLISH_MAX: Duration = Duration::from_secs(5);
/// How long a program may take to send its request.
const REQUEST_MAX: Duration = Duration::from_secs(10);
/// A system that nobody knows may have appeared this moment: the directory is looked at again so often, so far apart.
const LOOKS_MAX: u8 = 6;
const LOOK_PAUSE: Duration = Duration::from_millis(30);
/// Programs that talk at once.
const TALKS_MAX: usize = 4096;
/// Of them, those of other users that have not said the key; and how long they may take for it.
const STRANGERS_MAX: usize = 64;
const STRANGERS_REQUEST_MAX: Duration = Duration::from_secs(1);
/// How long nobody is let in when no descriptor is left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const BACKLOG: i32 = 4096;
/// Events taken from the kernel at once.
const EVENTS_MAX: usize = 64;

const KICK: u64 = 0;
const BY_NAME: u64 = 1;
const BY_PATH: u64 = 2;
/// With a port: its socket in the run directory.
const PORTS: u64 = 1 << 16;
const FIRST_TALK: u64 = 1 << 32;

/// The engine's side, running. Dropping it ends it.
pub struct Server {
    shared: Arc<Shared>,
    path: PathBuf,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("path", &self.path).finish()
    }
}

struct Shared {
    inbox: Mutex<Vec<News>>,
    kick: OwnedFd,
    stopping: AtomicBool,
    users: AtomicUsize,
}

impl Shared {
    fn tell(&self, news: News) {
        self.inbox
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(news);
        let _ = rustix::io::write(&self.kick, &1_u64.to_ne_bytes());
    }
}

/// What the engine's thread has to say.
enum News {
    Peers(Question, Option<Vec<PeerInfo>>),
    Listened(u64, Option<Result<(), ListenError>>),
    Opened(u64, Option<Result<Connected, ConnectFailure>>),
}

impl Server {
    /// Opens the door in this process's network namespace and offers the calls. The caller holds the engine's lock of `dir`.
    pub fn start(dir: &SystemDir, engine: EngineHandle) -> io::Result<Self> {
        let door = Door::open()?;
        let mut way = Way::of_engine(dir)?;
        let path = way.path().clone();
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                let text = format!("{}: {e}", path.display());
                return Err(io::Error::new(e.kind(), text));
            }
            _ => {}
        }
        let make = || {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
        };
        let by_name = make()?;
        let name = |way: &Way| SocketAddrUnix::new_abstract_name(way.name().as_bytes());
        if let Err(Errno::ADDRINUSE) = bind(&by_name, &name(&way)?) {
            // Everybody saw it while the engine before had it. Programs that know it find the path.
            tracing::warn!("another process has this engine's abstract socket: taking a new name");
            way = way.renamed(dir)?;
            bind(&by_name, &name(&way)?)?;
        }
        listen(&by_name, BACKLOG)?;
        let by_path = make()?;
        bind(&by_path, SocketPath::new(&path)?.address())?;
        shared_as_its_folder(&path)?;
        listen(&by_path, BACKLOG)?;
        let kick = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let (edge, level) = (EventFlags::IN | EventFlags::ET, EventFlags::IN);
        epoll::add(&epoll, &kick, EventData::new_u64(KICK), edge)?;
        epoll::add(&epoll, &by_name, EventData::new_u64(BY_NAME), level)?;
        epoll::add(&epoll, &by_path, EventData::new_u64(BY_PATH), level)?;
        let shared = Arc::new(Shared {
            inbox: Mutex::default(),
            kick,
            stopping: AtomicBool::new(false),
            users: AtomicUsize::new(0),
        });
        let names = Arc::clone(engine.names());
        let room = Room {
            shared: Arc::clone(&shared),
            names,
            engine,
            door,
            key: way.key(),
            admission: Admission::of_programs(dir.sharing()),
            epoll,
            by_name,
            by_path,
            talks: HashMap::new(),
            last_talk: FIRST_TALK,
            paused_until: None,
            pause_told: false,
            parked: BTreeMap::new(),
            waiters: HashMap::new(),
            attempts: Attempts::default(),
            places: Places::new(dir),
            relays: Relays::default(),
            knocks: Vec::new(),
            dir: dir.clone(),
            known: Vec::new(),
            guests: HashMap::new(),
            foreign: HashSet::new(),
            again: Vec::new(),
            sweep_at: Instant::now(),
        };
        let thread = thread::Builder::new()
            .name("stp-run".to_owned())
            .spawn(move || room.run())?;
        Ok(Self {
            shared,
            path,
            thread: Some(thread),
        })
    }

    /// Listeners and connections under way: as long as there are any, programs use this engine.
    pub fn users(&self) -> usize {
        self.shared.users.load(Ordering::Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
        self.shared.stopping.store(true, Ordering::Release);
        let _ = rustix::io::write(&self.shared.kick, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One program that talks.
struct Talk {
    socket: OwnedFd,
    /// It is of the engine's own user.
    known: bool,
    /// It is of neither that nor the group, and has not said the key.
    strange: bool,
    until: Instant,
}

/// A request that waits for news of the systems.
#[derive(Clone, Copy)]
struct Question {
    talk: u64,
    request: Request,
    /// How often the directory was looked at for it.
    looks: u8,
}

/// An answer that is given at its time, unless news come before.
struct Parked {
    answer: Answer,
    until: Instant,
}

struct Room {
    shared: Arc<Shared>,
    engine: EngineHandle,
    names: Arc<Names>,
    door: Door,
    key: Key,
    admission: Admission,
    epoll: OwnedFd,
    by_name: OwnedFd,
    by_path: OwnedFd,
    talks: HashMap<u64, Talk>,
    last_talk: u64,
    /// Until then nobody is let in.
    paused_until: Option<Instant>,
    pause_told: bool,
    parked: BTreeMap<u64, Parked>,
    /// Who waits for an attempt.
    waiters: HashMap<u64, u64>,
    attempts: Attempts,
    places: Places,
    relays: Relays,
    /// Programs that wait at a full queue of this system.
    knocks: Vec<Knock>,
    dir: SystemDir,
    known: Vec<SystemEntry>,
    /// Processes that use this engine as long as they live.
    guests: HashMap<u64, OwnedFd>,
    /// Versions of the calls, other than ours, that programs have spoken.
    foreign: HashSet<u16>,
    /// Questions that are asked again at their time.
    again: Vec<(Instant, Question)>,
    sweep_at: Instant,
}

impl Room {
    fn run(mut self) {
        for place in self.places.left_behind() {
            if listeners::listening().is_ok_and(|all| all.contains(&place.at)) {
                self.publish(place, None);
            }
        }
        while !self.shared.stopping.load(Ordering::Acquire) {
            let mut space = [const { MaybeUninit::<epoll::Event>::uninit() }; EVENTS_MAX];
            let timeout = self.timeout();
            let events = match epoll::wait(&self.epoll, &mut space, Some(&timeout)) {
                Ok((events, _)) => events,
                Err(Errno::INTR) => continue,
                Err(error) => {
                    tracing::error!(%error, "programs under stp run are not served any more");
                    return;
                }
            };
            for event in events {
                match event.data.u64() {
                    KICK => {}
                    BY_NAME => self.let_in(false),
                    BY_PATH => self.let_in(true),
                    port @ PORTS..FIRST_TALK => self.relay((port - PORTS) as u16),
                    guest if self.guests.contains_key(&guest) => {
                        self.guests.remove(&guest);
                    }
                    talk => self.hear(talk),
                }
            }
            self.take_news();
            let now = Instant::now();
            if self.paused_until.is_some_and(|until| until <= now) {
                self.paused_until = None;
                self.watch_listeners(EventFlags::IN);
            }
            self.knock_again(now);
            let (engine, relays) = (&self.engine, &self.relays);
            self.attempts
                .move_on(now, &self.door, |act| perform(engine, relays, act));
            self.answer_parked(now);
            self.ask_again(now);
            if self.sweep_at <= now {
                self.sweep(now);
            }
            let users = self.places.ports()
                + self.attempts.under_way()
                + self.guests.len()
                + self.relays.count();
            self.shared.users.store(users, Ordering::Relaxed);
        }
    }

    fn timeout(&self) -> Timespec {
        let parked = self.parked.values().map(|parked| parked.until).min();
        let again = self.again.iter().map(|(at, _)| *at).min();
        let knocks = self.knocks.iter().map(|knock| knock.again_at).min();
        let next = [
            self.attempts.poll_timeout(),
            parked,
            again,
            knocks,
            self.paused_until,
            Some(self.sweep_at),
        ];
        let next = next.into_iter().flatten().min().unwrap_or(self.sweep_at);
        let left = next.saturating_duration_since(Instant::now());
        Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(0),
            tv_nsec: left.subsec_nanos().into(),
        }
    }

    // --- talking

    fn let_in(&mut self, by_path: bool) {
        for _ in 0..EVENTS_MAX {
            let listener = if by_path {
                &self.by_path
            } else {
                &self.by_name
            };
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            match accept_with(listener, flags) {
                Ok(socket) => self.begin_talk(socket),
                Err(error) if !self.goes_on_after(error) => return,
                Err(_) => {}
            }
        }
    }

    fn begin_talk(&mut self, socket: OwnedFd) {
        if self.talks.len() >= TALKS_MAX {
            return; // closed: the program is told that nobody answers
        }
        let own = rustix::process::geteuid().as_raw();
        let known = sys::peer(&socket).is_ok_and(|peer| peer.user == own);
        let strange = !known && self.admission.check(&socket).is_err();
        let wait = match strange {
            true => STRANGERS_REQUEST_MAX,
            false => REQUEST_MAX,
        };
        self.last_talk += 1;
        let number = self.last_talk;
        let data = EventData::new_u64(number);
        if epoll::add(&self.epoll, &socket, data, EventFlags::IN | EventFlags::ET).is_ok() {
            let talk = Talk {
                socket,
                known,
                strange,
                until: Instant::now() + wait,
            };
            self.talks.insert(number, talk);
            // It has spoken already, as a rule.
            self.hear(number);
            if strange {
                self.end_strangers();
            }
        }
    }

    /// The longest silent make way.
    fn end_strangers(&mut self) {
        let strangers = self.talks.iter().filter(|(_, talk)| talk.strange);
        let mut strangers: Vec<u64> = strangers.map(|(number, _)| *number).collect();
        if strangers.len() > STRANGERS_MAX {
            strangers.sort_unstable();
            for number in &strangers[..strangers.len() - STRANGERS_MAX] {
                self.talks.remove(number);
            }
        }
    }

    /// Whether more can be let in after this error. Without a descriptor whoever waits would be reported without end.
    fn goes_on_after(&mut self, error: Errno) -> bool {
        match error {
            Errno::INTR | Errno::CONNABORTED => return true,
            Errno::AGAIN => {}
            error => {
                if !std::mem::replace(&mut self.pause_told, true) {
                    tracing::warn!(%error, "programs' calls have to wait: raise the limit of open files");
                }
                self.paused_until = Some(Instant::now() + ACCEPT_PAUSE);
                self.watch_listeners(EventFlags::empty());
            }
        }
        false
    }

    fn watch_listeners(&self, flags: EventFlags) {
        let own = [(BY_NAME, &self.by_name), (BY_PATH, &self.by_path)];
        for (data, listener) in own {
            let _ = epoll::modify(&self.epoll, listener, EventData::new_u64(data), flags);
        }
        for (port, held) in self.places.all_held() {
            let data = EventData::new_u64(PORTS + u64::from(port));
            let _ = epoll::modify(&self.epoll, held, data, flags);
        }
    }

    fn hear(&mut self, number: u64) {
        let Some(talk) = self.talks.get(&number) else {
            return;
        };
        let mut bytes = [0; MESSAGE_BYTES_MAX];
        let (count, brought) = match receive(&talk.socket, &mut bytes) {
            Err(Errno::AGAIN | Errno::INTR) => return,
            Ok((count, brought)) if count > 0 => (count, brought),
            _ => {
                self.talks.remove(&number);
                self.parked.remove(&number);
                return;
            }
        };
        if self.parked.contains_key(&number) {
            return; // one request each
        }
        let decoded = Request::decode(&bytes[..count]);
        let (known, has_key) = match (&decoded, self.talks.get_mut(&number)) {
            (Ok((key, _)), Some(talk)) => {
                let has_key = *key == self.key;
                talk.strange &= !has_key;
                (talk.known, has_key)
            }
            _ => (false, false),
        };
        let answer = match decoded {
            Ok(_) if !known && !has_key => Some(Answer::failed(
                libc::EACCES,
                "this engine belongs to another user: run the program under `stp run`",
            )),
            Ok((_, Request::Stay)) => Some(self.take_guest(brought)),
            Ok((_, request)) => self.handle(Question {
                talk: number,
                request,
                looks: 0,
            }),
            Err(Malformed::Version(theirs)) => Some(self.of_another_release(number, theirs)),
            Err(Malformed::Nonsense) => Some(Answer::failed(libc::EPROTO, "no request")),
        };
        if let Some(answer) = answer {
            self.answer(number, &answer);
        }
    }

    /// The program is told by an error number only: for people it is written down, once for each version.
    fn of_another_release(&mut self, number: u64, theirs: u16) -> Answer {
        let text = format!(
            "the program's preloaded library speaks version {theirs} of the calls of `stp run`, this engine (stp {}) version {}: start the program again with `stp run` of this release, or run an engine of its own",
            super::RELEASE,
            super::WIRE_VERSION
        );
        if self.foreign.insert(theirs) {
            let talk = self.talks.get(&number);
            let peer = talk.and_then(|talk| sys::peer(&talk.socket).ok());
            let process = peer.and_then(|peer| peer.process);
            tracing::warn!(process, "{text}");
        }
        Answer::failed(libc::EPROTO, text)
    }

    fn answer(&mut self, number: u64, answer: &Answer) {
        self.parked.remove(&number);
        if let Some(talk) = self.talks.remove(&number) {
            let message = answer.encode();
            // A program that went meanwhile needs no answer.
            let _ = send(&talk.socket, message.bytes(), SendFlags::NOSIGNAL);
        }
    }

    fn take_guest(&mut self, process: Option<OwnedFd>) -> Answer {
        let Some(process) = process else {
            return Answer::failed(libc::EBADF, "no process came with it");
        };
        self.last_talk += 1;
        let data = EventData::new_u64(self.last_talk);
        if let Err(error) = epoll::add(&self.epoll, &process, data, EventFlags::IN) {
            return Answer::failed(error.raw_os_error(), error);
        }
        self.guests.insert(self.last_talk, process);
        Answer::Done
    }

    fn park(&mut self, number: u64, answer: Answer, wait: Duration) {
        let until = Instant::now() + wait;
        self.parked.insert(number, Parked { answer, until });
    }

    /// Answers with what was parked, or with something else.
    fn unpark(&mut self, number: u64, other: Option<Answer>) {
        if let Some(parked) = self.parked.remove(&number) {
            self.answer(number, &other.unwrap_or(parked.answer));
        }
    }

    fn answer_parked(&mut self, now: Instant) {
        let due: Vec<u64> = self
            .parked
            .iter()
            .filter(|(_, parked)| parked.until <= now)
            .map(|(number, _)| *number)
            .collect();
        for number in due {
            self.unpark(number, None);
        }
    }

    // --- requests

    /// The answer, or `None` if it comes later.
    fn handle(&mut self, question: Question) -> Option<Answer> {
        let number = question.talk;
        match question.request {
            Request::Hello => Some(Answer::Hello(Hello {
                volume: self.engine.volume().id,
                system: *self.names.system(),
                release: Text::new(super::RELEASE),
                door_v4: self.door.v4(),
                door_v6: self.door.v6(),
            })),
            Request::Systems { from } => match question.looks {
                0 => self.look(question),
                _ => Some(Answer::systems(&self.known, from)),
            },
            Request::Resolve { name } => {
                let mut all = self.known.iter().map(|entry| entry.name);
                let same = |other: &SystemName| {
                    let (known, asked) = (other.as_str(), name.as_str());
                    known.eq_ignore_ascii_case(asked)
                };
                let exact = all.clone().find(|known| *known == name);
                match exact.or_else(|| all.find(same)) {
                    Some(system) => {
                        let found = self.names.addresses().number(&system);
                        Some(Answer::Number(Some(found)))
                    }
                    None => self.look_or(question, Answer::Number(None)),
                }
            }
            Request::NameOf { ip } => {
                let system = SystemNumber::from_kernel(ip).or(SystemNumber::from_visible(ip));
                match system.map(|system| self.find(system)) {
                    None => Some(Answer::Name(None)),
                    Some(Err(answer)) => Some(answer),
                    Some(Ok(None)) => self.look_or(question, Answer::Name(None)),
                    Some(Ok(name)) => Some(Answer::Name(name)),
                }
            }
            Request::Listen { at, v6_only } => self.publish(Place { at, v6_only }, Some(number)),
            Request::Unlisten { at } => {
                self.withdraw(at);
                Some(Answer::Done)
            }
            Request::Taken { port } => Some(Answer::Truth(self.is_librarys(port))),
            Request::Connect { local, to, wait_us } => self.connect(question, local, to, wait_us),
            Request::Outcome { local } => Some(Answer::Outcome(self.attempts.outcome(local))),
            Request::Whois { local, peer } => {
                let found = self.names.find(local, peer);
                Some(Answer::Who(found.map(|(system, at)| Peer { system, at })))
            }
            Request::Namespace => {
                self.send_namespaces(number);
                None
            }
            // It needs what came with it.
            Request::Stay => None,
        }
    }

    fn find(&self, number: SystemNumber) -> Result<Option<SystemName>, Answer> {
        let own = std::iter::once(*self.names.system());
        let all = own.chain(self.known.iter().map(|entry| entry.name));
        self.names
            .addresses()
            .find(number, all)
            .map_err(|collision| Answer::failed(libc::EADDRNOTAVAIL, collision))
    }

    /// Looks for systems that were not there before, then handles the request again.
    fn look(&mut self, mut question: Question) -> Option<Answer> {
        let shared = Arc::clone(&self.shared);
        question.looks += 1;
        let reply = Reply::new(move |peers| shared.tell(News::Peers(question, peers)));
        match self.engine.start_peers(reply) {
            Ok(()) => None,
            Err(stopped) => Some(Answer::failed(libc::ENETDOWN, stopped)),
        }
    }

    /// Looks again, or answers so if that was done often enough.
    fn look_or(&mut self, question: Question, answer: Answer) -> Option<Answer> {
        match question.looks {
            0 => self.look(question),
            LOOKS_MAX.. => Some(answer),
            _ => {
                self.again.push((Instant::now() + LOOK_PAUSE, question));
                None
            }
        }
    }

    fn ask_again(&mut self, now: Instant) {
        let (due, later) = self.again.drain(..).partition(|(at, _)| *at <= now);
        self.again = later;
        let due: Vec<(Instant, Question)> = due;
        for (_, question) in due {
            if let Some(answer) = self.look(question) {
                self.answer(question.talk, &answer);
            }
        }
    }

    fn learn(&mut self, peers: Vec<PeerInfo>) {
        let mut known = vec![SystemEntry {
            name: *self.names.system(),
            alive: true,
        }];
        for peer in peers {
            let alive = matches!(peer.state, PeerState::Up | PeerState::Suspect);
            match known.iter_mut().find(|entry| entry.name == peer.system) {
                Some(entry) => entry.alive |= alive,
                None => known.push(SystemEntry {
                    name: peer.system,
                    alive,
                }),
            }
        }
        self.known = known;
    }

    fn take_news(&mut self) {
        let news = std::mem::take(
            &mut *self
                .shared
                .inbox
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
        for news in news {
            match news {
                News::Peers(question, peers) => {
                    let answer = match peers {
                        Some(peers) => {
                            self.learn(peers);
                            self.handle(question)
                        }
                        None => Some(Answer::failed(libc::ENETDOWN, "the engine is stopping")),
                    };
                    if let Some(answer) = answer {
                        self.answer(question.talk, &answer);
                    }
                }
                News::Listened(number, listened) => {
                    let failed = match listened {
                        Some(Ok(())) => None,
                        Some(Err(error)) => Some(Answer::failed(libc::ENOBUFS, error)),
                        None => Some(Answer::failed(libc::ENETDOWN, "the engine is stopping")),
                    };
                    self.unpark(number, failed);
                }
                News::Opened(number, opened) => self.opened(number, opened),
            }
        }
    }

    // --- namespaces

    fn send_namespaces(&mut self, number: u64) {
        let opened = ["/proc/thread-self/ns/net", "/proc/thread-self/ns/user"].map(fs::File::open);
        let Some(talk) = self.talks.get(&number) else {
            return;
        };
        let fds: Vec<_> = opened.iter().flatten().map(AsFd::as_fd).collect();
        if let Some(Err(error)) = opened.first() {
            let text = format!("/proc/thread-self/ns/net: {error}");
            self.answer(number, &Answer::failed(libc::ENOENT, text));
            return;
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&fds));
        let message = Answer::Namespace.encode();
        let parts = [io::IoSlice::new(message.bytes())];
        let _ = sendmsg(&talk.socket, &parts, &mut control, SendFlags::NOSIGNAL);
        self.talks.remove(&number);
    }
}

/// One request, and the descriptor that came with it.
fn receive(socket: &OwnedFd, bytes: &mut [u8]) -> Result<(usize, Option<OwnedFd>), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let mut parts = [io::IoSliceMut::new(bytes)];
    let received = recvmsg(socket, &mut parts, &mut control, flags)?;
    let mut brought = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            brought = fds.last().or(brought);
        }
    }
    Ok((received.bytes, brought))
}

fn perform(engine: &EngineHandle, relays: &Relays, act: Act) {
    match act {
        Act::Cancel(ticket) => engine.cancel(ticket),
        Act::Join(Far::Stream(token), socket) => engine.join(token, HostSocket::tcp(socket)),
        Act::Join(Far::Library(library), socket) => relays.join(socket, library),
        Act::Abort(Far::Stream(token)) => engine.abort(token),
        // Its end without a mark is a reset.
        Act::Abort(Far::Library(_)) => {}
    }
}
