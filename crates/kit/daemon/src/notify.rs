//! Tells whoever started this process that it is ready, by the protocol of sd_notify(3).

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Says `READY=1` on the socket that `NOTIFY_SOCKET` names: systemd (`Type=notify`) and the lab's supervisor listen
/// there. Without that variable nobody asked, and nothing is said.
///
/// # Errors
/// The variable names a socket that nobody reads.
pub fn notify_ready() -> io::Result<()> {
    std::env::var_os("NOTIFY_SOCKET").map_or(Ok(()), |socket| send(&socket, b"READY=1"))
}

fn send(socket: &OsStr, message: &[u8]) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        path => SocketAddr::from_pathname(OsStr::from_bytes(path))?,
    };
    let sent = UnixDatagram::unbound()?.send_to_addr(message, &address)?;
    if sent == message.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_heard_by_path_and_by_abstract_name() {
        let name = format!("@outrigger-notify-{}", std::process::id());
        let directory = std::env::temp_dir().join(format!("notify-{}", std::process::id()));
        let by_name = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name[1..]).unwrap()).unwrap();
        let by_path = UnixDatagram::bind(&directory).unwrap();
        for (socket, address) in [(&by_name, OsStr::new(&name)), (&by_path, directory.as_os_str())] {
            send(address, b"READY=1").unwrap();
            let mut heard = [0; 32];
            let length = socket.recv(&mut heard).unwrap();
            assert_eq!(&heard[..length], b"READY=1");
        }
        fs_err::remove_file(&directory).unwrap();
        assert!(send(directory.as_os_str(), b"READY=1").is_err(), "nobody listens");
    }
}
