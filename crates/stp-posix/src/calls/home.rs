//! The group that this process's sockets belong to: opened by the first call that needs the volume.
//!
//! - What it is opened with comes from `STPsetopt` before that, else from the environment.
//! - A forked child opens it anew when it needs the volume itself; what it inherited it never ends.
//! - `exit` closes what is open, as it does for kernel sockets, and waits until that is delivered.
//! - Threads that the library starts take no signals: those are the program's.

use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::time::Duration;

use stp::{EngineChoice, Group, GroupName};

use super::fault::{Code, Fault, Outcome};
use super::table;

/// What the group is opened with.
#[derive(Clone, Debug, Default)]
pub(super) struct Settings {
    /// The volume, else `STP_VOLUME`.
    pub volume: Option<String>,
    /// This system's name, else `STP_SYSTEM`, else the host's.
    pub system: Option<String>,
    /// The run directory.
    pub run_dir: Option<String>,
    /// The group that the volume must hold.
    pub group: Option<String>,
    /// Where the engine runs.
    pub engine: EngineChoice,
    /// The longest interval between two looks.
    pub poll: Option<Duration>,
    /// The most looks a second.
    pub poll_iops: Option<u32>,
    /// Bytes that a peer may send ahead.
    pub window: Option<u64>,
    /// Extents of a ring.
    pub ring: Option<u16>,
    /// Silence after which this program's engine is given up.
    pub dead_after: Option<Duration>,
}

#[derive(Default)]
struct Home {
    settings: Settings,
    open: Option<(u32, Group)>,
}

/// A forked child gets a new one: the lock may be another thread's at the moment of the `fork`.
static HOME: AtomicPtr<Mutex<Home>> = AtomicPtr::new(std::ptr::null_mut());

fn place() -> &'static Mutex<Home> {
    let mut place = HOME.load(Ordering::Acquire);
    if place.is_null() {
        let fresh = Box::into_raw(Box::default());
        match HOME.compare_exchange(place, fresh, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => place = fresh,
            Err(others) => {
                // SAFETY: nobody else has seen it.
                drop(unsafe { Box::from_raw(fresh) });
                place = others;
            }
        }
    }
    // SAFETY: made by `Box::into_raw` and never freed.
    unsafe { &*place }
}

fn lock() -> MutexGuard<'static, Home> {
    place().lock().unwrap_or_else(PoisonError::into_inner)
}

/// Just after a `fork`, in the child. What the parent has open stays behind, untouched.
pub(super) fn in_child() {
    let parents = place();
    let settings = match parents.try_lock() {
        Ok(home) => home.settings.clone(),
        // Another thread was opening the group: the environment has to do.
        Err(_) => Settings::default(),
    };
    let home = Home {
        settings,
        open: None,
    };
    HOME.store(Box::into_raw(Box::new(Mutex::new(home))), Ordering::Release);
}

/// Changes what the group will be opened with.
pub(super) fn change(change: impl FnOnce(&mut Settings)) -> Outcome<()> {
    let mut home = lock();
    if home.open.is_some() {
        return Err(Fault::new(
            libc::EBUSY,
            Code::Option,
            "the group is open already: set this before the first socket is bound or connected",
        ));
    }
    change(&mut home.settings);
    Ok(())
}

/// What the group is or will be opened with.
pub(super) fn settings() -> Settings {
    lock().settings.clone()
}

/// The group, if it is open.
pub(super) fn opened() -> Option<Group> {
    lock().open.as_ref().map(|(_, group)| group.clone())
}

/// The group; opened if it is not.
pub(super) fn group() -> Outcome<Group> {
    let mut home = lock();
    let pid = std::process::id();
    if let Some((opener, group)) = &home.open
        && *opener == pid
    {
        return Ok(group.clone());
    }
    // A child that was made without the handlers of `fork`: the parent's stays.
    if let Some(parents) = home.open.take() {
        std::mem::forget(parents);
    }
    let group = without_signals(|| open(&home.settings))?;
    home.open = Some((pid, group.clone()));
    drop(home);
    static AT_EXIT: Once = Once::new();
    AT_EXIT.call_once(|| {
        // SAFETY: the function is of the right kind and lives as long as the library.
        let _ = unsafe { libc::atexit(at_exit) };
    });
    Ok(group)
}

fn open(settings: &Settings) -> Outcome<Group> {
    let named = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
    let volume = settings.volume.clone().or_else(|| named("STP_VOLUME"));
    let mut builder = Group::builder(volume.ok_or(stp::Error::NoVolume)?).engine(settings.engine);
    if let Some(system) = &settings.system {
        builder = builder.system(system);
    }
    if let Some(run_dir) = &settings.run_dir {
        builder = builder.run_dir(run_dir);
    }
    if let Some(group) = &settings.group {
        let name = group.parse::<GroupName>().map_err(|why| {
            let text = format!("{group:?} cannot be a group's name: {why}");
            Fault::new(libc::EINVAL, Code::Group, text)
        })?;
        builder = builder.group(name);
    }
    if let Some(longest) = settings.poll {
        builder = builder.poll_interval(longest);
    }
    if let Some(most) = settings.poll_iops {
        builder = builder.poll_iops(most);
    }
    if let Some(bytes) = settings.window {
        builder = builder.window(bytes);
    }
    if let Some(most) = settings.ring {
        builder = builder.ring_extents(most);
    }
    if let Some(silence) = settings.dead_after {
        builder = builder.dead_after(silence);
    }
    Ok(builder.open()?)
}

/// Runs `work` with every signal blocked; threads that it starts keep that.
pub(super) fn without_signals<T>(work: impl FnOnce() -> T) -> T {
    struct Restore(libc::sigset_t);
    impl Drop for Restore {
        fn drop(&mut self) {
            // SAFETY: the set was filled by the same call.
            unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.0, std::ptr::null_mut()) };
        }
    }
    // SAFETY: both sets are plain data that the calls fill.
    let _restore = unsafe {
        let (mut all, mut before) = (std::mem::zeroed(), std::mem::zeroed());
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
        Restore(before)
    };
    work()
}

extern "C" fn at_exit() {
    // Nothing may unwind into the C library's exit.
    let _ = std::panic::catch_unwind(|| {
        // Also in a forked child that has only used what it inherited.
        table::close_all();
        // Another thread may hold the lock for long; then the engine ends as in a crash.
        let open = match place().try_lock() {
            Ok(mut home) => home.open.take(),
            Err(_) => return,
        };
        let Some((pid, group)) = open else {
            return;
        };
        if pid != std::process::id() {
            std::mem::forget(group);
            return;
        }
        // The last one: the engine delivers what is closed, within its linger time.
        drop(group);
    });
}
