"""No file, however broken, ends in a traceback or in silence."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from fuzzing import JSON, TEXT, budget, damaged, outcome
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lightning import data as modules
from rlhf_lightning.data.splits import prompt_key

KINDS = ("InstructionData", "LabelledData", "PreferenceData", "PromptData", "RankingData", "RatingData")
ROLES = st.sampled_from(["user", "assistant", "system", "tool", "human", "GPT", "function_call", "narrator", 3])
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "role": ROLES,
            "from": ROLES,
            "content": JSON,
            "value": TEXT,
            "weight": JSON,
            "train": JSON,
            "tool_calls": JSON,
        },
    ),
    max_size=4,
)
COLUMNS = (
    "prompt messages conversations completion chosen rejected response responses rating label margin instruction input output "
    "question answers completions system tools history chat_template_kwargs response_j response_k response_1 response_2 "
    "preference_strength preferred_output non_preferred_output helpfulness message_id parent_id text role replies score_chosen"
).split()
ROWS = st.lists(st.dictionaries(st.sampled_from(COLUMNS), JSON | MESSAGES | TEXT, max_size=6), max_size=5)


def read(kind: str, path: Path, said: pytest.CaptureFixture[str], skip: bool) -> Any:
    given = {"on_bad_row": "skip"} if skip else {}
    data = getattr(modules, kind)(train=str(path), validation_fraction=0, **given)
    found = outcome(lambda: (data.setup("fit"), data.train_rows)[1], (path.name,))
    if found.refusal is None:
        assert found.value
        for row in found.value:
            assert prompt_key(row)
            assert row.place.startswith(str(path))
        if data.report.get("bad_rows"):
            assert "skipped" in said.readouterr().out
    return data, found


@budget(300)
@given(rows=ROWS, kind=st.sampled_from(KINDS), skip=st.booleans())
def test_any_rows_are_read_refused_or_counted(
    rows: list[dict[str, Any]], kind: str, skip: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data, found = read(kind, path, capsys, skip)
    flat = any({"message_id", "text", "role"} <= row.keys() for row in rows)
    one_to_one = kind in ("InstructionData", "PromptData", "RankingData")
    if skip and found.refusal is None and one_to_one and not flat:
        assert len(found.value) + sum(
            data.report.get(x, 0) for x in data.report if x not in ("duplicates", "overlap")
        ) == len(rows)


CELLS = st.lists(st.lists(TEXT, max_size=4), max_size=4)


@budget(200)
@given(data=st.data(), cells=CELLS, kind=st.sampled_from(KINDS), skip=st.booleans(), packed=st.booleans())
def test_any_csv(
    data: st.DataObject,
    cells: list[list[str]],
    kind: str,
    skip: bool,
    packed: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = data.draw(st.lists(st.sampled_from(COLUMNS[:8]), min_size=1, max_size=4))
    text = "\n".join(",".join(row) for row in [names, *cells]).encode("utf-8", "replace")
    content = data.draw(damaged(text))
    path = tmp_path / ("rows.csv.gz" if packed else "rows.csv")
    path.write_bytes(data.draw(damaged(gzip.compress(content, mtime=0))) if packed else content)
    read(kind, path, capsys, skip)


@budget(300)
@given(
    data=st.data(),
    rows=ROWS,
    kind=st.sampled_from(KINDS),
    name=st.sampled_from(["rows.json", "rows.jsonl", "r.jsonl.gz"]),
)
def test_any_damaged_json(
    data: st.DataObject,
    rows: list[dict[str, Any]],
    kind: str,
    name: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    content = data.draw(damaged((json.dumps(rows) if name == "rows.json" else lines).encode()))
    (tmp_path / name).write_bytes(gzip.compress(content, mtime=0) if name.endswith("gz") else content)
    read(kind, tmp_path / name, capsys, skip=True)


@budget(200)
@given(data=st.data(), kind=st.sampled_from(KINDS), skip=st.booleans())
def test_any_damaged_parquet(
    data: st.DataObject, kind: str, skip: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = st.none() | st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
    rows = data.draw(st.lists(st.fixed_dictionaries({name: values for name in COLUMNS[:6]}), min_size=1, max_size=4))
    held = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), held)
    path = tmp_path / "rows.parquet"
    path.write_bytes(data.draw(damaged(held.getvalue())) if data.draw(st.booleans()) else held.getvalue())
    read(kind, path, capsys, skip)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"prompt": ' + "9" * 5000 + "}", "rows.jsonl:1: not JSON"),
        ('{"prompt": "a\\ud800"}', "half of a surrogate pair"),
        ('{"prompt": NaN}', "must be text or a list of messages, found float"),
    ],
)
def test_rows_that_json_gives_and_no_tokenizer_reads(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "rows.jsonl").write_text(text)
    data = modules.PromptData(train=str(tmp_path / "rows.jsonl"))
    assert expected in str(outcome(lambda: data.setup("fit"), ("rows.jsonl",)).refusal)


@pytest.mark.parametrize("messages", [False, 3, "text", [None, None], [{"role": "assistant", "content": "other"}]])
def test_messages_beside_a_prompt_are_a_column_like_any_other(tmp_path: Path, messages: Any) -> None:
    rows = [{"prompt": "a", "messages": messages}, {"prompt": "a"}, {"prompt": "b"}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    data = modules.PromptData(train=str(tmp_path / "rows.json"), validation_fraction=0.3)
    data.setup("fit")
    assert len(data.train_rows) + len(data.validation_rows) == 3
    assert prompt_key(rows[0]) == prompt_key(rows[1])
