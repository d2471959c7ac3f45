//! The documentation names what there is.

use clap::ValueEnum;
use idleguard_cli::check::{RULES, Severity};
use idleguard_cli::explain::Library;

use super::{path, project_file};

#[test]
fn every_finding_is_explained() {
    let text = project_file("docs/findings.md");
    for rule in RULES {
        let severity = if rule.severity == Severity::Error { "error" } else { "warning" };
        assert!(text.contains(&format!("## {}\n\n*{severity}*", rule.id)), "{} ({severity})", rule.id);
    }
    assert_eq!(text.matches("\n## ").count(), RULES.len(), "each section is of a rule");
}

#[test]
fn the_manual_names_every_command_and_library() {
    let text = project_file("docs/cli.md");
    for command in ["inject", "check", "schema", "explain", "completions"] {
        assert!(text.contains(&format!("idleguard {command}")), "{command}");
    }
    for library in Library::value_variants() {
        let name = library.to_possible_value().expect("a name");
        assert!(text.contains(name.get_name()), "{}", name.get_name());
    }
}

/// Every key that an explanation names exists.
#[test]
fn explanations_name_real_keys() {
    let schema = idleguard_cli::schema::schema();
    let destination = schema["$defs"]["Destination"]["properties"].as_object().expect("properties");
    for library in Library::value_variants() {
        for row in library.explanation().rows {
            for key in row.here.split(", ").filter(|key| *key != "-" && !key.contains([':', ' '])) {
                assert!(destination.contains_key(key), "{key}");
            }
        }
    }
}

/// The tables of docs/configuration.md, each between its marks.
#[test]
fn the_reference_is_made_from_the_schema() {
    let page = project_file("docs/configuration.md");
    let schema = idleguard_cli::schema::schema();
    let mut expected = String::new();
    let mut rest = page.as_str();
    while let Some((before, after)) = rest.split_once("<!-- schema ") {
        let (part, after) = after.split_once(" -->").expect("the end of a mark");
        let table = idleguard_cli::reference::table(&schema, part).unwrap_or_else(|| panic!("{part} is no part"));
        let (_, behind) = after.split_once("<!-- /schema -->").expect("the mark of its end");
        expected.push_str(&format!("{before}<!-- schema {part} -->\n\n{table}\n<!-- /schema -->"));
        rest = behind;
    }
    expected.push_str(rest);
    if expected != page && std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path("../../docs/configuration.md"), &expected).expect("written");
    } else {
        assert!(expected == page, "run: UPDATE_DOCS=1 cargo test -p idleguard-cli --test cli docs::\n{expected}");
    }
    for part in ["/oneOf/0", "/oneOf/1", "/$defs/Destination", "/$defs/ClientIp"] {
        assert!(page.contains(&format!("<!-- schema {part} -->")), "{part} has no table");
    }
}
