//! Stage: a server and a client, unmodified programs, over TCP or over a volume.
//!
//! - One body serves both transports. On [`Transport::Plain`] both ends stand on one host with a loopback: that shows
//!   that the test itself is right. On [`Transport::Stp`] each stands on a host of its own, without an interface up, under
//!   `stp run`, and [`Stage::end`] shows that no packet carried a byte.
//! - Where the test is root, programs that insist on an ordinary user run as `nobody`, who may pass the lab's folders.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;

use crate::{Cmd, HANG, Host, Kind, Lab, Net, Proc, skip, wait_for};

/// What carries the bytes between a stage's two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// The kernel's TCP.
    Plain,
    /// The volume.
    Stp,
}

/// The two ends.
///
/// Fields end in this order: the engines' ends close their programs' sockets first.
pub struct Stage {
    engines: Vec<Proc>,
    transport: Transport,
    lab: Lab,
}

/// Numbers of the positions of the hosts in the lab.
const CLIENT: usize = 0;
const SERVER: usize = 1;

impl Stage {
    /// A stage with engines running; `None` (and a counted skip) if one of `programs` is missing.
    #[must_use]
    pub fn open(name: &str, transport: Transport, programs: &[&str]) -> Option<Self> {
        let title = format!("{name} over {transport:?}");
        let missing: Vec<&str> = programs
            .iter()
            .copied()
            .filter(|program| find_program(program).is_none())
            .collect();
        if !missing.is_empty() {
            skip(&title, &format!("not installed: {}", missing.join(" ")));
            return None;
        }
        let (lab, engines) = match transport {
            Transport::Plain => {
                let mut lab = Lab::new(&title);
                lab.host("alpha", Net::Loopback);
                (lab, Vec::new())
            }
            Transport::Stp => {
                let lab = Lab::with(&title, Kind::File, &["alpha", "beta"], Net::None)?;
                let engines = lab.hosts::<2>().map(Host::engine);
                (lab, engines.into())
            }
        };
        for folder in [lab.folder(), &lab.folder().join("hosts")] {
            std::fs::set_permissions(folder, PermissionsExt::from_mode(0o711)).expect("mode");
        }
        Some(Self {
            engines,
            transport,
            lab,
        })
    }

    /// What the stage is called in reports.
    #[must_use]
    pub fn name(&self) -> &str {
        self.lab.name()
    }

    /// What carries the bytes.
    #[must_use]
    pub fn transport(&self) -> Transport {
        self.transport
    }

    /// The engines of client and server, where the transport has some.
    pub fn engines(&mut self) -> &mut Vec<Proc> {
        &mut self.engines
    }

    /// The lab around it.
    #[must_use]
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    fn host(&self, position: usize) -> &Host {
        match self.transport {
            Transport::Plain => self.lab.hosts::<1>()[0],
            Transport::Stp => self.lab.hosts::<2>()[position],
        }
    }

    /// The client's host.
    #[must_use]
    pub fn client_host(&self) -> &Host {
        self.host(CLIENT)
    }

    /// The server's host.
    #[must_use]
    pub fn server_host(&self) -> &Host {
        self.host(SERVER)
    }

    /// The name by which programs reach the server's host.
    #[must_use]
    pub fn server_name(&self) -> &'static str {
        match self.transport {
            Transport::Plain => "127.0.0.1",
            Transport::Stp => "beta.stp",
        }
    }

    /// The name by which programs reach the client's host.
    #[must_use]
    pub fn client_name(&self) -> &'static str {
        match self.transport {
            Transport::Plain => "127.0.0.1",
            Transport::Stp => "alpha.stp",
        }
    }

    /// A program at the client's end.
    #[must_use]
    pub fn client(&self, program: &str) -> Cmd {
        self.on(self.client_host(), program)
    }

    /// A program at the server's end.
    #[must_use]
    pub fn server(&self, program: &str) -> Cmd {
        self.on(self.server_host(), program)
    }

    /// A program at the server's end that refuses to be root.
    #[must_use]
    pub fn server_as_nobody(&self, program: &str) -> Cmd {
        if !rustix::process::geteuid().is_root() {
            return self.server(program);
        }
        let path = find_program(program).unwrap_or_else(|| program.into());
        self.server("setpriv")
            .called(program)
            .args(["--reuid=nobody", "--regid=nogroup", "--clear-groups", "--"])
            .arg(path)
    }

    /// Gives a folder of the server's host to the user of [`Self::server_as_nobody`].
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn nobody_owns(&self, folder: &std::path::Path) {
        std::fs::create_dir_all(folder).expect("folder");
        if rustix::process::geteuid().is_root() {
            let chown = self.server_host().cmd("chown");
            chown.args(["-R", "nobody:nogroup"]).arg(folder).ok();
        }
    }

    fn on(&self, host: &Host, program: &str) -> Cmd {
        let path = find_program(program).unwrap_or_else(|| program.into());
        match self.transport {
            Transport::Plain => host.cmd(path).called(program),
            Transport::Stp => host
                .stp([OsStr::new("run"), OsStr::new("--"), path.as_os_str()])
                .called(program),
        }
    }

    /// A port that nobody uses at either end.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.server_host().free_tcp_port()
    }

    /// Waits until the server at `port` can be reached from the client.
    ///
    /// # Panics
    /// If `process`, which should listen, ends before.
    pub fn wait_server(&self, port: u16, process: &mut Proc) {
        self.wait_port(self.server_host(), port, process);
    }

    /// The same for a server at the client's end.
    ///
    /// # Panics
    /// If `process`, which should listen, ends before.
    pub fn wait_client(&self, port: u16, process: &mut Proc) {
        self.wait_port(self.client_host(), port, process);
    }

    fn wait_port(&self, host: &Host, port: u16, process: &mut Proc) {
        if self.transport == Transport::Plain {
            return host.wait_tcp(port, process);
        }
        wait_for(&format!("port {port} of {}", host.system()), HANG, || {
            let ended = process.ended();
            assert!(
                ended.is_none(),
                "{} ended ({ended:?}): {}{}",
                process.line(),
                process.out(),
                process.err()
            );
            let ss = self
                .client_host()
                .stp(["ss", "--all", "-l", "-q", "--json"]);
            let report: serde_json::Value = serde_json::from_slice(&ss.ok().out).expect("JSON");
            let sockets = report["sockets"].as_array().into_iter().flatten();
            let mut rows = sockets.filter(|row| row["system"] == host.system());
            rows.any(|row| row["port"] == port).then_some(())
        });
    }

    /// The end of every story: no packet flowed, and every record of the volume is sound.
    ///
    /// # Panics
    /// If not.
    pub fn end(self) {
        if self.transport == Transport::Stp {
            self.lab.prove();
            let [alpha] = self.lab.hosts();
            alpha.stp(["check"]).arg(self.lab.volume().path(0)).ok();
        }
    }
}

/// Where a program is: on the path, or in the folders where Debian keeps servers.
#[must_use]
pub fn find_program(program: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Debian wraps the programs of PostgreSQL; what they wrap stands in a folder a version.
    let versions = std::fs::read_dir("/usr/lib/postgresql");
    let versions = versions.into_iter().flatten().flatten();
    versions
        .map(|version| version.path().join("bin"))
        .chain(std::env::split_paths(&path))
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(Into::into))
        .map(|folder| folder.join(program))
        .find(|candidate| candidate.is_file())
}
