//! The real binary as a child process.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use serde_json::Value;

use super::database::Database;
use super::http::{Answer, Call};
use super::wait::{eventually, within};
use super::{CURRENT_KEY, NEXT_KEY, READ_ONLY_TOKEN, TOKEN};

/// A server; clones are handles on the same one. It gets a new port at every start.
#[derive(Clone)]
pub(crate) struct Server {
    shared: Arc<Shared>,
}

struct Shared {
    settings: Vec<(String, String)>,
    dir: std::path::PathBuf,
    /// Soft and hard limit on open files; `None`: those of the test.
    open_files: Mutex<Option<(u32, u32)>>,
    child: Mutex<Option<Child>>,
    address: Mutex<Option<SocketAddr>>,
    log: Arc<Log>,
}

impl Server {
    pub(super) fn new(database: &Database, settings: &[(&str, &str)]) -> Self {
        let mut all = vec![
            ("HOMING_LISTEN".to_owned(), "127.0.0.1:0".to_owned()),
            ("HOMING_DATABASE_URL".to_owned(), database.url().to_owned()),
            ("HOMING_TOKEN".to_owned(), TOKEN.to_owned()),
            ("HOMING_READ_ONLY_TOKENS".to_owned(), READ_ONLY_TOKEN.to_owned()),
            ("HOMING_CURRENT_SIGNING_KEY".to_owned(), CURRENT_KEY.to_owned()),
            ("HOMING_NEXT_SIGNING_KEY".to_owned(), NEXT_KEY.to_owned()),
        ];
        all.extend(settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        let shared = Shared {
            settings: all,
            dir: database.dir().to_owned(),
            open_files: Mutex::default(),
            child: Mutex::default(),
            address: Mutex::default(),
            log: Arc::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// From its next start on it may have so many files open: soft and hard limit.
    pub(crate) fn limit_open_files(&self, soft: u32, hard: u32) {
        *self.shared.open_files.lock().unwrap() = Some((soft, hard));
    }

    /// Starts the process and waits until it is ready.
    pub(crate) async fn start(&self) {
        self.spawn();
        self.ready().await;
    }

    /// The same with standard error going elsewhere than to the test's log.
    pub(crate) async fn start_with_stderr(&self, stderr: impl Into<Stdio>) {
        self.spawn_with(Stdio::piped(), stderr.into());
        self.ready().await;
    }

    async fn ready(&self) {
        let address = eventually("the server says where it listens", async || {
            self.assert_running();
            self.shared.log.listening_on()
        })
        .await;
        *self.shared.address.lock().unwrap() = Some(address);
        eventually("GET /readyz answers 200", async || {
            self.assert_running();
            let answer = Call::new(address, "GET", "/readyz").try_send().await.ok()?;
            (answer.status == 200).then_some(())
        })
        .await;
    }

    /// Starts the process only, for one that is expected to refuse.
    pub(crate) fn spawn(&self) {
        self.spawn_with(Stdio::piped(), Stdio::piped());
    }

    /// The same with the streams going elsewhere than to the test's log.
    pub(crate) fn spawn_with(&self, stdout: Stdio, stderr: Stdio) {
        let limits = match *self.shared.open_files.lock().unwrap() {
            None => String::new(),
            Some((soft, hard)) => format!("ulimit -Sn {soft} && ulimit -Hn {hard} && "),
        };
        // A limit on the size of files makes writes fail instead of ending the process.
        let script = format!("trap '' XFSZ; {limits}exec \"$0\"");
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_homing")]);
        // Nothing of the developer's environment may leak in: neither settings nor proxies.
        command.env_clear().current_dir(&self.shared.dir);
        for name in ["PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "LLVM_PROFILE_FILE", "RUST_BACKTRACE"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command.envs(self.shared.settings.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        let mut child = command.spawn().expect("the binary starts");
        self.shared.log.begin_process();
        if let Some(stdout) = child.stdout.take() {
            self.shared.log.follow(stdout);
        }
        if let Some(stderr) = child.stderr.take() {
            self.shared.log.follow(stderr);
        }
        let old = self.shared.child.lock().unwrap().replace(child);
        assert!(old.is_none(), "the server is running already");
    }

    /// Ends it with SIGKILL, as a crash would, and waits until it is gone. Nothing happens when it is not running.
    pub(crate) fn kill9(&self) {
        // Also after a panic that held the lock: a test must not leave its server behind.
        let child = self.shared.child.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut child) = child {
            child.kill().expect("SIGKILL");
            child.wait().expect("the killed process ends");
        }
    }

    /// Starts it again.
    pub(crate) async fn restart(&self) {
        self.start().await;
    }

    /// Sends SIGTERM.
    pub(crate) fn ask_to_stop(&self) {
        kill_process(self.pid(), Signal::TERM).expect("SIGTERM");
    }

    /// Lets it write no byte to a file behind the first `bytes`; `None`: as many as it likes.
    pub(crate) fn limit_files(&self, bytes: Option<u64>) {
        let limit = Rlimit { current: bytes, maximum: None };
        prlimit(Some(self.pid()), Resource::Fsize, limit).expect("a limit on files");
    }

    /// Its process.
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(self.shared.child.lock().unwrap().as_ref().expect("the server runs"))
    }

    /// Waits for the process to end by itself.
    pub(crate) async fn exited(&self, limit: Duration) -> ExitStatus {
        within(limit, "the server exits", async || {
            let mut child = self.shared.child.lock().unwrap();
            let status = child.as_mut().expect("the server runs").try_wait().expect("its status");
            if status.is_some() {
                *child = None;
            }
            status
        })
        .await
    }

    /// SIGTERM, and its exit.
    pub(crate) async fn terminate(&self) -> ExitStatus {
        self.ask_to_stop();
        self.exited(Duration::from_secs(30)).await
    }

    fn assert_running(&self) {
        let mut child = self.shared.child.lock().unwrap();
        let status = child.as_mut().expect("the server was started").try_wait().expect("its status");
        drop(child);
        if let Some(status) = status {
            panic!("the server ended at its start: {status}");
        }
    }

    pub(crate) fn log(&self) -> &Log {
        &self.shared.log
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.shared.address.lock().unwrap().expect("the server was started")
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    pub(crate) fn last_address(&self) -> String {
        self.shared.address.lock().unwrap().map_or_else(|| "no port yet".to_owned(), |a| a.to_string())
    }

    /// A request with the API token; the target goes out as it is.
    pub(crate) fn call(&self, method: &str, target: &str) -> Call {
        Call::new(self.address(), method, target).header("Authorization", format!("Bearer {TOKEN}"))
    }

    pub(crate) async fn get(&self, target: &str) -> Answer {
        self.call("GET", target).send().await
    }

    /// The body of a `GET` that succeeds.
    pub(crate) async fn get_json(&self, target: &str) -> Value {
        self.get(target).await.json(200)
    }

    /// Publishes to a URL and returns the message's id.
    pub(crate) async fn publish(
        &self,
        url: &str,
        headers: &[(&str, &str)],
        body: impl AsRef<[u8]>,
    ) -> String {
        let call = self.call("POST", &format!("/v2/publish/{url}")).headers(headers).body(body);
        let json = call.send().await.json(200);
        json["messageId"].as_str().unwrap_or_else(|| panic!("no messageId in {json}")).to_owned()
    }

    pub(crate) async fn message(&self, id: &str) -> Value {
        self.get_json(&format!("/v2/messages/{id}")).await
    }

    /// A message's log entries, earliest first.
    pub(crate) async fn events(&self, id: &str) -> Vec<Value> {
        self.list(&format!("/v2/events?messageId={id}&order=earliestFirst"), "events").await
    }

    /// The states of [`Server::events`].
    pub(crate) async fn states(&self, id: &str) -> Vec<String> {
        let events = self.events(id).await;
        events.iter().map(|event| event["state"].as_str().expect("a state").to_owned()).collect()
    }

    /// Waits until the message has ended and returns its states, separated by spaces.
    pub(crate) async fn ended(&self, id: &str) -> String {
        eventually(&format!("{id} ends"), async || {
            let states = self.states(id).await;
            let ended = ["DELIVERED", "FAILED", "CANCELED"].contains(&states.last()?.as_str());
            ended.then(|| states.join(" "))
        })
        .await
    }

    /// The dead letter of a message, as soon as it is there.
    pub(crate) async fn dead_letter(&self, id: &str) -> Value {
        eventually(&format!("{id} is in the DLQ"), async || {
            let list = self.list(&format!("/v2/dlq?messageId={id}"), "messages").await;
            list.into_iter().next()
        })
        .await
    }

    /// All pages of a list.
    pub(crate) async fn list(&self, target: &str, key: &str) -> Vec<Value> {
        let separator = if target.contains('?') { '&' } else { '?' };
        let mut page = self.get_json(target).await;
        let mut all = Vec::new();
        loop {
            all.extend(page[key].as_array().unwrap_or_else(|| panic!("no array `{key}` in {page}")).clone());
            // Absent on the last page: Python loops until it is, and null or "" would make it loop for ever.
            let Some(cursor) = page.get("cursor") else { return all };
            let cursor = cursor.as_str().expect("a cursor is a string");
            assert!(!cursor.is_empty(), "an empty cursor");
            page = self.get_json(&format!("{target}{separator}cursor={cursor}")).await;
        }
    }
}

/// What the processes wrote, stdout and stderr in the order of arrival.
#[derive(Default)]
pub(crate) struct Log {
    lines: Mutex<Lines>,
}

#[derive(Default)]
struct Lines {
    all: Vec<String>,
    /// Where the current process's lines begin.
    begin: usize,
    readers: Vec<thread::JoinHandle<()>>,
}

impl Log {
    fn begin_process(&self) {
        let readers = std::mem::take(&mut self.lines.lock().unwrap().readers);
        // The last process is gone, so its pipes are closed, and the readers come to their end.
        for reader in readers {
            reader.join().expect("the reader of the server's output");
        }
        let mut lines = self.lines.lock().unwrap();
        lines.begin = lines.all.len();
    }

    fn follow(self: &Arc<Self>, pipe: impl Read + Send + 'static) {
        let log = Arc::clone(self);
        let reader = thread::spawn(move || {
            for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
                log.lines.lock().unwrap().all.push(without_colours(&String::from_utf8_lossy(&line)));
            }
        });
        self.lines.lock().unwrap().readers.push(reader);
    }

    fn listening_on(&self) -> Option<SocketAddr> {
        let lines = self.lines.lock().unwrap();
        lines.all[lines.begin..].iter().find_map(|line| {
            let rest = line.split_once("listening on http://")?.1;
            let end =
                rest.find(|c: char| !(c.is_ascii_hexdigit() || ".:[]".contains(c))).unwrap_or(rest.len());
            rest[..end].parse().ok()
        })
    }

    pub(crate) fn text(&self) -> String {
        self.lines.lock().unwrap().all.join("\n")
    }

    /// Lines that no healthy server writes, but for those that the test allows.
    pub(super) fn faults(&self, allowed: &[String]) -> Vec<String> {
        let lines = self.lines.lock().unwrap();
        let is_fault = |line: &&String| {
            let error =
                line.split_whitespace().any(|word| word == "ERROR") || line.contains(r#""level":"ERROR""#);
            let panic = line.contains("panicked at");
            (error || panic) && !allowed.iter().any(|text| line.contains(text))
        };
        lines.all.iter().filter(is_fault).cloned().collect()
    }
}

/// A line without the escape sequences of a terminal.
fn without_colours(line: &str) -> String {
    let mut text = String::with_capacity(line.len());
    let mut rest = line.trim_end_matches('\r');
    while let Some((before, after)) = rest.split_once("\u{1b}[") {
        text.push_str(before);
        rest = after.split_once('m').map_or("", |(_, after)| after);
    }
    text.push_str(rest);
    text
}
