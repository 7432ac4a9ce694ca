// It would unpark by memory that is no longer mapped.
use heirlock::{Mutex, Segment, thread};

fn main() {
    let parked = {
        let segment: Segment<Mutex<u64>> = Segment::anonymous().unwrap();
        thread::current(&segment).unwrap()
    };
    parked.unpark();
}
