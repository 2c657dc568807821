//! Calls of one process that are not answered, as by a server that is cut off from its client.

use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use fuser::Request;
use rustix::io::Errno;

use super::state::Answer;

const PAUSE: Duration = Duration::from_millis(10);

/// The process whose calls are not answered. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Stall(Arc<Mutex<Option<u32>>>);

impl Stall {
    pub(super) fn set(&self, process: Option<u32>) {
        *self.0.lock().expect("nobody panics holding it") = process;
    }

    fn get(&self) -> Option<u32> {
        *self.0.lock().expect("nobody panics holding it")
    }

    /// Waits while calls of the caller's process are not answered. Like an NFS client, gives up the call of a process that is ending.
    pub(super) fn wait(&self, request: &Request) -> Answer<()> {
        while let Some(process) = self.get() {
            // The kernel tells the number of the thread.
            if !Path::new(&format!("/proc/{process}/task/{}", request.pid())).exists() {
                return Ok(());
            }
            if is_ending(process) {
                return Err(Errno::INTR);
            }
            thread::sleep(PAUSE);
        }
        Ok(())
    }
}

/// Whether the first thread has ended: the others do once their calls return.
fn is_ending(process: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_none_or(|rest| rest.starts_with('Z'))
}
