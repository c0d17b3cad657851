//! WebSocket frames (RFC 6455) as a server sees them: a decoder over a byte slice and an encoder into bytes.
//!
//! # Layout
//! * [`decoder`]: client frames to messages; checks masks, lengths, fragments and text
//! * [`encoder`]: server frames, whose header is written once per message however many sockets it goes to
//! * [`close_code`]: the codes this server sends, and what it does with those it gets

pub mod close_code;
pub mod decoder;
pub mod encoder;

pub use close_code::CloseCode;
pub use decoder::{Decoded, Decoder, DecoderLimits, ProtocolError};

/// Frame opcodes (RFC 6455 §5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opcode {
    /// Goes on with a fragmented message.
    Continuation,
    /// UTF-8 text.
    Text,
    /// Bytes.
    Binary,
    /// Ends the connection.
    Close,
    /// Asks for a pong.
    Ping,
    /// Answers a ping.
    Pong,
}

impl Opcode {
    fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            0x0 => Self::Continuation,
            0x1 => Self::Text,
            0x2 => Self::Binary,
            0x8 => Self::Close,
            0x9 => Self::Ping,
            0xA => Self::Pong,
            _ => return None,
        })
    }

    fn bits(self) -> u8 {
        match self {
            Self::Continuation => 0x0,
            Self::Text => 0x1,
            Self::Binary => 0x2,
            Self::Close => 0x8,
            Self::Ping => 0x9,
            Self::Pong => 0xA,
        }
    }

    fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }
}
