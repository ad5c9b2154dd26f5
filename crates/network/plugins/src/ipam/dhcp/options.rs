//! What the client tells servers, and asks of them: `provide` and `request`.

use std::collections::BTreeMap;

use outrigger_cni_sdk::{CniArgs, Error, conf};

use super::packet::option;

conf! {
    /// An option to send.
    pub struct Provide {
        /// Its number, or its name: `dhcp-client-identifier`, `subnet-mask`, `routers`, `host-name`, `user-class`,
        /// `vendor-class-identifier`.
        pub option: String,
        /// Its value.
        pub value: String,
        /// The key of `CNI_ARGS` that has its value, for instance `K8S_POD_NAME`.
        pub from_arg: String,
    }
}

conf! {
    /// An option to ask for.
    pub struct Request {
        /// Do not ask for the subnet mask and the routers by default.
        pub skip_default: bool,
        /// Its number or name, as in `provide`.
        pub option: String,
    }
}

/// Options to put into every message to a server.
pub type Options = BTreeMap<u8, Vec<u8>>;

/// Makes the options: the client id, what is provided, and the list of what is asked for.
pub fn prepare(client_id: &str, args: &CniArgs, provide: &[Provide], request: &[Request]) -> Result<Options, Error> {
    let mut options = Options::from([
        (option::CLIENT_ID, [&[0], client_id.as_bytes()].concat()),
        (option::MAX_MESSAGE_SIZE, 1500u16.to_be_bytes().to_vec()),
    ]);
    for (index, provide) in provide.iter().enumerate() {
        let place = format!("ipam.provide[{index}]");
        let number = number(&provide.option, &place)?;
        let from_arg = (!provide.from_arg.is_empty()).then(|| args.get(&provide.from_arg)).flatten();
        let value = Some(provide.value.as_str()).filter(|value| !value.is_empty());
        // The argument comes last in the original, hence wins.
        if let Some(value) = from_arg.or(value) {
            if value.len() > 255 {
                let length = value.len();
                return Err(Error::config(format!("{place}: the value has {length} bytes, an option holds 255")));
            }
            options.insert(number, value.as_bytes().to_vec());
        }
    }
    let mut list = Vec::new();
    for (index, request) in request.iter().enumerate().filter(|(_, request)| !request.option.is_empty()) {
        list.push(number(&request.option, &format!("ipam.request[{index}]"))?);
    }
    if !request.iter().any(|request| request.skip_default) {
        list.extend([option::ROUTER, option::SUBNET_MASK]);
    }
    let mut once = Vec::new();
    for number in list {
        if !once.contains(&number) {
            once.push(number);
        }
    }
    if !once.is_empty() {
        options.insert(option::PARAMETER_LIST, once);
    }
    Ok(options)
}

/// The client id without its leading zero: as the original's, so that a server knows the container again.
pub fn client_id(container: &str, network: &str, ifname: &str) -> String {
    // With the zero the option has at most 255 bytes.
    const LONGEST: usize = 254;
    let mut id = format!("{container}/{network}/{ifname}");
    id.truncate(LONGEST);
    id
}

fn number(name: &str, place: &str) -> Result<u8, Error> {
    let known = [
        ("dhcp-client-identifier", option::CLIENT_ID),
        ("subnet-mask", option::SUBNET_MASK),
        ("routers", option::ROUTER),
        ("host-name", option::HOST_NAME),
        ("user-class", option::USER_CLASS),
        ("vendor-class-identifier", option::VENDOR_CLASS),
    ];
    let known = known.iter().find(|(known, _)| *known == name).map(|(_, number)| *number);
    let number = known.or_else(|| name.parse().ok());
    let refused = [0, option::OVERLOAD, option::MESSAGE_TYPE, option::PARAMETER_LIST, 255];
    match number {
        Some(number) if !refused.contains(&number) => Ok(number),
        Some(number) => Err(Error::config(format!("{place}: option {number} is the client's own business"))),
        None => {
            Err(Error::config(format!("{place}: {name:?} is no option: give a number from 1 to 254 or a known name")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn provide(option: &str, value: &str, from_arg: &str) -> Provide {
        Provide { option: option.into(), value: value.into(), from_arg: from_arg.into() }
    }

    #[test]
    fn defaults() {
        let options = prepare("c/n/eth0", &CniArgs::default(), &[], &[]).unwrap();
        assert_eq!(options[&61], b"\0c/n/eth0");
        assert_eq!(options[&55], [3, 1]);
        assert_eq!(client_id(&"x".repeat(300), "n", "eth0").len(), 254);
    }

    #[test]
    fn provided_and_requested() {
        let args = CniArgs::new("K8S_POD_NAME=web-1;IgnoreUnknown=1");
        let provided = [
            provide("host-name", "", "K8S_POD_NAME"),
            provide("60", "class", "absent"),
            provide("dhcp-client-identifier", "mine", ""),
            provide("user-class", "", "absent"),
        ];
        let request = |option: &str| Request { option: option.into(), skip_default: false };
        let requested = [request("121"), request("26"), request("routers"), request("")];
        let options = prepare("c/n/eth0", &args, &provided, &requested).unwrap();
        assert_eq!(
            (&options[&12][..], &options[&60][..], &options[&61][..]),
            (&b"web-1"[..], &b"class"[..], &b"mine"[..])
        );
        assert_eq!(options[&55], [121, 26, 3, 1]);
        assert!(!options.contains_key(&77));
        let skip = [Request { option: String::new(), skip_default: true }];
        assert!(!prepare("c", &args, &[], &skip).unwrap().contains_key(&55));
    }

    #[test]
    fn refusals() {
        let args = CniArgs::default();
        for wrong in ["bad", "256", "-1", "0", "53", "55", ""] {
            assert!(prepare("c", &args, &[provide(wrong, "x", "")], &[]).is_err(), "{wrong}");
        }
        let error = prepare("c", &args, &[provide("12", &"x".repeat(256), "")], &[]).unwrap_err();
        assert_eq!(error.msg, "ipam.provide[0]: the value has 256 bytes, an option holds 255");
    }
}
