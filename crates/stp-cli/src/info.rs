//! `stp info`: shows what a volume is.

use std::fmt::Write as _;

use serde::Serialize;
use stp_format::UNIT_BYTES;
use stp_host::volume::{Liveness, SeatView, open_read_only};
use stp_medium::VolumeSpec;

use crate::{CliError, Global, out};

/// Options of `stp info`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The device or file
    #[arg(value_name = "VOL")]
    pub volume: Option<String>,
}

#[derive(Serialize)]
struct Info {
    volume: String,
    group: String,
    id: String,
    format_version: u16,
    storage: String,
    size_bytes: u64,
    storage_bytes: u64,
    created_unix_s: u64,
    unit_bytes: usize,
    seats: u16,
    ring_bytes_per_seat: u64,
    sockets_per_seat: usize,
    /// What is wrong with a copy of the superblock; `null`: nothing.
    superblock_damage: [Option<String>; 2],
    taken: Vec<Seat>,
}

#[derive(Serialize)]
struct Seat {
    seat: u16,
    /// `up`, `silent` (did not move while looked at), `claiming`, `left`, `damaged`.
    state: &'static str,
    system: Option<String>,
    host: Option<String>,
    pid: Option<u32>,
    incarnation: Option<u64>,
    ports: Vec<u16>,
    streams: u32,
}

/// Runs the command.
pub fn run(global: &Global, args: Args) -> Result<(), CliError> {
    let spec = spec_of(global, args.volume.as_deref())?;
    let mut volume = open_read_only(&spec).map_err(CliError::new)?;
    let seats = volume.watch().map_err(CliError::new)?;
    let superblock = volume.superblock();
    let geometry = superblock.geometry;
    let info = Info {
        volume: spec.to_string(),
        group: superblock.group.to_string(),
        id: superblock.volume.to_string(),
        format_version: stp_format::FORMAT_VERSION,
        storage: volume.describe(),
        size_bytes: geometry.size_bytes,
        storage_bytes: volume.size_bytes(),
        created_unix_s: superblock.created_unix_s,
        unit_bytes: UNIT_BYTES,
        seats: geometry.seats,
        ring_bytes_per_seat: geometry.ring_bytes(),
        sockets_per_seat: geometry.scbs(),
        superblock_damage: volume.superblock_damage().clone(),
        taken: seats.iter().filter_map(Seat::of).collect(),
    };
    if global.json {
        return out::json(&info);
    }
    out::data(info.text())
}

impl Seat {
    fn of((view, liveness): &(SeatView, Liveness)) -> Option<Self> {
        if *liveness == Liveness::Free {
            return None;
        }
        let record = view.record.as_ref();
        Some(Self {
            seat: view.seat.0,
            state: liveness.as_str(),
            system: record.map(|record| record.system.to_string()),
            host: record.map(|record| record.host.iter().map(|b| format!("{b:02x}")).collect()),
            pid: record.map(|record| record.pid),
            incarnation: record.map(|record| record.incarnation.0),
            ports: record.map_or_else(Vec::new, |record| record.ports.clone()),
            streams: record.map_or(0, |record| record.counters.streams),
        })
    }
}

impl Info {
    fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: String| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{name:<13}{value}");
        };
        line("group", self.group.clone());
        line("volume", self.volume.clone());
        line("id", self.id.clone());
        line("storage", self.storage.clone());
        line("size", bytes(self.size_bytes));
        line("format", format!("version {}", self.format_version));
        line(
            "seats",
            format!(
                "{}, each with rings of {} and {} sockets",
                self.seats,
                bytes(self.ring_bytes_per_seat),
                self.sockets_per_seat
            ),
        );
        for (copy, damage) in self.superblock_damage.iter().enumerate() {
            if let Some(damage) = damage {
                line("superblock", format!("copy {copy} is damaged: {damage}"));
            }
        }
        if self.taken.is_empty() {
            line("taken", "none".into());
            return text;
        }
        let _ = writeln!(
            text,
            "\nSEAT STATE    SYSTEM           PID     STREAMS LISTENS ON"
        );
        for seat in &self.taken {
            let ports: Vec<String> = seat.ports.iter().map(u16::to_string).collect();
            let row = format!(
                "{:>4} {:<8} {:<16} {:<7} {:>7} {}",
                seat.seat,
                seat.state,
                seat.system.as_deref().unwrap_or("?"),
                seat.pid.map(|pid| pid.to_string()).unwrap_or_default(),
                seat.streams,
                ports.join(" ")
            );
            let _ = writeln!(text, "{}", row.trim_end());
        }
        text
    }
}

/// The volume that a command was given, as an argument or an option.
pub(crate) fn spec_of(global: &Global, argument: Option<&str>) -> Result<VolumeSpec, CliError> {
    global.volume_or(argument)?.parse().map_err(CliError::usage)
}

/// Bytes for people: `256 MiB`; not rounded beyond one decimal.
pub(crate) fn bytes(count: u64) -> String {
    let units = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    let decimals = usize::from(unit > 0 && value.fract() >= 0.05);
    format!("{value:.decimals$} {}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_short() {
        assert_eq!(bytes(100), "100 bytes");
        assert_eq!(bytes(256 << 20), "256 MiB");
        assert_eq!(bytes(1536), "1.5 KiB");
    }
}
