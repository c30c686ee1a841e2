//! Language runtimes with their own ways to sockets: Java (blocking and NIO), Node.js (HTTP and cluster).

use stp_tests::{Stage, Transport};

use crate::stories;

stories! {
    java_speaks_by_blocking_calls_and_by_selectors,
    node_serves_http_from_a_cluster,
}

const JAVA: &str = include_str!("data/Peer.java");

/// A server of each kind and a client of each kind: 40 connections, 1 MiB each way, addresses that mirror each other, a
/// refused connection, a time-out.
fn java_speaks_by_blocking_calls_and_by_selectors(transport: Transport) {
    let Some(stage) = Stage::open("Java", transport, &["java", "javac"]) else {
        return;
    };
    for host in [stage.client_host(), stage.server_host()] {
        std::fs::write(host.path("Peer.java"), JAVA).unwrap();
        host.cmd("javac").arg("Peer.java").ok();
    }
    for server_kind in ["blocking", "nio"] {
        let port = stage.port().to_string();
        let java = ["-Xmx256m", "-XX:TieredStopAtLevel=1", "-cp", ".", "Peer"];
        let server = stage.server("java").args(java);
        let mut server = server
            .args([&format!("{server_kind}-server"), &port])
            .spawn();
        stage.wait_server(port.parse().unwrap(), &mut server);
        for client_kind in ["blocking", "nio"] {
            let client = stage.client("java").args(java);
            let client =
                client.args([&format!("{client_kind}-client"), stage.server_name(), &port]);
            let ran = client.ok();
            assert_eq!(
                ran.text().trim(),
                "40 connections, 41943040 bytes echoed",
                "{ran}"
            );
        }
        assert!(server.ended().is_none(), "{}", server.err());
    }
    stage.end();
}

const NODE_SERVER: &str = include_str!("data/server.js");
const NODE_CLIENT: &str = include_str!("data/client.js");

/// Four workers get their connections from the first process over a socket; 2,000 requests over kept connections, 20 MiB up and
/// down, an upgrade to a raw stream, and both workers' kinds of scheduling.
fn node_serves_http_from_a_cluster(transport: Transport) {
    let Some(stage) = Stage::open("Node.js", transport, &["node"]) else {
        return;
    };
    let script = |host: &stp_tests::Host, name: &str, text: &str| {
        let path = host.path(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let server_script = script(stage.server_host(), "server.js", NODE_SERVER);
    let client_script = script(stage.client_host(), "client.js", NODE_CLIENT);
    for scheduling in ["rr", "none"] {
        let port = stage.port();
        let server = stage
            .server("node")
            .env("NODE_CLUSTER_SCHED_POLICY", scheduling);
        let mut server = server.arg(&server_script).arg(port.to_string()).spawn();
        server.wait_out("all workers", |out| {
            (out.matches("listens").count() == 4).then_some(())
        });
        stage.wait_server(port, &mut server);
        let client = stage.client("node").arg(&client_script);
        let ran = client.args([stage.server_name(), &port.to_string()]).ok();
        let text = ran.text();
        assert!(
            text.contains("2000 answers, 20971520 bytes back, upgraded, refused"),
            "{ran}"
        );
        assert!(server.ended().is_none(), "{}", server.err());
    }
    stage.end();
}
