//! Abstract socket names: who connects, told by the kernel beside the data.
//!
//! - `stp/1/<kind>/<system>:<port>/<16 hex digits>`, at most 107 bytes.
//! - A name is input: anything that does not read exactly so is no name of ours.

use std::fmt;

use rustix::net::SocketAddrUnix;
use stp_format::SystemName;

/// What fits into a socket address after the leading zero.
#[cfg(test)]
const NAME_BYTES_MAX: usize = 107;

/// Who holds the connecting end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerNameKind {
    /// An engine, for a peer on another system; the token names the stream.
    Engine,
    /// A program of this system that uses the library; a preamble follows.
    Library,
    /// A program of this system without the library: its end of file is its end.
    Raw,
}

/// The name that a connecting socket is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerName {
    /// Who holds the connecting end.
    pub kind: PeerNameKind,
    /// The system of the program at the far end.
    pub system: SystemName,
    /// Its port.
    pub port: u16,
    /// The stream's token (engine), or what makes the name unique.
    pub token: u64,
}

impl PeerName {
    /// As a socket address.
    pub fn address(&self) -> std::io::Result<SocketAddrUnix> {
        Ok(SocketAddrUnix::new_abstract_name(
            self.to_string().as_bytes(),
        )?)
    }

    /// From a socket address's abstract name; `None` if it is not one of ours.
    pub fn parse(name: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(name).ok()?;
        let mut parts = text.strip_prefix("stp/1/")?.split('/');
        let kind = match parts.next()? {
            "E" => PeerNameKind::Engine,
            "L" => PeerNameKind::Library,
            "R" => PeerNameKind::Raw,
            _ => return None,
        };
        let (system, port) = parts.next()?.rsplit_once(':')?;
        let token = parts.next()?;
        let decimal = port.bytes().all(|b| b.is_ascii_digit());
        let hex = token
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if parts.next().is_some() || !decimal || !hex || token.len() != 16 {
            return None;
        }
        Some(Self {
            kind,
            system: system.parse().ok()?,
            port: port.parse().ok()?,
            token: u64::from_str_radix(token, 16).ok()?,
        })
    }
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            PeerNameKind::Engine => 'E',
            PeerNameKind::Library => 'L',
            PeerNameKind::Raw => 'R',
        };
        write!(
            f,
            "stp/1/{kind}/{}:{}/{:016x}",
            self.system, self.port, self.token
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_name_fits_and_comes_back() {
        let name = PeerName {
            kind: PeerNameKind::Engine,
            system: "s".repeat(63).parse().unwrap(),
            port: 65535,
            token: u64::MAX,
        };
        let text = name.to_string();
        assert!(text.len() <= NAME_BYTES_MAX);
        assert_eq!(PeerName::parse(text.as_bytes()), Some(name));
        let address = name.address().unwrap();
        assert_eq!(
            address.abstract_name().and_then(PeerName::parse),
            Some(name)
        );
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "stp/1/E",
            "stp/1/X/a:1/0000000000000000",
            "stp/2/E/a:1/0000000000000000",
            "stp/1/E/a:99999/0000000000000000",
            "stp/1/E/a:+1/0000000000000000",
            "stp/1/E/a:1/00",
            "stp/1/E/a:1/+000000000000000",
            "stp/1/E/a:1/0000000000000000/x",
            "stp/1/E/:1/0000000000000000",
        ] {
            assert_eq!(PeerName::parse(text.as_bytes()), None, "{text:?}");
        }
        assert_eq!(PeerName::parse(&[0xff, 0xfe]), None);
    }
}
