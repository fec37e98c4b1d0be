//! Published ports of a guest without egress: connections to the host's ports, relayed into the
//! empty network namespace of passt.
//!
//! The guest sees the address of its gateway as the peer of each connection.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use a3s_box_core::config::PublishConfig;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::passt::inner_port;

/// Bound on the open connections of a box. With tokio's buffers (8 KiB in each direction), they
/// take at most 8 MiB. Further connections wait in the listen queue of the host kernel.
const MAX_CONNECTIONS: usize = 512;

/// Time between two tries to accept a connection while the host has no fds or memory left for it.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// A published port that this process listens on.
#[derive(Debug)]
pub(super) struct PublishedPort {
    listener: std::net::TcpListener,
    /// Address in the empty network namespace from which passt forwards into the guest.
    inner: SocketAddrV4,
}

/// Why a published port cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}")]
pub(super) struct ListenError {
    address: SocketAddrV4,
    source: io::Error,
}

/// Opens the published ports in the network namespace that this process is in.
pub(super) fn listen(ports: &[PublishConfig]) -> Result<Vec<PublishedPort>, ListenError> {
    let open = |(i, port): (usize, &PublishConfig)| {
        let address = SocketAddrV4::new(port.host_address, port.host_port);
        let listener = std::net::TcpListener::bind(address)
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
            .map_err(|source| ListenError { address, source })?;
        Ok(PublishedPort { listener, inner: SocketAddrV4::new(Ipv4Addr::LOCALHOST, inner_port(i)) })
    };
    ports.iter().enumerate().map(open).collect()
}

/// Relays connections from now on, in tasks on the current runtime.
pub(super) fn serve(published: Vec<PublishedPort>) -> io::Result<()> {
    let free = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    for PublishedPort { listener, inner } in published {
        tokio::spawn(accept(TcpListener::from_std(listener)?, inner, Arc::clone(&free)));
    }
    Ok(())
}

async fn accept(listener: TcpListener, inner: SocketAddrV4, free: Arc<Semaphore>) {
    // `acquire_owned` fails only if the semaphore is closed, which does not happen.
    while let Ok(permit) = Arc::clone(&free).acquire_owned().await {
        match listener.accept().await {
            Ok((outer, _)) => {
                tokio::spawn(async move {
                    // The error is not reported: each peer sees its own connection end.
                    let _ended = relay(outer, inner).await;
                    drop(permit);
                });
            }
            Err(_) => tokio::time::sleep(RETRY_INTERVAL).await,
        }
    }
}

async fn relay(mut outer: TcpStream, inner: SocketAddrV4) -> io::Result<()> {
    let mut inner = TcpStream::connect(inner).await?;
    // Nagle's algorithm would delay small writes a second time, after the sender's own kernel.
    outer.set_nodelay(true)?;
    inner.set_nodelay(true)?;
    copy_bidirectional(&mut outer, &mut inner).await.map(drop)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn connection_is_relayed_both_ways_until_each_side_has_closed() {
        let guest = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let outer = listener.local_addr().unwrap();
        let inner = SocketAddrV4::new(Ipv4Addr::LOCALHOST, guest.local_addr().unwrap().port());
        serve(vec![PublishedPort { listener, inner }]).unwrap();
        let mut client = TcpStream::connect(outer).await.unwrap();
        client.write_all(b"ping").await.unwrap();
        client.shutdown().await.unwrap();
        let (mut server, _) = guest.accept().await.unwrap();
        let mut request = String::new();
        server.read_to_string(&mut request).await.unwrap();
        // The client has closed its sending side only, so the other direction still works.
        server.write_all(b"pong").await.unwrap();
        drop(server);
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!((request.as_str(), answer.as_str()), ("ping", "pong"));
    }

    #[test]
    fn port_in_use_is_reported_with_its_address() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let published = PublishConfig {
            host_address: Ipv4Addr::LOCALHOST,
            host_port: port,
            guest_port: 80,
            protocol: a3s_box_core::config::Protocol::Tcp,
        };
        let error = listen(&[published]).unwrap_err();
        assert_eq!(error.to_string(), format!("cannot listen on 127.0.0.1:{port}"));
    }
}
