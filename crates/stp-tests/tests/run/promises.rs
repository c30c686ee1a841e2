//! What `stp run` promises around its programs: exit codes, signals, engines that come and go, honest refusals.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

use rustix::process::Signal;
use stp_tests::{
    Cmd, HANG, Host, Kind, Lab, Net, Proc, Ran, Stage, Transport, find_program, skip, skip_part,
    wait_for,
};

const ECHO: &str = include_str!("data/echo.py");
const HOLD: &str = include_str!("data/hold.py");

/// Two systems; engines only where the story starts them.
fn lab(name: &str, kind: Kind, net: Net) -> Option<Lab> {
    if find_program("python3").is_none() {
        skip(name, "not installed: python3");
        return None;
    }
    Lab::with(name, kind, &["alpha", "beta"], net)
}

fn run(host: &Host, program: &str) -> Cmd {
    host.stp(["run", "--"]).called(program).arg(program)
}

fn python(host: &Host, name: &str, script: &str) -> Cmd {
    run(host, "python3").called(name).args(["-c", script])
}

fn shell(host: &Host, script: &str) -> Cmd {
    run(host, "sh").args(["-c", script])
}

fn echo(host: &Host, port: u16) -> Proc {
    let mut server = python(host, "echo", ECHO)
        .arg(port.to_string())
        .stdin_pipe()
        .spawn();
    server.wait_out("a listening line", |out| {
        out.contains("listens").then_some(())
    });
    server
}

/// A failure that is ours to tell: on one line, what and what to do, and an exit code that is not the program's.
fn told(ran: &Ran, words: &[&str]) {
    assert!(!ran.status.success(), "{ran}");
    let line = ran.err.lines().find(|line| line.contains("stp"));
    let line = line
        .unwrap_or_else(|| panic!("nothing of stp: {ran}"))
        .to_lowercase();
    for word in words {
        assert!(line.contains(&word.to_lowercase()), "no {word:?} in: {ran}");
    }
}

/// The exit code is the program's, and so is the end by a signal; signals reach the program; no engine was there before, and
/// the one that was started leaves when nobody needs it.
#[test]
fn exit_codes_and_signals_are_the_programs() {
    let Some(lab) = lab("stp run: exit codes", Kind::File, Net::None) else {
        return;
    };
    let [alpha] = lab.hosts();
    let ran = shell(alpha, "echo out; echo err >&2; exit 7").run();
    assert_eq!((ran.code(), ran.text().as_str()), (7, "out\n"), "{ran}");
    assert!(ran.err.contains("err"), "{ran}");
    assert_eq!(shell(alpha, "kill -SEGV $$").run().code(), 128 + 11);
    for (signal, name) in [
        (Signal::TERM, "TERM"),
        (Signal::INT, "INT"),
        (Signal::HUP, "HUP"),
        (Signal::USR1, "USR1"),
    ] {
        let script = format!("trap 'exit 9' {name}; echo ready; while :; do sleep 0.05; done");
        let mut waiting = shell(alpha, &script).spawn();
        waiting.wait_out("the trap", |out| out.contains("ready").then_some(()));
        waiting.signal(signal);
        assert_eq!(waiting.wait().code(), Some(9), "{name}");
    }
    // What it reads and writes is passed on untouched.
    let input = stp_tests::make_file(&alpha.path("input"), 1, 3_000_000);
    let copied = run(alpha, "cat").stdin_file(&input).ok();
    assert!(
        copied.out == std::fs::read(&input).unwrap(),
        "what cat copied differs"
    );
    let missing = run(alpha, "no-such-program-at-all").run();
    assert_eq!(missing.code(), 1, "{missing}");
    told(&missing, &["no-such-program-at-all"]);
    let folder = alpha.path("folder");
    std::fs::create_dir(&folder).unwrap();
    let refused = run(alpha, &folder.display().to_string()).run();
    assert_eq!(refused.code(), 1, "{refused}");
    assert_eq!(alpha.stp(["run"]).run().code(), 2);
    lab.prove();
}

/// `stp run` starts an engine where none runs; the program's stream crosses; the engine leaves once it is idle.
#[test]
fn an_engine_is_started_and_leaves() {
    let Some(lab) = lab("stp run: an engine of its own", Kind::File, Net::None) else {
        return;
    };
    let [alpha, beta] = lab.hosts();
    // Whoever comes first starts it; the others wait for it.
    let crowd: Vec<Proc> = (0..12).map(|_| shell(alpha, "exit 0").spawn()).collect();
    crowd.into_iter().for_each(|program| drop(program.ok()));
    let server = echo(beta, 7000);
    let mut client = python(alpha, "hold", HOLD)
        .args(["beta.stp", "7000"])
        .spawn();
    client.wait_out("an echo", |out| out.contains("echoed hello").then_some(()));
    drop(server);
    drop(client);
    wait_for("the engines' leave", HANG, || {
        let ss = alpha.stp(["ss", "--all", "-q", "--json"]).ok();
        let report: serde_json::Value = serde_json::from_slice(&ss.out).expect("JSON");
        let mut nodes = report["nodes"].as_array().into_iter().flatten();
        nodes.all(|node| node["state"] == "left").then_some(())
    });
    lab.prove();
}

/// Unknown systems and closed ports are told by the errors that programs know; a taken port is taken, whoever has it; a mapped
/// address means a system.
#[test]
fn names_ports_and_mapped_addresses() {
    let Some(lab) = lab("stp run: names and ports", Kind::File, Net::None) else {
        return;
    };
    let [alpha, beta] = lab.hosts();
    let _engines = [alpha.engine(), beta.engine()];
    let _server = echo(beta, 7000);
    let ask = |host: &str, port: &str| {
        let asked = python(alpha, "hold", HOLD).args([host, port]).ok();
        asked.text().trim().to_owned()
    };
    // The resolver's own error: no such name.
    assert!(ask("gamma.stp", "7000").contains("Name or service not known"));
    let errno = |error: rustix::io::Errno| format!("error {} ", error.raw_os_error());
    // An address of the group's that no system has.
    assert!(ask("240.64.77.77", "7000").starts_with(&errno(rustix::io::Errno::HOSTUNREACH)));
    assert!(ask("beta.stp", "9").starts_with(&errno(rustix::io::Errno::CONNREFUSED)));
    // A port is one program's: of this system by another program, by a program of the library, and free again afterwards.
    let bind =
        "import socket, sys; s = socket.create_server(('', int(sys.argv[1]))); print('bound')";
    let taken = python(beta, "bind", bind).arg("7000").run();
    assert!(taken.err.contains("Address already in use"), "{taken}");
    python(alpha, "bind", bind).arg("7000").ok();
    let mut library = beta.stp(["cat", "-l", "7001"]).stdin_pipe().spawn();
    wait_for("a listener of the library", HANG, || {
        assert!(library.ended().is_none(), "{}", library.err());
        beta.stp(["ss", "-l", "-q"])
            .ok()
            .text()
            .contains("7001")
            .then_some(())
    });
    let taken = python(beta, "bind", bind).arg("7001").run();
    assert!(taken.err.contains("Address already in use"), "{taken}");
    drop(library);
    wait_for("the port's freedom", HANG, || {
        python(beta, "bind", bind)
            .arg("7001")
            .run()
            .status
            .success()
            .then_some(())
    });
    // A program of the library serves one that knows TCP only.
    let reply = beta.path("reply");
    std::fs::write(&reply, "from the library").unwrap();
    let listener = beta.stp(["cat", "-l", "7002"]).stdin_file(&reply).spawn();
    let get = "import socket, sys; s = socket.create_connection((sys.argv[1], 7002)); s.shutdown(1); print(s.makefile().read())";
    wait_for("an answer of the library", HANG, || {
        let got = python(alpha, "get", get).arg("beta.stp").run();
        (got.text().trim() == "from the library").then_some(())
    });
    listener.ok();
    let mapped = alpha.stp([
        "run",
        "--map",
        "10.9.8.7=beta",
        "--",
        "python3",
        "-c",
        HOLD,
        "10.9.8.7",
        "7000",
    ]);
    let mut mapped = mapped.spawn();
    mapped.wait_out("an echo", |out| out.contains("echoed hello").then_some(()));
    let wrong = alpha.stp(["run", "--map", "10.9.8.7", "--", "true"]).run();
    assert_eq!(wrong.code(), 2, "{wrong}");
    lab.prove();
}

/// The server's engine is killed under its program: the connection ends as a crash on both sides, never as an end of file; both
/// programs live; new sockets of the same processes work once an engine is back.
#[test]
fn programs_outlive_their_engine() {
    let Some(lab) = lab("stp run: a killed engine", Kind::File, Net::None) else {
        return;
    };
    let [alpha, beta] = lab.hosts();
    let (_alpha_engine, beta_engine) = (alpha.engine(), beta.engine());
    let mut server = echo(beta, 7000);
    let mut said = server.stdin();
    let mut client = python(alpha, "hold", HOLD)
        .args(["beta.stp", "7000"])
        .stdin_pipe()
        .spawn();
    let mut asked = client.stdin();
    client.wait_out("an echo", |out| out.contains("echoed hello").then_some(()));
    beta_engine.crash();
    server.wait_out("the server's error", |out| {
        out.contains("error 104").then_some(())
    });
    // Its peer learns it as soon as the new engine has taken the seat.
    let _beta_engine = beta.engine();
    client.wait_out("the client's error", |out| {
        out.contains("error 104").then_some(())
    });
    assert!(!server.out().contains("end of file") && !client.out().contains("end of file"));
    writeln!(said, "7001").unwrap();
    server.wait_out("a new listener", |out| {
        out.contains("listens 7001").then_some(())
    });
    writeln!(asked, "beta.stp 7001").unwrap();
    client.wait_out("a new echo", |out| {
        (out.matches("echoed hello").count() == 2).then_some(())
    });
    assert!(server.ended().is_none() && client.ended().is_none());
    lab.prove();
}

const LISTENS_TWICE: &str = "
import socket, sys
s = socket.socket()
s.bind(('', 7000))
s.listen(1)
print('listens', flush=True)
sys.stdin.readline()
try:
    s.listen(9)
    print('again 0', flush=True)
except OSError as error:
    print('again', error.errno, flush=True)
while True:
    s.accept()[0].sendall(b'hello')
";
const HEARS: &str = "
import socket
print(socket.create_connection(('beta.stp', 7000)).recv(9).decode())
";

/// A listener gives its queue another length while its engine is away, and goes on when there is one again; a host whose
/// routes forbid everything reaches it.
#[test]
fn a_second_listen_and_a_forbidding_route_harm_nothing() {
    let name = "stp run: a second listen";
    let Some(lab) = lab(name, Kind::File, Net::Loopback) else {
        return;
    };
    let [alpha, beta] = lab.hosts();
    let (_alpha_engine, beta_engine) = (alpha.engine(), beta.engine());
    match find_program("ip") {
        Some(ip) => {
            let forbid = ["route", "add", "unreachable", "default"];
            alpha.cmd(ip).args(forbid).ok();
        }
        None => skip_part(name, "not installed: ip"),
    }
    let mut server = python(beta, "listens twice", LISTENS_TWICE)
        .stdin_pipe()
        .spawn();
    let mut said = server.stdin();
    server.wait_out("its port", |out| out.contains("listens").then_some(()));
    beta_engine.crash();
    writeln!(said, "again").unwrap();
    server.wait_out("ENETDOWN", |out| out.contains("again 100").then_some(()));
    let _beta_engine = beta.engine();
    wait_for("an answer", HANG, || {
        assert!(server.ended().is_none(), "{}", server.err());
        let heard = python(alpha, "hears", HEARS).run();
        (heard.status.success() && heard.text().contains("hello")).then_some(())
    });
    lab.prove();
}

/// The storage goes away under everything: nobody is killed and no end of file is made up; what is started then is refused in one
/// line.
#[test]
fn an_unplugged_volume_is_told() {
    let Some(lab) = lab("stp run: an unplugged volume", Kind::Lun, Net::None) else {
        return;
    };
    let [alpha, beta] = lab.hosts();
    let engines = [alpha.engine(), beta.engine()];
    let mut server = echo(beta, 7000);
    let mut client = python(alpha, "hold", HOLD)
        .args(["beta.stp", "7000"])
        .stdin_pipe()
        .spawn();
    client.wait_out("an echo", |out| out.contains("echoed hello").then_some(()));
    lab.volume().unplug();
    let bind = "import socket; socket.create_server(('', 7005)).accept()";
    let late = python(beta, "late", bind);
    // It waits, as for any stalled storage, or is refused; it never serves.
    let mut late = late.spawn();
    assert!(server.ended().is_none() && client.ended().is_none());
    assert!(!server.out().contains("end of file") && !client.out().contains("end of file"));
    let _ = late.ended();
    drop(engines);
    server.wait_out("the server's error", |out| {
        out.contains("error 104").then_some(())
    });
    client.wait_out("the client's error", |out| {
        out.contains("error 104").then_some(())
    });
    let fresh = run(alpha, "true").run();
    told(&fresh, &[]);
}

/// A run directory that cannot be read, another preloaded library.
#[test]
fn other_users_and_other_libraries() {
    let Some(lab) = lab("stp run: bad surroundings", Kind::File, Net::None) else {
        return;
    };
    let [alpha] = lab.hosts();
    let _engine = alpha.engine();
    // Whatever was preloaded stays, behind us.
    let library = [
        "/lib/x86_64-linux-gnu/libutil.so.1",
        "/lib/aarch64-linux-gnu/libutil.so.1",
    ];
    if let Some(library) = library.iter().find(|path| Path::new(path).exists()) {
        let ran = shell(alpha, "echo \"$LD_PRELOAD\"; cat /proc/self/maps")
            .env("LD_PRELOAD", library)
            .ok();
        let text = ran.text();
        let first = text.lines().next().unwrap_or_default();
        let words: Vec<&str> = first.split([':', ' ']).collect();
        assert!(
            words.len() == 2 && words[1] == *library && words[0].contains("stp_preload"),
            "{first}"
        );
        let mapped = |name: &str| text.lines().skip(1).any(|line| line.contains(name));
        assert!(mapped("libutil.so") && mapped("stp_preload"), "{text}");
    } else {
        skip_part(
            "stp run: bad surroundings: LD_PRELOAD kept",
            "no library to preload",
        );
    }
    if !rustix::process::geteuid().is_root() {
        return skip_part("stp run: bad surroundings: another user", "not root");
    }
    // Another user's program: the run directory is closed to it.
    let closed = "chmod 700 \"$STP_RUN_DIR\" && exec setpriv --reuid=nobody --regid=nogroup --clear-groups -- \"$@\"";
    let stp = alpha.stp([""; 0]);
    let readable = alpha.path("stp");
    std::fs::copy(stp.program(), &readable).unwrap();
    let library = Path::new(stp.program()).with_file_name("libstp_preload.so");
    std::fs::copy(library, alpha.path("libstp_preload.so")).unwrap();
    for folder in [lab.folder(), &lab.folder().join("hosts")] {
        std::fs::set_permissions(folder, std::os::unix::fs::PermissionsExt::from_mode(0o711))
            .unwrap();
    }
    let refused = alpha
        .cmd("sh")
        .args(["-c", closed, "sh"])
        .arg(&readable)
        .args(["run", "--", "true"])
        .run();
    told(&refused, &["belongs to user", "--run-dir"]);
}

/// A library of another release is told at the start, in one line with both releases. If the two only meet later (the engine was
/// replaced under a program), each understands the other's version: the engine writes down both, the program gets an error
/// number, and everything that needs no engine goes on.
#[test]
fn another_release_is_told() {
    let name = "stp run: another release";
    let Some(lab) = lab(name, Kind::File, Net::None) else {
        return;
    };
    let [alpha] = lab.hosts();
    let engine = alpha.engine();
    let release = env!("CARGO_PKG_VERSION");
    let library = Path::new(alpha.stp([""; 0]).program()).with_file_name("libstp_preload.so");
    match find_program("objcopy") {
        Some(objcopy) => {
            let other = alpha.path("other.so");
            std::fs::write(alpha.path("release"), "9.8.7").unwrap();
            let change = |how: &str| {
                let changed = alpha.cmd(&objcopy).arg(how).arg(&library).arg(&other);
                changed.ok();
                run(alpha, "true").env("STP_PRELOAD", &other).run()
            };
            let ran = change("--update-section=.stp.release=release");
            told(&ran, &["other.so", "9.8.7", release, "one release"]);
            let ran = change("--remove-section=.stp.release");
            told(&ran, &["other.so", release, "one release"]);
        }
        None => skip_part(name, "not installed: objcopy"),
    }

    // A program of another release asks this engine.
    let old = r#"
import os, socket, struct
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
s.connect("\0" + os.environ["STP_RUN_SOCKET"].split(",")[0])
s.send(b"STPr" + struct.pack("<HH", 77, 1) + bytes.fromhex(os.environ["STP_RUN_KEY"]))
answer = s.recv(2048)
print(*struct.unpack("<4sHH", answer[:8]), struct.unpack("<H", answer[8:10])[0], answer[11:].decode())
"#;
    let asked = python(alpha, "old", old).ok();
    let text = asked.text();
    assert!(text.starts_with("b'STPr' 1 100 71 "), "{asked}");
    for words in [&text, &engine.err()] {
        assert!(
            words.contains("version 77") && words.contains(release),
            "{words}"
        );
    }

    // This program asks an engine of another release.
    let new = r#"
import errno, os, socket, struct, sys, threading
if len(sys.argv) < 2:
    engine = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    engine.bind("\0stp-test-other-release")
    engine.listen(64)
    os.environ["STP_RUN_SOCKET"] = "stp-test-other-release,"
    if os.fork():
        while True:
            asked = engine.accept()[0]
            asked.recv(2048)
            asked.send(b"STPr" + struct.pack("<HH", 77, 101))
    os.execv(sys.executable, [sys.executable, "-c", sys.orig_argv[2], "again"])
def told(call):
    try:
        call()
        return "done"
    except OSError as error:
        return errno.errorcode.get(error.errno, error.errno)
print("connect", told(lambda: socket.create_connection(("240.64.1.1", 7000))))
listener = socket.socket()
print("bind", told(lambda: listener.bind(("127.0.0.1", 7001))))
print("listen", told(listener.listen))
print("udp", told(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(("127.0.0.1", 9))))
print("nobody", told(lambda: socket.create_connection(("127.0.0.1", 7002))), flush=True)
os.kill(os.getppid(), 9)
"#;
    let asked = python(alpha, "new", new).run();
    let lines: Vec<_> = asked.text().lines().map(str::to_owned).collect();
    let wanted = [
        "connect EPROTO",
        "bind done",
        "listen EPROTO",
        "udp done",
        "nobody ECONNREFUSED",
    ];
    assert_eq!(lines, wanted, "{asked}");
    lab.prove();
}

/// Programs that no preloaded library reaches are told so, and how they can be served; those that can be are not.
#[test]
fn programs_out_of_reach_are_told_so() {
    let Some(lab) = lab("stp run: out of reach", Kind::File, Net::None) else {
        return;
    };
    let [alpha] = lab.hosts();
    let _engine = alpha.engine();
    let quiet = run(alpha, "true").ok();
    assert_eq!(quiet.err, "");
    let part = |what: &str| format!("stp run: out of reach: {what}");
    match (find_program("cc"), find_program("objcopy")) {
        (Some(cc), objcopy) => {
            let source = alpha.path("empty.c");
            std::fs::write(&source, "int main(void) { return 0; }\n").unwrap();
            let build = |name: &str, flags: &[&str]| {
                let built = alpha
                    .cmd(&cc)
                    .args(flags)
                    .arg("-o")
                    .arg(alpha.path(name))
                    .arg(&source)
                    .run();
                built.status.success()
            };
            for (name, flag) in [("static", "-static"), ("static-pie", "-static-pie")] {
                if build(name, &[flag]) {
                    told(
                        &run(alpha, &alpha.path(name).display().to_string()).run(),
                        &["static", "stp forward"],
                    );
                } else {
                    skip_part(&part(name), "no static C library");
                }
            }
            // What Go leaves in its programs, in one that is linked dynamically (as with cgo).
            if let (true, Some(objcopy)) = (build("dynamic", &[]), objcopy) {
                std::fs::write(alpha.path("note"), b"\xff Go buildinf:\x08\x02").unwrap();
                let copied = alpha
                    .cmd(objcopy)
                    .arg("--add-section")
                    .arg(".go.buildinfo=note");
                copied.args(["dynamic", "go"]).ok();
                told(
                    &run(alpha, &alpha.path("go").display().to_string()).run(),
                    &["go", "stp forward"],
                );
            }
        }
        _ => skip_part(&part("static and Go"), "not installed: cc"),
    }
    if rustix::process::geteuid().is_root() {
        // For another user it would run as root, and the linker would leave our library out.
        let suid = alpha.path("suid");
        std::fs::copy("/bin/true", &suid).unwrap();
        std::fs::set_permissions(&suid, std::os::unix::fs::PermissionsExt::from_mode(0o4755))
            .unwrap();
        let chown = alpha.cmd("chown").args(["nobody"]).arg(&suid);
        chown.ok();
        std::fs::set_permissions(&suid, std::os::unix::fs::PermissionsExt::from_mode(0o4755))
            .unwrap();
        told(
            &run(alpha, &suid.display().to_string()).run(),
            &["setuid", "stp forward"],
        );
    } else {
        skip_part(&part("set-user-ID"), "not root");
    }
}

/// One client asks redis one thing after the other. The calls that the server makes for 2,000 requests more are the same, in
/// kind and number, on TCP and on the volume: nothing is added where bytes move.
#[test]
fn no_call_is_added_where_bytes_move() {
    let [plain, stp] = [Transport::Plain, Transport::Stp].map(calls_of_requests);
    let (Some(plain), Some(stp)) = (plain, stp) else {
        return;
    };
    eprintln!("calls for {MORE} requests over TCP: {plain:?}; over a volume: {stp:?}");
    // A little more: once a second redis reads about itself.
    assert!(
        plain.get("read").is_some_and(|reads| *reads >= MORE),
        "{plain:?}"
    );
    let names: Vec<_> = plain.keys().collect();
    assert!(stp.keys().eq(names), "TCP: {plain:?}; STP: {stp:?}");
    for (name, count) in &stp {
        // A wait may find two events at once, so it may be fewer.
        assert!(
            *count <= plain[name] + plain[name] / 20,
            "{name}; TCP: {plain:?}; STP: {stp:?}"
        );
    }
}

const MORE: i64 = 2000;

/// The calls of the data path that redis makes for [`MORE`] requests, by name.
fn calls_of_requests(transport: Transport) -> Option<BTreeMap<String, i64>> {
    let programs = ["strace", "redis-server", "redis-benchmark", "redis-cli"];
    let stage = Stage::open("strace of redis", transport, &programs)?;
    let count = |requests: i64| -> Option<BTreeMap<String, i64>> {
        let port = stage.port();
        let summary = stage.server_host().path(&format!("calls-{requests}"));
        let redis = find_program("redis-server").expect("redis-server");
        let strace = stage
            .server("strace")
            .args(["-f", "-c", "-U", "calls,name", "-o"])
            .arg(&summary);
        let server =
            strace
                .arg(redis)
                .args(["--port", &port.to_string(), "--save", "", "--hz", "1"]);
        let mut server = server.args(["--protected-mode", "no"]).spawn();
        if server.ended().is_some() {
            skip(stage.name(), &format!("strace: {}", server.err()));
            return None;
        }
        stage.wait_server(port, &mut server);
        let client = stage.client("redis-benchmark");
        let client = client.args([
            "-h",
            stage.server_name(),
            "-p",
            &port.to_string(),
            "-c",
            "1",
            "-t",
            "get",
        ]);
        client.args(["-n", &requests.to_string(), "--csv"]).ok();
        // In order, so that strace writes its summary.
        let end = stage.client("redis-cli");
        let end = end.args(["-h", stage.server_name(), "-p", &port.to_string()]);
        let _ = end.args(["shutdown", "nosave"]).run();
        server.wait();
        let text = std::fs::read_to_string(&summary).unwrap();
        let rows = text.lines().filter_map(|line| {
            let mut words = line.split_whitespace();
            let calls = words.next()?.parse().ok()?;
            Some((words.next()?.to_owned(), calls))
        });
        Some(rows.filter(|(name, _)| name != "total").collect())
    };
    let (few, many) = (count(100)?, count(100 + MORE)?);
    let mut more: BTreeMap<String, i64> = many;
    for (name, calls) in &mut more {
        *calls -= few.get(name).copied().unwrap_or(0);
    }
    // What grows with the requests; the rest is start, end and timers.
    more.retain(|_, calls| *calls > MORE / 4);
    stage.end();
    Some(more)
}
