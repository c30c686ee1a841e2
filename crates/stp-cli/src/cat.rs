//! `stp cat`: standard input and output over a stream.
//!
//! - The end of standard input ends our half of the stream; the end of the peer's half ends standard output.
//! - It succeeds only if both halves ended in order: what was received is then all that the peer sent, and
//!   a peer that ended its half after ours has taken what was sent. One that had ended it before may still
//!   die over what is on its way, as over TCP.
//! - Two threads with big buffers, one a direction, so that neither waits for the other.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;

use crate::out::say;
use crate::signals::EndSignals;
use crate::{CliError, Global};

/// Bytes that go through at once.
const BUFFER_BYTES: usize = 1 << 20;
/// First and longest pause between two attempts to connect.
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(1);
/// How long threads may take to end when they are told to.
const END_TIMEOUT: Duration = Duration::from_secs(10);

const EXAMPLES: &str = "\
Examples:
  stp cat -l 7000 | tar x          on beta
  tar c dir | stp cat beta:7000    on alpha
  stp cat -l 0 </dev/null          a free port, said on standard error
  ssh -o ProxyCommand='stp cat %h:22' beta      with `stp forward --expose 22=localhost:22` on beta

Standard input ends: the peer sees the end (as with nc -N), what it still sends arrives.
The peer ends: it goes on until standard input ends too, unless that is a terminal or -d is given.
Exit code 1 if the transfer is not complete: the peer died, reset the stream, or did not take everything.";

/// Options of `stp cat`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = EXAMPLES,
    override_usage = "stp cat [OPTIONS] SYSTEM:PORT\n       stp cat [OPTIONS] -l PORT"
)]
pub struct Args {
    /// Connect to this port of this system
    #[arg(
        value_name = "SYSTEM:PORT",
        required_unless_present = "listen",
        conflicts_with = "listen"
    )]
    pub address: Option<stp::Addr>,

    /// Listen on this port (0: a free one, said on standard error) and take one connection
    #[arg(short, long, value_name = "PORT")]
    pub listen: Option<u16>,

    /// Give up when no connection stands after so many seconds
    #[arg(short = 'w', long, value_name = "SECS", value_parser = seconds)]
    pub timeout: Option<Duration>,

    /// Keep trying for so many seconds while nobody listens there yet
    #[arg(long, value_name = "SECS", value_parser = seconds, conflicts_with = "listen")]
    pub retry: Option<Duration>,

    /// Don't read standard input: only receive
    #[arg(short = 'd', long)]
    pub no_stdin: bool,
}

/// Seconds with an optional fraction, more than none, up to a year.
pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    const YEAR: f64 = 366.0 * 86_400.0;
    match text.parse::<f64>() {
        Ok(value) if value > 0.0 && value <= YEAR => Ok(Duration::from_secs_f64(value)),
        _ => Err("a number of seconds, more than 0".to_owned()),
    }
}

/// What happens to the main thread.
enum News {
    /// The connection stands, or does not.
    Opened(Result<stp::Stream, CliError>),
    /// Standard input is through, or failed.
    Sent(Result<(), Failure>),
    /// The stream is through, or failed.
    Received(Result<(), Failure>),
    /// Asked to end.
    Signal(i32),
}

/// Which side of the copying failed.
enum Failure {
    Stream(io::Error),
    Stdin(io::Error),
    Stdout(io::Error),
}

/// Connects or listens, then copies.
pub fn run(global: &Global, args: Args) -> Result<(), CliError> {
    let signals = EndSignals::watch()?;
    let (sender, news) = channel();
    let told = sender.clone();
    spawn("stp-signals", move || {
        if let Some(signal) = signals.wait(None) {
            // Whoever asks twice does not want to wait for order.
            signals.restore_default();
            // Nobody listens any more if everything is over.
            let _ = told.send(News::Signal(signal));
        }
    })?;
    let stop = Stop::new()?;

    // Waiting for a connection can take for ever: it happens beside, so that a signal ends it.
    let group = global.group()?;
    let no_stdin = args.no_stdin;
    let (told, stopped) = (sender.clone(), stop.try_clone()?);
    let opening = spawn("stp-connect", move || {
        let result = open(&group, &args, &stopped);
        drop(group);
        let _ = told.send(News::Opened(result));
    })?;
    let stream = match news.recv() {
        Ok(News::Opened(stream)) => stream?,
        Ok(News::Signal(signal)) => {
            stop.set();
            join_all(vec![opening]);
            return end_by(signal);
        }
        _ => return Err(CliError::new("the connection was not made")),
    };

    let mut copying = Copying::start(stream, stop, no_stdin, sender)?;
    while !copying.is_over() {
        match news.recv() {
            Ok(News::Signal(signal)) => {
                copying.abort();
                copying.join();
                return end_by(signal);
            }
            // The peer may have said something before it broke: that still goes out.
            Ok(News::Sent(Err(Failure::Stream(error)))) => {
                copying.broken = Some(error);
                copying.sent = true;
            }
            Ok(News::Sent(Err(failure)) | News::Received(Err(failure))) => {
                return Err(copying.fail(failure));
            }
            Ok(News::Sent(Ok(()))) => copying.sent = true,
            Ok(News::Received(Ok(()))) => copying.handle_received(),
            Ok(News::Opened(_)) => {}
            Err(_) => break,
        }
    }
    if let Some(error) = copying.broken.take() {
        return Err(copying.fail(Failure::Stream(error)));
    }
    copying.join();
    Ok(())
}

/// The copying under way.
struct Copying {
    stream: stp::Stream,
    peer: String,
    stop: Stop,
    threads: Vec<JoinHandle<()>>,
    wait_for_stdin: bool,
    sent: bool,
    received: bool,
    /// Why sending ended before its time.
    broken: Option<io::Error>,
}

impl Copying {
    fn start(
        stream: stp::Stream,
        stop: Stop,
        no_stdin: bool,
        news: Sender<News>,
    ) -> Result<Self, CliError> {
        let failed =
            |error: io::Error| CliError::new(format_args!("cannot start copying: {error}"));
        let peer = stream.peer_addr().map_err(failed)?.to_string();
        let (up, down) = (
            stream.try_clone().map_err(failed)?,
            stream.try_clone().map_err(failed)?,
        );
        let stopped = stop.try_clone()?;
        let told = news.clone();
        let sender = spawn("stp-send", move || {
            let result = if no_stdin {
                Ok(())
            } else {
                send(&up, &stopped)
            };
            let result = result.and_then(|()| finish(&up));
            let _ = told.send(News::Sent(result));
        })?;
        let receiver = spawn("stp-receive", move || {
            let _ = news.send(News::Received(receive(&down)));
        })?;
        Ok(Self {
            stream,
            peer,
            stop,
            threads: vec![sender, receiver],
            wait_for_stdin: !io::stdin().is_terminal(),
            sent: false,
            received: false,
            broken: None,
        })
    }

    fn is_over(&self) -> bool {
        self.sent && self.received
    }

    /// The peer will send no more. Whoever sits at a terminal should not have to end it too.
    fn handle_received(&mut self) {
        self.received = true;
        if !self.wait_for_stdin {
            self.stop.set();
        }
    }

    fn abort(&self) {
        self.stop.set();
        // A stream that cannot be reset is broken already.
        let _ = self.stream.abort();
    }

    fn fail(self, failure: Failure) -> CliError {
        self.abort();
        let error = match failure {
            Failure::Stream(error) => CliError::new(format_args!("{error}")).remedy(format_args!(
                "the transfer with {} is not complete, send it again",
                self.peer
            )),
            Failure::Stdin(error) => CliError::new(format_args!("standard input: {error}"))
                .remedy("the transfer was cut there"),
            Failure::Stdout(error) => CliError::from_stdout(error),
        };
        self.join();
        error
    }

    fn join(self) {
        // The last one to let go of the stream has an engine in this process leave in order.
        drop(self.stream);
        join_all(self.threads);
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, CliError> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .map_err(|error| CliError::new(format_args!("cannot start a thread: {error}")))
}

/// Waits for threads that have been told to end. One that cannot (its standard output is stuck, or a
/// connection is being made) is left behind.
fn join_all(threads: Vec<JoinHandle<()>>) {
    let deadline = Instant::now() + END_TIMEOUT;
    for thread in threads {
        while !thread.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        if thread.is_finished() {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

/// Tells threads that wait to stop waiting.
struct Stop(OwnedFd);

impl Stop {
    fn new() -> Result<Self, CliError> {
        eventfd(0, EventfdFlags::CLOEXEC)
            .map(Self)
            .map_err(|error| CliError::new(format_args!("cannot make an eventfd: {error}")))
    }

    fn try_clone(&self) -> Result<Self, CliError> {
        self.0
            .try_clone()
            .map(Self)
            .map_err(|error| CliError::new(format_args!("cannot copy a descriptor: {error}")))
    }

    fn set(&self) {
        // The counter cannot be full.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Waits for something to read there, until it is set or the time is over.
    fn wait(&self, fd: Option<BorrowedFd<'_>>, until: Option<Instant>) -> Result<Waited, Errno> {
        loop {
            let left = until.map(|until| timespec(until.saturating_duration_since(Instant::now())));
            let mut watched = vec![PollFd::new(&self.0, PollFlags::IN)];
            watched.extend(fd.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
            match poll(&mut watched, left.as_ref()) {
                Ok(0) => return Ok(Waited::TimedOut),
                Ok(_) if watched[0].revents().is_empty() => return Ok(Waited::Ready),
                Ok(_) => return Ok(Waited::Stopped),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// What ended a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waited {
    Ready,
    Stopped,
    TimedOut,
}

/// Ends as the signal would have ended it, once everything is in order.
fn end_by(signal: i32) -> Result<(), CliError> {
    let _ = signal_hook::low_level::emulate_default_handler(signal);
    Err(CliError::new(format_args!("ended by signal {signal}")))
}

/// The connection.
fn open(group: &stp::Group, args: &Args, stop: &Stop) -> Result<stp::Stream, CliError> {
    let deadline = args.timeout.map(|limit| Instant::now() + limit);
    match (&args.address, args.listen) {
        (_, Some(port)) => listen(group, port, deadline, stop),
        (Some(address), None) => connect(group, address, args.retry, deadline, stop),
        (None, None) => Err(CliError::usage("neither SYSTEM:PORT nor -l PORT")
            .remedy("name where to connect to, or the port to listen on")),
    }
}

fn listen(
    group: &stp::Group,
    port: u16,
    deadline: Option<Instant>,
    stop: &Stop,
) -> Result<stp::Stream, CliError> {
    let failed = |error: io::Error| CliError::new(format_args!("cannot listen: {error}"));
    let listener = group.listen(port).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let here = listener.local_addr().map_err(failed)?;
    if port == 0 {
        say(format_args!("listening on {here}"));
    } else {
        tracing::info!("listening on {here}");
    }
    loop {
        match stop.wait(Some(listener.as_fd()), deadline) {
            Ok(Waited::Ready) => {}
            Ok(Waited::Stopped) => return Err(CliError::silent()),
            Ok(Waited::TimedOut) => {
                return Err(
                    CliError::new(format_args!("{here}: nobody connected in time"))
                        .remedy("wait longer with -w, or check the other side"),
                );
            }
            Err(error) => return Err(failed(error.into())),
        }
        match listener.accept() {
            Ok((stream, peer)) => {
                tracing::info!("connection from {peer}");
                stream.set_nonblocking(false).map_err(failed)?;
                return Ok(stream);
            }
            // Who connected went away before it was accepted.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
    }
}

fn connect(
    group: &stp::Group,
    address: &stp::Addr,
    retry: Option<Duration>,
    deadline: Option<Instant>,
    stop: &Stop,
) -> Result<stp::Stream, CliError> {
    let retry_until = retry.map(|limit| Instant::now() + limit);
    let mut pause = RETRY_MIN;
    loop {
        let result = match deadline {
            None => group.connect(address.clone()),
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                group.connect_timeout(address, left.max(Duration::from_millis(1)))
            }
        };
        let error = match result {
            Ok(stream) => return Ok(stream),
            Err(error) => error,
        };
        let later = Instant::now() + pause;
        let in_time = |until: Option<Instant>| until.is_none_or(|until| later < until);
        let worth_it = matches!(
            error.kind(),
            io::ErrorKind::ConnectionRefused
                | io::ErrorKind::NotFound
                | io::ErrorKind::HostUnreachable
                | io::ErrorKind::TimedOut
        );
        if !(worth_it && retry_until.is_some() && in_time(retry_until) && in_time(deadline)) {
            return Err(CliError::new(error));
        }
        tracing::debug!("{error}; trying again in {pause:?}");
        if stop.wait(None, Some(later)) == Ok(Waited::Stopped) {
            return Err(CliError::silent());
        }
        pause = (pause * 2).min(RETRY_MAX);
    }
}

/// Standard input to the stream, until it ends or `stop` says so.
fn send(stream: &stp::Stream, stop: &Stop) -> Result<(), Failure> {
    let stdin = io::stdin();
    let stdin = stdin.as_fd();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match stop.wait(Some(stdin), None) {
            Ok(Waited::Stopped) => return Ok(()),
            Ok(_) => {}
            Err(error) => return Err(Failure::Stdin(error.into())),
        }
        match rustix::io::read(stdin, &mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => write_all(stream, &buffer[..n])?,
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(error) => return Err(Failure::Stdin(error.into())),
        }
    }
}

fn write_all(mut stream: &stp::Stream, bytes: &[u8]) -> Result<(), Failure> {
    stream.write_all(bytes).map_err(Failure::Stream)
}

/// The end of our half. Where the peer had finished its own half before, nothing but this tells that it has
/// died since: the end would go nowhere.
fn finish(stream: &stp::Stream) -> Result<(), Failure> {
    if let Some(error) = stream.take_error().map_err(Failure::Stream)? {
        return Err(Failure::Stream(error));
    }
    stream.shutdown(Shutdown::Write).map_err(Failure::Stream)
}

/// The stream to standard output, until the peer ends it.
fn receive(mut stream: &stp::Stream) -> Result<(), Failure> {
    // A file of its own: the standard library's would look for line ends in every piece.
    let stdout = io::stdout().as_fd().try_clone_to_owned();
    let mut stdout = File::from(stdout.map_err(Failure::Stdout)?);
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => {
                // Where storage is far away, that it is full may be said no earlier than here.
                crate::sys::close(stdout.into()).map_err(Failure::Stdout)?;
                return end_stdout();
            }
            Ok(n) => stdout.write_all(&buffer[..n]).map_err(Failure::Stdout)?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Failure::Stream(error)),
        }
    }
}

/// Whoever reads our standard output learns that there will be no more, while we may still be sending.
fn end_stdout() -> Result<(), Failure> {
    let nowhere = File::options().write(true).open("/dev/null");
    let nowhere = nowhere.map_err(Failure::Stdout)?;
    rustix::stdio::dup2_stdout(&nowhere).map_err(|error| Failure::Stdout(error.into()))
}

fn timespec(duration: Duration) -> rustix::event::Timespec {
    rustix::event::Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_sane() {
        assert_eq!(seconds("1.5").unwrap(), Duration::from_millis(1500));
        for bad in ["", "0", "-1", "nan", "inf", "1e300", "x"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
