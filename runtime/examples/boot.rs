//! Boots an agent-only box, asks for its health, and destroys it.
//!
//! Needs `a3s-box-shim` in `PATH` or beside this program. The example in the crate's documentation is
//! this text; a test compares them.

#[rustfmt::skip] // The lines stand here as the documentation has them.
#[tokio::main(flavor = "current_thread")]
#[expect(clippy::print_stdout, reason = "a program for people: the answer is its output")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    use a3s_box_runtime::VmManager;
    use a3s_box_core::{BoxConfig, EventEmitter};

    let config = BoxConfig::default();
    let emitter = EventEmitter::new();
    let vm = VmManager::new(config, emitter);
    vm.boot().await?;                       // lazy: nothing is started before
    let healthy = vm.health_check().await?; // a real gRPC round trip, never kill(pid, 0)
    vm.destroy().await?;

    println!("healthy: {healthy}");
    Ok(())
}
