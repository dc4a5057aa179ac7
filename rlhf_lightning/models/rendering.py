"""Rendering of conversations by the tokenizer's chat template."""

from __future__ import annotations

import re
from typing import Any

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.conversation import Conversation, Message, conversation
from rlhf_lightning.models.time_limit import TookTooLongError, time_limit

MARKER = re.compile(r"<\|[\w .\-]{1,40}\|>|<(?:start|end)_of_\w+>|\[/?INST\]")
LONGEST_RENDERING = 5.0
"""Seconds; a rendering takes a millisecond."""
KEYS = ("tool_calls", "reasoning_content")
"""Keys of a message that a template may ignore; a message names those that it ignores."""


class TemplateRenderer:
    """Turns messages into text with the tokenizer's chat template.

    Args:
        tokenizer: has the template.

    Attributes:
        ignored: what conversations had and the template names nowhere.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.ignored: set[str] = set()

    @property
    def source(self) -> str:
        """The Jinja source; of a tokenizer with several templates, all of them."""
        template = self.tokenizer.chat_template
        return "\n".join(template.values()) if isinstance(template, dict) else template or ""

    def render(self, messages: list[Message], add_generation_prompt: bool = False) -> str:
        """Render messages, with the tools and template arguments of a `Conversation`.

        Args:
            messages: as the file has them.
            add_generation_prompt: end where the assistant answers.

        Raises:
            UserError: there is no template, or it refuses the conversation.
        """
        if not self.source:
            raise UserError(
                f"the data is conversational and the tokenizer {self.tokenizer.name_or_path!r} has no chat template; "
                "set chat_template beside the model's name (a path, a template, or one of: dialogue, chatml)"
            )
        talk = conversation(messages)
        self._note_ignored(talk)
        try:
            with time_limit(LONGEST_RENDERING):
                return self._as_text(talk, add_generation_prompt)
        except TookTooLongError as error:
            raise UserError(
                f"the chat template renders a conversation for more than {LONGEST_RENDERING:g} s; it loops: set chat_template "
                "beside the model's name to another template"
            ) from error
        except Exception as error:  # Jinja's errors, and those of Python that an expression of a template raises
            said = f"{messages[0].get('role')}: {messages[0].get('content')!s:.60}" if messages else ""
            raise UserError(
                f"the chat template cannot render the conversation that begins with {said!r}: {error}; fix the row, or set "
                "chat_template beside the model's name to another template"
            ) from error

    def check_last(self, turn: Message) -> None:
        """Refuse a turn to learn of which the template would render nothing.

        Raises:
            UserError: it is a tool call, and the template has no tool calls.
        """
        if turn.get("tool_calls") and "tool_calls" not in self.source and not turn.get("content"):
            raise UserError(
                "the chat template renders no tool_calls, so the turn would be learned as an empty answer; set chat_template "
                "beside the model's name to a template that renders them, or remove the row"
            )

    def _as_text(self, talk: Conversation, prompted: bool) -> str:
        simple = _with_plain_content(talk)
        if simple == list(talk):
            return self._apply(talk, talk, prompted)
        try:
            text = self._apply(talk, talk, prompted)
        except TookTooLongError:
            raise
        except Exception:  # a template for text alone
            return self._apply(talk, simple, prompted)
        plain = self._apply(talk, simple, prompted)
        # a template for text alone prints None, or Python's form of a list of parts
        lists = any(isinstance(message["content"], list) and str(message["content"]) in text for message in talk)
        return plain if lists or text.count("None") > plain.count("None") else text

    def _apply(self, talk: Conversation, messages: list[Message], prompted: bool) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                list(messages),
                tools=talk.tools,
                tokenize=False,
                add_generation_prompt=prompted,
                **talk.template_arguments,
            )
        )

    def _note_ignored(self, talk: Conversation) -> None:
        source = self.source
        if talk.tools and "tools" not in source:
            self.ignored.add("tools")
        for key in KEYS:
            if key not in source and any(message.get(key) for message in talk):
                self.ignored.add(key)

    def missing_markers(self) -> list[str]:
        """Markers such as <|im_start|> that the template writes and the vocabulary does not have as one token."""
        vocabulary = self.tokenizer.get_vocab()
        return [marker for marker in dict.fromkeys(MARKER.findall(self.source)) if marker not in vocabulary]


def _with_plain_content(talk: list[Message]) -> list[Message]:
    """Text in place of parts of text, and of None."""
    return [{**message, "content": _plain(message.get("content"))} for message in talk]


def _plain(content: Any) -> str:
    if isinstance(content, list):
        return "".join(item if isinstance(item, str) else str(item.get("text", "")) for item in content)
    return content or ""
