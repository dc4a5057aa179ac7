"""Rows that are objects of Python come through as files do, with the types that they have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import datasets
import pandas
import pyarrow.parquet
import pytest
from datasets.table import InMemoryTable
from torch.utils.data import DataLoader, Dataset, IterableDataset

from rlhf_lightning.data import InstructionData, PromptData
from rlhf_lightning.errors import UserError

ROWS: list[dict[str, Any]] = [
    {"prompt": "a", "code": "00501", "count": 1, "share": 0.5, "yes": True, "answer": "NA", "tags": ["x", "y"]},
    {"prompt": "b", "code": "1e5", "count": 2, "share": None, "yes": False, "answer": None, "tags": []},
    {"prompt": "c", "code": "", "count": 3, "share": 2.0, "yes": True, "answer": "", "tags": ["z"]},
]


class MapStyle(Dataset[dict[str, Any]]):
    def __len__(self) -> int:
        return len(ROWS)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return ROWS[i]


class Streamed(IterableDataset[dict[str, Any]]):
    read = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for row in ROWS:
            self.read += 1
            yield row


def rows_of(train: Any, **options: Any) -> list[dict[str, Any]]:
    data = PromptData(train=train, validation_fraction=0, **options)
    data.setup("fit")
    assert data.train_rows is not None
    return sorted(data.train_rows, key=lambda row: row["prompt"])


OBJECTS = {
    "list": lambda: ROWS,
    "tuple": lambda: tuple(ROWS),
    "Dataset": lambda: datasets.Dataset.from_list(ROWS),
    "DataFrame": lambda: pandas.DataFrame(ROWS),
    "DataFrame with an index": lambda: pandas.DataFrame(ROWS, index=[7, 8, 9]),
    "DataFrame of Arrow types": lambda: pandas.DataFrame(ROWS).convert_dtypes(dtype_backend="pyarrow"),
    "torch Dataset": MapStyle,
    "in a list of sources": lambda: [datasets.Dataset.from_list(ROWS[:1]), pandas.DataFrame(ROWS[1:])],
}


@pytest.mark.parametrize("kind", OBJECTS)
def test_values_and_types_are_those_of_the_object(kind: str) -> None:
    found = rows_of(OBJECTS[kind]())
    assert found == ROWS
    types = [{name: type(value) for name, value in row.items()} for row in found]
    assert types == [{name: type(value) for name, value in row.items()} for row in ROWS]


@pytest.mark.parametrize("rows", [datasets.Dataset.from_list(ROWS).to_iterable_dataset(), Streamed()])
def test_a_limit_makes_an_end_of_what_has_none(rows: Any) -> None:
    assert [row["prompt"] for row in rows_of(rows, limit=2)] == ["a", "b"]
    assert getattr(rows, "read", 2) == 2  # and no further


def test_every_kind_of_missing_value_is_none() -> None:
    frame = pandas.DataFrame(
        {
            "prompt": ["a", "b"],
            "whole": pandas.array([1, None], dtype="Int64"),
            "number": [float("nan"), 1.5],
            "text": [None, "NA"],
            "time": [pandas.NaT, pandas.Timestamp("2020-01-01")],
            "messages": [[{"role": "user", "content": "hi"}], None],
        }
    )
    first, second = rows_of(frame)
    assert first == {
        "prompt": "a",
        "whole": 1,
        "number": None,
        "text": None,
        "time": None,
        "messages": frame.messages[0],
    }
    assert second["whole"] is None
    assert (second["number"], second["text"], second["messages"]) == (1.5, "NA", None)
    assert type(first["whole"]) is int


def test_messages_of_parquet_read_by_pandas_are_lists(tmp_path: Any) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    pandas.DataFrame({"messages": [messages]}).to_parquet(tmp_path / "rows.parquet")
    data = InstructionData(train=pandas.read_parquet(tmp_path / "rows.parquet"), validation_fraction=0)
    data.setup("fit")
    assert data.train_rows == [{"messages": messages}]


def test_columns_and_bad_rows_are_named() -> None:
    with pytest.raises(UserError, match=r"data set DataFrame has no column 'prompt'; it has: query"):
        rows_of(pandas.DataFrame({"query": ["a"]}))
    with pytest.raises(UserError, match=r"list, row 2: .*prompt"):
        rows_of([{"prompt": "a"}, {"prompt": 3}])
    with pytest.raises(UserError, match=r"data set .* is empty"):
        rows_of([])


@pytest.mark.parametrize(
    ("value", "line"),
    [
        (DataLoader(ROWS), "holds batches: pass data=rlhf_lightning.LoaderData"),  # type: ignore[arg-type]
        ({"prompt": ["a"]}, "data takes files, .* found dict"),
        (3, "data takes files, .* found int"),
        (
            datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS)),
            r"DatasetDict with the splits train; pass one of them, such as splits\['train'\]",
        ),
        (["a", "b", 3], "data takes files, .* found int"),
        ([[{"prompt": "a"}], 3], "data takes files, .* found int"),
    ],
)
def test_what_holds_no_rows_is_one_line(value: Any, line: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=line if value != ["a", "b", 3] else "a is a folder"):
        rows_of(value)


WEB = "http://192.0.2.1/picture.png"


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", ["Dataset", "IterableDataset", "parquet"])
def test_images_and_audio_are_not_decoded_which_would_fetch_them(kind: str, nested: bool, tmp_path: Any) -> None:
    image: Any = datasets.Image()
    features = datasets.Features(
        {"prompt": datasets.Value("string"), "seen": datasets.List({"picture": image}) if nested else image,
         "heard": datasets.Audio()}
    )  # fmt: skip
    picture = {"bytes": None, "path": WEB}
    row = {"prompt": "hi", "seen": [{"picture": picture}] if nested else picture, "heard": picture}
    table = pyarrow.Table.from_pylist([row] * 4, schema=features.arrow_schema)
    data = datasets.Dataset(InMemoryTable(table), info=datasets.DatasetInfo(features=features))
    given: Any = data
    if kind == "IterableDataset":
        given = data.to_iterable_dataset()
    if kind == "parquet":
        pyarrow.parquet.write_table(table, given := str(tmp_path / "rows.parquet"))
        assert datasets.Features.from_arrow_schema(pyarrow.parquet.read_schema(given)) == features
    for streaming in {False, kind != "Dataset"} - ({False} if kind == "IterableDataset" else set()):
        options = {"streaming": True, "steps_per_epoch": 1} if streaming else {}
        read = PromptData(train=given, validation_fraction=0, batch_size=4, **options)  # type: ignore[arg-type]
        read.setup("fit")
        rows = next(iter(read.train_dataloader()))
        assert [found["prompt"] for found in rows] == ["hi"] * 4
