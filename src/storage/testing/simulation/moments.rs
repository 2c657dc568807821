//! The files as a reader without the lock finds them: each of its reads may come later than the one before, in the middle of
//! what a writer does.

use std::{cell::RefCell, mem, rc::Rc};

use crate::{
    random::Random,
    storage::{
        disk::FileKind,
        testing::{reader_disk::Moving, simulation::file::SimFile},
    },
};

/// CSV, journal and keys at one moment. Files that did not change are shared.
#[derive(Clone, Default)]
pub(super) struct Moment {
    images: [Rc<Vec<u8>>; 3],
    /// How often the power was lost before.
    power_cuts: u32,
}

impl Moment {
    /// The files now. `last` is an earlier moment.
    fn new(files: &[SimFile; 6], power_cuts: u32, last: Option<&Self>) -> Self {
        let image = |at: usize| match last {
            Some(last) if *last.images[at] == files[at].cache => Rc::clone(&last.images[at]),
            _ => Rc::new(files[at].cache.clone()),
        };
        Self { images: [image(0), image(1), image(2)], power_cuts }
    }

    pub(super) fn csv(&self) -> &[u8] {
        &self.images[0]
    }
}

/// The moments of one step of a writer, and where a reader is among them.
pub(super) struct Moments {
    all: Vec<Moment>,
    first: usize,
    at: usize,
    pub(super) random: Random,
}

impl Moments {
    pub(super) fn new(random: Random) -> Self {
        Self { all: vec![Moment::default()], first: 0, at: 0, random }
    }

    /// Lets the reader begin at any of these moments.
    pub(super) fn begin(&mut self, moments: Vec<Moment>) {
        self.first = self.random.below(moments.len());
        (self.at, self.all) = (self.first, moments);
    }

    /// Whether the server lost power since the reader began, and with it rows that nobody has acknowledged yet.
    pub(super) fn has_lost_power(&self) -> bool {
        self.all[self.first].power_cuts != self.now().power_cuts
    }

    pub(super) fn now(&self) -> &Moment {
        &self.all[self.at]
    }

    fn advance(&mut self) {
        if self.random.chance(50) {
            self.at = (self.at + self.random.below(4)).min(self.all.len() - 1);
        }
    }
}

/// Where a reader is among them. Clones share it.
#[derive(Clone)]
pub(super) struct SharedMoments {
    pub(super) moments: Rc<RefCell<Moments>>,
    pub(super) is_direct: bool,
}

fn image(moment: &Moment, kind: FileKind) -> &[u8] {
    match kind {
        FileKind::Csv => &moment.images[0],
        FileKind::Journal => &moment.images[1],
        FileKind::Keys => &moment.images[2],
        FileKind::Torn | FileKind::Tail(_) => unreachable!("a reader does not repair"),
    }
}

impl Moving for SharedMoments {
    fn is_direct(&self) -> bool {
        self.is_direct
    }

    fn see<T>(&self, kind: FileKind, look: impl FnOnce(&[u8]) -> T) -> T {
        let mut moments = self.moments.borrow_mut();
        moments.advance();
        look(image(moments.now(), kind))
    }
}

/// Records moments while a reader is about to look.
#[derive(Default)]
pub(super) struct Recording {
    moments: Option<Vec<Moment>>,
    power_cuts: u32,
}

impl Recording {
    pub(super) fn begin(&mut self, files: &[SimFile; 6]) {
        self.moments = Some(vec![Moment::new(files, self.power_cuts, None)]);
    }

    pub(super) fn add(&mut self, files: &[SimFile; 6]) {
        if let Some(moments) = &mut self.moments {
            let moment = Moment::new(files, self.power_cuts, moments.last());
            moments.push(moment);
        }
    }

    pub(super) fn lose_power(&mut self) {
        self.power_cuts += 1;
    }

    /// The moments since `begin`, up to now.
    pub(super) fn end(&mut self, files: &[SimFile; 6]) -> Vec<Moment> {
        self.add(files);
        mem::take(&mut self.moments).unwrap_or_else(|| vec![Moment::new(files, self.power_cuts, None)])
    }
}
