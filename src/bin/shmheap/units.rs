//! Sizes and times, as people write and read them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use humansize::{BINARY, FormatSizeOptions, format_size};

/// Reads a size: bytes, or with K, M, G, T for powers of 1024.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let parser = parse_size::Config::new().with_binary();
    parser.parse_size(text).map_err(|error| format!("{error}; write bytes, or 64K, 16M, 1G"))
}

/// Reads an offset: decimal, or hexadecimal after 0x.
pub(crate) fn parse_offset(text: &str) -> Result<u64, String> {
    let number = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    number.map_err(|error| format!("{error}; write an offset as 12345 or as 0x3039"))
}

/// Reads a length of time: `500ms`, `10s`, `2m`; a bare number means seconds.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string());
    }
    humantime::parse_duration(text).map_err(|error| format!("{error}; write seconds, or 500ms, 10s, 2m"))
}

/// A size with three or four digits and a unit.
pub(crate) fn size(bytes: u64) -> String {
    let digits = |places| FormatSizeOptions::from(BINARY).decimal_places(places).decimal_zeroes(0);
    format_size(bytes, digits(if bytes < 10 << 10 { 2 } else { 1 }))
}

/// How long ago that was, in one or two units; `?` for times to come.
pub(crate) fn age(since_ms: u64) -> String {
    age_of(since_ms).map_or_else(|| "?".to_owned(), |age| duration(Duration::from_secs(age.as_secs())))
}

/// How long ago that was.
pub(crate) fn age_of(since_ms: u64) -> Option<Duration> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    now.checked_sub(Duration::from_millis(since_ms)).filter(|_| since_ms != 0)
}

/// A length of time in its two largest units.
pub(crate) fn duration(time: Duration) -> String {
    let text = humantime::format_duration(time).to_string();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// A part of a whole, in percent.
pub(crate) fn percent(part: u64, whole: u64) -> String {
    format!("{:.1} %", ratio(part, whole) * 100.0)
}

/// A part of a whole, from 0 to 1.
pub(crate) fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// A number of things: `1 block`, `2 blocks`.
pub(crate) fn counted(number: impl Into<u64>, what: &str) -> String {
    let number = number.into();
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

/// A count per second, or any large count, in at most four digits and a unit.
pub(crate) fn count(number: f64) -> String {
    let units = [(1e9, "G"), (1e6, "M"), (1e3, "k")];
    match units.into_iter().find(|(unit, _)| number >= *unit) {
        Some((unit, letter)) if number < unit * 10.0 => format!("{:.2}{letter}", number / unit),
        Some((unit, letter)) => format!("{:.1}{letter}", number / unit),
        None => format!("{number:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        assert_eq!((parse_size("1G"), parse_size("64k"), parse_size("4096")), (Ok(1 << 30), Ok(64 << 10), Ok(4096)));
        assert!(parse_size("many").is_err_and(|error| error.contains("64K")));
        assert_eq!((size(1536), size(64 << 20), size(0)), ("1.50 KiB".to_owned(), "64 MiB".to_owned(), "0 B".to_owned()));
    }

    #[test]
    fn offsets_are_decimal_or_hexadecimal() {
        assert_eq!((parse_offset("0x10"), parse_offset("16")), (Ok(16), Ok(16)));
        assert!(parse_offset("10h").is_err());
    }

    #[test]
    fn times_are_seconds_unless_they_say_otherwise() {
        assert_eq!(parse_duration("1.5"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_duration("200ms"), Ok(Duration::from_millis(200)));
        assert!(parse_duration("soon").is_err() && parse_duration("-1").is_err());
    }

    #[test]
    fn one_thing_has_no_plural() {
        assert_eq!((counted(1u64, "block"), counted(0u64, "block")), ("1 block".to_owned(), "0 blocks".to_owned()));
    }

    #[test]
    fn counts_have_three_digits_and_a_unit() {
        assert_eq!((count(7.0), count(1234.0), count(12_345_678.0)), ("7".into(), "1.23k".into(), "12.3M".into()));
    }
}
