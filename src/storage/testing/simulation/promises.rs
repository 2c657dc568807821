//! What must hold after a history, and for every reader during it.

use std::collections::BTreeMap;

use crate::{
    csv::{row_splitter::without_line_end, scanner::split_rows},
    storage::{
        ledger::RefreshOutcome,
        testing::simulation::{
            history::History,
            text::{cells_of, ends_whole, text},
        },
    },
};

impl History {
    /// A reader without the OS lock sees every acknowledged row, and whole rows only.
    pub(super) fn read(&mut self) {
        self.host.borrow_mut().calm = true;
        let reader = self.open_ledger("reader".to_owned(), 1);
        self.host.borrow_mut().calm = false;
        let Some(mut reader) = reader else { return };
        let Ok(RefreshOutcome::Consistent(_)) = reader.refresh_unlocked() else { return };
        let host = self.host.borrow();
        let shown = &host.files[0].cache[..reader.whole_end() as usize];
        assert!(ends_whole(shown), "a reader sees {:?}", text(shown));
        self.check_shown(shown, self.acked.len());
    }

    /// Checks that these are whole rows, and all of the first acknowledged ones.
    pub(super) fn check_shown(&self, shown: &[u8], acked: usize) {
        let rows = self.rows_in(shown);
        for row in &self.acked[..acked] {
            assert!(rows.count.contains_key(row), "a reader misses {row:?} in {:?}", text(shown));
        }
    }

    pub(super) fn check(&self) {
        let host = self.host.borrow();
        let csv = &host.files[0].cache;
        assert!(csv.ends_with(b"\n") && !csv.contains(&0), "not whole: {:?}", text(csv));
        assert!(csv.starts_with(self.scenario().first_text().as_bytes()));
        let RowsFound { count, tokens } = self.rows_in(csv);
        self.check_counts(&count, csv);
        assert!(tokens.is_sorted(), "tokens decrease: {tokens:?}");
        for (token, leases) in &self.wrote {
            assert!(leases.iter().all(|lease| lease == &leases[0]), "two leases wrote under token {token}");
        }
        host.foreign.check(csv, host.csv_sync_failed && host.power_cuts > 0);
    }

    fn check_counts(&self, count: &BTreeMap<String, u32>, csv: &[u8]) {
        let times = |row: &String| count.get(row).copied().unwrap_or_default();
        let mut keyed = BTreeMap::new();
        for (request, min, max) in self.keys.bounds() {
            for row in request.data() {
                keyed.insert(row, (min, max));
                let found = times(row);
                assert!(
                    (min..=max).contains(&found),
                    "{row:?} stands {found} times, not {min} to {max}, in {:?}",
                    text(csv)
                );
            }
        }
        for row in self.acked.iter().filter(|row| !keyed.contains_key(row)) {
            assert_eq!(times(row), 1, "acknowledged {row:?} in {:?}", text(csv));
        }
        for row in &self.unknown {
            assert!(times(row) <= 1, "{row:?} is repeated in {:?}", text(csv));
        }
        for row in &self.refused {
            assert_eq!(times(row), 0, "refused {row:?} was written");
        }
    }

    /// Finds the rows of a text, which must be whole, each of ours or of another program.
    fn rows_in(&self, csv: &[u8]) -> RowsFound {
        let scenario = self.scenario();
        let mut found = RowsFound { count: BTreeMap::new(), tokens: Vec::new() };
        let (rows, rest) = split_rows(csv);
        assert!(rest.is_empty(), "an incomplete line {:?}", text(rest));
        let mut width = None;
        let header = usize::from(scenario.headerless_width.is_none());
        for (nth, row) in rows.into_iter().enumerate() {
            let broken = || format!("an incomplete or merged line {:?} in {:?}", text(row), text(csv));
            let cells = cells_of(row);
            // Rows appended without the lock during a repair are outside the promises: parts of them may be kept, or joined to
            // parts of our rows.
            if cells[0].starts_with('s') {
                continue;
            }
            assert_eq!(cells.len(), *width.get_or_insert(cells.len()), "{}", broken());
            if nth < header {
                continue;
            }
            let (token, data) = match scenario.headerless_width {
                None => (Some(&cells[0]).filter(|token| !token.is_empty()), &cells[1]),
                Some(_) => (None, &cells[0]),
            };
            let is_foreign = token.is_none() && is_foreign(data);
            assert!(is_foreign || self.sent.contains(data), "{}", broken());
            let ends_well = scenario.is_empty || ends_with_line_end(row, scenario.line_end);
            assert!(is_foreign || ends_well, "{}", broken());
            tokens_of(token, &mut found.tokens, &broken);
            *found.count.entry(data.clone()).or_default() += 1;
        }
        found
    }
}

/// The rows of a text.
struct RowsFound {
    /// How often each data cell stands there.
    count: BTreeMap<String, u32>,
    tokens: Vec<u64>,
}

fn tokens_of(token: Option<&String>, tokens: &mut Vec<u64>, broken: &impl Fn() -> String) {
    if let Some(token) = token {
        tokens.push(token.parse().unwrap_or_else(|_| panic!("{}", broken())));
    }
}

/// Whether this is the data of a foreign row, or of one that its writer did not complete, or that a power cut ended early.
fn is_foreign(data: &str) -> bool {
    let Some(rest) = data.strip_prefix(['f', 's']) else { return data.is_empty() };
    rest.len() <= 2 && rest.bytes().all(|byte| byte.is_ascii_digit()) || rest.bytes().all(|byte| byte == b'h')
}

fn ends_with_line_end(row: &[u8], line_end: &str) -> bool {
    &row[without_line_end(row).len()..] == line_end.as_bytes()
}
