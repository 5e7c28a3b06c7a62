//! Deduplication within one batch: of several messages with one key, the first leads and the others follow its result,
//! so that the statements below see each key once.

use std::collections::HashMap;

use crate::store::{Accept, Accepted};

/// For each message that repeats a key of its batch: the index of the first one with that key.
pub(super) fn followers(batch: &[Accept]) -> HashMap<usize, usize> {
    let mut first: HashMap<&str, usize> = HashMap::new();
    let mut followers = HashMap::new();
    for (index, accept) in batch.iter().enumerate() {
        if let Some(deduplication) = &accept.deduplication {
            let leader = *first.entry(&deduplication.key).or_insert(index);
            if leader != index {
                followers.insert(index, leader);
            }
        }
    }
    followers
}

pub(super) fn leaders(batch: &[Accept], followers: &HashMap<usize, usize>) -> Vec<Accept> {
    batch
        .iter()
        .enumerate()
        .filter(|(index, _)| !followers.contains_key(index))
        .map(|(_, accept)| accept.clone())
        .collect()
}

/// The results of all, from those of the leaders in order.
pub(super) fn join(
    batch: &[Accept],
    followers: &HashMap<usize, usize>,
    leaders: Vec<Accepted>,
) -> Vec<Accepted> {
    let mut leaders = leaders.into_iter();
    let mut results: Vec<Accepted> = Vec::with_capacity(batch.len());
    for index in 0..batch.len() {
        let result = match followers.get(&index) {
            Some(&leader) => match &results[leader] {
                Accepted::Stored => Accepted::Duplicate(batch[leader].message.id.clone()),
                other => other.clone(),
            },
            None => leaders.next().expect("there is a result for each leader"),
        };
        results.push(result);
    }
    results
}
