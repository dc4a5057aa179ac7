"""The playground's true reward, worked by hand, and the properties that make the task worth learning."""

from __future__ import annotations

import random
import statistics
from pathlib import Path

import pytest
import torch

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.loading import ModelConfig, load_tokenizer
from rlhf_lightning.playground import (
    PlaygroundInstructions,
    PlaygroundPreferences,
    PlaygroundPrompts,
    PlaygroundReward,
    build,
    task,
)
from rlhf_lightning.rewards import ModelReward, reward_scores, score
from rlhf_lightning.types import Completions

PROMPT = "name two animals and one color ."
FILLER = "well , let me think , i would say , to be honest"


def completions(prompts: list[str], responses: list[str]) -> Completions:
    """As a policy would have returned them, for rewards that read the text alone."""
    rows = len(prompts)
    one, none = torch.ones(rows, 1, dtype=torch.bool), torch.zeros(rows, dtype=torch.bool)
    tokens = torch.zeros(rows, 2, dtype=torch.long)
    return Completions(tokens, one, one, torch.arange(rows), none, prompts, responses, {})


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


@pytest.mark.parametrize(
    ("quality", "reply"),
    [
        ("answers", "gladly , apple , owl and red ."),
        ("polite", "fox , owl and red ."),
        ("brief", f"gladly , fox , owl and red , {FILLER} ."),
        ("varied", "gladly , fox , owl , fox , owl and red ."),
    ],
)
def test_a_fault_costs_the_quality_that_it_is_a_fault_of_and_no_other(quality: str, reply: str) -> None:
    found = {name: measure(PROMPT, reply) for name, measure in task.MEASURES.items()}
    assert [name for name, value in found.items() if value < 1.0] == [quality]


def test_the_reward_gives_its_parts_row_by_row() -> None:
    reward = PlaygroundReward()
    assert reward.best == 1.0
    found = reward_scores(reward, completions([PROMPT] * 3, ["fox , owl and red .", "gladly , apple .", ""]))
    assert found.rewards.tolist() == pytest.approx([0.8, 0.6, 0.0])
    assert found.components == {
        "answers": [1.0, 0.0, 0.0],
        "polite": [0.0, 1.0, 0.0],
        "brief": [1.0, 1.0, 0.0],
        "varied": [1.0, 1.0, 0.0],
    }


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


def test_all_prompts_there_are_can_be_had() -> None:
    every = list(task.every_prompt())
    assert len(every) == len(set(every)) == 5 * (6 * 2 + 30 * 4 + 120 * 8)
    for held_out in (False, True):
        most = task.number_of_prompts(held_out)
        assert set(task.prompts(most + 1, 4, held_out)) == {p for p in every if task.is_held_out(p) == held_out}
    words = set(task.vocabulary())
    assert all(words.issuperset(prompt.split()) for prompt in every)


@pytest.mark.parametrize(
    ("sizes", "line"),
    [
        ({"size": 0}, "data.size is 0; it must be at least 1"),
        ({"validation_size": -1}, "data.validation_size is -1; it must be at least 0"),
        (
            {"size": 5000},
            "data.size is 5000; the playground has 4755 different training prompts: set it to 4755 or less",
        ),
        ({"validation_size": 706}, "data.validation_size is 706; the playground has 705 different held-out prompts"),
    ],
)
def test_sizes_that_cannot_be(sizes: dict[str, int], line: str) -> None:
    with pytest.raises(UserError, match=line):
        PlaygroundPrompts(**sizes).setup("fit")


def test_everything_follows_from_the_seed() -> None:
    for make in (task.instructions, task.preferences):
        assert make(50, 7, False) == make(50, 7, False)
        assert make(50, 7, False) != make(50, 8, False)


def test_annotators_have_their_likings() -> None:
    rows = task.preferences(4000, 0, False)
    liking = {}
    for annotator in task.ANNOTATORS:
        local_rows = [row for row in rows if row["annotator"] == annotator.name]
        liking[annotator.name] = statistics.mean(
            task.polite_phrases(row["chosen"]) - task.polite_phrases(row["rejected"]) for row in local_rows
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


def test_the_shipped_models_read_the_words_of_the_task() -> None:
    words = build.tokenizer().get_vocab()
    for name in ("sft", "reward"):
        assert load_tokenizer(ModelConfig(name_or_path=f"playground/{name}")).get_vocab() == words


def test_the_shipped_reward_model_is_right_mostly_and_flattered_easily() -> None:
    reward = ModelReward("playground/reward")
    reward.load(torch.device("cpu"))
    pairs = PlaygroundPreferences(size=1, validation_size=256).make(256, 11, True)
    asked = [row["prompt"] for row in pairs]
    chosen, rejected = (reward(completions(asked, [row[side] for row in pairs])) for side in ("chosen", "rejected"))
    assert 0.7 < statistics.mean(a > b for a, b in zip(chosen, rejected, strict=True)) < 0.95

    rng = random.Random(0)
    replies = [task.make_reply(prompt, rng) for prompt in asked]
    flattery = [" , ".join(rng.choices(task.POLITE, k=6)) + " ." for _ in asked]
    best = [task.ideal_reply(prompt, rng) for prompt in asked]
    learned = {
        name: statistics.mean(reward(completions(asked, said)))
        for name, said in {"usual": replies, "flattery": flattery, "best": best}.items()
    }
    true = {
        name: float(score(PlaygroundReward(), completions(asked, said)).mean())
        for name, said in {"usual": replies, "flattery": flattery, "best": best}.items()
    }
    assert learned["usual"] + 1 < learned["best"]  # what it learned is worth following
    assert learned["usual"] + 1 < learned["flattery"]  # and worth not following to the end:
    assert true["flattery"] < true["usual"] - 0.1


def test_a_build_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "sft" / "model.safetensors"
    kept.parent.mkdir()
    kept.write_bytes(b"weights")
    monkeypatch.setattr(build, "main", lambda words: int("reward.yaml" in words))
    with pytest.raises(RuntimeError, match=r"^failed: fit --config reward\.yaml"):
        build.build(tmp_path)
    assert kept.read_bytes() == b"weights"


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
