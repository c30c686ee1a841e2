//! The socket table: a system's socket control blocks (SCBs), for `stp ss` on any host, for a node
//! that comes back, and later for connections that move.
//!
//! - One writer: the seat's node. A unit stands alone: head, checksum, [`SCBS_PER_UNIT`] rows. Two copies of
//!   the whole table, each unit written in turn to one and the other.
//! - Written lazily; never needed to move a byte.

use crate::damage::{Damage, FORMAT_VERSION, seal, unseal};
use crate::geometry::SCBS_PER_UNIT;
use crate::ids::{Incarnation, SeatId, SystemName, VolumeId};
use crate::layout::record;
use crate::unit::{UNIT_BYTES, UnitBuf};
use alloc::vec::Vec;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// First bytes of a unit of a socket table.
pub const TABLE_MAGIC: [u8; 8] = *b"STPscbs\n";

record! {
    /// The head of one unit of the socket table; 31 SCBs follow, then zeros.
    struct TableHead[64] {
        /// `STPscbs\n`
        magic: [u8; 8],
        /// XXH3-64 of the rest of the unit
        checksum: U64,
        /// format version
        version: U16,
        /// this seat's number
        seat: U16,
        /// number of this unit in the table
        unit: U32,
        /// the volume's identity
        volume: [u8; 16],
        /// the writer's incarnation
        incarnation: U64,
        /// rises with every write of this unit
        unit_version: U64,
        /// zero
        reserved: U64,
    }
}

record! {
    /// A socket control block.
    struct ScbBytes[128] {
        /// 0 free; else the state, see `ScbState`
        state: u8,
        /// zero
        flags: u8,
        /// local port
        local_port: U16,
        /// peer's port
        peer_port: U16,
        /// peer's seat
        peer_seat: U16,
        /// process id of the owner, for people
        pid: U32,
        /// connections that wait to be accepted (listeners)
        backlog: U32,
        /// peer's incarnation
        peer_incarnation: U64,
        /// stream number on its link
        stream: U64,
        /// bytes sent
        sent_bytes: U64,
        /// bytes received
        received_bytes: U64,
        /// peer's system name, zero-padded
        peer_system: [u8; 64],
        /// zero
        reserved: [u8; 16],
    }
}
const _: () = assert!(
    size_of::<TableHead>() + SCBS_PER_UNIT * size_of::<ScbBytes>() <= UNIT_BYTES
        && size_of::<TableHead>() + (SCBS_PER_UNIT + 1) * size_of::<ScbBytes>() > UNIT_BYTES
);

/// A socket's state; the names are those of TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ScbState {
    /// Waits for connections.
    Listen = 1,
    /// Asked to connect, no answer yet.
    SynSent = 2,
    /// Was asked; the program's queue has not taken it yet.
    SynReceived = 3,
    /// Open both ways.
    Established = 4,
    /// This side has finished sending; the peer has not taken all of it.
    FinWait1 = 5,
    /// This side has finished sending and the peer knows.
    FinWait2 = 6,
    /// The peer has finished sending.
    CloseWait = 7,
    /// Both have finished; this side's end is not acknowledged yet.
    LastAck = 8,
}

impl ScbState {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Listen,
            2 => Self::SynSent,
            3 => Self::SynReceived,
            4 => Self::Established,
            5 => Self::FinWait1,
            6 => Self::FinWait2,
            7 => Self::CloseWait,
            8 => Self::LastAck,
            _ => return None,
        })
    }

    /// As `ss` prints it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Listen => "LISTEN",
            Self::SynSent => "SYN-SENT",
            Self::SynReceived => "SYN-RECV",
            Self::Established => "ESTAB",
            Self::FinWait1 => "FIN-WAIT-1",
            Self::FinWait2 => "FIN-WAIT-2",
            Self::CloseWait => "CLOSE-WAIT",
            Self::LastAck => "LAST-ACK",
        }
    }
}

/// A socket control block that was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scb {
    /// Its state.
    pub state: ScbState,
    /// Local port.
    pub local_port: u16,
    /// Peer's port; 0 for a listener.
    pub peer_port: u16,
    /// Peer's seat.
    pub peer_seat: SeatId,
    /// Owner's process id, for people.
    pub pid: u32,
    /// Connections waiting to be accepted (listeners).
    pub backlog: u32,
    /// Peer's incarnation.
    pub peer_incarnation: Incarnation,
    /// Stream number on its link.
    pub stream: u64,
    /// Bytes sent.
    pub sent_bytes: u64,
    /// Bytes received.
    pub received_bytes: u64,
    /// Peer's system; `None` for a listener.
    pub peer_system: Option<SystemName>,
}

/// One unit of a socket table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableUnit {
    /// Whose volume.
    pub volume: VolumeId,
    /// Which seat.
    pub seat: SeatId,
    /// The unit's number in the table.
    pub unit: u32,
    /// The writer's incarnation.
    pub incarnation: Incarnation,
    /// Rises with every write of this unit.
    pub unit_version: u64,
    /// [`SCBS_PER_UNIT`] rows.
    pub scbs: Vec<Option<Scb>>,
}

impl TableUnit {
    /// Which of two copies of one unit is the newer one.
    pub fn age_key(&self) -> (Incarnation, u64) {
        (self.incarnation, self.unit_version)
    }

    /// As one unit.
    pub fn encode(&self) -> UnitBuf {
        let mut head = TableHead::new_zeroed();
        head.version = FORMAT_VERSION.into();
        head.seat = self.seat.0.into();
        head.unit = self.unit.into();
        head.volume = self.volume.0;
        head.incarnation = self.incarnation.0.into();
        head.unit_version = self.unit_version.into();
        let mut buf = UnitBuf::zeroed(1);
        let bytes = buf.bytes_mut();
        let (front, rows) = bytes.split_at_mut(size_of::<TableHead>());
        front.copy_from_slice(head.as_bytes());
        for (row, scb) in rows.chunks_exact_mut(size_of::<ScbBytes>()).zip(&self.scbs) {
            let Some(scb) = scb else { continue };
            let mut out = ScbBytes::new_zeroed();
            out.state = scb.state as u8;
            out.local_port = scb.local_port.into();
            out.peer_port = scb.peer_port.into();
            out.peer_seat = scb.peer_seat.0.into();
            out.pid = scb.pid.into();
            out.backlog = scb.backlog.into();
            out.peer_incarnation = scb.peer_incarnation.0.into();
            out.stream = scb.stream.into();
            out.sent_bytes = scb.sent_bytes.into();
            out.received_bytes = scb.received_bytes.into();
            out.peer_system = scb.peer_system.map_or([0; 64], |name| name.padded());
            row.copy_from_slice(out.as_bytes());
        }
        seal(bytes, &TABLE_MAGIC);
        buf
    }

    /// From one unit, as it was read from the table of `seat` on `volume`.
    pub fn decode(bytes: &[u8], volume: VolumeId, seat: SeatId, unit: u32) -> Result<Self, Damage> {
        let length = Damage::Length(bytes.len() as u64);
        let bytes = bytes.get(..UNIT_BYTES).ok_or(length)?;
        let (head, rows) = TableHead::ref_from_prefix(bytes).map_err(|_| length)?;
        if head.magic == TABLE_MAGIC && head.version != FORMAT_VERSION {
            return Err(Damage::Version(head.version.get()));
        }
        unseal(bytes, &TABLE_MAGIC)?;
        if head.volume != volume.0 {
            return Err(Damage::Volume(VolumeId(head.volume)));
        }
        if head.seat != seat.0 {
            return Err(Damage::Field("seat"));
        }
        if head.unit != unit {
            return Err(Damage::Field("unit"));
        }
        let mut scbs = Vec::with_capacity(SCBS_PER_UNIT);
        for row in rows.chunks_exact(size_of::<ScbBytes>()).take(SCBS_PER_UNIT) {
            let row = ScbBytes::ref_from_bytes(row).map_err(|_| length)?;
            if row.state == 0 {
                scbs.push(None);
                continue;
            }
            let state = ScbState::from_byte(row.state).ok_or(Damage::Field("scb.state"))?;
            let peer_system = match row.peer_system[0] {
                0 => None,
                _ => Some(
                    SystemName::from_padded(&row.peer_system)
                        .map_err(|e| Damage::Name("scb.peer_system", e))?,
                ),
            };
            scbs.push(Some(Scb {
                state,
                local_port: row.local_port.get(),
                peer_port: row.peer_port.get(),
                peer_seat: SeatId(row.peer_seat.get()),
                pid: row.pid.get(),
                backlog: row.backlog.get(),
                peer_incarnation: Incarnation(row.peer_incarnation.get()),
                stream: row.stream.get(),
                sent_bytes: row.sent_bytes.get(),
                received_bytes: row.received_bytes.get(),
                peer_system,
            }));
        }
        Ok(Self {
            volume,
            seat,
            unit,
            incarnation: Incarnation(head.incarnation.get()),
            unit_version: head.unit_version.get(),
            scbs,
        })
    }
}
