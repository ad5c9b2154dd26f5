//! The `process_*` metrics of Prometheus clients, from /proc.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// The kernel's unit of times in /proc/self/stat; fixed at 100 a second for programs, whatever its own clock.
const TICKS: f64 = 100.0;

/// Reads /proc at each scrape. What cannot be read is left out.
#[derive(Debug)]
pub(crate) struct Process;

/// What is read.
#[derive(Debug, Default, PartialEq)]
struct Reading {
    cpu_seconds: Option<f64>,
    start_seconds: Option<f64>,
    resident: Option<f64>,
    virtual_memory: Option<f64>,
    threads: Option<f64>,
    open_fds: Option<f64>,
    max_fds: Option<f64>,
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let reading = Reading::now();
        if let Some(value) = reading.cpu_seconds {
            let counter = ConstCounter::new(value);
            let kind = counter.metric_type();
            counter.encode(encoder.encode_descriptor(
                "process_cpu_seconds",
                "Total user and system CPU time spent in seconds.",
                None,
                kind,
            )?)?;
        }
        for (name, help, value) in [
            (
                "process_start_time_seconds",
                "Start time of the process since unix epoch in seconds.",
                reading.start_seconds,
            ),
            ("process_resident_memory_bytes", "Resident memory size in bytes.", reading.resident),
            ("process_virtual_memory_bytes", "Virtual memory size in bytes.", reading.virtual_memory),
            ("process_threads", "Number of OS threads in the process.", reading.threads),
            ("process_open_fds", "Number of open file descriptors.", reading.open_fds),
            ("process_max_fds", "Maximum number of open file descriptors.", reading.max_fds),
        ] {
            if let Some(value) = value {
                let gauge = ConstGauge::new(value);
                let kind = gauge.metric_type();
                gauge.encode(encoder.encode_descriptor(name, help, None, kind)?)?;
            }
        }
        Ok(())
    }
}

impl Reading {
    fn now() -> Self {
        let read = |path: &str| fs_err::read_to_string(path).unwrap_or_default();
        let mut reading = Self::parse(
            &read("/proc/self/stat"),
            &read("/proc/self/status"),
            &read("/proc/self/limits"),
            &read("/proc/stat"),
        );
        // One of the entries is the directory that is being read.
        reading.open_fds = fs_err::read_dir("/proc/self/fd")
            .ok()
            .and_then(|entries| u32::try_from(entries.count().saturating_sub(1)).ok())
            .map(f64::from);
        reading
    }

    fn parse(stat: &str, status: &str, limits: &str, system: &str) -> Self {
        // The second field is the program's name in parentheses and may hold anything, so count from its end.
        let fields: Vec<&str> =
            stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().collect()).unwrap_or_default();
        // Field 3 of proc(5) is fields[0].
        let number = |field: usize| fields.get(field - 3).and_then(|text| text.parse::<f64>().ok());
        let line = |text: &str, key: &str, index: usize| -> Option<f64> {
            let line = text.lines().find_map(|line| line.strip_prefix(key))?;
            line.split_whitespace().nth(index)?.parse().ok()
        };
        Self {
            cpu_seconds: number(14).zip(number(15)).map(|(user, system)| (user + system) / TICKS),
            start_seconds: number(22).zip(line(system, "btime ", 0)).map(|(ticks, boot)| boot + ticks / TICKS),
            resident: line(status, "VmRSS:", 0).map(|kib| kib * 1024.0),
            virtual_memory: line(status, "VmSize:", 0).map(|kib| kib * 1024.0),
            threads: line(status, "Threads:", 0),
            open_fds: None,
            max_fds: line(limits, "Max open files", 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_name_may_hold_parentheses() {
        let stat = "7 (a) b) S 1 2 3 4 5 6 7 8 9 10 250 150 13 14 15 16 17 18 4200 21";
        let reading = Reading::parse(stat, "VmRSS:\t  10 kB\n", "Max open files   1024  4096 files\n", "btime 1000\n");
        assert_eq!(reading.cpu_seconds, Some(4.0));
        assert_eq!(reading.start_seconds, Some(1042.0));
        assert_eq!(reading.resident, Some(10240.0));
        assert_eq!(reading.max_fds, Some(1024.0));
        assert_eq!(Reading::parse("", "", "", ""), Reading::default());
    }
}
