//! Header blocks (RFC 7541): decoded with a dynamic table of our own, re-encoded without one.

use std::collections::VecDeque;

use super::huffman;

/// The table size that a client may use as long as the server does not announce another one
/// (RFC 9113, section 6.5.2). Our servers announce none.
const TABLE_MAX: usize = 4096;
/// What an entry costs beside its name and value (RFC 7541, section 4.1).
const ENTRY_OVERHEAD: usize = 32;

/// The static table (RFC 7541, appendix A); index 1 is the first entry.
#[rustfmt::skip]
const STATIC: [(&str, &str); 61] = [
    (":authority", ""), (":method", "GET"), (":method", "POST"), (":path", "/"), (":path", "/index.html"),
    (":scheme", "http"), (":scheme", "https"), (":status", "200"), (":status", "204"), (":status", "206"),
    (":status", "304"), (":status", "400"), (":status", "404"), (":status", "500"), ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"), ("accept-language", ""), ("accept-ranges", ""), ("accept", ""),
    ("access-control-allow-origin", ""), ("age", ""), ("allow", ""), ("authorization", ""), ("cache-control", ""),
    ("content-disposition", ""), ("content-encoding", ""), ("content-language", ""), ("content-length", ""),
    ("content-location", ""), ("content-range", ""), ("content-type", ""), ("cookie", ""), ("date", ""), ("etag", ""),
    ("expect", ""), ("expires", ""), ("from", ""), ("host", ""), ("if-match", ""), ("if-modified-since", ""),
    ("if-none-match", ""), ("if-range", ""), ("if-unmodified-since", ""), ("last-modified", ""), ("link", ""),
    ("location", ""), ("max-forwards", ""), ("proxy-authenticate", ""), ("proxy-authorization", ""), ("range", ""),
    ("referer", ""), ("refresh", ""), ("retry-after", ""), ("server", ""), ("set-cookie", ""),
    ("strict-transport-security", ""), ("transfer-encoding", ""), ("user-agent", ""), ("vary", ""), ("via", ""),
    ("www-authenticate", ""),
];

/// The block breaks the rules of RFC 7541, or is larger than the limit given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

/// One header field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Field<'a> {
    pub(super) name: &'a [u8],
    pub(super) value: &'a [u8],
    /// The sender asks that it never be indexed, for instance because it is a secret.
    pub(super) never_indexed: bool,
}

/// An entry of the dynamic table.
struct Entry {
    name: Box<[u8]>,
    value: Box<[u8]>,
}

impl Entry {
    fn size(&self) -> usize {
        self.name.len() + self.value.len() + ENTRY_OVERHEAD
    }
}

/// The decoder of one direction of a connection.
///
/// After an error its table no longer matches the sender's: it must not be used again.
pub(super) struct Decoder {
    /// The newest entry first, as indices count.
    entries: VecDeque<Entry>,
    /// The sum of the entries' sizes, never above `limit`.
    size: usize,
    /// The size that the sender chose, at most `TABLE_MAX`.
    limit: usize,
    /// The field being decoded; kept to reuse the memory.
    name: Vec<u8>,
    value: Vec<u8>,
}

impl Decoder {
    pub(super) fn new() -> Self {
        Self { entries: VecDeque::new(), size: 0, limit: TABLE_MAX, name: Vec::new(), value: Vec::new() }
    }

    /// Decodes one complete header block and hands each field to `each`, in order.
    ///
    /// `limit` bounds the sum of all names, values and 32 bytes a field, as `SETTINGS_MAX_HEADER_LIST_SIZE`
    /// counts: a few bytes of indices could otherwise stand for megabytes.
    pub(super) fn decode(
        &mut self,
        block: &[u8],
        limit: usize,
        mut each: impl FnMut(Field<'_>),
    ) -> Result<(), Malformed> {
        let mut input = Input(block);
        let mut total = 0;
        while let Some(&first) = input.0.first() {
            let (indexed, never_indexed) = if first & 0x80 != 0 {
                let index = input.integer(7)?;
                self.load(index, true)?;
                (false, false)
            } else if first & 0xc0 == 0x40 {
                self.literal(&mut input, 6)?;
                (true, false)
            } else if first & 0xe0 == 0x20 {
                // A size update may stand only before the first field (section 4.2).
                let size = input.integer(5)?;
                if total > 0 || size > TABLE_MAX {
                    return Err(Malformed);
                }
                self.limit = size;
                self.evict(0);
                continue;
            } else {
                self.literal(&mut input, 4)?;
                (false, first & 0x10 != 0)
            };
            total += self.name.len() + self.value.len() + ENTRY_OVERHEAD;
            if total > limit {
                return Err(Malformed);
            }
            each(Field { name: &self.name, value: &self.value, never_indexed });
            if indexed {
                self.insert();
            }
        }
        Ok(())
    }

    /// Reads a literal field whose name index has a prefix of `prefix` bits.
    fn literal(&mut self, input: &mut Input<'_>, prefix: u32) -> Result<(), Malformed> {
        match input.integer(prefix)? {
            0 => input.string(&mut self.name)?,
            index => self.load(index, false)?,
        }
        input.string(&mut self.value)
    }

    /// Loads the name, and with `value` the value too, of a table entry.
    fn load(&mut self, index: usize, value: bool) -> Result<(), Malformed> {
        let at = index.checked_sub(1).ok_or(Malformed)?;
        let (known_name, known_value): (&[u8], &[u8]) = if let Some((name, value)) = STATIC.get(at) {
            (name.as_bytes(), value.as_bytes())
        } else {
            let entry = self.entries.get(at - STATIC.len()).ok_or(Malformed)?;
            (&entry.name, &entry.value)
        };
        self.name.clear();
        self.name.extend_from_slice(known_name);
        if value {
            self.value.clear();
            self.value.extend_from_slice(known_value);
        }
        Ok(())
    }

    /// Puts the current field into the table; one larger than the table empties it (section 4.4).
    fn insert(&mut self) {
        let size = self.name.len() + self.value.len() + ENTRY_OVERHEAD;
        self.evict(size);
        if size <= self.limit {
            self.size += size;
            self.entries.push_front(Entry { name: self.name.as_slice().into(), value: self.value.as_slice().into() });
        }
    }

    /// Drops the oldest entries until `room` bytes fit.
    fn evict(&mut self, room: usize) {
        while self.size + room > self.limit {
            let Some(entry) = self.entries.pop_back() else {
                return;
            };
            self.size -= entry.size();
        }
    }
}

/// What is left of a header block.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> Result<u8, Malformed> {
        let (first, rest) = self.0.split_first().ok_or(Malformed)?;
        self.0 = rest;
        Ok(*first)
    }

    /// Reads an integer with a prefix of `prefix` bits (section 5.1); more than 28 further bits are refused.
    fn integer(&mut self, prefix: u32) -> Result<usize, Malformed> {
        let mask = (1_usize << prefix) - 1;
        let mut value = usize::from(self.byte()?) & mask;
        if value < mask {
            return Ok(value);
        }
        for shift in [0, 7, 14, 21] {
            let byte = self.byte()?;
            value += usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Malformed)
    }

    /// Reads a string (section 5.2) into `output`.
    fn string(&mut self, output: &mut Vec<u8>) -> Result<(), Malformed> {
        let coded = self.0.first().ok_or(Malformed)? & 0x80 != 0;
        let length = self.integer(7)?;
        let (text, rest): (&'a [u8], &'a [u8]) = self.0.split_at_checked(length).ok_or(Malformed)?;
        self.0 = rest;
        output.clear();
        if coded {
            if !huffman::decode(text, output) {
                return Err(Malformed);
            }
        } else {
            output.extend_from_slice(text);
        }
        Ok(())
    }
}

/// Writes `field` as a literal with a literal name, which leaves every dynamic table as it is.
pub(super) fn encode(field: Field<'_>, output: &mut Vec<u8>) {
    output.push(if field.never_indexed { 0x10 } else { 0x00 });
    for text in [field.name, field.value] {
        integer(text.len(), 7, 0, output);
        output.extend_from_slice(text);
    }
}

/// Writes an integer with a prefix of `prefix` bits below the bits of `pattern`.
fn integer(mut value: usize, prefix: u32, pattern: u8, output: &mut Vec<u8>) {
    let mask = (1_usize << prefix) - 1;
    if value < mask {
        output.push(pattern | low_bits(value));
        return;
    }
    output.push(pattern | low_bits(mask));
    value -= mask;
    while value >= 0x80 {
        output.push(0x80 | low_bits(value & 0x7f));
        value >>= 7;
    }
    output.push(low_bits(value));
}

fn low_bits(value: usize) -> u8 {
    value.to_le_bytes()[0]
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(in crate::authority) type Fields = Vec<(Vec<u8>, Vec<u8>)>;

    pub(in crate::authority) fn fields(decoder: &mut Decoder, block: &[u8]) -> Result<Fields, Malformed> {
        let mut out = Vec::new();
        decoder.decode(block, 1 << 20, |f| out.push((f.name.to_vec(), f.value.to_vec())))?;
        Ok(out)
    }

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
    }

    fn texts(list: &[(&str, &str)]) -> Fields {
        list.iter().map(|(n, v)| (n.as_bytes().to_vec(), v.as_bytes().to_vec())).collect()
    }

    #[test]
    fn integers_of_appendix_c_1() {
        for (bytes, prefix, value) in [("0a", 5, 10), ("1f9a0a", 5, 1337), ("2a", 8, 42)] {
            let bytes = hex(bytes);
            assert_eq!(Input(&bytes).integer(prefix), Ok(value));
            let mut out = Vec::new();
            integer(value, prefix, 0, &mut out);
            assert_eq!(out, bytes);
        }
        assert_eq!(Input(&[0xff; 9]).integer(7), Err(Malformed), "endless");
        assert_eq!(Input(&[0x7f]).integer(7), Err(Malformed), "cut short");
    }

    #[test]
    fn single_fields_of_appendix_c_2() {
        for (block, field, kept, never) in [
            (
                "400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572",
                ("custom-key", "custom-header"),
                55,
                false,
            ),
            ("040c 2f73 616d 706c 652f 7061 7468", (":path", "/sample/path"), 0, false),
            ("1008 7061 7373 776f 7264 0673 6563 7265 74", ("password", "secret"), 0, true),
            ("82", (":method", "GET"), 0, false),
        ] {
            let mut decoder = Decoder::new();
            let mut seen = Vec::new();
            decoder
                .decode(&hex(block), 1000, |f| seen.push((f.name.to_vec(), f.value.to_vec(), f.never_indexed)))
                .unwrap();
            assert_eq!(seen, [(field.0.as_bytes().to_vec(), field.1.as_bytes().to_vec(), never)]);
            assert_eq!(decoder.size, kept);
        }
    }

    /// The three requests of appendices C.3 and C.4, and the table size after each.
    #[test]
    fn requests_of_appendix_c_3_and_c_4() {
        let base = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "www.example.com")];
        let mut second = base.to_vec();
        second.push(("cache-control", "no-cache"));
        let third = [
            (":method", "GET"),
            (":scheme", "https"),
            (":path", "/index.html"),
            (":authority", "www.example.com"),
            ("custom-key", "custom-value"),
        ];
        let plain = [
            "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
            "8286 84be 5808 6e6f 2d63 6163 6865",
            "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
        ];
        let coded = [
            "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
            "8286 84be 5886 a8eb 1064 9cbf",
            "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
        ];
        for blocks in [plain, coded] {
            let mut decoder = Decoder::new();
            for (block, (want, size)) in blocks.iter().zip([(&base[..], 57), (&second[..], 110), (&third[..], 164)]) {
                assert_eq!(fields(&mut decoder, &hex(block)).unwrap(), texts(want));
                assert_eq!(decoder.size, size);
            }
        }
    }

    /// The three responses of appendices C.5 and C.6: a table of 256 bytes, so that entries are evicted.
    #[test]
    fn responses_of_appendix_c_5_and_c_6() {
        let first = [
            (":status", "302"),
            ("cache-control", "private"),
            ("date", "Mon, 21 Oct 2013 20:13:21 GMT"),
            ("location", "https://www.example.com"),
        ];
        let mut second = first;
        second[0].1 = "307";
        let third = [
            (":status", "200"),
            ("cache-control", "private"),
            ("date", "Mon, 21 Oct 2013 20:13:22 GMT"),
            ("location", "https://www.example.com"),
            ("content-encoding", "gzip"),
            ("set-cookie", "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1"),
        ];
        let plain = [
            "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3120 \
             474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
            "4803 3330 37c1 c0bf",
            "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d 54c0 5a04 677a 6970 7738 \
             666f 6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049 5541 5851 5745 4f49 553b 206d 6178 2d61 6765 3d33 \
             3630 303b 2076 6572 7369 6f6e 3d31",
        ];
        let coded = [
            "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d 29ad 1718 \
             63c7 8f0b 97c8 e9ae 82ae 43d3",
            "4883 640e ffc1 c0bf",
            "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 821d d7f2 e6c7 \
             b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed 4ee5 b106 3d50 07",
        ];
        for blocks in [plain, coded] {
            let mut decoder = Decoder::new();
            decoder.limit = 256;
            for (block, (want, size)) in blocks.iter().zip([(&first[..], 222), (&second[..], 222), (&third[..], 215)]) {
                assert_eq!(fields(&mut decoder, &hex(block)).unwrap(), texts(want));
                assert_eq!(decoder.size, size);
            }
        }
    }

    #[test]
    fn size_updates_evict_and_are_bounded() {
        let mut decoder = Decoder::new();
        fields(&mut decoder, &hex("4001 6101 62")).unwrap();
        assert_eq!(decoder.entries.len(), 1);
        // To zero and back to 4096, then the entry is gone.
        assert_eq!(fields(&mut decoder, &hex("20 3fe11f")).unwrap(), []);
        assert_eq!((decoder.entries.len(), decoder.limit), (0, 4096));
        assert_eq!(fields(&mut decoder, &hex("be")), Err(Malformed));
        assert_eq!(fields(&mut Decoder::new(), &hex("3fe21f")), Err(Malformed), "4097");
        assert_eq!(fields(&mut Decoder::new(), &hex("8220")), Err(Malformed), "after a field");
    }

    #[test]
    fn a_few_indices_cannot_stand_for_megabytes() {
        let mut decoder = Decoder::new();
        let mut block = hex("4001 61 7f 8119");
        block.resize(block.len() + 3328, b'x');
        block.resize(block.len() + 16_000, 0xbe);
        assert_eq!(decoder.decode(&block, 64 << 10, |_| ()), Err(Malformed));
    }

    #[test]
    fn malformed_blocks_are_refused() {
        for block in ["80", "be", "40", "4001", "400161", "40016105", "00 85 ff", "ffffffffffffffff", "0f"] {
            assert_eq!(fields(&mut Decoder::new(), &hex(block)), Err(Malformed), "{block}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(blocks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..8)) {
            let mut decoder = Decoder::new();
            for block in blocks {
                if fields(&mut decoder, &block).is_err() {
                    break;
                }
                prop_assert!(decoder.size <= TABLE_MAX);
            }
        }

        #[test]
        fn what_is_encoded_decodes(list in prop::collection::vec(
            (prop::collection::vec(any::<u8>(), 0..300), prop::collection::vec(any::<u8>(), 0..300)), 0..20)) {
            let mut block = Vec::new();
            for (name, value) in &list {
                encode(Field { name, value, never_indexed: false }, &mut block);
            }
            let mut decoder = Decoder::new();
            prop_assert_eq!(fields(&mut decoder, &block).unwrap(), list);
            prop_assert_eq!(decoder.size, 0);
        }
    }
}
