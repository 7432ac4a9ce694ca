//! The peer: a process-shared pthread mutex in shared memory, and the file that it
//! is in.
#![allow(unsafe_code)]
#![allow(dead_code, reason = "each of its users has its part")]

use memmap2::{MmapOptions, MmapRaw};
use std::cell::UnsafeCell;
use std::fs::File;
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};

/// A file that is removed when this is dropped.
pub(crate) struct Unlinked(pub(crate) PathBuf);

impl Drop for Unlinked {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// How the mutex is shared.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// `PTHREAD_PROCESS_SHARED`.
    Plain,
    /// And `PTHREAD_MUTEX_ROBUST`.
    Robust,
}

#[repr(C)]
struct Shared {
    mutex: UnsafeCell<libc::pthread_mutex_t>,
    value: UnsafeCell<u64>,
}

/// A pthread mutex and the number that it protects, in a shared mapping.
pub(crate) struct Pthread(MmapRaw);

// SAFETY: the mutex is made for sharing between threads, and the value is only
// reached with it locked.
unsafe impl Sync for Pthread {}
// SAFETY: nothing in it depends on the thread, but for unlocking, which
// `locked` and `lock` keep on the thread that locked.
unsafe impl Send for Pthread {}

impl Pthread {
    /// A new one, in memory that nobody else maps.
    pub(crate) fn anonymous(sharing: Sharing) -> Self {
        // `MmapMut` is private memory; a shared mapping takes a file.
        let file = rustix::fs::memfd_create("pthread", rustix::fs::MemfdFlags::CLOEXEC);
        Self::made(&File::from(file.expect("memfd")), sharing)
    }

    /// A new one, in a file.
    pub(crate) fn create(path: &Path, sharing: Sharing) -> Self {
        let mut options = File::options();
        let file = options.read(true).write(true).create_new(true).open(path);
        Self::made(&file.expect("create"), sharing)
    }

    /// One that another process made.
    pub(crate) fn open(path: &Path) -> Self {
        let file = File::options().read(true).write(true).open(path).expect("open");
        Self::mapped(&file)
    }

    fn mapped(file: &File) -> Self {
        Self(MmapOptions::new().len(size_of::<Shared>()).map_raw(file).expect("map"))
    }

    fn made(file: &File, sharing: Sharing) -> Self {
        file.set_len(size_of::<Shared>() as u64).expect("set the length");
        let this = Self::mapped(file);
        let mut attributes = MaybeUninit::<libc::pthread_mutexattr_t>::uninit();
        let attributes = attributes.as_mut_ptr();
        // SAFETY: the attributes are initialized by the first call, which the
        // others then change; the mutex is zeroed memory of its size and
        // alignment, as `this` is mapped at a page, and nobody uses it yet.
        unsafe {
            assert_eq!(libc::pthread_mutexattr_init(attributes), 0);
            let shared = libc::PTHREAD_PROCESS_SHARED;
            assert_eq!(libc::pthread_mutexattr_setpshared(attributes, shared), 0);
            if sharing == Sharing::Robust {
                let robust = libc::PTHREAD_MUTEX_ROBUST;
                assert_eq!(libc::pthread_mutexattr_setrobust(attributes, robust), 0);
            }
            assert_eq!(libc::pthread_mutex_init(this.shared().mutex.get(), attributes), 0);
        }
        this
    }

    #[inline]
    fn shared(&self) -> &Shared {
        // SAFETY: the mapping has the size of a `Shared`, aligned to a page;
        // what it holds is behind `UnsafeCell`s.
        unsafe { &*self.0.as_ptr().cast::<Shared>() }
    }

    /// Runs `f` with the value while the mutex is locked.
    #[inline]
    pub(crate) fn locked<R>(&self, f: impl FnOnce(&mut u64) -> R) -> R {
        let Shared { mutex, value } = self.shared();
        // SAFETY: the mutex was initialized when the file was made, and is
        // unlocked by the thread that locked it; in between the value is this
        // thread's alone.
        unsafe {
            assert_eq!(libc::pthread_mutex_lock(mutex.get()), 0);
            let result = f(&mut *value.get());
            assert_eq!(libc::pthread_mutex_unlock(mutex.get()), 0);
            result
        }
    }

    /// Locks it; whether it was a dead owner's.
    pub(crate) fn lock(&self) -> bool {
        // SAFETY: the mutex was initialized when the file was made.
        match unsafe { libc::pthread_mutex_lock(self.shared().mutex.get()) } {
            0 => false,
            libc::EOWNERDEAD => true,
            error => panic!("pthread_mutex_lock: {error}"),
        }
    }

    /// Makes a mutex that was a dead owner's usable again, and unlocks it, on
    /// the thread that locked it.
    pub(crate) fn recover(&self) {
        let mutex = self.shared().mutex.get();
        // SAFETY: the calling thread has locked it, after its owner died.
        unsafe {
            assert_eq!(libc::pthread_mutex_consistent(mutex), 0);
            assert_eq!(libc::pthread_mutex_unlock(mutex), 0);
        }
    }
}
