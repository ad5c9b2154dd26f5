//! Records as they stand in log and snapshot files.
//!
//! A record is a frame of mark (4 bytes), payload length (4), CRC-32C over length and payload (4), payload. All
//! numbers are little-endian. The payload has one shape for all kinds: kind (1), number (8), second number (8),
//! key length (2), key, value. The mark lets a reader find the next record behind damage.

use crate::crc::crc32c;

/// First bytes of each record.
pub(crate) const MARK: [u8; 4] = [0xa7, b'r', 0xec, 0x0d];
const FRAME: usize = 12;
const FIXED: usize = 19;
/// Longest key in bytes.
pub(crate) const KEY_LIMIT: usize = u16::MAX as usize;
/// Longest value in bytes.
pub(crate) const VALUE_LIMIT: usize = 256 << 20;
const PAYLOAD_LIMIT: usize = FIXED + KEY_LIMIT + VALUE_LIMIT;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Log: key set to value at revision `number`.
    Put,
    /// Log: key deleted at revision `number`; value is the final one.
    Delete,
    /// Log: floor raised to `number`.
    Compact,
    /// Snapshot: key with value, modified at `number`, created at `second`.
    Entry,
    /// Snapshot: the end; `number` entries came before.
    End,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Put,
            2 => Self::Delete,
            3 => Self::Compact,
            4 => Self::Entry,
            5 => Self::End,
            _ => return None,
        })
    }

    fn byte(self) -> u8 {
        match self {
            Self::Put => 1,
            Self::Delete => 2,
            Self::Compact => 3,
            Self::Entry => 4,
            Self::End => 5,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    pub kind: Kind,
    pub number: u64,
    pub second: u64,
    pub key: &'a str,
    pub value: &'a [u8],
}

impl Record<'_> {
    /// Appends the record to `out`. Key and value must be within their limits, which the store checks.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let key = u16::try_from(self.key.len()).expect("the store checked the key's length");
        let payload = FIXED + self.key.len() + self.value.len();
        let length = u32::try_from(payload).expect("the store checked the value's length");
        out.reserve(FRAME + payload);
        out.extend_from_slice(&MARK);
        out.extend_from_slice(&length.to_le_bytes());
        let sum = out.len();
        out.extend_from_slice(&[0; 4]);
        let body = out.len();
        out.push(self.kind.byte());
        out.extend_from_slice(&self.number.to_le_bytes());
        out.extend_from_slice(&self.second.to_le_bytes());
        out.extend_from_slice(&key.to_le_bytes());
        out.extend_from_slice(self.key.as_bytes());
        out.extend_from_slice(self.value);
        let crc = crc32c(crc32c(0, &length.to_le_bytes()), &out[body..]);
        out[sum..body].copy_from_slice(&crc.to_le_bytes());
    }
}

/// What stands at the beginning of some bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Decoded<'a> {
    /// A record and its length in the file.
    Record(Record<'a>, usize),
    /// Nothing: the bytes are at their end.
    End,
    /// Less than a record, or something else.
    Bad(&'static str),
}

/// Reads the record at the beginning of `bytes`.
pub(crate) fn decode(bytes: &[u8]) -> Decoded<'_> {
    if bytes.is_empty() {
        return Decoded::End;
    }
    let Some((frame, rest)) = bytes.split_at_checked(FRAME) else {
        return Decoded::Bad("the record is cut off");
    };
    if frame[..4] != MARK {
        return Decoded::Bad("no record begins here");
    }
    let length = number32(&frame[4..8]) as usize;
    if !(FIXED..=PAYLOAD_LIMIT).contains(&length) {
        return Decoded::Bad("impossible record length");
    }
    let Some(payload) = rest.get(..length) else {
        return Decoded::Bad("the record is cut off");
    };
    if crc32c(crc32c(0, &frame[4..8]), payload) != number32(&frame[8..12]) {
        return Decoded::Bad("the checksum does not match");
    }
    let (fixed, rest) = payload.split_at(FIXED);
    let Some(kind) = Kind::from_byte(fixed[0]) else {
        return Decoded::Bad("unknown kind of record");
    };
    let key = usize::from(u16::from_le_bytes([fixed[17], fixed[18]]));
    let Some((key, value)) = rest.split_at_checked(key) else {
        return Decoded::Bad("the key is longer than the record");
    };
    let Ok(key) = std::str::from_utf8(key) else {
        return Decoded::Bad("the key is not UTF-8");
    };
    let record = Record { kind, number: number64(&fixed[1..9]), second: number64(&fixed[9..17]), key, value };
    Decoded::Record(record, FRAME + length)
}

/// Length in the file of the record that begins with these [`HEAD`] bytes, checked for plausibility only.
pub(crate) fn length(head: [u8; HEAD]) -> Option<usize> {
    let length = number32(&head[4..8]) as usize;
    (head[..4] == MARK && (FIXED..=PAYLOAD_LIMIT).contains(&length)).then_some(FRAME + length)
}

/// Bytes that [`length()`] looks at.
pub(crate) const HEAD: usize = 8;

/// A little-endian number of exactly four bytes.
pub(crate) fn number32(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(bytes.try_into().expect("four bytes were cut out"))
}

/// A little-endian number of exactly eight bytes.
pub(crate) fn number64(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().expect("eight bytes were cut out"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn round_trip(number: u64, second: u64, key in ".{0,40}", value in proptest::collection::vec(any::<u8>(), 0..200)) {
            let record = Record { kind: Kind::Put, number, second, key: &key, value: &value };
            let mut out = vec![];
            record.encode(&mut out);
            prop_assert_eq!(length(out[..HEAD].try_into().unwrap()), Some(out.len()));
            prop_assert_eq!(decode(&out), Decoded::Record(record, out.len()));
        }

        #[test]
        fn any_changed_bit_is_noticed(bit in 0usize..8 * 60, value in proptest::collection::vec(any::<u8>(), 26)) {
            let mut out = vec![];
            Record { kind: Kind::Delete, number: 7, second: 0, key: "abc", value: &value }.encode(&mut out);
            prop_assert_eq!(out.len(), 60);
            out[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(matches!(decode(&out), Decoded::Bad(_)));
        }

        #[test]
        fn no_input_panics(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = decode(&bytes);
            let marked: Vec<u8> = MARK.iter().copied().chain(bytes).collect();
            let _ = decode(&marked);
        }
    }
}
