//! What the machine lets an Envoy have: files to open, and memory.

use std::fs;

use egress_render::xds::Limits;

/// The files that Envoy opens beside those of connections: listeners, logs, watches, workers.
const OTHER_FILES: u64 = 100;
/// The part of the memory that Envoy may allocate: the filter's VMs and what the kernel buffers come on top.
const PART: (u64, u64) = (3, 4);
/// Where the kernel says how much memory a container has, in both versions of its interface.
const MEMORY_LIMITS: [&str; 2] = [
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
];

/// Returns how much an Envoy on this machine can take on. A number that the machine does not tell is as for one of which
/// nothing is known.
pub(crate) fn limits() -> Limits {
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    let otherwise = Limits::default();
    Limits {
        connections: files.map_or(otherwise.connections, connections),
        heap: memory().map(|bytes| bytes / PART.1 * PART.0),
    }
}

/// Returns how many connections of applications fit in so many files: each has one to a server.
fn connections(files: u64) -> u32 {
    let many = files.saturating_sub(OTHER_FILES) / 2;
    u32::try_from(many).unwrap_or(u32::MAX).clamp(1, 1_000_000)
}

/// Returns the memory that this process may use: the machine's, or less in a container.
fn memory() -> Option<u64> {
    let machine = fs::read_to_string("/proc/meminfo").ok();
    let machine = machine.as_deref().and_then(of_machine);
    let limits = MEMORY_LIMITS.iter().filter_map(|path| {
        // `max` is no limit.
        fs::read_to_string(path).ok()?.trim().parse().ok()
    });
    limits.chain(machine).min()
}

/// Reads `MemTotal:       16384 kB`.
fn of_machine(text: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.split_ascii_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_connection_may_have_another_to_a_server() {
        for (files, wanted) in [
            (300, 100),
            (1_048_576, 524_238),
            (u64::MAX, 1_000_000),
            (10, 1),
        ] {
            assert_eq!(connections(files), wanted, "{files} files");
        }
    }

    #[test]
    fn memory_is_read_as_the_kernel_writes_it() {
        let text = "MemTotal:        2048 kB\nMemFree:         1024 kB\n";
        assert_eq!(of_machine(text), Some(2 << 20));
        assert_eq!(of_machine("MemFree: 1 kB"), None);
        assert!(memory().is_some_and(|bytes| bytes > 1 << 20));
    }
}
