//! The stand-in for a shared LUN: one storage server, a client of its own for each system, whose buffered I/O is not
//! coherent; the same storage late and failing.

use stp_tests::{Kind, Lab, Net, make_file, make_tree, same_tree};

use crate::{end, serve, was_reset, whole};

/// Streams both ways, a tree through a pipe, files, a killed engine: the stories of this folder in short form.
#[test]
fn two_clients_of_one_storage_server() {
    let Some(lab) = Lab::with("LUN", Kind::Lun, &["alpha", "beta"], Net::None) else {
        return;
    };
    let [alpha, beta] = lab.hosts();
    let engine = alpha.engine();
    let betas = beta.engine();
    let server = serve(beta, "7000 --streams 50");
    let ran = alpha
        .load("call beta:7000 --streams 50 --up 100001 --down 100003")
        .ok();
    assert_eq!(whole(&ran.text()), 50, "{ran}");
    server.ok();

    make_tree(&alpha.path("tree"), 1);
    let program = alpha.stp([""; 0]).program().to_owned();
    let pipe = |script: &str| {
        [
            "-c".to_owned(),
            format!("set -o pipefail; {script}"),
            "bash".to_owned(),
        ]
    };
    let receiver = beta
        .cmd("bash")
        .args(pipe("\"$1\" cat -l 7000 | tar x"))
        .arg(&program)
        .spawn();
    alpha
        .cmd("bash")
        .args(pipe("tar c tree | \"$1\" cat --retry 60 beta:7000"))
        .arg(&program)
        .ok();
    receiver.ok();
    same_tree(&alpha.path("tree"), &beta.path("tree"), true).unwrap();

    let mut server = serve(beta, "7000 --rate 20000");
    let caller = alpha
        .load("call beta:7000 --up 9000000 --down 9000000 --rate 20000")
        .spawn();
    server.wait_out("bytes", |out| out.contains("receiving").then_some(()));
    betas.crash();
    let ran = caller.finish();
    assert!(was_reset(&ran.text(), "called"), "{ran}");
    drop(server);
    let _betas = beta.engine();
    let server = serve(beta, "7000 --streams 2");
    alpha
        .load("call beta:7000 --streams 2 --up 1000000 --down 1000000 --key 5")
        .ok();
    server.ok();
    drop(engine);
    end(&lab);
}

/// One write in ten and one read in twenty fail, all of them are late: streams wait, and lose nothing.
#[test]
fn storage_that_fails_and_is_late_loses_nothing() {
    let Some(lab) = Lab::with("faulty LUN", Kind::FaultyLun, &["alpha", "beta"], Net::None) else {
        return;
    };
    let [alpha, beta] = lab.hosts();
    let _engines = [alpha.engine(), beta.engine()];
    let server = serve(beta, "7000 --streams 21");
    let ran = alpha.load("call beta:7000 --key 2").ok();
    assert_eq!(whole(&ran.text()), 1, "{ran}");
    lab.volume().fail(true);
    let ran = alpha
        .load("call beta:7000 --streams 20 --up 200000 --down 200000")
        .ok();
    assert_eq!(whole(&ran.text()), 20, "{ran}");
    let ran = server.ok();
    assert_eq!(whole(&ran.text()), 21, "{ran}");
    lab.volume().fail(false);
    let file = make_file(&alpha.path("file"), 1, 3_000_000);
    let receiver = beta.stp(["cat", "-l", "7001"]).spawn();
    alpha
        .stp(["cat", "--retry", "60", "beta:7001"])
        .stdin_file(&file)
        .ok();
    assert!(receiver.ok().out == std::fs::read(file).unwrap());
    end(&lab);
}
