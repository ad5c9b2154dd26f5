//! A server that does what a test wants.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use outrigger_netlink::route::Handle;
use outrigger_sys::packet as sys;
use rustix::event::{PollFd, PollFlags, poll};

use super::super::packet::{CLIENT_PORT, Message, MessageType, SERVER_PORT, option, unwrap, wrap};
use super::Lan;

/// How it behaves at the moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Mood {
    /// Gives leases of so many seconds.
    Generous(u32),
    /// Refuses every request.
    Refusing,
    /// Says nothing.
    Silent,
}

pub(super) struct Server {
    mood: Arc<Mutex<Mood>>,
    heard: Arc<Mutex<Vec<(MessageType, Ipv4Addr)>>>,
    stop: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(super) fn start(lan: &Lan, mood: Mood) -> Self {
        let (mood, heard) = (Arc::new(Mutex::new(mood)), Arc::new(Mutex::new(Vec::new())));
        let (read, stop) = rustix::pipe::pipe().unwrap();
        let index = Handle::in_netns(&lan.server).unwrap().link("srv").unwrap().index;
        let socket = lan.server.run(sys::open).unwrap().unwrap();
        sys::bind(&socket, index).unwrap();
        let thread = std::thread::spawn({
            let (mood, heard) = (mood.clone(), heard.clone());
            move || {
                loop {
                    let mut fds = [
                        PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN),
                        PollFd::from_borrowed_fd(read.as_fd(), PollFlags::IN),
                    ];
                    poll(&mut fds, None).unwrap();
                    if !fds[1].revents().is_empty() {
                        return;
                    }
                    let mut buffer = [0; 2000];
                    let Ok((length, from)) = sys::receive(&socket, &mut buffer) else { continue };
                    let message = unwrap(&buffer[..length], SERVER_PORT).and_then(Message::decode);
                    let Some(message) = message.filter(|message| !message.is_reply) else { continue };
                    heard.lock().unwrap().push((message.kind().unwrap(), message.client));
                    if let Some(reply) = reply(&message, *mood.lock().unwrap()) {
                        let to = (Ipv4Addr::BROADCAST, CLIENT_PORT);
                        let packet = wrap(([10, 77, 0, 1].into(), SERVER_PORT), to, &reply.encode());
                        sys::send(&socket, index, from, &packet).unwrap();
                    }
                }
            }
        });
        Self { mood, heard, stop: Some(stop), thread: Some(thread) }
    }

    pub(super) fn become_(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    /// How many messages of a kind came, and from which address the last.
    pub(super) fn heard(&self, kind: MessageType) -> (usize, Option<Ipv4Addr>) {
        let heard = self.heard.lock().unwrap();
        let mut of_kind = heard.iter().filter(|(heard, _)| *heard == kind);
        (of_kind.clone().count(), of_kind.next_back().map(|(_, address)| *address))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.take();
        self.thread.take().unwrap().join().unwrap();
    }
}

fn reply(to: &Message, mood: Mood) -> Option<Message> {
    let kind = match (to.kind()?, mood) {
        (_, Mood::Silent) => return None,
        (MessageType::Discover, _) => MessageType::Offer,
        (MessageType::Request, Mood::Generous(_)) => MessageType::Ack,
        (MessageType::Request, Mood::Refusing) => MessageType::Nak,
        _ => return None,
    };
    let mut message = Message::new(kind, to.transaction, to.hardware);
    message.is_reply = true;
    message.options.insert(option::SERVER_ID, vec![10, 77, 0, 1]);
    if kind != MessageType::Nak {
        message.yours = [10, 77, 0, 99].into();
        let time = if let Mood::Generous(time) = mood { time } else { 60 };
        message.options.extend(BTreeMap::from([
            (option::SUBNET_MASK, vec![255, 255, 255, 0]),
            (option::ROUTER, vec![10, 77, 0, 1]),
            (option::LEASE_TIME, time.to_be_bytes().to_vec()),
        ]));
    }
    Some(message)
}
