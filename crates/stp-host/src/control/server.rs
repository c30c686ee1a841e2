//! The engine's end: one listening socket, one thread a program, one more for each call that waits, but for connections:
//! whoever learns how one went answers.
//!
//! - A program that waits, floods or stops reading delays nobody else: the calls that can wait run on threads
//!   of their own, with a limit a program, and a program that takes no answers is cut off.
//! - A program that goes away takes its ports with it, unless a process forked from it has named them too; gifts
//!   that were handed to it and that it did not confirm go back.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, Shutdown, SocketFlags, SocketType, accept_with, bind, listen, shutdown,
    socket_with,
};
use stp_format::{ProcessName, SystemName};
use tracing::{debug, warn};

use super::calls::{Calls, ConnectFailure, Connected, GiftId, Offer, Opening};
use super::client::end_name;
use super::peer::Admission;
use super::wire::{Answer, Receiver, Request, VERSION, send_answer, send_answer_now};
use crate::rendezvous::{FileLock, SocketPath, SystemDir, shared_as_its_folder};

/// Programs at once.
const CLIENTS_MAX: usize = 4096;

/// Calls of one program that wait at once.
const WAITING_MAX: usize = 1024;

/// How long a program may leave an answer unread before it is cut off.
const ANSWER_WAIT: Duration = Duration::from_secs(10);

/// Room for a thread that makes one call.
const CALL_STACK_BYTES: usize = 256 << 10;

/// Programs waiting to be let in.
const BACKLOG: i32 = 256;

/// How long to pause when no descriptor is left for another program.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A running control server. Dropping it cuts off every program and removes the socket.
pub struct Server {
    shared: Arc<Shared>,
    listener: Arc<OwnedFd>,
    path: PathBuf,
    accepting: Option<JoinHandle<()>>,
    _lock: FileLock,
}

struct Shared {
    calls: Arc<dyn Calls>,
    system: SystemName,
    /// Where its programs listen; `None`: wherever they say.
    dir: Option<SystemDir>,
    /// Calls that wait are made on threads of their own.
    apart: bool,
    stopping: AtomicBool,
    clients: Mutex<Clients>,
}

#[derive(Default)]
struct Clients {
    next: u64,
    sockets: HashMap<u64, Arc<OwnedFd>>,
    /// Which programs a published port belongs to: one, and its forked children that use it.
    ports: HashMap<u16, BTreeSet<u64>>,
    /// Which program a gift that is not confirmed yet was handed to.
    handed: HashMap<GiftId, u64>,
}

impl Clients {
    /// The program has no part in the port any more; whether it was the last one.
    fn give_up(&mut self, port: u16, client: u64) -> bool {
        let Some(owners) = self.ports.get_mut(&port) else {
            return false;
        };
        let last = owners.remove(&client) && owners.is_empty();
        if owners.is_empty() {
            self.ports.remove(&port);
        }
        last
    }
}

impl Shared {
    fn new(calls: Arc<dyn Calls>, system: SystemName, dir: Option<SystemDir>) -> Arc<Self> {
        Arc::new(Self {
            calls,
            system,
            apart: dir.is_some(),
            dir,
            stopping: AtomicBool::new(false),
            clients: Mutex::default(),
        })
    }

    fn clients(&self) -> MutexGuard<'_, Clients> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("path", &self.path).finish()
    }
}

impl Server {
    /// Offers `calls` at the control socket of `dir`. `AddrInUse` if an engine does so already.
    pub fn start(dir: &SystemDir, calls: Arc<dyn Calls>) -> io::Result<Self> {
        let lock = dir.lock_engine()?.ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::AddrInUse,
                format!(
                    "an engine of system {} runs already ({}): stop it first",
                    dir.system(),
                    dir.path().display()
                ),
            )
        })?;
        let path = dir.engine_socket();
        // Whoever holds the lock owns the name: what lies there is left over.
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                let text = format!("{}: {e}", path.display());
                return Err(io::Error::new(e.kind(), text));
            }
            _ => {}
        }
        let (family, flags) = (AddressFamily::UNIX, SocketFlags::CLOEXEC);
        let socket = socket_with(family, SocketType::SEQPACKET, flags, None)?;
        bind(&socket, SocketPath::new(&path)?.address()).map_err(|e| {
            let e = io::Error::from(e);
            io::Error::new(e.kind(), format!("{}: {e}", path.display()))
        })?;
        shared_as_its_folder(&path)?;
        listen(&socket, BACKLOG)?;
        let listener = Arc::new(socket);
        let shared = Shared::new(calls, *dir.system(), Some(dir.clone()));
        let admission = Admission::of_programs(dir.sharing());
        let accepting = thread::Builder::new()
            .name("stp-control".to_owned())
            .spawn({
                let (shared, listener) = (Arc::clone(&shared), Arc::clone(&listener));
                move || accept_clients(&shared, &listener, admission)
            })?;
        Ok(Self {
            shared,
            listener,
            path,
            accepting: Some(accepting),
            _lock: lock,
        })
    }

    /// How many programs are connected.
    pub fn clients(&self) -> usize {
        self.shared.clients().sockets.len()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
        self.shared.stopping.store(true, Ordering::Release);
        let _ = shutdown(&*self.listener, Shutdown::Both);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
        for socket in self.shared.clients().sockets.values() {
            let _ = shutdown(socket, Shutdown::Both);
        }
    }
}

fn accept_clients(shared: &Arc<Shared>, listener: &OwnedFd, admission: Admission) {
    while !shared.stopping.load(Ordering::Acquire) {
        match accept_with(listener, SocketFlags::CLOEXEC) {
            Ok(socket) => {
                if let Err(error) = admit(shared, socket, admission) {
                    warn!(%error, "control connection refused");
                }
            }
            Err(Errno::INTR | Errno::CONNABORTED) => {}
            Err(error) => {
                if !shared.stopping.load(Ordering::Acquire) {
                    warn!(%error, "no further control connection");
                    thread::sleep(ACCEPT_PAUSE);
                }
            }
        }
    }
}

fn admit(shared: &Arc<Shared>, socket: OwnedFd, admission: Admission) -> io::Result<()> {
    admission.check(&socket)?;
    set_socket_timeout(&socket, Timeout::Send, Some(ANSWER_WAIT))?;
    let client = Client::enter(shared, socket)?;
    thread::Builder::new()
        .name("stp-control-peer".to_owned())
        .stack_size(CALL_STACK_BYTES)
        .spawn({
            let client = Arc::clone(&client);
            move || client.serve()
        })
        .map(drop)
        .inspect_err(|_| client.forget())
}

/// One program's connection, served by whoever has this, without a thread: also the calls that wait are made at once.
/// For tests, which drive both ends ([`Client::over`](super::Client::over)).
#[derive(Debug)]
pub struct Session {
    client: Arc<Client>,
    receiver: Receiver,
}

impl Session {
    /// Serves the program at the other end of `socket`.
    pub fn new(calls: Arc<dyn Calls>, system: SystemName, socket: OwnedFd) -> io::Result<Self> {
        let shared = Shared::new(calls, system, None);
        Ok(Self {
            client: Client::enter(&shared, socket)?,
            receiver: Receiver::default(),
        })
    }

    /// Answers the next request; `false` at the connection's end. An error ends it.
    pub fn serve_next(&mut self) -> io::Result<bool> {
        self.client.serve_next(&mut self.receiver)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.client.forget();
    }
}

/// One connected program.
struct Client {
    shared: Arc<Shared>,
    socket: Arc<OwnedFd>,
    number: u64,
    waiting: AtomicUsize,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Notes a program that has connected.
    fn enter(shared: &Arc<Shared>, socket: OwnedFd) -> io::Result<Arc<Self>> {
        let socket = Arc::new(socket);
        let mut clients = shared.clients();
        if clients.sockets.len() >= CLIENTS_MAX {
            return Err(io::Error::other(format!(
                "{CLIENTS_MAX} programs are connected already"
            )));
        }
        clients.next += 1;
        let number = clients.next;
        clients.sockets.insert(number, Arc::clone(&socket));
        drop(clients);
        Ok(Arc::new(Self {
            shared: Arc::clone(shared),
            socket,
            number,
            waiting: AtomicUsize::new(0),
        }))
    }

    fn serve(self: Arc<Self>) {
        let mut receiver = Receiver::default();
        let ended = loop {
            match self.serve_next(&mut receiver) {
                Ok(true) => {}
                Ok(false) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        if let Err(error) = ended {
            debug!(client = self.number, %error, "control connection broken");
        }
        self.forget();
    }

    fn serve_next(self: &Arc<Self>, receiver: &mut Receiver) -> io::Result<bool> {
        let Some((number, request, fds)) = receiver.request(&*self.socket)? else {
            return Ok(false);
        };
        self.handle(number, request, fds).map(|()| true)
    }

    /// Withdraws what the program had and closes its connection.
    fn forget(&self) {
        let _ = shutdown(self.socket.as_fd(), Shutdown::Both);
        let mut ports = Vec::new();
        let mut gifts = Vec::new();
        {
            let mut clients = self.shared.clients();
            clients.sockets.remove(&self.number);
            let known: Vec<u16> = clients.ports.keys().copied().collect();
            for port in known {
                if clients.give_up(port, self.number) {
                    ports.push(port);
                }
            }
            clients.handed.retain(|gift, holder| {
                let ours = *holder == self.number;
                if ours {
                    gifts.push(*gift);
                }
                !ours
            });
        }
        for port in ports {
            self.shared.calls.unlisten(port);
        }
        for gift in gifts {
            self.shared.calls.put_back(gift);
        }
    }

    /// Answers, or sees to it that an answer will come. An error ends the connection.
    fn handle(
        self: &Arc<Self>,
        number: u64,
        request: Request,
        mut fds: Vec<OwnedFd>,
    ) -> io::Result<()> {
        let calls = &self.shared.calls;
        let answer = match request {
            Request::Hello { version, pid } => {
                debug!(client = self.number, pid, version, "program connected");
                Answer::Welcome {
                    version: VERSION,
                    system: self.shared.system.to_string(),
                }
            }
            Request::Listen { port, path, raw } => {
                let path = PathBuf::from(OsString::from_vec(path));
                return self.wait_for(number, move |client| client.listen(port, path, raw));
            }
            Request::Unlisten { port } => {
                let ours = self.shared.clients().give_up(port, self.number);
                if ours {
                    calls.unlisten(port);
                }
                Answer::Done
            }
            Request::Connect {
                to,
                port,
                raw,
                timeout_us,
                local_port,
                skip,
            } => {
                let (Ok(to), Some(socket)) = (to.parse::<SystemName>(), fds.pop()) else {
                    let why = "the request to connect has no socket or no system".to_owned();
                    let answer = Answer::NotConnected(ConnectFailure::Failed(why));
                    return send_answer(&*self.socket, number, &answer, None);
                };
                let how = Opening {
                    raw,
                    timeout: timeout_us.map(Duration::from_micros),
                    local_port,
                    skip,
                };
                return self.connect(number, to, port, socket, how);
            }
            Request::MarkClean { token } => {
                calls.mark_clean(token);
                Answer::Done
            }
            Request::Hold { token } => {
                calls.hold(token);
                Answer::Done
            }
            Request::Close { token } => {
                calls.close(token);
                Answer::Done
            }
            Request::Verdict { token } => Answer::Verdict(calls.verdict(token)),
            Request::Abort { token } => {
                calls.abort(token);
                Answer::Done
            }
            Request::Give {
                token,
                to,
                name,
                wait_us,
                local,
                peer,
            } => {
                let names = (to.parse(), name.parse(), end_name(&local), end_name(&peer));
                let (notice, end) = (fds.pop(), fds.pop());
                let ((Ok(to), Ok(name), Some(local), Some(peer)), Some(end), Some(notice)) =
                    (names, end, notice)
                else {
                    let answer = Answer::failed(&incomplete("give"));
                    return send_answer(&*self.socket, number, &answer, None);
                };
                let offer = Offer {
                    token,
                    to,
                    name,
                    wait: Duration::from_micros(wait_us),
                    local,
                    peer,
                };
                match calls.give(&offer, end, notice) {
                    Ok(gift) => Answer::Given(gift),
                    Err(error) => Answer::failed(&error),
                }
            }
            Request::Withdraw { gift } => {
                calls.withdraw(gift);
                Answer::Done
            }
            Request::Take { name, wait_us } => {
                let Ok(name) = name.parse() else {
                    let answer = Answer::failed(&incomplete("take"));
                    return send_answer(&*self.socket, number, &answer, None);
                };
                let wait = Duration::from_micros(wait_us);
                return self.wait_for(number, move |client| client.take(&name, wait));
            }
            Request::Confirm { gift } => {
                return self.wait_for(number, move |client| client.confirm(gift));
            }
            Request::PutBack { gift } => {
                if self.unhand(gift) {
                    calls.put_back(gift);
                }
                Answer::Done
            }
            Request::Peers => match calls.peers() {
                Ok(peers) => Answer::Peers(peers),
                Err(error) => Answer::failed(&error),
            },
            Request::Report { topic } => match calls.report(&topic) {
                Ok(report) => Answer::Report(report),
                Err(error) => Answer::failed(&error),
            },
        };
        send_answer(&*self.socket, number, &answer, None)
    }

    /// Opens a stream, without a thread that waits for it if the engine can do that.
    fn connect(
        self: &Arc<Self>,
        number: u64,
        to: SystemName,
        port: u16,
        socket: OwnedFd,
        how: Opening,
    ) -> io::Result<()> {
        let Some(later) = self.shared.calls.later().filter(|_| self.shared.apart) else {
            return self.wait_for(number, move |client| {
                connect_answer(client.shared.calls.connect_with(&to, port, socket, how))
            });
        };
        if let Some(refusal) = self.begin_waiting() {
            return send_answer(&*self.socket, number, &refusal, None);
        }
        let client = Arc::clone(self);
        let reply = Box::new(move |outcome| {
            client.waiting.fetch_sub(1, Ordering::AcqRel);
            client.answer_from_engine(number, connect_answer(outcome));
        });
        later.connect_later(&to, port, socket, how, reply);
        Ok(())
    }

    /// Answers from the engine's thread, which a program that takes no answers must not hold up.
    fn answer_from_engine(self: Arc<Self>, number: u64, answer: Answer) {
        let sent = send_answer_now(&*self.socket, number, &answer);
        if !matches!(&sent, Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
            return self.cut_off_if(sent.is_err());
        }
        let client = Arc::clone(&self);
        let spawned = spawn_call(move || {
            let sent = send_answer(&*client.socket, number, &answer, None);
            client.cut_off_if(sent.is_err());
        });
        self.cut_off_if(spawned.is_err());
    }

    fn cut_off_if(&self, broken: bool) {
        if broken {
            let _ = shutdown(self.socket.as_fd(), Shutdown::Both);
        }
    }

    /// Counts one more call that waits; the answer if there are too many.
    fn begin_waiting(&self) -> Option<Answer> {
        if self.waiting.fetch_add(1, Ordering::AcqRel) < WAITING_MAX {
            return None;
        }
        self.waiting.fetch_sub(1, Ordering::AcqRel);
        let text = format!("{WAITING_MAX} calls of this program wait for the engine already");
        Some(Answer::NotConnected(ConnectFailure::Failed(text)))
    }

    /// Waits for a gift and notes that this program has it for now.
    fn take(&self, name: &ProcessName, wait: Duration) -> (Answer, Option<OwnedFd>) {
        let handed = match self.shared.calls.take(name, wait) {
            Ok(handed) => handed,
            Err(error) => return (Answer::failed(&error), None),
        };
        let gone = {
            let mut clients = self.shared.clients();
            let gone = !clients.sockets.contains_key(&self.number);
            if !gone {
                clients.handed.insert(handed.gift, self.number);
            }
            gone
        };
        if gone {
            self.shared.calls.put_back(handed.gift);
        }
        (Answer::Handed(handed.gift), Some(handed.end))
    }

    fn confirm(&self, gift: GiftId) -> Answer {
        if !self.unhand(gift) {
            return Answer::failed(&io::Error::new(
                io::ErrorKind::NotFound,
                "this gift was not handed to this program, or it went back",
            ));
        }
        match self.shared.calls.confirm(gift) {
            Ok(taken) => Answer::Taken {
                token: taken.token,
                local: (taken.local.system.to_string(), taken.local.port),
                peer: (taken.peer.system.to_string(), taken.peer.port),
            },
            Err(error) => Answer::failed(&error),
        }
    }

    /// Whether the gift was handed to this program; it is not any more.
    fn unhand(&self, gift: GiftId) -> bool {
        let mut clients = self.shared.clients();
        let ours = clients.handed.get(&gift) == Some(&self.number);
        if ours {
            clients.handed.remove(&gift);
        }
        ours
    }

    fn listen(&self, port: u16, path: PathBuf, raw: bool) -> Answer {
        // The engine connects there as its own user, whoever the program is.
        let theirs = self.shared.dir.as_ref().map(|dir| dir.port_socket(port));
        if theirs.is_some_and(|theirs| theirs != path) {
            let text = format!(
                "{} is not where port {port} of system {} listens: use the run directory by the path that its engine has",
                path.display(),
                self.shared.system
            );
            let error = io::Error::new(io::ErrorKind::PermissionDenied, text);
            return Answer::failed(&error);
        }
        let owns = |clients: &mut Clients| {
            let owners = clients.ports.entry(port).or_default();
            owners.insert(self.number)
        };
        let fresh = owns(&mut self.shared.clients());
        let listened = self.shared.calls.listen(port, &path, raw);
        let mut clients = self.shared.clients();
        let gone = !clients.sockets.contains_key(&self.number);
        match listened {
            Ok(()) if !gone => Answer::Done,
            Ok(()) => {
                // The program went while it waited; unless another has taken the port, nobody is there.
                let free = !clients.ports.contains_key(&port);
                drop(clients);
                if free {
                    self.shared.calls.unlisten(port);
                }
                Answer::Done
            }
            Err(error) => {
                // What it had before stays its own.
                if fresh {
                    clients.give_up(port, self.number);
                }
                Answer::failed(&error)
            }
        }
    }

    /// Makes a call that may wait on a thread of its own.
    fn wait_for<T: Into<Told>>(
        self: &Arc<Self>,
        number: u64,
        call: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> io::Result<()> {
        if let Some(refusal) = self.begin_waiting() {
            return send_answer(&*self.socket, number, &refusal, None);
        }
        let client = Arc::clone(self);
        let work = move || {
            let Told { answer, fd } = call(&client).into();
            client.waiting.fetch_sub(1, Ordering::AcqRel);
            let fd = fd.as_ref().map(AsFd::as_fd);
            let sent = send_answer(&*client.socket, number, &answer, fd);
            client.cut_off_if(sent.is_err());
        };
        if !self.shared.apart {
            work();
            return Ok(());
        }
        if let Err(error) = spawn_call(work) {
            self.waiting.fetch_sub(1, Ordering::AcqRel);
            let text = format!("the engine has no thread left: {error}");
            let answer = Answer::NotConnected(ConnectFailure::Failed(text));
            return send_answer(&*self.socket, number, &answer, None);
        }
        Ok(())
    }
}

fn spawn_call(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let thread = thread::Builder::new().name("stp-control-call".to_owned());
    thread.stack_size(CALL_STACK_BYTES).spawn(work).map(drop)
}

fn connect_answer(outcome: Result<Connected, ConnectFailure>) -> Answer {
    match outcome {
        Ok(connected) => Answer::Connected(connected),
        Err(failure) => Answer::NotConnected(failure),
    }
}

/// What a call that waited has to tell.
struct Told {
    answer: Answer,
    fd: Option<OwnedFd>,
}

impl From<Answer> for Told {
    fn from(answer: Answer) -> Self {
        Self { answer, fd: None }
    }
}

impl From<(Answer, Option<OwnedFd>)> for Told {
    fn from((answer, fd): (Answer, Option<OwnedFd>)) -> Self {
        Self { answer, fd }
    }
}

fn incomplete(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("the request to {what} lacks a name or a descriptor"),
    )
}
