//! What a user calls a volume, and the way from there to a medium.
//!
//! - A spec is a path, with `file:`, `block:` or `mem:` in front if the kind is not to be detected.
//! - Opening creates nothing and writes nothing.
//! - An error is one line that names the path and what to do.

use std::fmt;
use std::fs::{File, OpenOptions as FileOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use rustix::io::Errno;
use stp_format::{UNIT_BYTES, UnitBuf};

use crate::Medium;
use crate::direct::{Backend, Direct};
use crate::mapped::{Mapped, SYSFS};
use crate::pool::{Passing, Pool};
use crate::storage::Writable;
use crate::uring::Ring;

/// What kind of storage a volume lies on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A preallocated file.
    File,
    /// A block device.
    Block,
    /// Memory that is mapped: a file on tmpfs or hugetlbfs, or a PCI resource of sysfs.
    Mapped,
}

impl Kind {
    /// The word in front of the colon in a spec.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Block => "block",
            Self::Mapped => "mem",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File => "file",
            Self::Block => "block device",
            Self::Mapped => "mapped memory",
        })
    }
}

/// A volume as a user names it: `PATH`, `file:PATH`, `block:PATH` or `mem:PATH`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct VolumeSpec {
    path: PathBuf,
    named: Option<NamedKind>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum NamedKind {
    File,
    Block,
    Mapped,
}

/// Why a text names no volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SpecError {
    /// No path.
    Empty,
    /// `word://...`; holds the word.
    UnknownScheme(String),
}

impl fmt::Display for SpecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str(
                "no volume named: give a path, or file:PATH, block:PATH, mem:PATH (-V or STP_VOLUME)",
            ),
            Self::UnknownScheme(scheme) => write!(
                f,
                "no volumes on {scheme}:// here: give a path, or file:PATH, block:PATH, mem:PATH"
            ),
        }
    }
}

impl std::error::Error for SpecError {}

impl FromStr for VolumeSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let (named, path) = match text.split_once(':') {
            Some(("file", path)) => (Some(NamedKind::File), path),
            Some(("block", path)) => (Some(NamedKind::Block), path),
            Some(("mem", path)) => (Some(NamedKind::Mapped), path),
            Some((scheme, rest)) if rest.starts_with("//") && is_scheme(scheme) => {
                return Err(SpecError::UnknownScheme(scheme.into()));
            }
            _ => (None, text),
        };
        if path.is_empty() {
            return Err(SpecError::Empty);
        }
        Ok(Self {
            path: path.into(),
            named,
        })
    }
}

fn is_scheme(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric())
}

impl From<&Path> for VolumeSpec {
    /// A path taken literally where it is not text; otherwise as [`FromStr`] does.
    fn from(path: &Path) -> Self {
        path.to_str()
            .and_then(|text| text.parse().ok())
            .unwrap_or_else(|| Self {
                path: path.into(),
                named: None,
            })
    }
}

impl fmt::Display for VolumeSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.named_kind() {
            Some(kind) => write!(f, "{}:{}", kind.prefix(), self.path.display()),
            None => self.path.display().fmt(f),
        }
    }
}

impl VolumeSpec {
    /// The file or device.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The kind, if the user named one.
    pub fn named_kind(&self) -> Option<Kind> {
        self.named.map(|named| match named {
            NamedKind::File => Kind::File,
            NamedKind::Block => Kind::Block,
            NamedKind::Mapped => Kind::Mapped,
        })
    }

    /// The kind of what stands at the path now.
    pub fn detect(&self) -> Result<Kind, OpenError> {
        let error = |cause| OpenError {
            spec: self.clone(),
            cause,
        };
        let found = std::fs::metadata(&self.path)
            .map_err(|source| error(OpenCause::of(source, Access::Read)))?;
        let file_type = found.file_type();
        let named = self.named_kind();
        if file_type.is_dir() {
            return Err(error(OpenCause::NotStorage("a directory")));
        }
        if file_type.is_char_device() {
            return Err(error(OpenCause::NotStorage("a character device")));
        }
        if file_type.is_block_device() {
            return match named {
                None | Some(Kind::Block) => Ok(Kind::Block),
                Some(named) => Err(error(OpenCause::OtherKind(named, "a block device"))),
            };
        }
        if !file_type.is_file() {
            return Err(error(OpenCause::NotStorage("a pipe or socket")));
        }
        let magic = rustix::fs::statfs(&self.path)
            .map_err(|errno| error(OpenCause::Io(errno.into())))?
            .f_type as u32;
        match (named, MEMORY_FILE_SYSTEMS.contains(&magic)) {
            (None | Some(Kind::Mapped), true) => Ok(Kind::Mapped),
            (None, false) | (Some(Kind::File), _) => Ok(Kind::File),
            (Some(Kind::Mapped), false) => Err(error(OpenCause::OtherKind(
                Kind::Mapped,
                "a file that does not lie in memory",
            ))),
            (Some(Kind::Block), _) => Err(error(OpenCause::OtherKind(Kind::Block, "a file"))),
        }
    }
}

/// `f_type` of tmpfs (devtmpfs too), ramfs, hugetlbfs and sysfs.
const MEMORY_FILE_SYSTEMS: [u32; 4] = [0x0102_1994, 0x8584_58f6, 0x9584_58f6, SYSFS];

/// What will be done to the volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Access {
    /// Both.
    #[default]
    ReadWrite,
    /// Writes complete with [`io::ErrorKind::PermissionDenied`].
    Read,
}

/// Who moves the bytes of files and devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IoChoice {
    /// io_uring, threads where the kernel refuses it, buffered I/O where the file system refuses `O_DIRECT`.
    #[default]
    Auto,
    /// io_uring or an error.
    Uring,
    /// Threads.
    Threads,
    /// Buffered I/O by threads, flushed and dropped around each transfer.
    Buffered,
}

impl IoChoice {
    /// Variable that forces a choice: `uring`, `threads` or `buffered`.
    pub const VARIABLE: &'static str = "STP_IO";

    /// What [`Self::VARIABLE`] says.
    pub fn from_env() -> Self {
        match std::env::var(Self::VARIABLE).as_deref() {
            Ok("uring") => Self::Uring,
            Ok("threads") => Self::Threads,
            Ok("buffered") => Self::Buffered,
            Ok("" | "auto") | Err(_) => Self::Auto,
            Ok(other) => {
                tracing::warn!(
                    "{}={other} ignored: uring, threads and buffered are known",
                    Self::VARIABLE
                );
                Self::Auto
            }
        }
    }
}

/// How to open.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenOptions {
    /// For what.
    pub access: Access,
    /// By whom.
    pub io: IoChoice,
}

/// Why a volume's storage cannot be opened: one line that names it and what to do.
#[derive(Debug)]
pub struct OpenError {
    spec: VolumeSpec,
    cause: OpenCause,
}

#[derive(Debug)]
enum OpenCause {
    Missing,
    NotStorage(&'static str),
    OtherKind(Kind, &'static str),
    NoPermission(Access),
    ReadOnlyFileSystem,
    NoDevice,
    Busy,
    SectorTooBig(u32),
    UringRefused(io::Error),
    Io(io::Error),
}

impl OpenCause {
    fn of(source: io::Error, access: Access) -> Self {
        match Errno::from_io_error(&source) {
            Some(Errno::NOENT | Errno::NOTDIR) => Self::Missing,
            Some(Errno::ACCESS | Errno::PERM) => Self::NoPermission(access),
            Some(Errno::ROFS) => Self::ReadOnlyFileSystem,
            Some(Errno::ISDIR) => Self::NotStorage("a directory"),
            Some(Errno::NXIO | Errno::NODEV | Errno::NOMEDIUM) => Self::NoDevice,
            Some(Errno::BUSY | Errno::TXTBSY) => Self::Busy,
            _ => Self::Io(source),
        }
    }
}

impl OpenError {
    /// Says of an error that opening the volume's file or device gave what [`open`] says of it.
    pub fn of(spec: &VolumeSpec, source: io::Error, access: Access) -> Self {
        Self {
            spec: spec.clone(),
            cause: OpenCause::of(source, access),
        }
    }

    /// The volume that was to be opened.
    pub fn spec(&self) -> &VolumeSpec {
        &self.spec
    }

    /// Whether there is nothing at the path.
    pub fn is_missing(&self) -> bool {
        matches!(self.cause, OpenCause::Missing)
    }

    /// Whether only writing is refused.
    pub fn is_read_only(&self) -> bool {
        matches!(
            self.cause,
            OpenCause::ReadOnlyFileSystem | OpenCause::NoPermission(Access::ReadWrite)
        )
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "volume {}: ", self.spec)?;
        match &self.cause {
            OpenCause::Missing => f.write_str(
                "there is no such file or device: check the path, or make it with `stp format`",
            ),
            OpenCause::NotStorage(what) => write!(
                f,
                "this is {what}: a volume is a regular file or a block device"
            ),
            OpenCause::OtherKind(named, found) => write!(
                f,
                "this is {found}: leave `{}:` out to have the kind detected",
                named.prefix()
            ),
            OpenCause::NoPermission(Access::ReadWrite) => f.write_str(
                "no permission to read and write it: become its owner or have the permission granted",
            ),
            OpenCause::NoPermission(Access::Read) => f.write_str(
                "no permission to read it: become its owner or have the permission granted",
            ),
            OpenCause::ReadOnlyFileSystem => {
                f.write_str("it is read-only: mount the file system, or make the device, writable")
            }
            OpenCause::NoDevice => {
                f.write_str("the device is not there: attach it, or check the path")
            }
            OpenCause::Busy => {
                f.write_str("the kernel uses it for something else: unmount or detach it there")
            }
            OpenCause::SectorTooBig(bytes) => write!(
                f,
                "the device has sectors of {bytes} bytes, {UNIT_BYTES} is the most: use another device"
            ),
            OpenCause::UringRefused(source) => write!(
                f,
                "io_uring is refused here ({source}): leave the choice of I/O open"
            ),
            OpenCause::Io(source) => {
                write!(f, "{source}: see whether the storage is in order")
            }
        }
    }
}

impl std::error::Error for OpenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.cause {
            OpenCause::UringRefused(source) | OpenCause::Io(source) => Some(source),
            _ => None,
        }
    }
}

/// Opens the storage of a volume. Its geometry is for the caller to read and set.
pub fn open(spec: &VolumeSpec, options: &OpenOptions) -> Result<Box<dyn Medium>, OpenError> {
    let kind = spec.detect()?;
    open_kind(spec.path(), kind, options).map_err(|cause| OpenError {
        spec: spec.clone(),
        cause,
    })
}

fn open_kind(path: &Path, kind: Kind, options: &OpenOptions) -> Result<Box<dyn Medium>, OpenCause> {
    let access = options.access;
    let writable = match access {
        Access::ReadWrite => Writable::Yes,
        Access::Read => Writable::No,
    };
    if kind == Kind::Mapped {
        let file = open_file(path, access, rustix::fs::OFlags::empty())
            .map_err(|e| OpenCause::of(e, access))?;
        let mapped = Mapped::new(Arc::new(file), writable);
        return Ok(Box::new(mapped.map_err(OpenCause::Io)?));
    }
    let buffered = options.io == IoChoice::Buffered;
    let direct = if buffered {
        None
    } else {
        open_direct(path, access)?
    };
    let (file, passing) = match direct {
        Some(file) => (file, Passing::Direct),
        None => {
            let file = open_file(path, access, rustix::fs::OFlags::empty())
                .map_err(|e| OpenCause::of(e, access))?;
            (file, Passing::Buffered)
        }
    };
    let block = kind == Kind::Block;
    if block {
        let sector = rustix::fs::ioctl_blksszget(&file).unwrap_or(512);
        if sector as usize > UNIT_BYTES {
            return Err(OpenCause::SectorTooBig(sector));
        }
        if access == Access::ReadWrite && is_read_only_device(&file) {
            return Err(OpenCause::ReadOnlyFileSystem);
        }
    }
    let file = Arc::new(file);
    let ring = match (options.io, passing) {
        (IoChoice::Auto | IoChoice::Uring, Passing::Direct) => Some(Ring::new(Arc::clone(&file))),
        _ => None,
    };
    let backend = match ring {
        Some(Ok(ring)) => Backend::Ring(Box::new(ring)),
        Some(Err(source)) if options.io == IoChoice::Uring => {
            return Err(OpenCause::UringRefused(source));
        }
        _ => Backend::Pool(Pool::new(Arc::clone(&file), passing).map_err(OpenCause::Io)?),
    };
    let way = match passing {
        Passing::Direct => "O_DIRECT",
        Passing::Buffered if buffered => "buffered I/O flushed each time (as asked for)",
        Passing::Buffered => "buffered I/O flushed each time (O_DIRECT is refused)",
    };
    let name = format!("{kind}, {way}");
    Ok(Box::new(Direct::new(file, writable, backend, block, name)))
}

/// The open file itself, past everything that this crate puts around it.
pub(crate) fn open_bare(spec: &VolumeSpec) -> Result<(Kind, File), OpenError> {
    let kind = spec.detect()?;
    let access = Access::ReadWrite;
    let opened = match kind {
        Kind::Mapped => open_file(spec.path(), access, rustix::fs::OFlags::empty())
            .map_err(|error| OpenCause::of(error, access)),
        Kind::File | Kind::Block => open_direct(spec.path(), access).and_then(|file| {
            file.ok_or_else(|| {
                OpenCause::Io(io::Error::other(
                    "it refuses O_DIRECT: it has no bare speed",
                ))
            })
        }),
    };
    match opened {
        Ok(file) => Ok((kind, file)),
        Err(cause) => Err(OpenError {
            spec: spec.clone(),
            cause,
        }),
    }
}

/// Some read-only devices can be opened for writing; only the writes fail.
fn is_read_only_device(file: &File) -> bool {
    let Ok(found) = file.metadata() else {
        return false;
    };
    let (major, minor) = (
        rustix::fs::major(found.rdev()),
        rustix::fs::minor(found.rdev()),
    );
    let flag = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/ro"));
    flag.is_ok_and(|flag| flag.trim() == "1")
}

fn open_file(path: &Path, access: Access, flags: rustix::fs::OFlags) -> io::Result<File> {
    FileOptions::new()
        .read(true)
        .write(access == Access::ReadWrite)
        .custom_flags((flags | rustix::fs::OFlags::NOCTTY).bits() as i32)
        .open(path)
}

/// Opens for direct I/O; `None` if the file system refuses that, at once or at the first read.
fn open_direct(path: &Path, access: Access) -> Result<Option<File>, OpenCause> {
    let file = match open_file(path, access, rustix::fs::OFlags::DIRECT) {
        Ok(file) => file,
        Err(error) if Errno::from_io_error(&error) == Some(Errno::INVAL) => return Ok(None),
        Err(error) => return Err(OpenCause::of(error, access)),
    };
    let mut unit = UnitBuf::zeroed(1);
    match file.read_at(unit.bytes_mut(), 0) {
        Ok(_) => Ok(Some(file)),
        Err(error)
            if matches!(
                Errno::from_io_error(&error),
                Some(Errno::INVAL | Errno::OPNOTSUPP)
            ) =>
        {
            Ok(None)
        }
        // A storage that fails now and then: whoever reads it in earnest judges that.
        Err(_) => Ok(Some(file)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specs_are_paths_with_or_without_a_kind() {
        let spec: VolumeSpec = "/dev/sdb".parse().unwrap();
        assert_eq!(
            (spec.named_kind(), spec.path()),
            (None, Path::new("/dev/sdb"))
        );
        let spec: VolumeSpec = "mem:/dev/shm/v".parse().unwrap();
        assert_eq!(spec.named_kind(), Some(Kind::Mapped));
        assert_eq!(spec.to_string(), "mem:/dev/shm/v");
        let spec: VolumeSpec = "a:b".parse().unwrap();
        assert_eq!(spec.path(), Path::new("a:b"));
        assert_eq!("".parse::<VolumeSpec>(), Err(SpecError::Empty));
        assert_eq!("file:".parse::<VolumeSpec>(), Err(SpecError::Empty));
        assert_eq!(
            "s3://bucket/x".parse::<VolumeSpec>(),
            Err(SpecError::UnknownScheme("s3".into()))
        );
    }

    #[test]
    fn what_is_no_storage_is_refused_in_one_line_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, [0; UNIT_BYTES]).unwrap();
        let message = |spec: String| {
            let spec: VolumeSpec = spec.parse().unwrap();
            match open(&spec, &OpenOptions::default()) {
                Ok(_) => panic!("{spec} was opened"),
                Err(error) => {
                    let line = error.to_string();
                    assert!(
                        line.contains(&spec.to_string()) && !line.contains('\n'),
                        "{line}"
                    );
                    line
                }
            }
        };
        assert!(message(dir.path().join("none").display().to_string()).contains("no such file"));
        assert!(message(dir.path().display().to_string()).contains("a directory"));
        assert!(message("/dev/null".into()).contains("a character device"));
        assert!(message(format!("block:{}", file.display())).contains("this is a file"));
    }
}
