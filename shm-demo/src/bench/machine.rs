//! On what the figures were made.

use serde::Serialize;
use std::fs;

/// What figures depend on.
#[derive(Serialize)]
pub(crate) struct Machine {
    /// The model of the processor.
    pub(crate) cpu: String,
    /// How many of its CPUs may be used.
    pub(crate) cpus: usize,
    pub(crate) kernel: String,
}

impl Machine {
    pub(crate) fn look(cpus: usize) -> Self {
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = info.lines().find(|line| line.starts_with("model name"));
        let cpu = model.and_then(|line| line.split_once(": ")).map(|(_, name)| name);
        let cpu = cpu.unwrap_or(std::env::consts::ARCH).to_string();
        let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
        Self { cpu, cpus, kernel }
    }
}
