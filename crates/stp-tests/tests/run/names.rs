//! Addresses and names of both families: what either end of a connection is told, on TCP and on the volume.
//!
//! - On TCP both ends are one host; on the volume they are two. What is told there must be what TCP tells, for the host that
//!   it is of; the few pairs that differ are listed, with their reason.

use stp_tests::{Cmd, Host, Stage, Transport};

const FAMILIES: &str = include_str!("data/families.py");

/// What a stream over the volume cannot know is the family that the other end has used: a port is a port. So pairs that TCP
/// refuses are connected, and the end that accepts sees the peer in its listener's family, IPv4 first.
const BEYOND_TCP: [(&str, &str, &str); 4] = [
    (
        "four by 6:",
        "ECONNREFUSED",
        "client-6 server-6 / client-4 client-4 server-4 True",
    ),
    (
        "dual by 6:",
        "host-6 host-6 / host-6 host-6 host-6 True",
        "client-6 server-6 / client-mapped client-mapped server-mapped True",
    ),
    (
        "six by 4:",
        "ECONNREFUSED",
        "client-4 server-4 / client-6 client-6 server-6 True",
    ),
    (
        "six by mapped:",
        "ECONNREFUSED",
        "client-mapped server-mapped / client-6 client-6 server-6 True",
    ),
];

/// The lines of the caller, each with the names that both ends were found under.
fn lines(
    transport: Transport,
    map: &[&str],
    ends: [&str; 4],
) -> Option<Vec<(String, String, String)>> {
    let stage = Stage::open("names of both families", transport, &["python3"])?;
    // Three in a row; each host has a network of its own.
    let port = "21450";
    let python = |host: &Host, role: &str| -> Cmd {
        let cmd = match transport {
            Transport::Plain => host.cmd("python3"),
            Transport::Stp => host
                .stp(["run"])
                .args(map)
                .args(["--", "python3"])
                .called("python3"),
        };
        cmd.args(["-c", FAMILIES, role, port])
    };
    let mut server = python(stage.server_host(), "serve").spawn();
    server.wait_out("its ports", |out| out.contains("ready").then_some(()));
    let ran = python(stage.client_host(), "call").args(ends).ok();
    let text = ran.text();
    let lines = text.lines().map(|line| {
        let (head, rest) = line.split_once(": ").expect("a pair");
        let end = rest.find("True").map_or(rest.len(), |at| at + "True".len());
        let (told, names) = rest.split_at(end);
        (format!("{head}:"), told.to_owned(), names.trim().to_owned())
    });
    let lines: Vec<_> = lines.collect();
    assert_eq!(lines.len(), 9, "{ran}");
    drop(server);
    stage.end();
    Some(lines)
}

/// Every kind of listener called in every way, by synthetic addresses and by mapped ones.
#[test]
fn both_ends_are_told_what_tcp_tells() {
    let here = ["127.0.0.1", "::1", "127.0.0.1", "::1"];
    let Some(plain) = lines(Transport::Plain, &[], here) else {
        return;
    };
    let systems = ["beta.stp", "beta.stp", "alpha.stp", "alpha.stp"];
    let real = ["10.9.8.7", "fd00::7", "10.9.8.6", "fd00::6"];
    let map = [
        "--map",
        "10.9.8.7=beta",
        "--map",
        "fd00::7=beta",
        "--map",
        "10.9.8.6=alpha",
        "--map",
        "fd00::6=alpha",
    ];
    for (map, ends) in [(&[][..], systems), (&map[..], real), (&map[..], systems)] {
        let Some(stp) = lines(Transport::Stp, map, ends) else {
            return;
        };
        for ((head, tcp, _), (_, told, names)) in plain.iter().zip(&stp) {
            // The later name wins where two are the same: on TCP all are the server's.
            let tcp = tcp.replace("server", "host");
            match BEYOND_TCP.iter().find(|(pair, ..)| pair == head) {
                Some((_, on_tcp, on_stp)) => {
                    assert_eq!((&*tcp, &**told), (*on_tcp, *on_stp), "{head}")
                }
                None => {
                    let as_host = told.replace("server", "host").replace("client", "host");
                    assert_eq!(as_host, tcp, "{head}");
                    let (caller, listener) = told.split_once(" / ").expect("two ends");
                    assert!(
                        caller.starts_with("client") && listener.starts_with("client"),
                        "{head} {told}"
                    );
                }
            }
            assert_eq!(names, "beta.stp alpha.stp", "{head}");
        }
    }
}
