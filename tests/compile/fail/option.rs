// What says whether there is one may be half-written.
use heirlock::zerocopy::FromBytes;
use heirlock::{Mutex, Segment};

#[derive(FromBytes)]
#[zerocopy(crate = "heirlock::zerocopy")]
#[repr(C)]
struct Shared {
    total: Mutex<u64>,
    best: Mutex<Option<u64>>,
}

fn main() {
    let _: Result<Segment<Shared>, _> = Segment::anonymous();
}
