"""From rows of a data set to token ids: chat templates, stop tokens, lengths, padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.conversation import (
    Conversation,
    Message,
    as_rendered,
    conversation,
    is_learned,
    learned_turns,
)
from rlhf_lightning.models.padding import left_padded, recorded_rows, right_padded
from rlhf_lightning.models.rendering import TemplateRenderer
from rlhf_lightning.models.text_ids import TextIds, common_length
from rlhf_lightning.models.turns import TurnEncoder, UnstableTemplateError

__all__ = ["Encoded", "Encoder", "Text", "left_padded", "recorded_rows", "right_padded"]

Text = str | list[Message]
"""Plain text, or messages with `role` and `content`."""


@dataclass(frozen=True)
class Encoded:
    """Token ids of a prompt and a recorded response."""

    prompt: list[int]
    """What generation is given."""
    response: list[int]
    """With a stop token at its end."""
    mask: list[bool]
    """Of the response: True for tokens that are learned, all of them turns of the assistant."""


@dataclass
class Encoder:
    """Turns rows into token ids within the limits of a run, and counts what it truncated."""

    tokenizer: Any
    stop_tokens: list[int]
    """Ids that end a response; the first is appended to recorded ones that end with none."""
    context: int | None = None
    """Positions that the model has; None for no limit."""
    max_prompt_length: int | None = None
    """Longer prompts lose their beginning; None refuses those that leave no room."""
    truncated_counts: dict[str, int] = field(default_factory=dict)
    """How many prompts and responses were shortened."""
    retokenized: int = 0
    """Responses whose ids are not the rest of the ids of the whole conversation, as the prompt's ids do not begin it."""

    def __post_init__(self) -> None:
        """Prepare the renderer of the chat template, the ids of texts and those of several turns."""
        self.renderer = TemplateRenderer(self.tokenizer)
        self.texts = TextIds(self.tokenizer, self.stop_tokens)
        self.turns = TurnEncoder(self.renderer, self.texts)

    def prompt(self, text: Text) -> list[int]:
        """Encode a prompt as generation is given it.

        Args:
            text: plain text, or messages, which are rendered up to where the assistant answers.

        Returns:
            At least one token id.
        """
        ids = self._whole_prompt(text)
        if self.max_prompt_length is not None and len(ids) > self.max_prompt_length:
            self._count("prompts")
            ids = ids[-self.max_prompt_length :]
        return ids

    def response(self, prompt: Text, response: Text) -> list[int]:
        """Encode a recorded response, with a stop token at its end; after messages it is an assistant's turn."""
        return self.encode(prompt, response).response

    def encode(self, prompt: Text, response: Text) -> Encoded:
        """Turn a prompt and its response into ids and a mask of what is learned: the one place where that happens.

        The prompt's ids are those of `prompt`. The response is the rest of the ids of the whole rendered conversation where
        the prompt's ids begin it. Elsewhere it is the remaining text, tokenized behind the prompt, and counted.

        Args:
            prompt: plain text, or messages.
            response: plain text, or messages that begin and end with the assistant's.

        Raises:
            UserError: the template refuses the conversation, or renders the prompt otherwise once the response follows.
        """
        prompt = as_rendered(prompt)
        if isinstance(prompt, str):
            answer = response if isinstance(response, str) else _texts(response)
            start, full, special = prompt, prompt + answer, True
        else:
            turns: list[Message] = (
                [{"role": "assistant", "content": response}] if isinstance(response, str) else list(response)
            )
            talk = conversation(prompt)
            _check_answer(turns)
            if len(turns) > 1:
                found = self.turns.encode(talk, turns)
                self.retokenized += found.retokenized
                return Encoded(self.prompt(talk), found.ids, found.mask)
            self.renderer.check_last(turns[-1])
            start, special = self.renderer.render(talk, add_generation_prompt=True), False
            full = self.renderer.render(talk.followed_by(turns))
            if not full.startswith(start):
                full = start + self._behind_header(talk, turns, start, full)
                return self._finished(prompt, self.texts.behind(full[len(start) :]), counted=True)
        begin, whole = self.texts.ids(start, special), self.texts.ids(full, special)
        if whole[: len(begin)] == begin:
            return self._finished(prompt, whole[len(begin) :])
        return self._finished(prompt, self.texts.behind(full[len(start) :]), counted=True)

    def learned(self, prompt: Text, completion: Text, max_length: int | None) -> list[Encoded]:
        """Encode every learned turn of a completion, truncated to `max_length` tokens as `fit` does.

        Several turns are one row, and each token is computed once, where that row has the same tokens before every learned
        token as a row per turn would have, and fits. Elsewhere every turn is a row.

        Args:
            prompt: plain text, messages, or none where `completion` is a whole conversation.
            completion: plain text, or messages of which the assistant's are learned.
            max_length: tokens of a row; None for the model's context.

        Raises:
            UserError: a turn cannot be encoded; see `encode`.
        """
        pairs = learned_turns(prompt, completion)
        one = self._one_row(pairs) if len(pairs) > 1 and self.joins_turns else None
        if one is not None and len(one.prompt) + len(one.response) <= self.limit(max_length):
            return [one]
        return [self.fit(self.encode(*pair), max_length) for pair in pairs]

    @cached_property
    def joins_turns(self) -> bool:
        """Whether the chat template and the tokenizer let learned turns be one row; tried once, with four short messages."""
        roles = ("user", "assistant", "user", "assistant")
        talk = conversation({"role": role, "content": letter} for role, letter in zip(roles, "abcd", strict=True))
        try:
            return self._one_row(learned_turns([], talk)) is not None
        except UserError:  # a template for other conversations
            return False

    def _one_row(self, pairs: list[tuple[Any, Any]]) -> Encoded | None:
        """Encode learned turns of a conversation as one row; None where its tokens would not be those of a row per turn."""
        (prompt, _), (before, last) = pairs[0], pairs[-1]
        try:
            found = self.turns.encode(prompt, [*before[len(prompt) :], *last])
        except UnstableTemplateError:
            return None
        if found.retokenized or not found.separate:
            return None
        return Encoded(self.prompt(prompt), found.ids, found.mask)

    def generated(self, prompt: Text, text: str) -> list[int]:
        """Encode text that a policy generated behind `prompt`, with a stop token at its end.

        The text of a message does not have what a template may write before it, such as a space, and generated text does.
        """
        prompt = as_rendered(prompt)
        if isinstance(prompt, str):
            return self.response(prompt, text)
        talk, letter = conversation(prompt), "\u03b1"
        start = self.renderer.render(talk, add_generation_prompt=True)
        full = self.renderer.render(talk.followed_by([{"role": "assistant", "content": letter}]))
        between = full[len(start) :].partition(letter)[0] if full.startswith(start) else ""
        return self.response(prompt, text.removeprefix(between))

    def _whole_prompt(self, text: Text) -> list[int]:
        text = as_rendered(text)
        if isinstance(text, str):
            return self.texts.ids(text, True) or [self._first]
        return self.texts.ids(self.renderer.render(text, add_generation_prompt=True), False) or [self._first]

    def _finished(self, prompt: Text, response: list[int], counted: bool = False) -> Encoded:
        self.retokenized += counted
        ids = self.texts.without_tail(response)
        ids = ids if ids and ids[-1] in self.stop_tokens else [*ids, self.stop_tokens[0]]
        return Encoded(self.prompt(prompt), ids, [True] * len(ids))

    def _behind_header(self, talk: Conversation, turns: list[Message], start: str, full: str) -> str:
        """The text of a turn where the template's generation prompt is not the turn's header, as with `<think>`.

        Raises:
            UserError: the template renders the prompt itself otherwise once an answer follows.
        """
        base = self.renderer.render(talk)
        one, other = (
            self.renderer.render(talk.followed_by([{"role": "assistant", "content": letter}]))
            for letter in "\u03b1\u03b2"
        )
        header = min(common_length(one, other), common_length(full, one))
        if not (full.startswith(base) and start.startswith(base)) or header < len(base):
            raise UserError(
                "the tokenizer's chat template does not continue a prompt: the text of prompt and answer together does not "
                "start with that of the prompt; set chat_template beside the model's name to another template"
            )
        return full[header:]

    def together(
        self, prompt: Text, responses: Sequence[Text], max_length: int | None
    ) -> tuple[list[int], list[Encoded]]:
        """Encode responses that are compared, all behind the same prompt, truncated for all alike.

        Returns:
            The prompt's ids and the encoded responses, each at most `max_length` tokens with the prompt.
        """
        encoded = [self.encode(prompt, response) for response in responses]
        longest = max(encoded, key=lambda each: len(each.response))
        kept, _ = self.pair(longest.prompt, longest.response, max_length)
        limit = self.limit(max_length) - len(kept)
        return kept, [Encoded(kept, each.response[:limit], each.mask[:limit]) for each in encoded]

    def fit(self, encoded: Encoded, max_length: int | None) -> Encoded:
        """Truncate to `max_length` tokens, as `pair` does."""
        prompt, response = self.pair(encoded.prompt, encoded.response, max_length)
        return Encoded(prompt, response, encoded.mask[: len(response)])

    def limit(self, max_length: int | None) -> int:
        """Tokens that a prompt and its response may have together.

        Raises:
            UserError: that is not room for a token of each.
        """
        limit = min(x for x in (max_length, self.context, 2**31) if x is not None)
        if limit < 2:
            raise UserError(
                f"max_length is {limit}; it must be at least 2, for a token of the prompt and one of the response"
            )
        return limit

    def pair(self, prompt: list[int], response: list[int], max_length: int | None) -> tuple[list[int], list[int]]:
        """Truncate both to `max_length` tokens together: the beginning of the prompt goes first, then the end of the response.

        Raises:
            UserError: that is not room for a token of each.
        """
        limit = self.limit(max_length)
        if len(prompt) + len(response) <= limit:
            return prompt, response
        self._count("pairs of prompt and response")
        kept = max(1, limit - len(response))
        return prompt[-kept:], response[: limit - kept]

    def room(self, max_new_tokens: int) -> int | None:
        """Tokens that a prompt may have beside a response; None for any number.

        Raises:
            UserError: none.
        """
        if self.context is None or self.context > max_new_tokens:
            return self.context and self.context - max_new_tokens
        raise UserError(
            f"max_new_tokens {max_new_tokens} leaves no room for a prompt in the model's context of {self.context}; lower it"
        )

    def prompts_with_room(self, prompt: Text, max_new_tokens: int, count: bool) -> list[Encoded]:
        """Encode a prompt; with `count` one that leaves no room for `max_new_tokens` counts as truncated."""
        ids, limit = self.prompt(prompt), self.room(max_new_tokens)
        if count and limit is not None and len(ids) > limit:
            self._count("prompts")
        return [Encoded(ids, [], [])]

    def check_prompts(self, rows: Sequence[dict[str, Any]], max_new_tokens: int, where: str) -> None:
        """Refuse rows whose prompts leave no room for a response; see `check_lengths`."""
        if self.room(max_new_tokens) is not None:
            self.check_lengths(rows, [len(self.prompt(row["prompt"])) for row in rows], max_new_tokens, where)
        self.truncated_counts.clear()

    def check_lengths(
        self, rows: Sequence[dict[str, Any]], lengths: list[int], max_new_tokens: int, where: str
    ) -> None:
        """Refuse rows whose prompts, of `lengths` tokens, leave no room for a response.

        Raises:
            UserError: naming the first such row and how many there are, or there is no room for any prompt.
        """
        limit = self.room(max_new_tokens)
        long = [row for row, length in enumerate(lengths) if limit is not None and length > limit]
        if long:
            place = getattr(rows[long[0]], "place", "") or f"row {long[0]} ({rows[long[0]]['prompt']!r:.40}…)"
            raise UserError(
                f"{where}: prompt of {place} has {lengths[long[0]]} tokens, and the model's context of {self.context} "
                f"leaves {limit} beside max_new_tokens {max_new_tokens} ({len(long)} such rows); set max_prompt_length: "
                f"{limit} to remove their beginning, or lower max_new_tokens"
            )

    def decode(self, tokens: Tensor, mask: Tensor, special: bool = False) -> list[str]:
        """Decode the tokens under the mask to B strings, white space included."""
        rows = zip(tokens.cpu(), mask.cpu(), strict=True)
        return [self.tokenizer.decode(row[kept], skip_special_tokens=not special) for row, kept in rows]

    @property
    def _first(self) -> int:
        """What a text begins with that has no prompt."""
        begin = self.tokenizer.bos_token_id
        return int(self.tokenizer.pad_token_id if begin is None else begin)

    def _count(self, what: str) -> None:
        self.truncated_counts[what] = self.truncated_counts.get(what, 0) + 1


def _check_answer(turns: list[Message]) -> None:
    """Refuse a response that begins or ends with a turn that the assistant did not write, or that is not learned.

    Raises:
        UserError: naming the role.
    """
    for turn in (turns[0], turns[-1]) if turns else ({},):
        if turn.get("role") != "assistant":
            raise UserError(
                f"a response must begin and end with the assistant, and has a turn of {turn.get('role')!r} there"
            )
    if not any(is_learned(turn) for turn in turns):
        raise UserError("a response has no turn to learn: all have weight 0, or train or trainable false")


def _texts(turns: list[Message]) -> str:
    """The text of a response behind a prompt that is plain text.

    Raises:
        UserError: a turn is not the assistant's.
    """
    for turn in turns:
        if turn.get("role") != "assistant" or not isinstance(turn.get("content"), str):
            raise UserError(
                f"the prompt is plain text and its answer has a turn of {turn.get('role')!r}; give the prompt as messages"
            )
    return "".join(turn["content"] for turn in turns)
