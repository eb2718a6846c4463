//! The two servers of the demo: in this process, or running elsewhere.

use std::time::{Duration, Instant};

use crate::{
    access::Role,
    auth::hash_password,
    client::{Client, Login, Trust},
    config::{Config, Credential, Listen, Secret, User},
    error::{Error, Result},
    location::Location,
    server::Server,
};

pub(super) struct Servers {
    pub(super) locations: [Location; 2],
    pub(super) login: Option<Login>,
    trust: Trust,
    own: Vec<Server>,
}

impl Servers {
    /// Two servers on free loopback ports, in memory, with a login that exists only as long as they do.
    pub(super) async fn in_process() -> Result<Self> {
        let mut secret = [0_u8; 16];
        getrandom::fill(&mut secret).map_err(Error::internal)?;
        let password: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        let hash = hash_password(&password)?;
        let mut config = Config::default();
        config.server.location = Location::Tcp { host: "127.0.0.1".into(), port: 0 };
        config.admin.listen = Listen(None);
        config.auth.enabled = true;
        config.auth.users.insert("demo".into(), User::new(Credential::Hash(Secret::new(hash)), Role::Writer.word()));
        let own = vec![Server::start(config.clone()).await?, Server::start(config).await?];
        let locations = [own[0].location().clone(), own[1].location().clone()];
        let login = Some(Login { user: "demo".into(), password: Secret::new(password) });
        Ok(Self { locations, login, trust: Trust::default(), own })
    }

    /// Servers that run already; waits until both are healthy.
    pub(super) async fn running(
        locations: [Location; 2],
        login: Option<Login>,
        trust: Trust,
        wait: Duration,
    ) -> Result<Self> {
        let deadline = Instant::now() + wait;
        for location in &locations {
            loop {
                let why = match Client::connect_trusting(location, None, &trust).await {
                    Ok(client) => match client.healthy().await {
                        Ok(true) => break,
                        Ok(false) => "it answers NOT_SERVING".to_string(),
                        Err(error) => error.to_string(),
                    },
                    Err(error) => error.to_string(),
                };
                if Instant::now() >= deadline {
                    let wait = humantime::format_duration(wait);
                    return Err(Error::Unreachable(format!("{location} was not healthy within {wait}: {why}")));
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
        Ok(Self { locations, login, trust, own: Vec::new() })
    }

    pub(super) async fn connect(&self, index: usize) -> Result<Client> {
        Client::connect_trusting(&self.locations[index], self.login.as_ref(), &self.trust).await
    }

    pub(super) fn describe(&self) -> String {
        let [first, second] = &self.locations;
        let how = if self.own.is_empty() { "running" } else { "started in this process, in memory" };
        format!("{first} and {second} ({how}, {})", if self.login.is_some() { "logged in" } else { "no login" })
    }

    pub(super) async fn stop(self) -> Result<()> {
        for server in self.own {
            server.stop(std::future::pending()).await?;
        }
        Ok(())
    }
}
