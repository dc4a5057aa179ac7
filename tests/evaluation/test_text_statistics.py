"""Text statistics against sacrebleu and rouge-score, by which the field reports them."""

from __future__ import annotations

from random import Random

import pytest

from rlhf_lightning.evaluation.text_statistics import overlap_metrics, repetition

WORDS = "the cat sat on a mat while two dogs ran , and it rained .".split()


def _texts(seed: int) -> list[str]:
    random = Random(seed)
    return [" ".join(random.choices(WORDS, k=random.randint(6, 14))) for _ in range(30)]


def test_overlap_is_that_of_the_libraries_of_reference() -> None:
    sacrebleu, rouge_scorer = pytest.importorskip("sacrebleu"), pytest.importorskip("rouge_score.rouge_scorer")
    references = _texts(1)
    texts = [text if i % 3 else references[i] for i, text in enumerate(_texts(0))]
    metrics = overlap_metrics(texts, references)
    assert metrics["bleu"] == pytest.approx(sacrebleu.corpus_bleu(texts, [references]).score / 100, abs=1e-4)
    assert metrics["chrf"] == pytest.approx(sacrebleu.corpus_chrf(texts, [references]).score / 100, abs=1e-3)
    scorer = rouge_scorer.RougeScorer(["rougeL"])
    scores = [
        scorer.score(reference, text)["rougeL"].fmeasure for text, reference in zip(texts, references, strict=True)
    ]
    assert metrics["rouge_l"] == pytest.approx(sum(scores) / len(scores), abs=1e-4)
    assert 0.2 < metrics["bleu"] < 0.6


def test_the_same_text_has_full_overlap() -> None:
    texts = _texts(2)
    assert overlap_metrics(texts, texts) == pytest.approx({"bleu": 1.0, "chrf": 1.0, "rouge_l": 1.0}, abs=1e-5)


def test_repetition_counts_what_was_there_before() -> None:
    assert repetition("x " * 10) == pytest.approx(1 - 1 / 8)
    assert repetition("") == 0.0
