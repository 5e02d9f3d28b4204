//! What the documents show is what is built and run, and what they list is all there is.

#![allow(clippy::unwrap_used, clippy::expect_used)]

const README: &str = include_str!("../README.md");
const SERVICE: &str = include_str!("../examples/service.rs");
const OBSERVABILITY: &str = include_str!("../docs/observability.md");

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
    assert_eq!(shown.len(), 2, "one service, and one timing");
    assert_eq!(shown[0], SERVICE.trim_end(), "copy examples/service.rs into the README");
}

/// There it is a test of the documentation, and compiled.
#[test]
fn the_readmes_timing_is_the_one_of_the_documentation() {
    let source = include_str!("../src/core/timing.rs");
    let documented: Vec<&str> = source.lines().filter_map(|l| l.strip_prefix("/// ")).collect();
    let shown: Vec<&str> = blocks("rust")[1].lines().collect();
    assert!(shown.len() > 3);
    assert!(documented.windows(shown.len()).any(|lines| lines == shown), "{documented:#?}");
}

#[test]
fn the_service_takes_forty_lines() {
    let code = SERVICE.lines().map(str::trim);
    let code = code.filter(|line| !line.is_empty() && !line.starts_with("//"));
    assert_eq!(code.count(), 40);
    assert!(README.contains("forty lines of code"));
}

/// The variants of a public enumeration.
fn variants<'a>(source: &'a str, name: &str) -> Vec<&'a str> {
    let (_, body) = source.split_once(&format!("pub enum {name} {{\n")).unwrap();
    let (body, _) = body.split_once("\n}\n").unwrap();
    let variant = |line: &'a str| {
        let line = line.strip_prefix("    ")?;
        line.starts_with(char::is_uppercase).then(|| line.trim_end_matches([' ', '{', ',']))
    };
    body.lines().filter_map(variant).collect()
}

/// The names in the first column of the table that has this heading.
fn listed(heading: &str) -> Vec<&'static str> {
    let (_, table) = OBSERVABILITY.split_once(&format!("| `{heading}` |")).unwrap();
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    rows.flat_map(|row| row.split('|').nth(1).unwrap().split(", "))
        .map(|name| name.trim().trim_matches('`'))
        .collect()
}

#[test]
fn every_event_is_described() {
    for (name, source) in [
        ("NodeEvent", include_str!("../src/node/event.rs")),
        ("TaskEvent", include_str!("../src/registry/watch.rs")),
    ] {
        let (mut variants, mut listed) = (variants(source, name), listed(name));
        assert!(variants.len() > 5, "{variants:?}");
        variants.sort_unstable();
        listed.sort_unstable();
        assert_eq!(listed, variants, "{name} in docs/observability.md");
    }
}

#[test]
fn every_target_of_a_trace_is_described() {
    let mut targets = std::collections::BTreeSet::new();
    let mut open = vec![std::path::PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/src"))];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        let source = std::fs::read_to_string(&path).unwrap();
        let after = source.split("target: \"").skip(1);
        targets.extend(after.map(|rest| rest.split('"').next().unwrap().to_owned()));
    }
    assert!(targets.len() >= 8, "{targets:?}");
    for target in targets {
        assert!(OBSERVABILITY.contains(&format!("`{target}`")), "{target}");
    }
}

#[test]
fn every_metric_is_described_once() {
    let rows = OBSERVABILITY.lines().filter_map(|line| line.strip_prefix("| `handover_"));
    let names: Vec<&str> = rows.map(|row| row.split(['`', '{']).next().unwrap()).collect();
    let once: std::collections::BTreeSet<&str> = names.iter().copied().collect();
    assert!(names.len() > 20);
    assert_eq!(once.len(), names.len(), "{names:?}");
}
