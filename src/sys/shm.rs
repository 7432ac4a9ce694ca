//! Files, memfds and mappings.
#![allow(unsafe_code)]

use core::ptr::NonNull;
use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{self, FallocateFlags, FileType, MemfdFlags, Mode, OFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{self, MapFlags, ProtFlags};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::path::Path;

/// What `fstat` says that matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) regular: bool,
    pub(crate) size: u64,
    pub(crate) mode: u32,
    pub(crate) links: u64,
    pub(crate) inode: (u64, u64),
}

pub(crate) fn stat(fd: BorrowedFd) -> io::Result<Stat> {
    let stat = fs::fstat(fd)?;
    Ok(Stat {
        regular: FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile,
        size: stat.st_size as u64,
        mode: stat.st_mode & 0o7777,
        links: stat.st_nlink as u64,
        inode: (stat.st_dev as u64, stat.st_ino as u64),
    })
}

// `NONBLOCK`: opening a FIFO or a device by mistake must not hang.
const COMMON: OFlags =
    OFlags::CLOEXEC.union(OFlags::NOFOLLOW).union(OFlags::NOCTTY).union(OFlags::NONBLOCK);

pub(crate) fn open(path: &Path) -> io::Result<OwnedFd> {
    Ok(fs::open(path, COMMON | OFlags::RDWR, Mode::empty())?)
}

pub(crate) fn open_read_only(path: &Path) -> io::Result<OwnedFd> {
    Ok(fs::open(path, COMMON | OFlags::RDONLY, Mode::empty())?)
}

/// Fails with `EEXIST` where there is something at `path`.
pub(crate) fn create_new(path: &Path, mode: u32) -> io::Result<OwnedFd> {
    let flags = COMMON | OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
    Ok(fs::open(path, flags, Mode::from_raw_mode(mode))?)
}

pub(crate) fn unlink(path: &Path) -> io::Result<()> {
    Ok(fs::unlink(path)?)
}

pub(crate) fn memfd(name: &str) -> io::Result<OwnedFd> {
    Ok(fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?)
}

/// Forbids every process to change the size of a memfd, so that no peer can
/// take pages away from under a mapping.
pub(crate) fn seal_size(fd: BorrowedFd) -> io::Result<()> {
    Ok(fs::fcntl_add_seals(fd, SealFlags::SHRINK | SealFlags::GROW)?)
}

pub(crate) fn set_mode(fd: BorrowedFd, mode: u32) -> io::Result<()> {
    Ok(fs::fchmod(fd, Mode::from_raw_mode(mode))?)
}

pub(crate) fn resize(fd: BorrowedFd, len: u64) -> io::Result<()> {
    Ok(fs::ftruncate(fd, len)?)
}

/// A second, independent description of the same file, as OFD locks want it.
pub(crate) fn reopen(fd: BorrowedFd) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    Ok(fs::open(path, flags, Mode::empty())?)
}

/// Makes sure that the pages from `offset` on are backed by storage: touching
/// them can no longer fail for want of space.
///
/// Where the filesystem knows no `fallocate` the range is written with zeros,
/// so it must not hold anything yet.
pub(crate) fn reserve(fd: BorrowedFd, offset: u64, len: u64) -> io::Result<()> {
    if allocate(fd, offset, len)? { Ok(()) } else { write_zeros(fd, offset, len) }
}

/// As [`reserve`], for pages that others may be using: where the filesystem
/// knows no `fallocate` they are left to them.
pub(crate) fn reserve_in_use(fd: BorrowedFd, offset: u64, len: u64) -> io::Result<()> {
    allocate(fd, offset, len).map(drop)
}

/// `fallocate`; `false` where the filesystem does not know it.
fn allocate(fd: BorrowedFd, offset: u64, len: u64) -> io::Result<bool> {
    loop {
        match fs::fallocate(fd, FallocateFlags::KEEP_SIZE, offset, len) {
            Ok(()) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
}

fn write_zeros(fd: BorrowedFd, offset: u64, len: u64) -> io::Result<()> {
    let zeros = [0; 4096];
    let end = offset + len;
    let mut at = offset;
    while at < end {
        let chunk = zeros.len().min((end - at) as usize);
        write_at(fd, &zeros[..chunk], at)?;
        at += chunk as u64;
    }
    Ok(())
}

/// Writes all of `bytes`.
pub(crate) fn write_at(fd: BorrowedFd, mut bytes: &[u8], mut at: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(fd, bytes, at) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(done) => {
                bytes = &bytes[done..];
                at += done as u64;
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Reads up to `bytes.len()` bytes; fewer only at the end of the file.
pub(crate) fn read_at(fd: BorrowedFd, bytes: &mut [u8], at: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < bytes.len() {
        match rustix::io::pread(fd, &mut bytes[done..], at + done as u64) {
            Ok(0) => break,
            Ok(more) => done += more,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(done)
}

/// A descriptor number that a fork handler may close (`-1` closes nothing).
pub(crate) fn close(fd: RawFd) {
    if fd >= 0 {
        // SAFETY: the caller owns the number and forgets it with this call.
        unsafe { rustix::io::close(fd) };
    }
}

/// Borrows a descriptor by its number; `None` for `-1`.
///
/// # Safety
///
/// The descriptor stays open while the result is used.
pub(crate) unsafe fn borrow<'a>(fd: RawFd) -> Option<BorrowedFd<'a>> {
    // SAFETY: it is not -1, and open by contract of this function.
    (fd >= 0).then(|| unsafe { BorrowedFd::borrow_raw(fd) })
}

/// Gives up ownership of a descriptor for its number.
pub(crate) fn into_number(fd: OwnedFd) -> RawFd {
    fd.into_raw_fd()
}

/// Memory shared with everybody who maps the file, of `len` bytes from its
/// start.
pub(crate) fn map_shared(fd: BorrowedFd, len: usize) -> io::Result<MmapRaw> {
    MmapOptions::new().len(len).map_raw(&fd)
}

/// Zeroed memory of this process alone, which is not charged before use.
pub(crate) fn map_private(len: usize) -> io::Result<MmapRaw> {
    Ok(MmapOptions::new().len(len).no_reserve_swap().map_anon()?.into())
}

/// One page of a file, shared, and directly behind it one private page.
/// Children do not get it (`MADV_DONTFORK`).
#[derive(Debug)]
pub(crate) struct PagePair {
    start: NonNull<u8>,
    page: usize,
}

impl PagePair {
    pub(crate) fn map(fd: BorrowedFd, offset: u64, page: usize) -> io::Result<Self> {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses the place, so nothing else is mapped there.
        let start = unsafe {
            mm::mmap_anonymous(core::ptr::null_mut(), 2 * page, prot, MapFlags::PRIVATE)
        }?;
        let pair = Self { start: NonNull::new(start.cast()).ok_or(Errno::NOMEM)?, page };
        // SAFETY: MAP_FIXED replaces the first of the two pages just mapped,
        // which nobody else knows of.
        unsafe {
            let flags = MapFlags::SHARED | MapFlags::FIXED;
            mm::mmap(start, page, prot, flags, fd.as_fd(), offset)?;
        }
        // SAFETY: the range is the two pages; the advice changes no contents.
        unsafe { mm::madvise(start, 2 * page, mm::Advice::LinuxDontFork) }?;
        Ok(pair)
    }

    /// The start of the private page.
    pub(crate) fn private(&self) -> NonNull<u8> {
        // SAFETY: the pair is two pages long.
        unsafe { self.start.add(self.page) }
    }
}

impl Drop for PagePair {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `map` and, as the owner drops it,
        // nothing refers to it any more. Failing would only leak it.
        let _ = unsafe { mm::munmap(self.start.as_ptr().cast(), 2 * self.page) };
    }
}
