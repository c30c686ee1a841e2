//! The lane: the way of a stream's bytes past its socket, between a program's memory and an engine in the same process.
//!
//! - It is never the only way: whatever it refuses goes by the socket, and what no reader waits for is put there.
//! - Both ways together keep the order. Into the program: the engine counts what it sends into the socket, so a reader
//!   that found it empty knows that it still is. Out of it: the program counts what it writes into the socket, *after*
//!   each write, so an engine that reads the count and then finds the socket empty knows that it is until the
//!   count changes. A program whose descriptor others may write to uses the socket alone.

use std::sync::Arc;

use super::StreamToken;
pub use super::bell::Bell;

/// What a program writes.
#[derive(Clone, Copy, Debug)]
pub struct Write<'a> {
    /// Its stream.
    pub token: StreamToken,
    /// All of it, or what is left.
    pub bytes: &'a [u8],
    /// How often the program has written into the socket itself.
    pub written: u64,
    /// Rings when there is room again.
    pub bell: &'a Arc<Bell>,
}

impl Write<'_> {
    /// What is left of it when `done` bytes were taken.
    pub(crate) fn after(self, done: usize) -> Self {
        Self {
            bytes: &self.bytes[done..],
            ..self
        }
    }
}

/// A program's stream that is closed.
#[derive(Clone, Copy, Debug)]
pub struct Close {
    /// Which.
    pub token: StreamToken,
    /// How often the program has written into the socket itself.
    pub written: u64,
    /// It has read the socket to its end.
    pub read: bool,
}

/// What came of [`Lane::put`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// All bytes are the engine's.
    All,
    /// So many are; the bell rings when there may be room for more. It has not rung since `ticket`.
    Full {
        /// How many.
        taken: usize,
        /// For [`Bell::wait`].
        ticket: u32,
    },
    /// The lane is not to be used now: by the socket.
    Refused,
}

impl Put {
    /// What came of a write of which `done` bytes were taken before.
    pub(crate) fn after(self, done: usize, bell: &Bell) -> Self {
        match self {
            Self::Full { taken, ticket } => Self::Full {
                taken: done + taken,
                ticket,
            },
            // What was taken must be told; the next try is refused at once.
            Self::Refused if done > 0 => {
                let ticket = bell.ticket();
                bell.ring();
                Self::Full {
                    taken: done,
                    ticket,
                }
            }
            Self::All | Self::Refused => self,
        }
    }
}

/// What came of [`Lane::take`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Got {
    /// So many bytes, at least one.
    Bytes(usize),
    /// The socket had something.
    Socket,
    /// Nothing: by the socket.
    Nothing,
}

/// The lanes of an engine in this process.
pub trait Lane {
    /// Takes bytes that a program writes. If the caller `waits`, its thread drives the engine for a moment until there is
    /// room, where that helps.
    fn put(&self, write: Write<'_>, waits: bool) -> Put;

    /// Moves what has arrived into a program's memory. `socket` receives from the socket, without waiting, and says
    /// whether there was anything, an end or an error included; it is asked first wherever it may have something. If
    /// the caller `waits`, its thread drives the engine for a moment, where that helps, and is told by the socket from
    /// then on.
    fn take(
        &self,
        token: StreamToken,
        into: &mut [u8],
        waits: bool,
        socket: &mut dyn FnMut(&mut [u8]) -> bool,
    ) -> Got;

    /// The program is about to close the descriptor of a stream whose clean end it has announced, and nobody else has it:
    /// the engine need not wait to hear of it from the kernel.
    fn close(&self, close: Close);

    /// Everything that has arrived, or will, goes into the socket at once, `from_now_on` or this once: somebody may
    /// look at it there.
    fn publish(&self, token: StreamToken, from_now_on: bool);

    /// So many bytes were written into a stream's socket: the engine's thread may be away.
    fn socket_used(&self, bytes: usize);
}

/// Who waits; its end rings the bell, so that nobody waits for a stream that is gone.
#[derive(Debug)]
pub(crate) struct Ringer(Arc<Bell>);

impl Ringer {
    pub(crate) fn new(bell: &Arc<Bell>) -> Self {
        Self(Arc::clone(bell))
    }

    pub(crate) fn is_for(&self, bell: &Arc<Bell>) -> bool {
        Arc::ptr_eq(&self.0, bell)
    }
}

impl Drop for Ringer {
    fn drop(&mut self) {
        self.0.ring();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;
    use std::time::Duration;

    #[test]
    fn a_bell_that_has_rung_is_not_waited_for() {
        let bell = Arc::new(Bell::default());
        let ticket = bell.ticket();
        drop(Ringer::new(&bell));
        assert_eq!(bell.wait(ticket, None), Ok(()));
        let short = Some(Duration::from_millis(1));
        assert_eq!(bell.wait(bell.ticket(), short), Err(Errno::TIMEDOUT));
    }
}
