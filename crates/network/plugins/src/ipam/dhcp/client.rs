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
        client.bind(lease, given);
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
                    self.bind(lease, self.sent);
                    vec![Action::Leased { restored }]
                }
                // Another address than the one that was asked for: of no use, as a refusal.
                Some(_) => self.refused(now),
                None => Vec::new(),
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

    fn bind(&mut self, lease: Lease, given: Time) {
        self.phase = Phase::Bound;
        self.tries = 0;
        self.next = lease.times().map(|(renew, _, _)| given + renew);
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
            let lost = self.lose();
            self.restart(now);
            self.tries = 0;
            self.next = Some(now);
            return lost;
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
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HARDWARE: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const HOP: [u8; 6] = [2, 0, 0, 0, 0, 2];

    fn profile() -> Profile {
        Profile {
            hardware: HARDWARE,
            options: Options::from([(option::CLIENT_ID, b"\0id".to_vec())]),
            broadcast: false,
            timeout: Duration::from_secs(10),
            resend_max: Duration::from_secs(62),
            limit: Duration::from_mins(1),
        }
    }

    fn secs(seconds: u64) -> Time {
        Duration::from_secs(seconds)
    }

    fn reply(kind: MessageType, to: &Message, address: [u8; 4]) -> Message {
        let mut message = Message::new(kind, to.transaction, HARDWARE);
        message.is_reply = true;
        message.yours = address.into();
        message.options.insert(option::SERVER_ID, vec![10, 0, 0, 1]);
        message.options.insert(option::SUBNET_MASK, vec![255, 255, 255, 0]);
        message.options.insert(option::LEASE_TIME, 1_000u32.to_be_bytes().to_vec());
        message
    }

    fn sent(actions: &[Action]) -> (Message, Destination) {
        match actions {
            [Action::Send(message, destination)] => (message.clone(), *destination),
            other => panic!("{other:?}"),
        }
    }

    const ADDRESS: [u8; 4] = [10, 0, 0, 9];

    fn acquire(client: &mut Client, now: Time) {
        let (discover, _) = sent(&client.tick(now));
        let (request, _) = sent(&client.receive(now, &reply(MessageType::Offer, &discover, ADDRESS), HOP));
        let actions = client.receive(now, &reply(MessageType::Ack, &request, ADDRESS), HOP);
        assert_eq!(actions, [Action::Leased { restored: false }]);
    }

    #[test]
    fn acquires() {
        let mut client = Client::new(profile(), secs(5), 9);
        assert_eq!(client.wake(), Some(secs(5)));
        let (discover, to) = sent(&client.tick(secs(5)));
        assert_eq!((discover.kind(), to), (Some(MessageType::Discover), Destination::Broadcast));
        assert_eq!(discover.options[&option::CLIENT_ID], b"\0id");
        assert!(client.tick(secs(5)).is_empty(), "not before it is due");
        // A reply to another, from a client, without server: not ours.
        let offer = reply(MessageType::Offer, &discover, ADDRESS);
        for spoil in 0..4 {
            let mut other = offer.clone();
            match spoil {
                0 => other.transaction ^= 1,
                1 => other.hardware[5] ^= 1,
                2 => other.is_reply = false,
                _ => drop(other.options.remove(&option::SERVER_ID)),
            }
            assert!(client.receive(secs(5), &other, HOP).is_empty());
        }
        let (request, to) = sent(&client.receive(secs(6), &offer, HOP));
        assert_eq!((request.kind(), to), (Some(MessageType::Request), Destination::Broadcast));
        assert_eq!(request.options[&option::REQUESTED_ADDRESS], ADDRESS);
        assert_eq!(request.options[&option::SERVER_ID], [10, 0, 0, 1]);
        assert_eq!(request.transaction, discover.transaction);
        assert!(client.receive(secs(6), &offer, HOP).is_empty(), "a second offer comes too late");
        let actions = client.receive(secs(7), &reply(MessageType::Ack, &request, ADDRESS), HOP);
        assert_eq!(actions, [Action::Leased { restored: false }]);
        assert_eq!(client.lease().unwrap().address, Ipv4Addr::from(ADDRESS));
        assert_eq!(client.wake(), Some(secs(506)), "T1 counts from the request");
        assert!(!client.listens());
    }

    #[test]
    fn gives_up_in_bounded_time() {
        let mut client = Client::new(profile(), secs(0), 3);
        let mut now = secs(0);
        let mut tries = 0;
        let failed = loop {
            let actions = client.tick(now);
            match &actions[..] {
                [Action::Failed(why)] => break why.clone(),
                _ => tries += 1,
            }
            now = client.wake().unwrap();
        };
        assert_eq!(failed, "no dhcp server gave a lease within 60 s");
        assert_eq!(now, secs(60));
        assert!((6..=14).contains(&tries), "{tries}");
        assert_eq!(client.wake(), None);
    }

    #[test]
    fn a_silent_chosen_server_is_left() {
        let mut client = Client::new(profile(), secs(0), 3);
        let (discover, _) = sent(&client.tick(secs(0)));
        client.receive(secs(0), &reply(MessageType::Offer, &discover, ADDRESS), HOP);
        loop {
            let now = client.wake().unwrap();
            let (message, _) = sent(&client.tick(now));
            if message.kind() == Some(MessageType::Discover) {
                assert_eq!(now, secs(10));
                break;
            }
        }
        let (discover, _) = sent(&client.tick(client.wake().unwrap()));
        let (request, _) = sent(&client.receive(secs(12), &reply(MessageType::Offer, &discover, ADDRESS), HOP));
        let mut nak = reply(MessageType::Nak, &request, [0; 4]);
        nak.options.insert(option::MESSAGE, b"no\naddress".to_vec());
        assert!(client.receive(secs(12), &nak, HOP).is_empty(), "nothing is lost that was not had");
        let actions = loop {
            let actions = client.tick(client.wake().unwrap());
            if !matches!(actions[..], [Action::Send(..)]) {
                break actions;
            }
        };
        let why = "no dhcp server gave a lease within 60 s; the server 10.0.0.1 refused: no address";
        assert_eq!(actions, [Action::Failed(why.to_owned())]);
    }

    #[test]
    fn renews_rebinds_and_ends() {
        let mut client = Client::new(profile(), secs(0), 3);
        acquire(&mut client, secs(0));
        assert_eq!(client.wake(), Some(secs(500)));
        let (renew, to) = sent(&client.tick(secs(500)));
        assert_eq!(to, Destination::Server { server: [10, 0, 0, 1].into(), next_hop: HOP });
        assert_eq!((renew.kind(), renew.client), (Some(MessageType::Request), ADDRESS.into()));
        assert!(
            !renew.options.contains_key(&option::SERVER_ID) && !renew.options.contains_key(&option::REQUESTED_ADDRESS)
        );
        assert_eq!(client.wake(), Some(secs(675)), "half of what is left until T2");
        let actions = client.receive(secs(501), &reply(MessageType::Ack, &renew, ADDRESS), HOP);
        assert_eq!(actions, [Action::Leased { restored: false }]);
        assert_eq!(client.wake(), Some(secs(1000)));
        // Nobody answers any more.
        let mut kinds = Vec::new();
        loop {
            let now = client.wake().unwrap();
            match &client.tick(now)[..] {
                [Action::Send(_, Destination::Broadcast)] => kinds.push(('b', now.as_secs())),
                [Action::Send(_, _)] => kinds.push(('u', now.as_secs())),
                [Action::Lost] => {
                    assert_eq!(now, secs(1500));
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(kinds[0], ('u', 1000));
        assert!(kinds.contains(&('b', 1350)), "{kinds:?}");
        assert!(client.lease().is_none() && client.is_lost());
        // The same address again, and no other.
        let now = client.wake().unwrap();
        let (discover, _) = sent(&client.tick(now));
        assert_eq!(discover.options[&option::REQUESTED_ADDRESS], ADDRESS);
        assert!(client.receive(now, &reply(MessageType::Offer, &discover, [10, 0, 0, 10]), HOP).is_empty());
        let (request, _) = sent(&client.receive(now, &reply(MessageType::Offer, &discover, ADDRESS), HOP));
        let actions = client.receive(now, &reply(MessageType::Ack, &request, ADDRESS), HOP);
        assert_eq!(actions, [Action::Leased { restored: true }]);
        assert!(client.lease().is_some());
    }

    #[test]
    fn a_refused_renewal_takes_the_address_away() {
        let mut client = Client::new(profile(), secs(0), 3);
        acquire(&mut client, secs(0));
        let (renew, _) = sent(&client.tick(secs(500)));
        let mut other = reply(MessageType::Nak, &renew, [0; 4]);
        other.options.insert(option::SERVER_ID, vec![10, 0, 0, 77]);
        assert!(client.receive(secs(500), &other, HOP).is_empty(), "another server has no say before T2");
        let actions = client.receive(secs(500), &reply(MessageType::Nak, &renew, [0; 4]), HOP);
        assert_eq!(actions, [Action::Lost]);
        assert!(client.release().is_none());
        let now = client.wake().unwrap();
        assert!(now > secs(500));
        assert_eq!(sent(&client.tick(now)).0.kind(), Some(MessageType::Discover));
    }

    #[test]
    fn resumes_where_it_was() {
        let mut first = Client::new(profile(), secs(0), 3);
        acquire(&mut first, secs(0));
        let lease = first.lease().unwrap().clone();
        for (now, expected) in [(100, None), (600, Some(false)), (900, Some(true))] {
            let mut client = Client::resume(profile(), lease.clone(), secs(0), secs(now), 5);
            let actions = client.tick(secs(now));
            let is_broadcast = actions.first().map(|action| matches!(action, Action::Send(_, Destination::Broadcast)));
            assert_eq!(is_broadcast, expected, "{now}");
        }
        let mut client = Client::resume(profile(), lease, secs(0), secs(5000), 5);
        assert_eq!(client.tick(secs(5000)), [Action::Lost]);
    }

    #[test]
    fn releases_with_its_address() {
        let mut client = Client::new(profile(), secs(0), 3);
        assert!(client.release().is_none());
        acquire(&mut client, secs(0));
        let (message, to) = client.release().unwrap();
        assert_eq!((message.kind(), message.client), (Some(MessageType::Release), ADDRESS.into()));
        assert_eq!(message.options[&option::SERVER_ID], [10, 0, 0, 1]);
        assert_eq!(message.options[&option::CLIENT_ID], b"\0id");
        assert_eq!(to, Destination::Server { server: [10, 0, 0, 1].into(), next_hop: HOP });
        assert_eq!(client.wake(), None);
    }

    proptest! {
        /// Whatever comes, it neither panics nor stops to want to be woken, unless it failed or its lease has no end.
        #[test]
        fn any_sequence(steps in prop::collection::vec((0u8..6, 0u64..400, any::<bool>()), 0..60)) {
            let mut client = Client::new(profile(), secs(0), 7);
            let mut now = secs(0);
            let mut last = Message::new(MessageType::Discover, 0, HARDWARE);
            for (step, passes, right) in steps {
                now += secs(passes);
                let kinds = [MessageType::Offer, MessageType::Ack, MessageType::Nak, MessageType::Discover];
                let actions = match kinds.get(usize::from(step)) {
                    Some(kind) => client.receive(now, &reply(*kind, &last, if right { ADDRESS } else { [10, 0, 0, 3] }), HOP),
                    None => client.tick(client.wake().unwrap_or(now).max(now)),
                };
                for action in actions {
                    match action {
                        Action::Send(message, _) => last = message,
                        Action::Failed(_) => return Ok(()),
                        Action::Lost => prop_assert!(client.lease().is_none()),
                        Action::Leased { .. } => prop_assert!(client.lease().is_some()),
                    }
                }
                prop_assert!(client.wake().is_some());
            }
        }
    }
}
