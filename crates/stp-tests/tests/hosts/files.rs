//! Files between systems: `stp serve`, `stp cp`, `stp ls`.

use stp_tests::{HANG, Host, Kind, Lab, Net, Proc, make_file, make_tree, same_tree, wait_for};

use crate::{end, failed_well, stories};

stories! {
    a_tree_is_copied_there_and_back,
    a_copy_is_interrupted_and_resumed,
}

/// `stp serve` of beta's folder `served`, ready.
fn served(host: &Host, caller: &Host, args: &[&str]) -> Proc {
    std::fs::create_dir_all(host.path("served")).unwrap();
    let mut server = host.stp(["serve", "served"]).args(args).spawn();
    let place = format!("{}:", host.system());
    wait_for("stp serve", HANG, || {
        let ended = server.ended();
        assert!(
            ended.is_none(),
            "stp serve ended ({ended:?}): {}",
            server.err()
        );
        caller
            .stp(["ls", &place])
            .run()
            .status
            .success()
            .then_some(())
    });
    server
}

/// A tree with everything in it goes to another system and comes back; names, bytes, modes and times are kept.
fn a_tree_is_copied_there_and_back(kind: Kind) {
    let Some(lab) = Lab::with("cp -r", kind, &["alpha", "beta"], Net::None) else {
        return;
    };
    let [alpha, beta] = lab.hosts();
    let _engines = [alpha.engine(), beta.engine()];
    let _server = served(beta, alpha, &[]);
    make_tree(&alpha.path("tree"), 1);
    make_file(&alpha.path("single"), 2, 70 << 20);

    alpha.stp(["cp", "-r", "tree", "beta:"]).ok();
    same_tree(&alpha.path("tree"), &beta.path("served/tree"), true).unwrap();
    alpha.stp(["cp", "single", "tree/unit", "beta:tree/"]).ok();
    same_tree(
        &alpha.path("single"),
        &beta.path("served/tree/single"),
        true,
    )
    .unwrap();
    std::fs::create_dir(alpha.path("back")).unwrap();
    alpha.stp(["cp", "-r", "beta:tree", "back"]).ok();
    same_tree(&beta.path("served/tree"), &alpha.path("back/tree"), true).unwrap();

    let listed = alpha.stp(["ls", "beta:tree"]).ok().text();
    for name in ["empty", "single", "deep", "ünïcode-名前"] {
        assert!(listed.contains(name), "no {name:?} in: {listed}");
    }
    // A folder without -r, and what is not there.
    failed_well(&alpha.stp(["cp", "tree", "beta:"]).run(), &["tree"]);
    failed_well(&alpha.stp(["cp", "beta:none", "x"]).run(), &["none"]);
    failed_well(&alpha.stp(["cp", "none", "beta:"]).run(), &["none"]);
    end(&lab);
}

/// The copying program, then the serving program, dies in the middle; no half file is ever seen under the name, and
/// the next run completes it.
fn a_copy_is_interrupted_and_resumed(kind: Kind) {
    let Some(lab) = Lab::with("cp interrupted", kind, &["alpha", "beta"], Net::None) else {
        return;
    };
    let [alpha, beta] = lab.hosts();
    let _engines = [alpha.engine(), beta.engine()];
    let server = served(beta, alpha, &[]);
    let big = make_file(&alpha.path("big"), 3, 200 << 20);
    let target = beta.path("served/big");
    let arrived = || -> u64 {
        let entries = std::fs::read_dir(beta.path("served")).unwrap();
        entries.flatten().map(|entry| blocks(&entry.path())).sum()
    };
    let part = |copy: &mut Proc, wanted: u64| {
        wait_for("a part of the file", HANG, || {
            let ended = copy.ended();
            assert!(
                ended.is_none(),
                "ended before it was interrupted ({ended:?})"
            );
            (arrived() > wanted).then_some(())
        });
        assert!(!target.exists(), "half a file under its name");
    };
    let mut copy = alpha.stp(["cp", "big", "beta:"]).spawn();
    part(&mut copy, 8 << 20);
    copy.crash();

    let mut copy = alpha.stp(["cp", "big", "beta:"]).spawn();
    part(&mut copy, arrived() + (8 << 20));
    server.crash();
    // The copy tries again by itself; the new server takes what the old one has.
    let _server = served(beta, alpha, &[]);
    copy.ok();
    same_tree(&big, &target, true).unwrap();
    let left: Vec<_> = std::fs::read_dir(beta.path("served"))
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    assert_eq!(left, ["big"], "something is left beside the file");
    end(&lab);
}

/// What a file, or a folder with all in it, takes on the disk.
fn blocks(path: &std::path::Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(meta) = std::fs::symlink_metadata(path) else {
        return 0;
    };
    if meta.is_dir() {
        return std::fs::read_dir(path)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| blocks(&entry.path()))
            .sum();
    }
    meta.blocks() * 512
}

/// Nothing outside the served folder can be read, written or listed, by whatever name.
#[test]
fn nothing_leaves_the_served_folder() {
    let Some(lab) = Lab::with("path traversal", Kind::File, &["alpha", "beta"], Net::None) else {
        return;
    };
    let [alpha, beta] = lab.hosts();
    std::fs::create_dir(beta.path("served")).unwrap();
    make_file(&beta.path("secret"), 1, 100);
    std::os::unix::fs::symlink("../secret", beta.path("served/link")).unwrap();
    std::os::unix::fs::symlink("..", beta.path("served/up")).unwrap();
    let _server = served(beta, alpha, &[]);
    let absolute = format!("beta:{}", beta.path("secret").display());
    for from in [
        "beta:../secret",
        "beta:x/../../secret",
        "beta:up/secret",
        "beta:link",
        &absolute,
    ] {
        let ran = alpha.stp(["cp", from, "stolen"]).run();
        failed_well(&ran, &[]);
        assert!(!alpha.path("stolen").exists(), "{from} was copied");
    }
    make_file(&alpha.path("mine"), 2, 100);
    let outside = format!("beta:{}", beta.path("planted").display());
    for to in ["beta:../planted", "beta:up/planted", &outside] {
        failed_well(&alpha.stp(["cp", "mine", to]).run(), &[]);
        assert!(!beta.path("planted").exists(), "{to} was written");
    }
    failed_well(&alpha.stp(["ls", "beta:.."]).run(), &[]);
    end(&lab);
}

/// A folder that is served for reading only keeps its bytes.
#[test]
fn a_read_only_server_refuses_to_write() {
    let Some(lab) = Lab::with(
        "serve --read-only",
        Kind::File,
        &["alpha", "beta"],
        Net::None,
    ) else {
        return;
    };
    let [alpha, beta] = lab.hosts();
    let original = make_file(&beta.path("served/file"), 1, 1000);
    let before = std::fs::read(&original).unwrap();
    let _server = served(beta, alpha, &["--read-only"]);
    make_file(&alpha.path("file"), 2, 500);
    failed_well(
        &alpha.stp(["cp", "file", "beta:"]).run(),
        &["beta", "read-only"],
    );
    assert!(std::fs::read(&original).unwrap() == before);
    alpha.stp(["cp", "beta:file", "copy"]).ok();
    assert!(std::fs::read(alpha.path("copy")).unwrap() == before);
    end(&lab);
}

/// The disk is full in the middle of a copy: the sender hears of it, nothing is left under the name.
#[test]
fn a_full_disk_is_told_to_the_sender() {
    let name = "a full disk";
    if !rustix::process::geteuid().is_root() {
        return stp_tests::skip(name, "not root: no file system of the test's own");
    }
    let Some(lab) = Lab::with(name, Kind::File, &["alpha", "beta"], Net::None) else {
        return;
    };
    let [alpha, beta] = lab.hosts();
    let _engine = beta.engine();
    let program = beta.stp([""; 0]).program().to_owned();
    let script = "mkdir tiny && mount -t tmpfs -o size=4m tmpfs tiny && exec \"$1\" serve tiny";
    let _server = beta
        .cmd("sh")
        .args(["-c", script, "sh"])
        .arg(program)
        .spawn();
    wait_for("stp serve", HANG, || {
        alpha
            .stp(["ls", "beta:"])
            .run()
            .status
            .success()
            .then_some(())
    });
    make_file(&alpha.path("big"), 1, 20 << 20);
    failed_well(&alpha.stp(["cp", "big", "beta:"]).run(), &["big", "space"]);
    let listed = alpha.stp(["ls", "beta:"]).ok().text();
    assert!(!listed.contains("big"), "half a file is seen: {listed}");
    end(&lab);
}
