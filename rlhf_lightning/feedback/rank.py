"""`feedback rank`: order the questions of a round by what a reward model can learn from them."""

from __future__ import annotations

import argparse
import sqlite3
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from rlhf_lightning.errors import UserError
from rlhf_lightning.feedback.items import Content, digest
from rlhf_lightning.feedback.judgements import latest_at
from rlhf_lightning.feedback.questions import STRATEGIES, Pair, Question, Scores, Strategy, rank, strategy_of
from rlhf_lightning.feedback.records import Record, read_records
from rlhf_lightning.feedback.store import Store

HELP = "order the pairs that nobody has judged by what a reward model can learn from them"
UNTOUCHED = """
purpose = 'item' AND NOT EXISTS (SELECT 1 FROM latest WHERE item = items.id)
AND NOT EXISTS (SELECT 1 FROM leases WHERE item = items.id AND closed = 0 AND expires > :now)
"""
"""Items that nobody has judged or has on the screen; the others keep the probability with which they were asked."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    names = ", ".join(STRATEGIES)
    parser.add_argument("--strategy", required=True, metavar="NAME", help=f"{names}, or the import path of a Strategy")
    parser.add_argument(
        "--reward", metavar="FOLDER", help="export of a reward model; RewardStage.heads makes several heads"
    )
    parser.add_argument("--random-share", type=float, default=0.2, help="questions that chance chooses (%(default)s)")
    parser.add_argument("--round", type=int, metavar="N", help="of the feedback loop (the newest in the store)")
    parser.add_argument(
        "--every", type=int, default=1, metavar="N", help="count the round's judgements in whole Ns (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of chance (%(default)s)")


def run(options: argparse.Namespace) -> None:
    """Rank the questions, and print how many."""
    strategy = strategy_of(options.strategy)
    if strategy.heads and not options.reward:
        raise UserError(f"--strategy {options.strategy} reads scores; set --reward to the export of a reward model")
    if options.reward and not strategy.heads:
        raise UserError(f"--strategy {options.strategy} reads no scores; remove --reward")
    if not 0 <= options.random_share <= 1:
        raise UserError(f"--random-share is {options.random_share}; set it from 0 to 1")
    if options.every < 1:
        raise UserError(f"--every is {options.every}; set it to 1 or more")
    with Store(options.store) as store:
        round_ = _round(store, options.round)
        state = read_state(store, round_, options.every)
        scores = head_scores(options.reward, strategy, state.open) if strategy.heads else {}
        questions = rank_round(state, strategy, scores, options.random_share, options.seed, round_)
        moved = reorder(store, state.open, questions)
    at_random = sum(question.random for question in questions)
    waiting = f"; {len(questions) - moved} keep their place: somebody has them" if moved < len(questions) else ""
    print(
        f"{options.store}: {len(questions)} questions of round {round_} ranked by {options.strategy}, {at_random} of them at "
        f"random; {len(state.asked)} judged before{waiting}"
    )


@dataclass(frozen=True)
class RoundState:
    """The pairs of a round at its barrier."""

    open: list[Record]
    """Without a judgement."""
    asked: list[Record]

    @property
    def key(self) -> str:
        """A digest of which pairs were judged, whoever judged them and in whatever order."""
        return digest(sorted(key_of(record) for record in self.asked))


class Comparison(Protocol):
    """A pair that is in the store, or could be."""

    @property
    def prompt(self) -> Content:
        """The prompt."""

    @property
    def responses(self) -> Sequence[Content | None]:
        """Two responses."""


class Response(NamedTuple):
    """A response to a prompt, by the digests of both."""

    prompt: str
    text: str


def read_state(store: Store, round_: int, every: int) -> RoundState:
    """Read the pairs of a round after the last of its judgements whose number is a multiple of `every`.

    Raises:
        UserError: the round has no pair of texts.
    """
    with store.database.snapshot() as connection:
        pairs = [
            record
            for record in read_records(connection)
            if record.kind == "pair" and record.round == round_ and None not in record.responses
        ]
        judged = _judged(connection, round_, every)
    if not pairs:
        raise UserError(
            f"store {store.database.path} has no pair of texts of round {round_} to rank; add some with feedback ask"
        )
    return RoundState([r for r in pairs if r.id not in judged], [r for r in pairs if r.id in judged])


def rank_round(
    state: RoundState, strategy: Strategy, scores: dict[Response, Scores], random_share: float, seed: int, round_: int
) -> list[Question]:
    """Rank the open pairs of a round: a function of its judgements, its number, the scores and the seed."""
    pairs = [pair_of(record, scores) for record in state.open]
    asked = Counter(digest(record.prompt) for record in state.asked)
    return rank(pairs, asked, strategy, random_share, f"{seed} {round_} {state.key}")


def reorder(store: Store, records: Sequence[Record], questions: Sequence[Question]) -> int:
    """Give the places that these pairs have in the queue to them in their new order; return how many could be moved."""
    ids = {key_of(record): record.id for record in records}
    with store.database.write() as connection:
        rows = connection.execute(f"SELECT id, rank FROM items WHERE {UNTOUCHED}", {"now": time.time()}).fetchall()
        places = {row["id"]: row["rank"] for row in rows}
        moved = [(ids[question.key], question) for question in questions if ids[question.key] in places]
        ranks = sorted(places[item] for item, _ in moved)
        connection.executemany(
            "UPDATE items SET rank = ?, probability = ? WHERE id = ?",
            [(place, question.probability, item) for (item, question), place in zip(moved, ranks, strict=True)],
        )
    return len(moved)


def key_of(record: Comparison) -> str:
    """Return a digest of a pair's texts: it orders the pairs of a round, whichever was added first."""
    return digest([record.prompt, sorted(digest(response) for response in record.responses)])


def _round(store: Store, asked: int | None) -> int:
    if asked is not None:
        return asked
    with store.database.read() as connection:
        newest = connection.execute("SELECT max(round) FROM items WHERE purpose = 'item'").fetchone()[0]
    return newest or 0


def _judged(connection: sqlite3.Connection, round_: int, every: int) -> set[int]:
    """Return the items with a judgement that counted at the round's last barrier."""
    rows = connection.execute(
        "SELECT judgements.id FROM judgements JOIN items ON items.id = item WHERE purpose = 'item' AND round = ? "
        "AND action = 'judge' ORDER BY judgements.id",
        (round_,),
    ).fetchall()
    barrier = len(rows) // every * every
    return {place.item for place in latest_at(connection, rows[barrier - 1]["id"])} if barrier else set()


def pair_of(record: Comparison, scores: dict[Response, Scores]) -> Pair:
    """Return a pair with the scores of its responses; none where they were not scored."""
    names = [Response(digest(record.prompt), digest(response)) for response in record.responses]
    first, second = names
    found = (scores.get(first, ()), scores.get(second, ()))
    return Pair(key_of(record), first.prompt, (first.text, second.text), found)


def head_scores(reward: str, strategy: Strategy, records: Sequence[Comparison]) -> dict[Response, Scores]:
    """Score every response of the pairs by every head.

    Raises:
        UserError: the reward model has fewer heads than the strategy needs, or cannot be loaded.
    """
    from rlhf_lightning.models.loading import ModelConfig, load_encoder, load_reward_config
    from rlhf_lightning.models.reward_heads import saved_heads

    config = ModelConfig(name_or_path=reward)
    load_reward_config(config)
    encoder, heads = load_encoder(config), saved_heads(config)
    if (found := 1 if heads is None else len(heads)) < strategy.heads:
        raise UserError(
            f"--reward {reward} has {found} head, and the strategy compares the heads of an ensemble; train one with "
            "--model.heads 10, or set --strategy to margin or random"
        )
    from rlhf_lightning.feedback.head_scores import scores_of

    texts: dict[str, tuple[Content, dict[str, Content]]] = {}
    for record in records:
        responses = texts.setdefault(digest(record.prompt), (record.prompt, {}))[1]
        responses.update({digest(response): response for response in record.responses if response is not None})
    named = [(Response(prompt, name), of, text) for prompt, (of, each) in texts.items() for name, text in each.items()]
    found_scores = scores_of(config, encoder, heads, [(of, text) for _, of, text in named])
    return {name: each for (name, _, _), each in zip(named, found_scores, strict=True)}
