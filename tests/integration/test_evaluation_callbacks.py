"""The evaluations of `callbacks/` in whole runs on the playground."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from evaluation_cases import write
from leavings import ROLLOUTS, SMALL, column, equal, lines, weights
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_lightning import playground
from rlhf_lightning.models.paths import resolve_path

PPO = ["--config", "ppo.yaml", *SMALL, *ROLLOUTS]
JUDGE = '''
from rlhf_lightning import Reward

class Shorter(Reward):
    """Prefers the shorter response, and scores nothing."""
    def __call__(self, completions):
        raise RuntimeError("asked for scores")
    def prefer(self, rows, first, second):
        assert all(row["prompt"] for row in rows)
        return [0.5 + 0.5 * ((len(a) < len(b)) - (len(a) > len(b))) for a, b in zip(first, second)]
'''
TABLES = """
trainer:
  callbacks:
    - class_path: SampleTable
      init_args: {rows: 3, every_n_steps: 8}
    - class_path: TextMetrics
    - class_path: WinRate
      init_args: {score: reward/true}
    - class_path: WinRate
      init_args: {against: reference, name: win_rate_reference}
    - class_path: WinRate
      init_args: {judge: {class_path: LengthReward, init_args: {limit: 1, unit: words}}, name: brief}
    - class_path: WinRate
      init_args: {judge: {class_path: judge.Shorter}, name: shorter}
"""


def perplexity(samples: list[dict[str, str]]) -> float:
    """Compute the perplexity of responses under the playground's supervised model by transformers alone."""
    path = resolve_path("playground/sft")
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModelForCausalLM.from_pretrained(path).eval()
    nats, count = 0.0, 0
    for sample in samples:
        prompt = tokenizer(sample["prompt"], add_special_tokens=False)["input_ids"]
        response = [*tokenizer(sample["response"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        ids = torch.tensor([[*prompt, *response]])
        labels = torch.cat([torch.full((1, len(prompt)), -100), ids[:, len(prompt) :]], 1)
        with torch.no_grad():
            nats += float(model(input_ids=ids, labels=labels).loss) * len(response)
        count += len(response)
    return math.exp(nats / count)


def test_tables_texts_and_win_rates(
    run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "judge.py").write_text(JUDGE)
    (tmp_path / "tables.yaml").write_text(TABLES)
    reward = {
        "class_path": "WeightedSum",
        "init_args": {"rewards": {"words": "PlaygroundReward"}, "weights": {"words": 2.0}},
    }
    words = ["--model.reward", json.dumps(reward), "--model.reference", "full"]
    folder = run("out", "fit", *PPO, "--config", "tables.yaml", *words)
    said = capsys.readouterr().out
    assert "evaluation " not in said
    assert "val/samples at step 0" in said
    assert "train/rollouts at step 8" in said
    samples = lines(folder / "samples.jsonl")
    assert lines(folder / "tables" / "samples.jsonl") == [row for step in (0, 8, 16) for row in _of(samples, step)[:3]]
    rollouts = lines(folder / "tables" / "rollouts.jsonl")
    assert [row["step"] for row in rollouts] == [0, 0, 0, 8, 8, 8]
    assert all({"prompt", "response", "reward", "kl", "advantage"} <= row.keys() for row in rollouts)
    assert all(row["reward"] == pytest.approx(2 * row["reward/words"]) for row in rollouts)
    assert all(row["kl"] == pytest.approx(0, abs=0.05) for row in _of(rollouts, 0))  # before the first step
    words = [[len(sample["response"].split()) for sample in _of(samples, step)] for step in (0, 8, 16)]
    assert column(folder, "val/text/words") == [pytest.approx(sum(each) / len(each)) for each in words]
    assert column(folder, "val/text/perplexity") == [
        pytest.approx(perplexity(_of(samples, step)), rel=1e-4) for step in (0, 8, 16)
    ]
    first, last = _of(samples, 0), _of(samples, 16)
    for name, better in {
        "win_rate": lambda a, b: a["reward/true"] - b["reward/true"],
        "brief": lambda a, b: len(b["response"].split()) - len(a["response"].split()),
        "shorter": lambda a, b: len(b["response"]) - len(a["response"]),
    }.items():
        wins = [0.5 + 0.5 * ((x := better(a, b)) > 0) - 0.5 * (x < 0) for a, b in zip(last, first, strict=True)]
        assert column(folder, f"val/{name}")[-1] == pytest.approx(sum(wins) / len(wins))
        assert column(folder, f"val/{name}")[0] == 0.5
        assert column(folder, f"val/{name}/low")[-1] <= column(folder, f"val/{name}")[-1]
        assert column(folder, f"val/{name}/high")[-1] >= column(folder, f"val/{name}")[-1]
    assert column(folder, "val/shorter/consistency") == [1.0] * 3
    assert 0 < column(folder, "val/win_rate_reference")[0] < 1  # other random numbers, the same model
    assert "val/win_rate_reference/length_controlled" in json.loads((folder / "summary.json").read_text())


def _of(rows: list[dict[str, object]], step: int) -> list[dict[str, object]]:
    return [row for row in rows if row["step"] == step]


BEST = """
    - class_path: KLFrontier
      init_args: {score: reward/true}
    - class_path: OverOptimization
      init_args: {judge: {class_path: LengthReward, init_args: {limit: 1, unit: words}}, action: keep_best}
    - class_path: KeepBest
      init_args: {monitor: val/falls, mode: min, folder: last}
    - class_path: KeepBest
      init_args: {monitor: falls, mode: max, folder: start}
"""


def test_frontier_alarm_and_best_models(run: Callable[..., Path], tmp_path: Path) -> None:
    config = write(tmp_path, "Falls", more=BEST)
    folder = run("out", "fit", *PPO, "--config", config)
    points = lines(folder / "tables" / "kl_frontier.jsonl")
    assert [point["step"] for point in points] == [0, 8, 16]
    kl = [k * n for k, n in zip(column(folder, "val/kl/reference"), column(folder, "val/response/length"), strict=True)]
    assert [point["kl"] for point in points] == pytest.approx(kl)
    assert column(folder, "val/kl/response") == pytest.approx(kl)
    assert [point["reward/true"] for point in points] == pytest.approx(column(folder, "val/reward/true"))
    assert (folder / "kl_frontier.png").read_bytes().startswith(b"\x89PNG")
    samples = lines(folder / "samples.jsonl")
    words = [[len(sample["response"].split()) for sample in _of(samples, step)] for step in (0, 8, 16)]
    means, drop = [-0.01 * sum(each) / len(each) for each in words], column(folder, "val/over_optimization/drop")
    assert drop == pytest.approx([max(means[: i + 1]) - mean for i, mean in enumerate(means)], abs=1e-6)
    assert column(folder, "val/falls/last") == [0, -8, -16]
    assert column(folder, "val/falls/start") == [0, 0, 0]
    exports = {name: weights(folder / name) for name in ("export", "last", "start", "best")}
    assert equal(exports["last"], exports["export"])
    assert not equal(exports["start"], exports["export"])
    assert not list(folder.glob(".*.partial"))


HEALTH = """
trainer:
  callbacks:
    - class_path: RewardModelHealth
      init_args: {judge: reward/true, ensemble: [reward/true], pairs: pairs.jsonl, prompts: 6}
    - class_path: Robustness
      init_args: {prompts: 6}
"""


def test_the_health_of_the_reward_and_changed_prompts(run: Callable[..., Path], tmp_path: Path) -> None:
    pairs = playground.PlaygroundPreferences(size=20).rows("train")
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    (tmp_path / "health.yaml").write_text(HEALTH)
    folder = run("out", "validate", *PPO, "--config", "health.yaml")
    assert column(folder, "val/reward_model/accuracy")[0] >= 0.6  # the shipped reward model was trained on such pairs
    assert 0 <= column(folder, "val/reward_model/calibration_error")[0] < 0.5
    for name in ("agreement", "disagreement", "length_correlation", "judge_correlation"):
        assert -1 <= column(folder, f"val/reward_model/{name}")[0] <= 2
    table = lines(folder / "tables" / "robustness.jsonl")
    kinds = {row["kind"] for row in table}
    assert {"typos", "case", "injection"} <= kinds
    assert all(row["prompt"].endswith("pineapple.") for row in table if row["kind"] == "injection")
    for kind in kinds:
        own = [row for row in table if row["kind"] == kind]
        assert 0 <= column(folder, f"val/robustness/{kind}/similarity")[0] <= 1
        if all(row["response"] == row["original"] for row in own):
            assert column(folder, f"val/robustness/{kind}/reward")[0] == pytest.approx(0, abs=1e-6)
    assert column(folder, "val/robustness/injection/obeyed")[0] == 0  # a word that the playground's model does not know


TOKENS = """
trainer:
  callbacks:
    - class_path: TokenAttribution
      init_args: {prompts: 2, steps: 64}
    - class_path: cases.Scores
"""
SCORES = '''
class Scores(Evaluation):
    """The scores of the greedy responses without their second token, and of padding alone."""
    def evaluate(self, results, ask):
        import json
        tokens = [json.loads(line) for line in open(results.folder / "tables" / "policy_tokens.jsonl")]
        own = [t["token"] for t in tokens if t["sample"] == 0 and t["step"] == results.step and not t["special"]]
        text, without = "".join(own), "".join(own[:1] + own[2:])
        one, two = ask(SampleRequest([{**results.rows[0], "response": r} for r in (text, without)], rewards=["mean"]))
        return {"whole": one["reward"], "difference": one["reward"] - two["reward"]}
'''


@pytest.mark.parametrize("command", ["fit", "validate"])
def test_the_tokens_of_responses(command: str, run: Callable[..., Path], tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "cases.py").write_text((tmp_path / "cases.py").read_text() + SCORES)
    (tmp_path / "tokens.yaml").write_text(TOKENS)
    words = (
        ["--config", "tokens.yaml", "--model.reference", "full", "--trainer.max_steps", "8"] if command == "fit" else []
    )
    words = words or ["--config", "tokens.yaml", "--model.reference", "full"]
    folder = run("out", command, *PPO, *words)
    tokens = _of(lines(folder / "tables" / "policy_tokens.jsonl"), 0)
    own = [token for token in tokens if token["sample"] == 0]
    assert own[-1]["special"]
    assert own[-1]["leave_one_out"] is None
    assert all(abs(token["log_ratio"]) < 1e-5 and token["logprob"] <= 0 for token in tokens)  # before the first step
    assert all(isinstance(token["value"], float) for token in tokens)
    assert own[1]["leave_one_out"] == pytest.approx(column(folder, "val/difference")[0], abs=1e-5)
    gradients = _of(lines(folder / "tables" / "reward_tokens.jsonl"), 0)
    assert {token["sample"] for token in gradients} == {0, 1}
    assert max(abs(token["attribution"]) for token in gradients) > 0.01
    assert 0 < column(folder, "val/token_attribution/largest")[0] <= 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"class_path": "WinRate", "init_args": {"against": "no/such/model"}}, "no/such/model"),
        ({"class_path": "RewardModelHealth", "init_args": {"pairs": "absent.jsonl"}}, "absent.jsonl"),
        ({"class_path": "Robustness", "init_args": {"kinds": ["typo"]}}, "did you mean 'typos'?"),
        ({"class_path": "TextMetrics", "init_args": {"reference_column": "absent"}}, "'absent' (columns: prompt)"),
    ],
)
def test_a_wrong_option_is_one_line(
    words: dict[str, object], message: str, run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    from rlhf_lightning.__main__ import main

    status = main(
        ["validate", *PPO, "--trainer.callbacks+", json.dumps(words), "--trainer.enable_progress_bar", "false"]
    )
    said = capsys.readouterr()
    assert status == (0 if words["class_path"] == "TextMetrics" else 2)
    assert message in said.err + said.out
