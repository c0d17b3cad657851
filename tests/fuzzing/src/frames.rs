//! WebSocket frames: what a client sends, and what the server does.

use muster_protocol::limits::{CONTROL_PAYLOAD_BYTES_MAX, WEBSOCKET_HEADER_BYTES_MAX};
use muster_protocol::websocket::encoder::{self, FrameBuilder};
use muster_protocol::websocket::{Decoded, Decoder, DecoderLimits, Opcode, ProtocolError};

/// What a connection makes of its bytes, in order.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Fragment,
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong,
    Close(Option<u16>),
    /// Nothing more without further bytes: how many are here, and how many it takes.
    Waits(usize, usize),
    Broken(ProtocolError),
}

/// The first byte chooses the limits and how the rest is cut; the rest is the stream, and the payload of frames that
/// are made here.
pub fn websocket_frames(data: &[u8]) {
    let Some((&shape, stream)) = data.split_first() else { return };
    let limits = DecoderLimits {
        message_bytes_max: 16 << usize::from(shape & 7),
        fragments_max: 1 + usize::from(shape >> 3 & 3),
    };
    let whole = run(stream, stream.len().max(1), limits);
    // However the network cuts the stream, the messages, the error and what is waited for are the same.
    for step in [1, 2 + usize::from(shape >> 5)] {
        assert_eq!(run(stream, step, limits), whole, "cut every {step} bytes");
    }
    comes_back(shape, stream);
    server_frame(stream);
}

fn run(stream: &[u8], step: usize, limits: DecoderLimits) -> Vec<Seen> {
    let mut decoder = Decoder::default();
    let mut pending: Vec<u8> = Vec::new();
    let mut seen = Vec::new();
    let mut fed = stream.chunks(step);
    loop {
        let here = pending.len();
        let before: Vec<u8> = pending.iter().take(WEBSOCKET_HEADER_BYTES_MAX).copied().collect();
        let (consumed, what) = match decoder.decode(&mut pending, limits) {
            Ok(Decoded::Incomplete { need }) => {
                assert!(need > here, "it waits for what it has");
                // A length that was announced is believed no further than a message may be long.
                let most =
                    limits.message_bytes_max.max(CONTROL_PAYLOAD_BYTES_MAX) + WEBSOCKET_HEADER_BYTES_MAX;
                assert!(need <= most, "{need} bytes are waited for, of {most}");
                assert!(pending.starts_with(&before), "what waits was changed");
                let Some(more) = fed.next() else {
                    seen.push(Seen::Waits(here, need));
                    return seen;
                };
                pending.extend_from_slice(more);
                continue;
            }
            Ok(Decoded::Fragment { consumed }) => (consumed, Seen::Fragment),
            Ok(Decoded::Text { consumed, text }) => {
                assert!(text.len() <= limits.message_bytes_max);
                (consumed, Seen::Text(text.to_owned()))
            }
            Ok(Decoded::Binary { consumed, data }) => {
                assert!(data.len() <= limits.message_bytes_max);
                (consumed, Seen::Binary(data.to_vec()))
            }
            Ok(Decoded::Ping { consumed, payload }) => {
                assert!(payload.len() <= CONTROL_PAYLOAD_BYTES_MAX);
                (consumed, Seen::Ping(payload.to_vec()))
            }
            Ok(Decoded::Pong { consumed }) => (consumed, Seen::Pong),
            Ok(Decoded::Close { code }) => {
                assert!(
                    code.is_none_or(|code| (1_000..5_000).contains(&code) && !(1_004..1_007).contains(&code))
                );
                seen.push(Seen::Close(code));
                return seen;
            }
            Err(error) => {
                assert!(!error.reason.is_empty());
                seen.push(Seen::Broken(error));
                return seen;
            }
        };
        assert!(0 < consumed && consumed <= here, "{consumed} bytes were taken of {here}");
        pending.drain(..consumed);
        seen.push(what);
    }
}

/// A client's frame (RFC 6455 §5.2), masked.
#[must_use]
pub fn client_frame(first: u8, mask: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        short @ 0..126 => frame.push(0x80 | u8::try_from(short).unwrap_or_default()),
        medium @ 126..65_536 => {
            frame.push(0x80 | 126);
            frame.extend_from_slice(&u16::try_from(medium).unwrap_or_default().to_be_bytes());
        }
        long => {
            frame.push(0x80 | 127);
            frame.extend_from_slice(&(long as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(&mask);
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// What a client sends arrives as it was, in one frame or in several with a ping between them.
fn comes_back(shape: u8, payload: &[u8]) {
    let limits = DecoderLimits { message_bytes_max: payload.len(), fragments_max: 3 };
    let mask = [shape, shape.rotate_left(3), !shape, 0x5A];
    let wanted = match std::str::from_utf8(payload) {
        Ok(text) => Seen::Text(text.to_owned()),
        Err(_) => Seen::Binary(payload.to_vec()),
    };
    let opcode = if matches!(wanted, Seen::Text(_)) { 0x1 } else { 0x2 };
    let at = payload.len() * usize::from(shape) / 256;
    let whole = run(&client_frame(0x80 | opcode, mask, payload), usize::MAX, limits);
    let parts = [
        client_frame(opcode, mask, &payload[..at]),
        client_frame(0x89, mask, &[shape]),
        client_frame(0x80, mask, &payload[at..]),
    ]
    .concat();
    let parts = run(&parts, usize::MAX, limits);
    assert_eq!(whole.first(), Some(&wanted));
    assert_eq!(parts[..2], [Seen::Fragment, Seen::Ping(vec![shape])]);
    assert_eq!(parts.get(2), Some(&wanted));
    // One byte less allowed, and it is too large: the bound is that of the message, not of a frame.
    if let Some(less) = payload.len().checked_sub(1) {
        let limits = DecoderLimits { message_bytes_max: less, ..limits };
        for frames in [client_frame(0x80 | opcode, mask, payload), client_frame(opcode, mask, payload)] {
            let refused = run(&frames, usize::MAX, limits);
            assert!(
                matches!(refused[..], [Seen::Broken(error)] if error.code.number() == 1_009),
                "{refused:?}"
            );
        }
    }
}

/// A server's frame is its header and the payload, and the header says how long that is in the shortest form.
fn server_frame(payload: &[u8]) {
    let mut built = FrameBuilder::with_capacity(0);
    built.payload().extend_from_slice(payload);
    let built = built.finish(Opcode::Binary);
    let mut written = Vec::new();
    encoder::push_header(&mut written, Opcode::Binary, payload.len());
    written.extend_from_slice(payload);
    assert_eq!(built, written);
    let (announced, header) = match &built[..] {
        [0x82, short @ 0..=125, ..] => (usize::from(*short), 2),
        [0x82, 126, high, low, ..] => (usize::from(u16::from_be_bytes([*high, *low])), 4),
        [0x82, 127, rest @ ..] => {
            (usize::try_from(u64::from_be_bytes(rest[..8].try_into().unwrap())).unwrap(), 10)
        }
        other => panic!("not a header: {:?}", &other[..other.len().min(10)]),
    };
    assert_eq!((announced, &built[header..]), (payload.len(), payload));
    assert!(header == 2 || announced > 125);
    assert!(header < 10 || announced > 65_535);
}
