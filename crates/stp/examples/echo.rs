//! Two systems, one volume, one command: formats a temporary volume, starts the systems `alpha` and `beta` as two
//! processes that share nothing else, echoes data between them, checks it, and cleans up.
//!
//!     cargo run -p stp --example echo

use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Instant;

use stp_host::volume::{FormatOptions, format};
use stp_medium::VolumeSpec;

const BYTES: usize = 8 << 20;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("echo: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    match std::env::args().nth(1).as_deref() {
        None => director(),
        Some("beta") => beta(),
        Some("alpha") => alpha(),
        Some(other) => Err(format!("no such role: {other}").into()),
    }
}

/// Formats the volume and runs both systems.
fn director() -> Result<()> {
    let root = Temporary::new()?;
    let volume = root.0.join("volume");
    let options = FormatOptions {
        group: "example".parse()?,
        size_bytes: Some(64 << 20),
        seats: 4,
        force: false,
    };
    let made = format(&VolumeSpec::from(volume.as_path()), &options)?;
    println!("formatted {} ({})", volume.display(), made.storage);

    let mut beta = Program(start("beta", &root.0).stdout(Stdio::piped()).spawn()?);
    let out = beta.0.stdout.take().ok_or("beta has no output")?;
    let address = BufReader::new(out).lines().next().ok_or("beta died")??;
    println!("beta listens on {address}");

    let mut alpha = Program(start("alpha", &root.0).arg(&address).spawn()?);
    if !alpha.0.wait()?.success() || !beta.0.wait()?.success() {
        return Err("the echo failed".into());
    }
    println!("done");
    Ok(())
}

fn start(system: &str, root: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap_or_default());
    command
        .arg(system)
        .env("STP_VOLUME", root.join("volume"))
        .env("STP_SYSTEM", system)
        .env("STP_RUN_DIR", root.join(format!("run-{system}")));
    command
}

/// Echoes one stream.
fn beta() -> Result<()> {
    let listener = stp::Group::from_env()?.listen(0)?;
    println!("{}", listener.local_addr()?);
    let (stream, _) = listener.accept()?;
    std::io::copy(&mut &stream, &mut &stream)?;
    Ok(())
}

/// Sends a known sequence and checks what comes back.
fn alpha() -> Result<()> {
    let address = std::env::args().nth(2).ok_or("alpha needs an address")?;
    let sent: Vec<u8> = (0..BYTES).map(|i| (i % 251) as u8).collect();
    let start = Instant::now();
    let stream = stp::Group::from_env()?.connect(address)?;
    println!(
        "{} is connected to {}",
        stream.local_addr()?,
        stream.peer_addr()?
    );
    let received = std::thread::scope(|scope| {
        scope.spawn(|| {
            (&stream).write_all(&sent)?;
            stream.shutdown(Shutdown::Write)
        });
        let mut received = Vec::new();
        (&stream).read_to_end(&mut received).map(|_| received)
    })?;
    if received != sent {
        return Err(format!("{} of {BYTES} bytes came back, or others", received.len()).into());
    }
    let mib = (2 * BYTES) as f64 / f64::from(1 << 20);
    println!(
        "{BYTES} bytes there and back, every one right, {:.0} MiB/s",
        mib / start.elapsed().as_secs_f64()
    );
    Ok(())
}

/// A process that does not outlive the value.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A directory that does not outlive the value.
struct Temporary(PathBuf);

impl Temporary {
    fn new() -> std::io::Result<Self> {
        let name = format!("stp-echo-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
