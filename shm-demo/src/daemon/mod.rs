//! `shm-demo daemon`: serves locks to those who do not map the segment. One thread waits
//! at one io_uring, for its clients, for signals, and for every lock that a client wants.

pub(crate) mod cli;
pub(crate) mod client;
mod command;
mod locks;
mod log;
mod notify;
mod protocol;
mod ring;
mod session;
mod socket;

use crate::inspect::to_text;
use crate::{Result, about_path};
use cli::DaemonArgs;
use heirlock::uring::Progress;
use heirlock::{LockError, LockOptions, MutexGuard, Segment, Unusable};
use locks::{Clients, Locks, participant_of};
use log::Log;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use notify::Manager;
use protocol::{Reply, Request};
use ring::{About, Completion, Outcome, Ring, Timer};
use session::{Held, Session, Wait};
use socket::Listener;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::mem;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// How long it waits after it could not accept: for want of descriptors, mostly, and
/// nobody tells when there are some.
const PAUSE: Duration = Duration::from_millis(200);

/// How many requests of a client are looked at until it is the others' turn.
const TURN: usize = 16;

const SIGNALS: [Signal; 4] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR1];

pub(crate) fn run(args: &DaemonArgs) -> Result<ExitCode> {
    // First of all: a signal that comes from now on waits until it is asked for.
    let signals: SigSet = SIGNALS.into_iter().collect();
    signals.thread_block()?;
    let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
    let signals = Rc::new(SignalFd::with_flags(&signals, flags)?);
    let log = Log::open(args.log.as_deref())?;
    let manager = Manager::find().map_err(|error| format!("$NOTIFY_SOCKET: {error}"))?;
    // Each client takes a descriptor, and few are what programs get that use select(2). If
    // there are no more to be had it goes on with those.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let _ = setrlimit(Resource::RLIMIT_NOFILE, most, most);
    let ring = Ring::new()?;
    let path = &args.at.path;
    loop {
        let segment = locks::open_or_create(path, args.mode)?;
        // If a daemon dies, so does its claim.
        let Some(mut claim) = locks::claim(&segment, path)? else { continue };
        *claim += 1;
        let listener = Listener::bind(&args.at.socket(), args.mode)?;
        let mut daemon = Daemon {
            args,
            segment: &segment,
            ring,
            log,
            manager,
            signals,
            listener: Some(listener),
            accepting: None,
            cannot_accept: false,
            sessions: BTreeMap::new(),
            last_session: 0,
            eager: BTreeSet::new(),
            watchdog: notify::watchdog_interval(),
            appeased: Instant::now(),
            draining: false,
            time_is_up: false,
        };
        daemon.serve(*claim)?;
        return Ok(ExitCode::SUCCESS);
    }
}

struct Daemon<'s> {
    args: &'s DaemonArgs,
    segment: &'s Segment<Locks>,
    /// Before the ring, so that what they wait for is given up before that goes.
    sessions: BTreeMap<u64, Session<'s>>,
    ring: Ring,
    log: Log,
    manager: Manager,
    signals: Rc<SignalFd>,
    /// Until it drains.
    listener: Option<Listener>,
    /// The operation that accepts.
    accepting: Option<u64>,
    /// Whether the last attempt has failed.
    cannot_accept: bool,
    last_session: u64,
    /// Those that may have more requests than were looked at in their turn.
    eager: BTreeSet<u64>,
    /// How often the watchdog is to be told, and when it was.
    watchdog: Option<Duration>,
    appeased: Instant,
    draining: bool,
    time_is_up: bool,
}

impl<'s> Daemon<'s> {
    fn serve(&mut self, how_manyth: u64) -> Result<()> {
        self.watch_signals()?;
        self.accept()?;
        self.watch_time()?;
        let (path, socket) = (self.args.at.path.display(), self.args.at.socket());
        self.log.say(&format!(
            "ready: process {}, daemon {how_manyth} of {path}, at {}",
            std::process::id(),
            socket.display()
        ));
        self.name_the_dead()?;
        self.tell_ready();
        while !self.is_done() {
            for _ in 0..self.ring.wait(self.eager.is_empty())? {
                let Some(completion) = self.ring.next() else { break };
                self.complete(completion)?;
                self.appease_watchdog();
            }
            for id in mem::take(&mut self.eager) {
                self.with_session(id, |_, _| Ok(()))?;
                self.appease_watchdog();
            }
        }
        if self.args.remove {
            self.remove()?;
        }
        self.log.say("ended");
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.draining && (self.sessions.is_empty() || self.time_is_up)
    }

    /// Says which locks an earlier daemon, or anybody, died with.
    fn name_the_dead(&mut self) -> Result<()> {
        let snapshot = locks::snapshot(self.segment)?;
        for lock in snapshot.locks.iter().filter(|lock| !lock.owner_alive) {
            let Some(owner) = lock.owner else { continue };
            let pid = participant_of(&snapshot, owner).map_or(0, |view| view.pid);
            let name = lock.name.as_deref().unwrap_or("?");
            self.log.say(&format!("lock {name}: process {pid} died with it; the next inherits it"));
        }
        Ok(())
    }

    /// What the service manager does not take is no reason to end.
    fn tell(&mut self, told: io::Result<()>) {
        if let Err(error) = told {
            self.log.say(&format!("cannot notify the service manager: {error}"));
        }
    }

    fn tell_ready(&mut self) {
        let told = self.manager.ready(&format!("serves {}", self.args.at.path.display()));
        self.tell(told);
    }

    fn complete(&mut self, completion: Completion) -> Result<()> {
        match (completion.about, completion.outcome) {
            (About::Accept, Outcome::Accepted(accepted)) => {
                self.accepted(accepted, completion.goes_on)?;
            }
            (About::Signals, _) => self.signalled()?,
            (About::Timer(Timer::Accept), _) => self.accept()?,
            (About::Timer(Timer::Watchdog), _) => self.watch_time()?,
            (About::Timer(Timer::Drain), _) => self.time_is_up(),
            (About::Timer(Timer::Cut(id)), _) => self.with_session(id, |_, session| {
                session.cut();
                Ok(())
            })?,
            (About::Receive(id), Outcome::Received(received)) => {
                self.with_session(id, |_, session| {
                    session.received(&received.unwrap_or_default());
                    Ok(())
                })?;
            }
            (About::Send(id), Outcome::Sent(bytes, count)) => {
                self.with_session(id, |daemon, session| {
                    match count {
                        Ok(count) => session.sent(bytes, count),
                        Err(_) => {
                            session.is_deaf();
                            daemon.lost(session);
                        }
                    }
                    Ok(())
                })?;
            }
            (About::Hangup(id), Outcome::Gone(gone)) => self.with_session(id, |_, session| {
                session.watched(gone, completion.goes_on);
                Ok(())
            })?,
            (About::Lock(id), Outcome::Lock(cqe)) => self.with_session(id, |daemon, session| {
                let Some(wait) = &mut session.wait else { return Ok(()) };
                let progress = wait.acquire.complete(&cqe);
                daemon.progress(session, progress)
            })?,
            _ => {}
        }
        Ok(())
    }

    /// Has `f` do something to a session, and has the session go on from there.
    fn with_session(
        &mut self,
        id: u64,
        f: impl FnOnce(&mut Self, &mut Session<'s>) -> Result<()>,
    ) -> Result<()> {
        let Some(mut session) = self.sessions.remove(&id) else { return Ok(()) };
        let turn = AssertUnwindSafe(|| {
            f(self, &mut session)?;
            self.turn(&mut session)
        });
        // To unlock a corrupted lock panics: that is the end of a session, and not of all.
        match catch_unwind(turn) {
            Ok(done) => done?,
            Err(_) => self.broken(&mut session),
        }
        if !session.go_on(&mut self.ring)? {
            self.sessions.insert(id, session);
        }
        Ok(())
    }

    /// Looks at its next requests, and at whether it is to end.
    fn turn(&mut self, session: &mut Session<'s>) -> Result<()> {
        let mut requests = 0;
        while requests < TURN
            && let Some(line) = session.next()
        {
            match line.request() {
                Ok(request) => self.request(session, request)?,
                Err(why) => session.reply(&Reply::Refused(why)),
            }
            requests += 1;
        }
        if requests == TURN {
            self.eager.insert(session.id);
        }
        if session.is_over() {
            self.lost(session);
        }
        if self.draining && session.held.is_empty() {
            session.end(&mut self.ring);
        }
        Ok(())
    }

    fn broken(&mut self, session: &mut Session<'s>) {
        self.log.say(&format!(
            "process {} cannot unlock what it had: the segment is corrupted; end its users and \
             remove it",
            session.pid
        ));
        session.reply(&Reply::Refused("the segment is corrupted; this connection ends".into()));
        // What else it holds may be as bad, and is dropped all the same.
        let _ = catch_unwind(AssertUnwindSafe(|| session.end(&mut self.ring)));
    }

    fn accept(&mut self) -> Result<()> {
        if let Some(listener) = &self.listener {
            self.accepting = Some(self.ring.accept(&listener.socket)?);
        }
        Ok(())
    }

    fn accepted(&mut self, accepted: io::Result<OwnedFd>, goes_on: bool) -> Result<()> {
        if !goes_on {
            self.accepting = None;
        }
        if self.draining {
            return Ok(());
        }
        match accepted {
            Ok(socket) => {
                self.cannot_accept = false;
                self.welcome(socket)?;
            }
            // Once, and not five times a second.
            Err(error) if !self.cannot_accept => {
                self.cannot_accept = true;
                self.log.say(&format!("cannot accept a connection: {error}; tries again"));
            }
            Err(_) => {}
        }
        if !goes_on {
            self.ring.timer(Timer::Accept, PAUSE)?;
        }
        Ok(())
    }

    fn welcome(&mut self, socket: OwnedFd) -> Result<()> {
        self.last_session += 1;
        let id = self.last_session;
        let is_full = self.sessions.len() >= self.args.clients as usize;
        self.sessions.insert(id, Session::new(id, socket));
        self.with_session(id, |daemon, session| {
            if is_full {
                session.reply(&Reply::Refused(format!(
                    "there are {} clients already; come back when one is gone, or start the \
                     daemon with more --clients",
                    daemon.args.clients
                )));
                session.end(&mut daemon.ring);
            }
            Ok(())
        })
    }

    /// The other end is gone, or wants no more.
    fn lost(&mut self, session: &mut Session<'s>) {
        for held in &session.held {
            let name = locks::name(self.segment, held.lock);
            self.log.say(&format!(
                "lock {name}: process {} is gone and had it; it goes to the next",
                session.pid
            ));
        }
        session.end(&mut self.ring);
    }

    fn request(&mut self, session: &mut Session<'s>, request: Request) -> Result<()> {
        match request {
            Request::Status => {
                let reply = self
                    .status(session)
                    .map_or_else(|error| Reply::Refused(error.to_string()), Reply::Status);
                session.reply(&reply);
            }
            Request::Unlock(name) => {
                let lock = locks::find(self.segment, &name);
                let done = lock.is_some_and(|lock| session.unlock(lock));
                session.reply(&if done { Reply::Done } else { not_held(&name) });
            }
            _ if self.draining => session.reply(&draining()),
            Request::Lock(name) => {
                self.lock(session, &name, &LockOptions::new(), Reply::TimedOut)?;
            }
            Request::With(time, name) => {
                self.lock(session, &name, &LockOptions::new().timeout(time), Reply::TimedOut)?;
            }
            Request::Try(name) => {
                let now = LockOptions::new().timeout(Duration::ZERO);
                self.lock(session, &name, &now, Reply::Busy)?;
            }
        }
        Ok(())
    }

    /// The lock of this name, if the session may ask for it.
    fn place(&self, session: &Session<'s>, name: &str) -> std::result::Result<usize, String> {
        let lock = locks::find_or_make(self.segment, name)?;
        if session.holds(lock) {
            return Err(format!("this connection holds {name} already; UNLOCK it first"));
        }
        Ok(lock)
    }

    fn lock(
        &mut self,
        session: &mut Session<'s>,
        name: &str,
        options: &LockOptions<'s>,
        too_late: Reply,
    ) -> Result<()> {
        let lock = match self.place(session, name) {
            Ok(lock) => lock,
            Err(why) => {
                session.reply(&Reply::Refused(why));
                return Ok(());
            }
        };
        let number = self.ring.number(About::Lock(session.id));
        match locks::lock(self.segment, lock).start_with(options, number) {
            Ok((acquire, progress)) => {
                session.wait = Some(Wait { lock, number, acquire });
                self.progress(session, Ok(progress))
            }
            Err(error) => {
                self.ring.forget(number);
                session.reply(&match error {
                    LockError::TimedOut => too_late,
                    error => Reply::Refused(error.to_string()),
                });
                Ok(())
            }
        }
    }

    /// What has become of what the session waits for.
    fn progress(
        &mut self,
        session: &mut Session<'s>,
        progress: std::result::Result<Progress<'s, u64>, Unusable>,
    ) -> Result<()> {
        match progress {
            Ok(Progress::Again(entries)) => return Ok(self.ring.lock(&entries)?),
            Ok(Progress::Pending) => return Ok(()),
            _ => {}
        }
        let Some(wait) = session.wait.take() else { return Ok(()) };
        self.ring.forget(wait.number);
        match progress {
            Ok(Progress::Acquired(guard)) => self.acquired(session, wait.lock, guard),
            Ok(Progress::TimedOut) => session.reply(&Reply::TimedOut),
            Ok(_) => session.reply(&draining()),
            Err(error) => session.reply(&Reply::Refused(error.to_string())),
        }
        Ok(())
    }

    fn acquired(&mut self, session: &mut Session<'s>, lock: usize, mut guard: MutexGuard<'s, u64>) {
        let reply = locks::take(&mut guard, session.pid);
        if let Reply::Inherited(pid) = reply {
            let name = locks::name(self.segment, lock);
            self.log.say(&format!(
                "lock {name}: process {} has it, after {pid}, which did not unlock it",
                session.pid
            ));
        }
        session.held.push(Held { lock, guard });
        session.reply(&reply);
    }

    /// `me` asks, and is not among the others meanwhile.
    fn status(&self, me: &Session<'s>) -> Result<Vec<String>> {
        locks::status(self.segment, |lock| {
            let sessions = || self.sessions.values().chain([me]);
            let waiting = |session: &Session<'s>| {
                let wait = session.wait.as_ref().filter(|wait| wait.lock == lock)?;
                Some((wait.acquire.participant()?, session.pid))
            };
            Clients {
                holder: sessions().find(|session| session.holds(lock)).map(|session| session.pid),
                waiting: sessions().filter_map(waiting).collect(),
            }
        })
    }

    fn watch_signals(&mut self) -> Result<()> {
        Ok(self.ring.poll(About::Signals, self.signals.clone(), libc::POLLIN)?)
    }

    fn signalled(&mut self) -> Result<()> {
        while let Some(signal) = self.signals.read_signal()? {
            match Signal::try_from(signal.ssi_signo as i32) {
                Ok(Signal::SIGHUP) => self.reopen_log(),
                Ok(Signal::SIGUSR1) => self.show(),
                Ok(signal) if self.draining => {
                    self.log.say(&format!("{signal} again: does not wait any longer"));
                    self.time_is_up();
                }
                Ok(signal) => self.drain(signal)?,
                Err(_) => {}
            }
        }
        self.watch_signals()
    }

    fn reopen_log(&mut self) {
        let told = self.manager.reloading();
        self.tell(told);
        match self.log.reopen() {
            Ok(true) => self.log.say("SIGHUP: the log is open anew"),
            Ok(false) => self.log.say("SIGHUP: there is no --log to be opened anew"),
            Err(error) => self.log.say(&format!("SIGHUP: {error}; it stays where it is")),
        }
        self.tell_ready();
    }

    fn show(&mut self) {
        let text = match locks::snapshot(self.segment) {
            Ok(snapshot) => to_text(&self.args.at.path, &snapshot),
            Err(error) => error.to_string(),
        };
        self.log.say(&format!("SIGUSR1: {} clients\n{text}", self.sessions.len()));
    }

    /// Tells the watchdog that it lives, when it is time to. (By the clock, as other things
    /// may have completed before the timer.)
    fn appease_watchdog(&mut self) {
        if self.watchdog.is_some_and(|interval| self.appeased.elapsed() >= interval) {
            self.appeased = Instant::now();
            self.tell(self.manager.alive());
        }
    }

    /// Has itself woken when it is time to.
    fn watch_time(&mut self) -> Result<()> {
        self.appease_watchdog();
        let Some(interval) = self.watchdog else { return Ok(()) };
        let left = interval.saturating_sub(self.appeased.elapsed());
        Ok(self.ring.timer(Timer::Watchdog, left)?)
    }

    /// Takes no more clients and gives no more locks; ends when those that are held have
    /// come back.
    fn drain(&mut self, signal: Signal) -> Result<()> {
        self.draining = true;
        let told = self.manager.stopping("waits for those who hold locks");
        self.tell(told);
        if let Some(accepting) = self.accepting.take() {
            self.ring.cancel(accepting)?;
        }
        // Its file goes, too.
        self.listener = None;
        let holders = self.sessions.values().filter(|session| !session.held.is_empty()).count();
        self.log.say(&format!(
            "{signal}: drains; clients that hold locks: {holders}; waits for them for {} s at most",
            self.args.drain_seconds
        ));
        let time = Duration::from_secs(self.args.drain_seconds.into());
        self.ring.timer(Timer::Drain, time)?;
        for id in self.sessions.keys().copied().collect::<Vec<_>>() {
            self.with_session(id, |daemon, session| match &mut session.wait {
                None => Ok(()),
                Some(wait) => {
                    let progress = wait.acquire.cancel();
                    daemon.progress(session, progress)
                }
            })?;
        }
        Ok(())
    }

    /// Removes the segment, unless others use it, who would have it to themselves.
    fn remove(&mut self) -> Result<()> {
        let path = &self.args.at.path;
        let others = locks::others(self.segment)?;
        if others.is_empty() {
            return Segment::unlink(path).map_err(|error| about_path(path, &error).into());
        }
        let others: Vec<String> = others.iter().map(u32::to_string).collect();
        self.log.say(&format!(
            "{} is not removed: others use it, processes {}",
            path.display(),
            others.join(", ")
        ));
        Ok(())
    }

    fn time_is_up(&mut self) {
        self.time_is_up = true;
        for session in self.sessions.values() {
            for held in &session.held {
                let name = locks::name(self.segment, held.lock);
                self.log.say(&format!(
                    "lock {name}: process {} still has it; it goes to the next",
                    session.pid
                ));
            }
        }
    }
}

fn draining() -> Reply {
    Reply::Refused("the daemon is about to end and gives no more locks; ask the next one".into())
}

fn not_held(name: &str) -> Reply {
    Reply::Refused(format!("this connection does not hold {name}; LOCK, TRY or WITH gets it"))
}
