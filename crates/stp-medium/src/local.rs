//! The reference medium: a volume in this process's own memory.
//!
//! - Every handle of one [`Store`] is one host; all of them see each write at once and whole.
//! - Operations complete within [`Medium::kick`], in order: the same calls give the same results.
//! - Seat locks work as between hosts: one holder, until its medium is dropped.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use stp_format::{Geometry, SeatId};

use crate::storage::{Writable, locate};
use crate::{Completion, Medium, Op, OpId, SeatLock};

/// The storage object; clones are the same one.
#[derive(Clone)]
pub struct Store(Arc<Mutex<Contents>>);

struct Contents {
    bytes: Vec<u8>,
    locks: HashMap<SeatId, u64>,
    handles: u64,
}

impl Store {
    /// `bytes` zeros.
    pub fn new(bytes: usize) -> Self {
        Self(Arc::new(Mutex::new(Contents {
            bytes: vec![0; bytes],
            locks: HashMap::new(),
            handles: 0,
        })))
    }

    /// One more host.
    pub fn attach(&self) -> Local {
        let mut contents = self.lock();
        contents.handles += 1;
        let handle = contents.handles;
        drop(contents);
        Local {
            store: self.clone(),
            handle,
            geometry: None,
            submitted: VecDeque::new(),
            done: VecDeque::new(),
        }
    }

    /// Looks at, or spoils, the bytes as no node would.
    pub fn with_bytes<T>(&self, look: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        look(&mut self.lock().bytes)
    }

    fn lock(&self) -> MutexGuard<'_, Contents> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One host's handle on a [`Store`].
pub struct Local {
    store: Store,
    handle: u64,
    geometry: Option<Geometry>,
    submitted: VecDeque<(OpId, Op)>,
    done: VecDeque<Completion>,
}

/// Bytes of a range of the store, or an error if somebody made it shorter.
fn range(bytes: &mut [u8], offset: u64, len: usize) -> io::Result<&mut [u8]> {
    usize::try_from(offset)
        .ok()
        .and_then(|start| bytes.get_mut(start..start.checked_add(len)?))
        .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

impl Medium for Local {
    fn set_geometry(&mut self, geometry: Geometry) {
        self.geometry = Some(geometry);
    }

    fn size_bytes(&self) -> io::Result<u64> {
        Ok(self.store.lock().bytes.len() as u64)
    }

    fn submit(&mut self, id: OpId, op: Op) {
        self.submitted.push_back((id, op));
    }

    fn kick(&mut self) {
        let mut contents = self.store.lock();
        while let Some((id, op)) = self.submitted.pop_front() {
            let located = locate(self.geometry.as_ref(), &op, Writable::Yes);
            let found = located.and_then(|(offset, len)| range(&mut contents.bytes, offset, len));
            let (buf, result) = match op {
                Op::Read { mut buf, .. } => {
                    let result = found.map(|found| buf.bytes_mut().copy_from_slice(found));
                    (Some(buf), result)
                }
                Op::Write { data, .. } => {
                    let result =
                        found.map(|found| found.copy_from_slice(&data.bytes()[..found.len()]));
                    (None, result)
                }
            };
            self.done.push_back(Completion { id, buf, result });
        }
    }

    fn poll(&mut self) -> Option<Completion> {
        self.done.pop_front()
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn depth(&self) -> usize {
        64
    }

    fn lock_seat(&mut self, seat: SeatId) -> io::Result<SeatLock> {
        let mut contents = self.store.lock();
        let holder = *contents.locks.entry(seat).or_insert(self.handle);
        Ok(if holder == self.handle {
            SeatLock::Held
        } else {
            SeatLock::Busy
        })
    }

    fn unlock_seat(&mut self, seat: SeatId) {
        let handle = self.handle;
        let mut contents = self.store.lock();
        contents
            .locks
            .retain(|held, holder| *held != seat || *holder != handle);
    }

    fn describe(&self) -> String {
        "local memory, one process".into()
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        let handle = self.handle;
        self.store
            .lock()
            .locks
            .retain(|_, holder| *holder != handle);
    }
}
