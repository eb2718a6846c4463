//! Whether a write-ahead log ends where a crash tore it, or is damaged before its end.
//!
//! DuckDB reads a log up to an entry that claims to be longer than what is left of the file, because that is what a crash
//! in the middle of a write leaves behind, and then cuts the rest off. A flipped bit in an entry's length looks the same,
//! and every commit behind it would be gone without a word. The difference is what follows: behind a torn entry there is
//! nothing, behind a damaged length there are whole entries with right checksums.
//!
//! The format (storage/write_ahead_log.cpp, version 2): a head without a checksum, then entries of a length (8 bytes,
//! little-endian), a checksum (8) and the payload. What this does not understand it leaves to DuckDB.

use std::path::Path;

use super::hold::beside;
use crate::error::{Error, Result};

/// A log is checkpointed long before (16 MiB by default); a larger one is not looked at.
const MAX_LOG: u64 = 256 * 1024 * 1024;

/// The first entry begins within so many bytes.
const MAX_HEAD: usize = 1024;

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
                "cannot open database {}: its write-ahead log {} is corrupt: the entry at byte {at} claims to be longer than \
                 the file, but whole entries follow it; nothing was changed. Restore a backup (`mallard restore`), or keep a \
                 copy of both files and move the log away, which loses every write since the last checkpoint",
                database.display(),
                path.display()
            )));
        }
    }
    Ok(())
}

/// Where an entry's length cannot be right although the log goes on behind it.
fn damaged_at(log: &[u8]) -> Option<usize> {
    let mut work = MAX_WORK;
    let mut at = (0..log.len().min(MAX_HEAD)).find(|at| is_entry(log, *at, &mut work))?;
    loop {
        let (length, checksum) = (word(log, at)?, word(log, at + 8)?);
        // Zeros are what a file system leaves where it had no time to write.
        if (length, checksum) == (0, 0) {
            return None;
        }
        match payload(log, at) {
            Some(payload) => at += 16 + payload.len(),
            None => return (at + 1..log.len()).any(|later| is_entry(log, later, &mut work)).then_some(at),
        }
    }
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

    fn log(payloads: &[&[u8]]) -> (Vec<u8>, Vec<usize>) {
        let (mut log, mut starts) = (b"the head of the log, which has no checksum".to_vec(), Vec::new());
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
        let (whole, starts) =
            log(&[b"create", b"insert some rows, and some more", b"flush!!!", b"insert", b"flush!!!"]);
        assert_eq!(damaged_at(&whole), None);
        for end in 0..whole.len() {
            assert_eq!(damaged_at(&whole[..end]), None, "torn after {end} bytes");
        }
        for (place, start) in starts.iter().enumerate().skip(1) {
            for bit in 0..64 {
                let mut flipped = whole.clone();
                flipped[start + bit / 8] ^= 1 << (bit % 8);
                let too_long = payload(&flipped, *start).is_none();
                let last = place + 1 == starts.len();
                // One that is too short has a wrong checksum, which DuckDB sees.
                assert_eq!(damaged_at(&flipped).is_some(), too_long && !last, "bit {bit} of entry {place}");
            }
        }
        let mut unwritten = whole.clone();
        unwritten[starts[3]..starts[4]].fill(0);
        assert_eq!(damaged_at(&unwritten), None, "a hole is what a power cut leaves");
    }
}
