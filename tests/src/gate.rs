//! A way between two processes that can be closed, or fall silent, in one direction or both.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

/// How often it is looked whether a way has changed.
const LOOK: Duration = Duration::from_millis(10);

/// How a way is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Way {
    /// Bytes pass both ways.
    Open,
    /// Connections are ended, and none is taken.
    Closed,
    /// Connections stand, and nothing passes; what has waited passes when it is open again.
    Silent,
    /// Nothing passes from who dials to who listens.
    SilentForth,
}

/// A port in front of another one.
pub struct Gate {
    /// Where to dial, on 127.0.0.1.
    pub port: u16,
    way: Arc<AtomicU8>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Gate {
    /// An open way to a port.
    #[must_use]
    pub fn new(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let way = Arc::new(AtomicU8::new(Way::Open as u8));
        let open: Arc<Mutex<Vec<TcpStream>>> = Arc::default();
        let (its_way, its_open) = (way.clone(), open.clone());
        // It ends with the test, which is a process of its own.
        std::thread::spawn(move || {
            for dialled in listener.incoming().map_while(Result::ok) {
                if its_way.load(Ordering::SeqCst) == Way::Closed as u8 {
                    continue;
                }
                let Ok(reached) = TcpStream::connect(("127.0.0.1", target)) else { continue };
                for stream in [&dialled, &reached] {
                    stream.set_nodelay(true).unwrap();
                    its_open.lock().push(stream.try_clone().unwrap());
                }
                let forth = (dialled.try_clone().unwrap(), reached.try_clone().unwrap());
                let (forth_way, back_way) = (its_way.clone(), its_way.clone());
                std::thread::spawn(move || pass(forth, &forth_way, &[Way::Silent, Way::SilentForth]));
                std::thread::spawn(move || pass((reached, dialled), &back_way, &[Way::Silent]));
            }
        });
        Self { port, way, open }
    }

    /// Changes the way.
    pub fn set(&self, way: Way) {
        self.way.store(way as u8, Ordering::SeqCst);
        if way == Way::Closed {
            for stream in self.open.lock().drain(..) {
                // It may have ended already.
                let _ended = stream.shutdown(Shutdown::Both);
            }
        }
    }
}

fn pass((mut from, mut to): (TcpStream, TcpStream), way: &AtomicU8, silent: &[Way]) {
    let mut buffer = [0; 16 * 1_024];
    loop {
        let read = from.read(&mut buffer).unwrap_or(0);
        while silent.iter().any(|silent| way.load(Ordering::SeqCst) == *silent as u8) {
            std::thread::sleep(LOOK);
        }
        if read == 0 || to.write_all(&buffer[..read]).is_err() {
            for stream in [&from, &to] {
                let _ended = stream.shutdown(Shutdown::Both);
            }
            return;
        }
    }
}
