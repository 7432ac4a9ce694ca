// It would unlock memory that is no longer mapped.
use heirlock::{Mutex, Segment};

fn main() {
    let guard = {
        let segment: Segment<Mutex<u64>> = Segment::anonymous().unwrap();
        segment.lock()
    };
    drop(guard);
}
