//! `stp demo`: two systems, one temporary volume, a real copy, checked.
//!
//! - It uses the commands that anybody would use (`format`, `serve`, `cp`), as processes of their own, and
//!   believes none of them: the files are compared here, by content.
//! - Everything lies in one temporary folder, which is removed at the end, after Ctrl-C too.

mod inside;
mod stage;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::signals::EndSignals;
use crate::{CliError, Global, out};
use inside::Inside;

/// The port that the receiving system serves files on.
const PORT: u16 = 2121;
/// How long a system may take to appear on the volume.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a process may take to end when it is asked to.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// How often processes and signals are looked at.
const LOOK: Duration = Duration::from_millis(20);
/// Bytes of the volume.
const VOLUME_MIB: u64 = 256;

const EXAMPLES: &str = "\
As root, both systems are put into network namespaces without any interface, and neither sees the
other's files. As an ordinary user they are two processes with nothing in common but the volume.";

/// Options of `stp demo`.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// How big the generated file is, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    pub mib: u64,

    /// Where the temporary folder is made [default: $TMPDIR or /var/tmp]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,

    /// Keep the temporary folder
    #[arg(long)]
    pub keep: bool,

    #[command(flatten)]
    inside: Inside,
}

/// Shows it, or is one of the two systems that are shown.
pub fn run(_global: &Global, args: Args) -> Result<(), CliError> {
    if let Some(name) = args.inside.name() {
        return inside::become_system(name, &args.inside);
    }
    let signals = EndSignals::watch()?;
    let folder = Folder::make(args.dir.as_deref(), args.keep)?;
    let result = show(&signals, &folder.path, args.mib);
    drop(folder);
    match signals.seen() {
        Some(signal) => {
            // Ends as the signal would have ended it, now that everything is removed.
            let _ = signal_hook::low_level::emulate_default_handler(signal);
            Err(CliError::new(format_args!("ended by signal {signal}")))
        }
        None => result,
    }
}

fn show(signals: &EndSignals, folder: &Path, mib: u64) -> Result<(), CliError> {
    let needed = (2 * mib + 2 * stage::TREE_MIB_MAX + VOLUME_MIB) << 20;
    stage::check_space(folder, needed)?;
    let program = std::env::current_exe()
        .map_err(|error| CliError::new(format_args!("cannot find this program: {error}")))?;
    let place = Place {
        program,
        volume: folder.join("volume"),
        folder: folder.to_owned(),
    };
    for (name, files) in [("alpha", "send"), ("beta", "receive")] {
        make_dir(&folder.join(name))?;
        make_dir(&folder.join(name).join(files))?;
    }
    let (source, target) = (folder.join("alpha/send"), folder.join("beta/receive"));

    let staged = stage::stage(&source, mib, || signals.seen().is_some())?;
    out::data(format_args!(
        "1. Made a folder to send: {} files of {} and big.bin, {mib} MiB of noise.\n",
        staged.tree_files,
        staged.tree_from.display()
    ))?;

    let mut format = place.stp();
    format.arg("format").arg(&place.volume);
    format.args(["--group", "demo", "--size", &format!("{VOLUME_MIB}MiB")]);
    wait(signals, Process::start("format", &mut format)?)?;
    out::data(format_args!(
        "2. Made a volume: {} ({VOLUME_MIB} MiB). It is all that the two systems share.\n",
        place.volume.display()
    ))?;

    let isolated = place.can_isolate();
    let mut serve = place.system("beta", "alpha", isolated);
    serve
        .arg("serve")
        .arg(&target)
        .arg("--port")
        .arg(PORT.to_string());
    let mut server = Process::start("beta", &mut serve)?;
    wait_for_port(signals, &place, &mut server)?;
    out::data(format_args!(
        "3. Started beta (process {}): it serves a folder at beta:{PORT}.\n   {}\n",
        server.child.id(),
        if isolated {
            "Both systems run without any network interface, and cannot see each other's files."
        } else {
            "Run the demo as root to take every network interface away from both systems."
        }
    ))?;

    let mut copy = place.system("alpha", "beta", isolated);
    copy.args(["cp", "-r", "--port", &PORT.to_string()]);
    copy.arg(source.join("tree"))
        .arg(source.join("big.bin"))
        .arg("beta:");
    out::data("4. alpha copies the folder to beta:\n")?;
    let began = Instant::now();
    wait(signals, Process::start("alpha", &mut copy)?)?;
    let seconds = began.elapsed().as_secs_f64();

    let checked = stage::compare(&source, &target, || signals.seen().is_some())?;
    let mib_moved = checked.bytes as f64 / f64::from(1 << 20);
    out::data(format_args!(
        "5. Compared: {} files, {mib_moved:.1} MiB, all the same. BLAKE3 of big.bin here and there:\n   {}\n",
        checked.files, staged.big_hash
    ))?;
    out::data(format_args!(
        "6. It took {seconds:.1} s, {:.0} MiB/s, start and end of alpha's engine included.\n",
        mib_moved / seconds.max(0.001)
    ))?;
    server.stop();
    Ok(())
}

/// Where everything lies.
struct Place {
    program: PathBuf,
    folder: PathBuf,
    volume: PathBuf,
}

impl Place {
    /// This program, without what the user's environment says about volumes.
    fn stp(&self) -> Command {
        let mut command = Command::new(&self.program);
        for name in ["STP_VOLUME", "STP_SYSTEM", "STP_RUN_DIR"] {
            command.env_remove(name);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    /// This program as a system of the demo; arguments that are added belong to what it runs.
    fn system(&self, name: &str, other: &str, isolated: bool) -> Command {
        let mut command = self.stp();
        command.args(["demo", "--inside", name]);
        if isolated {
            command.arg("--hide").arg(self.folder.join(other));
        }
        command.arg("--").arg("-V").arg(&self.volume);
        command.args(["--system", name, "--run-dir"]);
        command.arg(self.folder.join(name).join("run"));
        command
    }

    /// Whether namespaces can be had: as root, where nothing forbids it.
    fn can_isolate(&self) -> bool {
        if !rustix::process::geteuid().is_root() {
            return false;
        }
        let mut trial = self.stp();
        trial.args(["demo", "--inside", "trial", "--hide"]);
        trial
            .arg(self.folder.join("beta"))
            .args(["--", "--version"]);
        let status = trial.stderr(Stdio::null()).status();
        let can = status.is_ok_and(|status| status.success());
        if !can {
            out::say("namespaces are not allowed here: the systems keep their network interfaces");
        }
        can
    }
}

/// Waits until beta's node lists its port on the volume.
fn wait_for_port(
    signals: &EndSignals,
    place: &Place,
    server: &mut Process,
) -> Result<(), CliError> {
    let spec = stp_medium::VolumeSpec::from(place.volume.as_path());
    let deadline = Instant::now() + START_TIMEOUT;
    let mut volume = stp_host::volume::open_read_only(&spec).map_err(CliError::new)?;
    loop {
        let views = volume.read_directory().map_err(CliError::new)?;
        let listens = views
            .iter()
            .filter_map(|view| view.record.as_ref())
            .any(|record| record.system.as_str() == "beta" && record.ports.contains(&PORT));
        if listens {
            return Ok(());
        }
        if let Some(status) = server.ended()? {
            return Err(server.failure(status));
        }
        if signals.wait(Some(LOOK)).is_some() {
            return Err(CliError::silent());
        }
        if Instant::now() >= deadline {
            return Err(CliError::new(format_args!(
                "beta did not start within {} s",
                START_TIMEOUT.as_secs()
            ))
            .remedy("try a faster storage with --dir"));
        }
    }
}

/// Waits for a process that has to succeed.
fn wait(signals: &EndSignals, mut process: Process) -> Result<(), CliError> {
    loop {
        match process.ended()? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => return Err(process.failure(status)),
            None if signals.wait(Some(LOOK)).is_some() => return Err(CliError::silent()),
            None => {}
        }
    }
}

/// A process of ours; dropped, it is asked to end, then made to.
struct Process {
    name: &'static str,
    child: Child,
    over: bool,
}

impl Process {
    fn start(name: &'static str, command: &mut Command) -> Result<Self, CliError> {
        match command.spawn() {
            Ok(child) => Ok(Self {
                name,
                child,
                over: false,
            }),
            Err(error) => Err(CliError::new(format_args!("cannot start {name}: {error}"))),
        }
    }

    fn ended(&mut self) -> Result<Option<ExitStatus>, CliError> {
        let status = self.child.try_wait().map_err(|error| {
            CliError::new(format_args!("cannot wait for {}: {error}", self.name))
        })?;
        self.over |= status.is_some();
        Ok(status)
    }

    fn failure(&self, status: ExitStatus) -> CliError {
        CliError::new(format_args!("the demo's {} failed ({status})", self.name))
            .remedy("see its line above")
    }

    fn stop(&mut self) {
        if self.over {
            return;
        }
        self.over = true;
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // It may be over already.
            let _ = kill_process(pid, Signal::TERM);
        }
        let deadline = Instant::now() + STOP_TIMEOUT;
        while Instant::now() < deadline {
            match self.child.try_wait() {
                Ok(None) => std::thread::sleep(LOOK),
                _ => return,
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The temporary folder, removed when dropped.
struct Folder {
    path: PathBuf,
    keep: bool,
}

impl Folder {
    fn make(parent: Option<&Path>, keep: bool) -> Result<Self, CliError> {
        let parent = match (parent, std::env::var_os("TMPDIR")) {
            (Some(parent), _) => parent.to_owned(),
            (None, Some(dir)) if !dir.is_empty() => dir.into(),
            // Not /tmp: there, files are often kept in memory, and the demo is about storage.
            _ => PathBuf::from("/var/tmp"),
        };
        let mut random = [0; 4];
        getrandom::fill(&mut random)
            .map_err(|error| CliError::new(format_args!("no random numbers: {error}")))?;
        let name = format!("stp-demo-{:08x}", u32::from_ne_bytes(random));
        let path = std::path::absolute(&parent).unwrap_or(parent).join(name);
        make_dir(&path)?;
        Ok(Self { path, keep })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.keep {
            out::say(format_args!("kept {}", self.path.display()));
        } else if let Err(error) = fs::remove_dir_all(&self.path) {
            out::say(format_args!(
                "cannot remove {}: {error}",
                self.path.display()
            ));
        }
    }
}

fn make_dir(path: &Path) -> Result<(), CliError> {
    use std::os::unix::fs::DirBuilderExt;
    let made = fs::DirBuilder::new().mode(0o700).create(path);
    made.map_err(|error: io::Error| {
        CliError::new(format_args!("cannot make {}: {error}", path.display()))
            .remedy("name another place with --dir")
    })
}
