//! A node among hostile peers, programs and storage, driven by an input as a list of steps.
//!
//! - Peers write any seat record and any frames, with right checksums; storage fails, is late, and changes under way;
//!   programs call any verb on any stream.
//! - The node never writes outside its own seat, never has more under way than its limits allow, always comes to rest,
//!   and hands a program only the bytes of its stream, in order, once, and none after its end.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use arbitrary::{Result, Unstructured};
use stp_core::*;
use stp_format::segment::StreamKey;
use stp_format::*;

use crate::records::{VOLUME, geometry, name, number, seat_record};

/// Steps of one input.
const STEPS_MAX: usize = 600;
/// Things that one drain may bring before it counts as endless.
const DRAIN_MAX: usize = 20_000;
/// Operations under way: one directory, one record, two table writes, and per link its reads and writes.
const UNDER_WAY_MAX: usize = 4 + 3 * 8 + 8;
/// The streams' limit that the node is given.
const STREAMS_MAX: usize = 24;
const OWN: SeatId = SeatId(0);
const PORTS: [u16; 4] = [0, 80, 7000, 7001];

/// One of few names of moves.
fn token(u: &mut Unstructured<'_>) -> Result<MoveToken> {
    Ok(MoveToken([u.int_in_range(0..=2)?; 16]))
}

/// The only byte that a stream may carry at an offset.
fn pattern(offset: u64) -> u8 {
    (offset ^ (offset >> 8)).wrapping_mul(31) as u8
}

/// What a peer has said last.
#[derive(Clone, Copy)]
struct Forged {
    incarnation: Incarnation,
    reader: Incarnation,
    epoch: Epoch,
    ring: Ring,
    seq: u64,
    heartbeat: u64,
    /// Per stream number of a small range: the next offset of its data.
    sent: [u64; 8],
}

struct Program {
    received: u64,
    offered: bool,
    ended: bool,
    adopted: bool,
}

/// The world around one node.
struct World {
    node: Node,
    geometry: Geometry,
    store: Vec<u8>,
    pending: Vec<Io>,
    now: Time,
    programs: BTreeMap<StreamId, Program>,
    gone: BTreeSet<StreamId>,
    peers: [Forged; 3],
}

/// Drives a node through an input.
pub fn run(data: &[u8]) {
    let mut u = Unstructured::new(data);
    let mut world = World::new(u.arbitrary().unwrap_or(1));
    // Most inputs begin where it gets interesting: peers are known, and streams from them are open.
    if u.ratio(3, 4).unwrap_or(true) {
        world.open_streams();
    }
    for _ in 0..STEPS_MAX {
        if u.is_empty() || world.step(&mut u).is_err() {
            break;
        }
        if world.drain(&mut u).is_none() {
            break;
        }
    }
    world.rest();
}

impl World {
    fn new(nonce: u64) -> Self {
        let geometry = geometry();
        let config = NodeConfig {
            volume: VOLUME,
            geometry,
            system: "alpha".parse().unwrap_or_else(|e| panic!("{e}")),
            host: [1; 16],
            pid: 1,
            nonce,
            timings: Timings::default(),
            limits: Limits {
                streams: STREAMS_MAX,
                offered: 8,
                window_start: 4096,
                window_max: 32 << 10,
                window_growth: 64 << 10,
                ..Limits::default()
            },
        };
        let claimed = Claimed {
            seat: OWN,
            incarnation: Incarnation(5),
            record_version: 1,
            copy: 0,
        };
        let forged = Forged {
            incarnation: Incarnation(3),
            reader: Incarnation(5),
            epoch: Epoch(1),
            ring: geometry.ring(0, 4),
            seq: 0,
            heartbeat: 0,
            sent: [0; 8],
        };
        Self {
            node: Node::new(config, claimed, Time::ZERO),
            geometry,
            store: vec![0; geometry.size_bytes as usize],
            pending: Vec::new(),
            now: Time::ZERO,
            programs: BTreeMap::new(),
            gone: BTreeSet::new(),
            peers: [forged; 3],
        }
    }

    /// Three honest peers, and two accepted streams from each.
    fn open_streams(&mut self) {
        let _ = self.node.listen(7000);
        for index in 0..3 {
            self.greet(index);
        }
        self.cycle();
        for index in 0..3 {
            let peer = &mut self.peers[index];
            peer.seq = 1;
            let info = SegmentInfo {
                writer: SeatId(index as u16 + 1),
                reader: OWN,
                writer_incarnation: peer.incarnation,
                reader_incarnation: peer.reader,
                epoch: peer.epoch,
                seq: Seq(1),
                acked_epoch: Epoch(0),
                acked_seq: Seq(0),
                wants_ack: true,
            };
            let mut builder = SegmentBuilder::new(UnitBuf::zeroed(1));
            for number in 0..2 {
                let key = StreamKey {
                    by_writer: true,
                    number,
                };
                let body = FrameBody::Open {
                    to_port: 7000,
                    from_port: 40_000 + number as u16,
                    credit: 1 << 16,
                };
                builder.push(&Frame { key, body });
            }
            let (buf, used) = builder.seal(VOLUME, &info);
            let place = Place::Slot {
                seat: info.writer,
                ring: peer.ring,
                slot: 0,
                skip: 0,
            };
            let range = self.range(place, used);
            self.store[range].copy_from_slice(&buf.bytes()[..used * UNIT_BYTES]);
            self.greet(index);
        }
        self.cycle();
        let offered: Vec<StreamId> = self.programs.keys().copied().collect();
        for id in &offered {
            self.node.accept(self.now, *id);
        }
        self.cycle();
        assert_eq!(offered.len(), 6, "honest peers are not served");
    }

    /// A peer's record as an honest one writes it, its heartbeat moved on.
    fn greet(&mut self, index: usize) {
        let seat = SeatId(index as u16 + 1);
        let peer = &mut self.peers[index];
        peer.heartbeat += 1;
        let Ok(mut record) = seat_record(&mut Unstructured::new(&[]), &self.geometry, seat) else {
            return;
        };
        record.state = SeatState::Up;
        record.incarnation = peer.incarnation;
        record.record_version = peer.heartbeat;
        record.heartbeat = peer.heartbeat;
        record.moves = true;
        record.timings = SeatTimings {
            heartbeat_ms: 1000,
            suspect_ms: 5000,
            dead_ms: 60_000,
            poll_max_us: 20_000,
        };
        record.links = vec![LinkEntry::default(); self.geometry.seats.into()];
        record.links[0] = LinkEntry {
            peer_incarnation: peer.reader,
            epoch: peer.epoch,
            acked_epoch: Epoch(0),
            ring: peer.ring,
            last_seq: Seq(peer.seq),
            acked_seq: Seq(0),
        };
        let range = self.range(
            Place::Seat { seat, copy: 0 },
            self.geometry.record_units.into(),
        );
        let buf = record.encode(&self.geometry);
        self.store[range].copy_from_slice(buf.bytes());
    }

    /// Lets the node look and answer for a while, on storage that works.
    fn cycle(&mut self) {
        let noise = [2; 256];
        for _ in 0..12 {
            if self.drain(&mut Unstructured::new(&noise)).is_none() {
                return;
            }
            while !self.pending.is_empty() {
                self.finish_io(0, false);
            }
            if let Some(due) = self.node.poll_timeout() {
                self.advance(due.since(self.now).min(Duration::from_millis(20)));
            }
        }
        let _ = self.drain(&mut Unstructured::new(&noise));
    }

    fn step(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        match u.int_in_range(0..=23)? {
            0..=5 => self.complete(u),
            6 => {
                for _ in 0..self.pending.len() {
                    self.finish_io(0, false);
                }
                Ok(())
            }
            7..=9 => {
                let due = self.node.poll_timeout();
                self.advance(due.map_or(Duration::ZERO, |due| due.since(self.now)));
                Ok(())
            }
            10 => {
                let ms = *u.choose(&[0, 1, 20, 500, 5_000, 61_000, 3_000_000])?;
                self.advance(Duration::from_millis(ms));
                Ok(())
            }
            11..=13 => self.forge_record(u),
            14..=18 => self.forge_segment(u),
            19 => self.spoil(u),
            _ => self.call(u),
        }
    }

    fn advance(&mut self, by: Duration) {
        self.now = self.now + by;
        self.node.handle_timeout(self.now);
    }

    fn range(&self, place: Place, units: usize) -> std::ops::Range<usize> {
        let at = self.geometry.offset(place, units);
        let at = at.unwrap_or_else(|| panic!("{place:?} with {units} units is outside the volume"));
        at as usize..at as usize + units * UNIT_BYTES
    }

    fn complete(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let index = u.choose_index(self.pending.len())?;
        let fault = u.ratio(1, 8)?;
        self.finish_io(index, fault);
        Ok(())
    }

    fn finish_io(&mut self, index: usize, fault: bool) {
        let io = self.pending.remove(index);
        let (buf, units) = match io.action {
            IoAction::Read(mut buf) => {
                let range = self.range(io.place, buf.units());
                buf.bytes_mut().copy_from_slice(&self.store[range]);
                (Some(buf), 0)
            }
            IoAction::Write { data, units, .. } => {
                let range = self.range(io.place, units);
                if !fault {
                    self.store[range].copy_from_slice(&data.bytes()[..units * UNIT_BYTES]);
                }
                (None, units)
            }
        };
        if units > 0 {
            assert!(may_write(OWN, &io.place), "a write to {:?}", io.place);
        }
        let result = if fault {
            Err(IoFault { errno: 5 })
        } else {
            Ok(())
        };
        let id = io.id;
        self.node.handle_io(self.now, IoDone { id, buf, result });
    }

    /// Another node's record: what a broken or hostile one may write, or (mostly) what one that wants to talk would.
    fn forge_record(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let index = u.choose_index(3)?;
        let seat = SeatId(index as u16 + 1);
        let mut record = seat_record(u, &self.geometry, seat)?;
        let polite = u.ratio(4, 5)?;
        let peer = &mut self.peers[index];
        if u.ratio(1, 6)? {
            peer.incarnation = Incarnation(number(u)?);
            peer.seq = 0;
            peer.sent = [0; 8];
        }
        if u.ratio(1, 4)? {
            peer.epoch = Epoch(peer.epoch.0.wrapping_add(1));
            peer.seq = 0;
            peer.sent = [0; 8];
        }
        peer.heartbeat = peer.heartbeat.wrapping_add(1);
        if polite {
            let first = u.int_in_range(0..=4)?;
            peer.ring = self.geometry.ring(first, u.int_in_range(1..=8)?);
            record.state = SeatState::Up;
            record.incarnation = peer.incarnation;
            record.record_version = peer.heartbeat;
            record.heartbeat = peer.heartbeat;
            record.system = name(u)?;
            record.timings.dead_ms = 60_000;
            record.timings.suspect_ms = 5_000;
            record.links[0] = LinkEntry {
                peer_incarnation: peer.reader,
                epoch: peer.epoch,
                acked_epoch: Epoch(number(u)? as u32),
                ring: peer.ring,
                last_seq: Seq(peer.seq),
                acked_seq: Seq(number(u)?),
            };
            record.ports.sort_unstable();
        } else {
            peer.incarnation = record.incarnation;
            peer.epoch = record.links[0].epoch;
            if self.geometry.holds(record.links[0].ring) {
                peer.ring = record.links[0].ring;
            }
            peer.reader = record.links[0].peer_incarnation;
        }
        let copy = u8::from(u.arbitrary::<bool>()?);
        let range = self.range(
            Place::Seat { seat, copy },
            self.geometry.record_units.into(),
        );
        let buf = record.encode(&self.geometry);
        self.store[range].copy_from_slice(buf.bytes());
        Ok(())
    }

    fn forge_segment(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let index = u.choose_index(3)?;
        let seat = SeatId(index as u16 + 1);
        let mut peer = self.peers[index];
        if !self.geometry.holds(peer.ring) {
            return Ok(());
        }
        let seq = match u.ratio(5, 6)? {
            true => {
                peer.seq = peer.seq.wrapping_add(1);
                peer.seq
            }
            false => number(u)?,
        };
        let odd = u.ratio(1, 8)?;
        let info = SegmentInfo {
            writer: if odd { SeatId(u.arbitrary()?) } else { seat },
            reader: OWN,
            writer_incarnation: peer.incarnation,
            reader_incarnation: if odd {
                Incarnation(number(u)?)
            } else {
                Incarnation(5)
            },
            epoch: if odd {
                Epoch(u.arbitrary()?)
            } else {
                peer.epoch
            },
            seq: Seq(seq),
            acked_epoch: Epoch(number(u)? as u32),
            acked_seq: Seq(number(u)?),
            wants_ack: u.arbitrary()?,
        };
        let units = usize::from(peer.ring.slot_units);
        let mut builder = SegmentBuilder::new(UnitBuf::zeroed(units));
        for _ in 0..u.int_in_range(0..=6)? {
            let stream = if u.ratio(7, 8)? {
                u.int_in_range(0..=7)?
            } else {
                number(u)?
            };
            let key = StreamKey {
                by_writer: u.arbitrary()?,
                number: stream,
            };
            let mut bytes = [0; 4000];
            let next = peer.sent.get(stream as usize).copied().unwrap_or(0);
            let place = if u.ratio(5, 6)? { next } else { number(u)? };
            let body = match u.int_in_range(0..=15)? {
                0..=2 => FrameBody::Open {
                    to_port: *u.choose(&PORTS)?,
                    from_port: u.arbitrary()?,
                    credit: number(u)?,
                },
                3 => FrameBody::Accept { credit: number(u)? },
                4..=5 => {
                    let len = *u.choose(&[1, 7, 8, 700, 4000])?;
                    for (at, byte) in bytes[..len].iter_mut().enumerate() {
                        *byte = pattern(place.wrapping_add(at as u64));
                    }
                    let offset = place;
                    let bytes = &bytes[..len];
                    FrameBody::Data { offset, bytes }
                }
                6 => FrameBody::Credit { limit: number(u)? },
                7 => FrameBody::Urgent { offset: place },
                8 => FrameBody::Fin { offset: place },
                9 => FrameBody::Reset { reason: number(u)? },
                10 => FrameBody::Hold {
                    token: token(u)?,
                    offset: place,
                },
                11 => FrameBody::Held { offset: place },
                12 => FrameBody::Resume,
                13 => FrameBody::Resumed,
                14 => FrameBody::Adopt(Adopt {
                    token: token(u)?,
                    giver: SeatId(u.int_in_range(0..=4)?),
                    giver_incarnation: self.peers[u.choose_index(3)?].incarnation,
                    key: StreamKey {
                        by_writer: u.arbitrary()?,
                        number: u.int_in_range(0..=7)?,
                    },
                    sent: number(u)?,
                    received: number(u)?,
                    credit: number(u)?,
                }),
                _ => FrameBody::Moved,
            };
            let pushed = builder.push(&Frame { key, body });
            if let (true, FrameBody::Data { offset, bytes }) = (pushed, body)
                && let Some(sent) = peer.sent.get_mut(stream as usize)
            {
                *sent = offset.wrapping_add(bytes.len() as u64);
            }
        }
        let (mut buf, used) = builder.seal(VOLUME, &info);
        if u.ratio(1, 12)? {
            // Half of it is still on its way, or somebody else wrote over it.
            let at = u.choose_index(used * UNIT_BYTES)?;
            buf.bytes_mut()[at] ^= 1 + u.int_in_range(0..=200u8)?;
        }
        let slots = u64::from(self.geometry.ring_slots(peer.ring));
        let place = Place::Slot {
            seat,
            ring: peer.ring,
            slot: (seq.wrapping_sub(1) % slots) as u32,
            skip: 0,
        };
        let range = self.range(place, used);
        self.store[range].copy_from_slice(&buf.bytes()[..used * UNIT_BYTES]);
        self.peers[index] = peer;
        Ok(())
    }

    /// Some bytes of the volume rot, the node's own included.
    fn spoil(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let at = u.choose_index(self.store.len())?;
        let garbage = u.bytes(u.len().min(16))?.to_vec();
        let end = (at + garbage.len()).min(self.store.len());
        self.store[at..end].copy_from_slice(&garbage[..end - at]);
        Ok(())
    }

    fn stream(&self, u: &mut Unstructured<'_>) -> Result<StreamId> {
        if self.programs.is_empty() || u.ratio(1, 8)? {
            return Ok(StreamId(number(u)?));
        }
        let index = u.choose_index(self.programs.len())?;
        Ok(*self.programs.keys().nth(index).unwrap_or(&StreamId(0)))
    }

    /// A program asks for something.
    fn call(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let now = self.now;
        match u.int_in_range(0..=16)? {
            12 => {
                let id = self.stream(u)?;
                let _ = self.node.hold(now, id, token(u)?);
            }
            13 => {
                let id = self.stream(u)?;
                self.node.resume(now, id);
            }
            14 => {
                let id = self.stream(u)?;
                let still = self.node.stillness(id);
                assert!(still.is_none() || self.node.is_giving(id));
            }
            15 => {
                let seat = SeatId(u.int_in_range(0..=5)?);
                if let Ok(id) = self.node.connect_service(now, seat) {
                    self.begin(id, false);
                }
            }
            16 => self.adopt(u)?,
            0 => drop(self.node.listen(*u.choose(&PORTS)?)),
            1 => self.node.unlisten(*u.choose(&PORTS)?),
            2..=4 => {
                let to = name(u)?;
                let port = *u.choose(&PORTS)?;
                let local = if u.ratio(1, 4)? {
                    Some(u.arbitrary()?)
                } else {
                    None
                };
                if let Ok(id) = self.node.connect(now, &to, port, local) {
                    self.begin(id, false);
                }
            }
            5 => {
                let id = self.stream(u)?;
                self.node.accept(now, id);
            }
            6 => {
                let id = self.stream(u)?;
                self.node.finish(now, id);
            }
            7 => {
                let id = self.stream(u)?;
                let reason = ResetReason::from_number(number(u)?);
                self.node.reset(now, id, reason);
            }
            8 => {
                let id = self.stream(u)?;
                self.node.release(now, id);
            }
            9 => {
                let id = self.stream(u)?;
                self.node.readable(id);
            }
            10 => {
                let id = self.stream(u)?;
                self.node.writable(id);
            }
            _ if u.ratio(1, 6)? => self.node.leave(now),
            _ => {
                let offered: Vec<_> = self.programs.iter().filter(|(_, p)| p.offered).collect();
                if let Some(&(&id, _)) = offered.first() {
                    self.node.accept(now, id);
                }
            }
        }
        Ok(())
    }

    /// A stream comes from another engine, with whatever that says of it.
    fn adopt(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let index = u.choose_index(3)?;
        let honest = u.ratio(3, 4)?;
        let (received, credit) = (number(u)?, number(u)?);
        let unread = u.int_in_range(0..=64)?;
        let adoption = Adoption {
            token: token(u)?,
            giver: SeatId(u.int_in_range(0..=4)?),
            giver_incarnation: Incarnation(number(u)?),
            stream: Stillness {
                seat: if honest {
                    SeatId(index as u16 + 1)
                } else {
                    SeatId(u.arbitrary()?)
                },
                incarnation: self.peers[index].incarnation,
                key: StreamKey {
                    by_writer: u.arbitrary()?,
                    number: number(u)?,
                },
                local_port: u.arbitrary()?,
                peer: name(u)?,
                peer_port: u.arbitrary()?,
                sent: number(u)?,
                received,
                credit: if honest { credit.max(received) } else { credit },
                finished: u.arbitrary()?,
                peer_finished: u.arbitrary()?,
                undelivered: vec![7; unread],
            },
        };
        if let Ok(id) = self.node.adopt(self.now, adoption) {
            self.begin(id, false);
            if let Some(program) = self.programs.get_mut(&id) {
                // What it brings is not of this world's pattern.
                program.adopted = true;
            }
        }
        Ok(())
    }

    fn begin(&mut self, id: StreamId, offered: bool) {
        assert!(!self.gone.contains(&id), "{id:?} was used before");
        let program = Program {
            received: 0,
            offered,
            ended: false,
            adopted: false,
        };
        assert!(self.programs.insert(id, program).is_none(), "{id:?} twice");
        assert!(
            self.programs.len() <= STREAMS_MAX,
            "more streams than the limit"
        );
    }

    /// Takes out all that the node has; `None` when the input is used up.
    fn drain(&mut self, u: &mut Unstructured<'_>) -> Option<()> {
        let mut things = 0;
        loop {
            let before = things;
            let now = self.now;
            while let Some(event) = self.node.poll_event() {
                things += 1;
                self.heed(&event);
            }
            while let Some((id, bytes)) = self.node.poll_deliver() {
                things += 1;
                let program = self.programs.get_mut(&id);
                let program = program.unwrap_or_else(|| panic!("bytes of {id:?}, which is gone"));
                assert!(!program.ended, "bytes behind the end of {id:?}");
                let take = match u.int_in_range(0..=3u8).ok()? {
                    0 => 0,
                    1 => 1,
                    _ => bytes.len(),
                };
                for byte in &bytes[..take] {
                    let wanted = pattern(program.received);
                    let right = program.adopted || *byte == wanted;
                    assert!(
                        right,
                        "{id:?} at {}: {byte}, not {wanted}",
                        program.received
                    );
                    program.received += 1;
                }
                self.node.delivered(now, id, take, take > 0);
                assert!(things < DRAIN_MAX, "deliveries without end");
            }
            while let Some((id, space)) = self.node.poll_fill(now) {
                things += 1;
                let fill = match u.int_in_range(0..=3u8).ok()? {
                    0 => 0,
                    1 => space.len().min(1),
                    2 => space.len(),
                    _ => space.len().min(900),
                };
                space[..fill].fill(0xaa);
                // A program that has more to say says so again.
                self.node.filled(now, id, fill, fill > 0 && things % 7 != 0);
                assert!(things < DRAIN_MAX, "fills without end");
            }
            while let Some(io) = self.node.poll_io(now) {
                things += 1;
                let units = match &io.action {
                    IoAction::Read(buf) => buf.units(),
                    IoAction::Write { units, .. } => {
                        assert!(may_write(OWN, &io.place), "a write to {:?}", io.place);
                        *units
                    }
                };
                self.range(io.place, units);
                assert!(self.pending.iter().all(|other| other.id != io.id));
                self.pending.push(io);
                let count = self.pending.len();
                assert!(count <= UNDER_WAY_MAX, "{count} operations under way");
            }
            assert!(things < DRAIN_MAX, "busy without end");
            if things == before {
                return Some(());
            }
        }
    }

    fn heed(&mut self, event: &Event) {
        match *event {
            Event::Incoming { id, .. } => self.begin(id, true),
            Event::Failed(id, _) | Event::Reset(id, _) | Event::Closed(id) | Event::Moved(id) => {
                assert!(self.programs.remove(&id).is_some(), "{event:?} of nobody");
                self.gone.insert(id);
            }
            Event::PeerFinished(id) => {
                let program = self.programs.get_mut(&id);
                let program = program.unwrap_or_else(|| panic!("{event:?} of nobody"));
                assert!(!program.ended, "{event:?} twice");
                program.ended = true;
            }
            _ => {}
        }
    }

    /// With storage that works and peers that say nothing more, the node comes to rest.
    fn rest(&mut self) {
        let noise = [2; 4096];
        for _ in 0..40 {
            while !self.pending.is_empty() {
                self.finish_io(0, false);
            }
            if self.drain(&mut Unstructured::new(&noise)).is_none() {
                return;
            }
            let Some(due) = self.node.poll_timeout() else {
                return;
            };
            self.advance(due.since(self.now));
        }
    }
}

/// The node in `seat` may write there and nowhere else.
#[must_use]
pub fn may_write(seat: SeatId, place: &Place) -> bool {
    match *place {
        Place::Seat { seat: owner, .. }
        | Place::Table { seat: owner, .. }
        | Place::Slot { seat: owner, .. } => owner == seat,
        Place::Superblock { .. } | Place::Directory { .. } => false,
    }
}
