//! Names, label keys and values, and what `generateName` makes of a prefix.
//!
//! The rules are those of RFC 1123 and RFC 1035 as Kubernetes narrows them. Every check answers with the first rule
//! that is broken, in words that fit after `Invalid value: "x": `.

use std::fmt;

/// The longest DNS-1123 subdomain, in bytes: most object names, and the prefix of a label key.
pub const SUBDOMAIN_MAX: usize = 253;
/// The longest DNS label, label value, and name part of a label key, in bytes.
pub const LABEL_MAX: usize = 63;
/// The most that all annotation keys and values of one object may take together, in bytes.
pub const ANNOTATIONS_MAX: usize = 256 * 1024;
/// The number of random characters that [`generate`] appends.
pub const SUFFIX_LEN: usize = 5;
/// The longest prefix that [`generate`] keeps, so that the name fits a DNS label.
pub const PREFIX_MAX: usize = LABEL_MAX - SUFFIX_LEN;

/// The characters of generated suffixes: no vowels and no look-alikes, so that no words are formed.
const SUFFIX_ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing was given.
    #[error("must not be empty")]
    Empty,
    /// Longer than the format allows (bytes).
    #[error("must be no more than {0} bytes")]
    TooLong(usize),
    /// Characters or their places do not fit the format.
    #[error("{0}")]
    Format(Format),
    /// A path segment that would be misread as a path.
    #[error("may not {0}")]
    Segment(&'static str),
    /// The part of a label key before the slash is broken.
    #[error("prefix part {0}")]
    Prefix(Box<NameError>),
    /// The part of a label key after the slash is broken.
    #[error("name part {0}")]
    Part(Box<NameError>),
    /// A label key with more than one slash.
    #[error("a qualified name has an optional DNS prefix and a name, separated by one '/'")]
    Slashes,
}

/// The formats a name can be asked to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Dot-separated DNS-1123 labels.
    Subdomain,
    /// One DNS-1123 label.
    Label,
    /// One DNS-1035 label: starts with a letter.
    Label1035,
    /// The name part of a label key.
    Qualified,
    /// A label value.
    LabelValue,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Subdomain => {
                "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', \
                 and each part must start and end with an alphanumeric character (such as 'example.com')"
            }
            Self::Label => {
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', \
                 and must start and end with an alphanumeric character (such as 'my-name' or '123-abc')"
            }
            Self::Label1035 => {
                "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with a letter, \
                 and end with an alphanumeric character (such as 'my-name' or 'abc-123')"
            }
            Self::Qualified => {
                "must consist of alphanumeric characters, '-', '_' or '.', \
                 and must start and end with an alphanumeric character (such as 'MyName' or 'my.name')"
            }
            Self::LabelValue => {
                "a valid label value is empty or consists of alphanumeric characters, '-', '_' or '.', \
                 and starts and ends with an alphanumeric character (such as 'MyValue' or '12345')"
            }
        })
    }
}

fn lower_alnum(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

fn is_label(s: &str) -> bool {
    let b = s.as_bytes();
    let (Some(&first), Some(&last)) = (b.first(), b.last()) else {
        return false;
    };
    lower_alnum(first) && lower_alnum(last) && b.iter().all(|&c| lower_alnum(c) || c == b'-')
}

fn is_qualified(s: &str) -> bool {
    let b = s.as_bytes();
    let (Some(first), Some(last)) = (b.first(), b.last()) else {
        return false;
    };
    first.is_ascii_alphanumeric()
        && last.is_ascii_alphanumeric()
        && b.iter().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.'))
}

/// Checks a DNS-1123 subdomain of at most [`SUBDOMAIN_MAX`] bytes: the name of most objects.
pub fn dns1123_subdomain(name: &str) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > SUBDOMAIN_MAX {
        return Err(NameError::TooLong(SUBDOMAIN_MAX));
    }
    if name.split('.').all(is_label) { Ok(()) } else { Err(NameError::Format(Format::Subdomain)) }
}

/// Checks a DNS-1123 label of at most [`LABEL_MAX`] bytes: namespaces, container and port names.
pub fn dns1123_label(name: &str) -> Result<(), NameError> {
    label(name, is_label(name), Format::Label)
}

/// Checks a DNS-1035 label of at most [`LABEL_MAX`] bytes: the names of Services.
pub fn dns1035_label(name: &str) -> Result<(), NameError> {
    let starts_with_letter = name.as_bytes().first().is_some_and(u8::is_ascii_lowercase);
    label(name, is_label(name) && starts_with_letter, Format::Label1035)
}

fn label(name: &str, well_formed: bool, format: Format) -> Result<(), NameError> {
    if name.is_empty() {
        Err(NameError::Empty)
    } else if name.len() > LABEL_MAX {
        Err(NameError::TooLong(LABEL_MAX))
    } else if well_formed {
        Ok(())
    } else {
        Err(NameError::Format(format))
    }
}

/// Checks a name that only has to be usable as one segment of a URL path: the RBAC kinds.
pub fn path_segment(name: &str) -> Result<(), NameError> {
    match name {
        "" => Err(NameError::Empty),
        "." => Err(NameError::Segment("be '.'")),
        ".." => Err(NameError::Segment("be '..'")),
        _ if name.contains('/') => Err(NameError::Segment("contain '/'")),
        _ if name.contains('%') => Err(NameError::Segment("contain '%'")),
        _ => Ok(()),
    }
}

/// Checks a qualified name such as a label or annotation key or a finalizer: `[dns-subdomain/]name`.
pub fn label_key(key: &str) -> Result<(), NameError> {
    let name = match key.split_once('/') {
        Some((_, name)) if name.contains('/') => return Err(NameError::Slashes),
        Some((prefix, name)) => {
            dns1123_subdomain(prefix).map_err(|e| NameError::Prefix(Box::new(e)))?;
            name
        }
        None => key,
    };
    label(name, is_qualified(name), Format::Qualified).map_err(|e| NameError::Part(Box::new(e)))
}

/// Checks a label value: empty, or at most [`LABEL_MAX`] bytes of the qualified-name characters.
pub fn label_value(value: &str) -> Result<(), NameError> {
    if value.is_empty() {
        return Ok(());
    }
    label(value, is_qualified(value), Format::LabelValue)
}

/// The bytes that annotations count against [`ANNOTATIONS_MAX`]: keys and values together.
pub fn annotations_size<'a>(annotations: impl IntoIterator<Item = (&'a str, &'a str)>) -> usize {
    annotations.into_iter().map(|(k, v)| k.len() + v.len()).sum()
}

/// Makes a name from a `generateName` prefix: the prefix cut to [`PREFIX_MAX`] bytes (on a character boundary) and
/// [`SUFFIX_LEN`] characters chosen by `random`.
///
/// The five bytes should be uniformly random; the modulo bias over 27 characters is harmless here, since a collision
/// is answered by the caller's retry.
pub fn generate(prefix: &str, random: [u8; SUFFIX_LEN]) -> String {
    let cut = (0..=prefix.len().min(PREFIX_MAX)).rev().find(|&i| prefix.is_char_boundary(i)).unwrap_or_default();
    let mut name = String::with_capacity(cut + SUFFIX_LEN);
    name.push_str(&prefix[..cut]);
    name.extend(random.iter().map(|&b| char::from(SUFFIX_ALPHABET[usize::from(b) % SUFFIX_ALPHABET.len()])));
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subdomains() {
        for ok in ["a", "a.b", "0-0.example.com", "hostpath.csi.k8s.io", &"a".repeat(253)] {
            assert_eq!(dns1123_subdomain(ok), Ok(()), "{ok}");
        }
        for bad in ["A", "a_b", ".a", "a.", "a..b", "-a", "a-", "a.-b", "é"] {
            assert_eq!(dns1123_subdomain(bad), Err(NameError::Format(Format::Subdomain)), "{bad}");
        }
        assert_eq!(dns1123_subdomain(""), Err(NameError::Empty));
        assert_eq!(dns1123_subdomain(&"a".repeat(254)), Err(NameError::TooLong(253)));
    }

    #[test]
    fn labels() {
        assert_eq!(dns1123_label("1-a"), Ok(()));
        assert!(dns1123_label("a.b").is_err());
        assert_eq!(dns1123_label(&"a".repeat(64)), Err(NameError::TooLong(63)));
        assert_eq!(dns1035_label("a1"), Ok(()));
        assert_eq!(dns1035_label("1a"), Err(NameError::Format(Format::Label1035)));
    }

    #[test]
    fn segments() {
        assert_eq!(path_segment("system:node:A"), Ok(()));
        assert_eq!(path_segment("a/b").expect_err("slash").to_string(), "may not contain '/'");
        assert!(path_segment("..").is_err());
        assert!(path_segment("a%2f").is_err());
    }

    #[test]
    fn label_keys_and_values() {
        for ok in ["a", "app.kubernetes.io/name", "A_b.c-D", "pv.kubernetes.io/provisioned-by"] {
            assert_eq!(label_key(ok), Ok(()), "{ok}");
        }
        for bad in ["", "/a", "a/", "a/b/c", "Ex.com/a", "-a", "a b"] {
            assert!(label_key(bad).is_err(), "{bad}");
        }
        assert_eq!(label_value(""), Ok(()));
        assert_eq!(label_value("v1.2_3-x"), Ok(()));
        assert!(label_value("a b").is_err());
        assert_eq!(label_value(&"x".repeat(64)), Err(NameError::TooLong(63)));
    }

    #[test]
    fn generated_names() {
        assert_eq!(generate("job-", [0, 1, 26, 27, 255]), "job-bc9bq");
        let long = generate(&"x".repeat(80), [0; 5]);
        assert_eq!(long.len(), 63);
        assert_eq!(generate(&"é".repeat(40), [0; 5]).len(), 63);
    }

    #[test]
    fn annotation_bytes() {
        assert_eq!(annotations_size([("a", "bcd"), ("é", "")]), 6);
    }
}
