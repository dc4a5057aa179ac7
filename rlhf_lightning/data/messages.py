"""Messages of a file: roles by their common names, content that is text, and all other keys as they are."""

from __future__ import annotations

import json
import re
from typing import Any

from rlhf_lightning.models.conversation import NOT_LEARNED, Conversation, Message, is_learned

TURN = re.compile(r"\n\n(Human|Assistant):")
NAMES = {
    "system": ("system", "developer"),
    "user": ("user", "human", "prompter"),
    "assistant": ("assistant", "gpt", "chatgpt", "model", "bot", "ai", "bard", "bing"),
    "tool": ("tool", "function", "observation", "ipython", "tool_response", "function_response"),
}
"""Roles of chat templates, and the names that files have for them."""
ROLES = {name: role for role, names in NAMES.items() for name in names}
CALLS = ("function_call", "tool_call")
"""Names of a turn whose text is a call in JSON."""
RESERVED = ("tools", "tokenize", "add_generation_prompt", "messages", "conversation")
"""Arguments of a chat template that the library gives."""


class BadRow(ValueError):
    """Says what is wrong with one row."""


class UnusedRow(Exception):
    """Says why a good row is not used; such rows are counted."""


def text_or_messages(value: Any, column: str) -> str | Conversation:
    """Read plain text as it is, a `Human:`/`Assistant:` dialogue or a conversation as messages.

    Args:
        value: text, a list of messages, one message, or messages in JSON.
        column: named where something is wrong.

    Raises:
        BadRow: it is none of these, or empty.

    >>> text_or_messages("\\n\\nHuman: hi\\n\\nAssistant: hello", "chosen")
    [{'role': 'user', 'content': 'hi'}, {'role': 'assistant', 'content': 'hello'}]
    """
    if isinstance(value, str):
        if not value.strip():
            raise BadRow(f"column {column!r} is empty")
        if value.startswith(("\n\nHuman:", "\n\nAssistant:")):
            return dialogue(value)
        found = _messages_in_json(value)
        return value if found is None else text_or_messages(found, column)
    if isinstance(value, dict) and ("role" in value or "from" in value):
        value = [value]
    if isinstance(value, list):
        if not value:
            raise BadRow(f"column {column!r} is empty")
        return Conversation(_message(turn, f"column {column!r}: message {i}") for i, turn in enumerate(value, 1))
    if value is None:
        raise BadRow(f"column {column!r} is empty; it must be text or a list of messages")
    raise BadRow(f"column {column!r} must be text or a list of messages, found {type(value).__name__}")


def _messages_in_json(text: str) -> list[Any] | None:
    if not text.lstrip().startswith("[") or not text.rstrip().endswith("]"):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    is_messages = isinstance(found, list) and found and all(_looks_like_message(turn) for turn in found)
    return found if is_messages else None


def _looks_like_message(turn: Any) -> bool:
    return isinstance(turn, dict) and any({role, said} <= turn.keys() for role, said in _KEYS)


_KEYS = (("role", "content"), ("from", "value"))


def _message(turn: Any, where: str) -> Message:
    if not isinstance(turn, dict):
        raise BadRow(f"{where} is {type(turn).__name__}; it must have role and content")
    role_key = "role" if "role" in turn else "from"
    content_key = "content" if "content" in turn else "value"
    if role_key not in turn and content_key not in turn:
        raise BadRow(f"{where} is a message without role and content: {', '.join(map(str, sorted(turn)))}")
    kept = {key: x for key, x in turn.items() if key not in (role_key, content_key) and x is not None}
    role, content = turn.get(role_key), turn.get(content_key)
    name = role.strip().lower() if isinstance(role, str) else None
    if name in CALLS:
        return {"role": "assistant", "content": None, **kept, "tool_calls": _calls(content, where)}
    if name not in ROLES:
        raise BadRow(f"{where} has the role {role!r}; expected one of: {', '.join(NAMES)} (or a common name of them)")
    message = {"role": ROLES[name], "content": content, **kept}
    _check_content(message, where)
    _check_marks(message, where)
    return message


def _check_content(message: Message, where: str) -> None:
    content = message["content"]
    if content is None:
        if message["role"] != "assistant" or not (message.get("tool_calls") or message.get("function_call")):
            raise BadRow(f"{where} has content null; expected text, or an assistant's message with tool_calls")
    elif isinstance(content, list):
        for part in content:
            if not (isinstance(part, str) or (isinstance(part, dict) and isinstance(part.get("text"), str))):
                kind = part.get("type") if isinstance(part, dict) else type(part).__name__
                raise BadRow(f"{where} has a part of type {kind!r} in its content; expected parts of text alone")
    elif not isinstance(content, str):
        raise BadRow(f"{where} has content of type {type(content).__name__}; expected text")


def _check_marks(message: Message, where: str) -> None:
    calls = message.get("tool_calls")
    if calls is not None and (not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls)):
        raise BadRow(f"{where} has tool_calls of type {type(calls).__name__}; expected a list of calls")
    weight = message.get("weight")
    if weight is not None and weight not in (0, 1, "0", "1"):
        raise BadRow(f"{where} has weight {weight!r}; expected 0 (context) or 1 (learned)")
    for key in NOT_LEARNED:
        mark = message.get(key)
        if key != "weight" and mark is not None and str(mark).lower() not in ("true", "false"):
            raise BadRow(f"{where} has {key} {mark!r}; expected true or false")


def _calls(content: Any, where: str) -> list[Any]:
    """Read the calls of a ShareGPT turn `function_call`, whose text is JSON."""
    try:
        found = json.loads(content) if isinstance(content, str) else content
    except (ValueError, RecursionError):
        found = None
    calls = found if isinstance(found, list) else [found]
    if not calls or not all(isinstance(call, dict) and "name" in call for call in calls):
        raise BadRow(f"{where} is a function_call; expected JSON with name and arguments, found {content!r:.60}")
    return [{"type": "function", "function": call} for call in calls]


def dialogue(text: str) -> Conversation:
    """Split HH-RLHF's form into turns; an empty last turn of the assistant (a prompt to be continued) is dropped."""
    found = TURN.split(text)[1:]
    turns = [
        {"role": ROLES[who.lower()], "content": said.strip()} for who, said in zip(found[::2], found[1::2], strict=True)
    ]
    open_end = turns and turns[-1]["role"] == "assistant" and not turns[-1]["content"]
    return Conversation(turns[:-1] if open_end else turns)


def check_answer(turns: Conversation, column: str) -> None:
    """Refuse a response that does not begin and end with the assistant, or of which nothing is learned.

    Raises:
        BadRow: naming the column and the turn.
    """
    if not turns:
        raise BadRow(f"column {column!r} holds the prompt and no answer to it")
    if turns[0]["role"] != "assistant":
        raise BadRow(
            f"column {column!r} has no answer of the assistant after the prompt; its first own turn is of {turns[0]['role']}"
        )
    if turns[-1]["role"] != "assistant":
        raise BadRow(f"column {column!r} does not end with a turn of the assistant, but of {turns[-1]['role']}")
    if not any(is_learned(turn) for turn in turns):
        raise BadRow(f"column {column!r} has no turn to learn: all have weight 0, or train or trainable false")
    check_says_something(turns, column)


def check_says_something(turns: Conversation, column: str) -> None:
    """Refuse an empty turn to learn.

    Raises:
        BadRow: naming the turn.
    """
    for place, turn in enumerate(turns, 1):
        if is_learned(turn) and not (turn["content"] or turn.get("tool_calls") or turn.get("function_call")):
            raise BadRow(f"column {column!r}: message {place} of the assistant is empty")
