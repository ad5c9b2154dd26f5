//! One accepted connection.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tonic::transport::server::Connected;

use crate::authority::Rewriter;

/// How much is read at once when the bytes go through the filter.
const CHUNK: usize = 8 << 10;

/// Who is at the other end of a [`Connection`]; found in the extensions of each request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerInfo {
    /// The process, in this process's PID namespace; none if it lives outside of it.
    pub pid: Option<i32>,
    /// Its effective user when it connected.
    pub uid: u32,
    /// Its effective group when it connected.
    pub gid: u32,
}

/// An accepted connection: the bytes of a unix stream, with an `:authority` that is no host replaced by `localhost`
/// on the way in.
///
/// Clients that dial a bare socket path send that path as `:authority`, raw or percent-encoded; tonic's HTTP/2
/// library resets such requests unseen. With this in between they arrive like any other.
pub struct Connection {
    stream: UnixStream,
    rewriter: Rewriter,
    /// Read, not yet filtered.
    chunk: Box<[u8]>,
    /// Filtered, not yet given to the reader.
    ready: Vec<u8>,
    /// How much of `ready` the reader has.
    given: usize,
    ended: bool,
}

impl Connection {
    /// Wraps the server's end of a stream of which nothing was read yet.
    pub fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            rewriter: Rewriter::new(),
            chunk: vec![0; CHUNK].into_boxed_slice(),
            ready: Vec::new(),
            given: 0,
            ended: false,
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = Option<PeerInfo>;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.peer_cred().ok().map(|cred| PeerInfo { pid: cred.pid(), uid: cred.uid(), gid: cred.gid() })
    }
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if this.given < this.ready.len() {
                let count = buf.remaining().min(this.ready.len() - this.given);
                buf.put_slice(&this.ready[this.given..this.given + count]);
                this.given += count;
                return Poll::Ready(Ok(()));
            }
            this.ready.clear();
            this.given = 0;
            if this.ended || buf.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            let passing = this.rewriter.passing();
            if passing >= CHUNK {
                // A long payload goes straight to the reader.
                let room = passing.min(buf.remaining());
                let mut part = ReadBuf::new(buf.initialize_unfilled_to(room));
                ready!(Pin::new(&mut this.stream).poll_read(cx, &mut part))?;
                let count = part.filled().len();
                buf.advance(count);
                this.rewriter.skip(count);
                return Poll::Ready(Ok(()));
            }
            let mut part = ReadBuf::new(&mut this.chunk);
            ready!(Pin::new(&mut this.stream).poll_read(cx, &mut part))?;
            if part.filled().is_empty() {
                this.ended = true;
                this.rewriter.finish(&mut this.ready);
            } else {
                this.rewriter.push(part.filled(), &mut this.ready);
            }
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
