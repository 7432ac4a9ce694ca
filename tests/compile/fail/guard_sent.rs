// The thread owns the lock.
use heirlock::Mutex;
use std::thread;

fn main() {
    static LOCK: Mutex<u64> = Mutex::new(0);
    let guard = LOCK.lock();
    thread::spawn(move || drop(guard));
}
