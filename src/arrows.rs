//! The rooms and the arrows between them, as ARCHITECTURE.md has them.

use std::fs;
use std::path::{Path, PathBuf};

/// What each room may import, beside itself. No two import each other.
const ARROWS: [(&str, &[&str]); 16] = [
    ("api", &["domain", "operations", "store"]),
    ("chance", &[]),
    ("clock", &["domain"]),
    ("config", &["domain", "egress"]),
    ("descriptors", &["config", "engine", "listener"]),
    ("domain", &[]),
    ("egress", &["clock", "domain", "failure"]),
    ("engine", &["chance", "clock", "domain", "egress", "failure", "store", "tasks"]),
    ("failure", &[]),
    ("listener", &["api", "clock", "failure"]),
    ("logging", &[]),
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
    ("store", &["chance", "clock", "domain", "failure"]),
    ("tasks", &["failure"]),
    ("arrows", &[]),
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
        if room == "lib" || room == "main" {
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
