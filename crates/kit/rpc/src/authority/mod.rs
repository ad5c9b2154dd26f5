//! Corrects the `:authority` that some gRPC clients send over unix sockets.
//!
//! HTTP/2 wants a host in `:authority`. Clients that dial a bare socket path put that path there (grpc-go before
//! 1.4x raw, later percent-encoded), and the h2 library answers such a request with a stream reset before any
//! server code sees it. [`Rewriter`] is a byte filter that goes before h2: it follows the frames of the inbound
//! stream (RFC 9113, section 4), decodes each header block and writes it anew with `localhost` in place of an authority that
//! h2 would refuse. All other frames pass byte for byte.
//!
//! Every block is re-encoded, not only those that change: later blocks refer to what earlier ones put in the
//! dynamic table. The new blocks use no dynamic table at all, so the one of h2 stays empty and agrees with them.

mod hpack;
mod huffman;

use hpack::{Decoder, Field};

/// What a client sends first (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The length of a frame's head.
const HEAD: usize = 9;
/// The largest payload that a server accepts unless it says otherwise (RFC 9113, section 6.5.2). Ours do not.
const FRAME_MAX: usize = 16_384;
/// The most bytes of one coded header block that are held back, over all its CONTINUATION frames.
const BLOCK_MAX: usize = 64 << 10;
/// The most bytes that one header block may stand for. h2 refuses lists of more than 16 KiB by default.
const LIST_MAX: usize = 128 << 10;

const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 0x04;
const PADDED: u8 = 0x08;
const PRIORITY: u8 = 0x20;
/// The authority that stands in for one that h2 refuses.
const LOCALHOST: &[u8] = b"localhost";

/// Where in the stream the next byte belongs.
enum State {
    /// In the preface; so many bytes of it have been seen.
    Preface(usize),
    /// In the head of a frame; `held` has the bytes so far.
    Head,
    /// In the payload of a frame that passes; so many bytes are left.
    Payload(usize),
    /// In the payload of a HEADERS or CONTINUATION frame; `held` has its head too.
    Block { head: Head, left: usize },
    /// Nothing is understood any more: the rest passes, and h2 answers with its own error.
    Raw,
}

/// The head of a frame.
#[derive(Clone, Copy)]
struct Head {
    length: usize,
    kind: u8,
    flags: u8,
    stream: [u8; 4],
}

impl Head {
    fn parse(bytes: &[u8]) -> Self {
        Self {
            length: usize::from(bytes[0]) << 16 | usize::from(bytes[1]) << 8 | usize::from(bytes[2]),
            kind: bytes[3],
            flags: bytes[4],
            stream: [bytes[5], bytes[6], bytes[7], bytes[8]],
        }
    }

    fn write(self, output: &mut Vec<u8>) {
        let [_, a, b, c] = u32::try_from(self.length).unwrap_or(u32::MAX).to_be_bytes();
        output.extend_from_slice(&[a, b, c, self.kind, self.flags]);
        output.extend_from_slice(&self.stream);
    }
}

/// A header block in the making.
struct Pending {
    /// The head of its HEADERS frame.
    head: Head,
    /// The priority fields of that frame, five bytes or none.
    priority: Vec<u8>,
    /// The fragments so far.
    block: Vec<u8>,
}

/// The filter of one connection's inbound bytes.
pub(crate) struct Rewriter {
    state: State,
    /// The bytes taken in and not yet given out, as they came: the current frame's head, or a whole header
    /// block with all its frames. They are given out as they are if the block turns out to be malformed.
    held: Vec<u8>,
    /// Where in `held` the current frame starts.
    frame: usize,
    pending: Option<Pending>,
    decoder: Decoder,
    /// Whether an authority was rewritten, so that it is told once a connection.
    rewritten: bool,
}

impl Rewriter {
    pub(crate) fn new() -> Self {
        Self {
            state: State::Preface(0),
            held: Vec::new(),
            frame: 0,
            pending: None,
            decoder: Decoder::new(),
            rewritten: false,
        }
    }

    /// How many of the next bytes pass as they are and may go around [`Rewriter::push`]; then [`Rewriter::skip`] them.
    pub(crate) fn passing(&self) -> usize {
        match self.state {
            State::Payload(left) => left,
            State::Raw => usize::MAX,
            _ => 0,
        }
    }

    /// Says that so many bytes, at most [`Rewriter::passing`], went around the filter.
    pub(crate) fn skip(&mut self, count: usize) {
        if let State::Payload(left) = &mut self.state {
            *left = left.saturating_sub(count);
            if *left == 0 {
                self.state = State::Head;
            }
        }
    }

    /// Takes inbound bytes, cut anywhere, and appends what h2 shall see to `output`.
    pub(crate) fn push(&mut self, mut input: &[u8], output: &mut Vec<u8>) {
        while !input.is_empty() {
            input = match self.state {
                State::Preface(seen) => self.preface(seen, input, output),
                State::Head => self.head(input, output),
                State::Payload(left) => {
                    let (now, rest) = input.split_at(left.min(input.len()));
                    output.extend_from_slice(now);
                    self.skip(now.len());
                    rest
                }
                State::Block { head, left } => self.block(head, left, input, output),
                State::Raw => {
                    output.extend_from_slice(input);
                    &[]
                }
            };
        }
    }

    /// The stream ended: gives out what was held back, so that h2 sees the same cut frame.
    pub(crate) fn finish(&mut self, output: &mut Vec<u8>) {
        self.give_up(output);
    }

    fn give_up(&mut self, output: &mut Vec<u8>) {
        output.append(&mut self.held);
        self.pending = None;
        self.state = State::Raw;
    }

    fn preface<'a>(&mut self, seen: usize, input: &'a [u8], output: &mut Vec<u8>) -> &'a [u8] {
        let want = &PREFACE[seen..];
        let (now, rest) = input.split_at(want.len().min(input.len()));
        output.extend_from_slice(now);
        self.state = if !want.starts_with(now) {
            State::Raw
        } else if now.len() == want.len() {
            State::Head
        } else {
            State::Preface(seen + now.len())
        };
        rest
    }

    fn head<'a>(&mut self, input: &'a [u8], output: &mut Vec<u8>) -> &'a [u8] {
        let missing = self.frame + HEAD - self.held.len();
        let (now, rest) = input.split_at(missing.min(input.len()));
        self.held.extend_from_slice(now);
        if now.len() < missing {
            return rest;
        }
        let head = Head::parse(&self.held[self.frame..]);
        let opens = head.kind == HEADERS && self.pending.is_none();
        let continues =
            head.kind == CONTINUATION && self.pending.as_ref().is_some_and(|p| p.head.stream == head.stream);
        if opens || continues {
            if head.length > FRAME_MAX || self.held.len() + head.length > BLOCK_MAX {
                self.give_up(output);
            } else if head.length == 0 {
                self.frame_complete(head, output);
            } else {
                self.state = State::Block { head, left: head.length };
            }
        } else if self.pending.is_some() {
            // Another frame within a header block is a connection error (RFC 9113, section 6.10).
            self.give_up(output);
        } else {
            output.append(&mut self.held);
            if head.length > 0 {
                self.state = State::Payload(head.length);
            }
        }
        rest
    }

    fn block<'a>(&mut self, head: Head, left: usize, input: &'a [u8], output: &mut Vec<u8>) -> &'a [u8] {
        let (now, rest) = input.split_at(left.min(input.len()));
        self.held.extend_from_slice(now);
        if now.len() < left {
            let left = left - now.len();
            self.state = State::Block { head, left };
        } else {
            self.frame_complete(head, output);
        }
        rest
    }

    /// A HEADERS or CONTINUATION frame is complete in `held`.
    fn frame_complete(&mut self, head: Head, output: &mut Vec<u8>) {
        let payload = &self.held[self.frame + HEAD..];
        match &mut self.pending {
            Some(pending) => pending.block.extend_from_slice(payload),
            None => self.pending = open(head, payload),
        }
        if self.pending.is_some() && head.flags & END_HEADERS == 0 {
            self.frame = self.held.len();
            self.state = State::Head;
            return;
        }
        self.frame = 0;
        let start = output.len();
        match self.pending.take() {
            Some(pending) if self.rewrite(&pending, output).is_ok() => {
                self.held.clear();
                self.state = State::Head;
            }
            _ => {
                output.truncate(start);
                self.give_up(output);
            }
        }
    }

    /// Writes the frames of a complete header block anew.
    fn rewrite(&mut self, pending: &Pending, output: &mut Vec<u8>) -> Result<(), hpack::Malformed> {
        let mut block = pending.priority.clone();
        let rewritten = &mut self.rewritten;
        self.decoder.decode(&pending.block, LIST_MAX, |field| {
            if field.name == b":authority" && !h2_accepts(field.value) {
                if !*rewritten {
                    *rewritten = true;
                    tracing::debug!(
                        authority = %field.value.escape_ascii(),
                        "the client sent a :authority that is no host; taken as localhost"
                    );
                }
                hpack::encode(Field { value: LOCALHOST, ..field }, &mut block);
            } else {
                hpack::encode(field, &mut block);
            }
        })?;
        let mut head = Head { flags: pending.head.flags & !(PADDED | END_HEADERS), ..pending.head };
        let mut rest = &block[..];
        loop {
            let (now, later) = rest.split_at(rest.len().min(FRAME_MAX));
            head.length = now.len();
            if later.is_empty() {
                head.flags |= END_HEADERS;
            }
            head.write(output);
            output.extend_from_slice(now);
            if later.is_empty() {
                return Ok(());
            }
            rest = later;
            head.kind = CONTINUATION;
            head.flags = 0;
        }
    }
}

/// Takes padding and priority off the payload of a HEADERS frame (RFC 9113, section 6.2); none if they do not fit.
fn open(head: Head, mut payload: &[u8]) -> Option<Pending> {
    if head.flags & PADDED != 0 {
        let (padding, rest) = payload.split_first()?;
        payload = rest.get(..rest.len().checked_sub(usize::from(*padding))?)?;
    }
    let mut priority = &[][..];
    if head.flags & PRIORITY != 0 {
        (priority, payload) = payload.split_at_checked(5)?;
    }
    Some(Pending { head, priority: priority.to_vec(), block: payload.to_vec() })
}

/// Whether h2 takes this as an authority: it asks the same parser.
fn h2_accepts(authority: &[u8]) -> bool {
    http::uri::Authority::try_from(authority).is_ok()
}

#[cfg(test)]
mod tests;
