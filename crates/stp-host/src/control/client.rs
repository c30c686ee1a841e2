//! The program's end: the calls, over one connection that all its threads share.
//!
//! - One thread reads the answers; every caller sleeps until its own has come.
//! - When the engine goes away, every waiting call fails at once. The connection is sought again in the
//!   background; when an engine is back, the ports of this program's listeners are published again.
//! - It works in the process that made it only, not in one forked from it.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, Shutdown, SocketFlags, SocketType, connect, shutdown, socket_with,
};
use stp_format::{ProcessName, SystemName};
use tracing::{info, warn};

use super::calls::{
    Calls, ConnectFailure, Connected, EndName, GiftId, Handed, Offer, Opening, Peer, StreamToken,
    Taken, Verdict,
};
use super::peer::Admission;
use super::wire::{Answer, Receiver, Request, VERSION, arrived, send_request};
use crate::rendezvous::{Sharing, SocketPath, SystemDir};

/// How long an engine may take to say who it is.
const WELCOME_WAIT: Duration = Duration::from_secs(5);

/// How much longer than the engine the program waits for a connection.
const TIMEOUT_SLACK: Duration = Duration::from_secs(2);

/// How often a vanished engine is looked for.
const SEEK_PAUSE: Duration = Duration::from_millis(200);

/// A program's connection to the host's shared engine.
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    system: SystemName,
    admission: Admission,
    path: PathBuf,
    pid: u32,
    next: AtomicU64,
    state: Mutex<State>,
    /// Where no thread reads the answers, whoever asks does.
    reader: Option<Mutex<Receiver>>,
}

#[derive(Default)]
struct State {
    /// `None` while there is no engine.
    socket: Option<Arc<OwnedFd>>,
    pending: HashMap<u64, SyncSender<(Answer, Vec<OwnedFd>)>>,
    /// What is published anew when an engine is back.
    listeners: BTreeMap<u16, (PathBuf, bool)>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("path", &self.inner.path)
            .finish_non_exhaustive()
    }
}

/// Connects to the engine at `path` and makes sure that it is ours; `None` if none runs.
fn greet(
    path: &Path,
    system: &SystemName,
    admission: Admission,
) -> io::Result<Option<(OwnedFd, Receiver)>> {
    let (family, flags) = (AddressFamily::UNIX, SocketFlags::CLOEXEC);
    let socket = socket_with(family, SocketType::SEQPACKET, flags, None)?;
    set_socket_timeout(&socket, Timeout::Send, Some(WELCOME_WAIT))?;
    set_socket_timeout(&socket, Timeout::Recv, Some(WELCOME_WAIT))?;
    match connect(&socket, SocketPath::new(path)?.address()) {
        Err(Errno::NOENT | Errno::CONNREFUSED) => return Ok(None),
        connected => connected?,
    }
    admission.check(&socket)?;
    let Some(receiver) = introduce(&socket, path, system)? else {
        return Ok(None);
    };
    set_socket_timeout(&socket, Timeout::Recv, None)?;
    Ok(Some((socket, receiver)))
}

/// Says who we are and hears who the engine is; `None` if it goes meanwhile.
fn introduce(socket: &OwnedFd, path: &Path, system: &SystemName) -> io::Result<Option<Receiver>> {
    let hello = Request::Hello {
        version: VERSION,
        pid: std::process::id(),
    };
    let mut receiver = Receiver::default();
    match send_request(socket, 0, &hello, &[]) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => return Ok(None),
        sent => sent?,
    }
    let trouble = |text: String| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("the engine at {}: {text}", path.display()),
        )
    };
    match receiver.answer(socket) {
        Ok(Some((0, Answer::Welcome { version, .. }, _))) if version != VERSION => {
            Err(trouble(format!(
                "it speaks version {version} of the control protocol, this program version {VERSION}: use one release of stp for both"
            )))
        }
        Ok(Some((0, Answer::Welcome { system: theirs, .. }, _))) => {
            if theirs != system.as_str() {
                return Err(trouble(format!("it is system {theirs}, not {system}")));
            }
            Ok(Some(receiver))
        }
        Ok(Some(_)) => Err(trouble("it answered with something else".to_owned())),
        Ok(None) => Ok(None),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!(
                "the engine at {} does not answer: is it stopped? Continue or restart it",
                path.display()
            ),
        )),
        Err(e) => Err(e),
    }
}

impl Client {
    /// Connects to the shared engine of `dir`; `None` if none runs.
    pub fn connect(dir: &SystemDir) -> io::Result<Option<Self>> {
        let path = dir.engine_socket();
        let admission = Admission::of_engine(dir.sharing());
        let Some((socket, receiver)) = greet(&path, dir.system(), admission)? else {
            return Ok(None);
        };
        let socket = Arc::new(socket);
        let inner = Arc::new(Inner {
            system: *dir.system(),
            admission,
            path,
            pid: std::process::id(),
            next: AtomicU64::new(1),
            state: Mutex::new(State {
                socket: Some(Arc::clone(&socket)),
                ..State::default()
            }),
            reader: None,
        });
        let reading = Arc::downgrade(&inner);
        thread::Builder::new()
            .name("stp-control-read".to_owned())
            .spawn(move || read_answers(&reading, socket, receiver))?;
        Ok(Some(Self { inner }))
    }

    /// Talks to the engine at the other end of a socket, without a thread: whoever asks reads the answers, and an
    /// engine that goes away is not sought again. `None` if it goes at once. For tests, which drive both ends
    /// ([`Session`](super::Session)).
    pub fn over(socket: OwnedFd, system: &SystemName) -> io::Result<Option<Self>> {
        let path = PathBuf::from("the other end");
        let Some(receiver) = introduce(&socket, &path, system)? else {
            return Ok(None);
        };
        let uid = rustix::process::geteuid().as_raw();
        let inner = Arc::new(Inner {
            system: *system,
            admission: Admission::of_engine(Sharing {
                owner: uid,
                group: None,
            }),
            path,
            pid: std::process::id(),
            next: AtomicU64::new(1),
            state: Mutex::new(State {
                socket: Some(Arc::new(socket)),
                ..State::default()
            }),
            reader: Some(Mutex::new(receiver)),
        });
        Ok(Some(Self { inner }))
    }

    /// Whether there is an engine at the other end now.
    pub fn is_connected(&self) -> bool {
        self.inner.state().socket.is_some()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // A forked child's copy is the same connection: shutting it down would cut off the parent.
        if self.inner.pid != std::process::id() {
            return;
        }
        if let Some(socket) = &self.inner.state().socket {
            let _ = shutdown(socket, Shutdown::Both);
        }
    }
}

/// Runs until the client is dropped: hands out answers, and looks for an engine while there is none.
fn read_answers(client: &Weak<Inner>, mut socket: Arc<OwnedFd>, mut receiver: Receiver) {
    loop {
        while let Ok(Some((number, answer, fds))) = receiver.answer(&*socket) {
            let Some(inner) = client.upgrade() else {
                return;
            };
            inner.hand_out(number, answer, fds);
        }
        let _ = shutdown(&*socket, Shutdown::Both);
        let Some(inner) = client.upgrade() else {
            return;
        };
        inner.lose_engine();
        drop(inner);
        (socket, receiver) = loop {
            thread::sleep(SEEK_PAUSE);
            let Some(inner) = client.upgrade() else {
                return;
            };
            match greet(&inner.path, &inner.system, inner.admission) {
                Ok(Some((socket, receiver))) => {
                    let socket = Arc::new(socket);
                    inner.resume(&socket);
                    break (socket, receiver);
                }
                Ok(None) => {}
                Err(error) => warn!(%error, "no way back to the engine yet"),
            }
        };
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An answer has come.
    fn hand_out(&self, number: u64, answer: Answer, fds: Vec<OwnedFd>) {
        let waiting = self.state().pending.remove(&number);
        match (waiting, answer) {
            (Some(waiting), answer) => drop(waiting.send((answer, fds))),
            (None, Answer::Failed { text, .. }) => warn!("the engine answers: {text}"),
            (None, _) => {}
        }
    }

    /// There is no engine any more.
    fn lose_engine(&self) {
        let mut state = self.state();
        state.socket = None;
        state.pending.clear(); // wakes every caller
    }

    /// Reads answers until the awaited one has come, or the connection has ended.
    fn read_own(
        &self,
        reader: &Mutex<Receiver>,
        socket: &OwnedFd,
        awaited: &std::sync::mpsc::Receiver<(Answer, Vec<OwnedFd>)>,
    ) -> Result<(Answer, Vec<OwnedFd>), RecvTimeoutError> {
        let mut reader = reader.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match awaited.try_recv() {
                Ok(answer) => return Ok(answer),
                Err(TryRecvError::Disconnected) => return Err(RecvTimeoutError::Disconnected),
                Err(TryRecvError::Empty) => match reader.answer(socket) {
                    Ok(Some((number, answer, fds))) => self.hand_out(number, answer, fds),
                    _ => self.lose_engine(),
                },
            }
        }
    }

    /// A new engine is there: publishes this program's ports to it.
    fn resume(&self, socket: &Arc<OwnedFd>) {
        let mut state = self.state();
        for (port, (path, raw)) in &state.listeners {
            let request = Request::Listen {
                port: *port,
                path: path.as_os_str().as_bytes().to_vec(),
                raw: *raw,
            };
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if let Err(error) = send_request(&**socket, number, &request, &[]) {
                warn!(%error, port, "the port is not published again");
            }
        }
        info!(system = %self.system, ports = state.listeners.len(), "the engine is back");
        state.socket = Some(Arc::clone(socket));
    }

    fn gone(&self) -> io::Error {
        io::Error::new(
            io::ErrorKind::NotConnected,
            format!(
                "the engine of system {} has stopped (nobody answers at {}): start `stp engine` again",
                self.system,
                self.path.display()
            ),
        )
    }

    /// Asks and waits for the answer, for at most `timeout`.
    fn ask(
        &self,
        request: &Request,
        fd: Option<OwnedFd>,
        timeout: Option<Duration>,
    ) -> io::Result<Answer> {
        let fds = fd.into_iter().collect();
        self.exchange(request, fds, timeout)
            .map(|(answer, _)| answer)
    }

    /// As [`Inner::ask`], with descriptors either way.
    fn exchange(
        &self,
        request: &Request,
        fds: Vec<OwnedFd>,
        timeout: Option<Duration>,
    ) -> io::Result<(Answer, Vec<OwnedFd>)> {
        if std::process::id() != self.pid {
            return Err(io::Error::new(
                io::ErrorKind::NotConnected,
                "the connection to the engine belongs to the process before fork(): open the group again in the child",
            ));
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (answer_to, answer) = sync_channel(1);
        let socket = {
            let mut state = self.state();
            let socket = state.socket.clone().ok_or_else(|| self.gone())?;
            state.pending.insert(number, answer_to);
            socket
        };
        let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        if let Err(error) = send_request(&*socket, number, request, &borrowed) {
            self.state().pending.remove(&number);
            return Err(match error.kind() {
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => self.gone(),
                _ => error,
            });
        }
        drop(fds);
        let answered = match (&self.reader, timeout) {
            (Some(reader), _) => self.read_own(reader, &socket, &answer),
            (None, None) => answer.recv().map_err(|_| RecvTimeoutError::Disconnected),
            (None, Some(timeout)) => answer.recv_timeout(timeout),
        };
        answered.map_err(|error| match error {
            RecvTimeoutError::Disconnected => self.gone(),
            RecvTimeoutError::Timeout => {
                self.state().pending.remove(&number);
                io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!(
                        "the engine of system {} does not answer: is it stopped?",
                        self.system
                    ),
                )
            }
        })
    }
}

/// The error that an answer is, if it is none that was hoped for.
fn failed(answer: Answer) -> io::Error {
    match answer {
        Answer::Failed { kind, text } => arrived(kind, text),
        Answer::NotConnected(ConnectFailure::Failed(text)) => io::Error::other(text),
        answer => unexpected(&answer),
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// An end's name as it travelled.
pub(super) fn end_name((system, port): &(String, u16)) -> Option<EndName> {
    Some(EndName {
        system: system.parse().ok()?,
        port: *port,
    })
}

fn unexpected(answer: &Answer) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the engine answered with something else: {answer:?}"),
    )
}

impl Calls for Client {
    fn listen(&self, port: u16, path: &Path, raw: bool) -> io::Result<()> {
        let request = Request::Listen {
            port,
            path: path.as_os_str().as_bytes().to_vec(),
            raw,
        };
        match self.inner.ask(&request, None, None)? {
            Answer::Done => {
                let mut state = self.inner.state();
                state.listeners.insert(port, (path.to_owned(), raw));
                Ok(())
            }
            Answer::Failed { kind, text } => Err(arrived(kind, text)),
            Answer::NotConnected(ConnectFailure::Failed(text)) => Err(io::Error::other(text)),
            answer => Err(unexpected(&answer)),
        }
    }

    fn unlisten(&self, port: u16) {
        self.inner.state().listeners.remove(&port);
        let _ = self.inner.ask(&Request::Unlisten { port }, None, None);
    }

    fn connect_with(
        &self,
        to: &SystemName,
        port: u16,
        socket: OwnedFd,
        how: Opening,
    ) -> Result<Connected, ConnectFailure> {
        let timeout = how.timeout;
        let request = Request::Connect {
            to: to.to_string(),
            port,
            raw: how.raw,
            local_port: how.local_port,
            skip: how.skip,
            timeout_us: timeout.map(|t| u64::try_from(t.as_micros()).unwrap_or(u64::MAX).max(1)),
        };
        let patience = timeout.map(|timeout| timeout.saturating_add(TIMEOUT_SLACK));
        match self.inner.ask(&request, Some(socket), patience) {
            Ok(Answer::Connected(connected)) => Ok(connected),
            Ok(Answer::NotConnected(failure)) => Err(failure),
            Ok(answer) => Err(ConnectFailure::Failed(unexpected(&answer).to_string())),
            Err(e) if e.kind() == io::ErrorKind::NotConnected => {
                Err(ConnectFailure::EngineGone(e.to_string()))
            }
            Err(e) if e.kind() == io::ErrorKind::TimedOut => Err(ConnectFailure::TimedOut),
            Err(e) => Err(ConnectFailure::Failed(e.to_string())),
        }
    }

    fn mark_clean(&self, token: StreamToken) {
        let _ = self.inner.ask(&Request::MarkClean { token }, None, None);
    }

    fn hold(&self, token: StreamToken) {
        let _ = self.inner.ask(&Request::Hold { token }, None, None);
    }

    fn close(&self, token: StreamToken) {
        let _ = self.inner.ask(&Request::Close { token }, None, None);
    }

    fn verdict(&self, token: StreamToken) -> Verdict {
        match self.inner.ask(&Request::Verdict { token }, None, None) {
            Ok(Answer::Verdict(verdict)) => verdict,
            Ok(answer) => Verdict::Reset(unexpected(&answer).to_string()),
            Err(error) => Verdict::Reset(error.to_string()),
        }
    }

    fn abort(&self, token: StreamToken) {
        let _ = self.inner.ask(&Request::Abort { token }, None, None);
    }

    fn give(&self, offer: &Offer, end: OwnedFd, notice: OwnedFd) -> io::Result<GiftId> {
        let request = Request::Give {
            token: offer.token,
            to: offer.to.to_string(),
            name: offer.name.to_string(),
            wait_us: micros(offer.wait),
            local: (offer.local.system.to_string(), offer.local.port),
            peer: (offer.peer.system.to_string(), offer.peer.port),
        };
        match self.inner.exchange(&request, vec![end, notice], None)?.0 {
            Answer::Given(gift) => Ok(gift),
            answer => Err(failed(answer)),
        }
    }

    fn withdraw(&self, gift: GiftId) {
        let _ = self.inner.ask(&Request::Withdraw { gift }, None, None);
    }

    fn take(&self, name: &ProcessName, wait: Duration) -> io::Result<Handed> {
        let request = Request::Take {
            name: name.to_string(),
            wait_us: micros(wait),
        };
        match self.inner.exchange(&request, Vec::new(), None)? {
            (Answer::Handed(gift), mut fds) => match fds.pop() {
                Some(end) => Ok(Handed { gift, end }),
                None => {
                    self.put_back(gift);
                    Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "the engine handed out a gift without its descriptor: too many files are open in this process",
                    ))
                }
            },
            (answer, _) => Err(failed(answer)),
        }
    }

    fn confirm(&self, gift: GiftId) -> io::Result<Taken> {
        match self.inner.ask(&Request::Confirm { gift }, None, None)? {
            Answer::Taken { token, local, peer } => match (end_name(&local), end_name(&peer)) {
                (Some(local), Some(peer)) => Ok(Taken { token, local, peer }),
                _ => Err(unexpected(&Answer::Taken { token, local, peer })),
            },
            answer => Err(failed(answer)),
        }
    }

    fn put_back(&self, gift: GiftId) {
        let _ = self.inner.ask(&Request::PutBack { gift }, None, None);
    }

    fn peers(&self) -> io::Result<Vec<Peer>> {
        match self.inner.ask(&Request::Peers, None, None)? {
            Answer::Peers(peers) => Ok(peers),
            Answer::Failed { kind, text } => Err(arrived(kind, text)),
            answer => Err(unexpected(&answer)),
        }
    }

    fn report(&self, topic: &str) -> io::Result<String> {
        let topic = topic.to_owned();
        match self.inner.ask(&Request::Report { topic }, None, None)? {
            Answer::Report(report) => Ok(report),
            Answer::Failed { kind, text } => Err(arrived(kind, text)),
            answer => Err(unexpected(&answer)),
        }
    }
}
