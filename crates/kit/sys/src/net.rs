//! What network code needs of the kernel beyond `rustix`: options of netlink sockets, the kind of a namespace, leaving a
//! network namespace, and tap devices. One system call a function.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// `NETLINK_ADD_MEMBERSHIP`: join a multicast group.
pub const NETLINK_ADD_MEMBERSHIP: i32 = 1;
/// `NETLINK_DROP_MEMBERSHIP`: leave a multicast group.
pub const NETLINK_DROP_MEMBERSHIP: i32 = 2;
/// `NETLINK_CAP_ACK`: do not repeat the whole request in an error.
pub const NETLINK_CAP_ACK: i32 = 10;
/// `NETLINK_EXT_ACK`: explain errors in words.
pub const NETLINK_EXT_ACK: i32 = 11;
/// `NETLINK_GET_STRICT_CHK`: take the header of a dump as a filter.
pub const NETLINK_GET_STRICT_CHK: i32 = 12;

/// `NS_GET_NSTYPE` of linux/nsfs.h.
const NS_GET_NSTYPE: libc::Ioctl = 0xb703;
const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
const TUNSETPERSIST: libc::Ioctl = 0x4004_54cb;
const TUNSETOWNER: libc::Ioctl = 0x4004_54cc;
const TUNSETGROUP: libc::Ioctl = 0x4004_54ce;

/// What `setsockopt` is told about an integer.
#[expect(clippy::cast_possible_truncation, reason = "it is 4")]
const INTEGER: libc::socklen_t = size_of::<i32>() as libc::socklen_t;

const IFF_TAP: i16 = 0x0002;
const IFF_MULTI_QUEUE: i16 = 0x0100;
const IFF_NO_PI: i16 = 0x1000;
const IFF_VNET_HDR: i16 = 0x4000;

/// `struct ifreq` as `TUNSETIFF` reads it: a name and flags, padded.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: i16,
    padding: [u8; 22],
}

const _: () = assert!(size_of::<InterfaceRequest>() == size_of::<libc::ifreq>());

/// Sets an integer option of level `SOL_NETLINK`, for instance [`NETLINK_EXT_ACK`].
pub fn set_netlink_option(socket: impl AsFd, option: i32, value: i32) -> io::Result<()> {
    // SAFETY: the kernel reads `size_of::<c_int>()` bytes at a valid pointer to an i32 that lives across the call.
    let result = unsafe {
        libc::setsockopt(socket.as_fd().as_raw_fd(), libc::SOL_NETLINK, option, (&raw const value).cast(), INTEGER)
    };
    checked(result)
}

/// Whether `file` is a network namespace. `ENOTTY` where it is no namespace at all.
pub fn is_network_namespace(file: impl AsFd) -> io::Result<bool> {
    // SAFETY: NS_GET_NSTYPE takes no argument and touches no memory of ours.
    let result = unsafe { libc::ioctl(file.as_fd().as_raw_fd(), NS_GET_NSTYPE) };
    checked(result.min(0))?;
    Ok(result == libc::CLONE_NEWNET)
}

/// Moves the calling thread, and no other, into a new network namespace that holds nothing but a loopback interface.
pub fn unshare_network() -> io::Result<()> {
    // SAFETY: CLONE_NEWNET takes from the thread neither descriptors nor memory; only its network namespace changes.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    checked(result)
}

/// Makes `tun` (an open `/dev/net/tun`) the tap device `name`, which is made if it does not exist (`TUNSETIFF`).
/// Frames come without packet information and with a virtio header, as hypervisors want it.
pub fn attach_tap(tun: impl AsFd, name: &str, multi_queue: bool) -> io::Result<()> {
    let mut request = InterfaceRequest { name: [0; libc::IFNAMSIZ], flags: 0, padding: [0; 22] };
    let Some(place) = request.name[..libc::IFNAMSIZ - 1].get_mut(..name.len()) else {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    };
    place.copy_from_slice(name.as_bytes());
    request.flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | if multi_queue { IFF_MULTI_QUEUE } else { 0 };
    // SAFETY: `request` has the size and layout of `struct ifreq`, which the kernel reads and writes during the call.
    let result = unsafe { libc::ioctl(tun.as_fd().as_raw_fd(), TUNSETIFF, &raw mut request) };
    checked(result)
}

/// Lets the device of `tun` live on when `tun` is closed, or no longer (`TUNSETPERSIST`).
pub fn set_tap_persistent(tun: impl AsFd, persistent: bool) -> io::Result<()> {
    // SAFETY: the argument of TUNSETPERSIST is a number, not a pointer.
    let result = unsafe { libc::ioctl(tun.as_fd().as_raw_fd(), TUNSETPERSIST, libc::c_ulong::from(persistent)) };
    checked(result)
}

/// Which user may open the device of `tun` (`TUNSETOWNER`).
pub fn set_tap_owner(tun: impl AsFd, user: u32) -> io::Result<()> {
    // SAFETY: the argument of TUNSETOWNER is a number, not a pointer.
    let result = unsafe { libc::ioctl(tun.as_fd().as_raw_fd(), TUNSETOWNER, libc::c_ulong::from(user)) };
    checked(result)
}

/// Which group may open the device of `tun` (`TUNSETGROUP`).
pub fn set_tap_group(tun: impl AsFd, group: u32) -> io::Result<()> {
    // SAFETY: the argument of TUNSETGROUP is a number, not a pointer.
    let result = unsafe { libc::ioctl(tun.as_fd().as_raw_fd(), TUNSETGROUP, libc::c_ulong::from(group)) };
    checked(result)
}

fn checked(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn kinds_of_namespaces() {
        assert!(is_network_namespace(File::open("/proc/self/ns/net").unwrap()).unwrap());
        assert!(!is_network_namespace(File::open("/proc/self/ns/mnt").unwrap()).unwrap());
        let error = is_network_namespace(File::open("/proc/self/status").unwrap()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTTY));
    }

    #[test]
    fn errors_of_the_kernel_come_through() {
        let file = File::open("/dev/null").unwrap();
        assert_eq!(set_netlink_option(&file, NETLINK_EXT_ACK, 1).unwrap_err().raw_os_error(), Some(libc::ENOTSOCK));
        assert!(set_tap_persistent(&file, true).is_err());
        assert!(set_tap_owner(&file, 0).is_err());
        assert!(set_tap_group(&file, 0).is_err());
        assert!(attach_tap(&file, "sixteen-letters-", false).is_err());
    }
}
