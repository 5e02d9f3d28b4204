//! What `/proc` says of the machine and of processes.

use std::fs;

use anyhow::Context;
use serde::Serialize;

/// The machine a figure was measured on.
#[derive(Debug, Serialize)]
pub struct Machine {
    processor: String,
    cores: usize,
    memory_gib: f64,
    kernel: String,
    /// Of the last minute, before the benchmark: above zero, others were using the machine.
    load: String,
    build: &'static str,
}

impl Machine {
    /// This one.
    pub fn here() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let field = |path, name: &str| {
            let text = read(path);
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let value = line.and_then(|line| line.split_once(':'));
            value.map(|(_, value)| value.trim().to_owned())
        };
        let memory = field("/proc/meminfo", "MemTotal").unwrap_or_default();
        let kib: f64 = memory.trim_end_matches(" kB").parse().unwrap_or_default();
        Self {
            processor: field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".into()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_gib: (kib / 104_857.6).round() / 10.0,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            load: read("/proc/loadavg").split(' ').next().unwrap_or_default().to_owned(),
            build: if cfg!(debug_assertions) { "debug" } else { "release" },
        }
    }
}

/// The time of all processors so far, in ticks: what the host gave to others, and all of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProcessorTime {
    stolen: f64,
    all: f64,
}

impl ProcessorTime {
    /// Until now; nothing where `/proc` does not tell.
    pub fn now() -> Self {
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        let line = stat.lines().next().unwrap_or_default();
        // The last two are parts of the first two.
        let ticks: Vec<f64> =
            line.split_whitespace().skip(1).take(8).map_while(|t| t.parse().ok()).collect();
        Self { stolen: ticks.get(7).copied().unwrap_or_default(), all: ticks.iter().sum() }
    }

    /// How much of the time since then a virtual machine's host has taken away: above a few percent, a
    /// figure says more about the host than about the program.
    pub fn stolen_percent_since(self, before: Self) -> f64 {
        let share = (self.stolen - before.stolen) / (self.all - before.all).max(1.0);
        (share * 1000.0).round() / 10.0
    }
}

/// The processor time a process has used, in seconds.
pub fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the program's name in parentheses, and may hold anything.
    let (_, fields) = stat.rsplit_once(')').context("no process status")?;
    let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<f64>);
    let ticks: f64 = ticks.sum::<Result<f64, _>>()?;
    Ok(ticks / rustix::param::clock_ticks_per_second() as f64)
}

/// The memory a process has resident, in MiB.
pub fn resident_mib(pid: u32) -> anyhow::Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    let kib: f64 = kib.context("no resident size")?.trim().parse()?;
    Ok((kib / 102.4).round() / 10.0)
}
