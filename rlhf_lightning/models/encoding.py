"""From rows of a data set to token ids: chat templates, stop tokens, lengths, padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.conversation import Conversation, Message, conversation, is_learned
from rlhf_lightning.models.rendering import TemplateRenderer
from rlhf_lightning.types import Rows

Text = str | list[Message]
"""Plain text, or messages with `role` and `content`."""
ANCHORS = ("\n", ":", ">")
"""Texts that a tokenizer may keep apart from what follows."""


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
    _recent: dict[tuple[str, bool], list[int]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Prepare the renderer of the chat template."""
        self.renderer = TemplateRenderer(self.tokenizer)

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
        if isinstance(prompt, str):
            answer = response if isinstance(response, str) else _texts(response)
            start, full, special = prompt, prompt + answer, True
        else:
            turns: list[Message] = (
                [{"role": "assistant", "content": response}] if isinstance(response, str) else list(response)
            )
            talk = conversation(prompt)
            if len(turns) > 1:
                return self._several_turns(talk, turns)
            self.renderer.check_last(turns[-1])
            start, special = self.renderer.render(talk, add_generation_prompt=True), False
            full = self.renderer.render(talk.followed_by(turns))
            if not full.startswith(start):
                full = start + self._behind_header(talk, turns, start, full)
                return self._finished(prompt, self._behind(full[len(start) :]), counted=True)
        begin, whole = self._ids(start, special), self._ids(full, special)
        if whole[: len(begin)] == begin:
            return self._finished(prompt, whole[len(begin) :])
        return self._finished(prompt, self._behind(full[len(start) :]), counted=True)

    def generated(self, prompt: Text, text: str) -> list[int]:
        """Encode text that a policy generated behind `prompt`, with a stop token at its end.

        The text of a message does not have the space that a template may write before it, and generated text does. Without
        such a space the text is the message.
        """
        if not isinstance(prompt, str) and (bare := text.strip()) != text:
            talk = conversation(prompt)
            start = self.renderer.render(talk, add_generation_prompt=True)
            full = self.renderer.render(talk.followed_by([{"role": "assistant", "content": bare}]))
            if full.startswith(start + text):
                return self.response(prompt, bare)
        return self.response(prompt, text)

    def _whole_prompt(self, text: Text) -> list[int]:
        if isinstance(text, str):
            return self._ids(text, True) or [self._first]
        return self._ids(self.renderer.render(text, add_generation_prompt=True), False) or [self._first]

    def _finished(self, prompt: Text, response: list[int], counted: bool = False) -> Encoded:
        self.retokenized += counted
        ids = self._without_tail(response)
        ids = ids if ids and ids[-1] in self.stop_tokens else [*ids, self.stop_tokens[0]]
        return Encoded(self.prompt(prompt), ids, [True] * len(ids))

    def _several_turns(self, talk: Conversation, turns: list[Message]) -> Encoded:
        """A response of several turns, of which the assistant's are learned and the others are context.

        Raises:
            UserError: the template renders a turn otherwise once others follow.
        """
        full = self.renderer.render(talk.followed_by(turns))
        spans = [
            (turn, *self._span(full, talk.followed_by(turns[:place]), turn, f"turn {place + 1} of {len(turns)}"))
            for place, turn in enumerate(turns)
            if turn.get("role") == "assistant"
        ]
        pieces = self._pieces(full, spans)
        if pieces is None:
            self.retokenized += 1
            pieces, at = [], spans[0][1]
            for turn, begin, end in spans:
                pieces += [(self._behind(full[at:begin]), None), (self._behind(full[begin:end]), turn)]
                at = end
        ids: list[int] = []
        mask: list[bool] = []
        for found, turn in pieces:
            own = len(self._without_tail(found)) if turn is not None else 0
            ids += found
            mask += [place < own and is_learned(turn or {}) for place in range(len(found))]
        ids, mask = ids[: len(ids) - len(found) + own], mask[: len(ids) - len(found) + own]
        if ids[-1] not in self.stop_tokens:
            ids, mask = [*ids, self.stop_tokens[0]], [*mask, is_learned(turns[-1])]
        return Encoded(self.prompt(talk), ids, mask)

    def _span(self, full: str, before: Conversation, turn: Message, name: str) -> tuple[int, int]:
        """Where the text of an assistant's turn begins and ends in that of the whole conversation.

        Raises:
            UserError: the template renders what is before it otherwise once others follow.
        """
        self.renderer.check_last(turn)
        prompt = self.renderer.render(before, add_generation_prompt=True)
        if not full.startswith(prompt):
            raise UserError(
                f"the chat template renders {name} in a response otherwise once others follow, so they cannot be one response; "
                "give a row per turn, or set chat_template beside the model's name to another template"
            )
        return len(prompt), common_length(full, self.renderer.render(before.followed_by([turn])))

    def _pieces(
        self, full: str, spans: list[tuple[Message, int, int]]
    ) -> list[tuple[list[int], Message | None]] | None:
        """The ids of the whole text, split at the spans; None where the ids of a text up to a span do not begin them."""
        whole = self._ids(full, False)
        found: list[tuple[list[int], Message | None]] = []
        at = None
        for turn, begin, end in spans:
            start = self._ids(full[:begin], False)
            if whole[: len(start)] != start:
                return None
            stop = common_length(whole, self._ids(full[:end], False))
            found += [(whole[len(start) if at is None else at : len(start)], None), (whole[len(start) : stop], turn)]
            at = stop
        return found

    def _behind_header(self, talk: Conversation, turns: list[Message], start: str, full: str) -> str:
        """The text of a turn where the template's generation prompt is not the turn's header, as with `<think>`.

        Raises:
            UserError: the template renders the prompt itself otherwise once an answer follows.
        """
        base = self.renderer.render(talk)
        one, other = (
            self.renderer.render(talk.followed_by([{"role": "assistant", "content": letter}])) for letter in "\u03b1\u03b2"
        )
        header = min(common_length(one, other), common_length(full, one))
        if not (full.startswith(base) and start.startswith(base)) or header < len(base):
            raise UserError(
                "the tokenizer's chat template does not continue a prompt: the text of prompt and answer together does not "
                "start with that of the prompt; set chat_template beside the model's name to another template"
            )
        return full[header:]

    def _ids(self, text: str, special: bool) -> list[int]:
        """Ids of a text; with `special` those that the tokenizer puts at its beginning, once, and none at its end."""
        key = (text, special)
        if key not in self._recent:
            if len(self._recent) > 7:
                self._recent.pop(next(iter(self._recent)))
            self._recent[key] = self._tokenize(text, special)
        return self._recent[key]

    def _tokenize(self, text: str, special: bool) -> list[int]:
        try:
            ids = list(self.tokenizer(text, add_special_tokens=special)["input_ids"])
        except Exception as error:  # half of a surrogate pair, for one
            raise UserError(f"the tokenizer cannot read the text {text!r:.60}: {error}; fix the row") from error
        if special:
            begin, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
            if len(ids) > 1 and ids[0] == ids[1] == begin is not None:
                ids = ids[1:]  # the text begins with it too
            if len(ids) > 1 and ids[-1] == end and end in self.stop_tokens:
                ids = ids[:-1]
        return ids

    def _behind(self, text: str) -> list[int]:
        """Ids of a text that follows another one: without the space that some tokenizers put at a beginning."""
        for anchor in ANCHORS:
            alone, both = self._tokenize(anchor, False), self._tokenize(anchor + text, False)
            if both[: len(alone)] == alone:
                return both[len(alone) :]
        return self._tokenize(text, False)

    def _without_tail(self, ids: list[int]) -> list[int]:
        """Templates write a newline after the stop token, Phi-3's another stop token after that: the first of them is the end."""
        last = next((i for i in range(len(ids) - 1, max(len(ids) - 4, -1), -1) if ids[i] in self.stop_tokens), len(ids))
        for index in range(last - 1, -1, -1) if last < len(ids) else ():
            if ids[index] in self.stop_tokens:
                last = index
            elif self.tokenizer.decode(ids[index]).strip():
                break
        return ids[: last + 1]

    def together(self, prompt: Text, responses: Sequence[Text], max_length: int | None) -> tuple[list[int], list[Encoded]]:
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
        """Both, cut to `max_length` tokens together: the beginning of the prompt goes first, then the end of the response.

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
                f"{limit} to cut their beginning, or lower max_new_tokens"
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


def left_padded(
    sequences: Sequence[Sequence[int]], pad: int, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """int64 [N, P] and bool [N, P]: sequences that end in the last column."""
    width = max(1, max(map(len, sequences)))
    tokens = torch.full((len(sequences), width), pad, dtype=torch.long)
    mask = torch.zeros(len(sequences), width, dtype=torch.bool)
    for row, ids in enumerate(sequences):
        if len(ids):
            tokens[row, width - len(ids) :], mask[row, width - len(ids) :] = torch.tensor(ids), True
    return tokens.to(device), mask.to(device)


def right_padded(
    sequences: Sequence[Sequence[int]], pad: int, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """int64 [N, T] and bool [N, T]: sequences that begin in the first column."""
    tokens, mask = left_padded([list(ids)[::-1] for ids in sequences], pad, device)
    return tokens.flip(-1), mask.flip(-1)


def recorded_rows(
    prompts: list[list[int]],
    responses: list[list[int]],
    groups: list[int],
    stop_tokens: list[int],
    pad: int,
    masks: list[list[bool]] | None = None,
) -> Rows:
    """Build `Rows` of B prompts with a recorded response each; `masks` say which of its tokens are learned, by default all."""
    tokens, prompt_mask = left_padded(prompts, pad)
    generated, mask = right_padded(responses, pad)
    if masks is not None:
        mask = mask & right_padded(masks, 0)[0].bool()
    truncated = torch.tensor([not ids or ids[-1] not in stop_tokens for ids in responses])
    return Rows(torch.cat([tokens, generated], 1), prompt_mask, mask, torch.tensor(groups), truncated)


def common_length(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Count the elements that both begin with.

    >>> common_length("abc", "abd")
    2
    """
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


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
