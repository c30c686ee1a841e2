//! Two sides, a line between them that counts and can be cut, and trees to copy.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use stp_cli::CliError;
use stp_cli::files::client::{self, Connector, Options, Totals};
use stp_cli::files::link::{Broken, Channel};
use stp_cli::files::server::Server;

pub type Hook = Box<dyn Fn(u64) + Send + Sync>;

/// A line to a server that can be cut.
pub struct Line {
    pub server: Arc<Server>,
    /// Bytes until each next cut; empty: no more cuts.
    pub cuts: Mutex<Vec<i64>>,
    pub hook: Option<Arc<Hook>>,
    /// Largest socket buffer: what may be lost in flight.
    pub passed: Arc<AtomicU64>,
}

pub struct Wire {
    pub stream: UnixStream,
    pub left: AtomicI64,
    pub hook: Option<Arc<Hook>>,
    pub passed: Arc<AtomicU64>,
}

impl Wire {
    fn pass(&self, n: usize) -> io::Result<()> {
        let passed = self.passed.fetch_add(n as u64, Ordering::SeqCst) + n as u64;
        if let Some(hook) = &self.hook {
            hook(passed);
        }
        if self.left.fetch_sub(n as i64, Ordering::SeqCst) <= n as i64 {
            let _ = self.stream.shutdown(Shutdown::Both);
        }
        Ok(())
    }
    fn limit(&self, n: usize) -> io::Result<usize> {
        match self.left.load(Ordering::SeqCst) {
            left if left <= 0 => Err(io::Error::from(io::ErrorKind::ConnectionReset)),
            left => Ok(n.min(left as usize)),
        }
    }
}

impl Read for &Wire {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.limit(buf.len())?;
        let n = (&self.stream).read(&mut buf[..n])?;
        self.pass(n)?;
        Ok(n)
    }
}

impl Write for &Wire {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.limit(buf.len())?;
        let n = (&self.stream).write(&buf[..n])?;
        self.pass(n)?;
        Ok(n)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Connector for Line {
    fn connect(&self, system: &str) -> Result<Channel, Broken> {
        assert_eq!(system, "beta");
        let (ours, theirs) = UnixStream::pair().map_err(Broken::NoConnection)?;
        self.server
            .start(Channel::new(theirs, "alpha:1".into(), |s: &UnixStream| {
                let _ = s.shutdown(Shutdown::Both);
            }));
        let wire = Wire {
            stream: ours,
            left: AtomicI64::new(self.cuts.lock().unwrap().pop().unwrap_or(i64::MAX)),
            hook: self.hook.clone(),
            passed: Arc::clone(&self.passed),
        };
        Ok(Channel::new(wire, "beta:2121".into(), |w: &Wire| {
            let _ = w.stream.shutdown(Shutdown::Both);
        }))
    }
}

pub fn line(served: &Path) -> Line {
    line_to(served, false)
}

pub fn line_to(served: &Path, read_only: bool) -> Line {
    Line {
        server: Server::new(OwnedFd::from(File::open(served).unwrap()), read_only),
        cuts: Mutex::default(),
        hook: None,
        passed: Arc::default(),
    }
}

pub const PLAIN: Options = Options {
    recursive: false,
    quiet: true,
    retries: 0,
};
pub const TREE: Options = Options {
    recursive: true,
    ..PLAIN
};

pub fn cp(
    line: &Line,
    options: Options,
    operands: &[&dyn AsRef<OsStr>],
) -> Result<Totals, CliError> {
    let operands: Vec<OsString> = operands.iter().map(|o| (*o).as_ref().to_owned()).collect();
    client::copy(line, &operands, options)
}

/// A folder with a served and a local half.
pub struct Two {
    pub temp: tempfile::TempDir,
}

impl Two {
    pub fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir(temp.path().join("served")).unwrap();
        fs::create_dir(temp.path().join("local")).unwrap();
        fs::set_permissions(temp.path(), Permissions::from_mode(0o755)).unwrap();
        Self { temp }
    }
    pub fn served(&self) -> PathBuf {
        self.temp.path().join("served")
    }
    pub fn local(&self, name: &str) -> PathBuf {
        self.temp.path().join("local").join(name)
    }
}

pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(len);
    out
}

pub fn set_mtime(path: &Path, seconds: u64) {
    let time = SystemTime::UNIX_EPOCH + Duration::new(seconds, 123_456_789);
    File::open(path).unwrap().set_modified(time).unwrap();
}

/// A folder with everything in it.
pub fn make_tree(at: &Path) {
    fs::create_dir_all(at.join("a/b/c")).unwrap();
    fs::create_dir(at.join("empty")).unwrap();
    fs::write(at.join("zero"), b"").unwrap();
    fs::write(at.join("small"), b"hello").unwrap();
    fs::write(at.join("a/big"), noise(3 << 20, 1)).unwrap();
    fs::write(at.join("a/b/odd"), noise((256 << 10) + 1, 2)).unwrap();
    fs::write(at.join(OsStr::from_bytes(b"not-utf8-\xff\xfe")), b"bytes").unwrap();
    fs::write(at.join("new\nline"), b"n").unwrap();
    fs::create_dir(at.join(OsStr::from_bytes(b"dir-\xe9"))).unwrap();
    fs::write(at.join(OsStr::from_bytes(b"dir-\xe9/f")), b"in").unwrap();
    symlink("small", at.join("link")).unwrap();
    symlink("/nowhere/at/all", at.join("dangling")).unwrap();
    symlink("a/b", at.join("dirlink")).unwrap();
    for i in 0..300 {
        fs::write(at.join(format!("a/b/c/{i}")), noise(i * 7, i as u64)).unwrap();
    }
    let mut sparse = File::create(at.join("a/sparse")).unwrap();
    sparse.seek(SeekFrom::Start(64 << 20)).unwrap();
    sparse.write_all(b"in the middle").unwrap();
    sparse.set_len(128 << 20).unwrap();
    drop(sparse);
    fs::set_permissions(at.join("small"), Permissions::from_mode(0o640)).unwrap();
    fs::set_permissions(at.join("zero"), Permissions::from_mode(0o400)).unwrap();
    set_mtime(&at.join("small"), 1_000_000_000);
    set_mtime(&at.join("a/big"), 1_100_000_000);
    fs::set_permissions(at.join("a/b/c"), Permissions::from_mode(0o555)).unwrap();
    fs::set_permissions(at.join("a"), Permissions::from_mode(0o750)).unwrap();
    set_mtime(&at.join("a/b/c"), 1_200_000_000);
    set_mtime(&at.join("a/b"), 1_300_000_000);
    set_mtime(&at.join("empty"), 1_400_000_000);
    set_mtime(at, 1_500_000_000);
}

pub fn names(at: &Path) -> Vec<OsString> {
    let mut names: Vec<_> = fs::read_dir(at)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    names.sort();
    names
}

pub fn same_contents(a: &Path, b: &Path) {
    let (mut one, mut two) = (File::open(a).unwrap(), File::open(b).unwrap());
    let (mut x, mut y) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        let n = one.read(&mut x).unwrap();
        two.read_exact(&mut y[..n]).unwrap();
        assert!(
            x[..n] == y[..n],
            "{} differs from {}",
            b.display(),
            a.display()
        );
        if n == 0 {
            return;
        }
    }
}

/// Same kinds, contents, modes, times, links; and no storage for holes.
pub fn assert_same(a: &Path, b: &Path) {
    let (one, two) = (
        fs::symlink_metadata(a).unwrap(),
        fs::symlink_metadata(b).unwrap(),
    );
    let at = b.display();
    assert_eq!(one.file_type(), two.file_type(), "{at}");
    assert_eq!(
        (one.mtime(), one.mtime_nsec()),
        (two.mtime(), two.mtime_nsec()),
        "time of {at}"
    );
    if one.is_symlink() {
        assert_eq!(fs::read_link(a).unwrap(), fs::read_link(b).unwrap(), "{at}");
        return;
    }
    assert_eq!(one.mode(), two.mode(), "mode of {at}");
    if one.is_dir() {
        assert_eq!(names(a), names(b), "in {at}");
        for name in names(a) {
            assert_same(&a.join(&name), &b.join(&name));
        }
    } else {
        assert_eq!(one.len(), two.len(), "{at}");
        assert!(
            two.blocks() <= one.blocks() + 64,
            "{at} takes {} blocks, its source {}",
            two.blocks(),
            one.blocks()
        );
        same_contents(a, b);
    }
}

/// Says that this test cannot run here, where the test runner counts it.
pub fn skip(test: &str, reason: &str) {
    println!("skipped: {reason}");
    if let Some(list) = std::env::var_os("STP_TEST_SKIPS")
        && let Ok(mut list) = File::options().append(true).open(list)
    {
        let _ = writeln!(list, "test\t{test}\t{reason}");
    }
}
