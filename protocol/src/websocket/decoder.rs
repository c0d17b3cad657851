//! Client frames to messages.
//!
//! The decoder works on the bytes at hand and keeps nothing but an unfinished fragmented message, so it can be called
//! again at any point without losing its place. It checks what the usual libraries leave to the caller: the mask bit,
//! the announced length before any byte of it is stored, the sum and number of fragments, text at the end of a
//! fragmented message, the size of control frames, and close codes.

use super::Opcode;
use super::close_code::{self, CloseCode};
use crate::limits::CONTROL_PAYLOAD_BYTES_MAX;

/// Bounds of one connection's messages.
#[derive(Clone, Copy, Debug)]
pub struct DecoderLimits {
    /// Bytes of one message, fragments together.
    pub message_bytes_max: usize,
    /// Fragments of one message.
    pub fragments_max: usize,
}

/// The peer broke the protocol: close with this code and say why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct ProtocolError {
    /// Code of the close frame.
    pub code: CloseCode,
    /// For the close frame and the log.
    pub reason: &'static str,
}

const fn broken(reason: &'static str) -> ProtocolError {
    ProtocolError { code: CloseCode::ProtocolError, reason }
}

const TOO_BIG: ProtocolError = ProtocolError { code: CloseCode::TooBig, reason: "message too large" };
const BAD_TEXT: ProtocolError = ProtocolError { code: CloseCode::InvalidText, reason: "text is not UTF-8" };

/// What the bytes at hand hold.
#[derive(Debug, PartialEq, Eq)]
pub enum Decoded<'a> {
    /// No whole frame yet. `need` is how many bytes the frame takes as far as is known: at least one more than are here.
    Incomplete {
        /// Bytes of the frame, header included, as far as known.
        need: usize,
    },
    /// A frame that completes nothing: a fragment was stored.
    Fragment {
        /// Bytes to drop from the front of the buffer.
        consumed: usize,
    },
    /// A whole text message; UTF-8 was checked.
    Text {
        /// Bytes to drop from the front of the buffer.
        consumed: usize,
        /// The message.
        text: &'a str,
    },
    /// A whole binary message.
    Binary {
        /// Bytes to drop from the front of the buffer.
        consumed: usize,
        /// The message.
        data: &'a [u8],
    },
    /// Answer with a pong of the same payload.
    Ping {
        /// Bytes to drop from the front of the buffer.
        consumed: usize,
        /// At most 125 bytes.
        payload: &'a [u8],
    },
    /// Nothing to do.
    Pong {
        /// Bytes to drop from the front of the buffer.
        consumed: usize,
    },
    /// The peer closes; what follows in the buffer is not to be read.
    Close {
        /// Its code, if it gave one.
        code: Option<u16>,
    },
}

/// Decoder of one connection. Holds memory only while a fragmented message is under way.
#[derive(Debug, Default)]
pub struct Decoder {
    fragmented: Option<Box<Fragmented>>,
}

#[derive(Debug)]
struct Fragmented {
    opcode: Opcode,
    data: Vec<u8>,
    fragments: usize,
    /// Given out by the last call and to be dropped by the next.
    complete: bool,
}

struct Header {
    fin: bool,
    opcode: Opcode,
    mask: [u8; 4],
    header_bytes: usize,
    payload_bytes: usize,
}

impl Decoder {
    /// Whether a fragmented message is under way.
    #[must_use]
    pub fn holds_fragments(&self) -> bool {
        self.fragmented.is_some()
    }

    /// Decodes the first frame of `buffer`, unmasking it in place.
    ///
    /// # Errors
    /// The peer broke the protocol; the connection is to be closed with the error's code.
    pub fn decode<'a>(
        &'a mut self,
        buffer: &'a mut [u8],
        limits: DecoderLimits,
    ) -> Result<Decoded<'a>, ProtocolError> {
        if self.fragmented.as_ref().is_some_and(|message| message.complete) {
            self.fragmented = None;
        }
        let header = match read_header(buffer)? {
            Ok(header) => header,
            Err(need) => return Ok(Decoded::Incomplete { need }),
        };
        self.check(&header, limits)?;
        let consumed = header.header_bytes + header.payload_bytes;
        if buffer.len() < consumed {
            return Ok(Decoded::Incomplete { need: consumed });
        }
        let payload = &mut buffer[header.header_bytes..consumed];
        unmask(payload, header.mask);
        match header.opcode {
            Opcode::Ping => Ok(Decoded::Ping { consumed, payload }),
            Opcode::Pong => Ok(Decoded::Pong { consumed }),
            Opcode::Close => read_close(payload),
            Opcode::Text | Opcode::Binary if header.fin => whole_message(header.opcode, payload, consumed),
            opcode => self.take_fragment(opcode, header.fin, payload, consumed),
        }
    }

    fn check(&self, header: &Header, limits: DecoderLimits) -> Result<(), ProtocolError> {
        if header.opcode.is_control() {
            if !header.fin {
                return Err(broken("fragmented control frame"));
            }
            if header.payload_bytes > CONTROL_PAYLOAD_BYTES_MAX {
                return Err(broken("control frame over 125 bytes"));
            }
            return Ok(());
        }
        let held = match (&self.fragmented, header.opcode) {
            (None, Opcode::Continuation) => return Err(broken("continuation of nothing")),
            (Some(_), Opcode::Text | Opcode::Binary) => {
                return Err(broken("new message inside a fragmented one"));
            }
            (Some(message), _) => {
                if message.fragments >= limits.fragments_max {
                    return Err(ProtocolError { code: CloseCode::TooBig, reason: "too many fragments" });
                }
                message.data.len()
            }
            (None, _) => 0,
        };
        if header.payload_bytes > limits.message_bytes_max.saturating_sub(held) {
            return Err(TOO_BIG);
        }
        Ok(())
    }

    fn take_fragment<'a>(
        &'a mut self,
        opcode: Opcode,
        fin: bool,
        payload: &[u8],
        consumed: usize,
    ) -> Result<Decoded<'a>, ProtocolError> {
        let message = self.fragmented.get_or_insert_with(|| {
            Box::new(Fragmented { opcode, data: Vec::new(), fragments: 0, complete: false })
        });
        message.data.extend_from_slice(payload);
        message.fragments += 1;
        if !fin {
            return Ok(Decoded::Fragment { consumed });
        }
        message.complete = true;
        whole_message(message.opcode, &message.data, consumed)
    }
}

fn whole_message(opcode: Opcode, data: &[u8], consumed: usize) -> Result<Decoded<'_>, ProtocolError> {
    if opcode == Opcode::Binary {
        return Ok(Decoded::Binary { consumed, data });
    }
    let text = simdutf8::basic::from_utf8(data).map_err(|_| BAD_TEXT)?;
    Ok(Decoded::Text { consumed, text })
}

/// The header of the first frame, or how many bytes are needed to know more.
fn read_header(buffer: &[u8]) -> Result<Result<Header, usize>, ProtocolError> {
    let [first, second, rest @ ..] = buffer else {
        return Ok(Err(2));
    };
    if first & 0x70 != 0 {
        return Err(broken("reserved bits are set"));
    }
    let opcode = Opcode::from_bits(first & 0x0F).ok_or(broken("unknown opcode"))?;
    if second & 0x80 == 0 {
        return Err(broken("client frame without a mask"));
    }
    let short = second & 0x7F;
    let length_bytes = match short {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    let header_bytes = 2 + length_bytes + 4;
    if buffer.len() < header_bytes {
        return Ok(Err(header_bytes));
    }
    let (length, rest) = rest.split_at(length_bytes);
    let payload_bytes = match length_bytes {
        0 => u64::from(short),
        _ => length.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)),
    };
    let minimal = match length_bytes {
        0 => true,
        2 => payload_bytes > 125,
        _ => payload_bytes > 65_535 && payload_bytes >> 63 == 0,
    };
    if !minimal {
        return Err(broken("length is not in its shortest form"));
    }
    let payload_bytes = usize::try_from(payload_bytes).map_err(|_| TOO_BIG)?;
    let mask = [rest[0], rest[1], rest[2], rest[3]];
    Ok(Ok(Header { fin: first & 0x80 != 0, opcode, mask, header_bytes, payload_bytes }))
}

fn read_close(payload: &[u8]) -> Result<Decoded<'_>, ProtocolError> {
    match payload {
        [] => Ok(Decoded::Close { code: None }),
        [_] => Err(broken("close frame of one byte")),
        [high, low, reason @ ..] => {
            let code = u16::from_be_bytes([*high, *low]);
            if !close_code::may_be_received(code) {
                return Err(broken("invalid close code"));
            }
            simdutf8::basic::from_utf8(reason).map_err(|_| BAD_TEXT)?;
            Ok(Decoded::Close { code: Some(code) })
        }
    }
}

/// Exclusive-or with the mask, in words that the compiler can widen.
fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    let wide = u64::from_ne_bytes([mask[0], mask[1], mask[2], mask[3], mask[0], mask[1], mask[2], mask[3]]);
    let mut words = payload.chunks_exact_mut(8);
    for word in &mut words {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(word);
        word.copy_from_slice(&(u64::from_ne_bytes(bytes) ^ wide).to_ne_bytes());
    }
    for (byte, mask) in words.into_remainder().iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
}

#[cfg(test)]
mod tests;
