//! A reader that lives through a history, and looks at the files in the middle of what writers do.

use std::{mem, rc::Rc};

use crate::storage::{
    ledger::{Ledger, Purpose, RefreshOutcome},
    testing::{
        reader_disk::ReaderDisk,
        simulation::{
            history::History,
            live_reader::LiveReader,
            moments::{Moment, SharedMoments},
            open::open_ledger,
            text::text,
        },
    },
};

/// How many of 100 steps it looks at.
const LOOKS: usize = 40;

impl History {
    /// Before a step.
    pub(super) fn begin_look(&mut self) {
        if !self.reader.moments.borrow_mut().random.chance(LOOKS) {
            return;
        }
        let host = &mut *self.host.borrow_mut();
        host.recording.begin(&host.files);
        self.reader.unmoved_end = self.reader.unmoved_end.min(mem::replace(&mut host.unmoved_end, usize::MAX));
        self.reader.acked = Some(self.acked.len());
    }

    /// After a step.
    pub(super) fn end_look(&mut self) {
        let has_restarted = self.restart_after_power_cut();
        let Some(acked) = self.reader.acked.take() else { return };
        let (mut moments, moved_in_step) = {
            let host = &mut *self.host.borrow_mut();
            (host.recording.end(&host.files), mem::replace(&mut host.unmoved_end, usize::MAX))
        };
        if has_restarted {
            moments.drain(..moments.len() - 1);
        }
        self.reader.unmoved_end = self.reader.unmoved_end.min(moved_in_step);
        self.look_at(moments, acked);
        // What moved behind the moment that it saw.
        self.reader.unmoved_end = self.reader.unmoved_end.min(moved_in_step);
    }

    /// When everything is repaired, the reader that lived through the history shows it all.
    pub(super) fn last_look(&mut self) {
        self.restart_after_power_cut();
        let (moments, unmoved_end) = {
            let host = &mut *self.host.borrow_mut();
            (host.recording.end(&host.files), host.unmoved_end)
        };
        self.reader.unmoved_end = self.reader.unmoved_end.min(unmoved_end);
        let csv = moments[0].csv().to_vec();
        let outcome = self.look_at(moments, self.acked.len());
        assert_eq!(outcome, Some(RefreshOutcome::Consistent(None)), "the reader stays behind");
        assert!(self.reader.shown == csv, "the reader shows {:?} of {:?}", text(&self.reader.shown), text(&csv));
    }

    /// A power cut of its host ends the reader's process, too.
    fn restart_after_power_cut(&mut self) -> bool {
        let power_cuts = self.host.borrow().power_cuts;
        let has_ended = mem::replace(&mut self.reader.power_cuts, power_cuts) < power_cuts && !self.reader.is_direct;
        if has_ended {
            (self.reader.ledger, self.reader.unmoved_end) = (None, 0);
            self.reader.shown.clear();
        }
        has_ended
    }

    fn look_at(&mut self, moments: Vec<Moment>, acked: usize) -> Option<RefreshOutcome> {
        self.note(format!("-- the reader looks at {} moments", moments.len()));
        self.reader.moments.borrow_mut().begin(moments);
        if self.reader.ledger.is_none() {
            let moments = Rc::clone(&self.reader.moments);
            let disk = ReaderDisk(SharedMoments { moments, is_direct: self.reader.is_direct });
            self.reader.ledger = open_ledger(disk, &self.schema, "reader".to_owned(), 1, Purpose::Read);
        }
        let ledger = self.reader.ledger.as_mut()?;
        let outcome = ledger.refresh_unlocked().unwrap_or_else(|e| panic!("the reader fails: {e}"));
        let moment = self.reader.moments.borrow().now().clone();
        let has_moved = ledger.has_moved().expect("reads");
        let (csv, end) = (moment.csv(), shown_end(ledger));
        self.note(format!("-- the reader sees {outcome:?}, {end} bytes of {:?}", text(csv)));
        if has_moved || self.reader.moments.borrow().has_lost_power() {
            // It reads again.
            return Some(outcome);
        }
        assert!(end <= csv.len(), "the reader shows {end} bytes of {}", csv.len());
        if outcome == RefreshOutcome::NeedsRepair {
            // It says that it is behind.
            self.check_shown(&csv[..end], 0);
            return Some(outcome);
        }
        self.check_shown(&csv[..end], acked);
        self.check_unmoved(&csv[..end]);
        self.reader.show(csv[..end].to_vec());
        Some(outcome)
    }

    /// Checks that rows stay in their place, or that the reader notices that a rebuild moved those after the checkpoint.
    fn check_unmoved(&self, csv: &[u8]) {
        let LiveReader { shown, unmoved_end, ledger, rebuilds, settled, .. } = &self.reader;
        let same = shown.iter().zip(csv).take_while(|(shown, now)| shown == now).count();
        let (before, now) = (text(&shown[same..]), text(&csv[same..]));
        assert!(same >= shown.len().min(*unmoved_end), "the reader showed {before:?}, and now {now:?}");
        if same < shown.len() {
            let is_noticed = ledger.as_ref().is_some_and(|ledger| ledger.rebuilds() != *rebuilds);
            assert!(is_noticed && same >= *settled, "rows moved at {same} unnoticed: {before:?}, and now {now:?}");
        }
    }
}

/// Where the rows end that `Reader` serves.
fn shown_end(ledger: &Ledger<ReaderDisk<SharedMoments>>) -> usize {
    let verified = ledger.whole_end();
    (if ledger.is_rebuilding() { verified.min(ledger.checkpoint_end()) } else { verified }) as usize
}
