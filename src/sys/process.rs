//! Who this process and thread are, and what happens to them at `fork`.
#![allow(unsafe_code)]

use super::atomic::{AtomicU32, Ordering};
use std::fs;
use std::os::unix::fs::MetadataExt;

#[cfg(heirlock_loom)]
pub(crate) use super::simulated::tid;

/// The thread's ID as its own PID namespace counts.
#[cfg(not(heirlock_loom))]
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

/// Whether the machine has more than one processor, wherever this thread may run.
pub(crate) fn has_several_cpus() -> bool {
    /// 0 before anybody looked, then one more than the answer.
    static ANSWER: AtomicU32 = AtomicU32::new(0);
    // Relaxed: whoever does not see the answer finds the same one again.
    match ANSWER.load(Ordering::Relaxed) {
        0 => {
            // SAFETY: it takes any number, and touches no memory of ours.
            let several = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) } > 1;
            ANSWER.store(1 + u32::from(several), Ordering::Relaxed);
            several
        }
        answer => answer > 1,
    }
}

/// Has `fork` call `prepare` before, and `parent` and `child` after, in the
/// thread that forks; `done` keeps it from being said again. The child handler
/// must be async-signal-safe, and all of them bear to be called twice in a row:
/// two threads may say it at the same time. (A `Once` would have a child wait
/// for ever for a thread that does not exist in it.)
pub(crate) fn at_fork(
    done: &AtomicU32,
    prepare: extern "C" fn(),
    parent: extern "C" fn(),
    child: extern "C" fn(),
) {
    // Acquire pairs with the Release below: who sees it done has it done.
    if done.load(Ordering::Acquire) != 0 {
        return;
    }
    // SAFETY: the three are functions of this crate, which is never unloaded
    // (a cdylib that is would have its handlers removed by glibc on dlclose,
    // by its DSO handle).
    let failed = unsafe { libc::pthread_atfork(Some(prepare), Some(parent), Some(child)) };
    assert!(failed == 0, "heirlock: pthread_atfork: out of memory");
    done.store(1, Ordering::Release);
}

/// Has `destroy`, always the same one, called with `what` when the calling
/// thread ends, after the destructors of its thread-locals. `false` if that
/// cannot be had.
pub(crate) fn after_thread_locals(
    destroy: unsafe extern "C" fn(*mut libc::c_void),
    what: *mut libc::c_void,
) -> bool {
    /// The key, plus one; 0 before there is one.
    static KEY: AtomicU32 = AtomicU32::new(0);
    let mut key = KEY.load(Ordering::Acquire);
    if key == 0 {
        let mut new = 0;
        // SAFETY: `new` is written; the destructor is a function of this crate,
        // which is never unloaded.
        if unsafe { libc::pthread_key_create(&raw mut new, Some(destroy)) } != 0 {
            return false;
        }
        key = new + 1;
        if let Err(first) = KEY.compare_exchange(0, key, Ordering::AcqRel, Ordering::Acquire) {
            // SAFETY: nobody else has seen this key.
            unsafe { libc::pthread_key_delete(new) };
            key = first;
        }
    }
    // SAFETY: the key was created, and is never deleted.
    unsafe { libc::pthread_setspecific(key - 1, what) == 0 }
}

/// Starts a thread of the process that gets no signals, but those that nobody can keep
/// off: they are for the threads that the program knows of.
pub(crate) fn spawn_without_signals(
    name: &str,
    run: impl FnOnce() + Send + 'static,
) -> std::io::Result<()> {
    let mut all = core::mem::MaybeUninit::uninit();
    let mut before = core::mem::MaybeUninit::uninit();
    // SAFETY: both sets are written before they are read. A thread begins with the mask
    // of who starts it, which has its own one again below.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
    }
    let started = std::thread::Builder::new().name(name.into()).spawn(run);
    // SAFETY: it was written above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), core::ptr::null_mut()) };
    started.map(drop)
}
