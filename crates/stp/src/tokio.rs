//! Listeners and streams on tokio's reactor.
//!
//! - The descriptor is non-blocking from here on, for every clone of it.
//! - Dropping a future cancels it; no byte is taken or lost by that.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

use crate::addr::{Addr, ToAddr};
use crate::group::Group;

/// Puts a descriptor on the current runtime's reactor.
#[allow(
    deprecated,
    reason = "sound here: a stream or listener owns its descriptor for its whole life"
)]
fn watch<T: AsRawFd>(owner: T) -> io::Result<AsyncFd<T>> {
    AsyncFd::new(owner)
}

/// A stream that implements `AsyncRead` and `AsyncWrite`.
#[derive(Debug)]
pub struct Stream {
    inner: AsyncFd<crate::Stream>,
}

impl Stream {
    /// Puts a stream on the current runtime's reactor.
    pub fn new(stream: crate::Stream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            inner: watch(stream)?,
        })
    }

    /// Connects, on a thread of the runtime's blocking pool.
    pub async fn connect(group: &Group, addr: impl ToAddr) -> io::Result<Self> {
        let (group, addr) = (group.clone(), addr.to_addr()?);
        let connected = ::tokio::task::spawn_blocking(move || group.connect(addr)).await;
        Self::new(connected.map_err(io::Error::other)??)
    }

    /// The far end.
    pub fn peer_addr(&self) -> io::Result<Addr> {
        self.inner.get_ref().peer_addr()
    }

    /// This end.
    pub fn local_addr(&self) -> io::Result<Addr> {
        self.inner.get_ref().local_addr()
    }

    /// The stream itself, without its async coat; non-blocking still.
    pub fn get_ref(&self) -> &crate::Stream {
        self.inner.get_ref()
    }

    /// Back to the stream, blocking again.
    pub fn into_std(self) -> io::Result<crate::Stream> {
        let stream = self.inner.into_inner();
        stream.set_nonblocking(false)?;
        Ok(stream)
    }

    /// Waits for bytes and reads them without taking them out.
    pub async fn peek(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.inner
            .async_io(Interest::READABLE, |stream| stream.peek(buf))
            .await
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        use std::io::Read;
        loop {
            let mut guard = ready!(self.inner.poll_read_ready(cx))?;
            let unfilled = buf.initialize_unfilled();
            match guard.try_io(|inner| inner.get_ref().read(unfilled)) {
                Ok(Ok(n)) => {
                    buf.advance(n);
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(e)) => return Poll::Ready(Err(e)),
                Err(_would_block) => {}
            }
        }
    }
}

impl Stream {
    fn poll_write_with(
        &self,
        cx: &mut Context<'_>,
        mut write: impl FnMut(&crate::Stream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.inner.poll_write_ready(cx))?;
            match guard.try_io(|inner| write(inner.get_ref())) {
                Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(done) => return Poll::Ready(done),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        use std::io::Write;
        self.poll_write_with(cx, |mut stream| stream.write(buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        use std::io::Write;
        self.poll_write_with(cx, |mut stream| stream.write_vectored(bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(match self.inner.get_ref().shutdown(Shutdown::Write) {
            Err(e) if e.kind() == io::ErrorKind::NotConnected => Ok(()),
            done => done,
        })
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

impl AsRawFd for Stream {
    fn as_raw_fd(&self) -> RawFd {
        self.inner.as_raw_fd()
    }
}

/// A listener whose `accept` is a future.
#[derive(Debug)]
pub struct Listener {
    inner: AsyncFd<crate::Listener>,
}

impl Listener {
    /// Puts a listener on the current runtime's reactor.
    pub fn new(listener: crate::Listener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self {
            inner: watch(listener)?,
        })
    }

    /// Listens, on a thread of the runtime's blocking pool.
    pub async fn bind(group: &Group, port: u16) -> io::Result<Self> {
        let group = group.clone();
        let listener = ::tokio::task::spawn_blocking(move || group.listen(port)).await;
        Self::new(listener.map_err(io::Error::other)??)
    }

    /// Where it listens.
    pub fn local_addr(&self) -> io::Result<Addr> {
        self.inner.get_ref().local_addr()
    }

    /// Waits for the next connection.
    pub async fn accept(&self) -> io::Result<(Stream, Addr)> {
        let (stream, peer) = self
            .inner
            .async_io(Interest::READABLE, |listener| listener.accept())
            .await?;
        Ok((Stream::new(stream)?, peer))
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}
