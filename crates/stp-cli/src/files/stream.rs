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

/// Opens the group that the command line names.
pub fn open(global: &Global) -> Result<Group, CliError> {
    let mut builder = Group::builder(global.volume()?);
    if let Some(system) = &global.system {
        builder = builder.system(system.to_string());
    }
    if let Some(dir) = &global.run_dir {
        builder = builder.run_dir(dir);
    }
    builder.open().map_err(CliError::new)
}

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
    let failed = |e: io::Error| {
        let error = CliError::new(format_args!("port {port} of {}: {e}", group.system()));
        if e.kind() == io::ErrorKind::AddrInUse {
            error.remedy("choose another with --port")
        } else {
            error
        }
    };
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

/// Connects to the file service of systems of a group; opens the group when it is first needed, and again when its engine
/// went away.
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
    pub fn group(&self, afresh: bool) -> Result<Group, CliError> {
        let mut group = self.group.lock().unwrap_or_else(PoisonError::into_inner);
        if afresh {
            *group = None;
        }
        match &*group {
            Some(group) => Ok(group.clone()),
            None => Ok(group.insert(open(self.global)?).clone()),
        }
    }
}

impl Connector for Systems<'_> {
    fn connect(&self, system: &str) -> Result<Channel, Broken> {
        let address = Addr::new(
            system.parse().map_err(|e| {
                Broken::Local(Fault::new(
                    Code::BadName,
                    format!("`{system}` is not a system's name: {e}"),
                ))
            })?,
            self.port,
        );
        let mut afresh = false;
        loop {
            // No engine yet is no reason to give up what has begun: it may be starting again.
            let group = self
                .group(afresh)
                .map_err(|e| Broken::NoConnection(io::Error::other(e.to_string())))?;
            match group.connect(&address) {
                Ok(stream) => return Ok(channel(stream, address.to_string())),
                Err(e) if e.kind() == io::ErrorKind::NotConnected && !afresh => afresh = true,
                Err(e) => return Err(Broken::NoConnection(e)),
            }
        }
    }
}
