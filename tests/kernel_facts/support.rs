//! Processes, sleepers, mappings and robust lists for the trials.

use std::ffi::{c_long, c_void};
use std::fs::{self, File};
use std::num::NonZeroU32;
use std::os::fd::{AsRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering::SeqCst};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use libtest_mimic::{Completion, Failed};
use nix::errno::Errno as NixErrno;
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, execvp, fork, pause};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags};
use rustix::thread::futex::{self, Flags, OWNER_DIED, WAITERS, WaitFlags, WaitPtr, WaitvFlags};
use rustix::thread::{ClockId, Timespec};

pub(crate) type Verdict = Result<Completion, Failed>;

/// How long a trial waits for something that is bound to happen before it fails.
pub(crate) const HANG: Duration = Duration::from_secs(30);
/// The default kind of futex: keyed by what backs the memory, not by the address space.
pub(crate) const SHARED: Flags = Flags::empty();
pub(crate) const ALL: u32 = i32::MAX as u32;

/// Fails the trial unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err(format!($($message)+).into());
        }
    };
}

pub(crate) use ensure;

pub(crate) fn skip(reason: impl Into<String>) -> Verdict {
    Ok(Completion::ignored_with(reason.into()))
}

pub(crate) fn wait_until(what: &str, mut reached: impl FnMut() -> bool) -> Result<(), Failed> {
    let deadline = Instant::now() + HANG;
    while !reached() {
        ensure!(Instant::now() < deadline, "waited {HANG:?} for: {what}");
        thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}

/// Whether the running kernel is at least `major.minor`.
pub(crate) fn kernel_at_least(major: u32, minor: u32) -> Result<bool, Failed> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers =
        release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse::<u32>().unwrap_or(0));
    let running = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    Ok(running >= (major, minor))
}

pub(crate) fn own_tid() -> u32 {
    rustix::thread::gettid().as_raw_nonzero().get() as u32
}

// ------------------------------------------------------------------------------------- memory

pub(crate) fn page_size() -> usize {
    rustix::param::page_size()
}

pub(crate) fn word_at(address: usize) -> &'static AtomicU32 {
    assert!(address.is_multiple_of(4));
    // SAFETY: every caller passes an aligned address inside a mapping made by `map` or `Segment`,
    // which is neither unmapped nor truncated while the word is used; all parties, the kernel among
    // them, access the word atomically.
    unsafe { AtomicU32::from_ptr(ptr::with_exposed_provenance_mut(address)) }
}

/// A new mapping at an address of the kernel's choice; without `file` it is anonymous.
pub(crate) fn map(length: usize, flags: MapFlags, file: Option<&OwnedFd>) -> usize {
    map_at(0, length, flags, file)
}

pub(crate) fn map_at(
    address: usize,
    length: usize,
    flags: MapFlags,
    file: Option<&OwnedFd>,
) -> usize {
    let hint = ptr::with_exposed_provenance_mut(address);
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: without `MAP_FIXED` the kernel picks free addresses, which nothing else refers to;
    // with it, the callers pass pages of a reservation that they have just made themselves.
    let mapped = unsafe {
        match file {
            Some(file) => rustix::mm::mmap(hint, length, access, flags, file, 0),
            None => rustix::mm::mmap_anonymous(hint, length, access, flags),
        }
    };
    mapped.expect("mmap").expose_provenance()
}

pub(crate) fn unmap(address: usize, length: usize) {
    // SAFETY: the callers pass a mapping made by `map` or `map_at` of which they use no word any
    // more; those that keep it on a robust list do so to show what comes of it, in a child.
    unsafe { rustix::mm::munmap(ptr::with_exposed_provenance_mut(address), length) }
        .expect("munmap");
}

pub(crate) fn make_read_only(address: usize, length: usize) {
    let address = ptr::with_exposed_provenance_mut(address);
    // SAFETY: the callers pass a mapping of their own to which nobody writes any more.
    unsafe { rustix::mm::mprotect(address, length, MprotectFlags::READ) }.expect("mprotect");
}

/// Some words that the children of this process share with it.
pub(crate) fn shared_words() -> impl Fn(usize) -> &'static AtomicU32 + Copy {
    let page = map(page_size(), MapFlags::SHARED, None);
    move |index| word_at(page + 64 * index)
}

/// A memfd and one mapping of it.
pub(crate) struct Segment {
    pub(crate) fd: OwnedFd,
    pub(crate) base: usize,
}

impl Segment {
    pub(crate) fn new(pages: usize) -> Self {
        let fd = memfd_create("kernel-facts", MemfdFlags::CLOEXEC).expect("memfd_create");
        ftruncate(&fd, (pages * page_size()) as u64).expect("ftruncate");
        let base = map(pages * page_size(), MapFlags::SHARED, Some(&fd));
        Self { fd, base }
    }

    pub(crate) fn word(&self, offset: usize) -> &'static AtomicU32 {
        word_at(self.base + offset)
    }

    /// The base of a further mapping of the first page.
    pub(crate) fn map_again(&self, flags: MapFlags) -> usize {
        map(page_size(), flags, Some(&self.fd))
    }

    /// A description of its own for the same file.
    pub(crate) fn reopen(&self) -> std::io::Result<OwnedFd> {
        let path = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
        let file = File::options().read(true).write(true).open(path)?;
        Ok(file.into())
    }
}

// ------------------------------------------------------------------------------------ processes

/// A forked child, killed and reaped at the latest when this value is dropped.
pub(crate) struct Child {
    pub(crate) pid: Pid,
    pub(crate) status: Option<WaitStatus>,
}

impl Child {
    /// Runs `body` in a child, which then exits with 0, or with 101 if `body` panicked.
    pub(crate) fn spawn(body: impl FnOnce()) -> Result<Self, Failed> {
        // SAFETY: the child inherits only this thread. The others of this process, if any, sleep
        // in a futex call and hold no lock that the child could need; glibc and musl make their
        // own locks (malloc) usable in the child.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => Ok(Self { pid: child, status: None }),
            ForkResult::Child => {
                let body = AssertUnwindSafe(|| {
                    prctl::set_pdeathsig(Signal::SIGKILL).expect("PR_SET_PDEATHSIG");
                    body();
                });
                let code = if catch_unwind(body).is_ok() { 0 } else { 101 };
                // SAFETY: ends the process at once; no destructor of the parent's copy runs here.
                unsafe { libc::_exit(code) }
            }
        }
    }

    /// Runs `body` in a child that then stays until it is killed; returns when `body` is done.
    pub(crate) fn parked(body: impl FnOnce()) -> Result<Self, Failed> {
        let ready = shared_words()(0);
        let mut child = Self::spawn(|| {
            body();
            ready.store(1, SeqCst);
            park_forever();
        })?;
        wait_until("a child to get ready", || ready.load(SeqCst) == 1 || child.exited().is_some())?;
        ensure!(ready.load(SeqCst) == 1, "child: {:?}", child.status);
        Ok(child)
    }

    pub(crate) fn exited(&mut self) -> Option<WaitStatus> {
        if self.status.is_none() {
            match waitpid(self.pid, Some(WaitPidFlag::WNOHANG)).expect("waitpid") {
                WaitStatus::StillAlive => {}
                status => self.status = Some(status),
            }
        }
        self.status
    }

    pub(crate) fn outcome(&mut self) -> Result<WaitStatus, Failed> {
        wait_until("a child to end", || self.exited().is_some())?;
        Ok(self.status.expect("the child has ended"))
    }

    pub(crate) fn succeed(mut self) -> Result<(), Failed> {
        let outcome = self.outcome()?;
        ensure!(outcome == WaitStatus::Exited(self.pid, 0), "child: {outcome:?}");
        Ok(())
    }

    /// Kills and reaps: what the kernel does at the end of a process has happened afterwards.
    pub(crate) fn kill(&mut self) -> Result<(), Failed> {
        kill(self.pid, Signal::SIGKILL)?;
        let outcome = self.outcome()?;
        ensure!(
            outcome == WaitStatus::Signaled(self.pid, Signal::SIGKILL, false),
            "child: {outcome:?}"
        );
        Ok(())
    }

    /// Waits until the child runs another program than this one.
    pub(crate) fn replaced(&mut self) -> Result<(), Failed> {
        let own = fs::read_link("/proc/self/exe")?;
        let exe = format!("/proc/{}/exe", self.pid);
        wait_until("the child's execve", || {
            self.exited().is_some() || fs::read_link(&exe).is_ok_and(|now| now != own)
        })?;
        ensure!(self.status.is_none(), "child: {:?}", self.status);
        Ok(())
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.status.is_none() {
            // Errors are of no use here: the child is ours and unreaped, so both calls succeed.
            let _ = kill(self.pid, Signal::SIGKILL);
            let _ = waitpid(self.pid, None);
        }
    }
}

/// Waits for the signal that ends the process.
pub(crate) fn park_forever() -> ! {
    loop {
        pause();
    }
}

/// For a child that is about to crash on purpose.
pub(crate) fn without_core_dump() {
    prctl::set_dumpable(false).expect("PR_SET_DUMPABLE");
}

/// Becomes a program that does nothing and ends by itself should everything else fail.
pub(crate) fn become_sleep() {
    let error = execvp(c"sleep", &[c"sleep", c"300"]);
    panic!("execvp: {error:?}");
}

// ---------------------------------------------------------------------------------- futex calls

/// How many waiters the kernel has queued for `word`: a requeue of all of them from the word to
/// itself wakes nobody, changes nothing and returns their number.
pub(crate) fn queued(word: &AtomicU32, flags: Flags) -> usize {
    futex::requeue(word, flags, 0, ALL, word).expect("FUTEX_REQUEUE")
}

pub(crate) fn wake(word: &AtomicU32, flags: Flags) -> usize {
    futex::wake(word, flags, ALL).expect("FUTEX_WAKE")
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Call {
    WaitBitset,
    Waitv,
}

pub(crate) fn wait_for(
    call: Call,
    word: &AtomicU32,
    value: u32,
    flags: Flags,
    deadline: Option<&Timespec>,
) -> Result<usize, Errno> {
    match call {
        Call::WaitBitset => {
            futex::wait_bitset(word, flags, value, deadline, NonZeroU32::MAX).map(|()| 0)
        }
        Call::Waitv => waitv(&[(word, value)], deadline),
    }
}

pub(crate) fn waitv(
    words: &[(&AtomicU32, u32)],
    deadline: Option<&Timespec>,
) -> Result<usize, Errno> {
    let entry = |&(word, value): &(&AtomicU32, u32)| {
        let mut entry = futex::Wait::new();
        entry.val = u64::from(value);
        entry.uaddr = WaitPtr::new(word.as_ptr().cast());
        entry.flags = WaitFlags::SIZE_U32;
        entry
    };
    let entries: Vec<_> = words.iter().map(entry).collect();
    futex::waitv(&entries, WaitvFlags::empty(), deadline, ClockId::Monotonic)
}

/// Why `futex_waitv` cannot be tried here, if so.
pub(crate) fn waitv_missing() -> Option<String> {
    let word = AtomicU32::new(0);
    match waitv(&[(&word, 1)], None) {
        Err(Errno::AGAIN) => None,
        Err(error) => Some(format!("futex_waitv, which needs Linux 5.16, is refused: {error}")),
        Ok(index) => panic!("futex_waitv woke through word {index} of a mismatch"),
    }
}

pub(crate) fn from_now(duration: Duration) -> Timespec {
    let now = rustix::time::clock_gettime(ClockId::Monotonic);
    let nanoseconds = now.tv_nsec as u64 + u64::from(duration.subsec_nanos());
    Timespec {
        tv_sec: now.tv_sec + (duration.as_secs() + nanoseconds / 1_000_000_000) as i64,
        tv_nsec: (nanoseconds % 1_000_000_000) as _,
    }
}

/// A thread inside one blocking futex call, woken and joined at the latest when this is dropped.
pub(crate) struct Sleeper {
    thread: Option<JoinHandle<Result<usize, Errno>>>,
    tid: Arc<AtomicI32>,
    words: Vec<(&'static AtomicU32, Flags)>,
}

impl Sleeper {
    /// Sleeps in `FUTEX_WAIT_BITSET` on the value that `word` has now.
    pub(crate) fn on(word: &'static AtomicU32, flags: Flags) -> Result<Self, Failed> {
        let value = word.load(SeqCst);
        Self::within(vec![(word, flags)], move || {
            wait_for(Call::WaitBitset, word, value, flags, None)
        })
    }

    /// Sleeps in `call`, which waits for `words`; returns when the kernel has queued it on each.
    pub(crate) fn within(
        words: Vec<(&'static AtomicU32, Flags)>,
        call: impl FnOnce() -> Result<usize, Errno> + Send + 'static,
    ) -> Result<Self, Failed> {
        let count = |words: &[(&'static AtomicU32, Flags)]| -> Vec<usize> {
            words.iter().map(|&(w, f)| queued(w, f)).collect()
        };
        let before = count(&words);
        let mut sleeper = Self::start(words, call);
        wait_until("a thread to sleep", || {
            let now = count(&sleeper.words);
            now.iter().zip(&before).all(|(now, before)| now > before) || sleeper.returned()
        })?;
        if sleeper.returned() {
            let result = sleeper.result()?;
            return Err(format!("a thread did not sleep: {result:?}").into());
        }
        Ok(sleeper)
    }

    /// Enters `call`, which waits for `words`, in a thread.
    pub(crate) fn start(
        words: Vec<(&'static AtomicU32, Flags)>,
        call: impl FnOnce() -> Result<usize, Errno> + Send + 'static,
    ) -> Self {
        let tid = Arc::new(AtomicI32::new(0));
        let thread = thread::spawn({
            let tid = Arc::clone(&tid);
            move || {
                tid.store(own_tid() as i32, SeqCst);
                call()
            }
        });
        Self { thread: Some(thread), tid, words }
    }

    /// Sends `signal` to this very thread.
    pub(crate) fn signal(&self, signal: Signal) {
        let tid = self.tid.load(SeqCst);
        let pid = std::process::id();
        // SAFETY: no memory is involved; the thread is unjoined, so the ID is still its own.
        let result = unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, signal as i32) };
        assert_eq!(result, 0, "tgkill: {:?}", NixErrno::last());
    }

    pub(crate) fn returned(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    pub(crate) fn result(&mut self) -> Result<Result<usize, Errno>, Failed> {
        wait_until("a sleeper to return", || self.returned())?;
        let thread = self.thread.take().expect("asked only once");
        Ok(thread.join().expect("a sleeper does not panic"))
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let deadline = Instant::now() + HANG;
        while !self.returned() && Instant::now() < deadline {
            for &(word, flags) in &self.words {
                // A word that went away with its file cannot be woken, and nobody sleeps on it.
                let _ = futex::wake(word, flags, ALL);
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

// ---------------------------------------------------------------------------------- robust lists

/// The kernel's `struct robust_list_head`.
#[repr(C)]
pub(crate) struct Head {
    next: *mut c_void,
    futex_offset: c_long,
    pending: *mut c_void,
}

/// A node as the C libraries lay it out. Pointers *to* a node point at its `next`.
#[repr(C)]
pub(crate) struct Node {
    prev: *mut c_void,
    next: *mut c_void,
}

/// Where a node keeps its `next`.
const NEXT: usize = size_of::<*mut c_void>();

/// The list head that the kernel knows for the calling thread, which may be null.
fn query_head() -> Result<*mut Head, NixErrno> {
    let mut head: *mut Head = ptr::null_mut();
    let mut length = 0_usize;
    // SAFETY: the kernel writes one pointer and one size to these two variables; 0 is this thread.
    let result =
        unsafe { libc::syscall(libc::SYS_get_robust_list, 0, &raw mut head, &raw mut length) };
    NixErrno::result(result)?;
    assert_eq!(length, size_of::<Head>());
    Ok(head)
}

pub(crate) fn registered_head() -> *mut Head {
    query_head().expect("get_robust_list")
}

/// Why robust lists cannot be looked at here, if so.
pub(crate) fn robust_list_missing() -> Option<String> {
    let error = query_head().err()?;
    Some(format!("get_robust_list is refused: {error}"))
}

/// The calling thread's list head. A C library that registers it only when the thread locks its
/// first robust mutex is made to do so.
pub(crate) fn robust_head() -> *mut Head {
    if registered_head().is_null() {
        let mutex = RobustMutex::new();
        mutex.lock();
        mutex.unlock();
    }
    let head = registered_head();
    assert!(!head.is_null(), "the C library registers no robust list");
    head
}

pub(crate) fn futex_offset() -> isize {
    // SAFETY: the head lives as long as the calling thread, which alone writes to it.
    unsafe { (*robust_head()).futex_offset as isize }
}

/// Points `list_op_pending` of the calling thread at `word`.
pub(crate) fn set_pending(word: Option<&AtomicU32>) {
    let entry = word.map_or(ptr::null_mut(), |word| {
        word.as_ptr().cast::<c_void>().wrapping_byte_offset(-futex_offset())
    });
    // SAFETY: the head is the calling thread's own; volatile, since only the kernel reads it.
    unsafe { (&raw mut (*robust_head()).pending).write_volatile(entry) }
}

pub(crate) fn pending() -> usize {
    // SAFETY: as in `set_pending`.
    unsafe { (&raw mut (*robust_head()).pending).read_volatile() }.addr()
}

/// What the calling thread's list head points at: the head itself if the list is empty.
pub(crate) fn first_entry() -> usize {
    // SAFETY: as in `set_pending`.
    unsafe { (&raw mut (*robust_head()).next).read_volatile() }.addr()
}

/// Puts the node at `node`, the address of its `prev`, at the front of the calling thread's list.
pub(crate) fn link_node(node: usize) {
    let head = robust_head();
    let node: *mut Node = ptr::with_exposed_provenance_mut(node);
    // SAFETY: the node is mapped and not on a list; the head is this thread's own, and the node in
    // front, if there is one, is a robust mutex that this thread holds or one of our nodes, laid
    // out as `Node`, so that its `prev` lies right before the `next` that the head points at.
    unsafe {
        let first = (&raw mut (*head).next).read_volatile();
        (&raw mut (*node).prev).write_volatile(head.cast());
        (&raw mut (*node).next).write_volatile(first);
        if first != head.cast() {
            first.cast::<*mut c_void>().sub(1).write_volatile((&raw mut (*node).next).cast());
        }
        (&raw mut (*head).next).write_volatile((&raw mut (*node).next).cast());
    }
}

/// A life word at the end of a page, with its list node at the start of the next, private page.
pub(crate) struct Life {
    /// The word as the thread that links the node sees it.
    pub(crate) word: &'static AtomicU32,
    /// The same word through another mapping.
    pub(crate) view: &'static AtomicU32,
    pub(crate) node: usize,
    /// The file behind the word's page; `None` if that page is private, too.
    pub(crate) file: Option<OwnedFd>,
}

impl Life {
    pub(crate) fn new() -> &'static Self {
        let segment = Segment::new(1);
        let mut life = Self::above(MapFlags::SHARED, Some(segment.fd));
        let offset = life.word.as_ptr().addr() % page_size();
        life.view = word_at(segment.base + offset);
        Box::leak(Box::new(life))
    }

    /// Both the word and the node in private anonymous memory.
    pub(crate) fn in_private_memory() -> &'static Self {
        Box::leak(Box::new(Self::above(MapFlags::PRIVATE, None)))
    }

    pub(crate) fn above(flags: MapFlags, file: Option<OwnedFd>) -> Self {
        let page = page_size();
        let below = map(2 * page, MapFlags::PRIVATE, None);
        if file.is_some() {
            map_at(below, page, flags | MapFlags::FIXED, file.as_ref());
        }
        let node = below + page;
        let word = word_at((node + NEXT).wrapping_add_signed(futex_offset()));
        assert!(word.as_ptr().addr() < node, "the word must lie in the page before the node");
        Self { word, view: word, node, file }
    }

    /// Declares the calling thread alive, on its own robust list.
    pub(crate) fn link(&self) -> u32 {
        let value = own_tid() | WAITERS;
        self.link_as(value);
        value
    }

    pub(crate) fn link_as(&self, value: u32) {
        self.word.store(value, SeqCst);
        link_node(self.node);
    }

    pub(crate) fn unlink(&self) {
        let node: *mut Node = ptr::with_exposed_provenance_mut(self.node);
        // SAFETY: the node is on the calling thread's list, so both its neighbours are mapped and
        // laid out as `Node` or are the head, and nobody but this thread edits the list. The word
        // before the head is glibc's `robust_prev`; to be independent of it, it is not written.
        unsafe {
            let Node { prev, next } = node.read_volatile();
            prev.cast::<*mut c_void>().write_volatile(next);
            if next != robust_head().cast() {
                next.cast::<*mut c_void>().sub(1).write_volatile(prev);
            }
        }
    }

    pub(crate) fn ensure_dead(&self, who: &str) -> Result<(), Failed> {
        let value = self.view.load(SeqCst);
        let expected = OWNER_DIED | WAITERS;
        ensure!(value == expected, "{who}: {value:#x}, not {expected:#x}");
        Ok(())
    }

    pub(crate) fn ensure_unmarked(&self, who: &str) -> Result<(), Failed> {
        let value = self.view.load(SeqCst);
        let alive = value & OWNER_DIED == 0 && value & !WAITERS != 0;
        ensure!(alive, "{who}: {value:#x} does not look alive");
        Ok(())
    }
}

/// A robust process-shared `pthread_mutex_t` in memory shared with the children.
#[derive(Clone, Copy)]
pub(crate) struct RobustMutex(pub(crate) *mut libc::pthread_mutex_t);

impl RobustMutex {
    pub(crate) fn new() -> Self {
        let address = map(page_size(), MapFlags::SHARED, None);
        let mutex = ptr::with_exposed_provenance_mut(address);
        let mut attributes = std::mem::MaybeUninit::uninit();
        let attributes: *mut libc::pthread_mutexattr_t = attributes.as_mut_ptr();
        // SAFETY: the attributes are initialised by the first call before the others use them, and
        // the mutex gets a zeroed page that nobody else knows and that is never unmapped.
        unsafe {
            assert_eq!(libc::pthread_mutexattr_init(attributes), 0);
            let shared = libc::PTHREAD_PROCESS_SHARED;
            assert_eq!(libc::pthread_mutexattr_setpshared(attributes, shared), 0);
            let robust = libc::PTHREAD_MUTEX_ROBUST;
            assert_eq!(libc::pthread_mutexattr_setrobust(attributes, robust), 0);
            assert_eq!(libc::pthread_mutex_init(mutex, attributes), 0);
        }
        Self(mutex)
    }

    pub(crate) fn lock(self) {
        // SAFETY: `new` initialised the mutex, which is never destroyed.
        assert_eq!(unsafe { libc::pthread_mutex_lock(self.0) }, 0);
    }

    pub(crate) fn unlock(self) {
        // SAFETY: as in `lock`; the mutex checks that this thread holds it.
        assert_eq!(unsafe { libc::pthread_mutex_unlock(self.0) }, 0);
    }

    /// Whether the last owner died, as the next one is told. The mutex is free again afterwards.
    pub(crate) fn owner_died(self) -> bool {
        // SAFETY: as in `lock`.
        let result = unsafe { libc::pthread_mutex_trylock(self.0) };
        if result == libc::EOWNERDEAD {
            // SAFETY: this thread has just become the owner of the inconsistent mutex.
            assert_eq!(unsafe { libc::pthread_mutex_consistent(self.0) }, 0);
        }
        if result != libc::EBUSY {
            self.unlock();
        }
        result == libc::EOWNERDEAD
    }
}
