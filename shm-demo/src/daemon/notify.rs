//! What the service manager is told, if there is one.

use sd_notify::{NotifyState, notify};
use std::io;
use std::time::Duration;

/// How often the watchdog wants to hear of the daemon: twice in the time that it waits.
pub(crate) fn watchdog_interval() -> Option<Duration> {
    let limit = sd_notify::watchdog_enabled()?;
    Some((limit / 2).max(Duration::from_millis(1)))
}

pub(crate) fn ready(status: &str) -> io::Result<()> {
    notify(&[NotifyState::Ready, NotifyState::Status(status)])
}

/// To be followed by `ready`.
pub(crate) fn reloading() -> io::Result<()> {
    notify(&[NotifyState::Reloading, NotifyState::monotonic_usec_now()?])
}

pub(crate) fn stopping(status: &str) -> io::Result<()> {
    notify(&[NotifyState::Stopping, NotifyState::Status(status)])
}

pub(crate) fn alive() -> io::Result<()> {
    notify(&[NotifyState::Watchdog])
}
