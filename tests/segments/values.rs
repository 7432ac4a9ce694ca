//! What can be in a segment.

use crate::kit::{TempPath, Test};
use crate::support::{Counter, error_of, works};
use heirlock::{Mutex, MutexGuard, Segment, SegmentError};
use std::thread;
use zerocopy::FromBytes;

pub(crate) const TESTS: &[Test] = &[
    ("values_are_aligned_up_to_4096_bytes", alignments),
    ("a_value_of_64_mib_works", large),
    ("a_value_of_no_size_works", no_size),
    ("user_structs_nest_with_several_locks", nested),
];

macro_rules! aligned {
    ($name:ident, $align:literal) => {
        #[derive(FromBytes)]
        #[repr(C, align($align))]
        struct $name {
            first: Counter,
            last: Counter,
        }
    };
}

aligned!(By64, 64);
aligned!(By128, 128);
aligned!(By4096, 4096);
aligned!(By8192, 8192);

fn alignments() {
    fn check<T: FromBytes + Sync + 'static>(locks: impl Fn(&T) -> [&Counter; 2]) {
        for capacity in [2, 63, 1024] {
            let path = TempPath::new();
            let segment: Segment<T> =
                Segment::options().capacity(capacity).create(&path).expect("create");
            let opened: Segment<T> = Segment::open(&path).expect("open");
            for segment in [&segment, &opened] {
                let value: &T = segment;
                assert!((&raw const *value).addr().is_multiple_of(align_of::<T>()));
                let offset = segment.offset_of(value).expect("it is inside");
                assert!(offset.is_multiple_of(align_of::<T>() as u64));
                for lock in locks(value) {
                    works(lock);
                }
            }
            assert_eq!(locks(&segment).map(|lock| *lock.lock()), [2, 2]);
        }
    }
    check::<Counter2>(|value| [&value.0, &value.1]);
    check::<By64>(|value| [&value.first, &value.last]);
    check::<By128>(|value| [&value.first, &value.last]);
    check::<By4096>(|value| [&value.first, &value.last]);

    let path = TempPath::new();
    for result in [
        Segment::<By8192>::create(&path),
        Segment::open_or_create(&path),
        Segment::open(&path),
        Segment::anonymous(),
    ] {
        let error = error_of(result);
        match &error {
            SegmentError::InvalidOption { option, found: 8192, max: 4096 } => {
                assert!(option.contains("alignment"), "{option}");
            }
            other => panic!("{other:?}"),
        }
        let message = error.to_string();
        assert!(message.contains("8192") && message.contains("4096"), "{message}");
    }
    assert!(!path.exists());
}

#[derive(FromBytes)]
#[repr(C)]
struct Counter2(Counter, Counter);

fn large() {
    #[derive(FromBytes)]
    #[repr(C)]
    struct Large {
        first: Counter,
        middle: Mutex<[u8; 64 << 20]>,
        last: Counter,
    }
    let path = TempPath::new();
    let segment: Segment<Large> = match Segment::create(&path) {
        Err(SegmentError::Io { source, .. })
            if source.raw_os_error() == Some(nix::libc::ENOSPC) =>
        {
            crate::kit::skip("no room for 64 MiB in /dev/shm")
        }
        created => created.expect("create"),
    };
    let opened: Segment<Large> = Segment::open(&path).expect("open");
    *segment.first.lock() = 1;
    *segment.last.lock() = 2;
    let last = MutexGuard::map(segment.middle.lock(), |bytes| &mut bytes[(64 << 20) - 1]);
    let mut last = last;
    *last = 3;
    assert!(opened.middle.try_lock().is_none());
    drop(last);
    assert_eq!((*opened.first.lock(), *opened.last.lock()), (1, 2));
    assert_eq!(opened.middle.lock()[(64 << 20) - 1], 3);
    let end = opened.offset_of(&opened.last).expect("it is inside");
    assert!(end > 64 << 20);
}

fn no_size() {
    let path = TempPath::new();
    let segment: Segment<()> = Segment::create(&path).expect("create");
    let opened: Segment<()> = Segment::open(&path).expect("open");
    let me = segment.attach().expect("attach");
    assert!(heirlock::is_alive(&opened, me));
    assert_eq!(heirlock::Snapshot::read(&path, &[]).expect("read").value_size, 0);
    Segment::<[Counter; 0]>::anonymous().expect("anonymous").attach().expect("attach");
    // A lock of nothing has a size.
    let lock: Segment<Mutex<()>> = Segment::anonymous().expect("anonymous");
    let guard = lock.lock();
    assert!(thread::scope(|scope| scope.spawn(|| lock.try_lock().is_none()).join()).expect("join"));
    drop(guard);
}

fn nested() {
    #[derive(FromBytes)]
    #[repr(C)]
    struct Account {
        balance: Mutex<i64>,
        name: Mutex<[u8; 24]>,
    }
    #[derive(FromBytes)]
    #[repr(C)]
    struct Bank {
        version: u64,
        accounts: [Account; 50],
        journal: Mutex<Journal>,
    }
    #[derive(FromBytes)]
    #[repr(C)]
    struct Journal {
        entries: [(u32, u32, i64); 0],
        len: u64,
        rates: [f64; 4],
    }

    let path = TempPath::new();
    let bank: Segment<Bank> = Segment::options()
        .init(|bank: &mut Bank| {
            bank.version = 3;
            for account in &mut bank.accounts {
                *account.balance.get_mut() = 100;
            }
        })
        .create(&path)
        .expect("create");
    thread::scope(|scope| {
        for seed in 0..4 {
            let path = &path;
            scope.spawn(move || {
                let bank: Segment<Bank> = Segment::open(path).expect("open");
                let mut random = fastrand::Rng::with_seed(seed);
                for _ in 0..2000 {
                    let [from, to] = [(); 2].map(|()| random.usize(0..50));
                    if from == to {
                        continue;
                    }
                    // In one order, as with any locks.
                    let mut low = bank.accounts[from.min(to)].balance.lock();
                    let mut high = bank.accounts[from.max(to)].balance.lock();
                    *low -= 1;
                    *high += 1;
                    bank.journal.lock().len += 1;
                }
            });
        }
    });
    let total: i64 = bank.accounts.iter().map(|account| *account.balance.lock()).sum();
    assert_eq!((bank.version, total), (3, 5000));
    let journal = bank.journal.lock();
    assert!(journal.len > 0 && journal.entries.is_empty() && journal.rates == [0.0; 4]);
    assert_eq!(*bank.accounts[49].name.lock(), [0; 24]);
}
