//! Web servers and their clients.

use std::path::Path;

use stp_tests::{Cmd, Proc, Stage, Transport, make_file};

use crate::{number, stories};

stories! {
    nginx_with_workers_serves_ab_wrk_and_a_large_file,
    pythons_web_server_serves_many_at_once,
}

fn curl(stage: &Stage) -> Cmd {
    stage
        .client("curl")
        .args(["-sS", "--fail", "--noproxy", "*"])
}

/// Two workers share the listening socket by fork. 20,000 requests each of `ab` and many of `wrk` come back whole; 100 MiB go
/// down and 20 MiB up; a range is the range; and nginx as a client fetches from the other system.
fn nginx_with_workers_serves_ab_wrk_and_a_large_file(transport: Transport) {
    let programs = ["nginx", "ab", "wrk", "curl", "python3"];
    let Some(stage) = Stage::open("nginx", transport, &programs) else {
        return;
    };
    let host = stage.server_host();
    let (port, behind) = (stage.port(), stage.port());
    let site = host.path("site");
    let big = make_file(&site.join("big"), 1, 100 << 20);
    let small = make_file(&site.join("small"), 2, 10_000);
    let mut origin = origin(&stage, behind);
    let top = host.folder().display();
    let user = if rustix::process::geteuid().is_root() {
        "user root;"
    } else {
        ""
    };
    let mut temporary = String::new();
    for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
        temporary += &format!("{kind}_temp_path {top}/{kind};\n");
    }
    let config = format!(
        "{user} daemon off; worker_processes 2; pid {top}/nginx.pid; error_log stderr notice;
        events {{ worker_connections 512; }}
        http {{
          access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000; client_max_body_size 1g;
          {temporary}
          server {{
            listen {port} reuseport; listen [::]:{port} reuseport;
            root {top}/site;
            location /who {{ return 200 \"$remote_addr $server_addr $server_port\\n\"; }}
            location /behind/ {{ proxy_pass http://{}:{behind}/; proxy_http_version 1.1; }}
          }}
        }}\n",
        stage.client_name()
    );
    std::fs::write(host.path("nginx.conf"), config).unwrap();
    let mut server = stage.server("nginx").arg("-p").arg(host.folder());
    server = server.arg("-c").arg(host.path("nginx.conf"));
    let mut server = server.args(["-e", "stderr"]).spawn();
    stage.wait_server(port, &mut server);
    let url = |name: &str| format!("http://{}:{port}/{name}", stage.server_name());

    for keep_alive in [true, false] {
        let count = if keep_alive { "20000" } else { "2000" };
        let mut ab = stage.client("ab").args(["-q", "-n", count, "-c", "50"]);
        if keep_alive {
            ab = ab.arg("-k");
        }
        let ran = ab.arg(url("small")).ok();
        let text = ran.text();
        let field = |name: &str| {
            let value = text
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            value.map(str::trim)
        };
        assert_eq!(field("Complete requests"), Some(count), "{ran}");
        assert_eq!(field("Failed requests"), Some("0"), "{ran}");
        assert_eq!(field("Non-2xx responses"), None, "{ran}");
        let bytes = number::<u64>(field("HTML transferred").unwrap_or_default());
        assert_eq!(bytes, number::<u64>(count) * 10_000, "{ran}");
    }
    let wrk = stage
        .client("wrk")
        .args(["-t", "2", "-c", "50", "-d", "2s"]);
    let ran = wrk.arg(url("small")).ok();
    assert!(
        !ran.text().contains("Socket errors") && !ran.text().contains("Non-2xx"),
        "{ran}"
    );
    assert!(ran.text().contains(" requests in "), "{ran}");

    let got = stage.client_host().path("got");
    curl(&stage).arg(url("big")).arg("-o").arg(&got).ok();
    same(&got, &big);
    let part = curl(&stage)
        .args(["-r", "50000000-50999999"])
        .arg(url("big"))
        .ok()
        .out;
    assert!(
        part == std::fs::read(&big).unwrap()[50_000_000..51_000_000],
        "a range differs"
    );
    let who = curl(&stage).arg(url("who")).ok().text();
    let who: Vec<&str> = who.split_whitespace().collect();
    assert_eq!(who[2], port.to_string());
    // Both ends mean the same two addresses.
    let local = curl(&stage).args(["-w", "%{local_ip} %{remote_ip}", "-o", "/dev/null"]);
    assert_eq!(
        local.arg(url("small")).ok().text(),
        format!("{} {}", who[0], who[1])
    );

    // As a client: what it fetches from the other system, it passes on.
    let got = curl(&stage).arg(url("behind/behind")).ok().out;
    let behind = stage.client_host().path("origin/behind");
    assert!(
        got == std::fs::read(behind).unwrap(),
        "what came through the proxy differs"
    );
    let upload = make_file(&stage.client_host().path("upload"), 3, 20 << 20);
    let put = curl(&stage)
        .arg("-T")
        .arg(&upload)
        .arg(url("behind/stored"));
    assert_eq!(put.ok().text(), format!("{}", 20 << 20));
    same(&stage.client_host().path("origin/stored"), &upload);
    assert!(origin.ended().is_none() && server.ended().is_none());
    // An orderly end closes what listened.
    server.signal(rustix::process::Signal::QUIT);
    assert!(server.wait().success(), "{}", server.err());
    let refused = stage
        .client("curl")
        .args(["-sS", "--noproxy", "*"])
        .arg(url("small"))
        .run();
    assert_eq!(refused.code(), 7, "{refused}");
    let _ = small;
    stage.end();
}

fn same(got: &Path, expected: &Path) {
    stp_tests::same_content(got, expected).unwrap();
}

const ORIGIN: &str = include_str!("data/origin.py");

/// A web server at the client's end that also stores.
fn origin(stage: &Stage, port: u16) -> Proc {
    let folder = stage.client_host().path("origin");
    make_file(&folder.join("behind"), 4, 5 << 20);
    let mut origin = stage
        .client("python3")
        .called("origin")
        .args(["-c", ORIGIN, &port.to_string()])
        .folder(&folder)
        .spawn();
    stage.wait_client(port, &mut origin);
    origin
}

/// A thread a request: 100 MiB, parts, 40 clients at once, a page that is not there, HEAD.
fn pythons_web_server_serves_many_at_once(transport: Transport) {
    let Some(stage) = Stage::open("http.server", transport, &["python3", "curl"]) else {
        return;
    };
    let site = stage.server_host().path("site");
    let big = make_file(&site.join("big"), 1, 100 << 20);
    let small = make_file(&site.join("small"), 2, 40_000);
    let port = stage.port();
    let server = stage.server("python3").args(["-m", "http.server"]);
    let mut server = server.arg(port.to_string()).folder(&site).spawn();
    stage.wait_server(port, &mut server);
    let url = |name: &str| format!("http://{}:{port}/{name}", stage.server_name());
    let got = stage.client_host().path("got");
    curl(&stage).arg(url("big")).arg("-o").arg(&got).ok();
    same(&got, &big);
    let many: Vec<Proc> = (0..40)
        .map(|_| curl(&stage).arg(url("small")).spawn())
        .collect();
    let expected = std::fs::read(&small).unwrap();
    for one in many {
        assert!(one.ok().out == expected, "a small page differs");
    }
    // One process, 20 at once.
    let mut together = curl(&stage).args(["--parallel", "--parallel-max", "20"]);
    for index in 0..40 {
        let out = stage.client_host().path(&format!("page{index}"));
        together = together.arg(url("small")).arg("-o").arg(out);
    }
    together.ok();
    for index in 0..40 {
        same(&stage.client_host().path(&format!("page{index}")), &small);
    }
    let code = stage
        .client("curl")
        .args(["-sS", "--noproxy", "*", "-o", "/dev/null"]);
    let code = code.args(["-w", "%{http_code}"]).arg(url("none")).ok();
    assert_eq!(code.text(), "404");
    let head = curl(&stage).arg("-I").arg(url("small")).ok();
    assert!(head.text().contains("Content-Length: 40000"), "{head}");
    assert!(server.ended().is_none(), "{}", server.err());
    stage.end();
}
