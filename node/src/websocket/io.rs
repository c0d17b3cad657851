//! Bytes in and out of one connection, without waiting, from any task: plain, or under TLS.

use std::io::{self, IoSlice, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use muster_actors::egress::Transport;
use parking_lot::Mutex;
use rustls::ServerConnection;
use tokio::net::TcpStream;

/// A connection's bytes.
pub trait Io: Send + Sync + 'static {
    /// Reads what is there.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is; `Ok(0)` means the peer is done.
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Writes what the kernel takes.
    ///
    /// # Errors
    /// `WouldBlock` when it takes nothing.
    fn try_write(&self, parts: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Brings out what was taken but has not left; whether all of it has.
    ///
    /// # Errors
    /// The connection is dead.
    fn flush(&self) -> io::Result<bool> {
        Ok(true)
    }

    /// Whether something was taken but has not left.
    fn holds_back(&self) -> bool {
        false
    }

    /// Says that nothing more will be written.
    fn shut(&self);

    /// The socket below, for readiness.
    fn tcp(&self) -> &TcpStream;
}

/// A connection without TLS.
pub struct Plain(pub TcpStream);

impl Io for Plain {
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buffer)
    }

    fn try_write(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        match parts {
            [one] => self.0.try_write(one),
            many => self.0.try_write_vectored(many),
        }
    }

    fn shut(&self) {
        shut_write(&self.0);
    }

    fn tcp(&self) -> &TcpStream {
        &self.0
    }
}

fn shut_write(tcp: &TcpStream) {
    // A peer that has gone needs no goodbye.
    let _gone = socket2::SockRef::from(tcp).shutdown(std::net::Shutdown::Write);
}

/// A connection under TLS. The session is driven here rather than by a stream type, so that whoever has a frame can
/// write it, as for a plain connection.
pub struct Tls {
    tcp: TcpStream,
    session: Mutex<ServerConnection>,
    /// Whether the session holds bytes that the kernel did not take.
    holds_back: AtomicBool,
}

/// Bytes a TLS session holds that have not left.
const TLS_BUFFER_BYTES_MAX: usize = 64 * 1024;

impl Tls {
    /// From a finished handshake.
    #[must_use]
    pub fn new(tcp: TcpStream, mut session: ServerConnection) -> Self {
        session.set_buffer_limit(Some(TLS_BUFFER_BYTES_MAX));
        Self { tcp, session: Mutex::new(session), holds_back: AtomicBool::new(false) }
    }

    fn push_out(&self, session: &mut ServerConnection) -> io::Result<bool> {
        let out = self.push_while_taken(session);
        self.holds_back.store(matches!(out, Ok(false)), Ordering::Release);
        out
    }

    fn push_while_taken(&self, session: &mut ServerConnection) -> io::Result<bool> {
        while session.wants_write() {
            match session.write_tls(&mut Nonblocking(&self.tcp)) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

impl Io for Tls {
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut session = self.session.lock();
        loop {
            match session.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // A peer that closes without saying so is as closed as one that does.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                done => return done,
            }
            if session.read_tls(&mut Nonblocking(&self.tcp))? == 0 {
                return Ok(0);
            }
            session
                .process_new_packets()
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        }
    }

    fn try_write(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut session = self.session.lock();
        self.push_out(&mut session)?;
        let written = session.writer().write_vectored(parts)?;
        self.push_out(&mut session)?;
        if written == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(written) }
    }

    fn flush(&self) -> io::Result<bool> {
        self.push_out(&mut self.session.lock())
    }

    fn holds_back(&self) -> bool {
        self.holds_back.load(Ordering::Acquire)
    }

    fn shut(&self) {
        let mut session = self.session.lock();
        session.send_close_notify();
        // As for a plain connection: a peer that has gone needs no goodbye.
        let _gone = self.push_out(&mut session);
        shut_write(&self.tcp);
    }

    fn tcp(&self) -> &TcpStream {
        &self.tcp
    }
}

struct Nonblocking<'a>(&'a TcpStream);

impl Read for Nonblocking<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buffer)
    }
}

impl Write for Nonblocking<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.0.try_write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The way out of a connection, for its sink.
pub struct WayOut(pub Arc<dyn Io>);

impl Transport for WayOut {
    fn try_write(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write(parts)
    }

    fn holds_back(&self) -> bool {
        self.0.holds_back()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    use super::*;

    #[tokio::test]
    async fn what_tls_took_and_the_kernel_did_not_is_held_back_until_it_is_flushed() {
        let rcgen::CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(["localhost".into()]).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::Pkcs8(signing_key.serialize_der().into());
        let provider = crate::tls::provider();
        let server = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)
            .unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(cert.der().clone()).unwrap();
        let client = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let connecting = TlsConnector::from(Arc::new(client)).connect("localhost".try_into().unwrap(), tcp);
        let acceptor = TlsAcceptor::from(Arc::new(server));
        let accepting = async { acceptor.accept(listener.accept().await.unwrap().0).await };
        let (peer, accepted) = tokio::join!(connecting, accepting);
        let (mut peer, (tcp, session)) = (peer.unwrap(), accepted.unwrap().into_inner());
        let tls = Tls::new(tcp, session);
        assert!(!tls.holds_back());
        let mut written = 0;
        while !tls.holds_back() {
            written += tls.try_write(&[IoSlice::new(&[7; 5_000])]).unwrap();
        }
        let reading = tokio::spawn(async move {
            let mut read = vec![0; written];
            peer.read_exact(&mut read).await.map(|count| (count, peer))
        });
        while !tls.flush().unwrap() {
            tls.tcp().writable().await.unwrap();
        }
        assert!(!tls.holds_back());
        assert_eq!(reading.await.unwrap().unwrap().0, written);
    }
}
