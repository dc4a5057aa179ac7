"""`feedback rank`: the queue is a function of judgements, round and seed; what was asked keeps its probability."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from feedback_items import Clock, pair
from safetensors.torch import load_file, save_file

from rlhf_lightning.__main__ import main
from rlhf_lightning.feedback.items import NewItem, NewResponse, digest
from rlhf_lightning.feedback.questions import Margin
from rlhf_lightning.feedback.rank import Response, key_of, rank_round, read_state
from rlhf_lightning.feedback.store import Store
from rlhf_lightning.models.paths import resolve_path
from rlhf_lightning.models.reward_heads import HEADS_FILE
from rlhf_lightning.playground import task


def queue(store: Store) -> list[tuple[int, float]]:
    with store.database.read() as connection:
        rows = connection.execute("SELECT id, probability FROM items WHERE purpose = 'item' ORDER BY rank, id")
        return [(row["id"], row["probability"]) for row in rows]


def feedback(store: Store, *words: str) -> int:
    return main(["feedback", "rank", "--store", str(store.database.path), *words])


def test_the_queue_is_a_function_of_judgements_round_and_seed(
    store: Store, person: Callable[..., int], judge: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    store.add([pair(n) for n in range(12)])
    ada = person("Ada")
    judge(ada, choice=0)
    words = ("--strategy", "random", "--every", "2")
    assert feedback(store, *words) == 0
    first = queue(store)
    assert "12 questions of round 0 ranked by random" in capsys.readouterr().out
    assert [item for item, _ in first] != list(range(1, 13))
    assert first[0] == (1, 1.0)  # judged: it keeps its place and its probability
    assert feedback(store, "--strategy", "random", "--every", "2", "--seed", "1") == 0
    assert queue(store) != first
    assert feedback(store, *words) == 0
    assert queue(store) == first
    judge(ada, choice=0)
    assert feedback(store, *words) == 0
    assert queue(store) != first  # the second judgement is a barrier
    capsys.readouterr()


def test_what_somebody_has_on_the_screen_keeps_its_probability(
    store: Store, clock: Clock, person: Callable[..., int]
) -> None:
    clock.now = time.time()  # which the command reads
    store.add([pair(n) for n in range(6)])
    lease = store.next(person("Ada"))
    assert lease is not None
    assert feedback(store, "--strategy", "random") == 0
    ranked = dict(queue(store))
    assert ranked.pop(lease.item.id) == 1.0
    assert ranked != dict.fromkeys(ranked, 1.0)


def test_scores_decide(store: Store, person: Callable[..., int], judge: Callable[..., int]) -> None:
    store.add([pair(n) for n in range(3)])
    judge(person("Ada"), choice=0)
    state = read_state(store, 0, 1)
    assert [record.id for record in state.asked] == [1]
    for closest in (2, 3):
        scores = {
            Response(digest(record.prompt), digest(text)): (float(place) * (1 if record.id == closest else 5),)
            for record in state.open
            for place, text in enumerate(record.responses)
        }
        ranked = rank_round(state, Margin(), scores, 0.0, 0, 0)
        assert [question.probability for question in ranked] == [1.0, 1.0]
        assert ranked[0].key == key_of(next(record for record in state.open if record.id == closest))


def ensemble(folder: Path, heads: int) -> str:
    """The playground's reward model with heads around its own."""
    shutil.copytree(resolve_path("playground/reward"), folder)
    weight = load_file(folder / "model.safetensors")["score.weight"]
    noise = torch.randn(heads, weight.shape[1], generator=torch.Generator().manual_seed(0))
    save_file({"weight": weight + weight.std() * (noise - noise.mean(0))}, folder / HEADS_FILE)
    return str(folder)


@pytest.mark.parametrize("strategy", ["margin", "disagreement", "thompson"])
def test_every_strategy_ranks_with_a_reward_model(store: Store, tmp_path: Path, strategy: str) -> None:
    rows = task.preferences(8, 0, False)
    store.add(
        NewItem("pair", row["prompt"], (NewResponse(row["chosen"]), NewResponse(row["rejected"]))) for row in rows
    )
    reward = ensemble(tmp_path / "export", 5)
    assert feedback(store, "--strategy", strategy, "--reward", reward, "--random-share", "0") == 0
    order = [item for item, _ in queue(store)]
    assert sorted(order) == list(range(1, 9))
    assert order != list(range(1, 9))


def test_one_head_is_no_ensemble(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    store.add([pair(0)])
    assert feedback(store, "--strategy", "disagreement", "--reward", "playground/reward") == 2
    assert "playground/reward has 1 head, and the strategy compares the heads of an ensemble" in capsys.readouterr().err
