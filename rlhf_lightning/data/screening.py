"""Checks of every row by the encoder of a run, before weights are loaded: bad rows, long rows, unused columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf_lightning.console import print_once
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.encoding import Encoded, Encoder

Row = dict[str, Any]
SPLITS = ("train", "validation", "test", "predict")
SHOWN_ROWS = 1000
"""Rows whose columns are looked at."""


@dataclass
class Screening:
    """What was found in the rows of one split."""

    kept: list[Row] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    too_long: int = 0
    """Rows that do not fit, which are truncated, or dropped where the data module says so."""
    alike: int = 0
    """Rows whose responses are the same tokens, so that there is nothing to compare."""
    retokenized: int = 0
    """Responses that are not the rest of the ids of the whole conversation."""


def screen(
    data: Any,
    encoder: Encoder,
    encode: Callable[[Row], Sequence[Encoded]],
    used: Iterable[str],
    rewards: Iterable[Any] = (),
    predicting: bool = False,
) -> dict[str, Screening]:
    """Encode every row that a data module shows once: refuse or skip bad rows, drop long ones, and say what was found.

    Args:
        data: the data module; one that does not show its rows is not screened.
        encoder: of the run. What it counts here is forgotten.
        encode: a row to the responses that a stage learns from it, truncated as in training.
        used: columns that the stage reads.
        rewards: each says which columns it reads.
        predicting: screen the rows to predict, and no others.

    Raises:
        UserError: naming the file and line of the first bad row, unless data.on_bad_row is skip.
    """
    report_template(encoder)
    found = {}
    for split in SPLITS[3:] if predicting else SPLITS[:3]:
        rows = getattr(data, f"{split}_rows", None)
        if rows is None or not len(rows):
            continue
        found[split] = screened = _screened(data, encoder, encode, rows)
        _apply(data, split, screened, len(rows))
    encoder.truncated_counts.clear()
    encoder.retokenized = 0
    report_unused_columns(data, used, rewards)
    if encoder.renderer.ignored:
        print_once(
            f"data: the chat template renders no {', '.join(sorted(encoder.renderer.ignored))} of the conversations; set "
            "chat_template beside the model's name to a template that does"
        )
    return found


def _screened(
    data: Any, encoder: Encoder, encode: Callable[[Row], Sequence[Encoded]], rows: Iterable[Row]
) -> Screening:
    found = Screening()
    drops = getattr(data, "on_too_long", "truncate") == "drop"
    for number, row in enumerate(rows, 1):
        encoder.truncated_counts.clear()
        encoder.retokenized = 0
        try:
            encoded = encode(row)
        except UserError as error:
            found.faults.append(f"{getattr(row, 'place', '') or f'row {number}'}: {error}")
            continue
        found.retokenized += encoder.retokenized
        found.alike += len(encoded) > 1 and _compares(row) and len({tuple(each.response) for each in encoded}) < 2
        long = bool(encoder.truncated_counts)
        found.too_long += long
        if not (long and drops):
            found.kept.append(row)
    return found


def _compares(row: Row) -> bool:
    return any(name in row for name in ("chosen", "responses", "rated"))


def _apply(data: Any, split: str, found: Screening, count: int) -> None:
    """Keep the rows that are left, and say what was found.

    Raises:
        UserError: a row is bad, or none is left.
    """
    if found.faults and getattr(data, "on_bad_row", "raise") != "skip":
        more = f" (and {len(found.faults) - 1} more bad rows)" if len(found.faults) > 1 else ""
        raise UserError(f"{found.faults[0]}{more}; or set data.on_bad_row: skip")
    if found.faults:
        if isinstance(report := getattr(data, "report", None), dict):
            report["bad_rows"] = report.get("bad_rows", 0) + len(found.faults)
        print_once(f"data: skipped {len(found.faults)} bad {split} rows: {'; '.join(found.faults[:3])}")
    drops = getattr(data, "on_too_long", "truncate") == "drop"
    if found.too_long:
        done = "dropped" if drops else "truncated (data.on_too_long: drop drops them)"
        print_once(f"data: {found.too_long} of {count} {split} rows are too long and are {done}")
    if found.alike:
        print_once(f"data: {found.alike} of {count} {split} rows have equal responses, so nothing is learned from them")
    if found.retokenized:
        print_once(
            f"data: {found.retokenized} responses of {count} {split} rows are tokenized behind their prompt, as the ids of "
            "prompt and response together do not begin with those of the prompt"
        )
    if not found.kept:
        raise UserError(f"no {split} row is left of {count}: raise max_length, or set data.on_too_long: truncate")
    if len(found.kept) < count:
        setattr(data, f"{split}_rows", found.kept)


def report_template(encoder: Encoder) -> None:
    """Say which markers of the chat template are several tokens, and how to add them."""
    if missing := encoder.renderer.missing_markers():
        names = ", ".join(missing)
        print_once(
            f"the chat template writes {names}, of which the vocabulary has no token, so they are learned as text; to add and "
            f"train them set new_tokens: [{', '.join(map(repr, missing))}] beside the model's name, and with lora also "
            "modules_to_save: [embed_tokens, lm_head] in it"
        )


def report_unused_columns(data: Any, used: Iterable[str], rewards: Iterable[Any]) -> list[str]:
    """Name the columns that nothing reads, once.

    Args:
        data: the data module, of which the first rows are looked at.
        used: columns that the stage reads.
        rewards: each says which columns it reads.
    """
    splits = (getattr(data, f"{split}_rows", None) for split in SPLITS)
    rows = [row for rows in splits if rows is not None for row in rows[:SHOWN_ROWS]]
    have = dict.fromkeys(name for row in rows for name in row)
    known = {*used, *getattr(data, "read_columns", ())}
    for reward in rewards:
        known |= set(reward.used_columns(have))
    unused = [name for name in have if name not in known]
    if unused:
        names = ", ".join(unused)
        print_once(
            f"data: not used: {names}; map them with data.columns or drop them with data.remove_columns: [{names}]"
        )
    return unused
