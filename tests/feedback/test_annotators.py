"""Several annotators of a store are reconciled in its export, and their reliability is shown."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from feedback_items import pair

from rlhf_lightning.__main__ import main
from rlhf_lightning.errors import UserError
from rlhf_lightning.feedback.annotators import METHODS, reconcile
from rlhf_lightning.feedback.command import RECONCILE
from rlhf_lightning.feedback.export import export
from rlhf_lightning.feedback.records import read_records
from rlhf_lightning.feedback.store import Store

Person = Callable[..., int]


@pytest.fixture
def crowded(store: Store, person: Person) -> Store:
    """Forty pairs whose first response is better: three people know it, one guesses and one always says the opposite."""
    store.add([pair(i, wanted=5) for i in range(40)])
    guesses = random.Random(1)
    for name in ("knows 0", "knows 1", "knows 2", "guesses", "opposes"):
        annotator = person(name)
        for _ in range(40):
            lease = store.next(annotator)
            assert lease is not None
            choice = {"guesses": guesses.randrange(2), "opposes": 1}.get(name, 0)
            assert store.save(annotator, lease.id, {"choice": choice}, seconds=2.0).status == "saved"
    return store


@pytest.mark.parametrize("method", ["dawid-skene", "bradley-terry"])
def test_reliable_annotators_count_more(crowded: Store, method: str) -> None:
    rows = export(crowded, "pairs", reconcile=method).rows
    assert [row["chosen_model"] for row in rows] == ["model a"] * 40
    assert (
        min(row["probability"] for row in rows)
        > 0.75
        > 0.6
        == min(r["probability"] for r in export(crowded, "pairs").rows)
    )
    assert all(0 <= row["deviation"] < 0.3 for row in rows)
    assert "deviation" not in export(crowded, "pairs").rows[0]


def test_methods_have_the_names_of_the_command_line() -> None:
    assert tuple(METHODS) == RECONCILE
    with pytest.raises(UserError, match="choose majority, dawid-skene, bradley-terry"):
        reconcile([], "mean")


def test_an_adjudicator_decides_alone(store: Store, person: Person) -> None:
    store.add([pair(0, wanted=2), pair(1, wanted=2)])
    for choices in ((0, 0), (1, 0)):
        annotator = person(f"person {choices}")
        for choice in choices:
            lease = store.next(annotator)
            assert lease is not None
            store.save(annotator, lease.id, {"choice": choice}, seconds=2.0)
    with store.database.snapshot() as connection:
        (disputed,) = [record.id for record in read_records(connection) if record.state == "disputed"]
    adjudicator = person("Eve", "adjudicator")
    store.save(adjudicator, store.adjudicate(adjudicator, disputed).id, {"choice": 1})
    with store.database.snapshot() as connection:
        records = read_records(connection)
    found = reconcile(records, "dawid-skene").pairs
    assert found[disputed] == (0.0, 0.0)
    row = next(row for row in export(store, "pairs", reconcile="dawid-skene").rows if row["item"] == disputed)
    assert (row["chosen_model"], row["probability"]) == ("model b", 1.0)


def test_gold_items_tell_who_errs(store: Store, person: Person) -> None:
    """Two people of two opinions: only the known answers tell whom to believe."""
    store.update_settings(gold_share=0.5)
    store.add([pair(i, wanted=2) for i in range(10)])
    store.add([pair(100 + i, wanted=2, purpose="gold", answer={"choice": 0}) for i in range(10)])
    people = {person("right"): 0, person("wrong"): 1}
    for annotator, choice in people.items():
        while (lease := store.next(annotator)) is not None:
            assert store.save(annotator, lease.id, {"choice": choice}, seconds=2.0).status == "saved"
    rows = export(store, "pairs", ties=True, reconcile="dawid-skene").rows
    assert len(rows) == 10
    assert {row["chosen_model"] for row in rows} == {"model a"}
    assert min(row["probability"] for row in rows) > 0.8
    assert {row["probability"] for row in export(store, "pairs", ties=True).rows} == {0.5}


def test_the_commands_say_how_reliable_labels_and_annotators_are(
    crowded: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, target = str(tmp_path / "feedback.db"), tmp_path / "pairs.jsonl"
    crowded.close()
    assert main(["feedback", "status", "--store", path, "--reconcile", "dawid-skene"]) == 0
    said = capsys.readouterr().out.splitlines()
    heading = next(line for line in said if line.startswith("annotator"))
    found = {line.split()[1]: float(line.split()[-1]) for line in said[said.index(heading) + 1 :][:5]}
    assert heading.endswith("reliability")
    assert found["knows"] > 0.9 > 0.7 > found["guesses"] > 0.3 > found["opposes"]
    assert main(["feedback", "status", "--store", path]) == 0
    assert "reliability" not in capsys.readouterr().out
    words = ["feedback", "export", str(target), "--store", path, "--reconcile", "bradley-terry"]
    assert main(words) == 0
    said = capsys.readouterr().out.splitlines()
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    wrong = sum(1 - row["probability"] for row in rows) / len(rows)
    assert said[1].endswith(f"--model.algorithm.robust true --model.algorithm.label_smoothing {wrong:.2f}")
    assert main([*words, "--kind", "ratings"]) == 2
    assert "--reconcile is of pairs" in capsys.readouterr().err
