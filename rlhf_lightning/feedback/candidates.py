"""From what models generated, or a file recorded, to items that annotators are asked."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_lightning.data.formats import BadRow, Text, before_answer, common_prompt, text_or_messages
from rlhf_lightning.data.reading import read
from rlhf_lightning.errors import UserError
from rlhf_lightning.feedback.answers import MOST_RANKED, InvalidAnswerError, checked
from rlhf_lightning.feedback.items import Content, Media, NewItem, NewResponse, digest, text_of

Row = dict[str, Any]

LARGEST_IMAGE = 20 * 2**20
"""Bytes of an image that a store takes."""
IMAGES = {
    "image/png": rb"\x89PNG\r\n\x1a\n",
    "image/jpeg": rb"\xff\xd8\xff",
    "image/gif": rb"GIF8[79]a",
    "image/webp": rb"RIFF....WEBP",
}
"""How a file of each kind begins: its name may say something else."""
IMAGE_COLUMN = "images"
FEWEST = {"pair": 2, "ranking": 2, "rating": 1, "edit": 1}
"""Responses that an item of each kind has at least."""
MOST = {"pair": 2, "ranking": MOST_RANKED, "rating": MOST_RANKED, "edit": 1}


@dataclass(frozen=True)
class ItemTemplate:
    """What all items of one `ask` have in common."""

    kind: str
    wanted: int
    criteria: tuple[str, ...]
    """Of a rating; of other kinds none."""
    image_column: str = IMAGE_COLUMN


def read_prompts(source: str) -> list[Row]:
    """Read rows with a `prompt` to respond to; other columns stay as they are.

    Raises:
        UserError: a row has none, or no text where there should be.
    """
    rows = []
    for row, place in read_rows(source):
        try:
            rows.append({**row, "prompt": before_answer(_required(row, "prompt"))})
        except BadRow as error:
            raise UserError(f"{place}: {error}; fix the row or remove it") from error
    return rows


def read_items(source: str, template: ItemTemplate, purpose: str) -> list[NewItem]:
    """Read recorded items.

    A row has a `prompt` and `responses`, `chosen` and `rejected`, or one `response`; perhaps `models` (or `chosen_model` and
    `rejected_model`, or `model`), an image of each response, and for gold and training items an `answer` and an `explanation`.
    Of chosen and rejected the answer is known without one.

    Raises:
        UserError: what is wrong with the first bad row.
    """
    items, rows = [], read_rows(source)
    column = template.image_column
    if column != IMAGE_COLUMN and not any(row.get(column) is not None for row, _ in rows):
        raise UserError(
            f"--image-column is {column}, and no row of {source} has it; set it to a column with image files"
        )
    for row, place in rows:
        try:
            items.append(recorded_item(row, template, purpose, Path(source).parent))
        except (BadRow, InvalidAnswerError) as error:
            raise UserError(f"{place}: {error}; fix the row or remove it") from error
    return items


def read_rows(source: str) -> list[tuple[Row, str]]:
    """Read every row of a file, a glob or a hub name, and its place (file and line).

    Raises:
        UserError: a row cannot be read, or there is none.
    """
    found: list[tuple[Row, str]] = []
    for data in read(source):
        if data.faults:
            raise UserError(f"{data.faults[0]}; fix the file")
        found += zip(data.rows, data.places, strict=True)
    if not found:
        raise UserError(f"{source} is empty: no row to use")
    return found


def recorded_item(row: Row, template: ItemTemplate, purpose: str, folder: Path) -> NewItem:
    """Make an item of one row; see `read_items`.

    Raises:
        BadRow: a column is missing or holds something else.
        InvalidAnswerError: the known answer has not the item's form.
    """
    prompt, contents, models, answer = _contents(row)
    media = _media(row.get(template.image_column), folder, template.image_column)
    if not contents:
        contents = [None] * len(media)
    models, media = models or [None] * len(contents), media or [None] * len(contents)
    if not len(contents) == len(models) == len(media):
        raise BadRow(f"there are {len(contents)} responses, {len(models)} models and {len(media)} images")
    responses = tuple(NewResponse(c, m, i) for c, m, i in zip(contents, models, media, strict=True))
    _check_count(template.kind, responses)
    given = row.get("answer")
    if isinstance(given, dict) and given.get("skip"):
        given = None
    if given is None or (purpose == "item" and not isinstance(given, dict)):  # a column of the user's own
        given = answer if template.kind == "pair" else None
    if given is None and purpose != "item":
        raise BadRow(f"a {purpose} item needs a known answer; give a column 'answer'")
    if template.kind == "edit" and purpose == "gold":
        raise BadRow("an edit has no known answer, so it cannot be a gold item")
    return NewItem(
        kind=template.kind,
        prompt=prompt,
        responses=responses,
        purpose=purpose,
        answer=None if given is None else checked(given, template.kind, len(responses), template.criteria),
        explanation=_explanation(row),
        criteria=template.criteria,
        wanted=template.wanted,
    )


def _contents(row: Row) -> tuple[Content, list[Content | None], list[str | None], Row | None]:
    """Return prompt, responses, their models and the recorded answer of a row."""
    answer: Row | None = None
    contents: list[Content | None] = []
    models = list(row.get("models") or [])
    prompt = row.get("prompt")
    if row.get("responses") is not None:
        if not isinstance(row["responses"], list):
            raise BadRow(f"column 'responses' must be a list, found {type(row['responses']).__name__}")
        contents = [None if response is None else _text(response, "responses") for response in row["responses"]]
    elif row.get("chosen") is not None or row.get("rejected") is not None:
        chosen, rejected = (_required(row, name) for name in ("chosen", "rejected"))
        if prompt is None:
            prompt, chosen, rejected = common_prompt(chosen, rejected)
        contents, answer = [chosen, rejected], {"choice": 0}
        models = models or [row.get("chosen_model"), row.get("rejected_model")]
    elif row.get("response") is not None:
        contents = [_text(row["response"], "response")]
        models = models or [row.get("model")]
    return before_answer(_required({**row, "prompt": prompt}, "prompt")), contents, models, answer


def _required(row: Row, column: str) -> Text:
    if row.get(column) is None:
        found = ", ".join(name for name, value in row.items() if value is not None)
        raise BadRow(f"column {column!r} is missing, found {found or 'none'}")
    return _text(row[column], column)


def _text(value: Any, column: str) -> Text:
    content: Text = text_or_messages(value, column)
    try:
        text_of(content).encode()
    except UnicodeEncodeError as error:
        raise BadRow(f"column {column!r} is not Unicode text: {error.reason}") from error
    return content


def _media(paths: Any, folder: Path, column: str) -> list[Media | None]:
    if paths is None:
        return []
    if not isinstance(paths, list) or not all(path is None or isinstance(path, str) for path in paths):
        raise BadRow(f"column {column!r} must be a list of image files, one for each response")
    return [None if path is None else read_image(folder / path) for path in paths]


def read_image(path: Path) -> Media:
    """Read an image; only kinds that a browser shows without running anything.

    Raises:
        BadRow: it is not there, of another kind, or too large.
    """
    try:
        if path.stat().st_size > LARGEST_IMAGE:
            raise BadRow(f"image {path} has {path.stat().st_size >> 20} MiB; at most {LARGEST_IMAGE >> 20} are taken")
        data = path.read_bytes() if path.is_file() else b""
    except OSError as error:
        raise BadRow(f"image {path} cannot be read: {error.strerror}") from error
    for kind, beginning in IMAGES.items():
        if re.match(beginning, data, re.DOTALL):
            return Media(kind, data)
    raise BadRow(f"image {path} is none of {', '.join(kind.removeprefix('image/') for kind in IMAGES)}")


def _check_count(kind: str, responses: Sequence[NewResponse]) -> None:
    if not FEWEST[kind] <= len(responses) <= MOST[kind]:
        need = str(FEWEST[kind]) if FEWEST[kind] == MOST[kind] else f"{FEWEST[kind]} to {MOST[kind]}"
        raise BadRow(
            f"a {kind} needs {need} responses, found {len(responses)} (columns responses, chosen and rejected, or response)"
        )
    if any(response.content is None and response.media is None for response in responses):
        raise BadRow("a response has neither text nor an image")
    shown = [digest([response.content, response.media and response.media.digest]) for response in responses]
    if len(set(shown)) < len(shown):
        raise BadRow("two responses are the same, so there is nothing to compare")


def _explanation(row: Row) -> str | None:
    found = row.get("explanation")
    if found is not None and not isinstance(found, str):
        raise BadRow(f"column 'explanation' must be text, found {type(found).__name__}")
    return found


@dataclass
class ItemBuilder:
    """Makes items of generated responses, and counts the prompts that give none."""

    template: ItemTemplate
    per_prompt: int | None
    """Items of a prompt; None makes all of a rating or an edit, and one of a pair or a ranking."""
    seed: int = 0
    identical: int = 0
    """Prompts with too few responses that differ."""

    def items(self, prompt: Content, candidates: Sequence[tuple[str, str]]) -> list[NewItem]:
        """Choose items among the (response, model) of one prompt.

        Empty responses and repetitions of a text are no candidates. Pairs are of two models where there are two; each item
        keeps the probability with which it was chosen.
        """
        distinct = {text: model for text, model in reversed(candidates) if text.strip()}
        texts = [text for text in dict.fromkeys(text for text, _ in candidates) if text in distinct]
        if len(texts) < FEWEST[self.template.kind]:
            self.identical += 1
            return []
        rng = random.Random(f"{self.seed} {digest(prompt)}")
        chosen, options = self._chosen(texts, distinct, rng)
        return [
            NewItem(
                kind=self.template.kind,
                prompt=prompt,
                responses=tuple(NewResponse(text, distinct[text]) for text in option),
                criteria=self.template.criteria,
                wanted=self.template.wanted,
                probability=len(chosen) / options,
            )
            for option in chosen
        ]

    def _chosen(
        self, texts: list[str], models: dict[str, str], rng: random.Random
    ) -> tuple[list[tuple[str, ...]], int]:
        """Return the responses of each item, and among how many possible items they were chosen."""
        kind = self.template.kind
        if kind == "ranking":
            size = min(len(texts), MOST_RANKED)
            options = math.comb(len(texts), size)
            found: dict[tuple[int, ...], None] = {}
            while len(found) < min(self.per_prompt or 1, options):
                found[tuple(sorted(rng.sample(range(len(texts)), size)))] = None
            return [tuple(texts[i] for i in indices) for indices in found], options
        possible: list[tuple[str, ...]] = [(text,) for text in texts]
        if kind == "pair":
            pairs = list(itertools.combinations(texts, 2))
            possible = [pair for pair in pairs if models[pair[0]] != models[pair[1]]] or list(pairs)
        count = self.per_prompt or (1 if kind == "pair" else len(possible))
        return rng.sample(possible, min(count, len(possible))), len(possible)
