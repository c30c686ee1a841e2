//! Programs of one system: one that knows TCP only calls one that uses the library.
//!
//! - The two print what they see. A C listener and its caller do so over plain TCP first: what they print there is what they
//!   must print when the listener uses the library.

use std::path::{Path, PathBuf};

use stp_tests::{HANG, Host, Kind, Lab, Net, Proc, find_program, skip, skip_part, wait_for};

const CALLER: &str = include_str!("data/caller.py");

fn python(host: &Host, options: &[&str], script: &str) -> stp_tests::Cmd {
    let run = host.stp(["run"]).called("python3").args(options);
    run.args(["--", "python3", "-c", script])
}

fn wait_library(host: &Host, port: u16, process: &mut Proc) {
    wait_for("a listener of the library", HANG, || {
        assert!(
            process.ended().is_none(),
            "{}{}",
            process.out(),
            process.err()
        );
        let shown = host.stp(["ss", "-l", "-q"]).ok();
        shown.text().contains(&port.to_string()).then_some(())
    });
}

/// `listener.c`, over TCP or with the library, whose static form lies beside the command under test.
fn listener(host: &Host, library: Option<&Path>) -> Option<PathBuf> {
    let cc = ["cc", "gcc", "clang"]
        .iter()
        .find_map(|cc| find_program(cc))?;
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/run/data/listener.c");
    let program = host.path(if library.is_some() { "stp" } else { "tcp" });
    let mut built = host.cmd(cc).args(["-Wall", "-Wextra", "-O1", "-o"]);
    built = built.arg(&program).arg(&source);
    if let Some(library) = library {
        built = built
            .arg("-DUSE_STP")
            .arg("-I")
            .arg(crates.join("stp-capi/include"));
        built = built
            .arg(library)
            .args(["-lpthread", "-ldl", "-lm", "-lgcc_s"]);
    }
    let ran = built.ok();
    assert_eq!(ran.err, "", "{ran}");
    Some(program)
}

/// Somebody opens a service of the library's and a browser on the same host under `stp run`: by whichever of its names the
/// system is called, blocking or not, with options and urgent bytes, in good order and in bad, it is as by TCP.
#[test]
fn a_listener_of_the_library_is_reached_as_by_tcp() {
    let name = "stp run: a library's listener of the same system";
    if find_program("python3").is_none() {
        return skip(name, "not installed: python3");
    }
    let mut plain_lab = Lab::new(name);
    plain_lab.host("alpha", Net::Loopback);
    let [plain_host] = plain_lab.hosts();
    let Some(program) = listener(plain_host, None) else {
        return skip(name, "not installed: a C compiler");
    };
    let port = "5055";
    let talk = |mut server: Proc, client: stp_tests::Cmd| {
        server.wait_out("its port", |out| out.contains("ready").then_some(()));
        let client = client.ok();
        let served = server.finish();
        assert_eq!(served.code(), 7, "{served}");
        (client.text(), served.text())
    };
    let plain = |host: &str| {
        let server = plain_host.cmd(&program).arg(port).spawn();
        let client = plain_host.cmd("python3").args(["-c", CALLER, host, port]);
        talk(server, client)
    };
    let Some(lab) = Lab::with(name, Kind::File, &["alpha", "beta"], Net::None) else {
        return;
    };
    let [alpha] = lab.hosts();
    let stp = PathBuf::from(alpha.stp([""; 0]).program());
    let library = stp.with_file_name("libstp_c.a");
    if !library.exists() {
        return skip(name, "the C library is not built: cargo build -p stp-capi");
    }
    let Some(program) = listener(alpha, Some(&library)) else {
        return;
    };
    let _engine = alpha.engine();
    let six = "import socket; print(socket.getaddrinfo('alpha.stp', 0, socket.AF_INET6)[0][4][0])";
    let six = python(alpha, &[], six).ok().text();
    for (named, as_on_tcp) in [
        (six.trim(), "::1"),
        ("127.0.0.1", "127.0.0.1"),
        ("::1", "::1"),
        ("127.0.0.5", "127.0.0.5"),
        ("0.0.0.0", "0.0.0.0"),
        ("alpha.stp", "127.0.0.1"),
        ("10.9.8.7", "127.0.0.1"),
    ] {
        let server = alpha.cmd(&program).arg(port).spawn();
        let client = python(alpha, &["--map", "10.9.8.7=alpha"], CALLER).args([named, port]);
        let (stp, plain) = (talk(server, client), plain(as_on_tcp));
        assert_eq!(stp, plain, "{named}");
        assert!(plain.0.contains("crash b'' ECONNRESET"), "{}", plain.0);
    }
    lab.prove();
}

/// A service of the library's is there before any shared engine is; `stp run` starts one. Two services of the command are
/// reached, and a port is one program's, whichever of the two kinds comes first.
#[test]
fn a_shared_engine_that_comes_later_joins_them() {
    let name = "stp run: a library's listener and a later engine";
    if find_program("python3").is_none() {
        return skip(name, "not installed: python3");
    }
    let Some(lab) = Lab::with(name, Kind::File, &["alpha", "beta"], Net::None) else {
        return;
    };
    let [alpha] = lab.hosts();
    let said = alpha.path("said");
    std::fs::write(&said, "from the library").unwrap();
    let mut cat = alpha.stp(["cat", "-l", "5055"]).stdin_file(&said).spawn();
    wait_library(alpha, 5055, &mut cat);
    let get = "import socket, sys; s = socket.create_connection((sys.argv[1], int(sys.argv[2]))); \
               s.sendall(b'from tcp'); s.shutdown(1); print(s.makefile().read())";
    let bind = "import socket, sys; socket.create_server(('', int(sys.argv[1])))";
    let taken = python(alpha, &[], bind).arg("5055").run();
    assert!(taken.err.contains("Address already in use"), "{taken}");
    let got = python(alpha, &[], get).args(["localhost", "5055"]).ok();
    assert_eq!(got.text().trim(), "from the library");
    assert_eq!(cat.ok().text(), "from tcp");

    // A program that speaks first and is not understood is hung up on, not refused.
    let served = alpha.path("served");
    std::fs::create_dir(&served).unwrap();
    let mut files = alpha.stp(["serve", "--port", "5056"]).arg(&served).spawn();
    wait_library(alpha, 5056, &mut files);
    let hung_up = "import socket, sys\ns = socket.create_connection(('127.0.0.1', 5056)); s.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n' * 9)\n\
                   try: print(len(s.recv(9)) >= 0)\nexcept ConnectionResetError: print(True)";
    let asked = python(alpha, &[], hung_up).ok();
    assert_eq!(asked.text().trim(), "True");
    drop(files);

    // The other way round: what a TCP program has, the library does not get.
    let serve = "import socket; s = socket.create_server(('', 5057)); print('ready', flush=True); s.accept()";
    let mut tcp = python(alpha, &[], serve).spawn();
    tcp.wait_out("its port", |out| out.contains("ready").then_some(()));
    let refused = alpha.stp(["cat", "-l", "5057"]).run();
    assert_eq!(refused.code(), 1, "{refused}");
    assert!(
        refused.err.contains("5057") && refused.err.contains("in use"),
        "{refused}"
    );
    if !rustix::process::geteuid().is_root() {
        skip_part(name, "not root: the host's network is this machine's");
    }
    lab.prove();
}

/// A listener's queue is full: a program that waits gets its turn when there is room, one that gives up is not seen.
#[test]
fn a_full_queue_of_the_library_makes_wait() {
    let name = "stp run: a library's full queue";
    if find_program("python3").is_none() {
        return skip(name, "not installed: python3");
    }
    let Some(lab) = Lab::with(name, Kind::File, &["alpha", "beta"], Net::None) else {
        return;
    };
    let [alpha] = lab.hosts();
    let stp = PathBuf::from(alpha.stp([""; 0]).program());
    let library = stp.with_file_name("libstp_c.a");
    let program = library
        .exists()
        .then(|| listener(alpha, Some(&library)))
        .flatten();
    let Some(program) = program else {
        return skip(name, "no C compiler, or the C library is not built");
    };
    let _engine = alpha.engine();
    let mut server = alpha.cmd(&program).arg("5055").spawn();
    server.wait_out("its port", |out| out.contains("ready").then_some(()));
    // The first one is served until it ends; the queue takes 17; the others wait. The first of those gives up.
    let script = r#"
import select, socket
at = ("127.0.0.1", 5055)
first = socket.create_connection(at)
first.sendall(b"e")
others = []
while True:
    other = socket.socket()
    other.setblocking(False)
    other.connect_ex(at)
    if not select.select([], [other], [], 2)[1]:
        break
    others.append(other)
other.close()
late = socket.socket()
late.setblocking(False)
late.connect_ex(at)
print(0 < len(others) < 25, select.select([], [late], [], 0.5)[1], flush=True)
first.close()
for each in [*others, late]:
    each.setblocking(True)
    select.select([], [each], [])
    each.sendall(b"ehello")
    each.shutdown(1)
    assert each.makefile().read() == "hello"
    each.close()
print("all")
"#;
    let ran = python(alpha, &[], script).ok();
    assert_eq!(ran.text(), "True []\nall\n", "{ran}");
    // The one that gave up may have got the place before the engine knew: then it is taken as TCP's are that were aborted
    // in the queue, by a reset, and is served nothing.
    let text = server.out();
    let reset = text
        .lines()
        .filter(|line| *line == "nothing: ECONNRESET")
        .count();
    let nothing = text.lines().filter(|line| line.contains("nothing")).count();
    assert!(nothing == reset && reset <= 1, "{text}");
    lab.prove();
}
