//! DHCP messages (RFC 2131, options of RFC 2132, long ones of RFC 3396) and the IPv4 and UDP headers around them. Bytes
//! in, values out; no byte sequence makes it panic.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// UDP port of servers.
pub const SERVER_PORT: u16 = 67;
/// UDP port of clients.
pub const CLIENT_PORT: u16 = 68;

const COOKIE: [u8; 4] = [99, 130, 83, 99];
const HEADER: usize = 236;
/// BOOTP relays drop anything shorter.
const SHORTEST: usize = 300;
/// In `flags`: the reply is to be broadcast.
const BROADCAST: u16 = 0x8000;
const IP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
const UDP: u8 = 17;

/// Numbers of options.
pub mod option {
    /// Subnet mask.
    pub const SUBNET_MASK: u8 = 1;
    /// Routers, the preferred one first.
    pub const ROUTER: u8 = 3;
    /// The client's name.
    pub const HOST_NAME: u8 = 12;
    /// MTU of the interface.
    pub const MTU: u8 = 26;
    /// Routes to networks of the old classes.
    pub const STATIC_ROUTES: u8 = 33;
    /// The address that the client wants.
    pub const REQUESTED_ADDRESS: u8 = 50;
    /// Lease time in seconds.
    pub const LEASE_TIME: u8 = 51;
    /// Whether `file` and `sname` hold options.
    pub const OVERLOAD: u8 = 52;
    /// What kind of message it is.
    pub const MESSAGE_TYPE: u8 = 53;
    /// The server.
    pub const SERVER_ID: u8 = 54;
    /// The options that the client wants.
    pub const PARAMETER_LIST: u8 = 55;
    /// Why a request is refused, in words.
    pub const MESSAGE: u8 = 56;
    /// The longest message that the client takes.
    pub const MAX_MESSAGE_SIZE: u8 = 57;
    /// T1: when to renew, in seconds.
    pub const RENEWAL_TIME: u8 = 58;
    /// T2: when to ask any server, in seconds.
    pub const REBINDING_TIME: u8 = 59;
    /// Class of the client.
    pub const VENDOR_CLASS: u8 = 60;
    /// Who the client is.
    pub const CLIENT_ID: u8 = 61;
    /// Class of the user.
    pub const USER_CLASS: u8 = 77;
    /// Routes (RFC 3442).
    pub const CLASSLESS_ROUTES: u8 = 121;
}

/// Kinds of messages (option 53).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageType {
    /// Client looks for servers.
    Discover = 1,
    /// Server offers an address.
    Offer = 2,
    /// Client takes an offer, or wants to keep what it has.
    Request = 3,
    /// Client cannot use the address.
    Decline = 4,
    /// Server agrees.
    Ack = 5,
    /// Server refuses.
    Nak = 6,
    /// Client gives its address back.
    Release = 7,
}

impl MessageType {
    fn of(number: u8) -> Option<Self> {
        [Self::Discover, Self::Offer, Self::Request, Self::Decline, Self::Ack, Self::Nak, Self::Release]
            .into_iter()
            .find(|kind| *kind as u8 == number)
    }
}

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// From a server to a client.
    pub is_reply: bool,
    /// Ties replies to requests.
    pub transaction: u32,
    /// Seconds since the client began.
    pub seconds: u16,
    /// The reply is to be broadcast.
    pub broadcast: bool,
    /// The address that the client has and answers at.
    pub client: Ipv4Addr,
    /// The address that the server gives.
    pub yours: Ipv4Addr,
    /// The next server for booting.
    pub server: Ipv4Addr,
    /// The relay in between.
    pub relay: Ipv4Addr,
    /// Hardware address of the client.
    pub hardware: [u8; 6],
    /// All options but padding and overload.
    pub options: BTreeMap<u8, Vec<u8>>,
}

impl Message {
    /// A client's message without addresses.
    pub fn new(kind: MessageType, transaction: u32, hardware: [u8; 6]) -> Self {
        Self {
            is_reply: false,
            transaction,
            seconds: 0,
            broadcast: false,
            client: Ipv4Addr::UNSPECIFIED,
            yours: Ipv4Addr::UNSPECIFIED,
            server: Ipv4Addr::UNSPECIFIED,
            relay: Ipv4Addr::UNSPECIFIED,
            hardware,
            options: BTreeMap::from([(option::MESSAGE_TYPE, vec![kind as u8])]),
        }
    }

    /// What kind it is.
    pub fn kind(&self) -> Option<MessageType> {
        MessageType::of(*self.options.get(&option::MESSAGE_TYPE)?.first()?)
    }

    /// An option that is one address, or the first of a list of addresses.
    pub fn address(&self, number: u8) -> Option<Ipv4Addr> {
        let bytes: [u8; 4] = self.options.get(&number)?.get(..4)?.try_into().ok()?;
        Some(bytes.into())
    }

    /// An option that is a number of four bytes.
    pub fn number(&self, number: u8) -> Option<u32> {
        self.address(number).map(u32::from)
    }

    /// The message's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(SHORTEST);
        bytes.extend([if self.is_reply { 2 } else { 1 }, 1, 6, 0]);
        bytes.extend(self.transaction.to_be_bytes());
        bytes.extend(self.seconds.to_be_bytes());
        bytes.extend(if self.broadcast { BROADCAST } else { 0 }.to_be_bytes());
        for address in [self.client, self.yours, self.server, self.relay] {
            bytes.extend(address.octets());
        }
        bytes.extend(self.hardware);
        bytes.resize(HEADER, 0);
        bytes.extend(COOKIE);
        // The message type first: some relays look no further.
        let kind = self.options.get_key_value(&option::MESSAGE_TYPE);
        let rest = self.options.iter().filter(|(number, _)| **number != option::MESSAGE_TYPE);
        for (number, value) in kind.into_iter().chain(rest) {
            let mut parts = value.chunks(255).peekable();
            if parts.peek().is_none() {
                bytes.extend([*number, 0]);
            }
            for part in parts {
                #[expect(clippy::cast_possible_truncation, reason = "a chunk of at most 255")]
                bytes.extend([*number, part.len() as u8]);
                bytes.extend(part);
            }
        }
        bytes.push(255);
        if bytes.len() < SHORTEST {
            bytes.resize(SHORTEST, 0);
        }
        bytes
    }

    /// Reads a message. None if it is none, or not for Ethernet.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let header = bytes.get(..HEADER)?;
        if header[1] != 1 || header[2] != 6 || bytes.get(HEADER..HEADER + 4)? != COOKIE {
            return None;
        }
        let is_reply = match header[0] {
            1 => false,
            2 => true,
            _ => return None,
        };
        let four = |at: usize| [header[at], header[at + 1], header[at + 2], header[at + 3]];
        let mut options = BTreeMap::new();
        collect(&bytes[HEADER + 4..], &mut options)?;
        // RFC 2131, section 4.1: first `file`, then `sname`.
        let overload = options.remove(&option::OVERLOAD).and_then(|value| value.first().copied()).unwrap_or(0);
        if overload & 1 != 0 {
            collect(&header[108..236], &mut options)?;
        }
        if overload & 2 != 0 {
            collect(&header[44..108], &mut options)?;
        }
        let mut hardware = [0; 6];
        hardware.copy_from_slice(&header[28..34]);
        Some(Self {
            is_reply,
            transaction: u32::from_be_bytes(four(4)),
            seconds: u16::from_be_bytes([header[8], header[9]]),
            broadcast: u16::from_be_bytes([header[10], header[11]]) & BROADCAST != 0,
            client: four(12).into(),
            yours: four(16).into(),
            server: four(20).into(),
            relay: four(24).into(),
            hardware,
            options,
        })
    }
}

/// Reads a field of options. None if one runs over the end.
fn collect(mut bytes: &[u8], options: &mut BTreeMap<u8, Vec<u8>>) -> Option<()> {
    loop {
        match bytes {
            [] | [255, ..] => return Some(()),
            [0, rest @ ..] => bytes = rest,
            [_] => return None,
            [number, length, rest @ ..] => {
                let value = rest.get(..usize::from(*length))?;
                // An option in several parts is one (RFC 3396).
                options.entry(*number).or_default().extend(value);
                bytes = &rest[usize::from(*length)..];
            }
        }
    }
}

/// Puts IPv4 and UDP headers in front of a message.
pub fn wrap(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), message: &[u8]) -> Vec<u8> {
    let udp_length = UDP_HEADER + message.len();
    let short = |length: usize| u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes();
    let mut packet = Vec::with_capacity(IP_HEADER + udp_length);
    // Version and header length, low delay, total length, no fragments, 64 hops.
    packet.extend([0x45, 0x10]);
    packet.extend(short(IP_HEADER + udp_length));
    packet.extend([0, 0, 0, 0, 64, UDP, 0, 0]);
    packet.extend(from.0.octets());
    packet.extend(to.0.octets());
    let checksum = checksum(&[&packet]);
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    let mut udp = Vec::with_capacity(UDP_HEADER);
    udp.extend(from.1.to_be_bytes());
    udp.extend(to.1.to_be_bytes());
    udp.extend(short(udp_length));
    udp.extend([0, 0]);
    let pseudo = [&from.0.octets()[..], &to.0.octets(), &[0, UDP], &short(udp_length)].concat();
    let checksum = match self::checksum(&[&pseudo, &udp, message]) {
        // Zero would say that there is none.
        0 => u16::MAX,
        checksum => checksum,
    };
    udp[6..8].copy_from_slice(&checksum.to_be_bytes());
    packet.extend(udp);
    packet.extend(message);
    packet
}

/// Takes IPv4 and UDP headers off a packet to a port. None if it is no such packet, or a fragment.
///
/// The UDP checksum is not looked at: between namespaces of one machine the kernel leaves it for hardware to fill in.
pub fn unwrap(packet: &[u8], port: u16) -> Option<&[u8]> {
    let header_length = usize::from(packet.first()? & 0xf) * 4;
    let header = packet.get(..header_length).filter(|header| header.len() >= IP_HEADER)?;
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff;
    if header[0] >> 4 != 4 || header[9] != UDP || fragment != 0 || checksum(&[header]) != 0 {
        return None;
    }
    let udp = packet.get(header_length..total)?;
    let length = usize::from(u16::from_be_bytes([*udp.get(4)?, *udp.get(5)?]));
    if u16::from_be_bytes([udp[2], udp[3]]) != port {
        return None;
    }
    udp.get(UDP_HEADER..length)
}

/// The internet checksum of parts, each of even length but the last.
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
    }
    #[expect(clippy::cast_possible_truncation, reason = "folded to 16 bits")]
    let sum = sum as u16;
    !sum
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn offer() -> Message {
        let mut message = Message::new(MessageType::Offer, 0x1234_5678, [2, 0, 0, 0, 0, 9]);
        message.is_reply = true;
        message.yours = Ipv4Addr::new(10, 0, 0, 9);
        message.options.insert(option::SUBNET_MASK, vec![255, 255, 255, 0]);
        message.options.insert(option::ROUTER, vec![10, 0, 0, 1, 10, 0, 0, 2]);
        message.options.insert(option::CLASSLESS_ROUTES, vec![7; 600]);
        message.options.insert(option::VENDOR_CLASS, vec![]);
        message
    }

    #[test]
    fn there_and_back() {
        let message = offer();
        assert_eq!(Message::decode(&message.encode()), Some(message.clone()));
        assert_eq!(message.kind(), Some(MessageType::Offer));
        assert_eq!(message.address(option::ROUTER), Some(Ipv4Addr::new(10, 0, 0, 1)));
        assert_eq!(message.number(option::LEASE_TIME), None);
        assert_eq!(Message::new(MessageType::Discover, 1, [0; 6]).encode().len(), SHORTEST);
    }

    #[test]
    fn layout() {
        let mut message = Message::new(MessageType::Discover, 0x0102_0304, [0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff]);
        message.broadcast = true;
        message.seconds = 0x0506;
        let bytes = message.encode();
        assert_eq!(bytes[..12], [1, 1, 6, 0, 1, 2, 3, 4, 5, 6, 0x80, 0]);
        assert_eq!(bytes[28..34], [0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff]);
        assert_eq!(bytes[236..244], [99, 130, 83, 99, 53, 1, 1, 255]);
    }

    #[test]
    fn options_in_the_name_fields() {
        let mut message = offer();
        message.options = BTreeMap::from([(option::MESSAGE_TYPE, vec![5]), (option::OVERLOAD, vec![3])]);
        let mut bytes = message.encode();
        bytes[108..114].copy_from_slice(&[option::LEASE_TIME, 4, 0, 0, 0, 120]);
        bytes[114] = 255;
        bytes[44..51].copy_from_slice(&[0, option::ROUTER, 4, 10, 0, 0, 1]);
        bytes[51] = 255;
        let decoded = Message::decode(&bytes).unwrap();
        assert_eq!(decoded.number(option::LEASE_TIME), Some(120));
        assert_eq!(decoded.address(option::ROUTER), Some(Ipv4Addr::new(10, 0, 0, 1)));
        assert!(!decoded.options.contains_key(&option::OVERLOAD));
    }

    #[test]
    fn headers() {
        let message = offer().encode();
        let from = (Ipv4Addr::new(10, 0, 0, 1), SERVER_PORT);
        let packet = wrap(from, (Ipv4Addr::BROADCAST, CLIENT_PORT), &message);
        assert_eq!(unwrap(&packet, CLIENT_PORT), Some(&message[..]));
        assert_eq!(unwrap(&packet, SERVER_PORT), None);
        // The checksum over pseudo header, header and data comes out as zero.
        let pseudo = [&packet[12..20], &[0, UDP], &packet[24..26]].concat();
        assert_eq!(checksum(&[&pseudo, &packet[20..]]), 0);
        let mut padded = packet.clone();
        padded.extend([0; 20]);
        assert_eq!(unwrap(&padded, CLIENT_PORT), Some(&message[..]));
        for (place, value) in [(0, 0x65), (6, 0x20), (9, 6), (12, 11), (3, 19), (24, 0xff)] {
            let mut wrong = packet.clone();
            wrong[place] = value;
            assert_eq!(unwrap(&wrong, CLIENT_PORT), None, "{place}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..600), cut in 0usize..900) {
            let _ = Message::decode(&bytes);
            let _ = unwrap(&bytes, CLIENT_PORT);
            let mut message = offer().encode();
            message.truncate(cut);
            message.extend(&bytes);
            let _ = Message::decode(&message);
            let mut packet = wrap((Ipv4Addr::LOCALHOST, 1), (Ipv4Addr::LOCALHOST, CLIENT_PORT), &message);
            packet.truncate(cut);
            let _ = unwrap(&packet, CLIENT_PORT);
        }
    }
}
