"""Every format gives the rows that stages read; every fault says where it is."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_lightning.data import (
    FileData,
    InstructionData,
    LabelledData,
    PreferenceData,
    PromptData,
    RankingData,
    RatingData,
)
from rlhf_lightning.errors import UserError

REAL = Path(__file__).parents[2].parent / "shared" / "data"


def lines(path: Path, rows: list[dict[str, Any]]) -> str:
    opened = gzip.open(path, "wt") if path.suffix == ".gz" else open(path, "w")  # noqa: SIM115
    with opened as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return str(path)


def rows_of(data: FileData, split: str = "train") -> list[dict[str, Any]]:
    data.setup("fit")
    return getattr(data, f"{split}_rows")


KINDS = ("jsonl", "json", "csv")
ROWS = [{"question": f"what is {i}?", "answer": str(i)} for i in range(6)]


@pytest.mark.parametrize("name", ["rows.parquet", *(f"rows.{kind}{gz}" for kind in KINDS for gz in ("", ".gz"))])
def test_every_file_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    path = tmp_path / name.removesuffix(".gz")
    if ".jsonl" in name:
        lines(path, ROWS)
    elif ".json" in name:
        path.write_text(json.dumps(ROWS))
    elif ".csv" in name:
        with open(path, "w", newline="") as file:
            response_generator = csv.DictWriter(file, ["question", "answer"])
            response_generator.writeheader()
            response_generator.writerows(ROWS)
    else:
        import datasets

        datasets.Dataset.from_list(ROWS).to_parquet(str(path))
    if name.endswith(".gz"):
        (tmp_path / name).write_bytes(gzip.compress(path.read_bytes()))
    data = PromptData(train=str(tmp_path / name), columns={"prompt": "question"}, validation_fraction=0)
    found = sorted((row["prompt"], str(row["answer"])) for row in rows_of(data))
    assert found == [(row["question"], row["answer"]) for row in ROWS]


def test_globs_and_lists_join_their_files(tmp_path: Path) -> None:
    one, two = (lines(tmp_path / f"{i}.jsonl", [{"prompt": f"prompt {i}"}]) for i in range(2))
    for given in (str(tmp_path / "*.jsonl"), [one, two]):
        found = sorted(row["prompt"] for row in rows_of(PromptData(train=given, validation_fraction=0)))
        assert found == ["prompt 0", "prompt 1"]


def test_the_split_is_disjoint_repeatable_and_follows_the_seed(tmp_path: Path) -> None:
    path = lines(tmp_path / "rows.jsonl", [{"prompt": str(i)} for i in range(40)])
    first, again, other = (PromptData(train=path, validation_fraction=0.25, seed=seed) for seed in (0, 0, 1))
    train, held = rows_of(first), rows_of(first, "validation")
    assert len(train) == 30
    assert len(held) == 10
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in held}
    assert rows_of(again) == train
    assert rows_of(other) != train


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_limit_reads_no_further(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"rows.{kind}"
    if kind == "jsonl":
        lines(path, [{"prompt": str(i)} for i in range(3)])
        path.write_text(path.read_text() + "no JSON at all\n")
    else:
        import datasets

        datasets.Dataset.from_list([{"prompt": str(i)} for i in range(9)]).to_parquet(str(path))
    read: list[Any] = []
    monkeypatch.setattr(PromptData, "row", lambda self, row: read.append(row) or row)
    data = PromptData(train=[str(path), str(path)], validation_fraction=0, limit=3)
    assert sorted(row["prompt"] for row in rows_of(data)) == ["0", "1", "2"]
    assert len(read) == 3
    with pytest.raises(UserError, match=r"data.limit is 0; it must be at least 1, or null"):
        PromptData(train=str(path), limit=0)


def test_a_path_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    lines(tmp_path / "rows.jsonl", [{"prompt": "a"}])
    for given in ("~/rows.jsonl", "~/*.jsonl"):
        assert rows_of(PromptData(train=given, validation_fraction=0)) == [{"prompt": "a"}]


def test_a_validation_file_is_taken_and_limit_counts(tmp_path: Path) -> None:
    path, held = (lines(tmp_path / n, [{"prompt": f"{n}{i}"} for i in range(9)]) for n in ("a.jsonl", "b.jsonl"))
    data = PromptData(train=path, validation=held, limit=4)
    assert len(rows_of(data)) == 4
    assert [row["prompt"] for row in rows_of(data, "validation")] == [f"b.jsonl{i}" for i in range(4)]


def test_loaders_give_lists_of_rows_in_an_order_that_the_global_seed_decides(tmp_path: Path) -> None:
    path = lines(tmp_path / "rows.jsonl", [{"prompt": str(i)} for i in range(20)])
    data = PromptData(train=path, validation_fraction=0, batch_size=8)
    data.setup("fit")
    torch.manual_seed(5)
    first = list(data.train_dataloader())
    torch.manual_seed(5)
    assert list(data.train_dataloader()) == first
    assert [len(batch) for batch in first] == [8, 8]
    assert all(isinstance(row, dict) for row in first[0])


DIALOGUE = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: and?\n\nAssistant: "


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"chosen": DIALOGUE + "good", "rejected": DIALOGUE + "bad"},
            (["hi", "hello", "and?"], ["good"], ["bad"]),
        ),
        ({"prompt": "say it", "chosen": "yes", "rejected": "no"}, ("say it", "yes", "no")),
        ({"chosen": "say it: yes please", "rejected": "say it: yes thanks"}, ("say it: yes", " please", " thanks")),
        (
            {
                "chosen": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
                "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "b"}],
            },
            (["q"], ["a"], ["b"]),
        ),
    ],
)
def test_pairs_find_their_prompt(tmp_path: Path, row: dict[str, Any], expected: Any) -> None:
    found = rows_of(PreferenceData(train=lines(tmp_path / "p.jsonl", [row]), validation_fraction=0))[0]

    def plain(value: Any) -> Any:
        return value if isinstance(value, str) else [turn["content"] for turn in value]

    assert tuple(plain(found[name]) for name in ("prompt", "chosen", "rejected")) == expected


def test_a_pair_of_probability_below_one_half_is_swapped_with_all_columns_of_its_two_responses(tmp_path: Path) -> None:
    row = {"chosen": "a", "rejected": "b", "margin": 2.0, "source": "here"}
    scored = {
        **row,
        "probability": "0.25",
        "score_chosen": 1,
        "score_rejected": 3,
        "chosen_model": "m",
        "rejected_model": "n",
    }
    given = [scored, {**row, "probability": 0.5}, {**row, "probability": None}, {**row, "probability": 0}]
    given = [{"prompt": str(i), **each} for i, each in enumerate(given)]
    found = rows_of(PreferenceData(train=lines(tmp_path / "p.jsonl", given), validation_fraction=0))
    first, tied, unknown, certain = sorted(found, key=lambda each: str(each["prompt"]))
    assert first == {
        **row, "prompt": "0", "chosen": "b", "rejected": "a", "probability": 0.75,
        "score_chosen": 3, "score_rejected": 1, "chosen_model": "n", "rejected_model": "m",
    }  # fmt: skip
    assert (tied["chosen"], tied["probability"]) == ("a", 0.5)
    assert (unknown["chosen"], unknown.get("probability")) == ("a", None)
    assert (certain["chosen"], certain["rejected"], certain["probability"]) == ("b", "a", 1.0)


def test_labels_from_thresholds_on_ratings(tmp_path: Path) -> None:
    given = [{"prompt": "q", "response": str(rating), "rating": rating} for rating in (1, 2, 2.5, 3.9, 4, 5)]
    path = lines(tmp_path / "r.jsonl", given)
    data = LabelledData(train=path, validation_fraction=0, good_from=4, bad_to=2)
    found = {row["response"]: row["label"] for row in rows_of(data)}
    assert found == {"1": False, "2": False, "4": True, "5": True}
    assert data.report == {"rating between data.bad_to and data.good_from": 2}
    steer = [
        {"prompt": "q", "response": "good", "helpfulness": 4},
        {"prompt": "q", "response": "bad", "helpfulness": 0},
    ]
    data = LabelledData(train=lines(tmp_path / "h.jsonl", steer), validation_fraction=0, good_from=3, bad_to=1)
    assert {row["response"]: row["label"] for row in rows_of(data)} == {"good": True, "bad": False}
    with pytest.raises(UserError, match=r"data.good_from is 4 and data.bad_to is None; set both"):
        LabelledData(train=path, good_from=4)
    with pytest.raises(UserError, match=r"data.bad_to is 2; set it below data.good_from, which is 2"):
        LabelledData(train=path, good_from=2, bad_to=2)


def test_labels_of_a_pair_follow_its_probability(tmp_path: Path) -> None:
    row = {"prompt": "q", "chosen": "a", "rejected": "b"}
    given = [{**row, "probability": p} for p in (0.9, 0.1, 0.5)]
    data = LabelledData(train=lines(tmp_path / "p.jsonl", given), validation_fraction=0)
    assert sorted(row["response"] for row in rows_of(data) if row["label"]) == ["a", "b"]
    assert data.report == {"tie: no answer is better": 1}


def test_ratings_of_a_prompt_stand_together_wherever_they_are_in_the_file(tmp_path: Path) -> None:
    many = [{"prompt": "q", "response": str(i), "rating": i, "source": "here"} for i in range(18)]
    one = {"prompt": [{"role": "user", "content": "p"}], "response": "a", "rating": 2}
    path = lines(tmp_path / "r.jsonl", [*many[:9], one, *many[9:]])
    data = RatingData(train=path, validation_fraction=0)
    found = sorted(rows_of(data), key=lambda row: -len(row["rated"]))
    assert [len(row["rated"]) for row in found] == [16, 2, 1]  # a bound on what one row holds
    assert [response for row in found[:2] for response, _ in row["rated"]] == [str(i) for i in range(18)]
    assert found[0].keys() == {"prompt", "rated", "source"}
    assert found[2] == {"prompt": one["prompt"], "rated": [("a", 2.0)]}
    assert found[2].place.endswith("r.jsonl:10")


def test_a_prompt_that_is_a_dialogue_ends_before_the_answer(tmp_path: Path) -> None:
    path = lines(tmp_path / "p.jsonl", [{"chosen": DIALOGUE + "good"}])
    prompt = rows_of(PromptData(train=path, columns={"prompt": "chosen"}, validation_fraction=0))[0]["prompt"]
    assert [turn["role"] for turn in prompt] == ["user", "assistant", "user"]


def test_instructions_as_columns_or_conversation(tmp_path: Path) -> None:
    path = lines(tmp_path / "i.jsonl", [{"prompt": "q", "completion": "a"}])
    assert rows_of(InstructionData(train=path, validation_fraction=0))[0]["completion"] == "a"
    path = lines(tmp_path / "c.jsonl", [{"text": DIALOGUE + "good"}])
    found = rows_of(InstructionData(train=path, columns={"messages": "text"}, validation_fraction=0))[0]
    assert [turn["content"] for turn in found["messages"]] == ["hi", "hello", "and?", "good"]


@pytest.mark.parametrize(
    ("kind", "row", "expected"),
    [
        (PromptData, {"prompt": ""}, "column 'prompt' is empty"),
        (PromptData, {"prompt": 3}, "must be text or a list of messages, found int"),
        (PromptData, {"prompt": [{"text": "x"}]}, "a message without role and content"),
        (PreferenceData, {"prompt": "p", "chosen": "a", "rejected": "a"}, "the same"),
        (PreferenceData, {"chosen": "abc", "rejected": "xyz"}, "no beginning in common"),
        (
            PreferenceData,
            {"prompt": "p", "chosen": "a", "rejected": "b", "margin": "much"},
            "'margin' must be a number",
        ),
        (InstructionData, {"prompt": "p"}, "no column 'completion'"),
        (RankingData, {"prompt": "p", "responses": ["a"]}, "at least 2 responses"),
        (RatingData, {"prompt": "p", "response": "a", "rating": "good"}, "'rating' must be a number, found 'good'"),
        (RatingData, {"prompt": "p", "response": "a", "rating": float("nan")}, "'rating' must be a number, found nan"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, kind: Any, row: dict[str, Any], expected: str) -> None:
    path = lines(tmp_path / "rows.jsonl", [row])
    with pytest.raises(UserError, match=r"rows\.jsonl:1: ") as caught:
        rows_of(kind(train=path, validation_fraction=0))
    assert expected in str(caught.value)


def test_bad_rows_can_be_left_out_and_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = lines(tmp_path / "rows.jsonl", [{"prompt": "a"}, {"prompt": ""}, {"prompt": "b"}])
    data = PromptData(train=path, on_bad_row="skip", validation_fraction=0)
    assert len(rows_of(data)) == 2
    assert data.report == {"bad_rows": 1}
    said = capsys.readouterr().out
    assert "skipped 1 bad rows and kept 2" in said
    assert "rows.jsonl:2" in said


def test_a_line_that_is_no_utf8_is_a_bad_row_and_a_byte_order_mark_is_not(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "first"}\r\n{"prompt": "na\xefve"}\r\n')
    with pytest.raises(UserError, match=r"rows\.jsonl:2: not UTF-8 text \(byte 15 of the line\)"):
        rows_of(PromptData(train=str(path), validation_fraction=0))
    data = PromptData(train=str(path), on_bad_row="skip", validation_fraction=0)
    assert [row["prompt"] for row in rows_of(data)] == ["first"]


def test_rows_of_csv_are_counted_as_a_cell_may_have_several_lines(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('prompt,answer\n"a\nb\nc",x\n\n,y\n')
    with pytest.raises(UserError, match=r"rows\.csv, row 2: column 'prompt' is empty"):
        rows_of(PromptData(train=str(tmp_path / "rows.csv"), validation_fraction=0))


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.jsonl", "\n"), ("a.json", ""), ("b.json", "[]"), ("a.csv", ""), ("b.csv", "prompt\n"), ("a.parquet", "")],
)
def test_a_file_without_rows_is_called_empty(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=f"{name} is empty: no row to use"):
        rows_of(PromptData(train=str(tmp_path / name)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("prompt\na\nb,c\n", r"row 2 \(line 3\): expected 1 cells, found 2"),
        ('prompt\n"a\nb', "no good CSV: line 3: unexpected end of data"),
        ("prompt,prompt\na,b\n", "the column 'prompt' is there twice"),
    ],
)
def test_a_broken_csv_is_one_line(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "rows.csv").write_text(text)
    with pytest.raises(UserError, match=expected):
        rows_of(PromptData(train=str(tmp_path / "rows.csv")))


def test_what_is_no_data_at_all(tmp_path: Path) -> None:
    (tmp_path / "broken.parquet").write_text("nothing")
    (tmp_path / "rows.xml").write_text("<a/>")
    (tmp_path / "rows.parquet.gz").write_text("packed twice")
    for name, expected in {
        "broken.parquet": "no good PARQUET",
        "rows.xml": "unknown kind '.xml'",
        "rows.parquet.gz": "unknown kind '.parquet.gz'; expected one of: .jsonl, .json, .csv, .jsonl.gz,",
        "brocken.parquet": "did you mean 'broken.parquet'",
        "*.nothing": "no file matches",
    }.items():
        with pytest.raises(UserError, match=expected.replace("*", r"\*").replace("?", r"\?")):
            rows_of(PromptData(train=str(tmp_path / name)))
    with pytest.raises(UserError, match=r"data\.train is not set"):
        rows_of(PromptData())


@pytest.mark.skipif(not (REAL / "hh-rlhf").is_dir(), reason="the real data sets are not there")
def test_real_pairs_become_conversations() -> None:
    path = str(REAL / "hh-rlhf" / "harmless-pairs.jsonl.gz")
    data = PreferenceData(train=path, on_bad_row="skip", validation_fraction=0.25)
    rows = rows_of(data)
    assert len(rows) + len(rows_of(data, "validation")) + data.report["bad_rows"] == 2000
    assert all(row["prompt"][-1]["role"] == "user" for row in rows)
    assert all(row[side][0]["role"] == "assistant" for row in rows for side in ("chosen", "rejected"))


def test_a_row_knows_its_file_and_line_wherever_it_ends_up(tmp_path: Path) -> None:
    from lightning_utilities.core.apply_func import apply_to_collection

    one, two = (lines(tmp_path / f"{name}.jsonl", [{"prompt": f"{name} {i}"} for i in range(1, 9)]) for name in "ab")
    data = PromptData(train=[one, two], validation_fraction=0.25, batch_size=4, num_workers=1)
    held_out = rows_of(data, "validation")
    loaded = [row for batch in data.train_dataloader() for row in batch]  # from another process
    assert len(loaded) + len(held_out) == 16
    for row in [*loaded, *held_out]:
        name, number = row["prompt"].split()
        assert row.place == f"{tmp_path / name}.jsonl:{number}"
    assert [row["prompt"] for row in loaded] != sorted(row["prompt"] for row in loaded)
    assert apply_to_collection(held_out[:1], torch.Tensor, lambda x: x) == held_out[:1]  # as Lightning moves a batch
