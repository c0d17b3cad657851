//! Counts what a connection brings, and sees that it comes in order: the chunks of each stream, and the numbers that messages
//! about each task begin with.

use memchr::memmem;
use muster_protocol::ids::TaskId;

use super::wire::{AnswerCounter, Counts, FrameReader};

/// Bytes that say what a frame is, and which of its kind.
const HEAD_BYTES: usize = 512;
const ID_BYTES: usize = 36;

/// See the module.
#[derive(Default)]
pub struct Ordered {
    frames: FrameReader,
    /// First bytes of the frame under way.
    head: Vec<u8>,
    /// The last number of each task's chunks or messages.
    last: Vec<(TaskId, u64)>,
    /// Whether replies are counted, too.
    counts_replies: bool,
}

impl Ordered {
    /// Of one that reads: what it is told is counted.
    pub fn reader() -> Self {
        Self::default()
    }

    /// Of one that emits: answers are counted, too.
    pub fn emitter() -> Self {
        Self { counts_replies: true, ..Self::default() }
    }

    fn end_frame(&mut self) -> bool {
        let head = std::mem::take(&mut self.head);
        let numbered = if memmem::find(&head, b"\"stream.chunk\"").is_some() {
            after(&head, b"task_stream:").zip(after(&head, b"\"seq\":"))
        } else if memmem::find(&head, b"\"new_message\"").is_some() {
            after(&head, b"\"task_id\":\"").zip(after(&head, b"\"content\":\"#"))
        } else {
            let is_reply = memmem::find(&head, b"\"phx_reply\"").is_some();
            assert!(!is_reply || is_ok(&head), "{}", String::from_utf8_lossy(&head));
            self.head = reused(head);
            return is_reply && self.counts_replies;
        };
        let Some((task, number)) = numbered else { panic!("{}", String::from_utf8_lossy(&head)) };
        let task: TaskId = std::str::from_utf8(&task[..ID_BYTES]).unwrap().parse().unwrap();
        let number = number.iter().take_while(|byte| byte.is_ascii_digit());
        let number = number.fold(0, |number, digit| number * 10 + u64::from(digit - b'0'));
        match self.last.iter_mut().find(|(known, _)| *known == task) {
            Some((_, last)) => {
                assert_eq!(number, *last + 1, "one of {task} is missing, or came out of order");
                *last = number;
            }
            None => {
                assert_eq!(number, 1, "the first of {task} is missing");
                self.last.push((task, number));
            }
        }
        self.head = reused(head);
        true
    }
}

fn reused(mut buffer: Vec<u8>) -> Vec<u8> {
    buffer.clear();
    buffer
}

fn is_ok(head: &[u8]) -> bool {
    memmem::find(head, b"\"status\":\"ok\"").is_some()
}

fn after<'a>(head: &'a [u8], pattern: &[u8]) -> Option<&'a [u8]> {
    memmem::find(head, pattern).map(|at| &head[at + pattern.len()..])
}

impl Counts for Ordered {
    fn feed(&mut self, bytes: &[u8]) -> u64 {
        let mut frames = std::mem::take(&mut self.frames);
        let mut counted = 0;
        frames.feed(bytes, |part, ends| {
            let missing = HEAD_BYTES.saturating_sub(self.head.len()).min(part.len());
            self.head.extend_from_slice(&part[..missing]);
            if ends {
                counted += u64::from(self.end_frame());
            }
        });
        self.frames = frames;
        counted
    }
}

/// What a connection of a fleet brings that reads on WebSockets and posts by HTTP.
pub enum Brought {
    Ordered(Ordered),
    Answers(AnswerCounter),
}

impl Counts for Brought {
    fn feed(&mut self, bytes: &[u8]) -> u64 {
        match self {
            Self::Ordered(counter) => counter.feed(bytes),
            Self::Answers(counter) => counter.feed(bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TASK: &str = "01234567-89ab-7def-8123-456789abcdef";

    fn chunk(seq: u64) -> Vec<u8> {
        let text = format!(r#"["1",null,"task_stream:{TASK}","stream.chunk",{{"seq":{seq},"content":"x"}}]"#);
        let mut frame = vec![0x81, u8::try_from(text.len()).unwrap()];
        frame.extend_from_slice(text.as_bytes());
        frame
    }

    #[test]
    fn what_comes_in_order_is_counted() {
        let mut reader = Ordered::reader();
        assert_eq!(reader.feed(&[chunk(1), chunk(2)].concat()), 2);
        assert_eq!(reader.feed(&chunk(3)), 1);
    }

    #[test]
    #[should_panic(expected = "missing")]
    fn what_is_missing_is_seen() {
        Ordered::reader().feed(&[chunk(1), chunk(3)].concat());
    }

    #[test]
    #[should_panic(expected = "out of order")]
    fn what_comes_twice_is_seen() {
        Ordered::reader().feed(&[chunk(1), chunk(1)].concat());
    }
}
