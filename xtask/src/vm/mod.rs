//! `cargo xtask vm`: two kernels, one volume. Two QEMU guests without a network card share one raw disk and nothing
//! else, or with `--memory` a piece of the host's memory and nothing else.
//!
//! - Every byte that goes from guest to guest is checked; one guest dies in the middle and comes back.
//! - Works in `target/vm`; the machine gets QEMU and a few packages (as root), nothing else is changed.
//! - Without QEMU or root it fails and says so: it runs on demand, so nothing is skipped.

mod guest;
mod image;

use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::repo::{self, Error};
use guest::{Guest, Shared};

/// The volume's size; as `stp format` makes it.
const DISK_BYTES: u64 = 256 << 20;
/// The shared memory's size; a power of two, as every BAR.
const MEMORY_BYTES: u64 = 64 << 20;

/// Runs the chore.
///
/// # Errors
/// When a step fails: which, and what the guest said.
pub fn run(args: &[String]) -> Result<bool, Error> {
    let unknown = |arg: &&String| !["--keep", "--memory"].contains(&arg.as_str());
    if let Some(unknown) = args.iter().find(unknown) {
        return Err(format!("no option {unknown}; see cargo xtask help").into());
    }
    let folder = repo::target_directory()?.join("vm");
    std::fs::create_dir_all(&folder)?;
    let start = Instant::now();
    let step = |what: &str| println!("[{:5.1} s] {what}", start.elapsed().as_secs_f64());

    image::install()?;
    let image = image::build(&folder)?;
    step("packages, static programs, initial file system");
    let memory = args.iter().any(|arg| arg == "--memory");
    let (path, shared) = if memory {
        let path = PathBuf::from("/dev/shm").join(format!("stp-vm-{}", std::process::id()));
        (path.clone(), Shared::Memory(path, MEMORY_BYTES))
    } else {
        let path = folder.join("disk.raw");
        File::create(&path)?.set_len(DISK_BYTES)?;
        (path.clone(), Shared::Disk(path))
    };
    let boot = |name: &str| Guest::boot(&image, &shared, &folder, name);
    let outcome = if memory {
        memory_story(&boot, &step)
    } else {
        disk_story(&boot, &step)
    };
    if outcome.is_ok() && !args.iter().any(|arg| arg == "--keep") {
        std::fs::remove_file(&path)?;
    }
    outcome?;
    println!(
        "vm: every byte arrived between two kernels; {:.0} s",
        start.elapsed().as_secs_f64()
    );
    Ok(true)
}

/// Starts a guest of a name.
type Boot<'a> = &'a dyn Fn(&str) -> Result<Guest, Error>;

/// Two guests that have no network, with a new volume and an engine each.
fn two_guests(boot: Boot<'_>, step: &dyn Fn(&str)) -> Result<(Guest, Guest), Error> {
    let mut a = boot("a")?;
    let mut b = boot("b")?;
    for guest in [&mut a, &mut b] {
        guest.ready()?;
        let interfaces = guest.ok("ls /sys/class/net")?;
        if interfaces.split_whitespace().any(|name| name != "lo") {
            return Err(format!("guest {} has a network: {interfaces}", guest.name()).into());
        }
    }
    step("two guests without a network are up");
    a.ok("stp format $STP_VOLUME --group vm")?;
    a.engine()?;
    b.engine()?;
    step(&format!(
        "formatted, an engine in each: {}",
        a.ok("stp info $STP_VOLUME | grep -E '^(storage|size)' | tr -s ' ' | tr '\\n' ' '")?
    ));
    Ok((a, b))
}

/// Streams, files and round trips through memory that two kernels map.
fn memory_story(boot: Boot<'_>, step: &dyn Fn(&str)) -> Result<(), Error> {
    let (mut a, mut b) = two_guests(boot, step)?;
    streams(&mut a, &mut b, 1)?;
    streams(&mut b, &mut a, 2)?;
    step("20 streams both ways, called from each side, every byte checked");
    b.start("echo", "stp-load echo 7100")?;
    let figures = a.ok("stp-load ping b:7100 --pings 5000")?;
    let figures = figures.lines().find(|line| line.starts_with("round"));
    step(figures.ok_or("no figures of round trips")?);
    copies(&mut a, &mut b, step)?;
    a.ok("stp check $STP_VOLUME")?;
    a.power_off()?;
    b.power_off()
}

/// 64 MiB each way, compared.
fn copies(a: &mut Guest, b: &mut Guest, step: &dyn Fn(&str)) -> Result<(), Error> {
    a.ok("head -c 67108864 /dev/urandom > /tmp/from-a")?;
    b.ok("mkdir -p /srv; head -c 67108864 /dev/urandom > /srv/from-b")?;
    b.start("serve", "stp serve /srv")?;
    a.until("stp ls b:")?;
    let there = a.ok("stp cp /tmp/from-a b: 2>&1")?;
    same(a, "/tmp/from-a", b, "/srv/from-a")?;
    let back = a.ok("stp cp b:from-b /tmp/ 2>&1")?;
    same(b, "/srv/from-b", a, "/tmp/from-b")?;
    a.ok("rm /tmp/from-*")?;
    b.ok("rm /srv/*")?;
    let last = |text: &str| text.lines().last().unwrap_or_default().to_owned();
    step(&format!(
        "64 MiB copied each way, equal: {}; {}",
        last(&there),
        last(&back)
    ));
    Ok(())
}

/// The same through a disk; one guest dies in the middle.
fn disk_story(boot: Boot<'_>, step: &dyn Fn(&str)) -> Result<(), Error> {
    let (mut a, mut b) = two_guests(boot, step)?;
    streams(&mut a, &mut b, 1)?;
    streams(&mut b, &mut a, 2)?;
    step("20 streams both ways, called from each side, every byte checked");

    copies(&mut a, &mut b, step)?;

    // The guest dies as a host does: at once, with streams open and a copy on its way.
    b.start("load", "stp-load serve 7000 --streams 4 --rate 20000")?;
    a.start(
        "call",
        "stp-load call b:7000 --streams 4 --up 90000000 --down 90000000 --rate 20000",
    )?;
    a.until("[ $(grep -c receiving /tmp/call) = 4 ]")?;
    a.ok("head -c 160000000 /dev/urandom > /tmp/second")?;
    a.start("copy", "stp cp /tmp/second b:")?;
    b.until("[ $(du -s /srv | cut -f1) -gt 5000 ]")?;
    b.kill();
    step("guest b killed with streams open and a copy on its way");
    let mut b = boot("b")?;
    b.ready()?;
    b.ok("mkdir -p /srv")?;
    b.engine()?;
    step("guest b is back");
    a.until("grep -q '^called.*kind=ConnectionReset' /tmp/call")?;
    a.until("[ -e /tmp/copy.code ]")?;
    let called = a.ok("grep -c '^called.*kind=ConnectionReset' /tmp/call; cat /tmp/copy.code")?;
    if called.split_whitespace().collect::<Vec<_>>() != ["4", "1"] {
        return Err(format!("4 resets and a failed copy were to be: {called}").into());
    }
    step("its streams were reset and the copy failed, as they must");
    b.start("serve", "stp serve /srv")?;
    a.until("stp ls b:")?;
    a.ok("stp cp /tmp/second b:")?;
    same(&mut a, "/tmp/second", &mut b, "/srv/second")?;
    streams(&mut a, &mut b, 3)?;
    streams(&mut b, &mut a, 4)?;
    step("a copy and streams with the returned guest, equal");

    a.ok("stp check $STP_VOLUME")?;
    a.power_off()?;
    b.power_off()?;
    Ok(())
}

/// Twenty streams at once, both directions, keyed patterns.
fn streams(from: &mut Guest, to: &mut Guest, key: u32) -> Result<(), Error> {
    let port = 7000 + key;
    to.start(
        &format!("serve{key}"),
        &format!("stp-load serve {port} --streams 20"),
    )?;
    from.ok(&format!(
        "stp-load call {}:{port} --streams 20 --up 500000 --down 700000 --key {key} --retry 60",
        to.name()
    ))?;
    to.until(&format!("[ \"$(cat /tmp/serve{key}.code)\" = 0 ]"))?;
    Ok(())
}

/// Equal contents on two guests.
fn same(
    left: &mut Guest,
    left_path: &str,
    right: &mut Guest,
    right_path: &str,
) -> Result<(), Error> {
    let sum = |guest: &mut Guest, path: &str| -> Result<String, Error> {
        let line = guest.ok(&format!("sha256sum {path}"))?;
        Ok(line
            .split_whitespace()
            .next()
            .unwrap_or_default()
            .to_owned())
    };
    let (a, b) = (sum(left, left_path)?, sum(right, right_path)?);
    if a.len() != 64 || a != b {
        return Err(format!(
            "{left_path} on {} and {right_path} on {} differ",
            left.name(),
            right.name()
        )
        .into());
    }
    Ok(())
}

/// How long a step in a guest may take before it is taken to hang: guests are emulated.
const HANG: Duration = Duration::from_secs(600);
