// It refers to the heap of one process.
use heirlock::zerocopy::FromBytes;
use heirlock::{Mutex, Segment};

#[derive(FromBytes)]
#[zerocopy(crate = "heirlock::zerocopy")]
#[repr(C)]
struct Shared {
    total: Mutex<u64>,
    name: Mutex<String>,
}

fn main() {
    let _: Result<Segment<Shared>, _> = Segment::anonymous();
}
