//! `stp bench`: how fast a volume is, beside its own storage and beside what a host has without one.
//!
//! - Everything that is compared is measured in one run, in rounds that take turns; medians are shown.
//! - It writes only into seats that its own nodes claimed: a volume in use is not harmed, only slowed down.
//! - A run takes about as long as it was told to, whatever the storage does: what setting up costs in one round is
//!   taken from the time of the measurements in the next, and a round that would come too late is left out.

mod conn;
mod engines;
mod floor;
mod mate;
mod measure;
mod noise;
mod plot;
mod report;
mod talk;
mod wake;
mod world;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use self::conn::Way;
use self::noise::{Noise, Ticks};
use self::report::{Report, Rounds};
use self::world::World;
use crate::signals::EndSignals;
use crate::{CliError, Global, out};

/// Rounds that take turns.
const ROUNDS: usize = 5;
const TRIP_SIZES: [u64; 6] = [1, 64, 1 << 10, 16 << 10, 128 << 10, 1 << 20];
const STREAM_SIZES: [u64; 5] = [64, 1 << 10, 16 << 10, 64 << 10, 1 << 20];
const MANY: [u64; 4] = [1, 10, 100, 1000];
/// How long it is watched what others do, before anything begins.
const LISTEN: Duration = Duration::from_millis(500);
/// A stream takes longer to show its pace than a round trip does.
const STREAM_WEIGHT: u32 = 2;
/// The least that a single measurement takes.
const CELL_MIN: Duration = Duration::from_millis(10);
const IDLE_MIN: Duration = Duration::from_secs(2);
/// Silence before an idle node is measured: until its links are idle, and where there is time until it looks at the
/// volume as seldom as it ever does.
const SETTLE_MIN: Duration = Duration::from_millis(500);
const SETTLE_MAX: Duration = Duration::from_millis(3500);

const EXAMPLES: &str = "\
Examples:
  stp bench -V /dev/sdb                          everything, in about a minute
  stp bench -V /dev/sdb --only trip --seconds 10 only round trips
  stp bench -V /dev/sdb --plot bench.svg --json > bench.json
  stp bench -V /dev/sdb --serve                  on another host, until Ctrl-C ...
  stp bench -V /dev/sdb --with beta              ... and here, if that host's system is beta

Ways: floor = the bare storage, O_DIRECT and nothing else (or mapped memory); embedded = STP with the engine in
the program; shared = STP through `stp engine`; TCP, Unix, pipe = what this host has without a volume.
Without --with, two processes of this host play the two systems. Between hosts the storage may be slower, or cached
otherwise. --serve trusts the systems of its group: it does what their benches ask for, one at a time.";

/// What is measured.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Round trips by size of message
    Trip,
    /// Streams by size of message, and what they cost
    Stream,
    /// Many streams with small messages
    Many,
    /// Connections
    Connect,
    /// What an idle node costs
    Idle,
}

/// Options of `stp bench`.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// About how long it may take
    #[arg(long, value_name = "SECS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub seconds: u32,

    /// Measure only these
    #[arg(long, value_name = "PART", value_enum, value_delimiter = ',')]
    pub only: Vec<Part>,

    /// Leave out `stp engine`: two seats suffice then instead of four
    #[arg(long)]
    pub no_shared: bool,

    /// Leave out TCP, Unix sockets and pipes
    #[arg(long)]
    pub no_local: bool,

    /// Draw the curves into this file, as SVG
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,

    /// Measure to the host where `stp bench --serve` runs as this system
    #[arg(long, value_name = "SYSTEM", conflicts_with = "serve")]
    pub with: Option<String>,

    /// Be the other side of benches that are run on other hosts with --with
    #[arg(long, conflicts_with_all = ["seconds", "only", "no_shared", "no_local", "plot"])]
    pub serve: bool,

    /// Be the other process of a bench
    #[arg(long, hide = true)]
    mate: bool,
}

impl Args {
    fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }
}

/// Runs the command.
pub fn run(global: &Global, args: Args) -> Result<(), CliError> {
    if args.mate {
        return mate::run();
    }
    if args.serve {
        return mate::serve(global);
    }
    let volume = global.volume()?;
    let signals = EndSignals::watch()?;
    let before = Ticks::now();
    let load_before = noise::load();
    std::thread::sleep(LISTEN);
    let start = Ticks::now();
    let begin = Instant::now();
    let mut world = World::new(volume, !args.no_shared, args.with.as_deref())?;
    let mut rounds = Rounds::default();
    let plan = Plan::of(&args, &world);
    let rounds_run = plan.run(&mut world, &mut rounds, &signals, begin)?;
    let end = Ticks::now();
    let noise = Noise {
        processors: std::thread::available_parallelism().map_or(1, usize::from),
        busy_before_percent: start.busy_since(&before),
        steal_percent: end.steal_since(&start),
        load: [load_before, noise::load()],
        floor_spread_percent: rounds.floor_spread_percent(),
    };
    let report = Report {
        volume: volume.to_owned(),
        storage: world.engine.volume().storage.clone(),
        with: args.with.clone(),
        version: env!("CARGO_PKG_VERSION"),
        rounds: rounds_run,
        seconds: begin.elapsed().as_secs_f64(),
        noise,
        wake_up_us: rounds.wake_up_us(),
        storage_alone: rounds.storage_alone(),
        round_trips: rounds.trips(),
        streams: rounds.flows(),
        many_messages_per_s: Rounds::per_second(&rounds.many),
        connects_per_s: Rounds::per_second(&rounds.connects),
        idle: rounds.idle.clone(),
        not_measured: world.missing.clone(),
    };
    drop(world);
    if let Some(path) = &args.plot {
        std::fs::write(path, plot::svg(&report)).map_err(|error| {
            CliError::new(format_args!("{}: {error}", path.display()))
                .remedy("name another file with --plot")
        })?;
    }
    if global.json {
        return out::json(&report);
    }
    out::data(report.text())
}

/// What to do, and how long each piece of it may take.
struct Plan {
    ways: Vec<Way>,
    trips: bool,
    streams: bool,
    many: Vec<u64>,
    connects: bool,
    idle: Option<measure::Rest>,
    total: Duration,
    /// Measurements in a round, by their weight.
    cells: u32,
}

/// How long each measurement of the next round takes, so that `rounds` of them fit into the time left; `None` if
/// not even one fits. A round has `cells` of them and takes `besides` for everything else.
fn cell_time(left: Duration, rounds: usize, cells: u32, besides: Duration) -> Option<Duration> {
    let cells = cells.max(1);
    let each = left / rounds.max(1) as u32;
    let cell = (each.saturating_sub(besides) / cells).max(CELL_MIN);
    (besides + cell * cells <= left).then_some(cell)
}

impl Plan {
    fn of(args: &Args, world: &World) -> Self {
        let local = [Way::Tcp, Way::Unix, Way::Pipe];
        let ways: Vec<Way> = Way::ALL
            .into_iter()
            .filter(|way| world.has(*way) && !(args.no_local && local.contains(way)))
            .collect();
        let (trips, streams) = (args.wants(Part::Trip), args.wants(Part::Stream));
        // Each stream is a socket, here and there, and a row of each seat's table.
        let rows = world.geometry().scbs() as u64;
        let many: Vec<u64> = MANY
            .into_iter()
            .filter(|n| args.wants(Part::Many) && n + 16 <= rows)
            .collect();
        let connects = args.wants(Part::Connect);
        let total = Duration::from_secs(u64::from(args.seconds));
        let idle = args.wants(Part::Idle).then(|| measure::Rest {
            settle: (total / 12).clamp(SETTLE_MIN, SETTLE_MAX),
            time: (total / 20).max(IDLE_MIN).min(total),
        });
        let connecting = ways.iter().filter(|way| way.connects()).count();
        let has_floor = ways.contains(&Way::Floor);
        let cells = usize::from(trips) // wake-ups
            + 2 * usize::from(streams && has_floor) // the storage alone
            + ways.len() * TRIP_SIZES.len() * usize::from(trips)
            + ways.len() * STREAM_SIZES.len() * usize::from(streams) * STREAM_WEIGHT as usize
            + connecting * (many.len() + 2 * usize::from(connects));
        Self {
            ways,
            trips,
            streams,
            many,
            connects,
            idle,
            total,
            cells: cells as u32,
        }
    }

    /// Measures for as long as it may; how many rounds that gave.
    fn run(
        &self,
        world: &mut World,
        rounds: &mut Rounds,
        signals: &EndSignals,
        begin: Instant,
    ) -> Result<usize, CliError> {
        if let Some(rest) = self.idle {
            rounds.idle.push(measure::idle(world, 0, rest)?);
        }
        // Whatever is measured first would pay for everything that is done once.
        for way in self.ways.iter().filter(|_| self.trips) {
            measure::round_trips(world, *way, TRIP_SIZES[1], CELL_MIN)?;
        }
        let mut besides = Duration::ZERO;
        for round in 0..ROUNDS {
            let idle = self.idle.filter(|_| round == 0);
            let resting = idle.map_or(Duration::ZERO, |rest| rest.settle + rest.time);
            let reserved = begin.elapsed() + resting;
            let left = self.total.saturating_sub(reserved);
            let cell = match cell_time(left, ROUNDS - round, self.cells, besides) {
                Some(cell) => cell,
                None if round == 0 => CELL_MIN,
                None => return Ok(round),
            };
            let start = Instant::now();
            self.round(world, rounds, signals, cell, idle)?;
            besides = start.elapsed().saturating_sub(cell * self.cells + resting);
        }
        Ok(ROUNDS)
    }

    /// Everything once; with an `idle` rest, what the most streams cost that carry nothing besides.
    fn round(
        &self,
        world: &mut World,
        rounds: &mut Rounds,
        signals: &EndSignals,
        cell: Duration,
        idle: Option<measure::Rest>,
    ) -> Result<(), CliError> {
        let interrupted = || match signals.seen() {
            Some(_) => Err(CliError::new("interrupted: the bench's nodes have left")),
            None => Ok(()),
        };
        if self.trips {
            let times = wake::wake_ups(cell).map_err(|error| {
                CliError::new(format_args!("waking up a thread of the bench: {error}"))
            })?;
            rounds.wake_ups.push(times);
        }
        for size in TRIP_SIZES.into_iter().filter(|_| self.trips) {
            for way in &self.ways {
                interrupted()?;
                if let Some(times) = measure::round_trips(world, *way, size, cell)? {
                    rounds.trips.entry((*way, size)).or_default().push(times);
                }
            }
        }
        if self.streams {
            interrupted()?;
            let floor = world.floor.as_ref();
            if let Some(alone) = floor.map_or(Ok(None), |floor| floor.alone(cell))? {
                rounds.alone.push(alone);
            }
            self.stream_round(world, rounds, cell * STREAM_WEIGHT, &interrupted)?;
        }
        for way in self.ways.iter().filter(|way| way.connects()) {
            for streams in &self.many {
                interrupted()?;
                let before = measure::streams(world)?;
                let (rate, conns) = measure::many(world, *way, *streams, cell)?;
                let key = (*way, *streams);
                rounds.many.entry(key).or_default().push(rate);
                let most = *way == Way::Embedded && Some(streams) == self.many.last();
                if let Some(rest) = idle.filter(|_| most) {
                    rounds.idle.push(measure::idle(world, *streams, rest)?);
                }
                drop(conns);
                measure::let_go(world, before)?;
            }
            for clients in [1, measure::CLIENTS].into_iter().filter(|_| self.connects) {
                interrupted()?;
                let rate = measure::connects(world, *way, clients, cell)?;
                let key = (*way, clients);
                rounds.connects.entry(key).or_default().push(rate);
            }
        }
        Ok(())
    }

    fn stream_round(
        &self,
        world: &mut World,
        rounds: &mut Rounds,
        time: Duration,
        interrupted: &dyn Fn() -> Result<(), CliError>,
    ) -> Result<(), CliError> {
        let floor_sizes = world.floor.as_ref().map_or(&[][..], |f| f.slot_sizes());
        for (index, size) in STREAM_SIZES.into_iter().enumerate() {
            for way in &self.ways {
                interrupted()?;
                // The floor has sizes of its own, and takes its turns among the others.
                let size = match way {
                    Way::Floor => match floor_sizes.get(index) {
                        Some(size) => *size,
                        None => continue,
                    },
                    _ => size,
                };
                if let Some(rate) = measure::stream(world, *way, size, time)? {
                    rounds.rates.entry((*way, size)).or_default().push(rate);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_fit_into_the_time_left() {
        let ms = Duration::from_millis;
        assert_eq!(cell_time(ms(5000), 5, 10, ms(0)), Some(ms(100)));
        // What a round takes besides is taken from its measurements ...
        assert_eq!(cell_time(ms(4000), 4, 10, ms(500)), Some(ms(50)));
        // ... down to the least, and beyond that from the number of rounds.
        assert_eq!(cell_time(ms(4000), 4, 10, ms(2000)), Some(CELL_MIN));
        assert_eq!(cell_time(ms(2000), 3, 10, ms(2000)), None);
    }
}
