//! The storage with nothing around it: what measurements compare with.
//!
//! - Each call is one system call, or one copy of mapped memory: no protocol, no queue, no checksum.
//! - Writes go to one [`Window`] only, which lies in the extents of one seat: its node must be the caller's
//!   own, with no link there.
//! - Not for carrying anything: nothing here validates, orders or repeats.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use stp_format::{Geometry, Place, SeatId, UNIT_BYTES};

use crate::mapped::Map;
use crate::spec::{OpenError, open_bare};
use crate::storage::Writable;
use crate::{Kind, VolumeSpec};

/// A run of extents of one seat, as bytes of the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    start: u64,
    len: u64,
}

impl Window {
    /// The last `extents` extents of a seat, which its node gives to links last; `None` if it has not so many.
    pub fn last_extents(geometry: &Geometry, seat: SeatId, extents: u16) -> Option<Self> {
        let first = geometry.extents.checked_sub(extents)?;
        let place = Place::Slot {
            seat,
            ring: geometry.ring(first, extents),
            slot: 0,
            skip: 0,
        };
        let extent_bytes = u64::from(geometry.extent_units) * UNIT_BYTES as u64;
        Some(Self {
            start: geometry.offset(place, 1)?,
            len: u64::from(extents) * extent_bytes,
        })
    }

    /// Its bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn place(&self, at: u64, len: usize) -> io::Result<u64> {
        let inside = at
            .checked_add(len as u64)
            .is_some_and(|end| end <= self.len);
        if inside {
            Ok(self.start + at)
        } else {
            Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a place outside the window",
            ))
        }
    }
}

enum Way {
    Calls,
    Map(Map),
}

/// An open storage.
pub struct Bare {
    file: Arc<File>,
    way: Way,
    own: Window,
}

impl Bare {
    /// Opens a volume's storage for reading anywhere and writing into `own`. A storage that refuses
    /// `O_DIRECT` is refused.
    pub fn open(spec: &VolumeSpec, own: Window) -> Result<Self, OpenError> {
        let (kind, file) = open_bare(spec)?;
        let failed = |error| OpenError::of(spec, error, crate::Access::ReadWrite);
        let way = match kind {
            Kind::Mapped => Way::Map(Map::new(&file, Writable::Yes).map_err(failed)?),
            Kind::File | Kind::Block => Way::Calls,
        };
        let file = Arc::new(file);
        Ok(Self { file, way, own })
    }

    /// Whether it is memory: then a look costs nothing but a load.
    pub fn is_memory(&self) -> bool {
        matches!(self.way, Way::Map(_))
    }

    /// Lengths and places are multiples of this.
    pub fn grain_bytes(&self) -> usize {
        match self.way {
            Way::Calls => UNIT_BYTES,
            Way::Map(_) => size_of::<u64>(),
        }
    }

    /// Writes to a place of the own window. The buffer of a direct write must lie at a whole unit.
    pub fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let offset = self.own.place(at, bytes.len())?;
        match &self.way {
            Way::Calls => self.file.write_all_at(bytes, offset),
            Way::Map(map) => {
                held(map, offset, bytes.len())?;
                map.copy_in(offset as usize, bytes);
                Ok(())
            }
        }
    }

    /// Reads from a place of a window.
    pub fn read(&self, window: &Window, at: u64, into: &mut [u8]) -> io::Result<()> {
        let offset = window.place(at, into.len())?;
        match &self.way {
            Way::Calls => self.file.read_exact_at(into, offset),
            Way::Map(map) => {
                held(map, offset, into.len())?;
                map.copy_out(offset as usize, into);
                Ok(())
            }
        }
    }
}

fn held(map: &Map, offset: u64, len: usize) -> io::Result<()> {
    let whole =
        offset.is_multiple_of(size_of::<u64>() as u64) && len.is_multiple_of(size_of::<u64>());
    if whole && map.holds(offset, len) {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "part of a word, or behind the end of the volume",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_stay_in_the_window() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("volume");
        let geometry = Geometry::plan(1 << 20, 2).unwrap();
        std::fs::write(&path, vec![0; 1 << 20]).unwrap();
        let spec: VolumeSpec = path.display().to_string().parse().unwrap();
        let own = Window::last_extents(&geometry, SeatId(0), 2).unwrap();
        let bare = match Bare::open(&spec, own) {
            Ok(bare) => bare,
            // A file system without O_DIRECT has no floor to measure.
            Err(error) => return assert!(error.to_string().contains("O_DIRECT"), "{error}"),
        };
        let mut unit = stp_format::UnitBuf::zeroed(1);
        unit.bytes_mut().fill(7);
        bare.write(0, unit.bytes()).unwrap();
        bare.write(own.len() - UNIT_BYTES as u64, unit.bytes())
            .unwrap();
        assert!(bare.write(own.len(), unit.bytes()).is_err());
        assert!(bare.write(u64::MAX, unit.bytes()).is_err());
        let written = std::fs::read(&path).unwrap();
        let other = Window::last_extents(&geometry, SeatId(1), 2).unwrap();
        for (at, byte) in written.iter().enumerate() {
            let at = at as u64;
            let inside = (own.start..own.start + own.len).contains(&at);
            assert!(*byte == 0 || inside, "byte {at}");
        }
        bare.read(&own, 0, unit.bytes_mut()).unwrap();
        assert_eq!(unit.bytes()[..8], [7; 8]);
        bare.read(&other, 0, unit.bytes_mut()).unwrap();
        assert_eq!(unit.bytes()[..8], [0; 8]);
        assert_eq!(Window::last_extents(&geometry, SeatId(0), u16::MAX), None);
    }
}
