"""The rows that both sides read: cut from preference pairs of a file, or from generated text, to exact numbers of tokens."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peers.work import MAX_REAL_LENGTH, ONLINE, Work

MARKERS = {"\n\nHuman:": "\n\nQ:", "\n\nAssistant:": "\n\nA:"}
"""Turns of a dialogue are marked so that both libraries take them for plain text."""
Pair = dict[str, str]


def pairs_of(path: Path | None) -> list[Pair]:
    """`prompt`, `chosen`, `rejected` of a file of dialogues as hh-rlhf has them, or of text from a random generator."""
    if path is None:
        return list(_generated(random.Random(0)))
    whole = path.read_bytes()
    lines = (gzip.decompress(whole) if path.suffix == ".gz" else whole).decode().splitlines()
    return [pair for pair in map(_split, map(json.loads, lines)) if pair]


def _split(row: dict[str, str]) -> Pair | None:
    chosen, rejected = row["chosen"], row["rejected"]
    at = chosen.rfind("\n\nAssistant:") + len("\n\nAssistant:")
    if chosen[:at] != rejected[:at] or not chosen[at:].strip() or not rejected[at:].strip() or chosen == rejected:
        return None
    found = {"prompt": chosen[:at], "chosen": chosen[at:], "rejected": rejected[at:]}
    for theirs, ours in MARKERS.items():
        found = {name: text.replace(theirs, ours) for name, text in found.items()}
    return found


def _generated(rng: random.Random, count: int = 2000) -> Iterator[Pair]:
    """Words of a made-up language, the frequent ones short; lengths are log-normal, about those of chats."""
    letters = "etaoinshrdlucmfwypvbgk"
    words = ["".join(rng.choices(letters, range(22, 0, -1), k=2 + i // 150)) for i in range(1500)]
    odds = [1 / (i + 1) for i in range(1500)]

    def sentence(mean: float) -> str:
        return " " + " ".join(rng.choices(words, odds, k=max(2, round(rng.lognormvariate(mean, 0.7)))))

    for _ in range(count):
        yield {"prompt": f"\n\nQ:{sentence(3.8)}\n\nA:", "chosen": sentence(3.3), "rejected": sentence(3.3)}


def texts_of(pairs: list[Pair]) -> list[str]:
    return [pair["prompt"] + pair[name] for pair in pairs for name in ("chosen", "rejected")]


def rows_of(work: Work, count: int, pairs: list[Pair], tokenizer: Any) -> list[dict[str, str]]:
    """`count` rows; the same for the same arguments.

    Raises:
        ValueError: the text does not hold that many.
    """
    if work.kind in ONLINE:
        found = ({"prompt": prompt} for prompt in _windows([work.prompt], pairs, tokenizer))
    elif work.kind == "dpo":
        found = _cut_pairs(work, pairs, tokenizer)
    else:
        found = _real(work, pairs, tokenizer)
    rows = [row for _, row in zip(range(count), found, strict=False)]
    if len(rows) < count:
        raise ValueError(
            f"the text gives {len(rows)} rows of {work.name} and {count} are needed; give more with --pairs"
        )
    return rows


def _windows(lengths: list[int], pairs: list[Pair], tokenizer: Any) -> Iterator[Any]:
    """Texts of exactly these numbers of tokens, one behind the other, each also when tokenized alone; a text if there is one."""
    ids: list[int] = []
    for text in texts_of(pairs)[::2] + texts_of(pairs)[1::2]:
        ids += tokenizer(text.strip())["input_ids"] + tokenizer("\n")["input_ids"]
        while len(ids) >= sum(lengths):
            cut, at = [], 0
            for length in lengths:
                cut.append(tokenizer.decode(ids[at : at + length]))
                at += length
            ids = ids[at:]
            whole = len(tokenizer("".join(cut))["input_ids"]) == at
            if whole and all(len(tokenizer(c)["input_ids"]) == n for c, n in zip(cut, lengths, strict=True)):
                yield cut[0] if len(cut) == 1 else cut


def _cut_pairs(work: Work, pairs: list[Pair], tokenizer: Any) -> Iterator[Pair]:
    """Pairs of exact lengths, the end token that both libraries append counted."""
    generated, kept = work.length - 1, None
    for prompt, response in _windows([work.prompt, generated], pairs, tokenizer):
        if kept is not None and len(tokenizer(prompt + kept)["input_ids"]) == work.prompt + generated:
            yield {"prompt": prompt, "chosen": response, "rejected": kept}
        kept = response


def _real(work: Work, pairs: list[Pair], tokenizer: Any) -> Iterator[Pair]:
    """Texts as they are, those that are too long left out."""
    order = random.Random(0).sample(pairs, len(pairs))
    for pair in order:
        longest = max(len(tokenizer(pair["prompt"] + pair[name])["input_ids"]) for name in ("chosen", "rejected"))
        if longest < MAX_REAL_LENGTH:
            yield pair if work.kind == "reward" else {"prompt": pair["prompt"], "completion": pair["chosen"]}
