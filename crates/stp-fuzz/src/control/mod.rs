//! The engine's control socket, and the messages of `stp run`.
//!
//! - Whatever datagrams a program sends, with or without descriptors, the engine answers or hangs up, and takes back
//!   what the program had: its ports, and gifts that it was handed.
//! - Whatever an engine answers, a program's calls return.
//! - Both ends run in this thread, over a socket pair, and nothing waits: thousands of inputs a second.
//!   [`sockets`] has the whole of it, with threads, listening socket and time-outs.

pub mod sockets;

use std::collections::BTreeSet;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown,
    SocketFlags, SocketType, recv, sendmsg, shutdown, socketpair,
};
use stp_format::{ProcessName, SystemName};
use stp_host::control::{
    Calls, Client, ConnectFailure, Connected, EndName, GiftId, Handed, Offer, Opening, Peer,
    Session, StreamToken, Taken, Verdict,
};
use stp_host::run::wire::{Answer, Request};

/// Datagrams of one input.
const DATAGRAMS_MAX: usize = 64;
/// Calls that a program makes of an engine.
const CALLS_MAX: usize = 24;

/// What programs ask, `#` for a number and `$` for a word.
const REQUESTS: &[&str] = &[
    r##"{"hello":{"version":2,"pid":#}}"##,
    r##"{"hello":{"version":#,"pid":#}}"##,
    r##"{"listen":{"port":#,"path":[47,#,#],"raw":false}}"##,
    r##"{"unlisten":{"port":#}}"##,
    r##"{"connect":{"to":"$","port":#,"raw":true,"timeout_us":null,"local_port":null,"skip":0}}"##,
    r##"{"connect":{"to":"$","port":#,"raw":false,"timeout_us":#,"local_port":#,"skip":#}}"##,
    r##"{"mark_clean":{"token":#}}"##,
    r##"{"hold":{"token":#}}"##,
    r##"{"close":{"token":#}}"##,
    r##"{"verdict":{"token":#}}"##,
    r##"{"abort":{"token":#}}"##,
    r##"{"give":{"token":#,"to":"$","name":"$","wait_us":#,"local":["$",#],"peer":["$",#]}}"##,
    r##"{"withdraw":{"gift":#}}"##,
    r##"{"take":{"name":"$","wait_us":#}}"##,
    r##"{"confirm":{"gift":#}}"##,
    r##"{"put_back":{"gift":#}}"##,
    r##""peers""##,
    r##"{"report":{"topic":"$"}}"##,
];

/// What engines answer.
const ANSWERS: &[&str] = &[
    r##"{"welcome":{"version":2,"system":"alpha"}}"##,
    r##""done""##,
    r##"{"failed":{"kind":"other","text":"$"}}"##,
    r##"{"failed":{"kind":"$","text":"$"}}"##,
    r##"{"connected":{"token":#,"local_port":#}}"##,
    r##"{"not_connected":"Refused"}"##,
    r##"{"not_connected":{"Failed":"$"}}"##,
    r##"{"verdict":"Clean"}"##,
    r##"{"verdict":{"Reset":"$"}}"##,
    r##"{"given":#}"##,
    r##"{"handed":#}"##,
    r##"{"taken":{"token":#,"local":["$",#],"peer":["$",#]}}"##,
    r##"{"peers":[]}"##,
    r##"{"peers":[{"seat":#,"system":"$","incarnation":#,"state":"up","ports":[#,#]}]}"##,
    r##"{"report":"$"}"##,
];

const WORDS: &[&str] = &[
    "alpha",
    "beta",
    "gift-1",
    "other",
    "timed_out",
    "",
    "a b",
    "no-such-word-is-longer-than-any-name-of-a-system-or-process-may-be-0123456789",
    r#"\u0000\ud83d\ude00"#,
];

const NUMBERS: &[&str] = &[
    "65535",
    "65536",
    "4294967295",
    "18446744073709551615",
    "18446744073709551616",
    "-1",
    "1e9",
    "0.5",
];

fn must<T, E: std::fmt::Display>(result: Result<T, E>) -> T {
    result.unwrap_or_else(|error| panic!("{error}"))
}

/// One datagram, and how many descriptors go beside it.
struct Datagram {
    bytes: Vec<u8>,
    fds: usize,
}

/// Reads an input as datagrams.
struct Datagrams<'a> {
    rest: &'a [u8],
    known: &'static [&'static str],
    /// The number of the next whole message.
    number: u8,
    /// The rest of a message that goes in two pieces.
    tail: Option<Vec<u8>>,
}

impl<'a> Datagrams<'a> {
    fn new(rest: &'a [u8], known: &'static [&'static str], number: u8) -> Self {
        Self {
            rest,
            known,
            number,
            tail: None,
        }
    }

    fn byte(&mut self) -> u8 {
        let Some((&byte, rest)) = self.rest.split_first() else {
            return 0;
        };
        self.rest = rest;
        byte
    }

    /// A message of a known kind, with numbers and words of the input's choice.
    fn known(&mut self, kind: u8) -> Vec<u8> {
        let mut text = String::new();
        for letter in self.known[usize::from(kind) % self.known.len()].chars() {
            let at = match letter {
                '#' | '$' => usize::from(self.byte()),
                _ => 0,
            };
            match letter {
                '#' if at < 240 => text.push_str(&(at % 24).to_string()),
                '#' => text.push_str(NUMBERS[at % NUMBERS.len()]),
                '$' => text.push_str(WORDS[at % WORDS.len()]),
                letter => text.push(letter),
            }
        }
        text.into_bytes()
    }

    fn framed(number: u8, more: bool, body: &[u8]) -> Vec<u8> {
        [&[number, 0, 0, 0, 0, 0, 0, 0, u8::from(more)], body].concat()
    }
}

impl Iterator for Datagrams<'_> {
    type Item = Datagram;

    fn next(&mut self) -> Option<Datagram> {
        if let Some(tail) = self.tail.take() {
            let bytes = Self::framed(self.number, false, &tail);
            self.number = self.number.wrapping_add(1);
            return Some(Datagram { bytes, fds: 0 });
        }
        if self.rest.is_empty() {
            return None;
        }
        let (kind, how) = (self.byte(), self.byte());
        let body = match kind {
            0..=199 => self.known(kind),
            _ => {
                let len = usize::from(kind - 200).min(self.rest.len());
                let (body, rest) = self.rest.split_at(len);
                self.rest = rest;
                body.to_vec()
            }
        };
        let fds = usize::from(how & 3);
        let number = match how >> 2 & 7 {
            7 => how >> 5,
            _ => self.number,
        };
        let bytes = match how >> 5 {
            7 => body[..body.len().min(8)].to_vec(),
            6 => {
                let (head, tail) = body.split_at(body.len() / 2);
                self.tail = Some(tail.to_vec());
                Self::framed(number, true, head)
            }
            _ => {
                self.number = self.number.wrapping_add(1);
                Self::framed(number, false, &body)
            }
        };
        Some(Datagram { bytes, fds })
    }
}

fn pair() -> (OwnedFd, OwnedFd) {
    let (family, flags) = (AddressFamily::UNIX, SocketFlags::CLOEXEC);
    must(socketpair(family, SocketType::SEQPACKET, flags, None))
}

/// A descriptor to send along.
fn spare() -> &'static OwnedFd {
    static SPARE: OnceLock<OwnedFd> = OnceLock::new();
    SPARE.get_or_init(|| must(std::fs::File::open("/dev/null")).into())
}

/// Sends without waiting; `false` if the other end takes no more.
fn send(socket: &OwnedFd, bytes: &[u8], fds: usize) -> bool {
    let rights = vec![spare().as_fd(); fds];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !rights.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&rights));
    }
    let parts = [io::IoSlice::new(bytes)];
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    sendmsg(socket, &parts, &mut control, flags).is_ok()
}

/// What an engine was asked for and has not been told to take back.
#[derive(Default)]
struct Had {
    calls: u64,
    ports: BTreeSet<u16>,
    handed: BTreeSet<GiftId>,
}

/// An engine that does what it is asked for, every third time not.
struct Obliging {
    had: Mutex<Had>,
}

impl Obliging {
    fn had(&self) -> MutexGuard<'_, Had> {
        self.had.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn number(&self) -> io::Result<u64> {
        let mut had = self.had();
        had.calls += 1;
        match had.calls % 3 {
            0 => Err(io::ErrorKind::ResourceBusy.into()),
            _ => Ok(had.calls),
        }
    }
}

impl Calls for Obliging {
    fn listen(&self, port: u16, _path: &Path, _raw: bool) -> io::Result<()> {
        self.number()?;
        self.had().ports.insert(port);
        Ok(())
    }

    fn unlisten(&self, port: u16) {
        assert!(
            self.had().ports.remove(&port),
            "port {port} was not published"
        );
    }

    fn connect_with(
        &self,
        _to: &SystemName,
        _port: u16,
        _socket: OwnedFd,
        _how: Opening,
    ) -> Result<Connected, ConnectFailure> {
        let number = self.number().map_err(|_| ConnectFailure::Refused)?;
        Ok(Connected {
            token: StreamToken(number),
            local_port: 40_000,
        })
    }

    fn mark_clean(&self, _token: StreamToken) {}

    fn verdict(&self, _token: StreamToken) -> Verdict {
        Verdict::Open
    }

    fn abort(&self, _token: StreamToken) {}

    fn give(&self, _offer: &Offer, _end: OwnedFd, _notice: OwnedFd) -> io::Result<GiftId> {
        self.number().map(GiftId)
    }

    fn take(&self, _name: &ProcessName, _wait: Duration) -> io::Result<Handed> {
        let gift = GiftId(self.number()? % 8);
        let end = spare().try_clone()?;
        let mut had = self.had();
        if !had.handed.insert(gift) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(Handed { gift, end })
    }

    fn confirm(&self, gift: GiftId) -> io::Result<Taken> {
        assert!(self.had().handed.remove(&gift), "{gift:?} was not handed");
        let name = EndName {
            system: must("alpha".parse()),
            port: 1,
        };
        Ok(Taken {
            token: StreamToken(self.number()?),
            local: name,
            peer: name,
        })
    }

    fn put_back(&self, gift: GiftId) {
        assert!(self.had().handed.remove(&gift), "{gift:?} was not handed");
    }

    fn peers(&self) -> io::Result<Vec<Peer>> {
        Ok(Vec::new())
    }
}

/// A program that sends the input to an engine, and takes the answers or not.
pub fn engine(data: &[u8]) {
    let (program, served) = pair();
    let calls = Arc::new(Obliging {
        had: Mutex::default(),
    });
    let system = must("alpha".parse());
    let mut session = must(Session::new(calls.clone(), system, served));
    let listens = data.len().is_multiple_of(2);
    let mut answer = vec![0; 70_000];
    for datagram in Datagrams::new(data, REQUESTS, 0).take(DATAGRAMS_MAX) {
        if !send(&program, &datagram.bytes, datagram.fds)
            || !matches!(session.serve_next(), Ok(true))
        {
            break;
        }
        if listens {
            while recv(&program, &mut answer[..], RecvFlags::DONTWAIT).is_ok_and(|got| got.0 > 0) {}
        }
    }
    drop(session);
    let had = calls.had();
    let left = (had.ports.len(), had.handed.len());
    assert_eq!(left, (0, 0), "ports and gifts of a program that is gone");
}

/// A program whose engine answers with the input.
pub fn program(data: &[u8]) {
    let (engine, socket) = pair();
    let welcomes = !data.len().is_multiple_of(8);
    let welcome = Datagrams::framed(0, false, ANSWERS[0].as_bytes());
    if welcomes {
        send(&engine, &welcome, 0);
    }
    for datagram in Datagrams::new(data, ANSWERS, u8::from(welcomes)).take(DATAGRAMS_MAX) {
        if !send(&engine, &datagram.bytes, datagram.fds) {
            break;
        }
    }
    let _ = shutdown(&engine, Shutdown::Write);
    let system = must("alpha".parse());
    let Ok(Some(client)) = Client::over(socket, &system) else {
        return;
    };
    for number in 0..CALLS_MAX {
        if !client.is_connected() {
            break;
        }
        ask(&client, number);
    }
}

/// One call of each kind in turn.
fn ask(client: &Client, number: usize) {
    let system: SystemName = must("beta".parse());
    let name: ProcessName = must("gift-1".parse());
    let second = Duration::from_secs(1);
    match number % 10 {
        0 => drop(client.peers()),
        1 => drop(client.verdict(StreamToken(7))),
        2 => {
            if let Ok(handed) = client.take(&name, second) {
                let _ = client.confirm(handed.gift);
            }
        }
        3 => drop(client.listen(7, Path::new("/nowhere"), false)),
        4 => {
            let how = Opening {
                timeout: Some(second),
                ..Opening::default()
            };
            let _ = client.connect_with(&system, 7, pair().0, how);
        }
        5 => {
            let end = EndName { system, port: 7 };
            let offer = Offer {
                token: StreamToken(7),
                to: system,
                name,
                wait: second,
                local: end,
                peer: end,
            };
            let _ = client.give(&offer, pair().0, pair().1);
        }
        6 => drop(client.report("volume")),
        7 => client.unlisten(7),
        8 => client.close(StreamToken(7)),
        _ => client.put_back(GiftId(1)),
    }
}

/// The datagrams of `stp run`, both ways.
pub fn run_messages(data: &[u8]) {
    if let Ok((key, request)) = Request::decode(data) {
        let again = request.encode(key);
        match Request::decode(again.bytes()) {
            Ok((found_key, found)) => assert!(
                found_key == key && found == request,
                "{request:?} became {found:?}"
            ),
            Err(error) => panic!("{request:?} is not read again: {error:?}"),
        }
    }
    if let Ok(answer) = Answer::decode(data) {
        let again = answer.encode();
        assert_eq!(Answer::decode(again.bytes()), Ok(answer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the harnesses say is what both ends understand: else they would test a greeting.
    #[test]
    fn every_known_message_is_understood() {
        for (kind, request) in REQUESTS.iter().enumerate() {
            let (program, served) = pair();
            let calls = Arc::new(Obliging {
                had: Mutex::default(),
            });
            let mut session = Session::new(calls, must("alpha".parse()), served).unwrap();
            let input = [kind as u8, 2, 1, 1, 1, 1, 1, 1, 1];
            let datagram = Datagrams::new(&input, REQUESTS, 0).next().unwrap();
            assert!(send(&program, &datagram.bytes, datagram.fds));
            let served = session.serve_next();
            assert!(matches!(served, Ok(true)), "{request}: {served:?}");
        }
        for (kind, answer) in ANSWERS.iter().enumerate() {
            let (engine, socket) = pair();
            let welcome = Datagrams::framed(0, false, ANSWERS[0].as_bytes());
            assert!(send(&engine, &welcome, 0));
            let input = [kind as u8, 2, 3, 3, 3, 3, 3, 3, 3];
            let datagram = Datagrams::new(&input, ANSWERS, 1).next().unwrap();
            assert!(send(&engine, &datagram.bytes, datagram.fds));
            let client = Client::over(socket, &must("alpha".parse())).unwrap();
            let client = client.expect("the welcome is one");
            let _ = client.peers();
            assert!(client.is_connected(), "{answer} is none");
        }
    }
}
