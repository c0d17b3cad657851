//! The texts that agents sign (agrenting.md, Annex S): fixed fields, one a line, under a line that says what for. Free
//! JSON enters only as the SHA-256 of its RFC 8785 form, so no signer needs a library for JSON.

use std::fmt::{self, Display, Write};

use serde::{Serialize, Serializer};
use sha2::{Digest as _, Sha256};

use super::{DOMAIN, PublicKey};
use crate::error_code::{ErrorCode, Refusal};
use crate::json::{Json, has_repeated_key};
use crate::money::Amount;
use crate::time::Timestamp;

/// Digits that every double keeps (IEEE 754 binary64): two numbers that differ within them are two doubles.
const EXACT_DIGITS: usize = 15;
/// Integers up to this one are doubles all (2^53, RFC 7493 §2.2).
const EXACT_INTEGER_MAX: u64 = 9_007_199_254_740_991;

/// Whether a number stands in a document of which canonical form would keep only a part, so that two documents had one
/// hash.
fn has_inexact_number(json: &str) -> bool {
    let mut rest = json;
    while let Some(start) = rest.find(|c: char| c == '"' || c.is_ascii_digit()) {
        let (_, from) = rest.split_at(start);
        if let Some(text) = from.strip_prefix('"') {
            // To the end of the text: a quote behind an even number of backslashes.
            let mut is_escaped = false;
            let end = text.find(|c| {
                let ends = c == '"' && !is_escaped;
                is_escaped = c == '\\' && !is_escaped;
                ends
            });
            rest = end.and_then(|end| text.get(end + 1..)).unwrap_or_default();
            continue;
        }
        let end =
            from.find(|c: char| !matches!(c, '0'..='9' | '.' | 'e' | 'E' | '+' | '-')).unwrap_or(from.len());
        let (number, after) = from.split_at(end);
        rest = after;
        let mantissa = number.split(['e', 'E']).next().unwrap_or_default();
        let digits: String = mantissa.chars().filter(char::is_ascii_digit).collect();
        let digits = digits.trim_start_matches('0');
        let significant = digits.trim_end_matches('0').len();
        let is_small_integer = number.parse::<u64>().is_ok_and(|integer| integer <= EXACT_INTEGER_MAX);
        if significant > EXACT_DIGITS && !is_small_integer {
            return true;
        }
    }
    false
}

/// A SHA-256, shown as lower-case hex.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Of bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Of a document in its canonical form (RFC 8785).
    ///
    /// # Errors
    /// [`ErrorCode::InvalidPayload`]: it has a number that is none in IEEE 754, or two fields of one name, so that it has no
    /// canonical form.
    pub fn of_json(document: &Json) -> Result<Self, Refusal> {
        let none =
            |_| Refusal::invalid("the document has no canonical form (RFC 8785): a number is out of range");
        if has_repeated_key(document) {
            return Err(Refusal::invalid(
                "the document has no canonical form (RFC 8785): a name stands twice",
            ));
        }
        if has_inexact_number(document.as_str()) {
            return Err(Refusal::invalid(
                "the document has no canonical form (RFC 8785): a number has more digits than a double keeps; write it as a string",
            ));
        }
        let value: serde_json::Value = document.parse().map_err(none)?;
        let mut canonical = Vec::new();
        serde_json_canonicalizer::to_writer(&value, &mut canonical).map_err(none)?;
        Ok(Self::of(&canonical))
    }

    /// Reads 64 hex digits, with or without `sha256:` before them.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        if hex.len() != 64 || !hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return None;
        }
        let mut bytes = [0; 32];
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&hex[at * 2..at * 2 + 2], 16).ok()?;
        }
        Some(Self(bytes))
    }

    /// The 32 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Reads what [`Self::as_bytes`] gave.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

fn lines(purpose: &str, fields: &[&dyn Display]) -> String {
    let mut text = format!("{DOMAIN}\n{purpose}");
    for field in fields {
        // Writing to a String does not fail.
        let _ok = write!(text, "\n{field}");
    }
    text
}

/// What the author of an offer signs. `own_offer_no` counts that agent's offers in this session, from 1.
#[must_use]
pub fn offer(
    session: &dyn Display,
    agent: &dyn Display,
    own_offer_no: u32,
    amount: Amount,
    terms: Digest,
) -> String {
    lines("negotiation.offer", &[session, agent, &own_offer_no, &amount.micros(), &terms])
}

/// What the accepter signs: the amount, and the two offers it is the average of.
#[must_use]
pub fn accept(
    session: &dyn Display,
    agent: &dyn Display,
    amount: Amount,
    (client_offer, provider_offer): (Amount, Amount),
    terms: Digest,
) -> String {
    let (client, provider) = (client_offer.micros(), provider_offer.micros());
    lines("negotiation.accept", &[session, agent, &amount.micros(), &client, &provider, &terms])
}

/// What the server attests of an agreement: everything in it that its parties have not signed themselves, and that their
/// three signatures belong to it.
#[derive(Clone, Copy)]
pub struct Attested<'a> {
    /// The agreement.
    pub agreement: &'a dyn Display,
    /// The negotiation it came of.
    pub session: &'a dyn Display,
    /// The task it is about, if there is one.
    pub task: Option<&'a dyn Display>,
    /// Who wants something done, and its key.
    pub client: (&'a dyn Display, &'a PublicKey),
    /// Who does it, and its key.
    pub provider: (&'a dyn Display, &'a PublicKey),
    /// The provider's.
    pub base_price: Amount,
    /// What was agreed.
    pub amount: Amount,
    /// Of the terms.
    pub terms: Digest,
    /// Of the 64 bytes of the signatures of the client's offer, the provider's offer, and the acceptance.
    pub signatures: [Digest; 3],
    /// When it was made.
    pub created_at: Timestamp,
}

impl Attested<'_> {
    /// What the server signs.
    #[must_use]
    pub fn statement(&self) -> String {
        let task = self.task.unwrap_or(&"-");
        let keys = [super::hex(self.client.1), super::hex(self.provider.1)];
        let (base_price, amount) = (self.base_price.micros(), self.amount.micros());
        let [client_offer, provider_offer, accept] = &self.signatures;
        lines(
            "negotiation.agreement",
            &[
                self.agreement,
                self.session,
                task,
                self.client.0,
                self.provider.0,
                &keys[0],
                &keys[1],
                &base_price,
                &amount,
                &self.terms,
                client_offer,
                provider_offer,
                accept,
                &self.created_at,
            ],
        )
    }
}

/// The two sides of a transfer, in the names under which they sign.
#[derive(Clone, Copy)]
pub struct Transfer<'a> {
    /// The payment channel.
    pub channel: &'a dyn Display,
    /// Which transfer of the channel.
    pub nonce: u64,
    /// Who pays.
    pub from: &'a dyn Display,
    /// Who is paid.
    pub to: &'a dyn Display,
    /// How much.
    pub amount: Amount,
    /// What the two have afterwards: who opened the channel first.
    pub balances: (Amount, Amount),
}

impl Transfer<'_> {
    fn lines(&self, purpose: &str) -> String {
        let (a, b) = (self.balances.0.micros(), self.balances.1.micros());
        lines(purpose, &[self.channel, &self.nonce, self.from, self.to, &self.amount.micros(), &a, &b])
    }

    /// What the payer signs.
    #[must_use]
    pub fn propose(&self) -> String {
        self.lines("payment.propose")
    }

    /// What the payee signs.
    #[must_use]
    pub fn acknowledge(&self) -> String {
        self.lines("payment.ack")
    }
}

/// What both sides sign to close a payment channel, the same for both.
#[must_use]
pub fn close(channel: &dyn Display, last_nonce: u64, balances: (Amount, Amount)) -> String {
    lines("payment.close", &[channel, &last_nonce, &balances.0.micros(), &balances.1.micros()])
}

/// A message as its sender signs it.
#[derive(Clone, Copy)]
pub struct Message<'a> {
    /// Sender.
    pub from: &'a dyn Display,
    /// Recipient.
    pub to: &'a dyn Display,
    /// Sort of message.
    pub kind: &'a str,
    /// Protocol version.
    pub version: &'a str,
    /// The sender's own name for it, if it has one.
    pub dedup_key: Option<&'a str>,
    /// Of its payload.
    pub payload: Digest,
}

impl Message<'_> {
    /// What the sender signs.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidPayload`]: a field has a line break or another control character, or the key is "-",
    /// which would make two statements of one text.
    pub fn statement(&self) -> Result<String, Refusal> {
        for (field, text) in [("type", self.kind), ("dedup_key", self.dedup_key.unwrap_or_default())] {
            if text.chars().any(char::is_control) {
                return Err(Refusal::field(ErrorCode::InvalidPayload, field, "no control characters"));
            }
        }
        if self.dedup_key == Some("-") {
            return Err(Refusal::field(ErrorCode::InvalidPayload, "dedup_key", "\"-\" stands for none"));
        }
        let key = self.dedup_key.unwrap_or("-");
        Ok(lines("message", &[self.from, self.to, &self.kind, &self.version, &key, &self.payload]))
    }
}

#[cfg(test)]
mod tests;
