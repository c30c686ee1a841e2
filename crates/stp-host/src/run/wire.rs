//! The messages: one request datagram, one answer datagram, both in fixed buffers.
//!
//! - Nothing here allocates: the program's side may run in a signal handler or between `fork` and `exec`.
//! - Numbers are little-endian; a datagram is at most [`MESSAGE_BYTES_MAX`] long and read to its last byte.
//! - What comes in is judged: anything that is not exactly a message is an error, never a guess.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use stp_format::{SystemName, VolumeId};

use crate::address::SystemNumber;

/// The version of these messages. Both ends must have the same.
pub const WIRE_VERSION: u16 = 1;

/// The longest datagram.
pub const MESSAGE_BYTES_MAX: usize = 2048;

/// The longest text in a message.
pub const TEXT_BYTES_MAX: usize = 240;

/// Systems in one answer: they fit whatever their names.
pub const SYSTEMS_MAX: usize = 24;

const MAGIC: [u8; 4] = *b"STPr";

/// What opens the engine's socket to a process of another user.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Key(pub [u8; 16]);

impl Key {
    /// From 32 hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        let value = u128::from_str_radix(text, 16).ok()?;
        Some(Self(value.to_be_bytes()))
    }

    /// As 32 hexadecimal digits.
    pub fn to_hex(self) -> String {
        format!("{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(hidden)")
    }
}

/// A short text that needs no heap. Longer ones are cut.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Text {
    bytes: [u8; TEXT_BYTES_MAX],
    len: u8,
}

impl Text {
    /// The text, cut to what fits.
    pub fn new(text: &str) -> Self {
        let mut end = text.len().min(TEXT_BYTES_MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let mut bytes = [0; TEXT_BYTES_MAX];
        bytes[..end].copy_from_slice(&text.as_bytes()[..end]);
        Self {
            bytes,
            len: end as u8,
        }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..usize::from(self.len)]).unwrap_or_default()
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// Who the engine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Its volume; with it, [`Addresses`](crate::address::Addresses) are known.
    pub volume: VolumeId,
    /// Its system.
    pub system: SystemName,
    /// Its release.
    pub release: Text,
    /// Where connections of IPv4 sockets, and of IPv6 sockets that take IPv4, to other systems begin.
    pub door_v4: SocketAddr,
    /// Where those of sockets for IPv6 alone begin; `None` if this host has no IPv6 loopback.
    pub door_v6: Option<SocketAddr>,
}

/// The far end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its system.
    pub system: SystemName,
    /// The system's address in the kernel, and the port. Of a listener of this system that was reached by loopback: that.
    pub at: SocketAddr,
}

/// One system of the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SystemEntry {
    /// Its name.
    pub name: SystemName,
    /// A node of it lives.
    pub alive: bool,
}

/// What a program is to do to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connecting {
    /// The engine opens the stream: connect the socket to this door. The connection comes about when the stream is
    /// open, and fails when that fails: then [`Outcome`] tells why.
    Door(SocketAddr),
    /// Nothing for the engine to do: connect the socket to this address of this host.
    Direct(SocketAddr),
}

/// How a connection that was announced stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The engine knows of none from that address.
    Unknown,
    /// Under way.
    Pending,
    /// The stream is open.
    Open,
    /// It failed, with this error number.
    Failed(i32),
}

/// What a program asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Who are you?
    Hello,
    /// Which systems are there, from this one on.
    Systems {
        /// How many are known already.
        from: u16,
    },
    /// A socket listens: publish its port.
    Listen {
        /// Where it listens, as the kernel says.
        at: SocketAddr,
        /// It is an IPv6 socket that takes no IPv4.
        v6_only: bool,
    },
    /// A socket listens no more.
    Unlisten {
        /// Where it listened.
        at: SocketAddr,
    },
    /// Whether a port of this system belongs to a listener that the kernel's TCP does not know.
    Taken {
        /// Which.
        port: u16,
    },
    /// A socket is about to connect to a system, perhaps this one.
    Connect {
        /// Where it is bound, as the kernel says.
        local: SocketAddr,
        /// A system's address in either form, or loopback for this system; and the port.
        to: SocketAddr,
        /// How long to wait for a refusal before saying that it is under way.
        wait_us: u32,
    },
    /// What became of a connection. A failure is told once.
    Outcome {
        /// Where its socket is bound.
        local: SocketAddr,
    },
    /// Who is at the other end of a connection.
    Whois {
        /// Where its socket is bound.
        local: SocketAddr,
        /// Its peer, as the kernel says.
        peer: SocketAddr,
    },
    /// The number of a system; a name in other case will do if it is the only one.
    Resolve {
        /// Its name.
        name: SystemName,
    },
    /// The system that an address stands for, in either form.
    NameOf {
        /// The address.
        ip: IpAddr,
    },
    /// The namespaces of the door: one descriptor for the network, and one for users if it has its own.
    Namespace,
    /// With a descriptor of a process: the engine is used as long as that lives.
    Stay,
}

/// What the engine answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It could not or would not.
    Failed {
        /// The error number to report.
        errno: i32,
        /// For people.
        text: Text,
    },
    /// It is done.
    Done,
    /// Who it is.
    Hello(Hello),
    /// Some systems.
    Systems {
        /// As many as there are, from the front.
        entries: [Option<SystemEntry>; SYSTEMS_MAX],
        /// There are more.
        more: bool,
    },
    /// Yes or no.
    Truth(bool),
    /// What to do to connect.
    Connecting(Connecting),
    /// How a connection stands.
    Outcome(Outcome),
    /// Who is there; `None`: not a connection of this engine.
    Who(Option<Peer>),
    /// A system's number; `None`: there is no such system.
    Number(Option<SystemNumber>),
    /// A system's name; `None`: there is no such system.
    Name(Option<SystemName>),
    /// With descriptors: the network's, and perhaps the users'.
    Namespace,
}

/// Why a datagram is no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// It is not of this protocol, or cut.
    Nonsense,
    /// It is of another version of it.
    Version(u16),
}

/// A message's bytes.
#[derive(Clone, Copy)]
pub struct Message {
    bytes: [u8; MESSAGE_BYTES_MAX],
    len: usize,
}

impl Message {
    /// The bytes to send.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn new(kind: u16) -> Self {
        let mut message = Self {
            bytes: [0; MESSAGE_BYTES_MAX],
            len: 0,
        };
        message.put(&MAGIC);
        message.put(&WIRE_VERSION.to_le_bytes());
        message.put(&kind.to_le_bytes());
        message
    }

    /// What does not fit is left out: the reader finds the message cut. Every message fits.
    fn put(&mut self, bytes: &[u8]) {
        debug_assert!(self.len + bytes.len() <= MESSAGE_BYTES_MAX);
        if let Some(space) = self.bytes.get_mut(self.len..self.len + bytes.len()) {
            space.copy_from_slice(bytes);
            self.len += bytes.len();
        }
    }

    fn put_u8(&mut self, value: u8) {
        self.put(&[value]);
    }

    fn put_u16(&mut self, value: u16) {
        self.put(&value.to_le_bytes());
    }

    fn put_u32(&mut self, value: u32) {
        self.put(&value.to_le_bytes());
    }

    fn put_text(&mut self, text: &str) {
        let text = Text::new(text);
        self.put_u8(text.len);
        self.put(text.as_str().as_bytes());
    }

    fn put_address(&mut self, address: SocketAddr) {
        match address.ip().to_canonical() {
            IpAddr::V4(ip) => {
                self.put_u8(4);
                self.put(&ip.octets());
            }
            IpAddr::V6(ip) => {
                self.put_u8(6);
                self.put(&ip.octets());
            }
        }
        self.put_u16(address.port());
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn open(bytes: &'a [u8]) -> Result<(u16, Self), Malformed> {
        let mut reader = Self(bytes);
        if reader.take(4)? != MAGIC {
            return Err(Malformed::Nonsense);
        }
        match reader.u16()? {
            WIRE_VERSION => Ok((reader.u16()?, reader)),
            other => Err(Malformed::Version(other)),
        }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Malformed::Nonsense)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.take(N)?.try_into().map_err(|_| Malformed::Nonsense)
    }

    fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.array::<1>()?[0])
    }

    fn truth(&mut self) -> Result<bool, Malformed> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed::Nonsense),
        }
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn errno(&mut self) -> Result<i32, Malformed> {
        Ok(self.u16()?.into())
    }

    fn text(&mut self) -> Result<&'a str, Malformed> {
        let len = self.u8()?;
        std::str::from_utf8(self.take(len.into())?).map_err(|_| Malformed::Nonsense)
    }

    fn system(&mut self) -> Result<SystemName, Malformed> {
        self.text()?.parse().map_err(|_| Malformed::Nonsense)
    }

    fn address(&mut self) -> Result<SocketAddr, Malformed> {
        let ip = match self.u8()? {
            4 => Ipv4Addr::from(self.array::<4>()?).into(),
            // One address has one form, whoever spells it.
            6 => IpAddr::from(Ipv6Addr::from(self.array::<16>()?)).to_canonical(),
            _ => return Err(Malformed::Nonsense),
        };
        Ok(SocketAddr::new(ip, self.u16()?))
    }

    fn end<T>(self, value: T) -> Result<T, Malformed> {
        if self.0.is_empty() {
            Ok(value)
        } else {
            Err(Malformed::Nonsense)
        }
    }
}

fn errno_bits(errno: i32) -> u16 {
    u16::try_from(errno).unwrap_or(0)
}

impl Request {
    /// Spells it.
    pub fn encode(&self, key: Key) -> Message {
        let mut message = Message::new(match self {
            Self::Hello => 1,
            Self::Systems { .. } => 2,
            Self::Listen { .. } => 3,
            Self::Unlisten { .. } => 4,
            Self::Taken { .. } => 5,
            Self::Connect { .. } => 6,
            Self::Outcome { .. } => 7,
            Self::Whois { .. } => 8,
            Self::Namespace => 9,
            Self::Resolve { .. } => 10,
            Self::NameOf { .. } => 11,
            Self::Stay => 12,
        });
        message.put(&key.0);
        match *self {
            Self::Hello | Self::Namespace | Self::Stay => {}
            Self::Systems { from } => message.put_u16(from),
            Self::Listen { at, v6_only } => {
                message.put_address(at);
                message.put_u8(v6_only.into());
            }
            Self::Unlisten { at } => message.put_address(at),
            Self::Taken { port } => message.put_u16(port),
            Self::Connect { local, to, wait_us } => {
                message.put_address(local);
                message.put_address(to);
                message.put_u32(wait_us);
            }
            Self::Resolve { name } => message.put_text(name.as_str()),
            Self::NameOf { ip } => message.put_address(SocketAddr::new(ip, 0)),
            Self::Outcome { local } => message.put_address(local),
            Self::Whois { local, peer } => {
                message.put_address(local);
                message.put_address(peer);
            }
        }
        message
    }

    /// Reads one, and the key that came with it.
    pub fn decode(bytes: &[u8]) -> Result<(Key, Self), Malformed> {
        let (kind, mut reader) = Reader::open(bytes)?;
        let key = Key(reader.array()?);
        let request = match kind {
            1 => Self::Hello,
            2 => Self::Systems {
                from: reader.u16()?,
            },
            3 => Self::Listen {
                at: reader.address()?,
                v6_only: reader.truth()?,
            },
            4 => Self::Unlisten {
                at: reader.address()?,
            },
            5 => Self::Taken {
                port: reader.u16()?,
            },
            6 => Self::Connect {
                local: reader.address()?,
                to: reader.address()?,
                wait_us: reader.u32()?,
            },
            7 => Self::Outcome {
                local: reader.address()?,
            },
            8 => Self::Whois {
                local: reader.address()?,
                peer: reader.address()?,
            },
            9 => Self::Namespace,
            10 => Self::Resolve {
                name: reader.system()?,
            },
            11 => Self::NameOf {
                ip: reader.address()?.ip(),
            },
            12 => Self::Stay,
            _ => return Err(Malformed::Nonsense),
        };
        reader.end((key, request))
    }
}

impl Answer {
    /// A failure, with what to tell people.
    pub fn failed(errno: i32, text: impl fmt::Display) -> Self {
        Self::Failed {
            errno,
            text: Text::new(&text.to_string()),
        }
    }

    /// Some of the systems, as many as fit, beginning with number `from`.
    pub fn systems(all: &[SystemEntry], from: u16) -> Self {
        let rest = all.get(usize::from(from)..).unwrap_or_default();
        let mut entries = [None; SYSTEMS_MAX];
        for (entry, system) in entries.iter_mut().zip(rest) {
            *entry = Some(*system);
        }
        let more = rest.len() > SYSTEMS_MAX;
        Self::Systems { entries, more }
    }

    /// Spells it.
    pub fn encode(&self) -> Message {
        let mut message = Message::new(match self {
            Self::Failed { .. } => 100,
            Self::Done => 101,
            Self::Hello(_) => 102,
            Self::Systems { .. } => 103,
            Self::Truth(_) => 104,
            Self::Connecting(_) => 105,
            Self::Outcome(_) => 106,
            Self::Who(_) => 107,
            Self::Namespace => 108,
            Self::Number(_) => 109,
            Self::Name(_) => 110,
        });
        match self {
            Self::Done | Self::Namespace => {}
            Self::Failed { errno, text } => {
                message.put_u16(errno_bits(*errno));
                message.put_text(text.as_str());
            }
            Self::Hello(hello) => {
                message.put(&hello.volume.0);
                message.put_text(hello.system.as_str());
                message.put_text(hello.release.as_str());
                message.put_address(hello.door_v4);
                message.put_u8(hello.door_v6.is_some().into());
                if let Some(door) = hello.door_v6 {
                    message.put_address(door);
                }
            }
            Self::Systems { entries, more } => {
                message.put_u8(entries.iter().flatten().count() as u8);
                for entry in entries.iter().flatten() {
                    message.put_text(entry.name.as_str());
                    message.put_u8(entry.alive.into());
                }
                message.put_u8((*more).into());
            }
            Self::Truth(truth) => message.put_u8((*truth).into()),
            Self::Connecting(connecting) => {
                let (kind, address) = match connecting {
                    Connecting::Door(address) => (0, address),
                    Connecting::Direct(address) => (1, address),
                };
                message.put_u8(kind);
                message.put_address(*address);
            }
            Self::Outcome(outcome) => {
                let (kind, errno) = match outcome {
                    Outcome::Unknown => (0, 0),
                    Outcome::Pending => (1, 0),
                    Outcome::Open => (2, 0),
                    Outcome::Failed(errno) => (3, *errno),
                };
                message.put_u8(kind);
                message.put_u16(errno_bits(errno));
            }
            Self::Who(who) => {
                message.put_u8(who.is_some().into());
                if let Some(peer) = who {
                    message.put_text(peer.system.as_str());
                    message.put_address(peer.at);
                }
            }
            Self::Number(number) => {
                message.put_u8(number.is_some().into());
                if let Some(number) = number {
                    message.put_address(SocketAddr::new(number.kernel_v4().into(), 0));
                }
            }
            Self::Name(name) => {
                message.put_u8(name.is_some().into());
                if let Some(name) = name {
                    message.put_text(name.as_str());
                }
            }
        }
        message
    }

    /// Reads one.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let (kind, mut reader) = Reader::open(bytes)?;
        let answer = match kind {
            100 => Self::Failed {
                errno: reader.errno()?,
                text: Text::new(reader.text()?),
            },
            101 => Self::Done,
            102 => Self::Hello(Hello {
                volume: VolumeId(reader.array()?),
                system: reader.system()?,
                release: Text::new(reader.text()?),
                door_v4: reader.address()?,
                door_v6: match reader.truth()? {
                    true => Some(reader.address()?),
                    false => None,
                },
            }),
            103 => {
                let count = usize::from(reader.u8()?);
                let mut entries = [None; SYSTEMS_MAX];
                for entry in entries.get_mut(..count).ok_or(Malformed::Nonsense)? {
                    *entry = Some(SystemEntry {
                        name: reader.system()?,
                        alive: reader.truth()?,
                    });
                }
                Self::Systems {
                    entries,
                    more: reader.truth()?,
                }
            }
            104 => Self::Truth(reader.truth()?),
            105 => {
                let kind = reader.u8()?;
                let address = reader.address()?;
                Self::Connecting(match kind {
                    0 => Connecting::Door(address),
                    1 => Connecting::Direct(address),
                    _ => return Err(Malformed::Nonsense),
                })
            }
            106 => {
                let kind = reader.u8()?;
                let errno = reader.errno()?;
                Self::Outcome(match kind {
                    0 => Outcome::Unknown,
                    1 => Outcome::Pending,
                    2 => Outcome::Open,
                    3 => Outcome::Failed(errno),
                    _ => return Err(Malformed::Nonsense),
                })
            }
            107 => Self::Who(match reader.truth()? {
                true => Some(Peer {
                    system: reader.system()?,
                    at: reader.address()?,
                }),
                false => None,
            }),
            108 => Self::Namespace,
            109 => Self::Number(match reader.truth()? {
                true => {
                    let number = SystemNumber::from_kernel(reader.address()?.ip());
                    Some(number.ok_or(Malformed::Nonsense)?)
                }
                false => None,
            }),
            110 => Self::Name(match reader.truth()? {
                true => Some(reader.system()?),
                false => None,
            }),
            _ => return Err(Malformed::Nonsense),
        };
        reader.end(answer)
    }
}

#[cfg(test)]
mod tests;
