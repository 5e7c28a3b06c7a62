//! Bugs that tests plant, so that the simulation proves that it finds them. A server has none of them.

/// A planted bug.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mutation {
    /// A message's publish is answered though storing it has failed.
    AnswersUnstored,
    /// Outcomes that have to be stored again are stored without their callbacks.
    ForgetsCallbacks,
    /// A step whose answer was lost puts no lease in doubt.
    DoubtsNothing,
    /// A node that was silent for too long goes on with what it held.
    TrustsOldLeases,
    /// A message is attempted that was cancelled between being stored and being in memory.
    MissesCancels,
    /// The store doesn't tell a node what was cancelled through others.
    HearsNoCancels,
    /// Nothing tells the task that claims that something will be due.
    TellsNothingDue,
    /// A duplicate's room in memory is not given back.
    KeepsRoom,
    /// An attempt that is late for its rate starts all the same.
    StartsLate,
    /// The store tells those that wait in a queue in the wrong order.
    PassesHead,
    /// The store lets a queue's next message go before the callbacks of the one before.
    FreesPlaceEarly,
    /// The store applies outcomes without a look at their leases.
    IgnoresLeases,
    /// The store takes a node's word for when a cancel was.
    TrustsClocks,
    /// The store fires a schedule whether or not its occurrence has been.
    FiresAgain,
    /// The store repeats an accept as if it was the first.
    AcceptsAgain,
}

#[cfg(feature = "model")]
mod planted {
    use std::cell::Cell;

    use super::Mutation;

    thread_local! {
        static PLANTED: Cell<Option<Mutation>> = const { Cell::new(None) };
    }

    /// Plants a bug in what this thread runs, in the place of the one before.
    pub fn plant(mutation: Option<Mutation>) {
        PLANTED.set(mutation);
    }

    /// Whether this bug is planted.
    pub(crate) fn on(mutation: Mutation) -> bool {
        PLANTED.get() == Some(mutation)
    }
}

#[cfg(feature = "model")]
pub(crate) use self::planted::on;
#[cfg(feature = "model")]
pub use self::planted::plant;

/// Whether this bug is planted: never.
#[cfg(not(feature = "model"))]
pub(crate) const fn on(_: Mutation) -> bool {
    false
}
