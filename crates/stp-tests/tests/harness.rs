//! The harness keeps its own promises: hosts are apart, volumes are shared, nothing is left behind.

use stp_tests::{Kind, Lab, Net, Volume, skip, wait_for};

#[test]
fn hosts_share_no_network_no_files_and_no_run_directory() {
    let mut lab = Lab::new("hosts are apart");
    lab.host("alpha", Net::None);
    lab.host("beta", Net::Loopback);
    let [alpha, beta] = lab.hosts();
    alpha
        .cmd("sh")
        .args([
            "-c",
            "echo secret > mine; mkdir -p $STP_RUN_DIR; echo here > $STP_RUN_DIR/x",
        ])
        .ok();
    assert_eq!(
        std::fs::read_to_string(alpha.path("mine")).unwrap(),
        "secret\n"
    );
    assert_eq!(
        std::fs::read_to_string(alpha.run_dir().join("x")).unwrap(),
        "here\n"
    );
    assert!(!beta.run_dir().join("x").exists());
    if rustix::process::geteuid().is_root() {
        assert!(
            !beta
                .cmd("cat")
                .arg(alpha.path("mine"))
                .run()
                .status
                .success()
        );
    }
    lab.prove();
}

#[test]
fn a_host_sees_the_end_of_its_processes_and_leaves_none() {
    let mut lab = Lab::new("processes end");
    lab.host("alpha", Net::None);
    let [alpha] = lab.hosts();
    let ran = alpha
        .cmd("sh")
        .args(["-c", "echo out; echo err >&2; exit 3"])
        .run();
    assert_eq!(
        (ran.code(), ran.text().as_str(), ran.err.as_str()),
        (3, "out\n", "err\n")
    );
    let mark = alpha.path("sleeper").display().to_string();
    let script = format!("sh -c '{SLEEPER}' \"$1\" & wait");
    let sleeper = alpha.cmd("sh").args(["-c", &script, "sh", &mark]).spawn();
    wait_for("a grandchild", stp_tests::HANG, || {
        runs(&mark).then_some(())
    });
    drop(sleeper);
    wait_for("the grandchild's end", stp_tests::HANG, || {
        (!runs(&mark)).then_some(())
    });
}

/// A process that left its group and its parent ends with its host, where hosts have process numbers of their own.
#[test]
fn a_host_takes_its_daemons_with_it() {
    if !rustix::process::geteuid().is_root() {
        return skip(
            "daemons end with their host",
            "not root: no process numbers of its own",
        );
    }
    let mut lab = Lab::new("daemons end");
    lab.host("alpha", Net::None);
    let [alpha] = lab.hosts();
    let mark = alpha.path("daemon").display().to_string();
    // What has not left the process group when the command ends goes with it.
    let script = format!(
        "setsid sh -c '{SLEEPER}' \"$1\" </dev/null >/dev/null 2>&1 & until [ -e \"$1\" ]; do sleep 0.01; done"
    );
    alpha.cmd("sh").args(["-c", &script, "sh", &mark]).ok();
    wait_for("a daemon", stp_tests::HANG, || runs(&mark).then_some(()));
    drop(lab);
    wait_for("the daemon's end", stp_tests::HANG, || {
        (!runs(&mark)).then_some(())
    });
}

/// Says that it is there by the file that is its name.
const SLEEPER: &str = ": > \"$0\"; sleep 1000; :";

/// Whether a shell whose `$0` is `mark` runs.
fn runs(mark: &str) -> bool {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter_map(|process| std::fs::read(process.path().join("cmdline")).ok())
        .any(|line| {
            let mut words = line.split(|byte| *byte == 0);
            words.any(|word| word == SLEEPER.as_bytes())
                && words.any(|word| word == mark.as_bytes())
        })
}

fn two_views_are_one_storage(kind: Kind) {
    let folder = tempfile::tempdir().unwrap();
    let volume = match Volume::make(kind, folder.path(), 16 << 20) {
        Ok(volume) => volume,
        Err(reason) => return skip(&format!("harness: {kind:?}"), &reason),
    };
    let dd = |args: &[String]| {
        let ran = std::process::Command::new("dd")
            .args(args)
            .output()
            .unwrap();
        assert!(
            ran.status.success(),
            "{}",
            String::from_utf8_lossy(&ran.stderr)
        );
        ran.stdout
    };
    let input = folder.path().join("input");
    std::fs::write(&input, vec![0xa5; 4096]).unwrap();
    let (here, there) = (volume.path(0), volume.path(1));
    let common = ["bs=4096", "count=1", "status=none"].map(str::to_owned);
    let mut write = vec![
        format!("if={}", input.display()),
        format!("of={}", here.display()),
    ];
    write.extend(["conv=notrunc", "oflag=direct", "seek=5"].map(str::to_owned));
    write.extend(common.clone());
    dd(&write);
    let mut read = vec![
        format!("if={}", there.display()),
        "iflag=direct".into(),
        "skip=5".into(),
    ];
    read.extend(common);
    assert_eq!(dd(&read), vec![0xa5; 4096]);
    let device = volume.path(0);
    drop(volume);
    if matches!(kind, Kind::Loop | Kind::LoopPair) {
        let name = device.file_name().unwrap().to_string_lossy().into_owned();
        let backing = format!("/sys/block/{name}/loop/backing_file");
        let detached = || {
            !std::fs::read_to_string(&backing)
                .is_ok_and(|file| file.contains(&*folder.path().to_string_lossy()))
        };
        wait_for("the loop device's end", stp_tests::HANG, || {
            detached().then_some(())
        });
    }
}

#[test]
fn file() {
    two_views_are_one_storage(Kind::File);
}

#[test]
fn one_loop_device() {
    two_views_are_one_storage(Kind::Loop);
}

#[test]
fn two_loop_devices_over_one_file() {
    two_views_are_one_storage(Kind::LoopPair);
}

#[test]
fn lun() {
    two_views_are_one_storage(Kind::Lun);
}
