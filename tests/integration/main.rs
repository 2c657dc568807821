//! The service as its users meet it: real processes, a real Redis, real files, free ports.

mod access;
mod bad_requests;
mod batches;
mod check_command;
mod client_recipes;
mod command_line;
mod concurrent_appends;
mod configuration;
mod contract;
mod csv_files;
mod doc_coverage;
mod docs_page;
mod events;
mod formula_guard;
mod http_framing;
mod http_semantics;
mod idempotency;
mod interface;
mod journal;
mod kubernetes;
mod limits;
mod live_page;
mod load_command;
mod lock_api;
mod lock_queue;
mod locking;
mod lua_scripts;
mod metrics;
mod module_boundaries;
mod network_volume;
mod open_files;
mod reading;
mod readme;
mod redis_connections;
mod redis_topologies;
mod refused_uploads;
mod shutdown;
mod shutdown_clients;
mod style;
#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "shared with the crash tests")]
mod support;
mod systemd_units;
mod traces;
mod volumes;
