//! What is forwarded where, as it stands on the command line.
//!
//! - A host may be a name, an IPv4 address or an IPv6 address in brackets; an address to listen on
//!   defaults to 127.0.0.1, so that nothing is open to a network unless somebody wrote so.
//! - Nothing here resolves a name.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

use stp_format::SystemName;

/// A port of a system, on the volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StpTarget {
    /// Whose.
    pub system: SystemName,
    /// Which.
    pub port: u16,
}

/// A TCP port of a host, to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpTarget {
    /// Name or address, without brackets.
    pub host: String,
    /// Which.
    pub port: u16,
}

/// `-L [ADDR:]PORT:SYSTEM:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    /// Where to listen on TCP.
    pub listen: SocketAddr,
    /// Where connections go.
    pub to: StpTarget,
}

/// `-R SYSTEM:PORT:HOST:HOSTPORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// Who listens for us.
    pub system: SystemName,
    /// Its TCP port, on its 127.0.0.1; 0: a free one.
    pub port: u16,
    /// Where connections go from here.
    pub to: TcpTarget,
}

/// `-D [ADDR:]PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dynamic {
    /// Where to listen for SOCKS5.
    pub listen: SocketAddr,
}

/// `--expose STPPORT=HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expose {
    /// The port of this system, on the volume; 0: a free one.
    pub port: u16,
    /// Where connections go from here.
    pub to: TcpTarget,
}

/// Why a text names no forwarding; says what it should look like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecError(String);

impl fmt::Display for SpecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for SpecError {}

impl fmt::Display for StpTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.system, self.port)
    }
}

impl fmt::Display for TcpTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for Local {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let fields = fields(text)?;
        let (listen, system, port) = match fields.as_slice() {
            [port_here, system, port] => (listen_address(None, port_here)?, system, port),
            [address, port_here, system, port] => {
                (listen_address(Some(address), port_here)?, system, port)
            }
            _ => return Err(shape("[ADDR:]PORT:SYSTEM:PORT", "8080:beta:80")),
        };
        let to = StpTarget {
            system: system_name(system)?,
            port: port_number(port, false)?,
        };
        Ok(Self { listen, to })
    }
}

impl FromStr for Remote {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        match fields(text)?.as_slice() {
            [system, port, host, host_port] => Ok(Self {
                system: system_name(system)?,
                port: port_number(port, true)?,
                to: tcp_target(host, host_port)?,
            }),
            [_, _, _] => Err(SpecError(
                "it does not say which system listens: SYSTEM:PORT:HOST:HOSTPORT, as in beta:8080:localhost:80"
                    .to_owned(),
            )),
            _ => Err(shape("SYSTEM:PORT:HOST:HOSTPORT", "beta:8080:localhost:80")),
        }
    }
}

impl FromStr for Dynamic {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let listen = match fields(text)?.as_slice() {
            [port] => listen_address(None, port)?,
            [address, port] => listen_address(Some(address), port)?,
            _ => return Err(shape("[ADDR:]PORT", "1080")),
        };
        Ok(Self { listen })
    }
}

impl FromStr for Expose {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let shape = || shape("STPPORT=HOST:PORT", "22=localhost:22");
        let (port, target) = text.split_once('=').ok_or_else(shape)?;
        match fields(target)?.as_slice() {
            [host, host_port] => Ok(Self {
                port: port_number(port, true)?,
                to: tcp_target(host, host_port)?,
            }),
            _ => Err(shape()),
        }
    }
}

/// Splits at colons that stand outside brackets.
fn fields(text: &str) -> Result<Vec<&str>, SpecError> {
    let mut parts = Vec::new();
    let mut start = 0;
    let mut bracketed = false;
    for (at, c) in text.char_indices() {
        match c {
            '[' if !bracketed && at == start => bracketed = true,
            ']' if bracketed => bracketed = false,
            '[' | ']' => return Err(SpecError("a bracket stands in the wrong place".to_owned())),
            ':' if !bracketed => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    if bracketed {
        return Err(SpecError("a bracket is not closed".to_owned()));
    }
    parts.push(&text[start..]);
    Ok(parts)
}

fn shape(shape: &str, example: &str) -> SpecError {
    SpecError(format!("it should be {shape}, as in {example}"))
}

fn port_number(text: &str, zero_allowed: bool) -> Result<u16, SpecError> {
    // `u16::from_str` takes a plus sign, which no port has.
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    match text.parse::<u16>() {
        Ok(0) if !zero_allowed => Err(SpecError("port 0 cannot be connected to".to_owned())),
        Ok(port) if digits => Ok(port),
        _ => Err(SpecError(format!("{text:?} is no port: 1 to 65535"))),
    }
}

fn system_name(text: &str) -> Result<SystemName, SpecError> {
    text.parse()
        .map_err(|error| SpecError(format!("{text:?} names no system: {error}")))
}

/// An address to listen on: an IP address, `localhost`, or `*` for all.
fn listen_address(address: Option<&str>, port: &str) -> Result<SocketAddr, SpecError> {
    let ip = match address {
        None | Some("" | "localhost") => IpAddr::V4(Ipv4Addr::LOCALHOST),
        Some("*") => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        Some(text) => unbracket(text).parse().map_err(|_| {
            SpecError(format!(
                "{text:?} is no address to listen on: an IP address, localhost, or * for all"
            ))
        })?,
    };
    Ok(SocketAddr::new(ip, port_number(port, true)?))
}

fn tcp_target(host: &str, port: &str) -> Result<TcpTarget, SpecError> {
    let plain = unbracket(host);
    let bad = plain.is_empty()
        || plain.len() > 253
        || plain
            .chars()
            .any(|c| c.is_whitespace() || c.is_control() || matches!(c, '[' | ']'));
    if bad {
        return Err(SpecError(format!("{host:?} is no host")));
    }
    if plain.len() != host.len() && plain.parse::<std::net::Ipv6Addr>().is_err() {
        return Err(SpecError(format!("{host} is no IPv6 address")));
    }
    Ok(TcpTarget {
        host: plain.to_owned(),
        port: port_number(port, false)?,
    })
}

fn unbracket(text: &str) -> &str {
    text.strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local(text: &str) -> Result<String, SpecError> {
        text.parse::<Local>()
            .map(|spec| format!("{} > {}", spec.listen, spec.to))
    }

    #[test]
    fn local_forwardings() {
        assert_eq!(local("8080:beta:80").unwrap(), "127.0.0.1:8080 > beta:80");
        assert_eq!(local("*:0:beta:80").unwrap(), "0.0.0.0:0 > beta:80");
        assert_eq!(local("[::1]:8080:b:1").unwrap(), "[::1]:8080 > b:1");
        assert_eq!(
            local("localhost:1:a.b:65535").unwrap(),
            "127.0.0.1:1 > a.b:65535"
        );
        for bad in [
            "",
            ":",
            "8080",
            "8080:beta",
            "8080:beta:0",
            "8080:beta:65536",
            "8080::80",
            "x:8080:beta:80",
            "8080:-b:80",
            "+1:beta:80",
            "8080:beta:+1",
            "1:2:3:4:5",
            "[::1:8080:b:1",
            "8080:[b]x:1",
            "8080:be ta:1",
            "-1:beta:1",
            "8080:beta:",
            "[::1]8:b:1",
        ] {
            assert!(local(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn remote_forwardings() {
        let spec: Remote = "beta:8080:[::1]:80".parse().unwrap();
        assert_eq!((spec.system.as_str(), spec.port), ("beta", 8080));
        assert_eq!(spec.to.to_string(), "[::1]:80");
        let error = "8080:localhost:80".parse::<Remote>().unwrap_err();
        assert!(error.to_string().contains("which system"), "{error}");
        for bad in [
            "",
            "beta:1:h:0",
            "beta:1::2",
            "beta:x:h:2",
            "beta:1:[x]:2",
            "a:b:c:d:e",
        ] {
            assert!(bad.parse::<Remote>().is_err(), "{bad}");
        }
    }

    #[test]
    fn dynamic_forwardings_and_exposed_ports() {
        let listen = |text: &str| text.parse::<Dynamic>().map(|spec| spec.listen.to_string());
        assert_eq!(listen("1080").unwrap(), "127.0.0.1:1080");
        assert_eq!(listen("0.0.0.0:1080").unwrap(), "0.0.0.0:1080");
        for bad in ["", "x", "a:b:c", "1.2.3:1", "::1:80"] {
            assert!(listen(bad).is_err(), "{bad}");
        }
        let expose = |text: &str| {
            text.parse::<Expose>()
                .map(|spec| format!("{} > {}", spec.port, spec.to))
        };
        assert_eq!(expose("22=localhost:22").unwrap(), "22 > localhost:22");
        assert_eq!(expose("0=[::1]:22").unwrap(), "0 > [::1]:22");
        for bad in [
            "",
            "22",
            "22=",
            "22=:1",
            "22=h",
            "=h:1",
            "22=h:1:2",
            "22=h h:1",
            "22=[:;]h:1",
            "70000=h:1",
        ] {
            assert!(expose(bad).is_err(), "{bad}");
        }
    }
}
