"""Requirements of an algorithm, checked against the reward, the reference and the generation of a stage."""

from __future__ import annotations

from lightning.pytorch import Trainer

from rlhf_lightning.algorithms.base import LEARNS_FROM, Algorithm, PolicyGradient
from rlhf_lightning.errors import UserError
from rlhf_lightning.generation.base import Generator
from rlhf_lightning.models.reference import ReferenceKind, ReferenceModel
from rlhf_lightning.rewards.base import Reward
from rlhf_lightning.training.correction import Correction
from rlhf_lightning.training.rows import visible_rows

REFERENCE_METRICS = ("kl/reference", "reference/gap")
"""Metrics that read the reference."""

RECORDED_COLUMNS = {"pairs": ("chosen", "rejected", "probability"), "labels": ("label", "response")}
"""Columns beside the prompt that rollouts of recorded rows read, by their source; rows must have the first."""


def rollout_source(algorithm: Algorithm, reward: Reward | None) -> str:
    """Decide what rollouts are made of: responses to score where there is a reward, else the first other thing that is declared.

    Raises:
        UserError: the algorithm needs a reward and there is none, or the reverse, or it declares an unknown word.
    """
    name, others = type(algorithm).__name__, [each for each in algorithm.learns_from if each != "rewards"]
    if unknown := set(algorithm.learns_from) - set(LEARNS_FROM):
        raise UserError(f"{name}.learns_from holds {min(unknown)!r}; it must be of {', '.join(LEARNS_FROM)}")
    if reward is None and not others:
        raise UserError(
            f"{name} learns from rewards and there is none: set model.reward, or use an algorithm that learns from recorded "
            "pairs, such as DPO"
        )
    if reward is None:
        return others[0]
    if "rewards" not in algorithm.learns_from:
        raise UserError(
            f"model.reward is {type(reward).__name__}; {name} learns from {' or '.join(others)} and reads no reward: set "
            "model.reward to null (model.evaluation_rewards measures held-out responses)"
        )
    return "rewards"


def check_components(algorithm: Algorithm, reward: Reward | None) -> None:
    """Refuse a reward that is no weighted sum where the algorithm reads each of the named scores.

    Raises:
        UserError: the algorithm needs components and the reward has no weights for them.
    """
    if algorithm.needs_components and (reward is None or reward.component_weights is None):
        found = "none" if reward is None else type(reward).__name__
        raise UserError(
            f"the reward is {found}; {type(algorithm).__name__} reads every named score of a weighted sum: set model.reward to "
            "WeightedSum, or give a reward of your own component_weights"
        )


def check_generation(generation: Generator) -> None:
    """Refuse greedy generation.

    Raises:
        UserError: the temperature is 0.
    """
    if generation.temperature == 0:
        raise UserError(
            "generation.temperature is 0 (greedy); training needs sampling. Set it above 0, for example to 1.0"
        )


def check_correction(correction: Correction | None, generation: Generator) -> None:
    """Refuse a correction that would have nothing to correct.

    Raises:
        UserError: the generator is no engine of its own.
    """
    if correction is not None and not generation.separate_engine:
        raise UserError(
            f"model.correction is set; {type(generation).__name__} generates with the model that trains, so there is nothing to "
            "correct: remove model.correction"
        )


def check_reference(algorithm: Algorithm, reference: ReferenceKind | ReferenceModel) -> None:
    """Refuse an algorithm that reads a reference where none is to be built, or only a copy of the policy.

    Raises:
        UserError: `reference` is `none` and the algorithm needs one, or is no other model and the algorithm needs a teacher.
    """
    if algorithm.needs_teacher and not isinstance(reference, ReferenceModel):
        raise UserError(
            f"model.reference is {reference}, and {type(algorithm).__name__} learns from another model than the policy: set "
            "model.reference.name_or_path to a teacher with the policy's vocabulary"
        )
    if reference != "none" or not algorithm.needs_reference:
        return
    penalised = isinstance(algorithm, PolicyGradient)
    without = " or set model.algorithm.kl.coef to 0" if penalised else " or use another algorithm"
    raise UserError(
        f"model.reference is none; {type(algorithm).__name__} compares the policy with a reference: set model.reference to auto,"
        f"{without}"
    )


def check_monitors(trainer: Trainer, reference: ReferenceKind | ReferenceModel) -> None:
    """Refuse callbacks that wait for a metric that needs a reference where there is none.

    Raises:
        UserError: naming the first of them.
    """
    for callback in trainer.callbacks if reference == "none" else ():  # type: ignore[attr-defined]
        monitor = getattr(callback, "monitor", None)
        if isinstance(monitor, str) and monitor.endswith(REFERENCE_METRICS):
            raise UserError(
                f"model.reference is none; {type(callback).__name__} monitors {monitor}, which reads a reference: set "
                "model.reference to auto, or monitor another metric"
            )


def check_recorded(trainer: Trainer, algorithm: Algorithm, source: str) -> None:
    """Refuse data without the recorded rows that an algorithm learns from, before weights are loaded.

    Raises:
        UserError: a split has no pairs or no labels.
    """
    column, data = RECORDED_COLUMNS[source][0], {"pairs": "PreferenceData", "labels": "LabelledData"}[source]
    for name, rows in visible_rows(trainer):
        if len(rows) and column not in rows[0]:
            advice = f"set model.reward, or use {data}" if "rewards" in algorithm.learns_from else f"use {data}"
            raise UserError(
                f"{type(algorithm).__name__} has no reward and the {name} has no {source} (columns: "
                f"{', '.join(sorted(rows[0]))}): {advice}"
            )
