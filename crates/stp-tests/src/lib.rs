//! Harness: several systems on one machine that share nothing but a volume.
//!
//! - A [`Lab`] is one test's world: a temporary folder, a [`Volume`], [`Host`]s and their processes. Everything
//!   ends with it, also on panic; processes end even if the test itself is killed.
//! - A [`Host`] is a system with files, a run directory and processes of its own. As root it also has network,
//!   mount, host-name and IPC namespaces of its own, and [`Lab::prove`] shows that no packet carried a byte.
//! - Time limits are hang guards: generous, and nothing is concluded from a duration.
//! - What cannot be tested on a machine is reported by [`skip`], which counts and names it.

pub mod golden;
mod host;
pub mod pattern;
mod skip;
pub mod soak;
mod source;
mod spawn;
mod stage;
mod volume;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use host::{Host, Net};
pub use skip::{skip, skip_part};
pub use source::debian_source;
pub use spawn::{Cmd, Proc, Ran};
pub use stage::{Stage, Transport, find_program};
pub use volume::{Kind, Volume};

/// The limit after which something is taken to hang.
pub const HANG: Duration = Duration::from_secs(120);

/// One test's world.
///
/// Fields end in this order: hosts with their processes, then the volume, then the folder.
pub struct Lab {
    name: String,
    hosts: Vec<Host>,
    volume: Option<Volume>,
    folder: tempfile::TempDir,
}

impl Lab {
    /// A world without a volume yet.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("stp-lab-")
            .tempdir()
            .expect("temporary folder");
        std::fs::create_dir(folder.path().join("hosts")).expect("folder of hosts");
        Self {
            name: name.to_owned(),
            hosts: Vec::new(),
            volume: None,
            folder,
        }
    }

    /// A world with a formatted volume of `kind` and the named systems on it; `None` (and a counted skip) if this
    /// machine has no such volume.
    #[must_use]
    pub fn with(name: &str, kind: Kind, systems: &[&str], net: Net) -> Option<Self> {
        Self::formatted(name, kind, 256 << 20, &[], systems, net)
    }

    /// The same, with a volume of `bytes` bytes and further options of `stp format`.
    #[must_use]
    pub fn formatted(
        name: &str,
        kind: Kind,
        bytes: u64,
        options: &[&str],
        systems: &[&str],
        net: Net,
    ) -> Option<Self> {
        let mut lab = Self::new(&format!("{name} on {kind:?}"));
        match Volume::make(kind, lab.folder.path(), bytes) {
            Ok(volume) => lab.volume = Some(volume),
            Err(reason) => {
                skip(&lab.name, &reason);
                return None;
            }
        }
        for system in systems {
            lab.host(system, net);
        }
        lab.hosts[0]
            .stp(["format"])
            .arg(lab.volume().path(0))
            .args(["--group", "lab"])
            .args(options)
            .ok();
        Some(lab)
    }

    /// What the test is called in reports.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The temporary folder, seen by the test and not by hosts' processes except for their own part.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The volume.
    ///
    /// # Panics
    /// If the world was made without.
    #[must_use]
    pub fn volume(&self) -> &Volume {
        self.volume.as_ref().expect("a lab with a volume")
    }

    /// Adds a system; its view of the volume is the one of its number.
    pub fn host(&mut self, system: &str, net: Net) -> usize {
        let view = self.volume.as_ref().map_or_else(
            || PathBuf::from("/nonexistent"),
            |volume| volume.path(self.hosts.len()),
        );
        self.host_on(system, &view, net)
    }

    /// Adds a system on a volume that the lab did not make.
    pub fn host_on(&mut self, system: &str, volume: &Path, net: Net) -> usize {
        let host = Host::new(self.folder.path(), system, volume, net);
        self.hosts.push(host);
        self.hosts.len() - 1
    }

    /// The systems, by position.
    #[must_use]
    pub fn hosts<const N: usize>(&self) -> [&Host; N] {
        let hosts: Vec<&Host> = self.hosts.iter().take(N).collect();
        hosts
            .try_into()
            .unwrap_or_else(|_| panic!("{}: fewer than {N} systems", self.name))
    }

    /// Shows that no packet could have carried a byte between the systems; counted as skipped by name where the
    /// machine does not allow namespaces.
    pub fn prove(&self) {
        let mut seen = vec![host::net_namespace("self")];
        for host in &self.hosts {
            match host.prove() {
                Ok(namespace) => {
                    assert!(
                        !seen.contains(&namespace),
                        "{}: {} shares its network",
                        self.name,
                        host.system()
                    );
                    seen.push(namespace);
                }
                Err(reason) => skip_part(
                    &format!("{}: proof that no packet flowed", self.name),
                    &reason,
                ),
            }
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for host in &self.hosts {
                host.show_logs();
            }
        }
    }
}

/// Waits until `done` gives a value.
///
/// # Panics
/// If that takes longer than `limit`.
pub fn wait_for<T>(what: &str, limit: Duration, mut done: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(
            start.elapsed() < limit,
            "hang: {what} did not happen within {limit:?}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Writes a file of `len` bytes that compress badly and differ by `key`; returns its path.
pub fn make_file(path: &Path, key: u64, len: u64) -> PathBuf {
    use std::io::Write;
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("folder");
    let mut file = std::io::BufWriter::new(std::fs::File::create(path).expect("file"));
    let mut block = vec![0; 1 << 16];
    let mut at = 0;
    while at < len {
        let part = usize::try_from((len - at).min(1 << 16)).expect("a block");
        pattern::fill(key, at, &mut block[..part]);
        file.write_all(&block[..part]).expect("write");
        at += part as u64;
    }
    file.flush().expect("flush");
    path.to_owned()
}

/// A folder with files of many sizes, nested folders, odd names, an executable, a link, times in the past.
pub fn make_tree(top: &Path, key: u64) {
    use std::os::unix::fs::PermissionsExt;
    for (index, (name, len)) in [
        ("empty", 0),
        ("one", 1),
        ("unit", 4096),
        ("odd", 70_001),
        ("a name with spaces & 'quotes'", 333),
        ("ünïcode-名前", 1_234),
        ("deep/er/and/deeper/leaf", 10_000),
        ("big.bin", 3 << 20),
    ]
    .iter()
    .enumerate()
    {
        let path = make_file(&top.join(name), key + index as u64, *len);
        let past =
            std::time::UNIX_EPOCH + Duration::from_secs(1_000_000_000 + 86_400 * index as u64);
        std::fs::File::options()
            .write(true)
            .open(path)
            .expect("file")
            .set_modified(past)
            .expect("time");
    }
    for index in 0..200 {
        make_file(
            &top.join(format!("many/{index:03}")),
            key ^ index,
            100 + index * 7,
        );
    }
    std::fs::create_dir_all(top.join("void")).expect("folder");
    std::fs::set_permissions(top.join("one"), PermissionsExt::from_mode(0o750)).expect("mode");
}

/// Says how two files or folders differ in names, contents, permissions and (for files) times of change.
///
/// # Errors
/// The first difference.
pub fn same_tree(left: &Path, right: &Path, times: bool) -> Result<(), String> {
    compare(left, right, true, times)
}

/// Says how two files or folders differ in names and contents.
///
/// # Errors
/// The first difference.
pub fn same_content(left: &Path, right: &Path) -> Result<(), String> {
    compare(left, right, false, false)
}

fn compare(left: &Path, right: &Path, modes: bool, times: bool) -> Result<(), String> {
    use std::os::unix::fs::MetadataExt;
    let at = |side: &Path| {
        std::fs::symlink_metadata(side).map_err(|error| format!("{}: {error}", side.display()))
    };
    let (a, b) = (at(left)?, at(right)?);
    let differ = |what: &str| {
        Err(format!(
            "{} and {} differ in {what}",
            left.display(),
            right.display()
        ))
    };
    if a.file_type() != b.file_type() {
        return differ("kind");
    }
    if modes && a.mode() != b.mode() {
        return differ("permissions");
    }
    if a.is_dir() {
        let names = |side: &Path| -> Result<Vec<_>, String> {
            let mut names: Vec<_> = std::fs::read_dir(side)
                .map_err(|error| format!("{}: {error}", side.display()))?
                .map(|entry| entry.expect("entry").file_name())
                .collect();
            names.sort();
            Ok(names)
        };
        let listed = names(left)?;
        if listed != names(right)? {
            return differ("their lists of names");
        }
        return listed
            .iter()
            .try_for_each(|name| compare(&left.join(name), &right.join(name), modes, times));
    }
    if times && a.mtime() != b.mtime() {
        return differ("time of change");
    }
    let read =
        |side: &Path| std::fs::read(side).map_err(|error| format!("{}: {error}", side.display()));
    if a.len() != b.len() || read(left)? != read(right)? {
        return differ("content");
    }
    Ok(())
}
