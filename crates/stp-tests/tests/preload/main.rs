//! The interposer of `stp run`: the calls it takes, one by one, beside what the kernel's TCP does.
//!
//! - The programs are C, because C is where the calls are. They print what every call gave; what they print over plain
//!   TCP is what they must print over a volume, but for differences that are listed here with their reason.
//! - A story that needs a C compiler or `nm` is skipped by name where there is none.

use std::path::{Path, PathBuf};
use std::process::Command;

use stp_tests::{Cmd, HANG, Proc, Ran, Stage, Transport, find_program, skip, wait_for};

/// Everything that `libstp_preload.so` takes: no symbol more, none less.
const TAKEN: &[&str] = &[
    "accept",
    "accept4",
    "bind",
    "connect",
    "getaddrinfo",
    "gethostbyaddr",
    "gethostbyaddr_r",
    "gethostbyname",
    "gethostbyname2",
    "gethostbyname2_r",
    "gethostbyname_r",
    "getnameinfo",
    "getpeername",
    "getsockname",
    "getsockopt",
    "listen",
    "sendmsg",
    "sendto",
];

/// Compiles one of the programs beside this file into `folder`; `None` (and a counted skip) without a compiler.
fn compile(story: &str, name: &str, folder: &Path) -> Option<PathBuf> {
    let Some(compiler) = ["cc", "gcc", "clang"]
        .iter()
        .find_map(|cc| find_program(cc))
    else {
        skip(story, "not installed: a C compiler");
        return None;
    };
    let source = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/preload")
        .join(name)
        .with_extension("c");
    let program = folder.join(name);
    let built = Command::new(compiler)
        .args([
            "-Wall",
            "-Wextra",
            "-Wno-unused-result",
            "-O1",
            "-pthread",
            "-o",
        ])
        .args([&program, &source])
        .output()
        .expect("a compiler that runs");
    let said = String::from_utf8_lossy(&built.stderr);
    assert!(
        built.status.success() && said.is_empty(),
        "{name}.c: {said}"
    );
    Some(program)
}

/// The library under test, beside the command under test.
fn library() -> Option<PathBuf> {
    let own = std::env::current_exe().expect("own path");
    let beside = std::env::var_os("STP_TEST_BIN").map(PathBuf::from);
    let folders = beside
        .iter()
        .chain([&own])
        .flat_map(|path| path.ancestors());
    folders
        .map(|folder| folder.join("libstp_preload.so"))
        .find(|path| path.is_file())
}

/// Somebody adds a call, or the linker exports one by accident: a program would be taken over without anybody meaning it.
#[test]
fn the_library_exports_exactly_the_listed_calls() {
    let story = "exported symbols of libstp_preload.so";
    let (Some(library), Some(nm)) = (library(), find_program("nm")) else {
        return skip(story, "no nm, or the library is not built");
    };
    let listed = Command::new(nm)
        .args(["--dynamic", "--defined-only", "--format=posix"])
        .arg(library)
        .output()
        .expect("nm");
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    let mut exported: Vec<&str> = text
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    exported.sort_unstable();
    assert_eq!(exported, TAKEN);
    // The page names the same ones.
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/RUN.md");
    let page = std::fs::read_to_string(page).expect("docs/RUN.md");
    for name in TAKEN {
        assert!(
            page.contains(&format!("`{name}`")),
            "docs/RUN.md: no `{name}`"
        );
    }
}

/// What a role printed, without what it waits by.
fn printed(ran: &Ran) -> Vec<String> {
    ran.text().lines().map(str::to_owned).collect()
}

fn wait_ready(process: &mut Proc) {
    wait_for("a server that is ready", HANG, || {
        let ended = process.ended();
        assert!(ended.is_none(), "{}: {}", process.line(), process.err());
        process.out().contains("ready").then_some(())
    });
}

/// Both roles of the sequence, on one transport: what the server printed, and the client.
fn lockstep(transport: Transport, change: impl Fn(Cmd) -> Cmd) -> Option<[Vec<String>; 2]> {
    let stage = Stage::open("lockstep", transport, &[])?;
    let program = |folder: &Path| compile(stage.name(), "lockstep", folder);
    let serves = program(stage.server_host().folder())?;
    let calls = program(stage.client_host().folder())?;
    let port = stage.port().to_string();
    let names = [stage.server_name(), stage.client_name()];
    let server = change(stage.server(&serves.to_string_lossy()).called("server"));
    let mut server = server.args(["server", names[0], names[1], &port]).spawn();
    wait_ready(&mut server);
    let client = change(stage.client(&calls.to_string_lossy()).called("client"));
    let client = client.args(["client", names[1], names[0], &port]).run();
    let server = server.finish();
    for ran in [&server, &client] {
        assert_eq!(ran.code(), 0, "{ran}");
        assert!(ran.text().ends_with("-: end\n"), "{ran}");
    }
    stage.end();
    Some([printed(&server), printed(&client)])
}

/// Fails with the lines that differ.
fn same(plain: &[Vec<String>; 2], other: &[Vec<String>; 2]) {
    for (role, (plain, other)) in ["server", "client"].iter().zip(plain.iter().zip(other)) {
        let differing: Vec<String> = plain
            .iter()
            .zip(other)
            .filter(|(plain, other)| plain != other)
            .map(|(plain, other)| format!("  TCP: {plain}\n  STP: {other}"))
            .collect();
        assert!(
            differing.is_empty() && plain.len() == other.len(),
            "{role}: {} lines on TCP, {} on STP\n{}",
            plain.len(),
            other.len(),
            differing.join("\n")
        );
        assert!(plain.len() > 50, "{role}: hardly anything was done");
    }
}

/// A sequence of calls, with mistakes, refusals, resets, urgent data, forks: every result, errno and poll event is the
/// same on TCP and between two systems that share a volume.
#[test]
fn every_call_gives_what_tcp_gives() {
    let Some(plain) = lockstep(Transport::Plain, |cmd| cmd) else {
        return;
    };
    if let Some(stp) = lockstep(Transport::Stp, |cmd| cmd) {
        same(&plain, &stp);
    }
}

/// The library alone, without `stp run`, changes nothing.
#[test]
fn without_stp_run_the_library_is_not_felt() {
    let Some(library) = library() else {
        return skip("the library alone", "it is not built");
    };
    let Some(plain) = lockstep(Transport::Plain, |cmd| cmd) else {
        return;
    };
    let preloaded = lockstep(Transport::Plain, |cmd| cmd.env("LD_PRELOAD", &library));
    same(&plain, &preloaded.expect("as before"));
}

/// `SYSTEM.stp` by every call that C has for host names, with hints, flags, small buffers, and back again.
#[test]
fn names_of_systems_resolve_by_every_call() {
    let Some(stage) = Stage::open("host names", Transport::Stp, &[]) else {
        return;
    };
    let Some(program) = compile(stage.name(), "names", stage.client_host().folder()) else {
        return;
    };
    let client = stage.client(&program.to_string_lossy()).called("names");
    let ran = client.args(["alpha", "beta"]).ok();
    let text = ran.text();
    let line = |head: &str| -> &str {
        let mut lines = text.lines().filter(|line| line.starts_with(head));
        let line = lines
            .next()
            .unwrap_or_else(|| panic!("no {head:?} in {ran}"));
        &line[head.len()..]
    };
    // The address, as everything below must give it.
    let v4 = line("info beta.stp 80 0 0 1: ok [2 1 ")
        .split_whitespace()
        .next();
    let v4 = v4.expect("an address");
    assert!(v4.starts_with("240."), "{v4}");
    let one = format!(" [2 1 {v4} 80]");
    let v6 = line("info beta.stp 80 0 10 1: ok [10 1 ")
        .split_whitespace()
        .next();
    let v6 = v6.expect("an address");
    assert!(v6.starts_with("100::5354:50:"), "{v6}");
    for (head, rest) in [
        (
            "info beta.stp 80 0x20 2 0: ok",
            format!(" [2 1 {v4} 80] [2 2 {v4} 80] [2 3 {v4} 80]"),
        ),
        ("info beta.stp 80 0x28 10 1: ok", format!(" [10 1 {v6} 80]")),
        ("info beta.STP. 80 0 2 1: ok", one.clone()),
        (
            "info beta 80 0x2 2 1: ok",
            format!(" [2 1 {v4} 80 beta.stp]"),
        ),
        ("info nobody.stp 80 0 2 1: ", "EAI_NONAME".into()),
        ("info no body.stp 80 0 2 1: ", "EAI_NONAME".into()),
        ("info beta.stp 80 0x4 2 1: ", "EAI_NONAME".into()),
        ("info beta.stp http 0x400 2 1: ", "EAI_NONAME".into()),
        (
            "info beta.stp no-such-service 0 2 1: ",
            "EAI_SERVICE".into(),
        ),
        ("info beta.stp 80 0x400000 2 1: ", "EAI_BADFLAGS".into()),
        ("info beta.stp 80 0 5 1: ", "EAI_FAMILY".into()),
        ("info beta.stp 80 0 2 77: ", "EAI_SOCKTYPE".into()),
        ("info - 80 0x21 2 1: ok", " [2 1 0.0.0.0 80]".into()),
        (
            "info 127.0.0.1 80 0x20 2 1: ok",
            " [2 1 127.0.0.1 80]".into(),
        ),
        (&format!("info {v4} 80 0 0 1: ok"), one.clone()),
        ("without hints: ", "ok".into()),
        ("gethostbyname: ", format!("beta.stp type 2 len 4 {v4}")),
        (
            "gethostbyname bare: ",
            format!("beta.stp type 2 len 4 {v4}"),
        ),
        ("gethostbyname unknown: ", "h_errno 1".into()),
        ("gethostbyname2: ", format!("beta.stp type 10 len 16 {v6}")),
        ("small _r = ", "34 null".into()),
        ("_r = ", "0".into()),
        ("gethostbyname_r: ", format!("beta.stp type 2 len 4 {v4}")),
        ("2_r = ", "0".into()),
        (
            "gethostbyname2_r: ",
            format!("beta.stp type 10 len 16 {v6}"),
        ),
        ("unknown _r = ", "0 null 1".into()),
        ("addr_r = ", "0".into()),
        ("gethostbyaddr_r: ", format!("beta.stp type 2 len 4 {v4}")),
        (&format!("back {v4} 0x2 300: "), "ok beta.stp 80".into()),
        (
            &format!("back {v4} 0x1 300: ok {v4} "),
            line(&format!("back {v4} 0x1 300: ok {v4} ")).into(),
        ),
        (&format!("back {v4} 0 3: "), "EAI_OVERFLOW - -".into()),
        (
            &format!("back {v6} 0 300: ok beta.stp "),
            line(&format!("back {v6} 0 300: ok beta.stp ")).into(),
        ),
        ("gethostbyaddr: ", format!("beta.stp type 2 len 4 {v4}")),
        ("back 240.64.0.1 0x8 300: ", "EAI_NONAME - -".into()),
        (
            "back 240.64.0.1 0 300: ok 240.64.0.1 ",
            line("back 240.64.0.1 0 300: ok 240.64.0.1 ").into(),
        ),
    ] {
        assert_eq!(line(head), rest, "{head:?} in {ran}");
    }
    // Services are the C library's, whatever it knows.
    let known = |line: &str| line.split_whitespace().next() == Some("ok");
    assert_eq!(
        known(line("info beta.stp http 0x2 2 1: ")),
        known(line("info 127.0.0.1 http 0 2 1: "))
    );
    stage.end();
}

/// A program closes all descriptors, changes root and user, clears its environment, forks, executes itself, is
/// interrupted or cancelled, has no descriptor left: its connections work all the same.
#[test]
fn what_programs_do_to_themselves_costs_no_connection() {
    for transport in [Transport::Plain, Transport::Stp] {
        let Some(stage) = Stage::open("manners", transport, &[]) else {
            return;
        };
        let program = |folder: &Path| compile(stage.name(), "manners", folder);
        let Some(serves) = program(stage.server_host().folder()) else {
            return;
        };
        let Some(calls) = program(stage.client_host().folder()) else {
            return;
        };
        let port = stage.port().to_string();
        let empty = stage.client_host().path("empty");
        std::fs::create_dir(&empty).expect("folder");
        let server = stage.server(&serves.to_string_lossy()).called("server");
        let mut server = server.args(["serve", &port]).spawn();
        wait_ready(&mut server);
        let client = stage.client(&calls.to_string_lossy()).called("client");
        let client = client.args(["client", stage.server_name(), &port]);
        let ran = client.arg(&empty).ok();
        let root = rustix::process::geteuid().is_root();
        let mut checked = 0;
        for line in ran.text().lines() {
            let (what, result) = line.rsplit_once(": ").expect("a result");
            let expected = match what {
                "chroot, setuid" if !root => "EPERM",
                // A connection needs no second descriptor there.
                "full table" if transport == Transport::Plain => "EBUSY",
                _ => "ok",
            };
            assert_eq!(result, expected, "{what} over {transport:?}: {ran}");
            checked += 1;
        }
        assert_eq!(checked, 13, "{ran}");
        drop(server);
        stage.end();
    }
}
