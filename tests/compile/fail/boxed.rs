// An address means something in one process only.
use heirlock::zerocopy::FromBytes;
use heirlock::{Mutex, Segment};

#[derive(FromBytes)]
#[zerocopy(crate = "heirlock::zerocopy")]
#[repr(C)]
struct Shared {
    total: Mutex<u64>,
    next: Mutex<Box<u64>>,
}

fn main() {
    let _: Result<Segment<Shared>, _> = Segment::anonymous();
}
