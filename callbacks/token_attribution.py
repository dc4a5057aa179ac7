"""Numbers of single tokens: log-ratio to the reference, value, and share of the reward."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from rlhf_lightning.evaluation import Evaluation, EvaluationReport, Sample, SampleRequest, ValidationResults
from rlhf_lightning.evaluation.base import Ask
from rlhf_lightning.evaluation.scores import sample_key
from rlhf_lightning.types import RawRows


class TokenAttribution(Evaluation):
    """Shows the tokens of greedy responses to some held-out prompts with their log-ratio, value, and share of the reward.

    The table `policy_tokens` has a row per token: `logprob`, `log_ratio` (policy minus reference, nats), `value` (with a critic),
    and `leave_one_out` (the reward of the response minus that of the response without the token). The table `reward_tokens` has a
    row per token of the reward model: `attribution`, by integrated gradients. `val/token_attribution/largest` is the mean over
    responses of the largest absolute `leave_one_out`, divided by the sum of all: near 1 a single token decides.

    Args:
        reward: `mean` for the training reward, or the name of an evaluation reward.
        prompts: held-out prompts; each response is scored once for each of its tokens.
        steps: points of the integral; 0 for no integrated gradients, which need a ModelReward.
        strict: stop the run where the evaluation fails.

    Example:
        trainer:
          callbacks:
            - class_path: TokenAttribution
              init_args: {prompts: 4, steps: 32}
    """

    def __init__(self, reward: str = "mean", prompts: int = 4, steps: int = 0, strict: bool = False) -> None:
        super().__init__(strict)
        self.reward, self.prompts, self.steps = reward, prompts, steps

    def evaluate(self, results: ValidationResults, ask: Ask) -> EvaluationReport:
        """Generate responses, and score each of them again without one token after another."""
        rows, chosen = results.rows[: self.prompts], (self.reward,)
        samples = ask(
            SampleRequest(rows, temperature=0.0, rewards=chosen, token_tables=True, attribution_steps=self.steps)
        )
        contributions = self._leave_one_out(rows, samples, ask)
        tokens: list[dict[str, Any]] = []
        gradients: list[dict[str, Any]] = []
        for place, sample in enumerate(samples):
            named = zip(sample["tokens"], contributions[place], strict=True)
            tokens += [{"sample": place, **token, "leave_one_out": value} for token, value in named]
            gradients += [{"sample": place, **token} for token in sample.get("attribution", ())]
        tables = {"policy_tokens": tokens} | ({"reward_tokens": gradients} if self.steps else {})
        return EvaluationReport(_largest(contributions), tables)

    def _leave_one_out(self, rows: RawRows, samples: list[Sample], ask: Ask) -> list[list[float | None]]:
        """Return per sample and token the reward with it minus the reward without it; None for a special token."""
        key, requested = sample_key(self.reward), []
        for row, sample in zip(rows, samples, strict=True):
            texts = ["" if token["special"] else token["token"] for token in sample["tokens"]]
            shorter = ["".join(texts[:place] + texts[place + 1 :]) for place in range(len(texts))]
            requested += [{**row, "response": text} for text in ["".join(texts), *shorter]]
        scores = iter([sample[key] for sample in ask(SampleRequest(requested, rewards=(self.reward,)))])
        contributions: list[list[float | None]] = []
        for sample in samples:
            whole = next(scores)
            without = [next(scores) for _ in sample["tokens"]]
            contributions.append(
                [
                    None if token["special"] else whole - score
                    for token, score in zip(sample["tokens"], without, strict=True)
                ]
            )
        return contributions


def _largest(contributions: list[list[float | None]]) -> dict[str, float]:
    sizes = [[abs(value) for value in values if value is not None and value == value] for values in contributions]
    shares = [max(each) / sum(each) for each in sizes if sum(each) > 0]
    return {"token_attribution/largest": fmean(shares)} if shares else {}
