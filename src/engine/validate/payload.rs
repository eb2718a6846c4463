//! Values whose bytes have a structure of DuckDB's: BIT, BIGNUM, TIME WITH TIME ZONE, JSON and GEOMETRY.

/// Microseconds of a day, and the largest offset of a zone in seconds.
const DAY_MICROS: u64 = 86_400_000_000;
const LARGEST_OFFSET: u64 = 16 * 3600 - 1;

/// Microseconds in the upper 40 bits, and in the lower 24 how far the zone's offset is below the largest one.
pub(in crate::engine) fn time_tz(bytes: &[u8]) -> Result<(), String> {
    let stored = u64::from_le_bytes(bytes.try_into().map_err(|_| "a TIMETZ has 8 bytes".to_string())?);
    let (micros, offset) = (stored >> 24, stored & 0xff_ffff);
    if micros > DAY_MICROS {
        return Err(format!("time_tz value {micros} us is outside 00:00:00 to 24:00:00"));
    }
    if offset > 2 * LARGEST_OFFSET {
        let seconds = LARGEST_OFFSET as i64 - offset as i64;
        return Err(format!("time_tz offset {seconds} s is outside -15:59:59 to +15:59:59"));
    }
    Ok(())
}

/// A byte that says how many bits of the second one are padding, which are set, and then the bits.
pub(in crate::engine) fn bit(bytes: &[u8]) -> Result<(), String> {
    let [padding, first, ..] = bytes else { return Err(malformed("bit", bytes, "it has no bits")) };
    if *padding > 7 {
        return Err(malformed("bit", bytes, &format!("its padding is {padding} bits, and at most 7")));
    }
    let mask = !(0xff_u8 >> padding);
    if first & mask != mask {
        return Err(malformed("bit", bytes, "its padding is not set"));
    }
    Ok(())
}

/// Three bytes of a header, whose first bit is set in numbers that are not negative and which count the bytes behind; all
/// bits of a negative number are inverted.
pub(in crate::engine) fn bignum(bytes: &[u8]) -> Result<(), String> {
    let [a, b, c, digits @ ..] = bytes else { return Err(malformed("bignum", bytes, "it has no header")) };
    let negative = a & 0x80 == 0;
    let told = u32::from_be_bytes([0, *a, *b, *c]);
    let told = (if negative { !told } else { told }) & 0x7f_ffff;
    if digits.is_empty() || told as usize != digits.len() {
        return Err(malformed(
            "bignum",
            bytes,
            &format!("its header counts {told} bytes, and {} follow", digits.len()),
        ));
    }
    let zero = if negative { 0xff } else { 0 };
    if digits[0] == zero && (digits.len() > 1 || negative) {
        return Err(malformed("bignum", bytes, "it begins with zero"));
    }
    Ok(())
}

/// As DuckDB reads JSON: with NaN, Infinity and a comma behind the last item.
pub(super) fn json(bytes: &[u8]) -> Result<(), String> {
    match serde_json::from_slice::<serde::de::IgnoredAny>(bytes) {
        Ok(_) => Ok(()),
        Err(_) if lenient(bytes).is_some() => Ok(()),
        Err(error) => Err(format!("it is not JSON: {error}")),
    }
}

/// Without recursion: `open` has the brackets that are to be closed.
fn lenient(bytes: &[u8]) -> Option<()> {
    let mut open: Vec<u8> = Vec::new();
    let mut rest = trimmed(bytes);
    loop {
        // A value, or the end of an empty one or behind a comma.
        let first = *rest.first()?;
        let mut value = true;
        match first {
            b'{' | b'[' => {
                open.push(first);
                rest = trimmed(&rest[1..]);
                if first == b'{' && *rest.first()? != b'}' {
                    rest = key(rest)?;
                }
                value = false;
            }
            b'}' | b']' => {}
            b'"' => rest = string(rest)?,
            _ => rest = word(rest)?,
        }
        if !value && !matches!(rest.first()?, b'}' | b']') {
            continue;
        }
        // What closes, and what goes on.
        loop {
            rest = trimmed(rest);
            let Some(inside) = open.last() else { return rest.is_empty().then_some(()) };
            let closing = if *inside == b'{' { b'}' } else { b']' };
            let mut comma = false;
            if value && rest.first() == Some(&b',') {
                rest = trimmed(&rest[1..]);
                comma = true;
            }
            if *rest.first()? == closing {
                open.pop();
                rest = &rest[1..];
                value = true;
                continue;
            }
            if !comma {
                return None;
            }
            if *inside == b'{' {
                rest = key(rest)?;
            }
            break;
        }
    }
}

fn trimmed(bytes: &[u8]) -> &[u8] {
    let blank = bytes.iter().take_while(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r')).count();
    &bytes[blank..]
}

/// What is behind a key and its colon.
fn key(bytes: &[u8]) -> Option<&[u8]> {
    Some(trimmed(trimmed(string(bytes)?).strip_prefix(b":")?))
}

fn string(bytes: &[u8]) -> Option<&[u8]> {
    let mut at = 1;
    bytes.first().filter(|first| **first == b'"')?;
    loop {
        match bytes.get(at)? {
            b'"' => break,
            b'\\' => at += 2,
            0..0x20 => return None,
            _ => at += 1,
        }
    }
    serde_json::from_slice::<serde::de::IgnoredAny>(&bytes[..=at]).ok()?;
    Some(&bytes[at + 1..])
}

fn word(bytes: &[u8]) -> Option<&[u8]> {
    let length = bytes.iter().take_while(|byte| !b" \t\r\n,]}:\"[{".contains(byte)).count();
    let text = std::str::from_utf8(&bytes[..length]).ok()?;
    let bare = text.strip_prefix('-').unwrap_or(text).to_ascii_lowercase();
    let named = matches!(bare.as_str(), "nan" | "inf" | "infinity");
    if !named {
        serde_json::from_str::<serde::de::IgnoredAny>(text).ok()?;
    }
    Some(&bytes[length..])
}

/// How deep DuckDB reads collections.
const MAX_GEOMETRY_DEPTH: usize = 16;

/// Well-known binary, whole and nothing behind it.
pub(super) fn geometry(bytes: &[u8]) -> Result<(), String> {
    let mut at = Wkb { bytes, place: 0 };
    let read = at.geometry(None, None, 0);
    match read {
        Ok(()) if at.place == bytes.len() => Ok(()),
        Ok(()) => Err(malformed("geometry", bytes, &format!("it ends at byte {}, and there is more", at.place))),
        Err(why) => Err(malformed("geometry", bytes, &why)),
    }
}

struct Wkb<'a> {
    bytes: &'a [u8],
    place: usize,
}

impl Wkb<'_> {
    fn take(&mut self, count: usize) -> Result<&[u8], String> {
        let taken = self.bytes.get(self.place..).and_then(|rest| rest.get(..count));
        let taken = taken.ok_or_else(|| format!("it is cut at byte {}", self.place))?;
        self.place += count;
        Ok(taken)
    }

    fn number(&mut self, little: bool) -> Result<u32, String> {
        let bytes: [u8; 4] = self.take(4)?.try_into().expect("four bytes");
        Ok(if little { u32::from_le_bytes(bytes) } else { u32::from_be_bytes(bytes) })
    }

    fn vertices(&mut self, little: bool, size: usize) -> Result<(), String> {
        let count = self.number(little)? as usize;
        self.take(count.checked_mul(size).ok_or("it counts too many points")?).map(drop)
    }

    fn geometry(&mut self, kind: Option<u32>, dimensions: Option<(bool, bool)>, depth: usize) -> Result<(), String> {
        if depth > MAX_GEOMETRY_DEPTH {
            return Err(format!("collections are nested deeper than {MAX_GEOMETRY_DEPTH}"));
        }
        let little = match self.take(1)?[0] {
            order @ (0 | 1) => order == 1,
            other => return Err(format!("its byte order is {other}")),
        };
        let told = self.number(little)?;
        let (type_id, flags) = ((told & 0xffff) % 1000, (told & 0xffff) / 1000);
        if flags > 3 {
            return Err(format!("its type is {told}"));
        }
        let (z, m) = (flags & 1 != 0 || told & 0x8000_0000 != 0, flags & 2 != 0 || told & 0x4000_0000 != 0);
        if dimensions.is_some_and(|dimensions| dimensions != (z, m)) || kind.is_some_and(|kind| kind != type_id) {
            return Err("its parts are of different types".into());
        }
        if told & 0x2000_0000 != 0 {
            self.take(4)?;
        }
        let size = 8 * (2 + usize::from(z) + usize::from(m));
        match type_id {
            1 => self.take(size).map(drop),
            2 => self.vertices(little, size),
            3 => {
                for _ in 0..self.number(little)? {
                    self.vertices(little, size)?;
                }
                Ok(())
            }
            4..=7 => {
                let part = if type_id == 7 { None } else { Some(type_id - 3) };
                for _ in 0..self.number(little)? {
                    self.geometry(part, Some((z, m)), depth + 1)?;
                }
                Ok(())
            }
            other => Err(format!("its type is {other}")),
        }
    }
}

/// Some bytes are enough to find the value again.
pub(super) fn malformed(what: &str, bytes: &[u8], why: &str) -> String {
    let shown: String = bytes.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    let more = if bytes.len() > 16 { ".." } else { "" };
    format!("{what} value 0x{shown}{more} of {} bytes is malformed: {why}", bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_what_duckdb_takes() {
        for text in [
            "1",
            "[1,]",
            "{\"a\":NaN,}",
            "[-Infinity, inf]",
            "{}",
            "[]",
            "[[],{}]",
            " {\"a\" : [1, {\"b\":2,},] } ",
            "\"x\"",
        ] {
            assert!(json(text.as_bytes()).is_ok(), "{text}");
        }
        for text in [
            "",
            "{",
            "[1",
            "[,]",
            "{a:1}",
            "[1 2]",
            "{\"a\"}",
            "nope",
            "[1]]",
            "{\"a\":1,,}",
            "[NaN",
            "\"\\x\"",
            "[NaN}",
        ] {
            assert!(json(text.as_bytes()).is_err(), "{text}");
        }
        assert!(json("[".repeat(1_000_000).as_bytes()).is_err());
        assert!(json(format!("{}NaN{}", "[".repeat(100_000), "]".repeat(100_000)).as_bytes()).is_ok());
    }

    #[test]
    fn bits_and_bignums_are_whole() {
        assert!(bit(&[5, 0b1111_1101]).is_ok());
        for bytes in [&[][..], &[0], &[8, 0xff], &[5, 1]] {
            assert!(bit(bytes).is_err(), "{bytes:?}");
        }
        for bytes in [&[0x80, 0, 1, 0][..], &[0x80, 0, 1, 1], &[0x7f, 0xff, 0xfe, !1]] {
            assert!(bignum(bytes).is_ok(), "{bytes:?}");
        }
        for bytes in
            [&[][..], &[0x80, 0, 1], &[0x80, 0, 2, 1], &[0x80, 0, 0], &[0x80, 0, 2, 0, 1], &[0x7f, 0xff, 0xfe, 0xff]]
        {
            assert!(bignum(bytes).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn geometries_end_where_they_say() {
        let point = [&[1, 1, 0, 0, 0][..], &[0; 16]].concat();
        assert!(geometry(&point).is_ok());
        assert!(geometry(&point[..20]).is_err());
        assert!(geometry(&[&point[..], &[0]].concat()).is_err());
        // A polygon of four billion rings.
        assert!(geometry(&[1, 3, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]).is_err());
        let nested = [1, 7, 0, 0, 0, 1, 0, 0, 0].repeat(100_000);
        assert!(geometry(&nested).is_err());
    }
}
