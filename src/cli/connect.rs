//! Where to connect and as whom. A password comes from the environment, a file or the prompt, never from arguments.

use std::{io::IsTerminal, path::PathBuf};

use clap::{Args, builder::RangedI64ValueParser};

use crate::{
    client::{Client, Login, Trust},
    config::{Compression, MAX_ENDPOINTS, Secret},
    error::{Error, Result},
    location::Location,
};

/// Of servers under grpc+tls://.
#[derive(Args, Clone, Default)]
pub(super) struct TlsArguments {
    /// PEM file of the CAs to trust under grpc+tls://, in place of the system's
    #[arg(long, env = "MALLARD_TLS_CA", value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// PEM file of the client certificate to show there
    #[arg(long, env = "MALLARD_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// PEM file of its key
    #[arg(long, env = "MALLARD_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
}

impl TlsArguments {
    pub(super) fn trust(&self) -> Trust {
        Trust { ca: self.tls_ca.clone(), identity: self.tls_cert.clone().zip(self.tls_key.clone()) }
    }
}

#[derive(Args, Clone, Default)]
pub(super) struct LoginArguments {
    /// User to log in as; the password comes from MALLARD_PASSWORD, --password-file or a prompt
    #[arg(long, env = "MALLARD_USER")]
    user: Option<String>,
    /// File that holds the password
    #[arg(long, env = "MALLARD_PASSWORD_FILE", value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// IPC compression of what is sent and asked for, where the network is slower than the processors: none, lz4, zstd;
    /// by default the server's configuration decides
    #[arg(long, env = "MALLARD_COMPRESSION")]
    pub(super) compression: Option<Compression>,
    #[command(flatten)]
    tls: TlsArguments,
}

impl LoginArguments {
    pub(super) fn login(&self) -> Result<Option<Login>> {
        login(self.user.as_deref(), self.password_file.as_ref(), "MALLARD_PASSWORD")
    }

    pub(super) fn trust(&self) -> Trust {
        self.tls.trust()
    }

    pub(super) async fn connect(&self, location: &Location) -> Result<Client> {
        let client = Client::connect_trusting(location, self.login()?.as_ref(), &self.trust()).await?;
        Ok(client.compressing(self.compression))
    }
}

/// Of `--endpoints`.
pub(super) fn endpoints() -> RangedI64ValueParser<u16> {
    clap::value_parser!(u16).range(1..=MAX_ENDPOINTS as i64)
}

/// The login of `user`, if one is named.
pub(super) fn login(user: Option<&str>, file: Option<&PathBuf>, variable: &str) -> Result<Option<Login>> {
    let Some(user) = user else { return Ok(None) };
    let password = match (file, std::env::var(variable)) {
        (Some(file), _) => std::fs::read_to_string(file)
            .map(|text| text.trim_end_matches(['\r', '\n']).to_string())
            .map_err(|error| Error::Io(format!("password file {}: {error}", file.display())))?,
        (None, Ok(password)) => password,
        (None, Err(_)) if std::io::stdin().is_terminal() => {
            rpassword::prompt_password(format!("Password of {user}: ")).map_err(|error| Error::Io(error.to_string()))?
        }
        (None, Err(_)) => {
            return Err(Error::Unauthenticated(format!("no password for {user}: set {variable} or --password-file")));
        }
    };
    Ok(Some(Login { user: user.to_string(), password: Secret::new(password) }))
}
