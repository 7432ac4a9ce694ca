//! From a path or descriptor to a validated mapping.
#![allow(unsafe_code)]

use super::error::SegmentError;
use super::layout::{Header, Layout, Life, MAX_ALIGN, MAX_CAPACITY, NAMES_OFFSET, READY, Wanted};
use super::names::Names;
use super::registry;
use crate::sys::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};
use crate::sys::{membarrier, ofd_lock, process, robust_list, shm};
use memmap2::MmapRaw;
use std::fmt;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use zerocopy::{FromBytes, IntoBytes};

/// The byte of the file whose OFD lock a creator holds, far behind any data.
const CREATOR_BYTE: u64 = 1 << 40;

/// The rows of the process-private segment: how many threads of one process
/// may have used a lock outside of every segment.
const PRIVATE_CAPACITY: u32 = 16_384;

/// A mapped segment, or the memory that stands in for one where a lock lives
/// outside of every segment.
pub(crate) struct Mapping {
    memory: MmapRaw,
    layout: Layout,
    /// The file; `None` in process-private memory.
    fd: Option<Arc<OwnedFd>>,
    path: Option<PathBuf>,
    /// The description on which this process holds its rows' OFD locks, -1
    /// before there is one. It is never handed out, so that nobody else can
    /// keep the locks alive.
    witness: AtomicI32,
    /// Which rows this process has claimed, a bit each.
    claimed: Box<[AtomicU64]>,
    /// Whether there is a `Segment` through which locks can be reached.
    open: AtomicU32,
    /// After how many milliseconds a waiter of this process looks for a deadlock; 0 if
    /// it does not.
    detect: AtomicU32,
}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapping")
            .field("range", &self.range())
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

/// A device and an inode.
pub(crate) type FileIdentity = (u64, u64);

impl Mapping {
    fn new(memory: MmapRaw, layout: Layout, fd: Option<Arc<OwnedFd>>, path: Option<&Path>) -> Self {
        // For those who will attach. Better now: it takes milliseconds once the process
        // has several threads. Whether it is refused, they will find out.
        membarrier::register();
        let words = layout.capacity as usize / 64 + 1;
        Self {
            memory,
            layout,
            fd,
            path: path.map(Path::to_path_buf),
            witness: AtomicI32::new(-1),
            claimed: (0..words).map(|_| AtomicU64::new(0)).collect(),
            open: AtomicU32::new(0),
            detect: AtomicU32::new(0),
        }
    }

    /// The memory behind locks that live in no segment.
    pub(crate) fn private() -> io::Result<Self> {
        let page = process::page_size();
        let layout = Layout::new(PRIVATE_CAPACITY, page, 0, 1).ok_or(io::ErrorKind::OutOfMemory)?;
        let memory = shm::map_private(layout.total + page)?;
        Ok(Self::new(memory, layout, None, None))
    }

    /// Whether it is a segment, shared with others, rather than private memory.
    pub(crate) fn is_shared(&self) -> bool {
        self.fd.is_some()
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    pub(crate) fn base(&self) -> *mut u8 {
        self.memory.as_mut_ptr()
    }

    pub(crate) fn range(&self) -> Range<usize> {
        let start = self.base().addr();
        start..start + self.memory.len()
    }

    pub(crate) fn value(&self) -> *mut u8 {
        // SAFETY: the value lies inside the mapping.
        unsafe { self.base().add(self.layout.value_offset) }
    }

    pub(crate) fn header(&self) -> &Header {
        // SAFETY: the header is at the start of the mapping, aligned to a
        // page, any bytes are a valid `Header`, and what changes is atomic.
        unsafe { &*self.base().cast::<Header>() }
    }

    /// What things in the value are called.
    pub(crate) fn names(&self) -> &Names {
        // SAFETY: between the header and the rows, 8-byte aligned; any bytes are
        // `Names`, and all that changes in them is atomic.
        unsafe { &*self.base().add(NAMES_OFFSET).cast::<Names>() }
    }

    /// The path under which it was opened.
    pub(crate) fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Whether the value holds the byte at `offset`.
    pub(crate) fn value_holds(&self, offset: u64) -> bool {
        let value = self.layout.value_offset as u64;
        (value..value + self.layout.value_size as u64).contains(&offset)
    }

    /// Says after how long a waiter of this process looks for a deadlock. Relaxed,
    /// and when it is asked for: a wait that has begun goes on as it was.
    pub(crate) fn set_detect_after(&self, time: Option<Duration>) {
        let millis = |time: Duration| u32::try_from(time.as_millis()).unwrap_or(u32::MAX).max(1);
        self.detect.store(time.map_or(0, millis), Ordering::Relaxed);
    }

    pub(crate) fn detect_after(&self) -> Option<Duration> {
        let millis = self.detect.load(Ordering::Relaxed);
        (millis != 0).then(|| Duration::from_millis(millis.into()))
    }

    /// The life word of row `index`, which is 1 to `capacity`.
    pub(crate) fn life_word(&self, index: u32) -> &AtomicU32 {
        &self.life(index).word
    }

    /// The life word of row `index`, which is 1 to `capacity`, and what is with it.
    pub(crate) fn life(&self, index: u32) -> &Life {
        // SAFETY: the layout puts it inside the mapping, 8-byte aligned; any bytes
        // are a `Life`, and all that changes in one is atomic.
        unsafe { &*self.base().add(self.layout.life(index)).cast::<Life>() }
    }

    /// What tells the file from all others of the machine; all zero for private memory.
    pub(crate) fn file_identity(&self) -> io::Result<FileIdentity> {
        let stat = self.file().map(shm::stat).transpose()?;
        Ok(stat.map_or((0, 0), |stat| stat.inode))
    }

    /// The file.
    pub(crate) fn file(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_deref().map(AsFd::as_fd)
    }

    /// The rows used so far.
    pub(crate) fn rows(&self) -> u32 {
        self.header().rows.load(Ordering::Acquire).min(self.layout.capacity)
    }

    /// Says whether there is a `Segment`; where there is none, threads that
    /// hold nothing leave when they next look (which may be late: Relaxed).
    pub(crate) fn set_open(&self, open: bool) {
        self.open.store(open.into(), Ordering::Relaxed);
    }

    pub(crate) fn is_open(&self) -> bool {
        self.open.load(Ordering::Relaxed) != 0
    }

    /// The description for this process's OFD locks; opened at first need.
    /// The caller holds the registry's lock.
    pub(crate) fn open_witness(&self) -> io::Result<BorrowedFd<'_>> {
        if let Some(fd) = self.witness() {
            return Ok(fd);
        }
        let Some(fd) = self.file() else { return Err(io::ErrorKind::Unsupported.into()) };
        let own = shm::reopen(fd).or_else(|error| {
            // Without /proc: the name, if it still means the same file.
            let path = self.path.as_deref().ok_or(error)?;
            let again = shm::open(path)?;
            let same = shm::stat(again.as_fd())?.inode == shm::stat(fd)?.inode;
            if same { Ok(again) } else { Err(io::Error::from(io::ErrorKind::NotFound)) }
        })?;
        self.witness.store(shm::into_number(own), Ordering::Release);
        self.witness().ok_or_else(|| io::ErrorKind::Unsupported.into())
    }

    /// The description for this process's OFD locks, if there is one yet.
    pub(crate) fn witness(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: the number is closed when the mapping is dropped, which the
        // borrow of `self` excludes, or in a forked child's only thread, in a
        // fork handler, where no other code of this crate is running.
        unsafe { shm::borrow(self.witness.load(Ordering::Acquire)) }
    }

    fn claim_bit(&self, index: u32) -> (&AtomicU64, u64) {
        (&self.claimed[index as usize / 64], 1 << (index % 64))
    }

    /// Whether a thread of this process has claimed the row.
    pub(crate) fn claimed_here(&self, index: u32) -> bool {
        let (word, bit) = self.claim_bit(index);
        word.load(Ordering::Acquire) & bit != 0
    }

    /// Notes that a thread of this process has claimed the row, or left it.
    pub(crate) fn note_claim(&self, index: u32, claimed: bool) {
        let (word, bit) = self.claim_bit(index);
        if claimed {
            word.fetch_or(bit, Ordering::AcqRel);
        } else {
            word.fetch_and(!bit, Ordering::AcqRel);
        }
    }

    /// In a forked child: the parent's claims, and the description that holds
    /// them, are not the child's. Async-signal-safe.
    pub(super) fn forget_parent(&self) {
        shm::close(self.witness.swap(-1, Ordering::AcqRel));
        for word in &self.claimed {
            word.store(0, Ordering::Relaxed);
        }
    }

    /// Marks every row's thread dead. For when it is certain: another boot, or
    /// the private memory of a forked child.
    pub(super) fn bury_everybody(&self) {
        for index in 1..=self.rows() {
            let life = self.life(index);
            if life.word.load(Ordering::Relaxed) != 0 {
                // Nor has a process kept anything.
                life.of_process.store(0, Ordering::Relaxed);
                life.word.store(robust_list::DIED, Ordering::Relaxed);
            }
        }
    }

    /// Marks the participants of an earlier boot dead, once.
    fn survive_reboot(&self) -> Result<(), SegmentError> {
        let now = process::boot_id();
        let now = [now as u64, (now >> 64) as u64];
        let boot = &self.header().boot;
        let is = |id: [u64; 2]| id.iter().zip(boot).all(|(id, b)| b.load(Ordering::Acquire) == *id);
        if now == [0; 2] || is(now) || is([0; 2]) {
            return Ok(());
        }
        let Some(fd) = self.file() else { return Ok(()) };
        let _creator = CreatorLock::take(fd)?;
        if !is(now) {
            self.bury_everybody();
            for (word, id) in boot.iter().zip(now) {
                word.store(id, Ordering::Release);
            }
        }
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.is_shared() {
            registry::unregister(self);
        }
        shm::close(self.witness.load(Ordering::Acquire));
    }
}

/// The lock under which a segment is created.
struct CreatorLock<'f>(BorrowedFd<'f>);

impl<'f> CreatorLock<'f> {
    fn take(fd: BorrowedFd<'f>) -> Result<Self, SegmentError> {
        ofd_lock::lock(fd, CREATOR_BYTE).map_err(SegmentError::io("lock"))?;
        Ok(Self(fd))
    }
}

impl Drop for CreatorLock<'_> {
    fn drop(&mut self) {
        ofd_lock::unlock(self.0, CREATOR_BYTE);
    }
}

/// What a caller wants to happen to a file that is or is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    Create,
    Open,
    OpenOrCreate,
}

/// Everything about a segment to be opened or created.
pub(crate) struct Request<'i> {
    pub(crate) wanted: Wanted,
    pub(crate) mode: u32,
    /// Run on the zeroed value by whoever creates.
    pub(crate) init: Option<Box<dyn FnOnce(*mut u8) + 'i>>,
}

/// What a file turned out to be.
enum State {
    Ready(Layout),
    Unfinished,
}

impl Request<'_> {
    fn check(&self) -> Result<(), SegmentError> {
        let in_range = |option, found: u64, max: u64| {
            if (1..=max).contains(&found) {
                Ok(())
            } else {
                Err(SegmentError::InvalidOption { option, found, max })
            }
        };
        in_range("capacity", self.wanted.capacity.into(), MAX_CAPACITY.into())?;
        in_range("alignment of the value", self.wanted.value_align as u64, MAX_ALIGN as u64)?;
        in_range("mode", self.mode.into(), 0o7777)
    }

    /// Opens or creates the segment at `path`.
    pub(crate) fn at_path(mut self, path: &Path, how: How) -> Result<Arc<Mapping>, SegmentError> {
        self.check()?;
        loop {
            let (fd, created) = match Self::open_file(path, how, self.mode) {
                Ok(opened) => opened,
                // It came or went between two looks; look again.
                Err(None) => continue,
                Err(Some(error)) => return Err(error),
            };
            let may_finish = created || how == How::OpenOrCreate;
            if let Some(mapping) = self.establish(fd, Some(path), may_finish, created)? {
                return Ok(mapping);
            }
        }
    }

    fn open_file(
        path: &Path,
        how: How,
        mode: u32,
    ) -> Result<(OwnedFd, bool), Option<SegmentError>> {
        if how != How::Create {
            match shm::open(path) {
                Ok(fd) => return Ok((fd, false)),
                Err(error)
                    if error.kind() == io::ErrorKind::NotFound && how == How::OpenOrCreate => {}
                Err(error) => return Err(Some(SegmentError::of_path("open", path, error))),
            }
        }
        match shm::create_new(path, mode) {
            Ok(fd) => Ok((fd, true)),
            // Somebody was faster. (`open` says of a dangling link that it is
            // a link, so this does not go round for ever.)
            Err(error)
                if error.kind() == io::ErrorKind::AlreadyExists && how == How::OpenOrCreate =>
            {
                Err(None)
            }
            Err(error) => Err(Some(SegmentError::of_path("create", path, error))),
        }
    }

    /// Opens the segment behind a descriptor; never creates one.
    pub(crate) fn at_fd(mut self, fd: OwnedFd) -> Result<Arc<Mapping>, SegmentError> {
        self.check()?;
        let mapping = self.establish(fd, None, false, false)?;
        mapping.ok_or(SegmentError::Unfinished)
    }

    /// Creates a segment without a name.
    pub(crate) fn anonymous(mut self) -> Result<Arc<Mapping>, SegmentError> {
        self.check()?;
        let fd = shm::memfd("heirlock").map_err(SegmentError::io("create memfd for the"))?;
        let mapping = self.establish(fd, None, true, false)?.ok_or(SegmentError::Unfinished)?;
        if let Some(fd) = mapping.file() {
            // Old kernels and sandboxes may refuse; then a peer could truncate
            // it, as it could truncate a file.
            let _ = shm::seal_size(fd);
        }
        Ok(mapping)
    }

    /// Reads what the file is, changing nothing.
    fn look(&self, fd: BorrowedFd) -> Result<State, SegmentError> {
        let stat = || shm::stat(fd).map_err(SegmentError::io("stat"));
        if !stat()?.regular {
            return Err(SegmentError::NotAFile);
        }
        let mut bytes = [0; size_of::<Header>()];
        let len = shm::read_at(fd, &mut bytes, 0).map_err(SegmentError::io("read"))?;
        if len == 0 {
            return Ok(State::Unfinished);
        }
        let header = Header::read_from_bytes(&bytes).expect("the sizes are equal");
        if header.is_unfinished()? {
            return Ok(State::Unfinished);
        }
        // Only now: before it was ready the creator was changing the size.
        Layout::of(&header, &self.wanted, stat()?.size).map(State::Ready)
    }

    /// Makes a mapping of the file, finishing it first if need be and if that
    /// is wanted. `None` if `path` has come to mean another file.
    fn establish(
        &mut self,
        fd: OwnedFd,
        path: Option<&Path>,
        may_finish: bool,
        created: bool,
    ) -> Result<Option<Arc<Mapping>>, SegmentError> {
        let fd = Arc::new(fd);
        let mut state = self.look(fd.as_fd())?;
        if let State::Unfinished = state {
            if !may_finish {
                return Err(SegmentError::Unfinished);
            }
            let creator = Arc::clone(&fd);
            let _creator = CreatorLock::take(creator.as_fd())?;
            let links = shm::stat(fd.as_fd()).map_err(SegmentError::io("stat"))?.links;
            if path.is_some() && links == 0 {
                return Ok(None);
            }
            state = self.look(fd.as_fd())?;
            if let State::Unfinished = state {
                return self.finish(fd, path, created).map(Some);
            }
        }
        let State::Ready(layout) = state else { return Err(SegmentError::Unfinished) };
        let mapping = Self::map(fd, path, layout)?;
        mapping.survive_reboot()?;
        registry::register(&mapping);
        Ok(Some(mapping))
    }

    fn map(
        fd: Arc<OwnedFd>,
        path: Option<&Path>,
        layout: Layout,
    ) -> Result<Arc<Mapping>, SegmentError> {
        let memory =
            shm::map_shared(fd.as_fd(), layout.total).map_err(SegmentError::io("map the"))?;
        Ok(Arc::new(Mapping::new(memory, layout, Some(fd), path)))
    }

    /// Creates the segment in a file that is empty or was left unfinished. The
    /// caller holds the creator's lock. A creator killed at any point leaves a
    /// file that is empty or whose header does not say that it is ready.
    fn finish(
        &mut self,
        fd: Arc<OwnedFd>,
        path: Option<&Path>,
        created: bool,
    ) -> Result<Arc<Mapping>, SegmentError> {
        let undo = Undo(path.filter(|_| created));
        let page = process::page_size();
        let Wanted { capacity, value_size, value_align, .. } = self.wanted;
        let layout =
            Layout::new(capacity, page, value_size, value_align).ok_or(SegmentError::TooLarge)?;

        let file = fd.as_fd();
        let header = self.wanted.header(page, process::boot_id());
        // First, so that whoever may finish it after us can open it.
        let mode = shm::stat(file).map_err(SegmentError::io("stat"))?.mode;
        if path.is_some() && mode != self.mode {
            shm::set_mode(file, self.mode).map_err(SegmentError::io("set the mode of the"))?;
        }
        shm::resize(file, 0).map_err(SegmentError::io("empty the"))?;
        shm::write_at(file, header.as_bytes(), 0).map_err(SegmentError::io("write the"))?;
        shm::resize(file, layout.total as u64).map_err(SegmentError::io("size the"))?;
        // Beyond the header, which is written already.
        let header_len = size_of::<Header>() as u64;
        shm::reserve(file, header_len, layout.life_offset as u64 - header_len)
            .map_err(SegmentError::io("reserve memory for the"))?;
        let mapping = Self::map(fd, path, layout)?;
        registry::register(&mapping);
        if let Some(init) = self.init.take() {
            init(mapping.value());
        }
        // Release: whoever sees the state sees the value; openers read the
        // header with `pread`, after which they map.
        mapping.header().state.store(READY, Ordering::Release);
        std::mem::forget(undo);
        Ok(mapping)
    }
}

/// Takes back a creation that failed or whose `init` panicked. Only a name:
/// an unfinished file may stay, and must where it was there before.
struct Undo<'a>(Option<&'a Path>);

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        if let Some(path) = self.0 {
            let _ = shm::unlink(path);
        }
    }
}
