//! [`Inet`]: whose system this is, what the map says, and the way to the engine.
//!
//! - While the engine is asked, this thread takes no signal: a handler that connects, or leaves by a jump, cannot
//!   meet a half-done talk.
//! - Volume and system are known from the start, so that most names need no question.

#![allow(
    clippy::result_large_err,
    reason = "the engine's errors carry their text: there is no heap here"
)]

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use stp_format::{SystemName, VolumeId};
use stp_host::address::{Addresses, SystemNumber};
use stp_host::run::{Client, Connecting, Error, Outcome, env};

use super::meaning::{Map, Meaning};
use super::sys::{Errno, NoSignals};

/// The translation for one process.
#[derive(Debug)]
pub struct Inet {
    client: Client,
    addresses: Addresses,
    own: SystemName,
    map: Map,
}

impl Inet {
    /// By what `stp run` handed down; `None` without it. `variable` looks in the environment.
    pub fn from_env<'a>(variable: impl Fn(&str) -> Option<&'a [u8]>) -> Option<Self> {
        let text = |name| std::str::from_utf8(variable(name)?).ok();
        let volume = text(env::RUN_VOLUME_ID).filter(|text| text.len() == 32)?;
        let volume = u128::from_str_radix(volume, 16).ok()?;
        Some(Self::new(
            Client::new(
                variable(env::RUN_SOCKET)?,
                text(env::RUN_KEY)?,
                text(env::RUN_USERS)?,
            )?,
            VolumeId(volume.to_be_bytes()),
            text(env::SYSTEM)?.parse().ok()?,
            Map::parse(text(env::RUN_MAP).unwrap_or_default()),
        ))
    }

    /// For system `own` of `volume`, whose engine is reached so.
    pub fn new(client: Client, volume: VolumeId, own: SystemName, map: Map) -> Self {
        Self {
            client,
            addresses: Addresses::new(volume),
            own,
            map,
        }
    }

    pub(super) fn map(&self) -> &Map {
        &self.map
    }

    /// This system's number.
    pub(super) fn own_number(&self) -> SystemNumber {
        self.addresses.number(&self.own)
    }

    /// The number of the system that this means; `None` if it means none.
    pub(super) fn number(&self, meaning: Meaning) -> Option<SystemNumber> {
        match meaning {
            Meaning::System(system) => Some(self.addresses.number(&system)),
            Meaning::Number(number) => Some(number),
            Meaning::Foreign | Meaning::Loopback | Meaning::Nobody => None,
        }
    }

    pub(super) fn number_of(&self, system: &SystemName) -> SystemNumber {
        self.addresses.number(system)
    }

    /// The address that programs know a system by: IPv4, or IPv6 where only that will do.
    pub(super) fn face(&self, number: SystemNumber, v6: bool) -> IpAddr {
        if v6 {
            self.map.face_v6(number, &self.addresses).into()
        } else {
            self.map.face_v4(number, &self.addresses).into()
        }
    }

    fn ask<T>(&self, question: impl FnOnce(&Client) -> Result<T, Error>) -> Result<T, Errno> {
        let quiet = NoSignals::begin();
        let answer = question(&self.client);
        drop(quiet);
        answer.map_err(|error| Errno(error.errno()))
    }

    /// The system of this name, as the group spells it.
    pub(super) fn system_named(&self, name: &str) -> Result<Option<SystemName>, Errno> {
        if self.own.as_str().eq_ignore_ascii_case(name) {
            return Ok(Some(self.own));
        }
        // Host names know no case; names of systems do, and are mostly written small.
        for spelled in [name.to_owned(), name.to_ascii_lowercase()] {
            let Ok(system) = spelled.parse::<SystemName>() else {
                return Ok(None);
            };
            if self.ask(|client| client.resolve(&system))?.is_some() {
                return Ok(Some(system));
            }
        }
        Ok(None)
    }

    /// The system that an address means, if it means one and the group has it.
    pub(super) fn system_at(&self, ip: IpAddr) -> Result<Option<SystemName>, Errno> {
        match self.map.meaning(ip) {
            Meaning::System(system) => Ok(Some(system)),
            Meaning::Number(number) if number == self.own_number() => Ok(Some(self.own)),
            Meaning::Number(number) => {
                self.ask(|client| client.name_of(number.visible_v4().into()))
            }
            Meaning::Foreign | Meaning::Loopback | Meaning::Nobody => Ok(None),
        }
    }

    /// Whether a program that uses the library listens on `port` of this system.
    pub(super) fn is_taken(&self, port: u16) -> bool {
        self.ask(|client| client.is_taken(port)).unwrap_or(false)
    }

    pub(super) fn publish(&self, at: SocketAddr, v6_only: bool) -> Result<(), Errno> {
        self.ask(|client| client.listen(at, v6_only))
    }

    pub(super) fn announce(
        &self,
        local: SocketAddr,
        to: SocketAddr,
        wait: Duration,
    ) -> Result<Connecting, Errno> {
        self.ask(|client| client.connect(local, to, wait))
    }

    /// The error number with which the connection from `local` failed, told once.
    pub(super) fn failure(&self, local: SocketAddr) -> Option<Errno> {
        match self.ask(|client| client.outcome(local)) {
            Ok(Outcome::Failed(errno)) => Some(Errno(errno)),
            _ => None,
        }
    }

    /// The system behind an address that does not say it by itself, and its own kernel address or the loopback address by
    /// which it was reached; `Ok(None)` if it is no connection of the engine's.
    pub(super) fn whois(
        &self,
        local: SocketAddr,
        peer: SocketAddr,
    ) -> Result<Option<(SystemNumber, SocketAddr)>, Errno> {
        let found = self.ask(|client| client.whois(local, peer))?;
        Ok(found.map(|peer| (self.addresses.number(&peer.system), peer.at)))
    }
}
