//! Long-polling: the same messages as over a WebSocket, fetched by GET and brought by POST (phoenix.md §5).
//!
//! What leaves a session is encoded as for a WebSocket, so that one encoding serves both; here the messages are taken
//! back out of their frames and put into an answer. Pure: what is a session's token, how a POST is read, how an answer
//! is written, and how long a session lives.

use std::borrow::Cow;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use subtle::ConstantTimeEq;

use super::handshake::BASE64;
use crate::websocket::encoder::{self, Frame};
use crate::websocket::{CloseCode, Opcode, ProtocolError};

/// Header that may carry the token instead of the parameter `token`; it goes before.
pub const TOKEN_HEADER: &str = "x-phoenix-longpoll-token";
/// Header in which clients show the credential that a WebSocket shows as a sub-protocol: as it is, not in base64.
pub const AUTH_TOKEN_HEADER: &str = "x-phoenix-authtoken";
/// Content type of a POST with a message on each line.
pub const LINES_TYPE: &str = "application/x-ndjson";

/// Finds a session.
pub type SessionId = [u8; 16];

/// What names a session and proves the right to it: 128 random bits to find it by, and 128 that are compared in constant
/// time.
#[derive(Clone)]
pub struct Token {
    id: SessionId,
    secret: [u8; 16],
}

impl Token {
    /// From fresh random bytes.
    #[must_use]
    pub fn generate(entropy: [u8; 32]) -> Self {
        let mut token = Self { id: [0; 16], secret: [0; 16] };
        token.id.copy_from_slice(&entropy[..16]);
        token.secret.copy_from_slice(&entropy[16..]);
        token
    }

    /// Reads a token that a client shows; `None` when it is none of ours.
    #[must_use]
    pub fn presented(text: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        // A longer one does not fit, which is an error.
        let read = URL_SAFE_NO_PAD.decode_slice(text, &mut bytes).ok()?;
        (read == bytes.len()).then(|| Self::generate(bytes))
    }

    /// Which session it is for.
    #[must_use]
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// Whether it is this session's.
    #[must_use]
    pub fn matches(&self, presented: &Self) -> bool {
        (self.id.ct_eq(&presented.id) & self.secret.ct_eq(&presented.secret)).into()
    }

    /// As clients keep it.
    #[must_use]
    pub fn reveal(&self) -> String {
        URL_SAFE_NO_PAD.encode([self.id, self.secret].concat())
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Takes the session's token out of a query, where clients put it behind their own parameters: one of those may be called
/// `token` too, and must still be found there.
#[must_use]
pub fn split_query(query: &str) -> (Option<Token>, Cow<'_, str>) {
    let segments: Vec<&str> = query.split('&').collect();
    let found = segments.iter().enumerate().rev().find_map(|(at, segment)| {
        let text = segment.strip_prefix("token=")?;
        Some((at, Token::presented(text)?))
    });
    match found {
        None => (None, Cow::Borrowed(query)),
        Some((at, token)) => {
            let rest: Vec<&str> = [&segments[..at], &segments[at + 1..]].concat();
            (Some(token), Cow::Owned(rest.join("&")))
        }
    }
}

/// How the body of a POST is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyForm {
    /// A message on each line.
    Lines,
    /// One text message.
    Whole,
}

impl BodyForm {
    /// By content type; parameters of it (`; charset=…`) change nothing.
    #[must_use]
    pub fn of(content_type: Option<&str>) -> Self {
        let essence = content_type.and_then(|value| value.split(';').next()).unwrap_or_default().trim();
        if essence.eq_ignore_ascii_case(LINES_TYPE) { Self::Lines } else { Self::Whole }
    }
}

/// A client's message as it was posted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Posted<'a> {
    /// JSON.
    Text(&'a str),
    /// A binary push.
    Binary(Vec<u8>),
}

/// The messages of a POST, one after another, however many: nothing is split in advance.
///
/// Lines end with `\n` or `\r\n`; empty ones are no messages. A line that begins like JSON is text, any other the base64
/// of a binary message.
///
/// After an error comes nothing more.
pub struct PostedMessages<'a> {
    rest: &'a [u8],
    form: BodyForm,
    message_bytes_max: usize,
}

impl<'a> PostedMessages<'a> {
    /// Of a body. A message may have so many bytes.
    #[must_use]
    pub fn new(form: BodyForm, body: &'a [u8], message_bytes_max: usize) -> Self {
        Self { rest: body, form, message_bytes_max }
    }

    fn line(&mut self) -> &'a [u8] {
        let end = match self.form {
            BodyForm::Lines => memchr::memchr(b'\n', self.rest),
            BodyForm::Whole => None,
        };
        let (line, rest) = match end {
            Some(end) => (&self.rest[..end], &self.rest[end + 1..]),
            None => (self.rest, &[][..]),
        };
        self.rest = rest;
        line.trim_ascii()
    }

    fn read(&self, line: &'a [u8]) -> Result<Posted<'a>, ProtocolError> {
        let refuse = |code, reason| Err(ProtocolError { code, reason });
        let is_text = self.form == BodyForm::Whole || matches!(line, [b'[' | b'{', ..]);
        // Of base64 it is known to three bytes before it is decoded.
        let bytes = if is_text { line.len() } else { (line.len() / 4 * 3).saturating_sub(2) };
        if bytes > self.message_bytes_max {
            return refuse(CloseCode::TooBig, "message too big");
        }
        if !is_text {
            return match BASE64.decode(line) {
                Ok(bytes) if bytes.len() > self.message_bytes_max => {
                    refuse(CloseCode::TooBig, "message too big")
                }
                Ok(bytes) => Ok(Posted::Binary(bytes)),
                Err(_) => refuse(CloseCode::Undecodable, "a line that is neither JSON nor base64"),
            };
        }
        match simdutf8::basic::from_utf8(line) {
            Ok(text) => Ok(Posted::Text(text)),
            Err(_) => refuse(CloseCode::InvalidText, "text that is not UTF-8"),
        }
    }
}

impl<'a> Iterator for PostedMessages<'a> {
    type Item = Result<Posted<'a>, ProtocolError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.rest.is_empty() {
            let line = self.line();
            if line.is_empty() {
                continue;
            }
            let message = self.read(line);
            if message.is_err() {
                self.rest = &[];
            }
            return Some(message);
        }
        None
    }
}

/// What came of a request, as its JSON says it; the HTTP status is 200 for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Status {
    /// Messages are there, or were taken.
    Ok = 200,
    /// A GET has waited for nothing.
    NoMessages = 204,
    /// The connection is refused.
    Forbidden = 403,
    /// The messages of a POST were not all taken; the session has ended.
    NotTaken = 408,
    /// There is no such session; to a GET: this is a new one.
    Gone = 410,
}

/// The answer of a POST, or of a connection that is refused.
#[must_use]
pub fn bare_answer(status: Status) -> Vec<u8> {
    format!("{{\"status\":{}}}", status as u16).into_bytes()
}

/// An answer to a GET, while messages are put into it.
pub struct Answer {
    body: Vec<u8>,
    /// Bytes of the messages, as they were before they became strings of JSON.
    message_bytes: usize,
    bytes_max: usize,
}

impl Answer {
    /// With no message yet. It is full once its messages have so many bytes.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self { body: b"{\"messages\":[".to_vec(), message_bytes: 0, bytes_max }
    }

    /// Whether it holds no message.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.message_bytes == 0
    }

    /// Bytes of messages it has room for.
    #[must_use]
    pub fn room(&self) -> usize {
        self.bytes_max.saturating_sub(self.message_bytes)
    }

    fn push(&mut self, message: &[u8]) {
        // What the node writes is UTF-8.
        let text = String::from_utf8_lossy(message);
        if !self.is_empty() {
            self.body.push(b',');
        }
        let written = serde_json::to_writer(&mut self.body, text.as_ref());
        debug_assert!(written.is_ok(), "a string is always written to memory");
        self.message_bytes += message.len();
    }

    /// The body. The client shows this token with its next request.
    #[must_use]
    pub fn finish(mut self, status: Status, token: &Token) -> Vec<u8> {
        let end = format!("],\"status\":{},\"token\":\"{}\"}}", status as u16, token.reveal());
        self.body.extend_from_slice(end.as_bytes());
        self.body
    }
}

/// Frames on their way to a client, as they were written; the last one may not be whole yet.
#[derive(Debug, Default)]
pub struct Outbox {
    bytes: Vec<u8>,
    /// Where what has not been taken begins.
    at: usize,
}

impl Outbox {
    /// Adds what was written.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Bytes it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// Whether it holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether a whole message is there.
    #[must_use]
    pub fn has_message(&self) -> bool {
        let mut rest = &self.bytes[self.at..];
        while let Some((frame, payload, behind)) = split(rest) {
            if is_message(frame, payload) {
                return true;
            }
            rest = behind;
        }
        false
    }

    /// Bytes without which the last frame is not whole, as far as they are known; 0 when there is no such frame.
    #[must_use]
    pub fn missing(&self) -> usize {
        let mut rest = &self.bytes[self.at..];
        while let Some((_, _, behind)) = split(rest) {
            rest = behind;
        }
        match encoder::frame_at(rest) {
            _ if rest.is_empty() => 0,
            Some(frame) => frame.header_bytes + frame.payload_bytes - rest.len(),
            None => encoder::HEADER_BYTES_MAX - rest.len(),
        }
    }

    /// Moves whole messages into the answer until it is full. What is no text (a close, a pong, a binary message, which
    /// JSON cannot carry) is left out, and keeps no other message back.
    pub fn fill(&mut self, answer: &mut Answer) {
        while answer.room() > 0 {
            let Some((frame, payload, _)) = split(&self.bytes[self.at..]) else { break };
            if is_message(frame, payload) {
                answer.push(payload);
            }
            self.at += frame.header_bytes + frame.payload_bytes;
        }
        if self.is_empty() {
            // A session that waits holds no buffer.
            *self = Self::default();
        } else if self.at > self.bytes.len() / 2 {
            self.bytes.drain(..self.at);
            self.at = 0;
        }
    }
}

/// The whole frame in front: what it is, its payload, and what is behind it.
fn split(bytes: &[u8]) -> Option<(Frame, &[u8], &[u8])> {
    let frame = encoder::frame_at(bytes)?;
    let (whole, behind) = bytes.split_at_checked(frame.header_bytes + frame.payload_bytes)?;
    Some((frame, &whole[frame.header_bytes..], behind))
}

fn is_message(frame: Frame, payload: &[u8]) -> bool {
    frame.opcode == Opcode::Text && !payload.is_empty()
}

/// How long a session lives: as long as a GET waits, and one and a half windows longer.
#[derive(Debug)]
pub struct Lifetime {
    /// How long a GET waits, in milliseconds.
    window_ms: u64,
    /// GETs so far: the newest counts.
    polls: u64,
    waiting: bool,
    /// When the last GET ended, or the session began; monotonic milliseconds.
    since_ms: u64,
}

/// One GET of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Poll(u64);

impl Lifetime {
    /// Of a session that begins now.
    #[must_use]
    pub fn new(window_ms: u64, now_ms: u64) -> Self {
        Self { window_ms, polls: 0, waiting: false, since_ms: now_ms }
    }

    /// A GET begins; one that waits already is not the newest any more.
    pub fn begin(&mut self) -> Poll {
        self.polls += 1;
        self.waiting = true;
        Poll(self.polls)
    }

    /// Whether this GET may take messages.
    #[must_use]
    pub fn is_newest(&self, poll: Poll) -> bool {
        self.polls == poll.0
    }

    /// A GET has been answered, or was given up.
    pub fn end(&mut self, poll: Poll, now_ms: u64) {
        if self.is_newest(poll) {
            self.waiting = false;
            self.since_ms = now_ms;
        }
    }

    /// After how many milliseconds to ask again; 0 when it is over.
    #[must_use]
    pub fn left_ms(&self, now_ms: u64) -> u64 {
        let patience_ms = self.window_ms + self.window_ms.div_ceil(2);
        if self.waiting {
            return patience_ms;
        }
        patience_ms.saturating_sub(now_ms.saturating_sub(self.since_ms))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(form: BodyForm, body: &[u8]) -> Vec<Result<Posted<'_>, CloseCode>> {
        PostedMessages::new(form, body, 64).map(|message| message.map_err(|error| error.code)).collect()
    }

    fn token() -> Token {
        Token::generate(std::array::from_fn(|n| u8::try_from(n).unwrap_or(0)))
    }

    fn answered(outbox: &mut Outbox, bytes_max: usize) -> Vec<String> {
        let mut answer = Answer::new(bytes_max);
        outbox.fill(&mut answer);
        let body: serde_json::Value =
            serde_json::from_slice(&answer.finish(Status::Ok, &token())).expect("an answer is JSON");
        let messages = body["messages"].as_array().expect("messages");
        messages.iter().map(|text| text.as_str().expect("a string").to_owned()).collect()
    }

    #[test]
    fn a_token_is_read_back_and_no_other_matches() {
        let ours = token();
        let shown = ours.reveal();
        assert_eq!(shown.len(), 43);
        assert!(ours.matches(&Token::presented(&shown).unwrap()));
        assert_eq!(format!("{ours:?}"), "Token(…)");
        for bit in 0..256_usize {
            let mut bytes: [u8; 32] = std::array::from_fn(|n| u8::try_from(n).unwrap_or(0));
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(!ours.matches(&Token::generate(bytes)), "{bit}");
        }
        let padded = format!("{shown}=");
        let longer = format!("{shown}AAAA");
        for bad in ["", "undefined", "null", &shown[1..], &padded, &longer, "é", &"A".repeat(100_000)] {
            assert!(Token::presented(bad).is_none(), "{bad:.60}");
        }
    }

    #[test]
    fn the_token_is_told_from_a_parameter_of_its_name() {
        let shown = token().reveal();
        let split = |query: &str| {
            let (token, rest) = split_query(query);
            (token.map(|token| token.reveal()), rest.into_owned())
        };
        let ours = Some(shown.clone());
        assert_eq!(split(&format!("a=1&vsn=2.0.0&token={shown}")), (ours.clone(), "a=1&vsn=2.0.0".into()));
        assert_eq!(split(&format!("token=as_key&token={shown}")), (ours.clone(), "token=as_key".into()));
        assert_eq!(split(&format!("token={shown}&token=as_key")), (ours.clone(), "token=as_key".into()));
        assert_eq!(split(&format!("token={shown}")), (ours, String::new()));
        for none in ["", "&", "vsn=2.0.0&", "token=", "token=undefined", "token=as_key&a=b", "xtoken=1"] {
            assert_eq!(split(none), (None, none.to_owned()));
        }
    }

    #[test]
    fn lines_are_text_or_base64_and_empty_ones_are_none() {
        let body = b"[\"1\"]\r\n\n  \r\n{\"topic\":1}\nAAECAw==\nAAECAw\n[2]\n";
        assert_eq!(
            read(BodyForm::Lines, body),
            [
                Ok(Posted::Text("[\"1\"]")),
                Ok(Posted::Text("{\"topic\":1}")),
                Ok(Posted::Binary(vec![0, 1, 2, 3])),
                Ok(Posted::Binary(vec![0, 1, 2, 3])),
                Ok(Posted::Text("[2]")),
            ]
        );
        assert_eq!(read(BodyForm::Whole, b"{\"a\":\n1}\n"), [Ok(Posted::Text("{\"a\":\n1}"))]);
        for empty in [&b""[..], b"\n", b"\r\n\r\n", b" "] {
            assert_eq!((read(BodyForm::Lines, empty), read(BodyForm::Whole, empty)), (vec![], vec![]));
        }
    }

    #[test]
    fn what_is_no_message_ends_the_rest() {
        for (body, code) in [
            (&b"[1]\nnot base64!\n[2]"[..], CloseCode::Undecodable),
            (b"[1]\n[\"\xff\"]\n[2]", CloseCode::InvalidText),
            (b"[1]\nA===\n[2]", CloseCode::Undecodable),
        ] {
            assert_eq!(read(BodyForm::Lines, body), [Ok(Posted::Text("[1]")), Err(code)]);
        }
        let long = [b"[".repeat(65), b"\n[1]".to_vec()].concat();
        assert_eq!(read(BodyForm::Lines, &long), [Err(CloseCode::TooBig)]);
        assert_eq!(read(BodyForm::Lines, &b"A".repeat(92)), [Err(CloseCode::TooBig)]);
        assert_eq!(read(BodyForm::Whole, b"hello"), [Ok(Posted::Text("hello"))]);
        assert_eq!(read(BodyForm::Lines, &b"[\n".repeat(1_000)).len(), 1_000, "more than Phoenix takes");
    }

    #[test]
    fn the_content_type_says_the_form() {
        for lines in ["application/x-ndjson", "application/x-ndjson; charset=utf-8", "Application/X-NDJSON"] {
            assert_eq!(BodyForm::of(Some(lines)), BodyForm::Lines, "{lines}");
        }
        for whole in [None, Some(""), Some("application/json"), Some("text/plain;application/x-ndjson")] {
            assert_eq!(BodyForm::of(whole), BodyForm::Whole, "{whole:?}");
        }
    }

    #[test]
    fn what_is_no_text_is_left_out_and_holds_nothing_back() {
        let mut outbox = Outbox::default();
        let binary = {
            let mut frame = encoder::FrameBuilder::with_capacity(3);
            frame.payload().extend_from_slice(b"\x00\x01\xff");
            frame.finish(Opcode::Binary)
        };
        for frame in [
            encoder::text(b"[1]"),
            binary,
            encoder::pong(b"x"),
            encoder::text("[\"\\n\u{1F980}\"]".as_bytes()),
        ] {
            outbox.push(&frame);
        }
        outbox.push(&encoder::close(CloseCode::Restart, "bye"));
        assert!(outbox.has_message());
        assert_eq!(answered(&mut outbox, 1_000), ["[1]", "[\"\\n\u{1F980}\"]"]);
        assert!(outbox.is_empty() && !outbox.has_message());
        outbox.push(&encoder::close(CloseCode::Restart, ""));
        assert!(!outbox.has_message());
    }

    #[test]
    fn answers_are_what_clients_expect() {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let token = token();
        assert_eq!(
            text(Answer::new(0).finish(Status::Gone, &token)),
            format!("{{\"messages\":[],\"status\":410,\"token\":\"{}\"}}", token.reveal())
        );
        assert_eq!(text(bare_answer(Status::Forbidden)), "{\"status\":403}");
    }

    #[test]
    fn a_session_outlives_its_last_get_by_one_and_a_half_windows() {
        let mut lifetime = Lifetime::new(1_000, 50);
        assert_eq!((lifetime.left_ms(50), lifetime.left_ms(1_549), lifetime.left_ms(1_550)), (1_500, 1, 0));
        let first = lifetime.begin();
        assert_eq!(lifetime.left_ms(1_000_000), 1_500, "a GET that waits keeps it alive");
        let second = lifetime.begin();
        assert!(!lifetime.is_newest(first) && lifetime.is_newest(second));
        lifetime.end(first, 2_000);
        assert_eq!(lifetime.left_ms(1_000_000), 1_500, "the older one does not count");
        lifetime.end(second, 3_000);
        assert_eq!((lifetime.left_ms(4_499), lifetime.left_ms(4_500)), (1, 0));
    }

    /// Whether the last so many bytes of these messages, as frames, begin with a frame, or are none.
    fn later_begins_a_frame(messages: &[String], later_bytes: usize) -> bool {
        let mut behind = 0;
        let ends = messages.iter().rev().map(|text| {
            behind += encoder::text(text.as_bytes()).len();
            behind
        });
        later_bytes == 0 || ends.into_iter().any(|end| end == later_bytes)
    }

    proptest! {
        /// However frames are cut into writes and answers, messages come out whole, in order and once.
        #[test]
        fn messages_survive_any_cut(
            messages in prop::collection::vec("\\PC{1,300}", 1..20),
            pieces in prop::collection::vec(1_usize..200, 1..50),
            bytes_max in 1_usize..2_000,
        ) {
            let bytes: Vec<u8> = messages.iter().flat_map(|text| encoder::text(text.as_bytes())).collect();
            let mut rest = bytes.as_slice();
            let mut outbox = Outbox::default();
            let mut seen = Vec::new();
            for piece in pieces.iter().cycle() {
                let (now, later) = rest.split_at(rest.len().min(*piece));
                outbox.push(now);
                prop_assert!((outbox.missing() == 0) == later_begins_a_frame(&messages, later.len()));
                let part = answered(&mut outbox, bytes_max);
                let but_last: usize = part.iter().rev().skip(1).map(String::len).sum();
                prop_assert!(but_last < bytes_max, "no more than it must");
                seen.extend(part);
                rest = later;
                if rest.is_empty() && outbox.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(seen, messages);
        }

        /// Any body is read without a panic, and what comes out is no longer than what went in.
        #[test]
        fn any_body_is_read(body in prop::collection::vec(any::<u8>(), 0..500), lines: bool) {
            let form = if lines { BodyForm::Lines } else { BodyForm::Whole };
            let bytes: usize = PostedMessages::new(form, &body, 64)
                .map(|message| match message {
                    Ok(Posted::Text(text)) => text.len(),
                    Ok(Posted::Binary(bytes)) => bytes.len(),
                    Err(_) => 0,
                })
                .sum();
            prop_assert!(bytes <= body.len());
        }
    }
}
