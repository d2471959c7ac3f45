//! The arrows of the house: which file uses which. No circles, neither in the core nor in the filter, and in the core they point down.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::arithmetic_side_effects,
    reason = "a test that panics fails"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// What each module of a crate uses, by paths like `timeout::scout`.
type Arrows = BTreeMap<String, BTreeSet<String>>;

/// Rooms of the core from the top floor down. A room uses those below it alone; those of one floor don't know each other.
const FLOORS: &[&[&str]] =
    &[&["plugin", "watch"], &["timeout", "client_ip"], &["metrics", "config"], &["time", "header_map"]];

fn sources(folder: &Path, module: &str, found: &mut BTreeMap<String, String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let inner = if module.is_empty() { name.clone() } else { format!("{module}::{name}") };
        if path.is_dir() {
            sources(&path, &inner, found);
        } else if name != "tests" && name != "lib" {
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.split("mod tests").next().unwrap();
            let code = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>();
            found.insert(inner, code.join("\n"));
        }
    }
}

/// The paths that begin at the start of `text`: one, or all of those in braces.
fn paths(text: &str) -> Vec<Vec<String>> {
    let name: String = text.chars().take_while(|char| char.is_alphanumeric() || *char == '_').collect();
    if !name.is_empty() {
        let rest = text[name.len()..].strip_prefix("::").map_or_else(|| vec![Vec::new()], paths);
        return rest.into_iter().map(|path| [vec![name.clone()], path].concat()).collect();
    }
    let Some(inner) = text.strip_prefix('{') else { return vec![Vec::new()] };
    let (mut depth, mut begin, mut all) = (0_i32, 0, Vec::new());
    for (at, char) in inner.char_indices() {
        if depth == 0 && matches!(char, ',' | '}') {
            all.extend(paths(inner[begin..at].trim()));
            begin = at + 1;
        }
        depth += i32::from(char == '{') - i32::from(char == '}');
        if depth < 0 {
            break;
        }
    }
    all
}

fn arrows(folder: &str) -> Arrows {
    let mut found = BTreeMap::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), "", &mut found);
    let module_of = |path: &[String]| {
        let known = (1..=path.len()).rev().map(|length| path[..length].join("::"));
        known.into_iter().find(|module| found.contains_key(module))
    };
    let mut all = Arrows::new();
    for (module, code) in &found {
        let of: Vec<_> = module.split("::").map(str::to_owned).collect();
        let mut used = BTreeSet::new();
        for (keyword, base) in [("crate::", &[][..]), ("super::", &of[..of.len() - 1]), ("self::", &of[..])] {
            for (at, _) in code.match_indices(keyword) {
                let path = |path: Vec<String>| module_of(&[base, &path].concat());
                used.extend(paths(&code[at + keyword.len()..]).into_iter().filter_map(path));
            }
        }
        used.remove(module);
        all.insert(module.clone(), used);
    }
    assert!(all.values().any(|used| !used.is_empty()), "{folder} has no arrows: they were not found");
    all
}

/// A circle of modules, if there is one.
fn circle(arrows: &Arrows) -> Option<Vec<&str>> {
    fn follow<'a>(arrows: &'a Arrows, way: &mut Vec<&'a str>, done: &mut BTreeSet<&'a str>) -> bool {
        let last = *way.last().unwrap();
        for next in &arrows[last] {
            if let Some(at) = way.iter().position(|module| module == next) {
                way.drain(..at);
                return true;
            }
            way.push(next);
            if !done.contains(next.as_str()) && follow(arrows, way, done) {
                return true;
            }
            way.pop();
        }
        done.insert(last);
        false
    }
    let mut done = BTreeSet::new();
    arrows.keys().find_map(|first| {
        let mut way = vec![first.as_str()];
        follow(arrows, &mut way, &mut done).then_some(way)
    })
}

#[test]
fn no_files_use_each_other_in_a_circle() {
    for folder in ["src", "../src"] {
        assert_eq!(circle(&arrows(folder)), None, "in {folder}");
    }
}

#[test]
fn in_the_core_arrows_point_down() {
    let floor = |module: &str| {
        let room = module.split("::").next().unwrap();
        (room.to_owned(), FLOORS.iter().position(|rooms| rooms.contains(&room)).expect(module))
    };
    for (module, used) in arrows("src") {
        for other in used {
            let ((room, from), (other_room, to)) = (floor(&module), floor(&other));
            assert!(room == other_room || from < to, "{module} uses {other}, which is not below it");
        }
    }
}
