//! What is to be measured.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Parser;

use crate::database::Engine;
use crate::rows::{ROWS, Row};

/// Measures the server and prints a table. docs/performance.md says what the rows mean and how to read them.
#[derive(Clone, Debug, Parser)]
#[command(name = "bench", bin_name = "scripts/bench", after_help = rows_help())]
pub(crate) struct Args {
    /// sqlite, postgres and names of rows. No engine: both. No row: all.
    #[arg(value_name = "ENGINE|ROW")]
    what: Vec<String>,

    /// Make every row very small: to see that all works, not for figures.
    #[arg(long)]
    pub(crate) quick: bool,

    /// How many messages a row takes, instead of its own number.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    pub(crate) messages: Option<u64>,

    /// Connections of the load, where a row doesn't say otherwise.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub(crate) connections: u16,

    /// How long old-snapshot holds its snapshot.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=1440))]
    pub(crate) minutes: u64,

    /// Runs of the rows that take the median of several.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=99))]
    pub(crate) runs: u64,

    /// Another server than the one that was built with this program.
    #[arg(long, value_name = "BINARY", default_value = env!("CARGO_BIN_EXE_homing"))]
    pub(crate) server: PathBuf,

    /// What cargo passes to benchmarks.
    #[arg(long, hide = true)]
    bench: bool,
}

fn rows_help() -> String {
    let lines = ROWS.iter().map(|row| format!("  {:<17} {}\n", row.name, row.about));
    let settings =
        "HOMING_… variables are settings of the server, as always. TMPDIR is where the databases are.";
    format!("Rows:\n{}\n{settings}", lines.collect::<String>())
}

impl Args {
    /// The rows to run, and on what.
    pub(crate) fn selection(&self) -> Result<Vec<(&'static Row, Engine)>> {
        let mut engines = Vec::new();
        let mut rows = Vec::new();
        for word in &self.what {
            if let Some(engine) = Engine::ALL.into_iter().find(|engine| engine.name() == *word) {
                engines.push(engine);
            } else if let Some(row) = ROWS.iter().find(|row| row.name == *word) {
                rows.push(row);
            } else {
                let names: Vec<_> = ROWS.iter().map(|row| row.name).collect();
                bail!("no engine or row is called {word}; there are sqlite, postgres, {}", names.join(", "));
            }
        }
        if engines.is_empty() {
            engines = Engine::ALL.to_vec();
        }
        if rows.is_empty() {
            rows = ROWS.iter().collect();
        }
        let pairs = rows.into_iter().flat_map(|row| engines.iter().map(move |engine| (row, *engine)));
        Ok(pairs.filter(|(row, engine)| row.engines.contains(engine)).collect())
    }
}
