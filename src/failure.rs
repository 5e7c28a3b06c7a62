//! A panic in a task that the server can't do without: the server stops.

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt as _;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// The server's failure. Clones share it; the first task that panics under its guard sets it, for good.
#[derive(Clone, Debug, Default)]
pub struct Failure(CancellationToken);

impl Failure {
    /// The task under guard: a panic ends it and sets the failure. `name` is for the log.
    pub fn guard(
        &self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> impl Future<Output = ()> + Send + 'static {
        let failure = self.clone();
        async move {
            if AssertUnwindSafe(task).catch_unwind().await.is_err() {
                // Before anything is logged: nothing may come between a panic and the stop.
                failure.0.cancel();
                tracing::error!(task = name, "a task failed; the server stops");
            }
        }
    }

    /// Starts a task under guard.
    pub fn spawn(
        &self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> JoinHandle<()> {
        tokio::spawn(self.guard(name, task))
    }

    /// Whether a task has failed.
    pub fn is_set(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Waits until a task fails.
    pub async fn wait(&self) {
        self.0.cancelled().await;
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[tokio::test]
    async fn a_panic_is_noticed_and_an_end_is_not() {
        let failure = Failure::default();
        failure.spawn("ends", async {}).await.unwrap();
        assert!(!failure.is_set());
        failure.clone().spawn("panics", async { panic!("on purpose") }).await.unwrap();
        failure.wait().await;
        assert!(failure.is_set());
    }

    /// Ways to start a task under guard.
    const GUARDED: [&str; 4] = [".guard(", "failure.spawn(", "tasks.spawn(", "shared.spawn("];
    /// Files with tasks that are under no guard, and how many; before them, what a panic in one comes to.
    const BARE: [(&str, usize); 7] = [
        // No log.
        ("logging.rs", 1),
        // An answer with status 500.
        ("api/mod.rs", 1),
        ("api/schedules.rs", 1),
        ("api/url_groups.rs", 1),
        // The end of one connection, or of a request on it.
        ("listener/mod.rs", 1),
        ("listener/streams.rs", 2),
        ("egress/http2.rs", 1),
    ];

    #[test]
    fn tasks_are_started_under_guard() {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut folders = vec![source.clone()];
        let mut bare = Vec::new();
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|extension| extension == "rs") {
                    let text = std::fs::read_to_string(&path).unwrap();
                    let code = text.split("#[cfg(test)]").next().unwrap();
                    let count = code
                        .lines()
                        .filter(|line| line.contains(".spawn(") || line.contains("tokio::spawn("))
                        .filter(|line| !GUARDED.iter().any(|guarded| line.contains(guarded)))
                        .count();
                    let name = path.strip_prefix(&source).unwrap().to_str().unwrap().to_owned();
                    if count > 0 {
                        bare.push((name, count));
                    }
                }
            }
        }
        bare.sort();
        let mut expected = BARE.map(|(name, count)| (name.to_owned(), count)).to_vec();
        expected.sort();
        assert_eq!(
            bare, expected,
            "start tasks with `Failure::spawn` or `Tasks::spawn`, or say here what their panics come to"
        );
    }
}
