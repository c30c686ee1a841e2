//! What STP has and TCP has not: options, names, errors with a sentence, ends that are told apart, an engine that goes.

mod support;

use std::io::Write;

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
fn a_listener_keeps_its_port_while_there_is_no_engine() {
    let Some(lab) = Lab::with("listening again", Kind::File, &["alpha"], Net::None) else {
        return;
    };
    let [alpha] = lab.hosts();
    let engine = alpha.engine();
    let mut program = alpha.cmd(own()).arg("listen").stdin_pipe().spawn();
    let mut steps = program.stdin();
    program.wait_out("its port", |out| out.contains("bound").then_some(()));
    engine.crash();
    writeln!(steps, "gone").unwrap();
    program.wait_out("its failure", |out| out.contains("failed").then_some(()));
    let _engine = alpha.engine();
    writeln!(steps, "back").unwrap();
    program.ok();
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
