//! Boots a box without a workload, checks its health, and destroys it.
//!
//! The program requires the executable `a3s-box-shim` in `PATH` or beside its own. The crate docs
//! show the same lines, and a test compares the two.

#[rustfmt::skip] // The lines must be equal to the ones in the crate docs.
#[tokio::main(flavor = "current_thread")]
#[expect(clippy::print_stdout, reason = "a program for people prints its result")]
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
