//! A value that a function or a cast cannot take is an error of its statement. DuckDB has functions and casts that it takes
//! for infallible, and whose errors would invalidate the database for everybody (src/engine/rethrow.rs).

use mallard::client::Client;
use tonic::Code;

use crate::{
    process::Process,
    support::{collect, count, row, run},
};

/// Values at the ends of their types, some of which only a constructor makes.
const VALUES: &[(&str, &[&str])] = &[
    ("BOOLEAN", &["true"]),
    ("TINYINT", &["-128", "127"]),
    ("SMALLINT", &["-32768"]),
    ("INTEGER", &["-2147483648", "99", "0", "-1"]),
    ("UINTEGER", &["4294967295"]),
    ("BIGINT", &["-9223372036854775808", "-9223372036854775807", "99", "0", "-1"]),
    ("UBIGINT", &["18446744073709551615"]),
    ("HUGEINT", &["-170141183460469231731687303715884105728", "170141183460469231731687303715884105727"]),
    ("UHUGEINT", &["340282366920938463463374607431768211455"]),
    ("BIGNUM", &["'-99999999999999999999999999999999999999999999999999999'", "'0'"]),
    ("FLOAT", &["'nan'", "'-inf'", "3e38"]),
    ("DOUBLE", &["'nan'", "'inf'", "1e308", "-0.5"]),
    ("DECIMAL(18,3)", &["-999999999999999.999"]),
    ("DECIMAL(38,0)", &["99999999999999999999999999999999999999"]),
    ("VARCHAR", &["''", "'a'", "'-1'", "'%'", "'infinity'", "'year'", "'%Y-%m-%d %j %U'", "'[{'", "'$[*]'", "'🦆'"]),
    ("BLOB", &["''", "'\\xFF\\x00'"]),
    ("BIT", &["'0'", "'1111111111'"]),
    ("DATE", &["'infinity'", "'-infinity'", "'5881580-07-10'", "'5877642-06-25 (BC)'"]),
    ("TIME", &["'24:00:00'"]),
    ("TIMETZ", &["'00:00:00+15:59:59'", "'24:00:00-15:59:59'"]),
    (
        "TIMESTAMP",
        &[
            "make_timestamp(-9223372036854775808)",
            "make_timestamp(-9223372036854775700)",
            "'infinity'",
            "'-infinity'",
            "'294247-01-10 04:00:54.775806'",
            "'290309-12-22 (BC) 00:00:00'",
        ],
    ),
    ("TIMESTAMP_S", &["'infinity'", "'294247-01-10 04:00:54'"]),
    ("TIMESTAMP_MS", &["'-infinity'", "'294247-01-10 04:00:54'"]),
    ("TIMESTAMP_NS", &["make_timestamp_ns(-9223372036854775808)", "'infinity'", "'1677-09-22'"]),
    ("INTERVAL", &["INTERVAL '2147483647 months'", "to_microseconds(-9223372036854775808)", "INTERVAL '0 s'"]),
    ("UUID", &["'ffffffff-ffff-ffff-ffff-ffffffffffff'"]),
    ("JSON", &["'{}'", "'[1, null, {\"a\": []}]'"]),
    ("INTEGER[]", &["[]", "[1, NULL, 2147483647]"]),
    ("VARCHAR[]", &["['a', NULL]"]),
    ("STRUCT(a INTEGER, b VARCHAR)", &["{'a': 1, 'b': NULL}"]),
    ("MAP(VARCHAR, INTEGER)", &["MAP {'a': 1}", "MAP {}"]),
    ("ENUM('a', 'b')", &["'a'"]),
];

/// Those that write gigabytes where they are asked to, or wait.
const LONG: [&str; 8] = ["lpad", "rpad", "repeat", "bitstring", "sleep_ms", "array_resize", "list_resize", "set_bit"];

/// A sequence of numbers that is the same for the same seed (splitmix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[(self.next() % all.len() as u64) as usize]
    }

    /// A value of a type of that name, or of any.
    fn value(&mut self, name: &str) -> String {
        let (name, values) =
            match VALUES.iter().find(|(known, _)| *known == name || known.starts_with(&format!("{name}("))) {
                Some(found) => found,
                None => self.of(VALUES),
            };
        format!("CAST({} AS {name})", self.of(values))
    }
}

/// The code of a statement that fails.
async fn code(client: &Client, sql: &str) -> Option<(Code, String)> {
    let rows = match client.query(sql).await {
        Ok(rows) => collect(rows).await.map(drop),
        Err(error) => Err(error),
    };
    rows.err().map(|error| (error.code(), error.to_string()))
}

/// Tries it on a constant, and on a column, which is met when the statement runs.
async fn check(client: &Client, expression: &str, value: &str) {
    let constant = format!("SELECT {}", expression.replace("{}", value));
    let column =
        format!("SELECT {} FROM (SELECT {value} AS x FROM range(3) WHERE range >= 0)", expression.replace("{}", "x"));
    for sql in [constant, column] {
        if let Some((code, message)) = code(client, &sql).await {
            assert!(
                !matches!(code, Code::Internal | Code::Unavailable | Code::Unknown | Code::Aborted),
                "{sql}: {code:?} {message}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn values_that_a_function_cannot_take_are_errors_of_their_statement_alone() {
    let server = Process::serve(&[]);
    let client = server.client(None).await;
    run(&client, "CREATE TABLE kept AS SELECT 42 AS i").await;
    // Those that are known to be no internal error any more.
    for sql in [
        "SELECT make_timestamp(-9223372036854775808)::VARCHAR",
        "SELECT make_timestamp(x)::VARCHAR FROM (VALUES (-9223372036854775808)) t(x)",
        "SELECT [make_timestamp(x)]::VARCHAR FROM (VALUES (-9223372036854775808)) t(x)",
        "SELECT age(make_timestamp(x)) FROM (VALUES (-9223372036854775808)) t(x)",
        "SELECT to_json(make_timestamp(x)) FROM (VALUES (-9223372036854775808)) t(x)",
        "SELECT 'at ' || make_timestamp(x) FROM (VALUES (-9223372036854775700)) t(x)",
        "SELECT TRY_CAST(x AS UINTEGER) FROM (SELECT '-99999999999999999999999999999999999999'::BIGNUM AS x FROM range(2))",
    ] {
        let (code, message) = code(&client, sql).await.expect(sql);
        assert_eq!(code, Code::InvalidArgument, "{sql}: {message}");
        assert!(message.contains("Date out of range") || message.contains("bignum"), "{sql}: {message}");
    }
    let tried = "SELECT TRY(make_timestamp(x)::VARCHAR) IS NULL FROM (VALUES (-9223372036854775808)) t(x)";
    assert_eq!(row(&client, tried).await, ["true"]);

    // Every value as every type.
    for (from, values) in VALUES {
        let value = format!("CAST({} AS {from})", values[0]);
        let casts = VALUES.iter().map(|(to, _)| format!("TRY_CAST({{}} AS {to})")).collect::<Vec<_>>();
        check(&client, &casts.join(", "), &value).await;
    }
    let moments = VALUES.iter().filter(|(name, _)| name.starts_with("TIMESTAMP") || *name == "DATE");
    for (name, values) in moments {
        for value in *values {
            for expression in
                ["{}::VARCHAR", "strftime({}, '%c %j %U %f')", "date_trunc('week', {})", "[{}]::JSON::VARCHAR"]
            {
                check(&client, expression, &format!("CAST({value} AS {name})")).await;
            }
        }
    }

    // Every function of DuckDB's with such values.
    let long = LONG.map(|name| format!("'{name}'")).join(", ");
    let functions = format!(
        "SELECT string_agg(DISTINCT function_name || ' ' || array_to_string(parameter_types, ';'), '\n') \
         FROM duckdb_functions() WHERE function_type = 'scalar' AND internal AND function_name SIMILAR TO '[a-z_0-9]+' \
         AND len(parameter_types) > 0 AND NOT list_contains(parameter_types, 'LAMBDA') AND function_name NOT IN ({long})"
    );
    let functions = row(&client, &functions).await.remove(0);
    let mut functions: Vec<&str> = functions.lines().collect();
    functions.sort_unstable();
    assert!(functions.len() > 500, "{}", functions.len());
    let rounds = std::env::var("MALLARD_TEST_ROUNDS").map_or(1, |rounds| rounds.parse().unwrap());
    let mut numbers = Numbers(15);
    for _ in 0..rounds {
        for function in &functions {
            let (name, types) = function.split_once(' ').unwrap();
            let mut arguments: Vec<String> = types.split(';').map(|name| numbers.value(name)).collect();
            let value = std::mem::replace(&mut arguments[0], "{}".into());
            let call = format!("\"{name}\"({})", arguments.join(", "));
            let outer = *numbers.of(&["{}", "({})::VARCHAR", "to_json({})", "hash([{}])"]);
            check(&client, &outer.replace("{}", &call), &value).await;
        }
    }
    assert_eq!(count(&client, "kept").await, 1, "nothing of it was lost");
}
