"""Responses of runs side by side: the first and the last validation of each, by prompt; and tokens with their numbers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from rlhf_lightning.report.runs import Row, RunFiles

LONGEST_TEXT = 4000
"""Characters of a text that the page shows."""
NUMBERS = ("log_ratio", "leave_one_out", "value", "logprob")
"""Columns of the table `policy_tokens` by which tokens are coloured."""


def side_by_side(runs: Sequence[RunFiles], budget: int) -> dict[str, Any]:
    """Return the responses to each held-out prompt, before and after, of every run.

    Args:
        runs: of the report.
        budget: characters of JSON at most; the page says how many prompts are not shown.

    Returns:
        `scores`: names of scores. `rows`: `{prompt, runs: [{before, after} | None]}`, where a response is `[text, scores]`.
        `total`: number of prompts.
    """
    scores = dict.fromkeys(name for run in runs for row in run.samples[:1] for name in row if name.startswith("reward"))
    found: dict[tuple[str, int], list[Any]] = {}
    for place, run in enumerate(runs):
        for moment, step in _ends(run):
            for key, sample in _keyed(run.samples_at(step)):
                cells = found.setdefault(key, [None] * len(runs))
                cells[place] = {
                    **(cells[place] or {}),
                    moment: [_text(sample.get("response")), _scores(sample, scores)],
                }
    rows: list[dict[str, Any]] = []
    size = 0
    for (prompt, _), cells in found.items():
        row = {"prompt": _text(prompt), "runs": cells}
        size += len(json.dumps(row))
        if size > budget:
            break
        rows.append(row)
    return {"scores": list(scores), "rows": rows, "total": len(found)}


def paired(run: RunFiles) -> list[tuple[Row, Row]]:
    """Return the samples of the first and of the last validation to the same prompts; empty with one validation."""
    ends = dict(_ends(run))
    if len(ends) < 2:
        return []
    before, after = (dict(_keyed(run.samples_at(ends[moment]))) for moment in ("before", "after"))
    return [(sample, after[key]) for key, sample in before.items() if key in after]


def coloured_tokens(runs: Sequence[RunFiles]) -> list[dict[str, Any]]:
    """Return the tokens of the last `TokenAttribution` of each run that has one.

    Returns:
        `{run, step, numbers, samples: [{prompt, tokens: [[text, number, …], …]}]}` per run and kind of number.
    """
    return [found for run in runs for found in (_policy_tokens(run), _reward_tokens(run)) if found is not None]


def _policy_tokens(run: RunFiles) -> dict[str, Any] | None:
    rows = _last(run.tables.get("policy_tokens", ()))
    numbers = [name for name in NUMBERS if any(isinstance(row.get(name), float) for row in rows)]
    return _tokens(run, rows, numbers) if rows and numbers else None


def _reward_tokens(run: RunFiles) -> dict[str, Any] | None:
    rows = _last(run.tables.get("reward_tokens", ()))
    return _tokens(run, rows, ["attribution"]) if rows else None


def _tokens(run: RunFiles, rows: Sequence[Row], numbers: list[str]) -> dict[str, Any]:
    step, prompts = (
        rows[0]["step"],
        [row.get("prompt") for row in run.samples_at(run.sample_steps[0])] if run.samples else [],
    )
    samples: dict[int, list[Any]] = {}
    for row in rows:
        samples.setdefault(row["sample"], []).append(
            [_text(row["token"]), *(_short(row.get(name)) for name in numbers)]
        )
    named = [
        {"prompt": _text(prompts[place]) if place < len(prompts) else "", "tokens": tokens}
        for place, tokens in samples.items()
    ]
    return {"run": run.name, "step": step, "numbers": numbers, "samples": named}


def _last(rows: Sequence[Row]) -> list[Row]:
    step = max((row["step"] for row in rows), default=0)
    return [row for row in rows if row["step"] == step]


def _ends(run: RunFiles) -> list[tuple[str, int]]:
    """Return the steps of the first and of the last validation; `after` alone where there is one."""
    steps = run.sample_steps
    return [("before", steps[0]), ("after", steps[-1])] if len(steps) > 1 else [("after", step) for step in steps]


def _keyed(samples: Sequence[Row]) -> Iterator[tuple[tuple[str, int], Row]]:
    """Yield samples by prompt and its occurrence: a prompt may occur twice in the data."""
    seen: Counter[str] = Counter()
    for sample in samples:
        prompt = str(sample.get("prompt", ""))
        yield (prompt, seen[prompt]), sample
        seen[prompt] += 1


def _scores(sample: Row, names: Sequence[str] | dict[str, None]) -> list[float | None]:
    return [_short(sample.get(name)) for name in names]


def _short(value: Any) -> float | None:
    return float(f"{value:.4g}") if isinstance(value, int | float) and value == value else None


def _text(value: Any) -> str:
    """Return text that UTF-8 can encode, shortened."""
    text = str(value).encode("utf-8", "replace").decode()
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}… ({len(text)} characters)"
