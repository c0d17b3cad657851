//! Close codes this server sends. 1000 is not among them: Phoenix clients up to 1.8.15 never come back after it.

/// Why the server closes a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseCode {
    /// 1001: the credential was revoked, or an operator disconnected it.
    Disconnected,
    /// 1002: the peer broke the WebSocket protocol, or was silent too long.
    ProtocolError,
    /// 1007: text that is not UTF-8.
    InvalidText,
    /// 1009: a message larger than allowed.
    TooBig,
    /// 1011: a message that is no Phoenix message, or a fault of the server.
    Undecodable,
    /// 1012: the node is going away; connect again.
    Restart,
    /// 1013: the socket does not take what is sent to it.
    Overloaded,
}

impl CloseCode {
    /// All of them.
    pub const ALL: &'static [Self] = &[
        Self::Disconnected,
        Self::ProtocolError,
        Self::InvalidText,
        Self::TooBig,
        Self::Undecodable,
        Self::Restart,
        Self::Overloaded,
    ];

    /// The number on the wire.
    #[must_use]
    pub const fn number(self) -> u16 {
        match self {
            Self::Disconnected => 1001,
            Self::ProtocolError => 1002,
            Self::InvalidText => 1007,
            Self::TooBig => 1009,
            Self::Undecodable => 1011,
            Self::Restart => 1012,
            Self::Overloaded => 1013,
        }
    }

    /// When it is sent, in a sentence.
    #[must_use]
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Disconnected => {
                "The credential was revoked or has expired, or an operator closed the socket."
            }
            Self::ProtocolError => "The peer broke the WebSocket protocol, or sent nothing for too long.",
            Self::InvalidText => "A text message was not UTF-8.",
            Self::TooBig => "A message was larger, or in more fragments, than allowed.",
            Self::Undecodable => "A message was no Phoenix message, or the server had a fault.",
            Self::Restart => "The node is going away; connect again.",
            Self::Overloaded => "The socket did not take what was sent to it.",
        }
    }
}

/// Whether a peer may send this code (RFC 6455 §7.4): the reserved ones must not appear on the wire.
#[must_use]
pub fn may_be_received(number: u16) -> bool {
    matches!(number, 1000..=1003 | 1007..=1014 | 3000..=4999)
}
