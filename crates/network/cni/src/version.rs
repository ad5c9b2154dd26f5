//! Versions of the specification.

use std::fmt;
use std::str::FromStr;

/// A released version of the CNI specification. Ordered by age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// 0.1.0, which a configuration without `cniVersion` means.
    V0_1_0,
    /// 0.2.0, which brought VERSION.
    V0_2_0,
    /// 0.3.0, which brought lists of plugins, interfaces and several addresses.
    V0_3_0,
    /// 0.3.1
    V0_3_1,
    /// 0.4.0, which brought CHECK.
    V0_4_0,
    /// 1.0.0
    V1_0_0,
    /// 1.1.0, which brought GC and STATUS.
    V1_1_0,
}

impl Version {
    /// Every released version, the oldest first.
    pub const ALL: &'static [Self] =
        &[Self::V0_1_0, Self::V0_2_0, Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];

    /// The newest that this crate knows.
    pub const NEWEST: Self = Self::V1_1_0;

    /// As it is written in `cniVersion`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V0_1_0 => "0.1.0",
            Self::V0_2_0 => "0.2.0",
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// The slice of [`Self::ALL`] from `oldest` to `newest`, both included.
    pub(crate) fn range(oldest: Self, newest: Self) -> &'static [Self] {
        Self::ALL.get(oldest as usize..=newest as usize).unwrap_or(&[])
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text is no released version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a released version of the CNI specification")]
pub struct UnknownVersion(String);

impl FromStr for Version {
    type Err = UnknownVersion;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // Nothing said means the first version: configurations had no version then.
        if text.is_empty() {
            return Ok(Self::V0_1_0);
        }
        Self::ALL
            .iter()
            .copied()
            .find(|version| version.as_str() == text)
            .ok_or_else(|| UnknownVersion(text.to_owned()))
    }
}

/// The numbers of any version text, so that versions which are not released yet can be compared; missing parts are 0.
/// The originals do the same. None if it is no version at all.
pub(crate) fn numbers(text: &str) -> Option<[u32; 3]> {
    if text.is_empty() {
        return Some([0, 1, 0]);
    }
    let mut numbers = [0; 3];
    for (index, part) in text.split('.').enumerate() {
        *numbers.get_mut(index)? = part.parse().ok()?;
    }
    Some(numbers)
}

/// `0.1.0, 0.2.0, …`
pub(crate) fn list(versions: &[Version]) -> String {
    let mut text = String::new();
    for version in versions {
        if !text.is_empty() {
            text.push_str(", ");
        }
        text.push_str(version.as_str());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        for version in Version::ALL {
            assert_eq!(version.to_string().parse(), Ok(*version));
        }
        assert_eq!("".parse(), Ok(Version::V0_1_0));
        for text in ["1", "1.0", "v1.0.0", "1.0.0 ", "0.5.0", "1.2.0"] {
            assert!(text.parse::<Version>().is_err(), "{text}");
        }
        assert!(Version::ALL.is_sorted());
    }

    #[test]
    fn numbers_of_any_version() {
        assert_eq!(numbers(""), Some([0, 1, 0]));
        assert_eq!(numbers("1.2"), Some([1, 2, 0]));
        assert_eq!(numbers("9.9.9"), Some([9, 9, 9]));
        for text in ["x", "1.x", "1.2.3.4", "-1", "1..2", "99999999999"] {
            assert_eq!(numbers(text), None, "{text}");
        }
    }

    #[test]
    fn ranges() {
        assert_eq!(Version::range(Version::V0_1_0, Version::NEWEST), Version::ALL);
        assert_eq!(Version::range(Version::V0_4_0, Version::V1_0_0), [Version::V0_4_0, Version::V1_0_0]);
        assert_eq!(Version::range(Version::V1_0_0, Version::V0_4_0), []);
    }
}
