//! [`Calls`]: connections to the service of one box, and the calls about one process.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use a3s_box_proto::process::processes_client::ProcessesClient;
use a3s_box_proto::process::{KeepRequest, ResizeRequest, SignalRequest, SignalScope};
use tonic::transport::Channel;

use super::command::TerminalSize;
use super::error::ExecError;
use crate::connection;

/// Maximum length of an event or answer that is decoded. The longest is a list of 256 processes
/// with 4 KiB of arguments each. The guest is hostile and may send without end.
const MAX_ANSWER_BYTES: usize = 4 * 1024 * 1024;

/// Number of the signal that kills.
const SIGKILL: u32 = 9;

/// The service of one box.
#[derive(Clone, Debug)]
pub(super) struct Calls {
    socket: PathBuf,
}

impl Calls {
    /// Makes the calls of the service at this socket, without connecting.
    pub(super) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Returns the path of the socket.
    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Lets a process outlive the connection that started it.
    pub(super) async fn keep(&self, id: &str) -> Result<(), ExecError> {
        let request = KeepRequest { id: id.to_owned() };
        self.connect().await?.keep(request).await.map_err(ExecError::of_status)?;
        Ok(())
    }

    /// Kills a process and all its descendants.
    pub(super) async fn kill(&self, id: &str) -> Result<(), ExecError> {
        self.signal(id, SIGKILL, SignalScope::Descendants).await
    }

    /// Sets the size of the terminal of a process.
    pub(super) async fn resize(&self, id: &str, size: TerminalSize) -> Result<(), ExecError> {
        let request = ResizeRequest { id: id.to_owned(), size: Some(size.into()) };
        self.connect().await?.resize(request).await.map_err(ExecError::of_status)?;
        Ok(())
    }

    /// Sends a signal.
    pub(super) async fn signal(
        &self,
        id: &str,
        signal: u32,
        scope: SignalScope,
    ) -> Result<(), ExecError> {
        let request = SignalRequest { id: id.to_owned(), signal, scope: scope.into() };
        self.connect().await?.signal(request).await.map_err(ExecError::of_status)?;
        Ok(())
    }

    /// Opens a connection.
    pub(super) async fn connect(&self) -> Result<ProcessesClient<Channel>, ExecError> {
        let channel = connection::connect(&self.socket).await.map_err(|source| {
            ExecError::Unreachable { socket: self.socket.clone(), source: Arc::new(source) }
        })?;
        Ok(ProcessesClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES))
    }
}
