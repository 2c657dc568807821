//! A writer that knows nothing of Rowlock and takes no lock.

use std::{fs::OpenOptions, io::Write};

use rowlock::random::Random;

use super::{ActiveFault, Fault, wait_until_written};
use crate::{cluster::Cluster, history::FOREIGN};

impl ActiveFault {
    pub(super) async fn write_foreign_lines(&mut self, cluster: &Cluster<'_>, random: &mut Random) {
        for _ in 0..5 {
            let line = format!(",,,,{FOREIGN}{}\n", random.below(1000));
            let text = match self.fault {
                Fault::ForeignLines => line.repeat(1 + random.below(3)),
                _ => [",", ",,,", ",,,,\"foreign"][random.below(3)].to_owned(),
            };
            let mut csv = OpenOptions::new().append(true).open(&cluster.csv).expect("a CSV");
            csv.write_all(text.as_bytes()).expect("written");
            self.effects += 1;
            // Two half lines in a row would join to one line that is neither.
            wait_until_written(cluster).await;
        }
    }
}
