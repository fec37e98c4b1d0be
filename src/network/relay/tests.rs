//! Relayed connections: their bytes, their ends, and the limits on them.

use std::net::Ipv4Addr;
use std::os::fd::AsFd;

use a3s_box_core::config::Protocol;
use rustix::net::sockopt::{
    socket_keepalive, tcp_keepcnt, tcp_keepidle, tcp_keepintvl, tcp_nodelay,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::time::{Instant, sleep, timeout};

use super::*;

/// Time after which a test gives up. It only matters for a test that fails.
const PATIENCE: Duration = Duration::from_secs(20);

fn published(host_port: u16) -> PublishConfig {
    let host_address = Ipv4Addr::LOCALHOST.into();
    PublishConfig { host_address, host_port, guest_port: 80, protocol: Protocol::Tcp }
}

/// Serves a published port in front of `guest`, and returns its address.
fn publish(guest: &TcpListener) -> SocketAddr {
    let mut ports = listen(&[published(0)]).unwrap();
    ports[0].inner_port = guest.local_addr().unwrap().port();
    let address = ports[0].listener.local_addr().unwrap();
    tokio::spawn(serve(ports, Connector::in_thread()));
    address
}

/// Returns both ends of a connection.
async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (client, listener.accept().await.unwrap().0)
}

#[tokio::test]
async fn connection_is_relayed_both_ways_until_each_side_has_closed() {
    let guest = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = TcpStream::connect(publish(&guest)).await.unwrap();
    // The request is longer than the buffers of the relay.
    let long = vec![7; 1_000_000];
    client.write_all(&long).await.unwrap();
    client.shutdown().await.unwrap();
    let (mut server, _) = guest.accept().await.unwrap();
    let mut request = Vec::new();
    server.read_to_end(&mut request).await.unwrap();
    assert!(request == long);
    // The client has closed its sending side only, so the other direction still works.
    server.write_all(b"pong").await.unwrap();
    drop(server);
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "pong");
}

#[tokio::test]
async fn connection_without_a_server_is_closed() {
    let guest = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = publish(&guest);
    drop(guest);
    let mut client = TcpStream::connect(address).await.unwrap();
    let end = timeout(PATIENCE, client.read(&mut [0])).await.unwrap();
    assert!(!matches!(end, Ok(1..)), "{end:?}");
}

#[tokio::test]
async fn silent_connection_is_closed_and_an_active_one_is_not() {
    let limits =
        SilenceLimits { open: Duration::from_secs(1), half_closed: Duration::from_secs(1) };
    let ((mut client, outer), (inner, mut server)) = (pair().await, pair().await);
    let activity = Activity::start();
    let connection = tokio::spawn(async move { relay(outer, inner, &activity, limits).await });
    // Bytes of either side count.
    for _ in 0..4 {
        sleep(Duration::from_millis(300)).await;
        client.write_all(b"c").await.unwrap();
        sleep(Duration::from_millis(300)).await;
        server.write_all(b"s").await.unwrap();
    }
    assert!(!connection.is_finished());
    let silent_since = Instant::now();
    let mut received = Vec::new();
    timeout(PATIENCE, client.read_to_end(&mut received)).await.unwrap().unwrap();
    assert_eq!(received, b"ssss");
    received.clear();
    timeout(PATIENCE, server.read_to_end(&mut received)).await.unwrap().unwrap();
    assert_eq!(received, b"cccc");
    assert!(silent_since.elapsed() > Duration::from_millis(800));
    connection.await.unwrap().unwrap();
}

#[tokio::test]
async fn silent_connection_that_one_side_has_closed_ends_earlier() {
    let limits = SilenceLimits { open: PATIENCE * 2, half_closed: Duration::from_millis(200) };
    for client_closes in [true, false] {
        let ((mut client, outer), (inner, mut server)) = (pair().await, pair().await);
        let activity = Activity::start();
        let connection = tokio::spawn(async move { relay(outer, inner, &activity, limits).await });
        let (closed, open) =
            if client_closes { (&mut client, &mut server) } else { (&mut server, &mut client) };
        closed.shutdown().await.unwrap();
        // The other side gets the end, and keeps its own direction open.
        assert_eq!(timeout(PATIENCE, open.read(&mut [0])).await.unwrap().unwrap(), 0);
        assert_eq!(timeout(PATIENCE, closed.read(&mut [0])).await.unwrap().unwrap(), 0);
        connection.await.unwrap().unwrap();
    }
}

/// Connects from an address of the loopback network. Returns the first byte of the server, or
/// `None` if the connection is closed instead.
async fn greeted(address: SocketAddr, from: [u8; 4]) -> Option<TcpStream> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((Ipv4Addr::from(from), 0).into()).unwrap();
    let mut client = socket.connect(address).await.unwrap();
    let count = timeout(PATIENCE, client.read(&mut [0])).await.unwrap().unwrap_or(0);
    (count == 1).then_some(client)
}

#[tokio::test]
async fn one_source_cannot_take_the_connections_of_others() {
    let guest = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = publish(&guest);
    tokio::spawn(async move {
        // The guest greets each client, and closes a connection that the client has closed.
        while let Ok((mut server, _)) = guest.accept().await {
            tokio::spawn(async move {
                server.write_all(b"x").await.unwrap();
                let _end = server.read(&mut [0]).await;
            });
        }
    });
    let mut clients = Vec::new();
    for _ in 0..MAX_CONNECTIONS_OF_SOURCE {
        clients.push(greeted(address, [127, 0, 0, 1]).await.unwrap());
    }
    assert!(greeted(address, [127, 0, 0, 1]).await.is_none());
    assert!(greeted(address, [127, 0, 0, 2]).await.is_some(), "another source");
    // A connection that has ended makes room for the next one.
    clients.pop();
    let start = Instant::now();
    while greeted(address, [127, 0, 0, 1]).await.is_none() {
        assert!(start.elapsed() < PATIENCE);
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn largest_source_loses_its_most_silent_connection_if_all_are_in_use() {
    let source = |number: u8| IpAddr::from([192, 0, 2, number]);
    let open = |number: u8| Connection {
        source: source(number),
        activity: Arc::new(Activity::start()),
        task: tokio::spawn(std::future::pending()),
    };
    // The connection that is silent for the longest time belongs to a small source.
    let sizes = [(1, 84), (2, 128), (3, 100), (4, 100), (5, 100)];
    let mut connections = Connections::default();
    for (number, size) in sizes {
        connections.open.extend((0..size).map(|_| open(number)));
    }
    assert_eq!(connections.open.len(), MAX_CONNECTIONS);
    let largest = |connections: &Connections| -> Vec<Instant> {
        let of_largest = connections.open.iter().filter(|open| open.source == source(2));
        let mut times: Vec<Instant> = of_largest.map(|open| open.activity.last()).collect();
        times.sort();
        times
    };
    let before = largest(&connections);
    assert!(connections.make_room(source(6)));
    assert_eq!(connections.open.len(), MAX_CONNECTIONS - 1);
    assert_eq!(largest(&connections), before[1..]);
}

#[tokio::test]
async fn kernel_asks_both_peers_of_a_silent_connection_whether_they_are_there() {
    let guest = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut ports = listen(&[published(0)]).unwrap();
    let PublishedPort { listener, .. } = ports.remove(0);
    let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (outer, _) = TcpListener::from_std(listener).unwrap().accept().await.unwrap();
    let mut connector = Connector::in_thread().into_async().unwrap();
    let inner = connector.connect(guest.local_addr().unwrap().port()).await.unwrap().unwrap();
    for socket in [outer.as_fd(), inner.as_fd()] {
        assert!(socket_keepalive(socket).unwrap() && tcp_nodelay(socket).unwrap());
        let times = (tcp_keepidle(socket).unwrap(), tcp_keepintvl(socket).unwrap());
        assert_eq!(times, (Duration::from_secs(120), Duration::from_secs(30)));
        assert_eq!(tcp_keepcnt(socket).unwrap(), 4);
    }
}

#[test]
fn port_in_use_is_reported_with_its_address() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let error = listen(&[published(port)]).unwrap_err();
    assert_eq!(error.to_string(), format!("cannot listen on 127.0.0.1:{port}"));
}

#[tokio::test]
async fn listener_on_all_ipv6_addresses_takes_no_ipv4_connections() {
    let published = PublishConfig { host_address: Ipv6Addr::UNSPECIFIED.into(), ..published(0) };
    let ports = listen(&[published]).unwrap();
    let port = ports[0].listener.local_addr().unwrap().port();
    TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await.unwrap();
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap_err();
    // The port is free for IPv4.
    std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
}

#[test]
fn ipv6_network_of_64_bits_counts_as_one_source() {
    let source = |text: &str| source_of(text.parse().unwrap()).to_string();
    assert_eq!(source("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
    assert_eq!(source("2001:db8:1:2::7"), "2001:db8:1:2::");
    assert_eq!(source("2001:db8:1:3::7"), "2001:db8:1:3::");
    assert_eq!(source("::1"), "::");
    assert_eq!(source("192.0.2.7"), "192.0.2.7");
}
