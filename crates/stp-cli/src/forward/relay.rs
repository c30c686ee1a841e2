//! A pair of stream ends, each carried to the other: bytes, half-close and reset.
//!
//! - Nothing is lost: what was read from one end is written to the other before that end hears of a
//!   close or of a reset.
//! - A clean end is passed on as a clean end (half-close), a broken one as a reset, both ways. Who closes both directions
//!   at once, having said its last and read all that came, has ended cleanly.
//! - At most one read is kept for an end that does not take it; then its source is not read.
//! - A step is bounded: [`STEP_BYTES_MAX`] a direction.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

/// Bytes that one step carries in one direction at the most, so that every pair has its turn.
pub const STEP_BYTES_MAX: usize = 1 << 20;

/// One end of a pair: a stream socket that never blocks.
pub trait End: AsFd + Send {
    /// Reads what is there; 0 is a clean end, an error a broken one.
    fn read(&self, buf: &mut [u8]) -> io::Result<usize>;
    /// Writes what fits.
    fn write(&self, buf: &[u8]) -> io::Result<usize>;
    /// Says that no more will be written.
    fn finish(&self) -> io::Result<()>;
    /// Why it broke, if it did and nobody was told yet.
    fn take_error(&self) -> io::Result<Option<io::Error>>;
    /// Resets it: its peer sees a broken connection, now or when this end is dropped.
    fn abort(&self);
}

impl End for TcpStream {
    fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        io::Read::read(&mut &*self, buf)
    }

    fn write(&self, buf: &[u8]) -> io::Result<usize> {
        // The standard library sends with MSG_NOSIGNAL.
        io::Write::write(&mut &*self, buf)
    }

    fn finish(&self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }

    fn take_error(&self) -> io::Result<Option<io::Error>> {
        TcpStream::take_error(self)
    }

    fn abort(&self) {
        // With nothing to linger for, close sends RST. If it fails, the peer sees an ordinary close.
        let _ = rustix::net::sockopt::set_socket_linger(self, Some(Duration::ZERO));
    }
}

impl End for stp::Stream {
    fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        io::Read::read(&mut &*self, buf)
    }

    fn write(&self, buf: &[u8]) -> io::Result<usize> {
        io::Write::write(&mut &*self, buf)
    }

    fn finish(&self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }

    fn take_error(&self) -> io::Result<Option<io::Error>> {
        stp::Stream::take_error(self)
    }

    fn abort(&self) {
        // It fails only if the engine is gone, and then the stream is broken anyway.
        let _ = stp::Stream::abort(self);
    }
}

/// What a step came to.
#[derive(Debug)]
pub enum Progress {
    /// Nothing more until an end is ready.
    Idle,
    /// The turn is over, there is more to do.
    More,
    /// Both directions ended in order: drop it.
    Done,
    /// It broke, and both ends have been told: drop it.
    Broken(io::Error),
}

/// How one end's descriptor became ready.
#[derive(Clone, Copy, Debug, Default)]
pub struct Readiness {
    /// There may be something to read.
    pub readable: bool,
    /// Something may fit.
    pub writable: bool,
    /// Both directions are shut, or an error waits.
    pub hangup: bool,
}

/// From one end to the other.
#[derive(Debug, Default)]
struct Direction {
    /// Its source may have something.
    readable: bool,
    /// Its destination may take something.
    writable: bool,
    /// Read, not yet written: `pending[written..]`.
    pending: Vec<u8>,
    written: usize,
    /// Its source ended in order.
    ended: bool,
    /// The destination was told so.
    finished: bool,
}

/// An end that cannot be written to any more. What it still says is carried over, then the pair ends.
#[derive(Debug)]
struct Doom {
    end: usize,
    error: io::Error,
    /// Something that was meant for it has not reached it.
    undelivered: bool,
}

/// Two ends. Direction 0 goes from end 0 to end 1.
pub struct Pair {
    ends: [Box<dyn End>; 2],
    directions: [Direction; 2],
    doomed: Option<Doom>,
}

impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pair")
            .field("directions", &self.directions)
            .field("doomed", &self.doomed)
            .finish_non_exhaustive()
    }
}

impl Pair {
    /// Of two ends, with bytes of end 0 that were read already.
    pub fn new(ends: [Box<dyn End>; 2], already_read: Vec<u8>) -> Self {
        let ready = || Direction {
            readable: true,
            writable: true,
            ..Direction::default()
        };
        let mut directions = [ready(), ready()];
        directions[0].pending = already_read;
        Self {
            ends,
            directions,
            doomed: None,
        }
    }

    /// The descriptor of an end.
    pub fn fd(&self, end: usize) -> BorrowedFd<'_> {
        self.ends[end & 1].as_fd()
    }

    /// Notes that an end became ready; then [`Pair::step`].
    pub fn handle_ready(&mut self, end: usize, ready: Readiness) {
        let end = end & 1;
        self.directions[end].readable |= ready.readable || ready.hangup;
        self.directions[1 - end].writable |= ready.writable || ready.hangup;
        // A hang-up before we said that we are done is the other side's doing: it wants no more.
        if ready.hangup && !self.directions[1 - end].finished {
            self.doom(end, io::ErrorKind::ConnectionReset.into(), false);
        }
    }

    /// Carries what can be carried now. `scratch` is where bytes pass through.
    pub fn step(&mut self, scratch: &mut [u8]) -> Progress {
        let mut more = false;
        for from in 0..2 {
            match self.carry(from, scratch) {
                Ok(unfinished) => more |= unfinished,
                Err(error) => return self.broken(error),
            }
        }
        if let Some(Doom { end, .. }) = self.doomed {
            let direction = &self.directions[end];
            let drained = direction.pending.is_empty() && (direction.ended || !direction.readable);
            if drained && let Some(doom) = self.doomed.take() {
                if !self.is_clean(&doom, scratch) {
                    return self.broken(doom.error);
                }
                self.directions[1 - end].finished = true;
            }
        }
        if self.directions.iter().all(|direction| direction.finished) {
            return Progress::Done;
        }
        if more { Progress::More } else { Progress::Idle }
    }

    /// Resets both ends.
    pub fn abort(&self) {
        self.ends.iter().for_each(|end| end.abort());
    }

    /// One direction's turn: true if it stopped only because the turn is over.
    fn carry(&mut self, from: usize, scratch: &mut [u8]) -> io::Result<bool> {
        let to = 1 - from;
        let direction = &mut self.directions[from];
        if let Some(doom) = &mut self.doomed
            && doom.end == to
        {
            doom.undelivered |= !direction.pending.is_empty();
            direction.pending = Vec::new();
            return Ok(false);
        }
        let mut carried = 0;
        while carried < STEP_BYTES_MAX {
            if !direction.pending.is_empty() {
                if !direction.writable {
                    return Ok(false);
                }
                match self.ends[to].write(&direction.pending[direction.written..]) {
                    Ok(n) => {
                        direction.written += n;
                        carried += n;
                        if direction.written >= direction.pending.len() {
                            // Thousands of idle pairs keep no buffer.
                            direction.pending = Vec::new();
                            direction.written = 0;
                        }
                    }
                    Err(error) if again(&error) => {}
                    Err(error) if would_block(&error) => direction.writable = false,
                    // Nobody is left to carry anything to.
                    Err(error) if self.doomed.is_some() => return Err(error),
                    Err(error) => {
                        self.doom(to, error, true);
                        return Ok(true);
                    }
                }
            } else if direction.ended {
                if !direction.finished {
                    direction.finished = true;
                    if let Err(error) = self.ends[to].finish() {
                        self.doom(to, error, true);
                        return Ok(true);
                    }
                }
                return Ok(false);
            } else if direction.readable {
                match self.ends[from].read(scratch) {
                    Ok(0) => direction.ended = true,
                    Ok(n) => {
                        // Most often it fits at once, and nothing is kept.
                        let taken = self.ends[to].write(&scratch[..n]).unwrap_or(0);
                        carried += taken;
                        if taken < n {
                            direction.pending = scratch[taken..n].to_vec();
                            direction.written = 0;
                        }
                    }
                    Err(error) if again(&error) => {}
                    Err(error) if would_block(&error) => direction.readable = false,
                    Err(error) => return Err(error),
                }
            } else {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn doom(&mut self, end: usize, error: io::Error, undelivered: bool) {
        // It may have said something that nobody has noticed yet.
        self.directions[end].readable = true;
        self.doomed.get_or_insert(Doom {
            end,
            error,
            undelivered,
        });
    }

    /// Whether a doomed end went in order, as a program does that answers and closes: its own direction has ended, and there
    /// is nothing that it has not taken.
    fn is_clean(&self, doom: &Doom, scratch: &mut [u8]) -> bool {
        self.directions[doom.end].finished
            && !doom.undelivered
            && matches!(self.ends[doom.end].take_error(), Ok(None))
            && match self.ends[1 - doom.end].read(scratch) {
                Ok(n) => n == 0,
                Err(error) => would_block(&error),
            }
    }

    fn broken(&self, error: io::Error) -> Progress {
        self.abort();
        Progress::Broken(error)
    }
}

fn again(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Interrupted
}

fn would_block(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;

    /// Both ends of a TCP connection.
    fn tcp() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (near, listener.accept().unwrap().0)
    }

    /// A pair in the middle and the two programs outside, pumped by a thread until it ends.
    fn pumped() -> (TcpStream, TcpStream, std::thread::JoinHandle<Progress>) {
        let (left, inner_left) = tcp();
        let (right, inner_right) = tcp();
        for stream in [&inner_left, &inner_right] {
            stream.set_nonblocking(true).unwrap();
        }
        let pair = Pair::new([Box::new(inner_left), Box::new(inner_right)], Vec::new());
        (left, right, pump(pair))
    }

    fn pump(mut pair: Pair) -> std::thread::JoinHandle<Progress> {
        std::thread::spawn(move || {
            let mut scratch = vec![0; 64 << 10];
            let deadline = std::time::Instant::now() + Duration::from_secs(20);
            while std::time::Instant::now() < deadline {
                match pair.step(&mut scratch) {
                    Progress::Idle => {
                        for end in 0..2 {
                            use rustix::event::{PollFd, PollFlags, Timespec, poll};
                            let flags = PollFlags::IN | PollFlags::OUT;
                            let fd = pair.fd(end);
                            let mut fds = [PollFd::new(&fd, flags)];
                            let now = Timespec {
                                tv_sec: 0,
                                tv_nsec: 500_000,
                            };
                            poll(&mut fds, Some(&now)).unwrap();
                            let got = fds[0].revents();
                            pair.handle_ready(
                                end,
                                Readiness {
                                    readable: got.contains(PollFlags::IN),
                                    writable: got.contains(PollFlags::OUT),
                                    hangup: got.intersects(PollFlags::HUP | PollFlags::ERR),
                                },
                            );
                        }
                    }
                    Progress::More => {}
                    end => return end,
                }
            }
            panic!("it does not end: {pair:?}");
        })
    }

    #[test]
    fn half_close_goes_one_way_at_a_time() {
        let (mut left, mut right, pump) = pumped();
        left.write_all(b"question").unwrap();
        left.shutdown(Shutdown::Write).unwrap();
        let mut text = String::new();
        right.read_to_string(&mut text).unwrap();
        assert_eq!(text, "question");
        right.write_all(&[7; 3_000_000]).unwrap();
        drop(right);
        let mut answer = Vec::new();
        left.read_to_end(&mut answer).unwrap();
        assert_eq!(answer, [7; 3_000_000]);
        assert!(matches!(pump.join().unwrap(), Progress::Done));
    }

    #[test]
    fn who_closes_both_directions_at_once_ends_in_order() {
        use std::os::unix::net::UnixStream;

        /// A local stream: its peer's close is a hang-up at once.
        struct Local(UnixStream);
        impl AsFd for Local {
            fn as_fd(&self) -> BorrowedFd<'_> {
                self.0.as_fd()
            }
        }
        impl End for Local {
            fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
                (&self.0).read(buf)
            }
            fn write(&self, buf: &[u8]) -> io::Result<usize> {
                (&self.0).write(buf)
            }
            fn finish(&self) -> io::Result<()> {
                self.0.shutdown(Shutdown::Write)
            }
            fn take_error(&self) -> io::Result<Option<io::Error>> {
                self.0.take_error()
            }
            fn abort(&self) {}
        }

        for (reads, length) in [(true, 5_000_000), (true, 0), (false, 0)] {
            let (mut client, near) = tcp();
            let (mut program, far) = UnixStream::pair().unwrap();
            near.set_nonblocking(true).unwrap();
            far.set_nonblocking(true).unwrap();
            let pump = pump(Pair::new(
                [Box::new(near), Box::new(Local(far))],
                Vec::new(),
            ));
            client.write_all(b"question").unwrap();
            let program = std::thread::spawn(move || {
                if reads {
                    program.read_exact(&mut [0; 8]).unwrap();
                }
                while !reads && rustix::io::ioctl_fionread(&program).unwrap() < 8 {
                    std::thread::yield_now();
                }
                program.write_all(&vec![7; length]).unwrap();
            });
            let mut answer = Vec::new();
            let read = client.read_to_end(&mut answer);
            program.join().unwrap();
            let end = pump.join().unwrap();
            if reads {
                assert!(matches!(end, Progress::Done), "{end:?}");
                assert_eq!(read.unwrap(), length);
            } else {
                assert!(matches!(end, Progress::Broken(_)), "{end:?}");
                read.unwrap_err();
            }
        }
    }

    #[test]
    fn a_reset_arrives_as_a_reset_after_what_was_sent() {
        let (mut left, mut right, pump) = pumped();
        left.write_all(b"last words").unwrap();
        let mut words = [0; 10];
        right.read_exact(&mut words).unwrap();
        left.abort();
        drop(left);
        let error = right.read(&mut words).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert!(matches!(pump.join().unwrap(), Progress::Broken(_)));
    }

    #[test]
    fn a_reset_reaches_a_side_that_only_sends() {
        let (left, right, pump) = pumped();
        right.abort();
        drop(right);
        left.set_write_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let broken = loop {
            if let Err(error) = End::write(&left, &[0; 65536]) {
                break error;
            }
        };
        assert!(
            matches!(
                broken.kind(),
                io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
            ),
            "{broken}"
        );
        assert!(matches!(pump.join().unwrap(), Progress::Broken(_)));
    }

    #[test]
    fn an_answer_sent_before_a_reset_arrives() {
        let (mut left, mut right, pump) = pumped();
        left.write_all(&[1; 100_000]).unwrap();
        right.write_all(b"413 too large").unwrap();
        std::thread::sleep(Duration::from_millis(100));
        // Closing with unread bytes resets.
        drop(right);
        let mut answer = [0; 13];
        left.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"413 too large");
        assert!(matches!(pump.join().unwrap(), Progress::Broken(_)));
    }

    #[test]
    fn a_slow_reader_loses_nothing() {
        let (mut left, mut right, pump) = pumped();
        let data: Vec<u8> = (0..8_000_000u32).map(|i| (i % 251) as u8).collect();
        let copy = data.clone();
        let writer = std::thread::spawn(move || {
            left.write_all(&copy).unwrap();
        });
        std::thread::sleep(Duration::from_millis(300));
        let mut got = Vec::new();
        right.read_to_end(&mut got).unwrap();
        assert!(got == data);
        drop(right);
        writer.join().unwrap();
        assert!(matches!(pump.join().unwrap(), Progress::Done));
    }
}
