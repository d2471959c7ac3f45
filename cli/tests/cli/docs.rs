//! The documentation names what there is.

use clap::ValueEnum;
use idleguard_cli::check::{RULES, Severity, Surroundings, check};
use idleguard_cli::document::Document;
use idleguard_cli::explain::Library;
use idleguard_core::plugin;

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
    for command in ["scout", "recommend", "inject", "check", "schema", "explain", "completions"] {
        assert!(text.contains(&format!("idleguard {command}")), "{command}");
    }
    for library in Library::value_variants() {
        let name = library.to_possible_value().expect("a name");
        assert!(text.contains(name.get_name()), "{}", name.get_name());
    }
}

/// What clients were seen to say, `make test-clients` writes into docs/clients.md.
#[test]
fn the_errors_that_clients_were_seen_to_give_are_known() {
    let text = project_file("docs/clients.md");
    let mut known = 0;
    for section in text.split("\n## ").skip(1) {
        let (title, rest) = section.split_once('\n').expect("a title");
        let library = match title {
            "Reactor Netty" => Library::ReactorNetty,
            "Apache HttpClient 5" => Library::ApacheHttpclient,
            "JDK HttpClient" => Library::Jdk,
            "OkHttp" => Library::Okhttp,
            "Go net/http" => Library::Go,
            "Node http" | "Node undici" => Library::Node,
            "Python requests" | "Python httpx" | "Python aiohttp" => Library::Python,
            "Rust reqwest" => Library::Reqwest,
            other => panic!("`idleguard explain` does not know {other}"),
        };
        let cells = rest.lines().filter(|line| line.starts_with("| `")).filter_map(|line| line.split(" | ").nth(3));
        for said in cells.flat_map(|cell| cell.trim_end_matches(" |").split("<br>")).filter(|said| said.len() > 2) {
            assert!(Library::that_say(said).contains(&library), "{title}: {said}");
            known += 1;
        }
    }
    assert!(known > 10, "the tables are not found");
}

/// Bootstraps in the documentation are shown because they are right; so are plugin configurations.
#[test]
fn nothing_is_found_in_examples() {
    let docs = path("../../docs");
    let pages = std::fs::read_dir(&docs).expect("a directory").map(|page| page.expect("a page").path());
    let pages = pages.filter(|page| page.extension().is_some_and(|end| end == "md"));
    let mut judged = 0;
    for page in pages.chain([path("../../README.md")]) {
        let text = std::fs::read_to_string(&page).expect("read");
        let blocks = text.split("\n```").skip(1).step_by(2);
        for (language, block) in blocks.filter_map(|block| block.split_once('\n')) {
            let findings = match language {
                "yaml" if block.starts_with("static_resources:") || block.contains("\nstatic_resources:") => {
                    let document =
                        Document::parse(block).unwrap_or_else(|error| panic!("{}: {error:#}\n{block}", page.display()));
                    check(&document, Surroundings::default()).iter().map(|finding| format!("{finding:?}")).collect()
                }
                "json" if block.contains("\"filter\":") => match plugin::parse(block.as_bytes()) {
                    Ok(checked) => checked.warnings,
                    Err(error) => vec![error.to_string()],
                },
                _ => continue,
            };
            judged += 1;
            assert!(findings.is_empty(), "{}: {findings:#?}\n{block}", page.display());
        }
    }
    assert!(judged > 3, "the examples are not found");
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
    for part in ["/oneOf/0", "/oneOf/1", "/$defs/Destination"] {
        assert!(page.contains(&format!("<!-- schema {part} -->")), "{part} has no table");
    }
}
