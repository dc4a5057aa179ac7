"""Filling a store: responses that models generate, recorded pairs, known answers, Argilla's records."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlhf_lightning.data.formats import BadRow
from rlhf_lightning.errors import UserError
from rlhf_lightning.evaluation.responses import fingerprint, generate_responses, load_encoder
from rlhf_lightning.feedback.argilla import ArgillaPair, is_argilla, read_pair
from rlhf_lightning.feedback.candidates import (
    ItemBuilder,
    ItemTemplate,
    read_items,
    read_prompts,
    read_rows,
    recorded_item,
)
from rlhf_lightning.feedback.items import NewItem, digest
from rlhf_lightning.feedback.store import Store
from rlhf_lightning.generation.base import Generator
from rlhf_lightning.models.loading import ModelConfig

Row = dict[str, Any]


@dataclass(frozen=True)
class Added:
    """What an `ask` did: items in the file or made of responses, and how many of them are new."""

    what: str
    items: int
    new: int
    note: str = ""

    def __str__(self) -> str:
        there = self.items - self.new
        return f"{self.what}: {self.new} new, {there} in the store already{self.note}"


def _added(store: Store, what: str, items: Sequence[NewItem], note: str = "") -> Added:
    """Add items; one that is there already takes more judgements where more are asked now."""
    new, raised = store.add(items), store.raise_wanted(items)
    return Added(what, len(items), new, f"{f'; {raised} of them take more judgements now' if raised else ''}{note}")


@dataclass(frozen=True)
class Sampling:
    """How candidates are generated."""

    models: tuple[ModelConfig, ...]
    responses: int
    generation: Generator
    seed: int
    batch_size: int


def ask_models(store: Store, prompts: str, sampling: Sampling, builder: ItemBuilder) -> Added:
    """Generate responses of every model and add the items that they give.

    Responses are kept in the store batch by batch: after an interruption the same call generates what is missing only.

    Raises:
        UserError: a model or the file of prompts is no good; found before any weights are loaded.
    """
    items = generated_items(store, read_prompts(prompts), sampling, builder)
    note = f"; {builder.identical} prompts got too few different responses" if builder.identical else ""
    return _added(store, "generated items", items, note)


def generated_items(store: Store, rows: Sequence[Row], sampling: Sampling, builder: ItemBuilder) -> list[NewItem]:
    """Generate responses of every model to the `prompt` of each row, keep them in the store, and return the items they give.

    Raises:
        UserError: a model is no good; found before any weights are loaded.
    """
    for model in sampling.models:
        load_encoder(model, sampling.generation)
    found: list[list[tuple[str, str]]] = [[] for _ in rows]
    for model in sampling.models:
        for row, responses in enumerate(_responses(store, model, rows, sampling)):
            found[row] += [(response, str(model.name_or_path)) for response in responses]
    return [
        item for row, candidates in zip(rows, found, strict=True) for item in builder.items(row["prompt"], candidates)
    ]


def _responses(store: Store, model: ModelConfig, rows: Sequence[Row], sampling: Sampling) -> Iterator[list[str]]:
    """Return the responses of one model to all prompts, in order: those in the store, and those that are generated now."""
    generation = {"kind": type(sampling.generation).__name__, **vars(sampling.generation)}
    source = digest(
        [
            model.name_or_path,
            model.dtype,
            model.chat_template,
            fingerprint(model),
            sampling.seed,
            sampling.responses,
            generation,
        ]
    )
    keys = [digest(row["prompt"]) for row in rows]
    with store.database.read() as connection:
        stored = connection.execute("SELECT prompt, responses FROM candidates WHERE source = ?", (source,)).fetchall()
    found: dict[str, list[str]] = {row["prompt"]: json.loads(row["responses"]) for row in stored}
    known = {row for row, key in enumerate(keys) if key in found}
    if known:
        print(f"{model.name_or_path}: responses to {len(known)} of {len(rows)} prompts are in the store", flush=True)
    batches = generate_responses(
        model, rows, sampling.responses, sampling.generation, sampling.seed, sampling.batch_size, known
    )
    done = len(known)
    for batch in batches:
        new = {keys[generated.row]: generated.responses for generated in batch}
        with store.database.write() as connection:
            connection.executemany(
                "INSERT INTO candidates VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
                [(source, key, json.dumps(responses)) for key, responses in new.items()],
            )
        found = new | found  # of two rows with one prompt the first counts
        done += len(batch)
        print(f"{model.name_or_path}: {done} of {len(rows)} prompts", flush=True)
    return (found[key] for key in keys)


def ask_file(store: Store, source: str, template: ItemTemplate, purpose: str) -> Added:
    """Add the recorded items of a file; of gold and training items the answer is known."""
    items = read_items(source, template, purpose)
    what = {"item": "recorded items", "gold": "gold items", "training": "training items"}[purpose]
    return _added(store, what, items)


def ask_argilla(store: Store, source: str, template: ItemTemplate) -> Added:
    """Add the pairs of an Argilla file, with the judgements that it has; each of its users becomes an annotator.

    Raises:
        UserError: the file has not Argilla's pairwise form.
    """
    pairs: list[tuple[NewItem, ArgillaPair]] = []
    for row, place in read_rows(source):
        if not is_argilla(row):
            raise UserError(
                f"{place}: no Argilla pair: the fields prompt, response1 and response2 are expected, found {', '.join(row)}"
            )
        pair = read_pair(row)
        plain = {"prompt": pair.prompt, "responses": list(pair.responses)}
        try:
            item = recorded_item(plain, template, "item", Path())
            pairs.append((replace(item, wanted=max(template.wanted, len(pair.answers))), pair))
        except BadRow as error:
            raise UserError(f"{place}: {error}; fix the record or remove it") from error
    with store.database.write():  # all or nothing
        added = _added(store, "Argilla pairs", [item for item, _ in pairs])
        judged = sum(
            store.record(item.key, f"argilla-{digest(user)[:8]}", answer)
            for item, pair in pairs
            for user, answer in pair.answers.items()
        )
    return replace(added, note=f"{added.note}; {judged} judgements imported")
