//! The form of a journal row: a version, then one record for each append.
//!
//! A record is the 16 bytes of the task, then epoch, first seq and number of chunks, then each chunk: the length of its
//! key and one (0: no key), the key, the length of its body, the body. Numbers are LEB128: seven bits a byte, lowest
//! first.

use bytes::Bytes;
use muster_protocol::ids::TaskId;
use muster_protocol::json::Json;
use muster_protocol::task_stream::Chunk;
use smol_str::SmolStr;

/// First byte of every row.
const VERSION: u8 = 1;

/// One append of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Whose chunks.
    pub task: TaskId,
    /// Of the writer that appended them.
    pub epoch: u64,
    /// Without a gap.
    pub chunks: Vec<Chunk>,
}

/// A row that this program did not write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a row of the chunk journal is damaged, or of a newer version")]
pub struct Damaged;

/// Adds an append to a row; `chunks` are without a gap, from `first_seq`.
pub fn encode(row: &mut Vec<u8>, task: TaskId, epoch: u64, first_seq: u64, chunks: &[Chunk]) {
    if row.is_empty() {
        row.push(VERSION);
    }
    row.extend_from_slice(task.as_bytes());
    write_number(row, epoch);
    write_number(row, first_seq);
    write_number(row, chunks.len() as u64);
    for chunk in chunks {
        match &chunk.idempotency_key {
            None => row.push(0),
            Some(key) => {
                write_number(row, key.len() as u64 + 1);
                row.extend_from_slice(key.as_bytes());
            }
        }
        let body = chunk.body.as_bytes();
        write_number(row, body.len() as u64);
        row.extend_from_slice(body);
    }
}

/// Reads a row.
///
/// # Errors
/// It is not one.
pub fn decode(row: &[u8]) -> Result<Vec<Record>, Damaged> {
    let Some((&VERSION, mut rest)) = row.split_first() else { return Err(Damaged) };
    let mut records = Vec::new();
    while !rest.is_empty() {
        records.push(read_record(&mut rest)?);
    }
    Ok(records)
}

fn read_record(rest: &mut &[u8]) -> Result<Record, Damaged> {
    let id = take(rest, 16)?.try_into().map_err(|_| Damaged)?;
    let (epoch, first_seq, count) = (read_number(rest)?, read_number(rest)?, read_number(rest)?);
    let mut chunks = Vec::new();
    for index in 0..count {
        let key = match read_number(rest)? {
            0 => None,
            length => {
                let key = std::str::from_utf8(take(rest, length - 1)?).map_err(|_| Damaged)?;
                Some(SmolStr::new(key))
            }
        };
        let length = read_number(rest)?;
        let body = Json::from_trusted_bytes(Bytes::copy_from_slice(take(rest, length)?));
        let seq = first_seq.checked_add(index).ok_or(Damaged)?;
        chunks.push(Chunk { seq, body, idempotency_key: key });
    }
    Ok(Record { task: TaskId::from_bytes(id), epoch, chunks })
}

fn write_number(row: &mut Vec<u8>, mut number: u64) {
    loop {
        let [low, ..] = number.to_le_bytes();
        number >>= 7;
        if number == 0 {
            row.push(low & 0x7F);
            return;
        }
        row.push(low | 0x80);
    }
}

fn read_number(rest: &mut &[u8]) -> Result<u64, Damaged> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let byte = take(rest, 1)?[0];
        let bits = u64::from(byte & 0x7F);
        // The tenth byte has room for one bit.
        if shift == 63 && bits > 1 {
            return Err(Damaged);
        }
        number |= bits << shift;
        if byte < 0x80 {
            return Ok(number);
        }
    }
    Err(Damaged)
}

fn take<'a>(rest: &mut &'a [u8], count: u64) -> Result<&'a [u8], Damaged> {
    let count = usize::try_from(count).map_err(|_| Damaged)?;
    let (taken, left) = rest.split_at_checked(count).ok_or(Damaged)?;
    *rest = left;
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn records() -> impl Strategy<Value = Vec<Record>> {
        let chunk = (proptest::option::of("[a-zé]{0,200}"), "[ -!#-\\[\\]-~é]{0,300}");
        let record = (any::<[u8; 16]>(), any::<u64>(), 0..u64::MAX - 10, prop::collection::vec(chunk, 0..5));
        let record = record.prop_map(|(id, epoch, first_seq, chunks)| Record {
            task: TaskId::from_bytes(id),
            epoch,
            chunks: (first_seq..)
                .zip(chunks)
                .map(|(seq, (key, text))| Chunk {
                    seq,
                    body: Json::of(&text),
                    idempotency_key: key.map(Into::into),
                })
                .collect(),
        });
        prop::collection::vec(record, 1..6)
    }

    fn row_of(records: &[Record]) -> Vec<u8> {
        let mut row = Vec::new();
        for record in records {
            let first_seq = record.chunks.first().map_or(1, |chunk| chunk.seq);
            encode(&mut row, record.task, record.epoch, first_seq, &record.chunks);
        }
        row
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(records in records()) {
            prop_assert_eq!(decode(&row_of(&records)), Ok(records));
        }

        #[test]
        fn a_row_that_is_cut_inside_a_record_is_refused(records in records(), cut in any::<prop::sample::Index>()) {
            let row = row_of(&records);
            let cut = cut.index(row.len());
            let whole: Vec<usize> = (0..records.len()).map(|count| row_of(&records[..count]).len().max(1)).collect();
            match decode(&row[..cut]) {
                Ok(read) => {
                    prop_assert!(whole.contains(&cut), "cut at {}", cut);
                    prop_assert_eq!(&read[..], &records[..read.len()]);
                }
                Err(Damaged) => prop_assert!(!whole.contains(&cut), "cut at {}", cut),
            }
        }
    }

    #[test]
    fn other_versions_and_endless_numbers_are_refused() {
        assert_eq!(decode(&[]), Err(Damaged));
        assert_eq!(decode(&[VERSION + 1]), Err(Damaged));
        let mut row = vec![VERSION];
        row.extend_from_slice(&[7; 16]);
        row.extend_from_slice(&[0x80; 12]);
        assert_eq!(decode(&row), Err(Damaged));
    }
}
