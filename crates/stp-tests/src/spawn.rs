//! Processes of a host: started in its namespaces, heard through log files, ended with the test.
//!
//! - Each process leads a process group; dropping a [`Proc`] kills the group.
//! - All are started by one thread that lives as long as the test's process, and the kernel kills them when that
//!   thread ends: a killed test leaves nothing behind.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use rustix::process::{Pid, Signal};

use crate::{HANG, wait_for};

/// Namespaces to start in, as open files.
#[derive(Default)]
pub(crate) struct Namespaces {
    /// What the process itself enters.
    pub entered: Vec<OwnedFd>,
    /// The process numbers; only its parent can choose them.
    pub numbers: Option<OwnedFd>,
}

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A process to be.
pub struct Cmd {
    command: Command,
    namespaces: Arc<Namespaces>,
    folder: PathBuf,
    label: String,
    logs: PathBuf,
    stdout: Option<PathBuf>,
}

impl Cmd {
    pub(crate) fn new(
        program: &OsStr,
        namespaces: &Arc<Namespaces>,
        folder: &Path,
        logs: &Path,
    ) -> Self {
        let label = Path::new(program)
            .file_name()
            .unwrap_or(program)
            .to_string_lossy()
            .into_owned();
        let mut command = Command::new(program);
        command.stdin(Stdio::null());
        Self {
            command,
            namespaces: Arc::clone(namespaces),
            folder: folder.to_owned(),
            label,
            logs: logs.to_owned(),
            stdout: None,
        }
    }

    /// What its logs are called, if not like the program.
    #[must_use]
    pub fn called(mut self, label: &str) -> Self {
        let name = label.rsplit('/').next().unwrap_or(label);
        name.clone_into(&mut self.label);
        self
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(mut self, args: I) -> Self {
        self.command.args(args);
        self
    }

    /// Sets a variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Removes a variable.
    #[must_use]
    pub fn without_env(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    /// Runs in another folder than the host's own.
    #[must_use]
    pub fn folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folder = folder.into();
        self
    }

    /// Standard input from a file.
    #[must_use]
    pub fn stdin_file(mut self, path: &Path) -> Self {
        self.command
            .stdin(File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())));
        self
    }

    /// Standard input from the test.
    #[must_use]
    pub fn stdin_pipe(mut self) -> Self {
        self.command.stdin(Stdio::piped());
        self
    }

    /// Standard output to a file of the caller's.
    #[must_use]
    pub fn stdout_file(mut self, path: &Path) -> Self {
        self.stdout = Some(path.to_owned());
        self
    }

    /// The program.
    #[must_use]
    pub fn program(&self) -> &OsStr {
        self.command.get_program()
    }

    /// Program and arguments in one line.
    #[must_use]
    pub fn line(&self) -> String {
        let words: Vec<OsString> = std::iter::once(self.command.get_program())
            .chain(self.command.get_args())
            .map(OsStr::to_owned)
            .collect();
        words.join(OsStr::new(" ")).to_string_lossy().into_owned()
    }

    /// Starts it.
    ///
    /// # Panics
    /// If that fails.
    #[must_use]
    pub fn spawn(mut self) -> Proc {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let log = |end: &str| self.logs.join(format!("{number:03}-{}.{end}", self.label));
        let stdout = self.stdout.clone().unwrap_or_else(|| log("out"));
        let stderr = log("err");
        let create = |path: &Path| {
            File::create(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        };
        self.command.stdout(create(&stdout)).stderr(create(&stderr));
        let line = self.line();
        let namespaces = Arc::clone(&self.namespaces);
        let folder = self.folder.clone();
        let enter = move || -> io::Result<()> {
            rustix::process::setpgid(None, None)?;
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            for namespace in &namespaces.entered {
                rustix::thread::move_into_link_name_space(namespace.as_fd(), None)?;
            }
            rustix::process::chdir(&folder)?;
            Ok(())
        };
        // SAFETY: between fork and exec the closure makes system calls only; it allocates nothing beyond a path
        // that fits the stack and takes no lock.
        unsafe { self.command.pre_exec(enter) };
        let child =
            start(self.command, self.namespaces).unwrap_or_else(|error| panic!("{line}: {error}"));
        Proc {
            child,
            line,
            stdout,
            stderr,
            status: None,
        }
    }

    /// Starts it and waits for its end.
    ///
    /// # Panics
    /// If it hangs.
    #[must_use]
    pub fn run(self) -> Ran {
        self.spawn().finish()
    }

    /// Runs it and insists on success.
    ///
    /// # Panics
    /// If it fails or hangs.
    pub fn ok(self) -> Ran {
        let ran = self.run();
        assert!(ran.status.success(), "{ran}");
        ran
    }
}

/// Starts a command on the thread that lives as long as the process.
fn start(command: Command, namespaces: Arc<Namespaces>) -> io::Result<Child> {
    type Job = (Command, Arc<Namespaces>, mpsc::Sender<io::Result<Child>>);
    static STARTER: Mutex<Option<mpsc::Sender<Job>>> = Mutex::new(None);
    let (answer, answered) = mpsc::channel();
    let mut starter = STARTER
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let queue = starter.get_or_insert_with(|| {
        let (queue, jobs) = mpsc::channel::<Job>();
        std::thread::spawn(move || {
            for (command, namespaces, answer) in jobs {
                // The asker waits for the answer, so it is there.
                let _ = answer.send(start_numbered(command, &namespaces));
            }
        });
        queue
    });
    queue
        .send((command, namespaces, answer))
        .map_err(|_| io::Error::other("the starter is gone"))?;
    drop(starter);
    answered
        .recv()
        .map_err(|_| io::Error::other("the starter is gone"))?
}

/// Starts a command as a child of this thread, among the host's process numbers.
fn start_numbered(mut command: Command, namespaces: &Namespaces) -> io::Result<Child> {
    let Some(numbers) = &namespaces.numbers else {
        return command.spawn();
    };
    let own = File::open("/proc/thread-self/ns/pid")?;
    rustix::thread::move_into_link_name_space(numbers.as_fd(), None)?;
    let child = command.spawn();
    rustix::thread::move_into_link_name_space(own.as_fd(), None)?;
    child
}

/// A process of a host.
pub struct Proc {
    child: Child,
    line: String,
    stdout: PathBuf,
    stderr: PathBuf,
    status: Option<ExitStatus>,
}

impl Proc {
    /// What was started.
    #[must_use]
    pub fn line(&self) -> &str {
        &self.line
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its standard input, once.
    ///
    /// # Panics
    /// If it was not piped or was taken before.
    pub fn stdin(&mut self) -> std::process::ChildStdin {
        self.child.stdin.take().expect("a piped standard input")
    }

    /// Standard output until now.
    #[must_use]
    pub fn out(&self) -> String {
        read(&self.stdout)
    }

    /// Standard error until now.
    #[must_use]
    pub fn err(&self) -> String {
        read(&self.stderr)
    }

    /// Sends a signal to it alone.
    ///
    /// # Panics
    /// If it is gone.
    pub fn signal(&self, signal: Signal) {
        assert!(self.status.is_none(), "{} has ended", self.line);
        rustix::process::kill_process(self.pid(), signal)
            .unwrap_or_else(|error| panic!("{}: {error}", self.line));
    }

    /// Ends it as a crash does and waits for that.
    pub fn crash(mut self) {
        self.signal(Signal::KILL);
        self.wait();
    }

    /// Whether it has ended by now.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().expect("wait");
        }
        self.status
    }

    /// Waits until standard output satisfies `found`.
    ///
    /// # Panics
    /// If it ends or hangs before.
    pub fn wait_out<T>(&mut self, what: &str, mut found: impl FnMut(&str) -> Option<T>) -> T {
        let what = format!("{}: {what}", self.line);
        wait_for(&what, HANG, || {
            let ended = self.ended();
            let value = found(&self.out());
            assert!(
                value.is_some() || ended.is_none(),
                "{what}: ended before ({ended:?}): {}{}",
                self.out(),
                self.err()
            );
            value
        })
    }

    /// Waits until it says that it listens.
    ///
    /// # Errors
    /// What it said, if it ends or hangs before.
    pub fn listening(&mut self) -> Result<(), String> {
        let start = std::time::Instant::now();
        loop {
            if self.out().contains("listening") {
                return Ok(());
            }
            if self.ended().is_some() || start.elapsed() >= HANG {
                return Err(format!("{}: {}{}", self.line, self.out(), self.err()));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// If it hangs.
    pub fn wait(&mut self) -> ExitStatus {
        self.wait_within(HANG)
    }

    /// Waits for its end, with a guard of the caller's.
    ///
    /// # Panics
    /// If it hangs.
    pub fn wait_within(&mut self, limit: Duration) -> ExitStatus {
        let what = format!("the end of `{}`", self.line);
        wait_for(&what, limit, || self.ended())
    }

    /// Waits for its end and gives all that it said.
    ///
    /// # Panics
    /// If it hangs.
    #[must_use]
    pub fn finish(mut self) -> Ran {
        let status = self.wait();
        Ran {
            line: self.line.clone(),
            status,
            out: std::fs::read(&self.stdout).unwrap_or_default(),
            err: self.err(),
        }
    }

    /// Waits for its end and insists on success.
    ///
    /// # Panics
    /// If it fails or hangs.
    pub fn ok(self) -> Ran {
        let ran = self.finish();
        assert!(ran.status.success(), "{ran}");
        ran
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        // The group outlives its leader when that left children behind.
        let _ = rustix::process::kill_process_group(self.pid(), Signal::KILL);
        if self.status.is_none() {
            let _ = self.child.wait();
        }
    }
}

/// A process that has ended.
pub struct Ran {
    /// What was run.
    pub line: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub out: Vec<u8>,
    /// Its standard error.
    pub err: String,
}

impl Ran {
    /// Its exit code; 128 + signal if it was killed.
    #[must_use]
    pub fn code(&self) -> i32 {
        self.status
            .code()
            .unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }

    /// Standard output as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }
}

impl std::fmt::Display for Ran {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let out = String::from_utf8_lossy(&self.out[..self.out.len().min(4000)]).into_owned();
        write!(
            f,
            "`{}`: {}\nstdout: {out}\nstderr: {}",
            self.line, self.status, self.err
        )
    }
}

fn read(path: &Path) -> String {
    std::fs::read(path)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default()
}
