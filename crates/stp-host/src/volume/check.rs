//! Whether every record of a volume is what its writer meant.
//!
//! - A check only reads; a repair writes nothing but superblock copies, which no node ever writes.
//! - On a live volume a record can be late or torn at any moment: what does not validate is read
//!   again, and only what stays wrong is reported.
//! - *Damage* is what costs somebody something: a superblock copy, a seat without a valid record, a segment
//!   that a reader still waits for. A torn copy beside a valid one is what a crash leaves: a *note*.

use stp_format::segment::{decode_segment, peek_segment};
use stp_format::{Damage, Place, SeatId, SeatRecord, SeatState, TableUnit, UNIT_BYTES, UnitBuf};

use super::read::SeatView;
use super::transfer::Blocking;
use super::{REREAD_PAUSE, Volume, VolumeError, read_superblock};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Nothing is lost by it.
    Note,
    /// Something is lost, or will be.
    Damage,
}

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad.
    pub severity: Severity,
    /// Whose; `None` for the superblock.
    pub seat: Option<SeatId>,
    /// Which record.
    pub record: String,
    /// What is wrong.
    pub what: String,
}

/// What a check saw.
#[derive(Clone, Debug, Default)]
pub struct CheckReport {
    /// Superblock copies, seat records, units of socket tables and segments that were looked at and not blank.
    pub records: u64,
    /// Segments among them.
    pub segments: u64,
    /// Bytes read, repetitions included.
    pub read_bytes: u64,
    /// Everything found, in the order of the volume.
    pub findings: Vec<Finding>,
}

impl CheckReport {
    /// Whether anything is damaged.
    pub fn is_damaged(&self) -> bool {
        self.findings
            .iter()
            .any(|finding| finding.severity == Severity::Damage)
    }

    fn add(&mut self, severity: Severity, seat: Option<SeatId>, record: String, what: String) {
        self.findings.push(Finding {
            severity,
            seat,
            record,
            what,
        });
    }
}

impl Volume {
    /// Verifies every record of every seat.
    pub fn check(&mut self) -> Result<CheckReport, VolumeError> {
        let mut report = CheckReport::default();
        self.check_superblocks(&mut report)?;
        for seat in (0..self.superblock.geometry.seats).map(SeatId) {
            let Some(record) = self.check_seat(seat, &mut report)? else {
                continue;
            };
            self.check_table(seat, &record, &mut report)?;
            if record.state == SeatState::Up {
                self.check_rings(seat, &mut report)?;
            }
        }
        self.check_names(&mut report)?;
        Ok(report)
    }

    /// Writes the good superblock over a damaged copy; tells which copies it wrote. A copy that is whole but of
    /// another volume or version is left alone: which of the two is meant, only its owner knows.
    ///
    /// # Errors
    ///
    /// If the volume was opened for reading only, or the storage fails.
    pub fn repair_superblocks(&mut self) -> Result<Vec<u8>, VolumeError> {
        let mut written = Vec::new();
        for copy in 0..2 {
            let mut blocking = Blocking::new(&mut *self.medium);
            let wrong = match read_superblock(&mut blocking, copy, self.size_bytes) {
                Ok(Ok(_) | Err(Damage::Version(_) | Damage::Features(_))) => false,
                // A sector that cannot be read is made anew by writing it.
                Ok(Err(_)) | Err(_) => true,
            };
            if wrong {
                blocking
                    .write_durable(Place::Superblock { copy }, self.superblock.encode())
                    .map_err(|source| self.io("writing a superblock copy", source))?;
                written.push(copy);
            }
        }
        Ok(written)
    }

    fn check_superblocks(&mut self, report: &mut CheckReport) -> Result<(), VolumeError> {
        let size_bytes = self.size_bytes;
        for copy in 0..2 {
            let found = read_superblock(&mut Blocking::new(&mut *self.medium), copy, size_bytes);
            report.records += 1;
            report.read_bytes += UNIT_BYTES as u64;
            let what = match found {
                Ok(Ok(found)) if found == self.superblock => continue,
                Ok(Ok(found)) => format!("is of another volume (group {})", found.group),
                Ok(Err(damage)) => damage.to_string(),
                Err(error) => format!("cannot be read: {error}"),
            };
            let record = format!("superblock, copy {copy}");
            report.add(Severity::Damage, None, record, what);
        }
        Ok(())
    }

    /// The newest record of a seat, if it has one.
    fn check_seat(
        &mut self,
        seat: SeatId,
        report: &mut CheckReport,
    ) -> Result<Option<SeatRecord>, VolumeError> {
        let geometry = self.superblock.geometry;
        let volume = self.superblock.volume;
        let mut newest: Option<SeatRecord> = None;
        let mut damaged = Vec::new();
        for copy in 0..2 {
            let place = Place::Seat { seat, copy };
            let units = geometry.record_units.into();
            let decoded = self.read_until_valid(place, units, report, |bytes| {
                SeatRecord::decode(bytes, volume, &geometry, seat)
            })?;
            match decoded {
                Ok(record) => {
                    report.records += 1;
                    if newest
                        .as_ref()
                        .is_none_or(|n| n.age_key() < record.age_key())
                    {
                        newest = Some(record);
                    }
                }
                Err(Damage::Blank) => {}
                Err(damage) => {
                    report.records += 1;
                    damaged.push((copy, damage));
                }
            }
        }
        for (copy, damage) in damaged {
            let (severity, hint) = match newest {
                Some(_) => (Severity::Note, "; the other copy is good"),
                None => (Severity::Damage, ""),
            };
            let record = format!("seat record, copy {copy}");
            report.add(severity, Some(seat), record, format!("{damage}{hint}"));
        }
        Ok(newest)
    }

    fn check_table(
        &mut self,
        seat: SeatId,
        record: &SeatRecord,
        report: &mut CheckReport,
    ) -> Result<(), VolumeError> {
        let units = self.superblock.geometry.table_units;
        let volume = self.superblock.volume;
        for copy in 0..2 {
            let whole = Place::Table {
                seat,
                copy,
                unit: 0,
            };
            let table = self.read_counted(whole, units.into(), report)?;
            for (unit, bytes) in (0..).zip(table.bytes().chunks_exact(UNIT_BYTES)) {
                let mut decoded = TableUnit::decode(bytes, volume, seat, unit);
                if decoded == Err(Damage::Blank) {
                    continue;
                }
                report.records += 1;
                if decoded.is_err() {
                    let place = Place::Table { seat, copy, unit };
                    decoded = self.read_until_valid(place, 1, report, |bytes| {
                        TableUnit::decode(bytes, volume, seat, unit)
                    })?;
                }
                // The record may be older than the table: it was read before.
                let what = match decoded {
                    Ok(_) | Err(Damage::Blank) => continue,
                    Err(Damage::Checksum) => {
                        format!("{}; the table serves people only", Damage::Checksum)
                    }
                    Err(damage) => damage.to_string(),
                };
                let name = format!(
                    "socket table of {}, copy {copy}, unit {unit}",
                    record.system
                );
                report.add(Severity::Note, Some(seat), name, what);
            }
        }
        Ok(())
    }

    /// Every segment in an open link's ring that its reader has not acknowledged.
    fn check_rings(&mut self, seat: SeatId, report: &mut CheckReport) -> Result<(), VolumeError> {
        let geometry = self.superblock.geometry;
        for peer in 0..usize::from(geometry.seats) {
            let views = self.read_directory()?;
            let Some(waiting) = Waiting::of(&views, seat, peer) else {
                continue;
            };
            let ring = waiting.ring;
            for slot in 0..geometry.ring_slots(ring) {
                let place = Place::Slot {
                    seat,
                    ring,
                    slot,
                    skip: 0,
                };
                if self.check_slot(place, waiting, report)? {
                    continue;
                }
                // It stayed wrong. By now it may have been taken in, or its link closed.
                let views = self.read_directory()?;
                let still = Waiting::of(&views, seat, peer);
                let Some(still) = still.filter(|still| still.same_link(&waiting)) else {
                    break;
                };
                if self.check_slot(place, still, report)? {
                    continue;
                }
                let alive = self.watch()?.into_iter().any(|(view, liveness)| {
                    view.seat == seat && liveness == super::Liveness::Alive
                });
                let (severity, hint) = if alive {
                    (Severity::Damage, "its reader waits for it")
                } else {
                    (Severity::Note, "its writer's death left it so")
                };
                let record = format!("segment to seat {peer}, slot {slot}");
                let what = format!("{}, {hint}", Damage::Checksum);
                report.add(severity, Some(seat), record, what);
            }
        }
        Ok(())
    }

    /// Whether a slot holds nothing that its reader waits for, or a whole segment.
    fn check_slot(
        &mut self,
        place: Place,
        waiting: Waiting,
        report: &mut CheckReport,
    ) -> Result<bool, VolumeError> {
        let volume = self.superblock.volume;
        for attempt in 0..=self.rereads_max() {
            if attempt > 0 {
                std::thread::sleep(REREAD_PAUSE);
            }
            let head = self.read_counted(place, 1, report)?;
            let Ok((info, len)) = peek_segment(head.bytes(), volume) else {
                // The middle of an earlier segment, or nothing yet.
                return Ok(true);
            };
            let awaited = info.writer_incarnation == waiting.incarnation
                && info.epoch == waiting.epoch
                && info.seq > waiting.acked;
            if !awaited {
                return Ok(true);
            }
            let units = UnitBuf::units_for(len);
            if units > usize::from(waiting.ring.slot_units) {
                continue;
            }
            let segment = self.read_counted(place, units, report)?;
            if let Ok((_, mut frames)) = decode_segment(segment.bytes(), volume)
                && frames.all(|frame| frame.is_ok())
            {
                report.records += 1;
                report.segments += 1;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// One name, several hosts: the second is somebody's mistake.
    fn check_names(&mut self, report: &mut CheckReport) -> Result<(), VolumeError> {
        let views = self.read_directory()?;
        let up: Vec<&SeatRecord> = views
            .iter()
            .filter_map(|view| view.record.as_ref())
            .filter(|record| record.state == SeatState::Up)
            .collect();
        for (at, record) in up.iter().enumerate() {
            let twin = up[..at]
                .iter()
                .find(|other| other.system == record.system && other.host != record.host);
            if let Some(twin) = twin {
                let what = format!(
                    "the system name {} is also that of another host, in seat {}: one of them is dead, \
                     or both carry one name",
                    record.system, twin.seat
                );
                let name = "seat record".to_owned();
                report.add(Severity::Note, Some(record.seat), name, what);
            }
        }
        Ok(())
    }

    fn read_counted(
        &mut self,
        place: Place,
        units: usize,
        report: &mut CheckReport,
    ) -> Result<UnitBuf, VolumeError> {
        report.read_bytes += (units * UNIT_BYTES) as u64;
        Blocking::new(&mut *self.medium)
            .read(place, units)
            .map_err(|source| self.io("reading a record", source))
    }

    fn read_until_valid<T>(
        &mut self,
        place: Place,
        units: usize,
        report: &mut CheckReport,
        decode: impl Fn(&[u8]) -> Result<T, Damage>,
    ) -> Result<Result<T, Damage>, VolumeError> {
        let mut attempt = 0;
        loop {
            let buf = self.read_counted(place, units, report)?;
            match decode(buf.bytes()) {
                Err(damage) if damage != Damage::Blank && attempt < self.rereads_max() => {
                    attempt += 1;
                    std::thread::sleep(REREAD_PAUSE);
                }
                decoded => return Ok(decoded),
            }
        }
    }
}

/// What a reader waits for on one link.
#[derive(Clone, Copy)]
struct Waiting {
    ring: stp_format::Ring,
    incarnation: stp_format::Incarnation,
    epoch: stp_format::Epoch,
    acked: stp_format::Seq,
}

impl Waiting {
    /// The link from `seat` to `peer`, if it is open and its reader lives in the incarnation it speaks to.
    fn of(views: &[SeatView], seat: SeatId, peer: usize) -> Option<Self> {
        let record = |seat: usize| views.get(seat)?.record.as_ref();
        let writer = record(seat.0.into())?;
        let reader = record(peer)?;
        let link = writer.links.get(peer)?;
        let back = reader.links.get(usize::from(seat.0))?;
        let open = link.epoch.0 != 0
            && writer.state == SeatState::Up
            && reader.state == SeatState::Up
            && link.peer_incarnation == reader.incarnation;
        // What the reader says it took in counts if it speaks of this session.
        let acked = if back.acked_epoch == link.epoch && back.peer_incarnation == writer.incarnation
        {
            back.acked_seq
        } else {
            stp_format::Seq(0)
        };
        open.then_some(Self {
            ring: link.ring,
            incarnation: writer.incarnation,
            epoch: link.epoch,
            acked,
        })
    }

    fn same_link(&self, other: &Self) -> bool {
        (self.ring, self.incarnation, self.epoch) == (other.ring, other.incarnation, other.epoch)
    }
}
