//! The handle: what the rest of a process holds of its engine.
//!
//! - Every call ends: with an answer, or with the reason why the engine stopped.
//! - The last handle's end is a clean leave, bounded in time.
//! - After a `fork` the child's copy reports [`Stopped::Forked`] and changes nothing.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{JoinHandle, ThreadId};
use std::time::{Duration, Instant};

use stp_core::{Limits, PeerInfo, ResetReason, Timings};
use stp_format::{
    Geometry, GroupName, ProcessName, SeatCounters, SeatId, Superblock, SystemName, VolumeId,
};
use stp_medium::Medium;

use super::command::{Command, Reply};
use super::driver::leave::LEAVE_MAX;
use super::error::{AttachError, ListenError, Stopped};
use super::helm::Helm;
use super::sockets::{HostListener, HostSocket, HostSockets, Names, Place};
use super::thread;
use super::verdict::{Ending, Verdicts};
use crate::control::lane::{Close, Got, Lane, Put, Write};
use crate::control::{
    Calls, ConnectFailure, ConnectLater, ConnectReply, Connected, GiftId, Handed, Offer, Opening,
    Peer, PeerState, StreamToken, Taken, Verdict as CallVerdict,
};
use crate::forks::Moment;
use crate::rendezvous::SystemDir;

/// How long a leave waits for peers to take what closed streams still hold, unless told otherwise.
const LINGER: Duration = Duration::from_secs(30);
/// Added to every bounded wait for the engine's thread: its own deadlines come first.
const GRACE: Duration = Duration::from_secs(2);
/// How long a connection attempt waits for its answer, unless told otherwise.
const CONNECT_MAX: Duration = Duration::from_secs(120);
/// How long a getter waits for the engine.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// What an engine needs to start.
pub struct EngineConfig {
    /// The storage, opened for writing; it knows its geometry.
    pub medium: Box<dyn Medium>,
    /// The volume as people name it; stands in messages.
    pub label: String,
    /// What the volume says of itself.
    pub superblock: Superblock,
    /// The system's place in the run directory.
    pub dir: SystemDir,
    /// This host's identity.
    pub host: [u8; 16],
    /// The node's time-outs.
    pub timings: Timings,
    /// The node's limits.
    pub limits: Limits,
    /// How long a leave waits for peers to take what closed streams still hold.
    pub linger: Duration,
}

impl EngineConfig {
    /// A configuration with the usual time-outs and limits.
    pub fn new(
        medium: Box<dyn Medium>,
        label: impl Into<String>,
        superblock: Superblock,
        dir: SystemDir,
        host: [u8; 16],
    ) -> Self {
        Self {
            medium,
            label: label.into(),
            superblock,
            dir,
            host,
            timings: Timings::default(),
            limits: Limits::default(),
            linger: LINGER,
        }
    }
}

/// The volume that an engine is attached to.
#[derive(Clone, Debug)]
pub struct VolumeInfo {
    /// Its identity.
    pub id: VolumeId,
    /// The group's name.
    pub group: GroupName,
    /// Its measures.
    pub geometry: Geometry,
    /// As people name it.
    pub label: String,
    /// What kind of storage it is.
    pub storage: String,
}

/// What the handles and the thread of one engine share.
pub(super) struct Shared {
    pub(super) volume: VolumeInfo,
    pub(super) system: SystemName,
    pub(super) seat: SeatId,
    pub(super) verdicts: Arc<Verdicts>,
    pub(super) names: Arc<Names>,
    pub(super) helm: Helm,
    kick: Arc<OwnedFd>,
    queue: Mutex<Queue>,
    tickets: AtomicU64,
}

#[derive(Default)]
struct Queue {
    commands: Vec<Command<HostSockets>>,
    stopped: Option<Stopped>,
}

impl Shared {
    pub(super) fn new(
        volume: VolumeInfo,
        system: SystemName,
        seat: SeatId,
        verdicts: Arc<Verdicts>,
        names: Arc<Names>,
        kick: Arc<OwnedFd>,
        helm: Helm,
    ) -> Self {
        Self {
            volume,
            system,
            seat,
            verdicts,
            names,
            helm,
            kick,
            queue: Mutex::default(),
            tickets: AtomicU64::new(1),
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        // The queue is whole between any two statements under this lock.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes every waiting command.
    pub(super) fn take_commands(&self) -> Vec<Command<HostSockets>> {
        std::mem::take(&mut self.queue().commands)
    }

    /// The engine is over: later calls learn why, waiting ones get no answer and ask.
    pub(super) fn stop(&self, why: Stopped) {
        let commands = {
            let mut queue = self.queue();
            queue.stopped.get_or_insert(why);
            std::mem::take(&mut queue.commands)
        };
        self.verdicts.end_all(ResetReason::EngineStopped);
        drop(commands);
    }

    fn stopped(&self) -> Option<Stopped> {
        self.queue().stopped.clone()
    }

    fn push(&self, command: Command<HostSockets>) -> Result<(), Stopped> {
        let first = {
            let mut queue = self.queue();
            if let Some(stopped) = &queue.stopped {
                return Err(stopped.clone());
            }
            queue.commands.push(command);
            queue.commands.len() == 1
        };
        if first {
            self.kick();
        }
        self.helm.call_back();
        Ok(())
    }

    /// Wakes the engine's thread up from its wait.
    pub(super) fn kick(&self) {
        // The counter cannot overflow before the engine looks.
        let _ = rustix::io::write(&*self.kick, &1_u64.to_ne_bytes());
    }
}

/// One engine, ended with its last handle.
struct Engine {
    shared: Arc<Shared>,
    pid: u32,
    /// For calls that cannot afford to ask the kernel which process this is.
    born: Option<Moment>,
    linger: Duration,
    thread: Mutex<Option<JoinHandle<()>>>,
    thread_id: ThreadId,
    over: Mutex<mpsc::Receiver<()>>,
}

impl Engine {
    /// Asks for a leave and waits for it, within bounds.
    fn leave(&self) {
        let linger = self.linger;
        let _ = self.shared.push(Command::Leave { linger });
        // A reply that drops the last handle runs on the engine's own thread: it cannot wait for itself.
        if std::thread::current().id() == self.thread_id {
            return;
        }
        let bound = linger + LEAVE_MAX + GRACE;
        let over = self.over.lock().unwrap_or_else(PoisonError::into_inner);
        if over.recv_timeout(bound) == Err(mpsc::RecvTimeoutError::Timeout) {
            tracing::warn!(volume = %self.shared.volume.label, "the engine did not stop in time: left behind");
            return;
        }
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if self.pid == std::process::id() {
            self.leave();
        }
    }
}

/// Starts an engine of its own: claims a seat and starts the thread. Blocks until the seat is taken.
pub fn start(config: EngineConfig) -> Result<EngineHandle, AttachError> {
    let linger = config.linger;
    let started = thread::start(config)?;
    let thread_id = started.thread.thread().id();
    Ok(EngineHandle {
        engine: Arc::new(Engine {
            shared: started.shared,
            pid: std::process::id(),
            born: Moment::now(),
            linger,
            thread: Mutex::new(Some(started.thread)),
            thread_id,
            over: Mutex::new(started.over),
        }),
    })
}

/// A process's hold on its engine; clones are the same hold.
#[derive(Clone)]
pub struct EngineHandle {
    engine: Arc<Engine>,
}

impl fmt::Debug for EngineHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shared = &self.engine.shared;
        write!(
            f,
            "EngineHandle({}, {}, seat {})",
            shared.volume.label, shared.system, shared.seat
        )
    }
}

/// A handle that keeps no engine alive.
pub(super) struct WeakHandle(std::sync::Weak<Engine>);

impl WeakHandle {
    /// The engine's handle, if it still runs and belongs to this process.
    pub(super) fn upgrade(&self) -> Option<EngineHandle> {
        let engine = self.0.upgrade()?;
        let handle = EngineHandle { engine };
        handle.stopped().is_none().then_some(handle)
    }
}

impl EngineHandle {
    /// The volume.
    pub fn volume(&self) -> &VolumeInfo {
        &self.engine.shared.volume
    }

    /// The system that the node belongs to.
    pub fn system(&self) -> &SystemName {
        &self.engine.shared.system
    }

    /// The node's seat.
    pub fn seat(&self) -> SeatId {
        self.engine.shared.seat
    }

    /// Why the engine is not there any more; `None` while it runs.
    pub fn stopped(&self) -> Option<Stopped> {
        if self.is_foreign() {
            return Some(Stopped::Forked);
        }
        self.engine.shared.stopped()
    }

    /// As [`Calls::connect`], without waiting: `reply` is told on the engine's thread. The number names
    /// the attempt for [`EngineHandle::cancel`].
    pub fn start_connect(
        &self,
        local_port: Option<u16>,
        to: &SystemName,
        port: u16,
        socket: impl Into<HostSocket>,
        raw: bool,
        reply: Reply<Result<Connected, ConnectFailure>>,
    ) -> Result<u64, ConnectFailure> {
        let ticket = self.next_ticket();
        let how = Opening {
            raw,
            local_port,
            ..Opening::default()
        };
        self.submit_connect(ticket, to, port, socket.into(), how, reply)?;
        Ok(ticket)
    }

    /// Gives a stream that was opened with [`HostSocket::awaited`] its socket.
    pub fn join(&self, token: StreamToken, socket: HostSocket) {
        let _ = self.push(Command::Join { token, socket });
    }

    /// Publishes `port` for the programs' TCP sockets at `places`, without waiting: `reply` is told on the engine's
    /// thread.
    pub fn start_listen(
        &self,
        port: u16,
        places: Vec<Place>,
        reply: Reply<Result<(), ListenError>>,
    ) -> Result<(), Stopped> {
        self.push(Command::Listen {
            port,
            listener: HostListener::Tcp(places),
            raw: true,
            reply,
        })
    }

    /// The nodes that this one knows, without waiting: `reply` is told on the engine's thread.
    pub fn start_peers(&self, reply: Reply<Vec<PeerInfo>>) -> Result<(), Stopped> {
        self.push(Command::Peers { reply })
    }

    /// Who is behind the connections of this host's TCP sockets.
    pub fn names(&self) -> &Arc<Names> {
        &self.engine.shared.names
    }

    /// Nobody waits for this attempt any more: it is told [`ConnectFailure::TimedOut`].
    pub fn cancel(&self, ticket: u64) {
        let _ = self.push(Command::Cancel { ticket });
    }

    /// What the node has done so far.
    pub fn stats(&self) -> Result<SeatCounters, Stopped> {
        self.ask(Some(ANSWER_MAX), |reply| Command::Stats { reply })
    }

    /// The far side's end, as the node names it.
    pub fn ending(&self, token: StreamToken) -> Ending {
        let verdicts = &self.engine.shared.verdicts;
        if self.is_foreign() {
            return verdicts.in_child().ending(token);
        }
        verdicts.ending(token)
    }

    /// The library has closed this stream for good and will not ask about it again.
    pub fn retire(&self, token: StreamToken) {
        if !self.is_foreign() {
            self.engine.shared.verdicts.retire(token);
        }
    }

    /// Leaves the seat now, whoever else holds a handle: what closed streams hold is delivered first,
    /// within the linger time; open streams are reset.
    pub fn leave(&self) {
        if !self.is_foreign() {
            self.engine.leave();
        }
    }

    pub(super) fn downgrade(&self) -> WeakHandle {
        WeakHandle(Arc::downgrade(&self.engine))
    }

    fn submit_connect(
        &self,
        ticket: u64,
        to: &SystemName,
        port: u16,
        socket: HostSocket,
        how: Opening,
        reply: Reply<Result<Connected, ConnectFailure>>,
    ) -> Result<(), ConnectFailure> {
        Ok(self.push(connect_command(ticket, to, port, socket, how, reply))?)
    }

    /// Has a command done, by this thread if it may drive: the answer that this brought, if there is one already.
    fn drive_for<T>(
        &self,
        command: Command<HostSockets>,
        time: Duration,
        told: &mpsc::Receiver<T>,
    ) -> Result<Option<T>, Stopped> {
        if self.is_foreign() {
            return Err(Stopped::Forked);
        }
        let mut answer = None;
        let mut answered = || {
            answer = told.try_recv().ok();
            answer.is_some()
        };
        let shared = &self.engine.shared;
        let left = shared.helm.drive_for(shared, command, time, &mut answered);
        if let Some(command) = left {
            shared.push(command)?;
        }
        Ok(answer)
    }

    pub(super) fn next_ticket(&self) -> u64 {
        self.engine.shared.tickets.fetch_add(1, Ordering::Relaxed)
    }

    fn is_foreign(&self) -> bool {
        self.engine.pid != std::process::id()
    }

    pub(super) fn push(&self, command: Command<HostSockets>) -> Result<(), Stopped> {
        if self.is_foreign() {
            return Err(Stopped::Forked);
        }
        self.engine.shared.push(command)
    }

    /// Why there was no answer.
    pub(super) fn why_stopped(&self) -> Stopped {
        // The engine drops replies just before it says why; a leave drops them while it goes on.
        let patience = Instant::now() + GRACE;
        loop {
            match self.stopped() {
                Some(stopped) => return stopped,
                None if Instant::now() >= patience => return Stopped::Left,
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    pub(super) fn ask<T: Send + 'static>(
        &self,
        at_most: Option<Duration>,
        command: impl FnOnce(Reply<T>) -> Command<HostSockets>,
    ) -> Result<T, Stopped> {
        let (tell, told) = mpsc::sync_channel(1);
        let reply = Reply::new(move |answer| {
            let _ = tell.send(answer);
        });
        self.push(command(reply))?;
        let answer = match at_most {
            None => told.recv().ok().flatten(),
            Some(at_most) => match told.recv_timeout(at_most) {
                Ok(answer) => answer,
                Err(mpsc::RecvTimeoutError::Disconnected) => None,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    let what = "its thread does not answer: the storage or this host is overloaded";
                    return Err(Stopped::Failed(what.to_owned()));
                }
            },
        };
        answer.ok_or_else(|| self.why_stopped())
    }
}

fn connect_command(
    ticket: u64,
    to: &SystemName,
    port: u16,
    socket: HostSocket,
    how: Opening,
    reply: Reply<Result<Connected, ConnectFailure>>,
) -> Command<HostSockets> {
    Command::Connect {
        ticket,
        to: *to,
        port,
        local_port: how.local_port,
        socket,
        skip: how.skip,
        within: how.timeout,
        raw: how.raw,
        reply,
    }
}

impl Lane for EngineHandle {
    fn put(&self, write: Write<'_>, waits: bool) -> Put {
        let shared = &self.engine.shared;
        shared.helm.put(shared, write, waits)
    }

    fn take(
        &self,
        token: StreamToken,
        into: &mut [u8],
        waits: bool,
        socket: &mut dyn FnMut(&mut [u8]) -> bool,
    ) -> Got {
        let shared = &self.engine.shared;
        shared.helm.take(shared, token, into, waits, socket)
    }

    fn close(&self, close: Close) {
        let shared = &self.engine.shared;
        shared.helm.close(shared, close);
    }

    fn publish(&self, token: StreamToken, from_now_on: bool) {
        let shared = &self.engine.shared;
        shared.helm.publish(shared, token, from_now_on);
    }

    fn socket_used(&self, bytes: usize) {
        let shared = &self.engine.shared;
        shared.helm.nudge(shared, bytes);
    }
}

impl ConnectLater for EngineHandle {
    fn connect_later(
        &self,
        to: &SystemName,
        port: u16,
        socket: OwnedFd,
        how: Opening,
        reply: ConnectReply,
    ) {
        let engine = Arc::downgrade(&self.engine);
        let reply = Reply::new(move |answer| match answer {
            Some(answer) => reply(answer),
            // The engine says why it stopped only after this: its own thread cannot wait for that.
            None => {
                let tell = move || {
                    let engine = engine.upgrade().map(|engine| Self { engine });
                    let why = engine.map_or(Stopped::Left, |engine| engine.why_stopped());
                    reply(Err(why.into()));
                };
                // Without a thread for it, the end of the control connection says it.
                let _ = std::thread::Builder::new().spawn(tell);
            }
        });
        let how = Opening {
            timeout: Some(how.timeout.unwrap_or(CONNECT_MAX)),
            ..how
        };
        let ticket = self.next_ticket();
        // Where it cannot even be asked, the dropped reply says why.
        let _ = self.submit_connect(ticket, to, port, socket.into(), how, reply);
    }
}

impl Calls for EngineHandle {
    fn lane(&self) -> Option<&dyn Lane> {
        let born = self.engine.born.as_ref();
        born.is_some_and(Moment::is_same_process)
            .then_some(self as &dyn Lane)
    }

    fn later(&self) -> Option<&dyn ConnectLater> {
        Some(self)
    }

    fn listen(&self, port: u16, path: &Path, raw: bool) -> io::Result<()> {
        let listener = HostListener::Unix(PathBuf::from(path));
        let answer = self.ask(None, |reply| Command::Listen {
            port,
            listener,
            raw,
            reply,
        });
        Ok(answer.unwrap_or_else(|stopped| Err(ListenError::Stopped(stopped)))?)
    }

    fn unlisten(&self, port: u16) {
        let _ = self.push(Command::Unlisten { port });
    }

    fn connect_with(
        &self,
        to: &SystemName,
        port: u16,
        socket: OwnedFd,
        how: Opening,
    ) -> Result<Connected, ConnectFailure> {
        let ticket = self.next_ticket();
        let (tell, told) = mpsc::sync_channel(1);
        let reply = Reply::new(move |answer| {
            let _ = tell.send(answer);
        });
        let patience = how.timeout.unwrap_or(CONNECT_MAX);
        let how = Opening {
            timeout: None,
            ..how
        };
        let command = connect_command(ticket, to, port, socket.into(), how, reply);
        let since = Instant::now();
        let driven = self.drive_for(command, patience, &told)?;
        let left = patience.saturating_sub(since.elapsed());
        let answer = match driven.map_or_else(|| told.recv_timeout(left), Ok) {
            Ok(answer) => answer,
            Err(_) => {
                self.cancel(ticket);
                // It may have come through at the last moment: then its stream is reset.
                if let Ok(Some(Ok(connected))) = told.recv() {
                    self.abort(connected.token);
                }
                return Err(ConnectFailure::TimedOut);
            }
        };
        answer.unwrap_or_else(|| Err(self.why_stopped().into()))
    }

    fn mark_clean(&self, token: StreamToken) {
        let verdicts = &self.engine.shared.verdicts;
        if self.is_foreign() {
            verdicts.in_child().mark_clean(token);
        } else {
            verdicts.mark_clean(token);
        }
    }

    fn hold(&self, token: StreamToken) {
        let verdicts = &self.engine.shared.verdicts;
        if self.is_foreign() {
            verdicts.in_child().hold(token);
        } else {
            verdicts.hold(token);
        }
    }

    fn serves_children(&self) -> bool {
        true
    }

    fn verdict(&self, token: StreamToken) -> CallVerdict {
        match self.ending(token) {
            Ending::Open => CallVerdict::Open,
            Ending::Clean => CallVerdict::Clean,
            Ending::Reset(reason) => CallVerdict::Reset(reason.to_string()),
        }
    }

    fn abort(&self, token: StreamToken) {
        let _ = self.push(Command::Abort { token });
    }

    fn give(&self, offer: &Offer, end: OwnedFd, notice: OwnedFd) -> io::Result<GiftId> {
        self.give_stream(offer, end, notice)
    }

    fn withdraw(&self, gift: GiftId) {
        let _ = self.push(Command::Withdraw { gift });
    }

    fn take(&self, name: &ProcessName, wait: Duration) -> io::Result<Handed> {
        self.take_stream(name, wait)
    }

    fn confirm(&self, gift: GiftId) -> io::Result<Taken> {
        self.confirm_gift(gift)
    }

    fn put_back(&self, gift: GiftId) {
        let _ = self.push(Command::PutBack { gift });
    }

    fn peers(&self) -> io::Result<Vec<Peer>> {
        let peers = self.ask(Some(ANSWER_MAX), |reply| Command::Peers { reply })?;
        let told = |peer: stp_core::PeerInfo| Peer {
            seat: peer.seat.0,
            system: peer.system.to_string(),
            incarnation: peer.incarnation.0,
            state: match peer.state {
                stp_core::PeerState::Up => PeerState::Up,
                stp_core::PeerState::Suspect => PeerState::Suspect,
                stp_core::PeerState::Dead => PeerState::Dead,
                stp_core::PeerState::Left => PeerState::Left,
            },
            ports: peer.ports,
        };
        Ok(peers.into_iter().map(told).collect())
    }
    /// Knows `"engine"`: the volume, the seat and the node's counters.
    fn report(&self, topic: &str) -> io::Result<String> {
        if topic != "engine" {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!("this engine has no report on {topic:?}, only on \"engine\""),
            ));
        }
        let (shared, counters) = (&self.engine.shared, self.stats()?);
        let report = serde_json::json!({
            "volume": shared.volume.label,
            "volume_id": shared.volume.id.to_string(),
            "group": shared.volume.group.as_str(),
            "storage": shared.volume.storage,
            "system": shared.system.as_str(),
            "seat": shared.seat.0,
            "uptime_ms": counters.uptime_ms,
            "reads": counters.reads,
            "read_units": counters.read_units,
            "polls_empty": counters.polls_empty,
            "writes": counters.writes,
            "written_units": counters.written_units,
            "rewrites": counters.rewrites,
            "sent_bytes": counters.sent_bytes,
            "received_bytes": counters.received_bytes,
            "streams": counters.streams,
        });
        Ok(report.to_string())
    }
}
