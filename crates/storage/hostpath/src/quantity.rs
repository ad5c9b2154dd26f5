//! Kubernetes quantities of bytes, as flags take them: `1Ti`, `500M`, `1.5Gi`, `1e9`.

use std::fmt;
use std::str::FromStr;

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

/// Why a text is no quantity of bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// Not a decimal number with an optional suffix.
    #[error("{0:?} is not a quantity: expected a number with an optional suffix, such as 10Gi, 500M or 1e9")]
    Malformed(String),
    /// More than 8 EiB - 1, the largest size that the wire format can carry.
    #[error("{0:?} is too large: the limit is 9223372036854775807 bytes")]
    TooLarge(String),
}

impl FromStr for Bytes {
    type Err = QuantityError;

    /// Fractions of a byte are rounded up, as Kubernetes does.
    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let malformed = || QuantityError::Malformed(text.to_owned());
        let too_large = || QuantityError::TooLarge(text.to_owned());
        let unsigned = text.strip_prefix('+').unwrap_or(text);
        let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(malformed());
        }
        let (factor, divisor) = scale(suffix).ok_or_else(malformed)?;
        // Digits beyond these cannot matter: every scale has fewer decimal places, and they only round up.
        let kept = &fraction[..fraction.len().min(18)];
        let more = fraction[kept.len()..].bytes().any(|digit| digit != b'0');
        let digits = format!("{whole}{kept}");
        let digits = digits.trim_start_matches('0');
        if digits.len() > 37 {
            return Err(too_large());
        }
        let mantissa: u128 = if digits.is_empty() { 0 } else { digits.parse().map_err(|_| malformed())? };
        let places = u32::try_from(kept.len()).map_err(|_| malformed())?;
        let denominator = 10_u128.pow(places).checked_mul(divisor).ok_or_else(too_large)?;
        let scaled = mantissa.checked_mul(factor).ok_or_else(too_large)?;
        let bytes = scaled.div_ceil(denominator) + u128::from(more && scaled % denominator == 0);
        i64::try_from(bytes).map(|bytes| Self(bytes.unsigned_abs())).map_err(|_| too_large())
    }
}

/// What a suffix multiplies by and divides by.
fn scale(suffix: &str) -> Option<(u128, u128)> {
    let factor = match suffix {
        "" => 1,
        "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "P" => 1_000_000_000_000_000,
        "E" => 1_000_000_000_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        "Pi" => 1 << 50,
        "Ei" => 1 << 60,
        "m" => return Some((1, 1_000)),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            let power = 10_u128.checked_pow(exponent.unsigned_abs())?;
            return Some(if exponent < 0 { (1, power) } else { (power, 1) });
        }
    };
    Some((factor, 1))
}

impl fmt::Display for Bytes {
    /// The largest binary suffix that leaves a whole number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
        let mut value = self.0;
        let mut unit = 0;
        while value != 0 && value.is_multiple_of(1024) && unit + 1 < units.len() {
            value /= 1024;
            unit += 1;
        }
        write!(f, "{value}{}", units[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn forms() {
        for (text, bytes) in [
            ("0", 0),
            ("1Ti", 1 << 40),
            ("1.5Gi", 3 << 29),
            ("500M", 500_000_000),
            ("1e9", 1_000_000_000),
            ("1E3", 1_000),
            ("1E", 1_000_000_000_000_000_000),
            ("1500m", 2),
            (".5Ki", 512),
            ("5.", 5),
            ("+7", 7),
            ("1.0000000000000000000001", 2),
            ("15e-1", 2),
            ("9223372036854775807", i64::MAX.unsigned_abs()),
        ] {
            assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
        }
    }

    #[test]
    fn refusals() {
        for text in ["", "Gi", "-1", "1 Gi", "1gi", "1KiB", "1..2", "1.2.3", "e3", "1e", "0x10", "1e99", "١"] {
            assert!(matches!(text.parse::<Bytes>(), Err(QuantityError::Malformed(_))), "{text:?}");
        }
        for text in ["8Ei", "9223372036854775808", "99999999999999999999999999999999999999999999", "1e37"] {
            assert!(matches!(text.parse::<Bytes>(), Err(QuantityError::TooLarge(_))), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_can_be_read(bytes in 0..=i64::MAX.unsigned_abs()) {
            prop_assert_eq!(Bytes(bytes).to_string().parse(), Ok(Bytes(bytes)));
        }

        #[test]
        fn no_text_panics(text in "\\PC*") {
            let _ = text.parse::<Bytes>();
        }
    }
}
