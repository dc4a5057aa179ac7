"""Public data forms by their columns: Alpaca, ShareGPT, OpenAI, UltraFeedback, HelpSteer, KTO, oasst, Stack Exchange and others.

Each function takes a row and gives the rows that a data module reads, with the columns that it knows. Columns that a form does
not use stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rlhf_lightning.data.formats import better_first, common_prompt
from rlhf_lightning.data.messages import BadRow, UnusedRow, text_or_messages
from rlhf_lightning.data.trees import best_path, compared_replies, is_tree, root_prompt

Row = dict[str, Any]
TEXTS = ("answer_text", "text", "body", "response", "content")
SCORES = ("pm_score", "overall_score", "score", "rating")
HELPFULNESS = ("helpfulness", "rating")


def has(row: Row, *columns: str) -> bool:
    """Tell whether the row has a value in each column.

    >>> has({"a": 1, "b": None}, "a", "b")
    False
    """
    return all(row.get(column) is not None for column in columns)


def _with(row: Row, drop: Iterable[str], **columns: Any) -> Row:
    return {**{name: x for name, x in row.items() if name not in drop}, **columns}


def asked(row: Row) -> Row:
    """Give a row its `prompt` or `messages`: of Alpaca, ShareGPT, Orca and oasst."""
    if is_tree(row):
        return _with(row, (), prompt=root_prompt(row))
    if not has(row, "messages"):
        other = next((name for name in ("conversations", "conversation") if isinstance(row.get(name), list)), None)
        row = _with(row, (other,), messages=row[other]) if other else row
    if not has(row, "prompt") and has(row, "instruction"):
        return _with(row, (), prompt=instruction(row["instruction"], row))
    if not has(row, "prompt") and has(row, "question"):
        return _with(row, (), prompt=row["question"])
    return row


def instruction(text: Any, row: Row) -> Any:
    """Join Alpaca's instruction and its input, or Dolly's context.

    >>> instruction("Add.", {"input": "1 and 2"})
    'Add.\\n1 and 2'
    """
    more = row.get("input") if has(row, "input") else row.get("context")
    return f"{text}\n{more}" if isinstance(text, str) and isinstance(more, str) and more.strip() else text


def prompts(row: Row) -> list[Row]:
    """Return rows of a prompt; the messages of a conversation are one prompt."""
    row = asked(row)
    if not has(row, "prompt") and has(row, "messages"):
        return [_with(row, ("messages",), prompt=row["messages"])]
    return [row]


def instructions(row: Row) -> list[Row]:
    """Rows of prompt and completion, or of messages.

    Raises:
        UnusedRow: the row is marked as bad.
    """
    if is_tree(row):
        return [_with(row, ("prompt",), messages=best_path(row))]
    if row.get("deleted") is True:
        raise UnusedRow("deleted")
    row = asked(row)
    if has(row, "instruction") and not has(row, "completion"):
        answer = next((name for name in ("output", "response") if has(row, name)), None)
        row = _with(row, (), completion=row[answer]) if answer else row
    return [row]


def pairs(row: Row) -> list[Row]:
    """Rows of chosen and rejected.

    Raises:
        UnusedRow: all answers are as good.
    """
    if is_tree(row):
        return compared_replies(row)
    if has(row, "input", "preferred_output", "non_preferred_output"):
        return [_openai_pair(row)]
    if has(row, "question", "response_j", "response_k"):
        dropped = ("response_j", "response_k")
        return [_with(row, dropped, prompt=row["question"], chosen=row["response_j"], rejected=row["response_k"])]
    if has(row, "prompt", "response_1", "response_2", "preference_strength"):
        return [_compared(row, ("response_1", "response_2"), _strength(row))]
    if has(row, "prompt", "response_0", "response_1", "better_response_id"):
        return [_compared(row, ("response_0", "response_1"), int(str(row["better_response_id"]) == "1") * 2 - 1)]
    if (answers := _scored_answers(row)) is not None:
        return [_best_and_worst(row, *answers)]
    row = asked(row)
    if not has(row, "prompt") and has(row, "messages", "chosen", "rejected"):
        row = _with(row, ("messages",), prompt=row["messages"])
    return [row]


def _openai_pair(row: Row) -> Row:
    asks = row["input"]
    if not isinstance(asks, dict) or not isinstance(asks.get("messages"), list):
        raise BadRow(f"column 'input' must be an object with messages, found {asks!r:.60}")
    tools = asks.get("tools") or row.get("tools")
    named = {"prompt": asks["messages"], "chosen": row["preferred_output"], "rejected": row["non_preferred_output"]}
    return _with(row, ("input", "preferred_output", "non_preferred_output"), tools=tools, **named)


def _strength(row: Row) -> float:
    try:
        return float(row["preference_strength"])
    except (TypeError, ValueError):
        raise BadRow(f"column 'preference_strength' must be a number, found {row['preference_strength']!r}") from None


def _compared(row: Row, columns: tuple[str, str], second_is_better: float) -> Row:
    if second_is_better == 0:
        raise UnusedRow("tie: no answer is better")
    worse, better = columns if second_is_better > 0 else columns[::-1]
    return _with(row, columns, chosen=row[better], rejected=row[worse])


def _scored_answers(row: Row) -> tuple[str, list[tuple[Any, float]]] | None:
    """The prompt's column and (answer, score) of Stack Exchange's and UltraFeedback's raw rows; None of others."""
    for prompt, column in (("question", "answers"), ("instruction", "completions"), ("prompt", "completions")):
        answers = row.get(column)
        if has(row, prompt) and isinstance(answers, list) and answers and all(isinstance(x, dict) for x in answers):
            return prompt, [_scored(answer, column) for answer in answers]
    return None


def _scored(answer: Row, column: str) -> tuple[Any, float]:
    text = next((answer[name] for name in TEXTS if has(answer, name)), None)
    score = next((answer[name] for name in SCORES if has(answer, name)), None)
    try:
        return text, float(score)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise BadRow(
            f"column {column!r} has an answer with score {score!r}; expected a number as one of: {', '.join(SCORES)}"
        ) from None


def _best_and_worst(row: Row, prompt: str, answers: list[tuple[Any, float]]) -> Row:
    best, worst = max(answers, key=lambda each: each[1]), min(answers, key=lambda each: each[1])
    if best[1] == worst[1]:
        raise UnusedRow("tie: no answer is better")
    return _with(row, ("answers", "completions"), prompt=row[prompt], chosen=best[0], rejected=worst[0])


def rated(row: Row) -> list[Row]:
    """Rows of prompt, response and rating: of HelpSteer, and of answers with scores."""
    if (answers := _scored_answers(row)) is not None:
        prompt, scored = answers
        bare = _with(row, ("answers", "completions"), prompt=row[prompt])
        return [{**bare, "response": text, "rating": score} for text, score in scored]
    row = asked(row)
    name = next((name for name in HELPFULNESS if has(row, name)), None)
    return [_with(row, (), rating=row[name])] if name and not has(row, "rating") else [row]


def labelled(row: Row) -> list[Row]:
    """Rows of prompt, response and label: of KTO, and both answers of a pair."""
    if has(row, "label"):
        row = asked(row)
        return [row if has(row, "response") else _with(row, ("completion",), response=row.get("completion"))]
    if not (
        is_tree(row) or {"chosen", "preferred_output", "response_j", "response_1", "answers", "completions"} & set(row)
    ):
        return [asked(row)]
    return [half for pair in pairs(row) for half in _both_halves(pair)]


def _both_halves(pair: Row) -> list[Row]:
    pair = better_first(pair)
    if pair.get("probability") == 0.5:
        raise UnusedRow("tie: no answer is better")
    prompt, chosen, rejected = pair.get("prompt"), pair.get("chosen"), pair.get("rejected")
    if prompt is None:
        answers = (text_or_messages(pair.get(name), name) for name in ("chosen", "rejected"))
        prompt, chosen, rejected = common_prompt(*answers)
    bare = _with(pair, ("chosen", "rejected"), prompt=prompt)
    return [{**bare, "response": chosen, "label": True}, {**bare, "response": rejected, "label": False}]


KNOWN = {
    "prompts": ("messages", "conversations", "instruction", "question"),
    "instructions": ("messages", "conversations", "instruction", "prompt"),
    "pairs": ("chosen", "preferred_output", "response_j", "response_1", "answers", "completions"),
    "rated": ("helpfulness", "rating", "answers", "completions"),
    "labelled": ("label", "chosen", "preferred_output", "response_j", "response_1", "answers", "completions"),
}
"""Columns of which a file has at least one if it is of a form that a function reads."""


def is_known(form: str, have: set[str], first: Row) -> bool:
    """Tell whether rows with these columns are of a form that a function reads, other than our own columns."""
    own_pairs = form == "pairs" and bool({"chosen", "rejected"} & have)
    return bool(form) and not own_pairs and (bool(set(KNOWN[form]) & have) or is_tree(first))


ALWAYS = ("system", "tools", "functions", "history", "chat_template_kwargs")
ANSWERS = {"instructions": ("label", "deleted"), "pairs": ("score_chosen", "score_rejected"), "rated": ("helpfulness",)}


def read_columns(form: str, have: set[str], columns: dict[str, str]) -> set[str]:
    """Columns of a file that rows of a form are made of, besides those that a stage reads by their own names."""
    found = {*ALWAYS, *ANSWERS.get(form, ())}
    own = have | set(columns)
    if "prompt" not in own:
        found |= {"instruction", "question"}
    if ("prompt" not in own and "instruction" in have) or columns.get("prompt") == "instruction":
        found |= {"input"} if "input" in have else {"context"}
    if form == "instructions" and "completion" not in own and "instruction" in have:
        found |= {"output"} if "output" in have else {"response"}
    if "messages" not in own:
        found |= {"conversations", "conversation"}
    return found & have
