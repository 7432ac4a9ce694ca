//! What each client process of `pool` does: take a slot, ask over its connection, give
//! it back, until all is done or it is killed.
#![allow(clippy::disallowed_types, reason = "the demo's own words, not the lock's")]

use super::echo::REQUEST;
use super::open;
use super::slots::{Access, MAX_CLIENTS, MAX_SIZE};
use crate::Result;
use crate::cli::WorkerArgs;
use crate::crew::{enlist, set_name};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::atomic::Ordering::{Relaxed, Release};
use std::time::Duration;

/// The server is on this machine, and answers at once.
const NO_ANSWER: Duration = Duration::from_secs(30);

pub(crate) fn run(args: &WorkerArgs) -> Result<()> {
    let _signals = enlist(args.parent, "pool")?;
    set_name(format!("client-{}", args.slot))?;
    let segment = open(&args.path)?;
    let me = segment.attach()?;
    segment.course.take_place(args.slot, me, MAX_CLIENTS)?;
    let access = Access { pool: &segment };
    // Sockets are this process's own: what the segment has is only whose turn it is.
    let mut connections: [Option<TcpStream>; MAX_SIZE] = std::array::from_fn(|_| None);
    let client = &segment.clients[args.slot];
    while !segment.course.is_complete() {
        let slot = access.acquire(me, args.slot);
        let connection = match &mut connections[slot] {
            Some(connection) => connection,
            none => none.insert(connect(segment.port)?),
        };
        let number = client.sent.load(Relaxed) + 1;
        client.sent.store(number, Release);
        let asked = request(args.slot as u64, number, slot as u64);
        connection.write_all(&asked)?;
        let mut answer = [0; REQUEST];
        connection.read_exact(&mut answer)?;
        if answer == asked {
            client.answered.fetch_add(1, Release);
            segment.course.advance();
        } else {
            segment.wrong.fetch_add(1, Relaxed);
        }
        access.release(me, slot);
    }
    Ok(())
}

fn connect(port: u64) -> Result<TcpStream> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, u16::try_from(port)?))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(NO_ANSWER))?;
    Ok(stream)
}

/// Bytes that no other request has.
fn request(client: u64, number: u64, slot: u64) -> [u8; REQUEST] {
    let mut bytes = [0; REQUEST];
    let words = [client, number, slot].into_iter().chain((1..).map(|n: u64| {
        (client << 40 ^ number ^ slot << 56)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(n as u32)
    }));
    for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}
