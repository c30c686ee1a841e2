//! `stp/translate.h`: a TCP program's source, unchanged, compiled and linked against the library.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use stp_tests::{Cmd, HANG, Host, Kind, Lab, Net, Ran, wait_for};
use support::{How, compile, has, here, ok};

/// A sequence of socket calls for two roles that prints every result.
fn lockstep() -> PathBuf {
    here().join("../stp-tests/tests/preload/lockstep.c")
}

fn translated(source: &Path, name: &str, compiler: &str) -> PathBuf {
    let flags = ["-include", "stp/translate.h"];
    let header = here().join("include").display().to_string();
    let flags = [flags[0], flags[1], "-I", &header];
    let how = How {
        compiler,
        flags: &flags,
        ..How::default()
    };
    compile(source, name, how)
}

/// Members, macros, static functions and variables with a call's name stay what they are; the call itself, and its
/// address, are the library's. In C and in C++, by both compilers.
#[test]
fn only_the_external_functions_change() {
    let text = "#include <sys/socket.h>\n#include <netdb.h>\n\
        struct ops { int (*connect)(int); int bind; };\n\
        static int same(int value) { return value; }\n\
        static struct ops ops = { same, 3 };\n\
        typedef int (*opener)(int, const struct sockaddr *, socklen_t);\n\
        opener pointer = connect;\n\
        int main(void) {\n\
        int listen = ops.connect(ops.bind);\n\
        return connect(-1, 0, 0) + pointer(-1, 0, 0) + listen == 1 && !gethostbyname(\"\") ? 0 : 1; }\n";
    let source = Path::new(env!("CARGO_TARGET_TMPDIR")).join("names-kept.c");
    std::fs::write(&source, text).unwrap();
    for (compiler, standard) in [
        ("gcc", "gnu99"),
        ("clang", "gnu99"),
        ("g++", "c++17"),
        ("clang++", "c++17"),
    ] {
        if !has(compiler) {
            stp_tests::skip_part(&format!("translate.h with {compiler}"), "not installed");
            continue;
        }
        let header = here().join("include").display().to_string();
        let how = How {
            compiler,
            standard,
            flags: &["-include", "stp/translate.h", "-I", &header],
            ..How::default()
        };
        let program = compile(&source, "names-kept", how);
        let wanted = ok(&Command::new("nm")
            .args(["--dynamic", "--undefined-only"])
            .arg(&program)
            .output()
            .expect("nm"));
        for name in ["connect", "gethostbyname"] {
            let plain = format!(" {name}");
            let is_plain = |line: &str| {
                line.split('@')
                    .next()
                    .is_some_and(|line| line.ends_with(&plain))
            };
            assert!(
                wanted.contains(&format!("stp_translate_{name}")),
                "{compiler}: {wanted}"
            );
            assert!(!wanted.lines().any(is_plain), "{compiler}: {wanted}");
        }
        let run = Command::new(&program).env_remove("STP_VOLUME").status();
        assert!(run.expect("it runs").success(), "{compiler}");
    }
}

fn roles(server: Cmd, client: Cmd, names: [&str; 2], port: &str) -> [String; 2] {
    let mut server = server.args(["server", names[0], names[1], port]).spawn();
    wait_for("a server that is ready", HANG, || {
        let ended = server.ended();
        assert!(ended.is_none(), "{}: {}", server.line(), server.err());
        server.out().contains("ready").then_some(())
    });
    let client = client.args(["client", names[1], names[0], port]).run();
    let done = |ran: Ran| {
        assert_eq!(ran.code(), 0, "{ran}");
        ran.text()
    };
    [done(server.finish()), done(client)]
}

/// The same source, once as it is over TCP, once with the header between two systems that share a volume: every result,
/// errno and poll event is the same.
#[test]
fn a_translated_program_does_what_it_does_over_tcp() {
    let compiler = if has("gcc") { "gcc" } else { "clang" };
    let plain = compile(
        &lockstep(),
        "lockstep-plain",
        How {
            compiler,
            stp: false,
            ..How::default()
        },
    );
    let translated = translated(&lockstep(), "lockstep-translated", compiler);
    let Some(lab) = Lab::with("translated", Kind::File, &["alpha", "beta"], Net::Loopback) else {
        return;
    };
    let [alpha, beta] = lab.hosts::<2>();
    let port = alpha.free_tcp_port().to_string();
    let on = |host: &Host, program: &Path, role: &str| host.cmd(program).called(role);
    let local = ["127.0.0.1"; 2];
    let tcp = roles(
        on(alpha, &plain, "plain-server"),
        on(alpha, &plain, "plain-client"),
        local,
        &port,
    );
    let _engines = [alpha.engine(), beta.engine()];
    let stp = roles(
        on(beta, &translated, "server"),
        on(alpha, &translated, "client"),
        ["beta.stp", "alpha.stp"],
        &port,
    );
    for (tcp, stp) in tcp.iter().zip(&stp) {
        let both = tcp.lines().zip(stp.lines());
        let differing: Vec<_> = both.filter(|(tcp, stp)| tcp != stp).collect();
        assert!(differing.is_empty(), "{differing:#?}");
        assert_eq!(
            tcp.lines().count(),
            stp.lines().count(),
            "{tcp}\n---\n{stp}"
        );
    }
    lab.prove();
}
