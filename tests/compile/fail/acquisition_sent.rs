// Its row is the thread's, and so is the lock when it comes.
use heirlock::Mutex;
use std::thread;

fn main() {
    static LOCK: Mutex<u64> = Mutex::new(0);
    let (acquire, _) = LOCK.start(1).unwrap();
    thread::spawn(move || drop(acquire));
}
