//! The simulated local side: the programs' sockets of all hosts.
//!
//! - A socket holds counts, not bytes: what a stream carries follows from its connection and the offset.
//! - It lives as long as somebody holds a descriptor of it: programs, or the engine for a gift.
//! - What the engine hands over is compared at once with what the other end wrote.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
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
    /// Programs' descriptors of it, and the engine's copies.
    pub(crate) holders: u32,
    pub(crate) copies: u32,
    /// The program takes no more.
    pub(crate) deaf: bool,
    /// The program's last urgent byte that was not pulled; the engine has been told.
    pub(crate) mark: Option<u64>,
    pub(crate) mark_told: bool,
}

impl End {
    /// What the program may still write of so many bytes.
    pub(crate) fn left(&self, send: u64) -> u64 {
        if self.shut { 0 } else { send - self.written }
    }

    /// The last byte that the program wrote is urgent: it takes an earlier one's place that is still here.
    pub(crate) fn mark_urgent(&mut self) {
        (self.mark, self.mark_told) = (Some(self.written - 1), false);
    }
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
    /// The sockets that its two sides have now.
    pub(crate) ends: [Option<usize>; 2],
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
    /// Sockets that engines have, or had, copies of.
    pub(crate) shared: BTreeSet<usize>,
    /// Connections of which a side was offered: a mark may have stayed with its giver.
    pub(crate) offered: BTreeSet<usize>,
    /// Urgent bytes that engines were told of, by connection and side that wrote them; and the last of each.
    urgent: BTreeSet<(usize, usize, u64)>,
    last_urgent: BTreeMap<(usize, usize), u64>,
    /// Urgent bytes that came as such.
    pub(crate) urgent_bytes: u64,
    /// Bytes that went past sockets: from programs, to them.
    pub(crate) lane_put: u64,
    pub(crate) lane_taken: u64,
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
            plain: false,
        };
        self.tell(end, ready);
    }

    /// A program lets go of its descriptor.
    pub(crate) fn release(&mut self, end: usize) {
        self.ends[end].holders = self.ends[end].holders.saturating_sub(1);
        self.close_unheld(end);
    }

    fn close_unheld(&mut self, end: usize) {
        let this = &self.ends[end];
        if this.holders == 0 && this.copies == 0 && !this.closed {
            self.close(end);
        }
    }

    /// The engine has one more copy of a program's descriptor.
    pub(crate) fn copy(&mut self, end: usize) {
        self.ends[end].copies += 1;
        self.shared.insert(end);
    }

    /// The engine passes a copy on to a program.
    pub(crate) fn hand_out(&mut self, end: usize) {
        self.ends[end].copies -= 1;
        self.ends[end].holders += 1;
    }

    /// What the engines of a node shared with programs breaks with their process.
    pub(crate) fn break_shared(&mut self, node: usize) {
        let shared = std::mem::take(&mut self.shared);
        for end in &shared {
            let this = &mut self.ends[*end];
            if this.node != node {
                continue;
            }
            this.copies = 0;
            if !std::mem::replace(&mut this.engine_closed, true) {
                this.engine_dead = true;
                self.touched.push(*end);
            }
            self.close_unheld(*end);
        }
        self.shared = shared;
    }

    /// The socket that a stream came to another owner with: it goes on where the old one stopped.
    pub(crate) fn succeed(&mut self, end: usize, old: usize, token: StreamToken) {
        let from = &self.ends[old];
        let (connection, side, raw) = (from.connection, from.side, from.raw);
        let (written, consumed) = (from.written, from.consumed);
        // Nobody knows of a socket that is closed meanwhile what its program had said before.
        let (shut, known) = (from.shut, !from.closed);
        if end != old {
            let this = &mut self.ends[end];
            (this.connection, this.side, this.raw) = (connection, side, raw);
            (this.written, this.pulled) = (written, written);
            (this.delivered, this.consumed) = (consumed, consumed);
            if known && this.shut != shut {
                let is = this.shut;
                self.find(format!(
                    "connection {connection}, side {side}: shut {shut} with its giver, {is} with its taker"
                ));
            }
        }
        self.ends[end].token = Some(token);
    }

    /// Whether bytes that come from `offset` on are urgent where they should be, and nowhere else.
    pub(crate) fn check_urgent(&mut self, end: usize, length: u64, urgent: bool) {
        let this = &self.ends[end];
        let (connection, from, offset) = (this.connection, 1 - this.side, this.delivered);
        if urgent {
            self.urgent_bytes += 1;
            if !self.urgent.contains(&(connection, from, offset)) {
                self.find(format!(
                    "connection {connection}: byte {offset} came as an urgent one"
                ));
            }
            return;
        }
        // One at a time: a later one takes its place. A gift's may have stayed with the giver.
        let last = self.last_urgent.get(&(connection, from));
        if let Some(at) = last.filter(|at| (offset..offset + length).contains(at))
            && !self.offered.contains(&connection)
        {
            let at = *at;
            self.find(format!(
                "connection {connection}: the urgent byte {at} came as a common one"
            ));
        }
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

impl SimLocal {
    /// The engine hands bytes to a program.
    fn push(&mut self, socket: &mut SimSocket, bytes: &[u8], urgent: bool) -> Pushed {
        let mut sockets = self.host.lock();
        let capacity = sockets.capacity;
        let mutation = sockets.mutation;
        let urgent = match mutation {
            Some(Mutation::FalseMark) => true,
            Some(Mutation::LostMark) => false,
            _ => urgent,
        };
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
        if end.engine_dead {
            // Its process is gone: what its memory still says on the way out reaches nobody.
            return Pushed::Broken;
        }
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
        if end.closed || end.deaf {
            return Pushed::Broken;
        }
        let room = capacity - (end.delivered - end.consumed);
        let taken = bytes.len().min(room as usize);
        sockets.check_urgent(socket.0, taken as u64, urgent && taken > 0);
        sockets.ends[socket.0].delivered += taken as u64;
        sockets.bytes += taken as u64;
        if taken > 0 {
            sockets.touched.push(socket.0);
        }
        Pushed::Bytes(taken)
    }
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
            plain: false,
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
            let mut length = space.len().min(waiting as usize);
            if let Some(mark) = end.mark {
                let ahead = mark - end.pulled;
                if ahead == 0 && !std::mem::replace(&mut end.mark_told, true) {
                    let (connection, side) = (end.connection, end.side);
                    sockets.urgent.insert((connection, side, mark));
                    sockets.last_urgent.insert((connection, side), mark);
                    return Pulled::Mark;
                }
                match ahead {
                    0 => (end.mark, end.mark_told) = (None, false),
                    _ => length = length.min(ahead as usize),
                }
            }
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
        self.push(socket, bytes, false)
    }

    fn send_urgent(&mut self, socket: &mut SimSocket, byte: u8) -> Pushed {
        self.push(socket, &[byte], true)
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

    fn is_drained(&mut self, socket: &mut SimSocket) -> bool {
        let sockets = self.host.lock();
        let end = &sockets.ends[socket.0];
        let open = !end.hostile && !end.shut && !end.closed;
        let past_order = sockets.mutation == Some(Mutation::LanePastOrder);
        open && (past_order || end.pulled == end.written)
    }

    fn is_write_shut(&mut self, socket: &SimSocket) -> bool {
        self.host.lock().ends[socket.0].shut
    }

    fn copy_handle(&mut self, handle: &usize) -> io::Result<usize> {
        self.host.lock().copy(*handle);
        Ok(*handle)
    }

    fn pair(&mut self) -> io::Result<(usize, SimSocket)> {
        let mut sockets = self.host.lock();
        let number = sockets.ends.len();
        sockets.ends.push(End {
            connection: usize::MAX,
            node: self.node,
            ..End::default()
        });
        sockets.copy(number);
        Ok((number, SimSocket(number)))
    }

    fn shut_handle(&mut self, handle: &usize, write: bool, read: bool) {
        let end = &mut self.host.lock().ends[*handle];
        end.shut |= write;
        end.deaf |= read;
    }

    fn peek_unread(&mut self, handle: &usize) -> io::Result<Vec<u8>> {
        let sockets = self.host.lock();
        let end = &sockets.ends[*handle];
        let mut bytes = vec![0; (end.delivered - end.consumed) as usize];
        let key = pattern::key(end.connection, 1 - end.side);
        pattern::fill(key, end.consumed, &mut bytes);
        if sockets.mutation == Some(Mutation::GiftLosesUnread) {
            bytes.pop();
        }
        Ok(bytes)
    }

    fn peek_unsent(&mut self, socket: &SimSocket) -> io::Result<Vec<u8>> {
        let sockets = self.host.lock();
        let end = &sockets.ends[socket.0];
        let mut bytes = vec![0; (end.written - end.pulled) as usize];
        let key = pattern::key(end.connection, end.side);
        pattern::fill(key, end.pulled, &mut bytes);
        if sockets.mutation == Some(Mutation::GiftDoublesUnsent) {
            bytes.extend(bytes.clone());
        }
        Ok(bytes)
    }

    fn drop_handle(&mut self, handle: usize) {
        let mut sockets = self.host.lock();
        sockets.ends[handle].copies = sockets.ends[handle].copies.saturating_sub(1);
        sockets.close_unheld(handle);
    }

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
        let number = sockets.ends.len();
        if let Some(asked) = sockets.asked.get_mut(&(*peer, peer_port)) {
            asked.ends[1] = Some(number);
            if std::mem::replace(&mut asked.accepted, true) {
                sockets.find(format!("connection {connection}: accepted twice"));
            }
        }
        sockets.ends.push(End {
            connection,
            side: 1,
            node: self.node,
            holders: 1,
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
