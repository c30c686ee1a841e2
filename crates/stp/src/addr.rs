//! Addresses: `system:port`, `group/system:port`, `:port`.

use std::fmt;
use std::io;
use std::str::FromStr;

use stp_format::{GroupName, NameError, SystemName};

/// Where a program listens, or where a stream ends.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Addr {
    /// The group; `None`: the one that the call goes to.
    pub group: Option<GroupName>,
    /// The system; `None`: this one.
    pub system: Option<SystemName>,
    /// The port; 0 where any free one will do.
    pub port: u16,
}

impl Addr {
    /// `system:port`.
    pub fn new(system: SystemName, port: u16) -> Self {
        Self {
            group: None,
            system: Some(system),
            port,
        }
    }

    /// `:port`, on this system.
    pub fn here(port: u16) -> Self {
        Self {
            group: None,
            system: None,
            port,
        }
    }

    /// The system; `None`: this one.
    pub fn system(&self) -> Option<&SystemName> {
        self.system.as_ref()
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(group) = &self.group {
            write!(f, "{group}/")?;
        }
        if let Some(system) = &self.system {
            write!(f, "{system}")?;
        }
        write!(f, ":{}", self.port)
    }
}

/// Why a text is no address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddrError {
    text: String,
    why: Why,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    NoPort,
    BadPort,
    Group(NameError),
    System(NameError),
}

impl fmt::Display for AddrError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is no address: ", self.text)?;
        match &self.why {
            Why::NoPort => f.write_str("it has no port")?,
            Why::BadPort => f.write_str("the port is no number from 0 to 65535")?,
            Why::Group(why) => write!(f, "group: {why}")?,
            Why::System(why) => write!(f, "system: {why}")?,
        }
        f.write_str("; write SYSTEM:PORT, GROUP/SYSTEM:PORT or :PORT")
    }
}

impl std::error::Error for AddrError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.why {
            Why::NoPort | Why::BadPort => None,
            Why::Group(why) | Why::System(why) => Some(why),
        }
    }
}

impl From<AddrError> for io::Error {
    fn from(error: AddrError) -> Self {
        Self::new(io::ErrorKind::InvalidInput, error)
    }
}

impl FromStr for Addr {
    type Err = AddrError;

    fn from_str(text: &str) -> Result<Self, AddrError> {
        let error = |why| AddrError {
            text: text.to_owned(),
            why,
        };
        let (group, rest) = match text.split_once('/') {
            Some((group, rest)) => {
                let group = group.parse().map_err(|why| error(Why::Group(why)))?;
                (Some(group), rest)
            }
            None => (None, text),
        };
        let (system, port) = rest.rsplit_once(':').ok_or_else(|| error(Why::NoPort))?;
        let system = match system {
            "" => None,
            name => Some(name.parse().map_err(|why| error(Why::System(why)))?),
        };
        if port.is_empty() {
            return Err(error(Why::NoPort));
        }
        let port = Some(port)
            .filter(|port| port.bytes().all(|b| b.is_ascii_digit()))
            .and_then(|port| port.parse().ok())
            .ok_or_else(|| error(Why::BadPort))?;
        Ok(Self {
            group,
            system,
            port,
        })
    }
}

/// What can be connected to: an [`Addr`], its text, or a system's name and a port.
pub trait ToAddr {
    /// As an address.
    fn to_addr(&self) -> io::Result<Addr>;
}

impl ToAddr for Addr {
    fn to_addr(&self) -> io::Result<Addr> {
        Ok(self.clone())
    }
}

impl ToAddr for str {
    fn to_addr(&self) -> io::Result<Addr> {
        Ok(self.parse()?)
    }
}

impl ToAddr for String {
    fn to_addr(&self) -> io::Result<Addr> {
        self.as_str().to_addr()
    }
}

impl ToAddr for (SystemName, u16) {
    fn to_addr(&self) -> io::Result<Addr> {
        Ok(Addr::new(self.0, self.1))
    }
}

impl ToAddr for (&SystemName, u16) {
    fn to_addr(&self) -> io::Result<Addr> {
        Ok(Addr::new(*self.0, self.1))
    }
}

impl ToAddr for (&str, u16) {
    fn to_addr(&self) -> io::Result<Addr> {
        format!("{}:{}", self.0, self.1).as_str().to_addr()
    }
}

impl<T: ToAddr + ?Sized> ToAddr for &T {
    fn to_addr(&self) -> io::Result<Addr> {
        (**self).to_addr()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_forms_come_back() {
        for text in ["beta:7000", "lab/beta:7000", ":7000", "lab/:0", "a.b-c_d:1"] {
            let addr: Addr = text.parse().unwrap();
            assert_eq!(addr.to_string(), text);
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, part) in [
            ("beta", "no port"),
            ("beta:", "no port"),
            ("beta:x", "no number"),
            ("beta:70000", "no number"),
            ("beta:+1", "no number"),
            ("be ta:1", "system"),
            ("/beta:1", "group"),
            ("a/b/c:1", "system"),
            ("::1", "system"),
        ] {
            let error = text.parse::<Addr>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
        let long = format!("{}:1", "x".repeat(64));
        let error = long.parse::<Addr>().unwrap_err().to_string();
        assert!(error.contains("64 bytes"), "{error}");
    }
}
