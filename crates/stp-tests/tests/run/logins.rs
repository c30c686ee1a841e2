//! Logging in: telnet with interrupts, OpenSSH with everything that goes over it.

use std::path::{Path, PathBuf};

use stp_tests::{
    Cmd, Host, Proc, Stage, Transport, make_file, make_tree, same_content, same_tree, skip,
};

use crate::{add_user, stories};

stories! {
    telnet_logs_in_works_and_interrupts,
    ssh_runs_commands_copies_and_forwards,
}

const TELNET: &str = include_str!("data/telnet.exp");

/// inetd accepts and hands the connection to telnetd over `exec`; an expect script logs in by password, runs commands,
/// interrupts one (`IAC IP` with the urgent mark), has output thrown away and goes on, moves 1 MB of text, and logs out.
fn telnet_logs_in_works_and_interrupts(transport: Transport) {
    if !rustix::process::geteuid().is_root() {
        return skip(
            &format!("telnet over {transport:?}"),
            "not root: login wants to be",
        );
    }
    let programs = ["inetd", "telnetd", "telnet", "expect", "login"];
    let Some(stage) = Stage::open("telnet", transport, &programs) else {
        return;
    };
    let host = stage.server_host();
    // Root by number, so that the host's folders are open to it.
    add_user(host, "stptest", 0, host.folder());
    let port = stage.port();
    let telnetd = stp_tests::find_program("telnetd").unwrap();
    let line = format!(
        "{port} stream tcp nowait root {} telnetd -h\n",
        telnetd.display()
    );
    let config = host.path("inetd.conf");
    std::fs::write(&config, line).unwrap();
    let mut server = stage
        .server("inetd")
        .args(["-i", "-d"])
        .arg(&config)
        .spawn();
    stage.wait_server(port, &mut server);
    let script = stage.client_host().path("telnet.exp");
    std::fs::write(&script, TELNET).unwrap();
    let expect = stage.client("expect").env("TERM", "vt100").arg(&script);
    let ran = expect.args([stage.server_name(), &port.to_string()]).ok();
    assert!(ran.text().contains("ALL DONE"), "{ran}");
    assert!(server.ended().is_none(), "{}", server.err());
    stage.end();
}

/// A server of the test's own keys, with privilege separation where the test is root.
fn sshd(stage: &Stage, port: u16) -> (Proc, PathBuf) {
    let (client, server) = (stage.client_host(), stage.server_host());
    let key = |host: &Host, name: &str| {
        let path = host.path(name);
        let keygen = host.cmd("ssh-keygen");
        keygen
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(&path)
            .ok();
        path
    };
    let (server_key, client_key) = (key(server, "server-key"), key(client, "client-key"));
    let public = |key: &Path| std::fs::read_to_string(key.with_extension("pub")).unwrap();
    std::fs::write(server.path("authorized"), public(&client_key)).unwrap();
    let known = format!("peer {}", public(&server_key));
    std::fs::write(client.path("known"), known).unwrap();
    let line = |name: &str, path: &Path| format!("{name} {}\n", path.display());
    let config = server.path("sshd_config");
    let mut text = format!(
        "Port {port}\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n\
        MaxStartups 100\nUseDNS yes\nSubsystem sftp internal-sftp\nAcceptEnv *\n"
    );
    text += &(line("HostKey", &server_key)
        + &line("AuthorizedKeysFile", &server.path("authorized"))
        + &line("PidFile", &server.path("pid")));
    std::fs::write(&config, text).unwrap();
    let mut sshd = stage
        .server("sshd")
        .args(["-D", "-e", "-f"])
        .arg(&config)
        .spawn();
    stage.wait_server(port, &mut sshd);
    let config = client.path("ssh_config");
    let user = client.cmd("id").arg("-un").ok().text();
    let mut text = format!(
        "Host peer\nHostName {}\nHostKeyAlias peer\nPort {port}\nUser {}\nIdentitiesOnly yes\nBatchMode yes\n\
        CheckHostIP no\nConnectTimeout 100\n",
        stage.server_name(),
        user.trim(),
    );
    text +=
        &(line("IdentityFile", &client_key) + &line("UserKnownHostsFile", &client.path("known")));
    std::fs::write(&config, text).unwrap();
    (sshd, config)
}

/// Commands with their exit codes, a terminal, 200 MiB by `scp` each way, a tree by `rsync`, two commands over one
/// connection, and a port forwarded each way.
fn ssh_runs_commands_copies_and_forwards(transport: Transport) {
    let programs = [
        "ssh",
        "sshd",
        "ssh-keygen",
        "scp",
        "sftp",
        "rsync",
        "python3",
        "curl",
    ];
    let Some(stage) = Stage::open("OpenSSH", transport, &programs) else {
        return;
    };
    let may_log_in = "getent passwd \"$(id -u)\" | grep -Evq '/(nologin|false)$'";
    let login = stage.client_host().cmd("sh").args(["-c", may_log_in]).run();
    if !login.status.success() {
        return skip(stage.name(), "this user has no login shell");
    }
    let port = stage.port();
    let (mut server, config) = sshd(&stage, port);
    let (here, there) = (stage.client_host(), stage.server_host());
    let with = |program: &str| -> Cmd { stage.client(program).arg("-F").arg(&config) };
    let ssh = |command: &str| with("ssh").args(["peer", command]);
    assert_eq!(ssh("echo over storage").ok().text(), "over storage\n");
    assert_eq!(ssh("exit 7").run().code(), 7);
    // The server names both ends as the client does.
    let seen = ssh("echo $SSH_CONNECTION").ok().text();
    let seen: Vec<&str> = seen.split_whitespace().collect();
    assert_eq!((seen.len(), seen[3]), (4, &*port.to_string()), "{seen:?}");
    if transport == Transport::Plain {
        assert_eq!((seen[0], seen[2]), ("127.0.0.1", "127.0.0.1"));
    } else {
        assert_ne!(seen[0], seen[2]);
    }
    let terminal = with("ssh").args([
        "-tt",
        "peer",
        "test -t 0 && stty size >/dev/null && echo a terminal",
    ]);
    assert!(terminal.ok().text().contains("a terminal"));
    let input = make_file(&here.path("input"), 3, 20 << 20);
    let echoed = ssh("cat").stdin_file(&input).ok();
    assert!(
        echoed.out == std::fs::read(&input).unwrap(),
        "20 MiB through ssh differ"
    );

    let big = make_file(&here.path("big"), 4, 200 << 20);
    let remote = |path: &Path| format!("peer:{}", path.display());
    with("scp")
        .arg("-q")
        .arg(&big)
        .arg(remote(&there.path("big")))
        .ok();
    same_content(&big, &there.path("big")).unwrap();
    with("scp")
        .arg("-q")
        .arg(remote(&there.path("big")))
        .arg(here.path("back"))
        .ok();
    same_content(&big, &here.path("back")).unwrap();

    make_tree(&here.path("tree"), 5);
    let shell = format!("ssh -F {}", config.display());
    let rsync = stage
        .client("rsync")
        .args(["-a", "--protect-args", "-e", &shell]);
    rsync
        .arg(format!("{}/", here.path("tree").display()))
        .arg(remote(&there.path("copy")))
        .ok();
    same_tree(&here.path("tree"), &there.path("copy"), true).unwrap();

    // One connection, many sessions: descriptors passed between processes.
    let control = format!("ControlPath={}", here.path("control").display());
    let mut master = with("ssh")
        .args(["-N", "-o", "ControlMaster=yes", "-o", &control, "peer"])
        .spawn();
    stp_tests::wait_for("a control socket", stp_tests::HANG, || {
        assert!(master.ended().is_none(), "{}", master.err());
        here.path("control").exists().then_some(())
    });
    let many: Vec<Proc> = (0..5)
        .map(|index| {
            with("ssh")
                .args(["-o", &control, "peer", &format!("echo {index}")])
                .spawn()
        })
        .collect();
    for (index, one) in many.into_iter().enumerate() {
        assert_eq!(one.ok().text(), format!("{index}\n"));
    }
    drop(master);

    // A web server behind each end is reached through the other.
    let (behind, local, back) = (stage.port(), stage.port(), stage.port());
    let site = make_file(&there.path("site/page"), 6, 3 << 20);
    let web = stage
        .server("python3")
        .args(["-m", "http.server", "--bind", "127.0.0.1"]);
    let mut web = web
        .arg(behind.to_string())
        .folder(there.path("site"))
        .spawn();
    stage.wait_server(behind, &mut web);
    let mut forward = with("ssh")
        .args(["-N", "-o", "ExitOnForwardFailure=yes"])
        .args(["-L", &format!("127.0.0.1:{local}:127.0.0.1:{behind}")])
        .args(["-R", &format!("127.0.0.1:{back}:127.0.0.1:{local}")])
        .arg("peer")
        .spawn();
    stage.wait_client(local, &mut forward);
    let page = |command: Cmd, port: u16| {
        let curl = command.args(["-sS", "--fail", "--noproxy", "*"]);
        curl.arg(format!("http://127.0.0.1:{port}/page")).ok().out
    };
    let expected = std::fs::read(&site).unwrap();
    assert!(
        page(stage.client("curl"), local) == expected,
        "what came through -L differs"
    );
    stage.wait_server(back, &mut server);
    assert!(
        page(stage.server("curl"), back) == expected,
        "what came through -R differs"
    );
    assert!(server.ended().is_none(), "{}", server.err());
    stage.end();
}
