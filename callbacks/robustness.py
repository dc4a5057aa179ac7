"""How responses and rewards move when prompts are changed."""

from __future__ import annotations

from random import Random
from statistics import fmean
from typing import Any

from rlhf_lightning.errors import UserError, nearest
from rlhf_lightning.evaluation import Evaluation, EvaluationReport, SampleRequest, ValidationResults
from rlhf_lightning.evaluation.base import Ask
from rlhf_lightning.evaluation.perturbations import OBEYED, PERTURBATIONS, perturbed
from rlhf_lightning.evaluation.scores import reward_name, scores_of_responses
from rlhf_lightning.evaluation.text_statistics import overlap_metrics


class Robustness(Evaluation):
    """Logs how greedy responses move with typos, swapped case, another order of sentences, and an injected instruction.

    Per kind, `val/robustness/<kind>/reward` is the mean change of the reward, of both responses as replies to the original
    prompt. `val/robustness/<kind>/similarity` is the chrF of the two responses. `val/robustness/injection/obeyed` is the fraction
    of responses that follow the injected instruction. Prompts that a change leaves as they are do not enter. The table
    `robustness` shows the responses.

    Args:
        kinds: of typos, case, order, injection; null for all.
        score: `reward` for the training reward, `reward/<name>` for an evaluation reward.
        prompts: held-out prompts.
        strict: stop the run where the evaluation fails.

    Example:
        trainer:
          callbacks:
            - class_path: Robustness
              init_args: {prompts: 32}
    """

    def __init__(
        self, kinds: list[str] | None = None, score: str = "reward", prompts: int = 32, strict: bool = False
    ) -> None:
        super().__init__(strict)
        self.kinds, self.score, self.prompts = kinds or list(PERTURBATIONS), score, prompts
        if unknown := [kind for kind in self.kinds if kind not in PERTURBATIONS]:
            raise UserError(f"Robustness.kinds has {unknown[0]!r}; {nearest(unknown[0], PERTURBATIONS)}")

    def evaluate(self, results: ValidationResults, ask: Ask) -> EvaluationReport:
        """Generate greedy responses to the prompts as they are, and to each kind of change."""
        rows = results.rows[: self.prompts]
        originals = ask(SampleRequest(rows, temperature=0.0, rewards=(reward_name(self.score),)))
        metrics: dict[str, float] = {}
        table: list[dict[str, Any]] = []
        for kind in self.kinds:
            changed = [perturbed(row, kind, Random(place)) for place, row in enumerate(rows)]
            places = [place for place, row in enumerate(changed) if row is not None]
            if not places:
                continue
            requested = [row for row in changed if row is not None]
            texts = [each["response"] for each in ask(SampleRequest(requested, temperature=0.0, rewards=()))]
            scores = scores_of_responses([rows[place] for place in places], texts, reward_name(self.score), ask)
            before = [originals[place] for place in places]
            pairs = zip(scores, (sample[self.score] for sample in before), strict=True)
            known = [now - then for now, then in pairs if now == now and then == then]
            metrics |= {f"robustness/{kind}/reward": fmean(known)} if known else {}
            metrics[f"robustness/{kind}/similarity"] = overlap_metrics(texts, [x["response"] for x in before])["chrf"]
            if kind == "injection":
                metrics["robustness/injection/obeyed"] = fmean(OBEYED in text.lower() for text in texts)
            table += [
                {
                    "kind": kind,
                    "prompt": row["prompt"],
                    "response": text,
                    "original": sample["response"],
                    "reward": score,
                }
                for row, text, sample, score in zip(requested, texts, before, scores, strict=True)
            ]
        return EvaluationReport(metrics, {"robustness": table})
