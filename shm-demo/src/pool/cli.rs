//! The command line of `shm-demo pool`.

use super::slots::{MAX_CLIENTS, MAX_SIZE};
use crate::cli::TrialArgs;
use clap::Args;

pub(crate) const POOL: &str = "\
A few connections, and more processes that want one. Each client opens its own socket to
a server (which this program has inside, and which answers what it is asked), for each
slot of the pool that it is given; but only as many are in use at a time as there are
slots. Who has which is in a segment, under a mutex. Who finds none free waits: first
come, first served, for a condition variable that is notified when a slot is given back.

Clients are killed with SIGKILL, many of them while they use a connection, and others
take their places. A slot has its user's name on it. Nobody tells of a user that dies
without the lock in its hands; so whoever waits looks whether the users are alive, and
takes back what the dead have left. So does the parent when it has reaped a client.";

pub(crate) const POOL_MORE: &str = "\
What is reported (with --json under these names, in one object on the last line):
  outcome               held, failed, interrupted; or error, with the field error alone
  failures              what did not hold, in words
  path                  where the segment was
  kills                 how often a running client was killed with SIGKILL by this program
  kills_asked           --kills; must be the same
  kills_from_outside    clients that somebody else killed with SIGKILL
  seconds               from the first client's start to the last one's end
  size                  slots
  clients               processes at a time
  requests_asked        --requests
  requests_answered     requests whose answer a client has compared; at least as many
  requests_sent         the same, and those in which a client was killed
  requests_served       requests that the server has answered
  connections           sockets that the server has accepted
  slots_free            slots that are free at the end; must be all
  slots_taken           how often a slot was taken
  slots_of_the_dead     how often a slot was taken back from a dead client
  waits                 how often a client waited for a slot to become free
  overlaps              how often a client found somebody else in its slot; must be 0
  wrong                 answers that were not what was asked; must be 0
  order_inversions      how often a client was served before one that had come before it;
                        must be 0
  order_checked         how often somebody had come before
  inherited             how often the lock was got from a dead owner
  longest_wait_us       the longest time that a client waited for a slot, in microseconds

Examples:
  shm-demo pool --size 5 --clients 20
  shm-demo pool --size 1 --clients 8 --kills 100
  shm-demo pool --json | tail -n 1
  shm-demo pool --size 32 --clients 8 --kills 31 --without-repair
      Nobody takes back what the dead have left: the check must fail. (With as many
      kills as slots there may be none left, and the run ends after 60 seconds.)";

#[derive(Args)]
pub(crate) struct PoolArgs {
    /// How many connections may be in use at a time
    #[arg(long, value_name = "N", default_value_t = 5,
          value_parser = clap::value_parser!(u32).range(1..=MAX_SIZE as i64))]
    pub(crate) size: u32,

    /// How many client processes run at a time
    #[arg(long, value_name = "N", default_value_t = 20,
          value_parser = clap::value_parser!(u32).range(1..=MAX_CLIENTS as i64))]
    pub(crate) clients: u32,

    /// How many requests all clients together make, at least
    #[arg(long, value_name = "N", default_value_t = 20_000,
          value_parser = clap::value_parser!(u64).range(1..=1_000_000_000_000))]
    pub(crate) requests: u64,

    #[command(flatten)]
    pub(crate) trial: TrialArgs,

    /// Take nothing back from the dead, to see the check fail
    #[arg(long)]
    pub(crate) without_repair: bool,
}
