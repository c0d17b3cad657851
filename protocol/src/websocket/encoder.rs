//! Server frames: one header, no mask, never fragmented. Because they carry no mask they are the same for every
//! socket: a frame is built once and shared.

use bytes::Bytes;

use super::{CloseCode, Opcode};
use crate::limits::CONTROL_PAYLOAD_BYTES_MAX;

const FIN: u8 = 0x80;
/// Longest header of an unmasked frame.
pub const HEADER_BYTES_MAX: usize = 10;

/// Builds one frame in place: room for the header first, then the payload, then the header is written before it.
pub struct FrameBuilder {
    buffer: Vec<u8>,
}

impl FrameBuilder {
    /// With room for so many bytes of payload.
    #[must_use]
    pub fn with_capacity(payload_bytes: usize) -> Self {
        let mut buffer = Vec::with_capacity(HEADER_BYTES_MAX + payload_bytes);
        buffer.resize(HEADER_BYTES_MAX, 0);
        Self { buffer }
    }

    /// Where the payload is written.
    pub fn payload(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }

    /// The finished frame.
    #[must_use]
    pub fn finish(mut self, opcode: Opcode) -> Bytes {
        let payload_bytes = self.buffer.len() - HEADER_BYTES_MAX;
        let mut header = [0; HEADER_BYTES_MAX];
        let header_bytes = write_header(&mut header, opcode, payload_bytes);
        let start = HEADER_BYTES_MAX - header_bytes;
        self.buffer[start..HEADER_BYTES_MAX].copy_from_slice(&header[..header_bytes]);
        Bytes::from(self.buffer).slice(start..)
    }
}

/// Appends the header of a frame whose payload follows.
pub fn push_header(out: &mut Vec<u8>, opcode: Opcode, payload_bytes: usize) {
    let mut header = [0; HEADER_BYTES_MAX];
    let header_bytes = write_header(&mut header, opcode, payload_bytes);
    out.extend_from_slice(&header[..header_bytes]);
}

fn write_header(header: &mut [u8; HEADER_BYTES_MAX], opcode: Opcode, payload_bytes: usize) -> usize {
    header[0] = FIN | opcode.bits();
    if let Ok(short @ ..126) = u8::try_from(payload_bytes) {
        header[1] = short;
        2
    } else if let Ok(medium) = u16::try_from(payload_bytes) {
        header[1] = 126;
        header[2..4].copy_from_slice(&medium.to_be_bytes());
        4
    } else {
        header[1] = 127;
        header[2..10].copy_from_slice(&(payload_bytes as u64).to_be_bytes());
        10
    }
}

/// A server frame, as its header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub opcode: Opcode,
    /// Bytes of its header.
    pub header_bytes: usize,
    /// Bytes of its payload.
    pub payload_bytes: usize,
}

/// Reads back the header of a frame that was written here; `None` while it is not whole.
#[must_use]
pub fn frame_at(bytes: &[u8]) -> Option<Frame> {
    let [first, length, rest @ ..] = bytes else { return None };
    let opcode = Opcode::from_bits(first & !FIN)?;
    let (header_bytes, payload_bytes) = match length {
        126 => (4, u64::from(u16::from_be_bytes(*rest.first_chunk()?))),
        127 => (10, u64::from_be_bytes(*rest.first_chunk()?)),
        short => (2, u64::from(*short)),
    };
    // A frame was in memory when it was written.
    Some(Frame { opcode, header_bytes, payload_bytes: usize::try_from(payload_bytes).unwrap_or(usize::MAX) })
}

/// A whole text frame around ready text.
#[must_use]
pub fn text(payload: &[u8]) -> Bytes {
    let mut frame = FrameBuilder::with_capacity(payload.len());
    frame.payload().extend_from_slice(payload);
    frame.finish(Opcode::Text)
}

/// The answer to a ping.
#[must_use]
pub fn pong(payload: &[u8]) -> Bytes {
    let mut frame = FrameBuilder::with_capacity(payload.len());
    frame.payload().extend_from_slice(payload);
    frame.finish(Opcode::Pong)
}

/// A close frame; the reason is cut to what a control frame can hold.
#[must_use]
pub fn close(code: CloseCode, reason: &str) -> Bytes {
    close_with_number(code.number(), reason)
}

/// The answer to a peer's close: its own code back, or an empty close if it gave none.
#[must_use]
pub fn close_echo(number: Option<u16>) -> Bytes {
    match number {
        Some(number) => close_with_number(number, ""),
        None => FrameBuilder::with_capacity(0).finish(Opcode::Close),
    }
}

fn close_with_number(number: u16, reason: &str) -> Bytes {
    let mut cut = reason.len().min(CONTROL_PAYLOAD_BYTES_MAX - 2);
    while !reason.is_char_boundary(cut) {
        cut -= 1;
    }
    let mut frame = FrameBuilder::with_capacity(2 + cut);
    frame.payload().extend_from_slice(&number.to_be_bytes());
    frame.payload().extend_from_slice(&reason.as_bytes()[..cut]);
    frame.finish(Opcode::Close)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_length_follows_payload_length() {
        for (payload, header) in [(0, 2), (125, 2), (126, 4), (65_535, 4), (65_536, 10)] {
            let frame = text(&vec![b'a'; payload]);
            assert_eq!(frame.len(), header + payload);
            let mut pushed = Vec::new();
            push_header(&mut pushed, Opcode::Text, payload);
            assert_eq!(pushed, &frame[..header]);
            let want = Frame { opcode: Opcode::Text, header_bytes: header, payload_bytes: payload };
            assert_eq!(frame_at(&frame), Some(want));
            assert_eq!((frame_at(&pushed), frame_at(&pushed[..header - 1])), (Some(want), None));
        }
    }

    #[test]
    fn close_reasons_fit_a_control_frame() {
        let frame = close(CloseCode::Undecodable, &"é".repeat(100));
        assert_eq!(frame.len(), 2 + 2 + 122);
        assert!(std::str::from_utf8(&frame[4..]).is_ok());
        assert_eq!(&close_echo(None)[..], [0x88, 0]);
        assert_eq!(&close_echo(Some(1000))[..], [0x88, 2, 0x03, 0xE8]);
    }
}
