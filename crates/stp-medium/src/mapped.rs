//! The medium over shared memory, mapped: a file on tmpfs or hugetlbfs, which processes of one kernel share, or a
//! device's memory (a PCI resource, as ivshmem has it), which kernels share.
//!
//! - Operations complete within [`Medium::kick`], in order.
//! - The map is only ever seen as atomic words, which are copied out or in: a peer's write in the middle of a
//!   copy gives mixed bytes and nothing worse. The copies are what the floors above check.
//! - The first [`Medium::kick`] in every [`WHOLE_FOR`] asks whether the file still has all its pages. If not
//!   (somebody truncated it or punched a hole), `pread` and `pwrite` serve instead, and errors are errors: access
//!   through the map could end in `SIGBUS`. A truncation between that question and the copies behind it is not
//!   survived. A device's memory keeps its size and cannot be read but through the map.
//! - Between two questions a transfer makes no system call, but for the first that touches a stretch of
//!   [`POPULATE_BYTES`]: all its pages are brought in at once.
//! - Nothing here outlives a loss of power, durable or not.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};
use stp_format::{Geometry, SeatId};

use crate::storage::{Writable, locate};
use crate::words::{self, WORD_BYTES};
use crate::{Completion, Medium, Op, OpId, SeatLock, lock};

/// Operations handed over between two kicks beyond which nothing is gained.
const DEPTH: usize = 64;
/// How long the answer is good that the file has all its pages: the question is a system call, as dear as a small
/// message. After a pause it is always asked anew.
const WHOLE_FOR: Duration = Duration::from_millis(1);
/// What is brought in at one go: a fault for each page costs more than what the page carries.
const POPULATE_BYTES: usize = 2 << 20;

/// Whose memory it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Memory {
    /// A file's pages: they can be taken away.
    File,
    /// A device's: always there.
    Device,
}

/// `f_type` of sysfs, where the memory of PCI devices can be mapped.
pub(crate) const SYSFS: u32 = 0x6265_6572;

/// Whether a file is the memory of a device: it can be mapped but not read, and its size is given.
pub fn is_device_memory(file: &File) -> bool {
    rustix::fs::fstatfs(file).is_ok_and(|found| found.f_type as u32 == SYSFS)
}

pub(crate) struct Mapped {
    file: Arc<File>,
    map: Map,
    memory: Memory,
    geometry: Option<Geometry>,
    writable: Writable,
    /// When it was last asked whether the file has all its pages, and whether it had.
    asked: Option<(Instant, bool)>,
    submitted: VecDeque<(OpId, Op)>,
    done: VecDeque<Completion>,
}

impl Mapped {
    pub(crate) fn new(file: Arc<File>, writable: Writable) -> io::Result<Self> {
        let map = Map::new(&file, writable)?;
        let memory = if is_device_memory(&file) {
            Memory::Device
        } else {
            Memory::File
        };
        Ok(Self {
            file,
            map,
            memory,
            geometry: None,
            writable,
            asked: None,
            submitted: VecDeque::new(),
            done: VecDeque::new(),
        })
    }

    /// Whether the map can be touched: the file has all its pages, or had them a moment ago.
    fn pages_whole(&mut self) -> bool {
        if self.memory == Memory::Device {
            return true;
        }
        let now = Instant::now();
        if let Some((at, whole)) = self.asked
            && now.duration_since(at) < WHOLE_FOR
        {
            return whole;
        }
        let len = self.map.len as u64;
        let whole = self
            .file
            .metadata()
            .is_ok_and(|found| found.len() >= len && found.blocks() * 512 >= len);
        self.asked = Some((now, whole));
        whole
    }

    fn transfer(&self, op: &mut Op, pages_whole: bool) -> io::Result<()> {
        let (offset, len) = locate(self.geometry.as_ref(), op, self.writable)?;
        let through_map = pages_whole && self.map.holds(offset, len);
        match op {
            Op::Read { buf, .. } => {
                let into = &mut buf.bytes_mut()[..len];
                if through_map {
                    self.map.copy_out(offset as usize, into);
                    Ok(())
                } else {
                    self.file.read_exact_at(into, offset)
                }
            }
            Op::Write { data, .. } => {
                let from = &data.bytes()[..len];
                if through_map {
                    self.map.copy_in(offset as usize, from);
                    Ok(())
                } else if offset + len as u64 > self.file.metadata()?.len() {
                    // A plain write would make the file grow again, with a hole in it.
                    Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "the volume has become shorter than its geometry says",
                    ))
                } else {
                    self.file.write_all_at(from, offset)
                }
            }
        }
    }
}

impl Medium for Mapped {
    fn set_geometry(&mut self, geometry: Geometry) {
        self.geometry = Some(geometry);
    }

    fn size_bytes(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn submit(&mut self, id: OpId, op: Op) {
        self.submitted.push_back((id, op));
    }

    fn kick(&mut self) {
        if self.submitted.is_empty() {
            return;
        }
        let pages_whole = self.pages_whole();
        while let Some((id, mut op)) = self.submitted.pop_front() {
            let result = self.transfer(&mut op, pages_whole);
            let buf = match op {
                Op::Read { buf, .. } => Some(buf),
                Op::Write { .. } => None,
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
        DEPTH
    }

    fn lock_seat(&mut self, seat: SeatId) -> io::Result<SeatLock> {
        if self.writable == Writable::No {
            return Ok(SeatLock::Unsupported);
        }
        lock::lock_seat(&self.file, seat)
    }

    fn unlock_seat(&mut self, seat: SeatId) {
        lock::unlock_seat(&self.file, seat);
    }

    fn describe(&self) -> String {
        match self.memory {
            Memory::File => "mapped memory, one kernel",
            Memory::Device => "mapped memory of a device, shared by kernels",
        }
        .into()
    }
}

/// A shared map of the whole file.
pub(crate) struct Map {
    start: NonNull<u8>,
    /// A multiple of the word.
    len: usize,
    /// Per stretch of [`POPULATE_BYTES`]: its pages were brought in.
    populated: Box<[AtomicBool]>,
}

// SAFETY: the map belongs to the process, not to a thread; every access goes through atomics.
unsafe impl Send for Map {}
// SAFETY: as above.
unsafe impl Sync for Map {}

impl Map {
    pub(crate) fn new(file: &File, writable: Writable) -> io::Result<Self> {
        let size = file.metadata()?.len();
        let len = usize::try_from(size).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let len = len / WORD_BYTES * WORD_BYTES;
        let stretches = len.div_ceil(POPULATE_BYTES);
        let populated = (0..stretches).map(|_| AtomicBool::new(false)).collect();
        if len == 0 {
            // Nothing to map; every transfer fails as a read behind the end does.
            return Ok(Self {
                start: NonNull::dangling(),
                len,
                populated,
            });
        }
        let protection = match writable {
            Writable::Yes => ProtFlags::READ | ProtFlags::WRITE,
            Writable::No => ProtFlags::READ,
        };
        // SAFETY: a new map at an address that the kernel chooses disturbs no other memory.
        let start = unsafe {
            mmap(
                std::ptr::null_mut(),
                len,
                protection,
                MapFlags::SHARED,
                file,
                0,
            )?
        };
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self {
            start,
            len,
            populated,
        })
    }

    /// Brings in the pages of a range that lies in the map, unless that was done. Without it, or where the kernel
    /// refuses it, each page comes at its first touch.
    fn populate(&self, offset: usize, len: usize) {
        let stretches = offset / POPULATE_BYTES..(offset + len).div_ceil(POPULATE_BYTES);
        for stretch in stretches {
            let populated = &self.populated[stretch];
            if populated.load(Ordering::Relaxed) || populated.swap(true, Ordering::Relaxed) {
                continue;
            }
            let first = stretch * POPULATE_BYTES;
            let bytes = POPULATE_BYTES.min(self.len - first);
            // SAFETY: the stretch lies in the map (`first` is below `offset + len`), and bringing pages in changes
            // nothing that anybody can see.
            unsafe {
                let start = self.start.as_ptr().add(first).cast();
                let _ = madvise(start, bytes, Advice::LinuxPopulateRead);
            }
        }
    }

    /// As `pread`, in whole words.
    pub(crate) fn read_at(&self, into: &mut [u8], offset: u64) -> usize {
        let left = (self.len as u64).saturating_sub(offset) as usize;
        let len = into.len().min(left) / WORD_BYTES * WORD_BYTES;
        if len > 0 && offset.is_multiple_of(WORD_BYTES as u64) {
            self.copy_out(offset as usize, &mut into[..len]);
            return len;
        }
        0
    }

    pub(crate) fn holds(&self, offset: u64, len: usize) -> bool {
        offset
            .checked_add(len as u64)
            .is_some_and(|end| end <= self.len as u64)
    }

    /// The words of a byte range whose bounds are multiples of the word.
    fn words(&self, offset: usize, len: usize) -> &[AtomicU64] {
        assert!(offset.is_multiple_of(WORD_BYTES) && self.holds(offset as u64, len));
        self.populate(offset, len);
        // SAFETY: the range was checked to lie in the map, whose start is page-aligned; the map lives as long as
        // `self`. All accesses of this program are atomic and of this size; writes of other processes are
        // outside its memory model and can give any value, which an integer may have.
        unsafe {
            let start = self.start.as_ptr().add(offset).cast();
            std::slice::from_raw_parts(start, len / WORD_BYTES)
        }
    }

    pub(crate) fn copy_out(&self, offset: usize, into: &mut [u8]) {
        words::copy_out(self.words(offset, into.len()), into);
    }

    pub(crate) fn copy_in(&self, offset: usize, from: &[u8]) {
        words::copy_in(self.words(offset, from.len()), from);
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: this is the whole map that `new` made; nobody holds a pointer into it any more.
            if let Err(error) = unsafe { munmap(self.start.as_ptr().cast(), self.len) } {
                tracing::warn!(%error, "a map could not be taken down");
            }
        }
    }
}
