//! Ed25519 keys and the bytes that are signed (agrenting.md, Annex S): domain-separated lines joined by `\n`.

pub mod statement;

use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use base64::{Engine, alphabet};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};

use crate::error_code::{ErrorCode, Refusal};
use crate::ids::AgentId;

/// First line of everything that is signed.
const DOMAIN: &str = "muster-sig-v1";

const ANY_PADDING: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const BASE64: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, ANY_PADDING);
const BASE64URL: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, ANY_PADDING);

/// An agent's public key: 32 bytes that are a point of large order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

impl PublicKey {
    /// Reads base64, base64url or hex.
    ///
    /// # Errors
    /// Not 32 bytes, not a point of the curve, or of small order, which would verify almost anything.
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        let refuse = |message: &str| Refusal::field(ErrorCode::InvalidPayload, "public_key", message);
        let bytes: [u8; 32] = decode(text).ok_or_else(|| refuse("32 bytes as base64, base64url or hex"))?;
        Self::from_bytes(bytes).ok_or_else(|| refuse("not a usable Ed25519 key"))
    }

    /// From stored bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Option<Self> {
        if !is_canonical(&bytes) {
            return None;
        }
        VerifyingKey::from_bytes(&bytes).ok().filter(|key| !key.is_weak()).map(Self)
    }

    /// The 32 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    /// As shown: base64.
    #[must_use]
    pub fn to_base64(&self) -> String {
        BASE64.encode(self.as_bytes())
    }

    /// Checks a signature (64 bytes as base64, base64url or hex) over a statement, strictly: canonical encodings only.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidSignature`]
    pub fn verify(&self, statement: &str, signature: &str) -> Result<(), Refusal> {
        let invalid = || Refusal::new(ErrorCode::InvalidSignature);
        let bytes: [u8; 64] = decode(signature).ok_or_else(invalid)?;
        self.0.verify_strict(statement.as_bytes(), &Signature::from_bytes(&bytes)).map_err(|_| invalid())
    }
}

/// The key with which the server itself signs what it attests: one for all nodes that share a store.
#[derive(Clone)]
pub struct ServerKey(SigningKey);

impl ServerKey {
    /// From 32 random bytes.
    #[must_use]
    pub fn from_seed(seed: [u8; 32]) -> Self {
        Self(SigningKey::from_bytes(&seed))
    }

    /// What others verify with.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }

    /// Signs a text: base64.
    #[must_use]
    pub fn sign(&self, statement: &str) -> String {
        BASE64.encode(self.0.sign(statement.as_bytes()).to_bytes())
    }
}

impl std::fmt::Debug for ServerKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ServerKey({})", self.public().to_base64())
    }
}

/// The 64 bytes of a signature, whichever way it is written.
#[must_use]
pub fn signature_bytes(signature: &str) -> Option<[u8; 64]> {
    decode(signature)
}

/// Whether the y coordinate is below the field's prime, 2^255 - 19: a point must have one spelling only.
fn is_canonical(bytes: &[u8; 32]) -> bool {
    let all_ones_above = bytes[1..31].iter().all(|byte| *byte == 0xFF) && bytes[31] & 0x7F == 0x7F;
    !(all_ones_above && bytes[0] >= 0xED)
}

pub(crate) fn decode<const N: usize>(text: &str) -> Option<[u8; N]> {
    let from_hex = || {
        // Digits only: the standard reader takes a sign in the place of the first.
        if text.len() != N * 2 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        (0..N).map(|at| u8::from_str_radix(&text[at * 2..at * 2 + 2], 16).ok()).collect::<Option<Vec<u8>>>()
    };
    // A hex text of these lengths decodes as base64 too, but to another length, so the order does not matter.
    [from_hex(), BASE64.decode(text).ok(), BASE64URL.decode(text).ok()]
        .into_iter()
        .flatten()
        .find_map(|bytes| bytes.try_into().ok())
}

/// What the old key signs when an agent's key changes (R21): the agent and the new key, in lower-case hex.
#[must_use]
pub fn public_key_statement(agent: AgentId, new_key: &PublicKey) -> String {
    format!("{DOMAIN}\nagent.public_key\n{agent}\n{}", hex(new_key))
}

/// A key as it stands in what is signed: lower-case hex.
fn hex(key: &PublicKey) -> String {
    key.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Timestamp;

    #[test]
    fn keys_and_signatures_are_read_in_three_spellings() {
        let signer = SigningKey::from_bytes(&[1; 32]);
        let bytes = signer.verifying_key().to_bytes();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        for text in
            [BASE64.encode(bytes), BASE64URL.encode(bytes).trim_end_matches('=').to_owned(), hex.clone()]
        {
            assert_eq!(PublicKey::parse(&text).unwrap().as_bytes(), &bytes, "{text}");
        }
        // The same key with a sign in the place of a zero.
        let signed = hex.replacen("09", "+9", 1);
        assert_ne!(signed, hex);
        for bad in
            ["", "AAAA", &signed, &"zz".repeat(32), &BASE64.encode([0; 32]), &BASE64.encode([0xFF; 32])]
        {
            assert!(PublicKey::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_key_change_is_signed_for_one_agent_and_one_key() {
        let signer = SigningKey::from_bytes(&[1; 32]);
        let old = PublicKey::from_bytes(signer.verifying_key().to_bytes()).unwrap();
        let new = PublicKey::from_bytes(SigningKey::from_bytes(&[2; 32]).verifying_key().to_bytes()).unwrap();
        let agent = AgentId::new(Timestamp::from_unix_ms(1), [0; 10]);
        let other = AgentId::new(Timestamp::from_unix_ms(1), [1; 10]);
        let signature = BASE64.encode(signer.sign(public_key_statement(agent, &new).as_bytes()).to_bytes());
        assert_eq!(old.verify(&public_key_statement(agent, &new), &signature), Ok(()));
        assert!(old.verify(&public_key_statement(other, &new), &signature).is_err());
        assert!(old.verify(&public_key_statement(agent, &old), &signature).is_err());
        assert!(new.verify(&public_key_statement(agent, &new), &signature).is_err());
        assert!(old.verify(&public_key_statement(agent, &new), "AAAA").is_err());
    }
}
