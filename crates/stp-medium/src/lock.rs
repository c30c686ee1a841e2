//! Seat locks: byte-range locks of the kernel, where every host of the group respects them.
//!
//! - A lock belongs to the open file description: other descriptions of the same process conflict, and it
//!   ends with the medium or its process, whichever is first.
//! - The locked byte lies far behind the end of every volume. Over SMB a lock is mandatory: one on
//!   the seat record itself would keep the peers from reading it.
//! - A file system that is not known to share its locks among all hosts that can mount it counts as having
//!   none. A lock that only one host sees would be worse than none.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;

use rustix::io::Errno;
use stp_format::SeatId;

use crate::{SeatLock, sys};

/// First locked byte: seat `n` locks the byte `n` further on.
const LOCK_BASE: u64 = 1 << 62;

/// What a file system's locks are worth.
enum Locks {
    /// One kernel mounts it, or its locks reach every host.
    Shared,
    /// Shared, unless mounted with one of these options.
    SharedUnless(&'static [&'static str]),
}

/// File systems by the `f_type` of `statfs`. Absent: FUSE (a server may keep locks to one mount; virtio-fs,
/// sshfs and GlusterFS cannot be told apart), 9p (locks stay in the guest unless its server was told
/// otherwise), vboxsf, OCFS2 (its usual cluster stack keeps POSIX locks local).
const FILE_SYSTEMS: &[(u32, &str, Locks)] = &[
    (0xef53, "ext", Locks::Shared),
    (0x5846_5342, "xfs", Locks::Shared),
    (0x9123_683e, "btrfs", Locks::Shared),
    (0xf2f5_2010, "f2fs", Locks::Shared),
    (0x2fc1_2fc1, "zfs", Locks::Shared),
    (0xca45_1a4e, "bcachefs", Locks::Shared),
    (0x3153_464a, "jfs", Locks::Shared),
    (0x0102_1994, "tmpfs", Locks::Shared),
    (0x9584_58f6, "hugetlbfs", Locks::Shared),
    (0x8584_58f6, "ramfs", Locks::Shared),
    (0x794c_7630, "overlayfs", Locks::Shared),
    (
        0x6969,
        "nfs",
        Locks::SharedUnless(&["nolock", "local_lock=all", "local_lock=posix"]),
    ),
    (0xff53_4d42, "cifs", Locks::SharedUnless(&["nobrl"])),
    (0xfe53_4d42, "smb2", Locks::SharedUnless(&["nobrl"])),
    (0x00c3_6400, "ceph", Locks::Shared),
    (0x0116_1970, "gfs2", Locks::SharedUnless(&["localflocks"])),
    (
        0x0bd0_0bd0,
        "lustre",
        Locks::SharedUnless(&["localflock", "noflock"]),
    ),
];

pub(crate) fn lock_seat(file: &File, seat: SeatId) -> io::Result<SeatLock> {
    if !locks_are_shared(file)? {
        return Ok(SeatLock::Unsupported);
    }
    match sys::try_lock_range(file, LOCK_BASE + u64::from(seat.0), 1) {
        Ok(()) => Ok(SeatLock::Held),
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::AGAIN | Errno::ACCESS) => Ok(SeatLock::Busy),
            Some(Errno::NOLCK | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL) => {
                Ok(SeatLock::Unsupported)
            }
            _ => Err(error),
        },
    }
}

/// Lets go of a seat, held or not.
pub(crate) fn unlock_seat(file: &File, seat: SeatId) {
    // What the kernel does not let go of ends with the file.
    let _ = sys::unlock_range(file, LOCK_BASE + u64::from(seat.0), 1);
}

fn locks_are_shared(file: &File) -> io::Result<bool> {
    // `f_type` is wider on some machines; magics have 32 bits.
    let magic = rustix::fs::fstatfs(file)?.f_type as u32;
    let known = FILE_SYSTEMS.iter().find(|(known, ..)| *known == magic);
    Ok(match known {
        None => false,
        Some((.., Locks::Shared)) => true,
        Some((_, name, Locks::SharedUnless(options))) => {
            let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
            match mount_options(&mounts, file.metadata()?.dev()) {
                Some(found) => !options.iter().any(|option| found.contains(option)),
                None => {
                    tracing::warn!("mount of this {name} not found: not using its locks");
                    false
                }
            }
        }
    })
}

/// The options of the file system on device `dev`, per mount and per file system.
fn mount_options(mounts: &str, dev: u64) -> Option<Vec<&str>> {
    let device = format!("{}:{}", rustix::fs::major(dev), rustix::fs::minor(dev));
    mounts.lines().find_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut mount = mount.split(' ');
        if mount.nth(2)? != device {
            return None;
        }
        let options = mount.nth(2)?.split(',');
        let super_options = file_system.split(' ').nth(2).unwrap_or("").split(',');
        Some(options.chain(super_options).collect())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_mount_and_file_system_are_found_by_device() {
        let mounts = "\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
90 22 0:52 / /mnt/nfs rw,relatime shared:7 - nfs srv:/x rw,vers=3,nolock,local_lock=all
";
        let dev = rustix::fs::makedev(0, 52);
        let options = mount_options(mounts, dev).unwrap();
        assert!(options.contains(&"nolock") && options.contains(&"relatime"));
        assert!(mount_options(mounts, rustix::fs::makedev(0, 53)).is_none());
    }

    #[test]
    fn two_descriptions_of_one_file_exclude_each_other_seat_by_seat() {
        let path = tempfile::NamedTempFile::new().unwrap();
        let open = || File::options().read(true).write(true).open(path.path());
        let (one, two) = (open().unwrap(), open().unwrap());
        if !locks_are_shared(&one).unwrap() {
            println!("skipped: the file system for temporary files has no shared locks");
            return;
        }
        assert_eq!(lock_seat(&one, SeatId(3)).unwrap(), SeatLock::Held);
        assert_eq!(lock_seat(&one, SeatId(3)).unwrap(), SeatLock::Held);
        assert_eq!(lock_seat(&two, SeatId(3)).unwrap(), SeatLock::Busy);
        assert_eq!(lock_seat(&two, SeatId(4)).unwrap(), SeatLock::Held);
        drop(one);
        assert_eq!(lock_seat(&two, SeatId(3)).unwrap(), SeatLock::Held);
    }
}
