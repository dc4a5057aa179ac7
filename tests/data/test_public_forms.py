"""Twelve public data forms × SFT, reward model, DPO and KTO: read as is, with an option, or refused with a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from public_forms import BEGIN, END, FORMS, PAGE, TASKS, Cell, Form, table, tree

from rlhf_lightning import data as modules
from rlhf_lightning.errors import UserError
from rlhf_lightning.stages.reward import responses_of
from rlhf_lightning.stages.supervised import turns


def text_of(answer: Any) -> str:
    return answer if isinstance(answer, str) else answer[-1]["content"]


def learned(task: str, row: dict[str, Any]) -> list[str]:
    if task == "SFT":
        return [text_of(answer) for _, answer in turns(row)]
    if "rated" in row or "label" in row:
        return [text_of(answer) for answer, _ in responses_of(row)]
    return [text_of(row["chosen"])]


def rows_of(tmp_path: Path, module: str, rows: list[dict[str, Any]], **options: Any) -> list[dict[str, Any]]:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = getattr(modules, module)(train=str(path), validation_fraction=0, **options)
    data.setup("fit")
    assert data.train_rows is not None
    return data.train_rows


CELLS = [pytest.param(form, task, form.cells[task], id=f"{task}-{form.name[:12]}") for form in FORMS for task in TASKS]


@pytest.mark.parametrize(("form", "task", "cell"), CELLS)
def test_each_cell_of_the_table(form: Form, task: str, cell: Cell, tmp_path: Path) -> None:
    module = cell.module or TASKS[task]
    if cell.refused:
        with pytest.raises(UserError) as caught:
            rows_of(tmp_path, module, form.rows, **cell.options)
        assert cell.refused in str(caught.value)
        assert "rows.jsonl" in str(caught.value)
        return
    rows = rows_of(tmp_path, module, form.rows, **cell.options)
    assert sorted(text for row in rows for text in learned(task, row)) == sorted(cell.learned)
    for row in rows:
        number = learned(task, row)[0].split()[-1]
        prompt = turns(row)[0][0] if task == "SFT" else row["prompt"]
        asked = prompt if isinstance(prompt, str) else "\n".join(turn["content"] for turn in prompt)
        assert f"Q{number}" in asked
        assert "good" not in asked
        assert isinstance(prompt, str) or prompt[-1]["role"] == "user"


@pytest.mark.skipif(not PAGE.is_file(), reason="the docs are not there")
def test_the_table_in_the_docs_is_this_one() -> None:
    assert PAGE.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0].strip() == table()


def test_the_system_prompt_and_tools_of_columns_belong_to_the_conversation(tmp_path: Path) -> None:
    form = next(form for form in FORMS if "ShareGPT" in form.name)
    prompt = turns(rows_of(tmp_path, "InstructionData", form.rows)[0])[0][0]
    assert prompt[0] == {"role": "system", "content": "Be kind."}
    assert prompt.tools == [{"name": "f"}]


def test_alpacas_input_belongs_to_the_instruction_also_where_columns_are_mapped(tmp_path: Path) -> None:
    form = next(form for form in FORMS if "Alpaca" in form.name)
    expected = {"Say it.\nQ0", "Say it.\nQ1", "Say it.\nQ2"}
    for options in ({}, {"columns": {"prompt": "instruction", "completion": "output"}}):
        assert {row["prompt"] for row in rows_of(tmp_path, "InstructionData", form.rows, **options)} == expected
    empty = [{**row, "input": ""} for row in form.rows]
    assert {row["prompt"] for row in rows_of(tmp_path, "InstructionData", empty)} == {"Say it."}


def test_rows_of_one_message_each_are_the_tree_that_they_make(tmp_path: Path) -> None:
    rows = []
    for i in range(3):
        root = tree(i)["prompt"]
        rows.append({"message_id": f"m{i}", "parent_id": None, "text": root["text"], "role": "prompter"})
        for k, reply in enumerate(root["replies"]):
            rows.append(
                {"message_id": f"m{i}.{k}", "parent_id": f"m{i}", **{x: reply[x] for x in ("text", "role", "rank")}}
            )
    found = rows_of(tmp_path, "PreferenceData", rows[::-1])
    assert {text_of(row["chosen"]) for row in found} == {"good 0", "good 1", "good 2"}
    orphan = {"message_id": "x", "parent_id": "nobody", "text": "t", "role": "assistant"}
    with pytest.raises(UserError, match=r"rows\.jsonl:10: the message's parent 'nobody' is not in the file"):
        rows_of(tmp_path, "PreferenceData", [*rows, orphan])


def test_ties_and_rows_marked_as_bad_are_counted_and_not_learned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stack = next(form for form in FORMS if "Stack" in form.name)
    rows_of(tmp_path, "PreferenceData", stack.rows)
    assert "1 rows are not used and 2 are: tie" in capsys.readouterr().out
    kto = next(form for form in FORMS if "KTO" in form.name)
    rows_of(tmp_path, "InstructionData", kto.rows)
    assert "1 rows are not used and 2 are: marked as bad by column 'label'" in capsys.readouterr().out
    swapped = {"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 1, "score_rejected": 2}
    with pytest.raises(UserError, match="marked as the better one"):
        rows_of(tmp_path, "PreferenceData", [swapped])


@pytest.mark.parametrize(
    ("row", "chosen"),
    [
        ({"question": "q", "response_j": "a", "response_k": "b"}, "a"),
        ({"prompt": "q", "response_1": "a", "response_2": "b", "preference_strength": 2}, "b"),
        ({"prompt": "q", "response_1": "a", "response_2": "b", "preference_strength": -1}, "a"),
        ({"prompt": "q", "response_0": "a", "response_1": "b", "better_response_id": 1}, "b"),
        (
            {
                "instruction": "q",
                "completions": [{"response": "a", "overall_score": 2}, {"response": "b", "overall_score": 9}],
            },
            "b",
        ),
        ({"instruction": "q", "input": "", "chosen": "a", "rejected": "b"}, "a"),
    ],
)
def test_other_forms_of_pairs(row: dict[str, Any], chosen: str, tmp_path: Path) -> None:
    found = rows_of(tmp_path, "PreferenceData", [row])[0]
    assert (found["prompt"], found["chosen"]) == ("q", chosen)


def test_a_column_of_nulls_is_no_column(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "completion": "a", "messages": None, "label": None, "system": None}] * 2
    found = rows_of(tmp_path, "InstructionData", rows)[0]
    assert found == {"prompt": "q", "completion": "a"}
