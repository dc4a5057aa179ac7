"""`python -m rlhf_lightning show`: prints rows as the model will get them, without loading weights."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rlhf_lightning.cli.reading import build_without_trainer, read
from rlhf_lightning.errors import UserError

if TYPE_CHECKING:
    from rlhf_lightning.models.encoding import Encoded, Encoder

HELP = "print rows as the model will get them: prompt, response, and what is learned of it"
TAKES_OVERRIDES = True
COLOURS = {"prompt": "\033[2m", "learned": "\033[1;32m", "context": "\033[33m"}
END = "\033[0m"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the subcommand; all others are those of `fit`."""
    parser.add_argument("--config", action="append", default=[], help="as for fit; may be given several times")
    parser.add_argument("--rows", type=int, default=3, help="how many rows (3)")
    parser.add_argument("--split", choices=("train", "validation"), default="train", help="which rows (train)")
    parser.add_argument("--color", choices=("auto", "always", "never"), default="auto", help="colours (on a terminal)")


def run(options: argparse.Namespace) -> int:
    """Print the rows.

    Args:
        options: of `arguments`, and in `overrides` the words that it does not know, which overlay the configs.

    Returns:
        0.

    Raises:
        UserError: the config or a row is bad.
    """
    if options.rows < 1:
        raise UserError(f"--rows is {options.rows}; it must be at least 1")
    words = [word for config in options.config for word in ("--config", config)]
    stage, data = build_without_trainer(read(["fit", *words, *options.overrides]))
    encoder = _encoder(stage)
    data.prepare_data()
    data.setup("fit")
    _screen(stage, data, encoder)
    for line in rows_shown(stage, data, encoder, options.split, options.rows, _is_coloured(options.color)):
        print(line)
    return 0


def _encoder(stage: Any) -> Encoder:
    text = getattr(stage, "text", None)
    if text is None:
        raise UserError(
            f"show needs a stage of this package, which has a tokenizer; the config has {type(stage).__name__}"
        )
    text.load(getattr(stage, "max_prompt_length", None))
    encoder: Encoder = text.encoder
    return encoder


def _screen(stage: Any, data: Any, encoder: Encoder) -> None:
    from rlhf_lightning.data.screening import screen

    rewards = {**(getattr(stage, "rewards", None) or getattr(stage, "evaluation_rewards", None) or {})}
    for reward in rewards.values():
        reward.check()
    screen(data, encoder, lambda row: encoded_row(stage, encoder, row), used_by(stage), rewards.values())


def used_by(stage: Any) -> tuple[str, ...]:
    """Columns that a stage reads."""
    from rlhf_lightning.stages import reward, supervised

    if isinstance(stage, supervised.SupervisedStage):
        return supervised.READ
    if isinstance(stage, reward.RewardStage):
        return reward.READ
    return ("prompt", "chosen", "rejected") if getattr(stage, "reward", None) is None else ("prompt",)


def encoded_row(stage: Any, encoder: Encoder, row: dict[str, Any]) -> list[Encoded]:
    """Encode a row as its stage does: turns to learn, responses that are compared, or a prompt alone.

    Raises:
        UserError: the row has none of these.
    """
    from rlhf_lightning.models.encoding import Encoded
    from rlhf_lightning.stages.reward import RewardStage, responses_of
    from rlhf_lightning.stages.supervised import SupervisedStage, prompt_and_completion

    limit = getattr(stage, "max_length", None)
    try:
        if isinstance(stage, SupervisedStage):
            return encoder.learned(*prompt_and_completion(row), limit)
        if isinstance(stage, RewardStage) or (getattr(stage, "reward", None) is None and "chosen" in row):
            return encoder.together(row["prompt"], [text for text, _ in responses_of(row)], limit)[1]
        return [Encoded(encoder.prompt(row["prompt"]), [], [])]
    except KeyError as error:
        raise UserError(
            f"{type(stage).__name__} needs a column {error}, and the data has: {', '.join(row)}; set data to another data module"
        ) from error


def rows_shown(stage: Any, data: Any, encoder: Encoder, split: str, count: int, coloured: bool) -> Iterator[str]:
    """The lines about the first `count` rows of a split."""
    rows = getattr(data, f"{split}_rows", None)
    if rows is None:
        loader = data.train_dataloader() if split == "train" else data.val_dataloader()
        rows = [row for batch in loader for row in batch][:count]
    for number, row in enumerate(rows[:count], 1):
        place = getattr(row, "place", "")
        yield f"row {number} of {split}{f' ({place})' if place else ''}"
        for encoded in encoded_row(stage, encoder, row):
            context = len(encoded.response) - sum(encoded.mask)
            learned = f", {sum(encoded.mask)} learned" if encoded.response else ", a response to generate"
            yield f"  {len(encoded.prompt)} prompt tokens{learned}{f', {context} of context' if context else ''}"
            for kind, ids in segments(encoded):
                yield from _text_lines(kind, encoder.tokenizer.decode(ids), coloured)


def segments(encoded: Encoded) -> list[tuple[str, list[int]]]:
    """Split ids into runs of prompt, learned and context tokens."""
    found: list[tuple[str, list[int]]] = [("prompt", encoded.prompt)]
    for token, learned in zip(encoded.response, encoded.mask, strict=True):
        kind = "learned" if learned else "context"
        if found[-1][0] != kind:
            found.append((kind, []))
        found[-1][1].append(token)
    return found


def _text_lines(kind: str, text: str, coloured: bool) -> Iterator[str]:
    """A text behind the name of its kind, so that it is readable without colours; control characters are escaped."""
    for place, line in enumerate(text.split("\n")):
        safe = "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in line)
        shown = f"{COLOURS[kind]}{safe}{END}" if coloured else safe
        yield f"    {kind if place == 0 else '':8}| {shown}"


def _is_coloured(choice: str) -> bool:
    if choice == "auto":
        return sys.stdout.isatty() and "NO_COLOR" not in os.environ
    return choice == "always"
