//! What is written down is what there is: variables and paths.

use std::{collections::BTreeSet, fs};

use crate::support::{Bench, On};

fn file(name: &str) -> String {
    fs::read_to_string(format!("{}/{name}", env!("CARGO_MANIFEST_DIR"))).expect("a file of the repository")
}

/// All that is enclosed between two marks, or follows the first one as a word.
fn words<'a>(text: &'a str, before: &str, is_part: impl Fn(char) -> bool + Copy) -> BTreeSet<&'a str> {
    text.split(before)
        .skip(1)
        .map(|rest| rest.split(|c| !is_part(c)).next().unwrap_or_default())
        .filter(|word| !word.is_empty())
        .collect()
}

#[test]
fn the_readme_and_the_example_name_every_variable_and_no_other() {
    let output = Bench::new(On::Embedded).run(&["--help"], &[]);
    let help = String::from_utf8(output.stdout).expect("UTF-8");
    let is_name = |c: char| c.is_ascii_uppercase() || c == '_';
    let known = words(&help, "[env: ", is_name);
    assert!(known.len() >= 14, "{known:?}");
    assert_eq!(words(&file("README.md"), "\n| `", is_name), known, "README's table");
    let example = file(".env.example");
    let named: BTreeSet<&str> = example
        .lines()
        .filter_map(|line| line.trim_start_matches(['#', ' ']).split_once('='))
        .map(|(name, _)| name)
        .filter(|name| name.chars().all(is_name))
        .collect();
    assert_eq!(named, known, ".env.example");
}

#[test]
fn no_route_stands_outside_the_contract() {
    let router = file("src/http/mod.rs");
    assert!(router.contains(".routes(routes!("), "routes carry their documentation with them");
    assert!(![".route(", ".route_service(", ".nest_service(", ".merge("].iter().any(|way| router.contains(way)));
}
