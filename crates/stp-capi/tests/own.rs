//! What STP has and TCP has not: options, names, errors with a sentence, ends that are told apart, an engine that goes.

mod support;

use stp_tests::{Kind, Lab, Net};
use support::{How, compile, here};

fn own() -> std::path::PathBuf {
    let how = How {
        flags: &["-D_GNU_SOURCE", "-DUSE_STP", "-pthread"],
        ..How::default()
    };
    compile(&here().join("tests/c/own.c"), "own", how)
}

#[test]
fn options_names_errors_threads_and_ends() {
    let Some(lab) = Lab::with("the C library's own", Kind::File, &["alpha"], Net::None) else {
        return;
    };
    let [alpha] = lab.hosts();
    let program = own();
    alpha.cmd(&program).ok();
    // And beside a shared engine.
    let _engine = alpha.engine();
    alpha.cmd(&program).ok();
}

#[test]
fn an_engine_that_goes_in_the_middle_of_a_call_is_eio() {
    let systems = ["alpha", "beta"];
    let Some(lab) = Lab::with("the engine goes", Kind::File, &systems, Net::None) else {
        return;
    };
    let [alpha, beta] = lab.hosts();
    let mut server = beta.stp(["cat", "-l", "7000"]).stdin_pipe().spawn();
    let _open = server.stdin();
    let engine = alpha.engine();
    let mut client = alpha.cmd(own()).arg("beta:7000").spawn();
    client.wait_out("its stream", |out| out.contains("connected").then_some(()));
    engine.crash();
    client.ok();
}
