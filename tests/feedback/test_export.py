"""What was judged, as rows that the data modules read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from feedback_items import pair

from rlhf_lightning.__main__ import main
from rlhf_lightning.data import InstructionData, PreferenceData, RankingData, RatingData
from rlhf_lightning.errors import UserError
from rlhf_lightning.feedback.export import Exported, export, write_text
from rlhf_lightning.feedback.items import Media, NewItem, NewResponse
from rlhf_lightning.feedback.store import Store
from rlhf_lightning.rollouts.preferences import pair_probability

Person = Callable[..., int]
Judge = Callable[..., int]
MESSAGES = [{"role": "user", "content": "hi"}]


def read_back(module: type, found: Exported, tmp_path: Path) -> list[dict[str, Any]]:
    """The rows as the data module gives them to a stage."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in found.rows))
    data = module(train=str(path), validation_fraction=0.0)
    data.setup("fit")
    rows: list[dict[str, Any]] = data.train_rows
    return sorted(rows, key=lambda row: (row["item"], str(row.get("rejected"))))


def judged_by(store: Store, person: Person, *answers: list[dict[str, Any]]) -> list[int]:
    """Each list is what one annotator answers to the items in turn."""
    ids = []
    for number, given in enumerate(answers):
        ids.append(person(f"person {number}"))
        for answer in given:
            lease = store.next(ids[-1])
            assert lease is not None
            assert store.save(ids[-1], lease.id, answer, seconds=2.0).status == "saved"
    return ids


def test_pairs_for_a_reward_model(store: Store, person: Person, tmp_path: Path) -> None:
    store.add([pair(i, wanted=3) for i in range(4)])
    judged_by(
        store,
        person,
        [{"choice": 0}, {"choice": 1, "strength": 2, "reasons": ["safer"]}, {"choice": "tie"}, {"choice": 0}],
        [{"choice": 0}, {"choice": 1}, {"choice": "bad"}, {"choice": 1}],
        [{"choice": 0}, {"choice": "tie"}, {"choice": "tie"}, {"skip": True}],
    )
    found = export(store, "pairs")
    assert found.skipped == {"a tie": 2}
    first, second = read_back(PreferenceData, found, tmp_path)
    assert (first["prompt"], first["chosen"], first["rejected"]) == ("prompt 0", "first 0", "second, longer 0")
    assert (first["probability"], first["agreement"], first["state"]) == (1.0, 1.0, "settled")
    assert (second["chosen"], second["chosen_model"], second["rejected_model"]) == (
        "second, longer 1",
        "model b",
        "model a",
    )
    assert pair_probability(second) == pytest.approx(2.5 / 3)  # the soft label of DPO and of reward models
    assert second["agreement"] == pytest.approx(1 / 3)
    assert [said["choice"] for said in second["judgements"]] == ["chosen", "chosen", "tie"]
    assert second["judgements"][0]["strength"] == 2
    assert second["judgements"][0]["reasons"] == ["safer"]
    assert {said["left"] for said in second["judgements"]} <= {"chosen", "rejected"}
    assert second["annotators"] == [said["annotator"] for said in second["judgements"]]
    assert "person" not in json.dumps(found.rows)  # no names


def test_ties_and_undecided_pairs_where_asked_for(store: Store, person: Person) -> None:
    store.add([pair(i, wanted=2) for i in range(3)])
    judged_by(store, person, [{"choice": "tie"}, {"choice": 0}, {"choice": 0}], [{"choice": "tie"}, {"choice": 1}])
    assert [row["probability"] for row in export(store, "pairs", ties=True).rows] == [0.5, 0.5, 1.0]
    assert [row["item"] for row in export(store, "pairs", ties=True, decided=True).rows] == [1]


def test_an_adjudicator_outweighs_the_annotators(store: Store, person: Person) -> None:
    store.add([pair(1, wanted=3)])
    judged_by(store, person, [{"choice": 0}], [{"choice": 0}], [{"choice": 1}])
    eve = person("Eve", "adjudicator")
    store.save(eve, store.adjudicate(eve, 1).id, {"choice": 1})
    (row,) = export(store, "pairs", decided=True).rows
    assert (row["chosen"], row["probability"], row["state"]) == ("second, longer 1", 1.0, "adjudicated")
    assert len(row["annotators"]) == 3
    assert [said["adjudication"] for said in row["judgements"]] == [False, False, False, True]


def test_gold_and_training_are_not_exported(store: Store, person: Person) -> None:
    store.add([pair(1), pair(2, purpose="training", answer={"choice": 0})])
    store.add([pair(3, purpose="gold", answer={"choice": 0})])
    store.update_settings(gold_share=0.99)
    ada = person("Ada")
    while (lease := store.next(ada)) is not None:
        store.save(ada, lease.id, {"choice": 0})
    assert [row["prompt"] for row in export(store, "pairs").rows] == ["prompt 1"]


def test_a_second_opinion_says_what_was_recorded(store: Store, person: Person) -> None:
    store.add([pair(i, answer={"choice": 0}) for i in range(2)])
    judged_by(store, person, [{"choice": 0}, {"choice": 1}])
    assert [row["recorded"] for row in export(store, "pairs").rows] == ["chosen", "rejected"]


def test_a_conversation_stays_one(store: Store, person: Person, tmp_path: Path) -> None:
    turns = [{"role": "assistant", "content": "yes"}]
    store.add([NewItem("pair", MESSAGES, (NewResponse(turns), NewResponse("no")))])  # type: ignore[arg-type]
    judged_by(store, person, [{"choice": 0}])
    (row,) = read_back(PreferenceData, export(store, "pairs"), tmp_path)
    assert (row["prompt"], row["chosen"], row["rejected"]) == (MESSAGES, turns, "no")


def test_edits_are_demonstrations_and_pairs(store: Store, person: Person, tmp_path: Path) -> None:
    store.add(
        [NewItem("edit", "say hi", (NewResponse("hi", "a"),)), NewItem("edit", MESSAGES, (NewResponse("yo", "a"),))]
    )
    store.add([pair(7)])
    improved = {"choice": 1, "edits": [{"response": 1, "text": "better"}]}
    same = {"edits": [{"response": 0, "text": "yo "}]}
    judged_by(store, person, [{"edits": [{"response": 0, "text": "hello"}]}, same, improved])
    shown = read_back(InstructionData, export(store, "demonstrations"), tmp_path)
    assert [(row["prompt"], row["completion"]) for row in shown] == [
        ("say hi", "hello"),
        (MESSAGES, [{"role": "assistant", "content": "yo "}]),
        ("prompt 7", "better"),
    ]
    pairs = read_back(PreferenceData, export(store, "pairs"), tmp_path)
    assert [(row["chosen"], row["rejected"]) for row in pairs] == [
        ("hello", "hi"),  # an edit that changes nothing is no pair
        ("second, longer 7", "first 7"),
        ("better", "second, longer 7"),
    ]


def test_rankings(store: Store, person: Person, tmp_path: Path) -> None:
    responses = tuple(NewResponse(text, f"model {text}") for text in "abc")
    store.add(NewItem("ranking", f"prompt {i}", responses, wanted=2) for i in range(2))
    judged_by(store, person, [{"ranks": [2, 1, 3]}, {"ranks": [1, 2, 3]}], [{"ranks": [2, 1, 2]}, {"ranks": [2, 1, 3]}])
    found = export(store, "rankings")
    assert found.skipped == {"responses of equal mean rank": 1}
    (row,) = read_back(RankingData, found, tmp_path)
    assert (row["responses"], row["mean_ranks"]) == (["b", "a", "c"], [1.0, 2.0, 2.5])
    assert row["models"] == ["model b", "model a", "model c"]
    assert [said["ranks"] for said in row["judgements"]] == [[1, 2, 3], [1, 2, 2]]


def test_ratings(store: Store, person: Person, tmp_path: Path) -> None:
    store.add([NewItem("rating", "prompt", (NewResponse("a", "m"),), criteria=("kind", "true"), wanted=2)])
    judged_by(store, person, [{"scores": [{"kind": 7, "true": 4}]}], [{"scores": [{"kind": 6, "true": 5}]}])
    (row,) = read_back(RatingData, export(store, "ratings"), tmp_path)
    assert row["rated"] == [("a", 5.5)]
    assert row["ratings"] == {"kind": 6.5, "true": 4.5}
    (row,) = export(store, "ratings", criterion="true").rows
    assert row["rating"] == 4.5
    with pytest.raises(UserError, match=r"no rating has the criterion 'fun'; set --criterion to one of: kind, true"):
        export(store, "ratings", criterion="fun")


def test_images_alone_give_no_text_to_train_on(store: Store, person: Person) -> None:
    responses = (NewResponse(None, media=Media("image/gif", b"a")), NewResponse(None, media=Media("image/gif", b"b")))
    store.add([NewItem("pair", "which?", responses)])
    judged_by(store, person, [{"choice": 0}])
    found = export(store, "pairs")
    assert (found.rows, found.skipped) == ([], {"a response without text": 1})


def test_an_export_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"
    write_text(path, "old\n")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match=r"rows\.jsonl cannot be written: No space left on device"):
        write_text(path, "new\n")
    assert path.read_text() == "old\n"
    assert list(tmp_path.iterdir()) == [path]


def test_the_command_says_what_it_left_out(
    store: Store, person: Person, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store.add([pair(i) for i in range(2)])
    target = tmp_path / "pairs.jsonl"
    words = ["feedback", "export", str(target), "--store", str(store.database.path)]
    assert main(words) == 2
    assert "has no pairs to export; judge some items first" in capsys.readouterr().err
    assert not target.exists()
    judged_by(store, person, [{"choice": 0}, {"choice": "tie"}])
    assert main(words) == 0
    assert capsys.readouterr().out == f"{target}: 1 pair; 1 skipped: a tie\n"
    assert [json.loads(line)["prompt"] for line in target.read_text().splitlines()] == ["prompt 0"]
    assert main([*words, "--ties"]) == 0
    assert len(target.read_text().splitlines()) == 2
