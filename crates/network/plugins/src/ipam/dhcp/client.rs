//! The state machine of a client (RFC 2131, sections 4.3 and 4.4). Time and randomness are arguments, messages are values:
//! nothing here waits, sends or receives.

use std::net::Ipv4Addr;
use std::time::Duration;

use super::lease::Lease;
use super::options::Options;
use super::packet::{Message, MessageType, option};

/// Time since the machine was started, sleep included.
pub type Time = Duration;

/// What a server is told, and how patiently.
#[derive(Debug, Clone)]
pub struct Profile {
    /// Hardware address of the interface.
    pub hardware: [u8; 6],
    /// Options of every message.
    pub options: Options,
    /// Ask for broadcast replies.
    pub broadcast: bool,
    /// How long a server may take to answer a request.
    pub timeout: Duration,
    /// The longest pause between two tries.
    pub resend_max: Duration,
    /// After this, the first acquisition is given up.
    pub limit: Duration,
}

/// Where a message is to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// To whoever listens.
    Broadcast,
    /// To the server of the lease, from the leased address, over the station that its messages came from.
    Server {
        /// The server.
        server: Ipv4Addr,
        /// Hardware address of the server or of the relay.
        next_hop: [u8; 6],
    },
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Send a message.
    Send(Message, Destination),
    /// There is a lease: the first, a renewed one, or (if `restored`) the lost address again.
    Leased {
        /// The address had been taken off the interface.
        restored: bool,
    },
    /// The address must not be used any longer.
    Lost,
    /// No lease could be had; the client is at its end.
    Failed(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Selecting,
    Requesting { offered: Ipv4Addr, server: Ipv4Addr, until: Time },
    Bound,
    Renewing,
    Rebinding,
}

/// No lease is renewed earlier, unless half of it is shorter: a server's words must not become a flood of requests.
const SOONEST: Duration = Duration::from_secs(10);

/// A client.
#[derive(Debug, Clone)]
pub struct Client {
    profile: Profile,
    phase: Phase,
    lease: Option<Lease>,
    /// When the lease was given.
    given: Time,
    /// The address that was lost: no other will do, since the container's is known to the runtime.
    lost: Option<Ipv4Addr>,
    began: Time,
    sent: Time,
    next: Option<Time>,
    tries: u32,
    transaction: u32,
    random: u64,
    last_refusal: Option<String>,
}

impl Client {
    /// Begins to look for a lease.
    pub fn new(profile: Profile, now: Time, random: u64) -> Self {
        Self {
            profile,
            phase: Phase::Selecting,
            lease: None,
            given: now,
            lost: None,
            began: now,
            sent: now,
            next: Some(now),
            tries: 0,
            transaction: 0,
            // xorshift knows no way out of zero.
            random: random | 1,
            last_refusal: None,
        }
    }

    /// Takes up a lease that was given earlier.
    pub fn resume(profile: Profile, lease: Lease, given: Time, now: Time, random: u64) -> Self {
        let mut client = Self::new(profile, now, random);
        client.bind(lease, given, given);
        client
    }

    /// The lease, unless it was lost.
    pub fn lease(&self) -> Option<&Lease> {
        self.lease.as_ref().filter(|_| self.lost.is_none())
    }

    /// When the lease was given.
    pub fn given(&self) -> Time {
        self.given
    }

    /// Whether the address was lost, and is looked for again.
    pub fn is_lost(&self) -> bool {
        self.lost.is_some()
    }

    /// When [`Self::tick`] is to be called; none if never.
    pub fn wake(&self) -> Option<Time> {
        self.next
    }

    /// Whether messages are awaited.
    pub fn listens(&self) -> bool {
        self.phase != Phase::Bound
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Time) -> Vec<Action> {
        if self.next.is_none_or(|next| now < next) {
            return Vec::new();
        }
        match self.phase {
            Phase::Selecting => self.select(now),
            Phase::Requesting { until, .. } if now >= until => {
                self.restart(now);
                self.select(now)
            }
            Phase::Requesting { offered, server, until } => {
                self.next = Some(self.pause(now).min(until));
                vec![self.request(now, offered, server)]
            }
            Phase::Bound | Phase::Renewing | Phase::Rebinding => self.extend(now),
        }
    }

    /// Takes a message that was received from a station.
    pub fn receive(&mut self, now: Time, message: &Message, from: [u8; 6]) -> Vec<Action> {
        if !message.is_reply || message.transaction != self.transaction || message.hardware != self.profile.hardware {
            return Vec::new();
        }
        let server = message.address(option::SERVER_ID);
        match (self.phase, message.kind()) {
            (Phase::Selecting, Some(MessageType::Offer)) => {
                let Some(server) = server.filter(|_| !message.yours.is_unspecified()) else { return Vec::new() };
                if self.lost.is_some_and(|lost| lost != message.yours) {
                    return Vec::new();
                }
                let until = now + self.profile.timeout;
                self.phase = Phase::Requesting { offered: message.yours, server, until };
                self.tries = 0;
                self.next = Some(self.pause(now).min(until));
                vec![self.request(now, message.yours, server)]
            }
            (Phase::Requesting { server: chosen, .. }, kind) if server == Some(chosen) => {
                self.conclude(now, message, kind, from)
            }
            (Phase::Renewing, kind) if server == self.lease.as_ref().map(|lease| lease.server) => {
                self.conclude(now, message, kind, from)
            }
            (Phase::Rebinding, kind) => self.conclude(now, message, kind, from),
            _ => Vec::new(),
        }
    }

    /// The message that gives the lease back, if there is one to give back.
    pub fn release(&mut self) -> Option<(Message, Destination)> {
        let lease = self.lease.clone().filter(|_| self.lost.is_none())?;
        self.transaction = self.transaction_id();
        let mut message = Message::new(MessageType::Release, self.transaction, self.profile.hardware);
        message.client = lease.address;
        message.options.insert(option::SERVER_ID, lease.server.octets().to_vec());
        if let Some(id) = self.profile.options.get(&option::CLIENT_ID) {
            message.options.insert(option::CLIENT_ID, id.clone());
        }
        self.next = None;
        Some((message, Destination::Server { server: lease.server, next_hop: lease.next_hop }))
    }

    /// An acknowledgement or a refusal.
    fn conclude(&mut self, now: Time, message: &Message, kind: Option<MessageType>, from: [u8; 6]) -> Vec<Action> {
        let held = self.lease.as_ref().map(|lease| lease.address);
        match kind {
            Some(MessageType::Ack) => match Lease::of(message, from) {
                Some(lease) if held.is_none_or(|held| held == lease.address) => {
                    let restored = self.lost.take().is_some();
                    self.bind(lease, self.sent, now);
                    vec![Action::Leased { restored }]
                }
                // Another address than the one that was asked for: of no use, as a refusal.
                Some(_) => self.refused(now),
                None => {
                    if message.number(option::LEASE_TIME) == Some(0) {
                        let server = message.address(option::SERVER_ID).unwrap_or(Ipv4Addr::UNSPECIFIED);
                        self.last_refusal = Some(format!("the server {server} gave a lease of 0 s"));
                    }
                    Vec::new()
                }
            },
            Some(MessageType::Nak) => {
                let words =
                    message.options.get(&option::MESSAGE).map(|words| String::from_utf8_lossy(words).into_owned());
                let server = message.address(option::SERVER_ID).unwrap_or(Ipv4Addr::UNSPECIFIED);
                let why = words.map(|words| format!(": {}", words.replace(char::is_control, " "))).unwrap_or_default();
                self.last_refusal = Some(format!("the server {server} refused{why}"));
                self.refused(now)
            }
            _ => Vec::new(),
        }
    }

    /// Starts over (RFC 2131, section 3.1, item 5), not at once, lest both sides run in a circle.
    fn refused(&mut self, now: Time) -> Vec<Action> {
        let lost = self.lose();
        self.restart(now);
        self.next = Some(self.pause(now));
        lost
    }

    fn lose(&mut self) -> Vec<Action> {
        match &self.lease {
            Some(lease) if self.lost.is_none() => {
                self.lost = Some(lease.address);
                vec![Action::Lost]
            }
            _ => Vec::new(),
        }
    }

    fn restart(&mut self, now: Time) {
        self.phase = Phase::Selecting;
        self.transaction = self.transaction_id();
        if self.lost.is_some() && self.began < self.given {
            self.began = now;
        }
    }

    /// Holds a lease; it is not renewed before `now` and a while, however short a time the server gave.
    fn bind(&mut self, lease: Lease, given: Time, now: Time) {
        self.phase = Phase::Bound;
        self.tries = 0;
        self.next = lease.times().map(|(renew, _, end)| (given + renew).max(now + SOONEST.min(end / 2)));
        self.given = given;
        self.lease = Some(lease);
    }

    fn select(&mut self, now: Time) -> Vec<Action> {
        if self.lease.is_none() && now >= self.began + self.profile.limit {
            self.next = None;
            let refusal = self.last_refusal.take().map(|refusal| format!("; {refusal}")).unwrap_or_default();
            let seconds = self.profile.limit.as_secs();
            return vec![Action::Failed(format!("no dhcp server gave a lease within {seconds} s{refusal}"))];
        }
        if self.transaction == 0 {
            self.transaction = self.transaction_id();
        }
        let mut message = self.message(now, MessageType::Discover);
        if let Some(address) = self.lost {
            message.options.insert(option::REQUESTED_ADDRESS, address.octets().to_vec());
        }
        let pause = self.pause(now);
        let end = self.began + self.profile.limit;
        self.next = Some(if self.lease.is_none() { pause.min(end) } else { pause });
        vec![Action::Send(message, Destination::Broadcast)]
    }

    fn request(&mut self, now: Time, offered: Ipv4Addr, server: Ipv4Addr) -> Action {
        let mut message = self.message(now, MessageType::Request);
        message.options.insert(option::REQUESTED_ADDRESS, offered.octets().to_vec());
        message.options.insert(option::SERVER_ID, server.octets().to_vec());
        Action::Send(message, Destination::Broadcast)
    }

    /// Renews, asks any server, or lets the lease end, by the time that has passed since it was given.
    fn extend(&mut self, now: Time) -> Vec<Action> {
        let Some((lease, times)) = self.lease.clone().and_then(|lease| lease.times().map(|times| (lease, times)))
        else {
            self.next = None;
            return Vec::new();
        };
        let (rebind, end) = (self.given + times.1, self.given + times.2);
        if now >= end {
            self.tries = 0;
            return self.refused(now);
        }
        let (phase, until, destination) = if now < rebind {
            (Phase::Renewing, rebind, Destination::Server { server: lease.server, next_hop: lease.next_hop })
        } else {
            (Phase::Rebinding, end, Destination::Broadcast)
        };
        if self.phase != phase {
            self.phase = phase;
            self.began = now;
            self.transaction = self.transaction_id();
        }
        // Half of what is left, but not below a minute (section 4.4.5), or below a tenth of a short lease.
        let least = Duration::from_mins(1).min(times.2 / 10).max(Duration::from_secs(1));
        self.next = Some((now + (until.saturating_sub(now) / 2).max(least)).min(until));
        let mut message = self.message(now, MessageType::Request);
        message.client = lease.address;
        message.broadcast = false;
        vec![Action::Send(message, destination)]
    }

    fn message(&mut self, now: Time, kind: MessageType) -> Message {
        self.sent = now;
        let mut message = Message::new(kind, self.transaction, self.profile.hardware);
        message.broadcast = self.profile.broadcast;
        message.seconds = u16::try_from(now.saturating_sub(self.began).as_secs()).unwrap_or(u16::MAX);
        message.options.extend(self.profile.options.iter().map(|(number, value)| (*number, value.clone())));
        message
    }

    /// When the next try is due: soon after the first, since an interface that has just been set up may lose it; then three
    /// times after about two seconds, then four and more (section 4.1).
    fn pause(&mut self, now: Time) -> Time {
        const FAST: u32 = 4;
        if self.tries == 0 {
            self.tries = 1;
            return now + Duration::from_millis(300 + self.next_random() % 200);
        }
        let base = match self.tries.checked_sub(FAST) {
            None => Duration::from_secs(2),
            Some(slow) => Duration::from_secs(4 << slow.min(8)).min(self.profile.resend_max),
        };
        self.tries = self.tries.saturating_add(1);
        let jitter = Duration::from_millis(self.next_random() % 2_000);
        now + (base + jitter).saturating_sub(Duration::from_secs(1))
    }

    fn transaction_id(&mut self) -> u32 {
        u32::try_from(self.next_random() >> 32).unwrap_or(0).max(1)
    }

    fn next_random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}

#[cfg(test)]
mod tests;
