//! `stp probe`: measures a storage.

use std::fmt::Write as _;

use stp_host::volume::{Latency, ProbeReport, probe};

use crate::info::{bytes, spec_of};
use crate::{CliError, Global, out};

/// Options of `stp probe`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
It never writes to the volume. Writes are measured on a scratch file beside a file volume (deleted at once), and
not at all on a device. It measures from this host only: no torn read here is evidence, not a promise, and
what two hosts see of each other can differ.")]
pub struct Args {
    /// The device or file
    #[arg(value_name = "VOL")]
    pub volume: Option<String>,
}

/// Runs the command.
pub fn run(global: &Global, args: Args) -> Result<(), CliError> {
    let spec = spec_of(global, args.volume.as_deref())?;
    let report = probe(&spec).map_err(CliError::new)?;
    if global.json {
        return out::json(&report);
    }
    out::data(text(&report))
}

fn text(report: &ProbeReport) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{name:<15}{value}");
    };
    line("storage", report.storage.clone());
    line("size", bytes(report.size_bytes));
    line("group", report.group.clone().unwrap_or("none".into()));
    let locks = match report.seat_locks {
        Some(true) => "yes: a dead node's seat is free at once",
        Some(false) => "none that all hosts respect: a seat is claimed by waiting",
        None => "not tried",
    };
    line("seat locks", locks.into());
    for (name, value) in &report.device {
        line("device", format!("{name} {value}"));
    }
    let latencies = [
        ("4 KiB read", report.read),
        ("4 KiB write", report.write),
        ("durable write", report.write_durable),
        ("write to sight", report.seen),
    ];
    for (name, latency) in latencies {
        if let Some(latency) = latency {
            line(name, latency_text(&latency));
        }
    }
    if let Some(tearing) = report.tearing {
        line(
            "torn reads",
            format!(
                "{} of {} while the same unit was written; {} went backwards",
                tearing.torn, tearing.reads, tearing.backwards
            ),
        );
    }
    for missing in &report.missing {
        line("not measured", missing.clone());
    }
    text
}

fn latency_text(latency: &Latency) -> String {
    format!(
        "p50 {:.1} us, p99 {:.1} us, max {:.1} us ({} one at a time)",
        latency.p50_us, latency.p99_us, latency.max_us, latency.operations
    )
}
