"""The win rate of the present model against the one before training, or another model."""

from __future__ import annotations

import itertools
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from rlhf_lightning.errors import UserError
from rlhf_lightning.evaluation import Evaluation, ValidationResults
from rlhf_lightning.evaluation.base import Ask
from rlhf_lightning.evaluation.comparison import (
    PairwiseJudge,
    bootstrap_interval,
    length_controlled_win_rate,
    outcomes_of_judge,
    outcomes_of_scores,
)
from rlhf_lightning.evaluation.opponents import Opponent
from rlhf_lightning.evaluation.scores import JUDGE, reward_name, sample_scores, scores_of_responses
from rlhf_lightning.rewards import Reward
from rlhf_lightning.training.lightning_compat import state_key
from rlhf_lightning.types import RawRows


class WinRate(Evaluation):
    """Logs `val/win_rate`: the fraction of held-out prompts whose reply scores higher than the opponent's; ties count half.

    Further metrics: `win_rate/low` and `win_rate/high` (95 % bootstrap interval), `win_rate/ties`,
    `win_rate/length_controlled` (the win rate at equal length, by logistic regression), and `win_rate/consistency` of a pairwise
    judge (both orders prefer the same reply).

    Args:
        score: the score to compare: `reward` for the training reward, `reward/<name>` for an evaluation reward.
        against: `start` for the replies of the first validation, `reference` for the model before training, else the folder of an
            export or a hub name; that model is loaded once, on rank zero, to reply to the held-out prompts.
        judge: scores the replies instead of `score`; one with a method `prefer` compares two replies, in both orders.
        name: of the metric, where there are several.
        strict: stop the run where the evaluation fails.

    Example:
        trainer:
          callbacks:
            - class_path: WinRate
              init_args: {score: reward/true, against: start}
    """

    def __init__(
        self,
        score: str = "reward",
        against: str = "start",
        judge: Reward | None = None,
        name: str = "win_rate",
        strict: bool = False,
    ) -> None:
        super().__init__(strict)
        self.score, self.against, self.judge, self.name = score, against, judge, name
        self.rewards = {} if judge is None else {JUDGE: judge}
        self.opponent: Opponent | None = None
        self.first: list[float] | None = None
        """Scores of the opponent's replies."""
        self.replies: list[str] = []
        """The opponent's replies."""
        self.prompts: list[str] = []
        """The prompts that the opponent replied to."""

    @property
    def state_key(self) -> str:
        """Return the key of this callback in a checkpoint, which tells several of one class apart."""
        return state_key(self, name=self.name)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the judge, and find the model that `against` names."""
        super().setup(trainer, pl_module, stage)
        if self.against != "start":
            self.opponent = Opponent(self.against, pl_module)

    def evaluate(self, results: ValidationResults, ask: Ask) -> dict[str, float]:
        """Compare on the prompts that both replied to; a sanity check may have validated fewer.

        Raises:
            UserError: the replies of the start are to other prompts, as in `test`.
        """
        replies = [sample.get("response", "") for sample in results.samples]
        scores = self._scores(results, ask)
        prompts = [str(row.get("prompt")) for row in results.rows]
        pairs = zip(prompts, self.prompts, strict=False)
        common = list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        if not self.first or (self.opponent is not None and len(common) < len(prompts)):
            self.prompts, common = prompts, [(each, each) for each in prompts]
            self.replies = replies if self.opponent is None else self.opponent.responses(results.rows)
            self.first = scores if self.opponent is None else self._scores_of_opponent(results.rows, ask)
        count = min(len(scores), len(common))
        if not count:
            raise UserError("the replies of the start are to other prompts; set WinRate.against to reference")
        outcomes, further = outcomes_of_scores(scores[:count], self.first[:count]), {}
        if isinstance(self.judge, PairwiseJudge):
            rows, others = results.rows[:count], self.replies[:count]
            outcomes, consistency = outcomes_of_judge(self.judge, rows, replies[:count], others)
            further["consistency"] = consistency
        known = [outcome for outcome in outcomes if outcome == outcome]
        if known:
            further["low"], further["high"] = bootstrap_interval(known)
            further["ties"] = sum(outcome == 0.5 for outcome in known) / len(known)
        if known and len(self.replies) >= count:
            own, other = ([float(len(reply)) for reply in texts[:count]] for texts in (replies, self.replies))
            further["length_controlled"] = length_controlled_win_rate(outcomes, own, other)
        rate = sum(known) / len(known) if known else float("nan")
        return {self.name: rate} | {f"{self.name}/{name}": value for name, value in further.items()}

    def _scores(self, results: ValidationResults, ask: Ask) -> list[float]:
        """Score the replies of this validation; a pairwise judge has no scores."""
        if isinstance(self.judge, PairwiseJudge):
            return [0.0] * len(results.samples)
        return sample_scores(results, self.score, self.judge is not None, ask)

    def _scores_of_opponent(self, rows: RawRows, ask: Ask) -> list[float]:
        if isinstance(self.judge, PairwiseJudge):
            return [0.0] * len(self.replies)
        return scores_of_responses(rows, self.replies, JUDGE if self.judge else reward_name(self.score), ask)

    def state_dict(self) -> dict[str, Any]:
        """Return the opponent's replies and their scores."""
        return {"first": self.first, "replies": self.replies, "prompts": self.prompts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the opponent's replies and scores on resume."""
        self.first, self.replies, self.prompts = (state_dict[name] for name in ("first", "replies", "prompts"))
