"""The second step of a round: questions are asked in batches until the round has its labels, which are then frozen."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rlhf_lightning.errors import UserError
from rlhf_lightning.feedback.export import export
from rlhf_lightning.feedback.items import NewItem, NewResponse, digest
from rlhf_lightning.feedback.questions import Question, Random, Scores, Strategy, rank, strategy_of
from rlhf_lightning.feedback.rank import Response, key_of, pair_of
from rlhf_lightning.feedback.records import Record, read_records
from rlhf_lightning.feedback.store import Store
from rlhf_lightning.loop.candidates import Candidate, is_held_out
from rlhf_lightning.loop.config import LoopConfig

Row = dict[str, Any]
Scoring = Mapping[Response, Scores]
POLL_SECONDS = 1.0
LAST_PAGE_SECONDS = 3.0
SKIPPED_BY_ALL = """
SELECT count(*) FROM items WHERE purpose = 'item' AND round = :round AND state = 'open'
AND EXISTS (SELECT 1 FROM latest WHERE item = items.id AND skipped = 1)
AND (SELECT count(*) FROM latest WHERE item = items.id AND adjudication = 0) >= (
    SELECT count(*) FROM annotators WHERE token_hash IS NOT NULL AND ' ' || roles || ' ' LIKE '% annotator %'
)
"""
"""Open items that each annotator has judged or skipped, so that nobody is left to judge them."""


def questions(
    candidates: Sequence[Candidate], asked: Iterable[str], config: LoopConfig, round_: int, scores: Scoring | None
) -> list[tuple[Candidate, float]]:
    """Choose the next batch: a function of what was asked before in this round, its number, the scores and the seed.

    Args:
        candidates: of the round.
        asked: keys of the pairs that were asked before.
        config: of the loop.
        round_: its number.
        scores: of all responses by the reward model of the round before; None where there is none.

    Returns:
        Pairs with the probability of their choice; none where the round has its labels, or nothing is left to ask.
    """
    done = set(asked)
    by_key = {key_of(candidate): candidate for candidate in candidates}
    before = [by_key[key] for key in sorted(done) if key in by_key]
    prompts = Counter(digest(candidate.prompt) for candidate in before)
    count = max(0, min(config.rank_every or config.labels, config.labels - len(done)))
    pools: dict[bool, dict[str, Candidate]] = {False: {}, True: {}}
    for key, candidate in by_key.items():
        if key not in done:
            pools[is_held_out(candidate.prompt, config.held_out)][key] = candidate
    measured = sum(is_held_out(candidate.prompt, config.held_out) for candidate in before)
    held = min(max(0, round(config.held_out * (len(done) + count)) - measured), len(pools[True]), count)
    strategy = Random() if scores is None else strategy_of(config.strategy)
    seed = f"{config.seed} {round_} {digest(sorted(done))}"

    def first(pool: Mapping[str, Candidate], strategy: Strategy, share: float, count: int) -> list[Question]:
        pairs = [pair_of(candidate, dict(scores or {})) for candidate in pool.values()]
        return rank(pairs, prompts, strategy, share, seed)[:count]

    chosen = first(pools[True], Random(), 0.0, held)
    chosen += first(pools[False], strategy, config.random_share, count - held)
    return [(by_key[question.key], question.probability) for question in chosen]


def items_of(chosen: Iterable[tuple[Candidate, float]], config: LoopConfig, round_: int) -> list[NewItem]:
    """Make items of a round."""
    return [
        NewItem(
            kind="pair",
            prompt=candidate.prompt,
            responses=tuple(map(NewResponse, candidate.responses, candidate.models)),
            wanted=config.judgements_per_item,
            round=round_,
            probability=probability,
        )
        for candidate, probability in chosen
    ]


def records_of(store: Store, round_: int) -> list[Record]:
    """Read the items of a round."""
    with store.database.snapshot() as connection:
        return [record for record in read_records(connection) if record.round == round_]


def judge_round(
    store: Store,
    candidates: Sequence[Candidate],
    config: LoopConfig,
    round_: int,
    scores: Scoring | None,
    answered: Callable[[], None],
) -> None:
    """Ask until the round has its labels.

    Args:
        store: of the loop.
        candidates: of the round.
        config: of the loop.
        round_: its number.
        scores: of all responses by the reward model of the round before; None where there is none.
        answered: returns when every open item of the round has its judgements.
    """
    while True:
        answered()
        asked = {key_of(record) for record in records_of(store, round_)}
        chosen = questions(candidates, asked, config, round_, scores)
        if not chosen:
            return
        with store.database.write():  # all of a batch or nothing of it
            store.add(items_of(chosen, config, round_))


def wait_for_people(store: Store, round_: int) -> None:
    """Wait until nobody is left who could judge an open item of the round."""
    last = -1
    while True:
        with store.database.read() as connection:
            total, open_items = connection.execute(
                "SELECT count(*), coalesce(sum(state = 'open'), 0) FROM items WHERE purpose = 'item' AND round = ?",
                (round_,),
            ).fetchone()
            skipped = connection.execute(SKIPPED_BY_ALL, {"round": round_}).fetchone()[0]
        if total and total - open_items != last:
            last = total - open_items
            print(f"round {round_}: {last} of {total} items are judged", flush=True)
        if open_items - skipped <= 0:
            return
        time.sleep(POLL_SECONDS)


def wait_for_last_page() -> None:
    """Wait until the browser that sent the last judgement has loaded the page that follows it."""
    time.sleep(LAST_PAGE_SECONDS)


def frozen_labels(store: Store, config: LoopConfig) -> tuple[list[Row], list[Row]]:
    """Return the labels of all rounds so far, sorted by the texts of their pairs: those to learn from, and those held out.

    Raises:
        UserError: there is none to learn from, or none that is held out.
    """
    found = export(store, "pairs", reconcile=config.reconcile)
    rows = sorted(found.rows, key=lambda row: (row["round"], digest([row["prompt"], row["chosen"], row["rejected"]])))
    held: dict[bool, list[Row]] = {False: [], True: []}
    for row in rows:
        held[is_held_out(row["prompt"], config.held_out)].append(row)
    skipped = "".join(f"; {count} skipped: {reason}" for reason, count in sorted(found.skipped.items()))
    for side, what in ((False, "to learn from"), (True, "that is held out")):
        if not held[side] and (config.held_out or not side):
            raise UserError(
                f"store {store.database.path} has {len(rows)} labels and none {what}{skipped}; set labels or held_out higher"
            )
    return held[False], held[True]
