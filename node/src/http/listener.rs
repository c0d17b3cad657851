//! Accepts connections and serves HTTP/1.1 on them, within the bounds of `limits`.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::front::{self, Front};
use super::patience::{Cut, Patient};
use crate::app::App;

/// Connections waiting to be accepted.
const BACKLOG: i32 = 4_096;

/// A place among the open connections; an upgraded connection takes it along.
pub type Place = Arc<OwnedSemaphorePermit>;

/// What a request carries of its connection.
#[derive(Clone)]
pub struct Peer {
    /// Address of the other end: perhaps a proxy's.
    pub address: IpAddr,
    /// The connection's place.
    pub place: Place,
    /// Counts the connection as long as it is open.
    pub open: Arc<OpenConnection>,
    /// Cuts the connection off.
    pub cut: Arc<Cut>,
}

/// Counts a connection in the metrics until it is dropped.
pub struct OpenConnection(Arc<App>);

impl OpenConnection {
    fn new(app: Arc<App>) -> Self {
        app.metrics.connections.inc();
        Self(app)
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.metrics.connections.dec();
    }
}

/// Opens a listening socket.
///
/// # Errors
/// The address is malformed, taken, or not ours.
pub fn bind(address: &str) -> std::io::Result<TcpListener> {
    let address: SocketAddr = address.parse().map_err(|_| {
        std::io::Error::new(std::io::ErrorKind::InvalidInput, format!("{address:?} is not ADDR:PORT"))
    })?;
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(address),
        socket2::Type::STREAM,
        Some(socket2::Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Accepts until `stop`, then lets the connections finish their requests.
pub async fn serve(
    front: Arc<Front>,
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    (stop, connections): (CancellationToken, TaskTracker),
) {
    let app = front.app.clone();
    let places = Arc::new(Semaphore::new(app.config.limits.connections_max));
    loop {
        let (stream, address) = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, mostly: those who wait in the backlog are served when some are closed.
                    tracing::warn!(%error, "cannot accept");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        let from = address.ip();
        let refused = if !app.trusted_proxies.contains(from.to_canonical()) && !app.may_connect(from) {
            Some("rate")
        } else {
            None
        };
        let place = match (refused, places.clone().try_acquire_owned()) {
            (None, Ok(place)) => Arc::new(place),
            (reason, _) => {
                let reason = [("reason", reason.unwrap_or("full"))];
                app.metrics.connections_refused.get_or_create(&reason).inc();
                continue;
            }
        };
        // Answers are small and many: none of them waits for another (A4, C2).
        let _unsupported = stream.set_nodelay(true);
        let open = Arc::new(OpenConnection::new(app.clone()));
        let cut = Arc::new(Cut::new(app.core.metrics.readers_stalled.clone()));
        let peer = Peer { address: from, place, open, cut };
        connections.spawn(connection(front.clone(), stream, tls.clone(), peer, stop.clone()));
    }
}

async fn connection(
    front: Arc<Front>,
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    peer: Peer,
    stop: CancellationToken,
) {
    match tls {
        None => http(front, stream, peer, stop).await,
        Some(acceptor) => {
            let app = front.app.clone();
            let timeout = Duration::from_millis(app.config.limits.handshake_timeout_ms);
            if let Ok(Ok(stream)) = tokio::time::timeout(timeout, acceptor.accept(stream)).await {
                http(front, stream, peer, stop).await;
            } else {
                app.metrics.connections_refused.get_or_create(&[("reason", "tls")]).inc();
            }
        }
    }
}

async fn http<S>(front: Arc<Front>, stream: S, peer: Peer, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let limits = &front.app.config.limits;
    let patience = Duration::from_millis(limits.reader_stall_timeout_ms);
    let stream = TokioIo::new(Patient::new(stream, patience, peer.cut.clone()));
    let mut builder = http1::Builder::new();
    builder
        // Without a timer the header timeout does nothing (A5).
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_millis(limits.handshake_timeout_ms))
        .max_headers(limits.http_headers_max)
        .max_buf_size(limits.http_head_bytes_max);
    let cut = peer.cut.clone();
    let service = service_fn(move |request| {
        let (front, peer) = (front.clone(), peer.clone());
        async move { Ok::<_, Infallible>(front::serve(front, request, peer).await) }
    });
    let connection = builder.serve_connection(stream, service).with_upgrades();
    tokio::pin!(connection);
    // How a connection ends is its peer's business; a request that went wrong has had its answer.
    tokio::select! {
        _ended = connection.as_mut() => return,
        () = cut.done() => return,
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    tokio::select! {
        _ended = connection => {}
        () = cut.done() => {}
    }
}
