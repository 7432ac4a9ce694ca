//! The socket at which the daemon listens.

use crate::Result;
use nix::sys::signal::kill;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::Pid;
use rustix::fs::{Mode, chmod};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with,
};
use std::fs::{self, Metadata};
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How many connections may wait to be accepted.
const BACKLOG: i32 = 128;

/// How long a process may still seem to listen that was killed, before it is taken for one
/// that was not.
const GRACE: Duration = Duration::from_secs(1);

/// A socket in the file system, which goes when this does.
pub(crate) struct Listener {
    pub(crate) socket: Rc<OwnedFd>,
    path: PathBuf,
    /// Device and inode: somebody else's at the same path stays.
    file: (u64, u64),
}

impl Listener {
    /// Listens at `path`, also if a daemon that was killed has left its socket there.
    pub(crate) fn bind(path: &Path, mode: u32) -> Result<Self> {
        clear(path)?;
        let about = |what: &str, error: io::Error| format!("{}: {what}: {error}", path.display());
        let address = SocketAddrUnix::new(path).map_err(|_| {
            format!(
                "{}: the path is too long for a socket; choose one of at most 107 bytes with \
                 --socket",
                path.display()
            )
        })?;
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
            .map_err(|error| about("no socket is to be had", error.into()))?;
        bind(&socket, &address).map_err(|error| match error {
            Errno::NOENT => format!("{}: does the directory exist?", path.display()),
            error => about("cannot listen there", error.into()),
        })?;
        let found = path.symlink_metadata().map_err(|error| about("cannot look", error))?;
        let listener = Self { socket: Rc::new(socket), path: path.into(), file: identity(&found) };
        // Before `listen` nobody can connect, whatever the umask.
        chmod(path, Mode::from_bits_truncate(mode))
            .map_err(|error| about("cannot change the mode", error.into()))?;
        listen(&*listener.socket, BACKLOG)
            .map_err(|error| about("cannot listen there", error.into()))?;
        Ok(listener)
    }
}

fn identity(found: &Metadata) -> (u64, u64) {
    (found.dev(), found.ino())
}

/// Removes a socket at which nobody listens.
fn clear(path: &Path) -> Result<()> {
    let found = match path.symlink_metadata() {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        found => found.map_err(|error| format!("{}: {error}", path.display()))?,
    };
    if !found.file_type().is_socket() {
        return Err(format!(
            "{} is there already, and is no socket; choose another path with --socket",
            path.display()
        )
        .into());
    }
    let start = Instant::now();
    while let Some(pid) = listener_at(path)? {
        // The ring of a daemon that was killed may keep its socket a little longer than its
        // process is there.
        if pid.is_some_and(is_dead) {
            break;
        }
        if start.elapsed() > GRACE {
            let who = pid.map_or("somebody".into(), |pid| format!("process {pid}"));
            return Err(format!(
                "{}: {who} listens there; end that one first, or choose another path with \
                 --socket",
                path.display()
            )
            .into());
        }
        sleep(Duration::from_millis(20));
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(format!("cannot remove {}, where nobody listens: {error}", path.display()).into())
        }
        _ => Ok(()),
    }
}

/// Who listens at `path`, if somebody does: `Some(None)` is a process that is not to be
/// seen from here.
fn listener_at(path: &Path) -> Result<Option<Option<Pid>>> {
    match UnixStream::connect(path) {
        Ok(stream) => {
            let peer = getsockopt(&stream, PeerCredentials).map_or(0, |peer| peer.pid());
            Ok(Some((peer > 0).then(|| Pid::from_raw(peer))))
        }
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(None),
        Err(error) => Err(format!("{}: {error}", path.display()).into()),
    }
}

fn is_dead(pid: Pid) -> bool {
    kill(pid, None) == Err(nix::errno::Errno::ESRCH)
}

impl Drop for Listener {
    fn drop(&mut self) {
        if self.path.symlink_metadata().is_ok_and(|found| identity(&found) == self.file) {
            let _ = fs::remove_file(&self.path);
        }
    }
}
