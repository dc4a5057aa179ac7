"""The playground's true reward, worked by hand, and the properties that make the task worth learning."""

from __future__ import annotations

import random
import statistics
from pathlib import Path

import pytest

from rlhf_lightning.models.loading import ModelConfig, load_tokenizer
from rlhf_lightning.playground import PlaygroundInstructions, PlaygroundPreferences, PlaygroundPrompts, task

PROMPT = "name two animals and one color ."


@pytest.mark.parametrize(
    ("reply", "answers", "polite", "brief", "varied"),
    [
        ("gladly , fox , owl and red .", 1.0, 1.0, 1.0, 1.0),
        ("fox , owl and red .", 1.0, 0.0, 1.0, 1.0),
        ("gladly , fox and fox .", 1 / 3, 1.0, 1.0, 1 / 3),
        ("gladly , fox , owl , bear and red .", 1.0 * 3 / 4, 1.0, 1.0, 1.0),
        ("gladly , apple .", 0.0, 1.0, 1.0, 1.0),
        ("fox owl red well let me think i would say as far as i know .", 1.0, 0.0, 0.5, 1 - 2 * 2 / 15),
        ("", 0.0, 0.0, 0.0, 0.0),
    ],
)
def test_qualities_by_hand(reply: str, answers: float, polite: float, brief: float, varied: float) -> None:
    found = {name: measure(PROMPT, reply) for name, measure in task.MEASURES.items()}
    assert found == pytest.approx({"answers": answers, "polite": polite, "brief": brief, "varied": varied})
    expected = 0.4 * answers + 0.2 * (polite + brief + varied)
    assert task.true_reward(PROMPT, reply) == pytest.approx(expected)


def test_the_best_is_there_for_every_prompt() -> None:
    rng = random.Random(0)
    asked = task.prompts(500, 3, False)
    assert len(asked) == 500
    assert all(task.true_reward(prompt, task.ideal_reply(prompt, rng)) == 1.0 for prompt in asked)


def test_people_write_well_below_the_best() -> None:
    rows = task.instructions(1000, 0, False)
    assert 0.45 < statistics.mean(task.true_reward(row["prompt"], row["completion"]) for row in rows) < 0.65


def test_held_out_prompts_are_never_trained_on() -> None:
    train = {prompt for seed in range(3) for prompt in task.prompts(2000, seed, False)}
    held = {prompt for seed in range(3) for prompt in task.prompts(300, seed, True)}
    assert held
    assert not train & held


def test_everything_follows_from_the_seed() -> None:
    for make in (task.instructions, task.preferences):
        assert make(50, 7, False) == make(50, 7, False)
        assert make(50, 7, False) != make(50, 8, False)


def test_annotators_have_their_likings() -> None:
    rows = task.preferences(4000, 0, False)
    liking = {}
    for annotator in task.ANNOTATORS:
        mine = [row for row in rows if row["annotator"] == annotator.name]
        liking[annotator.name] = statistics.mean(
            task.polite_phrases(row["chosen"]) - task.polite_phrases(row["rejected"]) for row in mine
        )
    assert liking["flattered"] > 1.3 * liking["careful"]
    agree = statistics.mean(
        task.true_reward(row["prompt"], row["chosen"]) >= task.true_reward(row["prompt"], row["rejected"])
        for row in rows
    )
    assert 0.75 < agree < 0.95


def test_no_word_is_unknown_to_the_tokenizer() -> None:
    tokenizer = load_tokenizer(ModelConfig(name_or_path="playground/sft"))
    rng = random.Random(1)
    for row in task.instructions(300, 1, True):
        text = f"{row['prompt']} {row['completion']} {task.ideal_reply(row['prompt'], rng)}"
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text


def test_the_shipped_models_are_small() -> None:
    folder = Path(task.__file__).parent
    files = [path for path in folder.glob("*/*") if path.suffix in (".safetensors", ".json")]
    assert len([path for path in files if path.suffix == ".safetensors"]) == 2
    assert sum(path.stat().st_size for path in files) < 6 * 2**20


def test_data_modules() -> None:
    for kind, columns in {
        PlaygroundPrompts: {"prompt"},
        PlaygroundInstructions: {"prompt", "completion"},
        PlaygroundPreferences: {"prompt", "chosen", "rejected", "annotator"},
    }.items():
        data = kind(size=20, validation_size=6, batch_size=4)
        data.setup("fit")
        batches = list(data.train_dataloader())
        assert [len(batch) for batch in batches] == [4] * 5
        assert set(batches[0][0]) == columns
        assert len(data.validation_rows or []) == 6
