//! Tests of the channel of a task, without a store.

use proptest::prelude::*;

use super::batch::{Batch, PutChunk, TaskFacts};
use super::payloads::*;
use super::*;
use crate::ids::{AgentId, TaskId};
use crate::task::TaskStatus;
use crate::time::Timestamp;

const BOUNDS: StreamBounds = StreamBounds { bytes_max: 1_000, chunks_max: 50 };

fn code<T>(result: Result<T, Refusal>) -> Option<ErrorCode> {
    result.err().map(|refusal| refusal.code)
}

/// R70
#[test]
fn the_first_chunk_fixes_where_a_stream_begins() {
    let begun = |seqs: &[u64]| {
        let mut state = StreamState::default();
        let taken: Vec<bool> = seqs.iter().map(|seq| state.take(*seq, 1, None, BOUNDS).is_ok()).collect();
        (state.first_seq(), taken.iter().filter(|taken| **taken).count())
    };
    assert_eq!(begun(&[0, 1, 2]), (0, 3));
    assert_eq!(begun(&[1, 2, 3]), (1, 3));
    assert_eq!(begun(&[1, 0]), (1, 1), "nothing comes before the first");
    assert_eq!(begun(&[4, 3, 2, 1, 0]), (0, 5), "out of order it is open until chunk 0 comes");
    assert_eq!(begun(&[3, 1, 2]), (1, 3));
}

/// R70 R71 R72
#[test]
fn a_known_seq_is_a_duplicate_or_a_conflict_and_bounds_hold() {
    let mut state = StreamState::default();
    assert_eq!(state.take(1, 600, None, BOUNDS), Ok(Taken::New(1)));
    let before = state;
    assert_eq!(state.take(1, 600, Some(true), BOUNDS), Ok(Taken::Duplicate));
    assert_eq!(code(state.take(1, 600, Some(false), BOUNDS)), Some(ErrorCode::SeqConflict));
    assert_eq!(code(state.take(2, 401, None, BOUNDS)), Some(ErrorCode::StreamTooLarge));
    assert_eq!(state, before, "what is refused changes nothing");
    assert_eq!(state.take(9, 400, None, BOUNDS), Ok(Taken::New(2)));
    // The 49 before it would still fit, the one before those not.
    assert_eq!(code(state.take(51, 0, None, BOUNDS)), Some(ErrorCode::StreamTooLarge));
    assert_eq!(state.clone().take(50, 0, None, BOUNDS), Ok(Taken::New(3)));
    let mut many = StreamState { chunks: 50, ..StreamState::default() };
    assert_eq!(code(many.take(51, 0, None, BOUNDS)), Some(ErrorCode::StreamTooLarge));
    let closing = Closing { checksum: Checksum::of(b""), total_size: 0 };
    let mut closed = StreamState { closing: Some(closing), ..StreamState::default() };
    assert_eq!(code(closed.take(1, 1, None, BOUNDS)), Some(ErrorCode::StreamComplete));
    assert_eq!(closed.take(1, 1, Some(true), BOUNDS), Ok(Taken::Duplicate));
    assert_eq!(closed.has_ended_so(&closing), Ok(true));
    let other = Closing { total_size: 1, ..closing };
    assert_eq!(code(closed.has_ended_so(&other)), Some(ErrorCode::StreamComplete));
    assert_eq!(StreamState::default().has_ended_so(&other), Ok(false));
}

fn verify(seqs: &[u64], closing: Closing) -> Result<(), Refusal> {
    let mut state = StreamState::default();
    for seq in seqs {
        state.take(*seq, 1, None, StreamBounds { chunks_max: u64::MAX, ..BOUNDS }).unwrap();
    }
    let mut verifier = Verifier::new(&state);
    let mut sorted = seqs.to_vec();
    sorted.sort_unstable();
    for seq in sorted {
        verifier.feed(seq, format!("<{seq}>").as_bytes());
    }
    verifier.finish(&closing)
}

/// R72
#[test]
fn a_checksum_is_of_all_bytes_in_the_order_of_seqs() {
    let of = |text: &str| Closing { checksum: Checksum::of(text.as_bytes()), total_size: text.len() as u64 };
    assert_eq!(verify(&[3, 1, 2], of("<1><2><3>")), Ok(()));
    assert_eq!(verify(&[0, 1], of("<0><1>")), Ok(()));
    assert_eq!(verify(&[], of("")), Ok(()), "a stream may be empty");
    let wrong = verify(&[1], of("<2>")).unwrap_err();
    assert_eq!(wrong.code, ErrorCode::ChecksumMismatch);
    let names: Vec<_> = wrong.details.iter().map(|(name, _)| name.as_ref()).collect();
    assert_eq!(names, ["expected", "actual", "size"]);
    assert_eq!(wrong.details[1].1.as_str(), format!("\"{}\"", Checksum::of(b"<1>")));
    assert_eq!(wrong.details[2].1.as_str(), "3");
    let size = Closing { total_size: 4, ..of("<1>") };
    assert_eq!(code(verify(&[1], size)), Some(ErrorCode::ChecksumMismatch), "the size is part of it");
    let missing = verify(&[1, 4, 6], of("")).unwrap_err();
    assert_eq!(missing.code, ErrorCode::MissingChunks);
    assert_eq!(missing.details[0].1.as_str(), "[2,3,5]");
    let far = verify(&[1, SEQ_MAX], of("")).unwrap_err();
    assert_eq!(far.details[0].1.parse::<Vec<u64>>().unwrap().len(), MISSING_SEQS_MAX);
    assert_eq!(far.details[1].1.as_str(), (SEQ_MAX - 2).to_string());
}

#[test]
fn checksums_are_lower_case_hex() {
    let sum = Checksum::of(b"abc");
    assert_eq!(sum.to_string(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    assert_eq!(Checksum::parse(&sum.to_string()), Some(sum));
    assert_eq!(Checksum::parse(&format!("sha256:{sum}")), Some(sum));
    for wrong in ["", "sha256:", "x", &sum.to_string().to_uppercase(), &format!("{sum}0"), &"é".repeat(32)] {
        assert_eq!(Checksum::parse(wrong), None, "{wrong}");
    }
}

/// R71
#[test]
fn chunks_are_text_or_base64_and_leave_as_they_came() {
    let limits = Limits::default();
    let read = |json: &str| read_chunk(json, &limits);
    let text = read(r#"{"chunk":"é\u0000","seq":0}"#).unwrap();
    assert_eq!((text.bytes.as_slice(), text.is_base64), ("é\0".as_bytes(), false));
    assert_eq!(text.payload().as_str(), r#"{"chunk":"é\u0000","seq":0}"#);
    let binary = read(r#"{"chunk":"/wA=","seq":7,"encoding":"base64"}"#).unwrap();
    assert_eq!(binary.bytes, [0xFF, 0]);
    assert_eq!(binary.payload().as_str(), r#"{"chunk":"/wA=","seq":7,"encoding":"base64"}"#);
    assert_eq!(read(r#"{"chunk":"a\ud800","seq":1}"#).unwrap().bytes, "a\u{FFFD}".as_bytes());
    for (json, field) in [
        (r#"{"chunk":"/wA","seq":7,"encoding":"base64"}"#, "chunk"),
        (r#"{"chunk":"a","seq":7,"encoding":"hex"}"#, "encoding"),
        (r#"{"chunk":"a"}"#, "seq"),
        (r#"{"chunk":"a","seq":-1}"#, "seq"),
        (r#"{"chunk":"a","seq":1.5}"#, "seq"),
        (r#"{"chunk":"a","seq":9007199254740992}"#, "seq"),
        (r#"{"chunk":7,"seq":1}"#, "chunk"),
        (r#"{"seq":1}"#, "chunk"),
    ] {
        let refusal = read(json).unwrap_err();
        assert_eq!(
            (refusal.code, refusal.field.as_deref()),
            (ErrorCode::InvalidPayload, Some(field)),
            "{json}"
        );
    }
    let of = |size: usize| format!("{{\"chunk\":\"{}\",\"seq\":1}}", "x".repeat(size));
    assert!(read(&of(256 * 1024)).is_ok());
    assert_eq!(code(read(&of(256 * 1024 + 1))), Some(ErrorCode::PayloadTooLarge));
}

/// R74 R76 R78
#[test]
fn what_the_provider_says_is_checked() {
    let limits = Limits::default();
    let percent = |json: &str| read_progress(json, &limits).map(|progress| progress.percent.get()).ok();
    assert_eq!(percent(r#"{"percent":0}"#), Some(0.0));
    assert_eq!(percent(r#"{"percent":99.5,"message":"nearly"}"#), Some(99.5));
    for wrong in
        [r#"{"percent":-0.1}"#, r#"{"percent":100.1}"#, r#"{"percent":"7"}"#, "{}", r#"{"percent":1e999}"#]
    {
        assert_eq!(percent(wrong), None, "{wrong}");
    }
    assert!(read_error(r#"{"type":"timeout","details":{"n":1}}"#).is_ok());
    for wrong in ["{}", r#"{"type":""}"#, r#"{"type":7}"#] {
        assert_eq!(code(read_error(wrong)), Some(ErrorCode::InvalidPayload), "{wrong}");
    }
    let at = |seq, state: &str| Checkpoint { seq, state: Json::of(state) };
    assert_eq!(at(3, "a").replaces(None), Ok(true));
    assert_eq!(at(3, "a").replaces(Some(&at(2, "b"))), Ok(true));
    assert_eq!(at(3, "a").replaces(Some(&at(3, "a"))), Ok(false));
    assert_eq!(code(at(3, "a").replaces(Some(&at(3, "b")))), Some(ErrorCode::SeqConflict));
    assert_eq!(code(at(3, "a").replaces(Some(&at(4, "a")))), Some(ErrorCode::StaleCheckpoint));
    let large = format!("{{\"seq\":1,\"state\":\"{}\"}}", "x".repeat(256 * 1024));
    assert_eq!(code(read_checkpoint(&large, &limits)), Some(ErrorCode::InvalidPayload));
}

fn agent(n: u8) -> AgentId {
    AgentId::new(Timestamp::from_unix_ms(1), [n; 10])
}

fn put(task: TaskId, direction: Direction, by: u8, seq: u64, text: &str) -> PutChunk {
    let bytes = text.as_bytes().to_vec();
    let digest = Checksum::of(&bytes);
    let now = Timestamp::from_unix_ms(1);
    PutChunk {
        task,
        direction,
        by: agent(by),
        chunk: ChannelChunk { seq, bytes, is_base64: false },
        digest,
        now,
    }
}

/// R69 R79
#[test]
fn each_side_sends_its_own_direction_while_the_task_is_active() {
    let task = TaskId::new(Timestamp::from_unix_ms(1), [0; 10]);
    let facts = TaskFacts { status: TaskStatus::Pending, client: agent(1), provider: agent(2) };
    let of = |facts| Batch { tasks: [(task, facts)].into(), ..Batch::default() };
    let mut batch = of(facts);
    let take = |batch: &mut Batch, direction, by, seq, text| {
        batch.take(&put(task, direction, by, seq, text), BOUNDS).map_err(|refusal| refusal.code)
    };
    assert_eq!(take(&mut batch, Direction::Input, 2, 1, "a"), Err(ErrorCode::Unauthorized));
    assert_eq!(take(&mut batch, Direction::Output, 1, 1, "a"), Err(ErrorCode::Unauthorized));
    assert_eq!(take(&mut batch, Direction::Input, 3, 1, "a"), Err(ErrorCode::Unauthorized));
    assert!(batch.grown.is_empty());
    assert_eq!(take(&mut batch, Direction::Input, 1, 1, "a"), Ok(Taken::New(1)));
    assert!(batch.begun.is_empty(), "input begins nothing");
    assert_eq!(take(&mut batch, Direction::Output, 2, 1, "a"), Ok(Taken::New(1)));
    assert_eq!(take(&mut batch, Direction::Output, 2, 2, "b"), Ok(Taken::New(2)));
    assert_eq!(batch.begun.len(), 1);
    assert_eq!(take(&mut batch, Direction::Output, 2, 2, "b"), Ok(Taken::Duplicate));
    assert_eq!(take(&mut batch, Direction::Output, 2, 2, "c"), Err(ErrorCode::SeqConflict));
    assert_eq!(batch.grown.len(), 2);
    let mut ended = of(TaskFacts { status: TaskStatus::Completed, ..facts });
    ended.known = batch.known;
    assert_eq!(take(&mut ended, Direction::Output, 2, 3, "c"), Err(ErrorCode::TaskNotActive));
    assert_eq!(take(&mut ended, Direction::Output, 2, 2, "b"), Ok(Taken::Duplicate), "asked again");
    assert_eq!(take(&mut ended, Direction::Output, 3, 2, "b"), Err(ErrorCode::Unauthorized));
    let mut unknown = Batch::default();
    assert_eq!(take(&mut unknown, Direction::Input, 1, 1, "a"), Err(ErrorCode::Unauthorized));
}

proptest! {
    /// R70 R72
    #[test]
    fn whatever_the_order_and_the_repetitions_the_sum_is_that_of_the_text(
        base in 0_u64..=1,
        parts in prop::collection::vec("[a-z]{0,5}", 1..20),
        order in prop::collection::vec(any::<prop::sample::Index>(), 0..60),
    ) {
        let mut state = StreamState::default();
        let mut stored: std::collections::BTreeMap<u64, Vec<u8>> = std::collections::BTreeMap::new();
        let all = (0..parts.len()).chain(order.iter().map(|index| index.index(parts.len())));
        let mut order: Vec<usize> = all.collect();
        // The first chunk stays the first: it says where the stream begins.
        order[1..].reverse();
        for at in order {
            let (seq, bytes) = (base + at as u64, parts[at].as_bytes());
            let is_same = stored.get(&seq).map(|known| known == bytes);
            match state.take(seq, bytes.len(), is_same, BOUNDS) {
                Ok(Taken::New(_)) => prop_assert!(stored.insert(seq, bytes.to_vec()).is_none()),
                Ok(Taken::Duplicate) => prop_assert!(is_same == Some(true)),
                Err(refusal) => prop_assert!(false, "{refusal:?}"),
            }
        }
        let whole = parts.concat();
        prop_assert_eq!((state.chunks, state.bytes), (parts.len() as u64, whole.len() as u64));
        let mut verifier = Verifier::new(&state);
        for (seq, bytes) in &stored {
            verifier.feed(*seq, bytes);
        }
        let closing = Closing { checksum: Checksum::of(whole.as_bytes()), total_size: whole.len() as u64 };
        prop_assert_eq!(verifier.finish(&closing), Ok(()));
    }
}
