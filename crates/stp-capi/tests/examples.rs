//! The examples of the C library, run between two systems without a network.

mod support;

use stp_tests::{Kind, Lab, Net, make_file};
use support::{How, compile, has, here};

fn example(name: &str, compiler: &str) -> std::path::PathBuf {
    let how = How {
        compiler,
        standard: "c99",
        ..How::default()
    };
    let source = here().join(format!("examples/{name}.c"));
    compile(&source, &format!("{name}-{compiler}"), how)
}

#[test]
fn echo_across_two_systems_and_within_one() {
    let Some(lab) = Lab::with("echo in C", Kind::File, &["alpha", "beta"], Net::None) else {
        return;
    };
    let [alpha, beta] = lab.hosts();
    let compilers: Vec<&str> = ["gcc", "clang"].into_iter().filter(|c| has(c)).collect();
    let input = make_file(&lab.folder().join("hosts/alpha/input"), 7, 3_000_001);
    let here_too = make_file(&lab.folder().join("hosts/beta/input"), 7, 3_000_001);
    for compiler in compilers {
        let mut server = beta
            .cmd(example("echo_server", compiler))
            .args(["0", "2"])
            .spawn();
        let address = server.wait_out("its address", |out| {
            let line = out
                .lines()
                .find_map(|line| line.strip_prefix("listening on "))?;
            Some(line.to_owned())
        });
        assert!(address.starts_with("lab/beta:"), "{address}");
        let client = example("echo_client", compiler);
        let ran = alpha.cmd(&client).arg(&address).stdin_file(&input).ok();
        assert!(
            ran.out == std::fs::read(&input).unwrap(),
            "{compiler}: not what was sent"
        );
        let ran = beta.cmd(&client).arg(&address).stdin_file(&here_too).ok();
        assert!(
            ran.out == std::fs::read(&input).unwrap(),
            "{compiler}: not what was sent"
        );
        let server = server.ok();
        assert!(server.text().contains("connection from alpha:"), "{server}");
        assert!(server.text().contains("connection from beta:"), "{server}");
        // Nobody is there any more: the error names whom, and what to do.
        let ran = alpha.cmd(&client).arg(&address).stdin_file(&input).run();
        assert_eq!(ran.code(), 1, "{ran}");
        let expected = "none of its engines is alive; start one there";
        assert!(ran.err.contains(expected), "{ran}");
    }
    lab.prove();
}

/// A stream of alpha's, accepted on beta and given after its first line: to a program of beta, then one of gamma.
#[test]
fn a_socket_moves_to_another_program_and_to_another_system() {
    let systems = ["alpha", "beta", "gamma"];
    let Some(lab) = Lab::with("give and take in C", Kind::File, &systems, Net::None) else {
        return;
    };
    let [alpha, beta, gamma] = lab.hosts();
    let (give, take) = (example("give", "gcc"), example("take", "gcc"));
    let client = example("echo_client", "gcc");
    let input = lab.folder().join("hosts/alpha/input");
    let rest: String = (0..200_000).map(|line| format!("line {line}\n")).collect();
    std::fs::write(&input, format!("mine\n{rest}")).unwrap();
    for (taker, to) in [(beta, "worker"), (gamma, "gamma/worker")] {
        let mut giver = beta.cmd(&give).args(["0", to]).spawn();
        let taken = taker.cmd(&take).arg("worker").spawn();
        let address = giver.wait_out("its address", |out| {
            let line = out
                .lines()
                .find_map(|line| line.strip_prefix("listening on "))?;
            Some(line.to_owned())
        });
        let ran = alpha.cmd(&client).arg(&address).stdin_file(&input).ok();
        assert!(
            ran.text() == format!("hello\n{rest}"),
            "{to}: {} bytes came back of {}",
            ran.out.len(),
            rest.len() + 6
        );
        let giver = giver.ok();
        assert!(
            giver
                .text()
                .contains(&format!("given to {to} after 5 bytes")),
            "{giver}"
        );
        let taken = taken.ok();
        assert!(
            taken.text().starts_with("took the stream of alpha:"),
            "{taken}"
        );
        assert!(
            taken
                .text()
                .ends_with(&format!("and {} bytes of it\n", rest.len())),
            "{taken}"
        );
    }
    lab.prove();
}
