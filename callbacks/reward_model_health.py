"""Whether a reward model can still be trusted on what the policy generates."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer

from rlhf_lightning.data import PreferenceData
from rlhf_lightning.errors import UserError
from rlhf_lightning.evaluation import Evaluation, SampleRequest, ValidationResults
from rlhf_lightning.evaluation.base import Ask
from rlhf_lightning.evaluation.reward_health import agreement, pair_metrics, rank_correlation
from rlhf_lightning.evaluation.scores import reward_name, scores_of_responses
from rlhf_lightning.functional.ensembles import disagreement
from rlhf_lightning.types import RawRows


class RewardModelHealth(Evaluation):
    """Logs `val/reward_model/…` of the training reward, as the policy moves.

    - `accuracy`, `margin` and `calibration_error` on recorded pairs;
    - `agreement` with a judge about which of two responses to a prompt is better (a tie of the reward counts half), and
      `judge_correlation`, both on fresh responses of the policy;
    - `length_correlation` with the number of words, and `disagreement` with further reward models, on the same responses.

    Correlations are Spearman's. `disagreement` is the mean standard deviation over the rewards, each standardised.

    Args:
        judge: score of the judge, `reward/<name>` of an evaluation reward; null for none.
        ensemble: scores of further reward models, such as `[reward/second]`.
        pairs: file with recorded pairs, as PreferenceData reads it; null for none.
        prompts: held-out prompts with fresh responses.
        responses_per_prompt: fresh responses per prompt.
        strict: stop the run where the evaluation fails.

    Example:
        trainer:
          callbacks:
            - class_path: RewardModelHealth
              init_args: {judge: reward/true, pairs: held_out_pairs.jsonl}
    """

    def __init__(
        self,
        judge: str | None = None,
        ensemble: list[str] | None = None,
        pairs: str | None = None,
        prompts: int = 64,
        responses_per_prompt: int = 2,
        strict: bool = False,
    ) -> None:
        super().__init__(strict)
        self.judge, self.ensemble, self.pairs = judge, list(ensemble or []), pairs
        self.prompts, self.responses_per_prompt = prompts, responses_per_prompt
        self.rows: RawRows = []
        """The recorded pairs."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Read the pairs, before weights are loaded.

        Raises:
            UserError: the file has no pair, or a bad row.
        """
        if self.pairs is not None and not self.rows:
            self.rows = PreferenceData(validation=self.pairs).rows("validation") or []
            if not self.rows:
                raise UserError(f"RewardModelHealth.pairs is {self.pairs}, which has no pair")

    def evaluate(self, results: ValidationResults, ask: Ask) -> dict[str, float]:
        """Measure on fresh responses and on the recorded pairs; an undefined number is skipped."""
        metrics = self._fresh(results.rows[: self.prompts], ask)
        if self.rows:
            scores = [
                scores_of_responses(self.rows, [row[name] for row in self.rows], "mean", ask)
                for name in ("chosen", "rejected")
            ]
            metrics |= pair_metrics(*scores)
        return {f"reward_model/{name}": value for name, value in metrics.items() if value == value}

    def _fresh(self, rows: RawRows, ask: Ask) -> dict[str, float]:
        keys = ["reward", *self.ensemble, *([self.judge] if self.judge else [])]
        copies = self.responses_per_prompt
        samples = ask(SampleRequest(rows, copies, rewards=tuple(map(reward_name, dict.fromkeys(keys)))))
        rewards = [sample["reward"] for sample in samples]
        metrics = {"length_correlation": rank_correlation(rewards, [len(s["response"].split()) for s in samples])}
        if self.judge:
            judged = [sample[self.judge] for sample in samples]
            metrics["agreement"] = agreement(rewards, judged, [place // copies for place in range(len(samples))])
            metrics["judge_correlation"] = rank_correlation(rewards, judged)
        if self.ensemble:
            others = [[sample[key] for sample in samples] for key in self.ensemble]
            metrics["disagreement"] = disagreement([rewards, *others])
        return metrics
