//! What the service manager is told, if there is one.

use sd_notify::NotifyState;
use std::env;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// How often the watchdog wants to hear of the daemon: twice in the time that it waits.
pub(crate) fn watchdog_interval() -> Option<Duration> {
    let limit = sd_notify::watchdog_enabled()?;
    Some((limit / 2).max(Duration::from_millis(1)))
}

/// The way to it: a socket from the beginning, as there may be none to be had later, when
/// clients have all descriptors.
pub(crate) struct Manager(Option<(UnixDatagram, SocketAddr)>);

impl Manager {
    pub(crate) fn find() -> io::Result<Self> {
        let Some(name) = env::var_os("NOTIFY_SOCKET") else { return Ok(Self(None)) };
        let address = match name.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(&name)?,
        };
        Ok(Self(Some((UnixDatagram::unbound()?, address))))
    }

    fn tell(&self, states: &[NotifyState<'_>]) -> io::Result<()> {
        let Some((socket, address)) = &self.0 else { return Ok(()) };
        let lines: Vec<String> = states.iter().map(|state| format!("{state}\n")).collect();
        socket.send_to_addr(lines.concat().as_bytes(), address).map(drop)
    }

    pub(crate) fn ready(&self, status: &str) -> io::Result<()> {
        self.tell(&[NotifyState::Ready, NotifyState::Status(status)])
    }

    /// To be followed by `ready`.
    pub(crate) fn reloading(&self) -> io::Result<()> {
        self.tell(&[NotifyState::Reloading, NotifyState::monotonic_usec_now()?])
    }

    pub(crate) fn stopping(&self, status: &str) -> io::Result<()> {
        self.tell(&[NotifyState::Stopping, NotifyState::Status(status)])
    }

    pub(crate) fn alive(&self) -> io::Result<()> {
        self.tell(&[NotifyState::Watchdog])
    }
}
