//! Segments as their users see them.
#![allow(unsafe_code)]

use crate::error::NameError;
use crate::lock::raw::reclaim;
use crate::memory::error::SegmentError;
use crate::memory::layout::{MAGIC, Wanted};
use crate::memory::map::{How, Mapping, Request};
use crate::memory::names::Refused;
use crate::participant::attach::AttachError;
use crate::participant::current::{current_in, prune};
use crate::participant::id::Id;
use crate::sys::shm;
use core::fmt;
use core::marker::PhantomData;
use core::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use zerocopy::FromBytes;

/// A `T` in memory that processes share, with room for the threads that lock
/// what is in it.
///
/// It derefs to the `T`. Everything in it that changes after creation must be
/// behind a [`Mutex`](crate::Mutex) or atomic; the type system sees to that,
/// as it does between threads. Every bit pattern must be a valid `T`
/// ([`FromBytes`]), because a writer may be killed half-way: so there can be no
/// pointer, reference, `bool` or enum in it. A new segment is all zero bytes,
/// unless [`Options::init`] changes them. The value is never dropped.
///
/// What could be half-written, or mean something in one process only, does not
/// compile:
///
/// ```compile_fail
/// heirlock::Segment::<heirlock::Mutex<bool>>::anonymous();
/// ```
/// ```compile_fail
/// heirlock::Segment::<heirlock::Mutex<&'static u64>>::anonymous();
/// ```
/// ```compile_fail
/// heirlock::Segment::<heirlock::Mutex<Box<u64>>>::anonymous();
/// ```
/// ```compile_fail
/// heirlock::Segment::<heirlock::Mutex<String>>::anonymous();
/// ```
/// ```compile_fail
/// heirlock::Segment::<heirlock::Mutex<Option<u32>>>::anonymous();
/// ```
/// ```compile_fail
/// heirlock::Segment::<std::cell::Cell<u64>>::anonymous(); // not Sync
/// ```
///
/// # Which file
///
/// Any path: on `/dev/shm` it lives until the next boot or
/// [`unlink`](Segment::unlink); on a disk it survives a boot, after which all
/// former participants count as dead. [`Segment::anonymous`] has no path and is
/// passed on by `fork`, or as a descriptor. Nobody may change the size of the
/// file, which would take the memory away from under everybody.
///
/// # Examples
///
/// ```
/// use heirlock::{Mutex, Segment};
///
/// # let path = format!("/dev/shm/heirlock-doc-segment-{}", std::process::id());
/// let segment: Segment<Mutex<u64>> = Segment::create(&path)?;
/// *segment.lock() = 7;
/// let again: Segment<Mutex<u64>> = Segment::open(&path)?;
/// assert_eq!(*again.lock(), 7);
/// # Segment::unlink(&path)?;
/// # Ok::<(), heirlock::SegmentError>(())
/// ```
pub struct Segment<T> {
    mapping: Arc<Mapping>,
    _value: PhantomData<T>,
}

// SAFETY: the handle gives shared access to a `Sync` value, from whichever
// thread, and nothing else that depends on the thread.
unsafe impl<T: Sync> Send for Segment<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Segment<T> {}

/// How to create or open a segment; made by [`Segment::options`].
///
/// `capacity`, `mode` and `init` matter to whoever creates the segment;
/// `schema`, and size and alignment of `T`, must be the same for everybody;
/// `detect_deadlocks` is each process's own affair.
///
/// # Examples
///
/// ```
/// use heirlock::{Mutex, Segment};
/// # let path = format!("/dev/shm/heirlock-doc-options-{}", std::process::id());
/// let segment = Segment::options()
///     .capacity(64)
///     .mode(0o660)
///     .schema(3)
///     .init(|value: &mut Mutex<u64>| *value.get_mut() = 100)
///     .open_or_create(&path)?;
/// assert_eq!(*segment.lock(), 100);
/// # Segment::unlink(&path)?;
/// # Ok::<(), heirlock::SegmentError>(())
/// ```
#[must_use = "options do nothing until one of create, open, open_or_create, anonymous, from_fd"]
pub struct Options<'i, T> {
    capacity: u32,
    mode: u32,
    schema: u64,
    detect: Option<Duration>,
    init: Option<Init<'i, T>>,
}

type Init<'i, T> = Box<dyn FnOnce(&mut T) + 'i>;

impl<T> fmt::Debug for Options<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("capacity", &self.capacity)
            .field("mode", &format_args!("{:#o}", self.mode))
            .field("schema", &self.schema)
            .field("detect_deadlocks", &self.detect)
            .finish_non_exhaustive()
    }
}

impl<'i, T: FromBytes + Sync + 'static> Options<'i, T> {
    /// How many threads, of all processes together, can be attached at a time, and how
    /// many waits without a thread under way: those of futures, in a ring, and one for
    /// each lock of [`lock_any`](crate::select::lock_any). 1 to 65,535, 1,024 if not
    /// said. Each takes 64 bytes from the start and a page while it is attached.
    pub fn capacity(mut self, threads: u32) -> Self {
        self.capacity = threads;
        self
    }

    /// The file's permission bits, whatever the umask; 0o600 if not said. Whoever
    /// shall share the segment needs to read and write.
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    /// A number of your own that says which `T` this is; 0 if not said. Opening
    /// a segment of another schema is an error.
    pub fn schema(mut self, schema: u64) -> Self {
        self.schema = schema;
        self
    }

    /// [`Segment::detect_deadlocks`], from the start.
    pub fn detect_deadlocks(mut self, after: Duration) -> Self {
        self.detect = Some(after);
        self
    }

    /// Run once on the zeroed value by the process that creates the segment,
    /// before anybody else can open it. If the creator dies in it, the next one
    /// starts anew; if it panics, there is no segment.
    pub fn init(mut self, init: impl FnOnce(&mut T) + 'i) -> Self {
        self.init = Some(Box::new(init));
        self
    }

    fn request(self) -> Request<'i> {
        let init = self.init.map(|init| {
            let init = move |value: *mut u8| {
                // SAFETY: `memory` passes the place of a value of this size and
                // alignment (they are in `Wanted` below), which any bytes
                // make a `T`, and which nobody else can have open yet.
                init(unsafe { &mut *value.cast::<T>() });
            };
            Box::new(init) as Box<dyn FnOnce(*mut u8) + 'i>
        });
        let wanted = Wanted {
            capacity: self.capacity,
            schema: self.schema,
            value_size: size_of::<T>(),
            value_align: align_of::<T>(),
        };
        Request { wanted, mode: self.mode, init }
    }

    fn establish(
        self,
        establish: impl FnOnce(Request<'i>) -> Result<Arc<Mapping>, SegmentError>,
    ) -> Result<Segment<T>, SegmentError> {
        let detect = self.detect;
        let mapping = establish(self.request())?;
        mapping.set_detect_after(detect);
        Ok(Segment::new(mapping))
    }

    /// Creates the segment at `path`.
    ///
    /// # Errors
    ///
    /// [`SegmentError::AlreadyExists`], and what [`Options::open_or_create`]
    /// can meet.
    pub fn create(self, path: impl AsRef<Path>) -> Result<Segment<T>, SegmentError> {
        self.establish(|request| request.at_path(path.as_ref(), How::Create))
    }

    /// Opens the segment at `path`.
    ///
    /// # Errors
    ///
    /// [`SegmentError`] says what is there, and what was expected. What is not
    /// accepted is not changed.
    pub fn open(self, path: impl AsRef<Path>) -> Result<Segment<T>, SegmentError> {
        self.establish(|request| request.at_path(path.as_ref(), How::Open))
    }

    /// Opens the segment at `path`; creates it if there is none, and finishes
    /// it if its creator died before it could (an empty file counts as such).
    /// Waits for a creator that is at work.
    ///
    /// # Errors
    ///
    /// [`SegmentError`] says what is there, and what was expected. What is not
    /// accepted is not changed.
    pub fn open_or_create(self, path: impl AsRef<Path>) -> Result<Segment<T>, SegmentError> {
        self.establish(|request| request.at_path(path.as_ref(), How::OpenOrCreate))
    }

    /// Creates a segment without a name (a memfd), for `fork` or to be passed
    /// on as a descriptor. Its size is sealed where the kernel can do that.
    ///
    /// # Errors
    ///
    /// [`SegmentError::Io`] if there is no memory.
    pub fn anonymous(self) -> Result<Segment<T>, SegmentError> {
        self.establish(Request::anonymous)
    }

    /// Opens the segment behind a descriptor received from elsewhere. It must
    /// be open for reading and writing, and to join the segment the process must
    /// be allowed to open the file for itself, through `/proc/self/fd`.
    ///
    /// # Errors
    ///
    /// [`SegmentError`] says what is there, and what was expected.
    pub fn from_fd(self, fd: OwnedFd) -> Result<Segment<T>, SegmentError> {
        self.establish(|request| request.at_fd(fd))
    }
}

impl Segment<()> {
    /// Removes the name `path`. Whoever has the segment open keeps it; the next
    /// [`open_or_create`](Segment::open_or_create) makes a new one.
    ///
    /// # Errors
    ///
    /// [`SegmentError::NotASegment`] or [`SegmentError::NotAFile`] if it is
    /// something else, which then stays; [`SegmentError::NotFound`]; [`SegmentError::Io`].
    ///
    /// # Examples
    ///
    /// ```
    /// use heirlock::{Mutex, Segment};
    /// # let path = format!("/dev/shm/heirlock-doc-unlink-{}", std::process::id());
    /// let segment: Segment<Mutex<u64>> = Segment::create(&path)?;
    /// Segment::unlink(&path)?;
    /// assert!(!std::path::Path::new(&path).exists());
    /// *segment.lock() += 1; // still there
    /// # Ok::<(), heirlock::SegmentError>(())
    /// ```
    pub fn unlink(path: impl AsRef<Path>) -> Result<(), SegmentError> {
        let path = path.as_ref();
        let fd = shm::open_read_only(path)
            .map_err(|source| SegmentError::of_path("open", path, source))?;
        // Also an empty file may go, but not a device that reads as empty.
        let stat =
            shm::stat(fd.as_fd()).map_err(|source| SegmentError::of_path("stat", path, source))?;
        if !stat.regular {
            return Err(SegmentError::NotAFile);
        }
        let mut found = [0; 8];
        let len = shm::read_at(fd.as_fd(), &mut found, 0)
            .map_err(|source| SegmentError::of_path("read", path, source))?;
        if len != 0 && found != MAGIC.to_ne_bytes() {
            return Err(SegmentError::NotASegment { found });
        }
        shm::unlink(path).map_err(|source| SegmentError::of_path("unlink", path, source))
    }
}

impl<T: FromBytes + Sync + 'static> Segment<T> {
    fn new(mapping: Arc<Mapping>) -> Self {
        mapping.set_open(true);
        Self { mapping, _value: PhantomData }
    }

    /// How to create or open a segment, if not in the usual way.
    pub fn options<'i>() -> Options<'i, T> {
        Options { capacity: 1024, mode: 0o600, schema: 0, detect: None, init: None }
    }

    /// [`Options::create`] with the usual options.
    ///
    /// # Errors
    ///
    /// See [`Options::create`].
    pub fn create(path: impl AsRef<Path>) -> Result<Self, SegmentError> {
        Self::options().create(path)
    }

    /// [`Options::open`] with the usual options.
    ///
    /// # Errors
    ///
    /// See [`Options::open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, SegmentError> {
        Self::options().open(path)
    }

    /// [`Options::open_or_create`] with the usual options.
    ///
    /// # Errors
    ///
    /// See [`Options::open_or_create`].
    pub fn open_or_create(path: impl AsRef<Path>) -> Result<Self, SegmentError> {
        Self::options().open_or_create(path)
    }

    /// [`Options::anonymous`] with the usual options.
    ///
    /// # Errors
    ///
    /// See [`Options::anonymous`].
    ///
    /// # Examples
    ///
    /// ```
    /// use heirlock::{Mutex, Segment};
    /// let segment: Segment<Mutex<u64>> = Segment::anonymous()?;
    /// let same: Segment<Mutex<u64>> = Segment::from_fd(segment.as_fd().try_clone_to_owned()?)?;
    /// *segment.lock() += 1;
    /// assert_eq!(*same.lock(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn anonymous() -> Result<Self, SegmentError> {
        Self::options().anonymous()
    }

    /// [`Options::from_fd`] with the usual options.
    ///
    /// # Errors
    ///
    /// See [`Options::from_fd`].
    pub fn from_fd(fd: OwnedFd) -> Result<Self, SegmentError> {
        Self::options().from_fd(fd)
    }

    /// Joins the segment now rather than at the first lock operation, and
    /// returns as an error what [`Mutex::lock`](crate::Mutex::lock) would have
    /// to panic about. The thread leaves when it ends, or when the segment is
    /// dropped.
    ///
    /// # Errors
    ///
    /// [`AttachError`]: all rows belong to living threads, no memory, or the
    /// segment is corrupted.
    ///
    /// # Examples
    ///
    /// ```
    /// use heirlock::{Mutex, Segment};
    /// let segment: Segment<Mutex<u64>> = Segment::anonymous()?;
    /// let me = segment.attach()?;
    /// let guard = segment.lock();
    /// assert_eq!(heirlock::owner(&segment), Some(me));
    /// # drop(guard);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn attach(&self) -> Result<Participant, AttachError> {
        let me = current_in(&self.mapping, reclaim)?;
        if me.is_broken() {
            let what = "the thread met that in an earlier operation";
            return Err(AttachError::Corrupted { what });
        }
        Ok(Participant(me.id()))
    }

    /// How many threads can be attached at a time.
    pub fn capacity(&self) -> u32 {
        self.mapping.layout().capacity
    }

    /// The descriptor of the segment, to be passed to another process.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.mapping.file().expect("a segment has a file")
    }

    /// Where in the segment `part` lies, in bytes from its start: the name by
    /// which [`Snapshot`](crate::Snapshot) knows a lock. `None` if it lies
    /// elsewhere.
    ///
    /// # Examples
    ///
    /// ```
    /// use heirlock::{Mutex, Segment};
    /// let segment: Segment<[Mutex<u64>; 2]> = Segment::anonymous()?;
    /// let first = segment.offset_of(&segment[0]).unwrap();
    /// assert_eq!(segment.offset_of(&segment[1]), Some(first + 24));
    /// assert_eq!(segment.offset_of(&0), None);
    /// # Ok::<(), heirlock::SegmentError>(())
    /// ```
    pub fn offset_of<U: ?Sized>(&self, part: &U) -> Option<u64> {
        let address = core::ptr::from_ref(part).addr();
        let range = self.mapping.range();
        range.contains(&address).then(|| (address - range.start) as u64)
    }

    /// Calls `part`, a lock in the value, by a name, for people: [`deadlock`](crate::deadlock)
    /// and [`Snapshot`](crate::Snapshot) show it.
    ///
    /// The name is the same for all processes and stays as long as the segment. Giving
    /// the same name again is fine, so every process may do it when it starts. A process
    /// that is killed while it does leaves no name, or all of it.
    ///
    /// # Errors
    ///
    /// [`NameError`]: it has more than 56 bytes, none, or control characters; `part` is
    /// not in the value, or has another name; 62 others have names.
    ///
    /// # Examples
    ///
    /// ```
    /// use heirlock::{Mutex, NameError, Segment};
    /// let segment: Segment<[Mutex<u64>; 2]> = Segment::anonymous()?;
    /// segment.set_name(&segment[0], "accounts")?;
    /// segment.set_name(&segment[0], "accounts")?;
    /// assert_eq!(segment.name_of(&segment[0]).as_deref(), Some("accounts"));
    /// assert_eq!(segment.name_of(&segment[1]), None);
    /// let another = NameError::Another { name: Some("accounts".into()) };
    /// assert_eq!(segment.set_name(&segment[0], "orders"), Err(another));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn set_name<U: ?Sized>(&self, part: &U, name: &str) -> Result<(), NameError> {
        NameError::check(name)?;
        let offset = self.offset_of(part).filter(|offset| self.mapping.value_holds(*offset));
        let offset = offset.ok_or(NameError::Elsewhere)?;
        self.mapping.names().give(offset, name).map_err(|refused| match refused {
            Refused::Full => NameError::Full,
            Refused::Another => NameError::Another { name: self.name_of(part) },
        })
    }

    /// What `part`, a lock in the value, is called; `None` if it has no name.
    ///
    /// # Examples
    ///
    /// See [`Segment::set_name`].
    pub fn name_of<U: ?Sized>(&self, part: &U) -> Option<String> {
        self.mapping.names().of(self.offset_of(part)?)
    }

    /// Has waits for locks in the segment look for deadlocks when they have lasted for
    /// `after`, and end if they are chosen to; `None` ends that, and is how it is at
    /// first. It is for waits of this process, through this `Segment`, that begin from
    /// now on, and not for those that may end by themselves: see
    /// [`deadlock`](crate::deadlock).
    ///
    /// A wait that is chosen fails with [`Unusable::Deadlock`](crate::Unusable::Deadlock);
    /// [`Mutex::lock`](crate::Mutex::lock) panics with it, so that the thread unwinds and
    /// drops the locks that it holds. While a thread unwinds its waits do not look.
    ///
    /// # Examples
    ///
    /// ```
    /// use heirlock::{Mutex, Segment};
    /// use std::time::Duration;
    /// let segment: Segment<Mutex<u64>> = Segment::anonymous()?;
    /// segment.detect_deadlocks(Some(Duration::from_secs(1)));
    /// *segment.lock() += 1;
    /// # Ok::<(), heirlock::SegmentError>(())
    /// ```
    pub fn detect_deadlocks(&self, after: Option<Duration>) {
        self.mapping.set_detect_after(after);
    }
}

impl<T: FromBytes + Sync + 'static> Deref for Segment<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the mapping holds a value of the size and alignment of `T`
        // (checked when it was opened); any bytes are a `T`; it stays mapped as
        // long as `self`. Other processes change only what is atomic or locked,
        // since they too have no more than `&T`.
        unsafe { &*self.mapping.value().cast::<T>() }
    }
}

impl<T> Segment<T> {
    pub(crate) fn mapping(&self) -> &Mapping {
        &self.mapping
    }
}

impl<T> AsFd for Segment<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.mapping.file().expect("a segment has a file")
    }
}

impl<T> fmt::Debug for Segment<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Segment").field(&self.mapping).finish()
    }
}

impl<T> Drop for Segment<T> {
    fn drop(&mut self) {
        // No guard borrows it any more. This thread leaves now; others when
        // they next join something, or end.
        self.mapping.set_open(false);
        prune();
    }
}

/// A thread in a segment: which row it has, and the how-manyth user of the row
/// it is. It names one thread for good; the thread may be dead.
/// [`Thread`](crate::thread::Thread) unparks it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Participant(pub(crate) Id);

impl Participant {
    /// The row, from 1 on.
    pub fn row(self) -> u32 {
        self.0.index()
    }

    /// The how-manyth user of the row, from 1 on.
    pub fn generation(self) -> u64 {
        self.0.generation()
    }

    /// A number that stands for the participant and is never 0, to be kept in
    /// a segment.
    ///
    /// # Examples
    ///
    /// ```
    /// use heirlock::{Mutex, Participant, Segment};
    /// let segment: Segment<Mutex<u64>> = Segment::anonymous()?;
    /// let me = segment.attach()?;
    /// *segment.lock() = me.to_bits();
    /// assert_eq!(Participant::from_bits(*segment.lock()), Some(me));
    /// assert_eq!(Participant::from_bits(0), None);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn to_bits(self) -> u64 {
        self.0.bits()
    }

    /// The participant for which `bits` stands, if they can stand for one.
    pub fn from_bits(bits: u64) -> Option<Self> {
        let id = Id::from_bits(bits);
        (!id.is_nobody() && id.plain() == id).then_some(Self(id))
    }
}

impl fmt::Debug for Participant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for Participant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// A thread name as text: it comes from shared memory, so it can be anything.
pub(crate) fn display_name(name: &[u8; 16]) -> String {
    let len = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    String::from_utf8_lossy(&name[..len]).chars().filter(|c| !c.is_control()).collect()
}
