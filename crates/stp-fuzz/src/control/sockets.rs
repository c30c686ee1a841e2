//! The control socket as it is used: a listening socket, a thread for each program and each call that waits.
//!
//! - Whatever datagrams a program sends, with or without descriptors, the engine goes on serving others.
//! - Whatever an engine answers, a program's calls return.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown,
    SocketFlags, SocketType, accept, bind, connect, listen, recv, sendmsg, shutdown, socket_with,
};
use stp_format::{SystemName, VolumeId};
use stp_host::control::{
    Calls, Client, ConnectFailure, Connected, Opening, Peer, Server, StreamToken, Verdict,
};
use stp_host::rendezvous::{RunDir, SocketPath, SystemDir};

use super::must;

/// An engine that does nothing and says so.
struct Idle;

impl Calls for Idle {
    fn listen(&self, _port: u16, _path: &Path, _raw: bool) -> io::Result<()> {
        Ok(())
    }

    fn unlisten(&self, _port: u16) {}

    fn connect_with(
        &self,
        _to: &SystemName,
        _port: u16,
        _socket: OwnedFd,
        _how: Opening,
    ) -> Result<Connected, ConnectFailure> {
        Err(ConnectFailure::Refused)
    }

    fn mark_clean(&self, _token: StreamToken) {}

    fn verdict(&self, _token: StreamToken) -> Verdict {
        Verdict::Open
    }

    fn abort(&self, _token: StreamToken) {}

    fn peers(&self) -> io::Result<Vec<Peer>> {
        Ok(Vec::new())
    }
}

struct Place {
    _folder: tempfile::TempDir,
    dir: SystemDir,
}

impl Place {
    fn make() -> Self {
        let folder = tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"));
        let system = "alpha".parse().unwrap_or_else(|error| panic!("{error}"));
        let dir = RunDir::open(&folder.path().join("run"))
            .and_then(|run| run.system(VolumeId([1; 16]), &system))
            .unwrap_or_else(|error| panic!("{error}"));
        Self {
            _folder: folder,
            dir,
        }
    }

    fn socket(&self) -> OwnedFd {
        let (family, flags) = (AddressFamily::UNIX, SocketFlags::CLOEXEC);
        must(socket_with(family, SocketType::SEQPACKET, flags, None))
    }

    fn path(&self) -> SocketPath {
        must(SocketPath::new(&self.dir.engine_socket()))
    }
}

/// The input's datagrams: a length each, then so many bytes. The number that answers are matched by is kept small.
fn datagrams(data: &[u8]) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    let mut rest = data;
    while let Some((&len, behind)) = rest.split_first() {
        let (body, next) = behind.split_at(usize::from(len).min(behind.len()));
        let mut datagram = vec![len & 3, 0, 0, 0, 0, 0, 0, 0];
        datagram.push(u8::from(len & 12 == 4));
        if len & 0xf0 == 0xf0 {
            datagram.truncate(body.len().min(8));
        }
        datagram.extend_from_slice(body);
        all.push(datagram);
        rest = next;
    }
    all
}

fn send(socket: &OwnedFd, bytes: &[u8], fd: Option<&OwnedFd>) -> bool {
    let rights: Vec<_> = fd.into_iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !rights.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&rights));
    }
    let parts = [io::IoSlice::new(bytes)];
    sendmsg(socket, &parts, &mut control, SendFlags::NOSIGNAL).is_ok()
}

/// A program that sends the input to an engine; then another that is served.
pub fn engine(data: &[u8]) {
    static ENGINE: OnceLock<(Place, Server)> = OnceLock::new();
    let (place, _) = ENGINE.get_or_init(|| {
        let place = Place::make();
        let server = must(Server::start(&place.dir, Arc::new(Idle)));
        (place, server)
    });
    let hostile = place.socket();
    must(connect(&hostile, place.path().address()));
    must(set_socket_timeout(
        &hostile,
        Timeout::Send,
        Some(Duration::from_secs(10)),
    ));
    for datagram in datagrams(data) {
        let fd = (datagram.len() % 5 == 0).then(|| place.socket());
        if !send(&hostile, &datagram, fd.as_ref()) {
            break;
        }
    }
    let _ = shutdown(&hostile, Shutdown::Write);
    // The engine reads to the end and closes.
    must(set_socket_timeout(
        &hostile,
        Timeout::Recv,
        Some(Duration::from_secs(10)),
    ));
    let mut answer = vec![0; 70_000];
    loop {
        match recv(&hostile, &mut answer[..], RecvFlags::empty()) {
            Ok((0, _)) | Err(rustix::io::Errno::CONNRESET) => break,
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("the engine neither answers nor hangs up: {error}"),
        }
    }
    let other = must(Client::connect(&place.dir));
    let other = other.unwrap_or_else(|| panic!("the engine is gone"));
    assert_eq!(must(other.peers()).len(), 0);
}

/// A program whose engine answers with the input.
pub fn program(data: &[u8]) {
    static PLACE: OnceLock<(Place, OwnedFd)> = OnceLock::new();
    let (place, listener) = PLACE.get_or_init(|| {
        let place = Place::make();
        let listener = place.socket();
        must(bind(&listener, place.path().address()));
        must(listen(&listener, 16));
        (place, listener)
    });
    let answers = datagrams(data);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let Ok(socket) = accept(listener) else { return };
            let mut request = vec![0; 70_000];
            let _ = set_socket_timeout(&socket, Timeout::Recv, Some(Duration::from_millis(200)));
            let greeted = recv(&socket, &mut request[..], RecvFlags::empty());
            let welcome = [
                &[0; 9][..],
                br#"{"welcome":{"version":2,"system":"alpha"}}"#,
            ]
            .concat();
            if greeted.is_err() || (!data.len().is_multiple_of(4) && !send(&socket, &welcome, None))
            {
                return;
            }
            for datagram in &answers {
                if !send(&socket, datagram, None) {
                    return;
                }
            }
            let _ = recv(&socket, &mut request[..], RecvFlags::empty());
        });
        if let Ok(Some(client)) = Client::connect(&place.dir) {
            let _ = client.peers();
            let _ = client.verdict(StreamToken(7));
        }
    });
}
