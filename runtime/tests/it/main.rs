//! Tests of `VmManager` with a script in the place of the shim, so that they need no VM.

mod agent;
mod boot;
mod end;
mod example;
mod harness;
mod health;
mod records;
