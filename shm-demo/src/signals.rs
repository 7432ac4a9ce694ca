//! Being asked to end.
#![allow(clippy::disallowed_types, reason = "what signal-hook wants")]

use crate::Result;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// The signals that ask for an end. They are noticed rather than died of, so
/// that there is time to clean up.
pub(crate) struct Signals(Arc<AtomicUsize>);

const WATCHED: [(i32, &str); 3] = [(SIGINT, "SIGINT"), (SIGTERM, "SIGTERM"), (SIGHUP, "SIGHUP")];

impl Signals {
    pub(crate) fn watch() -> Result<Self> {
        let caught = Arc::new(AtomicUsize::new(0));
        for (signal, _) in WATCHED {
            flag::register_usize(signal, Arc::clone(&caught), signal as usize)?;
        }
        Ok(Self(caught))
    }

    /// The last signal that came: its number and name.
    pub(crate) fn caught(&self) -> Option<(u8, &'static str)> {
        let caught = self.0.load(Relaxed) as i32;
        let &(signal, name) = WATCHED.iter().find(|(signal, _)| *signal == caught)?;
        Some((signal as u8, name))
    }
}
