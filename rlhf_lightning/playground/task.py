"""The task of the playground, whose true reward is known: prompts ask for things by kind, and replies differ in quality.

    name two animals and one color .        →        gladly , fox , owl and red .

Everything follows from a seed. Four independent qualities, each from 0 to 1, make up the true reward of a reply: it names the
things asked for, is polite, is brief, and does not repeat itself. Few replies of the supervised text have all four, so a model
trained on it can improve a lot. The simulated annotators are noisy and biased, so a policy can over-optimise a learned reward.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations, product
from typing import NamedTuple

KINDS: dict[str, list[str]] = {
    "animal": "fox owl bear duck wolf horse goat mouse tiger whale crow seal".split(),
    "fruit": "apple pear plum lemon mango cherry fig grape melon peach banana kiwi".split(),
    "color": "red blue green yellow black white brown pink purple gray orange silver".split(),
    "tool": "hammer saw drill wrench axe file knife shovel rake ladder brush pump".split(),
    "city": "paris tokyo cairo lima oslo rome delhi berlin madrid seoul dublin vienna".split(),
    "drink": "tea coffee milk water juice cocoa cider soda beer wine lemonade punch".split(),
}
PLURALS = {
    "animal": "animals",
    "fruit": "fruits",
    "color": "colors",
    "tool": "tools",
    "city": "cities",
    "drink": "drinks",
}
COUNTS = {"one": 1, "two": 2}
OPENINGS = ["gladly", "of course", "with pleasure", "happy to help"]
CLOSINGS = ["thank you", "you are welcome", "have a nice day", "kind regards"]
POLITE = OPENINGS + CLOSINGS
FILLERS = ["well", "let me think", "i would say", "as far as i know", "to be honest", "or so they say", "if you ask me"]
TEMPLATES = ["name {} .", "please name {} .", "can you name {} ?", "i need {} .", "tell me {} ."]
PUNCTUATION = {".", ",", "?", "!"}

KIND_OF = {word: kind for kind, words in KINDS.items() for word in words}
ASKED = {name: kind for kind in KINDS for name in (kind, PLURALS[kind])}
QUALITIES = {"answers": 0.4, "polite": 0.2, "brief": 0.2, "varied": 0.2}
"""Weights of the qualities in the true reward."""

BRIEF_WORDS, LONG_WORDS = 10, 20
MAX_WORDS = 22
"""Tokens of the longest reply in the data, punctuation included."""


class Slot(NamedTuple):
    """A kind of thing that a prompt asks for, and how many."""

    kind: str
    number: int


def words_of(text: str) -> list[str]:
    """Return the words of a text, without punctuation and special tokens.

    >>> words_of("gladly , fox .")
    ['gladly', 'fox']
    """
    return [word for word in text.split() if word not in PUNCTUATION and not word.startswith("<")]


def slots_of(prompt: str) -> list[Slot]:
    """Parse what a prompt asks for.

    >>> slots_of("name two animals and one color .")
    [Slot(kind='animal', number=2), Slot(kind='color', number=1)]
    """
    matches = re.findall(rf"\b({'|'.join(COUNTS)}) ({'|'.join(ASKED)})\b", prompt)
    return [Slot(ASKED[name], COUNTS[count]) for count, name in matches]


def answers(prompt: str, reply: str) -> float:
    """Return recall times precision of the things asked for: 1 for exactly these things."""
    slots, things = slots_of(prompt), list(dict.fromkeys(w for w in words_of(reply) if w in KIND_OF))
    if not slots or not things:
        return 0.0
    right = sum(min(slot.number, sum(KIND_OF[thing] == slot.kind for thing in things)) for slot in slots)
    return right / sum(slot.number for slot in slots) * right / max(len(things), right)


def polite_phrases(reply: str) -> int:
    """Count the polite phrases of a reply, repetitions included."""
    text = f" {' '.join(words_of(reply))} "
    return sum(text.count(f" {phrase} ") for phrase in POLITE)


def polite(prompt: str, reply: str) -> float:
    """Return 1 with at least one polite phrase, else 0."""
    return float(polite_phrases(reply) > 0)


def brief(prompt: str, reply: str) -> float:
    """Return 1 for up to 10 words, falling to 0 at 20; 0 for an empty reply."""
    count = len(words_of(reply))
    return 0.0 if count == 0 else min(1.0, max(0.0, (LONG_WORDS - count) / (LONG_WORDS - BRIEF_WORDS)))


def varied(prompt: str, reply: str) -> float:
    """Return 1 if no word but `and` is repeated, falling to 0 if half of the words are repetitions."""
    words = [word for word in words_of(reply) if word != "and"]
    return 0.0 if not words else max(0.0, 1.0 - 2.0 * (len(words) - len(set(words))) / len(words))


MEASURES: dict[str, Callable[[str, str], float]] = {
    "answers": answers,
    "polite": polite,
    "brief": brief,
    "varied": varied,
}


def true_reward(prompt: str, reply: str) -> float:
    """Return the true reward of a reply, from 0 to 1.

    >>> true_reward("name one fruit .", "gladly , plum .")
    1.0
    """
    return sum(weight * MEASURES[name](prompt, reply) for name, weight in QUALITIES.items())


def make_prompt(rng: random.Random) -> str:
    """Sample a prompt that asks for one to three kinds of things."""
    kinds = rng.sample(list(KINDS), rng.choice([1, 2, 2, 3]))
    slots = [Slot(kind, 1 if rng.random() < 0.5 else 2) for kind in kinds]
    return _asking(rng.choice(TEMPLATES), slots)


def every_prompt() -> Iterator[str]:
    """Enumerate all prompts of `make_prompt`, each once."""
    for count in (1, 2, 3):
        for kinds, numbers in product(permutations(KINDS, count), product(COUNTS.values(), repeat=count)):
            slots = [Slot(kind, number) for kind, number in zip(kinds, numbers, strict=True)]
            yield from (_asking(template, slots) for template in TEMPLATES)


def _asking(template: str, slots: Sequence[Slot]) -> str:
    asked = [f"one {slot.kind}" if slot.number == 1 else f"two {PLURALS[slot.kind]}" for slot in slots]
    return template.format(asked[0] if len(asked) == 1 else " , ".join(asked[:-1]) + " and " + asked[-1])


def is_held_out(prompt: str) -> bool:
    """Return whether a prompt is in the held-out seventh; its words decide, in any order."""
    return sum(map(ord, prompt)) % 7 == 0


@cache
def number_of_prompts(held_out: bool) -> int:
    """Count the different training prompts, or the held-out ones."""
    return sum(is_held_out(prompt) == held_out for prompt in every_prompt())


def prompts(size: int, seed: int, held_out: bool) -> list[str]:
    """Sample `size` different prompts, or all if there are fewer; held-out prompts are the same for every seed."""
    rng = random.Random(seed)
    count = min(size, number_of_prompts(held_out))
    distinct: dict[str, None] = {}
    while len(distinct) < count:
        prompt = make_prompt(rng)
        if is_held_out(prompt) == held_out:
            distinct[prompt] = None
    return list(distinct)


def ideal_reply(prompt: str, rng: random.Random) -> str:
    """Sample a reply with a true reward of 1."""
    things = [thing for slot in slots_of(prompt) for thing in rng.sample(KINDS[slot.kind], slot.number)]
    return _assemble([rng.choice(OPENINGS)], things, [])


def make_reply(prompt: str, rng: random.Random) -> str:
    """Sample a reply of mixed quality: three in ten are off topic, few are polite, many are long or repetitive."""
    slots, on_topic = slots_of(prompt), rng.random() < 0.7
    kinds = [slot.kind for slot in slots for _ in range(slot.number) if rng.random() < 0.9]
    if not on_topic:
        others = [kind for kind in KINDS if kind not in {slot.kind for slot in slots}]
        kinds = [rng.choice(others) for _ in kinds]
    things = [rng.choice(KINDS[kind]) for kind in kinds]
    if things and rng.random() < 0.5:
        things += rng.choices(things, k=rng.randint(1, 3))
    before = [rng.choice(OPENINGS)] if rng.random() < 0.1 else []
    before += rng.sample(FILLERS, rng.choice([0, 1, 2, 2]))
    after = rng.choices(CLOSINGS, k=rng.choice([0] * 16 + [1, 1, 2, 3])) + rng.sample(FILLERS, rng.choice([0, 1, 2]))
    return _assemble(before, things, after)


def _assemble(before: list[str], things: list[str], after: list[str]) -> str:
    listed = [" , ".join(things[:-1]) + " and " + things[-1]] if len(things) > 1 else things
    text = " , ".join([*before, *listed, *after]) + " ."
    return " ".join(text.split()[:MAX_WORDS])


@dataclass(frozen=True)
class Annotator:
    """A simulated annotator, who compares replies by the true reward, a bias, and noise."""

    name: str
    noise: float
    """Scale of the logistic noise on the difference of two replies, in true reward."""
    flattery: float = 0.0
    """Bias per polite phrase, in true reward."""
    length: float = 0.0
    """Bias per word, in true reward."""

    def opinion(self, prompt: str, reply: str) -> float:
        """Return the true reward of a reply plus the bias, without noise."""
        bias = self.flattery * polite_phrases(reply) + self.length * len(words_of(reply))
        return true_reward(prompt, reply) + bias

    def prefers_first(self, prompt: str, first: str, second: str, rng: random.Random) -> bool:
        """Sample which of two replies the annotator prefers (Bradley-Terry)."""
        difference = (self.opinion(prompt, first) - self.opinion(prompt, second)) / self.noise
        return rng.random() < 1 / (1 + math.exp(-max(-50.0, min(50.0, difference))))


ANNOTATORS: Sequence[Annotator] = (
    Annotator("careful", noise=0.03),
    Annotator("hurried", noise=0.1),
    Annotator("flattered", noise=0.05, flattery=0.15),
    Annotator("vain", noise=0.05, flattery=0.1),
    Annotator("talkative", noise=0.05, length=0.01),
)


def preferences(size: int, seed: int, held_out: bool) -> list[dict[str, str]]:
    """Sample `size` pairs of replies, each labelled by an annotator; prompts repeat where there are fewer."""
    rng = random.Random(seed + 1)
    asked = prompts(size, seed, held_out)
    rows: list[dict[str, str]] = []
    while len(rows) < size:
        prompt, annotator = asked[len(rows) % len(asked)], rng.choice(ANNOTATORS)
        first, second = make_reply(prompt, rng), make_reply(prompt, rng)
        if first == second:
            continue
        if not annotator.prefers_first(prompt, first, second, rng):
            first, second = second, first
        rows.append({"prompt": prompt, "chosen": first, "rejected": second, "annotator": annotator.name})
    return rows


def instructions(size: int, seed: int, held_out: bool) -> list[dict[str, str]]:
    """Sample `size` prompts with a reply each; prompts repeat where there are fewer."""
    rng = random.Random(seed + 2)
    asked = prompts(size, seed, held_out)
    return [{"prompt": p, "completion": make_reply(p, rng)} for p in (asked[i % len(asked)] for i in range(size))]


def vocabulary() -> list[str]:
    """Return every word of prompts and replies, special tokens first."""
    text = " ".join([*TEMPLATES, *FILLERS, *POLITE, *COUNTS, *ASKED, *KIND_OF, "and", *sorted(PUNCTUATION)]).replace(
        "{}", ""
    )
    return ["<pad>", "<eos>", "<unk>", *dict.fromkeys(text.split())]
