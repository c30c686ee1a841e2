//! What people and programs write as text: addresses, names, volumes, forwardings; and the SOCKS handshake.
//!
//! - What is accepted says the same when it is printed and read again.
//! - A handshake takes the same steps in whatever pieces it comes, and reads nothing past its end.

use std::fmt::{Debug, Display};
use std::str::FromStr;

use stp::Addr;
use stp_cli::forward::socks::{Handshake, MESSAGE_BYTES_MAX, Step};
use stp_cli::forward::spec::{Dynamic, Expose, Local, Remote};
use stp_format::{GroupName, SystemName};
use stp_host::rendezvous::PeerName;
use stp_host::run::Key;
use stp_medium::VolumeSpec;

/// Parses an input as everything that is written as text.
pub fn parse(data: &[u8]) {
    if let Some(name) = PeerName::parse(data) {
        assert_eq!(PeerName::parse(name.to_string().as_bytes()), Some(name));
        assert!(name.address().is_ok());
    }
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    same::<Addr>(text);
    same::<SystemName>(text);
    same::<GroupName>(text);
    same::<VolumeSpec>(text);
    refused_well::<Local>(text);
    refused_well::<Remote>(text);
    refused_well::<Dynamic>(text);
    refused_well::<Expose>(text);
    if let Ok(spec) = text.parse::<Local>() {
        let again = format!("{}:{}", spec.listen, spec.to);
        assert_eq!(again.parse::<Local>().as_ref(), Ok(&spec), "{again}");
    }
    if let Ok(spec) = text.parse::<Remote>() {
        let again = format!("{}:{}:{}", spec.system, spec.port, spec.to);
        assert_eq!(again.parse::<Remote>().as_ref(), Ok(&spec), "{again}");
    }
    if let Ok(spec) = text.parse::<Expose>() {
        let again = format!("{}={}", spec.port, spec.to);
        assert_eq!(again.parse::<Expose>().as_ref(), Ok(&spec), "{again}");
    }
    if let Some(key) = Key::parse(text) {
        assert_eq!(Key::parse(&key.to_hex()), Some(key));
    }
}

fn same<T: FromStr + Display + PartialEq + Debug>(text: &str)
where
    T::Err: Debug + Display,
{
    if let Ok(value) = text.parse::<T>() {
        let again = value.to_string();
        match again.parse::<T>() {
            Ok(found) => assert_eq!(found, value, "{text:?} is printed as {again:?}"),
            Err(error) => panic!("{text:?} is printed as {again:?}: {error}"),
        }
    }
    refused_well::<T>(text);
}

/// An error is one line of bounded length.
fn refused_well<T: FromStr>(text: &str)
where
    T::Err: Display,
{
    if let Err(error) = text.parse::<T>() {
        let said = error.to_string();
        assert!(!said.is_empty() && !said.contains('\n'), "{said:?}");
        assert!(said.len() < 400 + 10 * text.len(), "{said:?}");
    }
}

/// The SOCKS handshake with an input, whole and byte by byte.
pub fn socks(data: &[u8]) {
    let whole = talk(data, usize::MAX);
    assert_eq!(whole, talk(data, 1));
    assert_eq!(whole, talk(data, 3));
}

/// The steps, and how many bytes were left unread.
fn talk(data: &[u8], piece: usize) -> (Vec<Step>, usize) {
    let mut handshake = Handshake::default();
    let mut steps = Vec::new();
    let mut rest = data;
    loop {
        let wants = handshake.wants();
        assert!(wants <= MESSAGE_BYTES_MAX);
        let len = wants.min(piece).min(rest.len());
        if len == 0 {
            return (steps, rest.len());
        }
        let (now, later) = rest.split_at(len);
        rest = later;
        match handshake.take(now) {
            Step::More => {}
            step @ Step::Send(_) => steps.push(step),
            // Another protocol shows at its first byte or at its second.
            step @ Step::Hangup(_) => return ([steps, vec![step]].concat(), 0),
            step => {
                steps.push(step);
                return (steps, rest.len());
            }
        }
    }
}
