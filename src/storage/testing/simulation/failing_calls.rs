//! An append during which single calls to the disk fail.

use std::time::Instant;

use crate::storage::{
    error::AppendError,
    ledger::direct::Resolution,
    testing::simulation::{history::History, request::Request, text::text},
    types::{EntryOutcome, Turn},
};

impl History {
    /// An append of which two calls fail: one of its own, and one of those that find out what became of it. It is tried again if
    /// it was not written, as the committer does. Returns how often its row stands in the CSV.
    pub(super) fn append_with_failures(&mut self, first: u32, second: u32) -> usize {
        self.ledger(0).expect("opens");
        self.host.borrow_mut().calls_until_failure = Some(first);
        let is_written = self.append_by_ledger().is_ok() || self.is_found_written(second);
        self.host.borrow_mut().calls_until_failure = None;
        if !is_written {
            self.append_by_ledger().expect("written");
        }
        text(&self.host.borrow().files[0].cache).matches("row").count()
    }

    fn append_by_ledger(&mut self) -> Result<Vec<EntryOutcome>, AppendError> {
        let (row, now) = (self.pending(Request { rows: vec![vec!["row".to_owned()]], key: None }), Instant::now());
        let turn = Turn { token: 1, lease: 1, granted: now, timestamp: "", deadline: now, still_held: &|| true };
        self.ledger(0).expect("opens").append(&[row.entry()], &turn)
    }

    fn is_found_written(&mut self, failing_call: u32) -> bool {
        self.host.borrow_mut().calls_until_failure = Some(failing_call);
        let ledger = self.ledger(0).expect("opens");
        ledger.forget();
        if !ledger.is_in_doubt() {
            return false;
        }
        for _ in 0..3 {
            match ledger.resolve() {
                Ok(Resolution::Written(_)) => return true,
                Ok(Resolution::NotWritten) => return false,
                Ok(Resolution::Unknown) => panic!("nobody else writes"),
                Err(_) => ledger.forget(),
            }
        }
        panic!("only one call fails")
    }
}
