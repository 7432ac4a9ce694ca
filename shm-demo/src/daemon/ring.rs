//! The ring: whatever the daemon waits for, it waits for here.
//!
//! Whoever uses it can do no harm to memory: what the kernel reads and writes while an
//! operation is in flight belongs to the operation until its completion.
#![allow(unsafe_code)]

use crate::Result;
use heirlock::uring::{self, Entries};
use io_uring::types::{Fd, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use rustix::io::Errno;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

/// How many operations can be handed to the kernel at a time.
const ENTRIES: u32 = 256;

/// How many bytes are received at a time.
pub(crate) const RECEIVED: usize = 4096;

/// Neither does the other end read, nor will it send: what poll(2) calls that.
const GONE: i16 = libc::POLLHUP | libc::POLLERR;

/// What an operation is about, for whoever started it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum About {
    Accept,
    Signals,
    Timer(Timer),
    Receive(u64),
    Send(u64),
    /// The other end of a connection is gone.
    Hangup(u64),
    Lock(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Timer {
    /// The time to accept again, after that has failed.
    Accept,
    Watchdog,
    Drain,
    /// The time that a connection had to end by itself.
    Cut(u64),
}

/// What has come of an operation.
pub(crate) enum Outcome {
    Accepted(io::Result<OwnedFd>),
    /// These bytes, none of them at the end of the stream.
    Received(io::Result<Vec<u8>>),
    /// What was to be sent, and how much of it was.
    Sent(Vec<u8>, io::Result<usize>),
    /// A timer has run down, or there is something to be read.
    Due,
    /// Whether the other end is gone.
    Gone(bool),
    /// To be handed to the acquisition.
    Lock(cqueue::Entry),
}

pub(crate) struct Completion {
    pub(crate) about: About,
    pub(crate) outcome: Outcome,
    /// Whether more is to come of the same operation.
    pub(crate) goes_on: bool,
}

/// What an operation in flight needs: the kernel reads or writes it.
enum Memory {
    None,
    Bytes(Vec<u8>),
    Time { _time: Box<Timespec> },
}

struct Flight {
    about: About,
    memory: Memory,
    /// So that no other file gets its number before the kernel has seen the operation.
    _file: Option<Rc<dyn AsFd>>,
}

pub(crate) struct Ring {
    io: IoUring,
    /// The number that the next operation gets, never to be used again. They stay far
    /// below what `heirlock::uring` wants for itself.
    next: u64,
    flights: HashMap<u64, Flight>,
    /// What had to make room for others before it was asked for.
    completed: VecDeque<cqueue::Entry>,
}

impl Ring {
    pub(crate) fn new() -> Result<Self> {
        if let Some(error) = uring::refused() {
            return Err(refused(&error).into());
        }
        let io = IoUring::builder()
            .setup_single_issuer()
            .setup_coop_taskrun()
            .build(ENTRIES)
            .map_err(|error| refused(&error))?;
        Ok(Self { io, next: 1, flights: HashMap::new(), completed: VecDeque::new() })
    }

    fn book(&mut self, about: About, memory: Memory, file: Option<Rc<dyn AsFd>>) -> u64 {
        let number = self.next;
        self.next += 1;
        self.flights.insert(number, Flight { about, memory, _file: file });
        number
    }

    /// Makes room for so many entries, one behind the other.
    fn make_room(&mut self, entries: usize) -> io::Result<()> {
        loop {
            let queue = self.io.submission();
            if queue.capacity() - queue.len() >= entries {
                return Ok(());
            }
            drop(queue);
            self.enter(0)?;
            // The kernel may take nothing while there is no room for what completes.
            self.completed.extend(self.io.completion());
        }
    }

    fn enter(&self, wait_for: usize) -> io::Result<()> {
        match self.io.submit_and_wait(wait_for).map_err(|error| Errno::from_io_error(&error)) {
            // What has completed is to be looked at first.
            Ok(_) | Err(Some(Errno::INTR | Errno::BUSY | Errno::AGAIN)) => Ok(()),
            Err(Some(error)) => Err(error.into()),
            Err(None) => Err(io::ErrorKind::Other.into()),
        }
    }

    fn push(&mut self, entry: squeue::Entry, number: u64) -> io::Result<()> {
        self.make_room(1)?;
        let entry = entry.user_data(number);
        // SAFETY: what the entry points to is in the `Memory` of its flight, on the heap,
        // which stays where and as it is until the completion, and for good if the ring
        // goes before.
        unsafe { self.io.submission().push(&entry) }.expect("there is room");
        Ok(())
    }

    /// Accepts connections until it says that it does not go on.
    pub(crate) fn accept(&mut self, socket: &Rc<OwnedFd>) -> io::Result<u64> {
        let entry =
            opcode::AcceptMulti::new(Fd(socket.as_raw_fd())).flags(libc::SOCK_CLOEXEC).build();
        let number = self.book(About::Accept, Memory::None, Some(socket.clone()));
        self.push(entry, number)?;
        Ok(number)
    }

    /// Ends the operation, which completes all the same.
    pub(crate) fn cancel(&mut self, number: u64) -> io::Result<()> {
        // Of its own completion nobody wants to hear: its number is none.
        self.push(opcode::AsyncCancel::new(number).build(), 0)
    }

    /// Waits until `file` has one of the `events` of poll(2).
    pub(crate) fn poll(&mut self, about: About, file: Rc<dyn AsFd>, events: i16) -> io::Result<()> {
        let fd = Fd(file.as_fd().as_raw_fd());
        let number = self.book(about, Memory::None, Some(file));
        self.push(opcode::PollAdd::new(fd, events as u32).build(), number)
    }

    /// Watches whether the other end is gone, until it is cancelled. (Not once: the end of
    /// what it sends ends a poll that waits for its hang-up, and each one after it at once.)
    pub(crate) fn watch(&mut self, session: u64, socket: &Rc<OwnedFd>) -> io::Result<u64> {
        let fd = Fd(socket.as_raw_fd());
        let entry = opcode::PollAdd::new(fd, GONE as u32).multi(true).build();
        let number = self.book(About::Hangup(session), Memory::None, Some(socket.clone()));
        self.push(entry, number)?;
        Ok(number)
    }

    pub(crate) fn receive(&mut self, session: u64, socket: &Rc<OwnedFd>) -> io::Result<()> {
        let mut bytes = vec![0; RECEIVED];
        let fd = Fd(socket.as_raw_fd());
        let entry = opcode::Recv::new(fd, bytes.as_mut_ptr(), bytes.len() as u32).build();
        let about = About::Receive(session);
        let number = self.book(about, Memory::Bytes(bytes), Some(socket.clone()));
        self.push(entry, number)
    }

    pub(crate) fn send(
        &mut self,
        session: u64,
        socket: &Rc<OwnedFd>,
        bytes: Vec<u8>,
    ) -> io::Result<()> {
        let entry = opcode::Send::new(Fd(socket.as_raw_fd()), bytes.as_ptr(), bytes.len() as u32)
            .flags(libc::MSG_NOSIGNAL)
            .build();
        let about = About::Send(session);
        let number = self.book(about, Memory::Bytes(bytes), Some(socket.clone()));
        self.push(entry, number)
    }

    pub(crate) fn timer(&mut self, timer: Timer, after: Duration) -> io::Result<()> {
        let time = Box::new(Timespec::from(after));
        let entry = opcode::Timeout::new(&raw const *time).build();
        let number = self.book(About::Timer(timer), Memory::Time { _time: time }, None);
        self.push(entry, number)
    }

    /// A number for an acquisition that waits, until `forget`.
    pub(crate) fn number(&mut self, about: About) -> u64 {
        self.book(about, Memory::None, None)
    }

    pub(crate) fn forget(&mut self, number: u64) {
        self.flights.remove(&number);
    }

    /// Hands over what an acquisition needs to have waited for.
    pub(crate) fn lock(&mut self, entries: &Entries) -> io::Result<()> {
        // They are linked: no submission may come between them.
        self.make_room(entries.len())?;
        // SAFETY: what they point to stays valid until they have been submitted, as
        // `Entries` says; they are pushed this once.
        unsafe { self.io.submission().push_multiple(entries) }.expect("there is room");
        Ok(())
    }

    /// Waits until something has completed, unless there is something else to do; returns
    /// how much there is to be looked at.
    pub(crate) fn wait(&mut self, is_idle: bool) -> io::Result<usize> {
        self.enter((is_idle && self.completed.is_empty()).into())?;
        Ok(self.completed.len() + self.io.completion().len())
    }

    /// The next completion, if there is one already.
    pub(crate) fn next(&mut self) -> Option<Completion> {
        loop {
            let cqe = self.completed.pop_front().or_else(|| self.io.completion().next())?;
            // Not of those that nobody asked for, or not any more.
            if let Some(completion) = self.complete(cqe) {
                return Some(completion);
            }
        }
    }

    fn complete(&mut self, cqe: cqueue::Entry) -> Option<Completion> {
        let number = uring::user_data(&cqe);
        let about = self.flights.get(&number)?.about;
        if let About::Lock(_) = about {
            return Some(Completion { about, outcome: Outcome::Lock(cqe), goes_on: true });
        }
        let goes_on = cqueue::more(cqe.flags());
        let memory = if goes_on { Memory::None } else { self.flights.remove(&number)?.memory };
        let result = match usize::try_from(cqe.result()) {
            Ok(count) => Ok(count),
            Err(_) => Err(io::Error::from_raw_os_error(-cqe.result())),
        };
        let outcome = match (about, memory) {
            (About::Accept, _) => Outcome::Accepted(result.map(|fd| {
                // SAFETY: the kernel has just made it for this operation, and nobody else
                // knows of it.
                unsafe { OwnedFd::from_raw_fd(fd as i32) }
            })),
            (About::Receive(_), Memory::Bytes(mut bytes)) => {
                Outcome::Received(result.map(|count| {
                    bytes.truncate(count);
                    bytes
                }))
            }
            (About::Send(_), Memory::Bytes(bytes)) => Outcome::Sent(bytes, result),
            (About::Hangup(_), _) => {
                Outcome::Gone(result.is_ok_and(|events| events & GONE as usize != 0))
            }
            _ => Outcome::Due,
        };
        Some(Completion { about, outcome, goes_on })
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // The kernel ends what is in flight some time after this, and until then writes
        // where it was told to.
        mem::forget(mem::take(&mut self.flights));
    }
}

fn refused(error: &io::Error) -> String {
    format!(
        "io_uring is not to be had here ({error}), and the daemon does not work without: it \
         takes Linux 6.7 or newer, `sysctl kernel.io_uring_disabled` must say 0, and a \
         container's or service's filter of system calls must allow io_uring_setup, \
         io_uring_enter and io_uring_register"
    )
}
