//! A run's plan, which follows from its seed: how many nodes, what clients ask for when, and which faults come when.

use std::time::Duration;

use homing::store::model::Processes;

use crate::dice::Dice;
use crate::link::Storm;

/// When faults end.
pub(crate) const HEAL: Duration = Duration::from_secs(430);
/// The least that a run lasts.
pub(crate) const LEAST: Duration = Duration::from_mins(10);
/// When schedules end.
pub(crate) const SCHEDULES_END: Duration = Duration::from_secs(565);
/// When all must have ended: late steps have to be found by the leases that are compared each five minutes.
pub(crate) const LAST: Duration = Duration::from_mins(25);

/// Destinations.
pub(crate) const HOSTS: u64 = 4;
/// Queues and keys.
pub(crate) const QUEUES: usize = 3;
pub(crate) const KEYS: usize = 4;
pub(crate) const SCHEDULES: usize = 2;
pub(crate) const LABELS: u64 = 3;

/// How a destination fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Failing {
    Status(u16),
    /// The connection is refused.
    Refuse,
    /// No answer comes.
    Hang,
    /// The answer says that no further attempt shall be made.
    Final,
}

/// A destination's behaviour towards a message: so many attempts fail, then the answer is 200, each after that time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Script {
    pub(crate) host: u64,
    pub(crate) latency: Duration,
    pub(crate) fails: u32,
    pub(crate) failing: Failing,
}

/// A message to publish.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    pub(crate) script: Script,
    pub(crate) retries: u32,
    pub(crate) delay: Duration,
    pub(crate) timeout: Duration,
    pub(crate) queue: Option<usize>,
    pub(crate) key: Option<usize>,
    pub(crate) deduplication: Option<u64>,
    pub(crate) callback: Option<Script>,
    pub(crate) failure_callback: Option<Script>,
    pub(crate) label: u64,
}

/// A client's request.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Publish(Vec<Spec>),
    /// Of one of the messages that were published last.
    Cancel {
        back: usize,
    },
    CancelEach {
        back: usize,
        count: usize,
    },
    CancelLabel(u64),
    RetryDeadLetters,
    SetQueue {
        queue: usize,
        parallelism: Option<u32>,
        paused: Option<bool>,
    },
    PauseKey {
        key: usize,
        paused: bool,
    },
    PutSchedule(usize, Spec),
    PauseSchedule(usize),
    ResumeSchedule(usize),
    RotateKeys,
}

/// A fault.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// The process ends at the await after so many polls, and is started again later.
    Crash {
        node: usize,
        polls: u64,
        down: Duration,
    },
    Suspend {
        node: usize,
        time: Duration,
    },
    /// The node stops as told, and is started again.
    Restart {
        node: usize,
        grace: Duration,
    },
    Storm {
        nodes: Vec<usize>,
        storm: Storm,
        time: Duration,
    },
}

/// A flow-control key, as all of its messages describe it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key {
    pub(crate) parallelism: Option<u32>,
    pub(crate) rate: Option<u32>,
    pub(crate) period_s: u32,
}

#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) processes: Processes,
    pub(crate) nodes: usize,
    pub(crate) latency: Duration,
    /// Attempts at once on a node, and deliveries in its memory.
    pub(crate) concurrency: usize,
    pub(crate) prefetch: usize,
    pub(crate) keys: Vec<Key>,
    /// The most that each queue lets through at any time.
    pub(crate) parallelism: Vec<u32>,
    pub(crate) ops: Vec<(Duration, usize, Op)>,
    pub(crate) faults: Vec<(Duration, Fault)>,
}

impl Plan {
    /// Whether nodes have so little room that messages wait for it.
    pub(crate) fn is_tight(&self) -> bool {
        self.concurrency < 100
    }

    pub(crate) fn new(seed: u64) -> Self {
        let dice = Dice::new(seed);
        let (processes, nodes) = match dice.below(10) {
            0..4 => (Processes::One, 1),
            4..5 => (Processes::Several, 1),
            5..8 => (Processes::Several, 2),
            _ => (Processes::Several, 3),
        };
        let tight = dice.percent(25);
        let key = |_| Key {
            parallelism: dice.percent(60).then(|| u32::try_from(dice.between(1, 4)).unwrap()),
            rate: dice.percent(60).then(|| u32::try_from(dice.between(1, 6)).unwrap()),
            period_s: dice.one_of(&[1, 2, 5, 10]),
        };
        let keys: Vec<Key> = (0..KEYS).map(key).collect();
        let mut plan = Self {
            processes,
            nodes,
            latency: dice.one_of(&[Duration::ZERO, Duration::ZERO, ms(2), ms(8)]),
            concurrency: if tight { 4 } else { 256 },
            prefetch: if tight { 8 } else { 512 },
            keys,
            parallelism: (0..QUEUES).map(|_| u32::try_from(dice.one_of(&[1, 1, 2, 3])).unwrap()).collect(),
            ops: Vec::new(),
            faults: Vec::new(),
        };
        let faulty = dice.percent(85);
        // Much happens within seconds, then little.
        let bursts: Vec<Duration> = (0..dice.between(2, 6)).map(|_| ms(dice.below(400_000))).collect();
        let time = || {
            if dice.percent(70) {
                dice.one_of(&bursts) + dice.up_to(ms(8_000))
            } else {
                ms(dice.below(400_000))
            }
        };
        for _ in 0..dice.between(15, 45) {
            let at = time();
            let op = plan.op(&dice);
            let publishes = matches!(op, Op::Publish(_));
            plan.ops.push((at, dice.index(plan.nodes), op));
            if publishes && dice.percent(25) {
                let cancel = Op::Cancel { back: dice.index(3) };
                plan.ops.push((at + dice.up_to(ms(4_000)), dice.index(plan.nodes), cancel));
            }
        }
        if faulty {
            for _ in 0..dice.between(1, 7) {
                plan.faults.push((time() + ms(1), plan.fault(&dice)));
            }
        }
        plan.ops.sort_by_key(|(at, ..)| *at);
        plan.faults.sort_by_key(|(at, _)| *at);
        plan
    }

    fn op(&self, dice: &Dice) -> Op {
        match dice.below(100) {
            0..58 => {
                let count = if dice.percent(70) { 1 } else { dice.between(2, 6) };
                Op::Publish((0..count).map(|_| spec(dice)).collect())
            }
            58..68 => Op::Cancel { back: dice.index(12) },
            68..72 => Op::CancelEach { back: dice.index(8), count: 1 + dice.index(8) },
            72..76 => Op::CancelLabel(dice.below(LABELS)),
            76..81 => Op::RetryDeadLetters,
            81..88 => {
                let queue = dice.index(QUEUES);
                let most = u64::from(self.parallelism[queue]);
                let parallelism = dice.percent(40).then(|| u32::try_from(dice.between(1, most + 1)).unwrap());
                Op::SetQueue { queue, parallelism, paused: Some(dice.percent(40)) }
            }
            88..92 => Op::PauseKey { key: dice.index(KEYS), paused: dice.percent(45) },
            92..95 => {
                let delay = if dice.percent(70) { Duration::ZERO } else { ms(3000) };
                let spec = Spec { deduplication: None, delay, ..spec(dice) };
                Op::PutSchedule(dice.index(SCHEDULES), spec)
            }
            95..96 => Op::PauseSchedule(dice.index(SCHEDULES)),
            96..98 => Op::ResumeSchedule(dice.index(SCHEDULES)),
            _ => Op::RotateKeys,
        }
    }

    fn fault(&self, dice: &Dice) -> Fault {
        let node = dice.index(self.nodes);
        let alone = self.processes == Processes::One;
        match dice.below(10) {
            0..4 => {
                let polls = dice.below(2 << dice.below(9));
                Fault::Crash { node, polls, down: dice.up_to(ms(30_000)) }
            }
            4..6 => Fault::Suspend { node, time: dice.up_to(ms(60_000)) },
            6..7 => Fault::Restart { node, grace: dice.up_to(ms(5_000)) },
            _ => {
                let nodes = if dice.percent(50) { (0..self.nodes).collect() } else { vec![node] };
                let severe = dice.percent(30);
                let storm = Storm {
                    refuse: if severe { 100 } else { dice.below(40) },
                    lose: dice.one_of(&[0, 10, 40]),
                    late: if alone || severe { 0 } else { dice.one_of(&[0, 10, 30]) },
                    slow: dice.one_of(&[Duration::ZERO, ms(30), ms(1_000), ms(6_000)]),
                };
                Fault::Storm { nodes, storm, time: ms(200) + dice.up_to(ms(40_000)) }
            }
        }
    }
}

fn script(dice: &Dice) -> Script {
    let failing = match dice.below(10) {
        0..5 => Failing::Status(dice.one_of(&[500, 404, 503])),
        5..7 => Failing::Refuse,
        7..9 => Failing::Hang,
        _ => Failing::Final,
    };
    Script {
        host: dice.below(HOSTS),
        latency: if dice.percent(60) { dice.up_to(ms(60)) } else { dice.up_to(ms(4_000)) },
        fails: if dice.percent(50) { 0 } else { u32::try_from(dice.between(1, 5)).unwrap() },
        failing,
    }
}

fn spec(dice: &Dice) -> Spec {
    let callback =
        |percent| dice.percent(percent).then(|| Script { host: dice.below(HOSTS), ..script(dice) });
    Spec {
        script: script(dice),
        retries: u32::try_from(dice.below(4)).unwrap(),
        delay: if dice.percent(65) { Duration::ZERO } else { dice.up_to(ms(20_000)) },
        timeout: Duration::from_secs(dice.between(1, 7)),
        queue: dice.percent(35).then(|| dice.index(QUEUES)),
        key: dice.percent(30).then(|| dice.index(KEYS)),
        deduplication: dice.percent(15).then(|| dice.below(4)),
        callback: callback(30),
        failure_callback: callback(30),
        label: dice.below(LABELS),
    }
}

pub(crate) const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}
