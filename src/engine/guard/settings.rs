//! Which of DuckDB's settings a client may read and change for itself, each with a reason. What is in neither list is the
//! server's, as all that a later DuckDB brings; a test fails for a setting that is in neither.
//!
//! Where DuckDB would change one of these for everybody, the text that runs says SESSION.

use std::ops::Range;

use duckdb::connection::Connection;

use super::{
    super::Shared,
    tokens::{Token, is_word},
};
use crate::{
    access::{Rights, Role},
    error::Result,
};

/// A setting's names, and why it is on its list.
type Reasons = &'static [(&'static [&'static str], &'static str)];

/// Clients may read and change these.
pub const SESSION: Reasons = &[
    (&["schema", "search_path"], "where names are looked up; grants on some tables hold with the default only"),
    (&["timezone", "time_zone", "calendar"], "how instants are read and shown"),
    (&["default_null_order", "null_order", "default_order"], "the order that ORDER BY has where it names none"),
    (&["preserve_insertion_order"], "the order of rows without ORDER BY"),
    (&["order_by_non_integer_literal"], "what ORDER BY takes"),
    (&["integer_division", "ieee_floating_point_ops", "error_on_division_by_zero"], "what division answers"),
    (&["old_implicit_casting", "disable_timestamptz_casts"], "which casts need not be written"),
    (&["scalar_subquery_error_on_multiple_rows"], "what a scalar subquery answers"),
    (&["regex_match_operator_semantics"], "what an operator matches"),
    (&["lambda_syntax"], "how lambdas are written"),
    (&["explain_output"], "which plans EXPLAIN shows"),
    (&["ignore_unknown_crs", "json_geometry_format"], "how geometries are read and written"),
    (
        &[
            "asof_loop_join_threshold",
            "delim_join_as_cte",
            "dynamic_or_filter_threshold",
            "index_scan_max_count",
            "index_scan_percentage",
            "late_materialization_max_rows",
            "merge_join_threshold",
            "nested_loop_join_threshold",
            "prefer_range_joins",
        ],
        "how the same rows are found; limits hold for every way",
    ),
    (&["max_execution_time"], "a deadline of the client's own, beside the server's"),
];

/// Clients may switch these off: on, they would write to the server's terminal.
pub const OFF_ONLY: Reasons = &[(&["enable_progress_bar", "enable_progress_bar_print"], "progress is in the metrics")];

/// The server's, although DuckDB would change them for one connection. Those of the whole database are the server's anyway.
pub const SERVERS: Reasons = &[
    (
        &["active_grammar_extensions", "current_dialect", "dialect_compatibility_mode"],
        "the guard reads DuckDB's own SQL",
    ),
    (&["preserve_identifier_case", "show_behavior"], "what names mean is checked by the defaults"),
    (&["table_function_identifier_conversion"], "what names mean is checked by the defaults"),
    (&["default_collation"], "the server compares names on the same connection"),
    (&["errors_as_json"], "the server tells an error's cause from its text"),
    (&["legacy_disable_null_type"], "the server plans columns by the defaults"),
    (
        &["arrow_large_buffer_size", "arrow_lossless_conversion", "arrow_output_list_view", "arrow_output_version"],
        "each client's types are made on the way out",
    ),
    (&["produce_arrow_string_view"], "each client's types are made on the way out"),
    (&["max_expression_depth", "pivot_limit", "perfect_ht_threshold", "pivot_filter_threshold"], "a limit"),
    (&["approximate_join_order_threshold"], "planning beyond it cannot be interrupted"),
    (&["max_streaming_buffer_size", "streaming_buffer_size", "operator_memory_limit"], "a limit of the configuration"),
    (&["ordered_aggregate_threshold", "initial_column_segment_size"], "memory"),
    (&["file_search_path", "home_directory", "log_query_path"], "paths"),
    (&["profile_output", "profiling_output", "enable_profiling", "profiling_mode"], "profiles are written to files"),
    (&["profiling_coverage", "profiling_renderer_settings", "tracked_metrics"], "profiles are written to files"),
    (&["legacy_metrics_format", "progress_bar_time"], "they are of use with the others only"),
    (&["partitioned_write_flush_threshold", "partitioned_write_max_open_files"], "files"),
    (&["write_buffer_row_group_count", "write_buffer_row_group_memory_limit"], "memory and files"),
    (&["custom_user_agent", "http_proxy", "http_proxy_password", "http_proxy_username"], "the network"),
    (&["enable_http_metadata_cache", "validate_external_file_cache", "checkpoint_on_detach"], "files"),
    (&["enable_external_file_cache", "parquet_metadata_cache", "prefetch_all_parquet_files"], "files"),
    (&["binary_as_string", "disable_parquet_prefetching", "enable_geoparquet_conversion"], "files"),
    (&["parquet_prefetch_column_gap", "read_ahead_depth", "storage_block_prefetch"], "files"),
    (&["force_compression", "checkpoint_threshold", "wal_autocheckpoint"], "how the database is stored"),
    (&["wal_autocheckpoint_entries", "auto_checkpoint_skip_wal_threshold"], "how the database is stored"),
    (&["enable_optimistic_write", "vacuum_rebuild_indexes", "default_block_size"], "how the database is stored"),
    (&["enable_macro_dependencies", "enable_view_dependencies"], "what an object depends on is the same for everybody"),
    (&["immediate_transaction_mode"], "the server begins transactions"),
    (&["current_transaction_invalidation_policy"], "the server tells which transactions have failed"),
    (&["default_transaction_invalidation_policy"], "the server tells which transactions have failed"),
    (&["enable_optimizer", "catalog_error_max_schemas"], "plans and hints are bounded by the defaults"),
    (&["allocator_background_threads", "allocator_flush_threshold"], "memory"),
    (&["allocator_bulk_deallocation_flush_threshold"], "memory"),
    (&["allow_parser_override_extension", "default_secret_storage"], "extensions"),
    (&["password", "user", "username"], "the server has users of its own"),
    (&["schema_change_policy"], "how the database is stored"),
];

fn listed(list: Reasons, name: &str) -> bool {
    list.iter().any(|(names, _)| names.contains(&name))
}

/// Whether a client may read it.
pub(super) fn is_visible(name: &str) -> bool {
    listed(SESSION, name) || listed(OFF_ONLY, name)
}

/// All that stay open to change when the configuration is locked, for [`check`] and for the server.
pub(in crate::engine) fn unlocked() -> impl Iterator<Item = &'static str> {
    let names = |list: Reasons| list.iter().flat_map(|(names, _)| names.iter().copied());
    names(SESSION).chain(names(OFF_ONLY)).chain(["operator_memory_limit", "max_streaming_buffer_size"])
}

/// SET, RESET and USE, and a PRAGMA that sets. Where the text has to run as another one, what takes which part's place.
pub(super) fn check(tokens: &[Token<'_>], rights: &Rights) -> Result<Option<(Range<usize>, &'static str)>> {
    let verb = tokens.first().map(Token::name).unwrap_or_default();
    if verb == "use" {
        return Ok(None);
    }
    let scoped = ["session", "local"].iter().any(|word| is_word(tokens.get(1), word))
        && tokens.get(2).is_some_and(|next| next.is_name() && !is_word(Some(next), "to"));
    let at = 1 + usize::from(scoped);
    let name = tokens.get(at).map(Token::name).unwrap_or_default();
    if is_word(tokens.get(at), "variable") && tokens.get(at + 1).is_some_and(Token::is_name) {
        return Ok(None);
    }
    // SET TIME ZONE is how the standard spells it.
    let zone = name == "time" && is_word(tokens.get(at + 1), "zone");
    if !is_visible(&name) && !zone {
        let what = format!("{} {name} is not allowed; settings are the server's", verb.to_uppercase());
        return Err(rights.denied("setting", what));
    }
    // A value that is computed could be anything when it is.
    let rest = &tokens[(at + 1 + usize::from(zone)).min(tokens.len())..];
    let assigns = |sign: &Token<'_>| sign.text == "=" || is_word(Some(sign), "to");
    let rest = if rest.first().is_some_and(assigns) { &rest[1..] } else { rest };
    let value: Vec<&Token<'_>> = rest.iter().filter(|token| token.text != ";").collect();
    let value = match value.as_slice() {
        [] => None,
        [value] if !value.is_operator() => Some(*value),
        [sign, value] if matches!(sign.text, "-" | "+") && !value.is_operator() => Some(*value),
        _ => return Err(rights.denied("setting", format!("the value of {name} must be one literal or name"))),
    };
    let off = ["false", "off", "no", "0", "'false'", "'off'", "'no'", "'0'"];
    if listed(OFF_ONLY, &name) && value.is_some_and(|value| !off.contains(&value.text.to_lowercase().as_str())) {
        return Err(rights.denied("setting", format!("{name} writes to the server's terminal and stays off")));
    }
    let schema = name == "schema" && tokens.get(at + 1).is_some_and(Token::is_text);
    Ok(match tokens.get(at) {
        Some(token) if verb == "pragma" => Some((tokens[0].start..token.start, "SET SESSION ")),
        Some(token) if !scoped && !zone && !schema => Some((token.start..token.start, "SESSION ")),
        _ => None,
    })
}

/// SHOW shows a setting where there is one of that name, and else a table.
pub(super) fn check_shown(
    shared: &Shared,
    connection: &Connection,
    tokens: &[Token<'_>],
    rights: &Rights,
) -> Result<()> {
    if rights.role >= Role::Admin {
        return Ok(());
    }
    let config = connection.config().map_err(|error| shared.cause(&error))?;
    for (at, token) in tokens.iter().enumerate() {
        if !is_word(Some(token), "show") {
            continue;
        }
        let Some(shown) = tokens.get(at + 1).filter(|shown| shown.is_name()) else { continue };
        let name = shown.name();
        let qualified = tokens.get(at + 2).is_some_and(|next| next.text == ".");
        if !qualified && !is_visible(&name) && config.try_get_value(&name).ok().flatten().is_some() {
            return rights.require(Role::Admin, &format!("the setting {name}"));
        }
    }
    Ok(())
}
