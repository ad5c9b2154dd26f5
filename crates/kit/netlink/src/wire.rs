//! The binary form of netlink: a header of 16 bytes, a fixed body that depends on the message, then attributes of which
//! each has a length, a type and data that may hold attributes again. Everything is padded to four bytes. Numbers are in
//! the byte order of the machine except where a protocol (netfilter) says otherwise.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{Error, Result};

/// Length of `struct nlmsghdr`.
pub const HEADER: usize = 16;

/// It is a request.
pub const NLM_F_REQUEST: u16 = 0x1;
/// Part of an answer in several messages.
pub const NLM_F_MULTI: u16 = 0x2;
/// Ask for an acknowledgement.
pub const NLM_F_ACK: u16 = 0x4;
/// Send back what was made.
pub const NLM_F_ECHO: u16 = 0x8;
/// A dump is not consistent, since something changed meanwhile.
pub const NLM_F_DUMP_INTR: u16 = 0x10;
/// Ask for all objects.
pub const NLM_F_DUMP: u16 = 0x300;
/// Replace an existing object.
pub const NLM_F_REPLACE: u16 = 0x100;
/// Fail if the object exists.
pub const NLM_F_EXCL: u16 = 0x200;
/// Make the object if it does not exist.
pub const NLM_F_CREATE: u16 = 0x400;
/// Add at the end of a list.
pub const NLM_F_APPEND: u16 = 0x800;

/// The data of the attribute is attributes.
const NLA_F_NESTED: u16 = 0x8000;
/// All bits of an attribute's type that are not flags.
const NLA_TYPE_MASK: u16 = 0x3fff;

/// A message under construction. Attributes are appended in order; whoever sends it fills in length and sequence number.
#[derive(Debug, Clone)]
pub struct Message {
    buffer: Vec<u8>,
    operation: String,
    overlong: bool,
}

impl Message {
    /// An empty message of this type. [`NLM_F_REQUEST`] is set by itself.
    pub fn new(kind: u16, flags: u16) -> Self {
        let mut buffer = Vec::with_capacity(256);
        buffer.extend_from_slice(&[0; 4]);
        buffer.extend_from_slice(&kind.to_ne_bytes());
        buffer.extend_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        buffer.extend_from_slice(&[0; 8]);
        Self { buffer, operation: String::new(), overlong: false }
    }

    /// Says in words what the message is for; errors begin with it.
    #[must_use]
    pub fn about(mut self, operation: impl Into<String>) -> Self {
        self.operation = operation.into();
        self
    }

    /// What the message is for.
    pub fn operation(&self) -> &str {
        &self.operation
    }

    /// Its type.
    pub fn kind(&self) -> u16 {
        u16::from_ne_bytes([self.buffer[4], self.buffer[5]])
    }

    /// Its flags.
    pub fn flags(&self) -> u16 {
        u16::from_ne_bytes([self.buffer[6], self.buffer[7]])
    }

    /// Sets further flags.
    pub fn add_flags(&mut self, flags: u16) {
        let flags = self.flags() | flags;
        self.buffer[6..8].copy_from_slice(&flags.to_ne_bytes());
    }

    /// Appends the fixed body, or a part of it, and pads.
    pub fn put(&mut self, bytes: &[u8]) -> &mut Self {
        self.buffer.extend_from_slice(bytes);
        self.pad();
        self
    }

    /// Appends an attribute.
    pub fn attr(&mut self, kind: u16, data: &[u8]) -> &mut Self {
        self.header(kind, data.len());
        self.put(data)
    }

    /// Appends an attribute without data: a flag.
    pub fn attr_flag(&mut self, kind: u16) -> &mut Self {
        self.attr(kind, &[])
    }

    /// Appends an attribute of one byte.
    pub fn attr_u8(&mut self, kind: u16, value: u8) -> &mut Self {
        self.attr(kind, &[value])
    }

    /// Appends an attribute of two bytes in the machine's order.
    pub fn attr_u16(&mut self, kind: u16, value: u16) -> &mut Self {
        self.attr(kind, &value.to_ne_bytes())
    }

    /// Appends an attribute of four bytes in the machine's order.
    pub fn attr_u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attr(kind, &value.to_ne_bytes())
    }

    /// Appends an attribute of eight bytes in the machine's order.
    pub fn attr_u64(&mut self, kind: u16, value: u64) -> &mut Self {
        self.attr(kind, &value.to_ne_bytes())
    }

    /// Appends an attribute of two bytes in network order.
    pub fn attr_be16(&mut self, kind: u16, value: u16) -> &mut Self {
        self.attr(kind, &value.to_be_bytes())
    }

    /// Appends an attribute of four bytes in network order.
    pub fn attr_be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attr(kind, &value.to_be_bytes())
    }

    /// Appends an attribute of eight bytes in network order.
    pub fn attr_be64(&mut self, kind: u16, value: u64) -> &mut Self {
        self.attr(kind, &value.to_be_bytes())
    }

    /// Appends a text with the zero byte that the kernel wants at its end.
    pub fn attr_str(&mut self, kind: u16, text: &str) -> &mut Self {
        self.header(kind, text.len() + 1);
        self.buffer.extend_from_slice(text.as_bytes());
        self.put(&[0])
    }

    /// Appends an address, 4 or 16 bytes.
    pub fn attr_ip(&mut self, kind: u16, address: IpAddr) -> &mut Self {
        match address {
            IpAddr::V4(address) => self.attr(kind, &address.octets()),
            IpAddr::V6(address) => self.attr(kind, &address.octets()),
        }
    }

    /// Appends an attribute whose data is what `fill` appends, marked as nested.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        self.nest_plain(kind | NLA_F_NESTED, fill)
    }

    /// As [`Message::nest`] without the mark, for old parts of the kernel that do not set it themselves.
    pub fn nest_plain(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.buffer.len();
        self.header(kind, 0);
        fill(self);
        let length = self.length_of(self.buffer.len() - start);
        self.buffer[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self
    }

    /// Length of the message so far, header included.
    pub fn size(&self) -> usize {
        self.buffer.len()
    }

    /// The finished message.
    pub fn finish(&mut self, sequence: u32) -> Result<&[u8]> {
        if self.overlong {
            let what = format!("{}: an attribute is longer than 65535 bytes", self.operation);
            return Err(Error::Malformed { what });
        }
        let length = u32::try_from(self.buffer.len())
            .map_err(|_| Error::Malformed { what: format!("{}: longer than 4 GiB", self.operation) })?;
        self.buffer[0..4].copy_from_slice(&length.to_ne_bytes());
        self.buffer[8..12].copy_from_slice(&sequence.to_ne_bytes());
        Ok(&self.buffer)
    }

    /// The bytes as they are; ready to be sent after [`Message::finish`].
    pub fn as_bytes(&self) -> &[u8] {
        &self.buffer
    }

    fn header(&mut self, kind: u16, data: usize) {
        let length = self.length_of(data + 4);
        self.buffer.extend_from_slice(&length.to_ne_bytes());
        self.buffer.extend_from_slice(&kind.to_ne_bytes());
    }

    fn length_of(&mut self, length: usize) -> u16 {
        u16::try_from(length).unwrap_or_else(|_| {
            self.overlong = true;
            0
        })
    }

    fn pad(&mut self) {
        self.buffer.resize(align(self.buffer.len()), 0);
    }
}

/// A length with its padding.
pub(crate) fn align(length: usize) -> usize {
    length.saturating_add(3) & !3
}

/// One message of what was received.
#[derive(Debug, Clone, Copy)]
pub struct Received<'a> {
    /// Its type.
    pub kind: u16,
    /// Its flags.
    pub flags: u16,
    /// The sequence number of the request that it answers; 0 for an event.
    pub sequence: u32,
    /// The port that it is meant for; 0 for most events.
    pub port: u32,
    /// What follows the header.
    pub payload: &'a [u8],
}

/// The messages of one datagram. Ends at the first one that is cut or impossible.
#[derive(Debug, Clone)]
pub struct Messages<'a>(&'a [u8]);

impl<'a> Messages<'a> {
    /// Reads the messages of a datagram.
    pub fn new(datagram: &'a [u8]) -> Self {
        Self(datagram)
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Received<'a>;

    fn next(&mut self) -> Option<Received<'a>> {
        let length = usize::try_from(u32::from_ne_bytes(*self.0.first_chunk()?)).ok()?;
        if length < HEADER {
            return None;
        }
        let message = self.0.get(..length)?;
        let (header, payload) = message.split_at(HEADER);
        self.0 = self.0.get(align(length)..).unwrap_or_default();
        Some(Received {
            kind: u16::from_ne_bytes([header[4], header[5]]),
            flags: u16::from_ne_bytes([header[6], header[7]]),
            sequence: u32::from_ne_bytes([header[8], header[9], header[10], header[11]]),
            port: u32::from_ne_bytes([header[12], header[13], header[14], header[15]]),
            payload,
        })
    }
}

/// One attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attribute<'a> {
    /// Its type, without the flags that share the field.
    pub kind: u16,
    /// Its data.
    pub data: &'a [u8],
}

impl<'a> Attribute<'a> {
    /// One byte.
    pub fn u8(&self) -> Result<u8> {
        self.array().map(|[byte]| byte)
    }

    /// Two bytes in the machine's order.
    pub fn u16(&self) -> Result<u16> {
        self.array().map(u16::from_ne_bytes)
    }

    /// Four bytes in the machine's order.
    pub fn u32(&self) -> Result<u32> {
        self.array().map(u32::from_ne_bytes)
    }

    /// Eight bytes in the machine's order.
    pub fn u64(&self) -> Result<u64> {
        self.array().map(u64::from_ne_bytes)
    }

    /// Two bytes in network order.
    pub fn be16(&self) -> Result<u16> {
        self.array().map(u16::from_be_bytes)
    }

    /// Four bytes in network order.
    pub fn be32(&self) -> Result<u32> {
        self.array().map(u32::from_be_bytes)
    }

    /// Eight bytes in network order.
    pub fn be64(&self) -> Result<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// A text up to its zero byte, or to the end if it has none.
    pub fn str(&self) -> Result<&'a str> {
        let text = self.data.split(|byte| *byte == 0).next().unwrap_or_default();
        std::str::from_utf8(text).map_err(|_| Error::Malformed { what: format!("attribute {} is not text", self.kind) })
    }

    /// An address of 4 or 16 bytes.
    pub fn ip(&self) -> Result<IpAddr> {
        if let Ok(octets) = <[u8; 4]>::try_from(self.data) {
            Ok(IpAddr::V4(Ipv4Addr::from(octets)))
        } else {
            self.array::<16>().map(|octets| IpAddr::V6(Ipv6Addr::from(octets)))
        }
    }

    /// The attributes inside.
    pub fn attributes(&self) -> Attributes<'a> {
        Attributes::new(self.data)
    }

    /// The data, which must have exactly this length.
    pub fn array<const N: usize>(&self) -> Result<[u8; N]> {
        self.data.try_into().map_err(|_| Error::Malformed {
            what: format!("attribute {} has {} bytes, wanted {N}", self.kind, self.data.len()),
        })
    }
}

/// A list of attributes. Ends at the first one that is cut or impossible.
#[derive(Debug, Clone)]
pub struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    /// Reads attributes from bytes.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Reads the attributes that follow a fixed body of `body` bytes; an error if the payload is shorter than that.
    pub fn after(payload: &'a [u8], body: usize) -> Result<Self> {
        match payload.get(..body) {
            Some(_) => Ok(Self(payload.get(align(body)..).unwrap_or_default())),
            None => Err(Error::Malformed { what: format!("{} bytes of body, wanted {body}", payload.len()) }),
        }
    }

    /// The first attribute of this type.
    pub fn find(&self, kind: u16) -> Option<Attribute<'a>> {
        Iterator::find(&mut self.clone(), |attribute| attribute.kind == kind)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Attribute<'a>;

    fn next(&mut self) -> Option<Attribute<'a>> {
        let &[l0, l1, k0, k1] = self.0.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let data = self.0.get(4..length)?;
        self.0 = self.0.get(align(length)..).unwrap_or_default();
        Some(Attribute { kind: u16::from_ne_bytes([k0, k1]) & NLA_TYPE_MASK, data })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_message_byte_by_byte() {
        let mut message = Message::new(16, NLM_F_ACK);
        message.put(&[1, 2, 3]).attr_u16(5, 0x0102).attr_str(6, "ab").nest(7, |nest| {
            nest.attr_be32(8, 0x0102_0304);
        });
        let mut wanted = Vec::new();
        wanted.extend(48u32.to_ne_bytes());
        wanted.extend(16u16.to_ne_bytes());
        wanted.extend(5u16.to_ne_bytes());
        wanted.extend(9u32.to_ne_bytes());
        wanted.extend([0, 0, 0, 0, 1, 2, 3, 0]);
        wanted.extend([6u16.to_ne_bytes(), 5u16.to_ne_bytes(), 0x0102u16.to_ne_bytes(), [0, 0]].concat());
        wanted.extend([7u16.to_ne_bytes(), 6u16.to_ne_bytes(), *b"ab", [0, 0]].concat());
        wanted.extend([12u16.to_ne_bytes(), 0x8007u16.to_ne_bytes(), 8u16.to_ne_bytes(), 8u16.to_ne_bytes()].concat());
        wanted.extend([1, 2, 3, 4]);
        assert_eq!(message.finish(9).unwrap(), wanted);
    }

    #[test]
    fn overlong_attributes_are_refused() {
        let mut message = Message::new(16, 0).about("set name");
        message.attr(1, &vec![0; 65_532]);
        assert!(message.finish(1).unwrap_err().to_string().contains("set name"));
        let half = vec![0; 40_000];
        let mut message = Message::new(16, 0);
        message.nest(1, |nest| {
            nest.attr(1, &half).attr(2, &half);
        });
        assert!(message.finish(1).is_err());
    }

    #[test]
    fn wrong_lengths_are_errors() {
        let attribute = Attribute { kind: 4, data: &[1, 2] };
        assert_eq!(
            attribute.u32().unwrap_err().to_string(),
            "malformed netlink message: attribute 4 has 2 bytes, wanted 4"
        );
        assert!(attribute.ip().is_err() && attribute.u8().is_err() && attribute.be64().is_err());
        assert!(Attribute { kind: 1, data: &[0xff, 0] }.str().is_err());
        assert!(Attributes::after(&[0; 3], 4).is_err());
        assert_eq!(Attributes::after(&[0; 5], 5).unwrap().count(), 0);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            attributes in prop::collection::vec((0u16..0x3fff, prop::collection::vec(any::<u8>(), 0..40)), 0..20),
            body in prop::collection::vec(any::<u8>(), 0..20),
            sequence: u32,
        ) {
            let mut message = Message::new(20, 0);
            message.put(&body);
            for (kind, data) in &attributes {
                message.attr(*kind, data);
            }
            message.nest(0x3fff, |nest| {
                for (kind, data) in &attributes {
                    nest.attr(*kind, data);
                }
            });
            let bytes = message.finish(sequence).unwrap().repeat(2);
            let received: Vec<_> = Messages::new(&bytes).collect();
            prop_assert_eq!(received.len(), 2);
            for one in received {
                prop_assert_eq!((one.kind, one.sequence, one.flags), (20, sequence, NLM_F_REQUEST));
                let mut read: Vec<_> = Attributes::after(one.payload, body.len()).unwrap().collect();
                let nested = read.pop().unwrap();
                let read: Vec<_> = read.iter().map(|a| (a.kind, a.data.to_vec())).collect();
                prop_assert_eq!(&read, &attributes);
                let read: Vec<_> = nested.attributes().map(|a| (a.kind, a.data.to_vec())).collect();
                prop_assert_eq!(&read, &attributes);
            }
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            for message in Messages::new(&bytes) {
                for attribute in Attributes::new(message.payload) {
                    let _ = (attribute.u8(), attribute.be16(), attribute.u64(), attribute.str(), attribute.ip());
                    prop_assert!(attribute.attributes().count() <= 50);
                }
            }
            prop_assert!(Attributes::new(&bytes).count() <= 50);
        }

        #[test]
        fn no_short_header_panics(length in 0u16..12, rest in prop::collection::vec(any::<u8>(), 0..12)) {
            let bytes = [length.to_ne_bytes().to_vec(), rest].concat();
            prop_assert!(Attributes::new(&bytes).count() <= 3);
            prop_assert!(Messages::new(&bytes).count() <= 1);
        }
    }
}
