"""Strategies that choose the next question: what they prefer, the probabilities that they record, and pure functions."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest

from rlhf_lightning.feedback.questions import Disagreement, Margin, Pair, Random, Strategy, Thompson, rank


def pairs_of(prompts: int, per_prompt: int = 1, heads: int = 4) -> list[Pair]:
    rng = random.Random(prompts)
    score = lambda: tuple(rng.gauss(0, 1) for _ in range(heads))  # noqa: E731
    return [
        Pair(f"k{prompt}-{n}", f"p{prompt}", (f"a{n}", f"b{n}"), (score(), score()))
        for prompt in range(prompts)
        for n in range(per_prompt)
    ]


def keys(strategy: Strategy, pairs: list[Pair], share: float = 0.0) -> list[str]:
    return [question.key for question in rank(pairs, {}, strategy, share, "0")]


def test_margin_asks_the_closest_call_first() -> None:
    pairs = [Pair(f"k{d}", f"p{d}", ("a", "b"), ((0.0, 2.0 * d), (0.0, 0.0))) for d in (3, -1, 2)]
    assert keys(Margin(), pairs) == ["k-1", "k2", "k3"]


def test_disagreement_asks_where_the_heads_differ_and_not_where_they_are_unsure() -> None:
    unsure = Pair("unsure", "p1", ("a", "b"), ((0.1, 0.1), (0.1, 0.1)))
    split = Pair("split", "p2", ("a", "b"), ((3.0, -3.0), (0.0, 0.0)))
    sure = Pair("sure", "p3", ("a", "b"), ((9.0, 19.0), (0.0, 0.0)))
    assert keys(Disagreement(), [unsure, sure, split])[0] == "split"
    assert Disagreement().value(split) == pytest.approx((0.9525741 - 0.5) ** 2, rel=1e-5)
    assert Disagreement().value(sure) < 1e-8


def test_a_prompt_is_asked_again_only_after_all_others() -> None:
    pairs, places = pairs_of(5, 3), []
    for strategy in (Random(), Margin(), Disagreement(), Thompson()):
        places = [key.partition("-")[0] for key in keys(strategy, pairs, 0.3)]
        for start in (0, 5, 10):
            assert len(set(places[start : start + 5])) == 5
    for before in range(5):  # also the prompt that the strategy would ask first
        later = rank(pairs, {f"p{before}": 1}, Margin(), 0.0, "0")
        assert all(not question.key.startswith(f"k{before}-") for question in later[:4])


def test_double_thompson_sampling_by_hand() -> None:
    """Of four heads three prefer a and one b, none c: 3/4·(1-(3/4)^T)·… as the algorithm says, simulated beside it."""
    scores = {"a": (2.0, 2.0, 2.0, 0.0), "b": (1.0, 1.0, 1.0, 1.0), "c": (0.0, 0.0, 0.0, 0.5)}
    pairs = [Pair(f"{x}{y}", "p", (x, y), (scores[x], scores[y])) for x, y in itertools.combinations("abc", 2)]
    tries = 2
    chances, priority = Thompson(tries).choose(pairs)
    assert priority == 0
    assert sum(chances) == pytest.approx(1)
    rng, counts = random.Random(0), Counter[str]()

    def best() -> str:
        head = rng.randrange(4)
        return max(scores, key=lambda name: scores[name][head])

    for _ in range(40_000):
        first = best()
        second = next((name for name in (best() for _ in range(tries)) if name != first), None)
        second = second or rng.choice([name for name in "abc" if name != first])
        counts["".join(sorted(first + second))] += 1
    for pair, chance in zip(pairs, chances, strict=True):
        assert counts[pair.key] / 40_000 == pytest.approx(chance, abs=0.01)


@pytest.mark.parametrize("strategy", [Random(), Margin(), Disagreement(), Thompson()])
def test_the_recorded_probability_is_the_frequency(strategy: Strategy) -> None:
    """Of the first place, over seeds; weighting by its inverse counts every pair of a greedy strategy once too."""
    pairs, share, repeats = pairs_of(4, 2), 0.5, 4000
    seen: Counter[str] = Counter()
    recorded: dict[str, float] = {}
    for seed in range(repeats):
        question = rank(pairs, {}, strategy, share, str(seed))[0]
        seen[question.key] += 1
        assert recorded.setdefault(question.key, question.probability) == pytest.approx(question.probability)
    for key, probability in recorded.items():
        assert seen[key] / repeats == pytest.approx(probability, abs=0.03)
    assert sum(recorded.values()) == pytest.approx(1)
    assert len(recorded) == 8  # no pair is impossible


def test_a_share_is_random_always() -> None:
    ranked = rank(pairs_of(2000), {}, Margin(), 0.2, "0")
    assert sum(question.random for question in ranked[:1000]) == pytest.approx(200, abs=40)
    assert not any(question.random for question in rank(pairs_of(50), {}, Margin(), 0.0, "0"))


@pytest.mark.parametrize("strategy", [Random(), Margin(), Disagreement(), Thompson()])
def test_the_order_of_the_arguments_changes_nothing_and_the_seed_does(strategy: Strategy) -> None:
    pairs = pairs_of(20, 2)
    shuffled = random.Random(1).sample(pairs, len(pairs))
    assert rank(pairs, {}, strategy, 0.2, "0") == rank(shuffled, {}, strategy, 0.2, "0")
    assert rank(pairs, {}, strategy, 0.2, "0") != rank(pairs, {}, strategy, 0.2, "1")
