//! The explicit end of a stream that a client sends.
//!
//! A client library ends its request cleanly although the program above it has failed: pyarrow's writer closes when it is
//! collected, also inside `with writer:`. The server cannot tell that end from the end of a whole stream. So a client may
//! announce with a header that its last message carries the app_metadata `{"end": true, "rows": N}`, and a stream that ends
//! without it, or with another number of rows than came, is an error.

use serde::Deserialize;
use serde_json::Value;

use crate::error::{Error, Result};

/// The header of a DoPut that announces an explicit end; its only value is [`EXPLICIT`].
pub const END_HEADER: &str = "x-mallard-end";

/// The value of [`END_HEADER`].
pub const EXPLICIT: &str = "explicit";

/// Longer app_metadata is no end, and is not parsed.
const LONGEST: usize = 1024;

/// Who asks for the explicit end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndRule {
    /// The client, by [`END_HEADER`].
    Header,
    /// The server's configuration, of every DoPut that stores rows.
    Configuration,
    /// The same, of CommandStatementIngest, whose stock clients cannot send it.
    ConfigurationOfIngest,
}

impl EndRule {
    /// What a call's header asks for.
    pub fn of(header: Option<&[u8]>) -> Result<Option<Self>> {
        match header {
            None => Ok(None),
            Some(value) if value == EXPLICIT.as_bytes() => Ok(Some(Self::Header)),
            Some(value) => {
                let value = String::from_utf8_lossy(value);
                Err(Error::invalid(format!("the header {END_HEADER} must be {EXPLICIT}, and is \"{value}\"")))
            }
        }
    }

    fn asks(self) -> &'static str {
        match self {
            Self::Header => "that the header x-mallard-end: explicit announces",
            Self::Configuration => "that put.require_end of this server asks for",
            Self::ConfigurationOfIngest => {
                "that put.require_end of this server asks for (ADBC's drivers cannot send it: store the rows by a DoPut to the \
                 table, or set put.require_end = false)"
            }
        }
    }
}

/// The app_metadata of the last message.
pub(super) fn app_metadata(rows: u64) -> String {
    format!("{{\"end\": true, \"rows\": {rows}}}")
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Said {
    end: bool,
    rows: u64,
}

/// What is known of a stream's end while its messages pass.
#[derive(Default)]
pub(super) struct ExplicitEnd {
    rule: Option<EndRule>,
    rows: u64,
    ended: bool,
    /// The first thing that was wrong, which is told where a rule asks for the end.
    wrong: Option<String>,
}

impl ExplicitEnd {
    /// Asks for the end from now on; the first rule stays.
    pub(super) fn require(&mut self, rule: EndRule) {
        self.rule.get_or_insert(rule);
    }

    pub(super) fn is_required(&self) -> bool {
        self.rule.is_some()
    }

    /// Takes note of one message: the rows of its batch, and its app_metadata.
    pub(super) fn message(&mut self, rows: usize, app_metadata: &[u8]) -> Result<()> {
        self.rows = self.rows.saturating_add(rows as u64);
        if self.ended {
            self.wrong.get_or_insert_with(|| "the stream goes on behind its explicit end".into());
        } else if let Some(said) = read(app_metadata) {
            self.ended = true;
            let wrong = match said {
                Ok(Said { end: false, .. }) => {
                    Some("the stream's explicit end is malformed: \"end\" must be true".to_string())
                }
                Ok(Said { rows, .. }) if rows != self.rows => {
                    Some(format!("the stream's explicit end says {rows} rows, and {} came", self.rows))
                }
                Ok(_) => None,
                Err(why) => Some(format!(
                    "the stream's explicit end is malformed: {why}; it is {{\"end\": true, \"rows\": N}}, N the number of rows sent"
                )),
            };
            self.wrong = self.wrong.take().or(wrong);
        }
        self.check()
    }

    /// The stream has ended cleanly.
    pub(super) fn finish(&mut self) -> Result<()> {
        if let (Some(rule), false) = (self.rule, self.ended) {
            let (rows, asks) = (self.rows, rule.asks());
            self.wrong.get_or_insert_with(|| {
                format!("the stream ended after {rows} rows without its explicit end, a last app_metadata of {{\"end\": true, \"rows\": {rows}}} {asks}")
            });
        }
        self.check()
    }

    fn check(&self) -> Result<()> {
        match (&self.rule, &self.wrong) {
            (Some(_), Some(wrong)) => Err(Error::Stream(format!("{wrong}; nothing was stored"))),
            _ => Ok(()),
        }
    }
}

/// The end that an app_metadata says, if it is a JSON object with the key "end"; all others are the client's own.
fn read(app_metadata: &[u8]) -> Option<Result<Said, serde_json::Error>> {
    if app_metadata.is_empty() || app_metadata.len() > LONGEST {
        return None;
    }
    let value: Value = serde_json::from_slice(app_metadata).ok()?;
    value.as_object()?.get("end")?;
    Some(serde_json::from_slice(app_metadata))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Messages of so many rows, each with an app_metadata.
    fn outcome(rule: Option<EndRule>, messages: &[(usize, &str)]) -> Result<()> {
        let mut end = ExplicitEnd::default();
        rule.into_iter().for_each(|rule| end.require(rule));
        for (rows, app_metadata) in messages {
            end.message(*rows, app_metadata.as_bytes())?;
        }
        end.finish()
    }

    #[test]
    fn only_an_end_that_fits_is_one() {
        let whole: &[&[(usize, &str)]] = &[
            &[(5, ""), (7, ""), (0, r#"{"end": true, "rows": 12}"#)],
            &[(5, ""), (7, r#"{"rows":12,"end":true}"#)],
            &[(0, r#"{"end": true, "rows": 0}"#)],
            // What else a client says beside its rows is its own.
            &[(0, "not JSON"), (5, r#"{"offset": 0}"#), (0, "[1]"), (0, r#"{"end": true, "rows": 5}"#)],
        ];
        let cut: &[(&[(usize, &str)], &str)] = &[
            (&[], "after 0 rows without its explicit end"),
            (&[(5, "")], "after 5 rows without its explicit end"),
            (&[(5, r#"{"rows": 5}"#)], "after 5 rows without its explicit end"),
            (&[(5, r#"{"end": true, "rows": 4}"#)], "says 4 rows, and 5 came"),
            (&[(5, r#"{"end": true, "rows": 6}"#)], "says 6 rows, and 5 came"),
            (&[(5, r#"{"end": true}"#)], "missing field `rows`"),
            (&[(5, r#"{"end": true, "rows": -5}"#)], "malformed"),
            (&[(5, r#"{"end": true, "rows": 5.0}"#)], "malformed"),
            (&[(5, r#"{"end": true, "rows": "5"}"#)], "malformed"),
            (&[(5, r#"{"end": true, "rows": 5, "hash": 1}"#)], "unknown field `hash`"),
            (&[(5, r#"{"end": true, "rows": 5, "rows": 5}"#)], "duplicate field `rows`"),
            (&[(5, r#"{"end": "yes", "rows": 5}"#)], "malformed"),
            (&[(5, r#"{"end": false, "rows": 5}"#)], "must be true"),
            (&[(5, r#"{"end": true, "rows": 5}"#), (1, "")], "goes on behind its explicit end"),
            (&[(5, r#"{"end": true, "rows": 5}"#), (0, "more")], "goes on behind its explicit end"),
            (&[(5, r#"{"end": true, "rows": 5}"#), (0, r#"{"end": true, "rows": 5}"#)], "goes on behind"),
        ];
        for rule in [EndRule::Header, EndRule::Configuration, EndRule::ConfigurationOfIngest] {
            for messages in whole {
                outcome(Some(rule), messages).unwrap_or_else(|error| panic!("{messages:?}: {error}"));
            }
            for (messages, why) in cut {
                let error = outcome(Some(rule), messages).expect_err("not whole").to_string();
                assert!(error.contains(why) && error.ends_with("; nothing was stored"), "{messages:?}: {error}");
            }
        }
        for messages in whole.iter().copied().chain(cut.iter().map(|(messages, _)| *messages)) {
            outcome(None, messages).expect("nobody asks for it");
        }
    }
}
