use proptest::prelude::*;

use super::hpack::tests::{Fields, fields};
use super::*;

/// The frames of a stream after its preface.
fn frames(mut bytes: &[u8]) -> Vec<(Head, Vec<u8>)> {
    let mut out = Vec::new();
    while !bytes.is_empty() {
        let head = Head::parse(bytes);
        let (payload, rest) = bytes[HEAD..].split_at(head.length);
        out.push((head, payload.to_vec()));
        bytes = rest;
    }
    out
}

/// The header lists of a stream, decoded with one table, and the frames that are no header frames.
fn read(stream: &[u8]) -> (Vec<Fields>, Vec<(u8, Vec<u8>)>) {
    let mut decoder = Decoder::new();
    let (mut lists, mut others, mut block) = (Vec::new(), Vec::new(), Vec::new());
    for (head, payload) in frames(stream.strip_prefix(PREFACE).expect("a preface")) {
        match head.kind {
            HEADERS => block = open(head, &payload).unwrap().block,
            CONTINUATION => block.extend(payload),
            kind => {
                others.push((kind, payload));
                continue;
            }
        }
        if head.flags & END_HEADERS != 0 {
            lists.push(fields(&mut decoder, &block).unwrap());
        }
    }
    (lists, others)
}

/// Filters a stream that arrives in pieces of `cut` bytes.
fn filtered(stream: &[u8], cut: usize) -> Vec<u8> {
    let mut rewriter = Rewriter::new();
    let mut out = Vec::new();
    for piece in stream.chunks(cut) {
        rewriter.push(piece, &mut out);
    }
    rewriter.finish(&mut out);
    out
}

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let head = Head { length: payload.len(), kind, flags, stream: [0, 0, 0, stream] };
    head.write(&mut out);
    out.extend_from_slice(payload);
    out
}

fn stream(frames: &[Vec<u8>]) -> Vec<u8> {
    [PREFACE.to_vec(), frames.concat()].concat()
}

/// `:authority` with this value, and put into the dynamic table.
fn authority(value: &[u8]) -> Vec<u8> {
    let mut block = vec![0x41, u8::try_from(value.len()).unwrap()];
    block.extend_from_slice(value);
    block
}

#[test]
fn recorded_clients_come_out_with_localhost_and_nothing_else_changed() {
    for (name, bytes, sent) in [
        ("raw", &include_bytes!("../../tests/data/grpc-go-raw-path.bin")[..], "/tmp/csi.sock"),
        ("escaped", include_bytes!("../../tests/data/grpc-go-escaped-path.bin"), "%2Ftmp%2Fcsi.sock"),
        ("unix", include_bytes!("../../tests/data/grpc-go-unix-target.bin"), "localhost"),
    ] {
        let (mut before, others) = read(bytes);
        assert_eq!(before.len(), 3, "{name}");
        for list in &mut before {
            let authority = list.iter_mut().find(|(name, _)| name == b":authority").expect("an authority");
            assert_eq!(authority.1, sent.as_bytes(), "{name}");
            authority.1 = LOCALHOST.to_vec();
        }
        for cut in [1, 2, 7, 64, 4096] {
            let (after, other) = read(&filtered(bytes, cut));
            assert_eq!(after, before, "{name} in pieces of {cut}");
            assert_eq!(other, others, "{name} in pieces of {cut}");
        }
    }
}

#[test]
fn only_what_h2_refuses_is_rewritten() {
    for (sent, seen) in [
        ("localhost", "localhost"),
        ("example.com:8443", "example.com:8443"),
        ("[::1]:80", "[::1]:80"),
        ("csi", "csi"),
        ("", "localhost"),
        ("/run/csi.sock", "localhost"),
        ("%2Frun%2Fcsi.sock", "localhost"),
        ("//run//csi.sock", "localhost"),
        ("a b", "localhost"),
        ("unix:/x", "localhost"),
    ] {
        let input = stream(&[frame(HEADERS, END_HEADERS, 1, &authority(sent.as_bytes()))]);
        let (lists, _) = read(&filtered(&input, 5));
        assert_eq!(lists[0][0].1, seen.as_bytes(), "{sent:?}");
    }
}

#[test]
fn padding_priority_and_continuation_are_understood() {
    let block = [authority(b"/a"), vec![0x82, 0x86]].concat();
    let (first, rest) = block.split_at(3);
    let priority = [0x80, 0, 0, 0, 16];
    let payload = [&[2][..], &priority, first, &[0, 0]].concat();
    let input = stream(&[
        frame(HEADERS, PADDED | PRIORITY | 1, 1, &payload),
        frame(CONTINUATION, 0, 1, &[]),
        frame(CONTINUATION, END_HEADERS, 1, rest),
        frame(0, 1, 1, b"data"),
        // Refers to what the first block put into the table.
        frame(HEADERS, END_HEADERS, 3, &[0xbe]),
    ]);
    for cut in [1, 3, 1000] {
        let out = filtered(&input, cut);
        let (lists, others) = read(&out);
        let localhost = (b":authority".to_vec(), LOCALHOST.to_vec());
        assert_eq!(lists[0][0], localhost);
        assert_eq!(lists[0].len(), 3);
        assert_eq!(lists[1], [localhost]);
        assert_eq!(others, [(0, b"data".to_vec())]);
        let (head, payload) = &frames(&out[PREFACE.len()..])[0];
        assert_eq!(head.flags, END_HEADERS | PRIORITY | 1, "the end of the stream and the priority stay");
        assert_eq!(payload[..5], priority);
    }
}

#[test]
fn a_block_that_grows_is_split() {
    // 1.6 times longer without Huffman, and without the table.
    let mut value = Vec::new();
    huffman::encode(&vec![b'a'; 20_000], &mut value);
    let mut block = authority(b"/a");
    block.extend([0x00, 1, b'x', 0xff]);
    let mut length = value.len() - 127;
    while length >= 128 {
        block.push(0x80 | u8::try_from(length & 0x7f).unwrap());
        length >>= 7;
    }
    block.push(u8::try_from(length).unwrap());
    block.extend(value);
    assert!(block.len() < FRAME_MAX);
    let out = filtered(&stream(&[frame(HEADERS, END_HEADERS | 1, 1, &block)]), 8192);
    let heads: Vec<_> = frames(&out[PREFACE.len()..]).iter().map(|(h, _)| (h.kind, h.flags, h.length)).collect();
    assert_eq!(heads.len(), 2);
    assert_eq!(heads[0], (HEADERS, 1, FRAME_MAX));
    assert_eq!((heads[1].0, heads[1].1), (CONTINUATION, END_HEADERS));
    let (lists, _) = read(&out);
    assert_eq!(lists[0][1], (b"x".to_vec(), vec![b'a'; 20_000]));
}

#[test]
fn what_is_not_understood_passes_untouched() {
    let good = frame(HEADERS, END_HEADERS, 1, &authority(b"/a"));
    let cases = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nXX".to_vec(),
        // A reference to nothing, and everything after it.
        stream(&[frame(HEADERS, END_HEADERS, 1, &[0xff, 0x00]), good.clone()]),
        // A frame amid a header block; a continuation of another stream, of nothing.
        stream(&[frame(HEADERS, 0, 1, &[0x82]), frame(6, 0, 0, &[0; 8]), good.clone()]),
        stream(&[frame(HEADERS, 0, 1, &[0x82]), frame(CONTINUATION, END_HEADERS, 3, &[0x84])]),
        stream(&[frame(CONTINUATION, END_HEADERS, 1, &[0x84])]),
        // Padding and priority that do not fit.
        stream(&[frame(HEADERS, END_HEADERS | PADDED, 1, &[9, 0x82])]),
        stream(&[frame(HEADERS, END_HEADERS | PADDED, 1, &[])]),
        stream(&[frame(HEADERS, END_HEADERS | PRIORITY, 1, &[0, 0])]),
        // Larger than any frame may be, and than any block may be.
        stream(&[frame(HEADERS, END_HEADERS, 1, &vec![0x82; FRAME_MAX + 1])]),
        stream(&[frame(HEADERS, 0, 1, &[0x82; 10_000]), vec![frame(CONTINUATION, 0, 1, &[0x82; 10_000]); 9].concat()]),
        // Cut off within a head, and within a block.
        stream(&[good[..5].to_vec()]),
        stream(&[good[..11].to_vec()]),
    ];
    for (number, case) in cases.iter().enumerate() {
        for cut in [1, 10, 100_000] {
            assert!(filtered(case, cut) == *case, "case {number} in pieces of {cut}");
        }
    }
}

#[test]
fn memory_is_bounded_while_a_block_never_ends() {
    let mut rewriter = Rewriter::new();
    let mut out = Vec::new();
    rewriter.push(&stream(&[frame(HEADERS, 0, 1, &[])]), &mut out);
    let more = frame(CONTINUATION, 0, 1, &[0x82]);
    for _ in 0..100_000 {
        rewriter.push(&more, &mut out);
        assert!(rewriter.held.len() <= BLOCK_MAX + FRAME_MAX);
    }
    assert_eq!(rewriter.passing(), usize::MAX, "given up");
}

/// An encoder with a dynamic table of its own, that uses every representation as `choices` say.
fn encode_with_table(lists: &[Fields], choices: &[u8]) -> Vec<Vec<u8>> {
    let mut table: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    let mut choices = choices.iter().copied().cycle();
    let mut blocks = Vec::new();
    for list in lists {
        let mut block = Vec::new();
        let mut first = true;
        for field in list {
            let choice = choices.next().unwrap_or(0);
            if first && choice & 0x30 == 0x30 {
                // To zero and back: an empty table again.
                block.extend([0x20, 0x3f, 0xe1, 0x1f]);
                table.clear();
            }
            first = false;
            if let Some(at) = table.iter().position(|entry| entry == field)
                && choice & 1 == 0
            {
                let mut index = Vec::new();
                number(62 + at, 7, 0x80, &mut index);
                block.extend(index);
                continue;
            }
            let named = table.iter().position(|entry| entry.0 == field.0).filter(|_| choice & 2 == 0);
            let (prefix, pattern) = match choice >> 2 & 3 {
                0 | 1 => (6, 0x40),
                2 => (4, 0x00),
                _ => (4, 0x10),
            };
            if let Some(at) = named {
                number(62 + at, prefix, pattern, &mut block);
            } else {
                block.push(pattern);
                string(&field.0, choice & 0x40 != 0, &mut block);
            }
            string(&field.1, choice & 0x80 != 0, &mut block);
            if pattern == 0x40 {
                table.insert(0, field.clone());
                while table.iter().map(|(n, v)| n.len() + v.len() + 32).sum::<usize>() > 4096 {
                    table.pop();
                }
            }
        }
        blocks.push(block);
    }
    blocks
}

fn number(mut value: usize, prefix: u32, pattern: u8, out: &mut Vec<u8>) {
    let mask = (1 << prefix) - 1;
    if value < mask {
        out.push(pattern | u8::try_from(value).unwrap());
        return;
    }
    out.push(pattern | u8::try_from(mask).unwrap());
    value -= mask;
    while value >= 128 {
        out.push(u8::try_from(value % 128).unwrap() | 128);
        value /= 128;
    }
    out.push(u8::try_from(value).unwrap());
}

fn string(text: &[u8], coded: bool, out: &mut Vec<u8>) {
    if coded {
        let mut bytes = Vec::new();
        huffman::encode(text, &mut bytes);
        number(bytes.len(), 7, 0x80, out);
        out.extend(bytes);
    } else {
        number(text.len(), 7, 0, out);
        out.extend_from_slice(text);
    }
}

fn header_lists() -> impl Strategy<Value = Vec<Fields>> {
    let name = prop_oneof![
        Just(b":authority".to_vec()),
        Just(b":path".to_vec()),
        Just(b"x-a".to_vec()),
        prop::collection::vec(any::<u8>(), 1..20),
    ];
    let value = prop_oneof![
        Just(b"/run/csi.sock".to_vec()),
        Just(b"localhost".to_vec()),
        prop::collection::vec(any::<u8>(), 0..40),
        prop::collection::vec(any::<u8>(), 1000..2000),
    ];
    prop::collection::vec(prop::collection::vec((name, value), 0..6), 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn lists_survive_but_for_the_authority(
        lists in header_lists(),
        choices in prop::collection::vec(any::<u8>(), 1..40),
        split in 1_usize..2000,
        cut in 1_usize..500,
    ) {
        let mut frames = Vec::new();
        for (number, block) in encode_with_table(&lists, &choices).iter().enumerate() {
            let id = u8::try_from(number * 2 + 1).unwrap();
            let mut pieces: Vec<&[u8]> = block.chunks(split).collect();
            if pieces.is_empty() {
                pieces.push(&[]);
            }
            for (at, piece) in pieces.iter().enumerate() {
                let kind = if at == 0 { HEADERS } else { CONTINUATION };
                let end = if at + 1 == pieces.len() { END_HEADERS } else { 0 };
                frames.push(frame(kind, end, id, piece));
            }
            frames.push(frame(0, 0, id, &vec![7; split]));
        }
        let mut want = lists.clone();
        for (name, value) in want.iter_mut().flatten() {
            if name == b":authority" && http::uri::Authority::try_from(value.as_slice()).is_err() {
                *value = LOCALHOST.to_vec();
            }
        }
        let (got, others) = read(&filtered(&stream(&frames), cut));
        prop_assert_eq!(got, want);
        prop_assert!(others.iter().all(|(kind, data)| *kind == 0 && data.len() == split));
        prop_assert_eq!(others.len(), lists.len());
    }

    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..2000), cut in 1_usize..300) {
        filtered(&bytes, cut);
        // Frames at least, so that the block code is reached.
        let frames: Vec<Vec<u8>> = bytes.chunks(50).map(|c| frame(c[0] % 10, c[c.len() / 2], c[c.len() - 1] % 4, c)).collect();
        filtered(&stream(&frames), cut);
    }
}
