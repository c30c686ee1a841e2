//! `cargo xtask CHORE`: dispatches, and nothing else.

use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask CHORE [OPTIONS]

  test [--no-install] [FILTER]...   install what the tests need (as root), run all tests, count them
  install --prefix DIR [--destdir DIR] [--debug] [--library-only]
                                    build, and put command, libraries, headers and man pages there
  tidy                              check what a machine can check of the house rules
  needs [--install]                 list the Debian programs that the tests use, and what is missing
  suites [cpython|libuv|libevent|ruby|tcl]... [--short]
                                    others' socket tests on TCP and under `stp run`; writes docs/SUITES.md
  fuzz [--minutes N | --minutes-each N] [TARGET]...
                                    libFuzzer on every decoder and state machine, N minutes in all or for each;
                                    without cargo-fuzz, inputs made from the kept ones
  soak [--minutes N] [--seed N]     engines, programs and storage killed and stopped at random, every stream checked
  instructions [--update]           count what the micro-benchmarks take (valgrind), compare with what is committed
  vm [--memory] [--keep]            two QEMU guests without a network card on one raw disk, or on shared memory
                                    (on demand)
";

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let chore = args.next().unwrap_or_default();
    let rest: Vec<String> = args.collect();
    let result = match chore.as_str() {
        "test" => xtask::test::run(&rest),
        "install" => xtask::install::run(&rest),
        "tidy" => xtask::tidy::run(&rest),
        "needs" => xtask::needs::run(&rest),
        "suites" => xtask::suites::run(&rest),
        "fuzz" => xtask::fuzz::run(&rest),
        "soak" => xtask::soak::run(&rest),
        "instructions" => xtask::instructions::run(&rest),
        "vm" => xtask::vm::run(&rest),
        "" | "help" | "-h" | "--help" => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        other => {
            eprint!("xtask: no chore named {other:?}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask {chore}: {error}");
            ExitCode::FAILURE
        }
    }
}
