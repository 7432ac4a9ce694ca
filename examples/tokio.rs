//! A lock that processes share, between the tasks of a tokio server:
//! `cargo run -p heirlock-runtimes --example tokio`.
//!
//! Each connection of the server adds to a total that another process could have locked, and
//! holds the lock while it answers.

use heirlock::tokio::Driver;
use heirlock::{Mutex, Segment};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let segment: &Segment<Mutex<u64>> = Box::leak(Box::new(Segment::anonymous()?));
    // Without a ring the process's helper waits, and nothing else is different.
    let driver = Driver::new().ok();
    let reactor = driver.as_ref().map(|driver| driver.reactor().clone());

    let mut clients = Vec::new();
    for n in 1..=20u8 {
        let (mut client, mut server) = UnixStream::pair()?;
        let reactor = reactor.clone();
        tokio::spawn(async move {
            let n = server.read_u8().await?;
            let lock = segment.lock_async();
            let mut total = match &reactor {
                Some(reactor) => lock.on(reactor).await,
                None => lock.await,
            };
            *total += u64::from(n);
            // The guard is held across this, and may come back on another thread.
            server.write_u64(*total).await
        });
        clients.push(tokio::spawn(async move {
            client.write_u8(n).await?;
            client.read_u64().await
        }));
    }
    let mut last = 0;
    for client in clients {
        last = last.max(client.await??);
    }
    println!("20 connections have added up {last}, of 210");
    assert_eq!(last, 210);
    Ok(())
}
