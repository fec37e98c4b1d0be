//! The calls of the service, each with its child.

use a3s_box_proto::files::files_server::{Files, FilesServer};
use a3s_box_proto::files::{
    ListRequest, ListResponse, MakeDirectoryRequest, MakeDirectoryResponse, PackRequest,
    PackResponse, ReadRequest, ReadResponse, RemoveRequest, RemoveResponse, RenameRequest,
    RenameResponse, StatRequest, StatResponse, UnpackRequest, UnpackResponse, WriteRequest,
    WriteResponse,
};
use tonic::{Request, Response, Status, Streaming};

use super::channel::MESSAGE_BYTES;
use super::operation::Call;
use super::worker::{Answers, Workers};

/// Returns the service, to be added to a server that accepts connections of the host only.
pub(crate) fn server() -> FilesServer<GuestFiles> {
    FilesServer::new(GuestFiles { workers: Workers::new() })
        .max_decoding_message_size(MESSAGE_BYTES)
}

/// The implementation of the service.
#[derive(Debug)]
pub(crate) struct GuestFiles {
    workers: Workers,
}

#[tonic::async_trait]
impl Files for GuestFiles {
    type ListStream = Answers<ListResponse>;
    type ReadStream = Answers<ReadResponse>;
    type PackStream = Answers<PackResponse>;

    async fn stat(&self, request: Request<StatRequest>) -> Result<Response<StatResponse>, Status> {
        self.workers.answer(Call::Stat(request.into_inner())).await
    }

    async fn list(
        &self,
        request: Request<ListRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        self.workers.stream(Call::List(request.into_inner()))
    }

    async fn read(
        &self,
        request: Request<ReadRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        self.workers.stream(Call::Read(request.into_inner()))
    }

    async fn write(
        &self,
        request: Request<Streaming<WriteRequest>>,
    ) -> Result<Response<WriteResponse>, Status> {
        self.workers.upload(Call::Write, request.into_inner()).await
    }

    async fn make_directory(
        &self,
        request: Request<MakeDirectoryRequest>,
    ) -> Result<Response<MakeDirectoryResponse>, Status> {
        self.workers.answer(Call::MakeDirectory(request.into_inner())).await
    }

    async fn remove(
        &self,
        request: Request<RemoveRequest>,
    ) -> Result<Response<RemoveResponse>, Status> {
        self.workers.answer(Call::Remove(request.into_inner())).await
    }

    async fn rename(
        &self,
        request: Request<RenameRequest>,
    ) -> Result<Response<RenameResponse>, Status> {
        self.workers.answer(Call::Rename(request.into_inner())).await
    }

    async fn pack(
        &self,
        request: Request<PackRequest>,
    ) -> Result<Response<Self::PackStream>, Status> {
        self.workers.stream(Call::Pack(request.into_inner()))
    }

    async fn unpack(
        &self,
        request: Request<Streaming<UnpackRequest>>,
    ) -> Result<Response<UnpackResponse>, Status> {
        self.workers.upload(Call::Unpack, request.into_inner()).await
    }
}
