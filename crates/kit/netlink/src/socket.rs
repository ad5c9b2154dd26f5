//! A blocking netlink socket: requests, questions, dumps, batches, and events of the groups it joined.

use std::cell::{Cell, RefCell};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use outrigger_sys::net as sys;
use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};

use crate::wire::{Attributes, HEADER, Message, Messages, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_MULTI};
use crate::{Error, NetNs, Result};

const NLMSG_NOOP: u16 = 1;
/// Type of an acknowledgement or error (`NLMSG_ERROR`).
pub const NLMSG_ERROR: u16 = 2;
/// Type of the last message of a dump (`NLMSG_DONE`).
pub const NLMSG_DONE: u16 = 3;
const NLMSG_OVERRUN: u16 = 4;

const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;

/// The kernel fills datagrams of a dump up to this size if the reader's buffer has it.
const BUFFER: usize = 32 << 10;
/// Largest datagram that is received, after growing.
const BUFFER_LIMIT: usize = 16 << 20;
/// What fits through a socket without asking for more room.
const PLAIN_SEND: usize = 96 << 10;
/// To so many messages all answers fit into a socket's usual buffer.
const PLAIN_ANSWERS: usize = 64;
/// What the kernel counts for one answer, however short, is less than twice this.
const ANSWER: usize = 2048;
/// How often a dump is started again because something changed meanwhile.
const DUMP_ATTEMPTS: u32 = 64;

/// Which part of the kernel is talked to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Links, addresses, routes, rules, traffic control: rtnetlink(7).
    Route,
    /// `nf_tables` and conntrack.
    Netfilter,
}

/// One message that was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Its type.
    pub kind: u16,
    /// Its flags.
    pub flags: u16,
    /// The request that it answers; 0 for an event.
    pub sequence: u32,
    /// What follows the header.
    pub payload: Vec<u8>,
}

/// What became of one message of a batch.
#[derive(Debug)]
pub struct Outcome {
    /// Messages that answered it (where it asked for an echo).
    pub replies: Vec<Reply>,
    /// Whether the kernel did it.
    pub result: Result<()>,
}

/// A refusal as the kernel states it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The error number.
    pub errno: Errno,
    /// The explanation, where there is one.
    pub message: Option<String>,
}

impl Refusal {
    /// Says which operation was refused.
    pub fn during(self, operation: impl Into<String>) -> Error {
        Error::Kernel { operation: operation.into(), errno: self.errno, message: self.message }
    }
}

impl Reply {
    /// For an acknowledgement ([`NLMSG_ERROR`]): what it says. None for every other message.
    pub fn acknowledgement(&self) -> Option<Result<(), Refusal>> {
        (self.kind == NLMSG_ERROR).then(|| acknowledgement(self.flags, &self.payload))
    }
}

/// A socket. It stays in the network namespace in which it was opened, wherever the thread that uses it is.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    protocol: Protocol,
    sequence: Cell<u32>,
    strict: Cell<bool>,
    subscribed: Cell<bool>,
    buffer: RefCell<Vec<u8>>,
    /// Events that came while an answer was awaited.
    events: RefCell<Vec<Reply>>,
}

impl Socket {
    /// Opens a socket in the thread's network namespace.
    pub fn open(protocol: Protocol) -> Result<Self> {
        let number = match protocol {
            Protocol::Route => None,
            Protocol::Netfilter => Some(netlink::NETFILTER),
        };
        let fd = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, number)
            .map_err(Error::errno_of("open a netlink socket"))?;
        // Kernels that do not know them answer less clearly, no more.
        let _ = sys::set_netlink_option(&fd, sys::NETLINK_EXT_ACK, 1);
        let _ = sys::set_netlink_option(&fd, sys::NETLINK_CAP_ACK, 1);
        Ok(Self {
            fd,
            protocol,
            sequence: Cell::new(1),
            strict: Cell::new(false),
            subscribed: Cell::new(false),
            buffer: RefCell::new(Vec::new()),
            events: RefCell::new(Vec::new()),
        })
    }

    /// Opens a socket in this network namespace.
    pub fn open_in(protocol: Protocol, netns: &NetNs) -> Result<Self> {
        netns.run(|| Self::open(protocol))?
    }

    /// Which part of the kernel it talks to.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Sends one message and waits until the kernel has done it.
    pub fn request(&self, mut message: Message) -> Result<()> {
        message.add_flags(NLM_F_ACK);
        self.converse(&mut message, |_| ())
    }

    /// Sends a question and gives its answers: one message, or several that are marked as such.
    pub fn query(&self, mut message: Message) -> Result<Vec<Reply>> {
        self.collect(&mut message)
    }

    /// Asks for all objects. Starts again if something changed while the kernel listed them.
    pub fn dump(&self, mut message: Message) -> Result<Vec<Reply>> {
        if self.protocol == Protocol::Route && !self.strict.replace(true) {
            // Older kernels list more than was asked for; callers filter in any case.
            let _ = sys::set_netlink_option(&self.fd, sys::NETLINK_GET_STRICT_CHK, 1);
        }
        message.add_flags(NLM_F_DUMP);
        for _ in 0..DUMP_ATTEMPTS {
            let mut replies = self.collect(&mut message)?;
            let interrupted = replies.iter().any(|reply| reply.flags & NLM_F_DUMP_INTR != 0);
            if replies.last().is_some_and(|last| last.kind == NLMSG_DONE) {
                replies.pop();
            }
            if !interrupted {
                return Ok(replies);
            }
        }
        Err(Refusal { errno: Errno::INTR, message: Some("it changes all the time".into()) }.during(message.operation()))
    }

    /// Sends several messages at once and waits until the kernel has gone through them all, in order. One that is refused
    /// does not keep it from the next ones. Outcomes are in the order of the messages.
    ///
    /// This is how rtnetlink treats a batch; `nf_tables` does all or nothing and has its own code.
    pub fn batch(&self, mut messages: Vec<Message>) -> Result<Vec<Outcome>> {
        let Some(last) = messages.last_mut() else { return Ok(Vec::new()) };
        // Messages are handled in order and refusals are always told, so one acknowledgement, the last, is enough.
        last.add_flags(NLM_F_ACK);
        let first = self.send(&mut messages)?;
        let mut outcomes: Vec<Outcome> =
            messages.iter().map(|_| Outcome { replies: Vec::new(), result: Ok(()) }).collect();
        let mut done = false;
        while !done {
            for reply in self.receive()? {
                let index = reply.sequence.wrapping_sub(first) as usize;
                let (Some(outcome), Some(message)) = (outcomes.get_mut(index), messages.get(index)) else { continue };
                match reply.acknowledgement() {
                    Some(result) => {
                        outcome.result = result.map_err(|refusal| refusal.during(message.operation()));
                        done |= index + 1 == messages.len();
                    }
                    None => outcome.replies.push(reply),
                }
            }
        }
        Ok(outcomes)
    }

    /// Sends messages with one system call and gives the sequence number of the first; the others count on from there.
    pub fn send(&self, messages: &mut [Message]) -> Result<u32> {
        let first = self.sequence.get();
        let operation = messages.first().map_or("", Message::operation).to_owned();
        let mut sequence = first;
        let count = messages.len();
        let mut bytes = Vec::with_capacity(messages.iter().map(Message::size).sum());
        for message in messages {
            bytes.extend_from_slice(message.finish(sequence)?);
            sequence = next(sequence);
        }
        self.sequence.set(sequence);
        self.send_bytes(&bytes, count, &operation)?;
        Ok(first)
    }

    /// Waits for a datagram and gives its messages. Those of other senders than the kernel are dropped.
    pub fn receive(&self) -> Result<Vec<Reply>> {
        let mut replies = Vec::new();
        self.receive_each(|reply| replies.push(reply))?;
        Ok(replies)
    }

    /// Joins a multicast group (`RTNLGRP_…`, `NFNLGRP_…`). Its events are handed out by [`Socket::event`].
    pub fn join(&self, group: u32) -> Result<()> {
        if !self.subscribed.replace(true) && self.sequence.get() == 1 {
            // Sending would have done it; without a port of its own a socket gets no events.
            rustix::net::bind(&self.fd, &SocketAddrNetlink::new(0, 0))
                .map_err(Error::errno_of("bind a netlink socket"))?;
        }
        sys::set_netlink_option(&self.fd, sys::NETLINK_ADD_MEMBERSHIP, group.cast_signed())
            .map_err(Error::io("join a netlink group"))
    }

    /// Leaves a group and forgets the events that were not fetched.
    pub fn leave(&self, group: u32) -> Result<()> {
        self.subscribed.set(false);
        self.events.borrow_mut().clear();
        sys::set_netlink_option(&self.fd, sys::NETLINK_DROP_MEMBERSHIP, group.cast_signed())
            .map_err(Error::io("leave a netlink group"))
    }

    /// The next event of the groups joined; none once `deadline` has passed. Fails with `ENOBUFS` if events were lost
    /// because nobody fetched them in time.
    pub fn event(&self, deadline: Instant) -> Result<Option<Reply>> {
        loop {
            let mut events = self.events.borrow_mut();
            if !events.is_empty() {
                return Ok(Some(events.remove(0)));
            }
            drop(events);
            let left = deadline.saturating_duration_since(Instant::now());
            match self.wait(left)? {
                Waited::Ready => {}
                Waited::Interrupted => continue,
                Waited::Timeout => return Ok(None),
            }
            let mut fresh = self.receive()?;
            self.events.borrow_mut().append(&mut fresh);
        }
    }

    fn wait(&self, timeout: Duration) -> Result<Waited> {
        let timeout = Timespec::try_from(timeout)
            .map_err(|_| Error::Invalid { what: "wait for netlink events: too long a time".into() })?;
        let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) => Ok(Waited::Timeout),
            Ok(_) => Ok(Waited::Ready),
            // The caller looks at its deadline again.
            Err(Errno::INTR) => Ok(Waited::Interrupted),
            Err(errno) => Err(Error::errno_of("wait for netlink events")(errno)),
        }
    }

    /// Sends one message that changes nothing and collects what answers it; once more with more room if it did not fit.
    fn collect(&self, message: &mut Message) -> Result<Vec<Reply>> {
        loop {
            let room = self.buffer.borrow().capacity().max(BUFFER);
            let mut replies = Vec::new();
            match self.converse(message, |reply| replies.push(reply)) {
                Ok(()) => return Ok(replies),
                Err(_) if self.buffer.borrow().capacity() > room => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends one message and hands every message that answers it to `take`, until the kernel says that it is done.
    fn converse(&self, message: &mut Message, mut take: impl FnMut(Reply)) -> Result<()> {
        let sequence = self.sequence.get();
        self.sequence.set(next(sequence));
        let wants_ack = message.flags() & NLM_F_ACK != 0;
        message.finish(sequence)?;
        self.send_bytes(message.as_bytes(), 1, message.operation())?;
        let mut outcome = None;
        while outcome.is_none() {
            self.receive_each(|reply| {
                if reply.sequence != sequence {
                    if reply.sequence == 0 && self.subscribed.get() {
                        self.events.borrow_mut().push(reply);
                    }
                    return;
                }
                if let Some(result) = reply.acknowledgement() {
                    outcome = Some(result);
                } else if reply.kind == NLMSG_DONE {
                    // The body is the error with which the dump ended, if any.
                    let code = reply.payload.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                    outcome = Some(refusal(code).map_or(Ok(()), |errno| Err(Refusal { errno, message: None })));
                    take(reply);
                } else {
                    let single = reply.flags & NLM_F_MULTI == 0 && !wants_ack;
                    take(reply);
                    if single {
                        outcome = Some(Ok(()));
                    }
                }
            })
            .map_err(|error| match error {
                Error::Io { source, .. } => Error::Io { operation: message.operation().to_owned(), source },
                other => other,
            })?;
        }
        outcome.unwrap_or(Ok(())).map_err(|refusal| refusal.during(message.operation()))
    }

    fn send_bytes(&self, bytes: &[u8], count: usize, operation: &str) -> Result<()> {
        // Where the kernel refuses more than the usual limit, sending or receiving tells.
        if bytes.len() > PLAIN_SEND {
            let _ = rustix::net::sockopt::set_socket_send_buffer_size_force(&self.fd, bytes.len() + (64 << 10));
        }
        if count > PLAIN_ANSWERS {
            let _ = rustix::net::sockopt::set_socket_recv_buffer_size_force(&self.fd, count.saturating_mul(ANSWER));
        }
        loop {
            match rustix::net::send(&self.fd, bytes, SendFlags::empty()) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(Error::errno_of(operation)(errno)),
            }
        }
    }

    fn receive_each(&self, mut take: impl FnMut(Reply)) -> Result<()> {
        let mut buffer = self.buffer.borrow_mut();
        buffer.clear();
        if buffer.capacity() < BUFFER {
            buffer.reserve(BUFFER);
        }
        loop {
            // Looking at the length first costs a second call; it is only done by those who needed more room before.
            if buffer.capacity() > BUFFER {
                self.make_room(&mut buffer)?;
            }
            match rustix::net::recvfrom(&self.fd, spare_capacity(&mut buffer), RecvFlags::TRUNC) {
                Ok((_, length, _)) if length > buffer.capacity() => {
                    // What did not fit is lost. The next attempt will find room for it.
                    buffer.clear();
                    buffer.reserve(length.clamp(2 * BUFFER, BUFFER_LIMIT));
                    let what = format!("an answer of {length} bytes did not fit; try again");
                    return Err(Error::Malformed { what });
                }
                Ok((_, _, sender)) => {
                    let sender = sender.and_then(|sender| SocketAddrNetlink::try_from(sender).ok());
                    if sender.is_some_and(|sender| sender.pid() != 0) {
                        buffer.clear();
                        continue;
                    }
                    break;
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(Error::errno_of("receive from netlink")(errno)),
            }
        }
        for message in Messages::new(&buffer) {
            match message.kind {
                NLMSG_NOOP => {}
                NLMSG_OVERRUN => return Err(Error::errno_of("receive from netlink")(Errno::NOBUFS)),
                kind => take(Reply {
                    kind,
                    flags: message.flags,
                    sequence: message.sequence,
                    payload: message.payload.to_vec(),
                }),
            }
        }
        Ok(())
    }

    fn make_room(&self, buffer: &mut Vec<u8>) -> Result<()> {
        loop {
            match rustix::net::recv(&self.fd, &mut [0u8; 1][..], RecvFlags::PEEK | RecvFlags::TRUNC) {
                Ok((_, length)) => {
                    buffer.reserve(length.min(BUFFER_LIMIT));
                    return Ok(());
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(Error::errno_of("receive from netlink")(errno)),
            }
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// How waiting for events ended.
enum Waited {
    Ready,
    Timeout,
    /// By a signal: there may be nothing to receive.
    Interrupted,
}

/// The next sequence number. 0 is that of events.
fn next(sequence: u32) -> u32 {
    sequence.wrapping_add(1).max(1)
}

fn refusal(code: i32) -> Option<Errno> {
    // Numbers that no error has can only come from a broken sender.
    let errno = |number| if number < 4096 { Errno::from_raw_os_error(number) } else { Errno::PROTO };
    (code < 0).then(|| errno(code.saturating_neg()))
}

/// Reads `struct nlmsgerr` and the attributes behind it.
fn acknowledgement(flags: u16, payload: &[u8]) -> Result<(), Refusal> {
    let code = payload.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
    let Some(errno) = refusal(code) else { return Ok(()) };
    let message = (flags & NLM_F_ACK_TLVS != 0).then(|| explanation(flags, payload)).flatten();
    Err(Refusal { errno, message })
}

fn explanation(flags: u16, payload: &[u8]) -> Option<String> {
    // The header of the request is repeated, and unless capped all of it.
    let mut start = 4 + HEADER;
    if flags & NLM_F_CAPPED == 0 {
        let length = u32::from_ne_bytes(*payload.get(4..)?.first_chunk()?);
        start = 4 + crate::wire::align(usize::try_from(length).ok()?.max(HEADER));
    }
    let text = Attributes::new(payload.get(start..)?).find(NLMSGERR_ATTR_MSG)?;
    // Some of the kernel's texts end in a line feed.
    Some(text.str().ok()?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn acknowledgement_bytes(capped: bool) -> (u16, Vec<u8>) {
        let mut bytes = (-17i32).to_ne_bytes().to_vec();
        let mut request = Message::new(16, 0);
        request.attr_str(3, "eth0");
        bytes.extend_from_slice(&request.finish(7).unwrap()[..if capped { HEADER } else { 28 }]);
        let mut attributes = Message::new(0, 0);
        attributes.attr_u32(2, 20).attr_str(1, "taken already\n");
        bytes.extend_from_slice(&attributes.finish(0).unwrap()[HEADER..]);
        (NLM_F_ACK_TLVS | if capped { NLM_F_CAPPED } else { 0 }, bytes)
    }

    #[test]
    fn refusals_are_read_capped_or_whole() {
        for capped in [true, false] {
            let (flags, bytes) = acknowledgement_bytes(capped);
            let refusal = acknowledgement(flags, &bytes).unwrap_err();
            assert_eq!(refusal, Refusal { errno: Errno::EXIST, message: Some("taken already".into()) });
            assert_eq!(acknowledgement(0, &bytes).unwrap_err().message, None);
        }
        assert_eq!(acknowledgement(0, &0i32.to_ne_bytes()), Ok(()));
    }

    #[test]
    fn sequence_numbers_skip_that_of_events() {
        assert_eq!(next(1), 2);
        assert_eq!(next(u32::MAX), 1);
    }

    #[test]
    fn a_question_to_the_kernel() {
        let socket = Socket::open(Protocol::Route).unwrap();
        let mut message = Message::new(18, 0).about("look at link 1");
        message.put(&[0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let replies = socket.query(message).unwrap();
        assert_eq!((replies.len(), replies[0].kind), (1, 16));
        let mut message = Message::new(18, 0).about("look at link 70000");
        message.put(&[0u32.to_ne_bytes(), 70_000u32.to_ne_bytes(), [0; 4], [0; 4]].concat());
        let error = socket.query(message).unwrap_err();
        assert!(error.is_not_found(), "{error}");
        assert!(error.to_string().starts_with("look at link 70000: "), "{error}");
    }

    proptest! {
        #[test]
        fn no_acknowledgement_panics(flags: u16, bytes in prop::collection::vec(any::<u8>(), 0..120)) {
            let _ = acknowledgement(flags, &bytes);
        }
    }
}
