"""Statistics of the responses' texts: overlap with reference texts, diversity, repetition, length, perplexity."""

from __future__ import annotations

import math
from statistics import fmean

from rlhf_lightning.errors import UserError
from rlhf_lightning.evaluation import Evaluation, ValidationResults
from rlhf_lightning.evaluation.base import Ask, SampleRequest
from rlhf_lightning.evaluation.text_statistics import distinct, overlap_metrics, repetition


class TextMetrics(Evaluation):
    """Logs `val/text/distinct_1`, `distinct_2`, `repetition`, `words`; with a reference column also `bleu`, `chrf`, `rouge_l`.

    Where the stage has a reference model, `val/text/perplexity` is the perplexity of all responses under it, with the token that
    ends each: exp of minus the mean log-probability per token at temperature 1. It rises where responses are unlike the
    reference's, and falls below its first value where they repeat what the reference finds likely.

    BLEU, chrF and ROUGE-L are those of torchmetrics, between 0 and 1. Rows without a reference text do not enter them.
    `repetition` is the fraction of a response's word 3-grams that occurred in it before.

    Args:
        reference_column: column of the held-out rows with the text to compare with, such as `completion`; null for none.
        perplexity: compute the perplexity, which takes a forward pass of the reference.
        strict: stop the run where the evaluation fails.

    Example:
        trainer:
          callbacks:
            - class_path: TextMetrics
              init_args: {reference_column: completion}
    """

    def __init__(self, reference_column: str | None = None, perplexity: bool = True, strict: bool = False) -> None:
        super().__init__(strict)
        self.reference_column, self.perplexity = reference_column, perplexity

    def evaluate(self, results: ValidationResults, ask: Ask) -> dict[str, float]:
        """Measure the responses of this validation.

        Raises:
            UserError: there is no response, or no row has a reference text.
        """
        texts = [sample["response"] for sample in results.samples]
        if not texts:
            raise UserError(
                "the stage generates no responses to held-out prompts; remove TextMetrics from trainer.callbacks"
            )
        metrics = {
            "distinct_1": distinct(texts, 1),
            "distinct_2": distinct(texts, 2),
            "repetition": fmean(repetition(text) for text in texts),
            "words": fmean(len(text.split()) for text in texts),
        }
        if self.reference_column is not None:
            metrics |= self._overlap(results, texts)
        if self.perplexity:
            metrics |= self._perplexity(results, texts, ask)
        return {f"text/{name}": value for name, value in metrics.items()}

    def _perplexity(self, results: ValidationResults, texts: list[str], ask: Ask) -> dict[str, float]:
        rows = [{**row, "response": text} for row, text in zip(results.rows, texts, strict=True)]
        samples = ask(SampleRequest(rows, rewards=(), reference_likelihood=True))
        count = sum(sample.get("reference_tokens", 0) for sample in samples)
        if not count:  # no reference model, or one whose log-probabilities are known for recorded pairs alone
            return {}
        return {"perplexity": math.exp(-sum(sample["reference_logprob"] for sample in samples) / count)}

    def _overlap(self, results: ValidationResults, texts: list[str]) -> dict[str, float]:
        references = [row.get(str(self.reference_column)) for row in results.rows]
        pairs = [(text, each) for text, each in zip(texts, references, strict=True) if isinstance(each, str)]
        if not pairs:
            raise UserError(
                f"no held-out row has text in {self.reference_column!r} (columns: {', '.join(results.rows[0])}): set "
                "reference_column to one of them"
            )
        return overlap_metrics(*map(list, zip(*pairs, strict=True)))
