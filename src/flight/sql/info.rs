//! GetSqlInfo: what this server and DuckDB can do, in the ids of the Flight SQL specification.
//!
//! Every id is answered, since drivers take a missing one for their own default. A limit of 0 means that there is none
//! or that nobody knows it, as the specification has it.

use std::collections::BTreeMap;

use arrow_array::RecordBatch;
use arrow_flight::sql::{
    SqlInfo as Id, SqlNullOrdering, SqlOuterJoinsSupportLevel, SqlSupportedCaseSensitivity, SqlSupportedElementActions,
    SqlSupportedGroupBy, SqlSupportedResultSetConcurrency, SqlSupportedResultSetType, SqlSupportedSubqueries,
    SqlSupportedTransaction, SqlSupportedUnions, SqlSupportsConvert as Convert, SqlTransactionIsolationLevel,
    SupportedSqlGrammar, metadata::SqlInfoDataBuilder,
};

use crate::{
    access::{Rights, Role},
    config::{Config, Span},
    engine::{Engine, Vocabulary},
    error::{Error, Result},
};

/// The version of the Arrow library that is linked; the test below holds it to Cargo.lock.
const ARROW_VERSION: &str = "60.1.0";

/// Whether one of these ids, or no id, which means all, needs DuckDB's own words.
pub(super) fn needs_vocabulary(ids: &[u32]) -> bool {
    ids.is_empty() || ids.iter().any(|id| (Id::SqlKeywords as u32..=Id::SqlDatetimeFunctions as u32).contains(id))
}

/// The rows of these ids, or of all; an id that nobody knows has no row.
pub(super) fn rows(config: &Config, rights: &Rights, vocabulary: Vocabulary, ids: Vec<u32>) -> Result<RecordBatch> {
    let mut infos = SqlInfoDataBuilder::new();
    of_the_server(&mut infos, config, rights);
    of_the_language(&mut infos, vocabulary);
    of_the_limits(&mut infos, config);
    infos.build().and_then(|infos| infos.record_batch(ids)).map_err(Error::internal)
}

fn of_the_server(infos: &mut SqlInfoDataBuilder, config: &Config, rights: &Rights) {
    infos.append(Id::FlightSqlServerName, "Mallard");
    // Adapters for DuckDB read its version at the front.
    let version = format!("duckdb {}, Mallard {}", Engine::duckdb_version(), env!("CARGO_PKG_VERSION"));
    infos.append(Id::FlightSqlServerVersion, version.as_str());
    infos.append(Id::FlightSqlServerArrowVersion, ARROW_VERSION);
    // For this caller: nothing that they send can write.
    infos.append(Id::FlightSqlServerReadOnly, rights.role < Role::Writer);
    infos.append(Id::FlightSqlServerSql, true);
    infos.append(Id::FlightSqlServerSubstrait, false);
    infos.append(Id::FlightSqlServerSubstraitMinVersion, "");
    infos.append(Id::FlightSqlServerSubstraitMaxVersion, "");
    infos.append(Id::FlightSqlServerTransaction, SqlSupportedTransaction::Transaction as i32);
    infos.append(Id::FlightSqlServerCancel, true);
    infos.append(Id::FlightSqlServerBulkIngestion, true);
    infos.append(Id::FlightSqlServerIngestTransactionsSupported, true);
    infos.append(Id::FlightSqlServerStatementTimeout, milliseconds(config.session.idle_timeout));
    infos.append(Id::FlightSqlServerTransactionTimeout, milliseconds(config.session.transaction_timeout));
}

fn milliseconds(span: Span) -> i32 {
    i32::try_from(span.0.as_millis()).unwrap_or(i32::MAX)
}

/// Several of an enumeration's members, as a bitmask has them.
fn bits<T: Into<i32>>(members: impl IntoIterator<Item = T>) -> i32 {
    members.into_iter().fold(0, |mask, member| mask | 1 << member.into())
}

fn of_the_language(infos: &mut SqlInfoDataBuilder, vocabulary: Vocabulary) {
    let case = SqlSupportedCaseSensitivity::SqlCaseSensitivityCaseInsensitive as i32;
    infos.append(Id::SqlDdlCatalog, false);
    infos.append(Id::SqlDdlSchema, true);
    infos.append(Id::SqlDdlTable, true);
    infos.append(Id::SqlIdentifierCase, case);
    infos.append(Id::SqlIdentifierQuoteChar, "\"");
    infos.append(Id::SqlQuotedIdentifierCase, case);
    // GetTables lists no other.
    infos.append(Id::SqlAllTablesAreSelectable, true);
    infos.append(Id::SqlNullOrdering, SqlNullOrdering::SqlNullsSortedAtEnd as i32);
    infos.append(Id::SqlKeywords, vocabulary.keywords);
    infos.append(Id::SqlNumericFunctions, vocabulary.numeric_functions);
    infos.append(Id::SqlStringFunctions, vocabulary.string_functions);
    infos.append(Id::SqlSystemFunctions, vocabulary.system_functions);
    infos.append(Id::SqlDatetimeFunctions, vocabulary.datetime_functions);
    infos.append(Id::SqlSearchStringEscape, "\\");
    infos.append(Id::SqlExtraNameCharacters, "$");
    infos.append(Id::SqlSupportsColumnAliasing, true);
    infos.append(Id::SqlNullPlusNullIsNull, true);
    infos.append(Id::SqlSupportsConvert, conversions());
    infos.append(Id::SqlSupportsTableCorrelationNames, true);
    infos.append(Id::SqlSupportsDifferentTableCorrelationNames, false);
    infos.append(Id::SqlSupportsExpressionsInOrderBy, true);
    infos.append(Id::SqlSupportsOrderByUnrelated, true);
    infos.append(
        Id::SqlSupportedGroupBy,
        bits([SqlSupportedGroupBy::SqlGroupByUnrelated, SqlSupportedGroupBy::SqlGroupByBeyondSelect]),
    );
    infos.append(Id::SqlSupportsLikeEscapeClause, true);
    infos.append(Id::SqlSupportsNonNullableColumns, true);
    infos.append(
        Id::SqlSupportedGrammar,
        bits([SupportedSqlGrammar::SqlMinimumGrammar, SupportedSqlGrammar::SqlCoreGrammar]),
    );
    // Entry level.
    infos.append(Id::SqlAnsi92SupportedLevel, 1);
    infos.append(Id::SqlSupportsIntegrityEnhancementFacility, true);
    infos.append(Id::SqlOuterJoinsSupportLevel, SqlOuterJoinsSupportLevel::SqlFullOuterJoins as i32);
    infos.append(Id::SqlSchemaTerm, "schema");
    infos.append(Id::SqlProcedureTerm, "procedure");
    infos.append(Id::SqlCatalogTerm, "catalog");
    infos.append(Id::SqlCatalogAtStart, true);
    let places = bits([SqlSupportedElementActions::SqlElementInIndexDefinitions]);
    infos.append(Id::SqlSchemasSupportedActions, places);
    infos.append(Id::SqlCatalogsSupportedActions, places);
    infos.append(Id::SqlSupportedPositionedCommands, 0);
    infos.append(Id::SqlSelectForUpdateSupported, false);
    infos.append(Id::SqlStoredProceduresSupported, false);
    infos.append(
        Id::SqlSupportedSubqueries,
        bits([
            SqlSupportedSubqueries::SqlSubqueriesInComparisons,
            SqlSupportedSubqueries::SqlSubqueriesInExists,
            SqlSupportedSubqueries::SqlSubqueriesInIns,
            SqlSupportedSubqueries::SqlSubqueriesInQuantifieds,
        ]),
    );
    infos.append(Id::SqlCorrelatedSubqueriesSupported, true);
    infos.append(Id::SqlSupportedUnions, bits([SqlSupportedUnions::SqlUnion, SqlSupportedUnions::SqlUnionAll]));
    // DuckDB's transactions read one snapshot.
    let isolation = SqlTransactionIsolationLevel::SqlTransactionRepeatableRead;
    infos.append(Id::SqlDefaultTransactionIsolation, isolation as i32);
    infos.append(Id::SqlTransactionsSupported, true);
    infos.append(Id::SqlSupportedTransactionsIsolationLevels, bits([isolation]));
    infos.append(Id::SqlDataDefinitionCausesTransactionCommit, false);
    infos.append(Id::SqlDataDefinitionsInTransactionsIgnored, false);
    infos.append(Id::SqlSupportedResultSetTypes, bits([SqlSupportedResultSetType::SqlResultSetTypeForwardOnly]));
    infos.append(Id::SqlSupportedConcurrenciesForResultSetUnspecified, 0);
    infos.append(
        Id::SqlSupportedConcurrenciesForResultSetForwardOnly,
        bits([SqlSupportedResultSetConcurrency::SqlResultSetConcurrencyReadOnly]),
    );
    infos.append(Id::SqlSupportedConcurrenciesForResultSetScrollSensitive, 0);
    infos.append(Id::SqlSupportedConcurrenciesForResultSetScrollInsensitive, 0);
    infos.append(Id::SqlBatchUpdatesSupported, true);
    infos.append(Id::SqlSavepointsSupported, false);
    // Of callable statements, which there are none of.
    infos.append(Id::SqlNamedParametersSupported, false);
    infos.append(Id::SqlLocatorsUpdateCopy, false);
    infos.append(Id::SqlStoredFunctionsUsingCallSyntaxSupported, false);
}

fn of_the_limits(infos: &mut SqlInfoDataBuilder, config: &Config) {
    for unlimited in [
        Id::SqlMaxBinaryLiteralLength,
        Id::SqlMaxCharLiteralLength,
        Id::SqlMaxColumnNameLength,
        Id::SqlMaxColumnsInGroupBy,
        Id::SqlMaxColumnsInIndex,
        Id::SqlMaxColumnsInOrderBy,
        Id::SqlMaxColumnsInSelect,
        Id::SqlMaxColumnsInTable,
        Id::SqlMaxCursorNameLength,
        Id::SqlMaxIndexLength,
        Id::SqlDbSchemaNameLength,
        Id::SqlMaxProcedureNameLength,
        Id::SqlMaxCatalogNameLength,
        Id::SqlMaxRowSize,
        Id::SqlMaxTableNameLength,
        Id::SqlMaxTablesInSelect,
        Id::SqlMaxUsernameLength,
    ] {
        infos.append(unlimited, 0_i64);
    }
    let limits = &config.limits;
    infos.append(Id::SqlMaxRowSizeIncludesBlobs, true);
    infos.append(Id::SqlMaxStatementLength, i64::try_from(limits.sql_length.0).unwrap_or(i64::MAX));
    infos.append(Id::SqlMaxConnections, i64::try_from(limits.connections).unwrap_or(i64::MAX));
    // Others wait in a queue.
    infos.append(Id::SqlMaxStatements, i64::try_from(limits.queries + limits.queue).unwrap_or(i64::MAX));
}

/// What CAST of DuckDB turns into what. DuckDB has one type of text, one of bytes and one of intervals.
fn conversions() -> BTreeMap<i32, Vec<i32>> {
    use Convert::*;
    let numbers = [
        SqlConvertBit,
        SqlConvertTinyint,
        SqlConvertSmallint,
        SqlConvertInteger,
        SqlConvertBigint,
        SqlConvertReal,
        SqlConvertFloat,
        SqlConvertDecimal,
        SqlConvertNumeric,
    ];
    let texts = [SqlConvertChar, SqlConvertVarchar, SqlConvertLongvarchar];
    let bytes = [SqlConvertBinary, SqlConvertVarbinary, SqlConvertLongvarbinary];
    let intervals = [SqlConvertIntervalDayTime, SqlConvertIntervalYearMonth];
    let mut all = BTreeMap::new();
    let mut from = |source: &[Convert], targets: &[&[Convert]]| {
        let mut codes: Vec<i32> = targets.iter().copied().flatten().map(|target| *target as i32).collect();
        codes.sort_unstable();
        all.extend(source.iter().map(|one| (*one as i32, codes.clone())));
    };
    from(&numbers, &[&numbers, &texts]);
    let moments = [SqlConvertDate, SqlConvertTime, SqlConvertTimestamp];
    from(&texts, &[&numbers, &texts, &bytes, &intervals, &moments]);
    from(&bytes, &[&bytes, &texts]);
    from(&intervals, &[&intervals, &texts]);
    from(&[SqlConvertDate], &[&[SqlConvertDate, SqlConvertTimestamp], &texts]);
    from(&[SqlConvertTime], &[&[SqlConvertTime], &texts]);
    from(&[SqlConvertTimestamp], &[&moments, &texts]);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrow_version_is_that_of_the_lock_file() {
        let lock = include_str!("../../../Cargo.lock");
        assert!(lock.contains(&format!("name = \"arrow-array\"\nversion = \"{ARROW_VERSION}\"")), "{ARROW_VERSION}");
    }
}
