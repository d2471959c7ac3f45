//! The tool, from outside: real bootstraps into real Envoys, planted mistakes, refusals, the schema, the documentation.
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod bootstraps;
mod command;
mod docs;
mod injection;
mod mistakes;
mod recommend;
mod schema;
mod scout;

use std::path::{Path, PathBuf};

use idleguard_cli::document::Document;
use idleguard_cli::inject::{Request, inject};

/// A file of these tests.
fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name)
}

/// A file of the project.
fn project_file(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn read(name: &str) -> String {
    std::fs::read_to_string(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn request(cluster: &str) -> Request {
    Request { cluster: cluster.to_owned(), ..Request::default() }
}

/// The text with idleguard in it.
fn injected(text: &str, request: &Request) -> Document {
    let mut document = Document::parse(text).expect("a bootstrap");
    inject(&mut document, request).unwrap_or_else(|error| panic!("{error:#}\n{text}"));
    document
}
