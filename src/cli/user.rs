//! `mallard user`

use std::{
    io::{IsTerminal, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use clap::{Args, Subcommand};

use super::users_file::UsersFile;
use crate::{
    auth::hash_password,
    error::{Error, Result},
};

#[derive(Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make the argon2id hash of a password for auth.users.NAME.password_hash or the users file. Reads the password
    /// from the prompt, or from standard input where that is no terminal.
    Hash,
    /// Add a user to the users file, with a password from the prompt or standard input. A server that has the file as
    /// auth.users_file takes the change within seconds.
    Add(AddArguments),
    /// Remove a user from the users file. None of their tokens is good any more once the server has read it
    Remove(RemoveArguments),
    /// List the users of the users file, their roles, and whether they have a password
    List(FileArguments),
    /// Print the password in a file, which is made with a random one where it does not exist yet: for installations
    /// that make their own secrets at first start.
    Password(PasswordArguments),
}

#[derive(Args)]
struct FileArguments {
    /// The users file
    #[arg(long, env = "MALLARD__AUTH__USERS_FILE", value_name = "FILE")]
    file: PathBuf,
}

#[derive(Args)]
struct AddArguments {
    name: String,
    /// reader, writer, admin, or a role of the server's configuration; without one, auth.default_role
    #[arg(long)]
    role: Option<String>,
    /// Give a user who is there already this password, and the role if there is one
    #[arg(long)]
    replace: bool,
    #[command(flatten)]
    file: FileArguments,
}

#[derive(Args)]
struct RemoveArguments {
    name: String,
    #[command(flatten)]
    file: FileArguments,
}

#[derive(Args)]
struct PasswordArguments {
    /// The file; made readable for all who see its directory. May be given more than once
    #[arg(long, env = "MALLARD_PASSWORD_FILE", value_name = "FILE", required = true)]
    file: Vec<PathBuf>,
    /// A file whose content is taken in place of a random password, unless it is empty
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// Print nothing
    #[arg(long)]
    quiet: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    match &arguments.command {
        Command::Hash => {
            println!("{}", hash_password(&new_password()?)?);
            Ok(())
        }
        Command::Add(arguments) => add(arguments),
        Command::Remove(RemoveArguments { name, file }) => {
            let mut users = UsersFile::open(&file.file, false)?;
            users.remove(name)?;
            users.write()
        }
        Command::List(arguments) => {
            let users = UsersFile::open(&arguments.file, false)?;
            for (name, role, has_password) in users.list() {
                let password = if has_password { "password" } else { "no password" };
                println!("{name}\t{}\t{password}", role.unwrap_or("(default role)"));
            }
            Ok(())
        }
        Command::Password(arguments) => {
            let given = match &arguments.from {
                Some(from) => Some(read(from)?).filter(|password| !password.is_empty()),
                None => None,
            };
            for file in &arguments.file {
                let password = kept(file, given.as_deref())?;
                if !arguments.quiet {
                    println!("{password}");
                }
            }
            Ok(())
        }
    }
}

fn add(arguments: &AddArguments) -> Result<()> {
    let AddArguments { name, role, replace, file } = arguments;
    // A Basic header ends the name at the first colon.
    if name.is_empty() || name.contains(':') || name.chars().any(char::is_control) {
        return Err(Error::invalid("a user's name is not empty and has no colon and no control characters"));
    }
    let mut users = UsersFile::open(&file.file, true)?;
    if users.has(name) && !replace {
        return Err(Error::Exists(format!("user \"{name}\" is there already; --replace gives them another password")));
    }
    users.put(name, &hash_password(&new_password()?)?, role.as_deref());
    users.write()
}

fn new_password() -> Result<String> {
    let password = read_password()?;
    if password.is_empty() { Err(Error::invalid("the password is empty")) } else { Ok(password) }
}

fn read(path: &Path) -> Result<String> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text.trim_end_matches(['\r', '\n']).to_string()),
        Err(error) => Err(super::files::io(path, &error)),
    }
}

/// The password in `file`: the given one, else the one that is there, else a new one.
fn kept(file: &Path, given: Option<&str>) -> Result<String> {
    let there = if file.exists() { Some(read(file)?).filter(|password| !password.is_empty()) } else { None };
    let password = match (given, &there) {
        (Some(given), _) => given.to_string(),
        (None, Some(there)) => there.clone(),
        (None, None) => {
            let mut bytes = [0_u8; 24];
            getrandom::fill(&mut bytes).map_err(Error::internal)?;
            BASE64.encode(bytes)
        }
    };
    if there.as_ref() != Some(&password) {
        // Renamed into place: whoever waits for the file never sees a part of it.
        let mut name = file.as_os_str().to_os_string();
        name.push(".new");
        let beside = PathBuf::from(name);
        let written = (std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o444).open(&beside))
            .and_then(|mut open| writeln!(open, "{password}"))
            .and_then(|()| std::fs::rename(&beside, file));
        written.map_err(|error| super::files::io(file, &error))?;
    }
    Ok(password)
}

fn read_password() -> Result<String> {
    let failed = |error: std::io::Error| Error::Io(format!("cannot read the password: {error}"));
    if !std::io::stdin().is_terminal() {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map_err(failed)?;
        return Ok(text.trim_end_matches(['\r', '\n']).to_string());
    }
    let password = rpassword::prompt_password("Password: ").map_err(failed)?;
    if rpassword::prompt_password("Again: ").map_err(failed)? != password {
        return Err(Error::invalid("the two passwords differ"));
    }
    Ok(password)
}
