//! Locks on files of the run directory.
//!
//! - The kernel gives a lock back when its holder is gone; the file itself stays.
//! - Nobody waits for one without end: who may open the file may hold it as long as he likes.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::files::{AS_IT_IS, shared_as_its_folder};

/// How often, and how far apart, a lock is tried that others may only look at.
const LOOKS_MAX: u32 = 20;
const LOOK: Duration = Duration::from_millis(5);
/// How long, and how far apart, a lock is tried that everybody holds for a moment only.
const LOCK_WAIT: Duration = Duration::from_secs(1);
const LOCK_PAUSE: Duration = Duration::from_millis(1);

/// A lock on a file, let go of when dropped; the kernel gives it back when its holder is gone. The file itself stays.
/// A process forked meanwhile has the file open as well: it neither keeps the lock nor lets go of it.
#[derive(Debug)]
pub struct FileLock {
    /// `None` once it is somebody else's.
    file: Option<File>,
    pid: u32,
}

impl FileLock {
    fn open(path: &Path) -> io::Result<File> {
        let open = |new: bool| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(new)
                .mode(0o600)
                .custom_flags(AS_IT_IS)
                .open(path)
        };
        let opened = match open(false) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => match open(true) {
                Ok(file) => shared_as_its_folder(path).map(|()| file),
                // Somebody else was first.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => open(false),
                made => made,
            },
            found => found,
        };
        opened.map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))
    }

    fn held(file: File) -> Self {
        Self {
            file: Some(file),
            pid: std::process::id(),
        }
    }

    /// Takes the lock at `path`; waits for it, but no longer than [`LOCK_WAIT`]: a member of the group may hold it for ever.
    pub(super) fn take(path: &Path) -> io::Result<Self> {
        let file = Self::open(path)?;
        let until = Instant::now() + LOCK_WAIT;
        while !try_lock(&file)? {
            if Instant::now() >= until {
                let text = format!(
                    "{}: another process holds this lock and does not let go of it; `fuser` tells which: end it",
                    path.display()
                );
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, text));
            }
            std::thread::sleep(LOCK_PAUSE);
        }
        Ok(Self::held(file))
    }

    /// Takes the lock at `path`; `None` if another holds it.
    pub(super) fn try_take(path: &Path) -> io::Result<Option<Self>> {
        let file = Self::open(path)?;
        Ok(try_lock(&file)?.then(|| Self::held(file)))
    }

    /// The same for whoever means to keep it: one that only looks whether it is held has it for a moment, too.
    pub(super) fn try_keep(path: &Path) -> io::Result<Option<Self>> {
        for _ in 0..LOOKS_MAX {
            if let Some(lock) = Self::try_take(path)? {
                return Ok(Some(lock));
            }
            std::thread::sleep(LOOK);
        }
        Self::try_take(path)
    }

    /// The file, which holds the lock as long as any process has it open.
    pub fn into_file(mut self) -> Option<File> {
        self.file.take()
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        if let Some(file) = &self.file
            && self.pid == std::process::id()
        {
            let _ = flock(file, FlockOperation::Unlock);
        }
    }
}

/// Whether this open file has the lock now.
fn try_lock(file: &File) -> io::Result<bool> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK | Errno::INTR) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_goes_with_its_holder_though_a_forked_child_has_the_file() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("lock");
        let held = FileLock::take(&path).unwrap();
        // What a child has: the same open file.
        let copy = || held.file.as_ref().unwrap().try_clone().unwrap();
        let (file, pid) = (Some(copy()), std::process::id() + 1);
        drop(FileLock { file, pid });
        assert!(FileLock::try_take(&path).unwrap().is_none());
        let childs = copy();
        drop(held);
        let again = FileLock::take(&path).unwrap();
        // Whoever never lets go of it stops nobody for ever.
        let error = FileLock::take(&path).unwrap_err();
        assert!(error.to_string().contains("fuser"), "{error}");
        // Handed on, it is the file's.
        let file = again.into_file();
        assert!(FileLock::try_take(&path).unwrap().is_none());
        drop((file, childs));
        assert!(FileLock::try_take(&path).unwrap().is_some());
    }
}
