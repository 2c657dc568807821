//! The service as its users meet it: real processes, a real Redis, real files, free ports.

mod access;
mod bad_requests;
mod batches;
mod checking;
mod command_line;
mod configuration;
mod contract;
mod docs;
mod files;
mod formulas;
mod journal;
mod keys;
mod kubernetes;
mod leaving;
mod limits;
mod loading;
mod locking;
mod manners;
mod metering;
mod page;
mod reading;
mod rooms;
mod scripts;
mod seeing;
mod servers;
#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "shared with the crash tests")]
mod support;
mod tables;
mod traces;
mod units;
mod watching;
