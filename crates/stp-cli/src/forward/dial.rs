//! Opening the far side of a connection, which may take a while, away from the loop that carries bytes.
//!
//! - At most [`THREADS_MAX`] attempts at the same time; what waits is bounded by the number of connections
//!   that the loop accepts.
//! - Whoever came in is always answered: with a connection, or with a refusal.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::relay::{End, Pair};
use super::remote::{Request, SERVICE_PORT};
use super::socks;
use super::spec::{StpTarget, TcpTarget};
use crate::out::say;

/// Attempts under way at the same time.
const THREADS_MAX: usize = 64;
/// Stack of a thread, in bytes: resolving a name needs most of it.
const STACK_BYTES: usize = 512 << 10;
/// How long a thread waits for another attempt to make.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a connection on the volume may take.
const STP_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a TCP connection to one address may take.
const TCP_TIMEOUT: Duration = Duration::from_secs(10);
/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 8;

/// A far side to open.
#[derive(Debug)]
pub(super) enum Job {
    /// On the volume, for a TCP client.
    Stp {
        /// Who came in.
        client: TcpStream,
        /// Where it goes.
        to: StpTarget,
        /// It waits for a SOCKS5 reply.
        socks: bool,
        /// What the stream begins with.
        token: Option<String>,
        /// What is forwarded, for messages.
        label: Arc<str>,
    },
    /// By TCP, for a stream.
    Tcp {
        /// Who came in.
        stream: stp::Stream,
        /// Where it goes.
        to: TcpTarget,
        /// What is forwarded, for messages.
        label: Arc<str>,
    },
    /// To another system's forward service, to have it listen.
    Ask {
        /// Which of ours it is for.
        remote: usize,
        /// Whom.
        system: stp::SystemName,
        /// What to say.
        request: Request,
    },
}

/// What came of a job.
#[derive(Debug)]
pub(super) enum Dialed {
    /// Both ends, ready to be carried.
    Pair(Pair, Arc<str>),
    /// The service has the request.
    Asked(usize, stp::Stream),
    /// It could not be asked.
    NotAsked(usize, io::Error),
    /// Nothing: the client was refused.
    Refused,
}

/// The threads that dial.
pub(super) struct Dialer {
    shared: Arc<Shared>,
    results: Receiver<Dialed>,
    /// Jobs given, results not yet taken.
    under_way: usize,
}

struct Shared {
    group: stp::Group,
    queue: Mutex<Queue>,
    news: Condvar,
    wake: Arc<OwnedFd>,
    results: Sender<Dialed>,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
    closed: bool,
}

impl Dialer {
    /// Results come by [`Dialer::result`]; `wake` is an eventfd that says when.
    pub(super) fn new(group: stp::Group, wake: Arc<OwnedFd>) -> Self {
        let (sender, results) = channel();
        let shared = Shared {
            group,
            queue: Mutex::default(),
            news: Condvar::new(),
            wake,
            results: sender,
        };
        Self {
            shared: Arc::new(shared),
            results,
            under_way: 0,
        }
    }

    /// Jobs whose results have not been taken.
    pub(super) fn under_way(&self) -> usize {
        self.under_way
    }

    /// Gives out a job.
    pub(super) fn dial(&mut self, job: Job) {
        self.under_way += 1;
        let mut queue = self.shared.lock();
        queue.jobs.push_back(job);
        let enough = queue.idle >= queue.jobs.len() || queue.threads >= THREADS_MAX;
        if !enough {
            queue.threads += 1;
            let shared = Arc::clone(&self.shared);
            let spawned = std::thread::Builder::new()
                .name("stp-dial".to_owned())
                .stack_size(STACK_BYTES)
                .spawn(move || shared.work());
            if let Err(error) = spawned {
                queue.threads -= 1;
                let text = format!("cannot start a thread to connect with: {error}");
                // Those that run take it in their turn; without any, nobody would.
                if queue.threads == 0
                    && let Some(job) = queue.jobs.pop_back()
                {
                    drop(queue);
                    return self
                        .shared
                        .tell(job.refuse(io::Error::new(error.kind(), text)));
                }
                tracing::warn!("{text}");
            }
        }
        drop(queue);
        self.shared.news.notify_one();
    }

    /// The next result, if one is there.
    pub(super) fn result(&mut self) -> Option<Dialed> {
        let result = self.results.try_recv().ok()?;
        self.under_way = self.under_way.saturating_sub(1);
        Some(result)
    }

    /// Takes no more jobs, and waits a moment for those under way.
    pub(super) fn close(self, at_most: Duration) {
        let deadline = Instant::now() + at_most;
        let mut queue = self.shared.lock();
        queue.closed = true;
        queue.jobs.clear();
        self.shared.news.notify_all();
        while queue.threads > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            queue = match self.shared.news.wait_timeout(queue, left) {
                Ok((queue, _)) => queue,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        while let Some(job) = self.next_job() {
            self.tell(self.dial(job));
        }
        self.lock().threads -= 1;
        self.news.notify_all();
    }

    fn tell(&self, result: Dialed) {
        if self.results.send(result).is_ok() {
            // Fails only if the counter is full, and then the loop is awake.
            let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
        }
    }

    fn next_job(&self) -> Option<Job> {
        let mut queue = self.lock();
        let mut bored = false;
        loop {
            if queue.closed {
                return None;
            }
            if let Some(job) = queue.jobs.pop_front() {
                return Some(job);
            }
            if bored {
                return None;
            }
            queue.idle += 1;
            let (again, waited) = self
                .news
                .wait_timeout(queue, IDLE_TIMEOUT)
                .unwrap_or_else(PoisonError::into_inner);
            queue = again;
            queue.idle -= 1;
            bored = waited.timed_out();
        }
    }

    fn dial(&self, job: Job) -> Dialed {
        match job {
            Job::Stp {
                client,
                to,
                socks,
                token,
                label,
            } => match self.open_stream(&to, token.as_deref()) {
                Ok(stream) => {
                    if socks {
                        // A fresh socket takes ten bytes; if not, the client is gone, as the pair will find.
                        let _ = (&client).write_all(&socks::Reply::Succeeded.bytes());
                    }
                    Dialed::Pair(
                        Pair::new([Box::new(client), Box::new(stream)], Vec::new()),
                        label,
                    )
                }
                Err(error) => refuse_client(&client, socks, &label, &error),
            },
            Job::Tcp { stream, to, label } => match connect_tcp(&to) {
                Ok(server) => Dialed::Pair(
                    Pair::new([Box::new(stream), Box::new(server)], Vec::new()),
                    label,
                ),
                Err(error) => refuse_stream(&stream, &label, &error),
            },
            Job::Ask {
                remote,
                system,
                request,
            } => {
                let to = StpTarget {
                    system,
                    port: SERVICE_PORT,
                };
                let line = String::from_utf8(request.line()).ok();
                match self.open_stream(&to, line.as_deref()) {
                    Ok(stream) => Dialed::Asked(remote, stream),
                    Err(error) => Dialed::NotAsked(remote, error),
                }
            }
        }
    }

    /// A stream that does not block, with its first bytes written.
    fn open_stream(&self, to: &StpTarget, first: Option<&str>) -> io::Result<stp::Stream> {
        let address = stp::Addr::new(to.system, to.port);
        let stream = self.group.connect_timeout(&address, STP_TIMEOUT)?;
        if let Some(first) = first {
            (&stream).write_all(first.as_bytes())?;
        }
        stream.set_nonblocking(true)?;
        Ok(stream)
    }
}

impl Job {
    /// Nobody will open its far side.
    fn refuse(self, error: io::Error) -> Dialed {
        match self {
            Self::Stp {
                client,
                socks,
                label,
                ..
            } => refuse_client(&client, socks, &label, &error),
            Self::Tcp { stream, label, .. } => refuse_stream(&stream, &label, &error),
            Self::Ask { remote, .. } => Dialed::NotAsked(remote, error),
        }
    }
}

fn refuse_client(client: &TcpStream, socks: bool, label: &str, error: &io::Error) -> Dialed {
    say(format_args!("{label}: {error}"));
    if socks {
        refuse(client, &reply_for(error).bytes());
    } else {
        End::abort(client);
    }
    Dialed::Refused
}

fn refuse_stream(stream: &stp::Stream, label: &str, error: &io::Error) -> Dialed {
    say(format_args!("{label}: {error}"));
    End::abort(stream);
    Dialed::Refused
}

/// Sends a last word and lets it arrive.
pub(super) fn refuse(client: &TcpStream, last_word: &[u8]) {
    // Closing with unread bytes would reset the connection, and the word would be lost.
    let _ = End::read(client, &mut [0; 4096]);
    let mut out = client;
    let _ = out.write_all(last_word);
    let _ = client.shutdown(std::net::Shutdown::Write);
}

fn connect_tcp(to: &TcpTarget) -> io::Result<TcpStream> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{to}: {error}"));
    let addresses = (to.host.as_str(), to.port)
        .to_socket_addrs()
        .map_err(named)?;
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses.take(ADDRESSES_MAX) {
        match TcpStream::connect_timeout(&address, TCP_TIMEOUT) {
            Ok(stream) => {
                // Small messages are batched by their sender, not by us.
                let _ = stream.set_nodelay(true);
                stream.set_nonblocking(true).map_err(named)?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(named(last))
}

/// What a SOCKS5 client is told.
fn reply_for(error: &io::Error) -> socks::Reply {
    use io::ErrorKind as Kind;
    match error.kind() {
        Kind::ConnectionRefused | Kind::ConnectionReset => socks::Reply::Refused,
        Kind::NotFound | Kind::HostUnreachable => socks::Reply::HostUnreachable,
        Kind::NotConnected | Kind::NetworkUnreachable => socks::Reply::NetworkUnreachable,
        Kind::TimedOut => socks::Reply::TimedOut,
        _ => socks::Reply::Failed,
    }
}
