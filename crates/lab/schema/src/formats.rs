//! The string formats of OpenAPI that the Kubernetes API server knows. Unknown formats are no demand.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

use base64::Engine as _;
use regex::Regex;

/// Tells whether the text has the format.
pub(crate) fn is_valid(format: &str, text: &str) -> bool {
    match format {
        "date" | "full-date" => text.len() == 10 && text.parse::<jiff::civil::Date>().is_ok(),
        "date-time" | "datetime" => text.contains(['T', 't', ' ']) && text.parse::<jiff::Timestamp>().is_ok(),
        "duration" => is_duration(text),
        "byte" => base64::engine::general_purpose::STANDARD.decode(text.replace(['\n', '\r'], "")).is_ok(),
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        "cidr" => is_cidr(text),
        "mac" => pattern(&MAC, text),
        "uuid" | "uuid3" | "uuid4" | "uuid5" => pattern(&UUID, text),
        "email" => pattern(&EMAIL, text),
        "hostname" => text.len() <= 255 && pattern(&HOSTNAME, text),
        "uri" => {
            text.split_once(':').is_some_and(|(scheme, rest)| is_scheme(scheme) && !rest.contains(char::is_whitespace))
        }
        "hexcolor" => pattern(&HEX_COLOR, text),
        "rgbcolor" => pattern(&RGB_COLOR, text),
        "isbn" | "isbn10" | "isbn13" | "creditcard" | "ssn" => !text.is_empty(),
        "k8s-short-name" => text.len() <= 63 && pattern(&LABEL, text),
        "k8s-long-name" => text.len() <= 253 && pattern(&SUBDOMAIN, text),
        _ => true,
    }
}

static MAC: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new("^([0-9A-Fa-f]{2}[:-]){5}([0-9A-Fa-f]{2}[:-]?){1}([0-9A-Fa-f]{2}[:-]?){0,2}$").ok());
static UUID: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new("(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}$").ok());
static EMAIL: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"^[^@\s]+@[^@\s]+$").ok());
static HOSTNAME: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(
        r"^[a-zA-Z0-9_]([a-zA-Z0-9_-]{0,61}[a-zA-Z0-9_])?(\.[a-zA-Z0-9_]([a-zA-Z0-9_-]{0,61}[a-zA-Z0-9_])?)*\.?$",
    )
    .ok()
});
static HEX_COLOR: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new("^#?([0-9a-fA-F]{3}|[0-9a-fA-F]{6})$").ok());
static RGB_COLOR: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"^rgb\(\s*([0-9]{1,3})\s*,\s*([0-9]{1,3})\s*,\s*([0-9]{1,3})\s*\)$").ok());
static LABEL: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new("^[a-z0-9]([-a-z0-9]*[a-z0-9])?$").ok());
static SUBDOMAIN: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$").ok());

fn pattern(regex: &LazyLock<Option<Regex>>, text: &str) -> bool {
    regex.as_ref().is_none_or(|regex| regex.is_match(text))
}

fn is_scheme(scheme: &str) -> bool {
    scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
}

fn is_cidr(text: &str) -> bool {
    let Some((address, bits)) = text.split_once('/') else { return false };
    let Ok(bits) = bits.parse::<u8>() else { return false };
    address.parse::<Ipv4Addr>().is_ok() && bits <= 32 || address.parse::<Ipv6Addr>().is_ok() && bits <= 128
}

/// Go's durations (`1h30m`, `1.5s`, `0`) and the words that go-openapi also takes (`3 weeks`).
fn is_duration(text: &str) -> bool {
    static GO: LazyLock<Option<Regex>> =
        LazyLock::new(|| Regex::new(r"^[-+]?(0|(([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h))+)$").ok());
    static WORDS: LazyLock<Option<Regex>> = LazyLock::new(|| {
        Regex::new(r"^\s*[0-9]+\s*(ns|nanos?|nanoseconds?|us|µs|micros?|microseconds?|ms|millis?|milliseconds?|s|secs?|seconds?|m|mins?|minutes?|h|hrs?|hours?|d|days?|w|wks?|weeks?)\s*$").ok()
    });
    pattern(&GO, text) || pattern(&WORDS, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_tell_good_from_bad() {
        for (format, good, bad) in [
            ("date", "2024-02-29", "2024-02-30"),
            ("date-time", "2024-02-29T10:00:00Z", "2024-02-29"),
            ("date-time", "2024-02-29T10:00:00.123456+02:00", "yesterday"),
            ("duration", "1h30m", "1 fortnight"),
            ("byte", "Yg==", "Yg"),
            ("ipv4", "10.0.0.1", "10.0.0.256"),
            ("ipv6", "::1", "1::2::3"),
            ("cidr", "10.0.0.0/8", "10.0.0.0/33"),
            ("mac", "00:11:22:33:44:55", "00:11:22:33:44"),
            ("uuid", "123e4567-e89b-12d3-a456-426614174000", "123e4567"),
            ("email", "a@b.example", "a.b"),
            ("hostname", "a-b.example", "-a"),
            ("uri", "https://a.example/b", "no scheme"),
            ("k8s-short-name", "abc", "a.b"),
            ("k8s-long-name", "a.b", "A"),
        ] {
            assert!(is_valid(format, good), "{format} {good}");
            assert!(!is_valid(format, bad), "{format} {bad}");
        }
        assert!(is_valid("my-own", "anything"));
    }
}
