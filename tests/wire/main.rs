//! Tests of the contract from outside: each test runs a real shim process with a fake VM.
//!
//! | module | what its tests check |
//! |---|---|
//! | `goldens` | the whole event stream of each kind of ending |
//! | `confinement` | that a VMM which a guest has taken over cannot reach the host |
//! | `carriers` | that a gate, a connector or a passt which a guest has taken over cannot, either |
//! | `neighbours` | that boxes which run at once cannot reach each other |
//! | `jail` | files, fds, environment and namespaces of a confined shim; hosts without a layer |
//! | `faults` | guests that report wrong values, hang or exit without a report |
//! | `exec` | processes in a running box |
//! | `health` | health checks, readiness, states and metrics |
//! | `readers` | standard output and the console with a slow reader, a full disk or no reader |
//! | `gate` | the datagrams and connections that pass the gate and passt |
//! | `gate_ipv6` | the same by IPv6 |
//! | `guest_network` | the addresses, routes and name servers of a guest |
//! | `names` | rules with names: what the gate answers, and what may be reached afterwards |
//! | `network` | the gate and passt: their jail, their end, and what the shim reports about them |
//! | `root` | the kind of a root, the disks of a block root, and the rights of its shim |
//! | `disk` | the size limit of the disk of a shared root, and that the shim removes the disk |
//! | `identity` | that other users cannot reach an image, and that a share stays one directory |
//! | `stops` | the steps of a stop, and the death of the parent |
//! | `resolved` | the event about an image before its layers are unpacked |
//! | `journal` | the log in a real journal and on standard error, without a secret in either |
//! | `service` | the unit of systemd |
//! | `user` | a shim that an ordinary user runs |
//! | `unpacker` | the confinement of unpackers, and their deaths |
//! | `unpacker_calls` | the system calls of unpackers |
//! | `upkeep` | collection and verification of the layer cache |
//! | `doctor` | the report of `--doctor` about a host |
//! | `input` | refused configs, and the flags for people |
//!
//! `harness` starts the shim and reads its events, `tracee` has a process make system calls, `image`
//! makes images, `image_disk` reads the disk of one, and `wire_types` checks the shape of each event.
//!
//! The tests need the feature `fake-vm`. They also need root, because the shim makes mounts and
//! some tests change to an ordinary user.

#![expect(clippy::unwrap_used, reason = "a test that cannot continue fails at this point")]

mod carriers;
mod confinement;
mod disk;
mod doctor;
mod exec;
mod faults;
mod gate;
mod gate_ipv6;
mod goldens;
mod guest_network;
mod harness;
mod health;
mod identity;
mod image;
mod image_disk;
mod input;
mod jail;
mod journal;
mod names;
mod neighbours;
mod network;
mod readers;
mod resolved;
mod root;
mod service;
mod stops;
mod traced_calls;
mod tracee;
mod unpacker;
mod unpacker_calls;
mod upkeep;
mod user;
mod wire_types;
