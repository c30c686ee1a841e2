//! Users of one host: what a second user may and may not do, tried by real processes of other users.
//!
//! - Users and groups are numbers that no account needs to have; only root can become them, elsewhere each test is a
//!   counted skip.
//! - `docs/SECURITY.md` has the table that these tests keep true.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use stp_tests::{HANG, skip, wait_for};

/// Two users and a stranger, and the group of the first two.
const OWNER: u32 = 61_001;
const MEMBER: u32 = 61_002;
const STRANGER: u32 = 61_003;
const GROUP: u32 = 61_100;

/// What must never be in a log.
const MARKER: &str = "payload-marker-7f3a9c";

struct World {
    folder: tempfile::TempDir,
}

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl World {
    /// A folder that every user can enter, with the programs in it; `None`, and a counted skip, without root.
    fn new(name: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            skip(name, "not root: cannot become other users");
            return None;
        }
        let folder = tempfile::Builder::new()
            .prefix("stp-users-")
            .tempdir()
            .unwrap();
        let world = Self { folder };
        chmod(world.folder.path(), 0o755);
        let own = std::env::current_exe().unwrap();
        let stp = std::env::var_os("STP_TEST_BIN").map_or_else(
            || {
                own.ancestors()
                    .map(|f| f.join("stp"))
                    .find(|f| f.is_file())
                    .unwrap()
            },
            PathBuf::from,
        );
        // Other users may not reach the folder that it was built in.
        let library = stp.with_file_name("libstp_preload.so");
        for (file, name) in [(stp, "stp"), (library, "libstp_preload.so")] {
            std::fs::copy(file, world.path(name)).unwrap();
            chmod(&world.path(name), 0o755);
        }
        for user in [OWNER, MEMBER, STRANGER] {
            let home = world.path(&user.to_string());
            std::fs::create_dir(&home).unwrap();
            std::os::unix::fs::chown(&home, Some(user), Some(user)).unwrap();
        }
        // Where volumes lie: everybody may enter, only root makes names.
        Some(world)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn home(&self, user: u32) -> PathBuf {
        self.path(&user.to_string())
    }

    /// `stp` as a user; the owner and the member are in the group.
    fn stp(&self, user: u32, args: &[&str]) -> Command {
        let groups = match user {
            STRANGER => "--clear-groups".to_owned(),
            _ => format!("--groups={GROUP}"),
        };
        let mut command = Command::new("setpriv");
        command
            .args([&format!("--reuid={user}"), &format!("--regid={user}")])
            .args([&groups, "--"])
            .arg(self.path("stp"))
            .args(args)
            .current_dir(self.home(user))
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", self.home(user))
            .env("STP_VOLUME", self.volume())
            .env("STP_SYSTEM", "alpha")
            .stdin(Stdio::null());
        command
    }

    /// A Python program under `stp run`, as a user, for a system at a run directory.
    fn python(&self, user: u32, at: &Path, system: &str, script: &str, args: &[&str]) -> Command {
        let run = ["--system", system, "run", "--", "/usr/bin/python3", "-c"];
        let mut command = self.stp(user, &run);
        command.arg(script).args(args).env("STP_RUN_DIR", at);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, user: u32, args: &[&str]) -> Output {
        self.stp(user, args).output().unwrap()
    }

    fn volume(&self) -> PathBuf {
        self.home(OWNER).join("volume")
    }

    fn formatted(&self) {
        let args = ["format", "--group", "lab", "--size", "64MiB", "volume"];
        good(&self.run(OWNER, &args));
    }

    /// The owner's engine at a run directory, once it serves.
    fn engine(&self, run_dir: &Path, options: &[&str]) -> Ended {
        self.engine_logged(run_dir, options, Stdio::null())
    }

    fn engine_logged(&self, run_dir: &Path, options: &[&str], log: Stdio) -> Ended {
        // One that was killed leaves its socket.
        if let Some(left) = find(run_dir, "engine.sock") {
            std::fs::remove_file(left).unwrap();
        }
        let mut command = self.stp(OWNER, &["engine"]);
        command.args(options).env("STP_RUN_DIR", run_dir);
        command.env("STP_LOG", "trace").stderr(log);
        let mut engine = Ended(command.spawn().unwrap());
        // The key comes after the socket; until then its draft is there, which is the owner's alone.
        for name in ["engine.sock", "run.key"] {
            wait_for(name, HANG, || {
                assert!(engine.0.try_wait().unwrap().is_none(), "it ended");
                find(run_dir, name)
            });
        }
        engine
    }
}

fn chmod(path: &Path, mode: u32) {
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

fn mode(path: &Path) -> u32 {
    std::fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    all(folder)
        .into_iter()
        .find(|path| path.file_name().is_some_and(|found| found == name))
}

/// Everything under a folder.
fn all(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().unwrap().is_dir() {
            found.extend(all(&entry.path()));
        }
        found.push(entry.path());
    }
    found
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn good(output: &Output) {
    assert!(output.status.success(), "{}", said(output));
}

/// Refused in one line with these words.
fn refused(output: &Output, words: &[&str]) {
    let line = said(output);
    assert_eq!(output.status.code(), Some(1), "{line}");
    assert_eq!(line.trim_end().lines().count(), 1, "{line}");
    for word in words {
        assert!(line.to_lowercase().contains(word), "no {word:?} in: {line}");
    }
}

/// A new volume is its maker's alone; who is let in by its mode may look, or take part.
#[test]
fn a_volume_is_its_makers_alone_until_its_mode_says_more() {
    let Some(world) = World::new("users: volumes") else {
        return;
    };
    world.formatted();
    let volume = world.volume();
    assert_eq!(mode(&volume), 0o600);
    for args in [
        &["info"][..],
        &["check"],
        &["ss", "--all"],
        &["cat", "-l", "7000"],
    ] {
        refused(&world.run(MEMBER, args), &["volume", "permission"]);
    }
    refused(
        &world.run(
            MEMBER,
            &["format", "--group", "mine", volume.to_str().unwrap()],
        ),
        &["permission"],
    );
    // To read is to look, not to take part.
    chown_group(&volume);
    chmod(&volume, 0o640);
    good(&world.run(MEMBER, &["info"]));
    good(&world.run(MEMBER, &["check"]));
    let own = world.home(MEMBER).join("run");
    let own = own.to_str().unwrap();
    let member = ["--run-dir", own, "--system", "member", "cat", "-l", "7000"];
    refused(&world.run(MEMBER, &member), &["volume", "permission"]);
    refused(&world.run(STRANGER, &["info"]), &["volume", "permission"]);
}

fn chown_group(path: &Path) {
    std::os::unix::fs::chown(path, None, Some(GROUP)).unwrap();
}

/// A run directory is its user's alone, with everything in it; another user is told, and gets nothing.
#[test]
fn a_run_directory_is_its_users_alone() {
    let Some(world) = World::new("users: run directories") else {
        return;
    };
    world.formatted();
    let run_dir = world.home(OWNER).join("run");
    let _engine = world.engine(&run_dir, &[]);
    assert_eq!(mode(&run_dir), 0o700);
    for path in all(&run_dir) {
        let found = std::fs::symlink_metadata(&path).unwrap();
        assert_eq!(found.uid(), OWNER, "{}", path.display());
        if found.is_dir() {
            assert_eq!(mode(&path), 0o700, "{}", path.display());
        } else if found.is_file() {
            assert_eq!(mode(&path), 0o600, "{}", path.display());
        }
    }
    chown_group(&world.volume());
    chmod(&world.volume(), 0o660);
    let at = run_dir.to_str().unwrap();
    for user in [MEMBER, STRANGER] {
        let output = world.run(user, &["--run-dir", at, "cat", "alpha:7000"]);
        let words: &[&str] = if user == MEMBER {
            &["run directory of another user", "--run-dir"]
        } else {
            &["permission"]
        };
        refused(&output, words);
    }
    // Not even root's word opens it: the mode is wrong for whoever owns it.
    chmod(&run_dir, 0o755);
    let output = world.run(OWNER, &["--run-dir", at, "cat", "alpha:7000"]);
    refused(&output, &["open to others", "chmod 700"]);
}

/// With --group-access, the group's users connect and listen by the owner's engine, with no right to write the volume;
/// a stranger gets nothing.
#[test]
fn an_engine_serves_the_group_that_it_is_told_to() {
    let Some(world) = World::new("users: a group") else {
        return;
    };
    world.formatted();
    chown_group(&world.volume());
    chmod(&world.volume(), 0o640);
    let run_dir = world.path("shared");
    std::fs::create_dir(&run_dir).unwrap();
    std::os::unix::fs::chown(&run_dir, Some(OWNER), Some(OWNER)).unwrap();
    chmod(&run_dir, 0o700);
    let _engine = world.engine(&run_dir, &["--group-access", &GROUP.to_string()]);
    for path in all(&run_dir) {
        let found = std::fs::symlink_metadata(&path).unwrap();
        let wanted = if found.is_dir() { 0o2770 } else { 0o660 };
        assert_eq!(
            (mode(&path), found.gid()),
            (wanted, GROUP),
            "{}",
            path.display()
        );
    }
    // Another system, the owner's too, at a run directory of its own.
    let far = world.home(OWNER).join("far");
    let mut far_engine = world.stp(OWNER, &["--system", "beta", "engine"]);
    let far_engine = Ended(
        far_engine
            .env("STP_RUN_DIR", &far)
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    wait_for("the far engine", HANG, || find(&far, "engine.sock"));

    // The member listens and the far system calls; then the other way round.
    let at = run_dir.to_str().unwrap();
    let text = world.home(MEMBER).join("text");
    std::fs::write(&text, "across users\n").unwrap();
    chmod(&text, 0o644);
    let far_at = far.to_str().unwrap();
    let sides: [(u32, &str, &str, &str, u32, &str, &str); 2] = [
        (MEMBER, at, "alpha", "alpha:7000", OWNER, far_at, "beta"),
        (OWNER, far_at, "beta", "beta:7000", MEMBER, at, "alpha"),
    ];
    for (listener, listens_at, listens_as, place, caller, calls_at, calls_as) in sides {
        let mut listens = world.stp(
            listener,
            &[
                "--run-dir",
                listens_at,
                "--system",
                listens_as,
                "cat",
                "-l",
                "7000",
            ],
        );
        let listens = listens
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut calls = world.stp(
            caller,
            &[
                "--run-dir",
                calls_at,
                "--system",
                calls_as,
                "cat",
                "--retry",
                "60",
                place,
            ],
        );
        let input = std::fs::File::open(&text).unwrap();
        good(&calls.stdin(input).output().unwrap());
        let heard = listens.wait_with_output().unwrap();
        good(&heard);
        assert_eq!(heard.stdout, b"across users\n");
    }
    // One seat a system: the member used the owner's engine.
    let info = world.run(OWNER, &["--json", "info"]);
    let info: serde_json::Value = serde_json::from_slice(&info.stdout).unwrap();
    assert_eq!(info["taken"].as_array().unwrap().len(), 2, "{info}");
    drop(far_engine);

    chmod(&world.volume(), 0o644);
    let output = world.run(STRANGER, &["--run-dir", at, "cat", "alpha:7000"]);
    refused(&output, &["run directory", "group 61100", "not in"]);
    // Nor by the engine's socket itself: the kernel asks for the mode first.
    let socket = find(&run_dir, "engine.sock").unwrap();
    let mut touch = Command::new("setpriv");
    touch
        .arg(format!("--reuid={STRANGER}"))
        .arg(format!("--regid={STRANGER}"));
    let seen = touch
        .args(["--clear-groups", "--", "test", "-S"])
        .arg(&socket)
        .status()
        .unwrap();
    assert!(!seen.success(), "a stranger sees {}", socket.display());
}

/// Sends back what one connection brings; the port is its argument.
const SERVES: &str = "import os, socket, sys; s = socket.create_server(('', int(sys.argv[1]))); \
    print('ready', os.getuid(), flush=True); c, _ = s.accept(); c.sendall(c.makefile('rb').read()); c.close()";
/// Asks such a program: host and port. With a retry while the port is on its way to the other system.
const CALLS: &str = "
import socket, sys, time
while True:
    try:
        s = socket.create_connection((sys.argv[1], int(sys.argv[2])))
        break
    except ConnectionRefusedError:
        time.sleep(0.02)
    except socket.gaierror:
        time.sleep(0.02)
s.sendall(b'across users'); s.shutdown(1); print(s.makefile().read())
";

/// A process's first line.
fn first_line(process: &mut Ended) -> String {
    let mut line = String::new();
    let mut reader = BufReader::new(process.0.stdout.take().unwrap());
    reader.read_line(&mut line).unwrap();
    if line.is_empty() {
        std::io::Read::read_to_string(process.0.stderr.as_mut().unwrap(), &mut line).unwrap();
    }
    line.trim().to_owned()
}

/// With --group-access, the group's users also start unmodified programs at that engine, which serve and are served;
/// a stranger does not, whichever way he tries.
#[test]
fn unmodified_programs_of_a_group_share_an_engine() {
    let name = "users: stp run in a group";
    let Some(world) = World::new(name) else {
        return;
    };
    if !Path::new("/usr/bin/python3").exists() {
        return skip(name, "not installed: /usr/bin/python3");
    }
    world.formatted();
    chown_group(&world.volume());
    chmod(&world.volume(), 0o640);
    let shared = world.path("shared");
    std::fs::create_dir(&shared).unwrap();
    std::os::unix::fs::chown(&shared, Some(OWNER), Some(OWNER)).unwrap();
    chmod(&shared, 0o700);
    // There before it is shared: the key of an earlier engine.
    drop(world.engine(&shared, &[]));
    let engine = world.engine(&shared, &["--group-access", &GROUP.to_string()]);
    let far = world.home(OWNER).join("far");
    let (member, owner) = ((MEMBER, &shared, "alpha"), (OWNER, &far, "beta"));
    for (serves, calls, port) in [
        (member, owner, "17000"),
        (owner, member, "17001"),
        (member, member, "17002"),
    ] {
        let mut server = world.python(serves.0, serves.1, serves.2, SERVES, &[port]);
        let mut server = Ended(server.spawn().unwrap());
        assert_eq!(first_line(&mut server), format!("ready {}", serves.0));
        let host = format!("{}.stp", serves.2);
        let mut client = world.python(calls.0, calls.1, calls.2, CALLS, &[&host, port]);
        let asked = client.output().unwrap();
        good(&asked);
        assert_eq!(
            String::from_utf8_lossy(&asked.stdout).trim(),
            "across users"
        );
    }
    for path in all(&shared).iter().filter(|path| path.is_file()) {
        assert_eq!(mode(path), 0o660, "{}", path.display());
    }

    // A stranger cannot even look for the key, and without it the engine's abstract socket tells him nothing.
    chmod(&world.volume(), 0o644);
    let tried = world
        .python(STRANGER, &shared, "alpha", "print('in')", &[])
        .output()
        .unwrap();
    refused(&tried, &["run directory", "group 61100", "not in"]);
    let sockets = std::fs::read_to_string("/proc/net/unix").unwrap();
    let key = find(&shared, "run.key").unwrap();
    let key = std::fs::read_to_string(key).unwrap();
    let key = key.lines().next().unwrap();
    let ask = "
import socket, struct, sys
for name in sys.argv[2:]:
    s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    s.connect('\\0' + name)
    s.send(b'STPr' + struct.pack('<HH', 1, 1) + bytes.fromhex(sys.argv[1]))
    print(*struct.unpack('<HH', s.recv(2048)[6:10]))
";
    let names: Vec<&str> = sockets
        .lines()
        .filter_map(|line| Some(line.split_once("@stp/run/")?.1))
        .collect();
    assert!(!names.is_empty());
    let ask = |user: u32, key: &str| {
        let mut command = Command::new("setpriv");
        command
            .arg(format!("--reuid={user}"))
            .arg(format!("--regid={user}"));
        command.args(["--clear-groups", "--", "/usr/bin/python3", "-c", ask, key]);
        let asked = command
            .args(names.iter().map(|name| format!("stp/run/{name}")))
            .output()
            .unwrap();
        good(&asked);
        String::from_utf8_lossy(&asked.stdout).into_owned()
    };
    // 100: it failed, for want of permission. 102: who the engine is.
    let strangers = ask(STRANGER, &"0".repeat(32));
    assert!(
        strangers.lines().all(|line| line == "100 13"),
        "{strangers}"
    );
    assert!(ask(OWNER, key).contains("102 "));
    drop(engine);

    // The name was everybody's to see. Who takes it now hears no key, and stands in nobody's way.
    let way = find(&shared, "run.key").unwrap();
    let way = || std::fs::read_to_string(&way).unwrap();
    let number = |text: &str| text.lines().nth(1).unwrap().to_owned();
    let taken = number(&way());
    let squat = "
import socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
s.bind('\\0stp/run/' + sys.argv[1])
s.listen(8)
print('ready', flush=True)
while True:
    print(len(s.accept()[0].recv(99)), flush=True)
";
    let mut squatter = Command::new("setpriv");
    squatter.args(["--reuid=61003", "--regid=61003", "--clear-groups", "--"]);
    squatter.args(["/usr/bin/python3", "-c", squat, &taken]);
    let squatter = squatter.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut squatter = Ended(squatter.spawn().unwrap());
    let mut heard = BufReader::new(squatter.0.stdout.take().unwrap()).lines();
    assert_eq!(heard.next().unwrap().unwrap(), "ready");

    // Without an engine a member starts none: the volume is not his to write. He is told so, and stands in nobody's way.
    chmod(&world.volume(), 0o640);
    let tried = world
        .python(MEMBER, &shared, "alpha", "print('in')", &[])
        .output()
        .unwrap();
    refused(
        &tried,
        &["engine of system alpha", "permission", "engine.log"],
    );
    let engine = world.engine(&shared, &["--group-access", &GROUP.to_string()]);
    good(
        &world
            .python(MEMBER, &shared, "alpha", "print('in')", &[])
            .output()
            .unwrap(),
    );
    assert_ne!(number(&way()), taken);
    drop(squatter);
    let heard: Vec<String> = heard.map_while(Result::ok).collect();
    assert!(
        !heard.is_empty() && heard.iter().all(|line| line == "0"),
        "{heard:?}"
    );
    drop(engine);

    // Its owner takes it back: what a member has kept of it opens nothing any more.
    chmod(&shared, 0o700);
    let _engine = world.engine(&shared, &[]);
    wait_for("another key", HANG, || {
        let now = std::fs::read_to_string(find(&shared, "run.key")?);
        now.is_ok_and(|now| !now.contains(key)).then_some(())
    });
    for path in all(&shared) {
        let wanted = if path.is_dir() { 0o700 } else { 0o600 };
        // The draft of a file that was put there is gone a moment later.
        let Ok(found) = std::fs::symlink_metadata(&path) else {
            continue;
        };
        if found.is_dir() || path.ends_with("run.key") {
            assert_eq!(mode(&path), wanted, "{}", path.display());
        }
    }
    let tried = world
        .python(MEMBER, &shared, "alpha", "print('in')", &[])
        .output()
        .unwrap();
    refused(&tried, &["run directory of another user"]);
}

/// An ordinary user on a host where no interface is up, not even loopback: the engine makes a network for the programs, with
/// that user's rights alone. They stay who they are, reach each other and the other system, and outlive their engine.
#[test]
fn a_user_without_any_network_gets_a_private_one() {
    let name = "users: a private network";
    let Some(world) = World::new(name) else {
        return;
    };
    if !Path::new("/usr/bin/python3").exists() {
        return skip(name, "not installed: /usr/bin/python3");
    }
    let mut may = Command::new("setpriv");
    may.arg(format!("--reuid={OWNER}"))
        .arg(format!("--regid={OWNER}"));
    let may = may
        .args(["--clear-groups", "--", "unshare", "--user", "--net", "true"])
        .output()
        .unwrap();
    if !may.status.success() {
        return skip(
            name,
            &format!("this kernel gives users no namespaces: {}", said(&may)),
        );
    }
    world.formatted();
    // A network namespace where nothing is up, as on a host without network; all programs below are in it.
    let mut without = Command::new("unshare");
    let mut without = Ended(
        without
            .args(["--net", "sh", "-c", "echo ready; exec sleep infinity"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    assert_eq!(first_line(&mut without), "ready");
    let place = format!("--net=/proc/{}/ns/net", without.0.id());
    let there = |inner: Command| {
        let mut command = Command::new("nsenter");
        command
            .arg(&place)
            .arg("--")
            .arg(inner.get_program())
            .args(inner.get_args());
        command.env_clear();
        for (name, value) in inner.get_envs() {
            if let Some(value) = value {
                command.env(name, value);
            }
        }
        command.current_dir(world.home(OWNER)).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    let (alpha, beta) = (world.home(OWNER).join("run"), world.home(OWNER).join("far"));
    let script = "import os; print(os.getuid(), os.getgid(), os.stat('/proc/self/ns/net').st_ino, open('/proc/net/dev').read().count(':'))";
    let who = there(world.python(OWNER, &alpha, "alpha", script, &[]))
        .output()
        .unwrap();
    good(&who);
    let who = String::from_utf8_lossy(&who.stdout).into_owned();
    assert!(who.starts_with(&format!("{OWNER} {OWNER} ")), "{who}");
    let outside = std::fs::metadata(format!("/proc/{}/ns/net", without.0.id()))
        .unwrap()
        .ino();
    assert!(!who.contains(&outside.to_string()), "{who}");

    let serves = "import socket, sys\ns = socket.create_server(('', 7000)); print('ready', flush=True)\n\
                  while True:\n c, _ = s.accept(); c.sendall(c.makefile('rb').read()); c.close()";
    let mut server = Ended(
        there(world.python(OWNER, &beta, "beta", serves, &[]))
            .spawn()
            .unwrap(),
    );
    assert_eq!(first_line(&mut server), "ready");
    let ask = |at: &Path, system: &str| {
        let asked = there(world.python(OWNER, at, system, CALLS, &["beta.stp", "7000"]))
            .output()
            .unwrap();
        good(&asked);
        assert_eq!(
            String::from_utf8_lossy(&asked.stdout).trim(),
            "across users"
        );
    };
    ask(&alpha, "alpha");
    ask(&beta, "beta");

    // The server's engine is killed; its keeper starts another, which finds the server where it lives.
    let engine = engine_of(&beta);
    rustix::process::kill_process(engine, rustix::process::Signal::KILL).unwrap();
    wait_for("another engine", HANG, || {
        find_engine(&beta).filter(|found| *found != engine)
    });
    ask(&alpha, "alpha");
    ask(&beta, "beta");
    let log = std::fs::read_to_string(find(&beta, "engine.log").unwrap()).unwrap();
    assert!(log.contains("signal: 9"), "{log}");
    for at in [&alpha, &beta] {
        // They are nobody's children: what keeps the engines first, then the engines.
        for process in processes_at(at) {
            let _ = rustix::process::kill_process(process, rustix::process::Signal::KILL);
        }
    }
}

/// The processes of `stp engine` at a run directory, those that keep it first.
fn processes_at(run_dir: &Path) -> Vec<rustix::process::Pid> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        let words: Vec<&str> = line.split('\0').collect();
        let pid = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        if words.contains(&"engine")
            && words.contains(&run_dir.to_str().unwrap())
            && let Some(pid) = pid.and_then(rustix::process::Pid::from_raw)
        {
            found.push((!words.contains(&"--keep"), pid));
        }
    }
    found.sort_by_key(|(engine, pid)| (*engine, pid.as_raw_nonzero()));
    found.into_iter().map(|(_, pid)| pid).collect()
}

/// The engine itself.
fn find_engine(run_dir: &Path) -> Option<rustix::process::Pid> {
    processes_at(run_dir).get(1).copied()
}

fn engine_of(run_dir: &Path) -> rustix::process::Pid {
    find_engine(run_dir).expect("a keeper and an engine")
}

/// In /tmp anybody can lay out a directory for others: one that nobody named must be the user's own.
#[test]
fn a_default_run_directory_of_another_user_is_refused() {
    let Some(world) = World::new("users: the default run directory") else {
        return;
    };
    world.formatted();
    let default = PathBuf::from(format!("/tmp/stp-{OWNER}"));
    std::fs::create_dir(&default).unwrap();
    std::os::unix::fs::chown(&default, Some(MEMBER), Some(GROUP)).unwrap();
    chmod(&default, 0o2770);
    let output = world.run(OWNER, &["cat", "alpha:7000"]);
    std::fs::remove_dir_all(&default).unwrap();
    refused(&output, &["run directory of another user"]);
}

/// No byte that programs send, and no key, is in a log, however much is logged.
#[test]
fn logs_hold_neither_payload_nor_keys() {
    let Some(world) = World::new("users: logs") else {
        return;
    };
    world.formatted();
    let run_dir = world.home(OWNER).join("run");
    let log = world.path("engine.log");
    let file = std::fs::File::create(&log).unwrap();
    let engine = world.engine_logged(&run_dir, &[], file.into());
    let far = world.home(OWNER).join("far");
    let text = world.path("text");
    std::fs::write(&text, format!("{MARKER}\n").repeat(3000)).unwrap();
    let mut listens = world.stp(OWNER, &["-vvv", "cat", "-l", "7000"]);
    listens
        .env("STP_RUN_DIR", &run_dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let listens = listens.spawn().unwrap();
    let mut calls = world.stp(
        OWNER,
        &[
            "-vvv",
            "--system",
            "beta",
            "cat",
            "--retry",
            "60",
            "alpha:7000",
        ],
    );
    calls.env("STP_RUN_DIR", &far).env("STP_LOG", "trace");
    let called = calls
        .stdin(std::fs::File::open(&text).unwrap())
        .output()
        .unwrap();
    good(&called);
    let heard = listens.wait_with_output().unwrap();
    assert!(heard.stdout == std::fs::read(&text).unwrap());
    drop(engine);
    let mut logs = vec![
        said(&called),
        said(&heard),
        std::fs::read_to_string(&log).unwrap(),
    ];
    assert!(
        logs.iter().map(String::len).sum::<usize>() > 500,
        "nothing was logged: {logs:?}"
    );
    let mut secrets = vec![MARKER.to_owned()];
    secrets.push(MARKER.bytes().map(|b| format!("{b:02x}")).collect());
    secrets.push(
        format!("{:?}", &MARKER.as_bytes()[..8])
            .trim_matches(['[', ']'])
            .to_owned(),
    );
    for key in [&run_dir, &far]
        .into_iter()
        .filter_map(|dir| find(dir, "run.key"))
    {
        let key = std::fs::read_to_string(key).unwrap();
        secrets.push(key.lines().next().unwrap().to_owned());
    }
    assert!(secrets.iter().all(|secret| secret.len() > 8));
    assert_eq!(found(&logs, &secrets), None);
    // The search finds what it is for.
    for secret in &secrets {
        logs.push(format!("a line with {secret} in it"));
        assert!(found(&logs, std::slice::from_ref(secret)).is_some());
    }
}

fn found(logs: &[String], secrets: &[String]) -> Option<String> {
    let lines = logs.iter().flat_map(|log| log.lines());
    lines
        .filter(|line| secrets.iter().any(|secret| line.contains(secret.as_str())))
        .map(str::to_owned)
        .next()
}
