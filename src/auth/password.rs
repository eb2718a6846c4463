//! Passwords as argon2id hashes, in the PHC string format.

use std::sync::{Mutex, MutexGuard, PoisonError};

use argon2::{
    Algorithm, Argon2, Block, Params, Version,
    password_hash::{Output, PasswordHash, PasswordHasher, Salt, SaltString},
};

use crate::{
    config::Secret,
    error::{Error, Result},
};

/// OWASP's least: 19 MiB, two passes, one lane.
fn argon2id() -> Argon2<'static> {
    let params = Params::new(19_456, 2, 1, None).expect("the parameters are in argon2's range");
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
}

/// The hash that goes into the configuration.
pub fn hash_password(password: &str) -> Result<String> {
    let mut salt = [0_u8; 16];
    getrandom::fill(&mut salt).map_err(Error::internal)?;
    let salt = SaltString::encode_b64(&salt).map_err(Error::internal)?;
    Ok(argon2id().hash_password(password.as_bytes(), &salt).map_err(Error::internal)?.to_string())
}

pub(super) fn check_format(hash: &str) -> std::result::Result<(), &'static str> {
    match PasswordHash::new(hash) {
        Ok(parsed) if parsed.algorithm.as_str() == "argon2id" => Ok(()),
        _ => Err("the password hash is not argon2id in PHC format; `mallard user hash` makes one"),
    }
}

/// What checks work in. It is kept and used again: an allocator that gets 19 MiB back on one thread after the other keeps
/// some of it for each.
#[derive(Default)]
pub(super) struct Workspaces(Mutex<Vec<Vec<Block>>>);

impl Workspaces {
    /// Takes as long for a wrong password as for the right one.
    pub(super) fn verify(&self, hash: &Secret, password: &Secret) -> bool {
        let mut blocks = self.lock().pop().unwrap_or_default();
        let matches = matches(hash, password, &mut blocks).unwrap_or(false);
        self.lock().push(blocks);
        matches
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Vec<Block>>> {
        // The sections are short and leave the data whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `None` for a hash that is not one of argon2's.
fn matches(hash: &Secret, password: &Secret, blocks: &mut Vec<Block>) -> Option<bool> {
    let parsed = PasswordHash::new(hash.reveal()).ok()?;
    let (salt, expected) = (parsed.salt?, parsed.hash?);
    let algorithm = Algorithm::try_from(parsed.algorithm).ok()?;
    let version = Version::try_from(parsed.version?).ok()?;
    let argon2 = Argon2::new(algorithm, version, Params::try_from(&parsed).ok()?);
    blocks.resize(argon2.params().block_count().max(blocks.len()), Block::default());
    let mut salt_bytes = [0; Salt::MAX_LENGTH];
    let salt = salt.decode_b64(&mut salt_bytes).ok()?;
    let mut found = vec![0; expected.len()];
    argon2.hash_password_into_with_memory(password.reveal().as_bytes(), salt, &mut found, blocks).ok()?;
    // In constant time.
    Some(Output::new(&found).ok()? == expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workspace_serves_hashes_of_any_size() {
        let workspaces = Workspaces::default();
        let usual = Secret::new(hash_password("right").expect("a hash"));
        let other = Argon2::new(Algorithm::Argon2id, Version::V0x13, Params::new(8192, 3, 1, None).expect("in range"));
        let salt = SaltString::from_b64("c29tZXNhbHQ").expect("a salt");
        let other = Secret::new(other.hash_password(b"right", &salt).expect("a hash").to_string());
        for hash in [&usual, &other, &usual] {
            assert!(workspaces.verify(hash, &Secret::new("right")));
            assert!(!workspaces.verify(hash, &Secret::new("wrong")));
        }
        assert!(!workspaces.verify(&Secret::new("no hash"), &Secret::new("right")));
        assert_eq!(workspaces.lock().len(), 1);
    }
}
