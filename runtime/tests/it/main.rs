//! `VmManager` with a script in the place of the shim: no VM is needed.

mod agent;
mod boot;
mod end;
mod example;
mod harness;
mod health;
mod records;
