//! A connection as the file service sees it: frames over any pair of byte streams.
//!
//! - A frame's body is read only after its header was found acceptable.
//! - A reader can tell whether another frame has begun to arrive, so that a writer flushes before its thread goes to sleep.
//! - End of stream between two frames is an end; within a frame it is a loss.

use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::sync::Arc;

use super::wire::{self, Fault, HEADER_LEN, Message, WireError};

const READ_BUFFER: usize = 128 << 10;
const WRITE_BUFFER: usize = 64 << 10;

/// Cuts a connection from another thread: both directions end with an error.
pub type Hangup = Arc<dyn Fn() + Send + Sync>;

/// A connection: two directions and a way to cut it.
pub struct Channel {
    /// Bytes from the peer.
    pub reader: Box<dyn Read + Send>,
    /// Bytes to the peer.
    pub writer: Box<dyn Write + Send>,
    /// Cuts the connection.
    pub hangup: Hangup,
    /// Who the peer is, for messages.
    pub peer: String,
}

impl Channel {
    /// A channel over a shared stream that can be read and written by reference. `cut` must wake both directions.
    pub fn new<S>(stream: S, peer: String, cut: impl Fn(&S) + Send + Sync + 'static) -> Self
    where
        S: Send + Sync + 'static,
        for<'a> &'a S: Read + Write,
    {
        let stream = Arc::new(stream);
        // Weak: a registry that keeps the way to hang up must not keep the stream open.
        let weak = Arc::downgrade(&stream);
        Self {
            reader: Box::new(Shared(Arc::clone(&stream))),
            writer: Box::new(Shared(stream)),
            hangup: Arc::new(move || {
                if let Some(stream) = weak.upgrade() {
                    cut(&stream);
                }
            }),
            peer,
        }
    }
}

struct Shared<S>(Arc<S>);

impl<S> Read for Shared<S>
where
    for<'a> &'a S: Read,
{
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        (&*self.0).read(buf)
    }
}

impl<S> Write for Shared<S>
where
    for<'a> &'a S: Write,
{
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        (&*self.0).write(buf)
    }
    fn flush(&mut self) -> io::Result<()> {
        (&*self.0).flush()
    }
}

/// Why a session ended before its time.
#[derive(Debug)]
pub enum Broken {
    /// The connection was lost: worth another try.
    Lost(io::Error),
    /// There is no connection: worth another try if there was one before.
    NoConnection(io::Error),
    /// The peer said no.
    Refused(Fault),
    /// The peer does not keep the protocol.
    Protocol(String),
    /// Something on this side made going on impossible.
    Local(Fault),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::Lost(error)
    }
}

impl From<WireError> for Broken {
    fn from(error: WireError) -> Self {
        Self::Protocol(error.to_string())
    }
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Lost(error) => write!(f, "connection lost: {error}"),
            Self::NoConnection(error) => write!(f, "{error}"),
            Self::Refused(fault) | Self::Local(fault) => f.write_str(&fault.text),
            Self::Protocol(text) => write!(f, "protocol error: {text}"),
        }
    }
}

/// Frames in.
pub struct MessageReader {
    from: BufReader<Box<dyn Read + Send>>,
    body: Vec<u8>,
    len: usize,
}

impl MessageReader {
    /// Reads frames from this stream.
    pub fn new(from: Box<dyn Read + Send>) -> Self {
        Self {
            from: BufReader::with_capacity(READ_BUFFER, from),
            body: Vec::new(),
            len: 0,
        }
    }

    /// Whether bytes are at hand without waiting.
    pub fn has_more(&self) -> bool {
        !self.from.buffer().is_empty()
    }

    /// The next message, or `None` at the end of the stream between two frames.
    pub fn next_or_end(&mut self) -> Result<Option<Message>, Broken> {
        loop {
            match self.from.fill_buf() {
                Ok([]) => return Ok(None),
                Ok(_) => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        let mut header = [0; HEADER_LEN];
        self.from.read_exact(&mut header)?;
        let (kind, len) = wire::decode_header(&header)?;
        if self.body.len() < len {
            self.body.resize(len, 0);
        }
        self.len = len;
        self.from.read_exact(&mut self.body[..len])?;
        Ok(Some(Message::decode(kind, &self.body[..len])?))
    }

    /// The next message; an end of the stream is a loss, and the peer's `Error` a refusal.
    pub fn message(&mut self) -> Result<Message, Broken> {
        match self.next_or_end()? {
            Some(Message::Error(fault)) => Err(Broken::Refused(fault)),
            Some(message) => Ok(message),
            None => Err(Broken::Lost(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "closed by the other side",
            ))),
        }
    }

    /// The body of the message read last: the bytes of a `Data`.
    pub fn body(&self) -> &[u8] {
        &self.body[..self.len]
    }
}

/// Frames out.
pub struct MessageWriter {
    to: BufWriter<Box<dyn Write + Send>>,
    frame: Vec<u8>,
}

impl MessageWriter {
    /// Writes frames to this stream.
    pub fn new(to: Box<dyn Write + Send>) -> Self {
        Self {
            to: BufWriter::with_capacity(WRITE_BUFFER, to),
            frame: Vec::new(),
        }
    }

    /// Queues a message; [`flush`](Self::flush) before waiting for an answer.
    pub fn put(&mut self, message: &Message) -> io::Result<()> {
        self.frame.clear();
        message.encode(&mut self.frame);
        self.to.write_all(&self.frame)
    }

    /// Queues a frame that was built in place, header included.
    pub fn put_frame(&mut self, frame: &[u8]) -> io::Result<()> {
        self.to.write_all(frame)
    }

    /// Sends what is queued.
    pub fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}
