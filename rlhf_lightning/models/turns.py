"""Several turns as one response: the token ids of the whole conversation, and which of them are learned."""

from __future__ import annotations

from typing import NamedTuple

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.conversation import Conversation, Message, is_learned
from rlhf_lightning.models.rendering import TemplateRenderer
from rlhf_lightning.models.text_ids import TextIds, common_length


class UnstableTemplateError(UserError):
    """The chat template renders a turn otherwise once others follow."""

    def __init__(self, turn: str) -> None:
        super().__init__(
            f"the chat template renders {turn} in a response otherwise once others follow, so they cannot be one response; "
            "give a row per turn, or set chat_template beside the model's name to another template"
        )


class EncodedTurns(NamedTuple):
    """Hold a response of several turns."""

    ids: list[int]
    mask: list[bool]
    """True for tokens that are learned."""
    retokenized: bool
    """Whether the ids of a text up to a turn do not begin those of the whole text, so that each turn is tokenized by itself."""
    separate: bool
    """Whether every learned turn ends with a stop token, as a response by itself does."""


class Span(NamedTuple):
    """Hold where the text of an assistant's turn is in that of the whole conversation."""

    turn: Message
    name: str
    """How a message calls the turn."""
    begin: int
    end: int


Runs = list[tuple[list[int], Span | None]]
"""Token ids in order: those of a span, and those between spans."""


class TurnEncoder:
    """Encodes a response of several turns, of which the assistant's are learned and the others are read.

    Args:
        renderer: of the chat template.
        texts: ids of texts.
    """

    def __init__(self, renderer: TemplateRenderer, texts: TextIds) -> None:
        self.renderer, self.texts = renderer, texts

    def encode(self, talk: Conversation, turns: list[Message]) -> EncodedTurns:
        """Encode `turns`, which begin and end with the assistant's, behind the conversation `talk`.

        Raises:
            UnstableTemplateError: the template renders a turn otherwise once others follow.
        """
        full = self.renderer.render(talk.followed_by(turns))
        spans = [
            self._span(full, talk.followed_by(turns[:place]), turn, f"turn {place + 1} of {len(turns)}")
            for place, turn in enumerate(turns)
            if turn.get("role") == "assistant"
        ]
        runs = self._token_runs(full, spans)
        retokenized = runs is None
        stops, separate = self.texts.stop_tokens, True
        ids: list[int] = []
        mask: list[bool] = []
        for found, span in self._runs_apart(full, spans) if runs is None else runs:
            own, learned = 0, False
            if span is not None:
                own, learned = len(self.texts.without_tail(found)), is_learned(span.turn)
                if learned and not own:
                    raise UnstableTemplateError(span.name)
                separate &= not learned or span is spans[-1] or found[own - 1] in stops
            ids += found
            mask += [place < own and learned for place in range(len(found))]
        end = len(ids) - len(found) + own  # without what the template writes behind the last turn
        ids, mask = ids[:end], mask[:end]
        if ids[-1] not in stops:
            ids, mask = [*ids, stops[0]], [*mask, is_learned(turns[-1])]
        return EncodedTurns(ids, mask, retokenized, separate)

    def _span(self, full: str, before: Conversation, turn: Message, name: str) -> Span:
        """Find an assistant's turn in the text of the whole conversation.

        Raises:
            UnstableTemplateError: the template renders what is before it otherwise once others follow.
        """
        self.renderer.check_last(turn)
        prompt = self.renderer.render(before, add_generation_prompt=True)
        if not full.startswith(prompt):
            raise UnstableTemplateError(name)
        return Span(turn, name, len(prompt), common_length(full, self.renderer.render(before.followed_by([turn]))))

    def _token_runs(self, full: str, spans: list[Span]) -> Runs | None:
        """Split the ids of the whole text at the spans; None where the ids of a text up to a span do not begin them."""
        whole = self.texts.ids(full, False)
        runs: Runs = []
        at = None
        for span in spans:
            start = self.texts.ids(full[: span.begin], False)
            if whole[: len(start)] != start:
                return None
            stop = common_length(whole, self.texts.ids(full[: span.end], False))
            runs += [(whole[len(start) if at is None else at : len(start)], None), (whole[len(start) : stop], span)]
            at = stop
        return runs

    def _runs_apart(self, full: str, spans: list[Span]) -> Runs:
        """Tokenize the text of every span by itself, and the text between."""
        runs: Runs = []
        at = spans[0].begin
        for span in spans:
            runs.append((self.texts.behind(full[at : span.begin]), None))
            runs.append((self.texts.behind(full[span.begin : span.end]), span))
            at = span.end
        return runs
