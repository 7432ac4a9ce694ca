//! `shm-demo pool`: connections that clients share and are killed with, and whether
//! each of them came back and was nobody else's meanwhile.
#![allow(clippy::disallowed_types, reason = "the demo's own words, not the lock's")]

pub(crate) mod cli;
mod client;
mod echo;
mod slots;
mod verdict;

use crate::Result;
use crate::course::{Course, SPARE_ROWS};
use crate::trial::{self, Subject};
use cli::PoolArgs;
use echo::Echo;
use heirlock::{Options, Participant, Segment, SegmentError};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use slots::{Access, Pool};
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

pub(crate) use client::run as work;

/// Which `Pool` this is: another number for every change of it.
const SCHEMA: u64 = 0x504f_4f4c_0001;

/// How long the parent waits for the lock when it has reaped a client. The clients
/// look by themselves, too.
const PATIENCE: Duration = Duration::from_secs(1);

/// What a process has open besides connections.
const OTHER_FILES: u64 = 64;

fn options() -> Options<'static, Pool> {
    Segment::options().schema(SCHEMA)
}

fn open(path: &Path) -> std::result::Result<Segment<Pool>, SegmentError> {
    options().open(path)
}

impl Subject for Segment<Pool> {
    fn course(&self) -> &Course {
        &self.course
    }

    /// Who owns the lock, or somebody who uses a connection.
    fn owner(&self) -> Option<Participant> {
        let user = || {
            let word = &self.in_use[fastrand::usize(..self.in_use.len())];
            Participant::from_bits(word.load(Relaxed))
        };
        if fastrand::bool() { user() } else { heirlock::owner(&self.slots) }
    }

    fn locks(&self) -> Vec<u64> {
        [self.offset_of(&self.slots), self.offset_of(&self.turn)].into_iter().flatten().collect()
    }

    fn bury(&self) {
        let access = Access { pool: self };
        if let Some(mut slots) = access.lock_within(PATIENCE) {
            for _ in 0..access.take_back_from_the_dead(&mut slots) {
                self.freed.notify_one();
            }
        }
    }
}

pub(crate) fn run(args: &PoolArgs) -> Result<ExitCode> {
    let connections = u64::from(args.size) * u64::from(args.clients);
    allow_files(connections + u64::from(args.clients) + OTHER_FILES)?;
    // Ended by the report, when the clients are gone; or dropped after them.
    let echo = Echo::start()?;
    let port = echo.port();
    let create = |path: &Path| {
        let lay_out = |pool: &mut Pool| {
            pool.slots.get_mut().size = args.size.into();
            pool.course.lay_out(args.clients, args.requests);
            pool.port = port.into();
            pool.repairs = u64::from(!args.without_repair);
        };
        options().capacity(args.clients + SPARE_ROWS).init(lay_out).create(path)
    };
    trial::run(&args.trial, "pool", "pool-client", create, |pool, trial, end| {
        verdict::report(args, pool, trial, end, echo.end())
    })
}

/// Sees to it that this process may have so many files open: all clients' connections
/// end here.
fn allow_files(files: u64) -> Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft >= files {
        return Ok(());
    }
    if hard < files {
        return Err(format!(
            "so many connections need {files} open files, and {hard} are allowed: choose a \
             smaller --size or fewer --clients, or raise the limit (`ulimit -Hn`)"
        )
        .into());
    }
    Ok(setrlimit(Resource::RLIMIT_NOFILE, files, hard)?)
}
