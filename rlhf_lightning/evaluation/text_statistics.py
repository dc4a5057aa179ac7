"""Statistics of texts that need no model: overlap with references, diversity, repetition."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from torch import Tensor
from torchmetrics.functional.text import chrf_score, rouge_score, sacre_bleu_score


def overlap_metrics(texts: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Compare texts with one reference each.

    Returns:
        `bleu` and `chrf` of the whole corpus and `rouge_l` (F1, mean over texts), all between 0 and 1.
    """
    each = [[reference] for reference in references]
    chrf = chrf_score(list(texts), each, n_word_order=0)
    assert isinstance(chrf, Tensor)
    return {
        "bleu": float(sacre_bleu_score(list(texts), each)),
        "chrf": float(chrf),
        "rouge_l": float(rouge_score(list(texts), list(references), rouge_keys="rougeL")["rougeL_fmeasure"]),
    }


def ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    """Return the n-grams of a text's words.

    >>> ngrams("a b c", 2)
    [('a', 'b'), ('b', 'c')]
    """
    words = text.split()
    return list(zip(*(words[start:] for start in range(n)), strict=False))


def distinct(texts: Sequence[str], n: int) -> float:
    """Return the number of different n-grams of all texts divided by the number of all (Li et al. 2016); 0 without any.

    >>> distinct(["a b a", "a b"], 1), distinct(["a b a", "a b"], 2)
    (0.4, 0.6666666666666666)
    """
    found = [gram for text in texts for gram in ngrams(text, n)]
    return len(set(found)) / max(1, len(found))


def repetition(text: str, n: int = 3) -> float:
    """Return the fraction of a text's n-grams that occurred in it before (Welleck et al. 2020).

    >>> repetition("a b c a b c"), repetition("a b")
    (0.25, 0.0)
    """
    counts = Counter(ngrams(text, n))
    return 1 - len(counts) / counts.total() if counts else 0.0
