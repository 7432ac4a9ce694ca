// Also if the derive is asked for it.
use heirlock::zerocopy::FromBytes;

#[derive(FromBytes)]
#[zerocopy(crate = "heirlock::zerocopy")]
#[repr(u8)]
enum State {
    Idle,
    Busy,
}

fn main() {
    let _ = (State::Idle, State::Busy);
}
