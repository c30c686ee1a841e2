//! Giving a stream to another program, and taking one.
//!
//! - A stream has one owner. It is the giver's until a taker has confirmed it, and the taker's from then on.
//! - Until a gift is settled the giver can only close its stream; if nobody has taken it, the stream works again.
//! - A gift's descriptor is readable, and has an exceptional condition, once the gift is settled.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};
use stp_format::{NameError, ProcessName, SystemName};
use stp_host::control::{Calls, EndName, GiftId, Offer, Outcome};
use stp_host::rendezvous::direct::{Marks, Side};
use stp_host::rendezvous::{GiftSocket, Passed, SystemDir, take_gift};

use crate::addr::Addr;
use crate::group::Group;
use crate::stream::{Fate, Stream};

/// How long one look for a gift waits at the engine before the run directory is looked at again.
const TAKE_SLICE: Duration = Duration::from_millis(100);
/// The longest that a gift may stand.
const GIVE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Whom a stream is given to: the programs that take by this name, on one system.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TakerName {
    /// The system; `None`: this one.
    pub system: Option<SystemName>,
    /// The name that the taker says: at most 63 letters, digits, `-`, `_` and `.`.
    pub name: String,
}

impl TakerName {
    /// A taker on this system.
    pub fn here(name: impl Into<String>) -> Self {
        Self {
            system: None,
            name: name.into(),
        }
    }

    /// A taker on `system`.
    pub fn on(system: SystemName, name: impl Into<String>) -> Self {
        Self {
            system: Some(system),
            name: name.into(),
        }
    }
}

impl fmt::Display for TakerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.system {
            Some(system) => write!(f, "{system}/{}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

impl FromStr for TakerName {
    type Err = NameError;

    /// `name` or `system/name`.
    fn from_str(text: &str) -> Result<Self, NameError> {
        let (system, name) = match text.split_once('/') {
            Some((system, name)) => (Some(system.parse()?), name),
            None => (None, text),
        };
        let name = name.parse::<ProcessName>()?.to_string();
        Ok(Self { system, name })
    }
}

fn process_name(name: &str) -> io::Result<ProcessName> {
    name.parse().map_err(|why| {
        let text = format!("{name:?} cannot be a taker's name: {why}");
        io::Error::new(io::ErrorKind::InvalidInput, text)
    })
}

/// How a gift can be taken back.
enum Way {
    Engine { calls: Arc<dyn Calls>, gift: GiftId },
    Direct { stop: OwnedFd },
}

/// What became of a gift, as far as the giver knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Settled {
    As(Outcome),
    /// The engine is gone.
    Lost,
}

#[derive(Default)]
struct Progress {
    settled: Option<Settled>,
    /// The giver has closed its stream meanwhile.
    closed: bool,
}

/// A gift as its giver sees it.
pub(crate) struct State {
    notice: OwnedFd,
    to: TakerName,
    wait: Duration,
    way: Way,
    progress: Mutex<Progress>,
}

impl State {
    fn progress(&self) -> MutexGuard<'_, Progress> {
        // Every change is one assignment.
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How it was settled; `None` while it stands.
    pub(crate) fn settled(&self) -> Option<Settled> {
        let mut progress = self.progress();
        if progress.settled.is_none() {
            let mut byte = [0];
            progress.settled = match recv(&self.notice, &mut byte, RecvFlags::DONTWAIT) {
                Ok((1, _)) => Some(Outcome::from_byte(byte[0]).map_or(Settled::Lost, Settled::As)),
                Ok(_) => Some(Settled::Lost),
                Err(Errno::AGAIN | Errno::INTR) => None,
                Err(_) => Some(Settled::Lost),
            };
        }
        progress.settled
    }

    /// The giver closes its stream: whether it may end it itself. What stands is ended by whoever settles it.
    pub(crate) fn close(&self) -> bool {
        match (self.settled(), &self.way) {
            (Some(Settled::As(Outcome::Taken) | Settled::Lost), _) => false,
            (Some(_), _) | (None, Way::Engine { .. }) => true,
            (None, Way::Direct { .. }) => {
                let mut progress = self.progress();
                progress.closed = true;
                // It may have been settled at this very moment, by a thread that has looked already.
                !matches!(
                    progress.settled,
                    None | Some(Settled::As(Outcome::Taken) | Settled::Lost)
                )
            }
        }
    }

    fn answer(&self, settled: Settled) -> io::Result<()> {
        let to = &self.to;
        let (kind, text) = match settled {
            Settled::As(Outcome::Taken) => return Ok(()),
            Settled::As(Outcome::Expired) => (
                io::ErrorKind::TimedOut,
                format!(
                    "nobody took the stream as {to} within {:?}: it is still this program's; give it again, or start the taker",
                    self.wait
                ),
            ),
            Settled::As(Outcome::Withdrawn) => (
                io::ErrorKind::Other,
                format!("the gift to {to} was withdrawn: the stream is still this program's"),
            ),
            Settled::As(Outcome::Broken) => (
                io::ErrorKind::ConnectionReset,
                format!("the stream broke before {to} took it"),
            ),
            Settled::As(Outcome::Impossible) => (
                io::ErrorKind::Unsupported,
                format!(
                    "the stream cannot be moved to {to}: an engine on its way is of an older release; it is still this program's"
                ),
            ),
            Settled::Lost => (
                io::ErrorKind::NotConnected,
                format!("the engine that held the gift to {to} is gone, and the stream with it"),
            ),
        };
        Err(io::Error::new(kind, text))
    }

    /// Whether the giver may use its stream: the gift is settled and was not taken.
    pub(crate) fn check(&self) -> io::Result<()> {
        let to = &self.to;
        match self.settled() {
            None => Err(io::Error::new(
                io::ErrorKind::ResourceBusy,
                format!(
                    "the stream is being given to {to}: until that is settled it can only be closed; wait, or withdraw the gift"
                ),
            )),
            Some(Settled::As(Outcome::Taken)) => Err(io::Error::new(
                io::ErrorKind::NotConnected,
                format!("the stream was taken by {to}: here it can only be closed"),
            )),
            Some(_) => Ok(()),
        }
    }
}

/// A stream that stands to be taken. Dropping it changes nothing; the stream may be dropped as well.
///
/// Its descriptor is readable once the gift is settled, and has an exceptional condition (`POLLPRI`).
pub struct Gift {
    state: Arc<State>,
}

impl fmt::Debug for Gift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gift")
            .field("to", &self.state.to)
            .field("settled", &self.state.settled())
            .finish()
    }
}

impl Gift {
    pub(crate) fn state(&self) -> Arc<State> {
        Arc::clone(&self.state)
    }

    /// Whom it is for.
    pub fn to(&self) -> &TakerName {
        &self.state.to
    }

    /// Whether the giver may use its stream: it is settled and was not taken. Else the error for its use.
    pub(crate) fn check(&self) -> io::Result<()> {
        self.state.check()
    }

    /// Before the giver closes its stream: whether it shall say itself that the end is meant.
    pub(crate) fn close(&self) -> bool {
        self.state.close()
    }

    /// What became of it; `None` while it stands. `Ok`: it was taken, and the giver may only close its
    /// stream. `TimedOut`: nobody came, the stream is the giver's as before.
    pub fn poll(&self) -> Option<io::Result<()>> {
        let settled = self.state.settled()?;
        Some(self.state.answer(settled))
    }

    /// As [`Gift::poll`], waiting until it is settled.
    pub fn wait(&self) -> io::Result<()> {
        loop {
            if let Some(answer) = self.poll() {
                return answer;
            }
            match poll(&mut [PollFd::new(&self.state.notice, PollFlags::IN)], None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Takes the stream back. An error: it was taken before.
    pub fn withdraw(&self) -> io::Result<()> {
        match &self.state.way {
            Way::Engine { calls, gift } => calls.withdraw(*gift),
            Way::Direct { stop } => {
                let _ = rustix::io::write(stop, &1_u64.to_ne_bytes());
            }
        }
        match self.wait() {
            Ok(()) => Err(io::Error::new(
                io::ErrorKind::NotConnected,
                format!("the stream was taken by {} before", self.state.to),
            )),
            Err(_) if self.state.settled() == Some(Settled::Lost) => self.wait(),
            Err(_) => Ok(()),
        }
    }
}

impl AsFd for Gift {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.state.notice.as_fd()
    }
}

impl AsRawFd for Gift {
    fn as_raw_fd(&self) -> RawFd {
        self.state.notice.as_raw_fd()
    }
}

/// Offers the stream at `socket` of a program of `home` to whoever takes by `to`'s name.
pub fn give(
    home: &SystemDir,
    fate: &Fate,
    socket: BorrowedFd<'_>,
    local: &Addr,
    peer: &Addr,
    to: &TakerName,
    wait: Duration,
) -> io::Result<Gift> {
    let name = process_name(&to.name)?;
    let wait = wait.min(GIVE_MAX);
    let (family, flags) = (AddressFamily::UNIX, SocketFlags::CLOEXEC);
    let (notice, teller) = socketpair(family, SocketType::STREAM, flags, None)?;
    let end = socket.try_clone_to_owned()?;
    let Some((local_end, peer_end)) = end_name(local).zip(end_name(peer)) else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "a stream without a name cannot be given",
        ));
    };
    let here = *home.system();
    let target = to.system.unwrap_or(here);
    let state = |way| {
        Arc::new(State {
            notice,
            to: to.clone(),
            wait,
            way,
            progress: Mutex::default(),
        })
    };
    match fate {
        Fate::Engine { calls, token } => {
            let offer = Offer {
                token: *token,
                to: target,
                name,
                wait,
                local: local_end,
                peer: peer_end,
            };
            let gift = calls.give(&offer, end, teller)?;
            let calls = Arc::clone(calls);
            let state = state(Way::Engine { calls, gift });
            Ok(Gift { state })
        }
        Fate::Direct(_) if target != here => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!(
                "the stream from {local} to {peer} never leaves this system: it can be given to a taker of this system only, not to {to}"
            ),
        )),
        Fate::Direct(marks) => {
            let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
            let gift = GiftSocket::bind(home, &name)?;
            let state = state(Way::Direct { stop });
            serve(
                gift,
                Arc::clone(&state),
                end,
                teller,
                marks.clone(),
                local,
                peer,
            )?;
            Ok(Gift { state })
        }
        Fate::Raw => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "the program at the other end of this stream does not use the library: it cannot be given",
        )),
    }
}

fn end_name(addr: &Addr) -> Option<EndName> {
    Some(EndName {
        system: addr.system?,
        port: addr.port,
    })
}

/// Serves a gift that no engine carries, on a thread that ends with it.
fn serve(
    gift: GiftSocket,
    given: Arc<State>,
    end: OwnedFd,
    teller: OwnedFd,
    marks: Marks,
    local: &Addr,
    peer: &Addr,
) -> io::Result<()> {
    let about = format!("{} {local} {peer}", marks.side().name());
    let deadline = Instant::now() + given.wait;
    thread::Builder::new()
        .name("stp-gift".to_owned())
        .spawn(move || {
            let Way::Direct { stop } = &given.way else {
                return;
            };
            let fds = [end.as_fd(), marks.counter()];
            let passed = gift.serve(about.as_bytes(), &fds, stop.as_fd(), deadline);
            let outcome = match passed {
                Ok(Passed::Taken) => Outcome::Taken,
                Ok(Passed::Expired) => Outcome::Expired,
                Ok(Passed::Stopped) | Err(_) => Outcome::Withdrawn,
            };
            {
                let mut progress = given.progress();
                progress.settled = Some(Settled::As(outcome));
                if progress.closed && outcome != Outcome::Taken {
                    marks.leave();
                }
            }
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            let byte = [outcome as u8];
            let _ = send(&teller, &byte, flags);
            let _ = send(&teller, &byte, flags | SendFlags::OOB);
        })?;
    Ok(())
}

/// A stream that was taken: its parts.
pub struct TakenStream {
    /// The program's end.
    pub socket: OwnedFd,
    /// How it ends.
    pub fate: Fate,
    /// Its address on the giver's side.
    pub local: Addr,
    /// The far end.
    pub peer: Addr,
}

/// Takes what was given to `name` on the system of `home`; waits for it, for at most `timeout`.
pub fn take(
    home: &SystemDir,
    calls: &Arc<dyn Calls>,
    name: &str,
    timeout: Option<Duration>,
) -> io::Result<TakenStream> {
    let name = process_name(name)?;
    let give_up = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    loop {
        if let Some(taken) = take_direct(home, &name)? {
            return Ok(taken);
        }
        let left = give_up.map(|at| at.saturating_duration_since(Instant::now()));
        let slice = left.map_or(TAKE_SLICE, |left| left.min(TAKE_SLICE));
        let handed = match calls.take(&name, slice) {
            Ok(handed) => handed,
            Err(error) if error.kind() != io::ErrorKind::TimedOut => return Err(error),
            Err(_) if left.is_none_or(|left| !left.is_zero()) => continue,
            Err(_) => {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!(
                        "nobody gave a stream to {}/{name} within {:?}: check the name that the giver uses",
                        home.system(),
                        timeout.unwrap_or_default()
                    ),
                ));
            }
        };
        match calls.confirm(handed.gift) {
            Ok(taken) => {
                freshen(&handed.end)?;
                return Ok(TakenStream {
                    socket: handed.end,
                    fate: Fate::Engine {
                        calls: Arc::clone(calls),
                        token: taken.token,
                    },
                    local: Addr::new(taken.local.system, taken.local.port),
                    peer: Addr::new(taken.peer.system, taken.peer.port),
                });
            }
            // It went back to its giver, or to another taker.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
}

impl Group {
    /// Takes a stream that was given to `name` on this system; waits for one, for at most `timeout`.
    ///
    /// It goes on at the exact byte where its giver stopped, under the giver's address. `TimedOut` if nobody
    /// gave one in time.
    pub fn take(&self, name: &str, timeout: Option<Duration>) -> io::Result<Stream> {
        let home = &self.inner.dir;
        let taken = take(home, &self.inner.calls, name, timeout)?;
        let stream = Stream::new(taken.socket, home, taken.local, taken.peer, taken.fate);
        // Others had the descriptor, and what they wrote may still be in it.
        stream.expose();
        Ok(stream)
    }
}

/// The giver's time-outs and mode are not the taker's.
fn freshen(socket: &OwnedFd) -> io::Result<()> {
    rustix::io::ioctl_fionbio(socket, false)?;
    set_socket_timeout(socket, Timeout::Recv, None)?;
    set_socket_timeout(socket, Timeout::Send, None)?;
    Ok(())
}

fn take_direct(dir: &SystemDir, name: &ProcessName) -> io::Result<Option<TakenStream>> {
    let Some(offered) = take_gift(dir, name)? else {
        return Ok(None);
    };
    let broken = || {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!(
                "the gift to {name} is not what a program of this release gives: use one release of stp for both"
            ),
        )
    };
    let about = String::from_utf8(offered.about).map_err(|_| broken())?;
    let mut words = about.split(' ');
    let mut word = || words.next().ok_or_else(broken);
    let side = Side::from_name(word()?).ok_or_else(broken)?;
    let local: Addr = word()?.parse().map_err(|_| broken())?;
    let peer: Addr = word()?.parse().map_err(|_| broken())?;
    let [socket, counter] = <[OwnedFd; 2]>::try_from(offered.fds).map_err(|_| broken())?;
    freshen(&socket)?;
    Ok(Some(TakenStream {
        socket,
        fate: Fate::Direct(Marks::new(counter, side)),
        local,
        peer,
    }))
}
