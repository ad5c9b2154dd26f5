//! Every plugin by name.

use outrigger_cni_sdk::{Delegates, DynPlugin};

use crate::session::Session;
use crate::windows::Windows;

/// Makes a plugin that works with a session.
pub type Constructor = for<'s> fn(&'s Session) -> Box<dyn DynPlugin + 's>;

/// Name (`type` in a configuration) and constructor of every plugin, in the order of names.
pub const PLUGINS: &[(&str, Constructor)] = &[
    ("bandwidth", |session| Box::new(crate::bandwidth::Bandwidth(session))),
    ("bridge", |session| Box::new(crate::bridge::Bridge(session))),
    ("dhcp", |_| Box::new(crate::ipam::dhcp::Dhcp)),
    ("dummy", |session| Box::new(crate::dummy::Dummy(session))),
    ("firewall", |session| Box::new(crate::firewall::Firewall(session))),
    ("flannel", |_| Box::new(crate::flannel::Flannel)),
    ("host-device", |session| Box::new(crate::host_device::HostDevice(session))),
    ("host-local", |_| Box::new(crate::ipam::host_local::HostLocal)),
    ("ipvlan", |session| Box::new(crate::ipvlan::Ipvlan(session))),
    ("loopback", |session| Box::new(crate::loopback::Loopback(session))),
    ("macvlan", |session| Box::new(crate::macvlan::Macvlan(session))),
    ("outrigger", |session| Box::new(crate::chain::Chain(session))),
    ("portmap", |session| Box::new(crate::portmap::Portmap(session))),
    ("ptp", |session| Box::new(crate::ptp::Ptp(session))),
    ("sbr", |session| Box::new(crate::sbr::Sbr(session))),
    ("static", |_| Box::new(crate::ipam::static_::Static)),
    ("tap", |session| Box::new(crate::tap::Tap(session))),
    ("tuning", |session| Box::new(crate::tuning::Tuning(session))),
    ("vlan", |session| Box::new(crate::vlan::Vlan(session))),
    ("vrf", |session| Box::new(crate::vrf::Vrf(session))),
    ("win-bridge", |_| Box::new(Windows("win-bridge"))),
    ("win-overlay", |_| Box::new(Windows("win-overlay"))),
];

/// The plugin of this name.
pub fn plugin<'s>(name: &str, session: &'s Session) -> Option<Box<dyn DynPlugin + 's>> {
    PLUGINS.iter().find(|(known, _)| *known == name).map(|(_, constructor)| constructor(session))
}

impl Delegates for Session {
    fn builtin(&self, name: &str) -> Option<Box<dyn DynPlugin + '_>> {
        plugin(name, self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_sorted_and_plugins_say_what_they_are() {
        assert!(PLUGINS.is_sorted_by(|(a, _), (b, _)| a < b));
        let session = Session::default();
        for (name, _) in PLUGINS {
            let plugin = plugin(name, &session).unwrap();
            assert!(!plugin.about().is_empty() && !plugin.summary().is_empty(), "{name}");
            assert!(plugin.keys().iter().all(|key| !key.doc.trim().is_empty()), "{name}");
        }
        assert!(plugin("other", &session).is_none());
    }
}
