"""One place that makes a run repeatable."""

import random
from collections.abc import Sequence

import numpy as np
import torch


def seed_everything(*parts: int) -> None:
    """Seed Python, NumPy and PyTorch (CPU and GPU) from, say, a run's seed and an epoch.

    Seeding anew at every epoch lets a run that was interrupted go on without any saved generator state.
    """
    seed = int(np.random.SeedSequence(parts).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def sample_seed(seed: int, number: int, sample: int) -> int:
    """Of one sample of trial `number`: sample 0 has the trial's own, and no two of up to 100,000 trials share one."""
    return seed + number + 100_000 * sample


def some_of(places: Sequence[int], most: int) -> list[int]:
    """At most `most` of some places in their order, others each time: what is compared nobody can know beforehand."""
    return sorted(np.random.default_rng().choice(places, min(most, len(places)), replace=False).tolist())
