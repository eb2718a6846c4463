//! Passwords as argon2id hashes, in the PHC string format.

use argon2::{
    Algorithm, Argon2, Params, Version,
    password_hash::{PasswordHash, PasswordHasher, PasswordVerifier, SaltString},
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

/// Takes as long for a wrong password as for the right one.
pub(super) fn verify(hash: &Secret, password: &Secret) -> bool {
    PasswordHash::new(hash.reveal())
        .is_ok_and(|parsed| argon2id().verify_password(password.reveal().as_bytes(), &parsed).is_ok())
}
