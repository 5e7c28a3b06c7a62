//! Chance: ids, keys, and orders that nobody should be able to guess, or that nodes should not share.
//!
//! A [`Chance`] is handed to whoever draws, so that a simulation repeats itself from its seed.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use rand::distr::{Distribution, StandardUniform};
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{Rng, RngExt as _, SeedableRng as _};

/// A source of random values. Cheap to clone; clones are one source.
#[derive(Clone, Debug)]
pub struct Chance(Source);

#[derive(Clone, Debug)]
enum Source {
    /// The system's, fit for keys.
    System,
    Seeded(Arc<Mutex<StdRng>>),
}

impl Chance {
    /// The system's randomness, fit for keys.
    pub const fn system() -> Self {
        Self(Source::System)
    }

    /// The values that follow from a seed, for simulations.
    pub fn seeded(seed: u64) -> Self {
        Self(Source::Seeded(Arc::new(Mutex::new(StdRng::seed_from_u64(seed)))))
    }

    /// A value, each as likely as the others.
    pub fn random<T>(&self) -> T
    where
        StandardUniform: Distribution<T>,
    {
        self.draw(|rng| rng.random())
    }

    /// A number of this range, each as likely as the others.
    pub fn number(&self, range: Range<i64>) -> i64 {
        self.draw(|rng| rng.random_range(range))
    }

    /// Puts the items into any order, each as likely as the others.
    pub fn shuffle<T>(&self, items: &mut [T]) {
        self.draw(|rng| items.shuffle(rng));
    }

    #[expect(clippy::disallowed_methods, reason = "here is where the system's randomness is asked for")]
    fn draw<T>(&self, draw: impl FnOnce(&mut dyn Rng) -> T) -> T {
        match &self.0 {
            Source::System => draw(&mut rand::rng()),
            Source::Seeded(rng) => draw(&mut *rng.lock().unwrap_or_else(PoisonError::into_inner)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_its_values() {
        let drawn = |seed| {
            let chance = Chance::seeded(seed);
            let mut order: Vec<u32> = (0..20).collect();
            chance.shuffle(&mut order);
            (chance.random::<u64>(), chance.clone().random::<[u8; 16]>(), chance.number(1..i64::MAX), order)
        };
        assert_eq!(drawn(7), drawn(7));
        assert_ne!(drawn(7), drawn(8));
    }
}
