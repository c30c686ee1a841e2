//! The run directory, its owner, its locks, and a system's place in it.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use stp_format::{SystemName, VolumeId};

use super::files::{
    PRIVATE, Put, SHARED, look_at, open_log, put_file, random_hex, read_file, share_file,
    share_folder,
};
use super::lock::FileLock;
use super::ports::is_held;

/// Identifies the host.
const HOST_ID: &str = "host-id";
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
    /// It is to be shared, and holds what is not of a run directory.
    HoldsOther(PathBuf),
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
            Self::HoldsOther(path) => write!(
                f,
                "{} is not shared with a group: it holds other things than a run directory's; name an empty directory with --run-dir or STP_RUN_DIR",
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
            RunDirError::HoldsOther(_) => io::ErrorKind::DirectoryNotEmpty,
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
        look_at(path)
            .and_then(|made| share_folder(&made, group))
            .map_err(failed("share", path))?;
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

/// Whether a directory's name is one that the layout gives.
type IsOurs = fn(&OsStr) -> bool;

/// The directories below a run directory, floor by floor: a volume's, a system's, a system's rooms.
const LAYOUT: [IsOurs; 3] = [
    |name| {
        let bytes = name.as_bytes();
        bytes.len() == VOLUME_DIGITS && bytes.iter().all(u8::is_ascii_hexdigit)
    },
    |name| {
        name.to_str()
            .is_some_and(|name| name.parse::<SystemName>().is_ok())
    },
    |name| ROOMS.iter().any(|room| name == *room),
];
const VOLUME_DIGITS: usize = 16;
const ROOMS: [&str; 3] = ["ports", "seats", "gifts"];

fn names_in(folder: &Path) -> io::Result<Vec<OsString>> {
    let entries = fs::read_dir(folder)?;
    entries.map(|entry| Ok(entry?.file_name())).collect()
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

    /// Shares it, and everything in it, with a group that this user is in. Only its owner can. Refused for a directory
    /// that holds anything else: what is not STP's is nobody's to share by accident.
    pub fn share(&mut self, group: u32) -> Result<(), RunDirError> {
        let found = names_in(&self.path).map_err(failed("read", &self.path))?;
        let [is_volume, ..] = LAYOUT;
        if !found.iter().any(|name| name == HOST_ID) && !found.iter().all(|name| is_volume(name)) {
            return Err(RunDirError::HoldsOther(self.path.clone()));
        }
        self.share_all(&self.path, &LAYOUT, group)?;
        self.sharing.group = Some(group);
        Ok(())
    }

    fn share_all(&self, folder: &Path, layout: &[IsOurs], group: u32) -> Result<(), RunDirError> {
        look_at(folder)
            .and_then(|found| share_folder(&found, group))
            .map_err(failed("share", folder))?;
        for name in names_in(folder).map_err(failed("read", folder))? {
            let path = folder.join(&name);
            match layout.split_first() {
                Some((is_ours, within)) if is_ours(&name) => {
                    self.share_all(&path, within, group)?
                }
                // Only a system's place holds more than the layout says.
                Some((_, within)) if !within.is_empty() && name != HOST_ID => {}
                _ => {
                    share_file(&path, self.sharing.owner, group).map_err(failed("share", &path))?
                }
            }
        }
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
        let path = self.path.join(HOST_ID);
        for _ in 0..HOST_ID_TRIES_MAX {
            match read_file(&path) {
                Ok(text) => {
                    return parse_host_id(text.trim_end()).ok_or(RunDirError::BadHostId(path));
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound => self.make_host_id(&path)?,
                Err(e) => return Err(failed("read", &path)(e)),
            }
        }
        Err(RunDirError::BadHostId(path))
    }

    fn make_host_id(&self, path: &Path) -> Result<(), RunDirError> {
        let id = random_hex().map_err(failed("draw a host id for", path))?;
        put_file(path, &format!("{id}\n"), Put::First).map_err(failed("make", path))
    }

    /// The place of `system` of the volume `volume`; made if it is missing.
    pub fn system(&self, volume: VolumeId, system: &SystemName) -> Result<SystemDir, RunDirError> {
        let id = volume.to_string();
        let group = self.path.join(&id[..VOLUME_DIGITS]);
        let path = group.join(system.as_str());
        let rooms = ROOMS.map(|room| path.join(room));
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
        let opened = open_log(&path);
        opened.map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))
    }

    /// What engines leave for the next one.
    pub(crate) fn note(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Replaces such a note, as a whole.
    pub(crate) fn leave_note(&self, name: &str, text: &str) -> io::Result<()> {
        put_file(&self.note(name), text, Put::Anew)
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

    /// The lock around every change of `ports/`. Held for a few system calls only; waits for it.
    pub(super) fn lock_ports(&self) -> io::Result<FileLock> {
        FileLock::take(&self.path.join("ports").join("lock"))
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
    fn only_what_is_a_run_directorys_is_shared() {
        let root = tempfile::tempdir().unwrap();
        let group = rustix::process::getegid().as_raw();
        let home = root.path().join("home");
        let mut run = RunDir::open(&home).unwrap();
        fs::write(home.join("diary"), "").unwrap();
        let error = run.share(group).unwrap_err();
        assert!(matches!(error, RunDirError::HoldsOther(_)), "{error}");
        fs::remove_file(home.join("diary")).unwrap();
        run.host_id().unwrap();
        let dir = run
            .system(VolumeId([7; 16]), &"alpha".parse().unwrap())
            .unwrap();
        let (secret, letter) = (root.path().join("secret"), home.join("letter"));
        fs::create_dir(home.join("private")).unwrap();
        for path in [&secret, &letter] {
            fs::write(path, "").unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
        }
        std::os::unix::fs::symlink(&secret, dir.path().join("engine.log")).unwrap();
        fs::hard_link(&secret, dir.path().join("run.key")).unwrap();
        run.share(group).unwrap();
        let mode = |path: &Path| fs::symlink_metadata(path).unwrap().mode() & 0o7777;
        assert_eq!((mode(&home), mode(dir.path())), (SHARED, SHARED));
        assert_eq!(mode(&dir.path().join("ports")), SHARED);
        assert_eq!(mode(&home.join("host-id")), 0o660);
        assert_eq!((mode(&secret), mode(&letter)), (0o600, 0o600));
        assert_ne!(mode(&home.join("private")), SHARED);
    }

    /// A member of the group may put what he likes where an engine of the directory's owner makes its files.
    #[test]
    fn nothing_that_a_link_leads_to_is_touched() {
        let root = tempfile::tempdir().unwrap();
        let group = rustix::process::getegid().as_raw();
        let mut run = RunDir::open(&root.path().join("run")).unwrap();
        run.share(group).unwrap();
        let dir = run
            .system(VolumeId([7; 16]), &"alpha".parse().unwrap())
            .unwrap();
        let precious = root.path().join("precious");
        fs::write(&precious, "precious").unwrap();
        fs::set_permissions(&precious, fs::Permissions::from_mode(0o600)).unwrap();
        let unharmed = || {
            let mode = fs::metadata(&precious).unwrap().mode() & 0o777;
            (fs::read_to_string(&precious).unwrap(), mode) == ("precious".to_owned(), 0o600)
        };
        for name in ["note", "note.new", "engine.log", "engine.lock", "host-id"] {
            let _ = fs::remove_file(dir.path().join(name));
            std::os::unix::fs::symlink(&precious, dir.path().join(name)).unwrap();
        }
        dir.leave_note("note", "for the next one").unwrap();
        assert_eq!(read_file(&dir.note("note")).unwrap(), "for the next one");
        let error = dir.open_engine_log().unwrap_err();
        assert!(error.to_string().contains("engine.log"), "{error}");
        dir.lock_engine().unwrap_err();
        read_file(&dir.path().join("host-id")).unwrap_err();
        fs::remove_file(dir.engine_log()).unwrap();
        fs::hard_link(&precious, dir.engine_log()).unwrap();
        let error = dir.open_engine_log().unwrap_err();
        assert!(error.to_string().contains("remove it"), "{error}");
        assert!(unharmed());
        fs::remove_file(dir.engine_log()).unwrap();
        dir.open_engine_log().unwrap();
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
