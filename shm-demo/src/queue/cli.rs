//! The command line of `shm-demo queue`.

use super::ring::{MAX_CAPACITY, MAX_CONSUMERS, MAX_PRODUCERS};
use crate::cli::TrialArgs;
use clap::Args;

pub(crate) const QUEUE: &str = "\
Producers and consumers in processes of their own, and between them a ring of a few
items in a segment: a mutex, and two condition variables for who waits for room and who
waits for an item. Each item has its producer, a number and a checksum.

Producers and consumers are killed with SIGKILL while they push and pop, every other
time the one that holds the lock, and others take their places. An item is in the queue
once its number is counted, and handed over once that is counted: by one store each.
Whoever gets the lock from a dead owner carries out what that had counted, and notifies
both condition variables, since the dead one may have died before it did. So no item is
lost and none comes twice; each producer's items come in its order.";

pub(crate) const QUEUE_MORE: &str = "\
What is reported (with --json under these names, in one object on the last line):
  outcome               held, failed, interrupted; or error, with the field error alone
  failures              what did not hold, in words
  path                  where the segment was
  kills                 how often a running process was killed with SIGKILL by this program
  kills_asked           --kills; must be the same
  kills_from_outside    processes that somebody else killed with SIGKILL
  seconds               from the first process's start to the last one's end
  producers, consumers  processes at a time
  capacity              how many items fit into the ring
  items                 --items
  pushed, popped        how many items went in and came out; must be the same
  worked                how many items the consumers have checked; must be the same
  again                 items that a dead consumer had in hand, and its successor checked
  misplaced             items that were not their producer's next; must be 0
  wrong                 items without their checksum; must be 0
  waits_for_room        how often a producer waited for room
  waits_for_items       how often a consumer waited for an item
  timeouts              waits that ended because nobody notified for a second
  inherited             how often somebody got the lock from a dead owner, and was told
  repaired              how often the dead owner had left something to be carried out

Examples:
  shm-demo queue
  shm-demo queue --producers 8 --consumers 2 --capacity 4 --kills 200
  shm-demo queue --json | tail -n 1
  shm-demo queue --without-repair
      Heirs leave things as they are: the check must fail.";

#[derive(Args)]
pub(crate) struct QueueArgs {
    /// How many processes push at a time
    #[arg(long, value_name = "N", default_value_t = 3,
          value_parser = clap::value_parser!(u32).range(1..=MAX_PRODUCERS as i64))]
    pub(crate) producers: u32,

    /// How many processes pop at a time
    #[arg(long, value_name = "N", default_value_t = 3,
          value_parser = clap::value_parser!(u32).range(1..=MAX_CONSUMERS as i64))]
    pub(crate) consumers: u32,

    /// How many items fit into the ring
    #[arg(long, value_name = "N", default_value_t = 16,
          value_parser = clap::value_parser!(u32).range(1..=MAX_CAPACITY as i64))]
    pub(crate) capacity: u32,

    /// How many items all producers together push
    #[arg(long, value_name = "N", default_value_t = 50_000,
          value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    pub(crate) items: u64,

    #[command(flatten)]
    pub(crate) trial: TrialArgs,

    /// Have heirs repair nothing, to see the check fail
    #[arg(long)]
    pub(crate) without_repair: bool,
}
