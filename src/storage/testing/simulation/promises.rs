//! What must hold after a history, and for every reader during it.

use std::collections::BTreeMap;

use crate::storage::{
    ledger::RefreshOutcome,
    testing::simulation::{
        disk::{contains, ends_whole, text},
        history::{HEADER, History},
    },
};

impl History {
    /// A reader without the OS lock sees every acknowledged row, and whole rows only.
    pub(super) fn read(&mut self) {
        self.host.borrow_mut().calm = true;
        let mut reader = self.open_ledger("reader".to_owned(), 1).expect("nothing fails");
        let outcome = reader.refresh_unlocked();
        self.host.borrow_mut().calm = false;
        let Ok(RefreshOutcome::Consistent(_)) = outcome else { return };
        let host = self.host.borrow();
        let shown = &host.files[0].cache[..reader.whole_end() as usize];
        assert!(ends_whole(shown), "a reader sees {:?}", text(shown));
        for row in &self.acked {
            assert!(contains(shown, row.as_bytes()), "a reader misses {row:?} in {:?}", text(shown));
        }
    }

    pub(super) fn check(&self) {
        let host = self.host.borrow();
        let csv = &host.files[0].cache;
        let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(&csv[..]);
        let records: Vec<_> = reader.records().map(|record| record.expect("the CSV parses")).collect();
        assert!(csv.ends_with(b"\n") && !csv.contains(&0), "not whole: {:?}", text(csv));
        assert!(csv.starts_with(HEADER));
        let mut tokens = Vec::new();
        let mut count: BTreeMap<&str, u32> = BTreeMap::new();
        // Rows appended without the lock during a repair are outside the promises: parts of them may be kept, or joined to
        // parts of our rows.
        for record in records[1..].iter().filter(|record| !record[0].starts_with('s')) {
            assert_eq!(record.len(), 2, "an incomplete or merged line {record:?} in {:?}", text(csv));
            let data = &record[1];
            // A foreign line that its writer did not complete may look whole.
            let known = if record[0].is_empty() { ['f', 's'] } else { ['r', 'e'] };
            let is_incomplete = !data.starts_with(known) && (!data.is_empty() || !record[0].is_empty());
            assert!(
                !is_incomplete && !data.contains('"'),
                "an incomplete or merged line {record:?} in {:?}",
                text(csv)
            );
            *count.entry(data).or_default() += 1;
            if !record[0].is_empty() {
                tokens.push(record[0].parse::<u64>().expect("a token"));
            }
        }
        let times = |row: &String| count.get(row.as_str()).copied().unwrap_or_default();
        for row in &self.acked {
            assert_eq!(times(row), 1, "acknowledged {row:?} in {:?}", text(csv));
        }
        for row in self.unknown.iter().chain(self.keyed.values()) {
            assert!(times(row) <= 1, "{row:?} is repeated in {:?}", text(csv));
        }
        for row in &self.refused {
            assert_eq!(times(row), 0, "refused {row:?} was written");
        }
        assert!(tokens.is_sorted(), "tokens decrease: {tokens:?}");
        for (token, leases) in &self.wrote {
            assert!(leases.iter().all(|lease| lease == &leases[0]), "two leases wrote under token {token}");
        }
        for (line, must_stand) in &host.foreign {
            let count = csv.split_inclusive(|&byte| byte == b'\n').filter(|found| found == line).count();
            let may_be_lost = !must_stand || host.csv_sync_failed && host.power_cuts > 0;
            assert!(count <= 1 && (count == 1 || may_be_lost), "foreign {:?} is there {count} times", text(line));
        }
    }
}
