// Its elements would be on the heap of one process.
use heirlock::Segment;

fn main() {
    let _ = Segment::<Vec<u8>>::anonymous();
}
