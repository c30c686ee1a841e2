//! The monitor: everything that nodes write, held against the protocol, write by write.
//!
//! - It reads what is *submitted*, not what lands: the storage's faults are not the node's.
//! - Records: incarnation fixed, version and heartbeat rise, sessions and acknowledgements never go back, rings
//!   do not overlap, nothing follows the last record.
//! - Segments: numbered without gaps, in the slot of their number, never changed once written, and a slot is used
//!   again only after the reader has published that it took in what was there.
//! - Streams: nothing before the beginning or after the end, offsets without gaps, never more than was granted.

use std::collections::{BTreeMap, BTreeSet};

use stp_format::segment::{StreamKey, decode_segment};
use stp_format::{
    Epoch, Frame, FrameBody, Geometry, Incarnation, LinkEntry, Place, SeatId, SeatRecord,
    SeatState, SegmentInfo,
};

use crate::world::VOLUME;

/// A node's life: its seat and incarnation.
type Who = (SeatId, Incarnation);

/// What one node wrote on its link to one other.
#[derive(Debug, Default)]
struct Out {
    reader: Incarnation,
    epoch: Epoch,
    next_seq: u64,
    /// Hashes of the segments, by slot.
    slots: BTreeMap<u32, (u64, u64)>,
    /// By the name that the writer writes.
    streams: BTreeMap<StreamKey, Half>,
}

/// What one side of a stream has written.
#[derive(Debug, Default)]
struct Half {
    sent: u64,
    finished: bool,
    reset: bool,
    granted: u64,
}

#[derive(Debug, Default)]
struct Writer {
    record: Option<SeatRecord>,
    /// The highest session with each peer that a record spoke of.
    epochs: BTreeMap<SeatId, Epoch>,
    links: BTreeMap<SeatId, Out>,
}

#[derive(Debug, Default)]
pub(crate) struct Monitor {
    /// By handle.
    writers: BTreeMap<usize, Writer>,
    /// The last segment of a writer's session that the reader said to have taken in.
    acked: BTreeMap<(Who, Who, Epoch), u64>,
    /// What a node allows another to send on a stream, by the name that the sender writes.
    granted: BTreeMap<(Who, Who, StreamKey), u64>,
    /// Streams that were opened: (opener, answerer, number).
    opened: BTreeSet<(Who, Who, u64)>,
    /// Streams that moved to an opener: bytes that the answerer had sent before.
    adopted: BTreeMap<(Who, Who, u64), u64>,
    /// Acknowledgements are not heeded: the monitor itself is broken, on purpose.
    pub(crate) deaf: bool,
}

fn hash(bytes: &[u8]) -> u64 {
    let words = bytes.chunks(8).map(|chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        u64::from_le_bytes(word)
    });
    words.fold(0, |hash, word| {
        crate::rng::mix(hash ^ word).wrapping_add(word)
    })
}

fn other(key: StreamKey) -> StreamKey {
    StreamKey {
        by_writer: !key.by_writer,
        number: key.number,
    }
}

impl Monitor {
    /// What is wrong with a write, if anything.
    pub(crate) fn write(
        &mut self,
        geometry: &Geometry,
        handle: usize,
        place: Place,
        bytes: &[u8],
    ) -> Result<(), String> {
        let checked = match place {
            Place::Seat { seat, .. } => self.record(geometry, handle, seat, bytes),
            Place::Slot {
                seat, ring, slot, ..
            } => self.segment(geometry.ring_slots(ring), handle, seat, slot, bytes),
            _ => Ok(()),
        };
        checked.map_err(|what| format!("the write of life {handle} at {place:?}: {what}"))
    }

    fn record(
        &mut self,
        geometry: &Geometry,
        handle: usize,
        seat: SeatId,
        bytes: &[u8],
    ) -> Result<(), String> {
        let record = SeatRecord::decode(bytes, VOLUME, geometry, seat)
            .map_err(|damage| format!("no record: {damage}"))?;
        let me = (seat, record.incarnation);
        let writer = self.writers.entry(handle).or_default();
        let before = writer.record.take();
        if record.state != SeatState::Claiming {
            disjoint(&record.links)?;
        }
        if let Some(before) = before.filter(|before| before.state != SeatState::Claiming) {
            let rises = record.seat == before.seat
                && record.incarnation == before.incarnation
                && record.record_version > before.record_version
                && record.heartbeat > before.heartbeat;
            let back = before.state == SeatState::Left && record.state != SeatState::Left;
            if !rises || back {
                return Err(format!(
                    "{:?} {:?} heartbeat {} follows {:?} {:?} heartbeat {}",
                    record.state,
                    record.age_key(),
                    record.heartbeat,
                    before.state,
                    before.age_key(),
                    before.heartbeat
                ));
            }
            for (old, new) in before.links.iter().zip(&record.links) {
                monotone(old, new)?;
            }
        }
        for (peer, link) in (0..).map(SeatId).zip(&record.links) {
            let highest = writer.epochs.entry(peer).or_default();
            if link.epoch < *highest && link.epoch != Epoch(0) {
                return Err(format!("session {highest} had begun: {link:?}"));
            }
            *highest = link.epoch.max(*highest);
            let peer = (peer, link.peer_incarnation);
            if link.acked_epoch != Epoch(0) && !self.deaf {
                let acked = self.acked.entry((peer, me, link.acked_epoch)).or_default();
                *acked = link.acked_seq.0.max(*acked);
            }
        }
        writer.record = Some(record);
        Ok(())
    }

    fn segment(
        &mut self,
        slots: u32,
        handle: usize,
        seat: SeatId,
        slot: u32,
        bytes: &[u8],
    ) -> Result<(), String> {
        let (info, frames) =
            decode_segment(bytes, VOLUME).map_err(|damage| format!("no segment: {damage}"))?;
        let writer = self.writers.entry(handle).or_default();
        let record = writer.record.as_ref().ok_or("a segment before a record")?;
        let me = (seat, record.incarnation);
        if (info.writer, info.writer_incarnation) != me {
            return Err(format!("another writer: {info:?}"));
        }
        if u64::from(slot) != (info.seq.0.wrapping_sub(1)) % u64::from(slots) {
            return Err(format!("the slot of another number: {info:?}"));
        }
        let out = writer.links.entry(info.reader).or_default();
        if (out.reader, out.epoch) != (info.reader_incarnation, info.epoch) {
            if out.reader == info.reader_incarnation && info.epoch < out.epoch {
                return Err(format!("a session that is over: {info:?}"));
            }
            *out = Out {
                reader: info.reader_incarnation,
                epoch: info.epoch,
                next_seq: 1,
                ..Out::default()
            };
        }
        let sum = hash(bytes);
        if info.seq.0 < out.next_seq {
            return match out.slots.get(&slot) {
                Some(known) if *known == (info.seq.0, sum) => Ok(()),
                known => Err(format!("changed since it was first written: {known:?}")),
            };
        }
        if info.seq.0 != out.next_seq {
            return Err(format!("{} was expected: {info:?}", out.next_seq));
        }
        let reader = (info.reader, info.reader_incarnation);
        // What one says to a peer that lies follows its lies, and nobody follows those here.
        let lies = reader.1 == crate::hostile::INCARNATION;
        if let Some((old, _)) = out.slots.insert(slot, (info.seq.0, sum)) {
            let acked = self.acked.get(&(me, reader, info.epoch));
            if acked.is_none_or(|acked| *acked < old) && !lies {
                return Err(format!(
                    "segment {old} was in that slot, {acked:?} are acknowledged"
                ));
            }
        }
        out.next_seq += 1;
        if !lies {
            self.frames(handle, me, reader, &info, frames)?;
        }
        if info.acked_epoch != Epoch(0) && !self.deaf {
            let acked = self.acked.entry((reader, me, info.acked_epoch));
            let acked = acked.or_default();
            *acked = info.acked_seq.0.max(*acked);
        }
        Ok(())
    }

    fn frames<'a>(
        &mut self,
        handle: usize,
        me: Who,
        reader: Who,
        info: &SegmentInfo,
        frames: impl Iterator<Item = Result<Frame<'a>, stp_format::Damage>>,
    ) -> Result<(), String> {
        let writer = self.writers.entry(handle).or_default();
        let out = writer.links.entry(info.reader).or_default();
        for frame in frames {
            let Frame { key, body } = frame.map_err(|damage| format!("a frame: {damage}"))?;
            let known = out.streams.contains_key(&key);
            let half = out.streams.entry(key).or_default();
            let may = self.granted.get(&(me, reader, key)).copied();
            let fits = match body {
                FrameBody::Open { .. } => {
                    key.by_writer && !known && self.opened.insert((me, reader, key.number))
                }
                FrameBody::Accept { .. } => {
                    let moved = self.adopted.get(&(reader, me, key.number));
                    half.sent = moved.copied().unwrap_or(0);
                    !key.by_writer && !known
                }
                FrameBody::Adopt(adopt) => {
                    half.sent = adopt.sent;
                    let name = (me, reader, key.number);
                    self.adopted.insert(name, adopt.received);
                    key.by_writer && !known && self.opened.insert(name)
                }
                FrameBody::Reset { .. } | FrameBody::Moved => true,
                _ if half.reset || !known => false,
                FrameBody::Data { offset, bytes } => {
                    let end = offset + bytes.len() as u64;
                    let fits = offset == half.sent && !half.finished;
                    half.sent = end;
                    fits && may.is_some_and(|may| end <= may)
                }
                FrameBody::Fin { offset } => {
                    offset == half.sent && !std::mem::replace(&mut half.finished, true)
                }
                FrameBody::Credit { limit } => limit >= half.granted,
                FrameBody::Urgent { .. } | FrameBody::Resume | FrameBody::Resumed => true,
                FrameBody::Hold { offset, .. } | FrameBody::Held { offset } => offset == half.sent,
            };
            if !fits {
                return Err(format!(
                    "{key:?} {body:?} does not follow {half:?}, granted {may:?}"
                ));
            }
            half.reset |= matches!(body, FrameBody::Reset { .. } | FrameBody::Moved);
            let grant = match body {
                FrameBody::Open { credit, .. } | FrameBody::Accept { credit } => credit,
                FrameBody::Credit { limit } => limit,
                FrameBody::Adopt(adopt) => adopt.credit,
                _ => continue,
            };
            half.granted = grant;
            self.granted.insert((reader, me, other(key)), grant);
        }
        Ok(())
    }
}

/// The rings of one node lie apart.
fn disjoint(links: &[LinkEntry]) -> Result<(), String> {
    let mut taken = BTreeSet::new();
    let rings = links.iter().map(|link| link.ring);
    for ring in rings.filter(|ring| ring.extents > 0) {
        for extent in ring.first_extent..ring.first_extent + ring.extents {
            if !taken.insert(extent) {
                return Err(format!("two rings share extent {extent}"));
            }
        }
    }
    Ok(())
}

/// Sessions and numbers never go back; without a session an entry says none.
fn monotone(old: &LinkEntry, new: &LinkEntry) -> Result<(), String> {
    let same_peer = old.peer_incarnation == new.peer_incarnation && new.epoch != Epoch(0);
    let same_session = same_peer && old.epoch == new.epoch;
    let same_ring = old.ring == new.ring || old.ring.extents == 0;
    let same_acked = same_peer && new.acked_epoch == old.acked_epoch;
    let fits = (!same_session || (new.last_seq >= old.last_seq && same_ring))
        && (!same_acked || new.acked_seq >= old.acked_seq);
    match fits {
        true => Ok(()),
        false => Err(format!("{new:?} follows {old:?}")),
    }
}
