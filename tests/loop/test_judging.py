"""Which questions a round asks, and when its labels are frozen."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("starlette")

from rlhf_lightning.errors import UserError
from rlhf_lightning.feedback.items import digest
from rlhf_lightning.feedback.rank import Response, key_of
from rlhf_lightning.feedback.server import serving
from rlhf_lightning.feedback.store import Store
from rlhf_lightning.loop import judging, simulated
from rlhf_lightning.loop.candidates import Candidate, is_held_out, prompts_of_round
from rlhf_lightning.loop.config import LoopConfig
from rlhf_lightning.playground import task

CONFIG = LoopConfig("reward.yaml", "ppo.yaml", labels=20, held_out=0.2, judgements_per_item=2)


def candidates(prompts: int = 60, pairs: int = 2) -> list[Candidate]:
    """Pairs of playground replies, some to each prompt."""
    rng, found = random.Random(0), []
    for prompt in task.prompts(prompts, 0, False):
        replies: dict[str, None] = {}
        while len(replies) < 2 * pairs:
            replies[task.make_reply(prompt, rng)] = None
        texts = list(replies)
        found += [Candidate(prompt, (texts[2 * i], texts[2 * i + 1]), ("a", "a")) for i in range(pairs)]
    return found


def all_questions(config: LoopConfig, given: list[Candidate], scores: object = None) -> list[Candidate]:
    asked: list[Candidate] = []
    while chosen := judging.questions(given, map(key_of, asked), config, 0, scores):  # type: ignore[arg-type]
        asked += [candidate for candidate, _ in chosen]
    return asked


@pytest.mark.parametrize("every", [None, 1, 7, 20, 50])
def test_a_round_asks_its_labels_and_holds_out_its_share(every: int | None) -> None:
    config = replace(CONFIG, rank_every=every)
    given = candidates()
    asked = all_questions(config, given)
    assert len(asked) == len({key_of(candidate) for candidate in asked}) == 20
    assert max(Counter(candidate.prompt for candidate in asked).values()) == 1
    held = [candidate for candidate in asked if is_held_out(candidate.prompt, 0.2)]
    assert len(held) == 4
    assert asked == all_questions(config, given[::-1])
    assert asked != all_questions(replace(config, seed=1), given)


def test_the_held_out_questions_are_chosen_by_chance_whatever_the_strategy() -> None:
    given = candidates()
    close = given[::2]  # of each prompt the pair whose scores are closer
    scores = {
        Response(digest(candidate.prompt), digest(text)): (float(place) * (1 if candidate in close else 9),)
        for candidate in given
        for place, text in enumerate(candidate.responses)
    }
    config = replace(CONFIG, strategy="margin", random_share=0.0, held_out=0.5, labels=40, prompts_per_round=60)
    asked = all_questions(config, given, scores)
    sides = {
        side: [candidate in close for candidate in asked if is_held_out(candidate.prompt, 0.5) == side]
        for side in (True, False)
    }
    assert all(sides[False])
    assert 0.2 < sum(sides[True]) / len(sides[True]) < 0.8
    assert len(sides[True]) == 20


def test_fewer_candidates_than_labels_are_all_asked() -> None:
    given = candidates(prompts=6, pairs=1)
    assert {key_of(one) for one in all_questions(CONFIG, given)} == {key_of(one) for one in given}


def test_rounds_take_other_prompts_until_none_is_left() -> None:
    prompts = [f"prompt {number}" for number in range(10)] + ["prompt 3"]
    rounds = [prompts_of_round(prompts, 4, 0, number) for number in range(3)]
    assert len({*rounds[0], *rounds[1]}) == 8
    assert rounds[2][2:] == rounds[0][:2]
    with pytest.raises(UserError, match="10 different prompts, and a round takes 11"):
        prompts_of_round(prompts, 11, 0, 0)


def collected(path: Path, stop_after: int) -> list[dict[str, object]]:
    """The labels of a round whose annotators are interrupted after every so many judgements."""

    class Interrupted(simulated.Page):
        def judge(self) -> bool:
            nonlocal left
            if not left:
                left = stop_after
                raise KeyboardInterrupt
            left -= 1
            return super().judge()

    left, original, given, interruptions = stop_after, simulated.Page, candidates(), 0
    while True:
        with Store(path, create=True) as store:
            simulated.prepare(store, 0)
            simulated.Page = Interrupted  # type: ignore[misc]
            try:
                with serving(store) as address:
                    judging.judge_round(
                        store,
                        given,
                        CONFIG,
                        0,
                        None,
                        lambda: simulated.answer(store, address, 0),
                    )
                assert interruptions == 0 if stop_after > 100 else interruptions > 2
                return [*judging.frozen_labels(store, CONFIG)[0], *judging.frozen_labels(store, CONFIG)[1]]
            except KeyboardInterrupt:
                interruptions += 1
            finally:
                simulated.Page = original  # type: ignore[misc]


def test_interrupted_annotators_say_the_same(tmp_path: Path) -> None:
    whole = collected(tmp_path / "whole.db", 10**9)
    assert len(whole) > 10
    assert collected(tmp_path / "interrupted.db", 9) == whole
    choices = Counter(judgement["annotator"] for row in whole for judgement in row["judgements"])  # type: ignore[attr-defined]
    assert len(choices) == len(task.ANNOTATORS)


def test_a_pair_that_everybody_skips_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "POLL_SECONDS", 0.01)
    with Store(tmp_path / "feedback.db", create=True) as store:
        people = [store.invited(store.invite(name)).id for name in ("Ada", "Bo")]  # type: ignore[union-attr]
        store.add(judging.items_of([(candidate, 1.0) for candidate in candidates(2, 1)], CONFIG, 0))
        waiting = threading.Thread(target=judging.wait_for_people, args=(store, 0), daemon=True)
        waiting.start()
        for number, person in enumerate(people):
            for answer in ({"choice": 0}, {"skip": True}):
                assert waiting.is_alive(), number
                lease = store.next(person)
                assert lease is not None
                store.save(person, lease.id, answer)
        waiting.join(5)
        assert not waiting.is_alive()


def test_labels_that_teach_nothing_are_refused(tmp_path: Path, judge_ties: Callable[[Store], None]) -> None:
    with Store(tmp_path / "feedback.db", create=True) as store:
        store.add(judging.items_of([(candidate, 1.0) for candidate in candidates(3, 1)], CONFIG, 0))
        judge_ties(store)
        with pytest.raises(UserError, match="0 labels and none to learn from; 3 skipped: a tie"):
            judging.frozen_labels(store, CONFIG)


@pytest.fixture
def judge_ties() -> Callable[[Store], None]:
    def judge(store: Store) -> None:
        person = store.invited(store.invite("Ada"))
        assert person is not None
        while (lease := store.next(person.id)) is not None:
            store.save(person.id, lease.id, {"choice": "tie"})

    return judge


def test_simulated_annotators_refuse_what_they_cannot_judge() -> None:
    simulated.check_prompts(["name one fruit ."])
    with pytest.raises(UserError, match="'Who are you"):
        simulated.check_prompts(["name one fruit .", "Who are you?"])


def test_an_answer_does_not_depend_on_the_side() -> None:
    pages = [simulated.Page("", "", annotator, 0) for annotator in task.ANNOTATORS]
    for candidate in candidates():
        first, second = map(str, candidate.responses)
        for page in pages:
            chosen = page.prefers_first(str(candidate.prompt), first, second)
            assert page.prefers_first(str(candidate.prompt), second, first) != chosen
