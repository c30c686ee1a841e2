//! A system of a lab: its own files, run directory and processes, and as root its own namespaces.
//!
//! - What two hosts share is the volume and nothing else: each has a network, a `/run`, an IPC space, process numbers
//!   and a host name of its own, and cannot see the other's files.
//! - The namespaces live as long as their holder, which waits for the end of its input. It is the host's process 1:
//!   with it end all processes of the host, also those that left their group and their parent.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ChildStdin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};

use crate::spawn::{Cmd, Namespaces, Proc};
use crate::{HANG, wait_for};

/// What network a host has: none at all, or a loopback for its own local services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Net {
    /// One interface, `lo`, and that down: not even a local packet.
    None,
    /// `lo` is up, so that TCP programs of this host reach a forward of this host.
    Loopback,
}

/// A system. Made by [`crate::Lab::host`].
pub struct Host {
    system: String,
    net: Net,
    volume: PathBuf,
    folder: PathBuf,
    run_dir: PathBuf,
    namespaces: Arc<Namespaces>,
    isolated: Result<Holder, String>,
}

/// Keeps the namespaces.
struct Holder {
    process: Proc,
    _input: ChildStdin,
}

/// Run inside fresh namespaces: `/run` of its own, the other hosts' files hidden, orphans that end forgotten, ready.
const SETUP: &str = r#"
set -e
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/own /run/sshd
mount --bind "$OWN" /run/own
mount -t tmpfs tmpfs "$HOSTS"
mkdir "$OWN"
mount --move /run/own "$OWN"
rmdir /run/own
echo "$SYSTEM" 2>/dev/null > /proc/sys/kernel/hostname || true
if [ "$NET" = Loopback ]; then PATH=$PATH:/usr/sbin:/sbin ip link set lo up; fi
echo ready
exec env --ignore-signal=CHLD cat
"#;

impl Host {
    pub(crate) fn new(lab: &Path, system: &str, volume: &Path, net: Net) -> Self {
        let hosts = lab.join("hosts");
        let folder = hosts.join(system);
        std::fs::create_dir(&folder)
            .unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        std::fs::create_dir(folder.join("logs")).expect("folder of logs");
        let mut host = Self {
            system: system.to_owned(),
            net,
            volume: volume.to_owned(),
            run_dir: folder.join("run"),
            folder,
            namespaces: Arc::default(),
            isolated: Err(String::new()),
        };
        host.isolated = host.isolate(&hosts);
        host
    }

    fn isolate(&mut self, hosts: &Path) -> Result<Holder, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("not root: no network namespace".into());
        }
        let mut process = self
            .cmd("unshare")
            .args([
                "--net",
                "--mount",
                "--uts",
                "--ipc",
                "--pid",
                "--fork",
                "--kill-child",
                "--mount-proc",
                "--propagation",
                "slave",
                "sh",
                "-c",
                SETUP,
            ])
            .env("OWN", &self.folder)
            .env("HOSTS", hosts)
            .env("SYSTEM", &self.system)
            .env("NET", format!("{:?}", self.net))
            .stdin_pipe()
            .spawn();
        let input = process.stdin();
        let ready = wait_for("a host's namespaces", HANG, || {
            let ended = process.ended();
            if process.out().contains("ready") {
                Some(true)
            } else {
                ended.map(|_| false)
            }
        });
        if !ready {
            return Err(format!("no namespaces here: {}", process.err().trim()));
        }
        let open = |kind: &str| File::open(format!("/proc/{}/ns/{kind}", process.id()));
        let entered: Result<Vec<_>, _> = ["net", "uts", "ipc", "mnt"]
            .into_iter()
            .map(|k| open(k).map(Into::into))
            .collect();
        // The holder itself stands outside the process numbers that it made for its children.
        let numbers = open("pid_for_children");
        self.namespaces = Arc::new(Namespaces {
            entered: entered.map_err(|error| format!("namespaces: {error}"))?,
            numbers: Some(
                numbers
                    .map_err(|error| format!("namespaces: {error}"))?
                    .into(),
            ),
        });
        self.run_dir = PathBuf::from("/run/stp");
        Ok(Holder {
            process,
            _input: input,
        })
    }

    /// Its name on the volume.
    #[must_use]
    pub fn system(&self) -> &str {
        &self.system
    }

    /// The folder for its files: the same path for the test and for its own processes, and hidden from others'.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A path in its folder.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Its view of the volume.
    #[must_use]
    pub fn volume(&self) -> &Path {
        &self.volume
    }

    /// Its run directory, as the test sees it.
    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        match &self.isolated {
            Ok(holder) => PathBuf::from(format!("/proc/{}/root/run/stp", holder.process.id())),
            Err(_) => self.run_dir.clone(),
        }
    }

    /// A program on this host.
    #[must_use]
    pub fn cmd(&self, program: impl AsRef<OsStr>) -> Cmd {
        let mut path = std::env::var_os("PATH").unwrap_or_default();
        path.push(":/usr/sbin:/sbin");
        let mut cmd = Cmd::new(
            program.as_ref(),
            &self.namespaces,
            &self.folder,
            &self.folder.join("logs"),
        )
        .env("PATH", path)
        .env("HOME", &self.folder)
        .env("STP_VOLUME", &self.volume)
        .env("STP_SYSTEM", &self.system)
        .env("STP_RUN_DIR", &self.run_dir);
        for name in [
            "XDG_RUNTIME_DIR",
            "http_proxy",
            "https_proxy",
            "all_proxy",
            "HTTP_PROXY",
            "HTTPS_PROXY",
            "ALL_PROXY",
        ] {
            cmd = cmd.without_env(name);
        }
        cmd
    }

    /// The `stp` command on this host.
    #[must_use]
    pub fn stp<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&self, args: I) -> Cmd {
        self.cmd(stp_binary()).args(args)
    }

    /// The load generator on this host.
    #[must_use]
    pub fn load(&self, args: &str) -> Cmd {
        self.cmd(sibling("stp-load")).args(args.split_whitespace())
    }

    /// Starts `stp engine` and waits until it serves.
    #[must_use]
    pub fn engine(&self) -> Proc {
        let mut engine = self.stp(["engine"]).spawn();
        wait_for("engine.sock of a running engine", HANG, || {
            let ended = engine.ended();
            assert!(
                ended.is_none(),
                "stp engine ended ({ended:?}): {}",
                engine.err()
            );
            self.engine_serves().then_some(())
        });
        engine
    }

    fn engine_serves(&self) -> bool {
        let Ok(volumes) = std::fs::read_dir(self.run_dir()) else {
            return false;
        };
        volumes.flatten().any(|volume| {
            let folder = volume.path().join(&self.system);
            let Ok(folder) = File::open(folder) else {
                return false;
            };
            // A socket's path is short, a test's folder may not be.
            let path = format!(
                "/proc/self/fd/{}/engine.sock",
                std::os::fd::AsRawFd::as_raw_fd(&folder)
            );
            let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None)
                .expect("socket");
            SocketAddrUnix::new(path)
                .is_ok_and(|address| rustix::net::connect(socket.as_fd(), &address).is_ok())
        })
    }

    /// The kernel's list of Unix sockets in its network namespace, with those of the whole machine where it has none.
    #[must_use]
    pub fn unix_sockets(&self) -> String {
        match &self.isolated {
            Ok(holder) => {
                let path = format!("/proc/{}/net/unix", holder.process.id());
                std::fs::read_to_string(path).unwrap_or_default()
            }
            // Other tests' sockets are among the machine's.
            Err(_) => String::new(),
        }
    }

    /// Waits until a TCP program of this host listens on `port`.
    ///
    /// # Panics
    /// If `process`, which should, ends before.
    pub fn wait_tcp(&self, port: u16, process: &mut Proc) {
        let process_id = match &self.isolated {
            Ok(holder) => holder.process.id().to_string(),
            Err(_) => "self".into(),
        };
        let listens = format!(":{port:04X} ");
        wait_for(&format!("TCP port {port}"), HANG, || {
            let ended = process.ended();
            assert!(
                ended.is_none(),
                "{} ended ({ended:?}): {}",
                process.line(),
                process.err()
            );
            let found = ["tcp", "tcp6"].iter().any(|kind| {
                let table = std::fs::read_to_string(format!("/proc/{process_id}/net/{kind}"))
                    .unwrap_or_default();
                // local address, remote address, state; 0A is LISTEN.
                table
                    .lines()
                    .any(|line| line.contains(&listens) && line.contains(":0000 0A "))
            });
            found.then_some(())
        });
    }

    /// A TCP port that nobody has on this host: below those that the kernel gives to connections by itself, and another
    /// for each call and process, because hosts without namespaces share their ports.
    ///
    /// # Panics
    /// If the machine has no free port.
    #[must_use]
    pub fn free_tcp_port(&self) -> u16 {
        static CALLS: AtomicU32 = AtomicU32::new(0);
        const RANGE: std::ops::Range<u32> = 10_000..32_000;
        RANGE
            .map(|_| {
                let call = CALLS.fetch_add(1, Ordering::Relaxed);
                let number = std::process::id().wrapping_mul(101).wrapping_add(call);
                (RANGE.start + number % RANGE.len() as u32) as u16
            })
            .find(|port| std::net::TcpListener::bind(("0.0.0.0", *port)).is_ok())
            .expect("a free port")
    }

    /// Its network namespace, after showing that no packet can have left it.
    pub(crate) fn prove(&self) -> Result<String, String> {
        let holder = self.isolated.as_ref().map_err(Clone::clone)?;
        let id = holder.process.id().to_string();
        let devices = std::fs::read_to_string(format!("/proc/{id}/net/dev")).expect("net/dev");
        let devices: Vec<&str> = devices.lines().skip(2).collect();
        assert!(
            devices.len() == 1 && devices[0].trim_start().starts_with("lo:"),
            "{}: {devices:?}",
            self.system
        );
        if self.net == Net::None {
            let counters = devices[0].split_whitespace().skip(1);
            assert!(
                counters.clone().count() == 16 && counters.clone().all(|n| n == "0"),
                "{}: {devices:?}",
                self.system
            );
            let routes =
                std::fs::read_to_string(format!("/proc/{id}/net/fib_trie")).unwrap_or_default();
            assert!(!routes.contains("127.0.0.1"), "{}: lo is up", self.system);
        }
        Ok(net_namespace(&id))
    }

    /// Prints what its processes said, for a failed test.
    pub(crate) fn show_logs(&self) {
        let Ok(logs) = std::fs::read_dir(self.folder.join("logs")) else {
            return;
        };
        let mut paths: Vec<PathBuf> = logs.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            let text = std::fs::read(&path).unwrap_or_default();
            if text.is_empty() || text.len() > 1 << 20 {
                continue;
            }
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<&str> = text.lines().collect();
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            eprintln!("--- {} {name} ({} lines)", self.system, lines.len());
            for line in &lines[lines.len().saturating_sub(30)..] {
                eprintln!("{line}");
            }
        }
    }
}

/// The identity of a process's network.
pub(crate) fn net_namespace(process: &str) -> String {
    std::fs::read_link(format!("/proc/{process}/ns/net"))
        .expect("namespace")
        .to_string_lossy()
        .into_owned()
}

/// The `stp` under test: `STP_TEST_BIN`, else beside this test's own build.
fn stp_binary() -> PathBuf {
    if let Some(path) = std::env::var_os("STP_TEST_BIN") {
        return path.into();
    }
    sibling("stp")
}

/// A program of the same build.
pub(crate) fn sibling(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("own path");
    let folder = own.ancestors().find(|folder| folder.join(name).is_file());
    let folder = folder.unwrap_or_else(|| {
        panic!(
            "no `{name}` beside {}: cargo build --workspace --bins",
            own.display()
        )
    });
    folder.join(name)
}
