//! Places: where the programs' TCP sockets of this system listen, port by port.
//!
//! - A port here is held in the run directory as any listener's is: programs with the library find it in use, and
//!   reach it.
//! - They are written down, so that the next engine publishes what still listens.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::net::SocketAddr;

use crate::engine::Place;
use crate::rendezvous::{PortSocket, SystemDir, read_file};

/// Places of one port.
pub(super) const PLACES_MAX: usize = 16;

/// What this engine leaves for the next one.
const LISTENERS: &str = "run.listeners";

#[derive(Debug)]
struct Port {
    places: Vec<Place>,
    held: PortSocket,
}

/// All places.
#[derive(Debug)]
pub(super) struct Places {
    dir: SystemDir,
    by_port: BTreeMap<u16, Port>,
}

impl Places {
    /// None yet.
    pub(super) fn new(dir: &SystemDir) -> Self {
        Self {
            dir: dir.clone(),
            by_port: BTreeMap::new(),
        }
    }

    /// Adds a place; the places of its port in the order in which they are tried. `AddrInUse` if another listener has the
    /// port.
    pub(super) fn add(&mut self, place: Place) -> io::Result<Vec<Place>> {
        let number = place.at.port();
        let port = match self.by_port.entry(number) {
            std::collections::btree_map::Entry::Occupied(found) => found.into_mut(),
            std::collections::btree_map::Entry::Vacant(free) => free.insert(Port {
                places: Vec::new(),
                held: PortSocket::bind(&self.dir, number)?,
            }),
        };
        if !port.places.contains(&place) {
            if port.places.len() >= PLACES_MAX {
                let what = format!("port {number} has {PLACES_MAX} listeners already");
                return Err(io::Error::new(io::ErrorKind::QuotaExceeded, what));
            }
            port.places.push(place);
            port.places.sort_by_key(rank);
        }
        let places = port.places.clone();
        self.save();
        Ok(places)
    }

    /// Removes a place; what its port has left, `None` if it is not there.
    pub(super) fn remove(&mut self, at: SocketAddr) -> Option<Vec<Place>> {
        let port = self.by_port.get_mut(&at.port())?;
        let before = port.places.len();
        port.places.retain(|place| place.at != at);
        if port.places.len() == before {
            return None;
        }
        let left = port.places.clone();
        if left.is_empty() {
            self.by_port.remove(&at.port());
        }
        self.save();
        Some(left)
    }

    /// The places of a port.
    pub(super) fn of(&self, port: u16) -> &[Place] {
        self.by_port.get(&port).map_or(&[], |port| &port.places)
    }

    /// The port's socket in the run directory.
    pub(super) fn held(&self, port: u16) -> Option<&PortSocket> {
        self.by_port.get(&port).map(|port| &port.held)
    }

    /// All of those.
    pub(super) fn all_held(&self) -> impl Iterator<Item = (u16, &PortSocket)> {
        let all = self.by_port.iter();
        all.map(|(port, found)| (*port, &found.held))
    }

    /// How many ports there are.
    pub(super) fn ports(&self) -> usize {
        self.by_port.len()
    }

    /// Those that do not listen any more.
    pub(super) fn gone(&self, listening: &HashSet<SocketAddr>) -> Vec<SocketAddr> {
        let all = self.by_port.values().flat_map(|port| &port.places);
        all.map(|place| place.at)
            .filter(|at| !listening.contains(at))
            .collect()
    }

    /// What an engine before this one wrote down.
    pub(super) fn left_behind(&self) -> Vec<Place> {
        let text = read_file(&self.dir.note(LISTENERS)).unwrap_or_default();
        text.lines().filter_map(parse).collect()
    }

    /// Losing the file costs only what the next engine would know: a failure is no one's error.
    fn save(&self) {
        let all = self.by_port.values().flat_map(|port| &port.places);
        let text: String = all
            .map(|place| format!("{} {}\n", place.at, u8::from(place.v6_only)))
            .collect();
        if let Err(error) = self.dir.leave_note(LISTENERS, &text) {
            tracing::debug!(system = %self.dir.system(), %error, "listeners are not written down");
        }
    }
}

/// IPv4 and what takes IPv4 first: there the kernel tells who connects.
fn rank(place: &Place) -> (bool, bool) {
    (place.v6_only, !place.at.ip().is_unspecified())
}

fn parse(line: &str) -> Option<Place> {
    let (at, v6_only) = line.split_once(' ')?;
    Some(Place {
        at: at.parse().ok().filter(|at: &SocketAddr| at.port() != 0)?,
        v6_only: v6_only == "1",
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rendezvous::RunDir;
    use stp_format::VolumeId;

    fn place(at: &str, v6_only: bool) -> Place {
        let at = at.parse().unwrap();
        Place { at, v6_only }
    }

    #[test]
    fn a_port_is_held_as_long_as_one_of_its_places_is_there() {
        let root = tempfile::tempdir().unwrap();
        let run = RunDir::open(&root.path().join("run")).unwrap();
        let dir = run
            .system(VolumeId([1; 16]), &"alpha".parse().unwrap())
            .unwrap();
        let mut places = Places::new(&dir);
        let (v6, v4) = (place("[::1]:7000", true), place("127.0.0.1:7000", false));
        assert_eq!(places.add(v6).unwrap(), [v6]);
        assert_eq!(places.add(v4).unwrap(), [v4, v6]);
        assert_eq!(places.add(v4).unwrap(), [v4, v6]);
        assert!(PortSocket::bind(&dir, 7000).is_err());
        assert_eq!(Places::new(&dir).left_behind(), [v4, v6]);
        assert_eq!(places.gone(&HashSet::from([v4.at])), [v6.at]);
        assert_eq!(places.remove(v4.at), Some(vec![v6]));
        assert_eq!(places.remove(v4.at), None);
        assert_eq!(places.remove(v6.at), Some(vec![]));
        let library = PortSocket::bind(&dir, 7000).unwrap();
        let taken = places.add(v4).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
        assert_eq!((places.ports(), places.of(7000).len()), (0, 0));
        drop(library);
        std::fs::write(
            dir.path().join("run.listeners"),
            "x\n1.2.3.4:0 0\n[::]:5 1\n",
        )
        .unwrap();
        assert_eq!(places.left_behind(), [place("[::]:5", true)]);
    }
}
