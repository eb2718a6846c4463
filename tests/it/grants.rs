//! Grants hold for what DuckDB binds, whatever the text looks like: attacks, DuckDB's folding of names, and generated
//! statements beside a database in which nothing else exists than what the caller may read.

use arrow_flight::sql::EndTransaction;
use mallard::{
    access::{Role, fold},
    client::Client,
    config::{Config, RoleSettings},
    engine::guard::attacks::{GRANT_ATTACKS, GRANTED, HIDDEN},
};
use serde_json::json;
use tonic::Code;

use crate::{
    exchange::act,
    flight_sql::texts,
    support::{TestServer, USER, collect, row, run, test_config, with_login, with_users},
};

/// A server with all of it, its admin and ann; and one with what ann may read.
async fn servers() -> (TestServer, Client, Client, TestServer, Client) {
    let mut config: Config = with_login(test_config());
    let narrow = RoleSettings {
        base: Some(Role::Writer),
        read: Some(vec!["sales.*".into()]),
        write: Some(vec!["scratch.*".into(), "hr.scratch*".into()]),
        ..Default::default()
    };
    config.auth.roles.insert("narrow".into(), narrow);
    config.exchange.tables = true;
    let server = TestServer::with(with_users(config, &[("ann", "narrow")])).await;
    let admin = server.client_of(USER).await;
    for sql in GRANTED.iter().chain(HIDDEN) {
        run(&admin, sql).await;
    }
    let ann = server.client_of("ann").await;
    let without = TestServer::start().await;
    let all = without.client().await;
    for sql in GRANTED {
        run(&all, sql).await;
    }
    run(&all, "CREATE TABLE sales.bands AS SELECT range::INTEGER AS id, 100 * range > 500 AS high FROM range(10)")
        .await;
    (server, admin, ann, without, all)
}

/// The rows in one order, or why there are none.
async fn answer(client: &Client, sql: &str) -> Result<Vec<String>, mallard::error::Error> {
    let mut rows = texts(&collect(client.query(sql).await?).await?);
    rows.sort();
    Ok(rows)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_duckdb_binds_beside_what_a_text_says_is_refused() {
    let (_server, admin, ann, _without, _all) = servers().await;
    let mut wrong = Vec::new();
    for sql in GRANT_ATTACKS.iter().copied() {
        let told = answer(&ann, sql).await;
        if told.as_ref().err().map(|error| error.code()) != Some(Code::PermissionDenied) {
            wrong.push(format!("{sql}: {told:?}"));
        }
        let info = ann.info(arrow_flight::FlightDescriptor::new_cmd(sql.to_string())).await;
        if info.as_ref().err().map(|error| error.code()) != Some(Code::PermissionDenied) {
            wrong.push(format!("info of {sql}: {info:?}"));
        }
    }
    // What is hers works, and what she misspells is told from what is hidden.
    for (sql, expected) in [
        ("SELECT sales.twice(21)", "42"),
        ("SELECT nextval('scratch.numbers')", "1"),
        ("SELECT enum_range(NULL::sales.mood)[1]", "good"),
        ("SELECT rowid FROM sales.orders ORDER BY 1 LIMIT 1", "0"),
        ("SELECT count(*) FROM sales.bands b JOIN sales.orders USING (id)", "10"),
        ("INSERT INTO scratch.mine VALUES (1, 'again') ON CONFLICT DO UPDATE SET name = 'again'", "OK"),
        ("INSERT INTO scratch.mine (id) VALUES ($$9$$::INTEGER)", "OK"),
        ("CREATE VIEW scratch.seen AS SELECT * FROM sales.bands", "OK"),
        ("SELECT count(*) FROM scratch.seen", "10"),
        ("CREATE TABLE scratch.data AS SELECT data.id FROM sales.orders data WITH DATA", "OK"),
        ("ALTER TABLE scratch.data ADD COLUMN r DOUBLE DEFAULT random()", "OK"),
        ("ALTER TABLE scratch.data ALTER id TYPE BIGINT", "OK"),
        ("CREATE TABLE scratch.m (m sales.mood, n INTEGER DEFAULT nextval('scratch.numbers'))", "OK"),
        ("SET VARIABLE v = (SELECT max(id) FROM sales.orders)", "OK"),
        ("EXPLAIN ANALYZE SELECT * FROM sales.orders", "analyzed_plan"),
        ("DROP TABLE scratch.data", "OK"),
    ] {
        let told = answer(&ann, sql).await;
        if !told.as_ref().is_ok_and(|rows| rows.first().is_some_and(|first| first.starts_with(expected))) {
            wrong.push(format!("{sql}: {told:?}"));
        }
    }
    for (sql, code) in [
        ("FROM sales.nothing", Code::NotFound),
        ("SELECT lowr('x')", Code::NotFound),
        ("SELECT nothing FROM sales.orders", Code::InvalidArgument),
    ] {
        let told = answer(&ann, sql).await.expect_err("it is not there");
        let planned = ann.info(arrow_flight::FlightDescriptor::new_cmd(sql.to_string())).await.expect_err("nor here");
        assert!(!planned.to_string().contains("Did you mean"), "{planned}");
        if told.code() != code || told.to_string().contains("hr.") {
            wrong.push(format!("{sql}: {told}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(row(&admin, "SELECT count(*)::VARCHAR || sum(id)::VARCHAR FROM secrets").await, ["142"]);
    let counter = "SELECT last_value IS NULL FROM duckdb_sequences() WHERE sequence_name = 'counter'";
    assert_eq!(row(&admin, counter).await, ["true"]);
}

/// What is let through is remembered, for as long as nothing changes that it depends on.
#[tokio::test(flavor = "multi_thread")]
async fn a_remembered_decision_does_not_outlive_what_it_was_made_on() {
    let mut config: Config = with_login(test_config());
    for (role, read) in [("sales", "sales.*"), ("both", "*.*"), ("orders", "sales.orders")] {
        let base = Some(Role::Reader);
        config
            .auth
            .roles
            .insert(role.into(), RoleSettings { base, read: Some(vec![read.into()]), ..Default::default() });
    }
    let users = [("ann", "sales"), ("bob", "both"), ("eve", "orders")];
    let server = TestServer::with(with_users(config, &users)).await;
    let admin = server.client_of(USER).await;
    for sql in [
        "CREATE SCHEMA sales",
        "CREATE SCHEMA hr",
        "CREATE TABLE sales.orders AS SELECT 1 AS id",
        "CREATE TABLE hr.salaries AS SELECT 42 AS salary",
        "CREATE MACRO sales.twice(x) AS 2 * x",
        "CREATE VIEW sales.seen AS FROM sales.orders",
    ] {
        run(&admin, sql).await;
    }
    let [ann, bob, eve] = server.clients(&users).await.try_into().ok().expect("three users");
    let told = async |client: &Client, sql: &str| match answer(client, sql).await {
        Ok(rows) => rows.join(" "),
        Err(error) => format!("{:?}", error.code()),
    };
    let call = "SELECT sales.twice(21) FROM sales.seen";
    for _ in 0..3 {
        assert_eq!(told(&ann, call).await, "42");
        // The same text, with other grants.
        assert_eq!(told(&bob, call).await, "42");
        assert_eq!(told(&eve, call).await, "PermissionDenied");
    }
    let hidden = "CREATE OR REPLACE MACRO sales.twice(x) AS x + (SELECT max(salary) FROM hr.salaries)";
    let open = "CREATE OR REPLACE MACRO sales.twice(x) AS 2 * x";
    let mut sql = server.sql_of(USER).await;
    // By a ticket, as an update, prepared, and behind EXPLAIN ANALYZE where DuckDB does so.
    for way in 0..4 {
        assert_eq!(told(&ann, call).await, "42", "{way}");
        match way {
            0 => run(&admin, hidden).await,
            1 => drop(sql.execute_update(hidden.to_string(), None).await.unwrap()),
            2 => drop(sql.prepare(hidden.to_string(), None).await.unwrap().execute_update().await.unwrap()),
            _ => {
                let _ = answer(&admin, &format!("EXPLAIN ANALYZE {hidden}")).await;
                run(&admin, hidden).await;
            }
        }
        assert_eq!(told(&ann, call).await, "PermissionDenied", "{way}");
        assert_eq!(told(&bob, call).await, "63", "{way}");
        run(&admin, open).await;
        assert_eq!(told(&ann, call).await, "42", "{way}");
    }
    // In a transaction it counts from the commit on.
    for commits in [false, true] {
        let transaction = sql.begin_transaction().await.unwrap();
        sql.execute_update(hidden.to_string(), Some(transaction.clone())).await.unwrap();
        assert_eq!(told(&ann, call).await, "42");
        let action = if commits { EndTransaction::Commit } else { EndTransaction::Rollback };
        sql.end_transaction(transaction, action).await.unwrap();
        assert_eq!(told(&ann, call).await, if commits { "PermissionDenied" } else { "42" });
    }
    // What is gone, or stands for something else by now, is looked for anew.
    let seen = "SELECT id FROM sales.seen";
    assert_eq!(told(&ann, seen).await, "1");
    run(&admin, "DROP VIEW sales.seen").await;
    assert_eq!(told(&ann, seen).await, "NotFound");
    run(&admin, "CREATE VIEW sales.seen AS SELECT 2 AS id").await;
    assert_eq!(told(&ann, seen).await, "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn exchangers_do_not_tell_of_tables_without_a_grant() {
    let (_server, admin, ann, _without, _all) = servers().await;
    for (name, sql) in [
        ("hidden", "SELECT input.*, (SELECT max(salary) FROM hr.salaries) AS top FROM input"),
        ("open", "SELECT input.*, (SELECT max(id) FROM sales.orders) AS top FROM input"),
    ] {
        act(&admin, "add_exchange", json!({"name": name, "sql": sql})).await.unwrap();
    }
    let listed = act(&ann, "list_exchanges", serde_json::Value::Null).await.unwrap();
    assert!(
        listed.iter().any(|one| one.contains("\"hidden\"")) && listed.iter().any(|one| one.contains("sales.orders"))
    );
    assert!(listed.iter().all(|one| !one.contains("salar")), "{listed:?}");
    let told = act(&admin, "list_exchanges", serde_json::Value::Null).await.unwrap();
    assert!(told.iter().any(|one| one.contains("hr.salaries")));
}

/// A character that some folding takes for another one: DuckDB and `fold` agree whether a name with it is the same.
#[tokio::test(flavor = "multi_thread")]
async fn names_are_folded_as_duckdb_folds_them() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let mut pairs = Vec::new();
    for character in '\u{21}'..=char::MAX {
        let others = character.to_lowercase().chain(character.to_uppercase()).collect::<Vec<_>>();
        pairs.extend(others.into_iter().filter(|other| *other != character).map(|other| (character, other)));
    }
    assert!(pairs.len() > 2500, "{}", pairs.len());
    let quoted = |character: char| format!("\"x{character}\"");
    let mut alike = 0;
    for (one, other) in pairs {
        let sql = format!("SELECT {} FROM (SELECT 1 AS {})", quoted(other), quoted(one));
        let found = client.query(&sql).await.is_ok();
        let same = fold(&one.to_string()) == fold(&other.to_string());
        assert_eq!(found, same, "U+{:04X} and U+{:04X}", u32::from(one), u32::from(other));
        alike += usize::from(same);
    }
    assert_eq!(alike, 52, "the letters of ASCII, both ways");
}

/// Small, and the same everywhere for a seed.
struct Random(u64);

impl Random {
    fn below(&mut self, most: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % most
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len())]
    }

    fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }
}

const TABLES: [&str; 12] = [
    "sales.orders",
    "sales.orders",
    "sales.bands",
    "scratch.mine",
    "scratch.mine",
    "hr.salaries",
    "hr.orders",
    "secrets",
    "tokens",
    "recurring.vault",
    "orders",
    "salaries",
];

const EXPRESSIONS: [&str; 22] = [
    "1",
    "count(*)",
    "max(id)",
    "id",
    "t.id",
    "t",
    "data.*",
    "*",
    "COLUMNS(*)",
    "sales.twice(3)",
    "hr.bonus(3)",
    "sales.paid()",
    "enum_range(NULL::sales.mood)",
    "enum_range(NULL::hr.level)",
    "nextval('hr.counter')",
    "currval('hr.counter')",
    "list(t)",
    "row(t)",
    "t::VARCHAR",
    "(t).id",
    "[x FOR x IN [1, 2]]",
    "CAST('good' AS sales.mood)",
];

struct Generator {
    random: Random,
    ctes: Vec<String>,
}

impl Generator {
    /// Another way to write a name, or a name that looks like it.
    fn written(&mut self, name: &str) -> String {
        let mut parts: Vec<String> = name.split('.').map(str::to_string).collect();
        if self.random.once_in(6) {
            if parts.len() == 1 {
                parts.insert(0, "main".into());
            }
            parts.insert(0, "memory".into());
        } else if self.random.once_in(8) {
            parts.remove(0);
        }
        let parts: Vec<String> = parts.iter().map(|part| self.part(part)).collect();
        if parts.is_empty() { self.part(name) } else { parts.join(if self.random.once_in(9) { " . " } else { "." }) }
    }

    fn part(&mut self, part: &str) -> String {
        let mut part = part.to_string();
        if self.random.once_in(5) {
            part = part.chars().map(|c| if self.random.once_in(2) { c.to_ascii_uppercase() } else { c }).collect();
        }
        if self.random.once_in(8) {
            let (from, to) =
                [('k', "\u{212a}"), ('s', "\u{17f}"), ('i', "\u{130}"), ('e', "e\u{301}"), ('a', "\u{e5}")]
                    [self.random.below(5)];
            return format!("\"{}\"", part.replacen(from, to, 1));
        }
        if self.random.once_in(3) { format!("\"{part}\"") } else { part }
    }

    fn table(&mut self) -> String {
        if !self.ctes.is_empty() && self.random.once_in(3) {
            let at = self.random.below(self.ctes.len());
            let name = self.ctes[at].clone();
            return if self.random.once_in(5) { format!("recurring.{name}") } else { name };
        }
        let name = self.random.pick(&TABLES);
        self.written(name)
    }

    fn from(&mut self, depth: usize) -> String {
        let alias = self.random.pick(&["", " t", " AS t", " data", " AS data", " t"]);
        match self.random.below(if depth == 0 { 5 } else { 11 }) {
            0..=3 => format!("{}{alias}", self.table()),
            4 => format!("range(3) {}{alias}", self.random.pick(&["", "WITH ORDINALITY"])),
            5 => format!("({}){alias}", self.query(depth - 1)),
            6 => format!("{}, {}", self.from(depth - 1), self.from(depth - 1)),
            7 => format!("{} JOIN {} ON {}", self.from(0), self.from(depth - 1), self.condition(depth - 1)),
            8 => format!("{}, LATERAL ({})", self.from(0), self.query(depth - 1)),
            9 => format!("(VALUES (({}))){alias}", self.query(depth - 1)),
            _ => format!("({}){alias}", self.from(depth - 1)),
        }
    }

    fn condition(&mut self, depth: usize) -> String {
        match self.random.below(4) {
            0 if depth > 0 => format!("EXISTS ({})", self.query(depth - 1)),
            1 if depth > 0 => format!("id IN ({})", self.query(depth - 1)),
            2 => "id > 1".into(),
            _ => "true".into(),
        }
    }

    fn expression(&mut self, depth: usize) -> String {
        match self.random.below(8) {
            0 if depth > 0 => format!("({})", self.query(depth - 1)),
            1 if depth > 0 => format!("ARRAY({})", self.query(depth - 1)),
            _ => self.random.pick(&EXPRESSIONS).into(),
        }
    }

    fn query(&mut self, depth: usize) -> String {
        let outer = self.ctes.len();
        let mut with = Vec::new();
        while depth > 0 && self.random.once_in(3) && with.len() < 3 {
            let name = self.random.pick(&["secrets", "tokens", "salaries", "orders", "vault", "c"]);
            let name = self.part(name);
            let how = self.random.pick(&["", "", "MATERIALIZED ", "NOT MATERIALIZED "]);
            let body = self.query(depth - 1);
            with.push(format!("{name} AS {how}({body})"));
            self.ctes.push(name);
        }
        let with = match with.is_empty() {
            true => String::new(),
            false => format!("WITH {}{} ", self.random.pick(&["", "", "RECURSIVE "]), with.join(", ")),
        };
        let body = match self.random.below(8) {
            0 => format!("FROM {}", self.from(depth)),
            1 => format!("TABLE {}", self.table()),
            2 if depth > 0 => format!("({}) UNION ALL ({})", self.query(depth - 1), self.query(depth - 1)),
            3 if depth > 0 => format!("({}) EXCEPT ({})", self.query(depth - 1), self.query(depth - 1)),
            _ => {
                let expression = self.expression(depth);
                format!("SELECT {expression} FROM {} WHERE {}", self.from(depth), self.condition(depth))
            }
        };
        self.ctes.truncate(outer);
        with + &body
    }

    fn statement(&mut self) -> String {
        let depth = self.random.below(3);
        let sql = match self.random.below(20) {
            0 => format!("EXPLAIN {}", self.query(depth)),
            1 => format!("DESCRIBE {}", self.query(depth)),
            2 => format!("SUMMARIZE {}", self.query(depth)),
            3 => format!(
                "CREATE TABLE scratch.made AS {}{}",
                self.query(depth),
                self.random.pick(&["", " WITH DATA", " WITH NO DATA"])
            ),
            4 => format!("CREATE VIEW scratch.made AS {}", self.query(depth)),
            5 => format!("SET VARIABLE v = ({})", self.query(depth)),
            6 => format!("INSERT INTO scratch.copies {}", self.query(depth)),
            7 => format!("UPDATE scratch.mine AS t SET name = ({}) WHERE {}", self.query(depth), self.condition(depth)),
            8 => format!("DELETE FROM {} WHERE {}", self.table(), self.condition(depth)),
            9 => format!("MERGE INTO scratch.mine USING {} ON true WHEN MATCHED THEN DELETE", self.from(depth)),
            10 => format!("PIVOT {} ON id IN (1, 2) USING count(*)", self.from(depth)),
            11 => format!("WITH x AS (DELETE FROM {} RETURNING id) FROM x", self.table()),
            _ => self.query(depth),
        };
        match self.random.below(6) {
            0 => sql.replace(' ', "/* ' \" */ "),
            1 => sql.replace(' ', " -- x\n"),
            2 => format!("{sql};"),
            _ => sql,
        }
    }
}

/// What is let through binds where nothing hidden exists, and answers the same there.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_let_through_needs_nothing_that_is_hidden() {
    let asked = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let tried = asked("MALLARD_TEST_STATEMENTS").unwrap_or(600);
    let seed = asked("MALLARD_TEST_SEED").unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        now.as_nanos() as u64 | 1
    });
    println!("MALLARD_TEST_SEED={seed}");
    let (_server, admin, ann, _without, all) = servers().await;
    let mut generator = Generator { random: Random(seed), ctes: Vec::new() };
    let (mut through, mut refused, mut wrong) = (0, 0, 0);
    let began = std::time::Instant::now();
    for _ in 0..tried {
        let sql = generator.statement();
        match answer(&ann, &sql).await {
            Ok(rows) => {
                through += 1;
                let there = answer(&all, &sql).await;
                let there = there.unwrap_or_else(|error| panic!("seed {seed}: {sql}\nwas let through, and {error}"));
                if !sql.starts_with("EXPLAIN") && !sql.starts_with("SUMMARIZE") {
                    assert_eq!(rows, there, "seed {seed}: {sql}");
                }
                if sql.starts_with("CREATE") {
                    let made = "FROM scratch.made";
                    let both = (answer(&admin, made).await.ok(), answer(&all, made).await.ok());
                    assert_eq!(both.0, both.1, "seed {seed}: {sql}");
                    for client in [&admin, &all] {
                        let dropped = answer(client, "DROP VIEW scratch.made").await;
                        if dropped.is_err() {
                            run(client, "DROP TABLE scratch.made").await;
                        }
                    }
                }
                if ["INSERT", "UPDATE", "DELETE", "WITH", "MERGE"].iter().any(|word| sql.starts_with(word)) {
                    for table in ["FROM scratch.mine", "FROM scratch.copies"] {
                        let both = (answer(&admin, table).await.unwrap(), answer(&all, table).await.unwrap());
                        assert_eq!(both.0, both.1, "seed {seed}: {sql}");
                    }
                }
            }
            Err(error) if error.code() == Code::PermissionDenied => refused += 1,
            Err(error) => {
                assert_ne!(error.code(), Code::Internal, "seed {seed}: {sql}: {error}");
                assert!(!error.to_string().contains("Did you mean"), "seed {seed}: {sql}: {error}");
                wrong += 1;
            }
        }
    }
    println!("{tried} statements: {through} let through, {refused} refused, {wrong} wrong, in {:?}", began.elapsed());
    assert!(through > tried / 20 && refused > tried / 20, "{through} {refused} {wrong}");
    let secrets = answer(&admin, "SELECT count(*) || ' ' || sum(id) FROM secrets").await.unwrap();
    assert_eq!(secrets, ["1 42"], "seed {seed}");
}
