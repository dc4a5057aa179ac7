"""The next question: strategies that order the pairs of a queue, with the probability of each choice.

A strategy of your own is a subclass of `Strategy`; `feedback rank --strategy my_module.MyStrategy` finds it.
"""

from __future__ import annotations

import importlib
import math
import random
import statistics
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from rlhf_lightning.errors import UserError, nearest

Scores = tuple[float, ...]
"""The score of one response by each head."""


class Pair(NamedTuple):
    """A question that could be asked."""

    key: str
    """Of the item; the order of ranking depends on keys, not on when an item was added."""
    prompt: str
    responses: tuple[str, str] = ("", "")
    scores: tuple[Scores, Scores] = ((), ())
    """Of both responses; empty for a strategy that reads none."""


class Question(NamedTuple):
    """A pair at its place of the queue."""

    key: str
    probability: float
    """With which this pair was chosen for its place, given those before it."""
    random: bool
    """Whether the share of random questions chose it, and not the strategy."""


class Strategy(ABC):
    """Choose among the pairs of a prompt, and order prompts."""

    heads: ClassVar[int] = 0
    """Fewest heads of the reward model; 0 where no score is read."""

    @abstractmethod
    def choose(self, pairs: Sequence[Pair]) -> tuple[list[float], float]:
        """Return the probability of each pair of one prompt, and the prompt's priority.

        The prompt of the highest priority is asked first; among equal priorities chance decides.
        """


class Random(Strategy):
    """Choose prompts and their pairs with equal probability."""

    def choose(self, pairs: Sequence[Pair]) -> tuple[list[float], float]:
        """See `Strategy.choose`."""
        return [1 / len(pairs)] * len(pairs), 0.0


class _Greedy(Strategy):
    """Choose the pair of the highest value."""

    @abstractmethod
    def value(self, pair: Pair) -> float:
        """Return how much a pair is worth asking."""

    def choose(self, pairs: Sequence[Pair]) -> tuple[list[float], float]:
        """See `Strategy.choose`."""
        values = [self.value(pair) for pair in pairs]
        best = max(values)
        return [(value == best) / values.count(best) for value in values], best


class Margin(_Greedy):
    """Choose the pair whose mean scores are closest: uncertainty sampling (Lewis and Gale 1994)."""

    heads = 1

    def value(self, pair: Pair) -> float:
        """Return the negative distance of the mean scores."""
        first, second = map(statistics.fmean, pair.scores)
        return -abs(first - second)


class Disagreement(_Greedy):
    """Choose the pair whose preference the heads disagree about most.

    The variance over an ensemble of the predicted preference (Christiano et al. 2017, section 2.2.4), the Bradley-Terry
    probability; `infomax` of Dwaracherla et al. 2024 (arXiv 2402.00396).
    """

    heads = 2

    def value(self, pair: Pair) -> float:
        """Return the variance over heads of the probability that the first response is better."""
        chances = [_sigmoid(a - b) for a, b in zip(*pair.scores, strict=True)]
        mean = statistics.fmean(chances)
        return statistics.fmean((chance - mean) ** 2 for chance in chances)


@dataclass(frozen=True)
class Thompson(Strategy):
    """Choose by double Thompson sampling (Dwaracherla et al. 2024, arXiv 2402.00396).

    A head that is chosen at random names the first response, its best one; further random heads name the second, until it
    differs from the first; after `tries` of them it is any other response. The probabilities are computed and not sampled, and
    those of pairs that are in the store are scaled to 1.

    Args:
        tries: random heads for the second response.
    """

    heads = 2
    tries: int = 30

    def choose(self, pairs: Sequence[Pair]) -> tuple[list[float], float]:
        """See `Strategy.choose`."""
        scores = {name: s for pair in pairs for name, s in zip(pair.responses, pair.scores, strict=True)}
        heads = len(next(iter(scores.values())))
        best = Counter(max(scores, key=lambda name: scores[name][head]) for head in range(heads))
        first = {name: best[name] / heads for name in scores}
        chances = [
            self._ordered(a, b, first) + self._ordered(b, a, first) for a, b in (pair.responses for pair in pairs)
        ]
        total = sum(chances)
        return [chance / total for chance in chances] if total else [1 / len(pairs)] * len(pairs), 0.0

    def _ordered(self, first: str, second: str, chances: Mapping[str, float]) -> float:
        """Return the probability of naming `first` and then `second`."""
        p, others = chances[first], len(chances) - 1
        never = p**self.tries  # that all tries name the first one again
        found = chances[second] * (1 - never) / (1 - p) if p < 1 else 0.0
        return p * (found + never / others)


STRATEGIES: dict[str, type[Strategy]] = {
    "random": Random,
    "margin": Margin,
    "disagreement": Disagreement,
    "thompson": Thompson,
}


def strategy_of(name: str) -> Strategy:
    """Return the strategy of a short name or an import path.

    Raises:
        UserError: there is none.
    """
    if name in STRATEGIES:
        return STRATEGIES[name]()
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute) if module else None
    except (ImportError, AttributeError) as error:
        raise UserError(f"--strategy is {name}, which cannot be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Strategy)):
        raise UserError(f"--strategy is {name!r}; {nearest(name, list(STRATEGIES))}, or the import path of a Strategy")
    return found()


def rank(
    pairs: Iterable[Pair], asked: Mapping[str, int], strategy: Strategy, random_share: float, seed: str
) -> list[Question]:
    """Order pairs: a prompt gets a second question after every prompt has had one.

    With probability ε, the share of random questions, a place goes to a prompt and a pair of it that chance alone chooses
    among those left, else to the strategy's choice. With N prompts left, m pairs of the prompt, and T prompts of the highest
    priority, the recorded probability is ε/(N·m) + (1 - ε)·[prompt is one of the T]·P(pair)/T.

    Args:
        pairs: that may be asked.
        asked: questions that were asked before, by prompt.
        strategy: chooses.
        random_share: ε, from 0 to 1.
        seed: of chance; the order is a function of all arguments, and of the order of none.
    """
    rng, asked = random.Random(seed), Counter(asked)
    left: dict[str, list[Pair]] = {}
    for pair in sorted(pairs):
        left.setdefault(pair.prompt, []).append(pair)
    ranked: list[Question] = []
    while left:
        fewest = min(asked[prompt] for prompt in left)
        chosen = _one_each({p: each for p, each in left.items() if asked[p] == fewest}, strategy, random_share, rng)
        for prompt, question in chosen:
            ranked.append(question)
            asked[prompt] += 1
            left[prompt] = [pair for pair in left[prompt] if pair.key != question.key]
        left = {prompt: each for prompt, each in left.items() if each}
    return ranked


def _one_each(
    left: Mapping[str, list[Pair]], strategy: Strategy, random_share: float, rng: random.Random
) -> list[tuple[str, Question]]:
    """Choose one pair of every prompt, in the order of the queue."""
    choices = {prompt: strategy.choose(pairs) for prompt, pairs in left.items()}
    by_priority: dict[float, list[str]] = {}
    for prompt, (_, priority) in choices.items():
        by_priority.setdefault(priority, []).append(prompt)
    tops = [by_priority[priority] for priority in sorted(by_priority)]
    remaining, chosen = list(left), []
    while remaining:
        top = tops[-1]
        at_random = rng.random() < random_share
        prompt = rng.choice(remaining if at_random else top)
        pairs, (chances, priority) = left[prompt], choices[prompt]
        place = rng.randrange(len(pairs)) if at_random else rng.choices(range(len(pairs)), chances)[0]
        probability = random_share / (len(remaining) * len(pairs))
        if prompt in top:
            probability += (1 - random_share) * chances[place] / len(top)
        chosen.append((prompt, Question(pairs[place].key, probability, at_random)))
        remaining.remove(prompt)
        by_priority[priority].remove(prompt)
        while tops and not tops[-1]:
            tops.pop()
    return chosen


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-max(-500.0, min(500.0, x))))
