//! parking_lot's tests for mutexes, under its names: of this crate's mutex, and with the
//! feature `lock_api` of `lock_api`'s around this crate's lock.
#![allow(clippy::disallowed_types, reason = "the tests' own counts")]

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

#[derive(Eq, PartialEq, Debug)]
struct NonCopy(i32);

/// The tests that are the same for both.
macro_rules! both {
    () => {
        #[test]
        fn smoke() {
            let m = Mutex::new(());
            drop(m.lock());
            drop(m.lock());
        }

        #[test]
        fn lots_and_lots() {
            const J: u32 = 1000;
            const K: u32 = 3;
            let m = Arc::new(Mutex::new(0));
            fn inc(m: &Mutex<u32>) {
                for _ in 0..J {
                    *m.lock() += 1;
                }
            }
            let (tx, rx) = channel();
            for _ in 0..2 * K {
                let (tx, m) = (tx.clone(), m.clone());
                thread::spawn(move || {
                    inc(&m);
                    tx.send(()).unwrap();
                });
            }
            drop(tx);
            for _ in 0..2 * K {
                rx.recv().unwrap();
            }
            assert_eq!(*m.lock(), J * K * 2);
        }

        #[test]
        fn try_lock() {
            let m = Mutex::new(());
            let guard = m.try_lock().unwrap();
            assert!(m.is_locked());
            assert!(m.try_lock().is_none());
            drop(guard);
            assert!(!m.is_locked());
            assert!(m.try_lock().is_some());
        }

        #[test]
        fn try_lock_for_and_until() {
            const SHORT: Duration = Duration::from_millis(2);
            let m = Mutex::new(());
            let guard = m.try_lock_for(SHORT).expect("it is free");
            thread::scope(|scope| {
                scope.spawn(|| {
                    let start = Instant::now();
                    assert!(m.try_lock_for(SHORT).is_none());
                    assert!(start.elapsed() >= SHORT);
                    let deadline = Instant::now() + SHORT;
                    assert!(m.try_lock_until(deadline).is_none());
                    assert!(Instant::now() >= deadline);
                });
            });
            drop(guard);
            assert!(m.try_lock_until(Instant::now() + SHORT).is_some());
        }

        #[test]
        fn test_into_inner() {
            let m = Mutex::new(NonCopy(10));
            assert_eq!(m.into_inner(), NonCopy(10));
        }

        #[test]
        fn test_into_inner_drop() {
            struct Foo(Arc<AtomicUsize>);
            impl Drop for Foo {
                fn drop(&mut self) {
                    self.0.fetch_add(1, Ordering::SeqCst);
                }
            }
            let num_drops = Arc::new(AtomicUsize::new(0));
            let m = Mutex::new(Foo(num_drops.clone()));
            assert_eq!(num_drops.load(Ordering::SeqCst), 0);
            {
                let _inner = m.into_inner();
                assert_eq!(num_drops.load(Ordering::SeqCst), 0);
            }
            assert_eq!(num_drops.load(Ordering::SeqCst), 1);
        }

        #[test]
        fn test_get_mut() {
            let mut m = Mutex::new(NonCopy(10));
            *m.get_mut() = NonCopy(20);
            assert_eq!(m.into_inner(), NonCopy(20));
        }

        #[test]
        fn test_mutex_arc_nested() {
            let arc = Arc::new(Mutex::new(1));
            let arc2 = Arc::new(Mutex::new(arc));
            let (tx, rx) = channel();
            let _t = thread::spawn(move || {
                let lock = arc2.lock();
                let lock2 = lock.lock();
                assert_eq!(*lock2, 1);
                tx.send(()).unwrap();
            });
            rx.recv().unwrap();
        }

        #[test]
        fn test_mutex_arc_access_in_unwind() {
            let arc = Arc::new(Mutex::new(1));
            let arc2 = arc.clone();
            let ended = thread::spawn(move || {
                struct Unwinder {
                    i: Arc<Mutex<i32>>,
                }
                impl Drop for Unwinder {
                    fn drop(&mut self) {
                        *self.i.lock() += 1;
                    }
                }
                let _u = Unwinder { i: arc2 };
                std::panic::resume_unwind(Box::new("on purpose"));
            })
            .join();
            assert!(ended.is_err());
            assert_eq!(*arc.lock(), 2);
        }

        /// There is no poisoning: a guard that a panic drops unlocks.
        #[test]
        fn unwinding_unlocks() {
            let m = Arc::new(Mutex::new(1));
            let m2 = m.clone();
            let ended = thread::spawn(move || {
                let _guard = m2.lock();
                std::panic::resume_unwind(Box::new("on purpose"));
            })
            .join();
            assert!(ended.is_err());
            assert_eq!(*m.try_lock().expect("it is free"), 1);
        }

        #[test]
        fn test_mutex_unsized() {
            let mutex: &Mutex<[i32]> = &Mutex::new([1, 2, 3]);
            {
                let b = &mut *mutex.lock();
                b[0] = 4;
                b[2] = 5;
            }
            let comp: &[i32] = &[4, 2, 5];
            assert_eq!(&*mutex.lock(), comp);
        }

        #[test]
        fn test_mutexguard_sync() {
            fn sync<T: Sync>(_: T) {}
            let mutex = Mutex::new(());
            sync(mutex.lock());
        }

        /// What may be sent can be shared behind the lock, and need not be `Sync`.
        #[test]
        fn a_mutex_of_what_may_be_sent_is_sync() {
            fn sync<T: Sync>(_: &T) {}
            sync(&Mutex::new(Cell::new(1)));
        }

        #[test]
        fn test_mutex_debug() {
            let mutex = Mutex::new(vec![0u8, 10]);
            assert_eq!(format!("{mutex:?}"), format!("Mutex {{ {FIELD}: [0, 10] }}"));
            let lock = mutex.lock();
            assert_eq!(format!("{mutex:?}"), format!("Mutex {{ {FIELD}: <locked> }}"));
            assert_eq!(format!("{lock:?}"), "[0, 10]");
        }

        #[test]
        fn default_and_from() {
            assert_eq!(*Mutex::<u32>::default().lock(), 0);
            assert_eq!(*Mutex::from(7).lock(), 7);
        }

        #[test]
        fn const_new() {
            static LOCK: Mutex<u32> = Mutex::new(7);
            *LOCK.lock() += 1;
            assert_eq!(*LOCK.lock(), 8);
        }

        #[test]
        fn map_narrows() {
            let mutex = Mutex::new([(1, 2), (3, 4)]);
            let pair = MutexGuard::map(mutex.lock(), |pairs| &mut pairs[1]);
            let mut first = MappedMutexGuard::map(pair, |pair| &mut pair.0);
            *first += 10;
            assert!(mutex.try_lock().is_none());
            drop(first);
            assert_eq!(*mutex.lock(), [(1, 2), (13, 4)]);
        }

        #[test]
        fn unlocked_and_bump() {
            let mutex = Mutex::new(1);
            let mut guard = mutex.lock();
            MutexGuard::unlocked(&mut guard, || *mutex.lock() += 1);
            assert_eq!(*guard, 2);
            MutexGuard::bump(&mut guard);
            assert_eq!(*guard, 2);
            assert!(mutex.is_locked());
        }

        /// With `bump` those who wait go first.
        #[test]
        fn bump_lets_those_who_wait_go_first() {
            let mutex = Mutex::new(0);
            let mut guard = mutex.lock();
            thread::scope(|scope| {
                scope.spawn(|| *mutex.lock() += 1);
                // It is queued some time: then the first bump serves it.
                while *guard == 0 {
                    MutexGuard::bump(&mut guard);
                    thread::yield_now();
                }
            });
            assert_eq!(*guard, 1);
        }
    };
}

mod heirlock_mutex {
    use super::*;
    use heirlock::{MappedMutexGuard, Mutex, MutexGuard};

    const FIELD: &str = "value";

    both!();
}

#[cfg(feature = "lock_api")]
mod lock_api_mutex {
    use super::*;
    use heirlock::RawMutex;
    use lock_api::{ArcMutexGuard, RawMutex as _};
    use std::collections::HashMap;

    type Mutex<T> = lock_api::Mutex<RawMutex, T>;
    type MutexGuard<'a, T> = lock_api::MutexGuard<'a, RawMutex, T>;
    type MappedMutexGuard<'a, T> = lock_api::MappedMutexGuard<'a, RawMutex, T>;

    const FIELD: &str = "data";

    both!();

    #[test]
    fn test_serde() {
        let contents: Vec<u8> = vec![0, 1, 2];
        let mutex = Mutex::new(contents.clone());
        let serialized = serde_json::to_string(&mutex).unwrap();
        let deserialized: Mutex<Vec<u8>> = serde_json::from_str(&serialized).unwrap();
        assert_eq!(*mutex.lock(), *deserialized.lock());
        assert_eq!(contents, *deserialized.lock());
    }

    #[test]
    fn test_map_or_err_not_mapped() {
        let mut map = HashMap::new();
        map.insert("hello".to_string(), "world".to_string());
        let mutex = Mutex::new(map);
        let guard = mutex.lock();
        let missing =
            MutexGuard::try_map_or_err(guard, |the_map| the_map.get_mut("hello2").ok_or(12345i32));
        let Err((guard, data)) = missing else { panic!("it is not there") };
        assert_eq!(data, 12345i32);
        assert_eq!(guard.get("hello"), Some(&"world".to_string()));
        let mapped = MutexGuard::try_map_or_err(guard, |the_map| {
            the_map.get_mut("hello").ok_or("unreachable")
        });
        let Ok(mapped) = mapped else { panic!("it is there") };
        assert_eq!(mapped.as_str(), "world");
        let narrowed = MappedMutexGuard::try_map_or_err(mapped, |the_string| {
            if the_string != "world" { Ok(the_string.as_mut_str()) } else { Err(45678i32) }
        });
        let Err((guard, err)) = narrowed else { panic!("it is the world") };
        assert_eq!(guard.as_str(), "world");
        assert_eq!(err, 45678i32);
    }

    #[test]
    fn test_map_or_err_mapped() {
        let mut map = HashMap::new();
        map.insert("hello".to_string(), "world".to_string());
        let mutex = Mutex::new(map);
        let mapped = MutexGuard::try_map_or_err(mutex.lock(), |the_map| {
            the_map.get_mut("hello").ok_or("unreachable")
        });
        let Ok(mapped) = mapped else { panic!("it is there") };
        let narrowed = MappedMutexGuard::try_map_or_err(mapped, |the_string| {
            if the_string == "world" { Ok(the_string.as_mut_str()) } else { Err("unreachable") }
        });
        let Ok(narrowed) = narrowed else { panic!("it is the world") };
        assert_eq!(&*narrowed, "world");
    }

    #[test]
    fn arc_guards() {
        let mutex = Arc::new(Mutex::new(1));
        let mut guard: ArcMutexGuard<RawMutex, i32> = mutex.lock_arc();
        *guard += 1;
        assert!(mutex.try_lock_arc().is_none());
        ArcMutexGuard::unlocked(&mut guard, || *mutex.lock() += 1);
        assert_eq!(*guard, 3);
        let again = ArcMutexGuard::into_arc(guard);
        assert!(Arc::ptr_eq(&again, &mutex));
        assert!(mutex.try_lock_arc_for(Duration::from_secs(1)).is_some());
        assert_eq!(*mutex.lock(), 3);
    }

    #[test]
    fn fair_ways_to_unlock() {
        let mutex = Mutex::new([1, 2]);
        MutexGuard::unlock_fair(mutex.lock());
        let first = MutexGuard::map(mutex.lock(), |both| &mut both[0]);
        MappedMutexGuard::unlock_fair(first);
        let mut guard = mutex.lock();
        MutexGuard::unlocked_fair(&mut guard, || mutex.lock()[0] += 1);
        assert_eq!(*guard, [2, 2]);
    }

    /// A guard that safe code has forgotten must not be inherited from when its thread
    /// ends, for it may have kept the reference.
    #[test]
    fn a_leaked_lock_stays_taken() {
        let mutex: &'static Mutex<u32> = Box::leak(Box::new(Mutex::new(0)));
        let value = thread::spawn(|| MutexGuard::leak(mutex.lock())).join().unwrap();
        assert!(mutex.is_locked());
        assert!(mutex.try_lock_for(Duration::from_millis(20)).is_none());
        *value += 1;
        // As well as one of which nothing is kept.
        let other: &'static Mutex<u32> = Box::leak(Box::new(Mutex::new(0)));
        thread::spawn(|| std::mem::forget(other.lock())).join().unwrap();
        assert!(other.try_lock().is_none());
        // It can be moved away, or dropped, by who has it for himself.
        let own = Mutex::new(7);
        std::mem::forget(own.lock());
        let moved = Box::new(own);
        assert!(moved.try_lock().is_none());
        assert_eq!(moved.into_inner(), 7);
    }

    #[test]
    fn raw_guards() {
        static LOCK: RawMutex = RawMutex::INIT;
        let guard = LOCK.lock();
        assert!(LOCK.try_lock().is_none());
        assert!(LOCK.is_locked());
        {
            // Which does not unlock.
            let _guard = guard;
        }
        assert!(LOCK.is_locked());
        assert!(LOCK.inherited().is_none());
        assert_eq!(size_of::<RawMutex>(), 16);
    }

    #[test]
    #[should_panic(expected = "holds the lock already")]
    fn locking_twice_panics() {
        let mutex = Mutex::new(());
        let _guard = mutex.lock();
        let _again = mutex.lock();
    }
}

/// parking_lot's tests for condition variables, of `lock_api`'s around this crate's. (This
/// crate's own go through them in `tests/threads`.)
#[cfg(feature = "lock_api")]
mod lock_api_condvar {
    use heirlock::{RawCondvar, RawMutex};
    use std::sync::Arc;
    use std::sync::mpsc::channel;
    use std::thread;
    use std::time::{Duration, Instant};

    type Mutex<T> = lock_api::Mutex<RawMutex, T>;
    type Condvar = lock_api::Condvar<RawCondvar>;

    #[test]
    fn smoke() {
        let condvar = Condvar::new();
        assert!(!condvar.notify_one());
        assert_eq!(condvar.notify_all(), 0);
        assert_eq!(size_of::<RawCondvar>(), 16);
    }

    #[test]
    fn test_mutex_arc_condvar() {
        let pair = Arc::new((Mutex::new(false), Condvar::new()));
        let other = Arc::clone(&pair);
        let (tell, told) = channel();
        let thread = thread::spawn(move || {
            told.recv().unwrap();
            *other.0.lock() = true;
            other.1.notify_one();
        });
        let mut ready = pair.0.lock();
        tell.send(()).unwrap();
        assert!(!*ready);
        while !*ready {
            pair.1.wait(&mut ready);
        }
        thread.join().unwrap();
    }

    #[test]
    fn notify_all() {
        const COUNT: usize = 10;
        let (mutex, condvar) = (Mutex::new(0), Condvar::new());
        thread::scope(|scope| {
            for _ in 0..COUNT {
                scope.spawn(|| {
                    let mut arrived = mutex.lock();
                    *arrived += 1;
                    condvar.wait(&mut arrived);
                    *arrived -= 1;
                });
            }
            while *mutex.lock() != COUNT {
                thread::yield_now();
            }
            assert_eq!(condvar.notify_all(), COUNT);
        });
        assert_eq!(*mutex.lock(), 0);
    }

    #[test]
    fn notify_one_return_true() {
        let (mutex, condvar) = (Mutex::new(false), Condvar::new());
        thread::scope(|scope| {
            let mut waits = mutex.lock();
            scope.spawn(|| {
                *mutex.lock() = true;
                assert!(condvar.notify_one());
            });
            condvar.wait(&mut waits);
            assert!(*waits);
        });
    }

    #[test]
    fn wait_for() {
        let (mutex, condvar) = (Mutex::new(()), Condvar::new());
        let mut guard = mutex.lock();
        assert!(condvar.wait_for(&mut guard, Duration::from_millis(1)).timed_out());
        assert!(mutex.is_locked());
        thread::scope(|scope| {
            scope.spawn(|| {
                let _guard = mutex.lock();
                assert!(condvar.notify_one());
            });
            // For ever: no instant is so far.
            assert!(!condvar.wait_for(&mut guard, Duration::MAX).timed_out());
        });
    }

    #[test]
    fn wait_until() {
        let (mutex, condvar) = (Mutex::new(()), Condvar::new());
        let mut guard = mutex.lock();
        assert!(condvar.wait_until(&mut guard, Instant::now()).timed_out());
        drop(guard);
        assert!(mutex.try_lock().is_some());
    }

    #[test]
    fn two_mutexes() {
        let (first, second, condvar) = (Mutex::new(false), Mutex::new(()), Condvar::new());
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut waits = first.lock();
                *waits = true;
                condvar.wait(&mut waits);
            });
            while !*first.lock() {
                thread::yield_now();
            }
            let refused = scope.spawn(|| {
                let mut guard = second.lock();
                condvar.wait(&mut guard);
            });
            let panic = refused.join().unwrap_err();
            let text = panic.downcast_ref::<String>().unwrap();
            assert!(text.contains("one mutex for each"), "{text}");
            assert!(!second.is_locked(), "the guard was whole, and dropped");
            assert!(condvar.notify_one());
        });
    }
}
