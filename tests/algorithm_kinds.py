"""Every algorithm of the library, so that matrices of tests run over a new one without new test code."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import rlhf_lightning.algorithms
from rlhf_lightning.algorithms import Algorithm


def _concrete(kind: type[Algorithm]) -> Iterator[type[Algorithm]]:
    if not inspect.isabstract(kind) and kind.__module__.startswith(f"{rlhf_lightning.algorithms.__name__}."):
        yield kind
    for each in kind.__subclasses__():
        yield from _concrete(each)


KINDS = sorted(_concrete(Algorithm), key=lambda kind: kind.__name__)
OF_PAIRS = [kind for kind in KINDS if "pairs" in kind.learns_from]
OF_REWARDS = [kind for kind in KINDS if "rewards" in kind.learns_from]
OF_PROMPTS = [kind for kind in KINDS if "prompts" in kind.learns_from]
OF_LABELS = [kind for kind in KINDS if "labels" in kind.learns_from]
OFFLINE_RUNS = {
    f"offline {kind.__name__}": [
        *("--config", "dpo_offline.yaml", "--model.algorithm", kind.__name__),
        *(("--data", "PlaygroundLabels") if kind in OF_LABELS else ()),
    ]
    for kind in (*OF_PAIRS, *OF_LABELS)
    if kind.__name__ != "DPO"
}
"""`dpo_offline.yaml` with every other algorithm that learns from recorded pairs or labels."""

HAVE_CLIPPED = [kind for kind in OF_REWARDS if any(hasattr(kind, name) for name in ("clip_range", "ratio_cap"))]
"""Those that log `policy/clip_fraction`."""
ONLINE_RUNS = {
    f"online {kind.__name__}": [
        *("--config", "ppo.yaml", "--model.algorithm", kind.__name__),
        *("--model.algorithm.epochs", "2", "--model.algorithm.minibatches", "2", "--model.iterations", "2"),
        *(("--model.algorithm.responses_per_prompt", "2") if kind.responses_per_prompt > 2 else ()),
    ]
    for kind in OF_REWARDS
    if kind.__name__ != "PPO"
}
"""`ppo.yaml` with every other algorithm that learns from rewards, in two rollouts of four steps."""
ONLINE_RUNS |= {
    f"online {kind.__name__}": [
        *("--config", "distillation.yaml", "--model.algorithm", kind.__name__),
        *("--model.algorithm.epochs", "2", "--model.algorithm.minibatches", "2", "--model.iterations", "2"),
    ]
    for kind in OF_PROMPTS
}
