// Another process may have written a 2.
use heirlock::zerocopy::FromBytes;
use heirlock::{Mutex, Segment};

#[derive(FromBytes)]
#[zerocopy(crate = "heirlock::zerocopy")]
#[repr(C)]
struct Shared {
    total: Mutex<u64>,
    ready: Mutex<bool>,
}

fn main() {
    let _: Result<Segment<Shared>, _> = Segment::anonymous();
}
