//! Every medium passes the one suite.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use stp_medium::conformance::{Expect, VOLUME_BYTES, run};
use stp_medium::fault::Faulty;
use stp_medium::local::Store;
use stp_medium::trace::Trace;
use stp_medium::{IoChoice, Medium, OpenOptions, SeatLock, VolumeSpec, open};

const LOCKED: Expect = Expect {
    lock: SeatLock::Held,
};

/// A preallocated file in a directory of its own.
struct Volume {
    dir: tempfile::TempDir,
}

impl Volume {
    fn below(parent: impl AsRef<Path>) -> Self {
        let dir = tempfile::tempdir_in(parent).unwrap();
        let file = File::create(dir.path().join("volume")).unwrap();
        let none = rustix::fs::FallocateFlags::empty();
        rustix::fs::fallocate(&file, none, 0, VOLUME_BYTES).unwrap();
        Self { dir }
    }

    /// Beside the build, which is seldom on a memory file system.
    fn on_disk() -> Self {
        Self::below(env!("CARGO_TARGET_TMPDIR"))
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("volume")
    }

    fn spec(&self, prefix: &str) -> VolumeSpec {
        format!("{prefix}{}", self.path().display())
            .parse()
            .unwrap()
    }
}

fn handle(spec: &VolumeSpec, io: IoChoice) -> Box<dyn Medium> {
    let options = OpenOptions {
        io,
        ..OpenOptions::default()
    };
    open(spec, &options).unwrap_or_else(|error| panic!("{error}"))
}

fn skipped(what: &str, why: impl std::fmt::Display) {
    println!("skipped: {what}: {why}");
}

#[test]
fn local() {
    let store = Store::new(VOLUME_BYTES as usize);
    run(LOCKED, || store.attach());
}

#[test]
fn file_by_io_uring() {
    let volume = Volume::on_disk();
    let options = OpenOptions {
        io: IoChoice::Uring,
        ..OpenOptions::default()
    };
    let spec = volume.spec("file:");
    match open(&spec, &options) {
        Err(error) => skipped("file by io_uring", error),
        Ok(medium) if !medium.describe().contains("io_uring") => {
            skipped("file by io_uring", medium.describe());
        }
        Ok(_) => run(LOCKED, || handle(&spec, IoChoice::Uring)),
    }
}

#[test]
fn file_by_threads() {
    let spec = Volume::on_disk();
    let spec = (spec.spec(""), spec);
    run(LOCKED, || handle(&spec.0, IoChoice::Threads));
}

/// The calling thread does the transfers, whatever works on those that came before.
#[test]
fn file_inline() {
    let volume = Volume::on_disk();
    let spec = volume.spec("");
    if !handle(&spec, IoChoice::Auto)
        .describe()
        .contains("O_DIRECT,")
    {
        return skipped("file inline", "O_DIRECT is refused");
    }
    for choice in [IoChoice::Auto, IoChoice::Threads] {
        run(LOCKED, || {
            let mut medium = handle(&spec, choice);
            medium.set_inline(true);
            assert!(medium.is_inline());
            medium
        });
    }
}

/// Turned on and off with transfers under way, nothing is lost or done twice.
#[test]
fn inline_on_and_off() {
    use stp_format::{Geometry, Place, SeatId, UnitBuf};
    use stp_medium::{Op, OpId};
    let volume = Volume::on_disk();
    let mut medium = handle(&volume.spec(""), IoChoice::Auto);
    medium.set_geometry(Geometry::plan(VOLUME_BYTES, 3).unwrap());
    let read = || Op::Read {
        place: Place::Directory { first: SeatId(0) },
        buf: UnitBuf::zeroed(1),
    };
    let mut missing: std::collections::BTreeSet<u64> = (0..64).collect();
    for id in 0..64 {
        medium.set_inline(id % 3 == 0);
        medium.submit(OpId(id), read());
        medium.kick();
    }
    let until = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while !missing.is_empty() {
        assert!(std::time::Instant::now() < until, "lost: {missing:?}");
        while let Some(done) = medium.poll() {
            assert!(missing.remove(&done.id.0), "{:?} twice", done.id);
            done.result.unwrap();
        }
        medium.kick();
        std::thread::yield_now();
    }
    assert!(medium.poll().is_none());
}

#[test]
fn file_buffered() {
    let volume = Volume::on_disk();
    let spec = volume.spec("");
    assert!(
        handle(&spec, IoChoice::Buffered)
            .describe()
            .contains("buffered")
    );
    run(LOCKED, || handle(&spec, IoChoice::Buffered));
}

#[test]
fn mapped() {
    if !Path::new("/dev/shm").is_dir() {
        return skipped("mapped", "there is no /dev/shm");
    }
    let volume = Volume::below("/dev/shm");
    let spec = volume.spec("");
    assert!(
        handle(&spec, IoChoice::Auto)
            .describe()
            .starts_with("mapped")
    );
    run(LOCKED, || handle(&spec, IoChoice::Auto));
}

/// A hole in a full tmpfs, and the room behind a truncation, end in `SIGBUS` when touched through a map.
#[test]
fn a_mapped_file_that_shrinks_gives_errors_and_lives_on() {
    if !Path::new("/dev/shm").is_dir() {
        return skipped("mapped, truncated", "there is no /dev/shm");
    }
    use stp_format::{Geometry, Place, SeatId, UnitBuf};
    use stp_medium::{Op, OpId};
    let volume = Volume::below("/dev/shm");
    let mut medium = handle(&volume.spec("mem:"), IoChoice::Auto);
    medium.set_geometry(Geometry::plan(VOLUME_BYTES, 3).unwrap());
    let seat = Place::Seat {
        seat: SeatId(2),
        copy: 1,
    };
    let mut attempt = |write: bool| {
        // After a pause it is asked anew whether the file has its pages; what happens meanwhile is not survived.
        std::thread::sleep(std::time::Duration::from_millis(2));
        let op = if write {
            Op::Write {
                place: seat,
                data: UnitBuf::zeroed(1).into(),
                units: 1,
                durable: false,
            }
        } else {
            Op::Read {
                place: seat,
                buf: UnitBuf::zeroed(1),
            }
        };
        medium.submit(OpId(1), op);
        medium.kick();
        medium.poll().unwrap().result
    };
    attempt(true).unwrap();
    attempt(false).unwrap();
    let file = File::options().write(true).open(volume.path()).unwrap();
    file.set_len(8192).unwrap();
    attempt(false).unwrap_err();
    attempt(true).unwrap_err();
    assert_eq!(file.metadata().unwrap().len(), 8192, "it grew again");
    file.set_len(VOLUME_BYTES).unwrap();
    attempt(true).unwrap();
    attempt(false).unwrap();
}

#[test]
fn file_on_a_memory_file_system() {
    if !Path::new("/dev/shm").is_dir() {
        return skipped("file on tmpfs", "there is no /dev/shm");
    }
    let volume = Volume::below("/dev/shm");
    for io in [IoChoice::Auto, IoChoice::Threads] {
        run(LOCKED, || handle(&volume.spec("file:"), io));
    }
}

/// A loop device that goes away with the test.
struct Loop(String);

impl Loop {
    fn over(path: &Path) -> Result<Self, String> {
        let output = Command::new("losetup")
            .args(["-f", "--show", "--direct-io=on"])
            .arg(path)
            .output()
            .map_err(|error| error.to_string())?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).trim().into());
        }
        Ok(Self(String::from_utf8_lossy(&output.stdout).trim().into()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.0]).status();
    }
}

#[test]
fn block() {
    let volume = Volume::on_disk();
    let device = match Loop::over(&volume.path()) {
        Ok(device) => device,
        Err(why) => return skipped("block", why),
    };
    let spec: VolumeSpec = device.0.parse().unwrap();
    let expect = Expect {
        lock: SeatLock::Unsupported,
    };
    for io in [IoChoice::Auto, IoChoice::Threads, IoChoice::Buffered] {
        let text = handle(&spec, io).describe();
        assert!(text.starts_with("block device"), "{text}");
        run(expect, || handle(&spec, io));
    }
}

#[test]
fn wrappers_without_faults() {
    let store = Store::new(VOLUME_BYTES as usize);
    run(LOCKED, || Trace::new(store.attach()));
    run(LOCKED, || Faulty::new(store.attach(), 1).unwrap());
    let volume = Volume::on_disk();
    let spec = volume.spec("");
    run(LOCKED, || {
        Trace::new(Faulty::new(handle(&spec, IoChoice::Auto), 1).unwrap())
    });
}

/// Any storage: `STP_TEST_VOLUME=PATH[,PATH...]` names one volume as one or several mounts show it; the handles
/// take them in turn. What it holds is overwritten.
#[test]
fn the_volume_that_the_environment_names() {
    let Ok(paths) = std::env::var("STP_TEST_VOLUME") else {
        return skipped("a given volume", "STP_TEST_VOLUME is not set");
    };
    let specs: Vec<VolumeSpec> = paths.split(',').map(|p| p.parse().unwrap()).collect();
    let io = IoChoice::from_env();
    let mut medium = handle(&specs[0], io);
    medium.set_geometry(stp_format::Geometry::plan(VOLUME_BYTES, 3).unwrap());
    let lock = medium.lock_seat(stp_format::SeatId(0)).unwrap();
    println!("{}, seat lock {lock:?}", medium.describe());
    drop(medium);
    let mut turn = specs.iter().cycle();
    run(Expect { lock }, || handle(turn.next().unwrap(), io));
}
