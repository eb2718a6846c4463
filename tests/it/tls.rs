//! The Flight port under TLS: who is trusted, whom a client certificate stands for, and certificates that are replaced
//! while calls run.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use arrow_flight::{FlightDescriptor, Ticket, flight_service_client::FlightServiceClient};
use futures::{StreamExt, future::join_all};
use mallard::{
    client::{Client, Login, Trust},
    config::{ClientAuth, Config, Credential, Secret, Span, TlsVersion, User},
    error::{Error, Result},
    location::Location,
    server::Server,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair, SanType,
    date_time_ymd,
};
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tonic::{
    Code,
    transport::{Certificate, Channel, ClientTlsConfig},
};

use crate::{
    process::{Process, mallard},
    support::{TestServer, USER, collect, count, login, people, row, rows, run, table, test_config, until, with_login},
};

/// 2100-01-01 in seconds since 1970.
const END: f64 = 4_102_444_800.0;

/// A CA of the test's own.
struct Authority(CertifiedIssuer<'static, KeyPair>);

/// PEM texts.
struct Pair {
    certificate: String,
    key: String,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("CA {} of the tests", COUNT.fetch_add(1, Ordering::Relaxed));
        params.distinguished_name.push(DnType::CommonName, name);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn issue(&self, change: impl FnOnce(&mut CertificateParams)) -> Pair {
        let mut params = CertificateParams::new(vec!["localhost".into(), "127.0.0.1".into()]).unwrap();
        params.not_after = date_time_ymd(2100, 1, 1);
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap().pem();
        Pair { certificate, key: key.serialize_pem() }
    }

    fn pair(&self) -> Pair {
        self.issue(|_| {})
    }

    /// With this common name and these alternative names.
    fn client(&self, common: &str, alternatives: Vec<SanType>) -> Pair {
        self.issue(|params| {
            params.distinguished_name = DistinguishedName::new();
            params.distinguished_name.push(DnType::CommonName, common);
            params.subject_alt_names = alternatives;
        })
    }
}

fn dns(name: &str) -> Vec<SanType> {
    vec![SanType::DnsName(name.try_into().unwrap())]
}

/// Files of one test.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn server(&self, pair: &Pair) -> (PathBuf, PathBuf) {
        (self.write("tls.crt", &pair.certificate), self.write("tls.key", &pair.key))
    }

    fn trust(&self, authorities: &[&Authority]) -> Trust {
        let bundle: String = authorities.iter().map(|authority| authority.0.pem()).collect();
        let name = format!("ca-{}.crt", bundle.len() + authorities.len());
        Trust { ca: Some(self.write(&name, &bundle)), identity: None }
    }

    fn showing(&self, trust: &Trust, name: &str, pair: &Pair) -> Trust {
        let certificate = self.write(&format!("{name}.crt"), &pair.certificate);
        let key = self.write(&format!("{name}.key"), &pair.key);
        Trust { ca: trust.ca.clone(), identity: Some((certificate, key)) }
    }
}

fn under_tls(mut config: Config, place: &Place, pair: &Pair) -> Config {
    let (certificate, key) = place.server(pair);
    (config.tls.certificate, config.tls.key) = (Some(certificate), Some(key));
    config
}

fn port(location: &Location) -> u16 {
    match location {
        Location::Tls { port, .. } | Location::Tcp { port, .. } => *port,
        Location::Unix(_) => panic!("no port"),
    }
}

async fn connect(server: &TestServer, trust: &Trust) -> Result<Client> {
    Client::connect_trusting(server.server.location(), None, trust).await
}

/// Connects and asks, because under TLS 1.3 a client is done before the server has looked at its certificate.
async fn asked(location: &Location, login: Option<&Login>, trust: &Trust) -> Result<()> {
    let client = Client::connect_trusting(location, login, trust).await?;
    collect(client.query("SELECT 1").await?).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_way_works_under_tls() {
    let (place, authority) = (Place::new(), Authority::new());
    let mut config = under_tls(test_config(), &place, &authority.pair());
    config.server.unix_socket = Some(place.0.path().join("socket"));
    let server = TestServer::with(config).await;
    assert!(server.uri().starts_with("grpc+tls://127.0.0.1:"), "{}", server.uri());

    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authority.0.pem()));
    let stock = Channel::from_shared(server.uri().replace("grpc+tls://", "https://")).unwrap();
    let stock = stock.tls_config(tls).unwrap().connect().await.unwrap();
    let answer = FlightServiceClient::new(stock).do_get(Ticket::new("SELECT 1")).await.unwrap().into_inner();
    assert!(answer.collect::<Vec<_>>().await.into_iter().all(|message| message.is_ok()));

    let client = connect(&server, &place.trust(&[&authority])).await.unwrap();
    assert!(client.healthy().await.unwrap());
    client.put(&table("t"), people(20, 10_000)).await.unwrap();
    assert_eq!(rows(&collect(client.query("FROM t").await.unwrap()).await.unwrap()), 200_000);
    assert_eq!(rows(&collect(client.query_endpoints("FROM t", 3).await.unwrap()).await.unwrap()), 200_000);
    assert_eq!(server.metric("mallard_tls_certificate_not_after_timestamp_seconds").await, END);
    assert_eq!(server.metric("mallard_tls_handshakes_total{outcome=\"ok\"}").await, 5.0);

    let over_unix = Location::Unix(place.0.path().join("socket"));
    assert_eq!(row(&Client::connect(&over_unix, None).await.unwrap(), "SELECT 1").await, ["1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_trusted_gets_nothing() {
    let (place, authority, other) = (Place::new(), Authority::new(), Authority::new());
    let server = TestServer::with(under_tls(
        test_config(),
        &place,
        &authority.issue(|params| {
            params.subject_alt_names = dns("localhost");
        }),
    ))
    .await;
    let port = port(server.server.location());
    let named = Location::Tls { host: "localhost".into(), port };
    asked(&named, None, &place.trust(&[&authority])).await.unwrap();
    let refused = async |location: &Location, trust: &Trust, why: &str| {
        let error = asked(location, None, trust).await.expect_err(why);
        assert_eq!(error.code(), Code::Unavailable, "{error}");
        assert!(error.to_string().contains(why), "{error}");
    };
    refused(&named, &place.trust(&[&other]), "UnknownIssuer").await;
    // The system's CAs are trusted by default, and none of them has made it.
    refused(&named, &Trust::default(), "").await;
    let by_address = Location::Tls { host: "127.0.0.1".into(), port };
    refused(&by_address, &place.trust(&[&authority]), "not valid for name").await;
    // A client without TLS, and one with it at a server that has none.
    let plain = Location::Tcp { host: "127.0.0.1".into(), port };
    let error = asked(&plain, None, &Trust::default()).await.unwrap_err();
    // HTTP/2 reads the server's alert as a frame, unless the connection has gone before.
    assert!(matches!(error.code(), Code::Unavailable | Code::Internal), "{error}");
    let without = TestServer::start().await;
    let under = without.server.location().clone().under_tls();
    refused(&under, &place.trust(&[&authority]), "").await;
    let empty = Trust { ca: Some(place.write("empty", "")), identity: None };
    let error = asked(&named, None, &empty).await.unwrap_err();
    assert!(error.to_string().contains("holds no certificate"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn old_tls_is_spoken_only_where_it_is_allowed() {
    let (place, authority) = (Place::new(), Authority::new());
    for (least, works) in [(TlsVersion::Tls12, true), (TlsVersion::Tls13, false)] {
        let mut config = under_tls(test_config(), &place, &authority.pair());
        config.tls.min_version = least;
        let server = TestServer::with(config).await;
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.0.pem().as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let client = rustls::ClientConfig::builder_with_provider(provider);
        let client = client.with_protocol_versions(&[&rustls::version::TLS12]).unwrap();
        let client = client.with_root_certificates(roots).with_no_client_auth();
        let io = TcpStream::connect(("127.0.0.1", port(server.server.location()))).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let shaken = tokio_rustls::TlsConnector::from(Arc::new(client)).connect(name, io).await;
        assert_eq!(shaken.is_ok(), works, "{least:?}: {shaken:?}");
    }
}

/// alice and bob with passwords, and certificates that stand for alice.
fn with_certificates(place: &Place, authority: &Authority, clients: ClientAuth) -> Config {
    let mut config = under_tls(with_login(test_config()), place, &authority.pair());
    config.tls.client_auth = clients;
    config.tls.client_ca = Some(place.write("clients.crt", &authority.0.pem()));
    config.auth.users.insert("bob".into(), User::new(Credential::Password(Secret::new("hunter2 hunter2")), "admin"));
    for name in ["etl.example.com", "spiffe://example.com/etl", "etl@example.com", "the loader"] {
        config.auth.certificates.insert(name.into(), USER.into());
    }
    config
}

#[tokio::test(flavor = "multi_thread")]
async fn client_certificate_stands_for_a_user() {
    let (place, authority) = (Place::new(), Authority::new());
    let mut config = with_certificates(&place, &authority, ClientAuth::Optional);
    let audit = place.0.path().join("audit.log");
    config.audit.file = Some(audit.clone());
    let server = TestServer::with(config).await;
    let location = server.server.location();
    let trust = place.trust(&[&authority]);
    let uri = |text: &str| SanType::URI(text.try_into().unwrap());
    let mail = |text: &str| SanType::Rfc822Name(text.try_into().unwrap());
    let address = SanType::IpAddress("10.0.0.1".parse().unwrap());
    let cases = [
        ("x", dns(USER), Ok(())),
        ("x", dns("etl.example.com"), Ok(())),
        ("x", vec![address.clone(), uri("spiffe://example.com/etl")], Ok(())),
        ("x", vec![mail("etl@example.com")], Ok(())),
        ("the loader", vec![], Ok(())),
        (USER, vec![address], Ok(())),
        // The first name counts, and a common name only where there is no other.
        ("x", [dns("mallory"), dns(USER)].concat(), Err("mallory")),
        (USER, dns("mallory"), Err("mallory")),
        ("ALICE", vec![], Err("ALICE")),
    ];
    let count = cases.len();
    for (index, (common, alternatives, expected)) in cases.into_iter().enumerate() {
        let trust = place.showing(&trust, &format!("client{index}"), &authority.client(common, alternatives));
        match (asked(location, None, &trust).await, expected) {
            (Ok(()), Ok(())) => {}
            (Err(Error::Unauthenticated(why)), Err(name)) => {
                assert!(why.contains(&format!("\"{name}\" is no user here")), "{why}")
            }
            (outcome, expected) => panic!("case {index}: {outcome:?}, expected {expected:?}"),
        }
    }
    let logins = async |outcome: &str| {
        server.metric(&format!("mallard_logins_total{{method=\"mtls\",outcome=\"{outcome}\"}}")).await
    };
    assert_eq!((logins("ok").await, logins("refused").await), (count as f64 - 3.0, 3.0));

    for (user, outcome) in [(USER, "ok"), ("mallory", "refused")] {
        let is_it = |line: &str| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
            (&line["method"], &line["user"], &line["outcome"]) == (&"mtls".into(), &user.into(), &outcome.into())
        };
        until("it is in the audit log", async || std::fs::read_to_string(&audit).unwrap().lines().any(is_it)).await;
    }

    // Without a certificate one logs in, and with both the login counts.
    assert_eq!(asked(location, None, &trust).await.unwrap_err().code(), Code::Unauthenticated);
    asked(location, Some(&login()), &trust).await.unwrap();
    let alice = place.showing(&trust, "alice", &authority.client("x", dns(USER)));
    let bob = Login { user: "bob".into(), password: Secret::new("hunter2 hunter2") };
    let both = Client::connect_trusting(location, Some(&bob), &alice).await.unwrap();
    let by_certificate = connect(&server, &alice).await.unwrap();
    run(&both, "CREATE TABLE t AS SELECT 1 AS i").await;
    let info = both.info(FlightDescriptor::new_path(vec!["t".into()])).await.unwrap();
    let bobs = info.endpoint[0].ticket.clone().unwrap();
    assert!(both.get(bobs.clone()).await.is_ok());
    assert_eq!(by_certificate.get(bobs).await.err().expect("not alice's").code(), Code::PermissionDenied);
    // Many calls of one connection are one login.
    for _ in 0..3 {
        run(&by_certificate, "SELECT 1").await;
    }
    assert_eq!(logins("ok").await, count as f64 - 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn required_certificate_is_required() {
    let (place, authority, other) = (Place::new(), Authority::new(), Authority::new());
    let server = TestServer::with(with_certificates(&place, &authority, ClientAuth::Required)).await;
    let location = server.server.location();
    let trust = place.trust(&[&authority]);
    let own = place.showing(&trust, "own", &authority.client("x", dns(USER)));
    asked(location, None, &own).await.unwrap();
    let expired = authority.issue(|params| {
        params.subject_alt_names = dns(USER);
        params.not_after = date_time_ymd(2020, 1, 1);
    });
    for (what, trust) in [
        ("none", trust.clone()),
        ("another CA's", place.showing(&trust, "others", &other.client("x", dns(USER)))),
        ("expired", place.showing(&trust, "expired", &expired)),
    ] {
        let error = asked(location, Some(&login()), &trust).await.expect_err(what);
        assert_eq!(error.code(), Code::Unavailable, "{what}: {error}");
    }
    until("refusals are counted", async || {
        server.metric("mallard_tls_handshakes_total{outcome=\"failed\"}").await >= 3.0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn certificate_is_replaced_under_load_and_a_broken_one_refused() {
    let (place, first, second) = (Place::new(), Authority::new(), Authority::new());
    let server = Arc::new(TestServer::with(under_tls(test_config(), &place, &first.pair())).await);
    let (both, only_first, only_second) =
        (place.trust(&[&first, &second]), Place::new().trust_kept(&first), Place::new().trust_kept(&second));
    let stop = Arc::new(AtomicBool::new(false));
    let calls = Arc::new(AtomicUsize::new(0));
    let load = (0..8).map(|index| {
        let (server, both, stop, calls) = (server.clone(), both.clone(), stop.clone(), calls.clone());
        tokio::spawn(async move {
            let mut client = connect(&server, &both).await?;
            while !stop.load(Ordering::Relaxed) {
                // Half of them keep their connection.
                if index % 2 == 0 {
                    client = connect(&server, &both).await?;
                }
                collect(client.query("SELECT sum(i) FROM range(10000) r(i)").await?).await?;
                calls.fetch_add(1, Ordering::Relaxed);
            }
            Ok::<(), Error>(())
        })
    });
    let load: Vec<_> = load.collect();
    let reloads = async |outcome: &str, count: f64| {
        let metric = format!("mallard_config_reloads_total{{outcome=\"{outcome}\",what=\"certificate\"}}");
        until(&metric, async || server.metric(&metric).await == count).await;
        // The load goes on after it.
        let before = calls.load(Ordering::Relaxed);
        until("calls go on", async || calls.load(Ordering::Relaxed) > before + 16).await;
    };
    asked(server.server.location(), None, &only_first.1).await.unwrap();

    place.server(&second.issue(|params| params.not_after = date_time_ymd(2099, 12, 31)));
    reloads("ok", 1.0).await;
    asked(server.server.location(), None, &only_second.1).await.expect("new connections see the new certificate");
    asked(server.server.location(), None, &only_first.1).await.expect_err("the old one is not shown any more");
    let until_then = server.metric("mallard_tls_certificate_not_after_timestamp_seconds").await;
    assert_eq!(until_then, END - 86_400.0);

    let (good, other) = (first.pair(), first.pair());
    let expired = first.issue(|params| params.not_after = date_time_ymd(2020, 1, 1));
    let future = first.issue(|params| params.not_before = date_time_ymd(2099, 1, 1));
    let broken = [
        Pair { certificate: good.certificate.clone(), key: other.key },
        expired,
        future,
        Pair { certificate: "nonsense".into(), key: good.key.clone() },
        Pair { certificate: good.certificate[..good.certificate.len() / 2].into(), key: good.key },
    ];
    for (index, pair) in broken.iter().enumerate() {
        place.server(pair);
        reloads("refused", index as f64 + 1.0).await;
        asked(server.server.location(), None, &only_second.1).await.expect("the old one stays");
    }
    assert_eq!(server.metric("mallard_tls_certificate_not_after_timestamp_seconds").await, until_then);
    place.server(&first.pair());
    reloads("ok", 2.0).await;
    asked(server.server.location(), None, &only_first.1).await.unwrap();

    stop.store(true, Ordering::Relaxed);
    for outcome in join_all(load).await {
        outcome.unwrap().expect("no call fails");
    }
}

impl Place {
    /// With the place, which has to stay as long as its files are used.
    fn trust_kept(self, authority: &Authority) -> (Self, Trust) {
        let trust = self.trust(&[authority]);
        (self, trust)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn client_ca_is_replaced_too() {
    let (place, first, second) = (Place::new(), Authority::new(), Authority::new());
    let server = TestServer::with(with_certificates(&place, &first, ClientAuth::Required)).await;
    let location = server.server.location();
    let trust = place.trust(&[&first]);
    let old = place.showing(&trust, "old", &first.client("x", dns(USER)));
    let new = place.showing(&trust, "new", &second.client("x", dns(USER)));
    asked(location, None, &old).await.unwrap();
    asked(location, None, &new).await.unwrap_err();
    place.write("clients.crt", &second.0.pem());
    server.server.reload();
    let ok = "mallard_config_reloads_total{outcome=\"ok\",what=\"certificate\"}";
    until(ok, async || server.metric(ok).await >= 1.0).await;
    asked(location, None, &new).await.unwrap();
    asked(location, None, &old).await.expect_err("its CA is not trusted any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_handshake_ends_at_the_deadline() {
    let (place, authority) = (Place::new(), Authority::new());
    let mut config = under_tls(test_config(), &place, &authority.pair());
    config.limits.handshake_timeout = Span(Duration::from_secs(1));
    let server = TestServer::with(config).await;
    let address = ("127.0.0.1", port(server.server.location()));
    let mut waiting = Vec::new();
    // Nothing, and the beginning of a ClientHello that announces 512 bytes.
    for sent in [&b""[..], b"\x16", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"] {
        for _ in 0..20 {
            let mut io = TcpStream::connect(address).await.unwrap();
            io.write_all(sent).await.unwrap();
            waiting.push(io);
        }
    }
    asked(server.server.location(), None, &place.trust(&[&authority])).await.expect("others are served meanwhile");
    let ends = waiting.iter_mut().map(|io| async move {
        let mut rest = Vec::new();
        tokio::time::timeout(Duration::from_secs(30), io.read_to_end(&mut rest)).await.expect("it is closed")
    });
    join_all(ends).await;
    assert_eq!(server.metric("mallard_tls_handshakes_total{outcome=\"timeout\"}").await, 60.0);
    until("all are gone", async || server.metric("mallard_connections").await == 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unfinished_handshake_does_not_hold_up_the_stop() {
    let (place, authority) = (Place::new(), Authority::new());
    let server = TestServer::with(under_tls(test_config(), &place, &authority.pair())).await;
    let mut silent = TcpStream::connect(("127.0.0.1", port(server.server.location()))).await.unwrap();
    until("it is accepted", async || server.metric("mallard_connections").await == 1.0).await;
    let stopped = tokio::time::timeout(Duration::from_secs(8), server.server.stop(std::future::pending())).await;
    stopped.expect("before limits.handshake_timeout").unwrap();
    assert_eq!(silent.read(&mut [0; 1]).await.unwrap_or(0), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_certificate_keeps_the_server_from_starting() {
    let authority = Authority::new();
    let refused = async |change: fn(&Place, &Authority, &mut Config), why: &str| {
        let place = Place::new();
        let mut config = under_tls(test_config(), &place, &authority.pair());
        change(&place, &authority, &mut config);
        let error = Server::start(config).await.err().expect(why).to_string();
        assert!(error.contains(why), "{error}");
    };
    refused(|place, authority, _| drop(place.write("tls.key", &authority.pair().key)), "tls.key: does not belong")
        .await;
    refused(|place, _, _| drop(place.write("tls.key", "nonsense")), "tls.key: ").await;
    refused(|_, _, config| config.tls.certificate = Some("/no/such/file".into()), "tls.certificate: /no/such/file")
        .await;
    let expired = |place: &Place, authority: &Authority, _: &mut Config| {
        drop(place.server(&authority.issue(|params| params.not_after = date_time_ymd(2020, 1, 1))));
    };
    refused(expired, "tls.certificate: has expired on ").await;
    let no_ca = |place: &Place, _: &Authority, config: &mut Config| {
        config.tls.client_auth = ClientAuth::Required;
        config.tls.client_ca = Some(place.write("ca.crt", "nonsense"));
    };
    refused(no_ca, "tls.client_ca: ").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn transfer_pulls_from_a_server_under_tls() {
    let (place, authority) = (Place::new(), Authority::new());
    let from = TestServer::with(under_tls(with_login(test_config()), &place, &authority.pair())).await;
    let trust = place.trust(&[&authority]);
    let source = Client::connect_trusting(from.server.location(), Some(&login()), &trust).await.unwrap();
    source.put(&table("t"), people(3, 1000)).await.unwrap();
    for (peer_ca, works) in [(trust.ca.clone(), true), (None, false)] {
        let mut config = test_config();
        config.tls.peer_ca = peer_ca;
        let to = TestServer::with(config).await;
        let client = to.client().await;
        let body = serde_json::json!({
            "from": from.uri(), "table": "t", "username": USER, "password": crate::support::PASSWORD, "endpoints": 2,
        });
        let mut steps = client.action("transfer", &body).await.unwrap().boxed();
        let mut outcome = Ok(());
        while let Some(step) = steps.next().await {
            outcome = outcome.and(step.map(drop));
        }
        match works {
            true => {
                outcome.unwrap();
                assert_eq!(count(&client, "t").await, 3000);
            }
            false => assert_eq!(outcome.unwrap_err().code(), Code::Unavailable),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn command_line_speaks_tls() {
    let (place, authority) = (Place::new(), Authority::new());
    let server = TestServer::with(with_certificates(&place, &authority, ClientAuth::Optional)).await;
    let trust = place.trust(&[&authority]);
    let client = place.showing(&trust, "client", &authority.client("x", dns(USER)));
    let ca = trust.ca.unwrap();
    let (certificate, key) = client.identity.unwrap();
    let run = async |arguments: &[&str], environment: &[(&str, &Path)]| {
        let mut command = mallard();
        command.args(arguments).envs(environment.iter().copied());
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (uri, shown) = (server.uri(), ca.to_str().unwrap());
    let (code, out, err) = run(&["health", &uri, "--tls-ca", shown], &[]).await;
    assert_eq!((code, out.as_str()), (Some(0), "SERVING\n"), "{err}");
    let environment = [("MALLARD_TLS_CA", &*ca), ("MALLARD_TLS_CERT", &*certificate), ("MALLARD_TLS_KEY", &*key)];
    let (code, out, err) = run(&["query", &uri, "SELECT 42 AS i", "--format", "csv"], &environment).await;
    assert_eq!((code, out.as_str()), (Some(0), "i\n42\n"), "{err}");
    let (code, _, err) = run(&["query", &uri, "SELECT 42 AS i", "--tls-ca", shown], &[]).await;
    assert_eq!(code, Some(4), "{err}");
    let (code, _, err) = run(&["query", &uri, "SELECT 1", "--tls-ca", shown, "--tls-cert", shown], &[]).await;
    assert!(code == Some(2) && err.contains("--tls-key"), "{err}");
    let other = place.write("other.crt", &Authority::new().0.pem());
    let (code, _, err) = run(&["health", &uri, "--tls-ca", other.to_str().unwrap()], &[]).await;
    assert!(code == Some(3) && err.contains("--tls-ca"), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn hangup_reads_certificates_again_and_the_log_says_what_was_refused() {
    let (place, authority) = (Place::new(), Authority::new());
    let (certificate, key) = place.server(&authority.pair());
    let environment =
        [("MALLARD__TLS__CERTIFICATE", certificate.to_str().unwrap()), ("MALLARD__TLS__KEY", key.to_str().unwrap())];
    let process = Process::serve(&environment);
    assert!(matches!(process.location, Location::Tls { .. }));
    process.signal("HUP");
    process.logs("read again").await;
    place.write("tls.key", &authority.pair().key);
    process.logs("does not belong to tls.certificate").await;
    asked(&process.location, None, &place.trust(&[&authority])).await.expect("what was there before stays in use");
    let log = process.stop();
    assert!(!log.iter().any(|line| line.contains("PRIVATE KEY")));
}
