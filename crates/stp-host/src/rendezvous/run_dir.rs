//! The run directory, its owner, its locks, and a system's place in it.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use stp_format::{SystemName, VolumeId};

use super::ports::is_held;

/// How often a `host-id` that is not yet whole is read again.
const HOST_ID_TRIES_MAX: u32 = 50;

/// Why a run directory cannot be used. Each names the directory and what to do.
#[derive(Debug)]
#[non_exhaustive]
pub enum RunDirError {
    /// It belongs to another user.
    OtherOwner {
        /// The directory.
        path: PathBuf,
        /// Who owns it.
        owner: u32,
        /// Who we are.
        uid: u32,
    },
    /// Others may read or write it.
    WrongMode {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It is no directory.
    NotADirectory(PathBuf),
    /// It cannot be made or read.
    Io {
        /// What was tried.
        what: &'static str,
        /// On which path.
        path: PathBuf,
        /// What came of it.
        source: io::Error,
    },
    /// `host-id` does not hold 32 hexadecimal digits.
    BadHostId(PathBuf),
}

impl fmt::Display for RunDirError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherOwner { path, owner, uid } => write!(
                f,
                "run directory of another user: {} belongs to user {owner}, this is user {uid}; name another with --run-dir or STP_RUN_DIR",
                path.display()
            ),
            Self::WrongMode { path, mode } => write!(
                f,
                "run directory {} is open to others (mode {mode:04o}): chmod 700 it, or name another with --run-dir or STP_RUN_DIR",
                path.display()
            ),
            Self::NotADirectory(path) => write!(
                f,
                "run directory {} is no directory: remove it, or name another with --run-dir or STP_RUN_DIR",
                path.display()
            ),
            Self::Io { what, path, source } => write!(
                f,
                "run directory: cannot {what} {}: {source}; name another with --run-dir or STP_RUN_DIR",
                path.display()
            ),
            Self::BadHostId(path) => write!(
                f,
                "{} does not hold 32 hexadecimal digits: remove it while no engine runs, it is made anew",
                path.display()
            ),
        }
    }
}

impl std::error::Error for RunDirError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

impl From<RunDirError> for io::Error {
    fn from(error: RunDirError) -> Self {
        let kind = match &error {
            RunDirError::OtherOwner { .. } | RunDirError::WrongMode { .. } => {
                io::ErrorKind::PermissionDenied
            }
            RunDirError::NotADirectory(_) => io::ErrorKind::NotADirectory,
            RunDirError::Io { source, .. } => source.kind(),
            RunDirError::BadHostId(_) => io::ErrorKind::InvalidData,
        };
        Self::new(kind, error)
    }
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RunDirError {
    let path = path.to_owned();
    move |source| RunDirError::Io { what, path, source }
}

/// Makes `path` as a private directory, unless it is one, and checks that it is ours alone.
fn private_dir(path: &Path, parents: bool) -> Result<(), RunDirError> {
    let mut builder = DirBuilder::new();
    builder.mode(0o700);
    match builder.create(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound && parents => {
            builder
                .recursive(true)
                .create(path)
                .map_err(failed("make", path))?;
        }
        made => made.map_err(failed("make", path))?,
    }
    let found = fs::symlink_metadata(path).map_err(failed("read", path))?;
    // A symbolic link is followed once, for the owner's own arrangement; what it leads to is judged.
    let found = if found.is_symlink() && found.uid() == rustix::process::geteuid().as_raw() {
        fs::metadata(path).map_err(failed("read", path))?
    } else {
        found
    };
    let uid = rustix::process::geteuid().as_raw();
    if found.uid() != uid {
        let (path, owner) = (path.to_owned(), found.uid());
        return Err(RunDirError::OtherOwner { path, owner, uid });
    }
    if !found.is_dir() {
        return Err(RunDirError::NotADirectory(path.to_owned()));
    }
    let mode = found.mode() & 0o7777;
    if mode & 0o077 != 0 {
        let path = path.to_owned();
        return Err(RunDirError::WrongMode { path, mode });
    }
    Ok(())
}

/// A checked run directory.
#[derive(Clone, Debug)]
pub struct RunDir {
    path: PathBuf,
}

impl RunDir {
    /// Where it is: `given`, else `STP_RUN_DIR`, `$XDG_RUNTIME_DIR/stp` if that directory is ours (under
    /// `sudo` it may be another user's), `/run/stp` for root or where it is ours, `/tmp/stp-<uid>`.
    pub fn locate(given: Option<&Path>) -> PathBuf {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        if let Some(path) = given {
            return path.to_owned();
        }
        if let Some(path) = variable("STP_RUN_DIR") {
            return path.into();
        }
        let uid = rustix::process::geteuid().as_raw();
        let ours = |path: &Path| {
            fs::symlink_metadata(path).is_ok_and(|found| found.is_dir() && found.uid() == uid)
        };
        if let Some(path) = variable("XDG_RUNTIME_DIR").map(PathBuf::from)
            && path.is_absolute()
            && ours(&path)
        {
            return path.join("stp");
        }
        let system_wide = Path::new("/run/stp");
        if uid == 0 && Path::new("/run").is_dir() || ours(system_wide) {
            return system_wide.to_owned();
        }
        PathBuf::from(format!("/tmp/stp-{uid}"))
    }

    /// Opens the directory at `path`; makes it if it is missing.
    pub fn open(path: &Path) -> Result<Self, RunDirError> {
        private_dir(path, true)?;
        let path = fs::canonicalize(path).map_err(failed("resolve", path))?;
        Ok(Self { path })
    }

    /// [`RunDir::locate`], then [`RunDir::open`].
    pub fn open_default(given: Option<&Path>) -> Result<Self, RunDirError> {
        Self::open(&Self::locate(given))
    }

    /// Its absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The host's identity: random, made at the first call on this host, the same ever after.
    pub fn host_id(&self) -> Result<[u8; 16], RunDirError> {
        let path = self.path.join("host-id");
        for _ in 0..HOST_ID_TRIES_MAX {
            match fs::read_to_string(&path) {
                Ok(text) => {
                    return parse_host_id(text.trim_end()).ok_or(RunDirError::BadHostId(path));
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound => self.make_host_id(&path)?,
                Err(e) => return Err(failed("read", &path)(e)),
            }
        }
        Err(RunDirError::BadHostId(path))
    }

    /// Writes the whole file under a name of its own and links it into place: whoever comes first wins.
    fn make_host_id(&self, path: &Path) -> Result<(), RunDirError> {
        let mut random = [0; 24];
        getrandom::fill(&mut random)
            .map_err(|e| failed("draw a host id for", path)(io::Error::other(e)))?;
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        let temp = self.path.join(format!(".host-id-{}", hex(&random[16..])));
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temp)
            .and_then(|mut file| {
                writeln!(file, "{}", hex(&random[..16]))?;
                file.sync_all()
            })
            .and_then(|()| match fs::hard_link(&temp, path) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                linked => linked,
            });
        let _ = fs::remove_file(&temp);
        written.map_err(failed("make", path))
    }

    /// The place of `system` of the volume `volume`; made if it is missing.
    pub fn system(&self, volume: VolumeId, system: &SystemName) -> Result<SystemDir, RunDirError> {
        let id = volume.to_string();
        let group = self.path.join(&id[..16]);
        let path = group.join(system.as_str());
        let rooms = ["ports", "seats", "gifts"].map(|room| path.join(room));
        for directory in [&group, &path].into_iter().chain(&rooms) {
            private_dir(directory, false)?;
        }
        Ok(SystemDir {
            path,
            system: *system,
        })
    }
}

fn parse_host_id(text: &str) -> Option<[u8; 16]> {
    if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    u128::from_str_radix(text, 16).ok().map(u128::to_be_bytes)
}

/// The place of one system of one volume in the run directory.
#[derive(Clone, Debug)]
pub struct SystemDir {
    path: PathBuf,
    system: SystemName,
}

impl SystemDir {
    /// Its absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whose it is.
    pub fn system(&self) -> &SystemName {
        &self.system
    }

    /// The shared engine's control socket.
    pub fn engine_socket(&self) -> PathBuf {
        self.path.join("engine.sock")
    }

    /// The listening socket of `port`.
    pub fn port_socket(&self, port: u16) -> PathBuf {
        self.path.join("ports").join(format!("{port}.sock"))
    }

    /// Where streams between programs of this system wait for a taker.
    pub(super) fn gifts(&self) -> PathBuf {
        self.path.join("gifts")
    }

    /// Whether a process of this system holds `port` now.
    pub fn is_port_held(&self, port: u16) -> io::Result<bool> {
        is_held(&self.port_socket(port))
    }

    /// The ports that a process of this system holds now, in order.
    pub fn ports(&self) -> io::Result<Vec<u16>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.path.join("ports"))? {
            let name = entry?.file_name();
            let port = name.to_str().and_then(|name| name.strip_suffix(".sock"));
            let Some(port) = port.and_then(|port| port.parse::<u16>().ok()) else {
                continue;
            };
            if is_held(&self.port_socket(port))? {
                found.push(port);
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    /// The lock of the one shared engine; `None` if one runs.
    pub fn lock_engine(&self) -> io::Result<Option<FileLock>> {
        FileLock::try_take(&self.path.join("engine.lock"))
    }

    /// The lock of the one process that keeps a shared engine alive; `None` if one runs.
    pub fn lock_keeper(&self) -> io::Result<Option<FileLock>> {
        FileLock::try_take(&self.path.join("keeper.lock"))
    }

    /// The lock of seat `seat`, held by a node of this host for life; `None` if another node holds it.
    pub fn lock_seat(&self, seat: u16) -> io::Result<Option<FileLock>> {
        FileLock::try_take(&self.path.join("seats").join(format!("{seat}.lock")))
    }

    /// The lock around every change of `ports/`. Held for a few system calls only; waits.
    pub(super) fn lock_ports(&self) -> io::Result<FileLock> {
        FileLock::take(&self.path.join("ports").join("lock"))
    }
}

/// A lock on a file that the kernel gives back when its holder is gone. The file itself stays.
#[derive(Debug)]
pub struct FileLock {
    _file: File,
}

impl FileLock {
    fn open(path: &Path) -> io::Result<File> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))
    }

    /// Takes the lock at `path`; waits for it.
    pub fn take(path: &Path) -> io::Result<Self> {
        let file = Self::open(path)?;
        loop {
            match flock(&file, FlockOperation::LockExclusive) {
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
                Ok(()) => return Ok(Self { _file: file }),
            }
        }
    }

    /// Takes the lock at `path`; `None` if another holds it.
    pub fn try_take(path: &Path) -> io::Result<Option<Self>> {
        let file = Self::open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(e.into()),
            Ok(()) => Ok(Some(Self { _file: file })),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_directory_open_to_others_is_refused_with_the_remedy() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("run");
        RunDir::open(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let error = RunDir::open(&path).unwrap_err();
        assert!(matches!(error, RunDirError::WrongMode { mode: 0o755, .. }));
        assert!(error.to_string().contains("chmod 700"), "{error}");
    }

    #[test]
    fn a_file_in_the_way_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("run");
        fs::write(&path, "").unwrap();
        let error = RunDir::open(&path).unwrap_err();
        assert!(matches!(error, RunDirError::NotADirectory(_)), "{error}");
    }

    #[test]
    fn a_directory_of_another_user_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("run");
        RunDir::open(&path).unwrap();
        if std::os::unix::fs::chown(&path, Some(65534), None).is_err() {
            return; // only root can give a directory away
        }
        let error = RunDir::open(&path).unwrap_err();
        assert!(error.to_string().contains("another user"), "{error}");
    }

    #[test]
    fn many_at_once_agree_on_one_host_id() {
        let root = tempfile::tempdir().unwrap();
        let run = RunDir::open(&root.path().join("run")).unwrap();
        let ids: Vec<_> = std::thread::scope(|scope| {
            let all: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| run.host_id().unwrap()))
                .collect();
            all.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert!(ids.iter().all(|id| *id == ids[0] && *id != [0; 16]));
        fs::write(run.path().join("host-id"), "nonsense\n").unwrap();
        assert!(matches!(run.host_id(), Err(RunDirError::BadHostId(_))));
    }

    #[test]
    fn a_lock_is_one_holders_until_it_goes() {
        let root = tempfile::tempdir().unwrap();
        let run = RunDir::open(&root.path().join("run")).unwrap();
        let dir = run
            .system(VolumeId([7; 16]), &"alpha".parse().unwrap())
            .unwrap();
        let held = dir.lock_seat(3).unwrap().unwrap();
        assert!(dir.lock_seat(3).unwrap().is_none());
        assert!(dir.lock_seat(4).unwrap().is_some());
        drop(held);
        assert!(dir.lock_seat(3).unwrap().is_some());
    }
}
