//! Messages between the shim, the program in the guest, and supervisors.
//!
//! Generated from the `.proto` files beside this crate's manifest, which are the
//! documentation of each message. Only [`frame`] is written by hand.
//!
//! | module | who speaks it | transport |
//! |---|---|---|
//! | [`agent`] | supervisor and shim ask, the guest answers | gRPC on vsock [`AGENT_PORT`] |
//! | [`control`] | shim and the guest's PID 1 | frames on vsock [`CONTROL_PORT`] |
//!
//! The guest is hostile: whatever decodes its messages must expect any field to be
//! missing and any number to be out of range.

pub mod frame;

/// vsock port of the guest on which the health services listen.
pub const AGENT_PORT: u32 = 4088;

/// vsock port of the host to which PID 1 of the guest connects.
pub const CONTROL_PORT: u32 = 4087;

/// Version of the control protocol; both ends are released together.
pub const PROTOCOL_VERSION: u32 = 1;

/// Name in the root directory of the guest's config: a virtual file that vanishes
/// once it was read (`krun_fs_add_overlay_file` with `one_shot`, libkrun 1.19).
pub const GUEST_CONFIG_FILE: &str = ".a3s-box-guest";

/// The bytes of a message, as the guest's config file holds them.
#[must_use]
pub fn encode(message: &impl prost::Message) -> Vec<u8> {
    message.encode_to_vec()
}

/// Reads what [`encode`] wrote.
///
/// # Errors
///
/// When the bytes are not this message.
pub fn decode<M: prost::Message + Default>(bytes: &[u8]) -> Result<M, prost::DecodeError> {
    M::decode(bytes)
}

/// The service that a guest agent offers (package `a3s.box.agent.v1`).
pub mod agent {
    #![expect(missing_docs, reason = "generated; the .proto file documents it")]
    #![allow(
        clippy::all,
        clippy::doc_markdown,
        clippy::too_many_lines,
        clippy::allow_attributes_without_reason,
        reason = "generated"
    )]
    #![allow(unused_qualifications, clippy::allow_attributes, reason = "generated")]
    tonic::include_proto!("a3s.r#box.agent.v1");
}

/// The shim's channel to PID 1 of the guest (package `a3s.box.control.v1`).
pub mod control {
    #![expect(missing_docs, reason = "generated; the .proto file documents it")]
    #![allow(clippy::all, clippy::doc_markdown, reason = "generated")]
    #![allow(unused_qualifications, clippy::allow_attributes, reason = "generated")]
    tonic::include_proto!("a3s.r#box.control.v1");
}
