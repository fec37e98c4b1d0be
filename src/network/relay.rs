//! Published ports of a guest that reaches nothing: the host's sockets and those of the empty network, joined.
//!
//! The guest sees its gateway as the other end of each connection.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use a3s_box_core::config::PublishConfig;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::passt::inner_port;

/// Most connections of a box at a time: with tokio's buffers (8 KiB each way) 8 MiB. Further ones wait in
/// the kernel's queue.
const MAX_CONNECTIONS: usize = 512;

/// Time until the next try, when the system has no files or memory left for a connection.
const PAUSE: Duration = Duration::from_millis(100);

/// A published port, open.
#[derive(Debug)]
pub(super) struct Published {
    listener: std::net::TcpListener,
    inner: SocketAddrV4,
}

/// A published port cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}")]
pub(super) struct ListenError {
    address: SocketAddrV4,
    source: io::Error,
}

/// Opens the published ports, in the network that this process is in.
pub(super) fn listen(ports: &[PublishConfig]) -> Result<Vec<Published>, ListenError> {
    let open = |(i, port): (usize, &PublishConfig)| {
        let address = SocketAddrV4::new(port.host_address, port.host_port);
        let listener = std::net::TcpListener::bind(address)
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
            .map_err(|source| ListenError { address, source })?;
        Ok(Published { listener, inner: SocketAddrV4::new(Ipv4Addr::LOCALHOST, inner_port(i)) })
    };
    ports.iter().enumerate().map(open).collect()
}

/// Joins connections, in tasks of their own.
pub(super) fn serve(published: Vec<Published>) -> io::Result<()> {
    let free = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    for Published { listener, inner } in published {
        tokio::spawn(accept(TcpListener::from_std(listener)?, inner, Arc::clone(&free)));
    }
    Ok(())
}

async fn accept(listener: TcpListener, inner: SocketAddrV4, free: Arc<Semaphore>) {
    // Nobody closes the semaphore.
    while let Ok(permit) = Arc::clone(&free).acquire_owned().await {
        match listener.accept().await {
            Ok((outer, _)) => {
                tokio::spawn(async move {
                    // Each end is told by its own connection.
                    let _ended = join(outer, inner).await;
                    drop(permit);
                });
            }
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

async fn join(mut outer: TcpStream, inner: SocketAddrV4) -> io::Result<()> {
    let mut inner = TcpStream::connect(inner).await?;
    outer.set_nodelay(true)?;
    inner.set_nodelay(true)?;
    copy_bidirectional(&mut outer, &mut inner).await.map(drop)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_connection_is_carried_both_ways_to_its_end() {
        let guest = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let outer = listener.local_addr().unwrap();
        let inner = SocketAddrV4::new(Ipv4Addr::LOCALHOST, guest.local_addr().unwrap().port());
        serve(vec![Published { listener, inner }]).unwrap();
        let mut client = TcpStream::connect(outer).await.unwrap();
        client.write_all(b"ping").await.unwrap();
        client.shutdown().await.unwrap();
        let (mut server, _) = guest.accept().await.unwrap();
        let mut asked = String::new();
        server.read_to_string(&mut asked).await.unwrap();
        // The other way goes on.
        server.write_all(b"pong").await.unwrap();
        drop(server);
        let mut answered = String::new();
        client.read_to_string(&mut answered).await.unwrap();
        assert_eq!((asked.as_str(), answered.as_str()), ("ping", "pong"));
    }

    #[test]
    fn a_port_in_use_is_told_by_its_address() {
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
