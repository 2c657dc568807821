//! What clients send, what they learn of it, and when they try again.

use std::{borrow::Cow, time::Instant};

use crate::{
    csv::{idempotency_key::Key, row_splitter::without_line_end, rows::Rows, scanner::split_rows, schema::Data},
    fencing::{FencingToken, LeaseId},
    storage::{
        error::{AppendError, Refusal},
        ledger::{Ledger, direct::Resolution},
        testing::simulation::{
            disk::Stop,
            history::History,
            request::{Attempt, Pending, Request},
            text::{contains, text},
        },
        types::{AppendEntry, EntryOutcome, Turn},
    },
};

const TRIES_MAX: usize = 6;
const BATCH_MAX: usize = 4;
const ROWS_MAX: usize = 3;

impl History {
    /// Draws new requests, and appends them together with those that wait at the same replica.
    pub(super) fn append(&mut self, number: usize) {
        let count = if self.is_plain() { 1 } else { self.random(|random| 1 + random.below(BATCH_MAX)) };
        let mut pending = self.draw_batch(number, count);
        for nth in 0..TRIES_MAX {
            let lease = self.grant();
            let replica = self.random(|random| random.below(3));
            if nth == 0 {
                pending.splice(0..0, self.waiting.extract_if(.., |waiting| waiting.replica == Some(replica)));
            }
            pending.iter_mut().for_each(|pending| self.arrive(pending, replica));
            self.note(format!("-- append lease {lease:?} by r{replica}: {}", summary(&pending)));
            let attempts = self.attempt(replica, &pending, lease);
            self.note(format!("-- {attempts:?}"));
            pending.iter_mut().zip(attempts).for_each(|(pending, attempt)| pending.attempt = attempt);
            pending.retain_mut(|pending| !self.is_answered(pending, lease));
            if pending.is_empty() {
                return;
            }
        }
        pending.into_iter().for_each(|pending| self.give_up(pending));
    }

    /// A request waits at a replica.
    pub(super) fn wait(&mut self, number: usize) {
        let replica = self.random(|random| random.below(3));
        for mut pending in self.draw_batch(number, 1) {
            self.arrive(&mut pending, replica);
            self.note(format!("-- waits at r{replica}: {}", summary(std::slice::from_ref(&pending))));
            self.waiting.push(pending);
        }
    }

    fn draw_batch(&mut self, number: usize, count: usize) -> Vec<Pending> {
        let mut drawn = Vec::<Pending>::new();
        for nth in 0..count {
            let last_key = drawn.last().and_then(|last| last.request.key);
            let request = match last_key.and_then(|key| self.keys.request(key)) {
                Some(request) if self.random(|random| random.chance(20)) => request,
                _ if self.is_plain() => self.draw_plain(number),
                _ => self.draw_request(number, nth),
            };
            drawn.push(self.pending(request));
        }
        drawn
    }

    /// A request of one or two rows, or of one row with one of four keys.
    fn draw_plain(&mut self, number: usize) -> Request {
        let key = self.random(|random| if random.chance(50) { Some(random.below(4)) } else { None });
        let lines = self.random(|random| 1 + random.below(2));
        if let Some(request) = key.and_then(|key| self.keys.request(key)) {
            return request;
        }
        let lines = if key.is_some() { 1 } else { lines };
        let data = |line| if line == 0 { format!("r{number}") } else { format!("r{number}\n+") };
        self.add_request(Request { rows: (0..lines).map(|line| vec![data(line)]).collect(), key })
    }

    /// A request of several rows, some with line breaks in them, or of several pages.
    fn draw_request(&mut self, number: usize, nth: usize) -> Request {
        let is_keyed = self.random(|random| random.chance(65));
        let is_retried = is_keyed && self.random(|random| random.chance(50));
        if is_retried && let Some(key) = self.keys.draw_retried(|end| self.random(|random| random.below(end))) {
            return self.keys.request(key).expect("drawn before");
        }
        let width_max = self.scenario().headerless_width.unwrap_or(1);
        let rows = self.random(|random| 1 + random.below(ROWS_MAX));
        let rows = (0..rows).map(|row| {
            // No name is the start of another one.
            let name = format!("r{number:02}{}{row}.", char::from(b'a' + nth as u8));
            let data = match self.random(|random| random.below(100)) {
                0..70 => name,
                70..88 => name + self.scenario().line_end + "+",
                88..94 => name + &"\n+,+".repeat(20),
                _ => name + &"\n+,+".repeat(self.scenario().journal_bytes as usize / 28),
            };
            let width = self.random(|random| 1 + random.below(width_max));
            std::iter::once(data).chain(std::iter::repeat_n("y".to_owned(), width - 1)).collect()
        });
        let rows = rows.collect();
        self.add_request(Request { rows, key: is_keyed.then_some(self.keys.len()) })
    }

    fn add_request(&mut self, request: Request) -> Request {
        self.sent.extend(request.data().cloned());
        if let Some(key) = request.key {
            self.keys.add(key, request.clone());
        }
        request
    }

    pub(super) fn pending(&mut self, request: Request) -> Pending {
        let rows = self.encode(&request);
        let key = request.key.map(|key| Key::new(&format!("k{key}"), &rows).expect("a key"));
        Pending { request, rows, key, replica: None, keys_seen: 0, attempt: Attempt::Unknown }
    }

    fn encode(&self, request: &Request) -> Rows {
        let mut rows = self.schema.rows();
        for cells in &request.rows {
            let cells = cells.iter().map(|cell| Some(Cow::from(cell))).collect();
            self.schema.push(&Data::List(cells), &mut rows).expect("fits");
        }
        rows
    }

    /// A client sends a request to this replica, unless it waits there already.
    fn arrive(&mut self, pending: &mut Pending, replica: usize) {
        if pending.replica.replace(replica) == Some(replica) {
            return;
        }
        if let Some(key) = pending.request.key {
            self.keys.arrive(key);
        }
        if !self.is_plain() {
            pending.keys_seen = self.ledger(replica).map_or(0, |ledger| ledger.keys_recorded());
        }
    }

    /// Notes what became of a try. Returns whether the client tries no more.
    fn is_answered(&mut self, pending: &mut Pending, lease: (FencingToken, LeaseId)) -> bool {
        match pending.attempt {
            Attempt::Fenced { highest_token } => {
                self.counter = self.counter.max(highest_token);
                return false;
            }
            Attempt::LockLost => return false,
            Attempt::Unknown => {
                // The client sends it again.
                pending.replica = None;
                let Some(key) = pending.request.key else {
                    self.unknown.extend(pending.request.data().cloned());
                    return true;
                };
                self.keys.unknown(key);
                return false;
            }
            Attempt::KeyMayBeForgotten => {
                pending.replica = None;
                return false;
            }
            Attempt::Written { offset } => {
                self.wrote.entry(lease.0).or_default().push(lease.1);
                if let Some(key) = pending.request.key {
                    self.keys.written(key, offset);
                }
            }
            Attempt::Replayed { offset } => {
                let has_unlocked_lines = self.host.borrow().unlocked_lines > 0;
                self.keys.replayed(pending.request.key.expect("it has one"), offset, has_unlocked_lines);
            }
            Attempt::DiskFull | Attempt::Refused => {
                self.not_written(&pending.request);
                return true;
            }
        }
        self.acked.extend(pending.request.data().cloned());
        true
    }

    fn give_up(&mut self, pending: Pending) {
        match pending.attempt {
            Attempt::Fenced { .. } | Attempt::LockLost => self.not_written(&pending.request),
            _ => assert!(pending.request.key.is_some(), "answered at once"),
        }
    }

    fn not_written(&mut self, request: &Request) {
        // Another request with the same key may write its rows.
        if request.key.is_none() {
            self.refused.extend(request.data().cloned());
        }
    }

    /// One attempt to append requests under one lease.
    pub(super) fn attempt(
        &mut self,
        replica: usize,
        pending: &[Pending],
        lease: (FencingToken, LeaseId),
    ) -> Vec<Attempt> {
        let mut attempts = Vec::new();
        let appended = self.append_all(replica, pending, lease, &mut attempts);
        let stopped = self.host.borrow().stopped;
        self.remove_stopped(replica);
        self.end_hold(replica);
        let rest = match appended {
            Some(Ok(())) => return attempts,
            None => Attempt::Unknown,
            Some(Err(AppendError::Interrupted(_))) if stopped != Some(Stop::Killed) => {
                let (resolved, rest) = self.resolve(replica);
                self.check_rows_of(&pending[attempts.len()..], &resolved);
                attempts.extend(resolved);
                rest
            }
            Some(Err(AppendError::Before { .. })) if stopped == Some(Stop::LockLost) => Attempt::LockLost,
            Some(Err(_)) if stopped.is_some() => Attempt::Unknown,
            Some(Err(AppendError::Fenced { highest_token })) => Attempt::Fenced { highest_token },
            Some(Err(AppendError::Sync(_))) => Attempt::Unknown,
            Some(Err(AppendError::DiskFull(_))) => Attempt::DiskFull,
            Some(Err(e)) => panic!("refused: {e}"),
        };
        attempts.resize(pending.len(), rest);
        attempts
    }

    /// Appends record by record. `None`: the replica could not start.
    fn append_all(
        &mut self,
        replica: usize,
        pending: &[Pending],
        (token, lease): (FencingToken, LeaseId),
        attempts: &mut Vec<Attempt>,
    ) -> Option<Result<(), AppendError>> {
        // Such a request is a batch of its own.
        let sleeps = self.random(|random| random.chance(20)) && pending.len() == 1;
        self.take_locks(replica);
        let now = Instant::now();
        let turn = Turn { token, lease, granted: now, timestamp: "", deadline: now, still_held: &|| true };
        let entries: Vec<_> = pending.iter().map(Pending::entry).collect();
        self.ledger(replica)?;
        while attempts.len() < entries.len() {
            let ledger = self.ledger(replica)?;
            let fenced = if sleeps { ledger.fence(pending[0].key.as_ref(), &turn).map(drop) } else { Ok(()) };
            let outcomes = match fenced.and_then(|()| ledger.append(&entries[attempts.len()..], &turn)) {
                Ok(outcomes) => outcomes,
                Err(e) => return Some(Err(e)),
            };
            let is_stopped = self.host.borrow().stopped.is_some();
            let answered = |outcome| if is_stopped { Attempt::Unknown } else { attempt_of(outcome) };
            let answers: Vec<_> = outcomes.into_iter().map(answered).collect();
            self.check_rows_of(&pending[attempts.len()..], &answers);
            attempts.extend(answers);
        }
        Some(Ok(()))
    }

    /// Checks that rows stand where their clients are told.
    fn check_rows_of(&self, pending: &[Pending], attempts: &[Attempt]) {
        let host = self.host.borrow();
        for (pending, attempt) in pending.iter().zip(attempts) {
            let &Attempt::Written { offset } = attempt else { continue };
            let csv = &host.files[0].cache[offset as usize..];
            let rows = split_rows(csv).0;
            for (row, cells) in rows.iter().zip(&pending.request.rows) {
                let is_ours = contains(&unquoted(row), &unquoted(cells[0].as_bytes()));
                assert!(is_ours, "acknowledged a wrong offset: {:?} is not {cells:?}", text(without_line_end(row)));
            }
        }
    }

    /// Finds out what became of the record that was interrupted, perhaps after another replica has repaired. Returns that, and
    /// what became of the requests behind it.
    fn resolve(&mut self, replica: usize) -> (Vec<Attempt>, Attempt) {
        self.replicas[replica].ledger.iter_mut().for_each(Ledger::forget);
        for _ in 0..3 {
            let other = (replica + 1) % 3;
            if self.random(|random| random.chance(50)) && self.ledger(other).is_some_and(|it| it.recover().is_err()) {
                self.remove_stopped(other);
            }
            self.remove_stopped(other);
            self.note(format!("-- r{replica} looks what became of it"));
            let Some(found) = self.replicas[replica].ledger.as_mut().map(Ledger::resolve) else { break };
            self.remove_stopped(replica);
            self.note(format!("-- {found:?}"));
            match found {
                Ok(Resolution::Written(outcomes)) => {
                    return (outcomes.into_iter().map(attempt_of).collect(), Attempt::LockLost);
                }
                Ok(Resolution::NotWritten) => return (Vec::new(), Attempt::LockLost),
                Ok(Resolution::Unknown) => break,
                Err(_) => self.replicas[replica].ledger.iter_mut().for_each(Ledger::forget),
            }
        }
        (Vec::new(), Attempt::Unknown)
    }
}

impl Pending {
    pub(super) fn entry(&self) -> AppendEntry<'_> {
        let Self { rows, key, keys_seen, .. } = self;
        AppendEntry { rows, key: key.as_ref(), keys_seen: *keys_seen, waited_ms: 0, released: true }
    }
}

fn attempt_of(outcome: EntryOutcome) -> Attempt {
    match outcome {
        EntryOutcome::Written { offset, .. } => Attempt::Written { offset },
        EntryOutcome::Replayed(ack) => Attempt::Replayed { offset: ack.offset },
        EntryOutcome::Refused(Refusal::KeyMayBeForgotten) => Attempt::KeyMayBeForgotten,
        EntryOutcome::Refused(Refusal::KeyReused) => panic!("the data of a key does not change"),
        EntryOutcome::Refused(_) => Attempt::Refused,
    }
}

fn unquoted(text: &[u8]) -> Vec<u8> {
    text.iter().copied().filter(|&byte| byte != b'"').collect()
}

fn summary(pending: &[Pending]) -> String {
    let one = |Pending { request, keys_seen, .. }: &Pending| {
        let row = request.data().next().map_or("", |data| data.lines().next().unwrap_or_default());
        format!("{row} x{} key {:?} of {keys_seen}", request.rows.len(), request.key)
    };
    pending.iter().map(one).collect::<Vec<_>>().join(", ")
}
