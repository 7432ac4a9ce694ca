//! Who this process and thread are, and what happens to them at `fork`.
#![allow(unsafe_code)]

use std::fs;
use std::os::unix::fs::MetadataExt;

/// The thread's ID as its own PID namespace counts.
pub(crate) fn tid() -> u32 {
    rustix::thread::gettid().as_raw_nonzero().get() as u32
}

/// The process's ID as its own PID namespace counts.
pub(crate) fn pid() -> u32 {
    rustix::process::getpid().as_raw_nonzero().get() as u32
}

/// The inode of the PID namespace, 0 where `/proc` does not tell.
pub(crate) fn pid_namespace() -> u64 {
    fs::metadata("/proc/self/ns/pid").map_or(0, |meta| meta.ino())
}

/// When the process started, in clock ticks since boot; 0 where `/proc` does
/// not tell. With the PID it names a process for good.
pub(crate) fn start_time() -> u64 {
    let Ok(stat) = fs::read_to_string("/proc/self/stat") else { return 0 };
    // The command name, in parentheses, may itself hold spaces and
    // parentheses: count fields behind its last one. Start time is field 22.
    let Some((_, fields)) = stat.rsplit_once(')') else { return 0 };
    fields.split_ascii_whitespace().nth(19).and_then(|field| field.parse().ok()).unwrap_or(0)
}

/// The thread's name as the kernel keeps it: at most 15 bytes, zero padded.
pub(crate) fn thread_name() -> [u8; 16] {
    let mut name = [0; 16];
    if let Ok(found) = rustix::thread::name() {
        let bytes = found.to_bytes();
        let len = bytes.len().min(15);
        name[..len].copy_from_slice(&bytes[..len]);
    }
    name
}

/// The boot that this is, as a random number; 0 where `/proc` does not tell.
pub(crate) fn boot_id() -> u128 {
    let Ok(text) = fs::read_to_string("/proc/sys/kernel/random/boot_id") else { return 0 };
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    u128::from_str_radix(&digits, 16).unwrap_or(0)
}

/// The size of a page in bytes.
pub(crate) fn page_size() -> usize {
    rustix::param::page_size()
}

/// Has `fork` call `prepare` before, and `parent` and `child` after, in the
/// thread that forks. The child handler must be async-signal-safe.
pub(crate) fn at_fork(prepare: extern "C" fn(), parent: extern "C" fn(), child: extern "C" fn()) {
    // SAFETY: the three are functions of this crate, which is never unloaded
    // (a cdylib that is would have its handlers removed by glibc on dlclose,
    // by its DSO handle).
    let failed = unsafe { libc::pthread_atfork(Some(prepare), Some(parent), Some(child)) };
    assert!(failed == 0, "heirlock: pthread_atfork: out of memory");
}
