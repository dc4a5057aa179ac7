"""Conversations: messages as the file has them, with the tools and template arguments that belong to them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, SupportsIndex, overload

Message = dict[str, Any]
NOT_LEARNED = {"weight": (0, "0"), "train": (False, "false"), "trainable": (False, "false")}
"""Keys of a message, and the values that make it context."""


class Conversation(list[Message]):
    """A list of messages that carries its tools and chat template arguments; slices keep them.

    >>> talk = Conversation([{"role": "user", "content": "hi"}], tools=[{"name": "add"}])
    >>> talk[:1].tools
    [{'name': 'add'}]
    """

    def __init__(
        self,
        messages: Iterable[Message] = (),
        tools: list[Any] | None = None,
        template_arguments: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(messages)
        self.tools, self.template_arguments = tools or None, template_arguments or {}

    @overload
    def __getitem__(self, place: SupportsIndex) -> Message: ...
    @overload
    def __getitem__(self, place: slice) -> Conversation: ...
    def __getitem__(self, place: SupportsIndex | slice) -> Message | Conversation:
        if isinstance(place, slice):
            return Conversation(super().__getitem__(place), self.tools, self.template_arguments)
        return super().__getitem__(place)

    def followed_by(self, messages: Iterable[Message]) -> Conversation:
        """Append messages to a copy."""
        return Conversation([*self, *messages], self.tools, self.template_arguments)

    def to(self, *_: Any, **__: Any) -> Conversation:
        """Return itself: Lightning calls this to move a batch, and would otherwise copy the list without its tools."""
        return self


class UserText(str):
    """Text of a file that is a user's message, as its answers are conversations; equal to the text, and rendered as a message."""

    __slots__ = ()


def as_rendered(prompt: str | list[Message]) -> str | list[Message]:
    """Make a conversation of text that is a user's message; other prompts stay as they are.

    >>> as_rendered(UserText("hi"))
    [{'role': 'user', 'content': 'hi'}]
    """
    return Conversation([{"role": "user", "content": str(prompt)}]) if isinstance(prompt, UserText) else prompt


def conversation(messages: Iterable[Message]) -> Conversation:
    """Convert a list of messages; a conversation stays itself."""
    return messages if isinstance(messages, Conversation) else Conversation(messages)


def is_learned(message: Message) -> bool:
    """Tell whether a stage learns to generate this message.

    >>> is_learned({"role": "assistant", "content": "a", "weight": 0})
    False
    """
    if message.get("role") != "assistant":
        return False
    marks = ((message.get(key), values) for key, values in NOT_LEARNED.items())
    return not any(mark is not None and _lower(mark) in values for mark, values in marks)


def _lower(mark: Any) -> Any:
    return mark.lower() if isinstance(mark, str) else mark


def learned_turns(prompt: Any, completion: Any) -> list[tuple[Any, Any]]:
    """Split a completion into (prompt, turn), one per learned turn of the assistant, each behind what comes before it.

    Args:
        prompt: text or messages.
        completion: text, or messages of which the assistant's are learned.
    """
    if not isinstance(completion, str):
        prompt = as_rendered(prompt)
    if isinstance(prompt, str) or isinstance(completion, str):
        return [(prompt, completion)]
    whole = conversation(prompt).followed_by(completion) if prompt else conversation(completion)
    places = [place for place in range(len(prompt), len(whole)) if place and is_learned(whole[place])]
    return [(whole[:place], [whole[place]]) for place in places]
