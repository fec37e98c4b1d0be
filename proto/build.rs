//! Compiles the `.proto` files with protox, which is written in Rust, so a build needs no `protoc`.

use std::error::Error;

const FILES: [&str; 4] = [
    "a3s/box/agent/v1/agent.proto",
    "a3s/box/control/v1/control.proto",
    "a3s/box/files/v1/files.proto",
    "a3s/box/process/v1/process.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    // Cargo reports a change of the whole directory, including files that are added later.
    println!("cargo::rerun-if-changed=a3s");
    let descriptors = protox::compile(FILES, ["."])?;
    let client = std::env::var_os("CARGO_FEATURE_CLIENT").is_some();
    let server = std::env::var_os("CARGO_FEATURE_SERVER").is_some();
    tonic_prost_build::configure()
        .build_client(client)
        .build_server(server)
        // The generated client needs no function `connect`, because both sides open their streams
        // themselves (vsock, unix sockets).
        .build_transport(false)
        .compile_fds(descriptors)?;
    Ok(())
}
