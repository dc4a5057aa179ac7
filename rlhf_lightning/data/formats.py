"""From what people store to what a stage reads: dialogues, conversations, pairs without a prompt."""

from __future__ import annotations

import math
import re
from typing import Any

Messages = list[dict[str, str]]

TURN = re.compile(r"\n\n(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant", "human": "user", "gpt": "assistant"}


class BadRow(ValueError):
    """What is wrong with one row."""


def text_or_messages(value: Any, column: str) -> str | Messages:
    """Plain text as it is, a `Human:`/`Assistant:` dialogue or a conversation as messages.

    >>> text_or_messages("\\n\\nHuman: hi\\n\\nAssistant: hello", "chosen")
    [{'role': 'user', 'content': 'hi'}, {'role': 'assistant', 'content': 'hello'}]
    """
    if isinstance(value, str):
        if not value.strip():
            raise BadRow(f"column {column!r} is empty")
        return dialogue(value) if value.startswith(("\n\nHuman:", "\n\nAssistant:")) else value
    if isinstance(value, list):
        if not value:
            raise BadRow(f"column {column!r} is empty")
        return [_message(turn, column) for turn in value]
    raise BadRow(f"column {column!r} must be text or a list of messages, found {type(value).__name__}")


def _message(turn: Any, column: str) -> dict[str, str]:
    if not isinstance(turn, dict):
        raise BadRow(f"column {column!r} holds a list of {type(turn).__name__}; messages have role and content")
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    if not isinstance(role, str) or not isinstance(content, str):
        raise BadRow(f"column {column!r} has a message without role and content: {sorted(turn)}")
    return {"role": ROLES.get(role, role), "content": content}


def dialogue(text: str) -> Messages:
    """The turns of HH-RLHF's form; an empty last turn of the assistant (a prompt to be continued) is left out."""
    parts = TURN.split(text)[1:]
    turns = [{"role": ROLES[who], "content": said.strip()} for who, said in zip(parts[::2], parts[1::2], strict=True)]
    return turns[:-1] if turns and turns[-1]["role"] == "assistant" and not turns[-1]["content"] else turns


def common_prompt(chosen: str | Messages, rejected: str | Messages) -> tuple[Any, Any, Any]:
    """Prompt, chosen and rejected of a pair whose prompt stands at the beginning of both."""
    if isinstance(chosen, list) and isinstance(rejected, list):
        shared = 0
        while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
            shared += 1
        if shared == 0:
            raise BadRow("chosen and rejected have no turn in common, so there is no prompt; give a column 'prompt'")
        for name, turns in (("chosen", chosen[shared:]), ("rejected", rejected[shared:])):
            if turns[0]["role"] != "assistant":
                raise BadRow(f"column {name!r} has no answer of the assistant after what both have in common")
        return chosen[:shared], chosen[shared:], rejected[shared:]
    if isinstance(chosen, str) and isinstance(rejected, str):
        pairs = enumerate(zip(chosen, rejected, strict=False))
        prefix = chosen[: next((i for i, (a, b) in pairs if a != b), min(len(chosen), len(rejected)))]
        cut = max(prefix.rfind(" "), prefix.rfind("\n")) + 1  # never inside a word
        if not prefix[:cut].strip():
            raise BadRow(
                "chosen and rejected have no beginning in common, so there is no prompt; give a column 'prompt'"
            )
        return prefix[:cut].rstrip(), chosen[len(prefix[:cut].rstrip()) :], rejected[len(prefix[:cut].rstrip()) :]
    raise BadRow("one of chosen and rejected is text and the other a conversation")


def last_turns(messages: Messages) -> tuple[Messages, Messages]:
    """Everything before the assistant's last turn, and that turn."""
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise BadRow("the conversation does not end with a turn of the assistant after one of the user")
    return messages[:-1], messages[-1:]


def before_answer(prompt: str | Messages) -> str | Messages:
    """A prompt up to where the assistant answers."""
    if isinstance(prompt, list) and prompt[-1]["role"] == "assistant":
        return prompt[:-1] or prompt
    return prompt


def number(value: Any, column: str) -> float:
    """A column that must be a number, and neither NaN nor infinite."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise BadRow(f"column {column!r} must be a number, found {value!r}")
    return found
