//! The documented variables, routes and answers are those of the service.

use std::{collections::BTreeSet, fs};

use crate::support::{Bench, On, python_tool};

fn file(name: &str) -> String {
    fs::read_to_string(format!("{}/{name}", env!("CARGO_MANIFEST_DIR"))).expect("a file of the repository")
}

/// Each setting of `--help`: its variable, its flag, and its default.
fn settings(help: &str) -> BTreeSet<(&str, &str, &str)> {
    let option = "\n      --";
    help.match_indices("[env: ")
        .map(|(at, mark)| {
            let (before, after) = (&help[..at], &help[at + mark.len()..]);
            let (variable, after) = after.split_once(']').expect("a bracket closes");
            let default = after.trim_start().strip_prefix("[default: ").and_then(|rest| rest.split(']').next());
            let described = &before[before.rfind(option).expect("an option")..];
            let flag = described[option.len() - "--".len()..].split([' ', '\n']).next().expect("a word");
            let flag =
                if described.contains("Environment variables without an option:") { "environment only" } else { flag };
            (variable, flag, default.unwrap_or_default())
        })
        .collect()
}

#[test]
fn configuration_table_and_example_match_help() {
    let output = Bench::new(On::Embedded).run(&["--help"], &[]);
    let help = String::from_utf8(output.stdout).expect("UTF-8");
    let known = settings(&help);
    assert!(known.len() >= 30, "{known:?}");
    let document = file("docs/configuration.md");
    let table = document.lines().filter_map(|line| line.strip_prefix("| `"));
    let documented: BTreeSet<_> = table
        .map(|line| {
            let cells: Vec<_> = line.split(" | ").map(|cell| cell.trim_matches('`')).collect();
            // A default that `--help` does not have is explained in words there.
            let default = known.iter().find(|(variable, ..)| *variable == cells[0]).map_or("", |known| known.2);
            (cells[0], cells[1], if default.is_empty() { "" } else { cells[2] })
        })
        .collect();
    assert_eq!(documented, known, "left: docs/configuration.md, right: --help");

    let is_name = |c: char| c.is_ascii_uppercase() || c == '_';
    let example = file(".env.example");
    let named: BTreeSet<&str> = example
        .lines()
        .filter_map(|line| line.trim_start_matches(['#', ' ']).split_once('='))
        .map(|(name, _)| name)
        .filter(|name| name.chars().all(is_name))
        .collect();
    assert_eq!(named, known.iter().map(|(variable, ..)| *variable).collect(), ".env.example");
}

#[test]
fn every_route_is_in_the_contract() {
    let router = file("src/http/router.rs");
    assert!(router.contains(".routes(routes!("), "routes are added with their operations");
    assert!(![".route(", ".route_service(", ".nest_service(", ".merge("].iter().any(|call| router.contains(call)));
}

#[test]
fn contract_is_usable_by_generators_and_stateful_tools() {
    // In TypeScript, a field with a default is mandatory.
    let contract = file("openapi.yaml");
    assert!(!contract.lines().any(|line| line.trim_start().starts_with("default:")));
    assert_eq!(
        contract
            .matches("operationId: rows\n              parameters:\n                from: $response.body#/offset")
            .count(),
        2
    );
    let operations = contract.matches("operationId: ").count() - 2;
    assert_eq!(contract.matches("\n      tags:\n").count(), operations, "each operation has a tag");
    let security: Vec<_> = contract.split("\n      security:").skip(1).collect();
    assert_eq!(security.len(), operations);
    let is_optional = |text: &&&str| text.starts_with("\n      - {}\n      - token: []\n");
    assert_eq!(security.iter().filter(is_optional).count(), 8);
    assert!(security.iter().all(|text| is_optional(&text) || text.starts_with(" []\n")));
}

#[tokio::test]
async fn first_example_of_each_body_fits_a_new_file() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&[]);
    let yaml = "import json, sys, yaml; print(json.dumps(yaml.safe_load(open(sys.argv[1]))))";
    let output =
        python_tool("python").args(["-c", yaml, concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.yaml")]).output();
    let document: serde_json::Value = serde_json::from_slice(&output.expect("python runs").stdout).expect("JSON");
    for (path, types) in [("/append", 1), ("/append/batch", 3)] {
        let content = document["paths"][path]["post"]["requestBody"]["content"].as_object().expect("types");
        let with_examples = content.iter().filter_map(|(name, body)| Some((name, body["examples"].as_object()?)));
        let mut sent = 0;
        for (name, examples) in with_examples {
            // The page shows the first one.
            let first = &examples.values().next().expect("an example")["value"];
            let text = first.as_str().map_or_else(|| first.to_string(), str::to_owned);
            let request = replica.request(reqwest::Method::POST, path).header("content-type", name).body(text);
            let response = request.send().await.expect("an answer");
            assert_eq!(response.status(), 201, "{path} {name}: {first}");
            sent += 1;
        }
        assert_eq!(sent, types, "{path}");
    }
}

#[test]
fn schemathesis_finds_no_answer_outside_the_contract() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&[
        // Several data columns for arrays; short times, since cases hold the lock or leave it to expire.
        ("ROWLOCK_CSV_HEADER", "timestamp,replica,token,key,a,b,c"),
        ("ROWLOCK_LOCK_TTL", "100ms"),
        ("ROWLOCK_MAX_SLEEP", "50ms"),
        ("ROWLOCK_API_TOKENS", "admin:token-of-schemathesis"),
    ]);
    let root = env!("CARGO_MANIFEST_DIR");
    let output = python_tool("st")
        .args(["--no-color", "--config-file", &format!("{root}/schemathesis.toml")])
        .args(["run", &format!("{root}/openapi.yaml"), "--url", &replica.url])
        // One of its checks sends no token or another one, and expects a refusal.
        .args(["-H", "Authorization: Bearer token-of-schemathesis"])
        .args(["-c", "all", "-n", "180", "--seed", "1", "--request-timeout", "5"])
        // One worker: with several threads, the parser of Python 3.11 may fail with a SystemError.
        .args(["--workers", "1"])
        .env("SCHEMATHESIS_HOOKS", format!("{root}/tests/schemathesis_hooks.py"))
        .current_dir(bench.folder())
        .output()
        .expect("schemathesis runs");
    let output_text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output_text}{}", String::from_utf8_lossy(&output.stderr));
    let cases = output_text.split(" generated,").next().and_then(|before| before.rsplit(' ').next());
    let cases: u32 =
        cases.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("no number of cases: {output_text}"));
    assert!(cases >= 2000, "only {cases} cases: {output_text}");
    let checked = bench.run(&["check"], &[]);
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
}
