//! JSON as it was written, so that numbers keep all of their digits.
//!
//! serde_json reads a number into 64 bits, and a parameter may be a DECIMAL of 38 digits.

use std::fmt;

use serde_json::{Map, Value};

/// One JSON value as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Json(String);

/// What a value is, as far as it matters to whoever reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind<'a> {
    Null,
    Bool(bool),
    /// As it was written.
    Number(&'a str),
    Text(String),
    /// An array or an object.
    Nested,
}

impl Json {
    /// One value, and nothing else.
    pub fn parse(text: &str) -> serde_json::Result<Self> {
        serde_json::from_str::<Value>(text)?;
        Ok(Self(text.trim().to_string()))
    }

    /// The object that the text begins with, and what is behind it. `None` where there is nothing.
    pub fn object_at_start(text: &str) -> serde_json::Result<Option<(Self, &str)>> {
        let mut values = serde_json::Deserializer::from_str(text).into_iter::<Map<String, Value>>();
        let Some(first) = values.next() else { return Ok(None) };
        first?;
        let (object, rest) = text.split_at(values.byte_offset());
        Ok(Some((Self(object.trim().to_string()), rest)))
    }

    /// A text.
    pub fn text(text: &str) -> Self {
        Self(Value::from(text).to_string())
    }

    /// A number as it is written in JSON.
    pub fn number(digits: &str) -> Self {
        Self(digits.to_string())
    }

    pub fn kind(&self) -> Kind<'_> {
        match self.0.as_bytes().first() {
            Some(b'n') => Kind::Null,
            Some(b't') => Kind::Bool(true),
            Some(b'f') => Kind::Bool(false),
            Some(b'"') => Kind::Text(serde_json::from_str(&self.0).unwrap_or_default()),
            Some(b'{' | b'[') => Kind::Nested,
            _ => Kind::Number(&self.0),
        }
    }

    /// The members of an object; of one name the last. `None` where it is no object.
    pub fn members(&self) -> Option<Vec<(String, Self)>> {
        let mut rest = self.0.strip_prefix('{')?.trim_start();
        let mut members: Vec<(String, Self)> = Vec::new();
        while rest.starts_with('"') {
            let (name, behind) = rest.split_at(end(rest));
            let name: String = serde_json::from_str(name).ok()?;
            let value = behind.trim_start().strip_prefix(':')?.trim_start();
            let (value, behind) = value.split_at(end(value));
            let value = Self(value.to_string());
            match members.iter_mut().find(|(known, _)| *known == name) {
                Some((_, known)) => *known = value,
                None => members.push((name, value)),
            }
            rest = behind.trim_start().trim_start_matches(',').trim_start();
        }
        Some(members)
    }

    /// The same for serde. A number that 64 bits do not hold is the text of its digits.
    pub fn value(&self) -> Value {
        let mut exact = String::with_capacity(self.0.len());
        let mut rest = self.0.as_str();
        while let Some(first) = rest.chars().next() {
            let length = match first {
                '"' => end(rest),
                '-' | '0'..='9' => {
                    let number = &rest[..end(rest)];
                    if !is_exact(number) {
                        exact.push_str(&format!("\"{number}\""));
                        rest = &rest[number.len()..];
                        continue;
                    }
                    number.len()
                }
                other => other.len_utf8(),
            };
            exact.push_str(&rest[..length]);
            rest = &rest[length..];
        }
        serde_json::from_str(&exact).unwrap_or_default()
    }
}

impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&Value> for Json {
    fn from(value: &Value) -> Self {
        Self(value.to_string())
    }
}

/// Where the value ends that a valid text begins with.
fn end(text: &str) -> usize {
    let bytes = text.as_bytes();
    let (mut at, mut depth) = (0, 0_usize);
    while at < bytes.len() {
        match bytes[at] {
            b'"' => {
                at += 1;
                while at < bytes.len() && bytes[at] != b'"' {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
                at += 1;
            }
            b'{' | b'[' => {
                (depth, at) = (depth + 1, at + 1);
                continue;
            }
            b'}' | b']' => (depth, at) = (depth.saturating_sub(1), at + 1),
            b',' | b':' | b' ' | b'\t' | b'\n' | b'\r' => {
                at += 1;
                continue;
            }
            _ => {
                let is_inner = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'+' | b'.');
                at += bytes[at..].iter().take_while(|byte| is_inner(byte)).count().max(1);
            }
        }
        if depth == 0 {
            break;
        }
    }
    at.min(bytes.len())
}

/// Whether serde_json keeps all digits of a number.
fn is_exact(number: &str) -> bool {
    if number.parse::<i64>().is_ok() || number.parse::<u64>().is_ok() {
        return true;
    }
    let Ok(double) = number.parse::<f64>() else { return false };
    // The shortest text that stands for the double.
    Decimal::parse(number) == Decimal::parse(&double.to_string())
}

/// A number in decimal digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decimal {
    pub negative: bool,
    /// Without zeros at either end; empty for zero.
    pub digits: String,
    /// The power of ten of the last digit.
    pub exponent: i64,
}

impl Decimal {
    /// Of a number as JSON and SQL write it. `None` where the text is none, or has an exponent beyond reason.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
        let (mantissa, exponent) = match unsigned.find(['e', 'E']) {
            Some(at) => (&unsigned[..at], unsigned[at + 1..].parse::<i64>().ok()?),
            None => (unsigned, 0),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let digits = format!("{whole}{fraction}");
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) || exponent.abs() > 100_000 {
            return None;
        }
        let kept = digits.trim_end_matches('0');
        let exponent = exponent - fraction.len() as i64 + (digits.len() - kept.len()) as i64;
        let kept = kept.trim_start_matches('0');
        match kept.is_empty() {
            true => Some(Self { negative: false, digits: String::new(), exponent: 0 }),
            false => Some(Self { negative: text.starts_with('-'), digits: kept.to_string(), exponent }),
        }
    }

    /// Digits behind the point.
    pub fn scale(&self) -> usize {
        usize::try_from(-self.exponent).unwrap_or(0)
    }

    /// All digits, those in front of the point and behind it, without zeros in front.
    pub fn precision(&self) -> usize {
        let zeros = usize::try_from(self.exponent).unwrap_or(0);
        (self.digits.len() + zeros).max(self.scale())
    }

    /// The number times ten to the power of its scale.
    pub fn unscaled(&self) -> Option<i128> {
        let zeros = u32::try_from(self.exponent).unwrap_or(0);
        let digits = if self.digits.is_empty() { 0 } else { self.digits.parse::<i128>().ok()? };
        let unscaled = digits.checked_mul(10_i128.checked_pow(zeros)?)?;
        Some(if self.negative { -unscaled } else { unscaled })
    }

    /// Whether a double stands for it and for no other number of as many digits.
    pub fn is_a_double(&self) -> bool {
        let Self { negative, digits, exponent } = self;
        let sign = if *negative { "-" } else { "" };
        let digits = if digits.is_empty() { "0" } else { digits };
        is_exact(&format!("{sign}{digits}e{exponent}"))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn members_are_as_they_were_written() {
        let text =
            r#" { "a" : 1.10 , "b\"}":"x\\\",}" ,"c": [1, {"d": "]"}, 2] , "e":{},"a": -12345678901234567890.5e3 } "#;
        let members = Json::parse(text).unwrap().members().unwrap();
        let shown: Vec<(&str, String)> =
            members.iter().map(|(name, value)| (name.as_str(), value.to_string())).collect();
        assert_eq!(
            shown,
            [
                ("a", "-12345678901234567890.5e3".to_string()),
                ("b\"}", r#""x\\\",}""#.to_string()),
                ("c", r#"[1, {"d": "]"}, 2]"#.to_string()),
                ("e", "{}".to_string()),
            ]
        );
        assert_eq!(Json::parse("{}").unwrap().members(), Some(Vec::new()));
        for other in ["[1]", "1", "\"{\"", "null"] {
            assert_eq!(Json::parse(other).unwrap().members(), None, "{other}");
        }
        let (object, rest) = Json::object_at_start(r#" {"a": "}"} | b {"#).unwrap().unwrap();
        assert_eq!((object.to_string().as_str(), rest), (r#"{"a": "}"}"#, " | b {"));
    }

    #[test]
    fn numbers_that_64_bits_do_not_hold_are_texts_for_serde() {
        let value = |text: &str| Json::parse(text).unwrap().value();
        assert_eq!(
            value("[9007199254740993, 0.1, -0, 1e3, 18446744073709551615]").to_string(),
            "[9007199254740993,0.1,-0.0,1000.0,18446744073709551615]"
        );
        assert_eq!(
            value(r#"{"n": [12345678901234567890123, 0.12345678901234567891], "1": "12345678901234567890123"}"#),
            json!({"n": ["12345678901234567890123", "0.12345678901234567891"], "1": "12345678901234567890123"})
        );
    }

    #[test]
    fn decimals_have_scale_and_precision() {
        let of = |text: &str| {
            let decimal = Decimal::parse(text).unwrap_or_else(|| panic!("{text}"));
            (decimal.precision(), decimal.scale(), decimal.unscaled())
        };
        assert_eq!(of("-12.340"), (4, 2, Some(-1234)));
        assert_eq!(of("0.001"), (3, 3, Some(1)));
        assert_eq!(of("1e3"), (4, 0, Some(1000)));
        assert_eq!(of("0.00"), (0, 0, Some(0)));
        assert_eq!(of("123456789012345678901234567890.12"), (32, 2, Some(12345678901234567890123456789012)));
        for none in ["", "x", "1x", "--1", "1e", "1e999999999", "0x10", "nan", "1_000"] {
            assert_eq!(Decimal::parse(none), None, "{none}");
        }
        assert!(
            Decimal::parse("0.1").unwrap().is_a_double()
                && !Decimal::parse("9007199254740993.5").unwrap().is_a_double()
        );
    }
}
