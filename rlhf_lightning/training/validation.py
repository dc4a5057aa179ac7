"""Validation: metrics and samples of held-out rows, over all ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule

from rlhf_lightning.console import print_once
from rlhf_lightning.distributed import all_gather, interleave_shards, raise_on_all_ranks, shard_places
from rlhf_lightning.evaluation.base import Sample, ValidationResults
from rlhf_lightning.evaluation.monitors import stand_ins
from rlhf_lightning.evaluation.runner import evaluations, run_evaluations
from rlhf_lightning.rewards.base import Reward, reward_scores
from rlhf_lightning.rollouts.collector import mean_score
from rlhf_lightning.seeding import VALIDATION, Randomness
from rlhf_lightning.training.metrics import MetricLog
from rlhf_lightning.types import Completions, RawRows

SHOWN = ("reward/mean", "reward/true", "preference/accuracy", "label/accuracy")
"""Held-out metrics on the progress bar."""


class ValidationMetrics:
    """Numbers and texts of this rank's shard of the held-out rows; read once, by all ranks together."""

    def __init__(self) -> None:
        self.numbers: dict[str, list[float]] = {}
        self.rewards: list[str] = []
        """Names of the metrics that are scores of a reward."""
        self.samples_of_batches: list[list[Sample]] = []
        self.rows_of_batches: list[RawRows] = []

    def begin_batch(self, rows: RawRows) -> None:
        """Start a batch; every rank must call it, also one without rows."""
        self.samples_of_batches.append([])
        self.rows_of_batches.append(rows)

    def add(self, name: str, values: Iterable[float | None]) -> None:
        """Add one number per row or token; None is unknown and does not enter the mean."""
        if numbers := [float("nan") if x is None else float(x) for x in values]:
            self.numbers.setdefault(name, []).extend(numbers)

    def add_completions(self, completions: Completions, rewards: Mapping[str, Reward]) -> None:
        """Add scores, their components, lengths and the texts themselves.

        Args:
            completions: responses of the model.
            rewards: name to reward; the one that trains is called `mean`.
        """
        texts = zip(completions.prompts, completions.responses, strict=True)
        samples: list[Sample] = [{"prompt": prompt, "response": response} for prompt, response in texts]
        for name, reward in rewards.items():
            output = reward_scores(reward, completions)
            scores = output.rewards.tolist()
            self.add(f"reward/{name}", scores)
            self.rewards = [*self.rewards, f"reward/{name}"] if f"reward/{name}" not in self.rewards else self.rewards
            for sample, value in zip(samples, scores, strict=True):
                sample["reward" if name == "mean" else f"reward/{name}"] = value
            for component, values in output.components.items():
                self.add(f"reward/{component}" if name == "mean" else f"reward/{name}/{component}", values)
        self.add("response/length", completions.mask.sum(-1).tolist())
        self.add("response/truncated", completions.truncated.tolist())
        self.samples_of_batches[-1] += samples

    def means(self, device: torch.device) -> dict[str, float]:
        """Return the mean over all ranks of the known numbers, under every name that any rank has."""
        names = dict.fromkeys(name for known in all_gather(list(self.numbers)) for name in known)
        return {name: float(mean_score(self.numbers.get(name, []), device)) for name in names}

    def unscored(self) -> dict[str, tuple[int, int]]:
        """Count the responses without a score, and all responses, over all ranks, by the metric of each reward."""
        own = {
            name: (sum(map(math.isnan, scores)), len(scores))
            for name in self.rewards
            for scores in [self.numbers[name]]
        }
        totals: dict[str, tuple[int, int]] = {}
        for counts in all_gather(own):
            for name, (missing, count) in counts.items():
                before = totals.get(name, (0, 0))
                totals[name] = (before[0] + missing, before[1] + count)
        return totals

    def samples(self) -> list[Sample]:
        """Return the texts of all ranks in the order of the rows."""
        return _global_order(self.samples_of_batches)

    def rows(self) -> RawRows:
        """Return the held-out rows of all ranks in their order."""
        return _global_order(self.rows_of_batches)


def _global_order(batches: list[list[Any]]) -> list[Any]:
    """Gather the shards of every batch from all ranks, and put their elements into the order of the global batch."""
    gathered = zip(*all_gather(batches), strict=True)
    return [element for shards in gathered for element in interleave_shards(list(shards))]


class Validation:
    """Measures held-out rows batch by batch and logs the means at the end."""

    def __init__(self, module: LightningModule, metric_log: MetricLog) -> None:
        self.module, self.metric_log = module, metric_log
        self.held_out = ValidationMetrics()
        self.samples: list[Sample] = []
        """Texts of the last validation or test, of all ranks."""
        self.best: dict[str, float] = {}
        """The highest mean score there can be, by metric, where a reward knows it."""
        self.unmeasured: set[str] = set()
        """Metrics whose evaluation failed in the last validation; callbacks find no valid number under these names."""
        self.states_before: dict[str, Any] | None = None
        """Random states before a validation that is not finished, from which a checkpoint of its failure resumes."""
        self._count = 0
        self._evaluated: set[str] = set()

    def randomness(self, rows: RawRows) -> Randomness:
        """Return the random numbers of this rank's rows of the present batch; the same in every validation."""
        return Randomness(VALIDATION, len(self.held_out.samples_of_batches), shard_places(len(rows)))

    def start(self) -> None:
        """Forget an earlier validation."""
        self.held_out, self.samples = ValidationMetrics(), []

    def measure(self, rows: RawRows, measure: Callable[[RawRows], None]) -> None:
        """Measure this rank's shard of a batch, which may be empty; an error on one rank is raised on all."""
        self.held_out.begin_batch(rows)
        raise_on_all_ranks(lambda: measure(rows) if rows else None)

    def finish(self, further: Mapping[str, float]) -> None:
        """Log the mean of every held-out number over all ranks, and the metrics of evaluations; every rank must call it.

        Lightning logs after checkpoints are written, and nothing of the validation before the first step. During `fit` the
        loggers are therefore called here.

        Args:
            further: metrics that are no means, of all ranks already.
        """
        trainer = self.module.trainer
        self.samples = self.held_out.samples()
        values = self.held_out.means(self.module.device) | dict(further)
        prefix, fitting = "test" if trainer.testing else "val", trainer.state.fn == "fit"
        values |= _report_unscored(self.held_out.unscored(), prefix)
        own, failed = self._evaluate(values)
        values |= own
        self.states_before = None
        if fitting:
            self.metric_log.tell_loggers({f"{prefix}/{name}": value for name, value in values.items()})
        for name, value in values.items():
            self.module.log(f"{prefix}/{name}", value, prog_bar=name in SHOWN, logger=not fitting, batch_size=1)
        self._log_unmeasured(failed, {f"{prefix}/{name}" for name in values}, f"{prefix}/")
        self._count += not trainer.testing

    def _evaluate(self, values: Mapping[str, float]) -> tuple[dict[str, float], list[str]]:
        """Run the evaluations of the trainer; their metrics, and which of them failed, are the same on all ranks."""
        trainer = self.module.trainer
        if not evaluations(trainer):
            return {}, []
        results = ValidationResults(
            step=trainer.global_step,
            first=self._count == 0,
            split="test" if trainer.testing else "val",
            folder=Path(trainer.default_root_dir),
            metrics=dict(values),
            samples=self.samples,
            rows=self.held_out.rows(),
        )
        return run_evaluations(self.module, results)  # type: ignore[arg-type]

    def _log_unmeasured(self, failed: list[str], measured: set[str], prefix: str) -> None:
        """Give callbacks a value for the metrics of evaluations that failed, and the loggers none."""
        missing = {name for name in self._evaluated if name.startswith(prefix)} - measured if failed else set()
        values = stand_ins(self.module.trainer, missing, measured, prefix) if failed else {}
        for name, value in values.items():
            self.module.log(name, value, logger=False, batch_size=1)
        self.unmeasured, self._evaluated = set(values), self._evaluated | measured

    def reset(self) -> None:
        """Forget the validations of an earlier run."""
        self._count, self._evaluated, self.states_before = 0, set(), None

    def state_dict(self) -> dict[str, Any]:
        """Return the number of validations so far."""
        return {"count": self._count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the number of validations."""
        self._count = state["count"]


def _report_unscored(counts: Mapping[str, tuple[int, int]], prefix: str) -> dict[str, float]:
    """Warn of rewards that scored nothing, and return how many responses each did not score, where there are any."""
    for name, (missing, count) in counts.items():
        if 0 < missing == count:
            print_once(
                f"warning: {prefix}/{name} has no value: the reward returned None or NaN for each of the {count} responses"
            )
    return {_unscored_metric(name): float(missing) for name, (missing, _) in counts.items() if missing}


def _unscored_metric(name: str) -> str:
    """Name the count beside a reward's mean.

    >>> _unscored_metric("reward/mean"), _unscored_metric("reward/true")
    ('reward/unscored', 'reward/true/unscored')
    """
    return "reward/unscored" if name == "reward/mean" else f"{name}/unscored"
