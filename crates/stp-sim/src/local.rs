//! The simulated local side: the programs' sockets of all hosts.
//!
//! - A socket holds counts, not bytes: what a stream carries follows from its connection and the offset.
//! - What the engine hands over is compared at once with what the other end wrote.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use stp_core::StreamId;
use stp_format::SystemName;
use stp_host::control::StreamToken;
use stp_host::engine::{Delivery, LocalSide, Pulled, Pushed, Ready};

use crate::mutation::Mutation;
use crate::pattern;

/// One end of one connection: the program's socket and the engine's view of it.
#[derive(Debug, Default)]
pub(crate) struct End {
    pub(crate) connection: usize,
    /// 0: the side that connected.
    pub(crate) side: usize,
    pub(crate) node: usize,
    pub(crate) raw: bool,
    pub(crate) stream: Option<StreamId>,
    pub(crate) token: Option<StreamToken>,
    /// Bytes that the program wrote, that the engine pulled.
    pub(crate) written: u64,
    pub(crate) pulled: u64,
    /// The program will write no more.
    pub(crate) shut: bool,
    /// Bytes that the engine handed over, that the program took.
    pub(crate) delivered: u64,
    pub(crate) consumed: u64,
    /// The engine said that nothing more will come.
    pub(crate) finished: bool,
    /// The engine closed its end; its process is gone.
    pub(crate) engine_closed: bool,
    pub(crate) engine_dead: bool,
    /// The program closed the socket.
    pub(crate) closed: bool,
    /// Closed while it waited in a listener's queue: the kernel resets it.
    pub(crate) embryo: bool,
    pub(crate) room_wanted: bool,
    /// The other side is the hostile peer: whatever comes is read, or nothing is.
    pub(crate) hostile: bool,
}

/// A listening socket's queue.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    pub(crate) open: bool,
    pub(crate) waiting: VecDeque<usize>,
}

/// A connection that a program asked for.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) connection: usize,
    pub(crate) target: usize,
    pub(crate) accepted: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Sockets {
    pub(crate) ends: Vec<End>,
    /// By node.
    pub(crate) backlogs: Vec<Backlog>,
    /// By node.
    ready: Vec<VecDeque<(StreamId, Ready)>>,
    /// By the connecting system and its port.
    pub(crate) asked: BTreeMap<(SystemName, u16), Asked>,
    /// Ends whose programs have something to do.
    pub(crate) touched: Vec<usize>,
    /// Ends that came to be by a connection handed over.
    pub(crate) accepted: Vec<usize>,
    pub(crate) capacity: u64,
    pub(crate) backlog_max: usize,
    pub(crate) finding: Option<String>,
    pub(crate) bytes: u64,
    pub(crate) mutation: Option<Mutation>,
    /// The faults are over: no program has patience with the hostile peer any more.
    pub(crate) healed: bool,
}

impl Sockets {
    pub(crate) fn new(nodes: usize, capacity: u64, backlog_max: usize) -> Self {
        Self {
            backlogs: (0..nodes).map(|_| Backlog::default()).collect(),
            ready: (0..nodes).map(|_| VecDeque::new()).collect(),
            capacity,
            backlog_max,
            ..Self::default()
        }
    }

    pub(crate) fn find(&mut self, finding: String) {
        self.finding.get_or_insert(finding);
    }

    fn tell(&mut self, end: usize, ready: Ready) {
        let this = &self.ends[end];
        if let Some(id) = this.stream
            && !this.engine_closed
        {
            self.ready[this.node].push_back((id, ready));
        }
    }

    /// The program wrote, or will write no more.
    pub(crate) fn tell_readable(&mut self, end: usize) {
        let ready = Ready {
            readable: true,
            ..Ready::default()
        };
        self.tell(end, ready);
    }

    /// The program took bytes.
    pub(crate) fn tell_room(&mut self, end: usize) {
        if std::mem::take(&mut self.ends[end].room_wanted) {
            let ready = Ready {
                writable: true,
                ..Ready::default()
            };
            self.tell(end, ready);
        }
    }

    /// The program closes its socket.
    pub(crate) fn close(&mut self, end: usize) {
        self.ends[end].closed = true;
        self.ends[end].shut = true;
        let ready = Ready {
            readable: true,
            writable: true,
            hangup: true,
        };
        self.tell(end, ready);
    }

    /// A node's process is gone, and what it would have been told.
    pub(crate) fn forget_node(&mut self, node: usize) {
        self.ready[node].clear();
        self.backlogs[node].open = false;
        self.backlogs[node].waiting.clear();
    }

    pub(crate) fn has_ready(&self, node: usize) -> bool {
        !self.ready[node].is_empty()
    }
}

/// All hosts' sockets.
#[derive(Clone, Debug)]
pub(crate) struct Host(Arc<Mutex<Sockets>>);

impl Host {
    pub(crate) fn new(sockets: Sockets) -> Self {
        Self(Arc::new(Mutex::new(sockets)))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Sockets> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The engine's end of a program's socket.
#[derive(Debug)]
pub(crate) struct SimSocket(pub(crate) usize);

/// One node's local side.
pub(crate) struct SimLocal {
    pub(crate) node: usize,
    pub(crate) host: Host,
}

impl LocalSide for SimLocal {
    type Socket = SimSocket;
    type Handle = usize;
    type Listener = usize;

    fn watch(&mut self, id: StreamId, socket: &mut SimSocket) -> io::Result<()> {
        let mut sockets = self.host.lock();
        sockets.ends[socket.0].stream = Some(id);
        let closed = sockets.ends[socket.0].closed;
        let ready = Ready {
            readable: true,
            writable: closed,
            hangup: closed,
        };
        sockets.tell(socket.0, ready);
        Ok(())
    }

    fn await_room(&mut self, id: StreamId, socket: &mut SimSocket) {
        let mut sockets = self.host.lock();
        let capacity = sockets.capacity;
        let end = &mut sockets.ends[socket.0];
        if end.hostile {
            return;
        }
        debug_assert_eq!(end.stream, Some(id));
        end.room_wanted = true;
        if end.delivered - end.consumed < capacity || end.closed {
            sockets.tell_room(socket.0);
        }
    }

    fn room_seen(&mut self, _id: StreamId, _socket: &mut SimSocket) {}

    fn recv(&mut self, socket: &mut SimSocket, space: &mut [u8]) -> Pulled {
        let mut sockets = self.host.lock();
        let leaks = sockets.mutation == Some(Mutation::LeakedStream);
        let end = &mut sockets.ends[socket.0];
        if end.hostile {
            return if end.closed {
                Pulled::End
            } else {
                Pulled::Empty
            };
        }
        if leaks && end.shut && end.connection == 20 {
            return Pulled::Empty;
        }
        let waiting = end.written - end.pulled;
        if waiting > 0 && !space.is_empty() {
            let length = space.len().min(waiting as usize);
            let key = pattern::key(end.connection, end.side);
            pattern::fill(key, end.pulled, &mut space[..length]);
            end.pulled += length as u64;
            sockets.touched.push(socket.0);
            return Pulled::Bytes(length);
        }
        if space.is_empty() {
            Pulled::Empty
        } else if end.closed && (end.embryo || end.consumed < end.delivered) {
            Pulled::Broken
        } else if end.shut {
            Pulled::End
        } else {
            Pulled::Empty
        }
    }

    fn send(&mut self, socket: &mut SimSocket, bytes: &[u8]) -> Pushed {
        let mut sockets = self.host.lock();
        let capacity = sockets.capacity;
        let mutation = sockets.mutation;
        let end = &mut sockets.ends[socket.0];
        if end.hostile {
            // Every third program reads nothing.
            return match socket.0 % 3 {
                _ if end.closed => Pushed::Broken,
                0 => Pushed::Bytes(0),
                _ => Pushed::Bytes(bytes.len()),
            };
        }
        let mut spoiled;
        let mut bytes = bytes;
        match mutation.filter(|_| end.connection == 20) {
            Some(Mutation::WrongByte) => {
                spoiled = bytes.to_vec();
                spoiled[0] ^= 1;
                bytes = &spoiled;
            }
            Some(Mutation::LostBytes) if bytes.len() > 1 => bytes = &bytes[1..],
            Some(Mutation::DataAfterEnd) => end.finished = true,
            _ => {}
        }
        let (connection, side, offset) = (end.connection, end.side, end.delivered);
        if end.finished || end.engine_closed {
            sockets.find(format!("connection {connection}: data after the end"));
            return Pushed::Broken;
        }
        let key = pattern::key(connection, 1 - side);
        if let Some(at) = pattern::differs(key, offset, bytes) {
            sockets.find(format!(
                "connection {connection}, side {side}: a wrong byte at {at} of {} handed over at {offset}",
                bytes.len()
            ));
            return Pushed::Broken;
        }
        if end.closed {
            return Pushed::Broken;
        }
        let room = capacity - (end.delivered - end.consumed);
        let taken = bytes.len().min(room as usize);
        end.delivered += taken as u64;
        sockets.bytes += taken as u64;
        if taken > 0 {
            sockets.touched.push(socket.0);
        }
        Pushed::Bytes(taken)
    }

    fn finish(&mut self, socket: &mut SimSocket) {
        let mut sockets = self.host.lock();
        sockets.ends[socket.0].finished = true;
        sockets.touched.push(socket.0);
    }

    fn is_hung_up(&mut self, socket: &SimSocket) -> bool {
        self.host.lock().ends[socket.0].closed
    }

    fn has_left_unread(&mut self, socket: &SimSocket) -> bool {
        let sockets = self.host.lock();
        let end = &sockets.ends[socket.0];
        end.closed && (end.embryo || end.consumed < end.delivered)
    }

    fn is_write_shut(&mut self, socket: &SimSocket) -> bool {
        self.host.lock().ends[socket.0].shut
    }

    fn copy_handle(&mut self, handle: &usize) -> io::Result<usize> {
        Ok(*handle)
    }

    fn pair(&mut self) -> io::Result<(usize, SimSocket)> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn shut_handle(&mut self, _handle: &usize, _write: bool, _read: bool) {}

    fn peek_unread(&mut self, _handle: &usize) -> io::Result<Vec<u8>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn peek_unsent(&mut self, _socket: &SimSocket) -> io::Result<Vec<u8>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn drop_handle(&mut self, _handle: usize) {}

    fn join(
        &mut self,
        id: StreamId,
        awaited: &mut SimSocket,
        mut socket: SimSocket,
    ) -> io::Result<()> {
        self.watch(id, &mut socket)?;
        *awaited = socket;
        Ok(())
    }

    fn close(&mut self, socket: SimSocket, _clean: bool) {
        let mut sockets = self.host.lock();
        sockets.ends[socket.0].engine_closed = true;
        sockets.touched.push(socket.0);
    }

    fn deliver(
        &mut self,
        listener: &usize,
        peer: &SystemName,
        peer_port: u16,
        token: &mut dyn FnMut() -> StreamToken,
    ) -> Delivery<SimSocket> {
        let mut sockets = self.host.lock();
        if peer.as_str() == crate::hostile::NAME {
            let number = sockets.ends.len();
            let token = token();
            let healed = sockets.healed;
            sockets.ends.push(End {
                closed: healed,
                shut: healed,
                connection: usize::MAX,
                node: self.node,
                token: Some(token),
                hostile: true,
                ..End::default()
            });
            return Delivery::Done(SimSocket(number), token);
        }
        if sockets.mutation == Some(Mutation::TwiceAccepted) {
            let asked = sockets.asked.values_mut();
            asked.for_each(|asked| asked.accepted = true);
        }
        let Some(asked) = sockets.asked.get(&(*peer, peer_port)) else {
            sockets.find(format!(
                "a connection from {peer}:{peer_port} that nobody asked for"
            ));
            return Delivery::Gone;
        };
        let (connection, target) = (asked.connection, asked.target);
        if target != *listener {
            sockets.find(format!(
                "connection {connection}: handed to node {listener}, asked for {target}"
            ));
        }
        let backlog = &sockets.backlogs[*listener];
        if !backlog.open {
            return Delivery::Gone;
        }
        if backlog.waiting.len() >= sockets.backlog_max {
            return Delivery::Full;
        }
        let asked = sockets.asked.get_mut(&(*peer, peer_port));
        if asked.is_some_and(|asked| std::mem::replace(&mut asked.accepted, true)) {
            sockets.find(format!("connection {connection}: accepted twice"));
        }
        let number = sockets.ends.len();
        sockets.ends.push(End {
            connection,
            side: 1,
            node: self.node,
            token: Some(token()),
            ..End::default()
        });
        let end = sockets.ends[number].token;
        sockets.backlogs[*listener].waiting.push_back(number);
        sockets.accepted.push(number);
        sockets.touched.push(number);
        match end {
            Some(token) => Delivery::Done(SimSocket(number), token),
            None => Delivery::Gone,
        }
    }

    fn poll_ready(&mut self) -> Option<(StreamId, Ready)> {
        self.host.lock().ready[self.node].pop_front()
    }
}
