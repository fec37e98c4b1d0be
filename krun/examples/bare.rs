//! The bare libkrun calls, with nothing of this project around them.
//!
//! Two uses: the probe that finds out whether a host's KVM boots a VM, and the measure of what the
//! shim adds.
//!
//! ```text
//! bare INIT [ROOT]      INIT: static program that becomes PID 1; ROOT: folder (default: an empty one)
//! ```
//!
//! libkrunfw is `$A3S_BOX_LIBKRUNFW` or the system's. The exit status is libkrun's.
