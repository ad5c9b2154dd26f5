//! Where in a JSON text a value stands, so that an error can name line and column.

use std::fmt;

/// A place in a text file, counted from 1; columns count characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The line.
    pub line: usize,
    /// The character in that line.
    pub column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {} column {}", self.line, self.column)
    }
}

/// One step on the way to a value.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Step<'a> {
    Key(&'a str),
    Index(usize),
}

/// Place of the value that `path` leads to, or of the last value on the way that there is. The text must be valid JSON
/// (it was parsed before); for any other text the answer is the beginning.
pub(crate) fn locate(text: &[u8], path: &[Step<'_>]) -> Place {
    let mut scanner = Scanner { text, at: 0 };
    let offset = scanner.find(path).unwrap_or(0);
    let before = text.get(..offset).unwrap_or_default();
    let line = before.split(|byte| *byte == b'\n').count();
    let start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
    Place { line, column: String::from_utf8_lossy(&before[start..]).chars().count() + 1 }
}

struct Scanner<'a> {
    text: &'a [u8],
    at: usize,
}

impl Scanner<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        self.space();
        (self.peek()? == byte).then(|| self.at += 1)
    }

    /// Offset of the value; the scanner stands somewhere in it afterwards.
    fn find(&mut self, path: &[Step<'_>]) -> Option<usize> {
        self.space();
        let here = self.at;
        let Some((step, rest)) = path.split_first() else { return Some(here) };
        let mut found = here;
        match (step, self.peek()?) {
            (Step::Key(wanted), b'{') => {
                self.at += 1;
                loop {
                    self.space();
                    if self.peek()? == b'}' {
                        return Some(found);
                    }
                    let name = self.string()?;
                    self.expect(b':')?;
                    if name.eq_ignore_ascii_case(wanted) {
                        // The last of several equal keys wins, as in the parser.
                        found = Scanner { text: self.text, at: self.at }.find(rest)?;
                    }
                    self.skip()?;
                    self.space();
                    if self.peek()? == b',' {
                        self.at += 1;
                    }
                }
            }
            (Step::Index(wanted), b'[') => {
                self.at += 1;
                for index in 0.. {
                    self.space();
                    if self.peek()? == b']' {
                        break;
                    }
                    if index == *wanted {
                        return self.find(rest);
                    }
                    self.skip()?;
                    self.space();
                    if self.peek()? == b',' {
                        self.at += 1;
                    }
                }
                Some(found)
            }
            _ => Some(found),
        }
    }

    fn string(&mut self) -> Option<String> {
        let start = self.at;
        self.expect(b'"')?;
        loop {
            match self.peek()? {
                b'\\' => self.at += 2,
                b'"' => break,
                _ => self.at += 1,
            }
        }
        self.at += 1;
        serde_json::from_slice(&self.text[start..self.at]).ok()
    }

    /// Passes over one value.
    fn skip(&mut self) -> Option<()> {
        self.space();
        let mut depth = 0_usize;
        loop {
            match self.peek()? {
                b'"' => drop(self.string()?),
                b'{' | b'[' => {
                    depth += 1;
                    self.at += 1;
                }
                b'}' | b']' => {
                    depth = depth.checked_sub(1)?;
                    self.at += 1;
                }
                b',' | b':' | b' ' | b'\t' | b'\r' | b'\n' => self.at += 1,
                _ => {
                    while !matches!(self.peek(), None | Some(b',' | b'}' | b']' | b' ' | b'\t' | b'\r' | b'\n')) {
                        self.at += 1;
                    }
                }
            }
            if depth == 0 {
                return Some(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(text: &str, path: &[Step<'_>]) -> (usize, usize) {
        let place = locate(text.as_bytes(), path);
        (place.line, place.column)
    }

    #[test]
    fn values_are_found_by_key_and_index() {
        let text = "{\n  \"näme\": \"x\\\"y\", \"a\": [1, {\"b\": true},\n   {\"type\": 5}],\n  \"A\": 7 }";
        assert_eq!(place(text, &[]), (1, 1));
        assert_eq!(place(text, &[Step::Key("näme")]), (2, 11));
        assert_eq!(place(text, &[Step::Key("a")]), (4, 8), "the last of several wins");
        let text = text.replace("\"A\"", "\"z\"");
        assert_eq!(place(&text, &[Step::Key("a"), Step::Index(1), Step::Key("b")]), (2, 34));
        assert_eq!(place(&text, &[Step::Key("a"), Step::Index(2), Step::Key("type")]), (3, 13));
        assert_eq!(place(&text, &[Step::Key("z")]), (4, 8));
    }

    #[test]
    fn what_is_missing_is_where_it_should_be() {
        let text = "{\"plugins\": [ {\"name\": 1} ]}";
        assert_eq!(place(text, &[Step::Key("plugins"), Step::Index(0), Step::Key("type")]), (1, 15));
        assert_eq!(place(text, &[Step::Key("nothing")]), (1, 1));
        assert_eq!(place(text, &[Step::Key("plugins"), Step::Index(4)]), (1, 13));
    }

    #[test]
    fn no_text_makes_it_fail() {
        for text in ["", "{", "{\"a", "{\"a\":", "[[[", "{\"a\":}", "\"\\", "]]", "{\"a\" 1}", "\u{1f600}"] {
            let _ = place(text, &[Step::Key("a"), Step::Index(0)]);
            let _ = place(text, &[Step::Index(0), Step::Key("a")]);
        }
    }
}
