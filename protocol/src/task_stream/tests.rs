//! Tables and a model check of the log.

use proptest::prelude::*;

use super::*;

fn new(content: &str, key: Option<&str>) -> NewChunk {
    NewChunk {
        content: content.into(),
        kind: ChunkKind::Chat,
        metadata: Json::empty_object(),
        idempotency_key: key.map(Into::into),
    }
}

fn seqs(read: &Read<'_>) -> Vec<u64> {
    match read {
        Read::Chunks(chunks) => chunks.iter().map(|chunk| chunk.seq).collect(),
        other => panic!("{other:?}"),
    }
}

const ALL: usize = usize::MAX;

#[test]
fn a_chunk_is_encoded_once_with_seq_and_time() {
    let mut log = StreamLog::default();
    let chunk = log.append(new("a\"é\u{1}", Some("k")), Timestamp::from_unix_ms(1));
    assert_eq!(
        chunk.body.as_str(),
        r#"{"seq":1,"content":"a\"é\u0001","kind":"chat","timestamp":"1970-01-01T00:00:00.001Z","metadata":{}}"#
    );
    assert_eq!(log.seq_of_key("k"), Some(1));
    assert_eq!(log.append(new("b", None), Timestamp::default()).seq, 2);
}

#[test]
fn readers_are_sent_to_memory_store_or_the_end() {
    let mut log = StreamLog::default();
    assert_eq!(log.read(0, u64::MAX, ALL), Read::End);
    for n in 0..10 {
        log.append(new("x", Some(&format!("k{n}"))), Timestamp::default());
    }
    assert_eq!(seqs(&log.read(0, u64::MAX, ALL)), (1..=10).collect::<Vec<_>>());
    assert_eq!(seqs(&log.read(7, u64::MAX, ALL)), [8, 9, 10]);
    assert_eq!(seqs(&log.read(7, u64::MAX, 1)), [8], "at least one");
    assert_eq!(log.read(10, u64::MAX, ALL), Read::End);
    assert_eq!(log.read(99, u64::MAX, ALL), Read::End);

    let retain = Retain { chunks_max: 3, bytes_max: ALL };
    assert_eq!(log.trim(retain), 0, "nothing is dropped before it is durable");
    log.confirm(6);
    assert!(log.trim(retain) > 0);
    assert_eq!((log.first_in_memory(), log.durable_seq()), (7, 6));
    assert_eq!(log.read(0, u64::MAX, ALL), Read::Stored { upto: 6 });
    assert_eq!(seqs(&log.read(6, u64::MAX, ALL)), [7, 8, 9, 10]);
    assert_eq!((log.seq_of_key("k5"), log.seq_of_key("k6")), (None, Some(7)));
    assert!(log.has_chunks_only_in_store());
    log.confirm(10);
    log.trim(Retain { chunks_max: 0, bytes_max: 0 });
    assert_eq!((log.bytes(), log.first_in_memory()), (0, 11));
    assert_eq!(log.read(4, u64::MAX, ALL), Read::Stored { upto: 10 });
    assert_eq!(log.read(10, u64::MAX, ALL), Read::End);
}

#[test]
fn a_restored_log_goes_on_where_it_was() {
    let mut log = StreamLog::default();
    let chunks: Vec<_> = (0..5).map(|_| log.append(new("x", None), Timestamp::default())).collect();
    let mut restored = StreamLog::restore(5, chunks[3..].to_vec());
    assert_eq!((restored.durable_seq(), restored.first_in_memory()), (5, 4));
    assert_eq!(restored.append(new("y", None), Timestamp::default()).seq, 6);
    assert_eq!(restored.read(0, u64::MAX, ALL), Read::Stored { upto: 3 });
    assert_eq!(StreamLog::restore(5, Vec::new()).append(new("y", None), Timestamp::default()).seq, 6);
}

proptest! {
    /// Whatever is appended, confirmed and trimmed in between: readers of any pace see every seq once, in order.
    #[test]
    fn readers_see_every_seq_once(steps in proptest::collection::vec((0_u8..4, 1_usize..400), 1..200)) {
        let mut log = StreamLog::default();
        let mut store: Vec<u64> = Vec::new();
        let mut cursor = 0;
        let mut seen = Vec::new();
        for (step, size) in steps {
            match step {
                0 => store.push(log.append(new(&"x".repeat(size), None), Timestamp::default()).seq),
                1 => log.confirm(log.durable_seq() + size as u64 % 4),
                2 => {
                    log.trim(Retain { chunks_max: size % 8, bytes_max: size * 10 });
                }
                _ => match log.read(cursor, u64::MAX, size) {
                    Read::Chunks(chunks) => seen.extend(chunks.iter().map(|chunk| chunk.seq)),
                    Read::Stored { upto } => {
                        prop_assert!(upto <= log.durable_seq());
                        seen.extend(store.iter().filter(|seq| **seq > cursor && **seq <= upto));
                    }
                    Read::End => prop_assert_eq!(cursor, log.last_seq()),
                },
            }
            cursor = seen.last().copied().unwrap_or(0);
        }
        prop_assert_eq!(&seen, &(1..=seen.len() as u64).collect::<Vec<_>>());
    }
}

#[test]
fn a_log_that_follows_another_takes_the_next_chunk_only_and_can_go_back_or_ahead() {
    let mut owner = StreamLog::default();
    let chunks: Vec<Chunk> =
        (0..6).map(|n| owner.append(new("x", Some(&format!("k{n}"))), Timestamp::from_unix_ms(0))).collect();
    let mut log = StreamLog::default();
    assert!(!log.append_given(chunks[1].clone()), "a gap");
    for chunk in &chunks[..4] {
        assert!(log.append_given(chunk.clone()));
    }
    assert!(!log.append_given(chunks[3].clone()), "a repeat");
    log.confirm(2);
    log.truncate(2);
    assert_eq!((log.last_seq(), log.durable_seq(), log.seq_of_key("k2")), (2, 2, None));
    assert!(log.append_given(chunks[2].clone()));
    assert_eq!(log.read(0, u64::MAX, usize::MAX), Read::Chunks(chunks[..3].iter().collect()));
    assert_eq!(log.read(0, 2, usize::MAX), Read::Chunks(chunks[..2].iter().collect()), "and not after");
    assert_eq!(log.read(2, 2, usize::MAX), Read::End);
    log.skip_to(5);
    assert_eq!(log.read(3, 4, usize::MAX), Read::Stored { upto: 4 });
    assert_eq!(log.read(3, u64::MAX, usize::MAX), Read::Stored { upto: 5 });
    assert_eq!((log.bytes(), log.durable_seq()), (0, 5));
    assert!(log.append_given(chunks[5].clone()));
    log.skip_to(3);
    assert_eq!(log.last_seq(), 6, "never back");
}
