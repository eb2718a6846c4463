//! Text from outside as a terminal and a log may show it: without control characters, and without those that change what a
//! reader sees (bidirectional overrides, zero-width characters).

use std::{borrow::Cow, fmt::Write};

/// Unicode's general categories Cc (control), Cf (format), Zl and Zp (line and paragraph separators), and the characters
/// of other categories that Unicode lists as ignorable by default.
fn is_hidden(character: char) -> bool {
    character.is_control()
        || matches!(
            u32::from(character),
            0xAD | 0x34F
                | 0x600..=0x605
                | 0x61C
                | 0x6DD
                | 0x70F
                | 0x890..=0x891
                | 0x8E2
                | 0x115F..=0x1160
                | 0x17B4..=0x17B5
                | 0x180B..=0x180F
                | 0x200B..=0x200F
                | 0x2028..=0x202E
                | 0x2060..=0x206F
                | 0x3164
                | 0xFE00..=0xFE0F
                | 0xFEFF
                | 0xFFA0
                | 0xFFF0..=0xFFFB
                | 0x110BD
                | 0x110CD
                | 0x13430..=0x1343F
                | 0x1BCA0..=0x1BCA3
                | 0x1D173..=0x1D17A
                | 0xE0000..=0xE0FFF
        )
}

/// Whether every character of it is seen.
pub fn is_printable(text: &str) -> bool {
    !text.chars().any(is_hidden)
}

/// The text with each hidden character as `\u{..}`.
pub fn escaped(text: &str) -> Cow<'_, str> {
    escaped_but(text, |_| false)
}

/// The same, with line breaks and tabs left as they are: for messages of several lines.
pub fn escaped_lines(text: &str) -> Cow<'_, str> {
    escaped_but(text, |character| matches!(character, '\n' | '\t'))
}

fn escaped_but(text: &str, kept: impl Fn(char) -> bool) -> Cow<'_, str> {
    let hidden = |character: char| is_hidden(character) && !kept(character);
    if !text.chars().any(hidden) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        match hidden(character) {
            // Writing to a String does not fail.
            true => drop(write!(shown, "\\u{{{:x}}}", u32::from(character))),
            false => shown.push(character),
        }
    }
    Cow::Owned(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_characters_are_shown_as_escapes() {
        for (text, expected) in [
            ("plain ü 鴨 🦆", "plain ü 鴨 🦆"),
            ("a\u{202e}b", "a\\u{202e}b"),
            ("zero\u{200b}width", "zero\\u{200b}width"),
            ("\u{1b}[2Jgone", "\\u{1b}[2Jgone"),
            ("two\nlines", "two\\u{a}lines"),
            ("\u{e0041}tag", "\\u{e0041}tag"),
        ] {
            assert_eq!(escaped(text), expected);
            assert_eq!(is_printable(text), text == expected);
        }
        assert_eq!(escaped_lines("two\nlines\u{7}"), "two\nlines\\u{7}");
    }

    /// Every character of these categories, as another implementation knows them.
    #[test]
    fn every_control_and_format_character_is_hidden() {
        let known =
            regex::Regex::new(r"^[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}]$").expect("a class");
        let shown: Vec<char> =
            (char::MIN..=char::MAX).filter(|one| known.is_match(&one.to_string()) && !is_hidden(*one)).collect();
        assert!(shown.is_empty(), "{shown:?}");
    }
}
