//! The sockets of this process, found by what the kernel says of a descriptor.
//!
//! - The key is the socket's inode, so that every copy of a descriptor is the same socket, and a number that was
//!   closed behind the library's back and given out anew is never taken for the old one.
//! - A socket's state is changed under the table's lock, which nobody holds while anything blocks. `fork` takes it
//!   first, so a child finds every state whole.

use std::cell::UnsafeCell;
use std::collections::HashMap;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Once, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use super::fault::{Code, Fault, Outcome};
use super::home;
use super::socket::{Socket, State};

#[derive(Default)]
struct Table {
    sockets: HashMap<u64, Entry>,
    /// The last socket that was seen behind a number.
    numbers: HashMap<RawFd, u64>,
}

struct Entry {
    socket: Arc<Socket>,
    /// Numbers under which it is known.
    numbers: usize,
}

/// How often `exit` tries to get the lock, a millisecond apart.
const EXIT_TRIES_MAX: u32 = 100;

/// Whether this process has ever given a socket: who never did pays nothing.
static GIVEN: AtomicBool = AtomicBool::new(false);

pub(super) fn any_gifts() -> bool {
    GIVEN.load(Ordering::Relaxed)
}

pub(super) fn gift_made() {
    GIVEN.store(true, Ordering::Relaxed);
}

static TABLE: RwLock<Option<Table>> = RwLock::new(None);

fn read() -> RwLockReadGuard<'static, Option<Table>> {
    TABLE.read().unwrap_or_else(PoisonError::into_inner)
}

fn write() -> RwLockWriteGuard<'static, Option<Table>> {
    TABLE.write().unwrap_or_else(PoisonError::into_inner)
}

/// The inode of a socket; `EBADF` and `ENOTSOCK` for anything else.
fn inode(fd: RawFd) -> Outcome<u64> {
    // SAFETY: plain data that the call fills; any number may be asked about.
    let found = unsafe {
        let mut found: libc::stat = std::mem::zeroed();
        if libc::fstat(fd, &mut found) != 0 {
            return Err(Fault::last());
        }
        found
    };
    if found.st_mode & libc::S_IFMT == libc::S_IFSOCK {
        Ok(found.st_ino)
    } else {
        let what = format!("descriptor {fd} is no socket");
        Err(Fault::new(libc::ENOTSOCK, Code::NotStp, what))
    }
}

/// The socket behind a descriptor.
pub(super) fn find(fd: RawFd) -> Outcome<Arc<Socket>> {
    let inode = inode(fd)?;
    let table = read();
    let found = table.as_ref().and_then(|table| table.sockets.get(&inode));
    match found {
        Some(entry) => Ok(Arc::clone(&entry.socket)),
        None => Err(Fault::new(
            libc::ENOTSOCK,
            Code::NotStp,
            format!(
                "descriptor {fd} is a socket, but not one that STPsocket or STPaccept made in this program"
            ),
        )),
    }
}

/// Works on a socket's state. `work` must not block, nor come back here.
pub(super) fn with<T>(socket: &Socket, work: impl FnOnce(&mut State) -> T) -> T {
    let _table = read();
    let mut state = socket.state.lock().unwrap_or_else(PoisonError::into_inner);
    work(&mut state)
}

/// How many descriptors of this socket are known.
pub(super) fn copies(fd: RawFd) -> usize {
    let Ok(inode) = inode(fd) else {
        return 0;
    };
    let table = read();
    let entry = table.as_ref().and_then(|table| table.sockets.get(&inode));
    entry.map_or(0, |entry| entry.numbers)
}

/// Makes a descriptor known.
pub(super) fn add(fd: &OwnedFd, socket: Arc<Socket>) -> Outcome<()> {
    register_fork();
    let number = fd.as_raw_fd();
    let inode = inode(number)?;
    let gone = {
        let mut table = write();
        let table = table.get_or_insert_default();
        let gone = table.forget(number);
        let entry = table
            .sockets
            .entry(inode)
            .or_insert(Entry { socket, numbers: 0 });
        entry.numbers += 1;
        table.numbers.insert(number, inode);
        gone
    };
    // Its number is in use again, so it was closed without `STPclose`: a program that dies does no more.
    drop(gone);
    Ok(())
}

/// Forgets a descriptor that is about to be closed; the socket, if it was the last one known.
pub(super) fn remove(fd: RawFd) -> Option<Arc<Socket>> {
    let inode = inode(fd).ok()?;
    let mut table = write();
    let table = table.as_mut()?;
    if table.numbers.get(&fd) == Some(&inode) {
        return table.forget(fd);
    }
    // A copy that we were not told of.
    let entry = table.sockets.get(&inode)?;
    (entry.numbers == 0).then(|| Arc::clone(&entry.socket))
}

impl Table {
    fn forget(&mut self, number: RawFd) -> Option<Arc<Socket>> {
        let inode = self.numbers.remove(&number)?;
        let entry = self.sockets.get_mut(&inode)?;
        entry.numbers = entry.numbers.saturating_sub(1);
        if entry.numbers > 0 {
            return None;
        }
        self.sockets.remove(&inode).map(|entry| entry.socket)
    }
}

/// Closes every socket, in no order, while the program exits.
pub(super) fn close_all() {
    // A signal's handler that calls `exit` may have interrupted this very thread while it held the lock.
    let table = (0..EXIT_TRIES_MAX).find_map(|_| match TABLE.try_write() {
        Ok(mut table) => Some(table.take()),
        Err(_) => {
            std::thread::sleep(Duration::from_millis(1));
            None
        }
    });
    let Some(table) = table.flatten() else {
        return;
    };
    // A number that the program closed without `STPclose` may be another file's now.
    let ours = |number: RawFd, known: u64| inode(number).is_ok_and(|inode| inode == known);
    for (&number, known) in &table.numbers {
        if let Some(entry) = table.sockets.get(known) {
            entry
                .socket
                .end(if ours(number, *known) { number } else { -1 });
        }
    }
    for (&number, &known) in &table.numbers {
        if ours(number, known) {
            // SAFETY: this socket's number; the program is exiting.
            unsafe { libc::close(number) };
        }
    }
}

// --- fork

/// The table's lock over a `fork`: taken by the forking thread, given back by it on both sides.
struct Kept(UnsafeCell<Option<RwLockWriteGuard<'static, Option<Table>>>>);

// SAFETY: written and emptied only by the thread that holds the table's write lock.
unsafe impl Sync for Kept {}

static KEPT: Kept = Kept(UnsafeCell::new(None));

fn register_fork() {
    static HANDLERS: Once = Once::new();
    HANDLERS.call_once(|| {
        // SAFETY: the functions are of the right kind and live as long as the library.
        let _ = unsafe { libc::pthread_atfork(Some(before), Some(after), Some(after_in_child)) };
    });
}

extern "C" fn before() {
    let guard = write();
    // SAFETY: this thread holds the write lock.
    unsafe { *KEPT.0.get() = Some(guard) };
}

extern "C" fn after() {
    // SAFETY: this thread took the lock in `before`.
    drop(unsafe { (*KEPT.0.get()).take() });
}

extern "C" fn after_in_child() {
    after();
    home::in_child();
}
