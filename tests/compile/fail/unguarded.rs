// What is in a segment is shared: to be changed it must be behind a lock.
use heirlock::Segment;

fn main() {
    let segment: Segment<u64> = Segment::anonymous().unwrap();
    *segment += 1;
}
