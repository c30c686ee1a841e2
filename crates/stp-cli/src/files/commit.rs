//! Complete files on their way to storage and to their names.
//!
//! - A file takes its name when its contents and attributes are on storage; its sender hears that it is in place when the
//!   name is on storage too.
//! - Many small files share one wait.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};

use super::link::{Broken, MessageWriter};
use super::paths;
use super::report::Report;
use super::target::{self, Folder, Partial, Source};
use super::wire::{Fault, Kind, Message};

/// Files that may be complete and not yet in place.
pub(super) const COMMIT_MAX: usize = 64;
/// From this many on, the whole file system is synchronised once instead of each file or folder.
const TOGETHER_MIN: usize = 8;

/// A complete file.
pub(super) struct Commit {
    pub(super) id: u32,
    pub(super) partial: Partial,
    pub(super) dir: Arc<Folder>,
    pub(super) name: Vec<u8>,
    pub(super) key: Vec<u8>,
    pub(super) mode: u32,
    pub(super) source: Source,
}

/// One that has its name, or will not get it.
struct Placed {
    id: u32,
    dir: Arc<Folder>,
    key: Vec<u8>,
    size: u64,
    result: Result<(), Fault>,
}

/// Puts files in place until no more come, many at once when many wait.
pub(super) fn commit_all(
    commits: mpsc::Receiver<Commit>,
    writer: &Mutex<MessageWriter>,
    report: &dyn Report,
    placed: &AtomicU64,
) -> Result<(), Broken> {
    let mut lost = Ok(());
    while let Ok(first) = commits.recv() {
        let batch = std::iter::once(first).chain(commits.try_iter());
        for done in place(batch.take(COMMIT_MAX).collect()) {
            let id = done.id;
            let answer = match done.result {
                Ok(()) => {
                    placed.fetch_add(1, Ordering::Relaxed);
                    report.done(&done.key, Kind::File, done.size);
                    Message::Done { id }
                }
                Err(fault) => {
                    report.undone(done.size);
                    report.failed(&done.key, &fault);
                    Message::Failed { id, fault }
                }
            };
            if lost.is_ok() {
                lost = lock(writer).put(&answer).map_err(Broken::from);
            }
        }
        if lost.is_ok() {
            lost = lock(writer).flush().map_err(Broken::from);
        }
    }
    lost
}

fn lock(writer: &Mutex<MessageWriter>) -> std::sync::MutexGuard<'_, MessageWriter> {
    writer.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Contents and attributes to storage, then the names, then the names to storage.
fn place(batch: Vec<Commit>) -> Vec<Placed> {
    let attributes: Vec<_> = batch
        .iter()
        .map(|c| target::set_attributes(&c.partial.file, c.mode, c.source.mtime))
        .collect();
    let together = sync_together(batch.iter().map(|c| &c.partial.file));
    let mut placed: Vec<_> = std::iter::zip(batch, attributes)
        .map(|(commit, attributes)| {
            let result = attributes
                .and_then(|()| commit.partial.sync(together))
                .and_then(|()| commit.partial.publish(&commit.name))
                .map_err(|e| paths::fault(e, "cannot finish the file at the target"));
            Placed {
                id: commit.id,
                dir: commit.dir,
                key: commit.key,
                size: commit.source.size,
                result,
            }
        })
        .collect();
    sync_folders(&mut placed);
    placed
}

fn sync_folders(placed: &mut [Placed]) {
    let named = placed.iter().filter(|p| p.result.is_ok());
    let folders: HashMap<_, _> = named.map(|p| (Arc::as_ptr(&p.dir), &p.dir)).collect();
    if sync_together(folders.values().map(|folder| &folder.fd)) {
        return;
    }
    let synced: HashMap<_, _> = folders
        .into_iter()
        .map(|(at, folder)| (at, folder.sync()))
        .collect();
    for placed in placed {
        if let Some(Err(e)) = synced.get(&Arc::as_ptr(&placed.dir)) {
            let fault = paths::fault(*e, "cannot bring its folder at the target to storage");
            placed.result = placed.result.clone().and(Err(fault));
        }
    }
}

/// One synchronisation for all; false if they are few or on different file systems or it failed: then each is asked by itself.
fn sync_together<'a>(fds: impl ExactSizeIterator<Item = &'a OwnedFd>) -> bool {
    if fds.len() < TOGETHER_MIN {
        return false;
    }
    let mut fds = fds.map(|fd| (fd, rustix::fs::fstat(fd).map(|stat| stat.st_dev)));
    let Some((first, Ok(device))) = fds.next() else {
        return false;
    };
    fds.all(|(_, other)| other == Ok(device)) && rustix::fs::syncfs(first).is_ok()
}
