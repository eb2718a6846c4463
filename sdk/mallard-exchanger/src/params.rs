//! Parameters: a flat JSON object, read without any dependency.

use std::{iter::Peekable, str::Chars};

/// The parameters of one use, such as `{"column": "DEP_DELAY", "above": 15}`.
#[derive(Debug, Default)]
pub struct Params(Vec<(String, Value)>);

#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Null,
    Bool(bool),
    Number(f64),
    Text(String),
}

impl Params {
    /// Reads a JSON object of texts, numbers, booleans and nulls; no text at all means no parameters.
    pub fn read(text: &str) -> Result<Self, String> {
        let mut reader = Reader(text.chars().peekable());
        let mut params = Vec::new();
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
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value)
    }

    pub fn text(&self, name: &str) -> Result<&str, String> {
        match self.get(name) {
            Some(Value::Text(text)) => Ok(text),
            _ => Err(format!("the parameter \"{}\" must be a text", name)),
        }
    }

    pub fn number(&self, name: &str) -> Result<f64, String> {
        match self.get(name) {
            Some(Value::Number(number)) => Ok(*number),
            _ => Err(format!("the parameter \"{}\" must be a number", name)),
        }
    }
}

struct Reader<'a>(Peekable<Chars<'a>>);

impl Reader<'_> {
    /// The next character that is not white space.
    fn next(&mut self) -> Option<char> {
        while self.0.peek().map_or(false, |c| c.is_ascii_whitespace()) {
            self.0.next();
        }
        self.0.peek().copied()
    }

    fn expect(&mut self, wanted: char) -> Result<(), String> {
        match self.next() {
            Some(c) if c == wanted => {
                self.0.next();
                Ok(())
            }
            Some(c) => Err(format!("the parameters have {:?} where {:?} should be", c, wanted)),
            None => Err(format!("the parameters end where {:?} should be", wanted)),
        }
    }

    fn value(&mut self) -> Result<Value, String> {
        if self.next() == Some('"') {
            self.0.next();
            return self.text().map(Value::Text);
        }
        let mut word = String::new();
        while let Some(c) = self.0.peek().filter(|c| !matches!(c, ',' | '}') && !c.is_ascii_whitespace()) {
            word.push(*c);
            self.0.next();
        }
        match word.as_str() {
            "null" => Ok(Value::Null),
            "true" => Ok(Value::Bool(true)),
            "false" => Ok(Value::Bool(false)),
            number => number.parse().map(Value::Number).map_err(|_| format!("{:?} is no parameter's value", word)),
        }
    }

    /// Behind the first quote.
    fn text(&mut self) -> Result<String, String> {
        let mut text = String::new();
        loop {
            match self.0.next().ok_or("a text in the parameters does not end")? {
                '"' => return Ok(text),
                '\\' => match self.0.next().ok_or("a text in the parameters does not end")? {
                    'n' => text.push('\n'),
                    't' => text.push('\t'),
                    'r' => text.push('\r'),
                    'u' => {
                        let digits: String = (0..4).filter_map(|_| self.0.next()).collect();
                        let code = u32::from_str_radix(&digits, 16).ok().and_then(char::from_u32);
                        text.push(code.ok_or_else(|| format!("\\u{} is no character", digits))?);
                    }
                    other => text.push(other),
                },
                c => text.push(c),
            }
        }
    }
}
