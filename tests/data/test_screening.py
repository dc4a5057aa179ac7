"""What a run says and does about its rows before weights are loaded."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from tiny_tokenizers import KINDS

from rlhf_lightning.data import InstructionData, LabelledData, PreferenceData, PromptData
from rlhf_lightning.data.screening import screen
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.chat_templates import TEMPLATES
from rlhf_lightning.models.conversation import learned_turns
from rlhf_lightning.models.encoding import Encoder
from rlhf_lightning.rewards import FunctionReward, NumberReward
from rlhf_lightning.rollouts.preferences import encode_pairs, encoded_pair


def u(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def a(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def made(kind: Any, path: str, **options: Any) -> Any:
    data = kind(train=path, **{"validation_fraction": 0, **options})
    data.setup("fit")
    return data


def encoder_of(kind: str = "byte_level", template: str | None = None, context: int | None = None) -> Encoder:
    tokenizer = copy.deepcopy(KINDS[kind]())
    tokenizer.chat_template = template or tokenizer.chat_template
    return Encoder(tokenizer, [tokenizer.eos_token_id], context)


def pairs_screened(data: Any, encoder: Encoder, length: int | None = None, rewards: Any = ()) -> Any:
    used = ("prompt", "chosen", "rejected")
    return screen(data, encoder, lambda row: encoded_pair(encoder, row, length), used, rewards)["train"]


def test_a_row_that_the_template_refuses_is_named_and_can_be_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": [u("q")], "chosen": [a("a")], "rejected": [a("b")]} for _ in range(3)]
    rows[1]["prompt"] = [u("q"), a("x"), {"role": "tool", "content": "t"}]
    path, encoder = lines(tmp_path / "rows.jsonl", rows), encoder_of(template=TEMPLATES["dialogue"])
    with pytest.raises(UserError, match=r"rows\.jsonl:2: the chat template cannot render .* has no role tool"):
        pairs_screened(made(PreferenceData, path), encoder)
    data = made(PreferenceData, path, on_bad_row="skip")
    pairs_screened(data, encoder)
    assert len(data.train_rows) == 2
    assert data.report == {"bad_rows": 1, "duplicates": 1}
    assert "skipped 1 bad train rows" in capsys.readouterr().out


def test_long_pairs_are_truncated_or_dropped_and_equal_ones_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same = "the same beginning of both, "
    rows = [
        {"prompt": [u("q")], "chosen": [a("good")], "rejected": [a("bad")]},
        {"prompt": [u("q")], "chosen": [a(same * 3 + "good")], "rejected": [a(same * 3 + "bad")]},
    ]
    path, encoder = lines(tmp_path / "rows.jsonl", rows), encoder_of()
    found = pairs_screened(made(PreferenceData, path), encoder, length=30)
    assert (found.too_long, found.alike, len(found.kept)) == (1, 1, 2)
    said = capsys.readouterr().out
    assert "1 of 2 train rows are too long and are truncated" in said
    assert "1 of 2 train rows have equal responses" in said
    assert encoder.truncated_counts == {}  # what a run counts begins after this
    data = made(PreferenceData, path, on_too_long="drop")
    pairs_screened(data, encoder, length=30)
    assert [row["chosen"][0]["content"] for row in data.train_rows] == ["good"]
    assert "too long and are dropped" in capsys.readouterr().out
    with pytest.raises(UserError, match="no train row is left of 1"):
        pairs_screened(
            made(PreferenceData, lines(tmp_path / "l.jsonl", rows[1:]), on_too_long="drop"), encoder, length=30
        )


def test_columns_that_nothing_reads_are_named_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_reward.py").write_text("def score(responses, level):\n    return [0.0] * len(responses)\n")
    monkeypatch.chdir(tmp_path)
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "answer": "1", "level": 2, "source": "x", "system": ""}
    path, encoder = lines(tmp_path / "rows.jsonl", [row]), encoder_of()
    rewards = [FunctionReward("own_reward.py:score"), NumberReward(column="answer")]
    pairs_screened(made(PreferenceData, path), encoder, rewards=rewards)
    assert "data: not used: source; map them with data.columns or drop them with data.remove_columns: [source]" in (
        capsys.readouterr().out
    )
    pairs_screened(made(PreferenceData, path), encoder)
    assert "not used: answer, level, source;" in capsys.readouterr().out
    pairs_screened(made(PreferenceData, path, remove_columns=["answer", "level", "source"]), encoder)
    assert "not used" not in capsys.readouterr().out


def test_what_a_template_leaves_out_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    talk = [u("q"), {**a("51"), "reasoning_content": "17 * 3"}]
    data = made(InstructionData, lines(tmp_path / "r.jsonl", [{"messages": talk, "tools": [{"name": "f"}]}]))
    for template, said in ((None, "renders no reasoning_content, tools"), (TEMPLATES["chatml"], "")):
        encoder = encoder_of(template=template)
        screen(data, encoder, lambda row: [encoder.encode(*pair) for pair in learned_turns([], row["messages"])], ())  # noqa: B023
        assert (said in capsys.readouterr().out) or not said


def test_markers_without_a_token_are_said_with_what_adds_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = made(
        PreferenceData, lines(tmp_path / "r.jsonl", [{"prompt": [u("q")], "chosen": [a("a")], "rejected": [a("b")]}])
    )
    pairs_screened(data, encoder_of("sentencepiece_with_space", TEMPLATES["chatml"]))
    said = capsys.readouterr().out
    assert "set new_tokens: ['<|im_start|>', '<|im_end|>'] beside the model's name" in said
    assert "modules_to_save" in said
    pairs_screened(data, encoder_of())
    assert "new_tokens" not in capsys.readouterr().out


def test_rows_of_one_prompt_are_on_one_side_of_the_split(tmp_path: Path) -> None:
    rows = [{"prompt": f"Q{i % 20}", "chosen": f"a{i}", "rejected": f"b{i}"} for i in range(80)]
    path = lines(tmp_path / "rows.jsonl", rows)
    data = made(PreferenceData, path, validation_fraction=0.25)
    train, held = ({row["prompt"] for row in rows} for rows in (data.train_rows, data.validation_rows))
    assert not train & held
    assert len(data.train_rows) + len(data.validation_rows) == 80
    assert len(data.validation_rows) == 20
    talks = [{"messages": [u(f"Q{i % 4}"), a(f"{i}"), u("more"), a("x")]} for i in range(8)]
    data = made(InstructionData, lines(tmp_path / "t.jsonl", talks), validation_fraction=0.25)
    first = [{row["messages"][0]["content"] for row in rows} for rows in (data.train_rows, data.validation_rows)]
    assert not first[0] & first[1]
    with pytest.raises(UserError, match="rows of one prompt stay together"):
        made(
            PreferenceData,
            lines(tmp_path / "o.jsonl", [{**row, "prompt": "q"} for row in rows]),
            validation_fraction=0.1,
        )


def test_duplicates_and_overlap_are_counted_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = lines(tmp_path / "t.jsonl", [{"prompt": "a"}, {"prompt": "b"}, {"prompt": "a"}])
    held = lines(tmp_path / "v.jsonl", [{"prompt": " b"}, {"prompt": "c"}])
    data = PromptData(train=train, validation=held)
    data.setup("fit")
    data.setup("validate")
    said = capsys.readouterr().out
    assert said.count("1 of 3 training rows are duplicates of earlier ones") == 1
    assert said.count("the prompts of 1 of 2 validation rows are trained on too") == 1
    assert data.report == {"duplicates": 1, "overlap": 1}


@pytest.mark.parametrize(
    ("kind", "row", "expected"),
    [
        (
            InstructionData,
            {"messages": [{"role": "narrator", "content": "x"}, a("y")]},
            "message 1 has the role 'narrator'",
        ),
        (InstructionData, {"messages": [u("x"), {**a("y"), "weight": 0}]}, "no turn to learn"),
        (InstructionData, {"messages": [u("x"), {**a("y"), "weight": 0.5}]}, "weight 0.5; expected 0 (context) or 1"),
        (
            InstructionData,
            {"messages": [u("x"), {**a("y"), "train": "perhaps"}]},
            "train 'perhaps'; expected true or false",
        ),
        (InstructionData, {"messages": [u("x"), {"role": "assistant", "content": None}]}, "message 2 has content null"),
        (InstructionData, {"messages": [u("x"), a("")]}, "message 2 of the assistant is empty"),
        (InstructionData, {"messages": [u("x"), {"role": "assistant", "content": 3}]}, "content of type int"),
        (
            InstructionData,
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "u"}]}, a("y")]},
            "a part of type 'image_url'",
        ),
        (InstructionData, {"messages": [u("x"), a("y")], "tools": "no JSON"}, "column 'tools' must be a list"),
        (InstructionData, {"messages": [u("x"), a("y")], "system": 3}, "column 'system' must be text, found int"),
        (
            InstructionData,
            {"messages": [{"role": "system", "content": "one"}, u("x"), a("y")], "system": "two"},
            "two different system prompts",
        ),
        (
            InstructionData,
            {"messages": [u("x"), a("y")], "chat_template_kwargs": {"tokenize": True}},
            "'tokenize', which the library sets itself",
        ),
        (InstructionData, {"messages": [u("x"), {"from": "function_call", "value": "no"}]}, "expected JSON with name"),
        (
            PreferenceData,
            {"prompt": "Q", "chosen": [u("Q"), a("x")], "rejected": [u("P"), a("y")]},
            "'rejected' has no answer",
        ),
        (
            PreferenceData,
            {"prompt": "Q", "chosen": [u("Q"), a("x"), u("z")], "rejected": [a("y")]},
            "'chosen' does not end",
        ),
        (PreferenceData, {"prompt": "Q", "chosen": [u("Q")], "rejected": [a("y")]}, "holds the prompt and no answer"),
        (
            LabelledData,
            {"prompt": "q", "response": "a", "label": "perhaps"},
            "'label' must be true or false, found 'perhaps'",
        ),
    ],
)
def test_a_bad_row_of_each_kind_is_named_and_skipped_by_choice(
    kind: Any, row: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    good = {
        InstructionData: {"prompt": "q", "completion": "a"},
        PreferenceData: {"prompt": "q", "chosen": "a", "rejected": "b"},
        LabelledData: {"prompt": "q", "response": "a", "label": True},
    }[kind]
    path = lines(tmp_path / "rows.jsonl", [good, row])
    with pytest.raises(UserError, match=r"rows\.jsonl:2: ") as caught:
        made(kind, path)
    assert expected in str(caught.value)
    data = made(kind, path, on_bad_row="skip")
    assert len(data.train_rows) == 1
    assert data.report == {"bad_rows": 1}


@pytest.mark.parametrize("name", ["human", "Prompter", "USER"])
@pytest.mark.parametrize("other", ["gpt", "ChatGPT", "model", "bot", "Assistant"])
def test_roles_by_their_common_names(name: str, other: str, tmp_path: Path) -> None:
    talk = [
        {"from": name, "value": "q"},
        {"from": other, "value": "a"},
        {"role": "Observation", "content": "o"},
        a("b"),
    ]
    data = made(InstructionData, lines(tmp_path / "r.jsonl", [{"conversations": talk}]))
    messages = data.train_rows[0]["messages"]
    assert [turn["role"] for turn in messages] == ["user", "assistant", "tool", "assistant"]
    assert len(learned_turns([], messages)) == 2


def test_a_message_keeps_all_its_keys(tmp_path: Path) -> None:
    call = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": {"a": None}}}]
    talk = [
        {**u("q"), "name": "ann"},
        {"role": "assistant", "content": None, "tool_calls": call, "reasoning_content": "r"},
        {"role": "tool", "content": "3", "tool_call_id": "1"},
        a("x"),
    ]
    data = made(InstructionData, lines(tmp_path / "r.jsonl", [{"messages": talk}]))
    assert list(data.train_rows[0]["messages"]) == talk


def test_a_pair_of_several_turns_learns_the_assistants_alone(tmp_path: Path) -> None:
    row = {"chosen": [u("q"), a("good"), u("MORE"), a("fine")], "rejected": [u("q"), a("bad"), u("WHY"), a("no")]}
    data, encoder = made(PreferenceData, lines(tmp_path / "r.jsonl", [row])), encoder_of()
    pairs = encode_pairs(encoder, data.train_rows, None)
    width = pairs.prompt_mask.shape[1]
    masked = [encoder.tokenizer.decode(pairs.tokens[i, width:][pairs.mask[i]]) for i in (0, 1)]
    assert masked == ["good<|im_end|>fine<|im_end|>", "bad<|im_end|>no<|im_end|>"]
    assert "MORE" in encoder.tokenizer.decode(pairs.tokens[0])
    completion = {"prompt": [u("q")], "completion": [a("x"), u("MORE"), a("y")]}
    turns = learned_turns(*made(InstructionData, lines(tmp_path / "s.jsonl", [completion])).train_rows[0].values())
    assert [encoder.tokenizer.decode(encoder.response(*turn)) for turn in turns] == ["x<|im_end|>", "y<|im_end|>"]


def test_both_responses_of_a_pair_stand_behind_one_prompt() -> None:
    encoder = encoder_of()
    row = {"prompt": [u("x" * 60)], "chosen": [a("good")], "rejected": [a("a much longer one indeed")]}
    pairs = encode_pairs(encoder, [row], 48)
    width = pairs.prompt_mask.shape[1]
    kept = [pairs.tokens[i, :width][pairs.prompt_mask[i]].tolist() for i in (0, 1)]
    assert kept[0] == kept[1] == encoder.prompt(row["prompt"])[-len(kept[0]) :]
    assert max(len(kept[0]) + int(pairs.mask[i].sum()) for i in (0, 1)) == 48


def test_cells_of_a_csv_keep_their_text(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("prompt,answer\nA,00501\nB,NA\nC,1.50\nD,true\nE,\n")
    rows = {row["prompt"]: row.get("answer") for row in made(PromptData, str(tmp_path / "r.csv")).train_rows}
    assert rows == {"A": "00501", "B": "NA", "C": "1.50", "D": "true", "E": None}
    (tmp_path / "s.csv").write_text("prompt,completion\n1+1,2\n")
    assert made(InstructionData, str(tmp_path / "s.csv")).train_rows == [{"prompt": "1+1", "completion": "2"}]
    (tmp_path / "r.json").write_text('[{"prompt": "A", "answer": "2020-01-01", "n": 501}]')
    assert made(PromptData, str(tmp_path / "r.json")).train_rows == [{"prompt": "A", "answer": "2020-01-01", "n": 501}]


def test_a_conversation_keeps_its_tools_through_loaders_and_moves(tmp_path: Path) -> None:
    from lightning.fabric.utilities import move_data_to_device

    rows = [{"prompt": [u(f"q{i}")], "tools": [{"name": "f"}]} for i in range(4)]
    data = made(PromptData, lines(tmp_path / "r.jsonl", rows), num_workers=1, batch_size=2)
    for batch in data.train_dataloader():
        for row in move_data_to_device(batch, "cpu"):
            assert row["prompt"].tools == [{"name": "f"}]


def test_a_missing_side_of_a_pair_is_a_missing_column(tmp_path: Path) -> None:
    path = lines(tmp_path / "r.jsonl", [{"prompt": "q", "chosen": "a", "reject": "b"}])
    with pytest.raises(UserError, match=r"has no column 'rejected'; .*did you mean 'reject'"):
        made(PreferenceData, path)


def test_template_arguments_and_tools_of_the_config_are_for_rows_without_their_own(tmp_path: Path) -> None:
    rows = [{"prompt": [u("a")]}, {"prompt": [u("b")], "tools": [{"name": "own"}], "chat_template_kwargs": {"x": 2}}]
    data = made(
        PromptData, lines(tmp_path / "r.jsonl", rows), tools=[{"name": "f"}], chat_template_kwargs={"x": 1, "y": 1}
    )
    found = {row["prompt"][0]["content"]: row["prompt"] for row in data.train_rows}
    assert (found["a"].tools, found["a"].template_arguments) == ([{"name": "f"}], {"x": 1, "y": 1})
    assert (found["b"].tools, found["b"].template_arguments) == ([{"name": "own"}], {"x": 2, "y": 1})
