//! The inputs in `fuzz/corpus`, which `cargo test` goes through without a fuzzer.

use std::{fs, path::Path};

/// Gives each input of a fuzz target to `check`.
pub(crate) fn replay(target: &str, check: impl Fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let inputs: Vec<_> = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()).collect();
    assert!(inputs.len() >= 3, "{target} has a corpus");
    for path in inputs {
        // The last one that is named is the one that fails.
        println!("{}", path.display());
        check(&fs::read(&path).expect("readable"));
    }
}
