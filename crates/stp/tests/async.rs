//! Streams and listeners on tokio's reactor.
#![cfg(feature = "tokio")]

mod support;

use std::io::ErrorKind;
use std::time::Duration;

use support::Stp;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

fn run(body: impl AsyncFn(&Stp)) {
    for net in [Stp::direct(), Stp::across()] {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        // A body that hangs fails.
        runtime
            .block_on(async { timeout(Duration::from_secs(60), body(&net)).await })
            .unwrap();
    }
}

async fn pair(net: &Stp) -> (stp::tokio::Stream, stp::tokio::Stream) {
    let listener = stp::tokio::Listener::bind(&net.to, 0).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let ours = stp::tokio::Stream::connect(&net.from, &addr).await.unwrap();
    let (theirs, peer) = listener.accept().await.unwrap();
    assert_eq!(ours.local_addr().unwrap(), peer);
    assert_eq!(ours.peer_addr().unwrap(), addr);
    (ours, theirs)
}

#[test]
fn bytes_go_both_ways_at_once_and_end_in_order() {
    run(async |net| {
        let (ours, theirs) = pair(net).await;
        let sides = [ours, theirs].map(|side| {
            tokio::spawn(async move {
                let (mut reader, mut writer) = tokio::io::split(side);
                let writing = tokio::spawn(async move {
                    writer.write_all(&vec![3; 3 << 20]).await.unwrap();
                    writer.shutdown().await.unwrap();
                    writer
                });
                let mut received = Vec::new();
                reader.read_to_end(&mut received).await.unwrap();
                writing.await.unwrap();
                received.len()
            })
        });
        for side in sides {
            assert_eq!(side.await.unwrap(), 3 << 20);
        }
    });
}

#[test]
fn a_read_that_is_cancelled_takes_nothing() {
    run(async |net| {
        let (mut ours, mut theirs) = pair(net).await;
        let mut bytes = [0; 8];
        let waited = timeout(Duration::from_millis(50), ours.read(&mut bytes)).await;
        assert!(waited.is_err());
        theirs.write_all(b"abc").await.unwrap();
        assert!(ours.peek(&mut bytes).await.unwrap() >= 1);
        ours.read_exact(&mut bytes[..3]).await.unwrap();
        assert_eq!(&bytes[..3], b"abc");
        drop(theirs);
        assert_eq!(ours.read(&mut bytes).await.unwrap(), 0);
    });
}

#[test]
fn accept_waits_without_blocking_the_runtime() {
    run(async |net| {
        let listener = stp::tokio::Listener::bind(&net.to, 0).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let waited = timeout(Duration::from_millis(50), listener.accept()).await;
        assert!(waited.is_err());
        let ours = stp::tokio::Stream::connect(&net.from, &addr).await.unwrap();
        listener.accept().await.unwrap();
        let back = ours.into_std().unwrap();
        let short = Some(Duration::from_millis(20));
        back.set_read_timeout(short).unwrap();
        let _ = std::io::Read::read(&mut &back, &mut [0]);
    });
}

#[test]
fn a_reset_is_an_error() {
    run(async |net| {
        let (ours, mut theirs) = pair(net).await;
        ours.get_ref().abort().unwrap();
        let error = theirs.read(&mut [0; 8]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        let listener = stp::tokio::Listener::bind(&net.to, 0).await.unwrap();
        let addr = listener.local_addr().unwrap();
        drop(listener);
        let error = stp::tokio::Stream::connect(&net.from, &addr)
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    });
}
