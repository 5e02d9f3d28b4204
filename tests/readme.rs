//! What the README shows is what is built and run.

#![allow(clippy::unwrap_used, clippy::expect_used)]

const README: &str = include_str!("../README.md");
const SERVICE: &str = include_str!("../examples/service.rs");

/// The code blocks of a language.
fn blocks(language: &str) -> Vec<&'static str> {
    let opening = format!("```{language}\n");
    let after = README.split(opening.as_str()).skip(1);
    // A block ends with the first line that is a fence; fences in comments are not.
    after.map(|rest| rest.split("\n```\n").next().expect("a closing fence")).collect()
}

#[test]
fn the_readmes_service_is_the_example_that_is_built() {
    let shown = blocks("rust");
    assert_eq!(shown.len(), 1, "one service");
    assert_eq!(shown[0], SERVICE.trim_end(), "copy examples/service.rs into the README");
}

#[test]
fn the_service_takes_forty_lines() {
    let code = SERVICE.lines().map(str::trim);
    let code = code.filter(|line| !line.is_empty() && !line.starts_with("//"));
    assert!(code.count() <= 40);
}
