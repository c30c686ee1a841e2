//! The receiving side of a transfer: says what it wants, checks what comes, and puts it in place.
//!
//! - Every entry is put into an open folder by a single name: nothing a sender says leads out of the target.
//! - A file shows up under its name only when it is complete, its digest is right and its contents are on storage.
//! - What arrived of a file before an interruption is hashed again from storage and compared by the sender before it counts.
//! - Storage is waited for on threads of their own.
//! - A failure of one entry ends that entry only.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::Scope;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::commit::{COMMIT_MAX, Commit, commit_all};
use super::digest::{BLOCK, Digest};
use super::link::{Broken, Hangup, MessageReader, MessageWriter};
use super::paths;
use super::report::Report;
use super::source::read_digest;
use super::target::{self, Flush, Folder, Late, Partial, Source};
use super::wire::{self, Code, Fault, Kind, Message, Mtime};

/// After so many bytes of one file, storage is told to begin.
const FLUSH_EVERY: u64 = 32 << 20;
/// How long the peer may take to hear why the connection is about to be cut.
const LAST_WORD_MAX: Duration = Duration::from_secs(1);

/// What may be received directly into the target folder.
pub enum Allowed {
    /// Anything: a server.
    Any,
    /// One entry.
    Only {
        /// Its name.
        name: Vec<u8>,
        /// It may be a folder or a link; if not, it is a file.
        any_kind: bool,
    },
}

/// Receives into `base` until the sender has finished. After an error the connection is cut.
pub fn receive(
    reader: &mut MessageReader,
    writer: &Mutex<MessageWriter>,
    hangup: &Hangup,
    base: OwnedFd,
    allowed: Allowed,
    report: &dyn Report,
) -> Result<(), Broken> {
    let late = Late::default();
    let placed = AtomicU64::new(0);
    let base = Folder::base(base);
    let result = std::thread::scope(|scope| {
        let (commits, commits_rx) = mpsc::sync_channel(COMMIT_MAX);
        let (flushes, flushes_rx) = mpsc::sync_channel::<Flush>(1);
        let committer = scope.spawn(|| commit_all(commits_rx, writer, report, &placed));
        scope.spawn(move || flushes_rx.into_iter().for_each(Flush::run));
        let mut receiver = Receiver {
            reader,
            writer,
            report,
            allowed,
            late: &late,
            placed: &placed,
            commits,
            flushes,
            base: Arc::clone(&base),
            stack: Vec::new(),
            pending: HashMap::new(),
            buffer: vec![0; BLOCK],
        };
        let result = receiver.run();
        drop(receiver);
        if let Err(broken) = &result {
            if let Broken::Protocol(text) = broken {
                let fault = Fault::new(Code::Protocol, text.clone());
                say_last(scope, writer, Message::Error(fault));
            }
            hangup();
        }
        let lost = committer
            .join()
            .unwrap_or_else(|_| Err(Broken::Protocol("the committing thread failed".into())));
        result.and(lost)
    });
    result?;
    // One wait for every folder that got a name or attributes; for the target alone its own is cheaper. Even if nothing was
    // placed now: an earlier connection of this transfer may have been cut before it came to this.
    let synced = match placed.load(Ordering::Relaxed) {
        0 | 1 => base.sync(),
        _ => rustix::fs::syncfs(&base.fd),
    };
    if let Err(e) = synced {
        let fault = paths::fault(e, "cannot bring the target folder to storage");
        let mut writer = lock(writer);
        writer.put(&Message::Error(fault.clone()))?;
        writer.flush()?;
        return Err(Broken::Local(fault));
    }
    let mut writer = lock(writer);
    for (path, fault) in lock(&late).drain(..) {
        report.failed(&path, &fault);
        writer.put(&Message::notice(false, &path, fault))?;
    }
    writer.put(&Message::Finished)?;
    writer.flush()?;
    Ok(())
}

/// Says why before the connection is cut, if the peer takes it: it may have stopped to read long ago.
fn say_last<'scope>(
    scope: &'scope Scope<'scope, '_>,
    writer: &'scope Mutex<MessageWriter>,
    message: Message,
) {
    let (said, hear) = mpsc::channel::<()>();
    scope.spawn(move || {
        let _said = said;
        let mut writer = lock(writer);
        // The error that matters is known already.
        let _ = writer.put(&message).and_then(|()| writer.flush());
    });
    let _ = hear.recv_timeout(LAST_WORD_MAX);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Level {
    /// None: it could not be made, and neither can anything in it.
    folder: Option<Arc<Folder>>,
    key: Vec<u8>,
    mode: u32,
    mtime: Mtime,
}

struct Pending {
    dir: Arc<Folder>,
    name: Vec<u8>,
    key: Vec<u8>,
    mode: u32,
    source: Source,
    offer: Offer,
}

/// Where an entry goes: its folder, if that could be made, and its path below the target.
type Spot = (Result<Arc<Folder>, Fault>, Vec<u8>);

enum Offer {
    Nothing,
    Whole(OwnedFd),
    Prefix(Partial, Box<Digest>),
}

struct Receiver<'a> {
    reader: &'a mut MessageReader,
    writer: &'a Mutex<MessageWriter>,
    report: &'a dyn Report,
    allowed: Allowed,
    late: &'a Late,
    placed: &'a AtomicU64,
    commits: SyncSender<Commit>,
    flushes: SyncSender<Flush>,
    base: Arc<Folder>,
    stack: Vec<Level>,
    pending: HashMap<u32, Pending>,
    buffer: Vec<u8>,
}

impl Receiver<'_> {
    fn run(&mut self) -> Result<(), Broken> {
        loop {
            match self.next()? {
                Message::Enter {
                    id,
                    name,
                    mode,
                    mtime,
                } => self.enter(id, name, mode, mtime)?,
                Message::Leave => {
                    let level = self
                        .stack
                        .pop()
                        .ok_or_else(|| protocol("left a folder too often"))?;
                    if let Some(folder) = level.folder {
                        folder.leave(level.mode, level.mtime);
                    }
                }
                Message::File {
                    id,
                    name,
                    mode,
                    mtime,
                    size,
                } => self.file(id, name, mode, Source { size, mtime })?,
                Message::Link {
                    id,
                    name,
                    mtime,
                    target,
                } => self.link(id, name, mtime, &target)?,
                Message::Begin { id, start } => self.contents(id, start)?,
                Message::Same { id } => self.same(id)?,
                Message::Abort { id, fault } => {
                    if let Some(pending) = self.pending.remove(&id) {
                        self.report.failed(&pending.key, &fault);
                        if let (Offer::Prefix(partial, _), Code::Changed) =
                            (pending.offer, fault.code)
                        {
                            partial.discard();
                        }
                    }
                }
                Message::Finish if self.stack.is_empty() && self.pending.is_empty() => {
                    return Ok(());
                }
                Message::Finish => return Err(protocol("finished in the middle")),
                other => self.aside(other)?,
            }
        }
    }

    /// The next message; answers are sent before this waits.
    fn next(&mut self) -> Result<Message, Broken> {
        if !self.reader.has_more() {
            lock(self.writer).flush()?;
        }
        self.reader.message()
    }

    /// Messages that may come anywhere.
    fn aside(&self, message: Message) -> Result<(), Broken> {
        match message {
            Message::Total { files, bytes } => self.report.total(files, bytes),
            Message::Notice {
                skipped: true,
                path,
                fault,
            } => self.report.skipped(&path, &fault),
            Message::Notice {
                skipped: false,
                path,
                fault,
            } => self.report.failed(&path, &fault),
            other => {
                return Err(protocol(&format!(
                    "message of kind {} out of place",
                    other.kind()
                )));
            }
        }
        Ok(())
    }

    fn answer(&self, message: &Message) -> Result<(), Broken> {
        lock(self.writer).put(message).map_err(Broken::from)
    }

    fn fail(&self, id: u32, key: &[u8], fault: Fault) -> Result<(), Broken> {
        self.report.failed(key, &fault);
        self.answer(&Message::Failed { id, fault })
    }

    /// The folder an entry goes into and its path below the target, or why not.
    fn place(&self, name: &[u8], kind: Kind) -> Result<Spot, Broken> {
        match self.stack.last() {
            None => {
                if let Allowed::Only {
                    name: only,
                    any_kind,
                } = &self.allowed
                    && (only != name || (kind != Kind::File && !any_kind))
                {
                    return Err(protocol(&format!(
                        "the other side sent `{}`, which was not asked for",
                        paths::show(name)
                    )));
                }
                Ok((Ok(Arc::clone(&self.base)), name.to_vec()))
            }
            Some(level) => {
                let folder = level.folder.clone();
                let folder =
                    folder.ok_or_else(|| Fault::new(Code::Parent, "its folder could not be made"));
                Ok((folder, paths::join(&level.key, name)))
            }
        }
    }

    fn enter(&mut self, id: u32, name: Vec<u8>, mode: u32, mtime: Mtime) -> Result<(), Broken> {
        if self.stack.len() >= wire::DEPTH_MAX {
            return Err(protocol("folders are nested too deep"));
        }
        let (dir, key) = self.place(&name, Kind::Folder)?;
        let folder = match dir.and_then(|dir| dir.enter(&name, key.clone(), self.late)) {
            Ok(folder) => {
                // Two: a folder in the target needs more than the target's own synchronisation.
                self.placed.fetch_add(2, Ordering::Relaxed);
                self.report.done(&key, Kind::Folder, 0);
                self.answer(&Message::Done { id })?;
                Some(folder)
            }
            Err(fault) => {
                self.fail(id, &key, fault)?;
                None
            }
        };
        self.stack.push(Level {
            folder,
            key,
            mode,
            mtime,
        });
        Ok(())
    }

    fn link(&mut self, id: u32, name: Vec<u8>, mtime: Mtime, target: &[u8]) -> Result<(), Broken> {
        let (dir, key) = self.place(&name, Kind::Link)?;
        let placed = dir.and_then(|dir| {
            if replaceable(&dir, &name)?
                .is_some_and(|stat| target::is_link(&dir, &name, &stat, target, mtime))
            {
                return Ok(());
            }
            target::place_link(&dir, &name, target, mtime)
                .map_err(|e| paths::fault(e, "cannot make the link at the target"))
        });
        match placed {
            Ok(()) => {
                self.placed.fetch_add(1, Ordering::Relaxed);
                self.report.done(&key, Kind::Link, 0);
                self.answer(&Message::Done { id })
            }
            Err(fault) => self.fail(id, &key, fault),
        }
    }

    fn file(&mut self, id: u32, name: Vec<u8>, mode: u32, source: Source) -> Result<(), Broken> {
        let (dir, key) = self.place(&name, Kind::File)?;
        if self.pending.len() >= wire::AHEAD_MAX {
            return Err(protocol("too many files announced"));
        }
        if self.report.seen(&key) {
            return self.answer(&Message::Have { id });
        }
        let found = dir.and_then(|dir| replaceable(&dir, &name).map(|stat| (dir, stat)));
        let (dir, stat) = match found {
            Ok(found) => found,
            Err(fault) => return self.fail(id, &key, fault),
        };
        let mut offset = 0;
        let mut digest = [0; wire::DIGEST_LEN];
        let mut offer = Offer::Nothing;
        let same = stat.is_some_and(|s| {
            let m = paths::meta(&s, Vec::new());
            m.kind == Kind::File && m.size == source.size && m.mtime == source.mtime
        });
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        if same
            && let Ok(file) = rustix::fs::openat(&dir.fd, &name, flags, Mode::empty())
            && let Ok(own) = read_digest(&file, source.size, &mut self.buffer)
        {
            (offset, digest, offer) = (source.size, own.value(), Offer::Whole(file));
        } else if let Some((partial, len)) = Partial::resume(&dir, &name, source)
            && let Ok(own) = read_digest(&partial.file, len, &mut self.buffer)
        {
            (offset, digest, offer) = (len, own.value(), Offer::Prefix(partial, Box::new(own)));
        }
        let whole = matches!(offer, Offer::Whole(_));
        let pending = Pending {
            dir,
            name,
            key,
            mode,
            source,
            offer,
        };
        if self.pending.insert(id, pending).is_some() {
            return Err(protocol("one number announced twice"));
        }
        self.answer(&Message::Want {
            id,
            offset,
            whole,
            digest,
        })
    }

    fn same(&mut self, id: u32) -> Result<(), Broken> {
        let pending = self
            .pending
            .remove(&id)
            .ok_or_else(|| protocol("an unannounced file"))?;
        let Offer::Whole(file) = pending.offer else {
            return Err(protocol("a file that is not here"));
        };
        self.report.started(&pending.key);
        self.report.present(pending.source.size);
        let mode = Mode::from_raw_mode(pending.mode & target::MODE_KEPT);
        let right = rustix::fs::fstat(&file)
            .is_ok_and(|s| s.st_mode & target::MODE_KEPT == mode.as_raw_mode());
        if !right && let Err(e) = rustix::fs::fchmod(&file, mode) {
            return self.fail(
                id,
                &pending.key,
                paths::fault(e, "cannot set the mode at the target"),
            );
        }
        self.placed.fetch_add(1, Ordering::Relaxed);
        self.report
            .done(&pending.key, Kind::File, pending.source.size);
        self.answer(&Message::Done { id })
    }

    /// The contents of one file, to its end, whatever becomes of it.
    fn contents(&mut self, id: u32, start: u64) -> Result<(), Broken> {
        let pending = self
            .pending
            .remove(&id)
            .ok_or_else(|| protocol("an unannounced file"))?;
        let Pending {
            dir,
            name,
            key,
            mode,
            source,
            offer,
        } = pending;
        self.report.started(&key);
        self.report.present(start);
        let create = |dir| Partial::create(dir, &name, source);
        let (opened, mut digest) = match (offer, start) {
            (Offer::Prefix(partial, own), start) if start > 0 && own.pos() == start => {
                (Ok(partial), *own)
            }
            (Offer::Prefix(mut partial, _), 0) => (
                partial.restart(&name, source).map(|()| partial),
                Digest::default(),
            ),
            (_, 0) => (create(&dir), Digest::default()),
            _ => return Err(protocol("a file that begins in the middle")),
        };
        let mut partial = match opened {
            Ok(partial) => Some(partial),
            Err(e) => {
                self.fail(
                    id,
                    &key,
                    paths::fault(e, "cannot make the file at the target"),
                )?;
                None
            }
        };
        let mut flushed = start;
        loop {
            let message = self.next()?;
            let came = match &message {
                Message::Data => self.reader.body().len() as u64,
                Message::Hole { len } => *len,
                Message::End { digest: theirs } => {
                    if digest.pos() != source.size {
                        return Err(protocol("a file that ends early"));
                    }
                    let Some(partial) = partial else {
                        return Ok(());
                    };
                    if *theirs != digest.value() {
                        partial.discard();
                        self.report.undone(source.size);
                        let text = "what arrived is not what was sent (wrong digest), thrown away; copy it again";
                        return self.fail(id, &key, Fault::new(Code::Checksum, text));
                    }
                    let commit = Commit {
                        id,
                        partial,
                        dir,
                        name,
                        key,
                        mode,
                        source,
                    };
                    return self
                        .commits
                        .send(commit)
                        .map_err(|_| protocol("the committing thread ended"));
                }
                Message::Abort { id: which, fault } if *which == id => {
                    if let Some(partial) = partial {
                        self.report.undone(digest.pos());
                        self.report.failed(&key, fault);
                        if fault.code == Code::Changed {
                            partial.discard();
                        }
                    }
                    return Ok(());
                }
                Message::Abort { .. } => {
                    return Err(protocol("another file given up within a file"));
                }
                _ => {
                    self.aside(message)?;
                    continue;
                }
            };
            let pos = digest.pos();
            if came > source.size - pos {
                return Err(protocol("more than was announced"));
            }
            let Some(open) = &partial else {
                // Already reported; only the place in the file matters.
                digest.update_zeros(came);
                continue;
            };
            let written = if matches!(message, Message::Data) {
                let body = self.reader.body();
                digest.update(body);
                self.report.moved(came);
                write_all(&open.file, body, pos)
            } else {
                digest.update_zeros(came);
                self.report.hole(came);
                rustix::fs::ftruncate(&open.file, pos + came)
            };
            if let Err(e) = written {
                let mut fault = paths::fault(e, "cannot write at the target");
                if fault.code == Code::NoSpace && open.is_kept() {
                    fault.text.push_str(&format!(
                        "; {pos} of {} bytes are kept: free some space and run the same command again",
                        source.size
                    ));
                } else if fault.code == Code::NoSpace {
                    fault
                        .text
                        .push_str("; free some space and run the same command again");
                }
                partial = None;
                self.report.undone(digest.pos());
                self.fail(id, &key, fault)?;
                lock(self.writer).flush()?;
                continue;
            }
            if digest.pos() - flushed >= FLUSH_EVERY
                && let Ok(flush) = open.flush()
            {
                flushed = digest.pos();
                let _ = self.flushes.try_send(flush);
            }
        }
    }
}

fn protocol(text: &str) -> Broken {
    Broken::Protocol(text.to_owned())
}

/// Whether an entry that is not a folder may take this name, and what has it now.
fn replaceable(dir: &Folder, name: &[u8]) -> Result<Option<rustix::fs::Stat>, Fault> {
    match paths::look(dir.fd.as_fd(), name) {
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(paths::fault(e, "cannot look at the target")),
        Ok(stat) => match paths::kind(&stat) {
            Kind::File | Kind::Link => Ok(Some(stat)),
            Kind::Folder => Err(Fault::new(
                Code::IsFolder,
                "the target is a folder; remove it first or choose another name",
            )),
            Kind::Special => Err(Fault::new(
                Code::Special,
                "the target is a device, pipe or socket; choose another name",
            )),
        },
    }
}

fn write_all(file: &OwnedFd, mut bytes: &[u8], mut pos: u64) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(file, bytes, pos) {
            Ok(0) => return Err(Errno::NOSPC),
            Ok(n) => {
                pos += n as u64;
                bytes = &bytes[n..];
            }
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
