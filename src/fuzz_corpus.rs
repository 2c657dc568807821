//! Runs the inputs in `fuzz/corpus` in `cargo test`, without a fuzzer.

use std::{fs, path::Path};

/// Calls `check` with each input of a fuzz target.
pub(crate) fn replay(target: &str, check: impl Fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let inputs: Vec<_> = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()).collect();
    assert!(inputs.len() >= 3, "{target} has a corpus");
    for path in inputs {
        // The last printed path is the failing input.
        println!("{}", path.display());
        check(&fs::read(&path).expect("readable"));
    }
}
