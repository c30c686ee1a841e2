//! Attempts: connections of programs that are on their way to another system, or to a program of this one that uses the
//! library.
//!
//! - One attempt a local address: a new one from the same place ends the one before.
//! - Who connects may be a moment behind the engine: an attempt is crossed again until the program's socket is there, for at
//!   most [`CROSS_MAX`].
//! - How an attempt failed is known before the program can see that it has.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::door::Door;
use super::wire::Outcome;
use crate::control::StreamToken;
use crate::engine::{Made, made};
use crate::rendezvous::direct::Joined;

/// How long the program's socket is waited for. It connects within microseconds, unless it is stopped or closed.
const CROSS_MAX: Duration = Duration::from_secs(10);
/// The pauses between two tries.
const PAUSE_MIN: Duration = Duration::from_micros(100);
const PAUSE_MAX: Duration = Duration::from_millis(20);
/// How long the kernel is left at one try: its own first repetition comes after a second.
const TRY_MAX: Duration = Duration::from_millis(200);
/// Attempts that are over, of which the outcome can still be asked.
const DONE_MAX: usize = 4096;

/// What a program is connected to once its socket is met.
#[derive(Debug)]
pub(super) enum Far {
    /// A stream to another system.
    Stream(StreamToken),
    /// A listener of this system that uses the library.
    Library(Joined),
}

/// What has to be done about an attempt.
#[derive(Debug)]
pub(super) enum Act {
    /// The opening is to be given up.
    Cancel(u64),
    /// This socket is the program's.
    Join(Far, OwnedFd),
    /// The program is gone.
    Abort(Far),
}

#[derive(Debug)]
struct Attempt {
    number: u64,
    state: State,
}

#[derive(Debug)]
enum State {
    /// The engine asks for the stream; what cancels that, if it is more than to forget it.
    Opening(Option<u64>),
    Crossing(Crossing),
    Done(Outcome),
}

#[derive(Debug)]
struct Crossing {
    /// What is there, or why there is nothing.
    far: Result<Far, i32>,
    since: Instant,
    /// The engine's socket, once it is connecting, and since when.
    socket: Option<(OwnedFd, Instant)>,
    again_at: Instant,
    pause: Duration,
}

/// All attempts.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    by_local: HashMap<SocketAddr, Attempt>,
    by_number: HashMap<u64, SocketAddr>,
    crossing: Vec<u64>,
    done: VecDeque<u64>,
    last: u64,
}

impl Attempts {
    /// The number of the next attempt.
    pub(super) fn next_number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// How many are under way.
    pub(super) fn under_way(&self) -> usize {
        self.by_local.len() - self.done.len().min(self.by_local.len())
    }

    /// Notes an attempt from `local`; what is to be done about the one before.
    pub(super) fn begin(
        &mut self,
        local: SocketAddr,
        number: u64,
        ticket: Option<u64>,
    ) -> Option<Act> {
        let before = self.remove(local);
        let state = State::Opening(ticket);
        self.by_local.insert(local, Attempt { number, state });
        self.by_number.insert(number, local);
        before
    }

    /// Forgets the attempt from `local`; what is to be done about it.
    pub(super) fn remove(&mut self, local: SocketAddr) -> Option<Act> {
        let attempt = self.by_local.remove(&local)?;
        self.by_number.remove(&attempt.number);
        self.crossing.retain(|number| *number != attempt.number);
        self.done.retain(|number| *number != attempt.number);
        match attempt.state {
            State::Opening(ticket) => ticket.map(Act::Cancel),
            State::Crossing(crossing) => crossing.far.ok().map(Act::Abort),
            State::Done(_) => None,
        }
    }

    /// Where an attempt comes from; `None` if it was replaced or forgotten.
    pub(super) fn local(&self, number: u64) -> Option<SocketAddr> {
        self.by_number.get(&number).copied()
    }

    /// The far end is there, or is not to be had: the program is told through its socket.
    pub(super) fn settle(&mut self, number: u64, far: Result<Far, i32>, now: Instant) {
        let Some(attempt) = self.at(number) else {
            return;
        };
        attempt.state = State::Crossing(Crossing {
            far,
            since: now,
            socket: None,
            again_at: now,
            pause: PAUSE_MIN,
        });
        self.crossing.push(number);
    }

    /// How the attempt from `local` stands. A failure is told once.
    pub(super) fn outcome(&mut self, local: SocketAddr) -> Outcome {
        let Some(attempt) = self.by_local.get_mut(&local) else {
            return Outcome::Unknown;
        };
        match &mut attempt.state {
            State::Opening(_) => Outcome::Pending,
            State::Crossing(crossing) => match crossing.far {
                Ok(_) => Outcome::Pending,
                Err(errno) => Outcome::Failed(errno),
            },
            State::Done(outcome) => {
                let told = *outcome;
                if matches!(told, Outcome::Failed(_)) {
                    *outcome = Outcome::Unknown;
                }
                told
            }
        }
    }

    /// When [`Attempts::move_on`] has something to do.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let crossing = self.crossing.iter().filter_map(|number| {
            let attempt = self.by_local.get(self.by_number.get(number)?)?;
            match &attempt.state {
                State::Crossing(crossing) => Some(crossing.again_at),
                _ => None,
            }
        });
        crossing.min()
    }

    /// Crosses what is due; `act` is told what has to be done.
    pub(super) fn move_on(&mut self, now: Instant, door: &Door, mut act: impl FnMut(Act)) {
        let mut over = Vec::new();
        for number in &self.crossing {
            let Some(local) = self.by_number.get(number) else {
                continue;
            };
            let Some(attempt) = self.by_local.get_mut(local) else {
                continue;
            };
            let State::Crossing(crossing) = &mut attempt.state else {
                continue;
            };
            if crossing.again_at > now {
                continue;
            }
            let met = crossing.try_once(now, *local, door);
            if met.is_none() && now.duration_since(crossing.since) < CROSS_MAX {
                continue;
            }
            over.push(*number);
            let outcome = match crossing.far {
                Ok(_) => Outcome::Open,
                Err(errno) => Outcome::Failed(errno),
            };
            let State::Crossing(crossing) =
                std::mem::replace(&mut attempt.state, State::Done(outcome))
            else {
                continue;
            };
            match (crossing.far, met) {
                (Ok(far), Some(socket)) => act(Act::Join(far, socket)),
                (Ok(far), None) => act(Act::Abort(far)),
                // What met the program ends here: that resets its connection.
                (Err(_), _) => {}
            }
        }
        self.crossing.retain(|number| !over.contains(number));
        self.done.extend(over);
        while self.done.len() > DONE_MAX {
            let Some(oldest) = self.done.pop_front() else {
                break;
            };
            if let Some(local) = self.by_number.remove(&oldest) {
                self.by_local.remove(&local);
            }
        }
    }

    fn at(&mut self, number: u64) -> Option<&mut Attempt> {
        let local = self.by_number.get(&number)?;
        self.by_local.get_mut(local)
    }
}

impl Crossing {
    /// The engine's connected socket, if the program's is there by now.
    fn try_once(&mut self, now: Instant, local: SocketAddr, door: &Door) -> Option<OwnedFd> {
        let (socket, since) = match self.socket.take() {
            Some(trying) => trying,
            None => match door.cross(local) {
                Ok(socket) => (socket, now),
                Err(errno) => {
                    // Refused: not there yet. Address in use: the kernel still remembers an older connection.
                    if !matches!(
                        errno,
                        Errno::CONNREFUSED | Errno::ADDRINUSE | Errno::ADDRNOTAVAIL
                    ) {
                        tracing::debug!(%local, %errno, "a program's connection cannot be made yet");
                    }
                    self.wait(now);
                    return None;
                }
            },
        };
        match made(&socket) {
            Made::Yes => return Some(socket),
            Made::NotYet if now.duration_since(since) < TRY_MAX => {
                self.socket = Some((socket, since));
            }
            Made::NotYet | Made::No(_) => {}
        }
        self.wait(now);
        None
    }

    fn wait(&mut self, now: Instant) {
        self.again_at = now + self.pause;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::stream_socket;
    use rustix::net::{AddressFamily, bind, connect, getsockname};

    fn bound() -> (OwnedFd, SocketAddr) {
        let socket = stream_socket(AddressFamily::INET).unwrap();
        bind(&socket, &"127.64.7.9:0".parse::<SocketAddr>().unwrap()).unwrap();
        let local = SocketAddr::try_from(getsockname(&socket).unwrap()).unwrap();
        (socket, local)
    }

    /// Moves on through time until something is to be done or nothing is left.
    fn run(attempts: &mut Attempts, door: &Door, mut now: Instant) -> (Vec<Act>, Instant) {
        let mut acts = Vec::new();
        while let Some(at) = attempts.poll_timeout() {
            now = now.max(at);
            attempts.move_on(now, door, |act| acts.push(act));
            if !acts.is_empty() {
                break;
            }
        }
        (acts, now)
    }

    #[test]
    fn a_program_that_comes_late_is_met() {
        let door = Door::open().unwrap();
        let mut attempts = Attempts::default();
        let (socket, local) = bound();
        assert_eq!(attempts.outcome(local), Outcome::Unknown);
        let number = attempts.next_number();
        assert!(attempts.begin(local, number, Some(7)).is_none());
        assert_eq!(
            (attempts.outcome(local), attempts.under_way()),
            (Outcome::Pending, 1)
        );
        let now = Instant::now();
        attempts.settle(number, Ok(Far::Stream(StreamToken(5))), now);
        attempts.move_on(now, &door, |act| panic!("{act:?}"));
        assert_eq!(connect(&socket, &door.v4()), Err(Errno::INPROGRESS));
        let (acts, _) = run(&mut attempts, &door, now);
        assert!(
            matches!(&acts[..], [Act::Join(Far::Stream(StreamToken(5)), _)]),
            "{acts:?}"
        );
        assert!(matches!(made(&socket), Made::Yes));
        assert_eq!(
            (attempts.outcome(local), attempts.under_way()),
            (Outcome::Open, 0)
        );
        assert!(attempts.remove(local).is_none());
    }

    #[test]
    fn a_failure_is_known_before_it_is_seen_and_told_once() {
        let door = Door::open().unwrap();
        let mut attempts = Attempts::default();
        let (socket, local) = bound();
        let number = attempts.next_number();
        attempts.begin(local, number, Some(7));
        assert_eq!(connect(&socket, &door.v4()), Err(Errno::INPROGRESS));
        let now = Instant::now();
        attempts.settle(number, Err(111), now);
        assert!(matches!(made(&socket), Made::NotYet));
        let (acts, _) = run(&mut attempts, &door, now);
        assert!(acts.is_empty());
        assert!(matches!(made(&socket), Made::No(_)));
        assert_eq!(attempts.outcome(local), Outcome::Failed(111));
        assert_eq!(attempts.outcome(local), Outcome::Unknown);
    }

    #[test]
    fn a_program_that_never_comes_costs_its_stream() {
        let door = Door::open().unwrap();
        let mut attempts = Attempts::default();
        let (socket, local) = bound();
        drop(socket);
        let number = attempts.next_number();
        attempts.begin(local, number, Some(7));
        let begun = Instant::now();
        attempts.settle(number, Ok(Far::Stream(StreamToken(5))), begun);
        let (acts, now) = run(&mut attempts, &door, begun);
        let aborted = [Act::Abort(Far::Stream(StreamToken(5)))];
        assert_eq!(format!("{acts:?}"), format!("{aborted:?}"));
        assert!(now - begun >= CROSS_MAX);
    }

    #[test]
    fn a_second_attempt_from_one_place_ends_the_first() {
        let mut attempts = Attempts::default();
        let (_socket, local) = bound();
        let first = attempts.next_number();
        attempts.begin(local, first, Some(7));
        let second = attempts.next_number();
        let before = attempts.begin(local, second, Some(8));
        assert!(matches!(before, Some(Act::Cancel(7))));
        assert_eq!(
            (attempts.local(first), attempts.local(second)),
            (None, Some(local))
        );
        attempts.settle(first, Ok(Far::Stream(StreamToken(1))), Instant::now());
        assert_eq!(attempts.poll_timeout(), None);
        attempts.settle(second, Ok(Far::Stream(StreamToken(2))), Instant::now());
        assert!(matches!(
            attempts.remove(local),
            Some(Act::Abort(Far::Stream(StreamToken(2))))
        ));
        assert_eq!(attempts.under_way(), 0);
    }
}
