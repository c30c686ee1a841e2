//! Crash soak: two engines and twenty clients on one volume while programs, engines and storage are killed and stopped.
//!
//! - Rounds alternate: a *gentle* round stops, stalls and fails things, and no stream may break; a *violent* one kills
//!   them as well, and streams may break, but only as sockets break. Between rounds everything comes to rest and what is
//!   held is counted.
//! - One seed chooses everything that is done; it is printed first. Timing is the machine's, so that a seed repeats the
//!   plan and not the run.
//! - Exit code 0: every judge in [`stp_tests::soak`] was content.
//!
//! ```text
//! stp-soak [--minutes N] [--seed N] [--storage lun-loop|lun|loop|file] [--sabotage 1]
//! ```
//!
//! `--sabotage` kills an engine in a gentle round and does not tell the judges: the run must fail.

use std::process::ExitCode;
use std::time::Duration;

use stp_tests::soak::{Plan, Soak};
use stp_tests::{Kind, skip};

fn main() -> ExitCode {
    let mut plan = Plan {
        time: Duration::from_secs(120),
        seed: u64::from(std::process::id()),
        storage: None,
        sabotage: false,
    };
    let args: Vec<String> = std::env::args().skip(1).collect();
    for pair in args.chunks(2) {
        let value = pair.get(1).map_or("", String::as_str);
        let number: Option<f64> = value.parse().ok();
        match (pair[0].as_str(), number) {
            ("--minutes", Some(minutes)) => plan.time = Duration::from_secs_f64(minutes * 60.0),
            ("--seed", Some(_)) => plan.seed = value.parse().unwrap_or(1),
            ("--sabotage", Some(number)) => plan.sabotage = number != 0.0,
            ("--storage", _) => {
                plan.storage = match value {
                    "lun-loop" => Some(Kind::FaultyLoop),
                    "lun" => Some(Kind::FaultyLun),
                    "loop" => Some(Kind::Loop),
                    "file" => Some(Kind::File),
                    _ => return usage(),
                }
            }
            _ => return usage(),
        }
    }
    println!(
        "seed {}; replay the plan with --seed {}",
        plan.seed, plan.seed
    );
    let Some(mut soak) = Soak::new(&plan) else {
        skip("soak", "no storage of the wanted kind on this machine");
        return ExitCode::SUCCESS;
    };
    let broken = soak.run();
    for what in &broken {
        println!("BROKEN {what}");
    }
    println!("{}", soak.figures());
    if broken.is_empty() {
        ExitCode::SUCCESS
    } else {
        println!(
            "{} promises broken; the plan was seed {}",
            broken.len(),
            plan.seed
        );
        ExitCode::FAILURE
    }
}

fn usage() -> ExitCode {
    eprintln!(
        "usage: stp-soak [--minutes N] [--seed N] [--storage lun-loop|lun|loop|file] [--sabotage 1]"
    );
    ExitCode::from(2)
}
