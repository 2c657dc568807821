//! A test that cannot run on this machine says so, and fails where `CI` is set.

use std::{
    env,
    process::{Command, Output},
};

use crate::support::not_run;

/// Ignored, so that it runs only as a process of the test below.
#[test]
#[ignore = "a part of the test below"]
fn test_that_cannot_run() {
    not_run("a tool is missing");
}

fn run_with_ci(value: Option<&str>) -> Output {
    let mut command = Command::new(env::current_exe().expect("a path"));
    command.args(["--exact", "left_out_tests::test_that_cannot_run", "--include-ignored"]).env_remove("CI");
    if let Some(value) = value {
        command.env("CI", value);
    }
    command.output().expect("runs")
}

#[test]
fn test_that_cannot_run_is_told_and_fails_in_ci() {
    for (ci, passes) in [(None, true), (Some(""), true), (Some("true"), false), (Some("1"), false)] {
        let output = run_with_ci(ci);
        let text = [&*output.stdout, &output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        assert_eq!(output.status.success(), passes, "CI={ci:?}: {text}");
        assert!(text.contains("1 test") && text.contains("not run") && text.contains("a tool is missing"), "{text}");
    }
}
