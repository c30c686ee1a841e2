//! The process's engines: groups that mean the same node share one.
//!
//! - At most one shared engine a process for each volume, system and run directory.
//! - Starting one delays nobody who wants another.
//! - A forked child starts anew: what it inherited does not run there.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use stp_format::{SystemName, VolumeId};

use super::error::AttachError;
use super::handle::{EngineConfig, EngineHandle, WeakHandle, start};

#[derive(PartialEq, Eq, Hash)]
struct Key {
    pid: u32,
    volume: VolumeId,
    system: SystemName,
    dir: PathBuf,
}

type Slot = Arc<Mutex<Option<WeakHandle>>>;

static ENGINES: OnceLock<Mutex<HashMap<Key, Slot>>> = OnceLock::new();

/// The process's engine for the configuration's volume, system and run directory; started if there is none.
/// The medium of a configuration that is not needed is closed.
pub fn start_shared(config: EngineConfig) -> Result<EngineHandle, AttachError> {
    let key = Key {
        pid: std::process::id(),
        volume: config.superblock.volume,
        system: *config.dir.system(),
        dir: config.dir.path().to_owned(),
    };
    let slot = {
        let engines = ENGINES.get_or_init(Mutex::default);
        let mut engines = engines.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(engines.entry(key).or_default())
    };
    let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(handle) = slot.as_ref().and_then(WeakHandle::upgrade) {
        return Ok(handle);
    }
    let handle = start(config)?;
    *slot = Some(handle.downgrade());
    Ok(handle)
}
