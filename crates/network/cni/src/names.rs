//! Which names are allowed (specification, section 2, and what the plugins check), for both sides: a runtime refuses what a
//! plugin would.

/// Longest name of a network interface.
const INTERFACE: usize = 15;

/// What is wrong with the id of a container or the name of a network, as the end of a sentence: it must be a letter or
/// digit, then letters, digits, `_`, `.` and `-`.
pub(crate) fn identifier(name: &str) -> Result<(), &'static str> {
    let mut bytes = name.bytes();
    match bytes.next() {
        None => return Err("is empty"),
        Some(first) if !first.is_ascii_alphanumeric() => return Err("must begin with a letter or digit"),
        Some(_) => {}
    }
    if bytes.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-')) {
        Ok(())
    } else {
        Err("must hold only letters, digits, '_', '.' and '-'")
    }
}

/// What is wrong with the name of an interface, in the same form: the kernel does not take it.
pub(crate) fn interface(name: &str) -> Result<(), &'static str> {
    match name {
        "" => Err("is empty"),
        "." | ".." => Err("must not be . or .."),
        _ if name.len() > INTERFACE => Err("is longer than 15 bytes"),
        _ if name.chars().any(|c| matches!(c, '/' | ':' | '\0') || c.is_whitespace()) => {
            Err("must not contain /, : or white space")
        }
        _ => Ok(()),
    }
}

/// Whether it can be the name of a plugin, which is that of a file in some directory.
pub(crate) fn is_plugin(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && !name.contains(['/', '\0'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_all_kinds() {
        for name in ["a", "0", "a-b_c.d", "A1"] {
            assert_eq!(identifier(name), Ok(()));
        }
        for name in ["", "-a", ".a", "_a", "a b", "a/b", "ä", "aä", "a\n"] {
            assert!(identifier(name).is_err(), "{name:?}");
        }
        for name in ["a", "...", "-", "é", "abcdefghijklmno"] {
            assert_eq!(interface(name), Ok(()));
        }
        for name in ["", ".", "..", "abcdefghijklmnop", "a/b", "a:b", "a b", "a\0", "a\u{a0}b"] {
            assert!(interface(name).is_err(), "{name:?}");
        }
        assert!(is_plugin("bridge") && is_plugin("..."));
        for name in ["", ".", "..", "a/b", "/a", "a\0"] {
            assert!(!is_plugin(name), "{name:?}");
        }
    }
}
