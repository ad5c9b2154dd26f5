//! Loop devices: files that the kernel presents as block devices (loop(4)).
//!
//! A device is attached with `LOOP_CONFIGURE`, in one step, so that no half-configured device is ever visible (kernel 5.8
//! and newer). Which file belongs to which device is read from `/sys/block/loop*/loop/backing_file`.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode};

use crate::Error;

/// Major device number of all loop devices.
const LOOP_MAJOR: u32 = 7;
/// How often another free device is asked for when somebody else was faster. Each round means that another program made
/// progress, so this many losses in a row do not happen by chance.
const ATTEMPTS: u32 = 64;

const LOOP_CLR_FD: libc::Ioctl = 0x4C01;
const LOOP_SET_CAPACITY: libc::Ioctl = 0x4C07;
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;

const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;

/// `struct loop_info64` of linux/loop.h.
#[repr(C)]
struct LoopInfo64 {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    sizelimit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` of linux/loop.h.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo64,
    reserved: [u64; 8],
}

// The kernel copies exactly these sizes; a wrong layout would corrupt memory without any error.
const _: () = assert!(size_of::<LoopInfo64>() == 232 && size_of::<LoopConfig>() == 304);

/// A loop device by its number. Holding one keeps nothing open and promises nothing: the device may be free or taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LoopDevice {
    number: u32,
}

/// How a file is attached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attach {
    /// Refuse writing through the device.
    pub read_only: bool,
    /// Bypass the page cache of the backing file where its file system can, so that data is cached once, not twice.
    /// Silently without effect where it cannot; see [`LoopDevice::is_direct`].
    pub direct_io: bool,
    /// Detach by itself when the last user closes the device (or unmounts it).
    pub autoclear: bool,
}

impl LoopDevice {
    /// The device with this number.
    pub fn new(number: u32) -> Self {
        Self { number }
    }

    /// The device whose node is `path`, judged by its name only: `/dev/loop7`.
    pub fn from_path(path: &Path) -> Option<Self> {
        let number = path.strip_prefix("/dev").ok()?.to_str()?.strip_prefix("loop")?;
        (!number.starts_with('+')).then(|| number.parse().ok()).flatten().map(Self::new)
    }

    /// Its number: 7 for `/dev/loop7`.
    pub fn number(self) -> u32 {
        self.number
    }

    /// Its device node.
    pub fn path(self) -> PathBuf {
        format!("/dev/loop{}", self.number).into()
    }

    /// The file behind the device, or nothing if none is attached. The kernel appends ` (deleted)` to the path of a file
    /// that was removed meanwhile.
    pub fn backing_file(self) -> Result<Option<PathBuf>, Error> {
        let attribute = self.attribute("backing_file");
        match crate::filesystem::read(&attribute) {
            Ok(mut path) => {
                if path.last() == Some(&b'\n') {
                    path.pop();
                }
                Ok(Some(OsString::from_vec(path).into()))
            }
            Err(error) if is_gone(&error) => Ok(None),
            Err(source) => Err(Error::File { operation: "read", path: attribute, source }),
        }
    }

    /// Whether the device bypasses the page cache of its file. False for a free device.
    pub fn is_direct(self) -> Result<bool, Error> {
        is_set(format!("/sys/block/loop{}/loop/dio", self.number).into())
    }

    /// Whether the device refuses writing. A free device may say either.
    pub fn is_read_only(self) -> Result<bool, Error> {
        is_set(format!("/sys/block/loop{}/ro", self.number).into())
    }

    /// Whether the device detaches by itself once nobody uses it: because it was attached so, or because it was detached
    /// while in use.
    pub fn is_autoclear(self) -> Result<bool, Error> {
        is_set(format!("/sys/block/loop{}/loop/autoclear", self.number).into())
    }

    /// Takes the new size of the backing file over, for instance after it grew (`LOOP_SET_CAPACITY`).
    pub fn set_capacity(self) -> Result<(), Error> {
        let path = self.path();
        let device = self.open(false)?;
        set_capacity(device.as_fd()).map_err(Error::on_loop("resize", &path))
    }

    /// Frees the device (`LOOP_CLR_FD`). A device that is free already is fine. While the device is in use (mounted, or
    /// open elsewhere) the kernel postpones the detachment until its last user has gone.
    pub fn detach(self) -> Result<(), Error> {
        let path = self.path();
        let device = match self.open(true) {
            Ok(device) => device,
            Err(error) if error.is_missing() => return Ok(()),
            Err(error) => return Err(error),
        };
        match clear_fd(device.as_fd()) {
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(()),
            result => result.map_err(Error::on_loop("detach", &path)),
        }
    }

    fn attribute(self, name: &str) -> PathBuf {
        format!("/sys/block/loop{}/loop/{name}", self.number).into()
    }

    /// Opens the device node and makes it first where nobody (udev, devtmpfs) did, as in many containers.
    fn open(self, read_only: bool) -> Result<File, Error> {
        let path = self.path();
        let open = || OpenOptions::new().read(true).write(!read_only).open(&path);
        let file = match open() {
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.exists() => {
                self.make_node()?;
                open()
            }
            result => result,
        }
        .map_err(Error::on_loop("open", &path))?;
        let metadata = file.metadata().map_err(Error::on_loop("query", &path))?;
        if !metadata.file_type().is_block_device() {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "not a block device");
            return Err(Error::Loop { operation: "open", device: path, source });
        }
        Ok(file)
    }

    fn exists(self) -> bool {
        Path::new(&format!("/sys/block/loop{}", self.number)).exists()
    }

    fn make_node(self) -> Result<(), Error> {
        let path = self.path();
        let device = rustix::fs::makedev(LOOP_MAJOR, self.number);
        match rustix::fs::mknodat(CWD, &path, FileType::BlockDevice, Mode::RUSR | Mode::WUSR, device) {
            Err(rustix::io::Errno::EXIST) => Ok(()),
            result => result.map_err(|errno| Error::on_loop("make the node", &path)(errno.into())),
        }
    }
}

/// Attaches `backing` to a free loop device.
///
/// Direct I/O is tried first if it is asked for and given up where the file system of `backing` refuses it.
pub fn attach(backing: &Path, options: Attach) -> Result<LoopDevice, Error> {
    let file = OpenOptions::new()
        .read(true)
        .write(!options.read_only)
        .open(backing)
        .map_err(Error::on_file("open", backing))?;
    let mut direct_io = options.direct_io;
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        let device = LoopDevice::new(free_number()?);
        let node = match device.open(options.read_only) {
            Ok(node) => node,
            // Somebody removed the device between the two calls.
            Err(error) if error.is_missing() => {
                attempt += 1;
                continue;
            }
            Err(error) => return Err(error),
        };
        let flags = [
            (options.read_only, LO_FLAGS_READ_ONLY),
            (options.autoclear, LO_FLAGS_AUTOCLEAR),
            (direct_io, LO_FLAGS_DIRECT_IO),
        ];
        let flags = flags.into_iter().filter(|(wanted, _)| *wanted).fold(0, |all, (_, flag)| all | flag);
        match configure(node.as_fd(), &config(file.as_fd(), backing, flags)) {
            Ok(()) => return Ok(device),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => attempt += 1,
            Err(error) if direct_io && error.raw_os_error() == Some(libc::EINVAL) => {
                direct_io = false;
            }
            Err(source) => {
                return Err(Error::Loop { operation: "configure", device: device.path(), source });
            }
        }
    }
    Err(Error::LoopContention { backing: backing.to_owned(), attempts: ATTEMPTS })
}

/// All devices to which `backing` is attached, lowest number first.
///
/// Costs one small file in `/sys` for each loop device of the machine.
pub fn find(backing: &Path) -> Result<Vec<LoopDevice>, Error> {
    let backing = backing.canonicalize().map_err(Error::on_file("resolve", backing))?;
    let mut found = Vec::new();
    for (device, file) in attached()? {
        if file == backing {
            found.push(device);
        }
    }
    Ok(found)
}

/// All attached devices with the files behind them, lowest number first.
pub fn attached() -> Result<Vec<(LoopDevice, PathBuf)>, Error> {
    let directory = Path::new("/sys/block");
    let mut all = Vec::new();
    for entry in directory.read_dir().map_err(Error::on_file("list", directory))? {
        let name = entry.map_err(Error::on_file("list", directory))?.file_name();
        let Some(device) = LoopDevice::from_path(&Path::new("/dev").join(name)) else {
            continue;
        };
        if let Some(file) = device.backing_file()? {
            all.push((device, file));
        }
    }
    all.sort_unstable();
    Ok(all)
}

/// A yes-or-no attribute in sysfs; no if the device does not have it.
fn is_set(attribute: PathBuf) -> Result<bool, Error> {
    match crate::filesystem::read(&attribute) {
        Ok(value) => Ok(value.starts_with(b"1")),
        Err(error) if is_gone(&error) => Ok(false),
        Err(source) => Err(Error::File { operation: "read", path: attribute, source }),
    }
}

/// A sysfs attribute of a device that is free or vanishes while it is read.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENXIO | libc::ENODEV))
}

fn free_number() -> Result<u32, Error> {
    let path = Path::new("/dev/loop-control");
    let control = OpenOptions::new().read(true).write(true).open(path).map_err(Error::on_loop("open", path))?;
    get_free(control.as_fd()).map_err(Error::on_loop("ask for a free number", path))
}

fn config(file: BorrowedFd<'_>, backing: &Path, flags: u32) -> LoopConfig {
    // What `losetup` without sysfs would show: the path, cut to the field, zero-terminated.
    let mut file_name = [0; 64];
    let name = backing.as_os_str().as_bytes();
    let length = name.len().min(file_name.len() - 1);
    file_name[..length].copy_from_slice(&name[..length]);
    LoopConfig {
        fd: file.as_raw_fd().cast_unsigned(),
        block_size: 0,
        info: LoopInfo64 {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            sizelimit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags,
            file_name,
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        },
        reserved: [0; 8],
    }
}

fn answer(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn get_free(control: BorrowedFd<'_>) -> io::Result<u32> {
    // SAFETY: LOOP_CTL_GET_FREE takes no argument and touches no memory of ours; the descriptor is borrowed, hence open.
    let number = answer(unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) })?;
    Ok(number.cast_unsigned())
}

fn configure(device: BorrowedFd<'_>, config: &LoopConfig) -> io::Result<()> {
    // SAFETY: the kernel reads one `struct loop_config` from the pointer, which is a live reference to a value of that
    // layout (checked above), and writes nothing. Both descriptors are open: one is borrowed, the other is in `config`
    // and belongs to the caller's `file`.
    answer(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, std::ptr::from_ref(config)) }).map(drop)
}

fn clear_fd(device: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: LOOP_CLR_FD ignores its argument and touches no memory of ours; the descriptor is borrowed, hence open.
    answer(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CLR_FD, 0) }).map(drop)
}

fn set_capacity(device: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: LOOP_SET_CAPACITY ignores its argument and touches no memory of ours; the descriptor is borrowed, hence open.
    answer(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_SET_CAPACITY, 0) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, SeekFrom, Write};

    /// Frees the device when a test ends, also by a failed assertion.
    struct Guard(LoopDevice);

    impl Drop for Guard {
        fn drop(&mut self) {
            self.0.detach().unwrap();
        }
    }

    fn image(bytes: u64) -> Option<tempfile::NamedTempFile> {
        if !rustix::process::geteuid().is_root() || !Path::new("/dev/loop-control").exists() {
            eprintln!("skipped: loop devices need root and the loop driver");
            return None;
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(bytes).unwrap();
        Some(file)
    }

    #[test]
    fn names() {
        assert_eq!(LoopDevice::from_path(Path::new("/dev/loop12")), Some(LoopDevice::new(12)));
        assert_eq!(LoopDevice::new(12).path(), Path::new("/dev/loop12"));
        for other in ["/dev/loop", "/dev/loop1p1", "/dev/loop-control", "/dev/loop+1", "/dev/sda", "loop1"] {
            assert_eq!(LoopDevice::from_path(Path::new(other)), None, "{other}");
        }
    }

    #[test]
    fn what_is_written_to_the_device_is_in_the_file() {
        let Some(image) = image(1 << 20) else { return };
        let options = Attach { direct_io: true, ..Attach::default() };
        let device = Guard(attach(image.path(), options).unwrap());
        assert_eq!(find(image.path()).unwrap(), [device.0]);
        assert_eq!(device.0.backing_file().unwrap().as_deref(), Some(image.path()));
        assert_eq!(crate::block_device_size(&device.0.path()).unwrap(), 1 << 20);
        let mut node = OpenOptions::new().write(true).open(device.0.path()).unwrap();
        node.seek(SeekFrom::Start(4096)).unwrap();
        node.write_all(b"hello").unwrap();
        node.sync_all().unwrap();
        drop(node);
        let mut content = Vec::new();
        image.reopen().unwrap().read_to_end(&mut content).unwrap();
        assert_eq!(&content[4096..4101], b"hello");
        let number = device.0;
        drop(device);
        assert_eq!(find(image.path()).unwrap(), []);
        number.detach().unwrap();
    }

    #[test]
    fn a_read_only_device_refuses_writing() {
        let Some(image) = image(1 << 20) else { return };
        let options = Attach { read_only: true, ..Attach::default() };
        let device = Guard(attach(image.path(), options).unwrap());
        assert!(device.0.is_read_only().unwrap());
        let refused = OpenOptions::new().write(true).open(device.0.path()).and_then(|mut node| node.write_all(b"x"));
        assert!(refused.is_err());
    }

    #[test]
    fn a_device_in_use_goes_with_its_last_user() {
        let Some(image) = image(1 << 20) else { return };
        let device = Guard(attach(image.path(), Attach::default()).unwrap());
        let user = File::open(device.0.path()).unwrap();
        assert!(!device.0.is_autoclear().unwrap());
        device.0.detach().unwrap();
        assert!(device.0.is_autoclear().unwrap());
        drop(user);
        assert_eq!(find(image.path()).unwrap(), []);
    }

    #[test]
    fn a_grown_file_is_taken_over() {
        let Some(image) = image(1 << 20) else { return };
        let device = Guard(attach(image.path(), Attach::default()).unwrap());
        image.as_file().set_len(3 << 20).unwrap();
        assert_eq!(crate::block_device_size(&device.0.path()).unwrap(), 1 << 20);
        device.0.set_capacity().unwrap();
        assert_eq!(crate::block_device_size(&device.0.path()).unwrap(), 3 << 20);
    }

    #[test]
    fn many_at_once_get_different_devices() {
        let images: Vec<_> = (0..12).map_while(|_| image(1 << 20)).collect();
        let devices: Vec<Guard> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                images.iter().map(|image| scope.spawn(|| attach(image.path(), Attach::default()).unwrap())).collect();
            threads.into_iter().map(|thread| Guard(thread.join().unwrap())).collect()
        });
        for (image, device) in images.iter().zip(&devices) {
            assert_eq!(find(image.path()).unwrap(), [device.0]);
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = attach(Path::new("/nonexistent/image"), Attach::default()).unwrap_err();
        assert!(error.is_missing());
        assert!(error.to_string().contains("/nonexistent/image"));
    }
}
