//! File services: FTP with connections in both directions, git.

use std::path::{Path, PathBuf};

use stp_tests::{Cmd, Proc, Stage, Transport, make_file, make_tree, same_content};

use crate::stories;

stories! {
    vsftpd_stores_and_gives_folders_in_both_modes,
    pyftpdlib_stores_and_gives_folders_in_both_modes,
    git_clones_and_pushes_over_its_daemon,
}

/// A server that forks, changes its root and its user, and hands connections between processes.
fn vsftpd_stores_and_gives_folders_in_both_modes(transport: Transport) {
    if !rustix::process::geteuid().is_root() {
        return stp_tests::skip(
            &format!("vsftpd over {transport:?}"),
            "not root: it changes its root and user",
        );
    }
    let Some(stage) = Stage::open("vsftpd", transport, &["vsftpd", "lftp", "curl"]) else {
        return;
    };
    let host = stage.server_host();
    let port = stage.port();
    let top = host.path("ftp");
    stage.nobody_owns(&top.join("files"));
    let empty = host.path("empty");
    std::fs::create_dir(&empty).unwrap();
    // Even a guest has a home.
    crate::add_user(host, "stpftp", 65534, &top);
    let config = format!(
        "listen_ipv6=YES\nlisten=NO\nlisten_port={port}\nbackground=NO\n\
        anonymous_enable=YES\nlocal_enable=NO\nwrite_enable=YES\nanon_upload_enable=YES\n\
        anon_mkdir_write_enable=YES\nanon_other_write_enable=YES\nanon_umask=022\nanon_world_readable_only=NO\n\
        no_anon_password=YES\nanon_root={}\nftp_username=stpftp\nnopriv_user=nobody\n\
        secure_chroot_dir={}\nutf8_filesystem=YES\nport_enable=YES\npasv_enable=YES\n\
        connect_from_port_20=NO\nxferlog_enable=NO\nuse_sendfile=YES\n",
        top.display(),
        empty.display(),
    );
    let file = host.path("vsftpd.conf");
    std::fs::write(&file, config).unwrap();
    let mut server = stage.server("vsftpd").arg(&file).spawn();
    stage.wait_server(port, &mut server);
    ftp(&stage, port, &top);
    assert!(server.ended().is_none(), "{}{}", server.out(), server.err());
    stage.end();
}

const PYFTPD: &str = include_str!("data/ftpd.py");

/// A server that does everything in one process, by `epoll`.
fn pyftpdlib_stores_and_gives_folders_in_both_modes(transport: Transport) {
    let Some(stage) = Stage::open(
        "pyftpdlib",
        transport,
        &["/usr/bin/python3", "lftp", "curl"],
    ) else {
        return;
    };
    let host = stage.server_host();
    let has = host
        .cmd("/usr/bin/python3")
        .args(["-c", "import pyftpdlib"])
        .run();
    if !has.status.success() {
        return stp_tests::skip(stage.name(), "not installed: python3-pyftpdlib");
    }
    let port = stage.port();
    let top = host.path("ftp");
    std::fs::create_dir_all(top.join("files")).unwrap();
    let server = stage.server("/usr/bin/python3").called("ftpd");
    let mut server = server
        .args(["-W", "ignore", "-c", PYFTPD, &port.to_string()])
        .arg(&top)
        .spawn();
    stage.wait_server(port, &mut server);
    ftp(&stage, port, &top);
    assert!(server.ended().is_none(), "{}{}", server.out(), server.err());
    stage.end();
}

/// A folder goes up and comes back by `lftp`, 40 MiB go up and come back by `curl`: once with data connections from the
/// client (passive), once from the server (active). Only `files` in `top`, the server's folder, can be written.
fn ftp(stage: &Stage, port: u16, top: &Path) {
    let host = stage.client_host();
    make_tree(&host.path("tree"), 5);
    let big = make_file(&host.path("big"), 6, 40 << 20);
    for (mode, lanes) in [("on", 3), ("off", 1)] {
        let remote = format!("files/passive-{mode}");
        let script = format!(
            "set net:max-retries 2; set net:timeout 60; set cmd:fail-exit yes; set ftp:passive-mode {mode};\n\
            set ftp:use-allo no; set ftp:charset UTF-8; set ssl:verify-certificate no; set ftp:ssl-allow no;\n\
            open -u anonymous,me -p {port} {}\n\
            mkdir {remote}\nmirror -R --parallel={lanes} tree {remote}/tree\n\
            mirror --parallel={lanes} {remote}/tree back-{mode}\nls {remote}/tree/many\nquit\n",
            stage.server_name()
        );
        let file = host.path(&format!("lftp-{mode}"));
        std::fs::write(&file, script).unwrap();
        // The names in the tree are not ASCII.
        let lftp = stage.client("lftp").env("LC_ALL", "C.UTF-8").arg("--norc");
        let ran = lftp.arg("-f").arg(&file).ok();
        assert_eq!(
            ran.text()
                .lines()
                .filter(|line| line.ends_with(|c: char| c.is_ascii_digit()))
                .count(),
            200,
            "{ran}"
        );
        same_content(&host.path("tree"), &top.join(&remote).join("tree")).unwrap();
        same_content(&host.path("tree"), &host.path(&format!("back-{mode}"))).unwrap();

        let url = format!("ftp://{}:{port}/{remote}/big", stage.server_name());
        let curl = || -> Cmd {
            let curl = stage.client("curl").args(["-sS", "--noproxy", "*"]);
            match mode {
                "on" => curl.arg("--ftp-pasv"),
                _ => curl.args(["--ftp-port", "-"]),
            }
        };
        curl().arg("-T").arg(&big).arg(&url).ok();
        same_content(&big, &top.join(&remote).join("big")).unwrap();
        let got: PathBuf = host.path("got");
        curl().arg("-o").arg(&got).arg(&url).ok();
        same_content(&big, &got).unwrap();
        // The older commands, which spell an IPv4 address.
        let old = ["--disable-epsv", "--disable-eprt", "-r", "1000000-1999999"];
        let part = curl().args(old).arg(&url).ok().out;
        assert!(
            part == std::fs::read(&big).unwrap()[1_000_000..2_000_000],
            "a part differs"
        );
    }
}

/// A repository with history is cloned over `git://`, added to, and pushed back; `git fsck` and the commits' names agree.
fn git_clones_and_pushes_over_its_daemon(transport: Transport) {
    let Some(stage) = Stage::open("git", transport, &["git"]) else {
        return;
    };
    let host = stage.server_host();
    let git_at = |host: &stp_tests::Host, folder: &str, words: &[&str]| {
        let git = who(host.cmd("git")).folder(host.path(folder)).args(words);
        git.ok().text().trim().to_owned()
    };
    let at_server = |words: &[&str]| git_at(host, "served/project", words);
    std::fs::create_dir_all(host.path("served/project")).unwrap();
    at_server(&["init", "-q", "-b", "main"]);
    for round in 0..5 {
        // A folder a round: git trusts a file of the same age and size.
        make_tree(
            &host.path(&format!("served/project/tree{round}")),
            round * 1000,
        );
        make_file(&host.path("served/project/big"), round, 1 << 20);
        at_server(&["add", "-A"]);
        at_server(&["commit", "-q", "-m", &format!("round {round}")]);
    }
    std::fs::write(host.path("served/project/.git/git-daemon-export-ok"), "").unwrap();
    let port = stage.port();
    let base = format!("--base-path={}", host.path("served").display());
    let daemon = who(stage.server("git")).args([
        "daemon",
        "--reuseaddr",
        "--verbose",
        "--enable=receive-pack",
    ]);
    let mut server: Proc = daemon.arg(format!("--port={port}")).arg(base).spawn();
    stage.wait_server(port, &mut server);
    let url = format!("git://{}:{port}/project", stage.server_name());
    let git = |words: &[&str]| who(stage.client("git")).args(words);
    git(&["clone", "-q", &url, "copy"]).ok();
    let at_client = |words: &[&str]| git_at(stage.client_host(), "copy", words);
    at_client(&["fsck", "--full", "--strict"]);
    let tip = at_server(&["rev-parse", "main"]);
    assert_eq!(at_client(&["rev-parse", "HEAD"]), tip);
    assert_eq!(at_client(&["rev-list", "--count", "HEAD"]), "5");
    // git keeps no empty folder.
    std::fs::remove_dir(host.path("served/project/tree4/void")).unwrap();
    same_content(
        &host.path("served/project/tree4"),
        &stage.client_host().path("copy/tree4"),
    )
    .unwrap();
    // The other way.
    make_file(&stage.client_host().path("copy/more"), 9, 10 << 20);
    at_client(&["add", "-A"]);
    at_client(&["commit", "-q", "-m", "more"]);
    let folder = stage.client_host().path("copy");
    let push = git(&["push", "-q", "origin", "HEAD:refs/heads/more"]);
    push.folder(folder).ok();
    assert_eq!(
        at_server(&["rev-parse", "more"]),
        at_client(&["rev-parse", "HEAD"])
    );
    at_server(&["fsck", "--full", "--strict"]);
    // Ten at once.
    let many: Vec<Proc> = (0..10)
        .map(|index| git(&["clone", "-q", "--bare", &url, &format!("copy{index}")]).spawn())
        .collect();
    for one in many {
        one.ok();
    }
    for index in 0..10 {
        assert_eq!(
            git_at(
                stage.client_host(),
                &format!("copy{index}"),
                &["rev-parse", "main"]
            ),
            tip
        );
    }
    assert!(server.ended().is_none());
    stage.end();
}

/// A git that knows its author and nobody's settings.
fn who(git: Cmd) -> Cmd {
    git.env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_SYSTEM", "/dev/null")
        .env("GIT_AUTHOR_NAME", "tester")
        .env("GIT_AUTHOR_EMAIL", "tester@example.org")
        .env("GIT_COMMITTER_NAME", "tester")
        .env("GIT_COMMITTER_EMAIL", "tester@example.org")
}
