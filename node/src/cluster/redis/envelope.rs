//! What a frame is in while it is with Redis, which is trusted with nothing: it cannot read frames, make or change any, or
//! bring one to another node, another life of a node, or twice.
//!
//! ```text
//! form (1 byte) · stream (16) · number (8, big endian) · frame, sealed with ChaCha20-Poly1305 (16 more)
//! ```
//!
//! A process seals with a key of its own, derived (HKDF-SHA256) from the secret of the cluster, the name of that, and the *stream*,
//! which is drawn at random when the process starts; so the envelope's number can be the nonce and none is ever used twice.
//! The channel is authenticated along with the frame, and a node's channel names its life. Numbers of one stream only rise:
//! what comes with one that is not higher than the last has been there, or was overtaken, and is dropped. Who is who within
//! the cluster is said by the frame: whoever has the secret is believed.

use std::collections::HashMap;

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, MAX_TAG_LEN, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Salt};

/// First byte of an envelope: how it is laid out.
const FORM: u8 = 1;
/// Bytes that name a stream.
const STREAM_BYTES: usize = 16;
/// Bytes before what is sealed.
const HEAD_BYTES: usize = 1 + STREAM_BYTES + 8;
/// Bytes that an envelope adds to a frame.
pub const OVERHEAD_BYTES: usize = HEAD_BYTES + MAX_TAG_LEN;
/// What keys are derived for.
const PURPOSE: &[u8] = b"muster cluster envelope 1";
/// Streams of which the last number is remembered; then the one that has been silent for longest is forgotten. A stream is
/// a process, so a node would have to outlive that many of its peers before an envelope that is as old could come again.
const STREAMS_MAX: usize = 4_096;

/// Names a stream.
type Stream = [u8; STREAM_BYTES];

/// An envelope does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It is none.
    Malformed,
    /// It was not made by a node of this cluster for this channel, or it was changed on the way.
    Forged,
    /// It, or a later one, has been taken already.
    Repeated,
}

impl Refused {
    /// In one word.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Forged => "forged",
            Self::Repeated => "repeated",
        }
    }
}

/// The secret of a cluster.
#[derive(Clone)]
pub struct Secret {
    secret: String,
    cluster: String,
}

impl Secret {
    /// What all nodes of the cluster have.
    #[must_use]
    pub fn new(secret: &str, cluster: &str) -> Self {
        Self { secret: secret.to_owned(), cluster: cluster.to_owned() }
    }

    /// The key of a stream; the library gives none only for lengths that are not these.
    fn key(&self, stream: &Stream) -> Option<LessSafeKey> {
        let derived = Salt::new(HKDF_SHA256, stream).extract(self.secret.as_bytes());
        let info = [PURPOSE, self.cluster.as_bytes()];
        let key = UnboundKey::from(derived.expand(&info, &CHACHA20_POLY1305).ok()?);
        Some(LessSafeKey::new(key))
    }
}

/// Seals what this process sends.
pub struct Sealer {
    key: LessSafeKey,
    stream: Stream,
    last: u64,
}

impl Sealer {
    /// A new stream, whose name nobody has used before: it is random.
    #[must_use]
    pub fn new(secret: &Secret, stream: Stream) -> Option<Self> {
        Some(Self { key: secret.key(&stream)?, stream, last: 0 })
    }

    /// The stream's name.
    #[must_use]
    pub fn stream(&self) -> Stream {
        self.stream
    }

    /// Puts a frame into an envelope for one channel.
    #[must_use]
    pub fn seal(&mut self, channel: &str, frame: &[u8]) -> Option<Vec<u8>> {
        self.last = self.last.checked_add(1)?;
        let mut envelope = Vec::with_capacity(frame.len() + OVERHEAD_BYTES);
        envelope.push(FORM);
        envelope.extend_from_slice(&self.stream);
        envelope.extend_from_slice(&self.last.to_be_bytes());
        let authenticated = authenticated(&envelope, channel);
        envelope.extend_from_slice(frame);
        let (_, sealed) = envelope.split_at_mut(HEAD_BYTES);
        let tag =
            self.key.seal_in_place_separate_tag(nonce(self.last), Aad::from(authenticated), sealed).ok()?;
        envelope.extend_from_slice(tag.as_ref());
        Some(envelope)
    }
}

/// What is authenticated beside the frame.
fn authenticated(head: &[u8], channel: &str) -> Vec<u8> {
    [head, channel.as_bytes()].concat()
}

fn nonce(number: u64) -> Nonce {
    let mut nonce = [0; NONCE_LEN];
    nonce[NONCE_LEN - 8..].copy_from_slice(&number.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

/// A stream that is known: something that was sealed in it has been opened.
struct Known {
    key: LessSafeKey,
    last: u64,
    /// When that came, counted in envelopes.
    turn: u64,
}

/// Opens what comes.
pub struct Opener {
    secret: Secret,
    known: HashMap<Stream, Known>,
    turn: u64,
    streams_max: usize,
}

/// What was in an envelope.
#[derive(Debug, PartialEq, Eq)]
pub struct Opened {
    /// Whose stream it is.
    pub stream: Stream,
    /// The frame.
    pub frame: Vec<u8>,
}

impl Opener {
    /// Knows no stream yet.
    #[must_use]
    pub fn new(secret: Secret) -> Self {
        Self { secret, known: HashMap::new(), turn: 0, streams_max: STREAMS_MAX }
    }

    /// Opens an envelope that came by a channel.
    ///
    /// # Errors
    /// It does not count.
    pub fn open(&mut self, channel: &str, mut envelope: Vec<u8>) -> Result<Opened, Refused> {
        if envelope.len() < OVERHEAD_BYTES || envelope[0] != FORM {
            return Err(Refused::Malformed);
        }
        let authenticated = authenticated(&envelope[..HEAD_BYTES], channel);
        let (stream, number) = envelope[1..HEAD_BYTES].split_at(STREAM_BYTES);
        let stream: Stream = stream.try_into().map_err(|_| Refused::Malformed)?;
        let number = u64::from_be_bytes(number.try_into().map_err(|_| Refused::Malformed)?);
        let known = self.known.get(&stream);
        let fresh = if known.is_some() { None } else { self.secret.key(&stream) };
        let key = known.map(|known| &known.key).or(fresh.as_ref()).ok_or(Refused::Forged)?;
        let sealed = &mut envelope[HEAD_BYTES..];
        let length = key
            .open_in_place(nonce(number), Aad::from(authenticated), sealed)
            .map_err(|_| Refused::Forged)?
            .len();
        if known.is_some_and(|known| number <= known.last) {
            return Err(Refused::Repeated);
        }
        self.turn += 1;
        let turn = self.turn;
        if let Some(key) = fresh {
            self.make_room();
            self.known.insert(stream, Known { key, last: number, turn });
        } else if let Some(known) = self.known.get_mut(&stream) {
            (known.last, known.turn) = (number, turn);
        }
        envelope.truncate(HEAD_BYTES + length);
        envelope.drain(..HEAD_BYTES);
        Ok(Opened { stream, frame: envelope })
    }

    fn make_room(&mut self) {
        if self.known.len() < self.streams_max {
            return;
        }
        let oldest = self.known.iter().min_by_key(|(_, known)| known.turn).map(|(stream, _)| *stream);
        if let Some(oldest) = oldest {
            self.known.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CHANNEL: &str = "muster:fleet:b#7";

    fn secret() -> Secret {
        Secret::new("a secret that is as long as one has to be", "fleet")
    }

    fn sealer(stream: u8) -> Sealer {
        Sealer::new(&secret(), [stream; STREAM_BYTES]).unwrap()
    }

    fn open(opener: &mut Opener, channel: &str, envelope: &[u8]) -> Result<Vec<u8>, Refused> {
        opener.open(channel, envelope.to_vec()).map(|opened| opened.frame)
    }

    #[test]
    fn what_is_sealed_is_hidden_and_opens_once() {
        let (mut sealer, mut opener) = (sealer(1), Opener::new(secret()));
        for frame in [&b"the first of these frames"[..], b"", b"the third of these frames"] {
            let envelope = sealer.seal(CHANNEL, frame).unwrap();
            assert_eq!(envelope.len(), frame.len() + OVERHEAD_BYTES);
            assert!(frame.is_empty() || !envelope.windows(frame.len()).any(|part| part == frame));
            assert_eq!(open(&mut opener, CHANNEL, &envelope).unwrap(), frame);
            assert_eq!(open(&mut opener, CHANNEL, &envelope), Err(Refused::Repeated));
        }
        let (one, other) = (sealer.seal(CHANNEL, b"same").unwrap(), sealer.seal(CHANNEL, b"same").unwrap());
        assert_ne!(one[HEAD_BYTES..], other[HEAD_BYTES..], "each with a nonce of its own");
    }

    #[test]
    fn what_is_for_another_node_another_life_or_all_opens_nowhere_else() {
        let envelope = sealer(1).seal(CHANNEL, b"frame").unwrap();
        for channel in ["muster:fleet:c#7", "muster:fleet:b#8", "muster:fleet", "muster:other:b#7", ""] {
            let opened = open(&mut Opener::new(secret()), channel, &envelope);
            assert_eq!(opened, Err(Refused::Forged), "{channel}");
        }
    }

    #[test]
    fn another_secret_and_another_cluster_open_nothing() {
        let envelope = sealer(1).seal(CHANNEL, b"frame").unwrap();
        let others = [
            Secret::new("a secret that is as long as one has to be", "other"),
            Secret::new("a secret that is as long as one has to bE", "fleet"),
            // The same letters, divided otherwise.
            Secret::new("a secret that is as long as one has to befleet", ""),
        ];
        for other in others {
            assert_eq!(open(&mut Opener::new(other), CHANNEL, &envelope), Err(Refused::Forged));
        }
    }

    #[test]
    fn what_was_recorded_does_not_come_again_and_nobody_else_is_held_up_by_it() {
        let (mut sealer, mut opener) = (sealer(1), Opener::new(secret()));
        let recorded: Vec<Vec<u8>> = (0..5).map(|_| sealer.seal(CHANNEL, b"x").unwrap()).collect();
        assert!(open(&mut opener, CHANNEL, &recorded[0]).is_ok());
        assert!(open(&mut opener, CHANNEL, &recorded[3]).is_ok(), "some may be lost");
        for envelope in &recorded[..4] {
            assert_eq!(open(&mut opener, CHANNEL, envelope), Err(Refused::Repeated));
        }
        assert!(open(&mut opener, CHANNEL, &recorded[4]).is_ok());
        let mut other = self::sealer(2);
        assert!(open(&mut opener, CHANNEL, &other.seal(CHANNEL, b"y").unwrap()).is_ok());
    }

    #[test]
    fn forgeries_leave_nothing_behind_and_what_is_remembered_is_bounded() {
        let mut opener = Opener { streams_max: 3, ..Opener::new(secret()) };
        for stream in 0..50 {
            let mut envelope = sealer(stream).seal(CHANNEL, b"x").unwrap();
            envelope[HEAD_BYTES] ^= 1;
            assert_eq!(open(&mut opener, CHANNEL, &envelope), Err(Refused::Forged));
        }
        assert_eq!(opener.known.len(), 0);
        let mut first = sealer(0);
        for stream in 1..50 {
            assert!(open(&mut opener, CHANNEL, &first.seal(CHANNEL, b"x").unwrap()).is_ok());
            assert!(open(&mut opener, CHANNEL, &sealer(stream).seal(CHANNEL, b"x").unwrap()).is_ok());
        }
        assert_eq!(opener.known.len(), 3);
        assert!(opener.known.contains_key(&[0; STREAM_BYTES]), "who speaks is remembered");
    }

    proptest! {
        #[test]
        fn one_altered_byte_anywhere_and_any_cut_are_refused(
            frame in proptest::collection::vec(any::<u8>(), 0..200), place in any::<usize>(), flip in 1_u8..,
            cut in any::<usize>()
        ) {
            let mut envelope = sealer(1).seal(CHANNEL, &frame).unwrap();
            let length = envelope.len();
            let cut = envelope[..cut % length].to_vec();
            prop_assert!(open(&mut Opener::new(secret()), CHANNEL, &cut).is_err());
            envelope[place % length] ^= flip;
            prop_assert!(open(&mut Opener::new(secret()), CHANNEL, &envelope).is_err());
        }

        #[test]
        fn bytes_of_no_envelope_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            prop_assert!(open(&mut Opener::new(secret()), CHANNEL, &bytes).is_err());
        }
    }
}
