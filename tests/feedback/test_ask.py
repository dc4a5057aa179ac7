"""Candidates of real, tiny models: generated once, the same after an interruption."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf_lightning.errors import UserError
from rlhf_lightning.evaluation import responses
from rlhf_lightning.evaluation.responses import generate_responses
from rlhf_lightning.feedback import ask
from rlhf_lightning.feedback.ask import Sampling, ask_models
from rlhf_lightning.feedback.candidates import ItemBuilder, ItemTemplate
from rlhf_lightning.feedback.store import Store
from rlhf_lightning.generation.local import Sampler
from rlhf_lightning.models.loading import ModelConfig
from rlhf_lightning.playground import task

MODEL = ModelConfig(name_or_path="playground/sft")
ROWS = [{"prompt": prompt} for prompt in task.prompts(10, 0, False)]
SAMPLER = Sampler(max_new_tokens=12)


def generated(**more: Any) -> dict[int, list[str]]:
    batches = generate_responses(MODEL, ROWS, 2, SAMPLER, **{"batch_size": 4, **more})
    return {one.row: one.responses for batch in batches for one in batch}


def test_responses_are_a_function_of_seed_model_and_prompts() -> None:
    whole = generated()
    assert list(whole) == list(range(10))
    assert all(len(texts) == 2 for texts in whole.values())
    assert sum(one != other for one, other in whole.values()) > 5
    assert generated() == whole
    assert generated(seed=1) != whole
    rest = generated(known={0, 1, 2, 3, 5})
    assert rest == {row: whole[row] for row in (4, 6, 7, 8, 9)}


def test_batches_of_other_prompts_have_other_random_numbers() -> None:
    rows = [ROWS[i] for i in (0, 1, 0, 2)]
    batches = list(generate_responses(MODEL, rows, 4, SAMPLER, batch_size=2))
    assert batches[0][0].responses != batches[1][0].responses  # of the same prompt
    (alone,) = generate_responses(MODEL, rows[2:], 4, SAMPLER, batch_size=2)
    assert alone[0].responses == batches[1][0].responses


def test_no_weights_are_loaded_for_what_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responses, "load_causal_lm", None)
    assert generated(known=set(range(10))) == {}


def prompts(tmp_path: Path) -> str:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


def items(store: Store) -> list[tuple[Any, ...]]:
    with store.database.read() as connection:
        found = connection.execute(
            "SELECT items.key, position, content, model, probability FROM items JOIN responses ON item = items.id "
            "ORDER BY items.key, position"
        )
        return [tuple(row) for row in found]


def sampling(*names: str) -> Sampling:
    return Sampling(tuple(ModelConfig(name_or_path=name) for name in names), 2, SAMPLER, seed=0, batch_size=4)


def test_an_interrupted_ask_is_resumed_with_the_same_items(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def builder() -> ItemBuilder:
        return ItemBuilder(ItemTemplate("pair", 1, ()), None)

    with Store(tmp_path / "whole.db", create=True) as whole:
        ask_models(whole, prompts(tmp_path), sampling("playground/sft"), builder())
        expected = items(whole)
    assert expected
    real = ask.generate_responses

    def interrupted(*args: Any) -> Any:
        yield from list(real(*args))[:2]
        raise KeyboardInterrupt

    with Store(tmp_path / "feedback.db", create=True) as store:
        monkeypatch.setattr(ask, "generate_responses", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ask_models(store, prompts(tmp_path), sampling("playground/sft"), builder())
        monkeypatch.setattr(ask, "generate_responses", real)
        capsys.readouterr()
        added = ask_models(store, prompts(tmp_path), sampling("playground/sft"), builder())
        assert "responses to 8 of 10 prompts are in the store" in capsys.readouterr().out
        assert items(store) == expected
        again = ask_models(store, prompts(tmp_path), sampling("playground/sft"), builder())
        assert (again.items, again.new) == (added.items, 0)
        assert items(store) == expected


def test_a_model_that_is_overwritten_generates_anew(tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "export"
    shutil.copytree(Path(responses.__file__).parents[1] / "playground" / "sft", folder)
    before = responses.fingerprint(ModelConfig(name_or_path=str(folder)))
    assert before == responses.fingerprint(ModelConfig(name_or_path=str(folder)))
    (folder / "model.safetensors").write_bytes(b"other")
    assert before != responses.fingerprint(ModelConfig(name_or_path=str(folder)))


def test_a_bad_model_is_found_before_the_first_generates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responses, "load_causal_lm", None)
    with Store(tmp_path / "f.db", create=True) as store, pytest.raises(UserError, match="nosuch"):
        ask_models(
            store,
            prompts(tmp_path),
            sampling("playground/sft", "playground/nosuch"),
            ItemBuilder(ItemTemplate("pair", 1, ()), None),
        )
