//! One frame between two nodes: who says it to whom, in which session, and some messages, delimited one by one.
//!
//! ```text
//! form (1 byte) · bytes of the header (2, big endian) · header (MessagePack, with field names) · items
//! item: bytes of the message (4, big endian) · message
//! ```
//!
//! A frame is the same on every transport. What is read here may come from anybody who got past the transport: every
//! length is checked before it is used.

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use smol_str::SmolStr;

use super::NodeKey;
use super::sight::{Sighting, are_few};

/// What nodes of this version speak. Nodes of neighbouring versions understand each other: a newer one adds fields and
/// messages, which an older one passes over.
pub const PROTOCOL_VERSION: u16 = 1;
/// The oldest version this one still understands.
pub const PROTOCOL_VERSION_MIN: u16 = 1;
/// Bytes of the name of a node or of a cluster.
const NAME_BYTES_MAX: usize = 128;
/// Bytes of a header.
const HEADER_BYTES_MAX: usize = 2_048;
/// Bytes of an address, HOST:PORT.
const ADDRESS_BYTES_MAX: usize = 262;
/// Addresses of others in one header.
pub const OTHERS_MAX: usize = 4;
/// First byte of a frame: how it is laid out.
const FORM: u8 = 1;
/// Bytes before a message: its length.
pub const ITEM_OVERHEAD_BYTES: usize = 4;
/// Bytes of form, length and header that a frame can have before its items.
pub const FRAME_OVERHEAD_BYTES_MAX: usize = 3 + HEADER_BYTES_MAX;

/// What stands before the messages of a frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The sender's [`PROTOCOL_VERSION`].
    pub version: u16,
    /// Name of the cluster.
    pub cluster: SmolStr,
    /// Who says it.
    pub from: NodeKey,
    /// To whom; nobody in particular when the sender only lets it be known that it is there.
    #[serde(default)]
    pub to: Option<NodeKey>,
    /// The sender's epoch of the session (see [`super::session`]).
    #[serde(default)]
    pub epoch: u64,
    /// The receiver's epoch as the sender knows it, or 0.
    #[serde(default)]
    pub peer_epoch: u64,
    /// The frame's number in the session, from 1; 0 for one that carries no messages.
    #[serde(default)]
    pub number: u64,
    /// The last number the sender has received in order.
    #[serde(default)]
    pub ack: u64,
    /// Whether the sender is going away.
    #[serde(default)]
    pub draining: bool,
    /// Whether this is the last the sender says.
    #[serde(default)]
    pub goodbye: bool,
    /// The sender's monotonic clock, in microseconds, or 0.
    #[serde(default)]
    pub sent_us: u64,
    /// The last `sent_us` the sender has heard from the receiver, or 0.
    #[serde(default)]
    pub echo_us: u64,
    /// For how long it has held that, in microseconds.
    #[serde(default)]
    pub held_us: u64,
    /// Where the sender is reached, HOST:PORT, if it says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<SmolStr>,
    /// Where some of those it hears are reached.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<SmolStr>,
    /// All nodes that the sender hears, if it says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sightings: Option<Vec<Sighting>>,
    /// The connection over which the sender hears the receiver directly, or 0: what cannot be heard is sent another way.
    #[serde(default)]
    pub hears: u64,
}

/// A frame that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What stands before the messages.
    pub header: Header,
    /// The messages.
    pub items: Items,
}

/// These bytes are no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a frame: {0}")]
pub struct Malformed(&'static str);

impl Frame {
    /// Reads a frame. The messages are not looked at, but they are delimited rightly.
    ///
    /// # Errors
    /// It is none.
    pub fn decode(bytes: &Bytes) -> Result<Self, Malformed> {
        let [form, high, low, ..] = bytes[..] else { return Err(Malformed("too short")) };
        if form != FORM {
            return Err(Malformed("unknown form"));
        }
        let end = 3 + usize::from(u16::from_be_bytes([high, low]));
        if end > FRAME_OVERHEAD_BYTES_MAX {
            return Err(Malformed("header too long"));
        }
        let header = bytes.get(3..end).ok_or(Malformed("header cut off"))?;
        let header: Header = rmp_serde::from_slice(header).map_err(|_| Malformed("header"))?;
        let names = [Some(&header.cluster), Some(&header.from.name), header.to.as_ref().map(|to| &to.name)];
        if names.into_iter().flatten().any(|name| !is_name(name)) {
            return Err(Malformed("name"));
        }
        let mut addresses = header.others.iter().chain(&header.address);
        if header.others.len() > OTHERS_MAX || addresses.any(|address| address.len() > ADDRESS_BYTES_MAX) {
            return Err(Malformed("address"));
        }
        if header.sightings.as_ref().is_some_and(|sightings| !are_few(sightings)) {
            return Err(Malformed("sightings"));
        }
        Ok(Self { header, items: Items::new(bytes.slice(end..))? })
    }

    /// Writes a frame; `items` as [`Items::append`] makes them.
    ///
    /// # Errors
    /// The header cannot be written: a name is too long.
    pub fn encode(header: &Header, items: &[u8]) -> Result<Bytes, Malformed> {
        let head = rmp_serde::to_vec_named(header).map_err(|_| Malformed("header"))?;
        let length = u16::try_from(head.len()).map_err(|_| Malformed("header too long"))?;
        if head.len() > HEADER_BYTES_MAX {
            return Err(Malformed("header too long"));
        }
        let mut bytes = BytesMut::with_capacity(3 + head.len() + items.len());
        bytes.put_u8(FORM);
        bytes.put_u16(length);
        bytes.put_slice(&head);
        bytes.put_slice(items);
        Ok(bytes.freeze())
    }
}

/// Whether this can name a node or a cluster: letters, digits, `.`, `-` and `_`, so that it can stand in a log line, a
/// certificate and the name of a channel.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    !name.is_empty() && name.len() <= NAME_BYTES_MAX && name.bytes().all(fits)
}

/// Messages one behind the other, each with its length. As an iterator it gives them in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Items(Bytes);

impl Items {
    fn new(bytes: Bytes) -> Result<Self, Malformed> {
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (length, behind) = rest.split_first_chunk::<4>().ok_or(Malformed("length cut off"))?;
            let length =
                usize::try_from(u32::from_be_bytes(*length)).map_err(|_| Malformed("message too long"))?;
            rest = behind.get(length..).ok_or(Malformed("message cut off"))?;
        }
        Ok(Self(bytes))
    }

    /// Puts one message behind the others. One that is longer than the length can say is left out; `limits` are far below.
    pub fn append(items: &mut BytesMut, message: &[u8]) {
        if let Ok(length) = u32::try_from(message.len()) {
            items.put_u32(length);
            items.put_slice(message);
        }
    }

    /// As they travel.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Iterator for Items {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let (length, _) = self.0.split_first_chunk::<4>()?;
        let end = usize::try_from(u32::from_be_bytes(*length)).ok()?.checked_add(4)?;
        let message = (end <= self.0.len()).then(|| self.0.slice(4..end))?;
        self.0 = self.0.slice(end..);
        Some(message)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header() -> Header {
        Header {
            version: PROTOCOL_VERSION,
            cluster: "muster".into(),
            from: NodeKey { name: "a".into(), incarnation: 7 },
            to: Some(NodeKey { name: "b".into(), incarnation: 8 }),
            epoch: 1,
            peer_epoch: 2,
            number: 3,
            ack: 4,
            draining: true,
            goodbye: false,
            sent_us: 5,
            echo_us: 6,
            held_us: 7,
            address: Some("a.example:4100".into()),
            others: vec!["[::1]:1".into()],
            sightings: None,
            hears: 8,
        }
    }

    #[test]
    fn frames_round_trip() {
        let mut items = BytesMut::new();
        for message in [&b"one"[..], b"", b"three"] {
            Items::append(&mut items, message);
        }
        let frame = Frame::decode(&Frame::encode(&header(), &items).unwrap()).unwrap();
        assert_eq!(frame.header, header());
        let messages: Vec<Bytes> = frame.items.collect();
        assert_eq!(messages, [&b"one"[..], b"", b"three"]);
    }

    #[test]
    fn a_newer_header_is_understood_and_an_older_one_has_defaults() {
        #[derive(Serialize)]
        struct Newer {
            version: u16,
            cluster: &'static str,
            from: NodeKey,
            colour: &'static str,
        }
        let newer = Newer { version: 9, cluster: "c", from: header().from, colour: "red" };
        let head = rmp_serde::to_vec_named(&newer).unwrap();
        let mut bytes = vec![FORM, 0, u8::try_from(head.len()).unwrap()];
        bytes.extend(head);
        let frame = Frame::decode(&bytes.into()).unwrap();
        assert_eq!((frame.header.version, frame.header.number, frame.header.to), (9, 0, None));
    }

    #[test]
    fn names_are_checked() {
        for name in ["", "a b", "a\n", "ü", &"a".repeat(NAME_BYTES_MAX + 1)] {
            let bytes = Frame::encode(&Header { cluster: name.into(), ..header() }, &[]).unwrap();
            assert!(Frame::decode(&bytes).is_err(), "{name:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_the_bytes_reading_ends_and_stays_within_them(
            cut in 0_usize..300, flip in 0_usize..300, to in any::<u8>()
        ) {
            let mut items = BytesMut::new();
            Items::append(&mut items, &[7; 100]);
            let mut bytes = Frame::encode(&header(), &items).unwrap().to_vec();
            let place = flip % bytes.len();
            bytes[place] = to;
            bytes.truncate(cut);
            if let Ok(frame) = Frame::decode(&bytes.into()) {
                prop_assert!(frame.items.map(|item| item.len()).sum::<usize>() <= 300);
            }
        }
    }
}
