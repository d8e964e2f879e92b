//! The workloads: their names, what kind of loop each is, and the sizes of its blocks.
//!
//! | noun | |
//! |---|---|
//! | [`Workload`] | a row of the report |
//! | [`Shape`] | which loop runs it, and with what numbers |
//! | [`Sizes`] | how the sizes of its blocks are distributed |
//!
//! Not here: the loops themselves (`single` for one thread, `workers` for two and more).

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::random::Random;
use crate::trace::TraceName;

/// A workload. An operation is one allocation or one free; the first word of every block is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum, Serialize, Deserialize)]
pub(crate) enum Workload {
    /// One block of 64 bytes, again and again.
    #[value(name = "pair64")]
    Pair64,
    /// One block of 1024 bytes, again and again.
    #[value(name = "pair1k")]
    Pair1k,
    /// 10,000 blocks of 16 to 1024 bytes, then freed, the last one first.
    BatchLifo,
    /// The same, the first one first.
    BatchFifo,
    /// The same, in random order.
    BatchRandom,
    /// 10,000 live blocks of 16 bytes to 32 KiB, of which a random one is replaced.
    Churn,
    /// The same with blocks of 16 to 256 bytes.
    ChurnSmall,
    /// `churn` by two workers in one heap.
    #[value(name = "churn-x2")]
    ChurnX2,
    /// One worker allocates, the other one frees.
    Handover,
    /// Two workers with 5,000 live blocks each, a tenth of which the other one frees.
    Larson,
    /// 256 live blocks of 64 KiB to 1 MiB, of which a random one is replaced.
    Large,
    /// 100,000 blocks of 16 to 256 bytes in a heap that nobody has used, then all freed.
    #[value(name = "100k-cold")]
    Cold100k,
    /// The same in a heap that has done so before.
    #[value(name = "100k-warm")]
    Warm100k,
    /// What CPython does.
    TracePython,
    /// What a C++ compiler does.
    #[value(name = "trace-cc1plus")]
    TraceCc1plus,
    /// What `git log -p` does.
    TraceGit,
    /// `churn-small` with a million live blocks.
    #[value(name = "churn-1m")]
    Churn1m,
}

/// How the sizes of blocks are distributed.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Sizes {
    /// All sizes of a range are as likely.
    Uniform(usize, usize),
    /// Most blocks of most programs are small: 80 in 100 up to 256 bytes, 15 up to 4 KiB, 5 up to 32 KiB.
    Mixed,
}

impl Sizes {
    pub(crate) fn draw(self, random: &mut Random) -> usize {
        match self {
            Self::Uniform(low, high) => random.within(low, high),
            Self::Mixed => match random.next() % 100 {
                0..80 => random.within(16, 256),
                80..95 => random.within(257, 4096),
                _ => random.within(4097, 32 << 10),
            },
        }
    }

    pub(crate) fn range(self) -> RangeInclusive<usize> {
        match self {
            Self::Uniform(low, high) => low..=high,
            Self::Mixed => 16..=32 << 10,
        }
    }
}

/// In what order a batch is freed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    Lifo,
    Fifo,
    Random,
}

/// What two or more workers do together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Together {
    /// Each churns blocks of its own, of mixed sizes.
    Churn,
    /// The same with small blocks.
    ChurnSmall,
    /// The first allocates, the second frees.
    Handover,
    /// Each replaces its own blocks, and now and then frees one of the others'.
    Larson,
}

/// Which loop runs a workload.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Shape {
    /// One block.
    Pair(usize),
    /// Many blocks, then all freed.
    Batch { blocks: usize, sizes: Sizes, order: Order },
    /// A batch, in a process of its own that has done nothing else.
    Cold { blocks: usize, sizes: Sizes },
    /// Live blocks of which a random one is replaced; `steps` are drawn and then repeated.
    Churn { slots: usize, sizes: Sizes, steps: usize },
    /// Several workers.
    Team { workers: usize, together: Together },
    /// A recorded program.
    Trace(TraceName),
}

impl Workload {
    /// The rows of the report. The last one is not part of the means.
    pub(crate) const ALL: [Self; 17] = [
        Self::Pair64,
        Self::Pair1k,
        Self::BatchLifo,
        Self::BatchFifo,
        Self::BatchRandom,
        Self::Churn,
        Self::ChurnSmall,
        Self::ChurnX2,
        Self::Handover,
        Self::Larson,
        Self::Large,
        Self::Cold100k,
        Self::Warm100k,
        Self::TracePython,
        Self::TraceCc1plus,
        Self::TraceGit,
        Self::Churn1m,
    ];

    pub(crate) fn name(self) -> String {
        use clap::ValueEnum;
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// True if it counts in the geometric means.
    pub(crate) fn is_in_means(self) -> bool {
        self != Self::Churn1m
    }

    pub(crate) fn shape(self) -> Shape {
        let small = Sizes::Uniform(16, 256);
        let batch = |order| Shape::Batch { blocks: 10_000, sizes: Sizes::Uniform(16, 1024), order };
        match self {
            Self::Pair64 => Shape::Pair(64),
            Self::Pair1k => Shape::Pair(1024),
            Self::BatchLifo => batch(Order::Lifo),
            Self::BatchFifo => batch(Order::Fifo),
            Self::BatchRandom => batch(Order::Random),
            Self::Churn => Shape::Churn { slots: 10_000, sizes: Sizes::Mixed, steps: 100_000 },
            Self::ChurnSmall => Shape::Churn { slots: 10_000, sizes: small, steps: 100_000 },
            Self::ChurnX2 => Shape::Team { workers: 2, together: Together::Churn },
            Self::Handover => Shape::Team { workers: 2, together: Together::Handover },
            Self::Larson => Shape::Team { workers: 2, together: Together::Larson },
            Self::Large => Shape::Churn { slots: 256, sizes: Sizes::Uniform(64 << 10, 1 << 20), steps: 1_000 },
            Self::Cold100k => Shape::Cold { blocks: 100_000, sizes: small },
            Self::Warm100k => Shape::Batch { blocks: 100_000, sizes: small, order: Order::Fifo },
            Self::TracePython => Shape::Trace(TraceName::Python),
            Self::TraceCc1plus => Shape::Trace(TraceName::Cc1plus),
            Self::TraceGit => Shape::Trace(TraceName::Git),
            Self::Churn1m => Shape::Churn { slots: 1_000_000, sizes: small, steps: 200_000 },
        }
    }

    /// The sizes of its blocks.
    pub(crate) fn sizes(self) -> RangeInclusive<usize> {
        match self.shape() {
            Shape::Pair(size) => size..=size,
            Shape::Batch { sizes, .. } | Shape::Cold { sizes, .. } | Shape::Churn { sizes, .. } => sizes.range(),
            Shape::Team { together, .. } => together.sizes().range(),
            Shape::Trace(_) => 1..=usize::MAX,
        }
    }
}

impl Together {
    pub(crate) fn sizes(self) -> Sizes {
        match self {
            Self::Churn => Sizes::Mixed,
            Self::ChurnSmall => Sizes::Uniform(16, 256),
            Self::Handover | Self::Larson => Sizes::Uniform(16, 512),
        }
    }

    /// Live blocks of each worker.
    pub(crate) fn slots(self) -> usize {
        match self {
            Self::Churn | Self::ChurnSmall => 10_000,
            Self::Larson => 5_000,
            Self::Handover => 0,
        }
    }
}
