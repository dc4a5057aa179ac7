"""Statistics of the responses' texts: overlap with reference texts, diversity, repetition, length."""

from __future__ import annotations

from statistics import fmean

from rlhf_lightning.errors import UserError
from rlhf_lightning.evaluation import Evaluation, ValidationResults
from rlhf_lightning.evaluation.base import Ask
from rlhf_lightning.evaluation.text_statistics import distinct, overlap_metrics, repetition


class TextMetrics(Evaluation):
    """Logs `val/text/distinct_1`, `distinct_2`, `repetition`, `words` and, with a reference column, `bleu`, `chrf`, `rouge_l`.

    BLEU, chrF and ROUGE-L are those of torchmetrics, between 0 and 1. Rows without a reference text do not enter them.
    `repetition` is the fraction of a response's word 3-grams that occurred in it before.

    Args:
        reference_column: column of the held-out rows with the text to compare with, such as `completion`; null for none.
        strict: stop the run where the evaluation fails.

    Example:
        trainer:
          callbacks:
            - class_path: TextMetrics
              init_args: {reference_column: completion}
    """

    def __init__(self, reference_column: str | None = None, strict: bool = False) -> None:
        super().__init__(strict)
        self.reference_column = reference_column

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
        return {f"text/{name}": value for name, value in metrics.items()}

    def _overlap(self, results: ValidationResults, texts: list[str]) -> dict[str, float]:
        references = [row.get(str(self.reference_column)) for row in results.rows]
        pairs = [(text, each) for text, each in zip(texts, references, strict=True) if isinstance(each, str)]
        if not pairs:
            raise UserError(
                f"no held-out row has text in {self.reference_column!r} (columns: {', '.join(results.rows[0])}): set "
                "reference_column to one of them"
            )
        return overlap_metrics(*map(list, zip(*pairs, strict=True)))
