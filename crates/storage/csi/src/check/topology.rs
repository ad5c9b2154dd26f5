//! The form of topology keys and values.

use crate::Error;
use crate::page::MAX_MAP;

/// Longest prefix, name and value, in characters.
const MAX: usize = 63;

/// Checks the segments of one topology: a key is a name with an optional domain as prefix, a value is like a name, and
/// no two keys differ in case only.
pub(crate) fn check<'a>(path: &str, segments: impl Iterator<Item = (&'a str, &'a str)>) -> Result<(), Error> {
    let mut sorted: Vec<_> = segments.collect();
    sorted.sort_unstable();
    let bytes: usize = sorted.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > MAX_MAP {
        let message = format!("{path} has {bytes} bytes of keys and values, more than the allowed {MAX_MAP}");
        return Err(Error::invalid_argument(message));
    }
    for (index, (key, value)) in sorted.iter().enumerate() {
        let (prefix, name) = key.split_once('/').map_or((None, *key), |(prefix, name)| (Some(prefix), name));
        let problem = if prefix.is_some_and(|prefix| !is_prefix(prefix)) {
            Some("the prefix has to be a domain name in lower case of at most 63 characters")
        } else if !is_name(name) {
            Some("the name has to be at most 63 letters, digits, '-', '_' or '.', with a letter or digit at both ends")
        } else {
            None
        };
        if let Some(problem) = problem {
            return Err(Error::invalid_argument(format!("{path} has the ill-formed key {key:?}: {problem}")));
        }
        if !is_name(value) {
            return Err(Error::invalid_argument(format!(
                "{path}[{key:?}] has the ill-formed value {value:?}: \
                 it has to be at most 63 letters, digits, '-', '_' or '.', with a letter or digit at both ends"
            )));
        }
        if let Some((other, _)) = sorted[..index].iter().find(|(other, _)| other.eq_ignore_ascii_case(key)) {
            return Err(Error::invalid_argument(format!(
                "{path} has keys that differ in case only: {other:?} and {key:?}"
            )));
        }
    }
    Ok(())
}

fn is_name(text: &str) -> bool {
    text.len() <= MAX
        && [text.bytes().next(), text.bytes().last()]
            .iter()
            .all(|end| end.is_some_and(|end| end.is_ascii_alphanumeric()))
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

fn is_prefix(text: &str) -> bool {
    is_name(text)
        && text
            .split('.')
            .all(|label| is_name(label) && !label.contains('_') && !label.bytes().any(|byte| byte.is_ascii_uppercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_values_have_a_form() {
        let good = [("zone", "Z1"), ("com.example/rack", "r-3_a.b"), ("topology.hostpath.csi/node", "node-1")];
        check("s", good.into_iter()).unwrap();
        let long = "x".repeat(64);
        for (key, value) in [
            ("", "v"),
            ("/zone", "v"),
            ("com.Example/zone", "v"),
            ("a..b/zone", "v"),
            ("zone-", "v"),
            ("a/b/c", "v"),
            (long.as_str(), "v"),
            ("zone", ""),
            ("zone", "a b"),
            ("zone", long.as_str()),
        ] {
            assert!(check("s", [(key, value)].into_iter()).is_err(), "{key:?} = {value:?}");
        }
        let error = check("s", [("Zone", "a"), ("zone", "b")].into_iter()).unwrap_err();
        assert!(error.message().contains("differ in case only"));
    }
}
