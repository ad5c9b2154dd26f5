//! The two time formats of the API: `Time` (RFC 3339, whole seconds) and `MicroTime` (six decimals), both in UTC.

use jiff::{Timestamp, tz::TimeZone};

/// Renders a `meta/v1 Time`: `2026-01-02T03:04:05Z`. Fractions of a second are cut off.
pub fn rfc3339(at: Timestamp) -> String {
    at.to_zoned(TimeZone::UTC).strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Renders a `meta/v1 MicroTime`: `2026-01-02T03:04:05.000006Z`.
pub fn micro(at: Timestamp) -> String {
    at.to_zoned(TimeZone::UTC).strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}

/// Reads either format, with any offset. `None` when the text is neither.
pub fn parse(text: &str) -> Option<Timestamp> {
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips() {
        let at = parse("2026-01-02T04:04:05.000006789+01:00").expect("stamp");
        assert_eq!(rfc3339(at), "2026-01-02T03:04:05Z");
        assert_eq!(micro(at), "2026-01-02T03:04:05.000006Z");
        assert_eq!(parse(&micro(at)).map(micro), Some(micro(at)));
        assert_eq!(parse("yesterday"), None);
    }

    #[test]
    fn whole_seconds_keep_six_decimals() {
        let at = parse("2026-01-02T03:04:05Z").expect("stamp");
        assert_eq!(micro(at), "2026-01-02T03:04:05.000000Z");
    }
}
