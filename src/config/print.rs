//! The settings as text: all there are, with their documentation, and those in effect.

use std::fmt::Write;

use confique::toml::FormatOptions;

use super::layers::setting_names;
use super::{Config, Loaded};

/// `config.example.toml`: every setting with its documentation and its default, commented out.
pub fn example_toml() -> String {
    confique::toml::template::<Config>(FormatOptions::default())
}

impl Loaded {
    /// All settings in effect as TOML, each with its origin; secrets and passwords are hidden.
    #[expect(clippy::missing_panics_doc, reason = "it doesn't panic: see the texts of `expect`")]
    pub fn effective_toml(&self) -> String {
        let table =
            toml::Table::try_from(&self.config).expect("settings are strings, numbers and lists of strings");
        let mut text = String::new();
        for name in setting_names() {
            let line = match table.get(name) {
                Some(value) => writeln!(text, "{name} = {value} # {}", self.origin(name)),
                None => writeln!(text, "# {name} is not set"),
            };
            line.expect("a String takes any text");
        }
        text
    }
}
