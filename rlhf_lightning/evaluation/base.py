"""The contract of an evaluation: user code on rank zero over a validation's results."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer

from rlhf_lightning.rewards.base import Reward
from rlhf_lightning.types import RawRows

Sample = dict[str, Any]
"""A response as plain values: `prompt`, `response`, `reward` (of the training reward), `reward/<name>` of each further reward."""


@dataclass(frozen=True)
class ValidationResults:
    """Hold the results of one validation or test over all ranks, as plain Python values."""

    step: int
    """Optimiser steps taken."""
    first: bool
    """No earlier validation of this run was evaluated; also False after the run is resumed."""
    split: Literal["val", "test"]
    """`test` during `test`, else `val`."""
    folder: Path
    """The folder of the run."""
    metrics: Mapping[str, float]
    """Metric name, without `val/`, to its value over all held-out rows; with the metrics of evaluations earlier in
    `trainer.callbacks`."""
    samples: Sequence[Sample]
    """The responses to the held-out prompts, in the order of the rows; empty where the stage generates none."""
    rows: RawRows
    """The held-out rows with all their columns; sample i answers row i."""


@dataclass(frozen=True)
class SampleRequest:
    """Ask the stage for responses to prompts, or for the scores of recorded responses."""

    rows: RawRows
    """Each with a `prompt` (text or messages), perhaps with columns that a reward reads. The stage generates a response to it, or
    scores the `response` that the row has."""
    responses_per_prompt: int = 1
    """Responses to generate per row; they are adjacent in the answer."""
    temperature: float | None = None
    """Sampling temperature; 0 is greedy, None is that of the stage's `generation`."""
    rewards: Collection[str] | None = None
    """Names of rewards that score: `mean` is the training reward, others are of the stage's `evaluation_rewards` or of the
    evaluation's own `rewards`. None: all of the stage. Empty: none."""
    token_tables: bool = False
    """Add `tokens` to every sample: one dictionary per token with `token`, `special`, `logprob`, and where the stage has them
    `reference_logprob`, `log_ratio` and `value`."""
    reference_likelihood: bool = False
    """Add to every sample, where the stage has a reference model, `reference_logprob`, the log-probability (nats) of the response
    and its end under the reference at temperature 1, and `reference_tokens`, the number of these tokens."""
    attribution_steps: int = 0
    """Above 0, add `attribution` to every sample: the tokens of the first reward, a ModelReward, with their integrated gradients
    over so many points."""


@dataclass(frozen=True)
class ExportRequest:
    """Ask for an export of the model with its present weights, in Hugging Face form; the answer is empty."""

    folder: str
    """Folder to write; what is there is replaced. A failure is printed, and leaves what is there."""


Ask = Callable[[SampleRequest | ExportRequest], list[Sample]]
"""Have all ranks answer a request, each for its shard of the rows; samples come in the order of the rows."""


@dataclass(frozen=True)
class EvaluationReport:
    """Hold what an evaluation measured."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    """Metric name, without `val/`, to a finite number."""
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    """Table name to its rows, which are appended to `<run>/tables/<name>.jsonl` and given to the loggers."""
    stop: str | None = None
    """Why the run has to stop; None lets it continue."""
    export: str | None = None
    """Name of a folder in the run's, to which the model is exported in its present state; None exports nothing."""


class Evaluation(Callback, ABC):
    """Measure something of the model at every validation and test.

    Subclass it, and put the subclass in `trainer.callbacks`. `evaluate` runs on rank zero alone. Its metrics are logged on all
    ranks as `val/<name>` (`test/<name>` during `test`) before checkpoints, early stopping and `summary.json` read them. An
    error in `evaluate` costs its metrics and one line; the run continues. State belongs into Lightning's `state_dict` and
    `load_state_dict`.

    Args:
        strict: stop the run, on all ranks and in one line, where the evaluation fails.
    """

    strict: bool = False
    rewards: Mapping[str, Reward] = {}
    """Judges of this evaluation, by the names that its requests use; every rank loads them at the first request that does."""

    def __init__(self, strict: bool = False) -> None:
        self.strict = strict

    @abstractmethod
    def evaluate(self, results: ValidationResults, ask: Ask) -> Mapping[str, float] | EvaluationReport:
        """Return metrics by name, or a report with tables.

        Args:
            results: metrics and samples of this validation.
            ask: `ask(SampleRequest(rows))` returns samples for rows; all ranks generate and score. Random numbers are the
                same in every call. The caller is the thread that runs `evaluate`.

        Raises:
            Exception: any; see the class.
        """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the evaluation's own rewards before weights are loaded.

        Raises:
            UserError: an argument of a reward is wrong.
        """
        for reward in self.rewards.values():
            reward.check()
