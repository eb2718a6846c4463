//! The users file (`auth.users_file`) as `mallard user` changes it: comments and other users stay, and whoever reads it
//! sees the old one or the new one. Knows no password, only hashes.

use std::{
    io::Write,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use toml_edit::{DocumentMut, Item, Table, value};

use super::files;
use crate::{
    config,
    error::{Error, Result},
};

pub(super) struct UsersFile {
    path: PathBuf,
    document: DocumentMut,
}

impl UsersFile {
    /// An empty one where there is none and `new` allows it.
    pub(super) fn open(path: &Path, new: bool) -> Result<Self> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if new && error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(files::io(path, &error)),
        };
        // The line that is wrong is not shown: it may hold a hash.
        if let Err(error) = text.parse::<toml::Table>() {
            return Err(Error::invalid(format!("{}: {}", path.display(), config::toml_mistake(&text, &error))));
        }
        let document = text.parse().map_err(|_| Error::invalid(format!("{}: is no TOML", path.display())))?;
        Ok(Self { path: path.to_path_buf(), document })
    }

    /// Each user's name, role, and whether they have a password.
    pub(super) fn list(&self) -> Vec<(&str, Option<&str>, bool)> {
        let listed = self.document.iter().map(|(name, item)| match item.as_table_like() {
            Some(user) => {
                (name, user.get("role").and_then(Item::as_str), user.get("password_hash").is_some_and(Item::is_str))
            }
            None => (name, None, item.is_str()),
        });
        listed.collect()
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.document.contains_key(name)
    }

    /// Adds a user, or gives one another password, and another role if there is one; their grants stay.
    pub(super) fn put(&mut self, name: &str, hash: &str, role: Option<&str>) {
        let is_table = self.document.get(name).is_some_and(Item::is_table_like);
        if !is_table {
            // `name = "hash"` has no room for a role; and keys of the root cannot follow a table.
            self.document.insert(name, Item::Table(Table::new()));
        }
        if let Some(user) = self.document.get_mut(name).and_then(Item::as_table_like_mut) {
            user.insert("password_hash", value(hash));
            if let Some(role) = role {
                user.insert("role", value(role));
            }
        }
    }

    pub(super) fn remove(&mut self, name: &str) -> Result<()> {
        match self.document.remove(name) {
            Some(_) => Ok(()),
            None => Err(Error::NotFound(format!("user \"{name}\" not found in {}", self.path.display()))),
        }
    }

    /// Renamed into place, with the rights of the one before; a new one is its owner's alone.
    pub(super) fn write(&self) -> Result<()> {
        // Through a link, so that it stays one.
        let path = std::fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
        let mode = std::fs::metadata(&path).map_or(0o600, |file| file.permissions().mode() & 0o777);
        let mut name = path.as_os_str().to_os_string();
        name.push(".new");
        let beside = PathBuf::from(name);
        let write = || {
            let mut file =
                std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&beside)?;
            file.set_permissions(std::fs::Permissions::from_mode(mode))?;
            file.write_all(self.document.to_string().as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&beside, &path)
        };
        write().map_err(|error| files::io(&self.path, &error))
    }
}
