"""The gradient of a policy's optimiser step does not depend on how the step is cut, padded or ordered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from algorithm_kinds import OF_LABELS, OF_PAIRS, OF_PROMPTS, OF_REWARDS

from rlhf_lightning.algorithms.base import Algorithm
from rlhf_lightning.algorithms.dpo import DPO
from rlhf_lightning.algorithms.grpo import GRPO
from rlhf_lightning.algorithms.kl_penalty import KLPenalty
from rlhf_lightning.algorithms.ppo import PPO
from rlhf_lightning.algorithms.reinforce import REINFORCE
from rlhf_lightning.generation.local import Sampler
from rlhf_lightning.models.loading import ModelConfig
from rlhf_lightning.models.reference import ReferenceModel
from rlhf_lightning.rollouts.labels import with_mismatched
from rlhf_lightning.seeding import Randomness
from rlhf_lightning.stages import PolicyStage
from rlhf_lightning.types import Batch, Rollout
from tests.holes import TURNS, ReadingSampler
from tests.invariance.conftest import (
    ROWS,
    Step,
    Taken,
    WeighedTokens,
    apart,
    assert_pieces_change_nothing,
    gradient_of_parts,
    move,
    padded,
    standing_still,
)

KINDS = ["", "", "tied", "", "unscored", "", "", ""]
PROMPTS = [{"prompt": "please " * (i % 4) + "say", "kind": kind} for i, kind in enumerate(KINDS)]
PAIRS = [
    {
        "prompt": "say" * (1 + i % 3),
        "chosen": "hello " * (1 + i % 4),
        "rejected": "no" * (1 + i),
        "probability": [1.0, 0.5, 0.8, None][i % 4],
    }
    for i in range(ROWS)
]
PAIRS_OF_TURNS = [
    {
        "prompt": [{"role": "user", "content": pair["prompt"]}],
        "chosen": [{"role": "assistant", "content": pair["chosen"]}, *TURNS[1:]],
        "rejected": [{"role": "assistant", "content": pair["rejected"]}, *TURNS[1:3]],
    }
    for pair in PAIRS
]


def labelled(pairs: list[Any]) -> list[Any]:
    return [
        {"prompt": row["prompt"], "response": row["chosen" if i % 3 else "rejected"], "label": i % 3 > 0}
        for i, row in enumerate(pairs)
    ]


def in_loss(estimator: Any, weighted: bool = False) -> KLPenalty:
    return KLPenalty(coef=0.3, placement="loss", estimator=estimator, ratio_weighted=weighted)


ONE: Any = {"epochs": 1, "minibatches": 1}
ONLINE: dict[str, Algorithm] = {
    "ppo": PPO(**ONE, value_coef=0.5),
    "ppo, several responses": PPO(**ONE, responses_per_prompt=2, truncation_penalty=0.5, gamma=0.9),
    "ppo, bootstrapped, lambdas of two": PPO(**ONE, bootstrap_truncated=True, value_lambda=1.0, gamma=0.9),
    "ppo, dual clip, entropy, k2 in the loss": PPO(**ONE, entropy_coef=0.1, dual_clip=1.2, kl=in_loss("k2")),
    "ppo, weighted k3 in the loss": PPO(**ONE, whiten_advantages=False, kl=in_loss("k3", True)),
    "reinforce, leave one out": REINFORCE(),
    "reinforce, batch": REINFORCE(baseline="batch", responses_per_prompt=1),
    "reinforce, moving": REINFORCE(baseline="moving", responses_per_prompt=2),
    "reinforce, none, k2 in the loss": REINFORCE(baseline="none", kl=in_loss("k2")),
    "grpo, sequence": GRPO(responses_per_prompt=4),
    "grpo, token": GRPO(responses_per_prompt=4, aggregation="token", clip_range_high=0.28),
    "grpo, dr_grpo": GRPO(responses_per_prompt=4, aggregation="dr_grpo", max_response_length=8),
    "grpo, kl in the reward": GRPO(responses_per_prompt=4, kl=KLPenalty(coef=0.3)),
    "dpo, two responses": DPO(),
    "dpo, five responses, smoothed": DPO(responses_per_prompt=5, label_smoothing=0.1),
    "dpo, three responses, ipo": DPO(responses_per_prompt=3, loss_type="ipo"),
    **{f"{kind.__name__} as it is": kind(**ONE) for kind in OF_REWARDS},
}
OFFLINE: dict[str, Algorithm] = {
    "offline dpo": DPO(),
    "offline dpo, smoothed": DPO(label_smoothing=0.1),
    "offline ipo": DPO(loss_type="ipo"),
    "offline ipo, normalised": DPO(loss_type="ipo_length_normalized"),
    "offline, hinge, robust": DPO(loss_type="hinge", robust=True, label_smoothing=0.1),
    "offline, anchored, with nll, desensitised to length": DPO(loss_type="apo_zero", nll_coef=0.5, ld_alpha=0.5),
    **{f"offline {kind.__name__} as it is": kind(**ONE) for kind in (*OF_PAIRS, *OF_LABELS)},
}
STAGES: dict[str, dict[str, Any]] = {
    **{name: {"algorithm": algorithm, "reward": WeighedTokens()} for name, algorithm in ONLINE.items()},
    **{name: {"algorithm": algorithm} for name, algorithm in OFFLINE.items()},
    **{f"{kind.__name__} as it is": {"algorithm": kind(**ONE), "reference": None} for kind in OF_PROMPTS},
    "ppo, separate critic": {"algorithm": ONLINE["ppo"], "reward": WeighedTokens(), "critic": "separate"},
    "ppo, separate critic, bootstrapped": {
        "algorithm": ONLINE["ppo, bootstrapped, lambdas of two"],
        "reward": WeighedTokens(),
        "critic": "separate",
    },
}
HOLES = ", with holes"
NAMES = [name + suffix for suffix in ("", HOLES) for name in STAGES]
"""Every stage on responses that the policy chose every token of, and on responses with tokens that it read."""


def stage_of(name: str, model: ModelConfig) -> tuple[PolicyStage, list[Any]]:
    options, holes = deepcopy(STAGES[name.removesuffix(HOLES)]), name.endswith(HOLES)
    sampler = (ReadingSampler if holes else Sampler)(8, temperature=0.8)
    teacher = ReferenceModel(str(model.name_or_path), dtype="bfloat16")  # whose rounding makes it another model
    reference = {"reference": teacher if "reference" in options else "full"}
    stage = PolicyStage(model, generation=sampler, optimizer=standing_still, **options | reference)
    pairs = PAIRS_OF_TURNS if holes else PAIRS
    return stage, {"rewards": PROMPTS, "prompts": PROMPTS, "pairs": pairs, "labels": labelled(pairs)}[
        stage.roles.source
    ]


def rollout_of(stage: PolicyStage, rows: list[Any]) -> Rollout:
    assert stage.collector is not None
    with torch.no_grad():
        if stage.is_recorded:
            judged = stage.roles.source == "labels"
            given = with_mismatched(rows) if judged else rows
            return stage.collector.recorded(given, None, stage.device, labelled=judged)
        algorithm, randomness = stage.algorithm, Randomness(0, 0, tuple(range(len(rows))))
        options = (algorithm.responses_per_prompt, algorithm.needs_values, randomness)
        measured = {"greedy_baseline": algorithm.greedy_baseline, "bootstraps": algorithm.bootstraps}
        return stage.collector.online(rows, *options, **measured)


def parts_of(stage: PolicyStage, rollout: Rollout, parts: int, seed: int) -> Iterator[Batch]:
    """Credit and cut as in a run; a copy of the algorithm, as some remember what they were given."""
    batch = deepcopy(stage.algorithm).prepare(rollout)
    assert stage.trainer is not None
    stage.trainer.accumulate_grad_batches = parts
    yield from stage.rollouts.buffer(batch, seed)


@pytest.mark.parametrize("name", NAMES)
def test_lightning_gathers_the_same_gradient_from_any_number_of_parts(
    name: str, model: ModelConfig, step: Step
) -> None:
    whole, cut = [step(*stage_of(name, model), ROWS, parts) for parts in (1, 4)]
    assert apart(whole, cut) < 1e-6


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pack", [True, False])
def test_pieces_of_a_pass_change_neither_gradient_nor_metrics(
    name: str, pack: bool, model: ModelConfig, taken: Callable[..., Taken]
) -> None:
    given = replace(model, pack=pack)
    whole, cut = taken(*stage_of(name, given), ROWS), taken(*stage_of(name, given), ROWS, 2, 20)
    assert_pieces_change_nothing(whole, cut)


@pytest.mark.parametrize("name", ["ppo, separate critic", "offline dpo", "ppo" + HOLES])
def test_pieces_under_autocast_change_no_more_than_its_rounding(
    name: str, model: ModelConfig, taken: Callable[..., Taken]
) -> None:
    whole, cut = [taken(*stage_of(name, model), ROWS, 1, limit, "bf16-mixed") for limit in (None, 20)]
    assert cut.micro_batches > whole.micro_batches == 1
    assert apart(whole.gradient, cut.gradient) < 0.02


@pytest.mark.parametrize("name", NAMES)
def test_neither_parts_nor_padding_nor_order_change_the_gradient(name: str, model: ModelConfig, step: Step) -> None:
    stage, rows = stage_of(name, model)
    step(stage, rows, ROWS)
    rollout = rollout_of(stage, rows)
    assert bool((rollout.mask.sum(-1) < rollout.reach).any()) == name.endswith(HOLES)
    move(stage)
    whole = gradient_of_parts(stage, parts_of(stage, rollout, 1, 0), 1)
    together = 1 if rollout.preferences is None else 2  # the two rows of a recorded pair are adjacent
    order = rollout.reach.view(-1, together).sum(-1).argsort(stable=True)
    by_length = rollout.rows((order[:, None] * together + torch.arange(together)).flatten())
    backwards = rollout.rows(torch.arange(len(rollout)).flip(0))
    for other, parts, seed in ((rollout, 2, 0), (rollout, 8, 1), (by_length, 4, 2), (backwards, 1, 3)):
        wider = padded(other, 3, 2)
        given = (padded(part, 2, 1) for part in parts_of(stage, wider, parts, seed))
        assert apart(whole, gradient_of_parts(stage, given, parts)) < 3e-6  # RLOO multiplies rounding
