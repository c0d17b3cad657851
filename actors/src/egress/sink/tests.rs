//! A kernel that takes so many bytes and no more.

use std::sync::Arc;

use super::*;

/// A connection whose kernel takes so many bytes and no more.
#[derive(Clone, Default)]
pub(crate) struct Pipe(Arc<Mutex<(Vec<u8>, usize)>>, Arc<std::sync::atomic::AtomicBool>);

impl Pipe {
    pub(crate) fn allow(&self, bytes: usize) {
        self.0.lock().1 += bytes;
    }

    pub(crate) fn taken(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.lock().0)
    }
}

impl Transport for Pipe {
    fn try_write(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut inner = self.0.lock();
        let mut written = 0;
        for part in parts {
            let take = part.len().min(inner.1);
            inner.1 -= take;
            written += take;
            inner.0.extend_from_slice(&part[..take]);
        }
        if written == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(written) }
    }

    fn holds_back(&self) -> bool {
        self.1.load(Ordering::Relaxed)
    }
}

pub(crate) fn sink(pipe: &Pipe, queue_max: usize) -> Sink {
    let limits = Limits {
        outbound_queue_bytes_max: queue_max,
        reader_lag_bytes_max: queue_max / 2,
        ..Limits::default()
    };
    Sink::new(Box::new(pipe.clone()), SinkLimits::from(&limits))
}

#[test]
fn writes_pass_at_once_and_keep_their_order_behind_a_queue() {
    let pipe = Pipe::default();
    let sink = sink(&pipe, 1_000);
    pipe.allow(7);
    let part = |text: &'static str| Bytes::from_static(text.as_bytes());
    assert_eq!(sink.write(Class::Broadcast, &[part("hello"), part("world")]), Outcome::Taken);
    assert_eq!(sink.queued_bytes(), 3);
    pipe.allow(1);
    assert_eq!(sink.write(Class::Broadcast, &[part("!")]), Outcome::Taken);
    assert_eq!(pipe.taken(), b"hellowo", "nothing overtakes the queue");
    assert_eq!(sink.flush().unwrap(), Flushed::Blocked);
    pipe.allow(100);
    assert_eq!(sink.flush().unwrap(), Flushed::Empty);
    assert_eq!(pipe.taken(), b"rld!");
    assert_eq!((sink.queued_bytes(), sink.taken_bytes()), (0, 11));
}

#[test]
fn what_follows_a_snapshot_is_bounded_as_without_it() {
    let pipe = Pipe::default();
    let sink = sink(&pipe, 100);
    let (large, small) = ([Bytes::from(vec![b's'; 5_000])], [Bytes::from(vec![b'b'; 60])]);
    assert_eq!(sink.write(Class::Snapshot, &large), Outcome::Taken);
    assert_eq!(sink.write(Class::Snapshot, &large), Outcome::Full, "one at a time");
    assert_eq!(sink.write(Class::Broadcast, &small), Outcome::Taken);
    assert_eq!(sink.write(Class::Broadcast, &small), Outcome::Taken);
    assert_eq!((sink.backlog(), sink.write(Class::Broadcast, &small)), (120, Outcome::Full));
    assert_eq!(sink.write(Class::Stream, &small), Outcome::Full, "a stream has its log");
    pipe.allow(5_060);
    sink.flush().unwrap();
    assert_eq!((sink.queued_bytes(), sink.backlog()), (60, 60));
    assert_eq!(sink.write(Class::Snapshot, &large), Outcome::Taken);
}

#[test]
fn streams_yield_before_broadcasts_and_broadcasts_before_replies() {
    let pipe = Pipe::default();
    let sink = sink(&pipe, 100);
    let block = [Bytes::from(vec![b'x'; 51])];
    assert_eq!(sink.write(Class::Stream, &block), Outcome::Taken);
    assert_eq!(sink.write(Class::Stream, &block), Outcome::Full);
    assert_eq!(sink.write(Class::Broadcast, &block), Outcome::Taken);
    assert_eq!(sink.write(Class::Broadcast, &block), Outcome::Full);
    assert_eq!(sink.write(Class::Control, &block), Outcome::Taken);
    let reserve = [Bytes::from(vec![b'x'; OUTBOUND_RESERVE_BYTES])];
    assert_eq!(sink.write(Class::Control, &reserve), Outcome::Taken);
    assert!(!sink.is_closed());
    assert_eq!(sink.write(Class::Control, &block), Outcome::Full);
    assert!(sink.is_closed(), "a peer that does not read its replies is closed");
    assert_eq!(sink.write(Class::Control, &block), Outcome::Gone);
}

#[test]
fn a_close_frame_is_the_last_thing_written() {
    let pipe = Pipe::default();
    let sink = sink(&pipe, 100);
    assert_eq!(sink.write(Class::Control, &[Bytes::from_static(b"last words")]), Outcome::Taken);
    sink.close(CloseCode::Restart, "");
    sink.close(CloseCode::Overloaded, "too late");
    assert_eq!(sink.write(Class::Control, &[Bytes::from_static(b"x")]), Outcome::Gone);
    pipe.allow(1_000);
    assert_eq!(sink.flush().unwrap(), Flushed::Closed);
    assert_eq!(pipe.taken(), b"last words\x88\x02\x03\xF4");
}

#[test]
fn the_drained_call_comes_when_there_is_room() {
    let pipe = Pipe::default();
    let sink = sink(&pipe, 100);
    let called = Arc::new(AtomicU64::new(0));
    let count = |called: &Arc<AtomicU64>| {
        let called = called.clone();
        Box::new(move || {
            called.fetch_add(1, Ordering::Relaxed);
        })
    };
    sink.when_drained(count(&called));
    assert_eq!(called.load(Ordering::Relaxed), 1, "there is room already");
    sink.write(Class::Stream, &[Bytes::from(vec![0; 40])]);
    sink.when_drained(count(&called));
    sink.flush().unwrap();
    assert_eq!(called.load(Ordering::Relaxed), 1);
    pipe.allow(30);
    sink.flush().unwrap();
    assert_eq!(called.load(Ordering::Relaxed), 2);
}

struct Woken(std::sync::atomic::AtomicUsize);

impl std::task::Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn the_loop_is_woken_for_what_the_transport_holds_back_and_for_what_is_written_soon() {
    let (pipe, woken) = (Pipe::default(), Arc::new(Woken(std::sync::atomic::AtomicUsize::new(0))));
    let sink = sink(&pipe, 1_000);
    let waker = Waker::from(woken.clone());
    let context = Context::from_waker(&waker);
    let wakes = || woken.0.swap(0, Ordering::Relaxed);
    pipe.allow(100);
    let part = [Bytes::from_static(b"x")];
    assert_eq!(sink.poll_work(&context), Work::Nothing);
    sink.write(Class::Stream, &part);
    assert_eq!((wakes(), sink.poll_work(&context)), (0, Work::Nothing), "the kernel has it");
    pipe.1.store(true, Ordering::Relaxed);
    sink.write(Class::Stream, &part);
    assert_eq!((wakes(), sink.poll_work(&context)), (1, Work::Now), "as under TLS");
    pipe.1.store(false, Ordering::Relaxed);
    pipe.taken();
    assert_eq!(sink.poll_work(&context), Work::Nothing);
    sink.write_soon(Class::Control, &part);
    sink.write_soon(Class::Control, &part);
    assert_eq!((wakes(), sink.poll_work(&context)), (1, Work::Soon));
    assert_eq!((pipe.taken(), sink.poll_work(&context)), (vec![], Work::Now));
    assert_eq!(sink.flush().unwrap(), Flushed::Empty);
    assert_eq!(pipe.taken(), b"xx");
    sink.cork();
    sink.write(Class::Control, &part);
    assert_eq!((wakes(), pipe.taken()), (0, vec![]), "its own loop knows");
    assert!(sink.uncork());
}
