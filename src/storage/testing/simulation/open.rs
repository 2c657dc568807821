//! Opens a process's ledger.

use std::{
    path::PathBuf,
    sync::{Arc, LazyLock},
};

use crate::{
    csv::schema::Schema,
    metrics::Meter,
    storage::{
        disk::Disk,
        format::Format,
        ledger::{Ledger, LedgerOptions, Purpose},
        testing::simulation::scenario::LAYOUT,
    },
};

/// Shared by all histories, since no test reads it.
static METER: LazyLock<Arc<Meter>> = LazyLock::new(Arc::default);

/// Opens a process's view of the files. `None`: they can't be read.
pub(super) fn open_ledger<D: Disk>(
    disk: D,
    schema: &Arc<Schema>,
    replica: String,
    keys: usize,
    purpose: Purpose,
) -> Option<Ledger<D>> {
    let path = PathBuf::from("rows.csv");
    let format = Format::read(&disk, &path, schema).ok()?;
    let options = LedgerOptions { path, layout: LAYOUT, format, replica, keys, purpose, meter: Arc::clone(&METER) };
    Some(Ledger::open(disk, options).expect("one header is always valid"))
}
