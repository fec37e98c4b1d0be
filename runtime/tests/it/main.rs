//! Tests of `VmManager` with a script in the place of the shim, and of `exec` with the service of the
//! guest program, so that they need no VM.

mod agent;
mod boot;
mod end;
mod example;
mod exec;
mod files;
mod harness;
mod health;
mod records;
mod service;
