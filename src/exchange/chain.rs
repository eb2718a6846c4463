//! What a text asks for: `name`, `name@version`, `name {"parameter": value}`, and chains of those with `|` between.

use super::Arguments;
use crate::{
    error::{Error, Result},
    json::Json,
};

/// Exchangers in the order in which a stream passes them; at least one.
#[derive(Debug, Clone, PartialEq)]
pub struct Chain(pub(super) Vec<Stage>);

/// One exchanger of a chain.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Stage {
    pub(super) name: String,
    /// The newest where it is not given.
    pub(super) version: Option<u64>,
    pub(super) arguments: Arguments,
}

/// Whether a text is a name and not SQL: letters, digits, `_`, `-` and `.`, at most 64, a letter or `_` first.
pub fn is_name(text: &str) -> bool {
    text.len() <= 64 && text.starts_with(is_first) && text.chars().all(is_inner)
}

fn is_first(character: char) -> bool {
    character.is_ascii_alphabetic() || character == '_'
}

fn is_inner(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '_' | '-' | '.')
}

impl Chain {
    /// `None` where the text does not begin like a chain, and may be SQL. What begins like one and goes on as none is an
    /// error.
    pub fn read(text: &str) -> Option<Result<Self>> {
        let text = text.trim();
        let (name, rest) = text.split_at(text.find(|c| !is_inner(c)).unwrap_or(text.len()));
        // SELECT {"a": 1} is SQL; the exchanger `select` is written small.
        let is_sql = name != "select" && name.eq_ignore_ascii_case("select");
        let like_chain = rest.is_empty() || rest.starts_with('@') || rest.trim_start().starts_with(['{', '|']);
        (is_name(name) && like_chain && !is_sql).then(|| Self::parse(text))
    }

    /// As it is shown to others, without the values of parameters.
    pub(super) fn shown(&self) -> String {
        let stages = self.0.iter().map(|stage| {
            let given = if stage.arguments == Arguments::default() { "" } else { " {?}" };
            match stage.version {
                Some(version) => format!("{}@{version}{given}", stage.name),
                None => format!("{}{given}", stage.name),
            }
        });
        stages.collect::<Vec<_>>().join(" | ")
    }

    /// Whether its answer is its input, batch by batch.
    pub fn is_echo(&self) -> bool {
        self.0.iter().all(|stage| stage.name == "echo")
    }

    /// The same where nothing but a chain may stand.
    pub fn parse(text: &str) -> Result<Self> {
        let mut stages = Vec::new();
        let mut rest = text;
        loop {
            let (stage, behind) = Stage::parse(rest)?;
            stages.push(stage);
            let behind = behind.trim_start();
            match behind.strip_prefix('|') {
                Some(next) => rest = next,
                None if behind.is_empty() => return Ok(Self(stages)),
                None => {
                    let seen: String = behind.chars().take(20).collect();
                    return Err(Error::invalid(format!(
                        "a chain is NAME[@VERSION] [{{JSON}}] with | between; it goes on with \"{seen}\""
                    )));
                }
            }
        }
    }
}

impl Stage {
    /// One stage at the front of the text, and what is behind it.
    fn parse(text: &str) -> Result<(Self, &str)> {
        let text = text.trim_start();
        let (name, mut rest) = text.split_at(text.find(|c| !is_inner(c)).unwrap_or(text.len()));
        check_name(name)?;
        let mut version = None;
        if let Some(behind) = rest.strip_prefix('@') {
            let (digits, behind) = behind.split_at(behind.find(|c: char| !c.is_ascii_digit()).unwrap_or(behind.len()));
            let number = digits.parse();
            version = Some(number.map_err(|_| {
                Error::invalid(format!("behind \"{name}@\" stands no version; it is a number, such as {name}@1"))
            })?);
            rest = behind;
        }
        let mut arguments = Arguments::default();
        if rest.trim_start().starts_with('{') {
            let wrong = |why: &dyn std::fmt::Display| {
                Error::invalid(format!("the parameters of \"{name}\" are not a JSON object: {why}"))
            };
            let object = Json::object_at_start(rest).map_err(|error| wrong(&error))?;
            let (given, behind) = object.ok_or_else(|| wrong(&"there is nothing"))?;
            arguments = Arguments(given.members().unwrap_or_default());
            rest = behind;
        }
        Ok((Self { name: name.to_string(), version, arguments }, rest))
    }
}

pub(super) fn check_name(name: &str) -> Result<()> {
    if is_name(name) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "\"{name}\" is not an exchanger's name: letters, digits, _ - and ., at most 64, a letter or _ first"
    )))
}

/// NAME or NAME@VERSION.
pub(super) fn read_versioned(text: &str) -> Result<(String, Option<u64>)> {
    let (Stage { name, version, arguments }, rest) = Stage::parse(text.trim())?;
    if !rest.is_empty() || arguments != Arguments::default() {
        return Err(Error::invalid(format!("\"{text}\" is neither NAME nor NAME@VERSION")));
    }
    Ok((name, version))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_that_are_chains_are_read_and_others_are_left_to_sql() {
        let stages = |text: &str| -> Vec<String> {
            let chain = Chain::read(text).unwrap_or_else(|| panic!("{text} is none")).unwrap_or_else(|e| panic!("{e}"));
            chain.0.into_iter().map(|stage| format!("{}@{:?}{}", stage.name, stage.version, stage.arguments)).collect()
        };
        assert_eq!(stages("echo"), ["echo@None{}"]);
        assert_eq!(stages(" a.b@12 "), ["a.b@Some(12){}"]);
        assert_eq!(
            stages("select {\"columns\": [\"a|b\"]} | x@2{\"t\": \"}\"}|y"),
            ["select@None{\"columns\":[\"a|b\"]}", "x@Some(2){\"t\":\"}\"}", "y@None{}"]
        );
        for sql in
            ["SELECT 1", "FROM t", "SELECT {\"a\": 1}", "select 1", "(SELECT 1)", "WITH a AS (SELECT 1) FROM a", ""]
        {
            assert!(Chain::read(sql).is_none(), "{sql}");
        }
        for wrong in ["a |", "a | | b", "a@", "a@x", "a {", "a {1}", "a [1] | b", "a {} b", "| a", "a | 1b"] {
            assert!(Chain::parse(wrong).is_err(), "{wrong}");
        }
    }
}
