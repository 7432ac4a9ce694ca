//! Which mapping holds an address, and what `fork` does to mappings.

use super::map::Mapping;
use crate::sys::atomic::{AtomicU32, Ordering};
use crate::sys::process;
use std::cell::RefCell;
use std::mem::ManuallyDrop;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Changes whenever what an address belongs to may have changed: when a mapping
/// came or went. Caches of look-ups carry it.
static EPOCH: AtomicU32 = AtomicU32::new(1);

/// The present epoch.
// Relaxed suffices: a thread can only hold a reference into a new mapping after
// something that happens-after its registration, and by coherence then sees the
// new epoch.
#[inline(always)]
pub(crate) fn epoch() -> u32 {
    EPOCH.load(Ordering::Relaxed)
}

/// The mappings of this process. Whoever joins or leaves a segment holds the
/// lock too, so that `fork` never copies a half-done attach.
#[derive(Default)]
pub(crate) struct Registry {
    shared: Vec<(Range<usize>, Weak<Mapping>)>,
    private: Option<Arc<Mapping>>,
}

static REGISTRY: Mutex<Registry> = Mutex::new(Registry { shared: Vec::new(), private: None });

/// Locks the registry. Drop no `Arc<Mapping>` while you hold it: the last one
/// wants the lock itself.
pub(crate) fn lock() -> MutexGuard<'static, Registry> {
    static FORK_HANDLERS: AtomicU32 = AtomicU32::new(0);
    process::at_fork(&FORK_HANDLERS, before_fork, after_fork, in_child);
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What an address belongs to.
pub(crate) enum Found {
    /// A mapped segment.
    Shared(Arc<Mapping>),
    /// No segment: memory of this process alone. With the widest range around
    /// the address in which that is so.
    Private(Arc<Mapping>, Range<usize>),
}

impl Registry {
    /// What `address` belongs to; `private` makes the process-private segment
    /// at the first need.
    pub(crate) fn find(
        &mut self,
        address: usize,
        private: impl FnOnce() -> std::io::Result<Mapping>,
    ) -> std::io::Result<Found> {
        let mut gap = 0..usize::MAX;
        for (range, mapping) in &self.shared {
            if range.contains(&address) {
                if let Some(mapping) = mapping.upgrade() {
                    return Ok(Found::Shared(mapping));
                }
            } else if range.end <= address {
                gap.start = gap.start.max(range.end);
            } else {
                gap.end = gap.end.min(range.start);
            }
        }
        let mapping = match &self.private {
            Some(mapping) => mapping,
            None => self.private.insert(Arc::new(private()?)),
        };
        Ok(Found::Private(Arc::clone(mapping), gap))
    }
}

/// The segments that this process has mapped.
pub(crate) fn shared() -> Vec<Arc<Mapping>> {
    lock().shared.iter().filter_map(|(_, mapping)| mapping.upgrade()).collect()
}

/// Makes a shared mapping findable.
pub(crate) fn register(mapping: &Arc<Mapping>) {
    let mut registry = lock();
    registry.shared.push((mapping.range(), Arc::downgrade(mapping)));
    EPOCH.fetch_add(1, Ordering::Relaxed);
}

/// Forgets a shared mapping that is about to be unmapped.
pub(super) fn unregister(mapping: &Mapping) {
    let mut registry = lock();
    let range = mapping.range();
    registry.shared.retain(|(other, _)| *other != range);
    EPOCH.fetch_add(1, Ordering::Relaxed);
}

/// What the thread that forks holds on to: the registry, and the mappings.
type Forking = (MutexGuard<'static, Registry>, Vec<Arc<Mapping>>);

thread_local! {
    /// Without a destructor, so that it works in those of other thread-locals: a child
    /// that is forked there has to forget its parent, too.
    static FORKING: ManuallyDrop<RefCell<Option<Forking>>> =
        const { ManuallyDrop::new(RefCell::new(None)) };
}

extern "C" fn before_fork() {
    if FORKING.with(|slot| slot.borrow().is_some()) {
        return;
    }
    let registry = REGISTRY.lock().unwrap_or_else(PoisonError::into_inner);
    let shared = registry.shared.iter().filter_map(|(_, mapping)| mapping.upgrade()).collect();
    FORKING.with(|slot| slot.replace(Some((registry, shared))));
}

extern "C" fn after_fork() {
    release(|_, _| {});
}

/// The child is one thread and a new participant everywhere. It keeps the
/// mappings, but neither the parent's rows nor its hold on them.
extern "C" fn in_child() {
    release(|registry, shared| {
        for mapping in shared {
            mapping.forget_parent();
        }
        if let Some(mapping) = &registry.private {
            // Of the threads that the process's own locks and rows speak of,
            // none exists in the child.
            mapping.bury_everybody();
        }
    });
}

fn release(first: impl FnOnce(&Registry, &[Arc<Mapping>])) {
    if let Some((registry, shared)) = FORKING.with(|slot| slot.take()) {
        first(&registry, &shared);
        drop(registry);
        // Only now: dropping the last `Arc` locks the registry.
        drop(shared);
    }
}
