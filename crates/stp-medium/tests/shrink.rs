//! Storage that loses its end while it is in use, and storage of other sector sizes.
//!
//! - A transfer beyond the end is an error that names the matter; nothing makes the volume longer again.
//! - What lies before the end goes on as ever, and what came back is used again.
//! - The unit is 4096 bytes on every storage: a smaller sector changes nothing, a larger one is refused in words.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use stp_format::{Geometry, Place, SeatId, UnitBuf};
use stp_medium::{Access, IoChoice, Medium, Op, OpId, OpenOptions, VolumeSpec, open};

const VOLUME_BYTES: u64 = 4 << 20;
/// A hang guard.
const PATIENCE: Duration = Duration::from_secs(30);

/// A file that goes away with the test.
struct Volume(PathBuf);

impl Volume {
    fn new(name: &str) -> Self {
        let name = format!("stp-shrink-{name}-{}", std::process::id());
        let volume = Self(Path::new(env!("CARGO_TARGET_TMPDIR")).join(name));
        volume.resize(VOLUME_BYTES);
        volume
    }

    fn resize(&self, bytes: u64) {
        let mut options = File::options();
        let file = options.write(true).create(true).truncate(false);
        file.open(&self.0).unwrap().set_len(bytes).unwrap();
    }

    fn len(&self) -> u64 {
        self.0.metadata().unwrap().len()
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A loop device over a volume, that goes away with the test.
struct Loop(String);

impl Loop {
    fn over(path: &Path, options: &[&str]) -> Result<Self, String> {
        let mut losetup = Command::new("losetup");
        let output = losetup
            .args(["-f", "--show"])
            .args(options)
            .arg(path)
            .output();
        let output = output.map_err(|error| error.to_string())?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).trim().into());
        }
        Ok(Self(String::from_utf8_lossy(&output.stdout).trim().into()))
    }

    /// Takes the file's present size over.
    fn look_again(&self) {
        let mut losetup = Command::new("losetup");
        assert!(losetup.args(["-c", &self.0]).status().unwrap().success());
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.0]).status();
    }
}

fn skipped(what: &str, why: impl std::fmt::Display) {
    println!("skipped: {what}: {why}");
}

fn handle(path: &str, io: IoChoice) -> Box<dyn Medium> {
    let spec: VolumeSpec = path.parse().unwrap();
    let options = OpenOptions {
        access: Access::ReadWrite,
        io,
    };
    let mut medium = open(&spec, &options).unwrap();
    medium.set_geometry(Geometry::plan(VOLUME_BYTES, 3).unwrap());
    medium
}

/// One transfer of one unit, to its end.
fn transfer(medium: &mut dyn Medium, place: Place, write: bool) -> std::io::Result<()> {
    let op = match write {
        true => Op::Write {
            place,
            data: UnitBuf::zeroed(1).into(),
            units: 1,
            durable: false,
        },
        false => Op::Read {
            place,
            buf: UnitBuf::zeroed(1),
        },
    };
    medium.submit(OpId(1), op);
    let until = Instant::now() + PATIENCE;
    loop {
        medium.kick();
        if let Some(done) = medium.poll() {
            return done.result;
        }
        assert!(Instant::now() < until, "a transfer hangs");
        std::thread::yield_now();
    }
}

const FIRST: Place = Place::Seat {
    seat: SeatId(0),
    copy: 0,
};

/// The last unit of the last seat's rings.
fn last() -> Place {
    let geometry = Geometry::plan(VOLUME_BYTES, 3).unwrap();
    let ring = geometry.ring(geometry.extents - 1, 1);
    Place::Slot {
        seat: SeatId(2),
        ring,
        slot: geometry.ring_slots(ring) - 1,
        skip: 0,
    }
}

/// What must hold before, while and after the volume is shorter.
fn loses_its_end(medium: &mut dyn Medium, shorten: impl Fn(), restore: impl Fn()) {
    for write in [true, false] {
        transfer(medium, FIRST, write).unwrap();
        transfer(medium, last(), write).unwrap();
    }
    shorten();
    let error = transfer(medium, last(), false).unwrap_err();
    assert!(error.to_string().contains("become shorter"), "{error}");
    for write in [true, false] {
        transfer(medium, FIRST, write).unwrap();
    }
    restore();
    for write in [true, false] {
        transfer(medium, last(), write).unwrap();
    }
}

#[test]
fn a_file_that_is_cut_off_gives_errors_in_words_and_lives_on() {
    for io in [IoChoice::Auto, IoChoice::Threads, IoChoice::Buffered] {
        let volume = Volume::new("file");
        let mut medium = handle(&volume.0.display().to_string(), io);
        let (shorten, restore) = (|| volume.resize(1 << 20), || volume.resize(VOLUME_BYTES));
        loses_its_end(&mut *medium, shorten, restore);
    }
}

#[test]
fn a_device_that_shrinks_gives_errors_in_words_and_lives_on() {
    for io in [IoChoice::Auto, IoChoice::Threads] {
        let volume = Volume::new("device");
        let device = match Loop::over(&volume.0, &["--direct-io=on"]) {
            Ok(device) => device,
            Err(why) => return skipped("a device that shrinks", why),
        };
        let mut medium = handle(&device.0, io);
        let resize = |bytes| {
            volume.resize(bytes);
            device.look_again();
        };
        let shorten = || resize(1 << 20);
        loses_its_end(&mut *medium, shorten, || resize(VOLUME_BYTES));
        resize(1 << 20);
        let error = transfer(&mut *medium, last(), true).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull, "{error}");
        assert_eq!(volume.len(), 1 << 20, "it grew again");
    }
}

/// Units of neighbours lie in sectors of their own, however small or large these are.
#[test]
fn sectors_of_512_and_of_4096_bytes_do_alike() {
    for sector in ["512", "4096"] {
        let volume = Volume::new(sector);
        let device = match Loop::over(&volume.0, &["--sector-size", sector]) {
            Ok(device) => device,
            Err(why) => return skipped("sectors", why),
        };
        let mut medium = handle(&device.0, IoChoice::Auto);
        for write in [true, false] {
            transfer(&mut *medium, FIRST, write).unwrap();
            transfer(&mut *medium, last(), write).unwrap();
        }
    }
}
