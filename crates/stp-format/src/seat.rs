//! The seat record: who sits here, since when, alive until when, and what it has for whom.
//!
//! - One writer: the seat's node. Two copies, written in turn with a rising `record_version`; a reader
//!   takes the valid one with the highest (incarnation, record version).
//! - A record in state [`SeatState::Claiming`] is nobody's yet: readers skip it.
//! - A peer judges this node by the time-outs that stand here, on the peer's own clock.

use crate::damage::{Damage, FORMAT_VERSION, seal, unseal};
use crate::geometry::{Geometry, LINK_ENTRY_BYTES, Ring, SEAT_RECORD_HEAD_BYTES};
use crate::ids::{Epoch, Incarnation, SeatId, Seq, SystemName, VolumeId};
use crate::layout::record;
use crate::unit::{UNIT_BYTES, UnitBuf};
use alloc::vec::Vec;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// First bytes of a seat record.
pub const SEAT_MAGIC: [u8; 8] = *b"STPseat\n";
/// Listening ports that a record lists at the most.
pub const PORTS_MAX: usize = 512;
/// Incarnations and record versions stay below this, so that there is always a next one.
const NUMBERS_MAX: u64 = 1 << 63;
const HEAD_BYTES: usize = SEAT_RECORD_HEAD_BYTES - 2 * PORTS_MAX;

record! {
    /// The head of a seat record. Behind it: the list of ports, then one link entry per seat.
    struct SeatHead[512] {
        /// `STPseat\n`
        magic: [u8; 8],
        /// XXH3-64 of the rest of the record
        checksum: U64,
        /// format version
        version: U16,
        /// this seat's number
        seat: U16,
        /// 1 claiming, 2 up, 3 left
        state: u8,
        /// bit 0: more ports listen than are listed; bit 1: streams with this node can be moved
        flags: u8,
        /// ports listed
        ports: U16,
        /// the volume's identity
        volume: [u8; 16],
        /// the node's incarnation
        incarnation: U64,
        /// rises with every write of this record
        record_version: U64,
        /// rises while the node lives
        heartbeat: U64,
        /// random number of this claim
        nonce: U64,
        /// identity of the host's run directory
        host: [u8; 16],
        /// system name, zero-padded
        system: [u8; 64],
        /// process id, for people
        pid: U32,
        /// engine version, `major << 16 | minor << 8 | patch`
        engine: U32,
        /// interval of heartbeats, ms
        heartbeat_ms: U32,
        /// silence after which peers suspend, ms
        suspect_ms: U32,
        /// silence after which peers reset, ms
        dead_ms: U32,
        /// longest interval between two looks at the directory, us
        poll_max_us: U32,
        /// time since the node's start, ms
        uptime_ms: U64,
        /// storage reads so far
        reads: U64,
        /// units read so far
        read_units: U64,
        /// reads that found nothing new
        polls_empty: U64,
        /// storage writes so far
        writes: U64,
        /// units written so far
        written_units: U64,
        /// segments written again for want of an acknowledgement
        rewrites: U64,
        /// stream bytes sent so far
        sent_bytes: U64,
        /// stream bytes received so far
        received_bytes: U64,
        /// open streams
        streams: U32,
        /// zero
        reserved_a: U32,
        /// zero
        reserved_b: [u8; 256],
    }
}
const _: () = assert!(HEAD_BYTES == 512);

record! {
    /// An entry of the link list: what this node has for, and had from, one peer seat.
    struct LinkEntryBytes[48] {
        /// the peer's incarnation this link was opened to; 0: no link
        peer_incarnation: U64,
        /// number of the outgoing session
        epoch: U32,
        /// number of the peer's session that `acked_seq` speaks of; 0: none
        acked_epoch: U32,
        /// first extent of the ring
        first_extent: U16,
        /// extents of the ring
        extents: U16,
        /// units of a slot
        slot_units: U16,
        /// zero
        flags: U16,
        /// last segment written on the outgoing link
        last_seq: U64,
        /// last segment of the incoming link that was taken in
        acked_seq: U64,
        /// zero
        reserved: U64,
    }
}
const _: () = assert!(size_of::<LinkEntryBytes>() == LINK_ENTRY_BYTES);

/// Whether a seat is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum SeatState {
    /// Somebody wrote a claim and waits whether it stands.
    Claiming = 1,
    /// A node lives here, or died without a word.
    Up = 2,
    /// The node left in good order.
    Left = 3,
}

/// What one node has for, and had from, one peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkEntry {
    /// The peer's incarnation that this link speaks to; 0: no link.
    pub peer_incarnation: Incarnation,
    /// Session of the outgoing link.
    pub epoch: Epoch,
    /// Session of the incoming link that `acked_seq` speaks of.
    pub acked_epoch: Epoch,
    /// Where the outgoing ring is.
    pub ring: Ring,
    /// Last segment written to it.
    pub last_seq: Seq,
    /// Last incoming segment taken in.
    pub acked_seq: Seq,
}

/// Time-outs by which a node wants to be judged, and how lazily it looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeatTimings {
    /// Interval of heartbeats, ms.
    pub heartbeat_ms: u32,
    /// Silence after which peers suspend, ms.
    pub suspect_ms: u32,
    /// Silence after which peers reset, ms.
    pub dead_ms: u32,
    /// Longest interval between two looks at the directory, us.
    pub poll_max_us: u32,
}

/// What a node did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SeatCounters {
    /// Time since its start, ms.
    pub uptime_ms: u64,
    /// Storage reads.
    pub reads: u64,
    /// Units read.
    pub read_units: u64,
    /// Reads that found nothing new.
    pub polls_empty: u64,
    /// Storage writes.
    pub writes: u64,
    /// Units written.
    pub written_units: u64,
    /// Segments written again.
    pub rewrites: u64,
    /// Stream bytes sent.
    pub sent_bytes: u64,
    /// Stream bytes received.
    pub received_bytes: u64,
    /// Open streams now.
    pub streams: u32,
}

/// A seat record that was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeatRecord {
    /// Whose volume.
    pub volume: VolumeId,
    /// Which seat.
    pub seat: SeatId,
    /// Whether it is taken.
    pub state: SeatState,
    /// The node's incarnation.
    pub incarnation: Incarnation,
    /// Rises with every write.
    pub record_version: u64,
    /// Rises while the node lives.
    pub heartbeat: u64,
    /// Random number of the claim.
    pub nonce: u64,
    /// The host's identity.
    pub host: [u8; 16],
    /// The system's name.
    pub system: SystemName,
    /// Process id, for people.
    pub pid: u32,
    /// `major << 16 | minor << 8 | patch`.
    pub engine: u32,
    /// How to judge this node.
    pub timings: SeatTimings,
    /// What it did.
    pub counters: SeatCounters,
    /// Ports that it listens on, sorted; the first [`PORTS_MAX`].
    pub ports: Vec<u16>,
    /// Whether more ports listen than fit.
    pub ports_overflow: bool,
    /// Whether the node knows the frames by which streams move between nodes, and the engines' service.
    pub moves: bool,
    /// One entry per seat of the volume.
    pub links: Vec<LinkEntry>,
}

impl SeatRecord {
    /// Which of two records of one seat is the newer one.
    pub fn age_key(&self) -> (Incarnation, u64) {
        (self.incarnation, self.record_version)
    }

    /// As `geometry.record_units` units.
    pub fn encode(&self, geometry: &Geometry) -> UnitBuf {
        let mut buf = UnitBuf::zeroed(usize::from(geometry.record_units));
        let listed = self.ports.len().min(PORTS_MAX);
        let mut head = SeatHead::new_zeroed();
        head.version = FORMAT_VERSION.into();
        head.seat = self.seat.0.into();
        head.state = self.state as u8;
        let overflow = u8::from(self.ports_overflow || listed < self.ports.len());
        head.flags = overflow | u8::from(self.moves) << 1;
        head.ports = (listed as u16).into();
        head.volume = self.volume.0;
        head.incarnation = self.incarnation.0.into();
        head.record_version = self.record_version.into();
        head.heartbeat = self.heartbeat.into();
        head.nonce = self.nonce.into();
        head.host = self.host;
        head.system = self.system.padded();
        head.pid = self.pid.into();
        head.engine = self.engine.into();
        head.heartbeat_ms = self.timings.heartbeat_ms.into();
        head.suspect_ms = self.timings.suspect_ms.into();
        head.dead_ms = self.timings.dead_ms.into();
        head.poll_max_us = self.timings.poll_max_us.into();
        let counters = &self.counters;
        head.uptime_ms = counters.uptime_ms.into();
        head.reads = counters.reads.into();
        head.read_units = counters.read_units.into();
        head.polls_empty = counters.polls_empty.into();
        head.writes = counters.writes.into();
        head.written_units = counters.written_units.into();
        head.rewrites = counters.rewrites.into();
        head.sent_bytes = counters.sent_bytes.into();
        head.received_bytes = counters.received_bytes.into();
        head.streams = counters.streams.into();
        let bytes = buf.bytes_mut();
        bytes[..HEAD_BYTES].copy_from_slice(head.as_bytes());
        let ports = &mut bytes[HEAD_BYTES..SEAT_RECORD_HEAD_BYTES];
        for (place, port) in ports.chunks_exact_mut(2).zip(&self.ports) {
            place.copy_from_slice(&port.to_le_bytes());
        }
        let places = bytes[SEAT_RECORD_HEAD_BYTES..].chunks_exact_mut(LINK_ENTRY_BYTES);
        for (place, link) in places.zip(&self.links) {
            let entry = LinkEntryBytes {
                peer_incarnation: link.peer_incarnation.0.into(),
                epoch: link.epoch.0.into(),
                acked_epoch: link.acked_epoch.0.into(),
                first_extent: link.ring.first_extent.into(),
                extents: link.ring.extents.into(),
                slot_units: link.ring.slot_units.into(),
                flags: 0.into(),
                last_seq: link.last_seq.0.into(),
                acked_seq: link.acked_seq.0.into(),
                reserved: 0.into(),
            };
            place.copy_from_slice(entry.as_bytes());
        }
        seal(bytes, &SEAT_MAGIC);
        buf
    }

    /// From one copy, as it was read from `seat`'s place on `volume`.
    pub fn decode(
        bytes: &[u8],
        volume: VolumeId,
        geometry: &Geometry,
        seat: SeatId,
    ) -> Result<Self, Damage> {
        let length = Damage::Length(bytes.len() as u64);
        let record_bytes = usize::from(geometry.record_units) * UNIT_BYTES;
        let bytes = bytes.get(..record_bytes).ok_or(length)?;
        let (head, _) = SeatHead::ref_from_prefix(bytes).map_err(|_| length)?;
        if head.magic == SEAT_MAGIC && head.version != FORMAT_VERSION {
            return Err(Damage::Version(head.version.get()));
        }
        unseal(bytes, &SEAT_MAGIC)?;
        if head.volume != volume.0 {
            return Err(Damage::Volume(VolumeId(head.volume)));
        }
        if head.seat != seat.0 {
            return Err(Damage::Field("seat"));
        }
        let state = match head.state {
            1 => SeatState::Claiming,
            2 => SeatState::Up,
            3 => SeatState::Left,
            _ => return Err(Damage::Field("state")),
        };
        if head.incarnation.get() >= NUMBERS_MAX {
            return Err(Damage::Field("incarnation"));
        }
        if head.record_version.get() >= NUMBERS_MAX {
            return Err(Damage::Field("record_version"));
        }
        let listed = usize::from(head.ports.get());
        if listed > PORTS_MAX {
            return Err(Damage::Field("ports"));
        }
        let ports = bytes[HEAD_BYTES..SEAT_RECORD_HEAD_BYTES]
            .chunks_exact(2)
            .take(listed);
        let mut links = Vec::with_capacity(usize::from(geometry.seats));
        let entries = bytes[SEAT_RECORD_HEAD_BYTES..].chunks_exact(LINK_ENTRY_BYTES);
        for entry in entries.take(usize::from(geometry.seats)) {
            let entry = LinkEntryBytes::ref_from_bytes(entry).map_err(|_| length)?;
            let link = LinkEntry {
                peer_incarnation: Incarnation(entry.peer_incarnation.get()),
                epoch: Epoch(entry.epoch.get()),
                acked_epoch: Epoch(entry.acked_epoch.get()),
                ring: Ring {
                    first_extent: entry.first_extent.get(),
                    extents: entry.extents.get(),
                    slot_units: entry.slot_units.get(),
                },
                last_seq: Seq(entry.last_seq.get()),
                acked_seq: Seq(entry.acked_seq.get()),
            };
            if link.ring.extents != 0 && !geometry.holds(link.ring) {
                return Err(Damage::Field("links.ring"));
            }
            links.push(link);
        }
        Ok(Self {
            volume,
            seat,
            state,
            incarnation: Incarnation(head.incarnation.get()),
            record_version: head.record_version.get(),
            heartbeat: head.heartbeat.get(),
            nonce: head.nonce.get(),
            host: head.host,
            system: SystemName::from_padded(&head.system).map_err(|e| Damage::Name("system", e))?,
            pid: head.pid.get(),
            engine: head.engine.get(),
            timings: SeatTimings {
                heartbeat_ms: head.heartbeat_ms.get(),
                suspect_ms: head.suspect_ms.get(),
                dead_ms: head.dead_ms.get(),
                poll_max_us: head.poll_max_us.get(),
            },
            counters: SeatCounters {
                uptime_ms: head.uptime_ms.get(),
                reads: head.reads.get(),
                read_units: head.read_units.get(),
                polls_empty: head.polls_empty.get(),
                writes: head.writes.get(),
                written_units: head.written_units.get(),
                rewrites: head.rewrites.get(),
                sent_bytes: head.sent_bytes.get(),
                received_bytes: head.received_bytes.get(),
                streams: head.streams.get(),
            },
            ports: ports.map(|p| u16::from_le_bytes([p[0], p[1]])).collect(),
            ports_overflow: head.flags & 1 != 0,
            moves: head.flags & 2 != 0,
            links,
        })
    }

    /// A cheap look at a copy that may be torn: what a reader compares to skip a copy it has decoded
    /// before. `None` where no seat record starts.
    pub fn peek(bytes: &[u8]) -> Option<(Incarnation, u64, u64)> {
        let (head, _) = SeatHead::ref_from_prefix(bytes).ok()?;
        (head.magic == SEAT_MAGIC).then(|| {
            let incarnation = Incarnation(head.incarnation.get());
            (incarnation, head.record_version.get(), head.checksum.get())
        })
    }
}
