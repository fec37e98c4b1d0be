//! Connections to the services behind `exec.sock`.

use std::io;
use std::path::{Path, PathBuf};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Error, Uri};
use tower::service_fn;

/// Window of HTTP/2 for a connection and for its streams, in bytes: the default, which is set so
/// that nothing adapts it.
///
/// The guest sends at most this much to a client that does not read. It must be less than the
/// buffer of the socket (208 KiB by default): libkrun's vsock thread blocks when that is full, and
/// with it all other connections of the box.
const WINDOW_BYTES: u32 = 65_535;

/// Opens a connection.
pub(crate) async fn connect(socket: &Path) -> Result<Channel, Error> {
    let socket = socket.to_owned();
    let connector = service_fn(move |_: Uri| open(socket.clone()));
    // tonic requires a URI with an authority, although the connector ignores it.
    Endpoint::from_static("http://localhost")
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .connect_with_connector(connector)
        .await
}

async fn open(socket: PathBuf) -> io::Result<TokioIo<UnixStream>> {
    UnixStream::connect(socket).await.map(TokioIo::new)
}
