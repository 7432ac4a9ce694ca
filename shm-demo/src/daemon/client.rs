//! `shm-demo client`: asks a daemon for locks, or gets them itself.

use super::cli::ClientArgs;
use super::command::{self, Ended};
use super::locks::{self, Clients, Locks};
use super::protocol::{Reply, Request, is_last};
use crate::{Result, print};
use heirlock::{LockError, LockOptions, MutexGuard, Segment};
use std::collections::{BTreeSet, HashMap};
use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitCode;

pub(crate) fn run(args: &ClientArgs) -> Result<ExitCode> {
    if args.direct {
        let segment = locks::open_or_create(&args.at.path, 0o600)?;
        return converse(args, &mut Direct { segment: &segment, held: HashMap::new() });
    }
    converse(args, &mut Remote::connect(args)?)
}

/// Who answers requests.
trait Locksmith {
    /// The whole reply to one line.
    fn ask(&mut self, line: &str) -> Result<String>;

    /// The connection with which all locks are lost.
    fn lifeline(&self) -> Option<BorrowedFd<'_>>;
}

fn converse(args: &ClientArgs, locksmith: &mut impl Locksmith) -> Result<ExitCode> {
    let mut held = BTreeSet::new();
    let mut all_done = true;
    if args.request.is_empty() {
        for line in io::stdin().lock().lines() {
            all_done &= asked(locksmith, &line?, &mut held)?;
        }
    } else {
        let line = args.request.join(" ");
        if line.contains('\n') {
            return Err("a request is one line; without REQUEST, each line of standard input \
                        is one"
                .into());
        }
        if !args.command.is_empty() {
            return hold(locksmith, &line, &args.command);
        }
        all_done = asked(locksmith, &line, &mut held)?;
    }
    // It has come to its end, and the next one is not to think that it died.
    for name in held {
        all_done &= is_done(&locksmith.ask(&unlock(&name))?);
    }
    Ok(if all_done { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn unlock(name: &str) -> String {
    format!("UNLOCK {name}")
}

/// Prints the reply; whether it was what was wanted. `held` are the names of what is held.
fn asked(locksmith: &mut impl Locksmith, line: &str, held: &mut BTreeSet<String>) -> Result<bool> {
    let reply = locksmith.ask(line)?;
    let done = is_done(&reply);
    match Request::parse(line.as_bytes()) {
        Ok(Request::Lock(name) | Request::Try(name) | Request::With(_, name)) if done => {
            held.insert(name);
        }
        Ok(Request::Unlock(name)) => {
            held.remove(&name);
        }
        _ => {}
    }
    print(&reply)?;
    Ok(done)
}

fn is_done(reply: &str) -> bool {
    reply.lines().last().is_some_and(|line| line == "OK" || line.starts_with("OK "))
}

/// Runs a command with the lock.
fn hold(locksmith: &mut impl Locksmith, line: &str, command: &[String]) -> Result<ExitCode> {
    let name = match Request::parse(line.as_bytes())? {
        Request::Lock(name) | Request::Try(name) | Request::With(_, name) => name,
        Request::Unlock(_) | Request::Status => {
            return Err("a command runs with a lock: only LOCK, WITH and TRY get one".into());
        }
    };
    let reply = locksmith.ask(line)?;
    if reply != "OK\n" {
        // Standard output is the command's.
        eprint!("{reply}");
    }
    if !is_done(&reply) {
        return Ok(ExitCode::FAILURE);
    }
    let inherited = reply.strip_prefix("OK INHERITED ").map(str::trim_end);
    let ended = command::run(command, inherited, locksmith.lifeline());
    // Also if there was nothing to run: then nothing is half done.
    let unlocked = locksmith.ask(&unlock(&name));
    let Ended::ByItself(status) = ended? else { return Ok(ExitCode::FAILURE) };
    let reply = unlocked?;
    if !is_done(&reply) {
        return Err(format!("the lock was lost while the command ran: {}", reply.trim()).into());
    }
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Ok(ExitCode::from(code as u8))
}

/// A daemon, at the other end of a socket.
struct Remote {
    stream: BufReader<UnixStream>,
}

const GONE: &str = "the daemon is gone; what it held for this client goes to the next in line";

impl Remote {
    fn connect(args: &ClientArgs) -> Result<Self> {
        let socket = args.at.socket();
        let stream = UnixStream::connect(&socket).map_err(|error| match error.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => format!(
                "{}: nobody listens there; start `shm-demo daemon --path {}`, or do without by \
                 --direct",
                socket.display(),
                args.at.path.display()
            ),
            _ => format!("{}: {error}", socket.display()),
        })?;
        Ok(Self { stream: BufReader::new(stream) })
    }
}

impl Locksmith for Remote {
    fn ask(&mut self, line: &str) -> Result<String> {
        // If it is gone it may have said why before.
        let _ = self.stream.get_mut().write_all(format!("{line}\n").as_bytes());
        let mut reply = String::new();
        loop {
            let start = reply.len();
            match self.stream.read_line(&mut reply) {
                // What has no end was cut off: `OK IN` is not to be taken for `OK`.
                Ok(_) if reply[start..].ends_with('\n') => {}
                Err(error) if error.kind() != ErrorKind::ConnectionReset => {
                    return Err(error.into());
                }
                _ => return Err(GONE.into()),
            }
            if is_last(&reply[start..]) {
                return Ok(reply);
            }
        }
    }

    fn lifeline(&self) -> Option<BorrowedFd<'_>> {
        Some(self.stream.get_ref().as_fd())
    }
}

/// Nobody else: this process waits itself.
struct Direct<'s> {
    segment: &'s Segment<Locks>,
    /// By place.
    held: HashMap<usize, MutexGuard<'s, u64>>,
}

impl Locksmith for Direct<'_> {
    fn ask(&mut self, line: &str) -> Result<String> {
        let reply = match Request::parse(line.as_bytes()) {
            Ok(request) => self.grant(request)?,
            Err(why) => Reply::Refused(why),
        };
        Ok(reply.to_string())
    }

    fn lifeline(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

impl Direct<'_> {
    fn grant(&mut self, request: Request) -> Result<Reply> {
        let options = LockOptions::new();
        match request {
            Request::Status => {
                Ok(Reply::Status(locks::status(self.segment, |_| Clients::default())?))
            }
            Request::Unlock(name) => {
                let lock = locks::find(self.segment, &name);
                let guard = lock.and_then(|lock| self.held.remove(&lock));
                Ok(guard.map_or_else(
                    || super::not_held(&name),
                    |guard| {
                        locks::give_back(guard);
                        Reply::Done
                    },
                ))
            }
            Request::Lock(name) => Ok(self.wait(&name, &options, Reply::TimedOut)),
            Request::With(time, name) => {
                Ok(self.wait(&name, &options.timeout(time), Reply::TimedOut))
            }
            Request::Try(name) => {
                let now = options.timeout(std::time::Duration::ZERO);
                Ok(self.wait(&name, &now, Reply::Busy))
            }
        }
    }

    fn wait(&mut self, name: &str, options: &LockOptions<'_>, too_late: Reply) -> Reply {
        let lock = match locks::find_or_make(self.segment, name) {
            Ok(lock) if self.held.contains_key(&lock) => {
                return Reply::Refused(format!(
                    "this client holds {name} already; UNLOCK it first"
                ));
            }
            Ok(lock) => lock,
            Err(why) => return Reply::Refused(why),
        };
        match locks::lock(self.segment, lock).lock_with(options) {
            Ok(mut guard) => {
                let reply = locks::take(&mut guard, std::process::id());
                self.held.insert(lock, guard);
                reply
            }
            Err(LockError::TimedOut) => too_late,
            Err(error) => Reply::Refused(error.to_string()),
        }
    }
}
