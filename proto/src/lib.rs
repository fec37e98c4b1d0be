//! Messages between the shim, the guest program and supervisors.
//!
//! The build script generates [`agent`], [`control`], [`files`] and [`process`] from the `.proto`
//! files beside the manifest of this crate. Those files document each message. [`frame`] is written
//! by hand.
//!
//! | module | participants | transport |
//! |---|---|---|
//! | [`agent`] | supervisor and shim send requests, the agent in the guest answers | gRPC on vsock [`AGENT_PORT`] |
//! | [`files`] | supervisors send requests, the guest program answers | gRPC on vsock [`EXEC_PORT`] |
//! | [`control`] | the shim and the guest program | frames on vsock [`CONTROL_PORT`] |
//! | [`process`] | a supervisor sends requests, the guest program answers | gRPC on vsock [`EXEC_PORT`] |
//!
//! The guest is hostile. Code that decodes its messages must expect that any field is missing and
//! that any number is out of range.

pub mod frame;

/// vsock port of the guest on which the agent listens.
pub const AGENT_PORT: u32 = 4088;

/// vsock port of the guest on which the guest program serves the services [`process`] and [`files`].
pub const EXEC_PORT: u32 = 4089;

/// vsock port of the host to which the guest program connects.
pub const CONTROL_PORT: u32 = 4087;

/// Version of the control protocol. The shim and the guest program are released together, so the
/// shim accepts this version only.
pub const PROTOCOL_VERSION: u32 = 1;

/// Name of the file with the [`GuestConfig`](control::GuestConfig) in the root directory of the
/// guest. It is a virtual file that the guest can open once (`krun_fs_add_overlay_file` with
/// `one_shot`, libkrun 1.19).
pub const GUEST_CONFIG_FILE: &str = ".a3s-box-guest";

/// Encodes a message without a frame, as the file [`GUEST_CONFIG_FILE`] contains it.
#[must_use]
pub fn encode(message: &impl prost::Message) -> Vec<u8> {
    message.encode_to_vec()
}

/// Decodes the bytes that [`encode`] returned.
///
/// # Errors
///
/// The bytes are not an encoding of an `M`.
pub fn decode<M: prost::Message + Default>(bytes: &[u8]) -> Result<M, prost::DecodeError> {
    M::decode(bytes)
}

/// The service of the agent in the guest (package `a3s.box.agent.v1`).
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

/// The service for the files of a box (package `a3s.box.files.v1`).
pub mod files {
    #![expect(missing_docs, reason = "generated; the .proto file documents it")]
    #![allow(
        clippy::all,
        clippy::doc_markdown,
        clippy::too_many_lines,
        clippy::allow_attributes_without_reason,
        reason = "generated"
    )]
    #![allow(unused_qualifications, clippy::allow_attributes, reason = "generated")]
    tonic::include_proto!("a3s.r#box.files.v1");
}

/// The messages of the control connection (package `a3s.box.control.v1`).
pub mod control {
    #![expect(missing_docs, reason = "generated; the .proto file documents it")]
    #![allow(clippy::all, clippy::doc_markdown, reason = "generated")]
    #![allow(unused_qualifications, clippy::allow_attributes, reason = "generated")]
    tonic::include_proto!("a3s.r#box.control.v1");
}

/// The service for the processes of a box (package `a3s.box.process.v1`).
pub mod process {
    #![expect(missing_docs, reason = "generated; the .proto file documents it")]
    #![allow(
        clippy::all,
        clippy::doc_markdown,
        clippy::too_many_lines,
        clippy::allow_attributes_without_reason,
        reason = "generated"
    )]
    #![allow(unused_qualifications, clippy::allow_attributes, reason = "generated")]
    tonic::include_proto!("a3s.r#box.process.v1");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{BlockRoot, GuestConfig, Root, block_root, root};

    #[test]
    fn a_config_without_a_root_is_encoded_as_before_there_was_one() {
        let config =
            GuestConfig { hostname: "a".into(), agent_port: Some(4088), ..Default::default() };
        assert_eq!(encode(&config), [0x1a, 1, b'a', 0x20, 0xf8, 0x1f]);
    }

    #[test]
    fn an_upper_in_memory_of_the_default_size_is_not_an_absent_one() {
        let upper = Some(block_root::Upper::UpperInMemoryMib(0));
        let block = BlockRoot { lower_device: "vda".into(), upper, ..Default::default() };
        let root = Some(Root { kind: Some(root::Kind::Block(block)) });
        let config = GuestConfig { root, ..Default::default() };
        assert_eq!(decode::<GuestConfig>(&encode(&config)).unwrap(), config);
    }
}
