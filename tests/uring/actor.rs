//! Actors: processes that acquire locks in a ring, or as futures, on command; beside what
//! a puppet's process can be told to do.

use crate::kit::{Board, Got, Process, Puppet, Role, fork, told};
use crate::rings::{KINDS, Kind, Loop, Over};
use heirlock::future::{AsyncMutexGuard, LockAsync};
use heirlock::{LockOptions, MutexGuard, Participant, Segment};
use io_uring::squeue::Flags;
use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::pin::Pin;
use std::process::Command;
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

pub(crate) const ROLES: &[Role] = &[("actor", actor)];

/// A process that obeys the commands below, one at a time.
pub(crate) struct Actor(Puppet);

impl Deref for Actor {
    type Target = Puppet;
    fn deref(&self) -> &Puppet {
        &self.0
    }
}

impl DerefMut for Actor {
    fn deref_mut(&mut self) -> &mut Puppet {
        &mut self.0
    }
}

impl Actor {
    pub(crate) fn spawn(path: &Path, kind: Kind) -> Self {
        Self::from_command(&mut Self::command(path, kind))
    }

    pub(crate) fn command(path: &Path, kind: Kind) -> Command {
        let path = path.to_str().expect("a printable path");
        Process::command("actor", &[path, kind.name])
    }

    pub(crate) fn from_command(command: &mut Command) -> Self {
        Self(Puppet::from_command(command))
    }

    /// Has it begin to wait, with `start` or `poll`: the row in which it waits.
    pub(crate) fn begin(&mut self, command: &str) -> Participant {
        let answer = self.tell(command);
        let bits = answer.strip_prefix("waits ").unwrap_or_else(|| panic!("{command}: {answer}"));
        Participant::from_bits(bits.parse().expect("a number")).expect("a participant")
    }

    pub(crate) fn kill(self) {
        self.0.kill();
    }
}

/// Has the actor go on until it has the lock, and release it.
pub(crate) fn finish(actor: &mut Actor, id: u64) {
    actor.start(&format!("finish {id}"));
    assert_eq!(actor.got(), Got::Lock);
    assert_eq!(actor.tell(&format!("release {id}")), "ok");
}

struct Scene {
    segment: &'static Segment<Board>,
    kind: Kind,
    /// `None` until there is need of it: there may be no rings where it is.
    ring: Option<Loop<'static>>,
    /// The names in the loop, and the commander's.
    names: BTreeMap<u64, u64>,
    guards: BTreeMap<u64, MutexGuard<'static, u64>>,
    futures: BTreeMap<u64, Pin<Box<LockAsync<'static, u64>>>>,
    async_guards: BTreeMap<u64, AsyncMutexGuard<'static, u64>>,
}

fn actor(args: &[String]) {
    let segment: Segment<Board> = Segment::open(&args[0]).expect("open");
    let segment: &'static Segment<Board> = Box::leak(Box::new(segment));
    let kind = KINDS.into_iter().find(|kind| kind.name == args[1]).expect("a kind of ring");
    println!("participant {}", segment.attach().expect("attach").to_bits());
    let mut scene = Scene {
        segment,
        kind,
        ring: None,
        names: BTreeMap::new(),
        guards: BTreeMap::new(),
        futures: BTreeMap::new(),
        async_guards: BTreeMap::new(),
    };
    let mut line = String::new();
    loop {
        line.clear();
        if std::io::stdin().read_line(&mut line).expect("read a command") == 0 {
            // Ends with everything in flight.
            std::process::exit(0);
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        println!("{}", scene.obey(&words));
    }
}

impl Scene {
    fn ring(&mut self) -> &mut Loop<'static> {
        let kind = self.kind;
        self.ring.get_or_insert_with(|| Loop::new(kind))
    }

    fn obey(&mut self, words: &[&str]) -> String {
        let number = |at: usize| words[at].parse::<u64>().expect("a number");
        let segment = self.segment;
        let lock = |at: usize| &segment.locks[number(at) as usize];
        match words[0] {
            // start LOCK NAME [for MICROSECONDS | cancellable TOKEN | async]
            "start" => {
                let options = match words[3..] {
                    [] | ["async"] => LockOptions::new(),
                    ["for", _] => LockOptions::new().timeout(Duration::from_micros(number(4))),
                    ["cancellable", _] => {
                        LockOptions::new().cancel(&segment.tokens[number(4) as usize])
                    }
                    _ => panic!("an actor cannot start like this: {words:?}"),
                };
                let (lock, name) = (lock(1), number(2));
                let by_a_worker = words.get(3) == Some(&"async");
                self.ring().flags = if by_a_worker { Flags::ASYNC } else { Flags::empty() };
                let id = self.ring().start_with(lock, &options);
                self.names.insert(name, id);
                if self.ring().is_over(id) {
                    return self.finish(name);
                }
                let row = self.ring().get(id).participant().expect("it waits");
                format!("waits {}", row.to_bits())
            }
            "finish" => self.finish(number(1)),
            "release" => {
                let name = number(1);
                let held = self.guards.remove(&name).is_some();
                assert!(held || self.async_guards.remove(&name).is_some(), "{name} is not held");
                "ok".into()
            }
            // poll LOCK NAME: a future, which waits with the process's helper.
            "poll" => {
                let mut future = Box::pin(lock(1).lock_async());
                let before = heirlock::queue(lock(1)).expect("it stands still").len();
                let mut context = Context::from_waker(Waker::noop());
                match future.as_mut().poll(&mut context) {
                    Poll::Pending => {
                        let queue = heirlock::queue(lock(1)).expect("it stands still");
                        self.futures.insert(number(2), future);
                        format!("waits {}", queue[before].to_bits())
                    }
                    Poll::Ready(guard) => {
                        let answer = told(AsyncMutexGuard::inherited(&guard));
                        self.async_guards.insert(number(2), guard);
                        answer
                    }
                }
            }
            "await" => {
                let future = self.futures.remove(&number(1)).expect("it waits");
                let guard = pollster::block_on(future);
                let answer = told(AsyncMutexGuard::inherited(&guard));
                self.async_guards.insert(number(1), guard);
                answer
            }
            "fork" => {
                self.fork(lock(1), lock(2));
                "ok".into()
            }
            other => panic!("an actor does not know {other:?}"),
        }
    }

    fn finish(&mut self, name: u64) -> String {
        let id = self.names.remove(&name).expect("it was started");
        match self.ring().end_of(id) {
            Over::Acquired(guard) => {
                let answer = told(MutexGuard::inherited(&guard));
                self.guards.insert(name, guard);
                answer
            }
            Over::TimedOut => "nothing".into(),
            Over::Cancelled => "cancelled".into(),
        }
    }

    /// Forks with all that is in flight and held: the child's copies are void, and it can
    /// acquire `free` in ways of its own; of `held` it drops the copies.
    fn fork(&mut self, held: &'static heirlock::Mutex<u64>, free: &'static heirlock::Mutex<u64>) {
        let child = fork(|| {
            let (owner, queue) = (heirlock::owner(held), heirlock::queue(held));
            assert!(self.futures.len() + self.guards.len() + self.names.len() > 0);
            self.futures.clear();
            self.guards.clear();
            self.async_guards.clear();
            self.ring.take().into_iter().for_each(Loop::abandon);
            assert_eq!((heirlock::owner(held), heirlock::queue(held)), (owner, queue));
            let mut own = Loop::new(self.kind);
            for _ in 0..10 {
                let first = own.start(free);
                let guard = own.end_of(first).guard();
                let second = own.start(free);
                let future = thread::scope(|scope| {
                    let future = scope.spawn(|| {
                        *pollster::block_on(free.lock_async()) += 1;
                    });
                    drop(guard);
                    *own.end_of(second).guard() += 1;
                    future.join()
                });
                future.expect("the future has it, too");
            }
            own.until_quiet();
            let patience = LockOptions::new().timeout(Duration::from_millis(1));
            let id = own.start_with(held, &patience);
            assert!(matches!(own.end_of(id), Over::TimedOut), "the parent holds it");
        });
        child.succeed();
    }
}
