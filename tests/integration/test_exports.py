"""What a run exports loads with plain transformers and peft, and says the same."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from leavings import ROLLOUTS, SMALL, equal, lines, weights

from rlhf_lightning.models.loading import resolve_path

PLAIN_GENERATION = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads(1)
prompts, kind, *folders = sys.argv[1:]
if kind == "adapter":
    from peft import AutoPeftModelForCausalLM as AutoModelForCausalLM
replies = [[] for _ in folders]
for folder, written_there in zip(folders, replies):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for prompt in json.loads(prompts):
        given = tokenizer(prompt, return_tensors="pt").input_ids
        mask = torch.ones_like(given)
        written = model.generate(input_ids=given, attention_mask=mask, max_new_tokens=24, do_sample=False)
        written_there.append(tokenizer.decode(written[0, given.shape[1]:], skip_special_tokens=True).strip())
assert not any(name.startswith("rlhf_lightning") for name in sys.modules)
print(json.dumps(replies))
"""

PLAIN_SCORES = """
import json, sys, torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
torch.set_num_threads(1)
folder, texts = sys.argv[1], json.loads(sys.argv[2])
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
scores = []
for prompt, reply in texts:
    ids = tokenizer(prompt).input_ids + tokenizer(reply, add_special_tokens=False).input_ids + [tokenizer.eos_token_id]
    logit = model(input_ids=torch.tensor([ids])).logits.item()
    scores.append((logit - model.config.score_mean) / model.config.score_std)
assert not any(name.startswith("rlhf_lightning") for name in sys.modules)
print(json.dumps(scores))
"""


def plain(script: str, *words: str) -> Any:
    """The answer of a process that knows nothing of this package."""
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_predict_builds_no_reference(run: Callable[..., Path]) -> None:
    """It would be refused: there is no adapter to take off."""
    folder = run("predicted", "predict", "--config", "ppo.yaml", *SMALL, "--model.reference", "adapter")
    assert len(lines(folder / "predictions.jsonl")) == 8


@pytest.mark.parametrize("name", ["sft", "ppo", "lora"])
def test_plain_transformers_writes_what_predict_writes(name: str, run: Callable[..., Path]) -> None:
    configs = {
        "sft": ["--config", "sft.yaml", "--data.size", "256", "--data.validation_size", "8", "--data.batch_size", "16"],
        "ppo": ["--config", "ppo.yaml", *SMALL],
        "lora": ["--config", "ppo.yaml", "--config", "lora.yaml", *SMALL],
    }[name]
    options = ["--trainer.max_epochs", "2"] if name == "sft" else ROLLOUTS
    folder = run("trained", "fit", *configs, *options)
    run("predicted", "predict", *configs, "--ckpt_path", str(folder / "checkpoints" / "last.ckpt"))
    predicted = lines(Path("predicted/predictions.jsonl"))
    assert len(predicted) == 8
    assert len({row["response"] for row in predicted}) > 1
    prompts = json.dumps([row["prompt"] for row in predicted])
    before = [resolve_path("playground/sft")] if name == "ppo" else []
    kind = "adapter" if name == "lora" else "whole"
    exported, *untouched = plain(PLAIN_GENERATION, prompts, kind, str(folder / "export"), *before)
    assert exported == [row["response"] for row in predicted]
    if name == "ppo":  # it is the trained model that was loaded, not the one it began as
        assert not equal(weights(folder / "export"), weights(Path(resolve_path("playground/sft"))))
        assert untouched[0] != exported


def test_plain_transformers_scores_what_the_reward_model_scores(run: Callable[..., Path]) -> None:
    config = ["--config", "reward.yaml", *SMALL]
    folder = run("trained", "fit", *config, "--trainer.val_check_interval", "0.5")
    run("predicted", "predict", *config, "--model.model.name_or_path", str(folder / "export"))
    predicted = lines(Path("predicted/predictions.jsonl"))
    texts = [[row["prompt"], row[which]] for row in predicted for which in ("chosen", "rejected")]
    ours = [score for row in predicted for score in row["scores"]]
    assert len(ours) == 16
    assert max(ours) - min(ours) > 0.1
    assert plain(PLAIN_SCORES, str(folder / "export"), json.dumps(texts)) == pytest.approx(ours, abs=1e-4)
