//! The run directory, its owner, its locks, and a system's place in it.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use stp_format::{SystemName, VolumeId};

use super::ports::is_held;

/// How often, and how far apart, a lock is tried that others may only look at.
const LOOKS_MAX: u32 = 20;
const LOOK: Duration = Duration::from_millis(5);
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
    /// It is shared with a group that this user is not in.
    NotInGroup {
        /// The directory.
        path: PathBuf,
        /// The group.
        group: u32,
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
            Self::NotInGroup { path, group } => write!(
                f,
                "run directory {} is shared with group {group}, which this user is not in: join it, or name another with --run-dir or STP_RUN_DIR",
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
            RunDirError::OtherOwner { .. }
            | RunDirError::WrongMode { .. }
            | RunDirError::NotInGroup { .. } => io::ErrorKind::PermissionDenied,
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

/// Who may use a directory, and everything in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sharing {
    /// Whose it is.
    pub owner: u32,
    /// The group that shares it; `None`: its owner alone.
    pub group: Option<u32>,
}

/// Permission bits of a directory that one user has alone, and of one that is shared with its group. What is made
/// in a shared one belongs to the same group.
const PRIVATE: u32 = 0o700;
const SHARED: u32 = 0o2770;

/// Makes `path` as a private directory, or one shared as its parent is, unless it is one, and checks who may use it.
fn own_dir(path: &Path, parent: Option<Sharing>) -> Result<Sharing, RunDirError> {
    let mut builder = DirBuilder::new();
    builder.mode(PRIVATE);
    let made = match builder.create(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => false,
        Err(e) if e.kind() == io::ErrorKind::NotFound && parent.is_none() => {
            builder
                .recursive(true)
                .create(path)
                .map_err(failed("make", path))?;
            true
        }
        made => made.map(|()| true).map_err(failed("make", path))?,
    };
    let group = parent.and_then(|parent| parent.group);
    if let (true, Some(group)) = (made, group) {
        share(path, group).map_err(failed("share", path))?;
    }
    let found = fs::symlink_metadata(path).map_err(failed("read", path))?;
    // A symbolic link is followed once, for the owner's own arrangement; what it leads to is judged.
    let uid = rustix::process::geteuid().as_raw();
    let found = if found.is_symlink() && found.uid() == uid {
        fs::metadata(path).map_err(failed("read", path))?
    } else {
        found
    };
    let (owner, mode) = (found.uid(), found.mode() & 0o7777);
    let shared = found.is_dir() && mode == SHARED;
    // A directory within another is shared with the same group or with nobody.
    let may_share = parent.is_none_or(|parent| parent.group == Some(found.gid()));
    if shared && may_share {
        let group = found.gid();
        if owner != uid && !in_group(group) {
            let path = path.to_owned();
            return Err(RunDirError::NotInGroup { path, group });
        }
        let group = Some(group);
        return Ok(Sharing { owner, group });
    }
    if owner != uid {
        let path = path.to_owned();
        return Err(RunDirError::OtherOwner { path, owner, uid });
    }
    if shared && parent.is_some_and(|parent| parent.group.is_none()) {
        // Its owner has taken back what it is in.
        fs::set_permissions(path, fs::Permissions::from_mode(PRIVATE))
            .map_err(failed("close", path))?;
        return Ok(Sharing { owner, group: None });
    }
    if !found.is_dir() {
        return Err(RunDirError::NotADirectory(path.to_owned()));
    }
    if mode & 0o077 != 0 {
        let path = path.to_owned();
        return Err(RunDirError::WrongMode { path, mode });
    }
    let group = None;
    Ok(Sharing { owner, group })
}

/// Whether this process is a member of a group, or root.
fn in_group(group: u32) -> bool {
    rustix::process::geteuid().is_root()
        || rustix::process::getegid().as_raw() == group
        || rustix::process::getgroups()
            .is_ok_and(|groups| groups.iter().any(|found| found.as_raw() == group))
}

/// Gives a directory of ours to a group as well.
fn share(path: &Path, group: u32) -> io::Result<()> {
    std::os::unix::fs::chown(path, None, Some(group))?;
    fs::set_permissions(path, fs::Permissions::from_mode(SHARED))
}

/// A file or socket that was just made: in a shared directory, the group may use it too.
pub(crate) fn shared_as_its_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().map(fs::metadata).transpose()?;
    if folder.is_none_or(|folder| folder.mode() & 0o7777 != SHARED) {
        return Ok(());
    }
    // One that another member of the group has made is shared already, and only its owner may say so.
    if fs::symlink_metadata(path)?.mode() & 0o777 == 0o660 {
        return Ok(());
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o660))
}

/// A checked run directory.
#[derive(Clone, Debug)]
pub struct RunDir {
    path: PathBuf,
    sharing: Sharing,
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

    /// Opens the directory at `path`; makes it if it is missing. It is this user's, or one that its owner shares with
    /// a group of this user's.
    pub fn open(path: &Path) -> Result<Self, RunDirError> {
        let sharing = own_dir(path, None)?;
        let path = fs::canonicalize(path).map_err(failed("resolve", path))?;
        Ok(Self { path, sharing })
    }

    /// [`RunDir::locate`], then [`RunDir::open`]. One that nobody named is this user's own: in `/tmp` anybody could
    /// lay one out for others.
    pub fn open_default(given: Option<&Path>) -> Result<Self, RunDirError> {
        let named =
            given.is_some() || std::env::var_os("STP_RUN_DIR").is_some_and(|v| !v.is_empty());
        let path = Self::locate(given);
        let opened = Self::open(&path)?;
        let (owner, uid) = (opened.sharing.owner, rustix::process::geteuid().as_raw());
        if !named && owner != uid {
            return Err(RunDirError::OtherOwner { path, owner, uid });
        }
        Ok(opened)
    }

    /// Shares it, and everything in it, with a group that this user is in. Only its owner can.
    pub fn share(&mut self, group: u32) -> Result<(), RunDirError> {
        let mut folders = vec![self.path.clone()];
        while let Some(folder) = folders.pop() {
            share(&folder, group).map_err(failed("share", &folder))?;
            for entry in fs::read_dir(&folder).map_err(failed("read", &folder))? {
                let path = entry.map_err(failed("read", &folder))?.path();
                let found = fs::symlink_metadata(&path).map_err(failed("read", &path))?;
                if found.is_dir() {
                    folders.push(path);
                } else if !found.is_symlink() && found.uid() == self.sharing.owner {
                    // What a member of the group has made is the group's already.
                    std::os::unix::fs::chown(&path, None, Some(group))
                        .and_then(|()| shared_as_its_folder(&path))
                        .map_err(failed("share", &path))?;
                }
            }
        }
        self.sharing.group = Some(group);
        Ok(())
    }

    /// Who may use it.
    pub fn sharing(&self) -> Sharing {
        self.sharing
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
            .and_then(|()| shared_as_its_folder(&temp))
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
            own_dir(directory, Some(self.sharing))?;
        }
        Ok(SystemDir {
            path,
            system: *system,
            sharing: self.sharing,
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
    sharing: Sharing,
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

    /// Who may use it.
    pub fn sharing(&self) -> Sharing {
        self.sharing
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

    /// The log of an engine that nobody watches.
    pub fn engine_log(&self) -> PathBuf {
        self.path.join("engine.log")
    }

    /// Opens that log to write at its end.
    pub fn open_engine_log(&self) -> io::Result<File> {
        let path = self.engine_log();
        let opened = new_file().append(true).create(true).open(&path);
        let made = opened.and_then(|file| shared_as_its_folder(&path).map(|()| file));
        made.map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))
    }

    /// What engines leave for the next one.
    pub(crate) fn note(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Replaces such a note, as a whole.
    pub(crate) fn leave_note(&self, name: &str, text: &str) -> io::Result<()> {
        let (path, new) = (self.note(name), self.note(&format!("{name}.new")));
        let mut file = new_file()
            .write(true)
            .create(true)
            .truncate(true)
            .open(&new)?;
        file.write_all(text.as_bytes())?;
        shared_as_its_folder(&new)?;
        fs::rename(&new, &path)
    }

    /// The lock of the one shared engine, for that engine; `None` if one runs.
    pub fn lock_engine(&self) -> io::Result<Option<FileLock>> {
        FileLock::try_keep(&self.engine_lock())
    }

    /// Whether a shared engine runs.
    pub fn has_engine(&self) -> io::Result<bool> {
        Ok(FileLock::try_take(&self.engine_lock())?.is_none())
    }

    fn engine_lock(&self) -> PathBuf {
        self.path.join("engine.lock")
    }

    /// The lock of the one process that keeps a shared engine alive, for that process; `None` if one runs.
    pub fn lock_keeper(&self) -> io::Result<Option<FileLock>> {
        FileLock::try_keep(&self.keeper_lock())
    }

    /// Whether a process keeps a shared engine alive.
    pub fn has_keeper(&self) -> io::Result<bool> {
        Ok(FileLock::try_take(&self.keeper_lock())?.is_none())
    }

    fn keeper_lock(&self) -> PathBuf {
        self.path.join("keeper.lock")
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

/// For a file that is its maker's alone.
fn new_file() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600);
    options
}

/// A lock on a file that the kernel gives back when its holder is gone. The file itself stays.
#[derive(Debug)]
pub struct FileLock {
    file: File,
}

impl FileLock {
    fn open(path: &Path) -> io::Result<File> {
        let open = |new: bool| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(new)
                .mode(0o600)
                .open(path)
        };
        let opened = match open(false) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => match open(true) {
                Ok(file) => shared_as_its_folder(path).map(|()| file),
                // Somebody else was first.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => open(false),
                made => made,
            },
            found => found,
        };
        opened.map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))
    }

    /// Takes the lock at `path`; waits for it.
    pub fn take(path: &Path) -> io::Result<Self> {
        let file = Self::open(path)?;
        loop {
            match flock(&file, FlockOperation::LockExclusive) {
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
                Ok(()) => return Ok(Self { file }),
            }
        }
    }

    /// Takes the lock at `path`; `None` if another holds it.
    pub fn try_take(path: &Path) -> io::Result<Option<Self>> {
        let file = Self::open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(e.into()),
            Ok(()) => Ok(Some(Self { file })),
        }
    }

    /// The same for whoever means to keep it: one that only looks whether it is held has it for a moment, too.
    fn try_keep(path: &Path) -> io::Result<Option<Self>> {
        for _ in 0..LOOKS_MAX {
            if let Some(lock) = Self::try_take(path)? {
                return Ok(Some(lock));
            }
            std::thread::sleep(LOOK);
        }
        Self::try_take(path)
    }

    /// The file, which holds the lock as long as any process has it open.
    pub fn into_file(self) -> File {
        self.file
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
