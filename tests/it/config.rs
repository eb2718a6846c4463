//! Configuration: sources in order, every mistake at once, secrets hidden.

use mallard::config::{Config, Credential, Loaded, Mistakes, load};

fn from(toml: &str, environment: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Loaded, Mistakes> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("mallard.toml");
    std::fs::write(&path, toml).unwrap();
    let environment = environment.iter().map(|(name, value)| (name.to_string(), value.to_string()));
    let flags: Vec<(&str, String)> = flags.iter().map(|(key, value)| (*key, value.to_string())).collect();
    load(Some(&path), environment.collect::<Vec<_>>(), &flags)
}

fn mistakes(toml: &str, environment: &[(&str, &str)]) -> Vec<String> {
    from(toml, environment, &[]).expect_err("there are mistakes").0
}

#[test]
fn the_shipped_file_documents_every_key_and_equals_the_defaults() {
    let shipped = include_str!("../../config/mallard.toml");
    assert_eq!(shipped, Config::default().to_toml(), "run: mallard config default > config/mallard.toml");
    let loaded = from(shipped, &[], &[]).unwrap();
    assert_eq!(loaded.config.to_toml(), Config::default().to_toml());
}

#[test]
fn later_sources_win() {
    let toml = "[database]\npath = 'file'\nthreads = 3\n[limits]\nqueries = 5\n";
    let environment = [("MALLARD__DATABASE__PATH", "env"), ("MALLARD__DATABASE__THREADS", "4"), ("PATH", "/bin")];
    let loaded = from(toml, &environment, &[("database.path", "flag")]).unwrap();
    assert_eq!((loaded.config.database.path.as_str(), loaded.config.database.threads), ("flag", 4));
    let shown = loaded.show();
    for line in [
        "database.path = \"flag\"  # command line",
        "database.threads = 4  # environment MALLARD__DATABASE__THREADS",
        "limits.queue = 256  # default",
    ] {
        assert!(shown.contains(line), "{line} in:\n{shown}");
    }
    let queries = shown.lines().find(|line| line.starts_with("limits.queries")).unwrap();
    assert!(queries.starts_with("limits.queries = 5  # ") && queries.contains("mallard.toml"), "{queries}");
}

#[test]
fn unknown_keys_suggest_the_nearest() {
    for (environment, suggestion) in [
        ("MALLARD__SERVER__LOCATOIN", "server.location"),
        ("MALLARD__LIMITS__QUERYS", "limits.queries"),
        ("MALLARD__DATABSE__PATH", "database.path"),
    ] {
        let found = mistakes("", &[(environment, "x")]);
        assert_eq!(found.len(), 1);
        assert!(found[0].contains(&format!("did you mean {suggestion}?")), "{}", found[0]);
        assert!(found[0].contains(environment), "names the source: {}", found[0]);
    }
}

#[test]
fn all_mistakes_are_reported_at_once_each_with_its_source() {
    let toml = "[server]\ngrace_period = 30\nlocation = 'http://x'\n[log]\nformat = 'xml'\n[nope]\nx = 1\n";
    let found = mistakes(toml, &[("MALLARD__LIMITS__QUERIES", "many"), ("MALLARD__ADMIN__LISTEN", "here")]);
    assert_eq!(found.len(), 6, "{found:#?}");
    for (key, why, source) in [
        ("server.grace_period", "duration in quotes", "mallard.toml"),
        ("server.location", "unknown scheme", "mallard.toml"),
        ("log.format", "text", "mallard.toml"),
        ("nope.x", "unknown key", "mallard.toml"),
        ("limits.queries", "whole number", "MALLARD__LIMITS__QUERIES"),
        ("admin.listen", "IP:PORT", "MALLARD__ADMIN__LISTEN"),
    ] {
        let line = found.iter().find(|line| line.starts_with(key)).unwrap_or_else(|| panic!("{key} in {found:#?}"));
        assert!(line.contains(why) && line.contains(source), "{line}");
    }
    let broken = mistakes("[auth.users.bob]\npassword = \"canary-secret\n", &[]);
    assert!(broken[0].contains("mallard.toml: line 2") && !broken[0].contains("canary-secret"), "{broken:?}");
    // What only several keys together show is not hidden by another mistake.
    let both = mistakes("[nope]\nx = 1\n", &[("MALLARD__SERVER__LOCATION", "grpc://0.0.0.0:1")]);
    assert_eq!(both.len(), 2, "{both:?}");
}

#[test]
fn endpoints_are_one_to_sixty_four() {
    for (count, says) in [("0", "at least 1"), ("65", "at most 64")] {
        let found = mistakes("", &[("MALLARD__LIMITS__ENDPOINTS", count)]);
        assert!(found[0].starts_with("limits.endpoints") && found[0].contains(says), "{found:?}");
    }
    assert_eq!(from("", &[("MALLARD__LIMITS__ENDPOINTS", "64")], &[]).unwrap().config.limits.endpoints, 64);
}

#[test]
fn sizes_and_durations_are_text() {
    let toml = "[limits]\nmax_message_size = '8MiB'\nstatement_timeout = '1m 30s'\n[database]\nmemory_limit = '2GiB'\n";
    let config = from(toml, &[], &[]).unwrap().config;
    assert_eq!(config.limits.max_message_size.bytes(), 8 << 20);
    assert_eq!(config.limits.statement_timeout.0.as_secs(), 90);
    assert_eq!(config.database.memory_limit.unwrap().bytes(), 2 << 30);
}

#[test]
fn digits_in_the_environment_stay_a_password() {
    let environment = [("MALLARD__AUTH__ENABLED", "true"), ("MALLARD__AUTH__USERS__ALICE__PASSWORD", "0123456789")];
    let loaded = from("", &environment, &[]).unwrap();
    let Some(Credential::Password(password)) = &loaded.config.auth.users["alice"].credential else {
        panic!("a password")
    };
    assert_eq!(password.reveal(), "0123456789");
    assert!(!loaded.show().contains("0123456789"));
    assert!(!format!("{loaded:?}").contains("0123456789"));
}

#[test]
fn every_secret_has_a_file_twin() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("secret");
    std::fs::write(&path, "a secret of sixteen bytes or more\n").unwrap();
    let path = path.to_str().unwrap();
    let environment = [("MALLARD__AUTH__SIGNING_KEY_FILE", path), ("MALLARD__AUTH__USERS__BOB__PASSWORD_FILE", path)];
    let loaded = from("", &environment, &[]).unwrap();
    assert_eq!(loaded.config.auth.signing_key.as_ref().unwrap().reveal(), "a secret of sixteen bytes or more");
    assert!(loaded.config.auth.users.contains_key("bob"));
    assert!(!loaded.show().contains("sixteen"), "{}", loaded.show());

    let twice = [environment[0], ("MALLARD__AUTH__SIGNING_KEY", "another secret that is long")];
    assert!(mistakes("", &twice)[0].contains("give one of them"));
    assert!(mistakes("", &[("MALLARD__AUTH__SIGNING_KEY_FILE", "/nowhere")])[0].contains("/nowhere"));
}

#[test]
fn open_to_others_without_login_is_refused_unless_said() {
    let open = [("MALLARD__SERVER__LOCATION", "grpc://0.0.0.0:8815")];
    let refused = mistakes("", &open);
    assert!(
        refused[0].contains("auth.allow_anonymous") && refused[0].contains("MALLARD__SERVER__LOCATION"),
        "{refused:?}"
    );
    let said = [open[0], ("MALLARD__AUTH__ALLOW_ANONYMOUS", "true")];
    assert!(from("", &said, &[]).is_ok());
    let login = [
        open[0],
        ("MALLARD__AUTH__ENABLED", "true"),
        ("MALLARD__AUTH__USERS__A__PASSWORD", "x"),
        ("MALLARD__AUTH__ALLOW_PLAINTEXT", "true"),
    ];
    assert!(from("", &login, &[]).is_ok());
    for local in ["grpc://127.0.0.1:1", "grpc+tcp://localhost:1", "grpc://[::1]:1", "grpc+unix:///tmp/x.sock"] {
        assert!(from("", &[("MALLARD__SERVER__LOCATION", local)], &[]).is_ok(), "{local}");
    }
}

#[test]
fn login_without_users_is_refused() {
    let refused = mistakes("", &[("MALLARD__AUTH__ENABLED", "true")]);
    assert!(refused[0].contains("mallard user hash"), "{refused:?}");
}

#[test]
fn logins_travel_in_the_clear_only_where_that_is_said() {
    let open = "[server]\nlocation = 'grpc://0.0.0.0:8815'\n[auth]\nenabled = true\nusers_file = 'users.toml'\n";
    let found = mistakes(open, &[]);
    assert_eq!(found.len(), 1, "{found:#?}");
    for part in ["server.location", "tls.certificate", "auth.allow_plaintext", "mallard.toml"] {
        assert!(found[0].contains(part), "{part}: {}", found[0]);
    }
    from(open, &[("MALLARD__AUTH__ALLOW_PLAINTEXT", "true")], &[]).unwrap();
    let under_tls = [("MALLARD__TLS__CERTIFICATE", "tls.crt"), ("MALLARD__TLS__KEY", "tls.key")];
    let loaded = from(open, &under_tls, &[]).unwrap();
    assert_eq!(loaded.config.served().to_string(), "grpc+tls://0.0.0.0:8815");
    for local in ["grpc://127.0.0.1:0", "grpc://localhost:1", "grpc://[::1]:1", "grpc+unix:///tmp/socket"] {
        from(open, &[("MALLARD__SERVER__LOCATION", local)], &[]).unwrap();
    }
}

#[test]
fn half_of_a_tls_configuration_is_a_mistake() {
    let pair = "certificate = 'c'\nkey = 'k'\n";
    for (toml, why) in [
        ("[tls]\ncertificate = 'c'\n".to_string(), "tls.certificate: needs tls.key"),
        ("[tls]\nkey = 'k'\n".to_string(), "tls.key: needs tls.certificate"),
        ("[server]\nlocation = 'grpc+tls://127.0.0.1:1'\n".to_string(), "server.location: grpc+tls:// needs"),
        (format!("[server]\nlocation = 'grpc+unix:///s'\n[tls]\n{pair}"), "tls.certificate: server.location is a Unix"),
        (format!("[tls]\n{pair}client_ca = 'a'\n"), "tls.client_ca: is not used"),
        (format!("[tls]\n{pair}client_auth = 'required'\n"), "tls.client_auth: needs tls.client_ca"),
        ("[tls]\nclient_auth = 'optional'\nclient_ca = 'a'\n".to_string(), "tls.client_auth: needs tls.certificate"),
        ("[limits]\nhandshake_timeout = '0s'\n".to_string(), "limits.handshake_timeout: must be longer"),
        (
            "[auth.users.alice]\npassword = 'x'\n[auth.certificates]\n'etl.example.com' = 'nobody'\n".to_string(),
            "auth.certificates.etl.example.com: there is no user \"nobody\"",
        ),
    ] {
        let found = mistakes(&toml, &[]);
        assert!(found.len() == 1 && found[0].starts_with(why), "{toml}: {found:#?}");
    }
    let toml = "[auth.users.alice]\npassword = 'x'\n[auth.certificates]\n'etl.example.com' = 'alice'\n";
    let loaded = from(toml, &[], &[]).unwrap();
    assert_eq!(loaded.config.auth.certificates["etl.example.com"], "alice");
    assert!(loaded.show().contains("auth.certificates.etl.example.com = \"alice\"  # "), "{}", loaded.show());
}
