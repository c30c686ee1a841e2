//! The medium over shared memory, mapped: a file on tmpfs or hugetlbfs, which processes of one kernel share, or a
//! device's memory (a PCI resource, as ivshmem has it), which kernels share.
//!
//! - Operations complete within [`Medium::kick`], in order.
//! - The map is only ever seen as atomic words, which are copied out or in: a peer's write in the middle of a
//!   copy gives mixed bytes and nothing worse. The copies are what the floors above check.
//! - What goes in lands back to front as far as it matters: a segment's number last. So who sees the number sees the
//!   segment, and hardly ever half of one.
//! - The first [`Medium::kick`] in every [`WHOLE_FOR`] asks whether the file still has all its pages. If not
//!   (somebody truncated it or punched a hole), `pread` and `pwrite` serve instead, and errors are errors: access
//!   through the map could end in `SIGBUS`. A truncation between that question and the copies behind it is not
//!   survived. A device's memory keeps its size and cannot be read but through the map. [`Medium::memory`] asks each time.
//! - Between two questions a transfer makes no system call, but for the first that touches a stretch of
//!   [`POPULATE_BYTES`]: all its pages are brought in at once.
//! - Nothing here outlives a loss of power, durable or not.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::ptr::NonNull;
use std::sync::Arc;
#[cfg(target_arch = "x86_64")]
use std::sync::atomic::fence;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};
use stp_format::segment::{SEGMENT_HEAD_BYTES, SEGMENT_SEQ_AT};
use stp_format::{Geometry, Place, SeatId, UNIT_BYTES};

use crate::storage::{Writable, locate, outside};
use crate::words::{self, WORD_BYTES};
use crate::{Completion, Medium, Memory, Op, OpId, SeatLock, Spot, lock};

/// Operations handed over between two kicks beyond which nothing is gained.
const DEPTH: usize = 64;
/// Words of a cache line.
#[cfg(target_arch = "x86_64")]
const LINE_WORDS: usize = 8;
/// From so many bytes on the processor's own copy is faster than word by word.
#[cfg(target_arch = "x86_64")]
const STRING_BYTES: usize = 2048;
/// A string copy to less than this ahead of its source, modulo the page, is slow: 3 to 20 instead of 50 GB/s.
#[cfg(target_arch = "x86_64")]
const CLEAR_BYTES: usize = 64;
/// How long the answer is good that the file has all its pages: the question is a system call, as dear as a small
/// message. After a pause it is always asked anew.
const WHOLE_FOR: Duration = Duration::from_millis(1);
/// What is brought in at one go: a fault for each page costs more than what the page carries.
const POPULATE_BYTES: usize = 2 << 20;

/// Whose memory it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Owner {
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
    map: Arc<Map>,
    owner: Owner,
    geometry: Option<Geometry>,
    memory: Option<Arc<dyn Memory>>,
    writable: Writable,
    /// When it was last asked whether the file has all its pages, and whether it had.
    asked: Option<(Instant, bool)>,
    submitted: VecDeque<(OpId, Op)>,
    done: VecDeque<Completion>,
}

impl Mapped {
    pub(crate) fn new(file: Arc<File>, writable: Writable) -> io::Result<Self> {
        let map = Map::new(&file, writable)?;
        let owner = if is_device_memory(&file) {
            Owner::Device
        } else {
            Owner::File
        };
        Ok(Self {
            file,
            map: Arc::new(map),
            owner,
            geometry: None,
            memory: None,
            writable,
            asked: None,
            submitted: VecDeque::new(),
            done: VecDeque::new(),
        })
    }

    /// Whether the map can be touched: the file has all its pages, or had them a moment ago.
    fn pages_whole(&mut self) -> bool {
        if self.owner == Owner::Device {
            return true;
        }
        let now = Instant::now();
        if let Some((at, whole)) = self.asked
            && now.duration_since(at) < WHOLE_FOR
        {
            return whole;
        }
        self.ask_pages(now)
    }

    fn ask_pages(&mut self, now: Instant) -> bool {
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
        let map = Arc::clone(&self.map);
        let writable = self.writable;
        self.memory = Some(Arc::new(Slots {
            map,
            geometry,
            writable,
        }));
    }

    fn memory(&mut self) -> Option<Arc<dyn Memory>> {
        let whole = self.owner == Owner::Device || self.ask_pages(Instant::now());
        self.memory.clone().filter(|_| whole)
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
        match self.owner {
            Owner::File => "mapped memory, one kernel",
            Owner::Device => "mapped memory of a device, shared by kernels",
        }
        .into()
    }
}

/// The map as places.
struct Slots {
    map: Arc<Map>,
    geometry: Geometry,
    writable: Writable,
}

impl Slots {
    /// The words of `len` bytes of a slot, from its byte `at` on.
    fn words(&self, spot: &Spot, at: usize, len: usize) -> Option<&[AtomicU64]> {
        self.map.find_words(spot.offset(at, len)?, len)
    }
}

impl Memory for Slots {
    fn spot(&self, place: Place) -> Option<Spot> {
        Spot::of(&self.geometry, place)
    }

    fn word(&self, spot: &Spot, at: usize) -> Option<&AtomicU64> {
        self.words(spot, at, WORD_BYTES)?.first()
    }

    fn read(&self, spot: &Spot, at: usize, into: &mut [u8]) -> io::Result<()> {
        let words = self.words(spot, at, into.len()).ok_or_else(outside)?;
        take_out(words, into);
        Ok(())
    }

    fn prepare(&self, spot: &Spot, len: usize) {
        if let Some(words) = self.words(spot, 0, len) {
            want_to_write(words);
        }
    }

    fn write(&self, spot: &Spot, bytes: &[u8]) -> io::Result<()> {
        if self.writable == Writable::No {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let words = self.words(spot, 0, bytes.len()).ok_or_else(outside)?;
        put_segment(words, bytes);
        Ok(())
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
    #[inline]
    fn populate(&self, offset: usize, len: usize) {
        let first = offset / POPULATE_BYTES;
        let alone = len > 0 && (offset + len - 1) / POPULATE_BYTES == first;
        if !alone || !self.populated[first].load(Ordering::Relaxed) {
            self.populate_stretches(first..(offset + len).div_ceil(POPULATE_BYTES));
        }
    }

    #[cold]
    fn populate_stretches(&self, stretches: Range<usize>) {
        for stretch in stretches {
            let populated = &self.populated[stretch];
            if populated.load(Ordering::Relaxed) || populated.swap(true, Ordering::Relaxed) {
                continue;
            }
            let first = stretch * POPULATE_BYTES;
            let bytes = POPULATE_BYTES.min(self.len - first);
            // SAFETY: the stretch lies in the map (its flag exists), and bringing pages in changes
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

    /// The words of a byte range whose bounds are multiples of the word; `None` if it does not lie in the map.
    #[inline]
    fn find_words(&self, offset: u64, len: usize) -> Option<&[AtomicU64]> {
        if !offset.is_multiple_of(WORD_BYTES as u64) || !self.holds(offset, len) {
            return None;
        }
        let offset = offset as usize;
        self.populate(offset, len);
        // SAFETY: the range was checked to lie in the map, whose start is page-aligned; the map lives as long as
        // `self`. All accesses of this program are atomic and of this size; writes of other processes are
        // outside its memory model and can give any value, which an integer may have.
        Some(unsafe {
            let start = self.start.as_ptr().add(offset).cast();
            std::slice::from_raw_parts(start, len / WORD_BYTES)
        })
    }

    /// As [`Map::find_words`], of a range that is known to lie in the map.
    fn words(&self, offset: usize, len: usize) -> &[AtomicU64] {
        let words = self.find_words(offset as u64, len);
        words.expect("a range of words that lies in the map")
    }

    pub(crate) fn copy_out(&self, offset: usize, into: &mut [u8]) {
        take_out(self.words(offset, into.len()), into);
    }

    pub(crate) fn copy_in(&self, offset: usize, from: &[u8]) {
        put_segment(self.words(offset, from.len()), from);
    }
}

/// Asks for the lines of a range as this processor's own: a store waits for each of them otherwise, one after the
/// other.
fn want_to_write(words: &[AtomicU64]) {
    #[cfg(target_arch = "x86_64")]
    for line in words.chunks(LINE_WORDS) {
        // SAFETY: a hint about memory of the map, which it does not change.
        unsafe {
            std::arch::asm!(
                "prefetchw [{}]",
                in(reg) line.as_ptr(),
                options(nostack, preserves_flags, readonly)
            );
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = words;
}

/// As [`words::copy_out`].
fn take_out(words: &[AtomicU64], into: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if into.len() >= STRING_BYTES && is_clear(words.as_ptr().addr(), into.as_ptr().addr()) {
        assert!(words.len() * WORD_BYTES >= into.len());
        // SAFETY: both ranges have this length (asserted), and they do not overlap: one is the map's, the other the
        // caller's. What others write meanwhile gives mixed bytes, as word by word; nothing is assumed of them.
        unsafe { copy_string(words.as_ptr().cast(), into.as_mut_ptr(), into.len()) };
        // As `words::copy_out` has it.
        fence(Ordering::Acquire);
        return;
    }
    words::copy_out(words, into);
}

/// Copies what may be a segment, its number last.
fn put_segment(words: &[AtomicU64], from: &[u8]) {
    if from.len() < SEGMENT_HEAD_BYTES {
        return words::copy_in(words, from);
    }
    let (head_words, body_words) = words.split_at(SEGMENT_HEAD_BYTES / WORD_BYTES);
    let (head, body) = from.split_at(SEGMENT_HEAD_BYTES);
    put_in(body_words, body);
    let number = SEGMENT_SEQ_AT / WORD_BYTES;
    words::store(&head_words[..number], &head[..SEGMENT_SEQ_AT]);
    let behind = SEGMENT_SEQ_AT + WORD_BYTES;
    words::store(&head_words[number + 1..], &head[behind..]);
    // Who sees the number, with `Acquire`, sees what it belongs to.
    words::copy_in(&head_words[number..=number], &head[SEGMENT_SEQ_AT..behind]);
}

/// Whether a string copy is fast: not where each store seems to hit what is about to be loaded, by the low bits of their
/// addresses.
#[cfg(target_arch = "x86_64")]
fn is_clear(from: usize, to: usize) -> bool {
    let ahead = to.wrapping_sub(from) % UNIT_BYTES;
    ahead == 0 || ahead >= CLEAR_BYTES
}

/// Copies as the processor itself does it, in an order of its own. What is stored after it is seen after it.
///
/// # Safety
/// `len` bytes, whole words, can be read at `from` and written at `to`, and the ranges do not overlap. Others may write
/// there.
#[cfg(target_arch = "x86_64")]
unsafe fn copy_string(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: as the caller promises; the direction flag is clear by the ABI.
    unsafe {
        std::arch::asm!(
            "rep movsq",
            inout("rcx") len / WORD_BYTES => _,
            inout("rsi") from => _,
            inout("rdi") to => _,
            options(nostack, preserves_flags)
        );
    }
}

/// As [`words::copy_in`].
fn put_in(words: &[AtomicU64], from: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    if from.len() >= STRING_BYTES && is_clear(from.as_ptr().addr(), words.as_ptr().addr()) {
        assert!(words.len() * WORD_BYTES >= from.len());
        fence(Ordering::Release);
        // SAFETY: both ranges have this length (asserted), and they do not overlap: one is the map's, the other the
        // caller's. An atomic word may be written through a shared reference.
        unsafe {
            copy_string(
                from.as_ptr(),
                words.as_ptr().cast::<u8>().cast_mut(),
                from.len(),
            )
        };
        return;
    }
    words::copy_in(words, from);
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
