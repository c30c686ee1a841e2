//! What this node knows of its peers: their newest records, and whether they live.
//!
//! - Silence is counted on this node's clock, and only while the storage answers this node: a peer is
//!   not blamed for a storage that is silent for everybody, nor for this node's own sleep.
//! - A record in state claiming is nobody's and is skipped.
//! - A peer's (incarnation, record version) never goes back, but for one case: the seat's node cannot know how many lives
//!   were there before it if all that told of them is lost. Where what is known is dead or has left, an earlier incarnation whose
//!   heart beats again and again is who lives there. What was known before is old from then on, whatever shows it.

use crate::time::Time;
use alloc::vec::Vec;
use core::time::Duration;
use stp_format::{
    Damage, Geometry, Incarnation, SeatId, SeatRecord, SeatState, SystemName, UNIT_BYTES, VolumeId,
};

/// The most time that one look at the directory may add to a peer's silence.
const STEP_MAX: Duration = Duration::from_millis(1500);

/// Looks after which a record that no node of this version writes is told: what is torn is whole by then.
const ODD_LOOKS: u32 = 100;

/// Looks after which the own seat, which holds a record of another volume, is lost with its volume: a read that went
/// astray brings one once.
const FOREIGN_LOOKS: u32 = 5;

/// So often must the heart of an earlier incarnation be seen to beat before it is who lives in a seat: one record that is
/// out of date may come back, and who wakes up in a seat that is another's is gone sooner.
const RETURN_BEATS: u32 = 2;

/// Incarnations further apart than this are not taken for lives of one seat on a peer's word.
const LIVES_MAX: u64 = 1 << 32;

/// Whether a peer lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerState {
    /// Its heartbeat moves.
    Up,
    /// Its heartbeat has not moved for its own `suspect` time.
    Suspect,
    /// Its heartbeat has not moved for its own `dead` time.
    Dead,
    /// It left in good order.
    Left,
}

/// What a node knows of a peer.
#[derive(Clone, Debug)]
pub struct PeerInfo {
    /// Its seat.
    pub seat: SeatId,
    /// Its system's name.
    pub system: SystemName,
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// Whether it lives.
    pub state: PeerState,
    /// Ports that it listens on.
    pub ports: Vec<u16>,
    /// Whether streams can move to and from it.
    pub moves: bool,
}

#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) record: SeatRecord,
    pub(crate) state: PeerState,
    /// Its heartbeat was seen moving: it lives, or did while this node watched.
    pub(crate) moved: bool,
    /// The look that first showed this incarnation: of the two copies of its record either may come first.
    found_at: Option<Time>,
    /// Reading of [`Directory::watch`] when the heartbeat last moved.
    heard: Duration,
    /// The newest record of a seat that an earlier incarnation turned out to live in.
    outlived: Option<AgeKey>,
    /// An earlier incarnation that is seen in the seat.
    earlier: Option<Earlier>,
}

type AgeKey = (Incarnation, u64);

impl Peer {
    /// Whether its incarnation came back after others had been known of that seat.
    pub(crate) fn returned(&self) -> bool {
        self.outlived.is_some()
    }

    /// The newest record that was ever known of the seat.
    fn newest(&self) -> AgeKey {
        self.record.age_key().max(self.outlived.unwrap_or_default())
    }

    /// Whether this record, of another incarnation and out of date, shows who lives here: `look` found it.
    fn gives_way_to(&mut self, record: &SeatRecord, look: Option<Time>) -> bool {
        let beats = match &self.earlier {
            Some(known) if known.is_of(record) => {
                let is_beat = record.record_version > known.record_version
                    && record.heartbeat > known.heartbeat
                    && known.look != look;
                if !is_beat {
                    return false;
                }
                known.beats + 1
            }
            _ => 0,
        };
        self.earlier = Some(Earlier {
            incarnation: record.incarnation,
            nonce: record.nonce,
            record_version: record.record_version,
            heartbeat: record.heartbeat,
            beats,
            look,
        });
        let is_gone = matches!(self.state, PeerState::Dead | PeerState::Left);
        let is_later = record.incarnation > self.record.incarnation;
        (is_gone || is_later) && beats >= RETURN_BEATS && record.state == SeatState::Up
    }
}

/// An earlier incarnation than the one that is known of a seat.
#[derive(Debug)]
struct Earlier {
    incarnation: Incarnation,
    nonce: u64,
    record_version: u64,
    heartbeat: u64,
    /// How often its heart was seen to beat, and which look saw it last.
    beats: u32,
    look: Option<Time>,
}

impl Earlier {
    fn is_of(&self, record: &SeatRecord) -> bool {
        (self.incarnation, self.nonce) == (record.incarnation, record.nonce)
    }
}

/// What a look at the directory changed in one seat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// A newer record of the same incarnation.
    Record,
    /// Another incarnation, or the first.
    Incarnation,
    /// Only its liveness.
    State,
}

/// By what a node knows its own record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Own {
    pub(crate) incarnation: Incarnation,
    pub(crate) nonce: u64,
    pub(crate) record_version: u64,
}

impl Own {
    /// Whether somebody else wrote a record of the own seat: a later life, another claimer that chose the same
    /// number, or a copy of this very process.
    fn is_overtaken_by(&self, record: &SeatRecord) -> bool {
        let twin = record.nonce != self.nonce || record.record_version > self.record_version;
        record.incarnation > self.incarnation || (record.incarnation == self.incarnation && twin)
    }
}

#[derive(Debug)]
pub(crate) struct Directory {
    volume: VolumeId,
    geometry: Geometry,
    own: SeatId,
    pub(crate) peers: Vec<Option<Peer>>,
    /// Per seat and copy: what the copy looked like when it was last decoded.
    seen: Vec<[Option<(Incarnation, u64, u64)>; 2]>,
    /// Per seat: looks at a sealed record that no node of this version writes.
    odd: Vec<u32>,
    /// What was found of such, to be told.
    pub(crate) oddities: Vec<(SeatId, &'static str)>,
    /// Looks in a row in which the own seat held another volume's record.
    foreign: u32,
    /// Time during which this node could have heard its peers.
    watch: Duration,
    read_at: Option<Time>,
}

/// Why the own seat is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    /// This incarnation sits in it.
    Seat(Incarnation),
    /// A node of another volume sits in it: what stood here was formatted anew.
    Volume,
}

/// Whether a peer's word of an incarnation shows that it came after `than`. No seat has so many lives that it
/// could be further away: that would be the word of a peer that is broken.
pub(crate) fn is_later(seen: Incarnation, than: Incarnation) -> bool {
    seen > than && seen.0 - than.0 < LIVES_MAX
}

impl Directory {
    pub(crate) fn new(volume: VolumeId, geometry: Geometry, own: SeatId) -> Self {
        let seats = usize::from(geometry.seats);
        Self {
            volume,
            geometry,
            own,
            peers: (0..seats).map(|_| None).collect(),
            seen: alloc::vec![[None; 2]; seats],
            odd: alloc::vec![0; seats],
            oddities: Vec::new(),
            foreign: 0,
            watch: Duration::ZERO,
            read_at: None,
        }
    }

    pub(crate) fn peer(&self, seat: SeatId) -> Option<&Peer> {
        self.peers.get(usize::from(seat.0))?.as_ref()
    }

    /// How many seats a quick look must cover: all that were ever taken, and two for newcomers, who
    /// take the lowest free one.
    pub(crate) fn seats_in_use(&self) -> u16 {
        let last = self.peers.iter().rposition(Option::is_some).unwrap_or(0);
        (last.max(usize::from(self.own.0)) as u16 + 3).min(self.geometry.seats)
    }

    /// Takes a read of the first seats' records in. `healthy` says that this node's own writes
    /// succeed. Puts each seat of which something is new into `changes`; answers to whom the own seat was lost.
    pub(crate) fn handle_read(
        &mut self,
        now: Time,
        bytes: &[u8],
        healthy: bool,
        own: &Own,
        changes: &mut Vec<(SeatId, Change)>,
    ) -> Option<Lost> {
        let step = now
            .since(self.read_at.replace(now).unwrap_or(now))
            .min(STEP_MAX);
        if healthy {
            self.watch += step;
        }
        let record_bytes = usize::from(self.geometry.record_units) * UNIT_BYTES;
        let mut fenced_by = None;
        let foreign_before = self.foreign;
        for (index, pair) in bytes.chunks_exact(2 * record_bytes).enumerate() {
            let seat = SeatId(index as u16);
            for (copy, bytes) in pair.chunks_exact(record_bytes).enumerate() {
                let look = SeatRecord::peek(bytes);
                if look.is_none() || look == self.seen[index][copy] {
                    continue;
                }
                let Some(record) = self.decode(bytes, seat) else {
                    continue;
                };
                self.odd[index] = 0;
                self.seen[index][copy] = look;
                if record.state == SeatState::Claiming {
                    continue;
                }
                if seat == self.own {
                    if own.is_overtaken_by(&record) {
                        fenced_by = fenced_by.max(Some(record.incarnation));
                    }
                    continue;
                }
                if let Some(change) = self.take(index, record) {
                    changes.push((seat, change));
                }
            }
            if self.judge(index) {
                changes.push((seat, Change::State));
            }
        }
        if self.foreign == foreign_before {
            self.foreign = 0;
        } else if self.foreign >= FOREIGN_LOOKS {
            return Some(Lost::Volume);
        }
        let by = fenced_by.max(self.word_of_peers(own.incarnation))?;
        Some(Lost::Seat(by))
    }

    /// A successor that peers have seen in the own seat: what stood there may have been overwritten by this
    /// node itself, late. More of the living must have seen it than still see this node, so that one that
    /// lies ends nobody else's life.
    fn word_of_peers(&self, own: Incarnation) -> Option<Incarnation> {
        let (mut later, mut by, mut same) = (None, 0, 0);
        let living = |peer: &&Peer| peer.state == PeerState::Up;
        for peer in self.peers.iter().flatten().filter(living) {
            let link = peer.record.links.get(usize::from(self.own.0));
            let seen = link.map_or(Incarnation(0), |link| link.peer_incarnation);
            if is_later(seen, own) {
                later = later.max(Some(seen));
                by += 1;
            } else if seen == own {
                same += 1;
            }
        }
        later.filter(|_| by > same)
    }

    /// A copy that is torn or late is simply not there yet. One that stays what this node cannot take for a
    /// record is told.
    fn decode(&mut self, bytes: &[u8], seat: SeatId) -> Option<SeatRecord> {
        let damage = match SeatRecord::decode(bytes, self.volume, &self.geometry, seat) {
            Ok(record) => return Some(record),
            Err(damage) => damage,
        };
        let what = match damage {
            Damage::Version(_) => "a seat record of another format version: update one of the two",
            Damage::Volume(_) => {
                self.foreign += u32::from(seat == self.own);
                "a seat record of another volume"
            }
            Damage::Field(_) | Damage::Name(..) | Damage::Features(_) => {
                "a seat record with impossible values"
            }
            Damage::Blank | Damage::Magic | Damage::Checksum | Damage::Length(_) => return None,
        };
        let odd = &mut self.odd[usize::from(seat.0)];
        *odd = odd.saturating_add(1);
        if *odd == ODD_LOOKS {
            self.oddities.push((seat, what));
        }
        None
    }

    fn take(&mut self, index: usize, record: SeatRecord) -> Option<Change> {
        let known = &mut self.peers[index];
        let mut outlived = None;
        let change = match known {
            Some(peer) if peer.record.incarnation == record.incarnation => {
                if record.record_version <= peer.record.record_version {
                    return None;
                }
                outlived = peer.outlived;
                Change::Record
            }
            Some(peer) if record.age_key() <= peer.newest() => {
                if !peer.gives_way_to(&record, self.read_at) {
                    return None;
                }
                outlived = Some(peer.newest());
                Change::Incarnation
            }
            _ => Change::Incarnation,
        };
        let beat = match known {
            Some(peer) => {
                change == Change::Incarnation || peer.record.heartbeat != record.heartbeat
            }
            None => true,
        };
        let state = match (record.state, &known) {
            (SeatState::Left, _) => PeerState::Left,
            (_, Some(peer)) if !beat => peer.state,
            _ => PeerState::Up,
        };
        let heard = match &known {
            Some(peer) if !beat => peer.heard,
            _ => self.watch,
        };
        let (moved, found_at) = match &known {
            Some(peer) if change == Change::Record => {
                let later = peer.found_at != self.read_at;
                (peer.moved || beat && later, peer.found_at)
            }
            _ => (false, self.read_at),
        };
        let before = known.as_ref().map(|peer| peer.state);
        *known = Some(Peer {
            record,
            state,
            moved,
            found_at,
            heard,
            outlived,
            earlier: None,
        });
        // A change of both is told as the greater one; `judge` tells states that time brings.
        match change {
            Change::Record if before != Some(state) => Some(Change::State),
            change => Some(change),
        }
    }

    /// Whether a peer's state has changed by the passing of time.
    fn judge(&mut self, index: usize) -> bool {
        let watch = self.watch;
        let Some(peer) = &mut self.peers[index] else {
            return false;
        };
        let silent = watch.saturating_sub(peer.heard);
        let limit = |ms: u32| Duration::from_millis(ms.into());
        let state = match peer.state {
            PeerState::Left => PeerState::Left,
            _ if silent >= limit(peer.record.timings.dead_ms) => PeerState::Dead,
            _ if silent >= limit(peer.record.timings.suspect_ms) => PeerState::Suspect,
            _ => PeerState::Up,
        };
        core::mem::replace(&mut peer.state, state) != state
    }
}
