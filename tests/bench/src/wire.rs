//! What comes on a connection, counted without being understood: WebSocket frames, and answers to HTTP requests.

/// Bytes that say what a message is.
const HEAD_BYTES: usize = 160;

/// Counts what a connection brings.
pub trait Counts {
    /// Takes bytes; gives how many messages they complete.
    fn feed(&mut self, bytes: &[u8]) -> u64;
}

/// Tells where the payloads of WebSocket frames are in a stream of bytes.
#[derive(Default)]
pub struct FrameReader {
    header: Vec<u8>,
    body_left: u64,
}

impl FrameReader {
    /// Takes bytes; `on_part` gets what is payload, and whether a frame ends with it.
    pub fn feed(&mut self, mut bytes: &[u8], mut on_part: impl FnMut(&[u8], bool)) {
        while !bytes.is_empty() {
            if self.body_left > 0 {
                let take = usize::try_from(self.body_left).unwrap_or(usize::MAX).min(bytes.len());
                self.body_left -= take as u64;
                on_part(&bytes[..take], self.body_left == 0);
                bytes = &bytes[take..];
                continue;
            }
            // Frames mostly begin whole: their header is read in place.
            if self.header.is_empty() && bytes.len() >= 10 {
                let (length, header) = frame_length(bytes).unwrap_or((0, 2));
                self.body_left = length;
                bytes = &bytes[header..];
            } else {
                self.header.push(bytes[0]);
                bytes = &bytes[1..];
                let Some((length, _)) = frame_length(&self.header) else { continue };
                self.header.clear();
                self.body_left = length;
            }
            if self.body_left == 0 {
                on_part(&[], true);
            }
        }
    }
}

/// Length of the payload and of the header, once the header is whole.
fn frame_length(bytes: &[u8]) -> Option<(u64, usize)> {
    let short = u64::from(bytes.get(1)? & 0x7F);
    match short {
        126 => Some((u64::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?)), 4)),
        127 => Some((u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?), 10)),
        short => Some((short, 2)),
    }
}

/// Counts whole WebSocket frames.
#[derive(Default)]
pub struct FrameCounter(FrameReader);

impl Counts for FrameCounter {
    fn feed(&mut self, bytes: &[u8]) -> u64 {
        let mut frames = 0;
        self.0.feed(bytes, |_, ends| frames += u64::from(ends));
        frames
    }
}

/// Counts replies among the messages of Phoenix.
#[derive(Default)]
pub struct ReplyCounter {
    frames: FrameReader,
    /// First bytes of the frame under way.
    head: Vec<u8>,
}

impl Counts for ReplyCounter {
    fn feed(&mut self, bytes: &[u8]) -> u64 {
        let Self { frames, head } = self;
        let mut replies = 0;
        frames.feed(bytes, |part, ends| {
            let missing = HEAD_BYTES.saturating_sub(head.len()).min(part.len());
            head.extend_from_slice(&part[..missing]);
            if ends {
                if memchr::memmem::find(head, b"\"phx_reply\"").is_some() {
                    let head = String::from_utf8_lossy(head);
                    assert!(!head.contains("\"status\":\"error\""), "{head}");
                    replies += 1;
                }
                head.clear();
            }
        });
        replies
    }
}

/// Counts answers to HTTP requests, which must all be of success and say their length.
#[derive(Default)]
pub struct AnswerCounter {
    head: Vec<u8>,
    body_left: usize,
}

impl Counts for AnswerCounter {
    fn feed(&mut self, mut bytes: &[u8]) -> u64 {
        let mut answers = 0;
        while !bytes.is_empty() {
            if self.body_left > 0 {
                let take = self.body_left.min(bytes.len());
                self.body_left -= take;
                bytes = &bytes[take..];
                answers += u64::from(self.body_left == 0);
                continue;
            }
            let before = self.head.len();
            self.head.extend_from_slice(bytes);
            let from = before.saturating_sub(3);
            let Some(at) = memchr::memmem::find(&self.head[from..], b"\r\n\r\n") else { break };
            let end = from + at + 4;
            bytes = &bytes[end - before..];
            self.head.truncate(end);
            let head = String::from_utf8_lossy(&self.head).to_lowercase();
            assert!(head.starts_with("http/1.1 2"), "refused: {head}{}", String::from_utf8_lossy(bytes));
            let length = head.split("content-length: ").nth(1).expect("a length");
            self.body_left = length.split("\r\n").next().unwrap().parse().unwrap();
            self.head.clear();
            answers += u64::from(self.body_left == 0);
        }
        answers
    }
}

/// What a connection of a mixed fleet brings.
pub enum Either {
    Frames(FrameCounter),
    Answers(AnswerCounter),
}

impl Counts for Either {
    fn feed(&mut self, bytes: &[u8]) -> u64 {
        match self {
            Self::Frames(counter) => counter.feed(bytes),
            Self::Answers(counter) => counter.feed(bytes),
        }
    }
}
