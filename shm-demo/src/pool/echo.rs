//! The server: it answers each request with the same bytes.
#![allow(clippy::disallowed_types, reason = "the demo's own words, not the lock's")]

use crate::Result;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{Relaxed, SeqCst},
};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// How long a request is, and its answer, in bytes.
pub(crate) const REQUEST: usize = 64;

/// How often a thread that waits for a request looks whether the server is to end.
const LOOK: Duration = Duration::from_millis(100);

/// What a thread of the server needs.
const STACK: usize = 128 << 10;

#[derive(Default)]
struct Common {
    over: AtomicBool,
    served: AtomicU64,
    connections: AtomicU64,
}

/// Ends when it is dropped.
pub(crate) struct Echo {
    address: SocketAddr,
    common: Arc<Common>,
    listener: Option<JoinHandle<()>>,
}

impl Echo {
    pub(crate) fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let common = Arc::new(Common::default());
        let of_thread = Arc::clone(&common);
        let thread = thread::Builder::new().name("echo".into());
        let listener = thread.spawn(move || listen(&listener, &of_thread))?;
        Ok(Self { address, common, listener: Some(listener) })
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// Ends the server; says how many requests it has answered, and how many
    /// connections it has had.
    pub(crate) fn end(mut self) -> (u64, u64) {
        self.stop();
        (self.common.served.load(SeqCst), self.common.connections.load(SeqCst))
    }

    fn stop(&mut self) {
        let Some(listener) = self.listener.take() else { return };
        self.common.over.store(true, SeqCst);
        // So that it looks.
        let _ = TcpStream::connect(self.address);
        let _ = listener.join();
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop();
    }
}

fn listen(listener: &TcpListener, common: &Common) {
    thread::scope(|scope| {
        for stream in listener.incoming() {
            if common.over.load(SeqCst) {
                return;
            }
            match stream {
                Ok(stream) => {
                    common.connections.fetch_add(1, Relaxed);
                    let thread = thread::Builder::new().stack_size(STACK);
                    // What goes wrong here is the client's to notice.
                    let answer = move || drop(answer(stream, common));
                    let _ = thread.spawn_scoped(scope, answer);
                }
                // Too many of something, for now.
                Err(_) => thread::sleep(LOOK),
            }
        }
    });
}

fn answer(mut stream: TcpStream, common: &Common) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LOOK))?;
    let mut request = [0; REQUEST];
    let mut filled = 0;
    while !common.over.load(Relaxed) {
        match stream.read(&mut request[filled..]) {
            Ok(0) => break,
            Ok(more) => filled += more,
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => {}
                _ => return Err(error),
            },
        }
        if filled == REQUEST {
            // Counted first: what a client has got is counted in any case.
            common.served.fetch_add(1, SeqCst);
            stream.write_all(&request)?;
            filled = 0;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Echo, REQUEST};
    use std::io::{Read, Write};
    use std::net::TcpStream;

    #[test]
    fn answers_in_whatever_pieces_it_is_asked() {
        let echo = Echo::start().expect("a server");
        let mut stream = TcpStream::connect(("127.0.0.1", echo.port())).expect("connect");
        // One that says nothing does not keep it from ending.
        let _silent = TcpStream::connect(("127.0.0.1", echo.port())).expect("connect");
        let request: [u8; REQUEST] = std::array::from_fn(|at| at as u8);
        for pieces in [1, 2, REQUEST] {
            for piece in request.chunks(REQUEST / pieces) {
                stream.write_all(piece).expect("write");
            }
            let mut answer = [0; REQUEST];
            stream.read_exact(&mut answer).expect("read");
            assert_eq!(answer, request);
        }
        assert_eq!(echo.end(), (3, 2));
    }
}
