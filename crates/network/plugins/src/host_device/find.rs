//! Which interface is meant, and whether it is one at all.

use std::path::{Path, PathBuf};

use outrigger_cni_sdk::{Call, Error, Step as _};
use outrigger_netlink::MacAddr;
use outrigger_netlink::route::{Handle, Link};

use super::HostDeviceConf;

const PCI: &str = "/sys/bus/pci/devices";
const AUXILIARY: &str = "/sys/bus/auxiliary/devices";

/// Drivers that hand a device to a program: it is no network interface then.
const USER_SPACE_DRIVERS: &[&str] = &["vfio-pci", "uio_pci_generic", "igb_uio"];

/// The device that is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Device {
    /// An interface by its name.
    Name(String),
    /// An interface by its MAC address.
    Mac(MacAddr),
    /// The interface of the device with this directory in `/sys`.
    Directory(PathBuf),
    /// A device that a program drives.
    UserSpace,
}

/// Reads the configuration and the capability `deviceID`.
pub(super) fn device(call: &Call<'_, HostDeviceConf>) -> Result<Device, Error> {
    let id = call.runtime::<String>("deviceID")?.filter(|id| !id.is_empty());
    choose(&call.conf, id.as_deref(), Path::new(PCI), Path::new(AUXILIARY))
}

fn choose(conf: &HostDeviceConf, id: Option<&str>, pci: &Path, auxiliary: &Path) -> Result<Device, Error> {
    let mut address = conf.pci_bus_id.as_str();
    let mut other = None;
    if let Some(id) = id {
        let id = component("runtimeConfig.deviceID", id)?;
        if pci.join(id).exists() {
            address = id;
        } else if auxiliary.join(id).exists() {
            address = "";
            other = Some(auxiliary.join(id));
        } else {
            return Err(Error::config(format!(
                "runtimeConfig.deviceID: there is no PCI or auxiliary device {id}; look into {}",
                pci.display()
            )));
        }
    }
    let address = if address.is_empty() { None } else { Some(pci.join(component("pciBusID", address)?)) };
    if address.as_deref().is_some_and(is_driven_by_program) {
        return Ok(Device::UserSpace);
    }
    if !conf.device.is_empty() {
        return Ok(Device::Name(conf.device.clone()));
    }
    if !conf.hwaddr.is_empty() {
        return conf.hwaddr.parse().map(Device::Mac).map_err(|error| Error::config(format!("hwaddr: {error}")));
    }
    if !conf.kernelpath.is_empty() {
        let path = Path::new(&conf.kernelpath);
        let plain = path.components().all(|part| !matches!(part, std::path::Component::ParentDir));
        if !path.starts_with("/sys/devices") || !plain {
            return Err(Error::config(format!("kernelpath: {} is not below /sys/devices", conf.kernelpath)));
        }
        return Ok(Device::Directory(path.to_owned()));
    }
    address.or(other).map(Device::Directory).ok_or_else(|| {
        Error::config("no device is named: set one of device, hwaddr, kernelpath, pciBusID, or the capability deviceID")
    })
}

/// A name that goes into a path must be one part of it.
fn component<'a>(key: &str, name: &'a str) -> Result<&'a str, Error> {
    if name.contains('/') || name == "." || name == ".." {
        return Err(Error::config(format!("{key}: {name:?} is not the name of a device")));
    }
    Ok(name)
}

fn is_driven_by_program(device: &Path) -> bool {
    let driver = device.join("driver").canonicalize().ok();
    let name = driver.as_deref().and_then(Path::file_name).and_then(std::ffi::OsStr::to_str);
    name.is_some_and(|name| USER_SPACE_DRIVERS.contains(&name))
}

/// Looks for the interface on the host. That of the host itself, `lo`, is none that could be given away.
pub(super) fn link(host: &Handle, device: &Device) -> Result<Link, Error> {
    let missing = |key: &str, what: &str| {
        Error::config(format!("{key}: there is no interface {what} on the host; is it in a container?"))
    };
    let named = |name: &str| host.find_link(name).step(format_args!("look for {name}"));
    let (key, link) = match device {
        Device::Name(name) => ("device", named(name)?.ok_or_else(|| missing("device", name))?),
        Device::Mac(mac) => {
            let links = host.links().step("list the links of the host")?;
            let found = links.into_iter().find(|link| link.mac == Some(*mac));
            ("hwaddr", found.ok_or_else(|| missing("hwaddr", &format!("with the MAC address {mac}")))?)
        }
        // A device that is there but has no interface now is no error of the configuration: it is in use, or comes later.
        Device::Directory(directory) => {
            let missing = |what: String| {
                Error::internal(format!("there is no interface {what} on the host; is it in a container?"))
            };
            let name =
                interface_of(directory).ok_or_else(|| missing(format!("of the device {}", directory.display())))?;
            ("device", named(&name)?.ok_or_else(|| missing(name))?)
        }
        Device::UserSpace => return Err(Error::internal("the device is driven by a program and is no interface")),
    };
    if link.is_loopback() {
        return Err(Error::config(format!("{key}: {} is the loopback interface, which stays on the host", link.name)));
    }
    Ok(link)
}

/// The interface of a device; that of a virtio device is one level further down.
fn interface_of(device: &Path) -> Option<String> {
    let first = |directory: PathBuf| {
        let mut names: Vec<_> = fs_names(&directory);
        names.sort();
        names.into_iter().next()
    };
    first(device.join("net")).or_else(|| {
        let mut names = fs_names(device);
        names.sort();
        names
            .into_iter()
            .filter(|name| name.starts_with("virtio"))
            .find_map(|name| first(device.join(name).join("net")))
    })
}

fn fs_names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn devices_are_chosen_as_the_keys_say() {
        let directory = tempfile::tempdir().unwrap();
        let (pci, auxiliary) = (directory.path().join("pci"), directory.path().join("auxiliary"));
        let drivers = directory.path().join("drivers");
        for path in [
            "pci/0000:00:01.0/net/ens1",
            "pci/0000:00:02.0/virtio3/net/ens2",
            "pci/0000:00:03.0",
            "drivers/vfio-pci",
            "drivers/igb",
            "auxiliary/sf.1/net/sf1",
        ] {
            std::fs::DirBuilder::new().recursive(true).create(directory.path().join(path)).unwrap();
        }
        symlink(drivers.join("igb"), pci.join("0000:00:01.0/driver")).unwrap();
        symlink(drivers.join("vfio-pci"), pci.join("0000:00:03.0/driver")).unwrap();
        let of = |conf: HostDeviceConf, id| choose(&conf, id, &pci, &auxiliary);
        let none = HostDeviceConf::default;
        let pci_of = |id: &str| HostDeviceConf { pci_bus_id: id.into(), ..none() };
        assert_eq!(of(pci_of("0000:00:01.0"), None).unwrap(), Device::Directory(pci.join("0000:00:01.0")));
        assert_eq!(of(pci_of("0000:00:03.0"), None).unwrap(), Device::UserSpace);
        assert_eq!(of(none(), Some("0000:00:03.0")).unwrap(), Device::UserSpace);
        assert_eq!(of(pci_of("0000:00:03.0"), Some("sf.1")).unwrap(), Device::Directory(auxiliary.join("sf.1")));
        let named = HostDeviceConf { device: "eth1".into(), hwaddr: "x".into(), ..none() };
        assert_eq!(of(named, Some("0000:00:01.0")).unwrap(), Device::Name("eth1".into()));
        let mac = HostDeviceConf { hwaddr: "02:00:00:00:00:01".into(), ..none() };
        assert_eq!(of(mac, None).unwrap(), Device::Mac(MacAddr([2, 0, 0, 0, 0, 1])));
        for (conf, id, message) in [
            (none(), None, "no device is named"),
            (none(), Some("0000:00:09.0"), "runtimeConfig.deviceID: there is no PCI or auxiliary device"),
            (none(), Some("../x"), "runtimeConfig.deviceID: \"../x\" is not the name of a device"),
            (pci_of("a/b"), None, "pciBusID: \"a/b\" is not the name of a device"),
            (HostDeviceConf { hwaddr: "zz".into(), ..none() }, None, "hwaddr: \"zz\" is not"),
            (HostDeviceConf { kernelpath: "/etc".into(), ..none() }, None, "kernelpath: /etc is not below"),
            (HostDeviceConf { kernelpath: "/sys/devices/../x".into(), ..none() }, None, "kernelpath:"),
        ] {
            let error = of(conf, id).unwrap_err();
            assert!(error.msg.starts_with(message), "{error}");
        }
        assert_eq!(interface_of(&pci.join("0000:00:01.0")).as_deref(), Some("ens1"));
        assert_eq!(interface_of(&pci.join("0000:00:02.0")).as_deref(), Some("ens2"));
        assert_eq!(interface_of(&pci.join("0000:00:03.0")), None);
    }
}
