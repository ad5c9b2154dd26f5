//! Which cases run.

/// Patterns for the ids of cases. None lets everything through.
///
/// A pattern is names of the path, one after the other (`bridge`, `DEL`, `bridge/DEL`, `DEL/twice`), or, with a `*` in
/// it, a glob for the whole path (`*/GC/*`). With `!` in front it takes cases away.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    with: Vec<String>,
    without: Vec<String>,
}

impl Filter {
    /// A filter of several patterns; each may itself be a list separated by commas.
    pub fn new<S: AsRef<str>>(patterns: impl IntoIterator<Item = S>) -> Self {
        let mut filter = Self::default();
        for list in patterns {
            for pattern in list.as_ref().split(',').map(str::trim).filter(|pattern| !pattern.is_empty()) {
                match pattern.strip_prefix('!') {
                    Some(rest) => filter.without.push(rest.to_owned()),
                    None => filter.with.push(pattern.to_owned()),
                }
            }
        }
        filter
    }

    /// True if a case of this id is to run.
    pub fn lets_through(&self, id: &str) -> bool {
        (self.with.is_empty() || self.with.iter().any(|pattern| matches(pattern, id)))
            && !self.without.iter().any(|pattern| matches(pattern, id))
    }
}

fn matches(pattern: &str, id: &str) -> bool {
    if pattern.contains('*') {
        return glob(pattern, id);
    }
    let (wanted, names): (Vec<_>, Vec<_>) = (pattern.split('/').collect(), id.split('/').collect());
    names.windows(wanted.len()).any(|window| window == wanted)
}

/// `*` stands for any characters, `/` included.
fn glob(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else { return false };
    let mut last = "";
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
        last = part;
    }
    // What follows the last star must end the text, not only occur in it.
    rest.is_empty() || last.is_empty() || text.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_globs_and_exclusions() {
        let id = "bridge/DEL/twice";
        for pattern in [
            "bridge",
            "DEL",
            "twice",
            "bridge/DEL",
            "DEL/twice",
            "bridge/DEL/twice",
            "*",
            "bridge/*",
            "*/twice",
            "b*DEL*e",
        ] {
            assert!(Filter::new([pattern]).lets_through(id), "{pattern}");
        }
        for pattern in ["brid", "bridge/twice", "DE", "*/DEL", "ptp/*", "x*", "bridge/DEL/twice/more"] {
            assert!(!Filter::new([pattern]).lets_through(id), "{pattern}");
        }
        assert!(Filter::new(["ptp, bridge"]).lets_through(id));
        assert!(!Filter::new(["bridge", "!DEL"]).lets_through(id));
        assert!(!Filter::new(["!*/twice"]).lets_through(id));
        assert!(Filter::new(["!ADD"]).lets_through(id));
        assert!(Filter::new([""]).lets_through(id));
    }
}
