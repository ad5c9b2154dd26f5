//! Human ages as the API server prints them in tables: two units at most, and only while the second one matters.

use jiff::Timestamp;

/// Renders a span of whole seconds as kubectl users know it: `5s`, `3m20s`, `2d3h`, `400d`, `3y12d`.
///
/// More than a second in the future is `<invalid>`; up to one second is forgiven as clock skew and gives `0s`.
pub fn human(seconds: i64) -> String {
    let minutes = seconds / 60;
    let hours = seconds / 3600;
    let days = hours / 24;
    let two = |big: i64, unit: char, small: i64, small_unit: char| {
        if small == 0 { format!("{big}{unit}") } else { format!("{big}{unit}{small}{small_unit}") }
    };
    match seconds {
        ..-1 => "<invalid>".to_owned(),
        -1 => "0s".to_owned(),
        0..120 => format!("{seconds}s"),
        _ if minutes < 10 => two(minutes, 'm', seconds % 60, 's'),
        _ if minutes < 180 => format!("{minutes}m"),
        _ if hours < 8 => two(hours, 'h', minutes % 60, 'm'),
        _ if hours < 48 => format!("{hours}h"),
        _ if days < 8 => two(days, 'd', hours % 24, 'h'),
        _ if days < 2 * 365 => format!("{days}d"),
        _ if days < 8 * 365 => two(days / 365, 'y', days % 365, 'd'),
        _ => format!("{}y", days / 365),
    }
}

/// The age at `now` of something that happened at `since`.
pub fn since(since: Timestamp, now: Timestamp) -> String {
    let span = now.duration_since(since);
    // Whole seconds towards zero, as the original truncates.
    human(span.as_secs())
}

/// The age of an RFC 3339 stamp; `<unknown>` when there is none, `<invalid>` when it cannot be read.
pub fn age(stamp: Option<&str>, now: Timestamp) -> String {
    match stamp {
        None | Some("") => "<unknown>".to_owned(),
        Some(s) => s.parse::<Timestamp>().map_or_else(|_| "<invalid>".to_owned(), |t| since(t, now)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans() {
        const M: i64 = 60;
        const H: i64 = 60 * M;
        const D: i64 = 24 * H;
        for (seconds, text) in [
            (-2, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (2 * M, "2m"),
            (3 * M + 20, "3m20s"),
            (10 * M + 20, "10m"),
            (179 * M + 59, "179m"),
            (3 * H, "3h"),
            (7 * H + 59 * M, "7h59m"),
            (8 * H + 59 * M, "8h"),
            (47 * H, "47h"),
            (48 * H, "2d"),
            (2 * D + 3 * H, "2d3h"),
            (8 * D + 3 * H, "8d"),
            (729 * D, "729d"),
            (730 * D, "2y"),
            (3 * 365 * D + 12 * D, "3y12d"),
            (8 * 365 * D + 12 * D, "8y"),
        ] {
            assert_eq!(human(seconds), text, "{seconds}");
        }
    }

    #[test]
    fn ages() {
        let now = "2026-01-01T00:02:05Z".parse().expect("stamp");
        assert_eq!(age(Some("2026-01-01T00:00:00Z"), now), "2m5s");
        assert_eq!(age(Some("2026-01-01T00:00:00.500000Z"), now), "2m4s");
        assert_eq!(age(None, now), "<unknown>");
        assert_eq!(age(Some("soon"), now), "<invalid>");
    }
}
