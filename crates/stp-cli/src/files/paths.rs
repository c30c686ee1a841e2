//! Paths of the file service: what a peer may name, and how it is opened.
//!
//! - A path from a peer is relative to the served folder; absolute ones and `..` are refused before the kernel sees them.
//! - The kernel resolves the rest beneath the folder (openat2); where it cannot, each component is opened without following links.
//! - What a peer named is escaped before it reaches a terminal.

use std::fmt::Write as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::wire::{Code, Fault, Kind, Meta, Mtime, PATH_MAX};

/// Ends the name of data that has arrived of a file that is not complete.
pub const PARTIAL_SUFFIX: &[u8] = b".stp-partial";
/// Ends the name of what is remembered of that file's source.
pub const STATE_SUFFIX: &[u8] = b".stp-state";

/// A peer's path, without empty and `.` components; empty is the served folder itself.
pub fn clean(path: &[u8]) -> Result<Vec<u8>, Fault> {
    if path.len() > PATH_MAX {
        return Err(Fault::new(Code::BadName, "the path is too long"));
    }
    if path.contains(&0) {
        return Err(Fault::new(Code::BadName, "the path has a zero byte"));
    }
    if path.first() == Some(&b'/') {
        return Err(Fault::new(
            Code::Outside,
            "absolute paths are refused; paths are relative to the served folder: leave out the leading `/`",
        ));
    }
    let mut out = Vec::with_capacity(path.len());
    for part in path.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(Fault::new(Code::Outside, "`..` in the path is refused")),
            part => {
                if !out.is_empty() {
                    out.push(b'/');
                }
                out.extend_from_slice(part);
            }
        }
    }
    Ok(out)
}

/// Splits a cleaned, non-empty path into its folder and its last name.
pub fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&b| b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

/// Joins two relative paths.
pub fn join(folder: &[u8], name: &[u8]) -> Vec<u8> {
    if folder.is_empty() {
        name.to_vec()
    } else {
        [folder, b"/", name].concat()
    }
}

/// Opens a cleaned path so that it cannot lead out of `root`. Symbolic links that stay inside are followed, the last one unless
/// `flags` say NOFOLLOW.
pub fn open_beneath(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { b"." } else { path };
    let flags = flags | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..16 {
        match rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) {
            // Something was renamed meanwhile and the kernel could not be sure.
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(Errno::NOSYS | Errno::PERM) => return open_stepwise(root, path, flags),
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

/// The same for kernels (or sandboxes) without openat2: no symbolic link is followed at all.
fn open_stepwise(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let mut held: Option<OwnedFd> = None;
    let mut parts = path.split(|&b| b == b'/').peekable();
    while let Some(part) = parts.next() {
        if part == b".." {
            return Err(Errno::XDEV);
        }
        let at = held.as_ref().map_or(root, |fd| fd.as_fd());
        let how = if parts.peek().is_some() {
            OFlags::PATH | OFlags::DIRECTORY
        } else {
            flags
        };
        let fd = rustix::fs::openat(
            at,
            part,
            how | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        held = Some(fd);
    }
    held.ok_or(Errno::NOENT)
}

/// What a `stat` says, in the protocol's words.
pub fn meta(stat: &Stat, target: Vec<u8>) -> Meta {
    let kind = kind(stat);
    Meta {
        kind,
        mode: stat.st_mode & 0o7777,
        mtime: mtime(stat),
        size: if kind == Kind::File {
            u64::try_from(stat.st_size).unwrap_or(0)
        } else {
            0
        },
        target,
    }
}

/// The kind of what was looked at.
pub fn kind(stat: &Stat) -> Kind {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Folder,
        FileType::Symlink => Kind::Link,
        _ => Kind::Special,
    }
}

/// The time of modification.
#[allow(clippy::unnecessary_cast)] // the field's type differs between architectures
pub fn mtime(stat: &Stat) -> Mtime {
    Mtime {
        seconds: stat.st_mtime as i64,
        nanos: (stat.st_mtime_nsec as u64 % 1_000_000_000) as u32,
    }
}

/// What the kernel's refusal means, in words. `what` is what was being done, `reading the file`.
pub fn fault(errno: Errno, what: &str) -> Fault {
    let (code, text) = match errno {
        Errno::NOENT => (Code::NotFound, "no such file or folder"),
        Errno::ACCESS | Errno::PERM => (Code::Permission, "no permission"),
        Errno::NOSPC => (Code::NoSpace, "no space left"),
        Errno::DQUOT => (Code::NoSpace, "disk quota exceeded"),
        Errno::FBIG => (Code::NoSpace, "the file is too big for this file system"),
        Errno::ISDIR => (Code::IsFolder, "is a folder"),
        Errno::NOTDIR => (Code::NotFolder, "not a folder"),
        Errno::ROFS => (Code::ReadOnly, "read-only file system"),
        Errno::XDEV => (Code::Outside, "leads out of the served folder"),
        Errno::LOOP => (Code::Outside, "symbolic link refused"),
        Errno::NAMETOOLONG => (Code::BadName, "the name is too long"),
        Errno::ILSEQ | Errno::INVAL => (
            Code::BadName,
            "refused by the file system (does it allow this name?)",
        ),
        Errno::MFILE | Errno::NFILE => (Code::Busy, "too many open files (raise `ulimit -n`)"),
        _ => {
            return Fault::new(
                Code::Other,
                format!("{what}: {}", std::io::Error::from(errno)),
            );
        }
    };
    Fault::new(code, format!("{what}: {text}"))
}

/// Bytes for a terminal: control characters and what is not UTF-8 are escaped.
pub fn show(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        show_text(chunk.valid(), &mut out);
        for byte in chunk.invalid() {
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
    out
}

fn show_text(text: &str, out: &mut String) {
    for c in text.chars() {
        if c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
}

/// A peer's text for a terminal.
pub fn show_line(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    show_text(text, &mut out);
    out
}

/// Whether this is the name of a file that did not arrive completely, or of what is remembered of it.
pub fn is_partial(name: &[u8]) -> bool {
    name.first() == Some(&b'.') && (name.ends_with(PARTIAL_SUFFIX) || name.ends_with(STATE_SUFFIX))
}

/// Looks at an entry of a folder without following it.
pub fn look(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Stat, Errno> {
    rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
}

/// Raises the soft limit of open files to the hard one: folders in depth and files in flight each hold one.
pub fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn paths_out_of_the_folder_are_refused() {
        for bad in [
            &b"/etc/passwd"[..],
            b"..",
            b"a/../../b",
            b"a/..",
            b"a\0b",
            &[b'a'; 5000],
        ] {
            assert!(clean(bad).is_err(), "{}", show(bad));
        }
        assert_eq!(clean(b"./a//b/./c/").unwrap(), b"a/b/c");
        assert_eq!(clean(b"").unwrap(), b"");
        assert_eq!(clean(b"..a/b..").unwrap(), b"..a/b..");
    }

    #[test]
    fn links_out_of_the_folder_are_refused_by_both_ways_of_opening() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("root");
        std::fs::create_dir_all(root.join("in/side")).unwrap();
        std::fs::write(temp.path().join("secret"), "s").unwrap();
        std::fs::write(root.join("in/side/f"), "f").unwrap();
        symlink("../secret", root.join("out")).unwrap();
        symlink("/etc", root.join("abs")).unwrap();
        symlink("in/side", root.join("ok")).unwrap();
        let dir = std::fs::File::open(&root).unwrap();
        let fd = dir.as_fd();
        for path in [&b"out"[..], b"abs/passwd", b"in/../../secret"] {
            assert!(open_beneath(fd, path, OFlags::RDONLY).is_err());
            assert!(open_stepwise(fd, path, OFlags::RDONLY).is_err());
        }
        assert!(open_beneath(fd, b"ok/f", OFlags::RDONLY).is_ok());
        assert!(open_stepwise(fd, b"ok/f", OFlags::RDONLY).is_err());
        assert!(open_stepwise(fd, b"in/side/f", OFlags::RDONLY).is_ok());
        assert!(open_stepwise(fd, b".", OFlags::RDONLY).is_ok());
    }

    #[test]
    fn a_terminal_is_safe_from_names() {
        assert_eq!(show(b"a\x1b[31m\xff\n"), "a\\u{1b}[31m\\xff\\n");
        assert_eq!(show("gr\u{fc}n".as_bytes()), "gr\u{fc}n");
    }
}
