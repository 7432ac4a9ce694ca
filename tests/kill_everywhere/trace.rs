//! A process under `ptrace`: one instruction, one system call, one breakpoint
//! at a time; and the record of what an operation consists of.
#![allow(unsafe_code)]
#![allow(clippy::disallowed_types, reason = "a note of the victim's own")]

use nix::errno::Errno;
use nix::libc::user_regs_struct;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, alarm, fork};
use std::collections::HashMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

/// Why a run did not come to its end.
#[derive(Debug)]
pub(crate) enum Fail {
    /// The victim went another way than the one that was recorded.
    Diverged(String),
    /// This combination has nothing to kill.
    Nothing,
    /// A promise was broken.
    Wrong(String),
}

impl std::fmt::Display for Fail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Diverged(how) => write!(f, "another way than recorded: {how}"),
            Self::Nothing => f.write_str("nothing to kill"),
            Self::Wrong(what) => f.write_str(what),
        }
    }
}

/// What a run gives.
pub(crate) type Res<T> = Result<T, Fail>;

/// A broken promise, in words.
pub(crate) fn wrong<T>(what: impl Into<String>) -> Res<T> {
    Err(Fail::Wrong(what.into()))
}

/// Where a victim stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Point {
    /// Before the instruction at this address.
    At(u64),
    /// At the entry of the system call of this number.
    Entry(u64),
    /// Asleep in it.
    Asleep(u64),
    /// At its exit, before the instruction at this address.
    Exit(u64, u64),
}

impl Point {
    /// Whether it is in a system call that may change what no image shows:
    /// who sleeps, who has locked a byte, what memory there is.
    pub(crate) fn has_other_effects(self) -> bool {
        use nix::libc::{SYS_fallocate, SYS_fchmod, SYS_ftruncate, SYS_pwrite64};
        let others = [SYS_fallocate, SYS_fchmod, SYS_ftruncate, SYS_pwrite64];
        match self {
            Self::At(_) => false,
            Self::Entry(number) | Self::Asleep(number) | Self::Exit(number, _) => {
                matches!(number, FUTEX | FUTEX_WAITV | FCNTL | RING)
                    || others.contains(&(number as i64))
            }
        }
    }

    /// Whether it may just have woken somebody, who then may get on.
    pub(crate) fn has_woken_others(self) -> bool {
        matches!(self, Self::Exit(FUTEX, _))
    }

    /// The instruction that comes next, if the victim is between two.
    fn next(self) -> Option<u64> {
        match self {
            Self::At(rip) | Self::Exit(_, rip) => Some(rip),
            Self::Entry(_) | Self::Asleep(_) => None,
        }
    }
}

/// How a victim is brought to a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// By the breakpoint that costs least.
    Breakpoint,
    /// By a breakpoint at an instruction that is met only once, and then step
    /// by step.
    Landmark,
    /// Step by step, and wherever that leads is right.
    Steps,
}

/// All the points of an operation, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trace {
    points: Vec<Point>,
    /// Where each instruction was met. A repeated string instruction is met
    /// once, however long it takes.
    met: HashMap<u64, Vec<usize>>,
}

impl Trace {
    pub(crate) fn push(&mut self, point: Point) {
        let before = self.points.last().and_then(|last| last.next());
        if let Some(rip) = point.next()
            && before != Some(rip)
        {
            self.met.entry(rip).or_default().push(self.points.len());
        }
        self.points.push(point);
    }

    /// Where `point` was met before in the code of the clock that the kernel maps
    /// into every process, since that was entered. It looks again whenever the
    /// time is updated under its eyes, which happens all the time to who goes
    /// step by step, and hardly ever to others.
    pub(crate) fn look_of_the_clock(&self, point: Point) -> Option<usize> {
        let in_clock = |point: &Point| matches!(point, Point::At(rip) if clock().contains(rip));
        let inside = self.points.iter().rev().take_while(|point| in_clock(point)).count();
        let entered = self.points.len() - inside;
        let before = self.points[entered..].iter().position(|before| *before == point)?;
        Some(entered + before)
    }

    /// Forgets the points from `at` on.
    pub(crate) fn truncate(&mut self, at: usize) {
        self.points.truncate(at);
        for met in self.met.values_mut() {
            met.truncate(met.partition_point(|other| *other < at));
        }
    }

    pub(crate) fn points(&self) -> &[Point] {
        &self.points
    }

    pub(crate) fn last(&self) -> usize {
        self.points.len() - 1
    }

    /// The first system call from point `from` on in which the victim slept.
    pub(crate) fn sleep_from(&self, from: usize) -> Option<usize> {
        let sleeps = |at: &usize| matches!(self.points.get(*at + 1), Some(Point::Asleep(_)));
        (from..self.points.len()).find(sleeps)
    }

    /// How best to come from `from` to `to`, between which nobody sleeps: a
    /// breakpoint at the address of point `.0`, met `.1` times, and single
    /// steps from there.
    fn anchor(&self, from: usize, to: usize, how: How) -> (usize, usize) {
        let mut best = (from, 0, to - from);
        if how == How::Steps {
            return (from, 0);
        }
        if how == How::Landmark {
            let once = |at: &usize| match self.points[*at] {
                Point::At(rip) => self.met[&rip] == [*at],
                _ => false,
            };
            return (from + 1..=to).rev().find(once).map_or((from, 0), |at| (at, 1));
        }
        for at in (from + 1..=to).rev().take(100) {
            let Point::At(rip) = self.points[at] else { continue };
            let met = &self.met[&rip];
            let Ok(upto) = met.binary_search(&at) else { continue };
            let hits = upto + 1 - met.partition_point(|other| *other <= from);
            // A hit costs a step over the breakpoint as well.
            let cost = 2 * hits + to - at;
            if cost < best.2 {
                best = (at, hits, cost);
            }
            if hits == 1 {
                break;
            }
        }
        (best.0, best.1)
    }
}

/// Where the kernel has mapped the code of the clock: in this process, and so in
/// all that are forked from it.
fn clock() -> &'static Range<u64> {
    static CLOCK: OnceLock<Range<u64>> = OnceLock::new();
    CLOCK.get_or_init(|| {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
        let line = maps.lines().find(|line| line.ends_with("[vdso]")).unwrap_or_default();
        let (start, end) =
            line.split(' ').next().and_then(|r| r.split_once('-')).unwrap_or(("", ""));
        let number = |text| u64::from_str_radix(text, 16).unwrap_or(0);
        number(start)..number(end)
    })
}

/// The marker that begins and ends an operation.
#[inline(always)]
pub(crate) fn marker() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the instruction changes nothing; the tracer, which is there
    // whenever this is reached, is told, and the process stops.
    unsafe {
        core::arch::asm!("int3");
    }
}

/// Forks a process that does `body` and nothing else, and dies with this one.
pub(crate) fn fork_child(body: impl FnOnce()) -> Pid {
    // SAFETY: this process has one thread, so the child may do whatever it
    // could do.
    match unsafe { fork() }.expect("fork") {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
            let done = catch_unwind(AssertUnwindSafe(body));
            // SAFETY: ends the process without touching what it shares with
            // its parent (buffers, files to be removed).
            unsafe { nix::libc::_exit(if done.is_ok() { 0 } else { 101 }) }
        }
    }
}

/// SIGKILL, and wait until the kernel has marked what it had to mark.
pub(crate) fn kill_and_reap(pid: Pid) {
    let _ = kill(pid, Signal::SIGKILL);
    loop {
        match waitpid(pid, Some(WaitPidFlag::__WALL)) {
            Ok(WaitStatus::Signaled(..) | WaitStatus::Exited(..)) => return,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return,
        }
    }
}

/// The state letter of a process, as `/proc` tells it.
pub(crate) fn process_state(pid: Pid) -> u8 {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
    let name_end = stat.iter().rposition(|byte| *byte == b')').unwrap_or(0);
    stat.get(name_end + 2).copied().unwrap_or(b'?')
}

/// Whether a process sleeps in `futex_waitv`, or in a ring; not if it has been woken
/// and does not run yet.
pub(crate) fn sleeps_in_futex(pid: Pid) -> bool {
    let call = std::fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
    let number = call.split(' ').next().and_then(|number| number.parse().ok());
    matches!(number, Some(FUTEX_WAITV | RING))
}

/// A traced process; killed and reaped when dropped.
pub(crate) struct Traced {
    pub(crate) pid: Pid,
    pub(crate) point: Point,
    regs: user_regs_struct,
    gone: bool,
}

/// How many seconds a victim may take to a breakpoint, by the process's alarm
/// clock.
const LOST: u32 = 3;

/// Where in a victim's memory is until when it waits in a ring: a `timespec`.
pub(crate) static UNTIL: AtomicU64 = AtomicU64::new(0);

/// What is sent to a victim that shall not die of it.
pub(crate) const SIGNAL: Signal = Signal::SIGUSR1;

const FUTEX: u64 = nix::libc::SYS_futex as u64;
const FUTEX_WAITV: u64 = nix::libc::SYS_futex_waitv as u64;
const SIGRETURN: u64 = nix::libc::SYS_rt_sigreturn as u64;
const FCNTL: u64 = nix::libc::SYS_fcntl as u64;
const RING: u64 = nix::libc::SYS_io_uring_enter as u64;

impl Traced {
    /// Forks a process that does `body`, and lets it run to its start marker.
    pub(crate) fn start(body: impl FnOnce()) -> Res<Self> {
        let pid = fork_child(|| {
            ptrace::traceme().expect("traceme");
            body();
        });
        // SAFETY: a struct of integers.
        let regs = unsafe { core::mem::zeroed() };
        let mut traced = Self { pid, point: Point::At(0), regs, gone: false };
        traced.wait_trap("its start marker")?;
        let options = Options::PTRACE_O_EXITKILL | Options::PTRACE_O_TRACESYSGOOD;
        ptrace::setoptions(pid, options).expect("setoptions");
        traced.point = Point::At(traced.regs.rip);
        Ok(traced)
    }

    /// SIGKILL; returns when the process is gone.
    pub(crate) fn kill(&mut self) {
        if !self.gone {
            kill_and_reap(self.pid);
            self.gone = true;
        }
    }

    fn stopped(&mut self, status: nix::Result<WaitStatus>) -> Res<WaitStatus> {
        match status {
            Ok(status @ (WaitStatus::Stopped(..) | WaitStatus::PtraceSyscall(_))) => {
                self.regs = ptrace::getregs(self.pid).expect("getregs");
                Ok(status)
            }
            Ok(status @ (WaitStatus::Exited(..) | WaitStatus::Signaled(..))) => {
                self.gone = true;
                wrong(format!("the victim ended by itself: {status:?}"))
            }
            Err(Errno::EINTR) => wrong("the victim hangs"),
            other => wrong(format!("waiting for the victim: {other:?}")),
        }
    }

    fn wait_stop(&mut self) -> Res<WaitStatus> {
        let status = waitpid(self.pid, None);
        self.stopped(status)
    }

    fn wait_trap(&mut self, until: &str) -> Res<()> {
        match self.wait_stop()? {
            WaitStatus::Stopped(_, Signal::SIGTRAP) => Ok(()),
            other => wrong(format!("the victim ran to {until} and met {other:?}")),
        }
    }

    fn read(&self, address: u64) -> i64 {
        ptrace::read(self.pid, address as usize as ptrace::AddressType).unwrap_or(0)
    }

    fn write(&self, address: u64, word: i64) -> Res<()> {
        ptrace::write(self.pid, address as usize as ptrace::AddressType, word)
            .map_err(|error| Fail::Diverged(format!("poke {address:#x}: {error}")))
    }

    /// Whether the operation is over: the end marker comes next.
    pub(crate) fn at_end(&self) -> bool {
        self.point.next().is_some_and(|rip| self.read(rip) & 0xff == 0xcc)
    }

    /// Whether the system call that is about to be made may sleep.
    fn may_sleep(&self, number: u64) -> bool {
        let op = self.regs.rsi;
        match number {
            FUTEX_WAITV => true,
            FUTEX => matches!(op & 0x7f, 0 | 9),
            FCNTL => op == nix::libc::F_OFD_SETLKW as u64,
            // How many completions it waits for.
            RING => self.regs.rdx > 0,
            _ => false,
        }
    }

    /// Goes on to the next point. From a sleep: once it is over.
    pub(crate) fn step(&mut self) -> Res<Point> {
        self.point = match self.point {
            Point::At(rip) | Point::Exit(_, rip) => {
                if self.read(rip) & 0xffff == 0x050f {
                    ptrace::syscall(self.pid, None).expect("to the entry of a system call");
                    match self.wait_stop()? {
                        WaitStatus::PtraceSyscall(_) => Point::Entry(self.regs.orig_rax),
                        other => return wrong(format!("instead of a system call: {other:?}")),
                    }
                } else {
                    ptrace::step(self.pid, None).expect("step");
                    self.wait_trap("its next instruction")?;
                    Point::At(self.regs.rip)
                }
            }
            Point::Entry(number) => {
                let may_sleep = self.may_sleep(number);
                ptrace::syscall(self.pid, None).expect("into a system call");
                if may_sleep && self.falls_asleep()? {
                    Point::Asleep(number)
                } else {
                    self.exit_of(number)?
                }
            }
            Point::Asleep(number) => self.exit_of(number)?,
        };
        Ok(self.point)
    }

    fn exit_of(&mut self, number: u64) -> Res<Point> {
        match self.wait_stop()? {
            WaitStatus::PtraceSyscall(_) => Ok(Point::Exit(number, self.regs.rip)),
            other => wrong(format!("in a system call: {other:?}")),
        }
    }

    fn has_stopped(&self) -> bool {
        process_state(self.pid) == b't'
    }

    /// Whether the system call under way sleeps, rather than ends.
    fn falls_asleep(&self) -> Res<bool> {
        for round in 0u64.. {
            match process_state(self.pid) {
                b'S' => return Ok(true),
                b't' | b'Z' | b'X' | b'?' => return Ok(false),
                _ => {}
            }
            if round > 1_000_000 {
                break;
            }
            let _ = nix::sched::sched_yield();
        }
        wrong("a system call neither sleeps nor ends")
    }

    /// Whether a sleep that was left to itself is over. Only certain once all
    /// those have done their work who could end it.
    pub(crate) fn has_woken(&self) -> bool {
        while process_state(self.pid) == b'R' {
            let _ = nix::sched::sched_yield();
        }
        self.has_stopped()
    }

    /// Goes on until it sleeps, without a look at what is in between; until it is
    /// woken if `soundly`.
    pub(crate) fn run_asleep(&mut self, soundly: bool) -> Res<()> {
        loop {
            match self.point {
                Point::At(_) | Point::Exit(..) => {
                    ptrace::syscall(self.pid, None).expect("to the next system call");
                    match self.wait_stop()? {
                        WaitStatus::PtraceSyscall(_) => {
                            self.point = Point::Entry(self.regs.orig_rax);
                        }
                        _ => return Err(Fail::Nothing),
                    }
                }
                Point::Entry(_) => {
                    if soundly && self.about_to_wait() {
                        self.postpone()?;
                    }
                    self.step()?;
                }
                Point::Asleep(_) => return Ok(()),
            }
        }
    }

    /// It stands where the recorded one stood.
    pub(crate) fn must_be_at(&self, point: Point) -> Res<()> {
        if self.point == point {
            return Ok(());
        }
        Err(Fail::Diverged(format!("{:x?} instead of {point:x?}", self.point)))
    }

    /// It seems to sleep, and nobody is to wake it. A thread that is about to find that it
    /// need not sleep looks the same for an instant.
    pub(crate) fn must_wake(&self) -> Res<()> {
        std::thread::sleep(Duration::from_millis(20));
        if process_state(self.pid) == b'S' {
            return wrong("the victim sleeps, and nobody is to wake it");
        }
        Ok(())
    }

    /// Whether it is about to sleep in a futex call, or in a ring.
    pub(crate) fn about_to_wait(&self) -> bool {
        match self.point {
            Point::Entry(number @ (FUTEX | FUTEX_WAITV | RING)) => self.may_sleep(number),
            _ => false,
        }
    }

    /// At the entry of a futex call: has its deadline lie in the past.
    pub(crate) fn expire(&self) -> Res<()> {
        assert_ne!(self.point, Point::Entry(RING), "a ring has its deadlines elsewhere");
        self.set_deadline(0, 1)
    }

    /// At the entry of a futex call, or of a ring: has its deadline lie where nobody
    /// lives to see it.
    pub(crate) fn postpone(&self) -> Res<()> {
        if self.point == Point::Entry(RING) {
            return self.write(self.peek(&UNTIL) as u64, 1 << 32);
        }
        self.set_deadline(1 << 32, 0)
    }

    /// Both futex calls have it in the same register.
    fn set_deadline(&self, seconds: i64, nanoseconds: i64) -> Res<()> {
        let deadline = self.regs.r10;
        self.write(deadline, seconds)?;
        self.write(deadline + 8, nanoseconds)
    }

    /// A number in its memory: one that was there when it was forked.
    pub(crate) fn peek<T>(&self, number: &T) -> i64 {
        self.read(core::ptr::from_ref(number).addr() as u64)
    }

    /// Sends it the signal that [`Traced::deliver`] delivers. Asleep, it wakes
    /// up, and is then at the exit of its system call.
    pub(crate) fn signal(&mut self) -> Res<()> {
        kill(self.pid, SIGNAL).expect("signal");
        if let Point::Asleep(number) = self.point {
            self.point = self.exit_of(number)?;
        }
        Ok(())
    }

    /// Goes on until the signal is about to be delivered: at once, or at the end
    /// of its system call.
    pub(crate) fn deliver(&mut self) -> Res<()> {
        loop {
            ptrace::syscall(self.pid, None).expect("to the delivery of a signal");
            match self.wait_stop()? {
                WaitStatus::Stopped(_, SIGNAL) => break,
                WaitStatus::PtraceSyscall(_) => {}
                other => return wrong(format!("instead of the delivery of a signal: {other:?}")),
            }
        }
        self.point = Point::At(self.regs.rip);
        Ok(())
    }

    /// Goes on through the handler of the signal that is being delivered.
    pub(crate) fn handle(&mut self) -> Res<()> {
        let mut signal = Some(SIGNAL);
        while !matches!(self.point, Point::Exit(SIGRETURN, _)) {
            if self.run(signal.take())? {
                return wrong("a marker in a handler");
            }
        }
        Ok(())
    }

    /// Goes on to the next system call, its sleep or end, or marker; first
    /// through the handler of the signal that is being delivered, if one is.
    /// `true` at a marker.
    pub(crate) fn run(&mut self, signal: Option<Signal>) -> Res<bool> {
        let call = match self.point {
            Point::Entry(number) | Point::Asleep(number) => Some(number),
            Point::At(_) | Point::Exit(..) => None,
        };
        if !matches!(self.point, Point::Asleep(_)) {
            let may_sleep = call.is_some_and(|number| self.may_sleep(number));
            ptrace::syscall(self.pid, signal).expect("to the next system call");
            if let Some(number) = call
                && may_sleep
                && self.falls_asleep()?
            {
                self.point = Point::Asleep(number);
                return Ok(false);
            }
        }
        self.point = match (self.wait_stop()?, call) {
            (WaitStatus::PtraceSyscall(_), None) => Point::Entry(self.regs.orig_rax),
            (WaitStatus::PtraceSyscall(_), Some(number)) => Point::Exit(number, self.regs.rip),
            (WaitStatus::Stopped(_, Signal::SIGTRAP), None) => {
                self.point = Point::At(self.regs.rip);
                return Ok(true);
            }
            (other, _) => return wrong(format!("instead of a system call: {other:?}")),
        };
        Ok(false)
    }

    /// Goes on until it has met the instruction at `address` for the `hits`th
    /// time.
    fn run_to(&mut self, address: u64, hits: usize) -> Res<()> {
        for _ in 0..hits {
            if self.regs.rip == address {
                ptrace::step(self.pid, None).expect("step");
                self.wait_trap("the instruction behind the breakpoint")?;
            }
            let original = self.read(address);
            self.write(address, original & !0xff | 0xcc)?;
            // It may have gone another way, and sleep for as long as its heartbeat
            // takes.
            let left = alarm::set(LOST);
            ptrace::cont(self.pid, None).expect("continue");
            let met = self.wait_trap("a breakpoint");
            left.map_or_else(alarm::cancel, alarm::set);
            met.map_err(|fail| Fail::Diverged(fail.to_string()))?;
            if self.regs.rip != address + 1 {
                return Err(Fail::Diverged(format!(
                    "stopped at {:#x} instead of {address:#x}",
                    self.regs.rip
                )));
            }
            self.write(address, original)?;
            self.regs.rip = address;
            ptrace::setregs(self.pid, self.regs).expect("setregs");
        }
        self.point = Point::At(address);
        Ok(())
    }

    /// From point `from` of `trace` to point `to`; nobody sleeps in between.
    pub(crate) fn go(&mut self, trace: &Trace, from: usize, to: usize, how: How) -> Res<()> {
        let (anchor, hits) = trace.anchor(from, to, how);
        if hits > 0 {
            let Point::At(address) = trace.points[anchor] else { unreachable!("anchors are At") };
            self.run_to(address, hits)?;
        }
        for _ in anchor..to {
            // On its own way it may be there sooner.
            if self.at_end() || matches!(self.point, Point::Asleep(_)) {
                break;
            }
            self.step()?;
        }
        Ok(())
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        self.kill();
    }
}
