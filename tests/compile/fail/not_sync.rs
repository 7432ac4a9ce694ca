// Any bytes are one, but it is not to be shared.
use heirlock::Segment;
use std::cell::Cell;

fn main() {
    let _ = Segment::<Cell<u64>>::anonymous();
}
