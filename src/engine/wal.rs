//! Whether a write-ahead log ends where a crash tore it, or is damaged before its end.
//!
//! DuckDB reads a log up to an entry that claims to be longer than what is left of the file, because that is what a crash
//! in the middle of a write leaves behind, and then cuts the rest off. A flipped bit in an entry's length looks the same,
//! and every commit behind it would be gone without a word. The difference is what follows: behind a torn entry there is
//! nothing, behind a damaged length there are whole entries with right checksums.
//!
//! The same goes for the log's head, which has no checksum: where it cannot be read, DuckDB drops the whole log.
//!
//! The format (storage/write_ahead_log.cpp, version 2): the head, then entries of a length (8 bytes, little-endian), a
//! checksum (8) and the payload. What this does not understand it leaves to DuckDB.

use std::path::Path;

use super::hold::beside;
use crate::error::{Error, Result};

/// A log is checkpointed long before (16 MiB by default); a larger one is not looked at.
const MAX_LOG: u64 = 256 * 1024 * 1024;

/// Bytes that the search for whole entries may sum up: some seconds of work, and only where a tail looks torn.
const MAX_WORK: usize = 2 << 30;

/// Refuses a log from which DuckDB would silently drop commits. Reads only.
pub(super) fn check(database: &Path) -> Result<()> {
    for ending in [".wal", ".wal.checkpoint"] {
        let path = beside(database, ending);
        if std::fs::metadata(&path).map_or(0, |file| file.len()) > MAX_LOG {
            continue;
        }
        // What cannot be read is DuckDB's to tell.
        let Ok(log) = std::fs::read(&path) else { continue };
        if let Some(at) = damaged_at(&log) {
            return Err(Error::Corrupt(format!(
                "cannot open database {}: its write-ahead log {} is corrupt: what is at byte {at} cannot be right, but \
                 whole entries follow it; nothing was changed. Restore a backup (`mallard restore`), or keep a \
                 copy of both files and move the log away, which loses every write since the last checkpoint",
                database.display(),
                path.display()
            )));
        }
    }
    Ok(())
}

/// Where the head, or an entry's length, cannot be right although the log goes on behind it.
fn damaged_at(log: &[u8]) -> Option<usize> {
    let mut work = MAX_WORK;
    let mut goes_on = |from: usize| (from..log.len()).any(|at| is_entry(log, at, &mut work));
    let Some(mut at) = head_length(log) else { return goes_on(0).then_some(0) };
    loop {
        let (length, checksum) = (word(log, at)?, word(log, at + 8)?);
        // Zeros are what a file system leaves where it had no time to write.
        if (length, checksum) == (0, 0) {
            return None;
        }
        match payload(log, at) {
            Some(payload) => at += 16 + payload.len(),
            None => return goes_on(at + 1).then_some(at),
        }
    }
}

/// How long a whole head is: fields 100 (a version follows), 101 (it is 2), and, since DuckDB 1.3, 102 (the 16 bytes that
/// the database is known by) and 103 (the checkpoint that the log follows), whose values DuckDB compares with the
/// database's. Numbers have seven bits a byte, the lowest first.
fn head_length(log: &[u8]) -> Option<usize> {
    let rest = log.strip_prefix(&[100, 0, 98, 101, 0, 2])?;
    let Some(mut rest) = rest.strip_prefix(&[102, 0, 16]) else { return end_of_head(log, rest) };
    for _ in 0..16 {
        rest = match rest {
            [0..=0x7f, rest @ ..] | [0x80..=0xff, 1, rest @ ..] => rest,
            _ => return None,
        };
    }
    let rest = rest.strip_prefix(&[103, 0])?;
    let number = rest.iter().position(|byte| *byte < 0x80).filter(|place| *place < 10)?;
    end_of_head(log, &rest[number + 1..])
}

fn end_of_head(log: &[u8], rest: &[u8]) -> Option<usize> {
    rest.strip_prefix(&[0xff, 0xff]).map(|rest| log.len() - rest.len())
}

fn word(log: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(log.get(at..at + 8)?.try_into().ok()?))
}

fn payload(log: &[u8], at: usize) -> Option<&[u8]> {
    let length = usize::try_from(word(log, at)?).ok().filter(|length| *length > 0)?;
    log.get(at + 16..)?.get(..length)
}

fn is_entry(log: &[u8], at: usize, work: &mut usize) -> bool {
    let (Some(payload), Some(expected)) = (payload(log, at), word(log, at + 8)) else { return false };
    let Some(left) = work.checked_sub(payload.len()) else { return false };
    *work = left;
    checksum(payload) == expected
}

/// As DuckDB computes it (common/checksum.cpp).
fn checksum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let sum = words.iter().fold(5381, |sum, word| sum ^ u64::from_le_bytes(*word).wrapping_mul(0xbf58_476d_1ce4_e5b9));
    if rest.is_empty() { sum } else { sum ^ checksum_of_rest(rest) }
}

/// Of the last one to seven bytes.
fn checksum_of_rest(bytes: &[u8]) -> u64 {
    const M: u64 = 0xc6a4_a793_5bd1_e995;
    let mut hash = 0xe17a_1465 ^ (bytes.len() as u64).wrapping_mul(M);
    for (place, byte) in bytes.iter().enumerate() {
        hash ^= u64::from(*byte) << (8 * place);
    }
    hash = hash.wrapping_mul(M);
    hash ^= hash >> 47;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 47)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As DuckDB 2.0.0 wrote it.
    const HEAD: [u8; 36] = [
        0x64, 0x00, 0x62, 0x65, 0x00, 0x02, 0x66, 0x00, 0x10, 0x4f, 0x68, 0xfe, 0x01, 0xb6, 0x01, 0x1b, 0x34, 0x50,
        0x4b, 0x83, 0x01, 0x34, 0x22, 0x50, 0x83, 0x01, 0x61, 0x5f, 0x60, 0x67, 0x00, 0xc8, 0x81, 0x03, 0xff, 0xff,
    ];

    fn log(head: &[u8], payloads: &[&[u8]]) -> (Vec<u8>, Vec<usize>) {
        let (mut log, mut starts) = (head.to_vec(), Vec::new());
        for payload in payloads {
            starts.push(log.len());
            log.extend((payload.len() as u64).to_le_bytes());
            log.extend(checksum(payload).to_le_bytes());
            log.extend(*payload);
        }
        (log, starts)
    }

    #[test]
    fn length_that_is_wrong_in_the_middle_is_told_from_a_torn_tail() {
        let payloads: [&[u8]; 5] = [b"create", b"insert some rows, and some more", b"flush!!!", b"insert", b"flush!!!"];
        for head in [&HEAD[..], &[0x64, 0x00, 0x62, 0x65, 0x00, 0x02, 0xff, 0xff]] {
            let (whole, starts) = log(head, &payloads);
            assert_eq!(head_length(&whole), Some(head.len()));
            assert_eq!(damaged_at(&whole), None);
            for end in 0..whole.len() {
                assert_eq!(damaged_at(&whole[..end]), None, "torn after {end} bytes");
            }
            for (place, start) in starts.iter().enumerate() {
                for bit in 0..64 {
                    let mut flipped = whole.clone();
                    flipped[start + bit / 8] ^= 1 << (bit % 8);
                    // One that stays within the log has a wrong checksum, which DuckDB sees.
                    if payload(&flipped, *start).is_none() {
                        let last = place + 1 == starts.len();
                        assert_eq!(damaged_at(&flipped), (!last).then_some(*start), "bit {bit} of entry {place}");
                    }
                }
            }
            let mut unwritten = whole.clone();
            unwritten[starts[3]..starts[4]].fill(0);
            assert_eq!(damaged_at(&unwritten), None, "a hole is what a power cut leaves");
        }
    }

    #[test]
    fn head_that_cannot_be_read_is_damage_where_entries_follow() {
        let (whole, _) = log(&HEAD, &[b"create", b"flush!!!"]);
        for byte in 0..HEAD.len() {
            for bit in 0..8 {
                let mut flipped = whole.clone();
                flipped[byte] ^= 1 << bit;
                // A number that is another one is DuckDB's to compare.
                let another = (9..34).contains(&byte) && head_length(&flipped) == Some(HEAD.len());
                assert_eq!(damaged_at(&flipped), (!another).then_some(0), "bit {bit} of byte {byte}");
            }
        }
        let mut alone = HEAD.to_vec();
        alone[3] ^= 1;
        assert_eq!(damaged_at(&alone), None, "nothing follows that could be lost");
    }
}
