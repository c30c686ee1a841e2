//! What stands on a live volume, for people: seats, sockets, who moves.
//!
//! - A record that does not validate is read again before it counts as damaged.
//! - Whether a node lives is seen by its heartbeat advancing while one looks; no clock of another
//!   host is believed.

use std::time::{Duration, Instant};

use stp_format::{
    Damage, Place, Scb, SeatId, SeatRecord, SeatState, SystemName, TableUnit, UNIT_BYTES,
};

use super::transfer::Blocking;
use super::{REREAD_PAUSE, Volume, VolumeError};

/// Longest time that [`Volume::watch`] looks.
pub(super) const WATCH_MAX: Duration = Duration::from_secs(5);
/// Pause between two looks.
pub(super) const WATCH_PAUSE: Duration = Duration::from_millis(50);

/// One seat as it stands in the directory.
#[derive(Clone, Debug)]
pub struct SeatView {
    /// Which.
    pub seat: SeatId,
    /// The newest valid record; `None` for a seat that nobody ever took, or whose copies are both damaged.
    pub record: Option<SeatRecord>,
    /// Per copy, what is wrong with it; a blank copy has nothing wrong.
    pub damage: [Option<Damage>; 2],
}

/// What a seat's record and a short look at it say about its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Liveness {
    /// Nobody was ever here.
    Free,
    /// Both copies of its record are damaged.
    Unknown,
    /// Somebody is claiming it.
    Claiming,
    /// Its record advanced.
    Alive,
    /// Its record says it is up, but did not advance while one looked.
    Silent,
    /// Its node left in good order.
    Left,
}

impl Liveness {
    /// As it is printed.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Unknown => "damaged",
            Self::Claiming => "claiming",
            Self::Alive => "up",
            Self::Silent => "silent",
            Self::Left => "left",
        }
    }
}

/// A socket control block and whose it is.
#[derive(Clone, Debug)]
pub struct SocketView {
    /// In which seat's table.
    pub seat: SeatId,
    /// The system that the seat belongs to.
    pub system: SystemName,
    /// The row.
    pub scb: Scb,
}

impl Volume {
    /// Every seat's record.
    pub fn read_directory(&mut self) -> Result<Vec<SeatView>, VolumeError> {
        let mut views = self.read_directory_once()?;
        for _ in 0..self.rereads_max() {
            let late = |view: &SeatView| view.record.is_none() && view.is_damaged();
            if !views.iter().any(late) {
                break;
            }
            std::thread::sleep(REREAD_PAUSE);
            views = self.read_directory_once()?;
        }
        Ok(views)
    }

    pub(super) fn read_directory_once(&mut self) -> Result<Vec<SeatView>, VolumeError> {
        let geometry = self.superblock.geometry;
        let units = geometry.directory_units(geometry.seats);
        let place = Place::Directory { first: SeatId(0) };
        let directory = Blocking::new(&mut *self.medium)
            .read(place, units)
            .map_err(|source| self.io("reading the seat directory", source))?;
        let record_bytes = usize::from(geometry.record_units) * UNIT_BYTES;
        let mut copies = directory.bytes().chunks_exact(record_bytes);
        let volume = self.superblock.volume;
        let mut views = Vec::with_capacity(geometry.seats.into());
        for seat in (0..geometry.seats).map(SeatId) {
            let both = [copies.next(), copies.next()]
                .map(|copy| SeatRecord::decode(copy.unwrap_or_default(), volume, &geometry, seat));
            let damage = [0, 1].map(|copy: usize| match &both[copy] {
                Ok(_) | Err(Damage::Blank) => None,
                Err(damage) => Some(*damage),
            });
            let record = both.into_iter().flatten().max_by_key(SeatRecord::age_key);
            views.push(SeatView {
                seat,
                record,
                damage,
            });
        }
        Ok(views)
    }

    /// Every seat's record, and who moves. Looks for two heartbeats at the most.
    pub fn watch(&mut self) -> Result<Vec<(SeatView, Liveness)>, VolumeError> {
        let first = self.read_directory()?;
        let up = |view: &SeatView| {
            let record = view.record.as_ref();
            record.is_some_and(|record| record.state == SeatState::Up)
        };
        let heartbeat_ms_max = first
            .iter()
            .filter(|view| up(view))
            .filter_map(|view| view.record.as_ref())
            .map(|record| record.timings.heartbeat_ms)
            .max();
        let mut latest = first.clone();
        if let Some(ms) = heartbeat_ms_max.filter(|_| !self.still) {
            let look = Duration::from_millis(u64::from(ms) * 2 + 200).min(WATCH_MAX);
            let until = Instant::now() + look;
            while Instant::now() < until
                && first
                    .iter()
                    .zip(&latest)
                    .any(|(a, b)| up(a) && !a.advanced(b))
            {
                std::thread::sleep(WATCH_PAUSE);
                latest = self.read_directory()?;
            }
        }
        let judged = first.into_iter().zip(latest).map(|(before, now)| {
            let liveness = match now.record.as_ref().map(|record| record.state) {
                None if now.is_damaged() => Liveness::Unknown,
                None => Liveness::Free,
                Some(SeatState::Claiming) => Liveness::Claiming,
                Some(SeatState::Left) => Liveness::Left,
                Some(SeatState::Up) if before.advanced(&now) => Liveness::Alive,
                Some(SeatState::Up) => Liveness::Silent,
            };
            (now, liveness)
        });
        Ok(judged.collect())
    }

    /// The sockets of one seat's present node.
    pub fn read_table(&mut self, view: &SeatView) -> Result<Vec<SocketView>, VolumeError> {
        let Some(record) = &view.record else {
            return Ok(Vec::new());
        };
        let geometry = self.superblock.geometry;
        let seat = view.seat;
        let mut newest: Vec<Option<TableUnit>> = vec![None; geometry.table_units.into()];
        for copy in 0..2 {
            let place = Place::Table {
                seat,
                copy,
                unit: 0,
            };
            let table = Blocking::new(&mut *self.medium)
                .read(place, geometry.table_units.into())
                .map_err(|source| self.io("reading a socket table", source))?;
            let units = table.bytes().chunks_exact(UNIT_BYTES);
            for (number, (bytes, newest)) in units.zip(&mut newest).enumerate() {
                let volume = self.superblock.volume;
                // Of a torn unit the other copy is good; both are only torn for a moment.
                let Ok(unit) = TableUnit::decode(bytes, volume, seat, number as u32) else {
                    continue;
                };
                let current = newest.as_ref().is_none_or(|n| n.age_key() < unit.age_key());
                if unit.incarnation == record.incarnation && current {
                    *newest = Some(unit);
                }
            }
        }
        let scbs = newest.into_iter().flatten().flat_map(|unit| unit.scbs);
        let system = record.system;
        Ok(scbs
            .flatten()
            .map(|scb| SocketView { seat, system, scb })
            .collect())
    }

    /// The sockets of every node whose record says it is up.
    pub fn read_tables(&mut self) -> Result<Vec<SocketView>, VolumeError> {
        let mut sockets = Vec::new();
        for view in self.read_directory()? {
            if matches!(&view.record, Some(record) if record.state == SeatState::Up) {
                sockets.extend(self.read_table(&view)?);
            }
        }
        Ok(sockets)
    }

    pub(super) fn io(&self, what: &'static str, source: std::io::Error) -> VolumeError {
        VolumeError::Io {
            spec: self.spec.clone(),
            what,
            source,
        }
    }
}

impl SeatView {
    /// Whether any copy is damaged.
    pub fn is_damaged(&self) -> bool {
        self.damage.iter().any(Option::is_some)
    }

    /// Whether `later` shows that a node wrote since this was read.
    pub fn advanced(&self, later: &Self) -> bool {
        match (&self.record, &later.record) {
            (Some(before), Some(now)) => before.age_key() < now.age_key(),
            (None, Some(_)) => true,
            (_, None) => false,
        }
    }
}
