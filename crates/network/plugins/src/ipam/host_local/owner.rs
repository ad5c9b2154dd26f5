//! Who holds an address, as the address files say it.

use std::fmt;

/// Who holds an address: a container's interface, or (very old files) a container.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner {
    id: String,
    ifname: Option<String>,
}

impl Owner {
    /// The holder for an attachment.
    pub fn new(id: &str, ifname: &str) -> Self {
        Self { id: id.to_owned(), ifname: Some(ifname.to_owned()) }
    }

    /// The same container in the form of old files, which do not name the interface.
    #[must_use]
    pub fn without_ifname(&self) -> Self {
        Self { id: self.id.clone(), ifname: None }
    }

    /// The container's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Whether the interface is not named.
    pub fn is_old_form(&self) -> bool {
        self.ifname.is_none()
    }

    /// Reads the content of an address file. None if it names nobody: empty after a crash or a full disk, or not a file
    /// of this kind.
    pub fn parse(content: &[u8]) -> Option<Self> {
        let text = str::from_utf8(content).ok()?.trim();
        let (id, ifname) = match text.split_once('\n') {
            Some((id, ifname)) => (id.strip_suffix('\r').unwrap_or(id), Some(ifname)),
            None => (text, None),
        };
        let word = |word: &str| !word.is_empty() && !word.contains(|c: char| c.is_control() || c.is_whitespace());
        (word(id) && ifname.is_none_or(word)).then(|| Self { id: id.to_owned(), ifname: ifname.map(str::to_owned) })
    }

    /// The content of an address file.
    pub fn content(&self) -> String {
        match &self.ifname {
            Some(ifname) => format!("{}\r\n{ifname}", self.id),
            None => self.id.clone(),
        }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.ifname {
            Some(ifname) => write!(f, "{} ({ifname})", self.id),
            None => f.write_str(&self.id),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents() {
        let owner = Owner::new("abc", "eth0");
        assert_eq!(owner.content().as_bytes(), b"abc\r\neth0");
        for same in ["abc\r\neth0", "abc\r\neth0\n", " abc\neth0 "] {
            assert_eq!(Owner::parse(same.as_bytes()), Some(owner.clone()), "{same:?}");
        }
        assert_eq!(Owner::parse(b"abc"), Some(owner.without_ifname()));
        assert_eq!(Owner::parse(b"abc\r\n"), Some(owner.without_ifname()));
        assert_eq!(owner.without_ifname().content(), "abc");
        for nobody in [&b""[..], b"\0\0\0\0", b"a b", b"a\r\nb\r\nc", b"\xff\xfe", b"abc\r\n\0\0\0\0"] {
            assert_eq!(Owner::parse(nobody), None, "{nobody:?}");
        }
    }
}
