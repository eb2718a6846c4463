//! The users of the configuration and of the users file, which is read again while the server runs.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
};

use serde::Deserialize;

use super::password::{check_format, hash_password};
use crate::{
    access::{Rights, Roles},
    config::{self, Credential, Secret},
    error::{Error, Result},
};

pub(super) struct Users {
    /// Those of the configuration, which stay what they were at the start.
    configured: HashMap<String, Arc<Known>>,
    file: Option<PathBuf>,
    roles: Roles,
    all: RwLock<HashMap<String, Arc<Known>>>,
}

/// One user.
pub(super) struct Known {
    /// What their password is checked against, if they have one.
    pub(super) hash: Option<Secret>,
    /// What they are now, apart from grants: tokens that were handed out to another are none of theirs.
    pub(super) proof: Secret,
    pub(super) rights: Arc<Rights>,
}

/// One entry of the users file.
#[derive(Deserialize)]
#[serde(untagged)]
enum Listed {
    Hash(String),
    User(ListedUser),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListedUser {
    password_hash: Option<String>,
    role: Option<String>,
    #[serde(default)]
    read: Vec<String>,
    #[serde(default)]
    write: Vec<String>,
}

impl From<Listed> for ListedUser {
    fn from(listed: Listed) -> Self {
        match listed {
            Listed::User(user) => user,
            Listed::Hash(hash) => Self { password_hash: Some(hash), role: None, read: Vec::new(), write: Vec::new() },
        }
    }
}

impl Known {
    /// `secret` is what stays the same as long as the password does.
    fn new(hash: Option<Secret>, secret: &str, rights: Arc<Rights>) -> Result<Arc<Self>> {
        if let Some(hash) = &hash {
            check_format(hash.reveal()).map_err(|why| Error::invalid(format!("user {}: {why}", rights.user)))?;
        }
        let proof = Secret::new(format!("{}\0{secret}", rights.role_name));
        Ok(Arc::new(Self { hash, proof, rights }))
    }
}

impl Users {
    /// Blocks while plain passwords are hashed.
    pub(super) fn new(config: &config::Auth, roles: Roles) -> Result<Self> {
        let mut configured = HashMap::new();
        for (name, user) in &config.users {
            let (hash, secret) = match &user.credential {
                // Its hash is another after each start; tokens shall not be.
                Some(Credential::Password(password)) => {
                    (Some(Secret::new(hash_password(password.reveal())?)), password.reveal())
                }
                Some(Credential::Hash(hash)) => (Some(hash.clone()), hash.reveal()),
                None => (None, ""),
            };
            let rights = roles.rights(name, user.role.as_deref(), &user.read, &user.write)?;
            configured.insert(name.clone(), Known::new(hash, secret, rights)?);
        }
        let users = Self { configured, file: config.users_file.clone(), roles, all: RwLock::default() };
        users.reload()?;
        Ok(users)
    }

    /// Reads the users file again; where it is broken, the users stay.
    pub(super) fn reload(&self) -> Result<()> {
        let mut all = self.configured.clone();
        if let Some(path) = &self.file {
            let wrong = |why: String| Error::invalid(format!("auth.users_file {}: {why}", path.display()));
            let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
            let listed: BTreeMap<String, Listed> =
                toml::from_str(&text).map_err(|error| wrong(config::toml_mistake(&text, &error)))?;
            for (name, listed) in listed {
                let ListedUser { password_hash, role, read, write } = listed.into();
                let rights = self.roles.rights(&name, role.as_deref(), &read, &write);
                let known = rights.and_then(|rights| {
                    let secret = password_hash.clone().unwrap_or_default();
                    Known::new(password_hash.map(Secret::new), &secret, rights)
                });
                all.insert(name, known.map_err(|error| wrong(error.to_string()))?);
            }
        }
        *self.all.write().unwrap_or_else(PoisonError::into_inner) = all;
        Ok(())
    }

    pub(super) fn get(&self, user: &str) -> Option<Arc<Known>> {
        self.all.read().unwrap_or_else(PoisonError::into_inner).get(user).cloned()
    }
}
