//! The client without network or clock.

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
    assert!(!renew.options.contains_key(&option::SERVER_ID) && !renew.options.contains_key(&option::REQUESTED_ADDRESS));
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

/// Takes a lease with these times from a server that always answers at once, and counts what it is asked within a minute.
fn asked_in_a_minute(options: &[(u8, u32)]) -> (u32, u32) {
    let mut client = Client::new(profile(), secs(0), 3);
    let (mut requests, mut lost) = (0, 0);
    while let Some(now) = client.wake().filter(|now| *now < secs(60) && requests < 1_000) {
        let mut actions = client.tick(now);
        while let Some(action) = actions.pop() {
            match action {
                Action::Send(message, _) => {
                    requests += 1;
                    let kind = if message.kind() == Some(MessageType::Discover) {
                        MessageType::Offer
                    } else {
                        MessageType::Ack
                    };
                    let mut answer = reply(kind, &message, ADDRESS);
                    answer
                        .options
                        .extend(options.iter().map(|(number, value)| (*number, value.to_be_bytes().to_vec())));
                    actions.extend(client.receive(now, &answer, HOP));
                }
                Action::Lost => lost += 1,
                Action::Failed(_) => return (requests, lost),
                Action::Leased { .. } => {}
            }
        }
    }
    (requests, lost)
}

#[test]
fn no_server_makes_it_flood() {
    const T1: u8 = option::RENEWAL_TIME;
    const T2: u8 = option::REBINDING_TIME;
    const END: u8 = option::LEASE_TIME;
    for (options, most) in [
        (&[(END, 1_000)][..], 2),
        (&[(END, 1_000), (T1, 0)], 2),
        (&[(END, 1_000), (T1, 0), (T2, 0)], 2),
        (&[(END, 1_000), (T1, 1)], 8),
        (&[(END, 1_000), (T1, 1), (T2, 2)], 8),
        (&[(END, 4)], 32),
        (&[(END, 2)], 64),
        (&[(END, 1)], 125),
        (&[(END, 1), (T1, 0), (T2, 0)], 125),
    ] {
        let (requests, lost) = asked_in_a_minute(options);
        assert!((2..=most).contains(&requests) && lost == 0, "{options:?}: {requests} requests, {lost} times lost");
    }
}

#[test]
fn a_lease_of_no_time_is_none() {
    let mut client = Client::new(profile(), secs(0), 3);
    let why = loop {
        let now = client.wake().unwrap();
        let mut actions = client.tick(now);
        let Some(action) = actions.pop() else { continue };
        match action {
            Action::Send(message, _) => {
                let kind =
                    if message.kind() == Some(MessageType::Discover) { MessageType::Offer } else { MessageType::Ack };
                let mut answer = reply(kind, &message, ADDRESS);
                answer.options.insert(option::LEASE_TIME, vec![0; 4]);
                for action in client.receive(now, &answer, HOP) {
                    let Action::Send(request, _) = action else { panic!("{action:?}") };
                    let mut answer = reply(MessageType::Ack, &request, ADDRESS);
                    answer.options.insert(option::LEASE_TIME, vec![0; 4]);
                    assert!(client.receive(now, &answer, HOP).is_empty());
                }
            }
            Action::Failed(why) => break why,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(why, "no dhcp server gave a lease within 60 s; the server 10.0.0.1 gave a lease of 0 s");
    // One that is held goes on.
    let mut client = Client::new(profile(), secs(0), 3);
    acquire(&mut client, secs(0));
    let (renew, _) = sent(&client.tick(secs(500)));
    let mut answer = reply(MessageType::Ack, &renew, ADDRESS);
    answer.options.insert(option::LEASE_TIME, vec![0; 4]);
    assert!(client.receive(secs(500), &answer, HOP).is_empty());
    assert!(client.lease().is_some());
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
