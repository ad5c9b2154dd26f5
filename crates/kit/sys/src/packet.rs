//! Packet sockets (packet(7)): whole IP packets to and from one interface, below the addresses of the kernel. One system
//! call a function.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// `ETH_P_IP`
const IPV4: u16 = 0x0800;
const HARDWARE_ADDRESS: usize = 6;

/// An instruction of a classic socket filter (`struct sock_filter`).
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct FilterStep {
    /// Operation.
    pub code: u16,
    /// Steps to skip if a comparison holds.
    pub jump_true: u8,
    /// Steps to skip if it does not.
    pub jump_false: u8,
    /// Operand.
    pub operand: u32,
}

const _: () = assert!(size_of::<FilterStep>() == size_of::<libc::sock_filter>());

/// Opens a socket for IPv4 packets without their link-layer header. It receives nothing before [`bind`]. It belongs to
/// the network namespace of the calling thread for ever.
pub fn open() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: socket takes numbers only.
    let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Lets through only the packets that a filter accepts (`SO_ATTACH_FILTER`).
pub fn attach_filter(socket: impl AsFd, filter: &[FilterStep]) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?,
        filter: filter.as_ptr().cast::<libc::sock_filter>().cast_mut(),
    };
    // SAFETY: the kernel reads `program` and the `len` steps it points to, which both live across the call, and writes
    // neither.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            length::<libc::sock_fprog>(),
        )
    };
    checked(result as isize).map(drop)
}

/// Receives from, and sends to, one interface.
pub fn bind(socket: impl AsFd, interface: u32) -> io::Result<()> {
    let address = address(interface, [0; HARDWARE_ADDRESS])?;
    // SAFETY: the kernel reads a `sockaddr_ll` of the given size that lives across the call.
    let result =
        unsafe { libc::bind(socket.as_fd().as_raw_fd(), (&raw const address).cast(), length::<libc::sockaddr_ll>()) };
    checked(result as isize).map(drop)
}

/// Sends an IP packet out of an interface to a hardware address.
pub fn send(socket: impl AsFd, interface: u32, to: [u8; HARDWARE_ADDRESS], packet: &[u8]) -> io::Result<()> {
    let address = address(interface, to)?;
    // SAFETY: the kernel reads `packet` and a `sockaddr_ll` of the given size, which live across the call.
    let result = unsafe {
        libc::sendto(
            socket.as_fd().as_raw_fd(),
            packet.as_ptr().cast(),
            packet.len(),
            libc::MSG_NOSIGNAL,
            (&raw const address).cast(),
            length::<libc::sockaddr_ll>(),
        )
    };
    checked(result).map(drop)
}

/// Receives an IP packet: its length, and the hardware address it came from. `WouldBlock` if none is there.
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<(usize, [u8; HARDWARE_ADDRESS])> {
    let mut from = address(0, [0; HARDWARE_ADDRESS])?;
    let mut from_length = length::<libc::sockaddr_ll>();
    // SAFETY: the kernel writes at most `buffer.len()` bytes to `buffer`, and at most `from_length` to `from`, which has
    // that size.
    let result = unsafe {
        libc::recvfrom(
            socket.as_fd().as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            0,
            (&raw mut from).cast(),
            &raw mut from_length,
        )
    };
    let count = checked(result)?;
    let mut sender = [0; HARDWARE_ADDRESS];
    sender.copy_from_slice(&from.sll_addr[..HARDWARE_ADDRESS]);
    Ok((count, sender))
}

fn address(interface: u32, to: [u8; HARDWARE_ADDRESS]) -> io::Result<libc::sockaddr_ll> {
    let mut hardware = [0; 8];
    hardware[..HARDWARE_ADDRESS].copy_from_slice(&to);
    Ok(libc::sockaddr_ll {
        sll_family: 17, // AF_PACKET
        sll_protocol: IPV4.to_be(),
        sll_ifindex: i32::try_from(interface).map_err(|_| io::Error::from_raw_os_error(libc::ENODEV))?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: hardware,
    })
}

#[expect(clippy::cast_possible_truncation, reason = "small structures of the kernel's interface")]
const fn length<T>() -> libc::socklen_t {
    size_of::<T>() as libc::socklen_t
}

fn checked(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_on_loopback_are_filtered() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        // On a thread of its own in an empty namespace: the machine's loopback is not to be listened to.
        std::thread::spawn(|| {
            crate::net::unshare_network().unwrap();
            assert!(std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
            let socket = open().unwrap();
            // UDP to port 68: protocol, no later fragment, header length, port.
            let filter = [
                FilterStep { code: 0x30, jump_true: 0, jump_false: 0, operand: 9 },
                FilterStep { code: 0x15, jump_true: 0, jump_false: 1, operand: 17 },
                FilterStep { code: 0x06, jump_true: 0, jump_false: 0, operand: 0xffff },
                FilterStep { code: 0x06, jump_true: 0, jump_false: 0, operand: 0 },
            ];
            attach_filter(&socket, &filter).unwrap();
            bind(&socket, 1).unwrap();
            let mut packet = [0; 28];
            packet[0] = 0x45;
            packet[3] = 28;
            packet[9] = 6;
            send(&socket, 1, [0; 6], &packet).unwrap();
            packet[9] = 17;
            send(&socket, 1, [0; 6], &packet).unwrap();
            let mut buffer = [0; 100];
            let (count, from) = receive(&socket, &mut buffer).unwrap();
            assert_eq!((count, from, buffer[9]), (28, [0; 6], 17));
            assert!(bind(&socket, 4_000).is_err());
        })
        .join()
        .unwrap();
    }
}
