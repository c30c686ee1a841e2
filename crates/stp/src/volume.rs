//! What the library needs to know of a volume before it has an engine.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use stp_format::superblock::Superblock;
use stp_format::{GroupName, UNIT_BYTES, VolumeId};

/// A volume's identity and its group's name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identity {
    pub(crate) id: VolumeId,
    pub(crate) group: GroupName,
}

/// Reads the superblock at `path`.
pub(crate) fn identify(path: &Path) -> io::Result<Identity> {
    let mut unit = vec![0; UNIT_BYTES];
    File::open(path)?.read_exact(&mut unit)?;
    let superblock = Superblock::decode(&unit)
        .map_err(|damage| io::Error::new(io::ErrorKind::InvalidData, damage.to_string()))?;
    Ok(Identity {
        id: superblock.volume,
        group: superblock.group,
    })
}
