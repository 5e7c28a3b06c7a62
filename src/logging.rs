//! The way of log lines to standard error: in a thread of its own, so that nobody who logs waits or fails.
//!
//! Standard error may be a full disk, a pipe whose reader is gone, or one that nobody reads. Lines wait in bounded memory;
//! what doesn't fit is counted and left out.

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

/// Bytes of lines that wait to be written.
const WAITING: usize = 1 << 20;
/// How long the last lines may take when the process ends.
const FLUSH: Duration = Duration::from_secs(1);

/// Writes lines in a thread. Clones share it.
#[derive(Clone)]
pub struct Lines(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// Rung when there is something to write.
    filled: Condvar,
    /// Rung when all is written.
    written: Condvar,
    capacity: usize,
}

#[derive(Default)]
struct State {
    waiting: Vec<u8>,
    /// Lines left out since lines were last taken to be written.
    lost: u64,
    writing: bool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lines {
    /// Starts the thread, which ends with the process.
    pub fn to(out: impl Write + Send + 'static) -> io::Result<Self> {
        Self::bounded(out, WAITING)
    }

    fn bounded(out: impl Write + Send + 'static, capacity: usize) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            filled: Condvar::new(),
            written: Condvar::new(),
            capacity,
        });
        let lines = Self(Arc::clone(&shared));
        std::thread::Builder::new().name("log".to_owned()).spawn(move || write(&shared, out))?;
        Ok(lines)
    }

    /// Hands a line over. Never waits for the reader.
    pub fn add(&self, line: &[u8]) {
        let mut state = self.0.state();
        if state.waiting.len() + line.len() > self.0.capacity {
            state.lost += 1;
            return;
        }
        state.waiting.extend_from_slice(line);
        drop(state);
        self.0.filled.notify_one();
    }

    /// Waits until all is written, for a second at most.
    pub fn flush(&self) {
        let state = self.0.state();
        let busy = |state: &mut State| state.writing || !state.waiting.is_empty();
        drop(self.0.written.wait_timeout_while(state, FLUSH, busy));
    }
}

fn write(shared: &Shared, mut out: impl Write) {
    let mut lines = Vec::new();
    // Lines that could not be written, which is told as soon as it can be.
    let mut lost = 0;
    loop {
        let mut state = shared.state();
        state.writing = false;
        if state.waiting.is_empty() {
            shared.written.notify_all();
        }
        while state.waiting.is_empty() {
            state = shared.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.writing = true;
        lines.clear();
        std::mem::swap(&mut lines, &mut state.waiting);
        let left_out = std::mem::take(&mut state.lost);
        drop(state);
        let written = note(&mut out, &mut lost).and_then(|()| out.write_all(&lines));
        if written.is_err() {
            lost += lines.split(|byte| *byte == b'\n').count() as u64 - 1;
        }
        lost += left_out;
        let _failed = written.and_then(|()| note(&mut out, &mut lost)).and_then(|()| out.flush()).is_err();
    }
}

/// Tells how many lines are lost, if any are; then none are.
fn note(out: &mut impl Write, lost: &mut u64) -> io::Result<()> {
    if *lost > 0 {
        let text =
            format!("homing: {lost} lines of the log are missing here: they could not be written in time\n");
        out.write_all(text.as_bytes())?;
        *lost = 0;
    }
    Ok(())
}

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.add(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// Makes panics lines of the log: what the standard library does instead waits for standard error's reader.
pub fn log_panics(lines: Lines) {
    std::panic::set_hook(Box::new(move |panic| {
        let backtrace = std::backtrace::Backtrace::capture();
        let text = panic.payload_as_str().unwrap_or("no text");
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let text = match backtrace.status() {
            std::backtrace::BacktraceStatus::Captured => format!("panicked at {place}: {text}\n{backtrace}"),
            _ => format!("panicked at {place}: {text}"),
        };
        if tracing::enabled!(tracing::Level::ERROR) {
            tracing::error!("{text}");
        } else {
            lines.add(format!("homing: {text}\n").as_bytes());
        }
    }));
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc;

    use super::*;

    /// Takes each write when it is let.
    struct Gated {
        gate: mpsc::Receiver<()>,
        out: mpsc::SyncSender<String>,
    }

    impl Write for Gated {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let open = self.gate.recv();
            self.out.send(String::from_utf8_lossy(bytes).into_owned()).unwrap();
            match open {
                Ok(()) => Ok(bytes.len()),
                Err(_) => Err(io::Error::from(io::ErrorKind::BrokenPipe)),
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn gated(capacity: usize) -> (Lines, mpsc::SyncSender<()>, mpsc::Receiver<String>) {
        let (opener, gate) = mpsc::sync_channel(8);
        let (out, written) = mpsc::sync_channel(8);
        (Lines::bounded(Gated { gate, out }, capacity).unwrap(), opener, written)
    }

    #[test]
    fn what_a_slow_reader_has_no_room_for_is_counted() {
        let (lines, opener, written) = gated(10);
        lines.add(b"first\n");
        // The thread has taken it, and waits for its reader.
        while !lines.0.state().waiting.is_empty() {
            std::thread::yield_now();
        }
        lines.add(b"second\n");
        lines.add(b"third\n");
        lines.add(b"fourth\n");
        for _ in 0..3 {
            opener.send(()).unwrap();
        }
        assert_eq!(written.recv().unwrap(), "first\n");
        assert_eq!(written.recv().unwrap(), "second\n");
        assert!(written.recv().unwrap().starts_with("homing: 2 lines"));
        lines.flush();
        assert!(!lines.0.state().writing);
    }

    #[test]
    fn a_reader_that_is_gone_changes_nothing() {
        let (lines, opener, written) = gated(100);
        drop(opener);
        lines.add(b"first\n");
        assert_eq!(written.recv().unwrap(), "first\n");
        lines.add(b"second\n");
        lines.flush();
        assert!(lines.0.state().waiting.is_empty());
    }

    /// A disk that is full, and then is not.
    struct Full {
        full: Arc<AtomicBool>,
        written: Arc<Mutex<String>>,
    }

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.full.load(Ordering::Relaxed) {
                return Err(io::Error::from(io::ErrorKind::StorageFull));
            }
            self.written.lock().unwrap().push_str(&String::from_utf8_lossy(bytes));
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_of_failed_writes_are_counted() {
        let full = Arc::new(AtomicBool::new(true));
        let written = Arc::new(Mutex::default());
        let disk = Full { full: Arc::clone(&full), written: Arc::clone(&written) };
        let lines = Lines::bounded(disk, 100).unwrap();
        for line in ["first\n", "second\nthird\n"] {
            lines.add(line.as_bytes());
            lines.flush();
        }
        full.store(false, Ordering::Relaxed);
        lines.add(b"fourth\n");
        lines.flush();
        let text = written.lock().unwrap().clone();
        assert!(text.starts_with("homing: 3 lines") && text.ends_with("in time\nfourth\n"), "{text}");
    }

    #[test]
    fn a_flush_does_not_wait_for_ever() {
        let (lines, opener, _written) = gated(100);
        lines.add(b"a line\n");
        lines.flush();
        assert!(lines.0.state().writing);
        drop(opener);
    }
}
