//! `mallard user`

use std::io::{IsTerminal, Read};

use clap::{Args, Subcommand};

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
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    match arguments.command {
        Command::Hash => {
            let password = read_password()?;
            if password.is_empty() {
                return Err(Error::invalid("the password is empty"));
            }
            println!("{}", hash_password(&password)?);
            Ok(())
        }
    }
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
