//! A client's connection: what has come, what is to be sent, what it holds and waits for.

use super::locks;
use super::protocol::{Line, Lines, Reply};
use super::ring::{RECEIVED, Ring, Timer};
use heirlock::MutexGuard;
use heirlock::uring::AsyncAcquire;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use rustix::net::{Shutdown, shutdown};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

/// How much may have come that was not yet looked at: from then on nothing is received.
const AHEAD: usize = 2 * RECEIVED;

/// How much may be still to be sent: from then on no request is looked at.
const BEHIND: usize = 64 * 1024;

/// How long it takes at most until whoever is sent away has read the last replies.
const GRACE: Duration = Duration::from_secs(1);

pub(crate) struct Session<'s> {
    pub(crate) id: u64,
    socket: Rc<OwnedFd>,
    /// The process at the other end; 0 if it is not to be seen from here.
    pub(crate) pid: u32,
    lines: Lines,
    unsent: Vec<u8>,
    pub(crate) held: Vec<Held<'s>>,
    pub(crate) wait: Option<Wait<'s>>,
    state: State,
    /// Whether the other end sends nothing more.
    heard_all: bool,
    /// Whether there is no other end any more.
    gone: bool,
    /// Which operations are in flight.
    receiving: bool,
    sending: bool,
    watching: Option<u64>,
    /// Whether the time runs in which it has to end.
    timed: bool,
}

/// A lock, by its place, and the guard.
pub(crate) struct Held<'s> {
    pub(crate) lock: usize,
    pub(crate) guard: MutexGuard<'s, u64>,
}

pub(crate) struct Wait<'s> {
    pub(crate) lock: usize,
    /// As the ring knows it.
    pub(crate) number: u64,
    pub(crate) acquire: AsyncAcquire<'s, u64>,
}

#[derive(PartialEq, Eq)]
enum State {
    Open,
    /// Nothing more is looked at; what is still to be sent is sent.
    Ending,
    /// What is in flight comes back.
    Shut,
}

impl<'s> Session<'s> {
    pub(crate) fn new(id: u64, socket: OwnedFd) -> Self {
        let pid = getsockopt(&socket, PeerCredentials).map_or(0, |peer| peer.pid());
        Self {
            id,
            socket: Rc::new(socket),
            pid: u32::try_from(pid).unwrap_or(0),
            lines: Lines::default(),
            unsent: Vec::new(),
            held: Vec::new(),
            wait: None,
            state: State::Open,
            heard_all: false,
            gone: false,
            receiving: false,
            sending: false,
            watching: None,
            timed: false,
        }
    }

    pub(crate) fn reply(&mut self, reply: &Reply) {
        self.unsent.extend_from_slice(reply.to_string().as_bytes());
    }

    /// The next request, if it is time for one. They are looked at one after the other:
    /// none while the one before waits for a lock.
    pub(crate) fn next(&mut self) -> Option<Line> {
        let may = self.state == State::Open && self.wait.is_none() && self.unsent.len() < BEHIND;
        if may { self.lines.next() } else { None }
    }

    /// What has come; nothing at the end.
    pub(crate) fn received(&mut self, bytes: &[u8]) {
        self.receiving = false;
        self.heard_all = bytes.is_empty();
        self.lines.push(bytes);
    }

    /// So much of `bytes` was sent.
    pub(crate) fn sent(&mut self, mut bytes: Vec<u8>, count: usize) {
        self.sending = false;
        if count < bytes.len() {
            bytes.drain(..count);
            bytes.append(&mut self.unsent);
            self.unsent = bytes;
        }
    }

    /// Nothing more can be sent.
    pub(crate) fn is_deaf(&mut self) {
        self.sending = false;
        self.unsent.clear();
    }

    pub(crate) fn watched(&mut self, gone: bool, goes_on: bool) {
        self.gone |= gone;
        if !goes_on {
            self.watching = None;
        }
    }

    /// Whether nothing more can come of it: whoever is gone waits for nothing, and whoever
    /// says nothing more has all the replies.
    pub(crate) fn is_over(&self) -> bool {
        match self.wait {
            Some(_) => self.gone,
            None => self.heard_all && !self.sending && self.unsent.is_empty(),
        }
    }

    /// Sends nothing more, whether or not all was read.
    pub(crate) fn cut(&self) {
        let _ = shutdown(&*self.socket, Shutdown::Both);
    }

    /// The places of what it holds.
    pub(crate) fn holds(&self, lock: usize) -> bool {
        self.held.iter().any(|held| held.lock == lock)
    }

    pub(crate) fn unlock(&mut self, lock: usize) -> bool {
        let Some(at) = self.held.iter().position(|held| held.lock == lock) else { return false };
        locks::give_back(self.held.swap_remove(at).guard);
        true
    }

    /// Looks at no more requests, and ends when the replies have been sent. What it waits
    /// for it waits for no longer; what it holds goes to the next in line, who is told.
    pub(crate) fn end(&mut self, ring: &mut Ring) {
        if self.state == State::Open {
            self.state = State::Ending;
        }
        if let Some(wait) = self.wait.take() {
            ring.forget(wait.number);
        }
        self.held.clear();
    }

    /// Has the ring do what is to be done next; returns whether the connection is over.
    pub(crate) fn go_on(&mut self, ring: &mut Ring) -> io::Result<bool> {
        if !self.sending && !self.unsent.is_empty() {
            ring.send(self.id, &self.socket, std::mem::take(&mut self.unsent))?;
            self.sending = true;
        }
        match self.state {
            State::Open => {
                if !self.receiving && !self.heard_all && self.lines.len() < AHEAD {
                    ring.receive(self.id, &self.socket)?;
                    self.receiving = true;
                }
                if self.watching.is_none() && !self.gone {
                    self.watching = Some(ring.watch(self.id, &self.socket)?);
                }
            }
            State::Ending if !self.sending => {
                // Has whatever is in flight complete.
                self.cut();
                if let Some(number) = self.watching {
                    ring.cancel(number)?;
                }
                self.state = State::Shut;
            }
            State::Ending if !self.timed => {
                ring.timer(Timer::Cut(self.id), GRACE)?;
                self.timed = true;
            }
            State::Ending | State::Shut => {}
        }
        let in_flight = self.receiving || self.sending || self.watching.is_some();
        Ok(self.state == State::Shut && !in_flight)
    }
}
