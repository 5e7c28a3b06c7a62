//! The tasks of one node, started in one place and under guard.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use crate::failure::Failure;

/// Starts a node's tasks: on the runtime, or through an [`Executor`] that can end or suspend all of them. Cheap to clone.
#[derive(Clone)]
pub struct Tasks {
    failure: Failure,
    executor: Option<Arc<dyn Executor>>,
}

/// Runs a node's tasks in the runtime's stead, for simulations.
pub trait Executor: Send + Sync + 'static {
    /// Runs a task until it ends, or until the node does: the executor may drop it at any await, or not poll it for a
    /// while. `name` is for the log.
    fn spawn(&self, name: &'static str, task: BoxFuture<'static, ()>);
}

impl Tasks {
    /// Tasks on the runtime; `failure` is set when one of them panics.
    pub fn new(failure: Failure) -> Self {
        Self { failure, executor: None }
    }

    /// Tasks that an executor runs; `failure` is set when one of them panics.
    pub fn on(executor: Arc<dyn Executor>, failure: Failure) -> Self {
        Self { failure, executor: Some(executor) }
    }

    /// Starts a task. One that panics sets the failure, since messages would wait for it unnoticed.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        match &self.executor {
            None => drop(self.failure.spawn(name, task)),
            Some(executor) => executor.spawn(name, Box::pin(self.failure.guard(name, task))),
        }
    }

    /// The failure that is set when a task panics.
    pub fn failure(&self) -> &Failure {
        &self.failure
    }
}
