//! What a queue's or a key's limits are, and what changes those of a key: messages, and a user's pins.

use super::starts::Rate;
use crate::domain::message::FlowControl;

/// How many may pass.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Limits {
    /// At once; `None`: no limit.
    pub parallelism: Option<u32>,
    /// Within a period; `None`: no limit. A queue has none.
    pub rate: Option<Rate>,
}

/// A key's limits, and which of them a user has pinned.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Control {
    pub limits: Limits,
    pub paused: bool,
    pub pinned_parallelism: bool,
    pub pinned_rate: bool,
}

/// What a user does to a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FlowChange {
    Pause,
    Resume,
    /// Fixes these limits, `None` is left as it is; what was started counts no more.
    Pin(Limits),
    /// Lets messages change these limits again.
    Unpin {
        parallelism: bool,
        rate: bool,
    },
    /// What was started counts no more.
    ResetRate,
}

impl FlowChange {
    /// Whether it makes a key that is not there.
    pub const fn creates(&self) -> bool {
        matches!(self, Self::Pause | Self::Resume | Self::Pin(_))
    }

    /// Whether what was started counts no more.
    pub const fn resets_rate(&self) -> bool {
        matches!(self, Self::Pin(_) | Self::ResetRate)
    }
}

impl Control {
    /// Takes over what a message says about the key that it was accepted with: of what is not pinned it is the last word,
    /// in what it does not say as well.
    pub fn follow(&mut self, flow: &FlowControl) {
        if !self.pinned_parallelism {
            self.limits.parallelism = flow.parallelism;
        }
        if !self.pinned_rate {
            self.limits.rate = flow.rate.map(|count| Rate { count, period_s: flow.period_s });
        }
    }

    /// Applies what a user does.
    pub fn apply(&mut self, change: &FlowChange) {
        match change {
            FlowChange::Pause => self.paused = true,
            FlowChange::Resume => self.paused = false,
            FlowChange::Pin(limits) => {
                if limits.parallelism.is_some() {
                    self.limits.parallelism = limits.parallelism;
                    self.pinned_parallelism = true;
                }
                if limits.rate.is_some() {
                    self.limits.rate = limits.rate;
                    self.pinned_rate = true;
                }
            }
            FlowChange::Unpin { parallelism, rate } => {
                self.pinned_parallelism &= !parallelism;
                self.pinned_rate &= !rate;
            }
            FlowChange::ResetRate => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(parallelism: u32, rate: u32) -> Limits {
        let some = |number: u32| (number > 0).then_some(number);
        Limits { parallelism: some(parallelism), rate: some(rate).map(|count| Rate { count, period_s: 60 }) }
    }

    fn says(parallelism: u32, rate: u32) -> FlowControl {
        let Limits { parallelism, rate } = limits(parallelism, rate);
        FlowControl { key: "k".to_owned(), parallelism, rate: rate.map(|rate| rate.count), period_s: 60 }
    }

    #[test]
    fn the_last_message_has_the_last_word() {
        let mut control = Control::default();
        for (parallelism, rate) in [(2, 0), (0, 5), (3, 7), (0, 1)] {
            control.follow(&says(parallelism, rate));
            assert_eq!(control.limits, limits(parallelism, rate));
        }
    }

    #[test]
    fn what_is_pinned_stays_until_a_message_comes_after_the_unpinning() {
        let mut control = Control::default();
        control.follow(&says(2, 5));
        control.apply(&FlowChange::Pin(limits(9, 0)));
        assert_eq!(control.limits, limits(9, 5));
        control.follow(&says(1, 4));
        assert_eq!(control.limits, limits(9, 4));
        control.apply(&FlowChange::Pin(limits(0, 8)));
        control.follow(&says(1, 4));
        assert_eq!(control.limits, limits(9, 8));
        control.apply(&FlowChange::Unpin { parallelism: true, rate: false });
        assert_eq!(control.limits, limits(9, 8));
        control.follow(&says(1, 4));
        assert_eq!(control.limits, limits(1, 8));
        control.apply(&FlowChange::Unpin { parallelism: false, rate: true });
        control.follow(&says(1, 4));
        assert_eq!(control.limits, limits(1, 4));
    }

    #[test]
    fn pauses_come_and_go() {
        let mut control = Control::default();
        for (change, paused) in
            [(FlowChange::Pause, true), (FlowChange::Pause, true), (FlowChange::Resume, false)]
        {
            control.apply(&change);
            assert_eq!(control.paused, paused);
        }
        assert_eq!(control, Control::default());
    }
}
