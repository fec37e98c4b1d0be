//! Compiles the `.proto` files with protox, so that a build needs no protoc.

use std::error::Error;

const FILES: [&str; 2] = ["a3s/box/agent/v1/agent.proto", "a3s/box/control/v1/control.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=a3s");
    let descriptors = protox::compile(FILES, ["."])?;
    let client = std::env::var_os("CARGO_FEATURE_CLIENT").is_some();
    let server = std::env::var_os("CARGO_FEATURE_SERVER").is_some();
    tonic_prost_build::configure()
        .build_client(client)
        .build_server(server)
        .build_transport(false)
        .compile_fds(descriptors)?;
    Ok(())
}
