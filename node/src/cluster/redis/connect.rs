//! How Redis is reached: address and credentials from the URL, TLS, and a bound on what one answer may take.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, ConnectionAddr, IntoConnectionInfo, ProtocolVersion, RedisConnectionInfo,
};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use crate::cluster::stream::Io;
use crate::config::{ClusterConfig, ConfigError};
use crate::tls;

/// How long it may take until a connection can be used.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Where Redis is.
enum Address {
    Tcp(String, u16),
    Tls(String, u16, TlsConnector),
    Unix(PathBuf),
}

/// Where Redis is, and with which credentials. There is nothing that shows the latter.
pub struct Server {
    address: Address,
    info: RedisConnectionInfo,
    timeout: Duration,
    answer_bytes_max: usize,
}

/// A connection, with the task that has to run for it.
pub type Opened = (MultiplexedConnection, Pin<Box<dyn Future<Output = ()> + Send>>);

impl Server {
    /// Reads the settings. `answer_bytes_max` is what one message of Redis may take; it has `timeout` to answer.
    ///
    /// # Errors
    /// They cannot be used; what is said holds nothing of the URL.
    pub fn new(
        config: &ClusterConfig,
        url: &str,
        timeout: Duration,
        answer_bytes_max: usize,
    ) -> Result<Self, ConfigError> {
        let refused = |problem: &str| ConfigError(format!("cluster.redis_url: {problem}"));
        let info = url.into_connection_info().map_err(|_| {
            refused("must be redis://USER:PASSWORD@HOST:PORT, rediss://… for TLS, or redis+unix:///PATH")
        })?;
        let address = match info.addr() {
            ConnectionAddr::Tcp(host, port) => Address::Tcp(host.clone(), *port),
            ConnectionAddr::TcpTls { host, port, insecure: false, .. } => {
                let connector = TlsConnector::from(Arc::new(client_config(config.redis_ca.as_deref())?));
                Address::Tls(host.clone(), *port, connector)
            }
            ConnectionAddr::TcpTls { .. } => {
                return Err(refused(
                    "TLS without a look at the certificate is none; cluster.redis_ca trusts your own",
                ));
            }
            ConnectionAddr::Unix(path) => Address::Unix(path.clone()),
            _ => return Err(refused("an address of an unknown kind")),
        };
        // Messages come between answers, over one connection.
        let info = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3).set_skip_set_lib_name();
        Ok(Self { address, info, timeout, answer_bytes_max })
    }

    /// Opens a connection; what Redis says by itself goes to `pushed`. Whoever takes a message, or an answer, sets `unread`
    /// to 0.
    ///
    /// # Errors
    /// It cannot be reached, or it refuses; what is said holds no password.
    pub async fn open(
        &self,
        pushed: impl redis::aio::AsyncPushSender,
        unread: Arc<AtomicUsize>,
    ) -> Result<Opened, String> {
        let connecting = async {
            let io = self.stream().await.map_err(|error| error.to_string())?;
            unread.store(0, Ordering::Relaxed);
            let io = Bounded { io, unread, max: self.answer_bytes_max };
            let config =
                AsyncConnectionConfig::new().set_response_timeout(Some(self.timeout)).set_push_sender(pushed);
            let opened = MultiplexedConnection::new_with_config(&self.info, io, config).await;
            let (connection, driver) = opened.map_err(|error| self.describe(&error))?;
            let driver: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(driver);
            Ok((connection, driver))
        };
        tokio::time::timeout(CONNECT_TIMEOUT, connecting).await.map_err(|_| "no answer in time".to_owned())?
    }

    /// An error in words. Redis may quote what it was told, the password too.
    pub fn describe(&self, error: &redis::RedisError) -> String {
        let text: String = error.to_string().chars().filter(|char| !char.is_control()).take(300).collect();
        match self.info.password().filter(|password| !password.is_empty()) {
            // One that is cut off by the end of what is shown would not be found, so nothing of such an error is.
            Some(_) if text.contains("HELLO") || text.contains("AUTH") => {
                "it refuses HELLO or AUTH: Redis 6 or newer is needed, and the URL's user and password"
                    .to_owned()
            }
            Some(password) => text.replace(password, "…"),
            None => text,
        }
    }

    async fn stream(&self) -> io::Result<Io> {
        Ok(match &self.address {
            Address::Tcp(host, port) => Box::new(self.tcp(host, *port).await?),
            Address::Tls(host, port, connector) => {
                let stream = self.tcp(host, *port).await?;
                let name = ServerName::try_from(host.clone()).map_err(io::Error::other)?;
                Box::new(connector.connect(name, stream).await?)
            }
            Address::Unix(path) => Box::new(UnixStream::connect(path).await?),
        })
    }

    async fn tcp(&self, host: &str, port: u16) -> io::Result<TcpStream> {
        let stream = TcpStream::connect((host, port)).await?;
        stream.set_nodelay(true)?;
        let socket = SockRef::from(&stream);
        // The kernel counts these in seconds.
        let probe = self.timeout.max(Duration::from_secs(1));
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(probe).with_interval(probe))?;
        socket.set_tcp_user_timeout(Some(self.timeout))?;
        Ok(stream)
    }
}

fn client_config(ca: Option<&Path>) -> Result<ClientConfig, ConfigError> {
    let refused = |problem: String| ConfigError(format!("cluster.redis_ca: {problem}"));
    let roots = match ca {
        Some(file) => tls::trusted(file).map_err(refused)?,
        None => {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err(refused("needed where the machine itself trusts no certificate".into()));
            }
            roots
        }
    };
    let builder = ClientConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| ConfigError(error.to_string()))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// A stream that breaks when more is read than may belong to one message: the library gathers a message, of whatever
/// length Redis announces, before anybody can look at it.
struct Bounded {
    io: Io,
    /// Bytes read since a message or an answer was last complete.
    unread: Arc<AtomicUsize>,
    max: usize,
}

impl AsyncRead for Bounded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.unread.load(Ordering::Relaxed) > self.max {
            let problem = "a message is larger than any between nodes can be";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, problem)));
        }
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buffer);
        self.unread.fetch_add(buffer.filled().len() - before, Ordering::Relaxed);
        polled
    }
}

impl AsyncWrite for Bounded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
