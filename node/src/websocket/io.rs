//! Bytes in and out of one connection, without waiting, from any task: plain, or under TLS.

use std::io::{self, IoSlice, Read, Write};
use std::sync::Arc;

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
}

/// Bytes a TLS session holds that have not left.
const TLS_BUFFER_BYTES_MAX: usize = 64 * 1024;

impl Tls {
    /// From a finished handshake.
    #[must_use]
    pub fn new(tcp: TcpStream, mut session: ServerConnection) -> Self {
        session.set_buffer_limit(Some(TLS_BUFFER_BYTES_MAX));
        Self { tcp, session: Mutex::new(session) }
    }

    fn push_out(&self, session: &mut ServerConnection) -> io::Result<bool> {
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
}
