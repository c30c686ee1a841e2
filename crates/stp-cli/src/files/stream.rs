//! The file service over a group: streams of `stp` as channels.
//!
//! - A session that ends in order closes its stream in order; one that breaks resets it, so that the other side never takes
//!   a broken transfer for a complete one.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Mutex;
use std::sync::PoisonError;

use stp::{Addr, Group, Listener, Stream};

use super::client::Connector;
use super::link::{Broken, Channel};
use super::server::Acceptor;
use super::wire::{Code, Fault};
use crate::{CliError, Global};

fn channel(stream: Stream, peer: String) -> Channel {
    Channel::new(stream, peer, |stream: &Stream| {
        let _ = stream.abort();
    })
}

/// A port of this system that accepts file service connections.
pub struct Port {
    listener: Listener,
    address: String,
}

/// Listens on a port.
pub fn listen(group: &Group, port: u16) -> Result<Port, CliError> {
    let failed = |e: io::Error| CliError::new(format_args!("{}: {e}", group.system()));
    let listener = group.listen(port).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?.to_string();
    Ok(Port { listener, address })
}

impl Port {
    /// Where it listens, `system:port`.
    pub fn address(&self) -> &str {
        &self.address
    }
}

impl Acceptor for Port {
    fn ready_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
    fn accept(&self) -> io::Result<Option<Channel>> {
        match self.listener.accept() {
            Ok((stream, peer)) => {
                stream.set_nonblocking(false)?;
                Ok(Some(channel(stream, peer.to_string())))
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(e) => Err(e),
        }
    }
}

/// Connects to the file service of systems of a group; opens the group when it is first needed, and again when its engine is
/// of no use any more.
pub struct Systems<'a> {
    global: &'a Global,
    port: u16,
    group: Mutex<Option<Group>>,
}

impl<'a> Systems<'a> {
    /// File services at this port.
    pub fn new(global: &'a Global, port: u16) -> Self {
        Self {
            global,
            port,
            group: Mutex::new(None),
        }
    }

    /// The group, opened if it is not.
    pub fn group(&self) -> Result<Group, CliError> {
        let mut group = self.group.lock().unwrap_or_else(PoisonError::into_inner);
        match &*group {
            Some(group) => Ok(group.clone()),
            None => Ok(group.insert(self.global.group()?).clone()),
        }
    }

    fn forget(&self) {
        *self.group.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Connector for Systems<'_> {
    fn connect(&self, system: &str) -> Result<Channel, Broken> {
        let system = system.parse().map_err(|e| {
            let text = format!("`{system}` is not a system's name: {e}");
            Broken::Local(Fault::new(Code::BadName, text))
        })?;
        let address = Addr::new(system, self.port);
        // No engine is no reason to give up what has begun: it may be starting again.
        let group = self
            .group()
            .map_err(|e| Broken::NoConnection(io::Error::other(e.to_string())))?;
        group
            .connect(&address)
            .map(|stream| channel(stream, address.to_string()))
            .map_err(|e| {
                if !answers(&e) {
                    self.forget();
                }
                Broken::NoConnection(e)
            })
    }
}

/// Whether an engine that works says so: opening the group again would not change it.
fn answers(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, HostUnreachable, NotFound, TimedOut};
    matches!(
        error.kind(),
        ConnectionRefused | HostUnreachable | NotFound | TimedOut
    )
}
