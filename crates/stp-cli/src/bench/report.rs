//! What came out: medians over the rounds, ratios to the floor, as tables or as JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use super::conn::Way;
use super::floor::Alone;
use super::measure::{Idle, Rate};
use super::noise::Noise;

/// The message of which round trips are spoken of in short.
const SMALL: u64 = 64;

/// Figures of all rounds, as they come.
#[derive(Default)]
pub(super) struct Rounds {
    pub(super) trips: BTreeMap<(Way, u64), Vec<Vec<f64>>>,
    pub(super) rates: BTreeMap<(Way, u64), Vec<Rate>>,
    pub(super) many: BTreeMap<(Way, u64), Vec<f64>>,
    pub(super) connects: BTreeMap<(Way, u64), Vec<f64>>,
    pub(super) idle: Vec<Idle>,
    pub(super) wake_ups: Vec<Vec<f64>>,
    pub(super) alone: Vec<Alone>,
}

/// The storage alone, and what follows from it.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct StorageAlone {
    pub(super) write_mb_per_s: f64,
    pub(super) read_mb_per_s: f64,
    /// Each byte of a stream is written and read: 1 / (1 / writes + 1 / reads).
    pub(super) ceiling_mb_per_s: f64,
}

/// Round trips of one way and size.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Trip {
    pub(super) way: Way,
    pub(super) bytes: u64,
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
    pub(super) p999_us: f64,
    pub(super) count: usize,
    /// p50 over the floor's.
    pub(super) to_floor: Option<f64>,
}

/// A stream of one way and size of messages; for the floor, of the best size of its slots.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Flow {
    pub(super) way: Way,
    pub(super) bytes: u64,
    pub(super) mb_per_s: f64,
    pub(super) cpu_s_per_gb: f64,
    /// Over the best floor.
    pub(super) to_floor: Option<f64>,
}

/// Something a second.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct PerSecond {
    pub(super) way: Way,
    /// Streams or clients side by side.
    pub(super) count: u64,
    pub(super) per_s: f64,
    /// Over what one alone achieves.
    pub(super) to_one: Option<f64>,
}

/// The whole run.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Report {
    pub(super) volume: String,
    pub(super) storage: String,
    /// The system on whose host the other side was; `None`: this one.
    pub(super) with: Option<String>,
    pub(super) version: &'static str,
    pub(super) rounds: usize,
    pub(super) seconds: f64,
    pub(super) noise: Noise,
    /// From a write to the run of the thread that slept for it, the median.
    pub(super) wake_up_us: Option<f64>,
    pub(super) storage_alone: Option<StorageAlone>,
    pub(super) round_trips: Vec<Trip>,
    pub(super) streams: Vec<Flow>,
    pub(super) many_messages_per_s: Vec<PerSecond>,
    pub(super) connects_per_s: Vec<PerSecond>,
    pub(super) idle: Vec<Idle>,
    pub(super) not_measured: Vec<String>,
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

fn at(sorted: &[f64], part: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted
        .get((last as f64 * part).round() as usize)
        .copied()
        .unwrap_or(0.0)
}

impl Rounds {
    /// The spread of the floor's rounds at the smallest message, in percent of their median.
    pub(super) fn floor_spread_percent(&self) -> Option<f64> {
        let (_, rounds) = self.trips.iter().find(|((way, _), _)| *way == Way::Floor)?;
        let mut medians: Vec<f64> = rounds.iter().map(|times| median(times.clone())).collect();
        medians.sort_by(f64::total_cmp);
        let (low, high) = (medians.first()?, medians.last()?);
        Some((high - low) / median(medians.clone()).max(1e-9) * 100.0)
    }

    pub(super) fn wake_up_us(&self) -> Option<f64> {
        let rounds = self.wake_ups.iter().map(|times| median(times.clone()));
        (!self.wake_ups.is_empty()).then(|| median(rounds.collect()))
    }

    pub(super) fn storage_alone(&self) -> Option<StorageAlone> {
        let of = |pick: fn(&Alone) -> f64| median(self.alone.iter().map(pick).collect());
        let (write, read) = (of(|a| a.write_mb_per_s), of(|a| a.read_mb_per_s));
        (write > 0.0 && read > 0.0).then(|| StorageAlone {
            write_mb_per_s: write,
            read_mb_per_s: read,
            ceiling_mb_per_s: 1.0 / (1.0 / write + 1.0 / read),
        })
    }

    pub(super) fn trips(&self) -> Vec<Trip> {
        let p50 = |rounds: &[Vec<f64>]| median(rounds.iter().map(|t| median(t.clone())).collect());
        self.trips
            .iter()
            .map(|((way, bytes), rounds)| {
                let mut all: Vec<f64> = rounds.iter().flatten().copied().collect();
                all.sort_by(f64::total_cmp);
                let p50_us = p50(rounds);
                let floor = self.trips.get(&(Way::Floor, *bytes)).map(|r| p50(r));
                Trip {
                    way: *way,
                    bytes: *bytes,
                    p50_us,
                    p99_us: at(&all, 0.99),
                    p999_us: at(&all, 0.999),
                    count: all.len(),
                    to_floor: floor.map(|floor| p50_us / floor.max(1e-9)),
                }
            })
            .collect()
    }

    pub(super) fn flows(&self) -> Vec<Flow> {
        let rate = |rates: &[Rate]| median(rates.iter().map(|r| r.mb_per_s).collect());
        let floor = self
            .rates
            .iter()
            .filter(|((way, _), _)| *way == Way::Floor)
            .map(|(_, rates)| rate(rates))
            .fold(None, |best: Option<f64>, rate| {
                Some(best.map_or(rate, |best| best.max(rate)))
            });
        self.rates
            .iter()
            .map(|((way, bytes), rates)| {
                let mb_per_s = rate(rates);
                Flow {
                    way: *way,
                    bytes: *bytes,
                    mb_per_s,
                    cpu_s_per_gb: median(rates.iter().map(|r| r.cpu_s_per_gb).collect()),
                    to_floor: floor.map(|floor| mb_per_s / floor.max(1e-9)),
                }
            })
            .collect()
    }

    pub(super) fn per_second(figures: &BTreeMap<(Way, u64), Vec<f64>>) -> Vec<PerSecond> {
        figures
            .iter()
            .map(|((way, count), rounds)| {
                let per_s = median(rounds.clone());
                let one = figures.get(&(*way, 1)).map(|one| median(one.clone()));
                PerSecond {
                    way: *way,
                    count: *count,
                    per_s,
                    to_one: one.map(|one| per_s / one.max(1e-9)),
                }
            })
            .collect()
    }
}

/// A size as people write it.
pub(super) fn size_text(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{} KiB", bytes >> 10),
        _ => format!("{} MiB", bytes >> 20),
    }
}

/// A figure with as many digits as mean something.
fn figure(value: f64) -> String {
    match value {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

fn distinct(values: impl Iterator<Item = u64>) -> Vec<u64> {
    let mut values: Vec<u64> = values.collect();
    values.sort_unstable();
    values.dedup();
    values
}

impl Report {
    pub(super) fn trip(&self, way: Way, bytes: u64) -> Option<&Trip> {
        let mut found = self.round_trips.iter();
        found.find(|trip| trip.way == way && trip.bytes == bytes)
    }

    /// A stream's figures. The floor is the same for every size of messages: its best.
    pub(super) fn rate(&self, way: Way, bytes: u64) -> Option<&Flow> {
        let of_way = self.streams.iter().filter(|flow| flow.way == way);
        match way {
            Way::Floor => of_way.max_by(|a, b| a.mb_per_s.total_cmp(&b.mb_per_s)),
            _ => of_way.into_iter().find(|flow| flow.bytes == bytes),
        }
    }

    pub(super) fn trip_sizes(&self) -> Vec<u64> {
        distinct(self.round_trips.iter().map(|trip| trip.bytes))
    }

    pub(super) fn stream_sizes(&self) -> Vec<u64> {
        let measured = self.streams.iter().filter(|flow| flow.way != Way::Floor);
        distinct(measured.map(|flow| flow.bytes))
    }

    /// All tables.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        let trip = |what: &dyn Fn(&Trip) -> f64, way, bytes| self.trip(way, bytes).map(what);
        let sizes = self.trip_sizes();
        let named = |sizes: &[u64]| -> Vec<(u64, String)> {
            sizes.iter().map(|size| (*size, size_text(*size))).collect()
        };
        type Pick = fn(&Trip) -> f64;
        let picks: [(&str, Pick); 3] = [
            ("round trip p50, us", |t| t.p50_us),
            ("round trip p99, us", |t| t.p99_us),
            ("round trip p99.9, us", |t| t.p999_us),
        ];
        for (title, pick) in picks {
            table(&mut text, title, "message", &named(&sizes), &|way, size| {
                trip(&pick, way, size)
            });
        }
        let sizes = self.stream_sizes();
        table(
            &mut text,
            "stream, MB/s (floor: its best slot size)",
            "message",
            &named(&sizes),
            &|way, size| self.rate(way, size).map(|flow| flow.mb_per_s),
        );
        table(
            &mut text,
            "CPU seconds a GB, both sides together",
            "message",
            &named(&sizes),
            &|way, size| self.rate(way, size).map(|flow| flow.cpu_s_per_gb),
        );
        for (title, head, figures) in [
            (
                "messages a second, 64 B, echoed, one under way on each stream",
                "streams",
                &self.many_messages_per_s,
            ),
            ("connections a second", "clients", &self.connects_per_s),
        ] {
            let counts = distinct(figures.iter().map(|f| f.count));
            let rows: Vec<_> = counts.iter().map(|n| (*n, n.to_string())).collect();
            table(&mut text, title, head, &rows, &|way, count| {
                let mut found = figures.iter();
                found
                    .find(|f| f.way == way && f.count == count)
                    .map(|f| f.per_s)
            });
        }
        if !self.idle.is_empty() {
            let _ = writeln!(text, "one idle node (embedded)");
            for idle in &self.idle {
                let _ = writeln!(
                    text,
                    "  {:>5} streams  {:>6.1} reads/s  {:>5.1} writes/s  {:>6.2} % of a core",
                    idle.streams, idle.reads_per_s, idle.writes_per_s, idle.cpu_percent
                );
            }
            text.push('\n');
        }
        self.in_short(&mut text);
        for missing in &self.not_measured {
            let _ = writeln!(text, "not measured: {missing}");
        }
        let noise = &self.noise;
        let spread = noise.floor_spread_percent.map_or(String::new(), |s| {
            format!(", the floor's rounds differ by {s:.0} %")
        });
        let _ = writeln!(
            text,
            "machine: {}. {} processors, {:.0} % busy before, {:.1} % stolen during the run, load {:.2} -> {:.2}{spread}",
            noise.verdict(),
            noise.processors,
            noise.busy_before_percent,
            noise.steal_percent,
            noise.load[0],
            noise.load[1],
        );
        let _ = writeln!(
            text,
            "{}: {}{}; {} rounds in {:.0} s, stp {}",
            self.volume,
            self.storage,
            self.with
                .as_ref()
                .map_or(String::new(), |with| format!(", with {with}")),
            self.rounds,
            self.seconds,
            self.version
        );
        text
    }
}

impl Report {
    /// What follows from figures of several tables.
    fn in_short(&self, text: &mut String) {
        let mut lines = Vec::new();
        let p50 = |way| self.trip(way, SMALL).map(|trip| trip.p50_us);
        if let Some(wake_up) = self.wake_up_us {
            lines.push(format!(
                "waking a sleeping thread takes {} us",
                figure(wake_up)
            ));
            if let Some((floor, shared)) = p50(Way::Floor).zip(p50(Way::Shared)) {
                lines.push(format!(
                    "64 B there and back through shared engines: the floor and {:.1} wake-ups",
                    (shared - floor) / wake_up.max(1e-9)
                ));
            }
        }
        for way in [Way::Embedded, Way::Shared] {
            let mut rates = self.connects_per_s.iter();
            let alone = rates.find(|rate| rate.way == way && rate.count == 1);
            if let Some((rate, p50)) = alone.zip(p50(way)) {
                lines.push(format!(
                    "a connection, {}: {:.1} round trips of 64 B",
                    way.name(),
                    1e6 / rate.per_s.max(1e-9) / p50.max(1e-9)
                ));
            }
        }
        if let Some(alone) = &self.storage_alone {
            lines.push(format!(
                "the storage alone writes {} and reads {} MB/s: a stream crosses it twice, at {} MB/s at the most",
                figure(alone.write_mb_per_s),
                figure(alone.read_mb_per_s),
                figure(alone.ceiling_mb_per_s)
            ));
        }
        for line in &lines {
            let _ = writeln!(text, "{line}");
        }
        if !lines.is_empty() {
            text.push('\n');
        }
    }
}

/// One table: a row a size or count, a column a way, and what STP costs beside the floor, or beside TCP where
/// there is no floor.
fn table(
    text: &mut String,
    title: &str,
    head: &str,
    rows: &[(u64, String)],
    cell: &dyn Fn(Way, u64) -> Option<f64>,
) {
    let ways: Vec<Way> = Way::ALL
        .into_iter()
        .filter(|way| rows.iter().any(|(row, _)| cell(*way, *row).is_some()))
        .collect();
    if rows.is_empty() || ways.is_empty() {
        return;
    }
    let base = match ways.contains(&Way::Floor) {
        true => Way::Floor,
        false => Way::Tcp,
    };
    let compared: Vec<Way> = [Way::Embedded, Way::Shared]
        .into_iter()
        .filter(|way| ways.contains(way) && ways.contains(&base))
        .collect();
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{title}");
    let _ = write!(text, "  {head:>8}");
    for way in &ways {
        let _ = write!(text, " {:>9}", way.name());
    }
    for way in &compared {
        let _ = write!(text, " {:>15}", format!("{}/{}", way.name(), base.name()));
    }
    text.push('\n');
    for (row, name) in rows {
        let _ = write!(text, "  {name:>8}");
        for way in &ways {
            let value = cell(*way, *row).map_or("-".to_owned(), figure);
            let _ = write!(text, " {value:>9}");
        }
        for way in &compared {
            let ratio = cell(*way, *row)
                .zip(cell(base, *row))
                .map_or("-".to_owned(), |(value, base)| {
                    format!("{:.2}", value / base.max(1e-9))
                });
            let _ = write!(text, " {ratio:>15}");
        }
        text.push('\n');
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn empty() -> Report {
        Report {
            volume: "v".into(),
            storage: "s".into(),
            with: None,
            version: "0",
            rounds: 1,
            seconds: 1.0,
            noise: Noise::default(),
            wake_up_us: None,
            storage_alone: None,
            round_trips: Vec::new(),
            streams: Vec::new(),
            many_messages_per_s: Vec::new(),
            connects_per_s: Vec::new(),
            idle: Vec::new(),
            not_measured: Vec::new(),
        }
    }

    #[test]
    fn medians_ratios_and_tails() {
        let mut rounds = Rounds::default();
        rounds.trips.insert(
            (Way::Floor, 64),
            vec![vec![100.0; 9], vec![200.0], vec![150.0]],
        );
        rounds
            .trips
            .insert((Way::Embedded, 64), vec![vec![300.0], vec![300.0, 900.0]]);
        let trips = rounds.trips();
        assert_eq!(trips[0].p50_us, 150.0);
        assert_eq!(trips[0].p99_us, 200.0);
        let spread = rounds.floor_spread_percent().unwrap();
        assert!((spread - 66.6).abs() < 1.0, "{spread}");
        let embedded = trips.iter().find(|trip| trip.way == Way::Embedded).unwrap();
        assert_eq!(embedded.to_floor, Some(6.0));
    }

    #[test]
    fn what_several_tables_say_together() {
        let mut rounds = Rounds::default();
        assert_eq!(rounds.wake_up_us(), None);
        assert!(rounds.storage_alone().is_none());
        rounds.wake_ups = vec![vec![40.0, 50.0, 900.0], vec![20.0], vec![60.0]];
        rounds.alone = vec![Alone {
            write_mb_per_s: 600.0,
            read_mb_per_s: 300.0,
        }];
        let trips = [(Way::Floor, 300.0), (Way::Shared, 500.0)];
        for (way, us) in trips {
            rounds.trips.insert((way, SMALL), vec![vec![us]]);
        }
        rounds.connects.insert((Way::Shared, 1), vec![1000.0]);
        let mut report = empty();
        report.wake_up_us = rounds.wake_up_us();
        report.storage_alone = rounds.storage_alone();
        report.round_trips = rounds.trips();
        report.connects_per_s = Rounds::per_second(&rounds.connects);
        let text = report.text();
        for said in [
            "takes 50.0 us",
            "the floor and 4.0 wake-ups",
            "a connection, shared: 2.0 round trips",
            "at 200 MB/s at the most",
        ] {
            assert!(text.contains(said), "{said}: {text}");
        }
    }

    #[test]
    fn the_floor_of_streams_is_its_best() {
        let rate = |mb_per_s| {
            vec![Rate {
                mb_per_s,
                cpu_s_per_gb: 1.0,
            }]
        };
        let mut rounds = Rounds::default();
        rounds.rates.insert((Way::Floor, 1 << 16), rate(200.0));
        rounds.rates.insert((Way::Floor, 1 << 18), rate(400.0));
        rounds.rates.insert((Way::Embedded, 64), rate(300.0));
        let flows = rounds.flows();
        let embedded = flows.iter().find(|flow| flow.way == Way::Embedded).unwrap();
        assert_eq!(embedded.to_floor, Some(0.75));
        let mut report = empty();
        report.streams = flows;
        let text = report.text();
        assert!(text.contains("400") && text.contains("0.75"), "{text}");
        assert!(super::super::plot::svg(&report).contains("embedded"));
    }
}
