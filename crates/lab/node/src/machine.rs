//! Reads what the kernel and the distribution tell of the machine.

use crate::objects::Machine;

/// This machine. What cannot be read is left empty: none of it is needed for anything but display.
pub(crate) fn this_machine() -> Machine {
    let uname = rustix::system::uname();
    let line = |path: &str| fs_err::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default();
    let memory = fs_err::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| text.lines().next()?.split_whitespace().nth(1)?.parse::<u64>().ok())
        .unwrap_or_default();
    let os_image = fs_err::read_to_string("/etc/os-release")
        .ok()
        .and_then(|text| {
            text.lines().find_map(|line| Some(line.strip_prefix("PRETTY_NAME=")?.trim_matches('"').to_owned()))
        })
        .unwrap_or_default();
    Machine {
        hostname: uname.nodename().to_string_lossy().into_owned(),
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
        memory: memory * 1024,
        kernel: uname.release().to_string_lossy().into_owned(),
        machine_id: line("/etc/machine-id"),
        boot_id: line("/proc/sys/kernel/random/boot_id"),
        os_image,
    }
}
