//! Programs from Debian's source packages, unchanged, built with the translating header and run between two systems.
//!
//! - Each story is told over TCP first, with the same sources built without the header, then over a volume.
//! - The sources are fetched when the test runs; what cannot be fetched or built here is a skip by name.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use stp_tests::{HANG, Host, Kind, Lab, Net, debian_source, make_file, skip, wait_for};
use support::{has, pkg_config, prefix, text};

/// How the sources' calls are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Build {
    Plain,
    Translated,
}

/// Compiles and links `sources` of a package as its own Makefile would, with the header in front if asked for.
fn build(source: &Path, files: &[&str], flags: &[&str], libraries: &[&str], how: Build) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("translated");
    std::fs::create_dir_all(&folder).unwrap();
    let name = files[0].trim_end_matches(".c");
    let program = folder.join(format!("{name}-{how:?}-{}", std::process::id()));
    let mut cc = Command::new("gcc");
    // Old programs warn a lot; whether they run is what counts.
    cc.current_dir(source).args(["-O1", "-w"]).args(flags);
    if how == Build::Translated {
        let header = prefix().join("include/stp/translate.h");
        cc.arg("-include").arg(header);
    }
    cc.args(files).arg("-o").arg(&program).args(libraries);
    if how == Build::Translated {
        cc.args(pkg_config(true));
    }
    let output = cc.output().unwrap_or_else(|error| panic!("gcc: {error}"));
    assert!(output.status.success(), "{cc:?}\n{}", text(&output.stderr));
    program
}

/// The unpacked sources; `None` and a counted skip if this machine cannot have them.
fn sources(name: &str, package: &str) -> Option<PathBuf> {
    if !has("gcc") {
        skip(name, "not installed: gcc");
        return None;
    }
    debian_source(package)
        .map_err(|reason| skip(name, &reason))
        .ok()
}

/// Where a story plays: client, server, and the server's name as the client says it.
struct Place {
    lab: Lab,
    /// Of the two systems; none over TCP.
    _engines: Vec<stp_tests::Proc>,
    server: &'static str,
}

impl Place {
    fn new(name: &str, how: Build) -> Option<Self> {
        let title = format!("{name}, {how:?}");
        match how {
            Build::Plain => {
                let mut lab = Lab::new(&title);
                lab.host("alpha", Net::Loopback);
                Some(Self {
                    lab,
                    _engines: Vec::new(),
                    server: "127.0.0.1",
                })
            }
            Build::Translated => {
                let lab = Lab::with(&title, Kind::File, &["alpha", "beta"], Net::Loopback)?;
                let engines = lab.hosts::<2>().map(Host::engine);
                Some(Self {
                    lab,
                    _engines: engines.into(),
                    server: "beta.stp",
                })
            }
        }
    }

    fn client(&self) -> &Host {
        self.lab.hosts::<1>()[0]
    }

    fn server(&self) -> &Host {
        match self.server {
            "127.0.0.1" => self.client(),
            _ => self.lab.hosts::<2>()[1],
        }
    }
}

fn netcat(how: Build) {
    let Some(source) = sources("netcat from source", "netcat-traditional") else {
        return;
    };
    let Some(place) = Place::new("netcat from source", how) else {
        return;
    };
    // As debian/rules has it.
    let flags = [
        "-DLINUX",
        "-DTELNET",
        "-DGAPING_SECURITY_HOLE",
        "-DDEBIAN_VERSION=\"test\"",
        "-include",
        "stdlib.h",
    ];
    let nc = build(&source, &["netcat.c"], &flags, &["-lresolv"], how);
    let (client, server) = (place.client(), place.server());
    let up = make_file(&client.path("up"), 1, 5_000_003);
    let down = make_file(&server.path("down"), 2, 3_000_001);
    // One way at a time: netcat ends a connection at the end of its own input (-q 0), or when the peer does.
    let session = |port: u16, server_sends: bool| {
        let port_text = port.to_string();
        let listen = server.cmd(&nc).args(["-l", "-p", &port_text]);
        let mut listener = if server_sends {
            listen.args(["-q", "0"]).stdin_file(&down).spawn()
        } else {
            listen.stdout_file(&server.path("got-up")).spawn()
        };
        server.wait_tcp(port, &mut listener);
        let ran = wait_for("a connection of netcat", HANG, || {
            let call = client.cmd(&nc);
            let call = if server_sends {
                call.stdout_file(&client.path("got-down"))
            } else {
                call.args(["-q", "0"]).stdin_file(&up)
            };
            let ran = call.args([place.server, &port_text]).run();
            // Until the port stands on the volume it is refused.
            (!ran.err.contains("refused")).then_some(ran)
        });
        assert!(ran.status.success(), "{ran}");
        listener.ok();
    };
    session(17_400, false);
    session(17_401, true);
    let same = |a: &Path, b: &Path| std::fs::read(a).unwrap() == std::fs::read(b).unwrap();
    assert!(same(&up, &server.path("got-up")), "{how:?}: up differs");
    assert!(
        same(&down, &client.path("got-down")),
        "{how:?}: down differs"
    );
}

#[test]
fn netcat_over_tcp() {
    netcat(Build::Plain);
}

#[test]
fn netcat_over_a_volume() {
    netcat(Build::Translated);
}

/// A web server that forks for each connection and uses `sendfile`; the client is netcat.
fn web_server(how: Build) {
    let name = "mini_httpd from source";
    let (Some(source), Some(client_source)) = (
        sources(name, "mini-httpd"),
        sources(name, "netcat-traditional"),
    ) else {
        return;
    };
    let Some(place) = Place::new(name, how) else {
        return;
    };
    let made = Command::new("make")
        .current_dir(&source)
        .args(["-s", "mime_encodings.h", "mime_types.h"])
        .status();
    if !made.is_ok_and(|made| made.success()) {
        skip(name, "not installed: make");
        return;
    }
    let files = ["mini_httpd.c", "match.c", "tdate_parse.c"];
    let httpd = build(&source, &files, &[], &["-lcrypt"], how);
    let nc_flags = [
        "-DLINUX",
        "-DDEBIAN_VERSION=\"test\"",
        "-include",
        "stdlib.h",
    ];
    let nc = build(&client_source, &["netcat.c"], &nc_flags, &["-lresolv"], how);
    let (client, server) = (place.client(), place.server());
    let site = server.path("site");
    let big = std::fs::read(make_file(&site.join("big.bin"), 3, 20_000_003)).unwrap();
    let small = std::fs::read(make_file(&site.join("small.bin"), 4, 4_321)).unwrap();
    let mut httpd = server
        .cmd(&httpd)
        .args(["-D", "-p", "17480", "-u", "root", "-d"])
        .arg(&site)
        .spawn();
    server.wait_tcp(17_480, &mut httpd);
    let fetch = |path: &str, number: usize| {
        let request = client.path(&format!("request-{number}"));
        std::fs::write(&request, format!("GET /{path} HTTP/1.0\r\n\r\n")).unwrap();
        client
            .cmd(&nc)
            .args([place.server, "17480"])
            .stdin_file(&request)
            .spawn()
    };
    let body = |ran: &stp_tests::Ran| {
        assert!(ran.out.starts_with(b"HTTP/1.0 200 "), "{ran}");
        let end = ran.out.windows(4).position(|four| four == b"\r\n\r\n");
        ran.out[end.expect("an end of the head") + 4..].to_vec()
    };
    let ran = wait_for("the web server", HANG, || {
        let ran = fetch("small.bin", 0).finish();
        (!ran.err.contains("refused")).then_some(ran)
    });
    assert!(body(&ran) == small, "{how:?}: small.bin differs");
    let ran = fetch("big.bin", 0).finish();
    assert!(body(&ran) == big, "{how:?}: big.bin differs");
    let many: Vec<_> = (1..=20).map(|number| fetch("small.bin", number)).collect();
    for one in many {
        assert!(body(&one.finish()) == small, "{how:?}: one of 20 differs");
    }
}

#[test]
fn a_forking_web_server_over_tcp() {
    web_server(Build::Plain);
}

#[test]
fn a_forking_web_server_over_a_volume() {
    web_server(Build::Translated);
}
