//! A connection whose peer takes nothing of what it is sent is cut off: answers that nobody reads would hold its place, and a
//! drain, for ever.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;

/// Cuts a connection off. Whoever finds first that its peer takes nothing counts it, and nobody after.
pub struct Cut {
    token: CancellationToken,
    stalled: Counter,
    is_counted: AtomicBool,
}

impl Cut {
    /// With the counter of peers that took nothing.
    #[must_use]
    pub fn new(stalled: Counter) -> Self {
        Self { token: CancellationToken::new(), stalled, is_counted: AtomicBool::new(false) }
    }

    /// The peer took nothing for too long: counts it, once, and cuts it off.
    pub fn stalled(&self) {
        if !self.is_counted.swap(true, Ordering::Relaxed) {
            self.stalled.inc();
        }
        self.token.cancel();
    }

    /// Cuts it off for another reason.
    pub fn now(&self) {
        self.token.cancel();
    }

    /// Whether it has been cut off.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Resolves once it has been cut off.
    pub async fn done(&self) {
        self.token.cancelled().await;
    }
}

/// A stream with a bound on how long one write may wait for its peer.
pub struct Patient<S> {
    stream: S,
    patience: Duration,
    cut: Arc<Cut>,
    /// Runs while a write waits.
    waits: Option<Pin<Box<Sleep>>>,
}

impl<S> Patient<S> {
    /// With so much patience, and what is told when it is over.
    pub fn new(stream: S, patience: Duration, cut: Arc<Cut>) -> Self {
        Self { stream, patience, cut, waits: None }
    }

    /// The stream, once it is used for something else.
    pub fn into_inner(self) -> S {
        self.stream
    }

    fn within_patience<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.waits = None;
            return written;
        }
        let patience = self.patience;
        let waits = self.waits.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        ready!(waits.as_mut().poll(context));
        self.cut.stalled();
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.within_patience(context, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.within_patience(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(context);
        self.within_patience(context, shut)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.within_patience(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn who_takes_nothing_is_cut_off_and_who_takes_slowly_is_not() {
        let (near, mut far) = duplex(10);
        let stalled = Counter::default();
        let cut = Arc::new(Cut::new(stalled.clone()));
        let mut near = Patient::new(near, Duration::from_millis(300), cut.clone());
        let slow = tokio::spawn(async move {
            for _ in 0..8 {
                tokio::time::sleep(Duration::from_millis(100)).await;
                far.read_exact(&mut [0; 10]).await.unwrap();
            }
            far
        });
        near.write_all(&[0; 80]).await.unwrap();
        let _far = slow.await.unwrap();
        near.write_all(&[0; 10]).await.unwrap();
        assert_eq!((stalled.get(), cut.is_done()), (0, false));
        assert_eq!(near.write_all(&[0; 10]).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!((stalled.get(), cut.is_done()), (1, true));
        cut.stalled();
        assert_eq!(stalled.get(), 1, "counted once, whoever finds it too");
    }
}
