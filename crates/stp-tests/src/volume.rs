//! Volumes of every kind that one machine can give two systems.
//!
//! - Each system has its own view; what the views have in common is the storage.
//! - A loop device ends with its last open descriptor (the kernel's autoclear), so that a killed test leaves none.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal};

use crate::wait_for;

/// What the volume is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file on the temporary folder's file system.
    File,
    /// A loop device with direct I/O.
    Loop,
    /// Two loop devices over one file: the systems are different initiators.
    LoopPair,
    /// The stand-in for a shared LUN: one nbdkit, and an nbdfuse mount for each system.
    Lun,
    /// The same with late answers and failing reads and writes.
    FaultyLun,
    /// A loop device with direct I/O on such a LUN: a block device that can be made to fail, to be late and to stall.
    FaultyLoop,
}

/// What a faulty LUN's server is told, beside where its bytes are.
const FAULTY: [&str; 6] = [
    "--filter=error",
    "--filter=delay",
    "error=EIO",
    "error-pread-rate=5%",
    "error-pwrite-rate=10%",
    "rdelay=2ms",
];

/// A volume, taken down on drop.
pub struct Volume {
    views: Vec<PathBuf>,
    backing: PathBuf,
    devices: Vec<File>,
    mounts: Vec<PathBuf>,
    servers: Vec<Child>,
    faults: Option<PathBuf>,
}

/// How many systems have a view of their own before views are shared.
const VIEWS: usize = 2;

impl Volume {
    /// Makes storage of `bytes` bytes (not formatted) in `folder`.
    ///
    /// # Errors
    /// Why this machine has no such storage.
    pub fn make(kind: Kind, folder: &Path, bytes: u64) -> Result<Self, String> {
        let backing = folder.join("volume");
        let file = File::create_new(&backing)
            .map_err(|error| format!("{}: {error}", backing.display()))?;
        file.set_len(bytes)
            .map_err(|error| format!("{}: {error}", backing.display()))?;
        let mut volume = Self {
            views: Vec::new(),
            backing: backing.clone(),
            devices: Vec::new(),
            mounts: Vec::new(),
            servers: Vec::new(),
            faults: None,
        };
        match kind {
            Kind::File => volume.views.push(backing),
            Kind::Loop => volume.attach_loop()?,
            Kind::LoopPair => {
                volume.attach_loop()?;
                volume.attach_loop()?;
            }
            Kind::Lun => volume.attach_lun(folder, &[], VIEWS)?,
            Kind::FaultyLun => volume.attach_faulty(folder, VIEWS)?,
            Kind::FaultyLoop => {
                volume.attach_faulty(folder, 1)?;
                let lun = volume.views.remove(0);
                volume.attach_loop_on(&lun)?;
            }
        }
        Ok(volume)
    }

    /// The path by which system number `index` reaches the storage.
    #[must_use]
    pub fn path(&self, index: usize) -> PathBuf {
        self.views[index % self.views.len()].clone()
    }

    /// The file that holds the bytes.
    #[must_use]
    pub fn backing(&self) -> &Path {
        &self.backing
    }

    /// Stops the storage, or lets it go on: meanwhile every operation waits.
    ///
    /// # Panics
    /// On another kind than a faulty one.
    pub fn stall(&self, on: bool) {
        assert!(self.faults.is_some(), "a faulty volume");
        let signal = if on { Signal::STOP } else { Signal::CONT };
        let server = Pid::from_child(self.servers.first().expect("a server"));
        rustix::process::kill_process(server, signal).expect("the storage's server");
    }

    /// Switches the errors of a faulty LUN on or off; delays stay.
    ///
    /// # Panics
    /// On another kind.
    pub fn fail(&self, on: bool) {
        let trigger = self.faults.as_ref().expect("a faulty volume");
        if on {
            File::create(trigger).expect("trigger of faults");
        } else {
            std::fs::remove_file(trigger).expect("trigger of faults");
        }
    }

    /// Takes a [`Kind::Lun`] away from all systems, as a pulled cable does.
    ///
    /// # Panics
    /// On a kind without servers.
    pub fn unplug(&self) {
        assert!(!self.servers.is_empty(), "a volume with servers");
        for server in &self.servers {
            let server = rustix::process::Pid::from_child(server);
            rustix::process::kill_process(server, rustix::process::Signal::KILL)
                .expect("a running server");
        }
    }

    fn attach_loop(&mut self) -> Result<(), String> {
        let backing = self.backing.clone();
        self.attach_loop_on(&backing)
    }

    fn attach_loop_on(&mut self, backing: &Path) -> Result<(), String> {
        if !rustix::process::geteuid().is_root() {
            return Err("not root: no loop device".into());
        }
        let direct = ["--find", "--show", "--direct-io=on"];
        let path = run(Command::new("losetup").args(direct).arg(backing))?;
        let device = File::open(&path).map_err(|error| format!("{path}: {error}"));
        // Open or not, from here on the device goes away with its last descriptor.
        let detached = run(Command::new("losetup").args(["--detach", &path]));
        self.devices.push(device?);
        detached?;
        self.views.push(path.into());
        Ok(())
    }

    fn attach_faulty(&mut self, folder: &Path, views: usize) -> Result<(), String> {
        let faults = folder.join("faults");
        self.faults = Some(faults.clone());
        let file = format!("error-file={}", faults.display());
        let words: Vec<&str> = FAULTY
            .iter()
            .copied()
            .chain([&*file, "wdelay=5ms"])
            .collect();
        self.attach_lun(folder, &words, views)
    }

    fn attach_lun(&mut self, folder: &Path, filters: &[&str], views: usize) -> Result<(), String> {
        if !Path::new("/dev/fuse").exists() {
            return Err("no /dev/fuse".into());
        }
        let socket = folder.join("nbd.sock");
        let mut server = Command::new("nbdkit");
        server
            .args(["--foreground", "--exit-with-parent", "--unix"])
            .arg(&socket);
        server.args(filters.iter().filter(|word| word.starts_with("--")));
        server.arg("file").arg(&self.backing).arg("cache=none");
        server.args(filters.iter().filter(|word| !word.starts_with("--")));
        self.serve(server, "nbdkit")?;
        let there = || socket.exists();
        self.wait_server("nbdkit", there)?;
        for index in 0..views {
            let mount = folder.join(format!("lun{index}"));
            std::fs::create_dir(&mount).map_err(|error| format!("{}: {error}", mount.display()))?;
            let mut client = Command::new("nbdfuse");
            client
                .arg(&mount)
                .arg(format!("nbd+unix:///?socket={}", socket.display()));
            self.serve(client, "nbdfuse")?;
            self.mounts.push(mount.clone());
            let view = mount.join("nbd");
            let there = || view.exists();
            self.wait_server("nbdfuse", there)?;
            self.views.push(view);
        }
        Ok(())
    }

    fn serve(&mut self, mut command: Command, name: &str) -> Result<(), String> {
        let log = self
            .backing
            .with_file_name(format!("{name}{}.log", self.servers.len()));
        let log = File::create(&log).map_err(|error| format!("{}: {error}", log.display()))?;
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        self.servers.push(
            command
                .spawn()
                .map_err(|error| format!("{name}: {error}"))?,
        );
        Ok(())
    }

    fn wait_server(&mut self, name: &str, there: impl Fn() -> bool) -> Result<(), String> {
        let log = self
            .backing
            .with_file_name(format!("{name}{}.log", self.servers.len() - 1));
        let server = self.servers.last_mut().expect("a server");
        wait_for(name, Duration::from_secs(30), || match server.try_wait() {
            Ok(None) => there().then_some(Ok(())),
            ended => {
                let said = std::fs::read_to_string(&log).unwrap_or_default();
                Some(Err(format!("{name}: {ended:?} {}", said.trim())))
            }
        })
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        if self.faults.is_some() {
            self.stall(false);
        }
        self.devices.clear();
        for mount in &self.mounts {
            let done = Command::new("fusermount3")
                .args(["-u", "-z"])
                .arg(mount)
                .stderr(Stdio::null())
                .status();
            if !done.is_ok_and(|status| status.success()) {
                let _ = Command::new("umount")
                    .arg("-l")
                    .arg(mount)
                    .stderr(Stdio::null())
                    .status();
            }
        }
        for server in self.servers.iter_mut().rev() {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

/// Runs a tool for its one line of output.
fn run(command: &mut Command) -> Result<String, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .map_err(|error| format!("{name}: {error}"))?;
    if !output.status.success() {
        return Err(format!(
            "{name}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        ));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
