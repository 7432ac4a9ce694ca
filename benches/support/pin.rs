//! On which CPU a thread runs.

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// The CPUs that this thread may use.
pub(crate) fn cpus() -> Vec<usize> {
    let set = sched_getaffinity(Pid::from_raw(0)).expect("sched_getaffinity");
    (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu) == Ok(true)).collect()
}

/// Has the calling thread, and those that it starts from now on, use one CPU.
pub(crate) fn to_cpu(cpu: usize) {
    to_cpus(&[cpu]);
}

/// Has the calling thread, and those that it starts from now on, use some CPUs.
pub(crate) fn to_cpus(cpus: &[usize]) {
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(*cpu).expect("a CPU of this machine");
    }
    sched_setaffinity(Pid::from_raw(0), &set).expect("sched_setaffinity");
}
