//! The rooms and the arrows between them, as ARCHITECTURE.md has them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The rooms that each room may import, beside itself. No two import each other.
const ARROWS: [(&str, &[&str]); 16] = [
    ("api", &["domain", "operations", "store"]),
    ("chance", &[]),
    ("clock", &["domain"]),
    ("config", &["domain", "egress"]),
    ("descriptors", &["config", "engine", "listener"]),
    ("domain", &[]),
    ("egress", &["clock", "domain", "failure"]),
    ("engine", &["chance", "clock", "domain", "egress", "failure", "mutation", "store", "tasks"]),
    ("failure", &[]),
    ("listener", &["api", "clock", "failure"]),
    ("logging", &[]),
    ("mutation", &[]),
    ("operations", &["domain", "egress", "engine", "store"]),
    (
        "server",
        &[
            "api",
            "chance",
            "clock",
            "config",
            "descriptors",
            "domain",
            "egress",
            "engine",
            "failure",
            "listener",
            "operations",
            "store",
            "tasks",
        ],
    ),
    ("store", &["chance", "clock", "domain", "failure", "mutation"]),
    ("tasks", &["failure"]),
];

/// The Rust files below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let below = |path: PathBuf| if path.is_dir() { files(&path) } else { vec![path] };
    entries.flat_map(below).filter(|path| path.extension().is_some_and(|kind| kind == "rs")).collect()
}

#[test]
fn no_arrow_between_rooms_turns_up() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut surprises = Vec::new();
    for path in files(&source) {
        let within = path.strip_prefix(&source).unwrap().to_str().unwrap();
        let room = within.split(['/', '.']).next().unwrap();
        if ["arrows", "lib", "main"].contains(&room) {
            continue;
        }
        let allowed = ARROWS.iter().find(|(name, _)| *name == room).map(|(_, to)| *to);
        let allowed = allowed.unwrap_or_else(|| panic!("{room} is a new room: say what it may import"));
        for after in fs::read_to_string(&path).unwrap().split("crate::").skip(1) {
            let name: String = after.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
            let is_room = ARROWS.iter().any(|(room, _)| *room == name);
            if is_room && name != room && !allowed.contains(&&*name) {
                surprises.push(format!("{within} imports {name}"));
            }
        }
    }
    assert!(surprises.is_empty(), "{surprises:?}");
    for (from, to) in ARROWS {
        for (other, back) in ARROWS {
            assert!(!(to.contains(&other) && back.contains(&from)), "{from} and {other} import each other");
        }
    }
}

/// The modules of the engine that each of them imports.
fn engine() -> BTreeMap<String, Vec<String>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/engine");
    let mut imports: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for path in files(&folder) {
        let within = path.strip_prefix(&folder).unwrap().to_str().unwrap();
        let module = within.split(['/', '.']).next().unwrap();
        // In a module's own files `super` is the module.
        let prefix = if within.contains('/') { "crate::engine::" } else { "super::" };
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        let all = imports.entry(module.to_owned()).or_default();
        for after in code.split(prefix).skip(1) {
            let list = after.strip_prefix('{').and_then(|list| list.split('}').next());
            let names =
                list.unwrap_or(after).split([',', ';']).take(if list.is_some() { usize::MAX } else { 1 });
            all.extend(names.map(|name| name.trim().split("::").next().unwrap().to_owned()));
        }
    }
    imports
}

#[test]
fn the_files_of_the_engine_import_each_other_in_one_direction() {
    let mut left = engine();
    left.remove("mod");
    while !left.is_empty() {
        let is_last = |names: &[String]| !names.iter().any(|name| left.contains_key(name));
        let last: Vec<String> =
            left.iter().filter(|(_, names)| is_last(names)).map(|(module, _)| module.clone()).collect();
        assert!(!last.is_empty(), "these import each other in a circle: {:?}", left.keys());
        left.retain(|module, _| !last.contains(module));
    }
}
