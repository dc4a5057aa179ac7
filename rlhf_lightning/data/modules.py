"""Data modules, one for each kind of row."""

from __future__ import annotations

from typing import Any

from rlhf_lightning.data.formats import (
    Text,
    answered,
    before_answer,
    better_first,
    check_conversation,
    common_prompt,
    label,
    number,
    text_or_messages,
)
from rlhf_lightning.data.messages import BadRow, UnusedRow
from rlhf_lightning.data.module import FileData, PlacedRow, Row
from rlhf_lightning.errors import UserError

RATED = 16
"""Responses of a prompt in one row at most: they are never separated within a step, so what they take is bounded."""


class PromptData(FileData):
    """Prompts to generate responses to: text, messages, or a dialogue whose last answer is dropped. Rewards get other columns."""

    form = "prompts"

    def row(self, row: Row) -> Row:
        """Read `prompt`, and keep everything else as it is."""
        prompt = before_answer(text_or_messages(row.get("prompt"), "prompt"))
        return {**row, "prompt": self.context(row).around(prompt)}


class PreferenceData(FileData):
    """Pairs: `chosen` and `rejected`, with a `prompt` or with one at the beginning of both, perhaps a `margin`.

    A column `probability`, from 0 to 1, says how probable it is that `chosen` is the better one; without a value it is 1.
    Below 0.5 the two are swapped.
    """

    required = ("chosen", "rejected")
    form = "pairs"

    def row(self, row: Row) -> Row:
        """Read `prompt`, `chosen` and `rejected`, the better one first, and keep everything else as it is."""
        row = better_first(row)
        answers = {name: text_or_messages(row.get(name), name) for name in ("chosen", "rejected")}
        if row.get("prompt") is None:
            prompt, answers["chosen"], answers["rejected"] = common_prompt(answers["chosen"], answers["rejected"])
            prompt = self.context(row).around(prompt)
        else:
            prompt = self.context(row).around(text_or_messages(row["prompt"], "prompt"))
        prompt, answers = answered(prompt, answers)
        if answers["chosen"] == answers["rejected"]:
            raise BadRow("chosen and rejected are the same")
        _check_scores(row)
        margin = {} if row.get("margin") is None else {"margin": number(row["margin"], "margin")}
        return {**row, "prompt": prompt, **answers, **margin}


def _check_scores(row: Row) -> None:
    good, bad = row.get("score_chosen"), row.get("score_rejected")
    if good is not None and bad is not None and number(good, "score_chosen") < number(bad, "score_rejected"):
        raise BadRow(
            f"score_chosen is {good} and score_rejected {bad}: the rejected answer is marked as the better one"
        )


class InstructionData(FileData):
    """`prompt` and `completion`; or `messages`: a conversation or a dialogue, every answer of which is learned."""

    required = ()
    form = "instructions"

    def row(self, row: Row) -> Row:
        """Read `prompt` and `completion`, or `messages`, and keep everything else as it is.

        Raises:
            UnusedRow: the answer is marked as bad.
        """
        if row.get("label") is not None and not label(row["label"], "label"):
            raise UnusedRow("marked as bad by column 'label'")
        if row.get("messages") is not None:
            messages = text_or_messages(row["messages"], "messages")
            if isinstance(messages, str):
                raise BadRow("column 'messages' is plain text; map it to 'completion' and give a 'prompt'")
            check_conversation(messages)
            rest = {name: x for name, x in row.items() if name != "completion"}
            return {**rest, "messages": self.context(row).around(messages)}
        row = {name: x for name, x in row.items() if name != "messages"}
        missing = [name for name in ("prompt", "completion") if row.get(name) is None]
        if missing:
            raise BadRow(_not_instructions(row, missing[0]))
        prompt: Text = self.context(row).around(text_or_messages(row["prompt"], "prompt"))
        prompt, answers = answered(prompt, {"completion": text_or_messages(row["completion"], "completion")})
        return {**row, "prompt": prompt, **answers}


def _not_instructions(row: Row, missing: str) -> str:
    if {"chosen", "rejected", "preferred_output", "response_j", "answers", "completions"} & set(row):
        more = "; these are pairs or rated answers: to learn the good ones, map messages or completion to their column"
    elif {"helpfulness", "rating"} & set(row):
        more = "; these are rated answers: to learn all of them, map completion to response"
    else:
        more = f"; say which it is with data.columns: {{{missing}: …}}"
    if missing in row:
        return f"column {missing!r} is empty"
    return f"no column {missing!r} and no 'messages' among {', '.join(sorted(row))}{more}"


class RankingData(FileData):
    """`prompt` and `responses`, the best first."""

    required = ("prompt", "responses")
    form = "prompts"

    def row(self, row: Row) -> Row:
        """Read `prompt` and at least two `responses`."""
        responses = row.get("responses")
        if not isinstance(responses, list) or len(responses) < 2:
            raise BadRow(
                f"column 'responses' must be a list of at least 2 responses, the best first, found {responses!r:.60}"
            )
        ranked = {f"responses {i}": text_or_messages(text, "responses") for i, text in enumerate(responses, 1)}
        prompt, ranked = answered(self.context(row).around(text_or_messages(row.get("prompt"), "prompt")), ranked)
        return {**row, "prompt": prompt, "responses": list(ranked.values())}


class RatingData(FileData):
    """`prompt`, `response` and `rating`, a row per response; a stage is given a row per prompt, with all that are `rated`."""

    required = ("prompt", "response", "rating")
    form = "rated"

    def row(self, row: Row) -> Row:
        """Read `prompt`, `response`, and a number."""
        prompt = self.context(row).around(text_or_messages(row.get("prompt"), "prompt"))
        prompt, answers = answered(prompt, {"response": text_or_messages(row.get("response"), "response")})
        return {**row, "prompt": prompt, **answers, "rating": number(row.get("rating"), "rating")}

    def arranged(self, rows: list[Row]) -> list[Row]:
        """Join the responses to a prompt: `rated` holds (response, rating); other columns are the first row's."""
        found: list[Row] = []
        latest: dict[str, Row] = {}
        for row in rows:
            key = repr((row["prompt"], getattr(row["prompt"], "tools", None)))
            if key not in latest or len(latest[key]["rated"]) == RATED:
                kept = {name: value for name, value in row.items() if name not in ("response", "rating")}
                latest[key] = PlacedRow({**kept, "rated": []}, getattr(row, "place", ""), getattr(row, "entry", 0))
                found.append(latest[key])
            latest[key]["rated"].append((row["response"], row["rating"]))
        return found


class LabelledData(FileData):
    """`prompt`, `response` and `label`, true or false: responses that are judged one by one, as for KTO.

    A pair gives two rows. A reward model learns labels as ratings 1 and 0 with `objective: regression`.

    Args:
        good_from: with `bad_to`: labels come from the column `rating` (or those that `RatingData` reads); a response with this
            rating or more is good.
        bad_to: a response with this rating or less is bad; those between are counted and not used.
    """

    required = ("label", "prompt", "response")
    form = "labelled"

    def __init__(self, *args: Any, good_from: float | None = None, bad_to: float | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if (good_from is None) != (bad_to is None):
            raise UserError(
                f"data.good_from is {good_from} and data.bad_to is {bad_to}; set both to make labels of ratings, or neither"
            )
        if good_from is not None and bad_to is not None:
            if bad_to >= good_from:
                raise UserError(f"data.bad_to is {bad_to}; set it below data.good_from, which is {good_from}")
            self.form, self.required = RatingData.form, RatingData.required
        self.good_from, self.bad_to = good_from, bad_to

    def row(self, row: Row) -> Row:
        """Read `prompt`, `response` and `label`; `rating` is 1 or 0."""
        good = self._good(row)
        prompt: Any = self.context(row).around(text_or_messages(row.get("prompt"), "prompt"))
        prompt, answers = answered(prompt, {"response": text_or_messages(row.get("response"), "response")})
        return {**row, "prompt": prompt, **answers, "label": good, "rating": float(good)}

    def _good(self, row: Row) -> bool:
        if self.good_from is None or self.bad_to is None:
            return label(row.get("label"), "label")
        rating = number(row.get("rating"), "rating")
        if self.bad_to < rating < self.good_from:
            raise UnusedRow("rating between data.bad_to and data.good_from")
        return rating >= self.good_from
