//! Resource quantities (`resource.Quantity`): fixed-point numbers with a decimal or binary suffix.
//!
//! A quantity is held in billionths, which is also the finest step the format knows: finer input is rounded away from
//! zero, as the API server does. Numbers beyond ±(2⁶³−1) are capped there. Two quantities are equal when their amounts
//! are, whatever the notation.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

/// One, in billionths.
const NANO: i128 = 1_000_000_000;
/// The largest amount, 2⁶³−1, in billionths.
const CAP: i128 = i64::MAX as i128 * NANO;
/// Digits beyond which a number is certainly capped (or rounded), so that arithmetic stays within `i128`.
const DIGITS_MAX: usize = 400;

/// The family of suffixes a quantity was written with, kept when it is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notation {
    /// `n u m "" k M G T P E`: powers of 1000.
    DecimalSi,
    /// `Ki Mi Gi Ti Pi Ei`: powers of 1024.
    BinarySi,
    /// `e3`, `E6`: powers of ten.
    Exponent,
}

/// A parsed quantity. [`fmt::Display`] gives the canonical text.
#[derive(Debug, Clone, Copy)]
pub struct Quantity {
    nanos: i128,
    notation: Notation,
}

/// Text that is no quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a quantity: expected a sign, digits and one of the suffixes n, u, m, k, M, G, T, P, E, Ki, Mi, Gi, Ti, Pi, Ei or an exponent such as e3"
)]
pub struct QuantityError(pub String);

const BINARY: [(&str, u32); 6] = [("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40), ("Pi", 50), ("Ei", 60)];
const DECIMAL: [(&str, i32); 10] =
    [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || QuantityError(text.to_owned());
        let (negative, unsigned) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let number_len = unsigned.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
        let (number, suffix) = unsigned.split_at(number_len);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || number.len() > DIGITS_MAX {
            return Err(bad());
        }
        let (notation, multiplier, exponent) = parse_suffix(suffix).ok_or_else(bad)?;
        let magnitude = scale(whole, fraction, multiplier, exponent).min(CAP);
        let nanos = if negative { -magnitude } else { magnitude };
        // Below one, a binary suffix cannot show the amount.
        let notation = if notation == Notation::BinarySi && magnitude < NANO { Notation::DecimalSi } else { notation };
        Ok(Self { nanos, notation })
    }
}

/// The notation, the binary multiplier and the power of ten that a suffix stands for.
fn parse_suffix(suffix: &str) -> Option<(Notation, i128, i32)> {
    if let Some((_, shift)) = BINARY.iter().find(|(s, _)| *s == suffix) {
        return Some((Notation::BinarySi, 1 << shift, 0));
    }
    if let Some((_, exponent)) = DECIMAL.iter().find(|(s, _)| *s == suffix) {
        return Some((Notation::DecimalSi, 1, *exponent));
    }
    let digits = suffix.strip_prefix(['e', 'E'])?;
    let exponent: i32 = digits.parse().ok()?;
    Some((Notation::Exponent, 1, exponent.clamp(-1000, 1000)))
}

/// `whole.fraction × multiplier × 10^exponent` in billionths, rounded up, saturating just above [`CAP`].
fn scale(whole: &str, fraction: &str, multiplier: i128, exponent: i32) -> i128 {
    const OVER: i128 = CAP + 1;
    // The value is digits × 10^power billionths.
    let digits = || whole.bytes().chain(fraction.bytes()).map(|b| i128::from(b - b'0'));
    let fraction_len = i32::try_from(fraction.len()).unwrap_or(i32::MAX);
    let power = exponent.saturating_add(9).saturating_sub(fraction_len);
    // Integer part of the product: as many digits as stay left of the billionths' point.
    let total = whole.len() + fraction.len();
    let dropped = usize::try_from(-i64::from(power)).unwrap_or(0);
    if multiplier == 1 {
        let kept = total.saturating_sub(dropped);
        let mut amount: i128 = 0;
        for digit in digits().take(kept) {
            amount = amount * 10 + digit;
            if amount > CAP {
                return OVER;
            }
        }
        for _ in 0..power.max(0) {
            if amount == 0 {
                break;
            }
            amount *= 10;
            if amount > CAP {
                return OVER;
            }
        }
        return amount + i128::from(digits().skip(kept).any(|d| d != 0));
    }
    // Binary: whole and fraction apart; 18 digits of fraction are exact enough, what follows only rounds up.
    let mut amount: i128 = 0;
    for digit in whole.bytes().map(|b| i128::from(b - b'0')) {
        amount = amount * 10 + digit;
        if amount.saturating_mul(multiplier) > i128::from(i64::MAX) {
            return OVER;
        }
    }
    let mut rest: i128 = 0;
    let mut unit: i128 = 1;
    for digit in fraction.bytes().take(18).map(|b| i128::from(b - b'0')) {
        rest = rest * 10 + digit;
        unit *= 10;
    }
    let more = i128::from(fraction.bytes().skip(18).any(|b| b != b'0'));
    // 10^18 × 2^60 fits, times 10^9 would not: divide the billion into the unit first where there is room.
    let (scaled, unit) = if unit >= NANO { (rest * multiplier, unit / NANO) } else { (rest * multiplier * NANO, unit) };
    amount * multiplier * NANO + div_up(scaled, unit) + more
}

/// Division that rounds away from zero.
fn div_up(n: i128, by: i128) -> i128 {
    let (q, r) = (n / by, n % by);
    if r == 0 { q } else { q + n.signum() }
}

impl Quantity {
    /// A whole number of units (bytes, say) in binary notation: `Quantity::bytes(1 << 30)` prints `1Gi`.
    pub fn bytes(amount: i64) -> Self {
        Self { nanos: i128::from(amount) * NANO, notation: Notation::BinarySi }
    }

    /// A whole number of units in decimal notation.
    pub fn units(amount: i64) -> Self {
        Self { nanos: i128::from(amount) * NANO, notation: Notation::DecimalSi }
    }

    /// The amount in whole units, rounded away from zero.
    pub fn to_i64(self) -> i64 {
        clamp(div_up(self.nanos, NANO))
    }

    /// The amount in thousandths, rounded away from zero, capped at the ends of `i64`.
    pub fn to_milli(self) -> i64 {
        clamp(div_up(self.nanos, NANO / 1000))
    }

    /// The exact amount in billionths.
    pub fn nanos(self) -> i128 {
        self.nanos
    }

    /// How it was written.
    pub fn notation(self) -> Notation {
        self.notation
    }

    /// The sum, in the notation of `self`, capped.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self { nanos: (self.nanos + other.nanos).clamp(-CAP, CAP), ..self }
    }

    /// The difference, in the notation of `self`, capped.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self { nanos: (self.nanos - other.nanos).clamp(-CAP, CAP), ..self }
    }

    /// Whether it is exactly zero.
    pub fn is_zero(self) -> bool {
        self.nanos == 0
    }
}

/// Whether two texts are quantities of the same amount.
pub fn equivalent(a: &str, b: &str) -> bool {
    matches!((a.parse::<Quantity>(), b.parse::<Quantity>()), (Ok(a), Ok(b)) if a == b)
}

fn clamp(n: i128) -> i64 {
    i64::try_from(n).unwrap_or(if n < 0 { i64::MIN } else { i64::MAX })
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl fmt::Display for Quantity {
    /// The canonical form: the largest suffix with which the mantissa is a whole number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        if self.notation == Notation::BinarySi && self.nanos.abs() >= 1024 * NANO {
            let mut mantissa = div_up(self.nanos, NANO);
            let mut suffix = "";
            for (larger, _) in BINARY {
                if mantissa % 1024 != 0 {
                    break;
                }
                mantissa /= 1024;
                suffix = larger;
            }
            return write!(f, "{mantissa}{suffix}");
        }
        let mut mantissa = self.nanos;
        let mut exponent = -9;
        while mantissa % 1000 == 0 && exponent < 18 {
            mantissa /= 1000;
            exponent += 3;
        }
        match self.notation {
            Notation::Exponent if exponent == 0 => write!(f, "{mantissa}"),
            Notation::Exponent => write!(f, "{mantissa}e{exponent}"),
            _ => {
                let suffix = DECIMAL.iter().find(|(_, e)| *e == exponent).map_or("", |(s, _)| s);
                write!(f, "{mantissa}{suffix}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn q(text: &str) -> Quantity {
        text.parse().unwrap_or_else(|e| panic!("{e}"))
    }

    #[test]
    fn canonical_text() {
        for (from, to) in [
            ("0", "0"),
            ("0Gi", "0"),
            ("1Gi", "1Gi"),
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("0.5Gi", "512Mi"),
            ("1Ki", "1Ki"),
            ("100Mi", "100Mi"),
            ("1073741824", "1073741824"),
            ("1000", "1k"),
            ("1500", "1500"),
            ("0.1", "100m"),
            ("1500m", "1500m"),
            ("1000m", "1"),
            ("+.5", "500m"),
            ("5.", "5"),
            ("-1.5", "-1500m"),
            ("12e6", "12e6"),
            ("1E3", "1e3"),
            ("1e-3", "1e-3"),
            ("1E", "1E"),
            ("1n", "1n"),
            ("0.1n", "1n"),
            ("9999999999999999999999", "9223372036854775807"),
            ("8Ei", "9223372036854775807"),
            ("0.5", "500m"),
            ("0.0001Ki", "102400u"),
        ] {
            assert_eq!(q(from).to_string(), to, "{from}");
        }
    }

    #[test]
    fn refused() {
        for bad in ["", "-", ".", "1.2.3", "1ki", "1KB", "1 Gi", "Gi", "0x10", "1e", "1e1.5", "--1", "1_000"] {
            assert!(bad.parse::<Quantity>().is_err(), "{bad}");
        }
    }

    #[test]
    fn compare_and_convert() {
        assert!(equivalent("1", "1000m"));
        assert!(equivalent("1Gi", "1073741824"));
        assert!(!equivalent("1G", "1Gi"));
        assert!(!equivalent("x", "x"));
        assert!(q("1Gi") > q("1G"));
        assert_eq!(q("1500m").to_i64(), 2);
        assert_eq!(q("-1500m").to_i64(), -2);
        assert_eq!(q("1.5").to_milli(), 1500);
        assert_eq!(q("1Ei").to_milli(), i64::MAX);
        assert_eq!(q("1Gi").plus(q("512Mi")).to_string(), "1536Mi");
        assert_eq!(q("1Gi").minus(q("1Gi")).to_string(), "0");
        assert_eq!(Quantity::bytes(1 << 30).to_string(), "1Gi");
    }

    proptest! {
        #[test]
        fn display_reads_back(n in any::<i64>(), e in 0_usize..10) {
            let suffix = ["n", "u", "m", "", "k", "Ki", "Mi", "Gi", "e3", "M"][e];
            let one = q(&format!("{n}{suffix}"));
            prop_assert_eq!(q(&one.to_string()), one);
        }

        #[test]
        fn never_panics(text in "[-+0-9.eEKMGTPinumk]{0,40}") {
            let _ = text.parse::<Quantity>();
        }
    }
}
