//! The Huffman code of HPACK (RFC 7541, section 5.2 and appendix B).
//!
//! The code is canonical: codes of one length are consecutive and ordered by symbol, shorter ones come first.
//! So the lengths alone are the whole table.

/// The number of symbols: the 256 bytes and the end-of-string mark.
const SYMBOLS: usize = 257;
/// The end-of-string mark; it may appear as padding only.
const END: u16 = 256;
/// The length of the longest code in bits.
const LONGEST: usize = 30;

/// The length in bits of each symbol's code (appendix B).
#[rustfmt::skip]
const LENGTHS: [u8; SYMBOLS] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28,
    28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5,
    5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6,
    6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22,
    23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22,
    21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20,
    22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19,
    21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22,
    22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30,
];

/// The codes of one length.
#[derive(Clone, Copy)]
struct Row {
    /// The code of the first symbol of this length.
    first: u32,
    /// How many symbols have this length.
    count: u32,
    /// Where they start in the list of symbols.
    start: u32,
}

/// The canonical code: the symbols ordered by code, and one row per length.
struct Code {
    symbols: [u16; SYMBOLS],
    rows: [Row; LONGEST + 1],
}

static CODE: Code = build();

const fn build() -> Code {
    let mut code = Code { symbols: [0; SYMBOLS], rows: [Row { first: 0, count: 0, start: 0 }; LONGEST + 1] };
    let mut next = 0_u32;
    let mut start = 0;
    let mut length = 1;
    while length <= LONGEST {
        next <<= 1;
        code.rows[length].first = next;
        code.rows[length].start = start;
        let mut symbol = 0_u16;
        while symbol <= END {
            if LENGTHS[symbol as usize] as usize == length {
                code.symbols[start as usize] = symbol;
                start += 1;
                next += 1;
                code.rows[length].count += 1;
            }
            symbol += 1;
        }
        length += 1;
    }
    code
}

/// Decodes `input` onto the end of `output`; false if it is no valid code.
///
/// Refused: the end-of-string symbol, and padding that is longer than seven bits or not all ones.
#[must_use]
pub(super) fn decode(input: &[u8], output: &mut Vec<u8>) -> bool {
    let mut value = 0_u32;
    let mut length = 0;
    for byte in input {
        for shift in (0..8).rev() {
            value = value << 1 | u32::from(byte >> shift & 1);
            length += 1;
            let row = CODE.rows[length];
            if let Some(offset) = value.checked_sub(row.first)
                && offset < row.count
            {
                let symbol = CODE.symbols[(row.start + offset) as usize];
                let Ok(byte) = u8::try_from(symbol) else {
                    return false;
                };
                output.push(byte);
                value = 0;
                length = 0;
            } else if length == LONGEST {
                // Unreachable for a complete code, but a table mistake must not index past the rows.
                return false;
            }
        }
    }
    length < 8 && value == (1 << length) - 1
}

#[cfg(test)]
pub(super) fn encode(input: &[u8], output: &mut Vec<u8>) {
    let mut bits = 0_u64;
    let mut count = 0;
    let mut put = |symbol: usize, output: &mut Vec<u8>| {
        let length = usize::from(LENGTHS[symbol]);
        let row = CODE.rows[length];
        let symbols = &CODE.symbols[row.start as usize..(row.start + row.count) as usize];
        let offset = symbols.iter().position(|s| usize::from(*s) == symbol).unwrap();
        bits = (bits << length) | (u64::from(row.first) + offset as u64);
        count += length;
        while count >= 8 {
            count -= 8;
            output.push((bits >> count & 0xff) as u8);
        }
        count
    };
    let mut left = 0;
    for byte in input {
        left = put(usize::from(*byte), output);
    }
    if left > 0 {
        // Padding is the beginning of the end-of-string code, all ones.
        let mut rest = Vec::new();
        put(usize::from(END), &mut rest);
        output.push(rest[0]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_is_complete() {
        // Kraft's sum is one: every bit string decodes, so no input can run past the longest row.
        let sum: u64 = LENGTHS.iter().map(|length| 1_u64 << (LONGEST - usize::from(*length))).sum();
        assert_eq!(sum, 1 << LONGEST);
        let last = CODE.rows[LONGEST];
        assert_eq!(last.first + last.count - 1, 0x3fff_ffff);
        assert_eq!(CODE.symbols[SYMBOLS - 1], END);
    }

    #[test]
    fn every_byte_survives() {
        let all: Vec<u8> = (0..=255).collect();
        let mut coded = Vec::new();
        encode(&all, &mut coded);
        let mut plain = Vec::new();
        assert!(decode(&coded, &mut plain));
        assert_eq!(plain, all);
    }

    #[test]
    fn bad_padding_and_the_end_mark_are_refused() {
        let mut out = Vec::new();
        assert!(!decode(&[0xff, 0xff, 0xff, 0xff], &mut out), "end mark");
        assert!(!decode(&[0xff], &mut out), "eight bits of padding");
        assert!(!decode(&[0x00], &mut out), "padding of zeros");
        assert!(decode(&[0x07], &mut out), "five bits of zero are '0', three of padding");
    }
}
