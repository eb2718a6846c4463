//! Parameters: a JSON object, read without any dependency.

use std::convert::TryFrom;

/// The parameters of one use, such as `{"column": "DEP_DELAY", "above": 15}`.
#[derive(Debug, Default)]
pub struct Params(Vec<(String, Value)>);

#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    /// An array or an object, as its JSON.
    Json(String),
}

/// A number as it was written: it has all of its digits.
#[derive(Debug, Clone, PartialEq)]
pub struct Number(String);

impl Number {
    pub fn digits(&self) -> &str {
        &self.0
    }

    /// A whole number; `None` where it is none, or does not fit the type.
    pub fn integer<T: TryFrom<i128>>(&self) -> Option<T> {
        self.decimal(0).and_then(|whole| T::try_from(whole).ok())
    }

    /// The number times ten to the power of `scale`, as columns of the type DECIMAL(.., scale) hold it; `None` where it has
    /// more digits behind the point, or too many in all.
    pub fn decimal(&self, scale: u32) -> Option<i128> {
        let (mantissa, exponent) = match self.0.find(|c| c == 'e' || c == 'E') {
            Some(at) => (&self.0[..at], self.0[at + 1..].parse::<i64>().ok()?),
            None => (self.0.as_str(), 0),
        };
        let (whole, fraction) = match mantissa.find('.') {
            Some(at) => (&mantissa[..at], mantissa[at + 1..].trim_end_matches('0')),
            None => (mantissa, ""),
        };
        let digits: i128 = format!("{}{}", whole, fraction).parse().ok()?;
        let power = exponent.checked_add(i64::from(scale))?.checked_sub(fraction.len() as i64)?;
        if digits == 0 {
            return Some(0);
        }
        let factor = 10_i128.checked_pow(u32::try_from(power.checked_abs()?).ok()?)?;
        if power >= 0 {
            digits.checked_mul(factor)
        } else {
            Some(digits / factor).filter(|_| digits % factor == 0)
        }
    }

    /// The double that is nearest.
    pub fn double(&self) -> f64 {
        self.0.parse().unwrap_or(f64::NAN)
    }
}

impl Params {
    /// Reads a JSON object; no text at all means no parameters.
    pub fn read(text: &str) -> Result<Self, String> {
        let mut reader = Reader { text, at: 0 };
        let mut params: Vec<(String, Value)> = Vec::new();
        if reader.next().is_none() {
            return Ok(Params(params));
        }
        reader.expect('{')?;
        if reader.next() == Some('}') {
            return Ok(Params(params));
        }
        loop {
            reader.expect('"')?;
            let name = reader.text()?;
            reader.expect(':')?;
            params.push((name, reader.value()?));
            match reader.next() {
                Some(',') => reader.expect(',')?,
                _ => break,
            }
        }
        reader.expect('}')?;
        Ok(Params(params))
    }

    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value)
    }

    /// An error that names the first parameter that is not among these. Parameters that are declared when an exchanger is
    /// registered need no such check: the server refuses others.
    pub fn only(&self, names: &[&str]) -> Result<(), String> {
        match self.0.iter().find(|(name, _)| !names.contains(&name.as_str())) {
            Some((unknown, _)) => Err(format!("there is no parameter \"{}\"; there are {}", unknown, names.join(", "))),
            None => Ok(()),
        }
    }

    pub fn text(&self, name: &str) -> Result<&str, String> {
        match self.get(name) {
            Some(Value::Text(text)) => Ok(text),
            _ => Err(format!("the parameter \"{}\" must be a text", name)),
        }
    }

    pub fn boolean(&self, name: &str) -> Result<bool, String> {
        match self.get(name) {
            Some(Value::Bool(value)) => Ok(*value),
            _ => Err(format!("the parameter \"{}\" must be true or false", name)),
        }
    }

    /// A whole number of the type that is asked for, with all of its digits.
    pub fn integer<T: TryFrom<i128>>(&self, name: &str) -> Result<T, String> {
        match self.get(name) {
            Some(Value::Number(number)) => number
                .integer()
                .ok_or_else(|| format!("the parameter \"{}\" is {}, which is no whole number in range", name, number.0)),
            _ => Err(format!("the parameter \"{}\" must be a whole number", name)),
        }
    }

    /// A number with at most `scale` digits behind the point: times ten to the power of `scale`, as DECIMAL columns hold it.
    pub fn decimal(&self, name: &str, scale: u32) -> Result<i128, String> {
        match self.get(name) {
            Some(Value::Number(number)) => number.decimal(scale).ok_or_else(|| {
                format!("the parameter \"{}\" is {}, which has not at most {} digits behind the point", name, number.0, scale)
            }),
            _ => Err(format!("the parameter \"{}\" must be a number", name)),
        }
    }

    /// A number as the double that is nearest. A whole number that no double holds is an error: [`Self::integer`] reads it.
    pub fn number(&self, name: &str) -> Result<f64, String> {
        match self.get(name) {
            Some(Value::Number(number)) => {
                let double = number.double();
                match number.decimal(0) {
                    Some(whole) if double as i128 != whole => {
                        Err(format!("the parameter \"{}\" is {}, which no double holds", name, number.0))
                    }
                    _ => Ok(double),
                }
            }
            _ => Err(format!("the parameter \"{}\" must be a number", name)),
        }
    }
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl Reader<'_> {
    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    fn take(&mut self) -> Option<char> {
        let next = self.peek()?;
        self.at += next.len_utf8();
        Some(next)
    }

    /// The next character that is not white space.
    fn next(&mut self) -> Option<char> {
        while self.peek().map_or(false, |c| c.is_ascii_whitespace()) {
            self.take();
        }
        self.peek()
    }

    fn expect(&mut self, wanted: char) -> Result<(), String> {
        match self.next() {
            Some(c) if c == wanted => {
                self.take();
                Ok(())
            }
            Some(c) => Err(format!("the parameters have {:?} where {:?} should be", c, wanted)),
            None => Err(format!("the parameters end where {:?} should be", wanted)),
        }
    }

    fn value(&mut self) -> Result<Value, String> {
        match self.next() {
            Some('"') => {
                self.take();
                return self.text().map(Value::Text);
            }
            Some('{') | Some('[') => return self.nested().map(Value::Json),
            _ => {}
        }
        let start = self.at;
        while self.peek().map_or(false, |c| !matches!(c, ',' | '}') && !c.is_ascii_whitespace()) {
            self.take();
        }
        let word = &self.text[start..self.at];
        match word {
            "null" => Ok(Value::Null),
            "true" => Ok(Value::Bool(true)),
            "false" => Ok(Value::Bool(false)),
            // A double's parser knows more words than JSON has numbers.
            number if number.bytes().all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b)) && number.parse::<f64>().is_ok() => {
                Ok(Value::Number(Number(number.to_string())))
            }
            _ => Err(format!("{:?} is no parameter's value", word)),
        }
    }

    /// An array or an object as it is written.
    fn nested(&mut self) -> Result<String, String> {
        let (start, mut depth) = (self.at, 0_usize);
        loop {
            match self.take().ok_or("an array or an object in the parameters does not end")? {
                '{' | '[' => depth += 1,
                '}' | ']' => depth -= 1,
                '"' => drop(self.text()?),
                _ => {}
            }
            if depth == 0 {
                return Ok(self.text[start..self.at].to_string());
            }
        }
    }

    /// Behind the first quote.
    fn text(&mut self) -> Result<String, String> {
        let mut text = String::new();
        loop {
            match self.take().ok_or("a text in the parameters does not end")? {
                '"' => return Ok(text),
                '\\' => match self.take().ok_or("a text in the parameters does not end")? {
                    'b' => text.push('\u{8}'),
                    'f' => text.push('\u{c}'),
                    'n' => text.push('\n'),
                    'r' => text.push('\r'),
                    't' => text.push('\t'),
                    'u' => text.push(self.escaped()?),
                    other => text.push(other),
                },
                c => text.push(c),
            }
        }
    }

    /// Behind `\u`: one character, which beyond the first 65,536 is written as two.
    fn escaped(&mut self) -> Result<char, String> {
        let first = self.digits()?;
        let code = match first {
            0xd800..=0xdbff if self.text[self.at..].starts_with("\\u") => {
                self.at += 2;
                let second = self.digits()?.checked_sub(0xdc00).filter(|second| *second < 0x400);
                second.map(|second| 0x10000 + ((first - 0xd800) << 10) + second)
            }
            other => Some(other),
        };
        code.and_then(char::from_u32).ok_or_else(|| format!("\\u{:04x} is no character", first))
    }

    fn digits(&mut self) -> Result<u32, String> {
        let digits = self.text.get(self.at..self.at + 4).unwrap_or_default();
        self.at += digits.len();
        u32::from_str_radix(digits, 16).map_err(|_| format!("\\u{} is no character", digits))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_their_digits() {
        let text = r#"{"big": 9007199254740993, "huge": -170141183460469231731687303715884105727, "price": 12.50,
                       "thousand": 1e3, "half": 0.5, "much": 1e40}"#;
        let params = Params::read(text).unwrap();
        assert_eq!(params.integer::<i64>("big"), Ok(9007199254740993));
        assert_eq!(params.integer::<i128>("huge"), Ok(-170141183460469231731687303715884105727));
        assert_eq!(params.integer::<u8>("thousand").unwrap_err(), "the parameter \"thousand\" is 1e3, which is no whole number in range");
        assert_eq!(params.integer::<u16>("thousand"), Ok(1000));
        assert_eq!(params.decimal("price", 2), Ok(1250));
        assert_eq!(params.decimal("price", 1), Ok(125));
        assert!(params.decimal("price", 0).is_err() && params.integer::<i64>("half").is_err());
        assert!(params.decimal("much", 0).is_err() && params.integer::<u32>("huge").is_err());
        assert_eq!(params.number("half"), Ok(0.5));
        assert!(params.number("big").unwrap_err().contains("which no double holds"));
        match params.get("big") {
            Some(Value::Number(number)) => assert_eq!(number.digits(), "9007199254740993"),
            other => panic!("{:?}", other),
        }
    }

    #[test]
    fn texts_are_unescaped_and_nested_values_stay_json() {
        let text = r#"{"t": "\u00e4\b\f\n\"\\\/\ud83e\udd86", "list": [1, {"a": "]}\""}], "none": null, "yes": true}"#;
        let params = Params::read(text).unwrap();
        assert_eq!(params.text("t"), Ok("ä\u{8}\u{c}\n\"\\/🦆"));
        assert_eq!(params.get("list"), Some(&Value::Json(r#"[1, {"a": "]}\""}]"#.into())));
        assert_eq!((params.get("none"), params.boolean("yes")), (Some(&Value::Null), Ok(true)));
        assert_eq!(params.only(&["t", "list", "none", "yes"]), Ok(()));
        assert_eq!(params.only(&["t", "list", "none"]).unwrap_err(), "there is no parameter \"yes\"; there are t, list, none");
        for wrong in [r#"{"a": inf}"#, r#"{"a": [1}"#, r#"{"a": "\ud83e"}"#, r#"{"a": "\ud83e\ud83e"}"#, r#"{"a": nan}"#, r#"{"a"}"#, "[1]", r#"{"a": 1"#] {
            assert!(Params::read(wrong).is_err(), "{}", wrong);
        }
    }
}
