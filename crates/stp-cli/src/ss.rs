//! `stp ss`: the sockets of this system, or of all, and what looking for news costs each node.
//!
//! - Everything is read from the volume, without an engine: any host sees all of them.
//! - Whether a node lives, and what it spends, is seen by watching its record for a moment; what was not
//!   watched is marked as such.

use std::collections::HashMap;
use std::fmt::Write as _;

use serde::Serialize;
use stp_format::{ScbState, SeatId, SeatRecord, SeatState};
use stp_host::volume::{Liveness, SeatView, Volume, open_read_only};

use crate::{CliError, Global, out};

const EXAMPLES: &str = "\
Examples:
  stp ss                 the sockets of this system
  stp ss --all           of every system of the group
  stp ss --all --json    for programs
  stp ss -q              without watching the nodes for a moment

Pid is the process that opened the socket, on its own host. reads/s and writes/s are what a node asks of
the storage; empty are those reads that found nothing new.";

/// Options of `stp ss`.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Sockets of all systems
    #[arg(short, long)]
    pub all: bool,

    /// Only listening sockets
    #[arg(short, long)]
    pub listening: bool,

    /// Don't watch: whether nodes live and what they spend is not judged
    #[arg(short, long)]
    pub quick: bool,
}

/// What is printed.
#[derive(Debug, Serialize)]
struct Report {
    group: String,
    volume: String,
    sockets: Vec<Socket>,
    nodes: Vec<Node>,
}

#[derive(Debug, Serialize)]
struct Socket {
    state: &'static str,
    system: String,
    port: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer_system: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer_port: Option<u16>,
    sent_bytes: u64,
    received_bytes: u64,
    /// Connections that wait to be accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    backlog: Option<u32>,
    pid: u32,
    seat: u16,
}

#[derive(Debug, Serialize)]
struct Node {
    system: String,
    seat: u16,
    /// up, silent, left, claiming; or what the record says, if nobody watched.
    state: &'static str,
    watched: bool,
    pid: u32,
    incarnation: u64,
    uptime_ms: u64,
    heartbeat_ms: u32,
    dead_ms: u32,
    poll_max_us: u32,
    streams: u32,
    sent_bytes: u64,
    received_bytes: u64,
    rewrites: u64,
    /// Over the moment that it was watched.
    #[serde(skip_serializing_if = "Option::is_none")]
    rates: Option<Rates>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Rates {
    reads_per_s: f64,
    empty_reads_per_s: f64,
    writes_per_s: f64,
    read_bytes_per_s: f64,
    written_bytes_per_s: f64,
}

/// Reads and prints.
pub fn run(global: &Global, args: Args) -> Result<(), CliError> {
    let wanted = if args.all {
        None
    } else {
        Some(global.system_name()?)
    };
    let mut volume = open_read_only(&global.volume_spec()?).map_err(CliError::new)?;
    let before = volume.read_directory().map_err(CliError::new)?;
    let watched = if args.quick {
        None
    } else {
        Some(volume.watch().map_err(CliError::new)?)
    };
    let views: Vec<(SeatView, Option<Liveness>)> = match watched {
        Some(watched) => watched
            .into_iter()
            .map(|(view, liveness)| (view, Some(liveness)))
            .collect(),
        None => before.iter().map(|view| (view.clone(), None)).collect(),
    };
    let is_wanted = |record: &SeatRecord| wanted.is_none_or(|system| record.system == system);
    let earlier: HashMap<SeatId, &SeatRecord> = before
        .iter()
        .filter_map(|view| Some((view.seat, view.record.as_ref()?)))
        .collect();
    let mut report = Report {
        group: volume.superblock().group.to_string(),
        volume: volume.spec().to_string(),
        sockets: Vec::new(),
        nodes: Vec::new(),
    };
    for (view, liveness) in &views {
        let Some(record) = view.record.as_ref().filter(|record| is_wanted(record)) else {
            continue;
        };
        if record.state == SeatState::Left {
            continue;
        }
        let rates = earlier
            .get(&view.seat)
            .and_then(|before| rates(before, record));
        report.nodes.push(node(record, *liveness, rates));
        report
            .sockets
            .extend(sockets(&mut volume, view, args.listening)?);
    }
    report.sockets.sort_by(|a, b| {
        let key = |s: &Socket| (s.state != ScbState::Listen.as_str(), s.port, s.peer_port);
        (&a.system, key(a)).cmp(&(&b.system, key(b)))
    });
    if global.json {
        out::json(&report)
    } else {
        out::data(text(&report, wanted.map(|system| system.to_string())))
    }
}

fn sockets(volume: &mut Volume, view: &SeatView, listening: bool) -> Result<Vec<Socket>, CliError> {
    let rows = volume.read_table(view).map_err(CliError::new)?;
    let shown = rows.into_iter().filter_map(|row| {
        let listens = row.scb.state == ScbState::Listen;
        (listens || !listening).then(|| Socket {
            state: row.scb.state.as_str(),
            system: row.system.to_string(),
            port: row.scb.local_port,
            peer_system: row.scb.peer_system.map(|system| system.to_string()),
            peer_port: (!listens).then_some(row.scb.peer_port),
            sent_bytes: row.scb.sent_bytes,
            received_bytes: row.scb.received_bytes,
            backlog: listens.then_some(row.scb.backlog),
            pid: row.scb.pid,
            seat: row.seat.0,
        })
    });
    Ok(shown.collect())
}

fn node(record: &SeatRecord, liveness: Option<Liveness>, rates: Option<Rates>) -> Node {
    let says = match record.state {
        SeatState::Up => "up?",
        SeatState::Claiming => "claiming",
        SeatState::Left => "left",
    };
    Node {
        system: record.system.to_string(),
        seat: record.seat.0,
        state: liveness.map_or(says, Liveness::as_str),
        watched: liveness.is_some(),
        pid: record.pid,
        incarnation: record.incarnation.0,
        uptime_ms: record.counters.uptime_ms,
        heartbeat_ms: record.timings.heartbeat_ms,
        dead_ms: record.timings.dead_ms,
        poll_max_us: record.timings.poll_max_us,
        streams: record.counters.streams,
        sent_bytes: record.counters.sent_bytes,
        received_bytes: record.counters.received_bytes,
        rewrites: record.counters.rewrites,
        rates,
    }
}

/// What a node did between two of its records, by its own clock; `None` if it wrote only one.
fn rates(before: &SeatRecord, now: &SeatRecord) -> Option<Rates> {
    if before.incarnation != now.incarnation {
        return None;
    }
    let (a, b) = (&before.counters, &now.counters);
    let elapsed_ms = b.uptime_ms.checked_sub(a.uptime_ms).filter(|ms| *ms > 0)?;
    let per_s = |a: u64, b: u64| b.saturating_sub(a) as f64 * 1000.0 / elapsed_ms as f64;
    let unit = stp_format::UNIT_BYTES as f64;
    Some(Rates {
        reads_per_s: per_s(a.reads, b.reads),
        empty_reads_per_s: per_s(a.polls_empty, b.polls_empty),
        writes_per_s: per_s(a.writes, b.writes),
        read_bytes_per_s: per_s(a.read_units, b.read_units) * unit,
        written_bytes_per_s: per_s(a.written_units, b.written_units) * unit,
    })
}

fn text(report: &Report, system: Option<String>) -> String {
    let mut rows = vec![[
        "State".to_owned(),
        "Local".to_owned(),
        "Peer".to_owned(),
        "Sent".to_owned(),
        "Received".to_owned(),
        "Pid".to_owned(),
    ]];
    for socket in &report.sockets {
        let peer = match (&socket.peer_system, socket.peer_port) {
            (Some(system), Some(port)) => format!("{system}:{port}"),
            _ => "*".to_owned(),
        };
        rows.push([
            socket.state.to_owned(),
            format!("{}:{}", socket.system, socket.port),
            peer,
            socket.sent_bytes.to_string(),
            socket.received_bytes.to_string(),
            socket.pid.to_string(),
        ]);
    }
    let mut text = table(&rows);
    let mut rows = vec![
        [
            "Node", "Seat", "State", "Pid", "Streams", "Beat", "Reads/s", "Empty/s", "Writes/s",
            "Up",
        ]
        .map(str::to_owned),
    ];
    for node in &report.nodes {
        let rate = |pick: fn(&Rates) -> f64| {
            node.rates
                .as_ref()
                .map_or("-".to_owned(), |rates| format!("{:.1}", pick(rates)))
        };
        rows.push([
            node.system.clone(),
            node.seat.to_string(),
            node.state.to_owned(),
            node.pid.to_string(),
            node.streams.to_string(),
            format!("{} ms", node.heartbeat_ms),
            rate(|rates| rates.reads_per_s),
            rate(|rates| rates.empty_reads_per_s),
            rate(|rates| rates.writes_per_s),
            uptime(node.uptime_ms),
        ]);
    }
    text.push('\n');
    if report.nodes.is_empty() {
        let of = system.map_or_else(String::new, |system| format!(" of {system}"));
        // Writing to a string cannot fail.
        let _ = writeln!(text, "No node{of} is on {}.", report.volume);
    } else {
        text.push_str(&table(&rows));
    }
    text
}

fn uptime(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// Columns as wide as their widest cell, two spaces between them.
fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.len());
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            let _ = write!(line, "{cell:width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_line_up() {
        let rows = [["a", "b"], ["long", "c"]].map(|row| row.map(str::to_owned));
        assert_eq!(table(&rows), "a     b\nlong  c\n");
    }

    #[test]
    fn up_times() {
        assert_eq!(uptime(59_999), "59 s");
        assert_eq!(uptime(7_260_000), "2 h 1 min");
        assert_eq!(uptime(90_000_000), "1 d 1 h");
    }
}
