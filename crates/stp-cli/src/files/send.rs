//! The sending side of a transfer: walks, announces, and sends what the receiver wants.
//!
//! - Entries are announced ahead of their contents, so that many small files cost no round trip each; at most
//!   [`wire::AHEAD_MAX`] are without an outcome.
//! - Folders are walked by descriptor and symbolic links in them are never followed: a walk cannot leave its root.
//! - A file counts as copied only if its size and time are the same before its first and after its last byte.
//! - Holes are found by SEEK_DATA and sent as holes. Memory does not grow with the number or size of files.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, TryRecvError};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::fs::{Advice, Dir, Mode, OFlags};
use stp_format::{UNIT_BYTES, UnitBuf};

use super::digest::{BLOCK, Digest};
use super::link::{Broken, Hangup, MessageReader, MessageWriter};
use super::paths;
use super::report::Report;
use super::source::{
    Counting, Extents, Opened, READ, open_folder, read_digest, read_some, shrunk, special,
    unchanged, vanished,
};
use super::wire::{self, Code, DigestBytes, Fault, HEADER_LEN, Kind, Message, Mtime};

/// Files named by themselves whose descriptors may be open at once.
const HELD_MAX: usize = 64;
/// Answers that may wait to be looked at: more than a receiver that keeps the protocol can owe.
const REPLIES_MAX: usize = 4 * wire::AHEAD_MAX;

/// Something to send, opened already.
pub struct Root {
    /// The name at the target; none: the contents of this folder go straight into the target.
    pub name: Option<Vec<u8>>,
    /// What it is.
    pub opened: Opened,
}

/// Sends all of `roots` and returns when the receiver has everything on storage. `reader` and `writer` are between messages
/// before and after; after an error the connection is cut.
pub fn send(
    reader: &mut MessageReader,
    writer: &mut MessageWriter,
    hangup: &Hangup,
    roots: &mut dyn Iterator<Item = Root>,
    counting: Option<Counting>,
    report: &dyn Report,
) -> Result<(), Broken> {
    let total = OnceLock::new();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (tx, rx) = mpsc::sync_channel(REPLIES_MAX);
        scope.spawn(move || {
            loop {
                let reply = reader.message();
                let last = matches!(reply, Ok(Message::Finished) | Err(_));
                if tx.send(reply).is_err() || last {
                    break;
                }
            }
        });
        if let Some(counting) = counting {
            let (total, stop) = (&total, &stop);
            scope.spawn(move || {
                if let Some(counted) = counting(stop) {
                    let _ = total.set(counted);
                }
            });
        }
        let mut sender = Sender {
            writer,
            replies: rx,
            report,
            total: &total,
            total_sent: false,
            open: HashMap::new(),
            wanted: VecDeque::new(),
            held: 0,
            folders: 0,
            next_id: 0,
            block: FramedBlock::new(),
        };
        let result = sender.run(roots);
        stop.store(true, Ordering::Relaxed);
        match result {
            Ok(()) => Ok(()),
            Err(broken) => {
                // Why the peer gave up says more than that writing to it failed.
                let told = sender.last_words();
                hangup();
                Err(told.unwrap_or(broken))
            }
        }
    })
}

/// A folder that is being walked.
struct Level {
    dir: Arc<OwnedFd>,
    entries: Dir,
    key: Vec<u8>,
    /// Leave is sent at its end (not for the target folder itself).
    entered: bool,
}

/// An announced entry whose outcome is not known.
struct Announced {
    key: Vec<u8>,
    what: What,
}

enum What {
    File {
        at: At,
        size: u64,
        mtime: Mtime,
        sent: u64,
    },
    Other(Kind),
}

/// How to get at a file when the receiver wants it.
enum At {
    In(Arc<OwnedFd>, Vec<u8>),
    Open(OwnedFd),
    Taken,
}

/// A block of a file and the header that goes before it.
///
/// The block begins with a page, as what the kernel copies there does: a few bytes behind that, its copy is much slower on
/// many processors.
struct FramedBlock(UnitBuf);

impl FramedBlock {
    fn new() -> Self {
        Self(UnitBuf::zeroed(1 + UnitBuf::units_for(BLOCK)))
    }

    /// Where the block is read to.
    fn room(&mut self) -> &mut [u8] {
        &mut self.0.bytes_mut()[UNIT_BYTES..]
    }

    /// The frame of the first `len` bytes there.
    fn frame(&mut self, len: usize) -> &[u8] {
        let frame = &mut self.0.bytes_mut()[UNIT_BYTES - HEADER_LEN..UNIT_BYTES + len];
        frame[..HEADER_LEN].copy_from_slice(&wire::encode_header(wire::kind::DATA, len));
        frame
    }
}

struct Wanted {
    id: u32,
    offset: u64,
    whole: bool,
    digest: DigestBytes,
}

struct Sender<'a> {
    writer: &'a mut MessageWriter,
    replies: mpsc::Receiver<Result<Message, Broken>>,
    report: &'a dyn Report,
    total: &'a OnceLock<(u64, u64)>,
    total_sent: bool,
    open: HashMap<u32, Announced>,
    wanted: VecDeque<Wanted>,
    held: usize,
    /// In place at the receiver: as many may turn out to lack their attributes.
    folders: usize,
    next_id: u32,
    block: FramedBlock,
}

impl Sender<'_> {
    fn run(&mut self, roots: &mut dyn Iterator<Item = Root>) -> Result<(), Broken> {
        for root in roots {
            self.root(root)?;
        }
        while !self.open.is_empty() {
            self.wait()?;
        }
        self.send_total()?;
        self.writer.put(&Message::Finish)?;
        self.writer.flush()?;
        loop {
            match self.replies.recv() {
                Ok(Ok(Message::Finished)) => return Ok(()),
                Ok(Ok(Message::Notice {
                    skipped: false,
                    path,
                    fault,
                })) if self.folders > 0 => {
                    self.folders -= 1;
                    self.report.failed(&path, &fault);
                }
                Ok(Err(broken)) => return Err(broken),
                Ok(Ok(_)) => return Err(Broken::Protocol("an answer too many".into())),
                Err(_) => return Err(Broken::Protocol("no last answer".into())),
            }
        }
    }

    /// The receiver's own reason, if it gave one within a moment.
    fn last_words(&mut self) -> Option<Broken> {
        loop {
            match self.replies.recv_timeout(Duration::from_millis(500)) {
                Ok(Ok(_)) => {}
                Ok(Err(broken)) => return Some(broken),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    fn root(&mut self, root: Root) -> Result<(), Broken> {
        match (root.opened, root.name) {
            (Opened::Folder(fd), name) => {
                let mut stack = Vec::new();
                match name {
                    Some(name) => self.enter(&mut stack, fd, b"", name)?,
                    None => self.push(&mut stack, fd, Vec::new(), false)?,
                }
                self.walk(stack)
            }
            (Opened::File(fd), Some(name)) => match rustix::fs::fstat(&fd) {
                Ok(stat) => {
                    while self.held >= HELD_MAX {
                        self.wait()?;
                    }
                    self.held += 1;
                    self.file(At::Open(fd), name.clone(), name, &stat)
                }
                Err(e) => self.notice(false, &name, paths::fault(e, "cannot read the source")),
            },
            (Opened::Link { target, mtime }, Some(name)) => {
                self.link(name.clone(), name, target, mtime)
            }
            (_, None) => self.notice(false, b"", Fault::new(Code::NotFolder, "not a folder")),
        }
    }

    fn walk(&mut self, mut stack: Vec<Level>) -> Result<(), Broken> {
        while let Some(level) = stack.last_mut() {
            let entry = match level.entries.read() {
                Some(Ok(entry)) => entry,
                Some(Err(e)) => {
                    let key = level.key.clone();
                    self.notice(false, &key, paths::fault(e, "cannot read the folder"))?;
                    continue;
                }
                None => {
                    if level.entered {
                        self.writer.put(&Message::Leave)?;
                    }
                    stack.pop();
                    continue;
                }
            };
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." || paths::is_partial(name) {
                continue;
            }
            let key = paths::join(&level.key, name);
            let dir = Arc::clone(&level.dir);
            let depth = stack.len();
            let stat = match paths::look(dir.as_fd(), name) {
                Ok(stat) => stat,
                Err(e) => {
                    self.notice(false, &key, vanished(e, "cannot look at the source"))?;
                    continue;
                }
            };
            let name = name.to_vec();
            match paths::kind(&stat) {
                Kind::File => self.file(At::In(dir, name.clone()), key, name, &stat)?,
                Kind::Link => match rustix::fs::readlinkat(&*dir, &name, Vec::new()) {
                    Ok(target) => self.link(key, name, target.into_bytes(), paths::mtime(&stat))?,
                    Err(e) => self.notice(false, &key, vanished(e, "cannot read the link"))?,
                },
                Kind::Folder if depth >= wire::DEPTH_MAX => {
                    self.notice(
                        false,
                        &key,
                        Fault::new(Code::BadName, "folders are nested too deep"),
                    )?;
                }
                Kind::Folder => match open_folder(dir.as_fd(), &name) {
                    Ok(fd) => {
                        let parent = paths::split(&key).0.to_vec();
                        self.enter(&mut stack, fd, &parent, name)?;
                    }
                    Err(e) => self.notice(false, &key, vanished(e, "cannot read the folder"))?,
                },
                Kind::Special => self.notice(true, &key, special())?,
            }
        }
        Ok(())
    }

    fn push(
        &mut self,
        stack: &mut Vec<Level>,
        fd: OwnedFd,
        key: Vec<u8>,
        entered: bool,
    ) -> Result<(), Broken> {
        match Dir::read_from(&fd) {
            Ok(entries) => stack.push(Level {
                dir: Arc::new(fd),
                entries,
                key,
                entered,
            }),
            Err(e) => {
                self.notice(false, &key, paths::fault(e, "cannot read the folder"))?;
                if entered {
                    self.writer.put(&Message::Leave)?;
                }
            }
        }
        Ok(())
    }

    fn enter(
        &mut self,
        stack: &mut Vec<Level>,
        fd: OwnedFd,
        parent: &[u8],
        name: Vec<u8>,
    ) -> Result<(), Broken> {
        let key = paths::join(parent, &name);
        let stat = match rustix::fs::fstat(&fd) {
            Ok(stat) => stat,
            Err(e) => return self.notice(false, &key, paths::fault(e, "cannot read the folder")),
        };
        let id = self.announce(key.clone(), What::Other(Kind::Folder))?;
        let (mode, mtime) = (stat.st_mode & 0o7777, paths::mtime(&stat));
        self.writer.put(&Message::Enter {
            id,
            name,
            mode,
            mtime,
        })?;
        self.push(stack, fd, key, true)
    }

    fn file(
        &mut self,
        at: At,
        key: Vec<u8>,
        name: Vec<u8>,
        stat: &rustix::fs::Stat,
    ) -> Result<(), Broken> {
        if self.report.seen(&key) {
            self.held -= usize::from(matches!(at, At::Open(_)));
            return Ok(());
        }
        let meta = paths::meta(stat, Vec::new());
        let (size, mtime) = (meta.size, meta.mtime);
        let id = self.announce(
            key,
            What::File {
                at,
                size,
                mtime,
                sent: 0,
            },
        )?;
        self.writer.put(&Message::File {
            id,
            name,
            mode: meta.mode,
            mtime,
            size,
        })?;
        Ok(())
    }

    fn link(
        &mut self,
        key: Vec<u8>,
        name: Vec<u8>,
        target: Vec<u8>,
        mtime: Mtime,
    ) -> Result<(), Broken> {
        if target.is_empty() || target.len() > wire::PATH_MAX {
            return self.notice(
                false,
                &key,
                Fault::new(Code::BadName, "the link's target is too long"),
            );
        }
        let id = self.announce(key, What::Other(Kind::Link))?;
        self.writer.put(&Message::Link {
            id,
            name,
            mtime,
            target,
        })?;
        Ok(())
    }

    /// Makes room among the announced entries and takes the next number.
    fn announce(&mut self, key: Vec<u8>, what: What) -> Result<u32, Broken> {
        self.drain()?;
        while self.open.len() >= wire::AHEAD_MAX {
            self.wait()?;
        }
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        self.open.insert(id, Announced { key, what });
        Ok(id)
    }

    fn notice(&mut self, skipped: bool, key: &[u8], fault: Fault) -> Result<(), Broken> {
        if skipped {
            self.report.skipped(key, &fault);
        } else {
            self.report.failed(key, &fault);
        }
        self.writer.put(&Message::notice(skipped, key, fault))?;
        Ok(())
    }

    fn send_total(&mut self) -> Result<(), Broken> {
        if !self.total_sent
            && let Some(&(files, bytes)) = self.total.get()
        {
            self.total_sent = true;
            self.report.total(files, bytes);
            self.writer.put(&Message::Total { files, bytes })?;
        }
        Ok(())
    }

    /// Takes in the answers at hand without waiting; the contents they ask for are sent.
    fn drain(&mut self) -> Result<(), Broken> {
        self.send_total()?;
        while self.hear()? {}
        while let Some(wanted) = self.wanted.pop_front() {
            self.contents(&wanted)?;
        }
        Ok(())
    }

    /// Waits for an answer, then as `drain`.
    fn wait(&mut self) -> Result<(), Broken> {
        self.drain()?;
        if self.open.is_empty() {
            return Ok(());
        }
        self.writer.flush()?;
        match self.replies.recv_timeout(Duration::from_millis(200)) {
            Ok(reply) => self.handle(reply)?,
            // The total may have been counted meanwhile.
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Broken::Protocol("answers ended early".into()));
            }
        }
        self.drain()
    }

    fn hear(&mut self) -> Result<bool, Broken> {
        match self.replies.try_recv() {
            Ok(reply) => self.handle(reply).map(|()| true),
            Err(TryRecvError::Empty) => Ok(false),
            Err(TryRecvError::Disconnected) => Err(Broken::Protocol("answers ended early".into())),
        }
    }

    fn handle(&mut self, reply: Result<Message, Broken>) -> Result<(), Broken> {
        match reply? {
            Message::Want {
                id,
                offset,
                whole,
                digest,
            } => {
                match self.open.get(&id) {
                    Some(Announced {
                        what: What::File { size, .. },
                        ..
                    }) if offset <= *size => {}
                    _ => return Err(Broken::Protocol("asked for what was not announced".into())),
                }
                if self.wanted.len() >= wire::AHEAD_MAX {
                    return Err(Broken::Protocol("asked too often".into()));
                }
                self.wanted.push_back(Wanted {
                    id,
                    offset,
                    whole,
                    digest,
                });
            }
            Message::Done { id } => {
                let entry = self.close(id)?;
                match entry.what {
                    What::File { size, .. } => self.report.done(&entry.key, Kind::File, size),
                    What::Other(kind) => {
                        self.folders += usize::from(kind == Kind::Folder);
                        self.report.done(&entry.key, kind, 0);
                    }
                }
            }
            Message::Have { id } => {
                self.close(id)?;
            }
            Message::Failed { id, fault } => {
                let entry = self.close(id)?;
                if let What::File { sent, .. } = entry.what {
                    self.report.undone(sent);
                }
                self.report.failed(&entry.key, &fault);
            }
            _ => {
                return Err(Broken::Protocol(
                    "an answer that does not belong here".into(),
                ));
            }
        }
        Ok(())
    }

    fn close(&mut self, id: u32) -> Result<Announced, Broken> {
        let entry = self
            .open
            .remove(&id)
            .ok_or_else(|| Broken::Protocol("an answer to nothing".into()))?;
        if let What::File {
            at: At::Open(_), ..
        } = entry.what
        {
            self.held -= 1;
        }
        Ok(entry)
    }

    /// A failure on this side of an entry that was announced.
    fn abort(&mut self, id: u32, fault: Fault) -> Result<(), Broken> {
        if self.open.contains_key(&id) {
            let entry = self.close(id)?;
            if let What::File { sent, .. } = entry.what {
                self.report.undone(sent);
            }
            self.report.failed(&entry.key, &fault);
        }
        self.writer.put(&Message::Abort { id, fault })?;
        Ok(())
    }

    fn contents(&mut self, wanted: &Wanted) -> Result<(), Broken> {
        let id = wanted.id;
        let (fd, size, mtime) = {
            // Failed meanwhile: the receiver expects nothing.
            let Some(Announced {
                key,
                what: What::File {
                    at, size, mtime, ..
                },
            }) = self.open.get_mut(&id)
            else {
                return Ok(());
            };
            self.report.started(key);
            let fd = match std::mem::replace(at, At::Taken) {
                At::In(dir, name) => {
                    rustix::fs::openat(&*dir, &name, READ | OFlags::NOFOLLOW, Mode::empty())
                }
                At::Open(fd) => {
                    self.held -= 1;
                    Ok(fd)
                }
                At::Taken => return Err(Broken::Protocol("asked twice for one file".into())),
            };
            (fd, *size, *mtime)
        };
        let fd = match fd {
            Ok(fd) => fd,
            Err(e) => return self.abort(id, vanished(e, "cannot read the source")),
        };
        if let Err(fault) = unchanged(&fd, size, mtime) {
            return self.abort(id, fault);
        }
        let _ = rustix::fs::fadvise(&fd, 0, None, Advice::Sequential);

        let mut digest = Digest::default();
        if wanted.offset > 0 {
            match read_digest(&fd, wanted.offset, self.block.room()) {
                Ok(own) if own.value() == wanted.digest => digest = own,
                Ok(_) => {}
                Err(fault) => return self.abort(id, fault),
            }
        }
        let start = digest.pos();
        self.note_sent(id, start);
        self.report.present(start);
        if wanted.whole && start == size {
            if let Err(fault) = unchanged(&fd, size, mtime) {
                return self.abort(id, fault);
            }
            self.writer.put(&Message::Same { id })?;
            return Ok(());
        }
        self.writer.put(&Message::Begin { id, start })?;
        if let Some(fault) = self.stream(id, &fd, size, &mut digest)? {
            return self.abort(id, fault);
        }
        if let Err(fault) = unchanged(&fd, size, mtime) {
            return self.abort(id, fault);
        }
        self.writer.put(&Message::End {
            digest: digest.value(),
        })?;
        Ok(())
    }

    fn note_sent(&mut self, id: u32, bytes: u64) {
        if let Some(Announced {
            what: What::File { sent, .. },
            ..
        }) = self.open.get_mut(&id)
        {
            *sent += bytes;
        }
    }

    /// Sends bytes and holes up to `size`; gives the reason if it cannot.
    fn stream(
        &mut self,
        id: u32,
        fd: &OwnedFd,
        size: u64,
        digest: &mut Digest,
    ) -> Result<Option<Fault>, Broken> {
        let mut extents = Extents::new(fd, size);
        while digest.pos() < size {
            self.send_total()?;
            while self.hear()? {}
            if !self.open.contains_key(&id) {
                // The receiver gave this file up and has been reported; it skips to the end of it.
                return Ok(Some(Fault::new(Code::Other, "given up by the receiver")));
            }
            let pos = digest.pos();
            let (data, end) = extents.at(pos);
            let moved = if data {
                let room = BLOCK - (pos % BLOCK as u64) as usize;
                let len = room.min(usize::try_from(end - pos).unwrap_or(room));
                let n = match read_some(fd, &mut self.block.room()[..len], pos) {
                    Ok(0) => return Ok(Some(shrunk())),
                    Ok(n) => n,
                    Err(e) => return Ok(Some(paths::fault(e, "cannot read the source"))),
                };
                digest.update(&self.block.room()[..n]);
                self.writer.put_frame(self.block.frame(n))?;
                self.report.moved(n as u64);
                n as u64
            } else {
                let len = end - pos;
                digest.update_zeros(len);
                self.writer.put(&Message::Hole { len })?;
                self.report.hole(len);
                len
            };
            self.note_sent(id, moved);
        }
        Ok(None)
    }
}
