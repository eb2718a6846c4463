//! Where a server is: the Flight location URIs `grpc://`, `grpc+tcp://`, `grpc+tls://` and `grpc+unix://`.

use std::{fmt, path::PathBuf, str::FromStr};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// Host and port, as written; a name is resolved where it is used.
    Tcp {
        host: String,
        port: u16,
    },
    /// The same under TLS.
    Tls {
        host: String,
        port: u16,
    },
    Unix(PathBuf),
}

impl Location {
    /// Whether only this machine can reach it.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Unix(_) => true,
            Self::Tcp { host, .. } | Self::Tls { host, .. } => {
                let address = host.trim_start_matches('[').trim_end_matches(']');
                address == "localhost" || address.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
            }
        }
    }

    /// The same place, reached under TLS; a Unix socket stays what it is.
    pub fn under_tls(self) -> Self {
        match self {
            Self::Tcp { host, port } => Self::Tls { host, port },
            other => other,
        }
    }
}

impl FromStr for Location {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // A user and password in front of the host are not taken, and not shown either.
        let shown = text.rsplit('@').next().unwrap_or_default();
        let wrong = |why: &str| {
            format!("location \"{shown}\" {why}; write grpc://HOST:PORT, grpc+tls://HOST:PORT or grpc+unix:///path")
        };
        let (scheme, rest) = text.split_once("://").ok_or_else(|| wrong("has no scheme"))?;
        match scheme {
            "grpc" | "grpc+tcp" | "grpc+tls" => {
                let rest = rest.trim_end_matches('/');
                let (host, port) = rest.rsplit_once(':').ok_or_else(|| wrong("has no port"))?;
                if host.is_empty() || host.contains(['/', '@']) {
                    return Err(wrong("has no plain host"));
                }
                let port = port.parse().map_err(|_| wrong("has no port between 0 and 65535"))?;
                let plain = Self::Tcp { host: host.to_string(), port };
                Ok(if scheme == "grpc+tls" { plain.under_tls() } else { plain })
            }
            "grpc+unix" if rest.starts_with('/') => Ok(Self::Unix(PathBuf::from(rest))),
            "grpc+unix" => Err(wrong("has no absolute path")),
            _ => Err(wrong("has an unknown scheme")),
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } => write!(f, "grpc://{host}:{port}"),
            Self::Tls { host, port } => write!(f, "grpc+tls://{host}:{port}"),
            Self::Unix(path) => write!(f, "grpc+unix://{}", path.display()),
        }
    }
}
