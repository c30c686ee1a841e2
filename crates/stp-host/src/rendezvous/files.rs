//! Files of the run directory: made, replaced, read and shared.
//!
//! - In a directory that a group shares, any member may lay a link, or anything else, where a file is made: nothing is
//!   opened or changed but what lies there itself and has no other name.
//! - What others read is written under a name of its own and then moved: it is whole or not there.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Stat, chownat, fstat, openat};

/// Permission bits of a directory that one user has alone, and of one that is shared with its group. What is made
/// in a shared one belongs to the same group.
pub(super) const PRIVATE: u32 = 0o700;
pub(super) const SHARED: u32 = 0o2770;
/// Of a file or a socket in a shared one.
const SHARED_FILE: u32 = 0o660;

/// Opens what lies there itself, and does not wait for another end of it.
pub(super) const AS_IT_IS: i32 = libc::O_NOFOLLOW | libc::O_NONBLOCK;

/// The longest file that is read.
const READ_BYTES_MAX: u64 = 4 << 20;

/// What lies at `path` itself.
pub(super) fn look_at(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(CWD, path, flags, Mode::empty())?)
}

/// A file or a socket without another name, which may lead to somebody's elsewhere.
fn is_plain(found: &Stat) -> bool {
    let kind = FileType::from_raw_mode(found.st_mode);
    matches!(kind, FileType::RegularFile | FileType::Socket) && found.st_nlink <= 1
}

fn set_mode(at: &OwnedFd, mode: u32) -> io::Result<()> {
    let name = format!("/proc/self/fd/{}", at.as_raw_fd());
    fs::set_permissions(name, fs::Permissions::from_mode(mode))
}

fn set_group(at: &OwnedFd, group: u32) -> io::Result<()> {
    let group = Some(Gid::from_raw(group));
    Ok(chownat(at, "", None, group, AtFlags::EMPTY_PATH)?)
}

/// Gives a directory of ours to a group as well.
pub(super) fn share_folder(at: &OwnedFd, group: u32) -> io::Result<()> {
    if FileType::from_raw_mode(fstat(at)?.st_mode) != FileType::Directory {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    set_group(at, group)?;
    set_mode(at, SHARED)
}

/// Gives a file or socket of `owner` to a group as well. What is another member's is the group's already.
pub(super) fn share_file(path: &Path, owner: u32, group: u32) -> io::Result<()> {
    let at = look_at(path)?;
    let found = fstat(&at)?;
    if found.st_uid != owner || !is_plain(&found) {
        return Ok(());
    }
    set_group(&at, group)?;
    set_mode(&at, SHARED_FILE)
}

/// A file or socket that was just made: in a shared directory, the group may use it too.
pub(crate) fn shared_as_its_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().map(fs::metadata).transpose()?;
    if folder.is_none_or(|folder| folder.mode() & 0o7777 != SHARED) {
        return Ok(());
    }
    let at = look_at(path)?;
    let found = fstat(&at)?;
    if !is_plain(&found) {
        return Err(foreign());
    }
    // One that another member of the group has made is shared already, and only its owner may say so.
    match found.st_mode & 0o777 == SHARED_FILE {
        true => Ok(()),
        false => set_mode(&at, SHARED_FILE),
    }
}

fn foreign() -> io::Error {
    io::Error::other("something else has been put there: remove it")
}

/// Which of two writers of a file prevails.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Put {
    /// The one that comes first; what is there stays.
    First,
    /// The one that comes last.
    Anew,
}

/// Makes a file that is its maker's alone, or its directory's group's.
pub(crate) fn put_file(path: &Path, text: &str, put: Put) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temp = path.with_file_name(format!(".{name}-{}", random_hex()?));
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temp)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            match put {
                // Half of one would stay for good.
                Put::First => file.sync_all(),
                Put::Anew => Ok(()),
            }
        })
        .and_then(|()| shared_as_its_folder(&temp))
        .and_then(|()| match put {
            Put::Anew => fs::rename(&temp, path),
            Put::First => match fs::hard_link(&temp, path) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                linked => linked,
            },
        });
    if put == Put::First || written.is_err() {
        let _ = fs::remove_file(&temp);
    }
    written
}

/// 128 random bits.
pub(crate) fn random_hex() -> io::Result<String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(format!("{:032x}", u128::from_be_bytes(bytes)))
}

/// The text of a file.
pub(crate) fn read_file(path: &Path) -> io::Result<String> {
    let mut options = OpenOptions::new();
    let file = options.read(true).custom_flags(AS_IT_IS).open(path)?;
    let mut text = String::new();
    file.take(READ_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

/// Opens a file to write at its end; makes it if it is missing.
pub(super) fn open_log(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(AS_IT_IS)
        .open(path)?;
    let found = file.metadata()?;
    if !found.is_file() || found.nlink() > 1 {
        return Err(foreign());
    }
    shared_as_its_folder(path).map(|()| file)
}
