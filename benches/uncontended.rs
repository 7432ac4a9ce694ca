//! One lock and unlock that nobody else wants, on one CPU: what every user pays
//! every time.

use criterion::Criterion;
use heirlock::Segment;
use std::hint::black_box;
use std::time::Instant;

#[path = "support/pin.rs"]
mod pin;
#[path = "support/pthread.rs"]
mod pthread;

use pthread::{Pthread, Sharing, Unlinked};

static STATIC: heirlock::Mutex<u64> = heirlock::Mutex::new(0);

fn uncontended(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("uncontended");

    let path = Unlinked(format!("/dev/shm/heirlock-bench-{}", std::process::id()).into());
    let segment: Segment<heirlock::Mutex<u64>> = Segment::create(&path.0).expect("create");
    let shm: &heirlock::Mutex<u64> = &segment;
    let lock = shm;
    group.bench_function("heirlock_shm", |b| b.iter(|| *black_box(lock).lock() += 1));
    group.bench_function("heirlock_static", |b| b.iter(|| *black_box(&STATIC).lock() += 1));

    let std = std::sync::Mutex::new(0u64);
    let lock = &std;
    group.bench_function("std", |b| {
        b.iter(|| *black_box(lock).lock().expect("not poisoned") += 1);
    });
    let lock = parking_lot::Mutex::new(0u64);
    group.bench_function("parking_lot", |b| b.iter(|| *black_box(&lock).lock() += 1));

    let lock = Pthread::anonymous(Sharing::Plain);
    group.bench_function("pthread_pshared", |b| {
        b.iter(|| black_box(&lock).locked(|value| *value += 1));
    });
    let lock = Pthread::anonymous(Sharing::Robust);
    group.bench_function("pthread_robust", |b| {
        b.iter(|| black_box(&lock).locked(|value| *value += 1));
    });
    group.finish();
    compare(shm, &std);
}

/// The best of many short turns that the two take one after the other: what is
/// left of the difference when other users of the machine get in the way.
fn compare(shm: &heirlock::Mutex<u64>, std: &std::sync::Mutex<u64>) {
    const TURNS: usize = 2000;
    const LOCKS: u32 = 2000;
    let time = |turn: &dyn Fn()| {
        let start = Instant::now();
        turn();
        start.elapsed().as_secs_f64() * 1e9 / f64::from(LOCKS)
    };
    let [mut ours, mut theirs] = [f64::MAX; 2];
    for _ in 0..TURNS {
        ours = ours.min(time(&|| (0..LOCKS).for_each(|_| *black_box(shm).lock() += 1)));
        theirs = theirs.min(time(&|| {
            (0..LOCKS).for_each(|_| *black_box(std).lock().expect("not poisoned") += 1);
        }));
    }
    let ratio = ours / theirs;
    println!("best of {TURNS} turns: heirlock_shm {ours:.2} ns, std {theirs:.2} ns: {ratio:.3}");
}

fn main() {
    pin::to_cpu(pin::cpus()[0]);
    let mut criterion = Criterion::default().configure_from_args();
    uncontended(&mut criterion);
    criterion.final_summary();
}
