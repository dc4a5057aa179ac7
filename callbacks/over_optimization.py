"""Over-optimisation: a second judge falls while the training reward is above its start."""

from __future__ import annotations

from typing import Any, Literal

from rlhf_lightning.console import print_once
from rlhf_lightning.evaluation import Evaluation, EvaluationReport, ValidationResults
from rlhf_lightning.evaluation.base import Ask
from rlhf_lightning.evaluation.over_optimization import Alarm
from rlhf_lightning.evaluation.scores import JUDGE, sample_scores
from rlhf_lightning.rewards import Reward


class OverOptimization(Evaluation):
    """Warns where the training reward is up and a second judge is clearly below its best, validation after validation.

    Clearly: the judge's mean over the held-out prompts is lower by `errors` standard errors of the paired difference. Up: the
    mean training reward is above that of the first validation. Logs `val/over_optimization/drop` (the judge's best minus its
    present mean) and `val/over_optimization/alarm` (1 or 0). `test` measures nothing.

    Args:
        score: the second judge's scores: `reward/<name>` of an evaluation reward.
        judge: scores the responses instead of `score`.
        errors: standard errors by which the judge must have fallen.
        validations: how many in a row must say so.
        action: `warn` prints a line, `stop` also stops the run, `keep_best` also exports the judge's best model to `best/`.
        strict: stop the run where the evaluation fails.

    Example:
        trainer:
          callbacks:
            - class_path: OverOptimization
              init_args: {score: reward/true, action: stop}
    """

    def __init__(
        self,
        score: str = "reward/true",
        judge: Reward | None = None,
        errors: float = 2.0,
        validations: int = 2,
        action: Literal["warn", "stop", "keep_best"] = "warn",
        strict: bool = False,
    ) -> None:
        super().__init__(strict)
        self.score, self.judge, self.action = score, judge, action
        self.rewards = {} if judge is None else {JUDGE: judge}
        self.alarm = Alarm(errors, validations)

    def evaluate(self, results: ValidationResults, ask: Ask) -> EvaluationReport:
        """Compare with the best validation so far."""
        if results.split == "test":
            return EvaluationReport()
        scores = sample_scores(results, self.score, self.judge is not None, ask)
        was_raised = self.alarm.raised
        self.alarm.update(results.step, scores, [sample["reward"] for sample in results.samples])
        line = None
        if self.alarm.raised and not was_raised:
            name = "the judge" if self.judge else self.score
            line = (
                f"over-optimisation: {name} is {self.alarm.drop:.3f} below its best at step {self.alarm.best_step}, and the "
                "training reward is up; raise the KL coefficient, or train for fewer steps"
            )
            print_once(f"warning: {line}")
        better = self.alarm.best_step == results.step
        return EvaluationReport(
            {"over_optimization/drop": self.alarm.drop, "over_optimization/alarm": self.alarm.raised},
            stop=line if self.action == "stop" else None,
            export="best" if self.action == "keep_best" and better else None,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the first validation, the best so far, and how many in a row were below it."""
        return self.alarm.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them on resume."""
        self.alarm.load_state_dict(state_dict)
