//! User data of nf_tables objects: a list of one-byte type, one-byte length, value, as libnftnl writes it.

/// Comment of a rule, table, chain or set element.
pub const COMMENT: u8 = 0;
/// Byte order of a set's keys.
pub(super) const SET_KEY_BYTE_ORDER: u8 = 0;
/// Byte order of a map's values.
pub(super) const SET_DATA_BYTE_ORDER: u8 = 1;
/// Comment of a set.
pub(super) const SET_COMMENT: u8 = 7;
/// Who owns a rule (ours; the tools skip types that they do not know).
pub const OWNER: u8 = 0xc1;

/// The longest value that one attribute holds, without the NUL that ends a comment.
pub const MAX_COMMENT: usize = 253;

/// The user data that shows as `comment` in `nft list`; what is longer than [`MAX_COMMENT`] bytes is cut.
pub fn comment(text: &str) -> Vec<u8> {
    attribute(COMMENT, &terminated(text))
}

/// One attribute; a value is cut at 255 bytes, the most that its length can say.
pub fn attribute(kind: u8, value: &[u8]) -> Vec<u8> {
    let value = &value[..value.len().min(usize::from(u8::MAX))];
    let mut bytes = Vec::with_capacity(value.len() + 2);
    bytes.push(kind);
    bytes.push(u8::try_from(value.len()).unwrap_or(u8::MAX));
    bytes.extend_from_slice(value);
    bytes
}

/// The text with the NUL that the readers of comments expect, cut at a character boundary.
pub(super) fn terminated(text: &str) -> Vec<u8> {
    let mut end = text.len().min(MAX_COMMENT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let mut bytes = text.as_bytes()[..end].to_vec();
    bytes.push(0);
    bytes
}

/// The value of the first attribute of a type; none too if the data is cut short before it.
pub fn find(mut data: &[u8], kind: u8) -> Option<&[u8]> {
    while let [this, len, rest @ ..] = data {
        let value = rest.get(..usize::from(*len))?;
        if *this == kind {
            return Some(value);
        }
        data = &rest[usize::from(*len)..];
    }
    None
}

/// The text of the first attribute of a type, without its NUL.
pub fn find_text(data: &[u8], kind: u8) -> Option<&str> {
    let value = find(data, kind)?;
    std::str::from_utf8(value.split(|byte| *byte == 0).next().unwrap_or_default()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_as_nft_writes_it() {
        // nft 1.0.6: `add rule … comment "a rule"`.
        assert_eq!(comment("a rule"), b"\x00\x07a rule\0");
        assert_eq!(comment(&"x".repeat(300)).len(), 256);
        assert_eq!(comment(&"é".repeat(300)).len(), 255);
    }

    #[test]
    fn found_among_others_and_never_out_of_bounds() {
        let data = [comment("one"), attribute(OWNER, b"me")].concat();
        assert_eq!(find_text(&data, COMMENT), Some("one"));
        assert_eq!(find(&data, OWNER), Some(&b"me"[..]));
        assert_eq!(find(&data, 9), None);
        for end in 0..data.len() {
            let _ = find(&data[..end], 9);
        }
        assert_eq!(find(&[OWNER, 5, 1], OWNER), None);
    }
}
