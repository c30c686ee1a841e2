//! Sources on this side's storage: how they are opened, counted, read and hashed.
//!
//! - Opening never blocks on a pipe and never follows a symbolic link unless asked to.
//! - Holes are found by SEEK_DATA; a file system that does not know has none.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Dir, Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use super::digest::Digest;
use super::paths;
use super::wire::{self, Code, Fault, Kind, Mtime};

/// An opened source.
pub enum Opened {
    /// A regular file.
    File(OwnedFd),
    /// A folder.
    Folder(OwnedFd),
    /// A symbolic link, to be copied as one.
    Link {
        /// Where it points.
        target: Vec<u8>,
        /// Its own time.
        mtime: Mtime,
    },
}

/// Opens what `name` in `dir` is, for a walk. `follow`: through a symbolic link at the end of it.
pub fn open_source(dir: BorrowedFd<'_>, name: &[u8], follow: bool) -> Result<Opened, Fault> {
    let fault = |e| paths::fault(e, "cannot read the source");
    if !follow {
        let stat = paths::look(dir, name).map_err(fault)?;
        if paths::kind(&stat) == Kind::Link {
            let target = rustix::fs::readlinkat(dir, name, Vec::new()).map_err(fault)?;
            return Ok(Opened::Link {
                target: target.into_bytes(),
                mtime: paths::mtime(&stat),
            });
        }
    }
    let nofollow = if follow {
        OFlags::empty()
    } else {
        OFlags::NOFOLLOW
    };
    sort_out(rustix::fs::openat(dir, name, READ | nofollow, Mode::empty()).map_err(fault)?)
}

/// Flags to open a source of unknown kind with: a pipe or terminal must neither block nor become ours.
pub const READ: OFlags = OFlags::RDONLY
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY)
    .union(OFlags::CLOEXEC);

/// Tells what an opened source is.
pub fn sort_out(fd: OwnedFd) -> Result<Opened, Fault> {
    let stat = rustix::fs::fstat(&fd).map_err(|e| paths::fault(e, "cannot read the source"))?;
    match paths::kind(&stat) {
        Kind::File => Ok(Opened::File(fd)),
        Kind::Folder => Ok(Opened::Folder(fd)),
        _ => Err(special()),
    }
}

pub(super) fn special() -> Fault {
    Fault::new(
        Code::Special,
        "neither a file nor a folder (a device, pipe or socket): not copied",
    )
}

/// Counts files and bytes below these sources; stops early when told to.
pub fn count(sources: impl Iterator<Item = Opened>, stop: &AtomicBool) -> Option<(u64, u64)> {
    let (mut files, mut bytes) = (0u64, 0u64);
    for source in sources {
        let mut stack = Vec::new();
        match source {
            Opened::File(fd) => {
                files += 1;
                bytes +=
                    rustix::fs::fstat(&fd).map_or(0, |s| u64::try_from(s.st_size).unwrap_or(0));
            }
            Opened::Folder(fd) => stack.extend(Dir::new(fd).ok()),
            Opened::Link { .. } => files += 1,
        }
        loop {
            let depth = stack.len();
            let Some(dir) = stack.last_mut() else { break };
            if stop.load(Ordering::Relaxed) {
                return None;
            }
            let Some(Ok(entry)) = dir.read() else {
                stack.pop();
                continue;
            };
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." || paths::is_partial(name) {
                continue;
            }
            let Ok(stat) = dir.fd().and_then(|fd| paths::look(fd, name)) else {
                continue;
            };
            match paths::kind(&stat) {
                Kind::File => {
                    files += 1;
                    bytes += u64::try_from(stat.st_size).unwrap_or(0);
                }
                Kind::Link => files += 1,
                Kind::Folder if depth < wire::DEPTH_MAX => {
                    let sub = dir
                        .fd()
                        .and_then(|fd| open_folder(fd, name))
                        .and_then(Dir::new);
                    stack.extend(sub.ok());
                }
                _ => {}
            }
        }
    }
    Some((files, bytes))
}

pub(super) fn open_folder(dir: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(
        dir,
        name,
        READ | OFlags::DIRECTORY | OFlags::NOFOLLOW,
        Mode::empty(),
    )
}

/// A counting of what is to be sent, on its own thread.
pub type Counting = Box<dyn FnOnce(&AtomicBool) -> Option<(u64, u64)> + Send>;

pub(super) fn shrunk() -> Fault {
    Fault::new(
        Code::Changed,
        "the source became shorter while it was copied; copy it again",
    )
}

pub(super) fn vanished(errno: Errno, what: &str) -> Fault {
    match errno {
        Errno::NOENT => Fault::new(
            Code::Vanished,
            "the source vanished before it could be read",
        ),
        Errno::LOOP | Errno::NOTDIR => {
            Fault::new(Code::Changed, "the source was replaced while it was copied")
        }
        e => paths::fault(e, what),
    }
}

pub(super) fn unchanged(fd: &OwnedFd, size: u64, mtime: Mtime) -> Result<(), Fault> {
    let stat = rustix::fs::fstat(fd).map_err(|e| paths::fault(e, "cannot read the source"))?;
    let now = paths::meta(&stat, Vec::new());
    if now.kind != Kind::File || now.size != size || now.mtime != mtime {
        return Err(Fault::new(
            Code::Changed,
            "the source changed while it was copied; copy it again",
        ));
    }
    Ok(())
}

pub(super) fn read_some(fd: &OwnedFd, buf: &mut [u8], pos: u64) -> Result<usize, Errno> {
    rustix::io::retry_on_intr(|| rustix::io::pread(fd, &mut *buf, pos))
}

/// The digest of a file's first `len` bytes, as they are on storage.
pub fn read_digest(fd: &OwnedFd, len: u64, buffer: &mut [u8]) -> Result<Digest, Fault> {
    let mut digest = Digest::default();
    let mut extents = Extents::new(fd, len);
    while digest.pos() < len {
        let pos = digest.pos();
        let (data, end) = extents.at(pos);
        if !data {
            digest.update_zeros(end - pos);
            continue;
        }
        let max = buffer
            .len()
            .min(usize::try_from(end - pos).unwrap_or(usize::MAX));
        match read_some(fd, &mut buffer[..max], pos) {
            Ok(0) => return Err(shrunk()),
            Ok(n) => digest.update(&buffer[..n]),
            Err(e) => return Err(paths::fault(e, "cannot read it")),
        }
    }
    Ok(digest)
}

/// Where a file has data and where holes.
pub(super) struct Extents<'a> {
    fd: &'a OwnedFd,
    size: u64,
    data: bool,
    end: u64,
}

impl<'a> Extents<'a> {
    pub(super) fn new(fd: &'a OwnedFd, size: u64) -> Self {
        Self {
            fd,
            size,
            data: true,
            end: 0,
        }
    }

    /// Whether there is data at `pos`, and where that ends.
    pub(super) fn at(&mut self, pos: u64) -> (bool, u64) {
        if pos >= self.end {
            (self.data, self.end) = match rustix::fs::seek(self.fd, SeekFrom::Data(pos)) {
                // No data from here on.
                Err(Errno::NXIO) => (false, self.size),
                Ok(next) if next > pos => (false, next.min(self.size)),
                Ok(_) => match rustix::fs::seek(self.fd, SeekFrom::Hole(pos)) {
                    Ok(hole) if hole > pos => (true, hole.min(self.size)),
                    _ => (true, self.size),
                },
                // The file system does not know.
                Err(_) => (true, self.size),
            };
        }
        (self.data, self.end)
    }
}
