//! `dhcp`: addresses from DHCP servers (IPv4), and the daemon that keeps them.
//!
//! The plugin hands each call to the daemon over a unix socket ([`wire`]). The daemon is one thread: a state machine for
//! each lease ([`client`]), packet sockets that are open only while servers are talked to ([`port`]), and records on disk
//! ([`records`]).

pub mod client;
pub mod daemon;
pub mod lease;
pub mod options;
pub mod packet;
pub mod port;
pub mod records;
pub mod settings;
#[cfg(test)]
mod tests;
pub mod wire;

use std::fmt::Display;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use outrigger_cni_sdk::{
    AddResult, Attachment, Call, Code, Conf as _, Documentation, Error, Map, Plugin, Step as _, conf,
};

use self::options::{Provide, Request as Asked};
use self::records::Records;
use self::wire::{Command, DEFAULT_SOCKET, Failure, PROTOCOL, Request};
use super::Later;

conf! {
    /// Gets the container an IPv4 address from a DHCP server on the network of its interface, and keeps it as long as the
    /// container lives. That is done by a daemon, `dhcp daemon`, which has to run on the host.
    pub struct DhcpConf {
        /// What this plugin reads.
        pub ipam: Option<IpamConf>,
    }
}

conf! {
    /// The part of `dhcp`.
    pub struct IpamConf {
        /// The daemon's socket.
        pub daemon_socket_path: String = DEFAULT_SOCKET.to_owned(),
        /// Options to send to servers.
        pub provide: Later<Vec<Provide>>,
        /// Options to ask servers for, besides the routers and the subnet mask. The classless routes (121), else the
        /// static routes (33) and the first router (3) become routes; the MTU (26), if it is asked for here, becomes the
        /// routes' (since CNI 1.1.0).
        pub request: Later<Vec<Asked>>,
        /// Metric of the routes; since CNI 1.1.0.
        pub priority: Later<u32>,
    }
}

/// What ADD reads of the configuration.
struct Keys {
    provide: Vec<Provide>,
    request: Vec<Asked>,
    priority: Option<u32>,
}

impl IpamConf {
    fn of(ipam: &Map) -> Result<Self, Error> {
        Self::decode(ipam).map_err(|error| error.during("ipam"))
    }
}

impl Keys {
    fn read(ipam: &IpamConf) -> Result<Self, Error> {
        Ok(Self {
            provide: ipam.provide.read("ipam.provide")?.unwrap_or_default(),
            request: ipam.request.read("ipam.request")?.unwrap_or_default(),
            priority: ipam.priority.read("ipam.priority")?.filter(|priority| *priority != 0),
        })
    }
}

/// Gets addresses from DHCP servers.
#[derive(Debug, Clone, Copy, Default)]
pub struct Dhcp;

impl Plugin for Dhcp {
    type Conf = DhcpConf;
    const ABOUT: &'static str = "CNI dhcp plugin: gets addresses from DHCP servers; its daemon keeps them";
    const DOC: Documentation = Documentation {
        add: "The daemon sets the interface up if it is down, looks for a server and takes a lease, as the client \
              `<container id>/<network>/<interface>`, which is the original's. The answer is the address, the first router \
              as its gateway, and the routes. Without a server it gives up (code 11) after six times the daemon's \
              `-timeout`, a minute by default. A second ADD of the same attachment gives the same lease.\n\n\
              The daemon renews the lease after half its time, asks any server when 85 % of it have passed, and takes \
              the address off the interface if the lease ends or the server refuses it; then it goes on asking for the same \
              address, and puts it back. Leases are on disk beside the socket, so the daemon can be restarted. The \
              originals' plugin and daemon do not work with these: both have to be of one package.",
        del: "Gives the lease back to the server and forgets it. Without the network namespace the server cannot be told; \
              the lease then ends by itself. Without the daemon the lease is marked, and the next daemon gives it back.",
        check: "Fails if the daemon holds no lease for the attachment.",
        gc: "Gives back the leases of this network that belong to none of the valid attachments. Without the daemon they \
             are marked, and the next daemon gives them back.",
        status: "Fails with code 50 if the daemon does not answer.",
        capabilities: &[],
        args: &[("any", "A key that `fromArg` of `provide` names: its value is sent to servers.")],
        example: r#"{
    "cniVersion": "1.1.0",
    "name": "lan",
    "plugins": [
        {
            "type": "macvlan",
            "master": "eth0",
            "ipam": {
                "type": "dhcp",
                "provide": [{ "option": "host-name", "fromArg": "K8S_POD_NAME" }],
                "request": [{ "option": "121" }, { "option": "26" }]
            }
        }
    ]
}"#,
    };

    fn add(&self, call: &Call<'_, DhcpConf>) -> Result<AddResult, Error> {
        let ipam = ipam(call)?;
        // Mistakes show even if no daemon runs.
        Keys::read(ipam)?;
        let mut request = request(call, Command::Add);
        request.netns = std::path::absolute(call.netns()?).step("dhcp: CNI_NETNS")?;
        let value = ask(ipam, &request)?;
        AddResult::from_value(&value).map_err(|error| error.during("dhcp: the daemon's answer"))
    }

    fn del(&self, call: &Call<'_, DhcpConf>) -> Result<(), Error> {
        let socket = socket(ipam(call)?);
        match wire::call(&socket, &request(call, Command::Del)) {
            Ok(_) => Ok(()),
            // A container must be removable without the daemon.
            Err(Failure::Absent(_)) => Records::beside(&socket)
                .mark(call.container_id, &call.net.name, call.ifname)
                .step("dhcp: no daemon listens, and the lease cannot be marked to be given back by the next"),
            Err(failure) => Err(failure.into_error(&socket, Code::NotAvailable)),
        }
    }

    fn check(&self, call: &Call<'_, DhcpConf>) -> Result<(), Error> {
        ask(ipam(call)?, &request(call, Command::Check)).map(drop)
    }

    fn gc(&self, call: &Call<'_, DhcpConf>, valid: &[Attachment]) -> Result<(), Error> {
        let mut request = request(call, Command::Gc);
        request.valid = valid.iter().map(|valid| (valid.container_id.clone(), valid.ifname.clone())).collect();
        let socket = socket(ipam(call)?);
        match wire::call(&socket, &request) {
            Ok(_) => Ok(()),
            Err(Failure::Absent(_)) => Records::beside(&socket)
                .mark_others(&call.net.name, &request.valid)
                .step("dhcp: no daemon listens, and the leases cannot be marked to be given back by the next"),
            Err(failure) => Err(failure.into_error(&socket, Code::TryAgain)),
        }
    }

    fn status(&self, call: &Call<'_, DhcpConf>) -> Result<(), Error> {
        let ipam = ipam(call)?;
        Keys::read(ipam)?;
        ask(ipam, &request(call, Command::Status))
            .map(drop)
            .map_err(|error| Error { code: Code::NotAvailable, ..error })
    }
}

fn ipam<'c>(call: &'c Call<'_, DhcpConf>) -> Result<&'c IpamConf, Error> {
    call.conf.ipam.as_ref().ok_or_else(|| Error::config("ipam is missing: dhcp reads its configuration from it"))
}

fn socket(ipam: &IpamConf) -> PathBuf {
    PathBuf::from(if ipam.daemon_socket_path.is_empty() { DEFAULT_SOCKET } else { &ipam.daemon_socket_path })
}

fn request(call: &Call<'_, DhcpConf>, command: Command) -> Request {
    Request {
        protocol: PROTOCOL,
        command,
        container: call.container_id.to_owned(),
        network: call.net.name.clone(),
        ifname: call.ifname.to_owned(),
        netns: call.netns.map(Path::to_owned).unwrap_or_default(),
        args: call.args.as_str().to_owned(),
        ipam: call.net.ipam.clone().unwrap_or_default(),
        valid: Vec::new(),
    }
}

fn ask(ipam: &IpamConf, request: &Request) -> Result<serde_json::Value, Error> {
    let socket = socket(ipam);
    wire::call(&socket, request).map_err(|failure| failure.into_error(&socket, Code::NotAvailable))
}

/// One line of the daemon's log. Standard error is what service managers keep.
fn log(what: impl Display) {
    // Nothing can be done about a log that cannot be written.
    let _ = writeln!(std::io::stderr(), "{what}");
}
