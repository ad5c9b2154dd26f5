//! Kubernetes quantities, as far as storage sizes need them.
//!
//! Implements the text form of `k8s.io/apimachinery` quantities: a decimal number with a binary suffix (`Ki` … `Ei`), a
//! decimal suffix (`n` … `E`) or a decimal exponent (`e3`).

/// Why a text is not a usable size in bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// The text does not follow the quantity grammar.
    #[error("{0:?} is not a quantity; write a number with an optional suffix, for example 1Gi")]
    Malformed(String),
    /// The value does not fit the 64-bit byte counts of CSI.
    #[error("{0:?} is larger than 9223372036854775807 bytes")]
    TooLarge(String),
}

/// The whole number of bytes that `text` stands for, fractions rounded away from zero as the Go implementation's `Value()` does.
pub fn bytes(text: &str) -> Result<i64, QuantityError> {
    let malformed = || QuantityError::Malformed(text.to_owned());
    let too_large = || QuantityError::TooLarge(text.to_owned());
    let (negative, unsigned) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let number_end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
    let (number, suffix) = unsigned.split_at(number_end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return Err(malformed());
    }
    // Value = mantissa * numerator / denominator, all exact.
    let fraction = fraction.trim_end_matches('0');
    let digits = format!("{whole}{fraction}");
    let digits = digits.trim_start_matches('0');
    // A mantissa of more than 36 digits is beyond any size, or has a fraction below any unit.
    if digits.len() > 36 || fraction.len() > 18 {
        return Err(too_large());
    }
    let mantissa: u128 = if digits.is_empty() { 0 } else { digits.parse().map_err(|_| malformed())? };
    let (numerator, mut denominator) = scale(suffix).ok_or_else(malformed)?;
    for _ in 0..fraction.len() {
        denominator = denominator.checked_mul(10).ok_or_else(too_large)?;
    }
    let scaled = mantissa.checked_mul(numerator).ok_or_else(too_large)?;
    let value = i64::try_from(scaled.div_ceil(denominator)).map_err(|_| too_large())?;
    Ok(if negative { -value } else { value })
}

/// The factor of a suffix as a fraction.
fn scale(suffix: &str) -> Option<(u128, u128)> {
    let binary = |power: u32| Some((1_u128 << (10 * power), 1));
    let decimal = |power: u32| Some((10_u128.pow(power), 1));
    match suffix {
        "" => Some((1, 1)),
        "n" => Some((1, 1_000_000_000)),
        "u" => Some((1, 1_000_000)),
        "m" => Some((1, 1_000)),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E'])?;
            let (digits, negative) = match exponent.as_bytes().first()? {
                b'-' => (&exponent[1..], true),
                b'+' => (&exponent[1..], false),
                _ => (exponent, false),
            };
            if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
                return None;
            }
            let power: u32 = digits.parse().ok().filter(|power| *power <= 18)?;
            let factor = 10_u128.pow(power);
            Some(if negative { (1, factor) } else { (factor, 1) })
        }
    }
}

/// The canonical text of a byte count in the binary format: the largest suffix that divides it evenly (`1Gi`, `1536Mi`, `1000`).
pub fn from_bytes(bytes: i64) -> String {
    const SUFFIXES: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let mut value = bytes;
    let mut suffix = 0;
    while value != 0 && value % 1024 == 0 && suffix + 1 < SUFFIXES.len() {
        value /= 1024;
        suffix += 1;
    }
    format!("{value}{}", SUFFIXES[suffix])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_people_write() {
        for (text, expected) in [
            ("1Gi", 1 << 30),
            ("1G", 1_000_000_000),
            ("0", 0),
            ("1.5Gi", 3 << 29),
            ("100m", 1),
            ("1e3", 1000),
            ("12E", 0),
            ("1E3", 1000),
            ("5Ki", 5120),
            (".5k", 500),
            ("1.", 1),
            ("+7", 7),
            ("-7", -7),
            ("8n", 1),
            ("9223372036854775807", i64::MAX),
        ] {
            if text == "12E" {
                assert_eq!(bytes(text), Err(QuantityError::TooLarge(text.into())));
            } else {
                assert_eq!(bytes(text), Ok(expected), "{text}");
            }
        }
    }

    #[test]
    fn texts_that_are_no_sizes() {
        for text in ["", "Gi", "1Xi", "1 Gi", "1.2.3", "1e", "e3", "0x10", "1e+", "∞", "1gi", "."] {
            assert_eq!(bytes(text), Err(QuantityError::Malformed(text.into())), "{text}");
        }
    }

    proptest! {
        #[test]
        fn canonical_text_means_the_same(value in 0_i64..) {
            prop_assert_eq!(bytes(&from_bytes(value)), Ok(value));
        }

        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _ = bytes(&text);
        }
    }
}
