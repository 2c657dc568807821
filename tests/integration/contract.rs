//! What is written down is what there is: variables, codes, paths.

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
fn openapi_names_every_error_code_and_path_and_no_other() {
    let openapi = file("openapi.yaml");
    let is_code = |c: char| c.is_ascii_lowercase() || c == '_';
    let errors = file("src/http/error.rs");
    let answered: BTreeSet<&str> = errors.split("Facts::").skip(1).filter_map(|call| call.split('"').nth(1)).collect();
    assert!(answered.len() >= 18, "{answered:?}");
    let listed = openapi.split("x-codes:").nth(1).expect("a list of codes").split("\n\n").next().unwrap_or_default();
    assert_eq!(words(listed, "- ", is_code), answered);
    let routes: BTreeSet<String> =
        words(&file("src/http/mod.rs"), ".route(\"", |c| c != '"').into_iter().map(str::to_owned).collect();
    let paths: BTreeSet<String> = openapi
        .lines()
        .filter(|line| line.starts_with("  /"))
        .map(|line| line.trim().trim_end_matches(':').to_owned())
        .collect();
    assert_eq!(paths, routes);
}
