//! Runs seeds of the simulator and says which failed, and how to run them again.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use stp_sim::{Figures, Options};

const USAGE: &str = "usage: stp-sim [--seeds N] [--seed FIRST] [--minutes M] [--small] [--memory] [--verbose]
                [--twice] [--keep-going]

Runs N seeds (1 unless told), or as many as M minutes allow, from FIRST on (10000000 unless told;
those below know fewer classes of faults). --small has
more and shorter streams, --memory has memory for storage. --twice runs each seed twice and compares. The first failing seed ends it with exit code 1 unless --keep-going.";

struct Arguments {
    seeds: u64,
    first: u64,
    minutes: Option<u64>,
    verbose: bool,
    twice: bool,
    keep_going: bool,
    small: bool,
    memory: bool,
}

fn arguments() -> Result<Arguments, String> {
    let mut found = Arguments {
        seeds: 1,
        first: stp_sim::MEMORY,
        minutes: None,
        verbose: false,
        twice: false,
        keep_going: false,
        small: false,
        memory: false,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut number = || -> Result<u64, String> {
            let value = words.next().unwrap_or_default();
            value
                .parse()
                .map_err(|_| format!("{word} wants a number, not {value:?}"))
        };
        match word.as_str() {
            "--seeds" => found.seeds = number()?,
            "--seed" => found.first = number()?,
            "--minutes" => found.minutes = Some(number()?),
            "--verbose" => found.verbose = true,
            "--twice" => found.twice = true,
            "--small" => found.small = true,
            "--memory" => found.memory = true,
            "--keep-going" => found.keep_going = true,
            other => return Err(format!("{other:?} is not known")),
        }
    }
    Ok(found)
}

fn main() -> ExitCode {
    let arguments = match arguments() {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("{error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let begun = Instant::now();
    let limit = arguments
        .minutes
        .map(|minutes| Duration::from_secs(minutes * 60));
    let mut figures = Figures::default();
    let mut failed = Vec::new();
    let mut seed = arguments.first;
    loop {
        let over = match limit {
            Some(limit) => begun.elapsed() >= limit,
            None => seed - arguments.first >= arguments.seeds,
        };
        if over {
            break;
        }
        let mut options = Options::from_seed(seed);
        if arguments.memory {
            options = options.memory();
        }
        if arguments.small {
            options = options.small();
        }
        let short = arguments.seeds > 1 || limit.is_some();
        if !short {
            println!("{options}");
        }
        let run = || stp_sim::run(&options, arguments.verbose);
        let finding = match catch_unwind(AssertUnwindSafe(run)) {
            Ok(outcome) => {
                figures.add(&outcome.figures);
                let mut finding = outcome.finding;
                if arguments.twice && finding.is_none() && run().trace != outcome.trace {
                    finding = Some("the same seed ran differently".into());
                }
                finding
            }
            Err(_) => Some("a panic, see above".into()),
        };
        if let Some(finding) = finding {
            if short {
                println!("{options}");
            }
            println!("FAILED: {finding}");
            let small = if arguments.small { " --small" } else { "" };
            let memory = if arguments.memory { " --memory" } else { "" };
            println!(
                "again: cargo run --release -p stp-sim -- --seed {seed}{small}{memory} --verbose"
            );
            failed.push(seed);
            if !arguments.keep_going {
                break;
            }
        }
        seed += 1;
    }
    println!("{figures}");
    println!(
        "seeds {} to {}, {} failed {failed:?}, {:.1} s",
        arguments.first,
        seed.saturating_sub(1),
        failed.len(),
        begun.elapsed().as_secs_f64()
    );
    if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
