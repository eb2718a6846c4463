//! Dates and time zones, which DuckDB has in an extension that is not in the binary. The values are those of DuckDB 2.0.0
//! with its extension.

use arrow_flight::error::FlightError;
use futures::TryStreamExt;
use tonic::Code;

use crate::{
    flight_sql::{Sql, refused, table, texts, update},
    support::{TestServer, USER, row, run, test_config, with_login, with_users},
};

/// Expressions in a zone, and their values as text.
const CASES: &[(&str, &[(&str, &str)])] = &[
    (
        "UTC",
        &[
            ("TIMESTAMPTZ '2024-02-29 13:14:15.5'", "2024-02-29 13:14:15.5+00"),
            ("TIMESTAMPTZ '2024-02-29 13:14:15.5'::DATE", "2024-02-29"),
            ("TIMESTAMPTZ '2024-02-29 13:14:15.5'::TIMETZ", "13:14:15.5+00"),
            ("TIMESTAMPTZ '2024-02-29 13:14:15.5'::TIMESTAMP", "2024-02-29 13:14:15.5"),
            ("DATE '2024-02-29'::TIMESTAMPTZ", "2024-02-29 00:00:00+00"),
            ("TIMESTAMP '2024-02-29 01:00'::TIMESTAMPTZ", "2024-02-29 01:00:00+00"),
            ("TIMESTAMPTZ '2024-02-29' - INTERVAL 1 YEAR", "2023-02-28 00:00:00+00"),
            ("TIMESTAMPTZ '2024-01-31' + INTERVAL 1 MONTH", "2024-02-29 00:00:00+00"),
            ("INTERVAL 2 HOUR + TIMESTAMPTZ '2024-01-31'", "2024-01-31 02:00:00+00"),
            ("TIMESTAMPTZ '2024-03-01 12:00' - TIMESTAMPTZ '2024-02-27'", "3 days 12:00:00"),
            ("year(TIMESTAMPTZ '2024-02-29')", "2024"),
            ("extract(hour FROM TIMESTAMPTZ '2024-02-29 13:14:15')", "13"),
            ("date_part('isoyear', TIMESTAMPTZ '2021-01-01')", "2020"),
            ("date_part('epoch', TIMESTAMPTZ '2001-09-09 01:46:40')", "1000000000.0"),
            ("date_part(['year', 'week'], TIMESTAMPTZ '2024-02-29')", "{'year': 2024, 'week': 9}"),
            ("week(TIMESTAMPTZ '2021-01-01')", "53"),
            ("dayname(TIMESTAMPTZ '2024-02-29')", "Thursday"),
            ("monthname(TIMESTAMPTZ '2024-02-29')", "February"),
            ("last_day(TIMESTAMPTZ '2024-02-10')", "2024-02-29"),
            ("quarter(TIMESTAMPTZ '2024-05-10')", "2"),
            ("date_trunc('month', TIMESTAMPTZ '2024-02-29 13:14:15')", "2024-02-01 00:00:00+00"),
            ("date_trunc('week', TIMESTAMPTZ '2024-02-29 13:14:15')", "2024-02-26 00:00:00+00"),
            ("date_diff('day', TIMESTAMPTZ '2024-02-28 23:00', TIMESTAMPTZ '2024-03-01 01:00')", "2"),
            ("date_diff('week', TIMESTAMPTZ '2020-01-05', TIMESTAMPTZ '2020-01-06')", "0"),
            ("date_sub('month', TIMESTAMPTZ '2020-01-31', TIMESTAMPTZ '2020-02-29')", "1"),
            ("age(TIMESTAMPTZ '2024-03-12 03:30', TIMESTAMPTZ '2021-01-31 12:00')", "3 years 1 month 11 days 15:30:00"),
            ("TIMESTAMPTZ '2024-07-01 12:00' AT TIME ZONE 'America/New_York'", "2024-07-01 08:00:00"),
            ("TIMESTAMP '2024-07-01 12:00' AT TIME ZONE 'America/New_York'", "2024-07-01 16:00:00+00"),
            ("TIMETZ '10:00:00+01' AT TIME ZONE 'Asia/Tokyo'", "18:00:00+09"),
            ("timezone('Asia/Kolkata', TIMESTAMPTZ '2024-07-01 12:00')", "2024-07-01 17:30:00"),
            ("'2024-07-01 10:00 Europe/Berlin'::TIMESTAMPTZ", "2024-07-01 08:00:00+00"),
            ("'2024-07-01T10:00:00Z'::TIMESTAMPTZ", "2024-07-01 10:00:00+00"),
            ("TRY_CAST('2024-07-01 10:00 Nowhere' AS TIMESTAMPTZ)", "NULL"),
            ("strftime(TIMESTAMPTZ '2024-07-01 10:00', '%Y-%m-%d %H:%M %z %Z')", "2024-07-01 10:00 +00 UTC"),
            ("make_timestamptz(2024, 2, 29, 1, 2, 3.5)", "2024-02-29 01:02:03.5+00"),
            ("make_timestamptz(2024, 2, 29, 1, 2, 3.5, 'Asia/Tokyo')", "2024-02-28 16:02:03.5+00"),
            ("time_bucket(INTERVAL 1 MONTH, TIMESTAMPTZ '2024-03-05 10:00')", "2024-03-01 00:00:00+00"),
            ("time_bucket(INTERVAL 15 MINUTE, TIMESTAMPTZ '2024-03-05 10:38')", "2024-03-05 10:30:00+00"),
            ("time_bucket(INTERVAL 1 WEEK, TIMESTAMPTZ '2024-03-05 10:38')", "2024-03-04 00:00:00+00"),
            ("len(generate_series(TIMESTAMPTZ '2024-02-28', TIMESTAMPTZ '2024-03-02', INTERVAL 1 DAY))", "4"),
            ("TIMESTAMPTZ '2024-01-01' > TIMESTAMP '2023-12-31'", "true"),
            ("TIMESTAMPTZ '2024-01-01' = DATE '2024-01-01'", "true"),
            ("TIMESTAMPTZ 'infinity'", "infinity"),
            ("TIMESTAMPTZ 'infinity' + INTERVAL 1 DAY", "infinity"),
            ("TIMESTAMPTZ '0044-03-15 (BC) 10:00:00'", "0044-03-15 (BC) 10:00:00+00"),
            ("TIMESTAMPTZ '12000-07-01'", "12000-07-01 00:00:00+00"),
            ("(SELECT count(*) FROM pg_timezone_names() WHERE name IN ('UTC', 'Europe/Berlin', 'Asia/Tokyo'))", "3"),
            ("strptime('2020-01-01 10:00 +0100', '%Y-%m-%d %H:%M %z')", "2020-01-01 09:00:00+00"),
            (
                "list_max(generate_series(TIMESTAMPTZ '2024-02-28', TIMESTAMPTZ '2024-03-02', INTERVAL 1 DAY))",
                "2024-03-02 00:00:00+00",
            ),
            // DuckDB's own table functions take columns as before.
            ("(SELECT sum(i) FROM (VALUES (3)) v(n), range(v.n) r(i))", "3"),
            ("(SELECT sum(i) FROM (VALUES (3)) v(n), generate_series(1, v.n) r(i))", "6"),
            ("current_setting('TimeZone')", "UTC"),
            ("current_date = now()::DATE", "true"),
            ("today() = current_date", "true"),
            ("localtimestamp >= now()::TIMESTAMP", "true"),
            ("current_localtimestamp() IS NOT NULL", "true"),
            ("now() - INTERVAL 1 DAY < now()", "true"),
            ("year(now()) >= 2024", "true"),
            ("date_trunc('day', now()) <= now()", "true"),
            ("current_time IS NOT NULL", "true"),
            ("age(now()) IS NOT NULL", "true"),
            ("typeof(current_time)", "TIME WITH TIME ZONE"),
            ("typeof(localtime)", "TIME"),
            ("typeof(now() - now())", "INTERVAL"),
            ("typeof(now()::DATE)", "DATE"),
        ],
    ),
    (
        "Europe/Berlin",
        &[
            ("TIMESTAMPTZ '2024-03-31 02:30'", "2024-03-31 03:30:00+02"),
            ("TIMESTAMPTZ '2024-10-27 02:30'", "2024-10-27 02:30:00+01"),
            ("TIMESTAMPTZ '2024-03-30 12:00' + INTERVAL 1 DAY", "2024-03-31 12:00:00+02"),
            ("TIMESTAMPTZ '2024-03-30 12:00' + INTERVAL 24 HOUR", "2024-03-31 13:00:00+02"),
            ("TIMESTAMPTZ '2024-03-31 12:00' - TIMESTAMPTZ '2024-03-30 12:00'", "1 day"),
            ("date_diff('hour', TIMESTAMPTZ '2024-03-31 00:00', TIMESTAMPTZ '2024-03-31 06:00')", "5"),
            ("date_trunc('day', TIMESTAMPTZ '2024-10-27 12:00')", "2024-10-27 00:00:00+02"),
            ("date_trunc('hour', TIMESTAMPTZ '2024-10-27 00:30:00+00')", "2024-10-27 02:00:00+01"),
            ("TIMESTAMPTZ '2024-07-01 22:30:00+00'::DATE", "2024-07-02"),
            ("hour(TIMESTAMPTZ '2024-07-01 22:30:00+00')", "0"),
            ("date_part('timezone_hour', TIMESTAMPTZ '2024-07-01')", "2"),
            ("TIMESTAMPTZ '2024-07-01 10:00'::TIMETZ", "10:00:00+02"),
            ("strftime(TIMESTAMPTZ '2024-01-01 10:00', '%H:%M %z %Z')", "10:00 +01 Europe/Berlin"),
            ("TIMESTAMPTZ '1890-01-01'", "1890-01-01 00:00:00+00:53"),
            (
                "range(TIMESTAMPTZ '2024-03-30', TIMESTAMPTZ '2024-04-01', INTERVAL 1 DAY)",
                "['2024-03-30 00:00:00+01', '2024-03-31 00:00:00+01']",
            ),
            ("TIMESTAMP '2024-07-01 10:00'::TIMESTAMPTZ", "2024-07-01 10:00:00+02"),
            ("date_sub('day', TIMESTAMPTZ '2024-03-30 12:00', TIMESTAMPTZ '2024-03-31 12:00')", "1"),
            ("time_bucket(INTERVAL 1 DAY, TIMESTAMPTZ '2024-10-27 12:00')", "2024-10-27 02:00:00+02"),
            ("TIMESTAMPTZ '2024-07-01 10:00' AT TIME ZONE 'UTC'", "2024-07-01 08:00:00"),
            ("current_setting('TimeZone')", "Europe/Berlin"),
            (
                "list_max(generate_series(TIMESTAMPTZ '2024-10-26', TIMESTAMPTZ '2024-10-28', INTERVAL 1 DAY))",
                "2024-10-28 00:00:00+01",
            ),
        ],
    ),
    (
        "America/New_York",
        &[
            ("TIMESTAMPTZ '2023-03-12 02:30'", "2023-03-12 03:30:00-04"),
            ("TIMESTAMPTZ '2023-11-05 01:30'", "2023-11-05 01:30:00-05"),
            ("TIMESTAMPTZ '2023-03-11 02:30' + INTERVAL 1 DAY", "2023-03-12 03:30:00-04"),
            ("TIMESTAMPTZ '2023-03-13 02:30' - INTERVAL 1 DAY", "2023-03-12 03:30:00-04"),
        ],
    ),
    (
        "Asia/Kolkata",
        &[
            ("TIMESTAMPTZ '2024-07-01 10:00:00Z'", "2024-07-01 15:30:00+05:30"),
            ("date_part('timezone_minute', TIMESTAMPTZ '2024-07-01')", "30"),
            ("TIMESTAMPTZ '2024-07-01 10:00:00Z'::TIMETZ", "15:30:00+05:30"),
        ],
    ),
];

/// The rows of a statement, or why there are none.
async fn answer(client: &mut Sql, sql: &str) -> Result<Vec<String>, FlightError> {
    let info = client.execute(sql.into(), None).await?;
    let mut batches = Vec::new();
    for endpoint in info.endpoint {
        let rows = client.do_get(endpoint.ticket.expect("a ticket")).await?;
        batches.extend(rows.try_collect::<Vec<_>>().await?);
    }
    Ok(texts(&batches))
}

#[tokio::test(flavor = "multi_thread")]
async fn expressions_have_the_values_of_duckdb_with_its_extension() {
    let server = TestServer::with(with_login(test_config())).await;
    let mut wrong = Vec::new();
    for (zone, cases) in CASES {
        // A session's zone is its own.
        let mut client = server.sql_of(USER).await;
        update(&mut client, &format!("SET TimeZone = '{zone}'")).await;
        for (expression, value) in *cases {
            let sql = format!("SELECT ({expression})::VARCHAR");
            match answer(&mut client, &sql).await {
                Ok(got) if got == [*value] => {}
                got => wrong.push(format!("{zone}: {expression}: {got:?} instead of {value:?}")),
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_without_a_session_run_in_utc() {
    let server = TestServer::start().await;
    let client = server.client().await;
    for sql in [
        "SELECT current_date = now()::DATE AND today() = current_date",
        "SELECT localtimestamp >= now()::TIMESTAMP AND localtime IS NOT NULL AND current_time IS NOT NULL",
        "SELECT now() - INTERVAL 1 DAY < now() AND date_trunc('day', now()) <= now() AND age(now()) IS NOT NULL",
        "SELECT year(now()) >= 2024 AND date_part('timezone', now()) = 0 AND current_setting('TimeZone') = 'UTC'",
        "SELECT count(*) > 400 FROM pg_timezone_names()",
    ] {
        assert_eq!(row(&client, sql).await, ["true"], "{sql}");
    }
    // Over a table, and through DuckDB's vectors.
    run(&client, "CREATE TABLE t AS SELECT TIMESTAMPTZ '2024-01-01' + INTERVAL (i) HOUR AS t FROM range(5000) r(i)")
        .await;
    let sql = "SELECT count(DISTINCT t::DATE), max(t)::VARCHAR, (min(t) AT TIME ZONE 'Asia/Tokyo')::VARCHAR FROM t";
    assert_eq!(row(&client, sql).await, ["209", "2024-07-27 07:00:00+00", "2024-01-01 09:00:00"]);
    let sql = "SELECT count(*) FROM t WHERE t >= DATE '2024-02-01' AND t < '2024-02-02'";
    assert_eq!(row(&client, sql).await, ["24"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_are_the_callers() {
    let server = TestServer::with(with_login(test_config())).await;
    let mut client = server.sql_of(USER).await;
    for (sql, words) in [
        ("SET TimeZone = 'Europe/Berln'", "Candidate time zones: \"Europe/Berlin\""),
        ("SET TimeZone = ''", "Unknown TimeZone ''"),
        ("SET Calendar = 'gregor'", "Candidate calendars: \"gregorian\""),
        ("SELECT now() AT TIME ZONE 'Nowhere'", "Unknown TimeZone 'Nowhere'"),
        ("SELECT make_timestamptz(2024, 1, 1, 0, 0, 0, 'Nowhere')", "Unknown TimeZone 'Nowhere'"),
        ("SELECT '2024-01-01 10:00 Nowhere'::TIMESTAMPTZ", "Unknown TimeZone 'Nowhere'"),
        ("SELECT '2024-13-01'::TIMESTAMPTZ", "out of range"),
        ("SELECT 'soon'::TIMESTAMPTZ", "invalid timestamp field format"),
        ("SELECT date_trunc('fortnight', now())", "extract specifier \"fortnight\" not recognized"),
        ("SELECT date_part('fortnight', now())", "extract specifier \"fortnight\" not recognized"),
        ("SELECT strftime(now(), '%Q')", "Unrecognized format"),
        ("SELECT time_bucket(INTERVAL '0 day', now())", "Can't bucket using zero days"),
        ("SELECT time_bucket(INTERVAL '-1 day', now())", "Period must be greater than 0"),
        ("SELECT make_timestamptz(400000, 1, 1, 0, 0, 0)", "overflows"),
        ("SELECT TIMESTAMPTZ 'infinity' - now()", "infinite"),
        ("SELECT range(now(), now() + INTERVAL 1 DAY, INTERVAL '1 day -1 hour')", "mix of negative/positive"),
        ("SELECT len(range(now(), now() + INTERVAL 100 YEAR, INTERVAL 1 MICROSECOND))", "take a longer step"),
    ] {
        let (code, message) = refused(answer(&mut client, sql).await);
        assert_eq!(code, Code::InvalidArgument, "{sql}: {message}");
        assert!(message.contains(words), "{sql}: {message}");
    }
    assert_eq!(table(&mut client, "SELECT current_setting('TimeZone')").await, ["UTC"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_role_sets_its_own_zone_and_resets_it() {
    let users = [("reader", "reader"), ("writer", "writer")];
    let server = TestServer::with(with_users(test_config(), &users)).await;
    for (user, _) in users {
        let (mut client, mut other) = (server.sql_of(user).await, server.sql_of(user).await);
        for (sql, zone) in [
            ("SET TimeZone = 'Europe/Berlin'", "Europe/Berlin"),
            ("SET SESSION timezone TO 'asia/tokyo'", "Asia/Tokyo"),
            ("SET TIME ZONE 'UTC'", "UTC"),
            ("SET TimeZone = 'GMT+3'", "GMT+3"),
            ("RESET TimeZone", "UTC"),
        ] {
            update(&mut client, sql).await;
            assert_eq!(table(&mut client, "SELECT current_setting('TimeZone')").await, [zone], "{sql}");
            assert_eq!(table(&mut other, "SELECT current_setting('TimeZone')").await, ["UTC"], "another session");
        }
        update(&mut client, "SET Calendar = 'iso8601'").await;
        update(&mut client, "RESET Calendar").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_of_instants_leave_in_the_zone_of_the_session() {
    use arrow_schema::{DataType, TimeUnit};
    let server = TestServer::with(with_login(test_config())).await;
    for zone in ["UTC", "Europe/Berlin"] {
        let mut client = server.sql_of(USER).await;
        update(&mut client, &format!("SET TimeZone = '{zone}'")).await;
        let info = client.execute("SELECT TIMESTAMPTZ '2024-07-01 10:00:00Z' AS t".into(), None).await.unwrap();
        let (schema, batches) = crate::flight_sql::rows(&mut client, info).await;
        let expected = DataType::Timestamp(TimeUnit::Microsecond, Some(zone.into()));
        assert_eq!(schema.field(0).data_type(), &expected);
        assert_eq!(batches[0].column(0).data_type(), &expected);
    }
}
