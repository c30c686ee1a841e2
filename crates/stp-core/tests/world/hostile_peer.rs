//! A peer that lies: it sits in a seat as a node would, and writes there whatever a test wants.
//!
//! - It writes only into its own seat: what a node does to others' places is the storage's doing, not a peer's.
//! - Each thing that it writes is sealed rightly, unless the test spoils it.

#![allow(unreachable_pub)]

use crate::world::{VOLUME, World};
use stp_core::{Node, StreamId};
use stp_format::segment::{SEGMENT_HEAD_BYTES, StreamKey};
use stp_format::*;

/// A hostile peer and its link to one victim.
pub struct Mallory {
    pub record: SeatRecord,
    copy: u8,
    pub victim: usize,
    pub next_seq: u64,
    slots: u64,
    /// A stream of the first host that is given more to send as time passes.
    pub honest: Option<StreamId>,
}

/// A stream's name as its opener writes it.
pub fn mine(number: u64) -> StreamKey {
    StreamKey {
        by_writer: true,
        number,
    }
}

/// A stream's name as its answerer writes it.
pub fn yours(number: u64) -> StreamKey {
    StreamKey {
        by_writer: false,
        number,
    }
}

/// A frame of a stream that Mallory opened.
pub fn frame(number: u64, body: FrameBody<'_>) -> Frame<'_> {
    Frame {
        key: mine(number),
        body,
    }
}

/// The frame that opens one to port 7000.
pub fn open(number: u64) -> Frame<'static> {
    let body = FrameBody::Open {
        to_port: 7000,
        from_port: 1,
        credit: 1 << 20,
    };
    frame(number, body)
}

impl Mallory {
    /// Sits down in `seat` and begins a session with a victim's node.
    pub fn enter(world: &mut World, seat: u16, victim: usize) -> Self {
        let geometry = world.geometry;
        let timings = SeatTimings {
            heartbeat_ms: 1000,
            suspect_ms: 5000,
            dead_ms: 60_000,
            poll_max_us: 20_000,
        };
        let record = SeatRecord {
            volume: VOLUME,
            seat: SeatId(seat),
            state: SeatState::Up,
            incarnation: Incarnation(7),
            record_version: 1,
            heartbeat: 1,
            nonce: 66,
            host: [66; 16],
            system: "mallory".parse().unwrap(),
            pid: 66,
            engine: 1,
            timings,
            counters: SeatCounters::default(),
            ports: vec![6666],
            ports_overflow: false,
            moves: false,
            links: vec![LinkEntry::default(); usize::from(geometry.seats)],
        };
        let mut mallory = Self {
            record,
            copy: 0,
            victim,
            next_seq: 1,
            slots: 0,
            honest: None,
        };
        mallory.begin(world, 1);
        mallory
    }

    fn victim_node<'a>(&self, world: &'a World) -> &'a Node {
        world.hosts[self.victim].node.as_ref().unwrap()
    }

    /// The entry of its record that the victim reads.
    pub fn entry(&mut self, world: &World) -> &mut LinkEntry {
        let seat = self.victim_node(world).seat();
        &mut self.record.links[usize::from(seat.0)]
    }

    /// Begins a session, and waits until the victim has seen it.
    pub fn begin(&mut self, world: &mut World, epoch: u32) {
        let ring = world.geometry.ring(0, 1);
        self.slots = u64::from(world.geometry.ring_slots(ring));
        self.next_seq = 1;
        let incarnation = self.victim_node(world).incarnation();
        *self.entry(world) = LinkEntry {
            peer_incarnation: incarnation,
            epoch: Epoch(epoch),
            acked_epoch: Epoch(0),
            ring,
            last_seq: Seq(0),
            acked_seq: Seq(0),
        };
        self.beat(world);
        self.wait(world, 1100);
    }

    /// Writes its record once more.
    pub fn beat(&mut self, world: &mut World) {
        self.record.record_version += 1;
        self.record.heartbeat += 1;
        let bytes = self.record.encode(&world.geometry);
        self.write_record(world, bytes.bytes());
    }

    /// Writes bytes where its record belongs.
    pub fn write_record(&mut self, world: &mut World, bytes: &[u8]) {
        let seat = self.record.seat;
        self.copy = 1 - self.copy;
        let copy = self.copy;
        let place = Place::Seat { seat, copy };
        let at = world.geometry.offset(place, 1).unwrap() as usize;
        world.store[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Lets time pass, and its heart beat.
    pub fn wait(&mut self, world: &mut World, ms: u64) {
        for _ in 0..ms.div_ceil(500) {
            self.beat(world);
            if let Some(id) = self.honest {
                let app = world.app_mut(0, id);
                let sent = app.to_send.len();
                let more = &app.expected.as_ref().unwrap()[sent..];
                let more = more[..more.len().min(20_000)].to_vec();
                app.to_send.extend(more);
                world.act(0, |node, _| node.readable(id));
            }
            world.run_for(std::time::Duration::from_millis(ms.min(500)));
        }
    }

    /// The number by which the victim numbers its session with Mallory.
    pub fn victim_epoch(&self, world: &World) -> Epoch {
        self.victim_entry(world).epoch
    }

    /// What the victim's record says of its link to this peer.
    pub fn victim_entry(&self, world: &World) -> LinkEntry {
        let seat = self.victim_node(world).seat();
        let copies = (0..2).filter_map(|copy| {
            let units = usize::from(world.geometry.record_units);
            let at = world.geometry.offset(Place::Seat { seat, copy }, units)? as usize;
            let bytes = &world.store[at..at + units * UNIT_BYTES];
            SeatRecord::decode(bytes, VOLUME, &world.geometry, seat).ok()
        });
        let newest = copies.max_by_key(SeatRecord::age_key).unwrap();
        newest.links[usize::from(self.record.seat.0)]
    }

    /// The head of its next segment.
    pub fn info(&mut self, world: &World) -> SegmentInfo {
        let node = self.victim_node(world);
        let (reader, reader_incarnation) = (node.seat(), node.incarnation());
        SegmentInfo {
            writer: self.record.seat,
            reader,
            writer_incarnation: self.record.incarnation,
            reader_incarnation,
            epoch: self.entry(world).epoch,
            seq: Seq(self.next_seq),
            acked_epoch: Epoch(0),
            acked_seq: Seq(0),
            wants_ack: true,
        }
    }

    /// Writes a segment into the slot of its number.
    pub fn put(&mut self, world: &mut World, seq: u64, bytes: &[u8]) {
        let place = Place::Slot {
            seat: self.record.seat,
            ring: world.geometry.ring(0, 1),
            slot: ((seq - 1) % self.slots) as u32,
            skip: 0,
        };
        let at = world.geometry.offset(place, 1).unwrap() as usize;
        world.store[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Sends frames in one segment, whose bytes `spoil` may change before they are sealed again.
    pub fn send_as(
        &mut self,
        world: &mut World,
        frames: &[Frame<'_>],
        change: impl FnOnce(&mut SegmentInfo),
        spoil: impl FnOnce(&mut [u8]),
    ) -> Vec<u8> {
        let mut info = self.info(world);
        change(&mut info);
        let ring = world.geometry.ring(0, 1);
        let mut builder = SegmentBuilder::new(UnitBuf::zeroed(usize::from(ring.slot_units)));
        for frame in frames {
            assert!(builder.push(frame), "too much for a segment");
        }
        let len = builder.used_bytes();
        let (mut buf, units) = builder.seal(VOLUME, &info);
        let bytes = &mut buf.bytes_mut()[..units * UNIT_BYTES];
        spoil(bytes);
        let sum = xxhash_rust::xxh3::xxh3_64(&bytes[16..len]).to_le_bytes();
        bytes[8..16].copy_from_slice(&sum);
        let bytes = bytes.to_vec();
        let seq = self.next_seq;
        self.put(world, seq, &bytes);
        self.next_seq += 1;
        self.entry(world).last_seq = Seq(seq);
        self.wait(world, 100);
        bytes
    }

    /// Sends frames in one good segment.
    pub fn send(&mut self, world: &mut World, frames: &[Frame<'_>]) -> Vec<u8> {
        self.send_as(world, frames, |_| {}, |_| {})
    }
}

/// Where the first frame's head begins in a segment.
pub const FIRST_FRAME: usize = SEGMENT_HEAD_BYTES;
