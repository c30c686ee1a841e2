//! The server's half of SOCKS5 (RFC 1928), without I/O.
//!
//! - Bytes in, a step out. Nothing is kept beyond the longest request; nothing is read past it, so what
//!   follows is the client's own data.
//! - No authentication, CONNECT only, and only to systems of the group: `NAME.stp` or `NAME`.

use std::net::IpAddr;

use stp_format::SystemName;

use super::spec::StpTarget;

/// The longest greeting or request, in bytes: 4 + 1 + 255 + 2.
pub const MESSAGE_BYTES_MAX: usize = 262;

const VERSION: u8 = 5;
const NO_AUTHENTICATION: u8 = 0;
const CONNECT: u8 = 1;

/// What a reply says; the numbers are the protocol's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Reply {
    /// It stands.
    Succeeded = 0,
    /// Something else failed.
    Failed = 1,
    /// Not a place that this proxy goes to.
    NotAllowed = 2,
    /// Our own way to the group is gone.
    NetworkUnreachable = 3,
    /// No such system, or it is dead.
    HostUnreachable = 4,
    /// Nobody listens there.
    Refused = 5,
    /// No answer in time.
    TimedOut = 6,
    /// BIND or UDP ASSOCIATE.
    CommandNotSupported = 7,
    /// An address instead of a name.
    AddressNotSupported = 8,
}

impl Reply {
    /// As it goes over the wire, with 0.0.0.0:0 for the bound address, which means nothing here.
    pub fn bytes(self) -> [u8; 10] {
        [VERSION, self as u8, 0, 1, 0, 0, 0, 0, 0, 0]
    }
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing until more bytes come.
    More,
    /// Send this, go on.
    Send([u8; 2]),
    /// Connect there, then send the reply.
    Connect(StpTarget),
    /// Send this, then close. The text is for the log.
    Refuse(Vec<u8>, String),
    /// Close without a word: this is not SOCKS5.
    Hangup(String),
}

/// One client's handshake.
#[derive(Debug, Default)]
pub struct Handshake {
    buffer: Vec<u8>,
    greeted: bool,
}

impl Handshake {
    /// Bytes that may be read from the client now: never past the message that is due.
    pub fn wants(&self) -> usize {
        let have = self.buffer.len();
        let need = if self.greeted {
            request_bytes(&self.buffer)
        } else {
            greeting_bytes(&self.buffer)
        };
        need.saturating_sub(have)
    }

    /// Takes in what came, at most [`Handshake::wants`] bytes.
    pub fn take(&mut self, bytes: &[u8]) -> Step {
        debug_assert!(bytes.len() <= self.wants());
        self.buffer.extend_from_slice(bytes);
        match self.buffer.first() {
            None => return Step::More,
            Some(&VERSION) => {}
            Some(other) => return Step::Hangup(format!("it speaks SOCKS version {other}, not 5")),
        }
        if self.wants() > 0 {
            return Step::More;
        }
        let message = std::mem::take(&mut self.buffer);
        if self.greeted {
            return request(&message);
        }
        self.greeted = true;
        if message[2..].contains(&NO_AUTHENTICATION) {
            Step::Send([VERSION, NO_AUTHENTICATION])
        } else {
            let why = "it insists on authentication".to_owned();
            Step::Refuse(vec![VERSION, 0xff], why)
        }
    }
}

/// How long the greeting is, as far as can be told by now.
fn greeting_bytes(have: &[u8]) -> usize {
    match have.get(1) {
        None => 2,
        Some(methods) => 2 + usize::from(*methods),
    }
}

/// How long the request is, as far as can be told by now. A type that nobody knows ends it at its head.
fn request_bytes(have: &[u8]) -> usize {
    match (have.get(3), have.get(4)) {
        (None, _) => 4,
        (Some(1), _) => 4 + 4 + 2,
        (Some(4), _) => 4 + 16 + 2,
        (Some(3), None) => 5,
        (Some(3), Some(length)) => 5 + usize::from(*length) + 2,
        (Some(_), _) => 4,
    }
}

/// Judges a whole request.
fn request(message: &[u8]) -> Step {
    let refuse = |reply: Reply, why: String| Step::Refuse(reply.bytes().to_vec(), why);
    let [_, command, _, kind, rest @ ..] = message else {
        return Step::Hangup("its request is too short".to_owned());
    };
    if *command != CONNECT {
        let why = format!("it asks for command {command}, only CONNECT is known");
        return refuse(Reply::CommandNotSupported, why);
    }
    let (name, port) = match (kind, rest) {
        (3, [length, rest @ ..]) => match rest.split_at_checked(usize::from(*length)) {
            Some((name, &[high, low])) => (name, u16::from_be_bytes([high, low])),
            _ => return Step::Hangup("its request is too short".to_owned()),
        },
        (1 | 4, _) => {
            let why = "it asks for an IP address: let it send names (socks5h://)".to_owned();
            return refuse(Reply::AddressNotSupported, why);
        }
        (other, _) => {
            let why = format!("it asks for an address of type {other}");
            return refuse(Reply::AddressNotSupported, why);
        }
    };
    let Some(system) = system_of(name) else {
        let why = format!("{:?} names no system", String::from_utf8_lossy(name));
        return refuse(Reply::NotAllowed, why);
    };
    if port == 0 {
        return refuse(Reply::Refused, format!("{system}:0 cannot be connected to"));
    }
    Step::Connect(StpTarget { system, port })
}

/// `NAME.stp` or `NAME`; an IP address written as a name is no system.
fn system_of(name: &[u8]) -> Option<SystemName> {
    let text = std::str::from_utf8(name).ok()?;
    let suffix = text.len().checked_sub(4).filter(|at| {
        text.is_char_boundary(*at) && text[*at..].eq_ignore_ascii_case(".stp") && *at > 0
    });
    let text = match suffix {
        Some(at) => &text[..at],
        None if text.parse::<IpAddr>().is_ok() => return None,
        None => text,
    };
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds a conversation in pieces of `piece` bytes and returns every step that was not `More`, and
    /// how many bytes were left unread.
    fn talk(bytes: &[u8], piece: usize) -> (Vec<Step>, usize) {
        let mut handshake = Handshake::default();
        let mut steps = Vec::new();
        let mut rest = bytes;
        loop {
            let n = handshake.wants().min(piece).min(rest.len());
            if n == 0 {
                return (steps, rest.len());
            }
            let (now, later) = rest.split_at(n);
            rest = later;
            match handshake.take(now) {
                Step::More => {}
                step @ Step::Send(_) => steps.push(step),
                step => {
                    steps.push(step);
                    return (steps, rest.len());
                }
            }
        }
    }

    fn connect_to(name: &[u8], port: u16) -> Vec<u8> {
        let mut bytes = vec![5, 1, 0, 5, 1, 0, 3, u8::try_from(name.len()).unwrap()];
        bytes.extend_from_slice(name);
        bytes.extend_from_slice(&port.to_be_bytes());
        bytes
    }

    fn refusal(bytes: &[u8]) -> u8 {
        match talk(bytes, 1000).0.last() {
            Some(Step::Refuse(reply, _)) => reply[1],
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_name_is_connected_to_whatever_the_pieces() {
        for piece in [1, 2, 3, 7, 1000] {
            for name in ["beta", "beta.stp", "beta.STP"] {
                let mut bytes = connect_to(name.as_bytes(), 8080);
                bytes.extend_from_slice(b"GET /");
                let (steps, left) = talk(&bytes, piece);
                assert_eq!(left, 5, "the client's own data stays");
                let target = StpTarget {
                    system: "beta".parse().unwrap(),
                    port: 8080,
                };
                assert_eq!(steps, [Step::Send([5, 0]), Step::Connect(target)]);
            }
        }
    }

    #[test]
    fn refusals_have_the_protocol_s_numbers() {
        assert_eq!(refusal(&[5, 1, 2]), 0xff);
        assert_eq!(refusal(&[5, 0]), 0xff);
        assert_eq!(refusal(&[5, 1, 0, 5, 2, 0, 1, 1, 2, 3, 4, 0, 80]), 7);
        assert_eq!(refusal(&[5, 1, 0, 5, 1, 0, 1, 1, 2, 3, 4, 0, 80]), 8);
        let mut six = vec![5, 1, 0, 5, 1, 0, 4];
        six.extend_from_slice(&[0; 18]);
        assert_eq!(refusal(&six), 8);
        assert_eq!(refusal(&[5, 1, 0, 5, 1, 0, 9]), 8);
        assert_eq!(refusal(&connect_to(b"127.0.0.1", 80)), 2);
        assert_eq!(refusal(&connect_to(b"::1", 80)), 2);
        assert_eq!(refusal(&connect_to(b"", 80)), 2);
        assert_eq!(refusal(&connect_to(b".stp", 80)), 2);
        assert_eq!(refusal(&connect_to(b"a b", 80)), 2);
        assert_eq!(refusal(&connect_to(&[0xff; 255], 80)), 2);
        assert_eq!(refusal(&connect_to(&[b'a'; 255], 80)), 2);
        assert_eq!(refusal(&connect_to(b"beta", 0)), 5);
    }

    #[test]
    fn other_protocols_are_hung_up_on() {
        for bytes in [&b"\x04\x01"[..], b"GET / HTTP/1.1\r\n", b"\x00"] {
            let (steps, _) = talk(bytes, 1);
            assert!(matches!(steps.as_slice(), [Step::Hangup(_)]), "{bytes:?}");
        }
        let (steps, _) = talk(b"\x05\x01\x00\x04", 1000);
        assert!(matches!(steps.last(), Some(Step::Hangup(_))));
    }

    #[test]
    fn hostile_bytes_neither_panic_nor_pile_up() {
        let mut state = 1u64;
        for round in 0..20_000u32 {
            let mut bytes = vec![5, 1, 0, 5];
            for _ in 0..300 {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                bytes.push((state >> 56) as u8);
            }
            if round % 2 == 0 {
                bytes.drain(..4);
            }
            let mut handshake = Handshake::default();
            let mut rest = &bytes[..];
            while handshake.wants() > 0 && !rest.is_empty() {
                assert!(handshake.wants() <= MESSAGE_BYTES_MAX);
                let (now, later) = rest.split_at(handshake.wants().min(rest.len()));
                rest = later;
                if !matches!(handshake.take(now), Step::More | Step::Send(_)) {
                    break;
                }
            }
        }
    }
}
