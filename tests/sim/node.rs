//! A node's life: its tasks, which can be ended at any await or suspended, and the engine that they make up.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use futures_util::future::BoxFuture;
use homing::tasks::Executor;
use tokio::sync::{Notify, oneshot};

use crate::history::{History, Life, What};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    Running,
    Suspended,
    Dead,
}

/// The tasks of one start of a node.
pub(crate) struct Process {
    pub(crate) life: Life,
    history: History,
    state: Mutex<State>,
    /// Rung when it ends.
    pub(crate) ended: Notify,
}

struct State {
    mode: Mode,
    /// The process ends when its tasks have been polled so many times more.
    polls_left: Option<u64>,
    /// Of each task that is not over.
    wakers: Vec<Option<Waker>>,
}

impl Process {
    pub(crate) fn new(life: Life, history: History) -> Arc<Self> {
        let state = State { mode: Mode::Running, polls_left: None, wakers: Vec::new() };
        Arc::new(Self { life, history, state: Mutex::new(state), ended: Notify::new() })
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.state.lock().unwrap().mode == Mode::Dead
    }

    /// Ends it at the await after so many more polls.
    pub(crate) fn crash_after(&self, polls: u64) {
        self.state.lock().unwrap().polls_left = Some(polls);
    }

    /// Ends it now: whatever its tasks hold is dropped, nothing of them runs any more.
    pub(crate) fn end(&self) {
        let mut state = self.state.lock().unwrap();
        if state.mode != Mode::Dead {
            state.end();
            drop(state);
            self.ended.notify_one();
        }
    }

    pub(crate) fn crash(&self) {
        if !self.is_dead() {
            self.history.note(What::Crashed(self.life));
            self.end();
        }
    }

    /// Lets time pass without it.
    pub(crate) fn suspend(&self) {
        let mut state = self.state.lock().unwrap();
        if state.mode == Mode::Running {
            self.history.note(What::Suspended(self.life));
            state.mode = Mode::Suspended;
        }
    }

    pub(crate) fn resume(&self) {
        let mut state = self.state.lock().unwrap();
        if state.mode == Mode::Suspended {
            self.history.note(What::Resumed(self.life));
            state.mode = Mode::Running;
            state.wake();
        }
    }

    /// Runs something within the process; `None`: it ended first.
    pub(crate) async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        task: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        let (answer, answered) = oneshot::channel();
        let task = async move {
            drop(answer.send(task.await));
        };
        self.spawn("a call", Box::pin(task));
        answered.await.ok()
    }

    /// Whether a task may be polled now.
    fn before_poll(&self, task: usize, waker: &Waker) -> Mode {
        let mut state = self.state.lock().unwrap();
        if state.mode == Mode::Running {
            match &mut state.polls_left {
                Some(0) => {
                    self.history.note(What::Crashed(self.life));
                    state.end();
                    self.ended.notify_one();
                }
                Some(left) => *left -= 1,
                None => {}
            }
        }
        if state.mode != Mode::Dead {
            match &mut state.wakers[task] {
                Some(known) => known.clone_from(waker),
                none => *none = Some(waker.clone()),
            }
        }
        state.mode
    }
}

impl State {
    fn end(&mut self) {
        self.mode = Mode::Dead;
        self.wake();
    }

    fn wake(&mut self) {
        for waker in self.wakers.iter().flatten() {
            waker.wake_by_ref();
        }
    }
}

/// A process as the engine's executor.
pub(crate) struct OfProcess(pub(crate) Arc<Process>);

impl Executor for OfProcess {
    fn spawn(&self, name: &'static str, task: BoxFuture<'static, ()>) {
        self.0.spawn(name, task);
    }
}

impl Process {
    fn spawn(self: &Arc<Self>, _name: &'static str, task: BoxFuture<'static, ()>) {
        let number = {
            let mut state = self.state.lock().unwrap();
            state.wakers.push(None);
            state.wakers.len() - 1
        };
        drop(tokio::spawn(Task { process: Arc::clone(self), number, future: Some(task) }));
    }
}

struct Task {
    process: Arc<Process>,
    number: usize,
    future: Option<BoxFuture<'static, ()>>,
}

impl Future for Task {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        match self.process.before_poll(self.number, context.waker()) {
            Mode::Suspended => return Poll::Pending,
            Mode::Dead => self.future = None,
            Mode::Running => {
                if let Some(future) = &mut self.future
                    && future.as_mut().poll(context).is_pending()
                {
                    return Poll::Pending;
                }
                self.future = None;
            }
        }
        self.process.state.lock().unwrap().wakers[self.number] = None;
        Poll::Ready(())
    }
}
