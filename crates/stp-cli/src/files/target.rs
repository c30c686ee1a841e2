//! Where received entries are put: folders by descriptor, and partial files that become whole ones at once.
//!
//! - What arrives of `NAME` is kept in `.NAME.stp-partial` until it is complete, verified and on storage; then it is renamed.
//! - Who writes a partial file holds its lock; a second writer of the same target uses a file of its own, and where the file
//!   system has no locks, everybody does.
//! - `.NAME.stp-state` remembers which source a partial file belongs to (size and time), so that it can be continued. It is
//!   kept only for files of [`RESUME_MIN`] and more: smaller ones are sooner sent again.
//! - A folder gets its mode and time when the last entry in it is in place: with its last reference.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;

use super::paths;
use super::wire::{Fault, Kind, Mtime, NAME_MAX};
use crate::sys;

/// Files from this size on can be continued after an interruption.
pub const RESUME_MIN: u64 = 256 << 10;

/// What of a mode is kept: set-user-id, set-group-id and sticky bits are not carried to another system.
pub const MODE_KEPT: u32 = 0o777;

const STATE_MAGIC: &[u8; 8] = b"STPPART1";
/// How often the lock of a partial file is tried whose connection may just be dying, and the looks after which it counts as
/// somebody's who lives: when its file has changed lately. Of one that does not change, the end is waited for: that its host has
/// crashed may take a minute to be known, and what came may be on its way to a slow storage.
const LOCK_WAIT: Duration = Duration::from_millis(100);
const LOCK_LOOKS: usize = 150;
const LOCK_CHANGES: usize = 50;
const LOCK_LOOKS_MAX: usize = 900;
/// How often a partial file may be gone, or another, when its lock was got.
const GONE_MAX: usize = 64;

/// Failures found where no message can be sent: folders that got no mode or time.
pub type Late = Arc<Mutex<Vec<(Vec<u8>, Fault)>>>;

/// A folder that entries are put into.
pub struct Folder {
    /// Its descriptor.
    pub fd: OwnedFd,
    /// Path below the target.
    pub key: Vec<u8>,
    /// Set when the sender has left it; not set for a folder whose transfer was interrupted.
    pub finish: Mutex<Option<(u32, Mtime)>>,
    late: Option<Late>,
    /// Keeps the parents' times from being set before ours.
    parent: Option<Arc<Folder>>,
    /// Its own name is on storage.
    named: AtomicBool,
}

impl Folder {
    /// The target folder itself: keeps its own mode and time.
    pub fn base(fd: OwnedFd) -> Arc<Self> {
        Arc::new(Self {
            fd,
            key: Vec::new(),
            finish: Mutex::new(None),
            late: None,
            parent: None,
            named: AtomicBool::new(true),
        })
    }

    /// Makes or opens a folder in this one, writable for us while it is filled.
    pub fn enter(
        self: &Arc<Self>,
        name: &[u8],
        key: Vec<u8>,
        late: &Late,
    ) -> Result<Arc<Self>, Fault> {
        let made = match rustix::fs::mkdirat(&self.fd, name, Mode::RWXU) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(e) => return Err(paths::fault(e, "cannot make the folder at the target")),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.fd, name, flags, Mode::empty()).map_err(|e| match e {
            Errno::NOTDIR | Errno::LOOP => Fault::new(
                super::wire::Code::NotFolder,
                "the target exists and is not a folder; remove it first",
            ),
            e => paths::fault(e, "cannot open the folder at the target"),
        })?;
        if !made
            && let Ok(stat) = rustix::fs::fstat(&fd)
            && stat.st_mode & 0o700 != 0o700
        {
            // Ours but closed to us, as an earlier copy of a read-only folder left it. If it is not ours, writing will say so.
            let _ = rustix::fs::fchmod(&fd, Mode::from_raw_mode(stat.st_mode & 0o777 | 0o700));
        }
        Ok(Arc::new(Self {
            fd,
            key,
            finish: Mutex::new(None),
            late: Some(Arc::clone(late)),
            parent: Some(Arc::clone(self)),
            named: AtomicBool::new(false),
        }))
    }

    /// Brings the names in this folder to storage, and so that they can be found there, its own.
    pub fn sync(&self) -> Result<(), Errno> {
        if let Some(parent) = &self.parent
            && !self.named.load(Ordering::Relaxed)
        {
            parent.sync()?;
            self.named.store(true, Ordering::Relaxed);
        }
        match rustix::fs::fsync(&self.fd) {
            // Not every file system does that for a folder by itself.
            Err(Errno::INVAL) => rustix::fs::syncfs(&self.fd),
            done => done,
        }
    }

    /// Everything for this folder was sent; it gets these when it is there.
    pub fn leave(&self, mode: u32, mtime: Mtime) {
        *self.finish.lock().unwrap_or_else(PoisonError::into_inner) = Some((mode, mtime));
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let finish = self
            .finish
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let (Some((mode, mtime)), Some(late)) = (finish, &self.late)
            && let Err(e) = set_attributes(&self.fd, mode, mtime)
        {
            let fault = paths::fault(e, "cannot set mode and time of the folder at the target");
            late.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push((self.key.clone(), fault));
        }
    }
}

/// Sets permissions and time of modification.
pub fn set_attributes(fd: &OwnedFd, mode: u32, mtime: Mtime) -> Result<(), Errno> {
    rustix::fs::futimens(fd, &times(mtime))?;
    rustix::fs::fchmod(fd, Mode::from_raw_mode(mode & MODE_KEPT))
}

fn times(mtime: Mtime) -> Timestamps {
    Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: mtime.seconds,
            tv_nsec: mtime.nanos.into(),
        },
    }
}

/// `.NAME` + middle + suffix, shortened to what a name may be.
fn hidden(name: &[u8], middle: &[u8], suffix: &[u8]) -> Vec<u8> {
    if 1 + name.len() + middle.len() + suffix.len() <= NAME_MAX {
        return [b".", name, middle, suffix].concat();
    }
    let hash = blake3::hash(name).to_hex();
    [
        b".",
        &name[..name.len().min(180)],
        b".",
        &hash.as_bytes()[..16],
        middle,
        suffix,
    ]
    .concat()
}

/// The name under which a file's arrived part is kept.
pub fn partial_name(name: &[u8]) -> Vec<u8> {
    hidden(name, b"", paths::PARTIAL_SUFFIX)
}

fn state_name(name: &[u8]) -> Vec<u8> {
    hidden(name, b"", paths::STATE_SUFFIX)
}

fn unique_name(name: &[u8]) -> Result<Vec<u8>, Errno> {
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(|_| Errno::IO)?;
    Ok(hidden(
        name,
        format!(".{:016x}", u64::from_le_bytes(random)).as_bytes(),
        paths::PARTIAL_SUFFIX,
    ))
}

/// Which source a partial file belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// Its size.
    pub size: u64,
    /// Its time of modification.
    pub mtime: Mtime,
}

impl Source {
    fn encode(&self) -> Vec<u8> {
        [
            &STATE_MAGIC[..],
            &self.size.to_le_bytes(),
            &self.mtime.seconds.to_le_bytes(),
            &self.mtime.nanos.to_le_bytes(),
        ]
        .concat()
    }
}

/// A file on its way: locked, invisible under its final name.
pub struct Partial {
    dir: Arc<Folder>,
    /// The data.
    pub file: OwnedFd,
    temp: Vec<u8>,
    state: Option<Vec<u8>>,
    /// Left behind when dropped, to be continued.
    keep: bool,
    written_back: WrittenBack,
}

/// The first failure of writing a file's contents back to storage; locked while one of us waits for it. The kernel tells an
/// open file of a failure once, whoever asks first.
type WrittenBack = Arc<Mutex<Result<(), Errno>>>;

fn lock_written_back(outcome: &WrittenBack) -> MutexGuard<'_, Result<(), Errno>> {
    outcome.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What has come of a file, to be brought to storage while more comes.
pub struct Flush {
    file: OwnedFd,
    written_back: WrittenBack,
}

impl Flush {
    /// Waits for storage; [`Partial::sync`] gives the outcome.
    pub fn run(self) {
        let mut outcome = lock_written_back(&self.written_back);
        *outcome = outcome.and(rustix::fs::fdatasync(&self.file));
    }
}

impl Partial {
    /// What an earlier transfer left of this very source, if anything did. Gives the length that is there.
    pub fn resume(dir: &Arc<Folder>, name: &[u8], source: Source) -> Option<(Self, u64)> {
        if source.size < RESUME_MIN {
            return None;
        }
        let (temp, state) = (partial_name(name), state_name(name));
        // Cheap for the common case that nothing was left.
        paths::look(dir.fd.as_fd(), &state).ok()?;
        let file = lock(dir, &temp, OFlags::empty(), Patience::UntilItsWriterEnds).ok()??;
        let len = u64::try_from(rustix::fs::fstat(&file).ok()?.st_size).ok()?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let remembered = rustix::fs::openat(&dir.fd, &state, flags, Mode::empty()).ok()?;
        let mut bytes = [0; 64];
        let n = rustix::io::read(&remembered, &mut bytes).ok()?;
        if bytes[..n] != source.encode() || len == 0 || len > source.size {
            return None;
        }
        Some((
            Self {
                dir: Arc::clone(dir),
                file,
                temp,
                state: Some(state),
                keep: true,
                written_back: Arc::new(Mutex::new(Ok(()))),
            },
            len,
        ))
    }

    /// An empty one, for a transfer from the beginning.
    pub fn create(dir: &Arc<Folder>, name: &[u8], source: Source) -> Result<Self, Errno> {
        let temp = partial_name(name);
        let Some(file) = lock(dir, &temp, OFlags::CREATE, Patience::None)? else {
            // Somebody else is copying to the same place, or may be: the last one to finish wins, neither harms the other.
            let temp = unique_name(name)?;
            let file = lock(dir, &temp, OFlags::CREATE | OFlags::EXCL, Patience::None)?
                .ok_or(Errno::BUSY)?;
            return Ok(Self {
                dir: Arc::clone(dir),
                file,
                temp,
                state: None,
                keep: false,
                written_back: Arc::new(Mutex::new(Ok(()))),
            });
        };
        let mut partial = Self {
            dir: Arc::clone(dir),
            file,
            temp,
            state: None,
            keep: false,
            written_back: Arc::new(Mutex::new(Ok(()))),
        };
        partial.restart(name, source)?;
        Ok(partial)
    }

    /// Throws away what is there.
    pub fn restart(&mut self, name: &[u8], source: Source) -> Result<(), Errno> {
        rustix::fs::ftruncate(&self.file, 0)?;
        rustix::fs::fchmod(&self.file, Mode::RUSR | Mode::WUSR)?;
        self.keep = false;
        let state = state_name(name);
        if source.size >= RESUME_MIN && self.remember(&state, source).is_ok() {
            self.keep = true;
            self.state = Some(state);
        } else {
            let _ = rustix::fs::unlinkat(&self.dir.fd, &state, AtFlags::empty());
            self.state = None;
        }
        Ok(())
    }

    fn remember(&self, state: &[u8], source: Source) -> Result<(), Errno> {
        let flags = OFlags::WRONLY
            | OFlags::CREATE
            | OFlags::TRUNC
            | OFlags::NOFOLLOW
            | OFlags::NONBLOCK
            | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.dir.fd, state, flags, Mode::RUSR | Mode::WUSR)?;
        let bytes = source.encode();
        if rustix::io::write(&file, &bytes)? == bytes.len() {
            Ok(())
        } else {
            Err(Errno::NOSPC)
        }
    }

    /// Whether it will be there for another try.
    pub fn is_kept(&self) -> bool {
        self.keep
    }

    /// For a thread that begins to bring it to storage.
    pub fn flush(&self) -> io::Result<Flush> {
        Ok(Flush {
            file: self.file.try_clone()?,
            written_back: Arc::clone(&self.written_back),
        })
    }

    /// Brings the contents to storage. `written`: its whole file system was already, and only the outcome is asked for.
    pub fn sync(&self, written: bool) -> Result<(), Errno> {
        let mut outcome = lock_written_back(&self.written_back);
        let synced = match written {
            true => sys::written_back(&self.file),
            false => rustix::fs::fsync(&self.file),
        };
        *outcome = outcome.and(synced);
        *outcome
    }

    /// Complete, verified and on storage: takes its final name.
    pub fn publish(mut self, name: &[u8]) -> Result<(), Errno> {
        rustix::fs::renameat(&self.dir.fd, &self.temp, &self.dir.fd, name)?;
        self.temp.clear();
        if let Some(state) = self.state.take() {
            let _ = rustix::fs::unlinkat(&self.dir.fd, &state, AtFlags::empty());
        }
        Ok(())
    }

    /// Useless for another try.
    pub fn discard(mut self) {
        self.keep = false;
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // What could not be written back may still be right in memory, and would be taken for right by another try.
        if self.keep && lock_written_back(&self.written_back).is_ok() {
            return;
        }
        if let Some(state) = &self.state {
            let _ = rustix::fs::unlinkat(&self.dir.fd, state, AtFlags::empty());
        }
        if !self.temp.is_empty() {
            let _ = rustix::fs::unlinkat(&self.dir.fd, &self.temp, AtFlags::empty());
        }
    }
}

/// Whether the lock of a partial file is waited for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Patience {
    None,
    UntilItsWriterEnds,
}

/// What is seen of a partial file whose lock somebody else holds.
#[derive(Default)]
struct Watch {
    looks: usize,
    /// Since it changed last.
    unchanged: usize,
    /// Its length and time then.
    seen: Option<(i64, Mtime)>,
}

impl Watch {
    /// One more look; whether its writer lives, or has taken too long to die.
    fn is_in_vain(&mut self, now: (i64, Mtime)) -> bool {
        self.looks += 1;
        self.unchanged += 1;
        if self.seen.replace(now).is_some_and(|before| before != now) {
            self.unchanged = 0;
        }
        let lives = self.looks >= LOCK_LOOKS && self.unchanged < LOCK_CHANGES;
        lives || self.looks >= LOCK_LOOKS_MAX
    }
}

/// Opens and locks a partial file; `None` if somebody else holds it, or may: nobody can tell.
fn lock(
    dir: &Folder,
    temp: &[u8],
    how: OFlags,
    patience: Patience,
) -> Result<Option<OwnedFd>, Errno> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | how;
    let (mut watch, mut gone) = (Watch::default(), 0);
    while gone < GONE_MAX {
        let file = rustix::fs::openat(&dir.fd, temp, flags, Mode::RUSR | Mode::WUSR)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let found = rustix::fs::fstat(&file)?;
                let now = (found.st_size, paths::mtime(&found));
                if patience == Patience::None || watch.is_in_vain(now) {
                    return Ok(None);
                }
                std::thread::sleep(LOCK_WAIT);
                continue;
            }
            Err(Errno::INTR) => continue,
            // A file system without locks: only a name that is nobody else's is safe.
            Err(Errno::OPNOTSUPP | Errno::NOLCK | Errno::NOSYS) => {
                if !how.contains(OFlags::EXCL) {
                    if rustix::fs::fstat(&file).is_ok_and(|stat| stat.st_size == 0) {
                        let _ = rustix::fs::unlinkat(&dir.fd, temp, AtFlags::empty());
                    }
                    return Ok(None);
                }
            }
            Err(e) => return Err(e),
        }
        let ours = rustix::fs::fstat(&file)?;
        if paths::kind(&ours) != Kind::File {
            return Err(Errno::EXIST);
        }
        match paths::look(dir.fd.as_fd(), temp) {
            Ok(named) if named.st_ino == ours.st_ino && named.st_dev == ours.st_dev => {
                return Ok(Some(file));
            }
            // Finished or thrown away by its writer between our open and our lock.
            Ok(_) | Err(Errno::NOENT) => gone += 1,
            Err(e) => return Err(e),
        }
    }
    Ok(None)
}

/// Whether this is that link already.
pub fn is_link(
    dir: &Folder,
    name: &[u8],
    stat: &rustix::fs::Stat,
    target: &[u8],
    mtime: Mtime,
) -> bool {
    paths::kind(stat) == Kind::Link
        && paths::mtime(stat) == mtime
        && rustix::fs::readlinkat(&dir.fd, name, Vec::new()).is_ok_and(|t| t.as_bytes() == target)
}

/// Puts a symbolic link in place, replacing a file or link.
pub fn place_link(dir: &Folder, name: &[u8], target: &[u8], mtime: Mtime) -> Result<(), Errno> {
    let temp = unique_name(name)?;
    rustix::fs::symlinkat(target, &dir.fd, &temp)?;
    let placed = rustix::fs::utimensat(&dir.fd, &temp, &times(mtime), AtFlags::SYMLINK_NOFOLLOW)
        .and_then(|()| rustix::fs::renameat(&dir.fd, &temp, &dir.fd, name));
    if placed.is_err() {
        let _ = rustix::fs::unlinkat(&dir.fd, &temp, AtFlags::empty());
    }
    placed
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn base(path: &std::path::Path) -> Arc<Folder> {
        Folder::base(std::fs::File::open(path).unwrap().into())
    }

    /// A writer that is dead is waited for, one that writes is not.
    #[test]
    fn the_lock_of_a_file_that_does_not_change_is_waited_for() {
        let at = |seconds| (0, Mtime { seconds, nanos: 0 });
        let looks = |seen: &dyn Fn(usize) -> i64| {
            let mut watch = Watch::default();
            (0..).find(|&look| watch.is_in_vain(at(seen(look))))
        };
        assert_eq!(looks(&|_| 0), Some(LOCK_LOOKS_MAX - 1));
        assert_eq!(looks(&|look| look as i64), Some(LOCK_LOOKS - 1));
        // What was on its way when its writer died still came for a while.
        let died = LOCK_LOOKS - LOCK_CHANGES - 1;
        assert_eq!(
            looks(&|look| look.min(died) as i64),
            Some(LOCK_LOOKS_MAX - 1)
        );
    }

    const SOURCE: Source = Source {
        size: 1 << 20,
        mtime: Mtime {
            seconds: 5,
            nanos: 6,
        },
    };

    #[test]
    fn a_partial_file_continues_only_for_its_own_source() {
        let temp = tempfile::tempdir().unwrap();
        let dir = base(temp.path());
        let partial = Partial::create(&dir, b"f", SOURCE).unwrap();
        rustix::io::write(&partial.file, b"hello").unwrap();
        drop(partial);
        assert!(temp.path().join(".f.stp-partial").exists());
        let (partial, len) = Partial::resume(&dir, b"f", SOURCE).unwrap();
        assert_eq!(len, 5);
        drop(partial);
        let other = Source {
            size: SOURCE.size + 1,
            ..SOURCE
        };
        assert!(Partial::resume(&dir, b"f", other).is_none());
        let (partial, _) = Partial::resume(&dir, b"f", SOURCE).unwrap();
        partial.publish(b"f").unwrap();
        let names: Vec<_> = std::fs::read_dir(temp.path())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(names, ["f"]);
    }

    #[test]
    fn a_failure_to_write_back_is_not_forgotten() {
        let temp = tempfile::tempdir().unwrap();
        let dir = base(temp.path());
        let partial = Partial::create(&dir, b"f", SOURCE).unwrap();
        rustix::io::write(&partial.file, b"hello").unwrap();
        assert!(partial.is_kept());
        partial.sync(false).unwrap();
        partial.sync(true).unwrap();
        let mut flush = partial.flush().unwrap();
        // A pipe cannot be brought to storage.
        flush.file = std::io::pipe().unwrap().0.into();
        flush.run();
        assert!(partial.sync(false).is_err() && partial.sync(true).is_err());
        drop(partial);
        assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_cannot_take_its_name_can_be_continued() {
        let temp = tempfile::tempdir().unwrap();
        let dir = base(temp.path());
        let partial = Partial::create(&dir, b"f", SOURCE).unwrap();
        rustix::io::write(&partial.file, b"hello").unwrap();
        std::fs::create_dir(temp.path().join("f")).unwrap();
        assert!(partial.publish(b"f").is_err());
        assert!(Partial::resume(&dir, b"f", SOURCE).is_some());
    }

    #[test]
    fn two_writers_of_one_target_do_not_share_a_file() {
        let temp = tempfile::tempdir().unwrap();
        let dir = base(temp.path());
        let one = Partial::create(&dir, b"f", SOURCE).unwrap();
        let two = Partial::create(&dir, b"f", SOURCE).unwrap();
        assert_ne!(
            rustix::fs::fstat(&one.file).unwrap().st_ino,
            rustix::fs::fstat(&two.file).unwrap().st_ino
        );
        assert!(!two.is_kept());
        let inode = rustix::fs::fstat(&two.file).unwrap().st_ino;
        one.publish(b"f").unwrap();
        two.publish(b"f").unwrap();
        assert_eq!(
            std::fs::metadata(temp.path().join("f")).unwrap().ino(),
            inode
        );
        assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 1);
    }

    #[test]
    fn long_names_have_partial_files_too() {
        for len in [1, 240, 241, 243, 255] {
            let name = vec![b'n'; len];
            assert!(partial_name(&name).len() <= NAME_MAX);
            assert!(unique_name(&name).unwrap().len() <= NAME_MAX);
            assert!(
                paths::is_partial(&partial_name(&name)) && paths::is_partial(&state_name(&name))
            );
        }
        let (a, b) = (
            [vec![b'n'; 250], b"a".to_vec()].concat(),
            [vec![b'n'; 250], b"b".to_vec()].concat(),
        );
        assert_ne!(partial_name(&a), partial_name(&b));
    }
}
