"""From columns of a row to what a stage reads: prompts, answers, pairs without a prompt, numbers and labels."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from rlhf_lightning.data.messages import (
    RESERVED,
    BadRow,
    UnusedRow,
    check_answer,
    check_says_something,
    text_or_messages,
)
from rlhf_lightning.models.conversation import Conversation, Message, UserText, is_learned

__all__ = ["BadRow", "UnusedRow", "text_or_messages"]
Text = str | Conversation
GOOD, BAD = ("true", "1", "1.0", "yes", "good"), ("false", "0", "0.0", "no", "bad", "-1", "-1.0")


@dataclass(frozen=True)
class Context:
    """What a row says of its conversation besides the messages."""

    system: str | None = None
    tools: list[Any] | None = None
    template_arguments: dict[str, Any] | None = None
    history: list[Message] | None = None

    def around(self, prompt: Text) -> Text:
        """Add system prompt, history, tools and template arguments to a prompt; with one of the first three it is messages."""
        if isinstance(prompt, str) and not (self.system or self.tools or self.history):
            return prompt
        talk = as_messages(prompt)
        if self.system and talk[0]["role"] == "system":
            if talk[0]["content"] != self.system:
                raise BadRow("column 'system' and the first message are two different system prompts; remove one")
        elif self.system:
            talk = Conversation([{"role": "system", "content": self.system}, *(self.history or []), *talk])
        elif self.history:
            talk = Conversation([*self.history, *talk])
        return Conversation(talk, self.tools, self.template_arguments)


def context_of(row: dict[str, Any], tools: list[Any] | None, arguments: dict[str, Any] | None) -> Context:
    """Read the columns `system`, `tools` (or `functions`), `history` and `chat_template_kwargs`.

    Args:
        row: with these columns, or without.
        tools: of a row without its own.
        arguments: of the chat template; those of the row replace single ones.

    Raises:
        BadRow: a column is of another type.
    """
    system = row.get("system")
    if system is not None and not isinstance(system, str):
        raise BadRow(f"column 'system' must be text, found {type(system).__name__}")
    given = _from_json(row.get("tools"), "tools", list)
    functions = _from_json(row.get("functions"), "functions", list)
    own = given or [{"type": "function", "function": each} for each in functions or []]
    chosen = {**(arguments or {}), **(_from_json(row.get("chat_template_kwargs"), "chat_template_kwargs", dict) or {})}
    if taken := sorted(set(RESERVED) & set(chosen)):
        raise BadRow(f"column 'chat_template_kwargs' has {taken[0]!r}, which the library sets itself; remove it")
    history = [turn for pair in _from_json(row.get("history"), "history", list) or [] for turn in _exchange(pair)]
    return Context((system or "").strip() and system, own or tools, chosen, history)


def _exchange(pair: Any) -> list[Message]:
    if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
        raise BadRow(f"column 'history' must hold pairs of question and answer, found {pair!r:.60}")
    return [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]


def _from_json(value: Any, column: str, kind: type) -> Any:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        found = value
    if not isinstance(found, kind):
        raise BadRow(f"column {column!r} must be a {kind.__name__}, also as JSON, found {value!r:.60}")
    if isinstance(found, list) and column != "history" and not all(isinstance(each, dict) for each in found):
        raise BadRow(f"column {column!r} must be a list of objects, found {found!r:.60}")
    return found


def as_messages(text: Text) -> Conversation:
    """Make a user's message of plain text."""
    return Conversation([{"role": "user", "content": text}]) if isinstance(text, str) else text


def answered(prompt: Text, answers: dict[str, Text]) -> tuple[Text, dict[str, Text]]:
    """A prompt and answers to it, all text or all messages, the prompt once.

    A conversation as answer may repeat the prompt, and say its system prompt.

    Args:
        prompt: text or messages.
        answers: by the name of their column.

    Raises:
        BadRow: an answer holds turns that are no answer, or answers repeat different prompts.
    """
    if isinstance(prompt, str) and all(isinstance(answer, str) for answer in answers.values()):
        return prompt, answers
    talk = as_messages(prompt)
    found: dict[str, Text] = {}
    prompts = []
    for column, answer in answers.items():
        if isinstance(answer, str):
            found[column] = answer
            prompts.append(talk)
            continue
        own, rest = _without_prompt(talk, answer)
        check_answer(rest, column)
        found[column] = rest
        prompts.append(own)
    longest = max(prompts, key=len)
    if any(own not in (longest, talk) for own in prompts):
        raise BadRow(f"columns {' and '.join(answers)} repeat two different prompts")
    if isinstance(prompt, str) and longest == talk:
        return UserText(prompt), found  # the column stays what the file says
    return Conversation(longest, talk.tools, talk.template_arguments), found


def _without_prompt(prompt: Conversation, answer: Conversation) -> tuple[Conversation, Conversation]:
    """The prompt, with the system prompt that the answer says, and the answer without the prompt that it repeats."""
    if same_turns(answer[: len(prompt)], prompt):
        return prompt, answer[len(prompt) :]
    if answer[0]["role"] == "system" and prompt[0]["role"] != "system":
        if same_turns(answer[1 : len(prompt) + 1], prompt):
            return answer[: len(prompt) + 1], answer[len(prompt) + 1 :]
    elif prompt[0]["role"] == "system" and same_turns(answer[: len(prompt) - 1], prompt[1:]) and len(prompt) > 1:
        return prompt, answer[len(prompt) - 1 :]
    return prompt, answer


def same_turns(one: list[Message], other: list[Message]) -> bool:
    """The same roles say the same, white space at both ends aside."""
    return len(one) == len(other) and all(_said(a) == _said(b) for a, b in zip(one, other, strict=True))


def _said(message: Message) -> tuple[Any, ...]:
    content = message["content"]
    return message["role"], content.strip() if isinstance(content, str) else content, message.get("tool_calls")


def common_prompt(chosen: Text, rejected: Text) -> tuple[Text, Text, Text]:
    """Find the prompt of a pair that has it at the beginning of both.

    Returns:
        Prompt, chosen and rejected.

    Raises:
        BadRow: there is none, or what follows is no answer.
    """
    if isinstance(chosen, list) and isinstance(rejected, list):
        return _common_turns(chosen, rejected)
    if isinstance(chosen, str) and isinstance(rejected, str):
        pairs = enumerate(zip(chosen, rejected, strict=False))
        prefix = chosen[: next((i for i, (a, b) in pairs if a != b), min(len(chosen), len(rejected)))]
        end = max(prefix.rfind(" "), prefix.rfind("\n")) + 1  # never inside a word
        if not prefix[:end].strip():
            raise BadRow(
                "chosen and rejected have no beginning in common, so there is no prompt; give a column 'prompt'"
            )
        prompt = prefix[:end].rstrip()
        return prompt, chosen[len(prompt) :], rejected[len(prompt) :]
    raise BadRow("one of chosen and rejected is text and the other a conversation")


def _common_turns(chosen: Conversation, rejected: Conversation) -> tuple[Text, Text, Text]:
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    if shared == 0:
        raise BadRow("chosen and rejected have no turn in common, so there is no prompt; give a column 'prompt'")
    check_answer(chosen[shared:], "chosen")
    check_answer(rejected[shared:], "rejected")
    return chosen[:shared], chosen[shared:], rejected[shared:]


def check_conversation(messages: Conversation) -> None:
    """Refuse a conversation of which no turn can be learned.

    Raises:
        BadRow: it does not end with an answer, or has no turn to learn.
    """
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise BadRow("the conversation does not end with a turn of the assistant after one of the user")
    if not any(is_learned(turn) for turn in messages[1:]):
        raise BadRow("the conversation has no turn to learn: all have weight 0, or train or trainable false")
    check_says_something(messages, "messages")


def before_answer(prompt: Text) -> Text:
    """A prompt up to where the assistant answers."""
    if not isinstance(prompt, str) and prompt[-1]["role"] == "assistant":
        return prompt[:-1] or prompt
    return prompt


def number(value: Any, column: str) -> float:
    """Read a number; JSON as Python reads it has NaN and infinities too.

    Raises:
        BadRow: it is none, or not finite.
    """
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise BadRow(f"column {column!r} must be a number, found {value!r:.60}")
    return found


def probability(value: Any, column: str) -> float:
    """Read a number from 0 to 1.

    Raises:
        BadRow: it is none, or outside.
    """
    found = number(value, column)
    if not 0 <= found <= 1:
        raise BadRow(f"column {column!r} must be a number from 0 to 1, found {value!r:.60}")
    return found


def better_first(row: dict[str, Any]) -> dict[str, Any]:
    """Swap the columns of the two responses of a pair where its `probability` says that the rejected one is better.

    >>> better_first({"chosen": "a", "rejected": "b", "probability": 0.25})
    {'rejected': 'a', 'chosen': 'b', 'probability': 0.75}

    Raises:
        BadRow: the probability is no number from 0 to 1.
    """
    if row.get("probability") is None:
        return row
    p = probability(row["probability"], "probability")
    if p >= 0.5:
        return {**row, "probability": p}
    other = {name: name.replace("chosen", "rejected") for name in row if "chosen" in name}
    swapped = {**other, **{theirs: ours for ours, theirs in other.items()}}
    return {swapped.get(name, name): value for name, value in row.items()} | {"probability": 1 - p}


def label(value: Any, column: str) -> bool:
    """Read a mark that is good or bad.

    Raises:
        BadRow: it is neither.
    """
    mark = str(value).strip().lower()
    if mark in GOOD or mark in BAD:
        return mark in GOOD
    raise BadRow(f"column {column!r} must be true or false, found {value!r:.60}")
