//! The hostile peer: a seat whose holder writes what no node would, while everybody else goes on.
//!
//! - It writes only into its own seat, and falls silent when the faults end or when another takes the seat.
//! - Its records are sealed, its segments mostly; what they say is nonsense, or nearly right.
//! - It does not lie about who sits in others' seats, which is heeded if most say the same, nor about its name, which
//!   nobody can check.

use std::collections::BTreeMap;
use std::sync::Arc;

use stp_format::segment::{Adopt, MoveToken, StreamKey};
use stp_format::{
    Epoch, Frame, FrameBody, Geometry, Incarnation, LinkEntry, Place, Ring, SeatCounters, SeatId,
    SeatRecord, SeatState, SeatTimings, SegmentBuilder, SegmentInfo, Seq, UNIT_BYTES, UnitBuf,
    VolumeId,
};

use crate::disk::Disk;
use crate::rng::Rng;
use crate::world::{MS, Phase, Task, VOLUME, World, port_of};

/// Its system's name.
pub(crate) const NAME: &str = "hostile";
/// Its life's number: no other node's in a run.
pub(crate) const INCARNATION: Incarnation = Incarnation(6_666_666);
/// Streams that it opens in one session.
const OPENS_MAX: u64 = 120;

/// What it sends to one victim.
#[derive(Debug, Default)]
struct Session {
    seq: u64,
    opened: u64,
    /// Bytes sent on each stream, for frames that are nearly right.
    sent: BTreeMap<u64, u64>,
    /// Its last segments, to be written once more.
    old: Vec<Vec<u8>>,
}

/// The peer that lies.
pub(crate) struct Hostile {
    record: SeatRecord,
    copy: u8,
    sessions: BTreeMap<SeatId, Session>,
    rng: Rng,
}

impl Hostile {
    fn place(&self, geometry: &Geometry, copy: u8) -> usize {
        let seat = self.record.seat;
        let place = Place::Seat { seat, copy };
        geometry.offset(place, 1).unwrap_or_default() as usize
    }

    /// Its seat is another's now.
    fn is_over(&self, disk: &Disk) -> bool {
        let length = usize::from(disk.geometry.record_units) * UNIT_BYTES;
        (0..2).any(|copy| {
            let at = self.place(&disk.geometry, copy);
            let bytes = &disk.bytes[at..at + length];
            SeatRecord::decode(bytes, VOLUME, &disk.geometry, self.record.seat)
                .is_ok_and(|found| found.nonce != self.record.nonce)
        })
    }

    fn beat(&mut self, disk: &mut Disk) {
        self.record.record_version += 1;
        self.record.heartbeat += 1;
        let mut record = self.record.clone();
        // Every so often a copy that says what cannot be; the other one stays.
        if self.copy == 1 {
            match self.rng.below(30) {
                0 => record.volume = VolumeId([1; 16]),
                1 => record.incarnation = Incarnation(u64::MAX),
                2 => record.record_version = u64::MAX,
                3 => record.links[0].ring.first_extent = u16::MAX,
                _ => {}
            }
        }
        let mut buf = record.encode(&disk.geometry);
        if self.rng.percent(2) {
            let at = self.rng.below(buf.len() as u64) as usize;
            buf.bytes_mut()[at] ^= 0x10;
        }
        let at = self.place(&disk.geometry, self.copy);
        disk.bytes[at..at + buf.len()].copy_from_slice(buf.bytes());
        self.copy = 1 - self.copy;
    }

    /// Turns to a victim: begins a session, ends one, lies about one, or sends something.
    fn turn_to(&mut self, disk: &mut Disk, victim: &SeatRecord, port: u16) {
        let geometry = disk.geometry;
        let seat = victim.seat;
        let extent = seat.0 % geometry.extents;
        let entry = &mut self.record.links[usize::from(seat.0)];
        if entry.peer_incarnation != victim.incarnation || self.rng.percent(3) {
            let epoch = match entry.peer_incarnation == victim.incarnation {
                true => entry.epoch.0.wrapping_add(self.rng.below(3) as u32),
                false => 1,
            };
            *entry = LinkEntry {
                peer_incarnation: victim.incarnation,
                epoch: Epoch(epoch),
                ring: geometry.ring(extent, 1),
                ..LinkEntry::default()
            };
            self.sessions.insert(seat, Session::default());
            return;
        }
        match self.rng.below(60) {
            0 => entry.last_seq = Seq(self.rng.next()),
            1 => {
                entry.acked_epoch = victim.links[usize::from(self.record.seat.0)].epoch;
                entry.acked_seq = Seq(self.rng.spread(1, 1 << 40));
            }
            2 => entry.epoch = Epoch(self.rng.next() as u32),
            3 => entry.ring = geometry.ring((extent + 1) % geometry.extents, 1),
            4 => entry.ring = Ring::default(),
            5 => {
                if let Some(old) = self.session(seat).old.first().cloned() {
                    let seq = self.session(seat).seq.saturating_sub(1).max(1);
                    self.put(disk, extent, seq, &old);
                }
            }
            _ => self.send(disk, victim, extent, port),
        }
    }

    fn session(&mut self, seat: SeatId) -> &mut Session {
        self.sessions.entry(seat).or_default()
    }

    fn put(&mut self, disk: &mut Disk, extent: u16, seq: u64, bytes: &[u8]) {
        let ring = disk.geometry.ring(extent, 1);
        let slots = u64::from(disk.geometry.ring_slots(ring));
        let place = Place::Slot {
            seat: self.record.seat,
            ring,
            slot: (seq.saturating_sub(1) % slots) as u32,
            skip: 0,
        };
        if let Some(at) = disk.geometry.offset(place, bytes.len() / UNIT_BYTES) {
            disk.bytes[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
        }
    }

    fn send(&mut self, disk: &mut Disk, victim: &SeatRecord, extent: u16, port: u16) {
        let entry = self.record.links[usize::from(victim.seat.0)];
        let ring = disk.geometry.ring(extent, 1);
        let mut builder = SegmentBuilder::new(UnitBuf::zeroed(usize::from(ring.slot_units)));
        for _ in 0..self.rng.spread(1, 30) {
            let session = self.sessions.entry(victim.seat).or_default();
            let bytes = [0x66; 200];
            let frame = any_frame(&mut self.rng, session, port, &bytes);
            builder.push(&frame);
        }
        let session = self.session(victim.seat);
        session.seq += 1;
        let seq = session.seq;
        let mut info = SegmentInfo {
            writer: self.record.seat,
            reader: victim.seat,
            writer_incarnation: self.record.incarnation,
            reader_incarnation: victim.incarnation,
            epoch: entry.epoch,
            seq: Seq(seq),
            acked_epoch: Epoch(0),
            acked_seq: Seq(0),
            wants_ack: self.rng.percent(50),
        };
        match self.rng.below(100) {
            0 => info.reader_incarnation = Incarnation(self.rng.next()),
            1 => info.epoch = Epoch(self.rng.next() as u32),
            2 => info.seq = Seq(self.rng.next()),
            3 => info.acked_epoch = victim.links[usize::from(self.record.seat.0)].epoch,
            4 => info.writer = victim.seat,
            _ => {}
        }
        if info.acked_epoch != Epoch(0) {
            info.acked_seq = Seq(self.rng.spread(1, 1 << 40));
        }
        let (mut buf, units) = builder.seal(VOLUME, &info);
        if self.rng.percent(3) {
            // Spoiled behind the checksum: late, for ever.
            let at = self.rng.below((units * UNIT_BYTES) as u64) as usize;
            buf.bytes_mut()[at] ^= 1;
        }
        let bytes = buf.bytes()[..units * UNIT_BYTES].to_vec();
        self.put(disk, extent, seq, &bytes);
        self.record.links[usize::from(victim.seat.0)].last_seq = Seq(seq);
        let session = self.session(victim.seat);
        session.old.push(bytes);
        if session.old.len() > 8 {
            session.old.remove(0);
        }
    }
}

/// A frame that is right, nearly right, or nonsense.
fn any_frame<'a>(rng: &mut Rng, session: &mut Session, port: u16, bytes: &'a [u8]) -> Frame<'a> {
    let number = rng.below(session.opened + 2);
    let value = match rng.below(6) {
        0 => rng.next(),
        1 => u64::MAX,
        _ => rng.below(100),
    };
    let sent = session.sent.entry(number).or_default();
    let body = match rng.below(20) {
        0..=5 if session.opened < OPENS_MAX => {
            session.opened += 1;
            return Frame {
                key: StreamKey {
                    by_writer: true,
                    number: session.opened,
                },
                body: FrameBody::Open {
                    to_port: if rng.percent(90) { port } else { value as u16 },
                    from_port: value as u16,
                    credit: value,
                },
            };
        }
        0..=12 => {
            let length = 1 + rng.below(bytes.len() as u64 - 1) as usize;
            let offset = if rng.percent(95) { *sent } else { value };
            *sent = offset.wrapping_add(length as u64);
            FrameBody::Data {
                offset,
                bytes: &bytes[..length],
            }
        }
        13 => FrameBody::Accept { credit: value },
        14 | 15 => FrameBody::Credit { limit: value },
        16 => match rng.below(7) {
            0 => FrameBody::Urgent { offset: value },
            1 => FrameBody::Hold {
                token: MoveToken([1; 16]),
                offset: *sent,
            },
            2 => FrameBody::Held { offset: value },
            3 => FrameBody::Resume,
            4 => FrameBody::Resumed,
            5 => FrameBody::Moved,
            _ => FrameBody::Adopt(Adopt {
                token: MoveToken([rng.below(2) as u8; 16]),
                giver: SeatId(rng.below(8) as u16),
                giver_incarnation: INCARNATION,
                key: StreamKey {
                    by_writer: true,
                    number,
                },
                sent: *sent,
                received: value,
                credit: value,
            }),
        },
        17 => FrameBody::Fin {
            offset: if rng.percent(70) { *sent } else { value },
        },
        _ => FrameBody::Reset { reason: value },
    };
    let by_writer = rng.percent(95);
    Frame {
        key: StreamKey { by_writer, number },
        body,
    }
}

impl World {
    /// The hostile peer takes the last seat before anybody comes.
    pub(crate) fn sit_hostile(&mut self) {
        let geometry = self.disk.lock().geometry;
        let timings = &self.options.timings;
        let ms = |time: std::time::Duration| time.as_millis() as u32;
        let record = SeatRecord {
            volume: VOLUME,
            seat: SeatId(geometry.seats - 1),
            state: SeatState::Up,
            incarnation: INCARNATION,
            record_version: 1,
            heartbeat: 1,
            nonce: 0x0b57_11e0,
            host: [0x66; 16],
            system: NAME.parse().expect("a good name"),
            pid: 66,
            engine: 1,
            timings: SeatTimings {
                heartbeat_ms: ms(timings.heartbeat),
                suspect_ms: ms(timings.suspect),
                dead_ms: ms(timings.dead),
                poll_max_us: 20_000,
            },
            counters: SeatCounters::default(),
            ports: vec![1],
            ports_overflow: false,
            moves: true,
            links: vec![LinkEntry::default(); usize::from(geometry.seats)],
        };
        self.liar = Some(Hostile {
            record,
            copy: 0,
            sessions: BTreeMap::new(),
            rng: Rng::new(self.options.seed, 4),
        });
        self.hostile();
    }

    /// The seat that the hostile peer holds.
    pub(crate) fn hostile_seat(&self) -> Option<SeatId> {
        self.liar.as_ref().map(|liar| liar.record.seat)
    }

    /// It does something, and comes again soon.
    pub(crate) fn hostile(&mut self) {
        let Some(mut liar) = self.liar.take() else {
            return;
        };
        if self.phase != Phase::Breaking || liar.is_over(&self.disk.lock()) {
            return;
        }
        let node = self.rng.below(self.nodes.len() as u64) as usize;
        let victim = self.seat(node).and_then(|seat| self.record(seat));
        {
            let disk = Arc::clone(&self.disk.0);
            let mut disk = disk
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            if let Some(victim) = victim.filter(|victim| victim.seat != liar.record.seat) {
                disk.figures.fault("hostile peer's turn");
                liar.turn_to(&mut disk, &victim, port_of(node));
            }
            liar.beat(&mut disk);
        }
        self.liar = Some(liar);
        let most = self.options.timings.heartbeat.as_millis() as u64;
        let after = self.rng.spread(1, most.min(40)) * MS;
        self.at(after, Task::Hostile);
    }
}
