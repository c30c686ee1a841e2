//! TCP services over a volume: a web server, ssh, rsync; and pipes.

use std::path::Path;

use stp_tests::{
    HANG, Host, Kind, Lab, Net, Proc, make_file, make_tree, same_tree, skip, wait_for,
};

use crate::{end, stories};

stories! {
    curl_fetches_from_a_web_server_of_another_system,
    ssh_and_rsync_reach_another_system,
    a_folder_goes_through_a_pipe,
    a_broken_pipe_is_told_by_the_exit_code,
    an_engine_in_a_container_serves_programs_outside,
    a_bench_measures_between_two_hosts,
}

/// Whether a program of the test is missing; then the test is a counted skip.
fn lacks(lab: &Lab, programs: &[&str]) -> bool {
    let [alpha] = lab.hosts();
    let missing: Vec<&str> = programs
        .iter()
        .copied()
        .filter(|program| {
            !alpha
                .cmd("sh")
                .args(["-c", "command -v \"$1\"", "sh", program])
                .run()
                .status
                .success()
        })
        .collect();
    if !missing.is_empty() {
        skip(lab.name(), &format!("not installed: {}", missing.join(" ")));
    }
    !missing.is_empty()
}

/// `stp forward` with the host's TCP side at `port`.
fn forward(host: &Host, args: &[&str], port: Option<u16>) -> Proc {
    let mut forward = host.stp(["forward"]).args(args).spawn();
    if let Some(port) = port {
        host.wait_tcp(port, &mut forward);
    }
    forward
}

/// A browser on a host without a network fetches 100 MiB from a web server on another, whole, in parts, and many
/// at once.
fn curl_fetches_from_a_web_server_of_another_system(kind: Kind) {
    let Some(lab) = Lab::with("curl", kind, &["alpha", "beta"], Net::Loopback) else {
        return;
    };
    if lacks(&lab, &["curl", "python3"]) {
        return;
    }
    let [alpha, beta] = lab.hosts();
    let site = beta.path("site");
    let big = make_file(&site.join("big"), 1, 100 << 20);
    let small = make_file(&site.join("small"), 2, 40_000);
    let (inner, outer) = (beta.free_tcp_port(), alpha.free_tcp_port());
    let inner_text = inner.to_string();
    let mut server = beta
        .cmd("python3")
        .args(["-m", "http.server", "--bind", "127.0.0.1", &inner_text])
        .folder(&site)
        .spawn();
    beta.wait_tcp(inner, &mut server);
    let _exposed = forward(beta, &["--expose", &format!("80=127.0.0.1:{inner}")], None);
    let _forward = forward(
        alpha,
        &["-L", &format!("127.0.0.1:{outer}:beta:80")],
        Some(outer),
    );
    let url = |name: &str| format!("http://127.0.0.1:{outer}/{name}");
    let curl = || alpha.cmd("curl").args(["-sS", "--fail", "--noproxy", "*"]);
    // Until beta's side is there as well.
    wait_for("the web server over the volume", HANG, || {
        curl()
            .arg(url("small"))
            .run()
            .status
            .success()
            .then_some(())
    });

    curl().arg(url("big")).arg("-o").arg(alpha.path("big")).ok();
    same_tree(&big, &alpha.path("big"), false).unwrap();
    let many: Vec<_> = (0..20).map(|_| curl().arg(url("small")).spawn()).collect();
    let expected = std::fs::read(&small).unwrap();
    for one in many {
        assert!(one.ok().out == expected, "a small page differs");
    }
    // A page that is not there is the web server's answer, not the forward's.
    let missing = alpha
        .cmd("curl")
        .args([
            "-sS",
            "--noproxy",
            "*",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
        ])
        .arg(url("none"))
        .ok();
    assert_eq!(missing.text(), "404");
    end(&lab);
}

/// A server of the test's own with its own keys; `ssh` runs commands through `stp cat`, `rsync` keeps a tree.
fn ssh_and_rsync_reach_another_system(kind: Kind) {
    let Some(lab) = Lab::with("ssh", kind, &["alpha", "beta"], Net::Loopback) else {
        return;
    };
    if lacks(&lab, &["ssh", "sshd", "ssh-keygen", "rsync"]) {
        return;
    }
    let [alpha, beta] = lab.hosts();
    let may_log_in = "getent passwd \"$(id -u)\" | grep -Evq '/(nologin|false)$'";
    if !alpha
        .cmd("sh")
        .args(["-c", may_log_in])
        .run()
        .status
        .success()
    {
        return skip(lab.name(), "this user has no login shell");
    }
    let port = beta.free_tcp_port();
    let key = |host: &Host, name: &str| {
        let path = host.path(name);
        host.cmd("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(&path)
            .ok();
        path
    };
    let (server_key, client_key) = (key(beta, "server"), key(alpha, "client"));
    let public = std::fs::read_to_string(client_key.with_extension("pub")).unwrap();
    std::fs::write(beta.path("authorized"), public).unwrap();
    let server_public = std::fs::read_to_string(server_key.with_extension("pub")).unwrap();
    std::fs::write(alpha.path("known"), format!("beta {server_public}")).unwrap();
    let line = |name: &str, path: &Path| format!("{name} {}\n", path.display());
    let config = beta.path("sshd_config");
    let mut text = format!(
        "Port {port}\nListenAddress 127.0.0.1\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
    );
    text += "PermitRootLogin prohibit-password\nMaxStartups 100\nUseDNS no\n";
    text += &(line("HostKey", &server_key)
        + &line("AuthorizedKeysFile", &beta.path("authorized"))
        + &line("PidFile", &beta.path("pid")));
    std::fs::write(&config, text).unwrap();
    // It insists on being started by its full path.
    let mut sshd = beta
        .cmd("sh")
        .args(["-c", "exec \"$(command -v sshd)\" -D -e -f \"$1\"", "sh"])
        .arg(&config)
        .spawn();
    beta.wait_tcp(port, &mut sshd);
    let _exposed = forward(beta, &["--expose", &format!("22=127.0.0.1:{port}")], None);

    let config = alpha.path("ssh_config");
    let user = alpha.cmd("id").arg("-un").ok().text();
    let stp = alpha.stp(["cat", "--retry", "30", "%h:22"]);
    let mut text = format!(
        "Host *\nUser {}\nProxyCommand {}\nIdentitiesOnly yes\nBatchMode yes\n",
        user.trim(),
        stp.line()
    );
    text +=
        &(line("IdentityFile", &client_key) + &line("UserKnownHostsFile", &alpha.path("known")));
    std::fs::write(&config, text).unwrap();

    let ssh = |command: &str| {
        alpha
            .cmd("ssh")
            .arg("-F")
            .arg(&config)
            .args(["beta", command])
    };
    assert_eq!(ssh("echo over storage").ok().text(), "over storage\n");
    assert_eq!(ssh("exit 7").run().code(), 7);
    let input = make_file(&alpha.path("input"), 3, 5 << 20);
    let echoed = ssh("cat").stdin_file(&input).ok();
    assert!(
        echoed.out == std::fs::read(&input).unwrap(),
        "5 MiB through ssh differ"
    );

    make_tree(&alpha.path("tree"), 4);
    let remote = |path: &Path| format!("beta:{}", path.display());
    let rsync = |from: String, to: String| {
        let shell = format!("ssh -F {}", config.display());
        alpha
            .cmd("rsync")
            .args(["-a", "--protect-args", "-e", &shell, &from, &to])
    };
    rsync(
        format!("{}/", alpha.path("tree").display()),
        remote(&beta.path("copy")),
    )
    .ok();
    same_tree(&alpha.path("tree"), &beta.path("copy"), true).unwrap();
    make_file(&beta.path("copy/new"), 5, 100_000);
    rsync(
        remote(&beta.path("copy/")),
        format!("{}/", alpha.path("back").display()),
    )
    .ok();
    same_tree(&beta.path("copy"), &alpha.path("back"), true).unwrap();
    end(&lab);
}

/// `tar c dir | stp cat beta:7000` on one side and `stp cat -l 7000 | tar x` on the other.
fn a_folder_goes_through_a_pipe(kind: Kind) {
    let Some(lab) = Lab::with("tar", kind, &["alpha", "beta"], Net::None) else {
        return;
    };
    let [alpha, beta] = lab.hosts();
    make_tree(&alpha.path("tree"), 6);
    make_file(&alpha.path("tree/bigger"), 7, 30 << 20);
    let pipe = |host: &Host, script: &str| {
        host.cmd("bash")
            .args(["-c", &format!("set -o pipefail; {script}"), "bash"])
            .arg(host.stp([""; 0]).program())
    };
    let receiver = pipe(beta, "\"$1\" cat -l 7000 | tar x").spawn();
    pipe(alpha, "tar c tree | \"$1\" cat --retry 60 beta:7000").ok();
    receiver.ok();
    same_tree(&alpha.path("tree"), &beta.path("tree"), true).unwrap();
    // A pipe works both ways: what beta says comes out at alpha.
    let question = make_file(&alpha.path("question"), 8, 1_000_000);
    let answer = make_file(&beta.path("answer"), 9, 2_000_000);
    let listener = beta.stp(["cat", "-l", "7001"]).stdin_file(&answer).spawn();
    let asked = alpha
        .stp(["cat", "--retry", "60", "beta:7001"])
        .stdin_file(&question)
        .ok();
    assert!(
        asked.out == std::fs::read(answer).unwrap(),
        "the answer differs"
    );
    assert!(
        listener.ok().out == std::fs::read(question).unwrap(),
        "the question differs"
    );
    end(&lab);
}

/// One end of `stp cat` dies in the middle: the other says so by its exit code, for sender and receiver alike.
fn a_broken_pipe_is_told_by_the_exit_code(kind: Kind) {
    let Some(lab) = Lab::with("a broken pipe", kind, &["alpha", "beta"], Net::None) else {
        return;
    };
    let [alpha, beta] = lab.hosts();
    let _engines = [alpha.engine(), beta.engine()];
    for receiver_dies in [true, false] {
        let received = beta.path(&format!("received-{receiver_dies}"));
        // Neither end has ended its half: their inputs stay open.
        let mut receiver = beta
            .stp(["cat", "-l", "7000"])
            .stdin_pipe()
            .stdout_file(&received)
            .spawn();
        let mut sender = alpha
            .stp(["cat", "--retry", "60", "beta:7000"])
            .stdin_pipe()
            .spawn();
        let (mut input, _answers) = (sender.stdin(), receiver.stdin());
        std::io::Write::write_all(&mut input, &[b'x'; 50_000]).unwrap();
        let arrived = || std::fs::metadata(&received).is_ok_and(|meta| meta.len() == 50_000);
        wait_for("50,000 bytes", HANG, || arrived().then_some(()));
        let ran = if receiver_dies {
            receiver.crash();
            sender.finish()
        } else {
            sender.crash();
            receiver.finish()
        };
        crate::failed_well(&ran, &["reset"]);
        assert_eq!(std::fs::metadata(&received).unwrap().len(), 50_000);
    }
    end(&lab);
}

/// The engine sees other process numbers than its programs, and not theirs.
fn an_engine_in_a_container_serves_programs_outside(kind: Kind) {
    let hosts = ["alpha", "beta"];
    let Some(lab) = Lab::with("an engine in a container", kind, &hosts, Net::Loopback) else {
        return;
    };
    if !rustix::process::geteuid().is_root() {
        return skip(lab.name(), "not root: no process numbers of its own");
    }
    let [alpha, beta] = lab.hosts();
    let mut contained = alpha
        .cmd("unshare")
        .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
        .arg(alpha.stp([] as [&str; 0]).program())
        .arg("engine")
        .spawn();
    wait_for("a ready engine", HANG, || {
        let ended = contained.ended();
        assert!(ended.is_none(), "{ended:?} {}", contained.err());
        contained.err().contains("ready").then_some(())
    });
    let _engine = beta.engine();
    for command in [&["cat"][..], &["run", "--", "bash", "-c", ASK, "ask"]] {
        let data = make_file(&alpha.path("data"), 5, 3_000_000);
        let target = beta.path("target");
        let mut listener = beta
            .stp(["-v", "cat", "-l", "7000"])
            .stdin_file(&data)
            .stdout_file(&target)
            .spawn();
        wait_for("a listener", HANG, || {
            let said = listener.err();
            assert!(listener.ended().is_none(), "{said}");
            said.contains("listening on").then_some(())
        });
        let back = alpha.path("back");
        let (to, from) = (data.display().to_string(), back.display().to_string());
        let sent = match command {
            ["cat"] => alpha
                .stp(["cat", "beta:7000"])
                .stdin_file(&data)
                .stdout_file(&back),
            run => alpha.stp(run).args([&to, &from]),
        };
        sent.ok();
        listener.ok();
        for copy in [&target, &back] {
            assert!(std::fs::read(copy).unwrap() == std::fs::read(&data).unwrap());
        }
    }
    let said = contained.err();
    assert!(!said.contains("refused"), "{said}");
    drop(contained);
    end(&lab);
}

/// Sends a file, takes as much into another one.
const ASK: &str =
    r#"exec 3<>/dev/tcp/beta.stp/7000; cat "$1" >&3 & head -c 3000000 <&3 >"$2"; wait"#;

/// `stp bench` with a host that shares nothing but the volume: the bare storage, and both ways of STP.
fn a_bench_measures_between_two_hosts(kind: Kind) {
    let Some(lab) = Lab::with("bench", kind, &["alpha", "beta"], Net::None) else {
        return;
    };
    let [alpha, beta] = lab.hosts();
    let mut server = beta.stp(["bench", "--serve"]).spawn();
    wait_for("the other side", HANG, || {
        assert!(server.ended().is_none(), "{}", server.err());
        server.err().contains("--with beta").then_some(())
    });
    let parts = "trip,stream,many,connect";
    let ran = alpha
        .stp(["bench", "--with", "beta", "--seconds", "2", "--only", parts])
        .ok();
    let text = ran.text();
    for part in [
        "round trip p50",
        "stream, MB/s",
        "messages a second",
        "connections a second",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(
        !text.contains("not measured") && text.contains("with beta"),
        "{text}"
    );
    server.signal(rustix::process::Signal::INT);
    assert!(server.wait().success(), "{}", server.err());
    end(&lab);
}
