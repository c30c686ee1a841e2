//! `stp check`: verifies every record of a volume.

use serde::Serialize;
use stp_host::volume::{Finding, Severity, open, open_read_only};

use crate::info::{bytes, spec_of};
use crate::{CliError, Global, out};

/// Options of `stp check`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
It may run while nodes are at work: what does not validate is read again before it counts. Without --repair it only
reads.
Exit code 1 if anything is damaged. A note costs nothing: a torn copy beside a good one is what a crash leaves.")]
pub struct Args {
    /// The device or file
    #[arg(value_name = "VOL")]
    pub volume: Option<String>,
    /// Write a damaged copy of the superblock anew from the good one, then check
    #[arg(long)]
    pub repair: bool,
}

#[derive(Serialize)]
struct Checked {
    volume: String,
    group: String,
    damaged: bool,
    /// Superblock copies that were written anew.
    repaired: Vec<u8>,
    records: u64,
    segments: u64,
    read_bytes: u64,
    findings: Vec<Line>,
}

#[derive(Serialize)]
struct Line {
    /// `damage` or `note`.
    severity: &'static str,
    seat: Option<u16>,
    record: String,
    what: String,
}

impl From<Finding> for Line {
    fn from(finding: Finding) -> Self {
        Self {
            severity: match finding.severity {
                Severity::Damage => "damage",
                Severity::Note => "note",
            },
            seat: finding.seat.map(|seat| seat.0),
            record: finding.record,
            what: finding.what,
        }
    }
}

/// Runs the command.
pub fn run(global: &Global, args: Args) -> Result<(), CliError> {
    let spec = spec_of(global, args.volume.as_deref())?;
    let mut repaired = Vec::new();
    let mut volume = if args.repair {
        let mut volume = open(&spec).map_err(CliError::new)?;
        repaired = volume.repair_superblocks().map_err(CliError::new)?;
        volume
    } else {
        open_read_only(&spec).map_err(CliError::new)?
    };
    let report = volume.check().map_err(CliError::new)?;
    let checked = Checked {
        volume: spec.to_string(),
        group: volume.superblock().group.to_string(),
        damaged: report.is_damaged(),
        repaired,
        records: report.records,
        segments: report.segments,
        read_bytes: report.read_bytes,
        findings: report.findings.into_iter().map(Line::from).collect(),
    };
    if global.json {
        out::json(&checked)?;
    } else {
        for copy in &checked.repaired {
            out::data(format_args!("repaired: superblock, copy {copy}\n"))?;
        }
        for line in &checked.findings {
            let seat = line
                .seat
                .map_or_else(String::new, |seat| format!("seat {seat}, "));
            let (severity, record, what) = (line.severity, &line.record, &line.what);
            out::data(format_args!("{severity}: {seat}{record}: {what}\n"))?;
        }
        let verdict = if checked.damaged { "damaged" } else { "good" };
        out::data(format_args!(
            "{verdict}: {} records ({} segments), {} read\n",
            checked.records,
            checked.segments,
            bytes(checked.read_bytes)
        ))?;
    }
    if checked.damaged {
        let count = checked
            .findings
            .iter()
            .filter(|l| l.severity == "damage")
            .count();
        let superblocks_only = checked
            .findings
            .iter()
            .filter(|l| l.severity == "damage")
            .all(|l| l.seat.is_none());
        let remedy = if superblocks_only && !args.repair {
            "the other superblock copy serves: look for what wrote there, then run `stp check --repair`"
        } else {
            "end its nodes, save what is needed, and make it anew with `stp format --force`"
        };
        return Err(CliError::new(format_args!("volume {spec}: {count} damaged")).remedy(remedy));
    }
    Ok(())
}
