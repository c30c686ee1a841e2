//! The engine's thread: it claims a seat, drives from the helm, and tells of the end.
//!
//! - Its end, however it comes, is told to every handle before the thread is gone.

use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, eventfd};
use stp_core::{Limits, NodeConfig, Timings};

use super::attach::{Attached, attach};
use super::clock::MonotonicClock;
use super::driver::Driver;
use super::error::{AttachError, Stopped};
use super::handle::{EngineConfig, Shared, VolumeInfo};
use super::helm::{Core, Helm, panic_text};
use super::sockets::{HostSockets, Names};
use super::verdict::Verdicts;
use super::wait::{wait_exactly, watch};
use crate::address::Addresses;

/// A running engine's parts, for its handle.
pub(super) struct Started {
    pub(super) shared: Arc<Shared>,
    pub(super) thread: JoinHandle<()>,
    /// Disconnected when the thread has told everybody that it is over.
    pub(super) over: mpsc::Receiver<()>,
}

/// Starts the thread, which claims a seat first; waits until it has one.
///
/// The medium's io_uring is used by that thread alone: the kernel ties a ring to each thread that uses it, and
/// interrupts them all when it goes.
pub(super) fn start(config: EngineConfig) -> Result<Started, AttachError> {
    let (tell, told) = mpsc::sync_channel(1);
    let (tell_over, over) = mpsc::sync_channel::<()>(1);
    let thread = std::thread::Builder::new()
        .name("stp-engine".to_owned())
        .spawn(move || {
            let _tell_over = tell_over;
            match prepare(config) {
                Err(error) => {
                    let _ = tell.send(Err(error));
                }
                Ok((core, shared)) => {
                    shared.helm.begin(core);
                    if tell.send(Ok(Arc::clone(&shared))).is_ok() {
                        drop(tell);
                        run(&shared);
                    }
                }
            }
        })
        .map_err(AttachError::Resources)?;
    match told.recv() {
        Ok(Ok(shared)) => Ok(Started {
            shared,
            thread,
            over,
        }),
        Ok(Err(error)) => {
            let _ = thread.join();
            Err(error)
        }
        Err(mpsc::RecvError) => {
            let what = "the engine failed while it started: this is a bug in stp";
            Err(AttachError::Resources(std::io::Error::other(what)))
        }
    }
}

/// Claims a seat and makes a driver of what there is.
fn prepare(config: EngineConfig) -> Result<(Core, Arc<Shared>), AttachError> {
    let EngineConfig {
        mut medium,
        label,
        superblock,
        dir,
        host,
        timings,
        limits,
        linger: _,
    } = config;
    let clock = MonotonicClock::new();
    let pid = std::process::id();
    let system = *dir.system();
    let (volume, geometry) = (superblock.volume, superblock.geometry);
    medium.set_geometry(geometry);
    let names = Arc::new(Names::new(Addresses::new(volume), system));
    let local = HostSockets::new(Arc::clone(&names)).map_err(AttachError::Resources)?;
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
    let kick: Arc<OwnedFd> =
        Arc::new(eventfd(0, flags).map_err(|errno| AttachError::Resources(errno.into()))?);
    watch(&local, &kick, medium.wait_fd()).map_err(AttachError::Resources)?;
    wait_exactly();
    let timings = Timings {
        looks_free: medium.wait_fd().is_none(),
        ..timings
    };
    let limits = Limits {
        run_bytes: medium.run_bytes(),
        ..limits
    };
    let node = NodeConfig {
        volume,
        geometry,
        system,
        host,
        pid,
        nonce: random()?,
        timings,
        limits,
    };
    let Attached { claimed, lock } = attach(&mut *medium, &clock, node.clone(), &dir, &label)?;
    let seat = claimed.seat;
    tracing::debug!(volume = %label, %system, %seat, "attached");
    let info = VolumeInfo {
        id: volume,
        group: superblock.group,
        geometry,
        label: label.clone(),
        storage: medium.describe(),
    };
    let verdicts = Arc::new(Verdicts::shared());
    let helm = Helm::new(local.epoll(), clock);
    let shared = Arc::new(Shared::new(
        info,
        system,
        seat,
        Arc::clone(&verdicts),
        names,
        kick,
        helm,
    ));
    let last_token = random()?;
    let driver = Driver::new(
        node, claimed, medium, clock, local, verdicts, label, last_token,
    );
    Ok((
        Core {
            driver,
            blind: 0,
            vain: 0,
            shares: false,
            _lock: lock,
        },
        shared,
    ))
}

/// Runs the driver to its end; a panic inside ends in an error for callers, not in a hang.
fn run(shared: &Shared) {
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let stopped = shared.helm.drive(shared);
        drop(shared.helm.end());
        stopped
    }));
    let stopped = outcome.unwrap_or_else(|panic| {
        // What is left of the engine goes, whatever it says.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(shared.helm.end())));
        Stopped::Panicked(panic_text(&*panic))
    });
    match &stopped {
        Stopped::Left => {}
        stopped => tracing::error!("{stopped}"),
    }
    shared.stop(stopped);
}

fn random() -> Result<u64, AttachError> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes)
        .map_err(|error| AttachError::Resources(std::io::Error::other(error)))?;
    Ok(u64::from_ne_bytes(bytes))
}
