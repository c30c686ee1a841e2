//! What else stands on a device or in a file, so that a format does not destroy it unasked.
//!
//! - Nothing is ever written here.
//! - A file that holds anything but zeros counts as holding something. A device does not: bytes that
//!   nobody knows may be what its last owner left. What is known is the table below.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{Advice, SeekFrom};
use stp_format::Geometry;
use stp_format::superblock::SUPERBLOCK_MAGIC;

use crate::mapped::{Map, is_device_memory};
use crate::storage::Writable;

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// The superblock of an STP volume, of whatever version.
    Group,
    /// Something with a name: `"an ext file system"`.
    Known(&'static str),
    /// Bytes other than zero in a file; holds the offset of the first.
    Data(u64),
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Group => f.write_str("an STP group"),
            Self::Known(name) => f.write_str(name),
            Self::Data(offset) => write!(f, "data (from byte {offset} on)"),
        }
    }
}

/// Bytes looked at in front; the furthest magic there ends below.
const HEAD_BYTES: usize = (1 << 20) + 4096;
/// Bytes looked at from the end.
const TAIL_BYTES: usize = 192 << 10;

/// Name, offset and bytes of what stands in front of a storage object.
const MAGICS: &[(&str, usize, &[u8])] = &[
    ("an ext file system", 0x438, b"\x53\xef"),
    ("an XFS file system", 0, b"XFSB"),
    ("a btrfs file system", 0x1_0040, b"_BHRfS_M"),
    (
        "a bcachefs or bcache device",
        0x1018,
        b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca",
    ),
    ("an F2FS file system", 0x400, b"\x10\x20\xf5\xf2"),
    ("an NTFS file system", 3, b"NTFS    "),
    ("an exFAT file system", 3, b"EXFAT   "),
    ("a ReFS file system", 3, b"ReFS\0\0\0\0"),
    ("a FAT file system", 0x52, b"FAT32   "),
    ("a FAT file system", 0x36, b"FAT12   "),
    ("a FAT file system", 0x36, b"FAT16   "),
    ("a BitLocker volume", 3, b"-FVE-FS-"),
    ("a JFS file system", 0x8000, b"JFS1"),
    ("a ReiserFS file system", 0x1_0034, b"ReIsEr"),
    ("a GFS2 file system", 0x1_0000, b"\x01\x16\x19\x70"),
    ("an OCFS2 file system", 0x400, b"OCFSV2"),
    ("an OCFS2 file system", 0x800, b"OCFSV2"),
    ("an OCFS2 file system", 0x1000, b"OCFSV2"),
    ("an OCFS2 file system", 0x2000, b"OCFSV2"),
    ("a VMFS file system", 0x10_0000, b"\x0d\xd0\x01\xc0"),
    ("an HFS+ file system", 0x400, b"H+\0\x04"),
    ("an APFS container", 0x20, b"NXSB"),
    ("a squashfs image", 0, b"hsqs"),
    ("an EROFS image", 0x400, b"\xe2\xe1\xf5\xe0"),
    ("an ISO 9660 image", 0x8001, b"CD001"),
    ("a UDF file system", 0x8001, b"BEA01"),
    ("a UDF file system", 0x8001, b"NSR02"),
    ("swap space", 4086, b"SWAPSPACE2"),
    ("swap space", 4086, b"SWAP-SPACE"),
    ("swap space", 0xfff6, b"SWAPSPACE2"),
    ("a LUKS volume", 0, b"LUKS\xba\xbe"),
    ("an LVM physical volume", 0, b"LABELONE"),
    ("an LVM physical volume", 512, b"LABELONE"),
    ("an LVM physical volume", 1024, b"LABELONE"),
    ("an LVM physical volume", 1536, b"LABELONE"),
    ("a member of an md array", 0, b"\xfc\x4e\x2b\xa9"),
    ("a member of an md array", 4096, b"\xfc\x4e\x2b\xa9"),
    ("a Ceph OSD", 0, b"bluestore block device"),
    ("an Oracle ASM disk", 32, b"ORCLDISK"),
    ("a sanlock lockspace", 0, b"\x10\x20\x28\x12"),
    ("a GPT partition table", 512, b"EFI PART"),
    ("a GPT partition table", 4096, b"EFI PART"),
    ("a qcow2 disk image", 0, b"QFI\xfb"),
    ("a VMDK disk image", 0, b"KDMV"),
    ("a VHDX disk image", 0, b"vhdxfile"),
];

/// All that is known to stand on it, the group first.
///
/// `block`: a device, of which only front and end are looked at; else a file, of which every byte is.
pub fn scan(file: &File, block: bool) -> io::Result<Vec<Found>> {
    // What another host wrote is not to be missed for an old page.
    let _ = rustix::fs::fadvise(file, 0, None, Advice::DontNeed);
    let size = rustix::fs::seek(file, SeekFrom::End(0))?;
    let memory = if is_device_memory(file) {
        Some(Map::new(file, Writable::No)?)
    } else {
        None
    };
    let source = match &memory {
        Some(map) => Source::Memory(map),
        None => Source::File(file),
    };
    let head = source.read_up_to(0, size.min(HEAD_BYTES as u64) as usize)?;
    let tail_bytes = size.min(TAIL_BYTES as u64);
    let tail = source.read_up_to(size - tail_bytes, tail_bytes as usize)?;
    let mut found = inspect(&head, &tail, size);
    if !block
        && found.is_empty()
        && let Some(offset) = source.first_data(size)?
    {
        found.push(Found::Data(offset));
    }
    Ok(found)
}

/// What is looked at.
enum Source<'a> {
    File(&'a File),
    /// A device's, which can only be mapped.
    Memory(&'a Map),
}

impl Source<'_> {
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        match self {
            Self::File(file) => loop {
                match file.read_at(into, offset) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    read => return read,
                }
            },
            Self::Memory(map) => Ok(map.read_at(into, offset)),
        }
    }

    fn read_up_to(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        let mut done = 0;
        while done < len {
            match self.read_at(&mut bytes[done..], offset + done as u64)? {
                0 => break,
                read => done += read,
            }
        }
        bytes.truncate(done);
        Ok(bytes)
    }

    /// Offset of the first byte that is not zero; holes are skipped.
    fn first_data(&self, size: u64) -> io::Result<Option<u64>> {
        let mut buf = vec![0; 1 << 20];
        let mut offset = 0;
        while offset < size {
            if let Self::File(file) = self {
                match rustix::fs::seek(file, SeekFrom::Data(offset)) {
                    Ok(data) => offset = data,
                    Err(rustix::io::Errno::NXIO) => return Ok(None),
                    // No holes known here: everything is read.
                    Err(_) => {}
                }
            }
            let read = match self.read_at(&mut buf, offset)? {
                0 => return Ok(None),
                read => read,
            };
            if let Some(at) = buf[..read].iter().position(|byte| *byte != 0) {
                return Ok(Some(offset + at as u64));
            }
            offset += read as u64;
        }
        Ok(None)
    }
}

fn inspect(head: &[u8], tail: &[u8], size: u64) -> Vec<Found> {
    let at = |offset: usize, magic: &[u8]| head.get(offset..offset + magic.len()) == Some(magic);
    let mut found = Vec::new();
    let mut add = |what: Found| {
        if !found.contains(&what) {
            found.push(what);
        }
    };
    if (0..2).any(|copy| {
        at(
            Geometry::superblock_offset(copy) as usize,
            &SUPERBLOCK_MAGIC,
        )
    }) {
        add(Found::Group);
    }
    for (name, offset, magic) in MAGICS {
        if at(*offset, magic) {
            add(Found::Known(name));
        }
    }
    // Uberblocks of the first ZFS label, in either byte order.
    let zfs: [&[u8]; 2] = [b"\x0c\xb1\xba\0\0\0\0\0", b"\0\0\0\0\0\xba\xb1\x0c"];
    if (128..256).any(|kib| zfs.iter().any(|magic| at(kib << 10, magic))) {
        add(Found::Known("a member of a ZFS pool"));
    }
    if at(510, b"\x55\xaa") && found.is_empty() && has_partitions(head) {
        found.push(Found::Known("an MBR partition table"));
    }
    let mut at_end = |offset: Option<u64>, magic: &[u8], name| {
        let start = size - tail.len() as u64;
        let offset = offset.and_then(|offset| offset.checked_sub(start));
        let bytes = offset.and_then(|offset| tail.get(offset as usize..)?.get(..magic.len()));
        if bytes == Some(magic) && !found.contains(&Found::Known(name)) {
            found.push(Found::Known(name));
        }
    };
    for sector in [512, 4096] {
        let last = size.checked_sub(sector);
        at_end(last, b"EFI PART", "a GPT partition table");
    }
    let md = b"\xfc\x4e\x2b\xa9";
    let name = "a member of an md array";
    at_end((size & !0xffff).checked_sub(0x1_0000), md, name);
    at_end(size.checked_sub(8192).map(|at| at & !0xfff), md, name);
    found
}

/// Whether the four entries of an MBR look like partitions.
fn has_partitions(head: &[u8]) -> bool {
    let Some(table) = head.get(446..510) else {
        return false;
    };
    let flags_are_flags = table.chunks_exact(16).all(|e| e[0] & 0x7f == 0);
    flags_are_flags && table.chunks_exact(16).any(|e| e[4] != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(offset: usize, magic: &[u8]) -> Vec<Found> {
        let mut bytes = vec![0; 4 << 20];
        bytes[offset..offset + magic.len()].copy_from_slice(magic);
        let size = bytes.len();
        inspect(
            &bytes[..HEAD_BYTES],
            &bytes[size - TAIL_BYTES..],
            size as u64,
        )
    }

    #[test]
    fn every_magic_of_the_table_is_found_where_it_belongs() {
        for (name, offset, magic) in MAGICS {
            assert_eq!(with(*offset, magic), [Found::Known(name)]);
            assert!(offset + magic.len() <= HEAD_BYTES);
        }
        assert_eq!(with(0, &SUPERBLOCK_MAGIC), [Found::Group]);
        assert_eq!(with(64 << 10, &SUPERBLOCK_MAGIC), [Found::Group]);
        assert_eq!(with(0, b""), []);
    }

    #[test]
    fn tables_at_the_end_and_partitions_are_found() {
        let size = 4 << 20;
        let gpt = [Found::Known("a GPT partition table")];
        assert_eq!(with(size - 512, b"EFI PART"), gpt);
        let md = [Found::Known("a member of an md array")];
        assert_eq!(with(size - (64 << 10), b"\xfc\x4e\x2b\xa9"), md);
        assert_eq!(with(size - 8192, b"\xfc\x4e\x2b\xa9"), md);
        assert_eq!(with(510, b"\x55\xaa"), []);
        let mut mbr = vec![0; 66];
        mbr[4] = 0x83;
        mbr[64..].copy_from_slice(b"\x55\xaa");
        assert_eq!(with(446, &mbr), [Found::Known("an MBR partition table")]);
    }

    #[test]
    fn a_file_with_a_single_byte_holds_data_and_an_empty_one_does_not() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(5 << 20).unwrap();
        assert_eq!(scan(&file, false).unwrap(), []);
        file.write_all_at(b"x", 3 << 20).unwrap();
        assert_eq!(scan(&file, false).unwrap(), [Found::Data(3 << 20)]);
        assert_eq!(scan(&file, true).unwrap(), []);
    }

    #[test]
    fn anything_shorter_than_the_table_is_no_panic() {
        let file = tempfile::tempfile().unwrap();
        for size in [0, 1, 511, 4097, 70_000] {
            file.set_len(size).unwrap();
            assert_eq!(scan(&file, false).unwrap(), []);
        }
    }
}
