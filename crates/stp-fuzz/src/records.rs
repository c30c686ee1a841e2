//! Records and segments: bytes that are none are refused, bytes that are one say the same when written again.

use arbitrary::{Result, Unstructured};
use stp_format::geometry::SCBS_PER_UNIT;
use stp_format::seat::{PORTS_MAX, SEAT_MAGIC};
use stp_format::segment::{SEGMENT_MAGIC, decode_segment, peek_segment};
use stp_format::superblock::SUPERBLOCK_MAGIC;
use stp_format::table::TABLE_MAGIC;
use stp_format::*;

/// Where magic, checksum and version of every record stand.
const CHECKSUM: std::ops::Range<usize> = 8..16;
const VERSION: std::ops::Range<usize> = 16..18;

/// The volume that all harnesses speak of.
pub const VOLUME: VolumeId = VolumeId(*b"fuzzed volume id");

/// Its measures.
#[must_use]
pub fn geometry() -> Geometry {
    Geometry::plan(1 << 20, 4).unwrap_or_else(|error| panic!("{error}"))
}

/// Gives a record the right magic, version, volume (at `volume`) and checksum, so that only its fields are wrong.
fn seal(bytes: &mut [u8], magic: [u8; 8], volume: Option<usize>) {
    if bytes.len() < 128 {
        return;
    }
    bytes[..8].copy_from_slice(&magic);
    bytes[VERSION].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    if let Some(at) = volume {
        bytes[at..at + 16].copy_from_slice(&VOLUME.0);
    }
    let sum = xxhash_rust::xxh3::xxh3_64(&bytes[CHECKSUM.end..]).to_le_bytes();
    bytes[CHECKSUM].copy_from_slice(&sum);
}

/// Superblock, seat record, table unit: raw bytes, or (by the first byte) bytes with a right checksum.
pub fn decode(data: &[u8]) {
    let Some((&how, bytes)) = data.split_first() else {
        return;
    };
    let geometry = geometry();
    let mut buf = UnitBuf::zeroed(geometry.record_units.into());
    let mut bytes = bytes.to_vec();
    if how & 1 == 1 {
        let len = bytes.len().min(buf.len());
        buf.bytes_mut()[..len].copy_from_slice(&bytes[..len]);
        bytes = buf.bytes().to_vec();
    }
    let sealed = |magic, volume| {
        let mut bytes = bytes.clone();
        if how & 1 == 1 {
            seal(&mut bytes, magic, volume);
        }
        bytes
    };
    if let Ok(one) = Superblock::decode(&sealed(SUPERBLOCK_MAGIC, None)) {
        assert_eq!(Superblock::decode(one.encode().bytes()), Ok(one));
        // Nothing that a good superblock places lies outside the volume.
        let geometry = one.geometry;
        let last = Place::Table {
            seat: SeatId(geometry.seats - 1),
            copy: 1,
            unit: 0,
        };
        let units = usize::from(geometry.table_units);
        let at = geometry.offset(last, units).unwrap_or(u64::MAX);
        assert!(at.saturating_add((units * UNIT_BYTES) as u64) <= geometry.size_bytes);
    }
    let seat = SeatId(u16::from(how >> 1) % geometry.seats);
    let mut record = sealed(SEAT_MAGIC, Some(24));
    if how & 1 == 1 && record.len() >= 128 {
        record[18..20].copy_from_slice(&seat.0.to_le_bytes());
        seal(&mut record, SEAT_MAGIC, Some(24));
    }
    let _ = SeatRecord::peek(&record);
    if let Ok(one) = SeatRecord::decode(&record, VOLUME, &geometry, seat) {
        let again = one.encode(&geometry);
        let found = SeatRecord::decode(again.bytes(), VOLUME, &geometry, seat);
        assert_eq!(found.as_ref(), Ok(&one));
        for link in &one.links {
            let first = Place::Slot {
                seat,
                ring: link.ring,
                slot: 0,
                skip: 0,
            };
            assert!(link.ring.extents == 0 || geometry.offset(first, 1).is_some());
        }
    }
    let mut unit = sealed(TABLE_MAGIC, Some(24));
    if how & 1 == 1 && unit.len() >= 128 {
        unit[18..20].copy_from_slice(&seat.0.to_le_bytes());
        unit[20..24].copy_from_slice(&3u32.to_le_bytes());
        unit.truncate(UNIT_BYTES);
        seal(&mut unit, TABLE_MAGIC, Some(24));
    }
    if let Ok(one) = TableUnit::decode(&unit, VOLUME, seat, 3) {
        assert!(one.scbs.len() <= SCBS_PER_UNIT);
        let again = one.encode();
        assert_eq!(TableUnit::decode(again.bytes(), VOLUME, seat, 3), Ok(one));
    }
}

/// A segment: raw bytes, or (by the first byte) bytes with a right head and checksum.
pub fn segment(data: &[u8]) {
    let Some((&how, bytes)) = data.split_first() else {
        return;
    };
    let mut bytes = bytes.to_vec();
    if how & 1 == 1 && bytes.len() >= 128 {
        let len = bytes.len() / 8 * 8;
        bytes.truncate(len);
        if how & 2 == 0 {
            bytes[80..84].copy_from_slice(&(len as u32).to_le_bytes());
        }
        seal(&mut bytes, SEGMENT_MAGIC, Some(24));
    }
    let peeked = peek_segment(&bytes, VOLUME);
    let Ok((info, frames)) = decode_segment(&bytes, VOLUME) else {
        return;
    };
    assert_eq!(peeked.map(|(info, _)| info), Ok(info));
    let mut builder = SegmentBuilder::new(UnitBuf::zeroed(UnitBuf::units_for(bytes.len())));
    let mut good = Vec::new();
    for (count, frame) in frames.enumerate() {
        assert!(count <= bytes.len() / 24, "more frames than fit");
        let Ok(frame) = frame else { break };
        assert!(builder.push(&frame), "what came does not fit again");
        good.push(frame);
    }
    let (buf, units) = builder.seal(VOLUME, &info);
    assert!(units <= buf.units());
    let (again, frames) = decode_segment(buf.bytes(), VOLUME).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(again, info);
    let found: Vec<_> = frames
        .map(|f| f.unwrap_or_else(|e| panic!("{e}")))
        .collect();
    assert_eq!(found, good);
}

/// What engines say to each other about a stream that moves.
pub fn gift(data: &[u8]) {
    let mut rest = data;
    while let Ok(Some((message, len))) = GiftMessage::decode(rest) {
        assert!(len <= rest.len());
        let mut again = Vec::new();
        message.encode(&mut again);
        assert_eq!(
            GiftMessage::decode(&again),
            Ok(Some((message, again.len())))
        );
        // Of a message that is not whole, nothing is taken.
        for cut in [0, again.len() / 2, again.len() - 1] {
            assert_eq!(GiftMessage::decode(&again[..cut]), Ok(None));
        }
        rest = &rest[len..];
    }
}

/// Records with any values that a writer may write come back as they were.
pub fn round_trip(data: &[u8]) {
    let mut u = Unstructured::new(data);
    let _ = made(&mut u);
}

fn made(u: &mut Unstructured<'_>) -> Result<()> {
    let geometry = geometry();
    let record = seat_record(u, &geometry, SeatId(2))?;
    let mut wanted = record.clone();
    if wanted.ports.len() > PORTS_MAX {
        wanted.ports.truncate(PORTS_MAX);
        wanted.ports_overflow = true;
    }
    let units = record.encode(&geometry);
    let found = SeatRecord::decode(units.bytes(), VOLUME, &geometry, SeatId(2));
    match found {
        Ok(found) => assert_eq!(found, wanted),
        Err(Damage::Field("links.ring")) => {
            let bad = |link: &LinkEntry| link.ring.extents != 0 && !geometry.holds(link.ring);
            assert!(record.links.iter().any(bad));
        }
        // There must always be a next number.
        Err(Damage::Field("incarnation")) => assert!(record.incarnation.0 >= 1 << 63),
        Err(Damage::Field("record_version")) => assert!(record.record_version >= 1 << 63),
        Err(damage) => panic!("{damage}"),
    }
    let mut scbs = vec![None; SCBS_PER_UNIT];
    for place in &mut scbs {
        if u.ratio(1, 3)? {
            let state = *u.choose(&[ScbState::Listen, ScbState::Established, ScbState::LastAck])?;
            *place = Some(Scb {
                state,
                local_port: u.arbitrary()?,
                peer_port: u.arbitrary()?,
                peer_seat: SeatId(u.arbitrary()?),
                pid: u.arbitrary()?,
                backlog: u.arbitrary()?,
                peer_incarnation: Incarnation(u.arbitrary()?),
                stream: u.arbitrary()?,
                sent_bytes: u.arbitrary()?,
                received_bytes: u.arbitrary()?,
                peer_system: if u.arbitrary()? { Some(name(u)?) } else { None },
            });
        }
    }
    let unit = TableUnit {
        volume: VOLUME,
        seat: SeatId(1),
        unit: u.arbitrary()?,
        incarnation: Incarnation(u.arbitrary()?),
        unit_version: u.arbitrary()?,
        scbs,
    };
    let bytes = unit.encode();
    let number = unit.unit;
    assert_eq!(
        TableUnit::decode(bytes.bytes(), VOLUME, SeatId(1), number),
        Ok(unit)
    );
    Ok(())
}

/// A system's name.
///
/// # Errors
/// When the input is used up.
pub fn name(u: &mut Unstructured<'_>) -> Result<SystemName> {
    let names = [
        "alpha",
        "beta",
        "gamma",
        "x",
        "a-very-long-name.of_a-system-that.fills.all.the.63.bytes-of.it",
    ];
    let name = names[u.choose_index(names.len())?];
    name[..name.len().min(63)]
        .parse()
        .map_err(|_| arbitrary::Error::IncorrectFormat)
}

/// A number that is small, or at one of the ends of its range.
///
/// # Errors
/// When the input is used up.
pub fn number(u: &mut Unstructured<'_>) -> Result<u64> {
    Ok(match u.int_in_range(0..=7)? {
        0..=4 => u.int_in_range(0..=40)?,
        5 => u64::MAX - u.int_in_range(0..=3)?,
        6 => u64::from(u32::MAX) - 2 + u.int_in_range(0..=4)?,
        _ => u.arbitrary()?,
    })
}

/// Any seat record.
///
/// # Errors
/// When the input is used up.
pub fn seat_record(
    u: &mut Unstructured<'_>,
    geometry: &Geometry,
    seat: SeatId,
) -> Result<SeatRecord> {
    let mut links = Vec::new();
    for _ in 0..geometry.seats {
        let ring = if u.ratio(4, 5)? {
            let first = u.int_in_range(0..=geometry.extents)?;
            let left = geometry.extents - first;
            geometry.ring(first, u.int_in_range(0..=left)?)
        } else {
            Ring {
                first_extent: u.arbitrary()?,
                extents: u.arbitrary()?,
                slot_units: u.arbitrary()?,
            }
        };
        links.push(LinkEntry {
            peer_incarnation: Incarnation(number(u)?),
            epoch: Epoch(number(u)? as u32),
            acked_epoch: Epoch(number(u)? as u32),
            ring,
            last_seq: Seq(number(u)?),
            acked_seq: Seq(number(u)?),
        });
    }
    let mut ports = Vec::new();
    for _ in 0..u.int_in_range(0..=6)? {
        ports.push(*u.choose(&[0, 1, 80, 7000, 7001, u16::MAX])?);
    }
    if u.ratio(1, 10)? {
        ports.extend((1000..1000 + PORTS_MAX as u16 + 1).take(u.int_in_range(0..=PORTS_MAX + 1)?));
    }
    Ok(SeatRecord {
        volume: VOLUME,
        seat,
        state: *u.choose(&[
            SeatState::Up,
            SeatState::Up,
            SeatState::Claiming,
            SeatState::Left,
        ])?,
        incarnation: Incarnation(number(u)?),
        record_version: number(u)?,
        heartbeat: number(u)?,
        nonce: number(u)?,
        host: [u.int_in_range(0..=3)?; 16],
        system: name(u)?,
        pid: number(u)? as u32,
        engine: u.arbitrary()?,
        timings: SeatTimings {
            heartbeat_ms: number(u)? as u32,
            suspect_ms: number(u)? as u32,
            dead_ms: number(u)? as u32,
            poll_max_us: number(u)? as u32,
        },
        counters: SeatCounters {
            reads: number(u)?,
            streams: number(u)? as u32,
            ..SeatCounters::default()
        },
        ports,
        ports_overflow: u.ratio(1, 8)?,
        moves: u.ratio(7, 8)?,
        links,
    })
}
