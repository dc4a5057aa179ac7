"""One data module a kind of row."""

from __future__ import annotations

from typing import Any

from rlhf_lightning.data.formats import BadRow, before_answer, common_prompt, last_turns, number, text_or_messages
from rlhf_lightning.data.module import FileData, PlacedRow, Row

RATED = 16
"""Responses of a prompt in one row at most: they are never separated within a step, so what they take is bounded."""


class PromptData(FileData):
    """Prompts to write responses to: text, messages, or a dialogue whose last answer is left out. Other columns go to rewards."""

    def row(self, row: Row) -> Row:
        """`prompt`, and everything else as it is."""
        return {**row, "prompt": before_answer(text_or_messages(row.get("prompt"), "prompt"))}


class PreferenceData(FileData):
    """Pairs: `chosen` and `rejected`, with a `prompt` or with one at the beginning of both, perhaps a `margin`."""

    required = ("chosen", "rejected")

    def row(self, row: Row) -> Row:
        """`prompt`, `chosen`, `rejected`, and everything else as it is."""
        chosen, rejected = (text_or_messages(row.get(name), name) for name in ("chosen", "rejected"))
        if row.get("prompt") is None:
            prompt, chosen, rejected = common_prompt(chosen, rejected)
        else:
            prompt = text_or_messages(row["prompt"], "prompt")
        if chosen == rejected:
            raise BadRow("chosen and rejected are the same")
        margin = {} if row.get("margin") is None else {"margin": number(row["margin"], "margin")}
        return {**row, "prompt": prompt, "chosen": chosen, "rejected": rejected, **margin}


class InstructionData(FileData):
    """`prompt` and `completion`; or `messages`: a conversation or a dialogue, every answer of which is learned."""

    required = ()

    def row(self, row: Row) -> Row:
        """`prompt` and `completion`, or `messages`, and everything else as it is."""
        if row.get("messages") is not None:
            messages = text_or_messages(row["messages"], "messages")
            if isinstance(messages, str):
                raise BadRow("column 'messages' is plain text; map it to 'completion' and give a 'prompt'")
            last_turns(messages)
            return {**row, "messages": messages}
        missing = [name for name in ("prompt", "completion") if name not in row]
        if missing:
            there = ", ".join(sorted(row))
            raise BadRow(
                f"no column {missing[0]!r} and no 'messages' among {there}; say which it is with "
                f"data.columns: {{{missing[0]}: …}}"
            )
        prompt, completion = (text_or_messages(row[name], name) for name in ("prompt", "completion"))
        return {**row, "prompt": prompt, "completion": completion}


class RankingData(FileData):
    """`prompt` and `responses`, the best first."""

    required = ("prompt", "responses")

    def row(self, row: Row) -> Row:
        """`prompt` and at least two `responses`."""
        responses = row.get("responses")
        if not isinstance(responses, list) or len(responses) < 2:
            raise BadRow(
                f"column 'responses' must be a list of at least 2 responses, the best first, found {responses!r:.60}"
            )
        ranked: list[Any] = [text_or_messages(response, "responses") for response in responses]
        return {**row, "prompt": text_or_messages(row.get("prompt"), "prompt"), "responses": ranked}


class RatingData(FileData):
    """`prompt`, `response` and `rating`, a row a response; the stage is given a row a prompt, with all that are `rated`."""

    required = ("prompt", "response", "rating")

    def row(self, row: Row) -> Row:
        """`prompt`, `response`, and a number."""
        prompt, response = (text_or_messages(row.get(name), name) for name in ("prompt", "response"))
        return {**row, "prompt": prompt, "response": response, "rating": number(row.get("rating"), "rating")}

    def arranged(self, rows: list[Row]) -> list[Row]:
        """`rated`: (response, rating) of every response to a prompt, in place of the two columns; others are the first row's."""
        found: list[Row] = []
        latest: dict[str, Row] = {}
        for row in rows:
            key = repr(row["prompt"])
            if key not in latest or len(latest[key]["rated"]) == RATED:
                kept = {name: value for name, value in row.items() if name not in ("response", "rating")}
                latest[key] = PlacedRow({**kept, "rated": []}, getattr(row, "place", ""), getattr(row, "entry", 0))
                found.append(latest[key])
            latest[key]["rated"].append((row["response"], row["rating"]))
        return found
