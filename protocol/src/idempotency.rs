//! Requests that are done once however often they are sent (agrenting.md R125), as a pure state machine over the record of
//! a key.

use sha2::{Digest, Sha256};

use crate::error_code::{ErrorCode, Refusal};
use crate::time::Timestamp;

/// How long a key stands, in milliseconds: 24 hours.
pub const KEPT_MS: i64 = 24 * 3_600_000;
/// How long a request that was begun keeps its key without an answer, in milliseconds: then its node is taken for gone,
/// and the request is done again. No request takes as long.
pub const LEASE_MS: i64 = 60_000;

/// Where a key stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyState {
    /// A request is being done.
    Pending,
    /// It was done.
    Completed,
    /// It was refused, and would be again.
    FailedFinal,
    /// It failed in a way that may pass: the same request is done again.
    FailedRetriable,
}

crate::agent::text_forms!(KeyState {
    Pending = "pending",
    Completed = "completed",
    FailedFinal = "failed_final",
    FailedRetriable = "failed_retriable",
});

impl KeyState {
    /// What an answer of this HTTP status means for its key.
    #[must_use]
    pub const fn of_status(status: u16) -> Self {
        match status {
            // Who asks again may have another key by then, or more time, or more luck.
            401 | 408 | 429 | 500.. => Self::FailedRetriable,
            400..=499 => Self::FailedFinal,
            _ => Self::Completed,
        }
    }
}

/// A hash of 32 bytes: of whose key it is, and of what was asked under it.
pub type Hash = [u8; 32];

/// Hash of parts, each told apart from the next.
#[must_use]
pub fn hash(parts: &[&[u8]]) -> Hash {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

/// What is known under a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Of what was asked.
    pub fingerprint: Hash,
    /// Where it stands.
    pub state: KeyState,
    /// When it was first asked.
    pub created_at: Timestamp,
    /// Until when a pending one is.
    pub lease_until: Timestamp,
    /// What it was answered, if it was.
    pub answer: Option<KeptAnswer>,
}

/// An answer that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptAnswer {
    /// HTTP status.
    pub status: u16,
    /// Body; none when it was too large, or holds a secret.
    pub body: Option<Vec<u8>>,
}

/// What is to be done with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Begun {
    /// It is done; its key is pending from now on.
    Run,
    /// It was done: this was the answer.
    Replay(KeptAnswer),
}

/// What is to be done with a request whose key has this record.
///
/// # Errors
/// `idempotency_mismatch`: something else was asked under the key; `idempotency_pending`: the same is being done.
pub fn begin(record: Option<&Record>, fingerprint: &Hash, now: Timestamp) -> Result<Begun, Refusal> {
    let Some(record) = record.filter(|record| now < record.created_at.plus_ms(KEPT_MS)) else {
        return Ok(Begun::Run);
    };
    if record.fingerprint != *fingerprint {
        return Err(ErrorCode::IdempotencyMismatch.into());
    }
    match (record.state, &record.answer) {
        (KeyState::Pending, _) if now < record.lease_until => Err(ErrorCode::IdempotencyPending.into()),
        (KeyState::Completed | KeyState::FailedFinal, Some(answer)) => Ok(Begun::Replay(answer.clone())),
        _ => Ok(Begun::Run),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_unix_ms(ms)
    }

    fn record(state: KeyState) -> Record {
        let answer =
            (state != KeyState::Pending).then(|| KeptAnswer { status: 201, body: Some(b"{}".to_vec()) });
        Record { fingerprint: [1; 32], state, created_at: at(0), lease_until: at(LEASE_MS), answer }
    }

    /// R125
    #[test]
    fn a_key_stands_for_one_request_for_a_day() {
        let begun = |state, fingerprint, ms| {
            begin(Some(&record(state)), &[fingerprint; 32], at(ms)).map_err(|refusal| refusal.code)
        };
        let replay = Ok(Begun::Replay(KeptAnswer { status: 201, body: Some(b"{}".to_vec()) }));
        assert_eq!(begin(None, &[1; 32], at(0)), Ok(Begun::Run));
        assert_eq!(begun(KeyState::Pending, 1, 1), Err(ErrorCode::IdempotencyPending));
        assert_eq!(begun(KeyState::Pending, 1, LEASE_MS), Ok(Begun::Run), "its node is gone");
        assert_eq!(begun(KeyState::Completed, 1, KEPT_MS - 1), replay);
        assert_eq!(begun(KeyState::FailedFinal, 1, 1), replay);
        assert_eq!(begun(KeyState::FailedRetriable, 1, 1), Ok(Begun::Run));
        for state in
            [KeyState::Pending, KeyState::Completed, KeyState::FailedFinal, KeyState::FailedRetriable]
        {
            assert_eq!(begun(state, 2, LEASE_MS), Err(ErrorCode::IdempotencyMismatch), "{state:?}");
            assert_eq!(begun(state, 2, KEPT_MS), Ok(Begun::Run), "{state:?}");
        }
    }

    /// R125
    #[test]
    fn what_may_pass_is_tried_again() {
        for (status, state) in [
            (200, KeyState::Completed),
            (202, KeyState::Completed),
            (409, KeyState::FailedFinal),
            (422, KeyState::FailedFinal),
            (401, KeyState::FailedRetriable),
            (429, KeyState::FailedRetriable),
            (500, KeyState::FailedRetriable),
            (503, KeyState::FailedRetriable),
        ] {
            assert_eq!(KeyState::of_status(status), state, "{status}");
        }
        assert_ne!(hash(&[b"ab", b"c"]), hash(&[b"a", b"bc"]));
    }
}
