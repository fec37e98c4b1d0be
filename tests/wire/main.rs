//! The contract, seen from outside: a real shim process with a fake VM.
//!
//! | module | what must hold |
//! |---|---|
//! | `goldens` | the whole event stream of each kind of end |
//! | `confinement` | what a VMM that a guest has taken over can reach: nothing |
//! | `jail` | what is left to a confined shim, and a host that cannot give it all |
//! | `faults` | a guest that lies, hangs or vanishes |
//! | `health` | health checks, readiness, states, figures |
//! | `readers` | standard output: slow, gone, and nobody else's |
//! | `network` | what carries a guest's network: its jail, its end, and what is told |
//! | `disk` | what a box can write, and that nothing of it is left |
//! | `identity` | what an image and a share are to the host: nothing that others can reach, nor another directory |
//! | `stops` | the steps of a stop, and a parent that dies |
//! | `resolved` | what is told about an image before it is unpacked |
//! | `journal` | the log: a real journal, standard error, and no secret in either |
//! | `service` | the unit of systemd |
//! | `user` | a shim that is not root |
//! | `upkeep` | the layer cache, cleared up and verified |
//! | `doctor` | what is told about a host |
//! | `input` | what is refused, and the flags for people |
//!
//! Needs root, because the shim makes mounts, and to become an ordinary user. Built with the feature `fake-vm`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails here")]

mod confinement;
mod disk;
mod doctor;
mod faults;
mod goldens;
mod harness;
mod health;
mod identity;
mod image;
mod input;
mod jail;
mod journal;
mod network;
mod readers;
mod resolved;
mod service;
mod stops;
mod upkeep;
mod user;
mod wire_types;
