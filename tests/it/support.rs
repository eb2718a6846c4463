//! A server of the test's own, and small helpers around it.

use std::{future::Future, sync::Arc, time::Duration};

use arrow_array::{Int64Array, RecordBatch, StringArray};
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_schema::{DataType, Field, Schema};
use futures::{StreamExt, TryStreamExt};
use mallard::{
    client::{Client, Login},
    config::{Config, Credential, Listen, Secret, Span, User},
    error::Result,
    location::Location,
    server::Server,
    stream::RecordBatchStream,
    transfer::first_row,
};
use tonic::transport::Channel;

pub(crate) const USER: &str = "alice";
/// All digits and a colon: both have been trouble elsewhere.
pub(crate) const PASSWORD: &str = "12345:678";

pub(crate) struct TestServer {
    pub(crate) server: Server,
}

/// Loopback, free ports, in memory, no login. The same promises hold on the standard path, if the environment asks for it.
pub(crate) fn test_config() -> Config {
    let mut config = Config::default();
    config.wire.standard_path = std::env::var("MALLARD_TEST_STANDARD_PATH").is_ok_and(|asked| asked == "1");
    config.server.location = Location::Tcp { host: "127.0.0.1".into(), port: 0 };
    config.server.grace_period = Span(Duration::from_secs(5));
    config.admin.listen = Listen(Some("127.0.0.1:0".parse().unwrap()));
    config
}

pub(crate) fn with_login(mut config: Config) -> Config {
    config.auth.enabled = true;
    config.auth.users.insert(USER.into(), User::new(Credential::Password(Secret::new(PASSWORD)), "admin"));
    config
}

pub(crate) fn login() -> Login {
    Login { user: USER.into(), password: Secret::new(PASSWORD) }
}

/// These users may log in with [`PASSWORD`], each with a role.
pub(crate) fn with_users(mut config: Config, users: &[(&str, &str)]) -> Config {
    config.auth.enabled = true;
    for (user, role) in users {
        config.auth.users.insert(user.to_string(), User::new(Credential::Password(Secret::new(PASSWORD)), role));
    }
    config
}

impl TestServer {
    /// A client of each user of [`with_users`].
    pub(crate) async fn clients(&self, users: &[(&str, &str)]) -> Vec<Client> {
        let mut clients = Vec::new();
        for (user, _) in users {
            clients.push(self.client_of(user).await);
        }
        clients
    }

    pub(crate) async fn client_of(&self, user: &str) -> Client {
        let login = Login { user: user.into(), password: Secret::new(PASSWORD) };
        Client::connect(self.server.location(), Some(&login)).await.expect("the client connects")
    }

    pub(crate) async fn start() -> Self {
        Self::with(test_config()).await
    }

    pub(crate) async fn with(config: Config) -> Self {
        Self { server: Server::start(config).await.expect("the server starts") }
    }

    pub(crate) fn uri(&self) -> String {
        self.server.location().to_string()
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect(self.server.location(), None).await.expect("the client connects")
    }

    /// A plain gRPC channel, for clients that are not ours.
    pub(crate) async fn channel(&self) -> Channel {
        let uri = self.uri().replace("grpc://", "http://");
        Channel::from_shared(uri).unwrap().connect().await.unwrap()
    }

    /// A stock arrow-rs client.
    pub(crate) async fn stock(&self) -> FlightServiceClient<Channel> {
        FlightServiceClient::new(self.channel().await).max_encoding_message_size(usize::MAX)
    }

    /// Over HTTP from the admin port: status and body.
    pub(crate) async fn admin(&self, path: &str) -> (u16, String) {
        crate::admin::fetch(self.server.admin_address().expect("the admin port is on"), path).await
    }

    /// The value of a metric, named with its labels as in the exposition.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        metric(&self.admin("/metrics").await.1, name)
    }
}

/// The value of a metric in an exposition.
pub(crate) fn metric(text: &str, name: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no metric {name} in:\n{text}"))
}

/// The first row as texts.
pub(crate) async fn row(client: &Client, sql: &str) -> Vec<String> {
    first_row(client.query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"))).await.unwrap()
}

/// Runs a statement for its effect.
pub(crate) async fn run(client: &Client, sql: &str) {
    row(client, sql).await;
}

/// DuckDB answers no row to it.
pub(crate) async fn checkpoint(client: &Client) {
    collect(client.query("CHECKPOINT").await.unwrap()).await.unwrap();
}

pub(crate) async fn count(client: &Client, table: &str) -> u64 {
    row(client, &format!("SELECT count(*) FROM {table}")).await[0].parse().unwrap()
}

pub(crate) async fn collect(stream: RecordBatchStream) -> Result<Vec<RecordBatch>> {
    stream.try_collect().await
}

pub(crate) fn rows(batches: &[RecordBatch]) -> usize {
    batches.iter().map(RecordBatch::num_rows).sum()
}

/// `batches` batches of `rows_each` rows: id BIGINT counting up, name VARCHAR.
pub(crate) fn people(batches: usize, rows_each: usize) -> RecordBatchStream {
    let schema =
        Arc::new(Schema::new(vec![Field::new("id", DataType::Int64, true), Field::new("name", DataType::Utf8, true)]));
    let made = schema.clone();
    let batches = futures::stream::iter(0..batches).map(move |batch| {
        let first = (batch.wrapping_mul(rows_each)) as i64;
        let ids = Int64Array::from_iter_values(first..first + rows_each as i64);
        let names = StringArray::from_iter_values((0..rows_each).map(|row| format!("name {row}")));
        Ok(RecordBatch::try_new(made.clone(), vec![Arc::new(ids), Arc::new(names)]).unwrap())
    });
    RecordBatchStream::new(schema, batches)
}

pub(crate) fn table(name: &str) -> [String; 1] {
    [name.to_string()]
}

/// Waits for a condition, bounded, without a fixed sleep that a slow machine would break.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, condition: impl Fn() -> F) {
    until_within(Duration::from_secs(30), what, condition).await;
}

pub(crate) async fn until_within<F: Future<Output = bool>>(patience: Duration, what: &str, condition: impl Fn() -> F) {
    let waited = tokio::time::timeout(patience, async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    assert!(waited.await.is_ok(), "never came true: {what}");
}
