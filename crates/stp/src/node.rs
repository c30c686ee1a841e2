//! The way to an engine: embedded in this process, or shared by the host.
//!
//! - One control connection a process for each shared engine, and one node a process for each volume, system
//!   and run directory; groups, listeners and streams share them, and the last of these ends them.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use stp_host::control::{Calls, Client};
use stp_host::engine::{EngineConfig, start_shared};
use stp_host::rendezvous::{RunDir, SystemDir};
use stp_medium::VolumeSpec;

use crate::error::Error;
use crate::group::{EngineChoice, Tuning};

/// The shortest silence after which a node may be given up.
const DEAD_AFTER_MIN: Duration = Duration::from_secs(1);

/// The longest interval between two looks that makes sense: heartbeats are a second apart.
const POLL_MAX_MOST: Duration = Duration::from_secs(1);

/// The smallest window: a segment's worth.
const WINDOW_LEAST: u64 = 64 << 10;

/// Runs `work` on a thread that ends with it.
///
/// The kernel interrupts every thread that has used an io_uring when that ring goes. A thread of the program
/// must not: its system calls would fail with `Interrupted` for no reason of its own.
pub(crate) fn aside<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, Error> {
    thread::scope(|scope| {
        let helper = thread::Builder::new()
            .name("stp-open".to_owned())
            .spawn_scoped(scope, work)
            .map_err(Error::NoThread)?;
        match helper.join() {
            Ok(done) => Ok(done),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Finds or starts the engine of `dir`.
pub(crate) fn attach(
    spec: &VolumeSpec,
    run: &RunDir,
    dir: &SystemDir,
    choice: EngineChoice,
    tuning: Tuning,
) -> Result<Arc<dyn Calls>, Error> {
    if choice != EngineChoice::Embedded {
        let found = shared(dir).map_err(|source| failed(spec, dir, source))?;
        if let Some(client) = found {
            return Ok(client);
        }
        if choice == EngineChoice::Shared {
            return Err(Error::NoSharedEngine {
                volume: spec.to_string().into(),
                system: *dir.system(),
                socket: dir.engine_socket(),
            });
        }
    }
    embedded(spec, run, dir, tuning)
}

fn failed(spec: &VolumeSpec, dir: &SystemDir, source: io::Error) -> Error {
    Error::Engine {
        volume: spec.to_string().into(),
        system: *dir.system(),
        source,
    }
}

/// The connection to the shared engine, if one runs.
fn shared(dir: &SystemDir) -> io::Result<Option<Arc<Client>>> {
    // A forked child is another process: it connects anew.
    type Clients = HashMap<(u32, PathBuf), Weak<Client>>;
    static CLIENTS: Mutex<Option<Clients>> = Mutex::new(None);
    let mut clients = CLIENTS.lock().unwrap_or_else(PoisonError::into_inner);
    let clients = clients.get_or_insert_default();
    clients.retain(|_, client| client.strong_count() > 0);
    let key = (std::process::id(), dir.engine_socket());
    if let Some(client) = clients.get(&key).and_then(Weak::upgrade)
        && client.is_connected()
    {
        return Ok(Some(client));
    }
    let Some(client) = Client::connect(dir)? else {
        return Ok(None);
    };
    let client = Arc::new(client);
    clients.insert(key, Arc::downgrade(&client));
    Ok(Some(client))
}

/// This process's own engine; started if there is none.
fn embedded(
    spec: &VolumeSpec,
    run: &RunDir,
    dir: &SystemDir,
    tuning: Tuning,
) -> Result<Arc<dyn Calls>, Error> {
    let host = run.host_id()?;
    let handle = aside(|| {
        let volume = stp_host::volume::open(spec)?;
        let superblock = *volume.superblock();
        let medium = volume.into_medium();
        let mut config = EngineConfig::new(medium, spec.to_string(), superblock, dir.clone(), host);
        if let Some(silence) = tuning.dead_after {
            // Suspicion comes well before the end, and several heartbeats before suspicion.
            let timings = &mut config.timings;
            timings.dead = silence.max(DEAD_AFTER_MIN);
            timings.suspect = timings.suspect.min(timings.dead / 2);
            timings.heartbeat = timings.heartbeat.min(timings.suspect / 4);
        }
        if let Some(longest) = tuning.poll_max {
            let timings = &mut config.timings;
            timings.poll_max = longest.clamp(timings.poll_min, POLL_MAX_MOST);
            timings.poll_idle = timings.poll_max;
        }
        if let Some(most) = tuning.poll_iops {
            config.timings.poll_iops = most;
        }
        if let Some(bytes) = tuning.window_max {
            let limits = &mut config.limits;
            limits.window_max = bytes.max(WINDOW_LEAST);
            limits.window_start = limits.window_start.min(limits.window_max);
        }
        if let Some(most) = tuning.ring_extents {
            config.limits.ring_extents = most.max(1);
        }
        start_shared(config).map_err(|error| failed(spec, dir, error.into()))
    })??;
    Ok(Arc::new(handle))
}
