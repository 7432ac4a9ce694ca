//! The others: processes that lock and unlock on command.

use crate::kit::{Board, HANG};
use crate::trace::{Fail, Res, fork_child, kill_and_reap, wrong};
use crate::waits;
use heirlock::{Mutex, MutexGuard, Participant, Segment};
use io_uring::IoUring;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Barrier;
use std::time::Duration;

/// What the value of a lock is after `init`.
pub(crate) const INITIAL: u64 = 42;

/// A command to an actor.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Tell {
    Lock,
    Try,
    /// Takes the second lock.
    LockOther,
    /// Takes the lock, and waits in a ring if it has to; answers also when it has queued.
    LockInRing,
    /// Takes the lock and waits for the condition variable; answers when it has the
    /// lock again.
    Wait,
    /// Says in the answer's value whether there was one.
    NotifyOne,
    /// Says in the answer's value how many there were.
    NotifyAll,
    /// Gives back whatever it has.
    Unlock,
    /// Gives back the second lock.
    UnlockOther,
    /// That many new threads join at once, the first of them takes and
    /// releases the lock, and all leave.
    Reuse(u32),
    /// Opens or creates the segment at the path, joins it, takes the lock,
    /// looks at the value, and closes it.
    Visit,
}

/// An answer of an actor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) got: Got,
    /// Which rows new threads got.
    pub(crate) rows: Vec<u32>,
    /// The value of the lock, or how many were notified.
    pub(crate) value: u64,
}

/// How an actor got a lock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Got {
    #[default]
    Nothing,
    Lock,
    /// From a dead thread of the process with this PID.
    Inherited(u32),
}

fn got(guard: Option<&MutexGuard<'_, u64>>) -> Got {
    match guard.map(MutexGuard::inherited) {
        None => Got::Nothing,
        Some(None) => Got::Lock,
        Some(Some(dead)) => Got::Inherited(dead.pid()),
    }
}

const WORDS: usize = 12;

impl Answer {
    fn send(&self, to: &mut UnixStream) {
        let (kind, pid) = match self.got {
            Got::Nothing => (0, 0),
            Got::Lock => (1, 0),
            Got::Inherited(pid) => (2, pid),
        };
        let mut words = vec![kind, pid, self.value as u32];
        words.extend(&self.rows);
        words.resize(WORDS, 0);
        let bytes: Vec<u8> = words.iter().flat_map(|word: &u32| word.to_ne_bytes()).collect();
        to.write_all(&bytes).expect("answer");
    }

    fn receive(from: &mut UnixStream) -> std::io::Result<Self> {
        let mut bytes = [0; 4 * WORDS];
        from.read_exact(&mut bytes)?;
        let words: Vec<u32> = bytes
            .chunks(4)
            .map(|word| u32::from_ne_bytes(word.try_into().expect("4 bytes")))
            .collect();
        let got = match words[0] {
            0 => Got::Nothing,
            1 => Got::Lock,
            _ => Got::Inherited(words[1]),
        };
        let rows = words[3..].iter().copied().filter(|row| *row != 0).collect();
        Ok(Self { got, rows, value: words[2].into() })
    }
}

/// A process that obeys; killed and reaped when dropped.
pub(crate) struct Actor {
    pub(crate) pid: Pid,
    stream: UnixStream,
    /// Its row, if it has joined the segment.
    pub(crate) row: u32,
    gone: bool,
}

impl Actor {
    /// Forks an actor, which joins `segment`.
    pub(crate) fn participant(segment: &Segment<Board>) -> Self {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        let pid = fork_child(|| Self::obey(segment, theirs));
        ours.set_read_timeout(Some(HANG)).expect("a read timeout");
        let mut actor = Self { pid, stream: ours, row: 0, gone: false };
        actor.row = actor.answer().expect("joined").rows[0];
        actor
    }

    /// Forks an actor whose threads join `segment`, and that visits `path`.
    pub(crate) fn bystander(segment: &Segment<Board>, path: &Path) -> Self {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        let pid = fork_child(|| Self::obey_aside(segment, path, theirs));
        ours.set_read_timeout(Some(HANG)).expect("a read timeout");
        Self { pid, stream: ours, row: 0, gone: false }
    }

    fn obey(segment: &Segment<Board>, mut stream: UnixStream) {
        let me: Participant = segment.attach().expect("attach");
        Answer { rows: vec![me.row()], ..Answer::default() }.send(&mut stream);
        let lock = &segment.locks[0];
        let mut guard = None;
        let mut other = None;
        let mut command = [0; 8];
        let condvar = &segment.condvars[0];
        while stream.read_exact(&mut command).is_ok() {
            let mut value = 0;
            match command[0] {
                b'l' => guard = Some(lock.lock()),
                b't' => guard = lock.try_lock(),
                b'o' => other = Some(segment.locks[1].lock()),
                b'w' => condvar.wait(guard.insert(lock.lock())),
                b'1' => value = condvar.notify_one().into(),
                b'a' => value = condvar.notify_all() as u64,
                b'u' => drop((guard.take(), other.take())),
                b'p' => drop(other.take()),
                b'q' => guard = Some(lock_in_ring(lock, &mut stream)),
                _ => panic!("an actor does not know {command:?}"),
            }
            let last = if command[0] == b'o' { &other } else { &guard };
            Answer { got: got(last.as_ref()), value, ..Answer::default() }.send(&mut stream);
        }
    }

    fn obey_aside(segment: &Segment<Board>, path: &Path, mut stream: UnixStream) {
        let mut command = [0; 8];
        while stream.read_exact(&mut command).is_ok() {
            let count = u32::from_ne_bytes(command[4..].try_into().expect("4 bytes"));
            let answer = match command[0] {
                b'r' => reuse(segment, count),
                b'v' => visit(path),
                _ => panic!("an actor does not know {command:?}"),
            };
            answer.send(&mut stream);
        }
    }

    pub(crate) fn tell(&mut self, command: Tell) -> Res<()> {
        let (letter, count) = match command {
            Tell::Lock => (b'l', 0),
            Tell::Try => (b't', 0),
            Tell::LockOther => (b'o', 0),
            Tell::Wait => (b'w', 0),
            Tell::NotifyOne => (b'1', 0),
            Tell::NotifyAll => (b'a', 0),
            Tell::LockInRing => (b'q', 0),
            Tell::Unlock => (b'u', 0),
            Tell::UnlockOther => (b'p', 0),
            Tell::Reuse(count) => (b'r', count),
            Tell::Visit => (b'v', 0),
        };
        let mut bytes = [0; 8];
        bytes[0] = letter;
        bytes[4..].copy_from_slice(&count.to_ne_bytes());
        self.stream.write_all(&bytes).or_else(|error| wrong(format!("command: {error}")))
    }

    pub(crate) fn answer(&mut self) -> Res<Answer> {
        Answer::receive(&mut self.stream)
            .map_err(|error| Fail::Wrong(format!("an actor does not answer: {error}")))
    }

    pub(crate) fn ask(&mut self, command: Tell) -> Res<Answer> {
        self.tell(command)?;
        self.answer()
    }

    /// Has it take a lock by `command` that is free.
    pub(crate) fn take_free(&mut self, command: Tell) -> Res<()> {
        match self.ask(command)?.got {
            Got::Lock => Ok(()),
            got => wrong(format!("row {} takes a free lock, and got {got:?}", self.row)),
        }
    }

    pub(crate) fn kill(&mut self) {
        if !self.gone {
            kill_and_reap(self.pid);
            self.gone = true;
        }
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Says which row stands in the queue, and then waits.
fn lock_in_ring<'m>(lock: &'m Mutex<u64>, stream: &mut UnixStream) -> MutexGuard<'m, u64> {
    let queued = |me: Option<Participant>| {
        let rows = me.iter().map(|me| me.row()).collect();
        Answer { rows, ..Answer::default() }.send(stream);
    };
    waits::lock_in_ring(lock, &mut IoUring::new(8).expect("a ring"), queued)
}

/// Which of `actors` have answered, as soon as one has or `timeout` is over.
pub(crate) fn who_answered(actors: &[&Actor], timeout: Duration) -> Vec<usize> {
    let mut fds: Vec<PollFd> =
        actors.iter().map(|actor| PollFd::new(actor.stream.as_fd(), PollFlags::POLLIN)).collect();
    let timeout = PollTimeout::try_from(timeout).expect("a short timeout");
    let _ = poll(&mut fds, timeout);
    (0..fds.len()).filter(|at| fds[*at].any().unwrap_or(false)).collect()
}

fn reuse(segment: &Segment<Board>, count: u32) -> Answer {
    let barrier = Barrier::new(count as usize);
    let join = |first: bool| {
        let me = segment.attach().expect("attach");
        barrier.wait();
        let how = if first { got(Some(&segment.locks[0].lock())) } else { Got::Nothing };
        barrier.wait();
        (me.row(), how)
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..count).map(|at| scope.spawn(move || join(at == 0))).collect();
        let joined: Vec<_> = threads.into_iter().map(|t| t.join().expect("a thread")).collect();
        let got = joined.first().map_or(Got::Nothing, |(_, how)| *how);
        Answer { got, rows: joined.iter().map(|(row, _)| *row).collect(), value: 0 }
    })
}

fn visit(path: &Path) -> Answer {
    let segment = open_or_create(path).expect("open or create");
    let me = segment.attach().expect("attach");
    let mut guard = segment.locks[0].lock();
    let answer = Answer { got: got(Some(&guard)), rows: vec![me.row()], value: *guard };
    *guard = INITIAL;
    drop(guard);
    answer
}

/// Opens or creates a small segment whose first value is [`INITIAL`].
pub(crate) fn open_or_create(path: &Path) -> Result<Segment<Board>, heirlock::SegmentError> {
    Segment::options()
        .capacity(4)
        .init(|board: &mut Board| *board.locks[0].get_mut() = INITIAL)
        .open_or_create(path)
}
