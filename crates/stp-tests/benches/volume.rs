//! STP beside the bare storage, in one run: `cargo bench -p stp-tests --bench volume -- [FOLDER or DEVICE]`.
//!
//! - The floor is what the same volume's storage does with O_DIRECT and nothing else: two processes that
//!   write and poll one unit each for round trips; one writer and one reader of 256 KiB slots at depth 4 for
//!   streams. No protocol, no checksum.
//! - Rounds of floor and STP alternate; medians are printed, and the ratio of the two.
//! - Given a device, all of it is overwritten.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use stp::{EngineChoice, Group};
use stp_format::UnitBuf;

const ROUNDS: usize = 5;
const ROUND_TRIPS: usize = 1000;
const STREAM_BYTES: usize = 256 << 20;
const SLOT_BYTES: usize = 256 << 10;
const SLOTS: usize = 16;
const DEPTH: usize = 4;
const FLOOR_BYTES: u64 = 16 << 20;

fn main() {
    let args: Vec<String> = std::env::args()
        .skip(1)
        .filter(|arg| arg != "--bench")
        .collect();
    match args.first().map(String::as_str) {
        Some("floor-echo") => floor_echo(Path::new(&args[1])),
        Some("stp-echo") => stp_server(Path::new(&args[1]), Path::new(&args[2])),
        Some(target) => bench(Path::new(target)),
        None => bench(&std::env::temp_dir()),
    }
}

fn bench(target: &Path) {
    let scratch = tempfile::tempdir().expect("temporary folder");
    let folder = target
        .is_dir()
        .then(|| tempfile::tempdir_in(target).expect("folder"));
    let (floor_path, volume) = match &folder {
        Some(folder) => (folder.path().join("floor"), folder.path().join("volume")),
        None => (target.to_owned(), target.to_owned()),
    };
    println!(
        "load before: {}",
        std::fs::read_to_string("/proc/loadavg")
            .unwrap_or_default()
            .trim()
    );
    let mut floor_trips = Vec::new();
    let mut stp_trips = Vec::new();
    let mut floor_rates = Vec::new();
    let mut stp_rates = Vec::new();
    let mut cpu = Vec::new();
    for round in 0..ROUNDS {
        if folder.is_some() {
            File::create(&floor_path)
                .and_then(|file| file.write_all_at(&vec![1; FLOOR_BYTES as usize], 0))
                .expect("floor file");
        }
        floor_trips.push(floor_round_trips(&floor_path));
        floor_rates.push(floor_stream(&floor_path, round));
        let mut world = StpWorld::new(&volume, scratch.path(), round);
        stp_trips.push(world.round_trips());
        let (rate, cpu_s) = world.stream();
        stp_rates.push(rate);
        cpu.push(cpu_s);
    }
    let p = |trips: &[Vec<f64>], part: f64| {
        median(
            trips
                .iter()
                .map(|round| round[(round.len() as f64 * part) as usize])
                .collect(),
        )
    };
    let row = |what: &str, floor: f64, stp: f64, unit: &str| {
        println!(
            "{what:<24} floor {floor:>9.1}   STP {stp:>9.1} {unit:<6} ratio {:.2}",
            stp / floor
        );
    };
    row(
        "round trip 64 B, p50",
        p(&floor_trips, 0.5),
        p(&stp_trips, 0.5),
        "us",
    );
    row(
        "round trip 64 B, p99",
        p(&floor_trips, 0.99),
        p(&stp_trips, 0.99),
        "us",
    );
    row(
        "stream, 64 KiB writes",
        median(floor_rates),
        median(stp_rates),
        "MB/s",
    );
    println!("CPU, both sides together: {:.2} s a GB", median(cpu));
    println!(
        "load after: {}",
        std::fs::read_to_string("/proc/loadavg")
            .unwrap_or_default()
            .trim()
    );
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}

fn again(args: &[&Path], role: &str) -> Child {
    Command::new(std::env::current_exe().expect("own path"))
        .arg(role)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("second process")
}

fn wait_ready(child: &mut Child) {
    let mut byte = [0];
    child
        .stdout
        .as_mut()
        .expect("pipe")
        .read_exact(&mut byte)
        .expect("the other process is ready");
}

fn direct(path: &Path) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(rustix::fs::OFlags::DIRECT.bits() as i32)
        .open(path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

// --- the floor

fn put(file: &File, buf: &mut UnitBuf, at: u64, number: u64) {
    let length = buf.len();
    buf.bytes_mut()[..8].copy_from_slice(&number.to_le_bytes());
    buf.bytes_mut()[length - 8..].copy_from_slice(&number.to_le_bytes());
    file.write_all_at(buf.bytes(), at).expect("floor write");
}

fn poll(file: &File, buf: &mut UnitBuf, at: u64, number: u64) {
    let wanted = number.to_le_bytes();
    loop {
        file.read_exact_at(buf.bytes_mut(), at).expect("floor read");
        let length = buf.len();
        if buf.bytes()[..8] == wanted && buf.bytes()[length - 8..] == wanted {
            return;
        }
    }
}

fn floor_echo(path: &Path) {
    let file = direct(path);
    let mut buf = UnitBuf::zeroed(1);
    put(&file, &mut buf, 4096, 0);
    std::io::stdout()
        .write_all(b"r")
        .and_then(|()| std::io::stdout().flush())
        .expect("pipe");
    for number in 1..=ROUND_TRIPS as u64 {
        poll(&file, &mut buf, 0, number);
        put(&file, &mut buf, 4096, number);
    }
}

fn floor_round_trips(path: &Path) -> Vec<f64> {
    let file = direct(path);
    let mut buf = UnitBuf::zeroed(1);
    put(&file, &mut buf, 0, 0);
    let mut child = again(&[path], "floor-echo");
    wait_ready(&mut child);
    let times = (1..=ROUND_TRIPS as u64).map(|number| {
        let start = Instant::now();
        put(&file, &mut buf, 0, number);
        poll(&file, &mut buf, 4096, number);
        start.elapsed().as_secs_f64() * 1e6
    });
    let times = sorted(times.collect());
    child.wait().expect("the other process ends");
    times
}

fn floor_stream(path: &Path, round: usize) -> f64 {
    let count = (STREAM_BYTES / SLOT_BYTES) as u64;
    let taken: Vec<_> = (0..DEPTH).map(|_| AtomicU64::new(0)).collect();
    let slot_of = |number: u64| (number % SLOTS as u64) * SLOT_BYTES as u64;
    // Numbers of this round must not be found from the one before, or from another run.
    let base = u64::from(std::process::id()) << 32 | (round as u64) << 20;
    let start = Instant::now();
    std::thread::scope(|scope| {
        for lane in 0..DEPTH {
            let taken = &taken;
            scope.spawn(move || {
                let file = direct(path);
                let mut buf = UnitBuf::zeroed(SLOT_BYTES / 4096);
                for number in (lane as u64..count).step_by(DEPTH) {
                    while number >= taken[lane].load(Ordering::Acquire) + SLOTS as u64 {
                        std::thread::yield_now();
                    }
                    put(&file, &mut buf, slot_of(number), base + number);
                }
            });
            scope.spawn(move || {
                let file = direct(path);
                let mut buf = UnitBuf::zeroed(SLOT_BYTES / 4096);
                for number in (lane as u64..count).step_by(DEPTH) {
                    poll(&file, &mut buf, slot_of(number), base + number);
                    taken[lane].store(number, Ordering::Release);
                }
            });
        }
    });
    STREAM_BYTES as f64 / start.elapsed().as_secs_f64() / 1e6
}

// --- STP

struct StpWorld {
    child: Child,
    group: Group,
}

fn open(volume: &Path, run_dir: &Path, system: &str) -> Group {
    let builder = Group::builder(volume).system(system).run_dir(run_dir);
    builder
        .engine(EngineChoice::Embedded)
        .open()
        .expect("an embedded node")
}

fn stp_server(volume: &Path, run_dir: &Path) {
    let group = open(volume, run_dir, "beta");
    let echo = group.listen(7001).expect("listen");
    let sink = group.listen(7002).expect("listen");
    std::io::stdout()
        .write_all(b"r")
        .and_then(|()| std::io::stdout().flush())
        .expect("pipe");
    let (mut stream, _) = echo.accept().expect("accept");
    let mut message = [0; 64];
    while stream.read_exact(&mut message).is_ok() {
        stream.write_all(&message).expect("echo");
    }
    let (mut stream, _) = sink.accept().expect("accept");
    let mut buf = vec![0; 1 << 20];
    let mut total = 0;
    while total < STREAM_BYTES {
        total += stream.read(&mut buf).expect("read");
    }
    stream
        .write_all(&cpu_seconds().to_le_bytes())
        .expect("answer");
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).expect("the end");
}

/// CPU time of this process so far.
fn cpu_seconds() -> f64 {
    let clock = rustix::time::ClockId::ProcessCPUTime;
    let now = rustix::time::clock_gettime(clock);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

impl StpWorld {
    fn new(volume: &Path, scratch: &Path, round: usize) -> Self {
        let spec = volume
            .to_str()
            .expect("a path in UTF-8")
            .parse()
            .expect("a volume");
        let options = stp_host::volume::FormatOptions {
            group: "bench".parse().expect("a name"),
            size_bytes: (!volume.exists()).then_some(256 << 20),
            seats: 16,
            force: true,
        };
        stp_host::volume::format(&spec, &options).expect("format");
        let run_dir = |system: &str| -> PathBuf {
            let path = scratch.join(format!("{system}-{round}"));
            std::fs::create_dir_all(&path).expect("run directory");
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
            std::fs::set_permissions(&path, mode).expect("run directory");
            path
        };
        let mut child = again(&[volume, &run_dir("beta")], "stp-echo");
        wait_ready(&mut child);
        Self {
            child,
            group: open(volume, &run_dir("alpha"), "alpha"),
        }
    }

    fn round_trips(&mut self) -> Vec<f64> {
        let mut stream = self.group.connect("beta:7001").expect("connect");
        let mut message = [7; 64];
        let mut times = Vec::new();
        for _ in 0..ROUND_TRIPS {
            let start = Instant::now();
            stream.write_all(&message).expect("write");
            stream.read_exact(&mut message).expect("read");
            times.push(start.elapsed().as_secs_f64() * 1e6);
        }
        sorted(times)
    }

    /// Bytes a second, and CPU seconds a GB of both sides together.
    fn stream(mut self) -> (f64, f64) {
        let mut stream = self.group.connect("beta:7002").expect("connect");
        let block = vec![5; 64 << 10];
        let cpu = cpu_seconds();
        let start = Instant::now();
        for _ in 0..STREAM_BYTES / block.len() {
            stream.write_all(&block).expect("write");
        }
        let mut answer = [0; 8];
        stream.read_exact(&mut answer).expect("answer");
        let time = start.elapsed().as_secs_f64();
        let cpu = cpu_seconds() - cpu + f64::from_le_bytes(answer);
        drop(stream);
        drop(self.group);
        self.child.wait().expect("the other process ends");
        (
            STREAM_BYTES as f64 / time / 1e6,
            cpu / (STREAM_BYTES as f64 / 1e9),
        )
    }
}
