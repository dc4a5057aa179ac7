"""Models compared on the same prompts: a matrix of win rates, strengths with intervals; reward models on the same pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch

from rlhf_lightning.evaluation.comparison import (
    PairwiseJudge,
    bootstrap_interval,
    length_controlled_win_rate,
    outcomes_of_judge,
    outcomes_of_scores,
)
from rlhf_lightning.evaluation.reward_health import pair_metrics, rank_correlation
from rlhf_lightning.functional.bradley_terry import bradley_terry
from rlhf_lightning.types import RawRows


@dataclass(frozen=True)
class Duel:
    """Hold the outcomes of two models on the prompts that the judge could decide."""

    first: int
    second: int
    outcomes: Sequence[float]
    """Per prompt 1 where the first model's response is better, 0.5 for a tie, NaN for an unknown outcome."""
    rate: float
    low: float
    high: float
    length_controlled: float
    consistency: float | None
    """Fraction of prompts on which a pairwise judge said the same in both orders; None for scores."""

    @property
    def known(self) -> list[float]:
        """The outcomes that are known."""
        return [value for value in self.outcomes if value == value]


@dataclass(frozen=True)
class ModelComparison:
    """Hold the comparison of K models."""

    names: Sequence[str]
    duels: Sequence[Duel]
    strengths: Sequence[tuple[float, float, float]]
    """Per model the Bradley-Terry score with its 95 % interval; NaN where nothing is known."""

    def rate(self, first: int, second: int) -> float:
        """Return the win rate of one model against another; NaN for an unknown one."""
        for duel in self.duels:
            if (duel.first, duel.second) == (first, second):
                return duel.rate
            if (duel.second, duel.first) == (first, second):
                return 1 - duel.rate
        return math.nan

    @property
    def order(self) -> list[int]:
        """Models from the strongest to the weakest."""
        return sorted(range(len(self.names)), key=lambda place: -self.strengths[place][0])


def compare_responses(
    names: Sequence[str],
    rows: RawRows,
    responses: Sequence[Sequence[str]],
    scores: Sequence[Sequence[float]] | None,
    judge: PairwiseJudge | None = None,
) -> ModelComparison:
    """Compare the responses of models to the same prompts.

    Args:
        names: of K models.
        rows: N prompts.
        responses: [K][N] texts.
        scores: [K][N] of a judge that scores; not read with `judge`.
        judge: compares two responses, and is asked in both orders.
    """
    duels = []
    for first, second in combinations(range(len(names)), 2):
        consistency = None
        if judge is not None:
            outcomes, consistency = outcomes_of_judge(judge, rows, responses[first], responses[second])
        else:
            assert scores is not None
            outcomes = outcomes_of_scores(scores[first], scores[second])
        known = [value for value in outcomes if value == value]
        rate = sum(known) / len(known) if known else math.nan
        own, other = ([float(len(text)) for text in responses[place]] for place in (first, second))
        controlled = length_controlled_win_rate(outcomes, own, other)
        duels.append(Duel(first, second, outcomes, rate, *bootstrap_interval(outcomes), controlled, consistency))
    return ModelComparison(names, duels, _strengths(len(names), duels))


def _strengths(count: int, duels: Sequence[Duel]) -> list[tuple[float, float, float]]:
    """Fit Bradley-Terry scores; an outcome between a tie and a win, of a judge who is unsure, counts as a tie."""
    wins, ties = torch.zeros(count, count), torch.zeros(count, count)
    for duel in duels:
        wins[duel.first, duel.second] = sum(value > 0.75 for value in duel.known)
        wins[duel.second, duel.first] = sum(value < 0.25 for value in duel.known)
        ties[duel.first, duel.second] = ties[duel.second, duel.first] = sum(
            0.25 <= value <= 0.75 for value in duel.known
        )
    if not (wins.sum() + ties.sum()):
        return [(math.nan, math.nan, math.nan)] * count
    found = bradley_terry(wins, ties)
    return [(float(found.scores[place]), *found.interval(place)) for place in range(count)]


def reward_model_metrics(rows: RawRows, chosen: Sequence[float], rejected: Sequence[float]) -> Mapping[str, float]:
    """Measure one reward model on judged pairs.

    Args:
        rows: pairs with `chosen` and `rejected`.
        chosen: scores of the better responses; NaN without a score.
        rejected: scores of the worse ones.

    Returns:
        `accuracy`, `accuracy/low`, `accuracy/high`, `calibration_error`, `margin`; `length_correlation` (Spearman's, of the
        difference in score with that in length), `accuracy/better_is_longer` and `accuracy/better_is_shorter`: a model that
        prefers length is right on the former alone.
    """
    outcomes = outcomes_of_scores(chosen, rejected)
    longer = [float(len(str(row["chosen"])) - len(str(row["rejected"]))) for row in rows]
    low, high = bootstrap_interval(outcomes)
    metrics = dict(pair_metrics(chosen, rejected)) | {"accuracy/low": low, "accuracy/high": high}
    differences = [a - b for a, b in zip(chosen, rejected, strict=True)]
    # each pair in both orders: the sign of a length must not follow from which response is named first
    both = [*differences, *(-value for value in differences)], [*longer, *(-value for value in longer)]
    metrics["length_correlation"] = rank_correlation(*both)
    for name, sign in (("better_is_longer", 1), ("better_is_shorter", -1)):
        of_kind = [x for x, more in zip(outcomes, longer, strict=True) if x == x and more * sign > 0]
        metrics[f"accuracy/{name}"] = sum(of_kind) / len(of_kind) if of_kind else math.nan
    return metrics
