//! Several locks at once, of which one does not come.

use crate::kit::Test;
use heirlock::select::lock_all_with;
use heirlock::{LockError, LockOptions, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

pub(crate) const TESTS: &[Test] = &[(
    "who_takes_all_or_none_keeps_no_death_to_himself",
    who_takes_all_or_none_keeps_no_death_to_himself,
)];

/// Each of the two is once the one that is not to be had, as the order is by address.
fn who_takes_all_or_none_keeps_no_death_to_himself() {
    static LOCKS: [Mutex<u32>; 2] = [const { Mutex::new(0) }; 2];
    for (dead, busy) in [(&LOCKS[0], &LOCKS[1]), (&LOCKS[1], &LOCKS[0])] {
        let owner = || std::mem::forget(dead.lock());
        thread::spawn(owner).join().expect("the owner is gone");
        let held = busy.lock();
        let all = || {
            let options = LockOptions::new().timeout(Duration::from_millis(20));
            lock_all_with(&[dead, busy], &options).map(drop)
        };
        let tried = thread::spawn(all).join().expect("nothing panics");
        assert!(matches!(tried, Err(LockError::TimedOut)), "{tried:?}");
        drop(held);
        assert!(MutexGuard::inherited(&dead.lock()).is_some(), "the death was not told");
        assert!(MutexGuard::inherited(&dead.lock()).is_none(), "the death was told twice");
    }
}
