// Another process may have written a third state.
use heirlock::zerocopy::FromBytes;
use heirlock::{Mutex, Segment};

#[derive(FromBytes)]
#[zerocopy(crate = "heirlock::zerocopy")]
#[repr(C)]
struct Shared {
    total: Mutex<u64>,
    state: Mutex<State>,
}

enum State {
    Idle,
    Busy,
}

fn main() {
    let _: Result<Segment<Shared>, _> = Segment::anonymous();
}
