//! The only directory: its names in the cache, its names on the disk, and the changes between them.

use std::{collections::BTreeMap, mem};

use rowlock::random::Random;

/// An atomic change of names. A rename consists of two.
pub(super) type Edit = (String, Option<u64>);

#[derive(Default)]
pub(super) struct Names {
    cache: BTreeMap<String, u64>,
    disk: BTreeMap<String, u64>,
    pending: Vec<Vec<Edit>>,
}

fn apply(edits: &[Edit], names: &mut BTreeMap<String, u64>) {
    for (name, file) in edits {
        match file {
            Some(file) => names.insert(name.clone(), *file),
            None => names.remove(name),
        };
    }
}

impl Names {
    pub(super) fn file(&self, name: &str) -> Option<u64> {
        self.cache.get(name).copied()
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (&str, u64)> {
        self.cache.iter().map(|(name, file)| (name.as_str(), *file))
    }

    pub(super) fn of(&self, file: u64) -> impl Iterator<Item = &str> {
        self.all().filter(move |(_, other)| *other == file).map(|(name, _)| name)
    }

    pub(super) fn change(&mut self, edits: Vec<Edit>) {
        apply(&edits, &mut self.cache);
        self.pending.push(edits);
    }

    pub(super) fn sync(&mut self) {
        for edits in mem::take(&mut self.pending) {
            apply(&edits, &mut self.disk);
        }
    }

    /// Loses the last changes: journaling file systems keep their order. Returns how many were lost.
    pub(super) fn lose_power(&mut self, random: &mut Random) -> usize {
        let pending = mem::take(&mut self.pending);
        let kept = random.below(pending.len() + 1);
        for edits in &pending[..kept] {
            apply(edits, &mut self.disk);
        }
        self.cache.clone_from(&self.disk);
        pending.len() - kept
    }
}
