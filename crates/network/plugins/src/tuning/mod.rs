//! `tuning`: kernel settings of the container's network, and attributes of its interface.

mod allowlist;
mod backup;
mod key;

use std::collections::BTreeMap;

use outrigger_cni_sdk::{AddResult, Attachment, Call, Code, Documentation, Error, Errors, Plugin, Step as _, conf};
use outrigger_netlink::MacAddr;
use outrigger_netlink::route::{Link, LinkChange, link_flags};

use self::backup::Backup;
use crate::attach::{mac_text, mark, undo::Undo};
use crate::session::{Container, Session};

const DATA_DIR: &str = "/run/cni/tuning";

conf! {
    /// Changes settings of the network namespace and attributes of the interface that an earlier plugin of the list
    /// made. It returns the result of that plugin, with the new MAC address if it changed it.
    pub struct TuningConf {
        /// Settings under `/proc/sys/net`: key to value. Keys begin with `net` and use dots or slashes; the first
        /// `IFNAME` in a key stands for the interface. In a key that begins with slashes (`net/…`) dots are part of
        /// names. They are not set back by DEL: they go with the namespace.
        pub sysctl: BTreeMap<String, String>,
        /// A new hardware address.
        pub mac: String,
        /// Takes frames for other stations. `false` leaves it as it is.
        pub promisc: bool,
        /// A new MTU; 0 leaves it as it is.
        pub mtu: u32,
        /// Whether it takes all multicast frames.
        pub allmulti: Option<bool>,
        /// A new length of the transmit queue.
        #[key = "txQLen"]
        pub tx_queue_length: Option<u32>,
        /// Where the attributes as they were are kept until DEL.
        pub data_dir: String = DATA_DIR.to_owned(),
    }
}

/// The plugin.
pub struct Tuning<'s>(pub &'s Session);

/// Everything that is asked for, from all the places where it can be said.
#[derive(Debug, Default, PartialEq)]
struct Wanted {
    /// Keys as they were written, for the allow-list.
    keys: Vec<String>,
    /// Path below `/proc/sys/net` to value.
    settings: BTreeMap<String, String>,
    mac: Option<MacAddr>,
    /// The MAC address as it was written, for the result.
    mac_text: String,
    promisc: bool,
    mtu: Option<u32>,
    allmulti: Option<bool>,
    tx_queue_length: Option<u32>,
}

impl Wanted {
    fn read(call: &Call<'_, TuningConf>) -> Result<Self, Error> {
        let conf = &call.conf;
        let mut sysctl = conf.sysctl.clone();
        // Later places win: the configuration, CNI_ARGS, the capability, the old form of arguments.
        let mut mac = conf.mac.clone();
        let [from_args] = call.args.known(["MAC"])?;
        for text in [from_args.map(str::to_owned), call.runtime("mac")?, call.cni_arg("mac")?].into_iter().flatten() {
            if !text.is_empty() {
                mac = text;
            }
        }
        sysctl.extend(call.cni_arg::<BTreeMap<String, String>>("sysctl")?.unwrap_or_default());
        let mut settings = BTreeMap::new();
        for (key, value) in &sysctl {
            let path = key::path(key, call.ifname)?;
            // Two ways to write one key: which of them is to win?
            if settings.insert(path, value.clone()).is_some_and(|other| other != *value) {
                return Err(Error::config(format!("sysctl: {key:?} is set to two values under two spellings")));
            }
        }
        let address = if mac.is_empty() { None } else { Some(mac.parse().map_err(|_| bad_mac(&mac))?) };
        let mtu = call.cni_arg("mtu")?.unwrap_or(conf.mtu);
        Ok(Self {
            keys: sysctl.into_keys().collect(),
            settings,
            mac: address,
            mac_text: mac,
            promisc: call.cni_arg("promisc")?.unwrap_or(conf.promisc),
            mtu: Some(mtu).filter(|mtu| *mtu != 0),
            allmulti: call.cni_arg("allmulti")?.or(conf.allmulti),
            tx_queue_length: call.cni_arg("txQLen")?.or(conf.tx_queue_length),
        })
    }

    /// What changes on the interface; none if nothing.
    fn change(&self) -> Option<LinkChange<'static>> {
        let change = LinkChange {
            mac: self.mac,
            promiscuous: self.promisc.then_some(true),
            mtu: self.mtu,
            all_multicast: self.allmulti,
            tx_queue_len: self.tx_queue_length,
            ..LinkChange::default()
        };
        let nothing = change.mac.is_none()
            && change.promiscuous.is_none()
            && change.mtu.is_none()
            && change.all_multicast.is_none()
            && change.tx_queue_len.is_none();
        (!nothing).then_some(change)
    }

    /// How the link is now, as far as this changes it.
    fn backup(&self, link: &Link) -> Backup {
        Backup {
            mac: if self.mac.is_some() { mac_text(link) } else { String::new() },
            promisc: self.promisc.then_some(link.flags & link_flags::PROMISC != 0),
            mtu: self.mtu.map(|_| link.mtu),
            allmulti: self.allmulti.map(|_| link.all_multi()),
            tx_queue_length: self.tx_queue_length.map(|_| link.tx_queue_len),
        }
    }

    /// What of the link is not as wanted.
    fn differences(&self, link: &Link) -> Vec<String> {
        let mut found = Vec::new();
        let mut compare = |what: &str, wanted: String, is: String| {
            if wanted != is {
                found.push(format!("{what} of {} is {is}, {wanted} is configured", link.name));
            }
        };
        if let Some(mac) = self.mac {
            compare("MAC address", mac.to_string(), mac_text(link));
        }
        if self.promisc {
            compare("promiscuous mode", "on".to_owned(), on(link.flags & link_flags::PROMISC != 0));
        }
        if let Some(mtu) = self.mtu {
            compare("MTU", mtu.to_string(), link.mtu.to_string());
        }
        if let Some(allmulti) = self.allmulti {
            compare("all-multicast mode", on(allmulti), on(link.all_multi()));
        }
        if let Some(length) = self.tx_queue_length {
            compare("transmit queue length", length.to_string(), link.tx_queue_len.to_string());
        }
        found
    }
}

fn on(value: bool) -> String {
    if value { "on" } else { "off" }.to_owned()
}

fn bad_mac(text: &str) -> Error {
    Error::config(format!("mac: {text:?} is no MAC address: write it as aa:bb:cc:dd:ee:ff"))
}

impl Plugin for Tuning<'_> {
    type Conf = TuningConf;
    const ABOUT: &'static str = "tuning: kernel settings and interface attributes of a container";
    const DOC: Documentation = Documentation {
        add: "Checks every key, also those of `args`, against the allow-list (`/etc/cni/tuning/allowlist.conf`: a regular \
              expression a line, matched anywhere in the key as it is written; no file allows all) before it changes \
              anything. Then it keeps the interface's attributes in `<dataDir>/<container id>_<interface>.json`, writes \
              the settings, and changes the attributes in one request. If a step fails, what it did is undone. A second \
              ADD of the same interface keeps the attributes that the first one found.",
        check: "Compares settings (spaces and tabs alike) and attributes with the configuration.",
        del: "Sets the attributes back to what the file says, and removes the file. It needs neither the namespace nor \
              prevResult; what is gone needs no setting back, and a value that the kernel no longer takes (an MTU above \
              that of the device below) stays as it is. Settings stay: they go with the namespace.",
        gc: "Removes files of attachments that are no longer valid. Which network a file is of is noted beside it, in \
             `<dataDir>/.networks/<network>/`; files of the original plugin have no such note and are left alone.",
        status: "Not ready (50) if the allow-list cannot be read or has a line that is no regular expression.",
        capabilities: &[("mac", "the hardware address; wins over the key `mac`")],
        args: &[("MAC", "the hardware address; wins over the key `mac`")],
        example: r#"{
  "cniVersion": "1.0.0",
  "name": "pods",
  "plugins": [
    { "type": "bridge", "ipam": { "type": "host-local", "subnet": "10.5.0.0/16" } },
    { "type": "tuning", "mtu": 1400, "sysctl": { "net.ipv4.conf.IFNAME.log_martians": "1" } }
  ]
}"#,
    };

    fn add(&self, call: &Call<'_, TuningConf>) -> Result<AddResult, Error> {
        let mut result = call.prev()?.clone();
        let wanted = Wanted::read(call)?;
        allowlist::check(&wanted.keys)?;
        let container = self.0.container(call.netns()?)?;
        let change = wanted.change();
        let store = backup::Store::new(directory(call), mark(call));
        let mut undo = Undo::default();
        if change.is_some() {
            let link = container.route.link(call.ifname).step("look for the interface in the container")?;
            let before = wanted.backup(&link);
            let former = store.save(&before, &backup::identity(&container.ns, link.index)?)?;
            undo.push({
                let (container, store) = (&container, &store);
                move || {
                    let _ = before.restore(container, link.index);
                    let _ = store.put_back(former);
                }
            });
        }
        let old = write_settings(&container, &wanted.settings)?;
        undo.push({
            let container = &container;
            move || drop(write_settings(container, &old))
        });
        if let Some(change) = change {
            container.route.set_link(call.ifname, &change).step(format_args!("change {}", call.ifname))?;
        }
        for interface in result.interfaces.iter_mut().filter(|interface| interface.name == call.ifname) {
            if wanted.mac.is_some() {
                interface.mac.clone_from(&wanted.mac_text);
            }
            // Since 1.1.0 results may say it; then it must be right.
            interface.mtu = interface.mtu.map(|mtu| wanted.mtu.unwrap_or(mtu));
        }
        undo.keep();
        Ok(result)
    }

    fn del(&self, call: &Call<'_, TuningConf>) -> Result<(), Error> {
        let store = backup::Store::new(directory(call), mark(call));
        let mut errors = Errors::new();
        // Unreadable: nothing can be set back, and the next call will not know better.
        let backup = errors.push(store.load()).flatten();
        if let Some(backup) = backup
            && let Some(container) = self.0.container_if_any(call.netns)?
            && let Some(link) =
                container.route.find_link(call.ifname).step("look for the interface in the container")?
        {
            // The file stays, so that the next DEL can try again.
            backup.restore(&container, link.index)?;
        }
        errors.push(store.remove());
        errors.finish()
    }

    fn check(&self, call: &Call<'_, TuningConf>) -> Result<(), Error> {
        call.prev()?;
        let wanted = Wanted::read(call)?;
        let container = self.0.container(call.netns()?)?;
        let mut found = Vec::new();
        for (path, value) in &wanted.settings {
            match read_setting(&container, path)? {
                Some(is) if same(&is, value) => {}
                Some(is) => found.push(format!("net/{path} is {is:?}, {value:?} is configured")),
                None => found.push(format!("net/{path} is unknown to this kernel")),
            }
        }
        if wanted.change().is_some() {
            let link = container.route.link(call.ifname).step("look for the interface in the container")?;
            found.extend(wanted.differences(&link));
        }
        if found.is_empty() { Ok(()) } else { Err(Error::internal(found.join("; "))) }
    }

    fn gc(&self, call: &Call<'_, TuningConf>, valid: &[Attachment]) -> Result<(), Error> {
        backup::collect(directory(call), &call.net.name, valid)
    }

    fn status(&self, _: &Call<'_, TuningConf>) -> Result<(), Error> {
        allowlist::read().map(drop).map_err(|error| Error { code: Code::NotAvailable, ..error })
    }
}

/// Where the backups are; empty means the default, as for the original.
fn directory<'c>(call: &'c Call<'_, TuningConf>) -> &'c str {
    if call.conf.data_dir.is_empty() { DATA_DIR } else { &call.conf.data_dir }
}

/// Values of a setting with several numbers are written with spaces and read with tabs.
fn same(one: &str, other: &str) -> bool {
    one.split_whitespace().eq(other.split_whitespace())
}

fn read_setting(container: &Container, path: &str) -> Result<Option<String>, Error> {
    let what = format!("read net/{path}");
    container.ns.run(|| crate::attach::sysctl::get(path)).step(&what)?.step(&what)
}

/// Writes settings in the container; gives their values from before. Either all are written or none.
fn write_settings(
    container: &Container,
    settings: &BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>, Error> {
    if settings.is_empty() {
        return Ok(BTreeMap::new());
    }
    let written = container.ns.run(|| {
        let mut old = BTreeMap::new();
        for (path, value) in settings {
            let outcome = write_setting(path, value, &mut old);
            if let Err(error) = outcome {
                for (path, value) in &old {
                    let _ = crate::attach::sysctl::set(path, value);
                }
                return Err(error);
            }
        }
        Ok(old)
    });
    written.step("write settings in the container")?
}

fn write_setting(path: &str, value: &str, old: &mut BTreeMap<String, String>) -> Result<(), Error> {
    let what = format!("write {value:?} to net/{path}");
    match crate::attach::sysctl::get(path).step(&what)? {
        None => return Err(Error::config(format!("sysctl: net/{path} is unknown to this kernel"))),
        Some(before) if same(&before, value) => {}
        Some(before) => {
            crate::attach::sysctl::set(path, value).step(&what)?;
            old.insert(path.to_owned(), before);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link() -> Link {
        let mut link = Link::default();
        link.name = "eth0".into();
        (link.mtu, link.tx_queue_len) = (1500, 1000);
        link
    }

    #[test]
    fn nothing_wanted_changes_nothing() {
        let wanted = Wanted::default();
        assert!(wanted.change().is_none());
        assert!(wanted.differences(&link()).is_empty());
        assert_eq!(wanted.backup(&link()), Backup::default());
    }

    #[test]
    fn the_backup_holds_what_is_changed() {
        let wanted = Wanted { mtu: Some(1400), allmulti: Some(false), ..Wanted::default() };
        let backup = wanted.backup(&link());
        assert_eq!((backup.mtu, backup.allmulti, backup.promisc), (Some(1500), Some(false), None));
        let differences = wanted.differences(&link());
        assert_eq!(differences, ["MTU of eth0 is 1500, 1400 is configured"]);
    }

    #[test]
    fn spaces_and_tabs_are_alike() {
        assert!(same("4096\t131072\t6291456", "4096 131072 6291456"));
        assert!(!same("1", "2"));
    }
}
