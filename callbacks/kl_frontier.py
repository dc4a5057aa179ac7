"""Reward against KL, a point per validation."""

from __future__ import annotations

import math
from typing import Any

from rlhf_lightning.errors import UserError
from rlhf_lightning.evaluation import Evaluation, EvaluationReport, ValidationResults
from rlhf_lightning.evaluation.base import Ask
from rlhf_lightning.evaluation.frontier import draw_frontier, on_frontier


class KLFrontier(Evaluation):
    """Logs `val/kl/response`, and keeps every reward at every KL: in `tables/kl_frontier.jsonl` and drawn in `kl_frontier.png`.

    `kl/response` is the KL to the reference in nats per response: `kl/reference` per token times the mean length.
    `val/kl/on_frontier` is 1 where no earlier validation had at most this KL and at least this reward; `test` adds no point.

    Args:
        score: metric that decides about the frontier.
        strict: stop the run where the evaluation fails.

    Example:
        trainer:
          callbacks:
            - class_path: KLFrontier
              init_args: {score: reward/true}
    """

    def __init__(self, score: str = "reward/mean", strict: bool = False) -> None:
        super().__init__(strict)
        self.score = score
        self.points: list[dict[str, float]] = []

    def evaluate(self, results: ValidationResults, ask: Ask) -> EvaluationReport:
        """Add the point of this validation.

        Raises:
            UserError: the stage does not measure the score, or no KL.
        """
        metrics = results.metrics
        if missing := [name for name in (self.score, "kl/reference", "response/length") if name not in metrics]:
            raise UserError(f"validation does not measure {missing[0]}; it measures {', '.join(metrics)}")
        kl = metrics["kl/reference"] * metrics["response/length"]
        if results.split == "test":
            return EvaluationReport({"kl/response": kl})
        rewards = {name: value for name, value in metrics.items() if name.startswith("reward/")}
        point = {"step": results.step, "kl": kl, "sqrt_kl": math.sqrt(max(0.0, kl)), **rewards}
        self.points = [each for each in self.points if each["step"] < results.step] + [point]
        draw_frontier(self.points, results.folder / "kl_frontier.png")
        best = on_frontier([(each["kl"], each[self.score]) for each in self.points])[-1]
        return EvaluationReport(
            {"kl/response": kl, "kl/on_frontier": best},
            {"kl_frontier": [{k: v for k, v in point.items() if k != "step"}]},
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the points so far."""
        return {"points": self.points}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the points on resume."""
        self.points = state_dict["points"]
