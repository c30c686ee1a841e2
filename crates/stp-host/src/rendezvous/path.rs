//! A Unix socket's path of any length.
//!
//! - A socket address holds 107 bytes. A longer path goes through `/proc/self/fd/<directory>/<name>`,
//!   which the kernel resolves for this process alone; the directory stays open as long as the value lives.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::SocketAddrUnix;

/// The longest path that a socket address holds itself.
const PATH_BYTES_MAX: usize = 107;

/// A socket address for a path, whatever its length.
#[derive(Debug)]
pub struct SocketPath {
    address: SocketAddrUnix,
    /// What the address leads through.
    _open: Option<OwnedFd>,
}

impl SocketPath {
    /// The address of the socket at `path`.
    pub fn new(path: &Path) -> io::Result<Self> {
        if path.as_os_str().len() <= PATH_BYTES_MAX {
            return Ok(Self {
                address: SocketAddrUnix::new(path)?,
                _open: None,
            });
        }
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{} names no socket", path.display()),
            ));
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(CWD, parent, flags, Mode::empty())?;
        let short = Path::new("/proc/self/fd")
            .join(directory.as_raw_fd().to_string())
            .join(name);
        Ok(Self {
            address: SocketAddrUnix::new(&short)?,
            _open: Some(directory),
        })
    }

    /// The address of the socket that lies at `path` itself: another user's symbolic link there is not followed.
    /// `ConnectionRefused` if something else lies there.
    pub fn unfollowed(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let socket = rustix::fs::openat(CWD, path, flags, Mode::empty())?;
        if FileType::from_raw_mode(rustix::fs::fstat(&socket)?.st_mode) != FileType::Socket {
            return Err(Errno::CONNREFUSED.into());
        }
        let short = format!("/proc/self/fd/{}", socket.as_raw_fd());
        Ok(Self {
            address: SocketAddrUnix::new(short)?,
            _open: Some(socket),
        })
    }

    /// What bind and connect take. Valid as long as `self`.
    pub fn address(&self) -> &SocketAddrUnix {
        &self.address
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, listen, socket_with};

    #[test]
    fn a_path_of_any_length_binds_and_connects() {
        let root = tempfile::tempdir().unwrap();
        let deep = root.path().join("d".repeat(120)).join("e".repeat(120));
        std::fs::create_dir_all(&deep).unwrap();
        for path in [root.path().join("short.sock"), deep.join("long.sock")] {
            let socket = || {
                let (family, kind) = (AddressFamily::UNIX, SocketType::STREAM);
                socket_with(family, kind, SocketFlags::CLOEXEC, None).unwrap()
            };
            let server = socket();
            bind(&server, SocketPath::new(&path).unwrap().address()).unwrap();
            listen(&server, 8).unwrap();
            connect(socket(), SocketPath::new(&path).unwrap().address()).unwrap();
            assert!(path.exists());
            connect(socket(), SocketPath::unfollowed(&path).unwrap().address()).unwrap();
            let link = path.with_extension("link");
            std::os::unix::fs::symlink(&path, &link).unwrap();
            connect(socket(), SocketPath::new(&link).unwrap().address()).unwrap();
            let error = SocketPath::unfollowed(&link).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        }
    }
}
