//! Local streams: what an engine asks of the programs' sockets of its host, real or simulated.
//!
//! - Nothing here blocks.
//! - Readiness is edge-triggered: it is reported once, and the node remembers it. An idle stream costs
//!   nothing, a full one is watched for room only until there is room.

use std::io;

use stp_core::StreamId;
use stp_format::SystemName;

use crate::control::StreamToken;

/// What happened to a local socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ready {
    /// There are bytes, or the program will send no more.
    pub readable: bool,
    /// There is room again.
    pub writable: bool,
    /// The program can neither send nor receive any more.
    pub hangup: bool,
    /// Nothing but bytes is there: no urgent one, no end. Nobody has received since.
    pub plain: bool,
}

/// What a receive brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pulled {
    /// So many bytes, at least one. There may be more.
    Bytes(usize),
    /// So many bytes, at least one. There were no more; what comes now is reported.
    Last(usize),
    /// None now.
    Empty,
    /// None: the next byte is an urgent one. Told once for each.
    Mark,
    /// The program will send no more.
    End,
    /// The program is gone and has left received bytes unread.
    Broken,
}

/// What a send achieved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// So many bytes taken, perhaps none; fewer than offered means that the socket is full.
    Bytes(usize),
    /// The program will take no more.
    Broken,
}

/// What came of handing a connection to a listener.
#[derive(Debug)]
pub enum Delivery<S> {
    /// It is in the listener's queue.
    Done(S, StreamToken),
    /// The queue is full.
    Full,
    /// Nobody listens there any more.
    Gone,
    /// This host lacks what it takes, for now.
    Failed(io::Error),
}

/// The local side of an engine: the programs' sockets. The real one is
/// [`HostSockets`](super::HostSockets).
pub trait LocalSide {
    /// The engine's end of one program's stream.
    type Socket: Send + std::fmt::Debug;
    /// A copy of the program's own end, while a stream changes its owner.
    type Handle: Send + std::fmt::Debug;
    /// Where a port's connections are handed over.
    type Listener: Send + std::fmt::Debug;

    /// Starts reporting that the program has closed this socket; for one whose stream is being opened.
    fn watch_end(&mut self, _id: StreamId, _socket: &mut Self::Socket) {}
    /// Starts reporting this socket's readiness, the present one first.
    fn watch(&mut self, id: StreamId, socket: &mut Self::Socket) -> io::Result<()>;
    /// Puts the program's socket in the place of the one that its stream was opened with, and starts reporting its
    /// readiness. What was told to the other is told to this one.
    fn join(
        &mut self,
        id: StreamId,
        awaited: &mut Self::Socket,
        socket: Self::Socket,
    ) -> io::Result<()>;
    /// Reports once when a full socket has room.
    fn await_room(&mut self, id: StreamId, socket: &mut Self::Socket);
    /// Room was reported: stops watching for it if nobody waited.
    fn room_seen(&mut self, id: StreamId, socket: &mut Self::Socket);
    /// What is to be received was reported; `plain`: as [`Ready::plain`] says.
    fn arrival_seen(&mut self, _socket: &mut Self::Socket, _plain: bool) {}
    /// Receives into `space`.
    fn recv(&mut self, socket: &mut Self::Socket, space: &mut [u8]) -> Pulled;
    /// Sends from `bytes`.
    fn send(&mut self, socket: &mut Self::Socket, bytes: &[u8]) -> Pushed;
    /// Sends one byte as urgent.
    fn send_urgent(&mut self, socket: &mut Self::Socket, byte: u8) -> Pushed {
        self.send(socket, &[byte])
    }
    /// Tells the program that nothing more will come.
    fn finish(&mut self, socket: &mut Self::Socket);
    /// Whether the program can neither send nor receive any more, as of now.
    fn is_hung_up(&mut self, socket: &Self::Socket) -> bool;
    /// Whether the program, which is gone, left received bytes unread.
    fn has_left_unread(&mut self, socket: &Self::Socket) -> bool;
    /// Whether nothing that the program wrote waits in its socket, and more may come: then its bytes may go past it.
    fn is_drained(&mut self, _socket: &mut Self::Socket) -> bool {
        false
    }
    /// Whether the program can send no more, as of now.
    fn is_write_shut(&mut self, socket: &Self::Socket) -> bool;
    /// Another copy of a program's end.
    fn copy_handle(&mut self, handle: &Self::Handle) -> io::Result<Self::Handle>;
    /// A fresh pair: the program's end, and the engine's.
    fn pair(&mut self) -> io::Result<(Self::Handle, Self::Socket)>;
    /// As if the program had said, by its end, that it sends or receives no more.
    fn shut_handle(&mut self, handle: &Self::Handle, write: bool, read: bool);
    /// A copy of what was handed over to the program and is not read; it stays there.
    fn peek_unread(&mut self, handle: &Self::Handle) -> io::Result<Vec<u8>>;
    /// A copy of what the program wrote and the engine has not received; it stays there.
    fn peek_unsent(&mut self, socket: &Self::Socket) -> io::Result<Vec<u8>>;
    /// Lets go of a copy. The last one's end is the program's end.
    fn drop_handle(&mut self, handle: Self::Handle);
    /// Ends both directions and forgets the socket. `clean`: the stream has come to its end both ways.
    fn close(&mut self, socket: Self::Socket, clean: bool);
    /// The program has said, past the socket, that it needs it no more: nothing more is reported, received or sent.
    fn let_go(&mut self, _socket: &mut Self::Socket) {}
    /// Hands a connection from `peer`:`peer_port` to a listener; `token` makes tokens for its name.
    fn deliver(
        &mut self,
        listener: &Self::Listener,
        peer: &SystemName,
        peer_port: u16,
        token: &mut dyn FnMut() -> StreamToken,
    ) -> Delivery<Self::Socket>;
    /// The next socket that something happened to.
    fn poll_ready(&mut self) -> Option<(StreamId, Ready)>;
}
