"""Adapters, 4-bit bases and every kind of reference, on each tiny architecture, on prompts from a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from leavings import column

LORA = {"lora": {"r": 4, "alpha": 8}}
KINDS: dict[str, tuple[dict[str, Any], str]] = {
    "lora": (LORA, "auto"),
    "qlora": ({**LORA, "quantization": "nf4"}, "auto"),
    "nf4": ({}, "nf4"),
    "int8": ({}, "int8"),
    "full": ({}, "full"),
    "adapter": (LORA, "adapter"),
}
"""What is said of the policy, and of its reference."""
EXACT = ("lora", "qlora", "full", "adapter")


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_reference_runs_and_its_gap_is_told(
    kind: str, architecture: str, run: Callable[..., Path], tiny_model_folder: Callable[[str], str]
) -> None:
    words = "please say hello to the little dog and the cat".split()
    rows = [{"prompt": " ".join(words[i:])} for i in range(len(words))]
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    policy, reference = KINDS[kind]
    model = {
        "policy": {"name_or_path": tiny_model_folder(architecture), **policy},
        "algorithm": {"class_path": "REINFORCE"},
        "reward": {"class_path": "LengthReward", "init_args": {"limit": 2, "unit": "characters"}},
        "reference": reference,
        "generation": {"class_path": "Sampler", "init_args": {"max_new_tokens": 8}},
        "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.01}},
        "iterations": 2,
    }
    data = {"train": "prompts.jsonl", "validation_fraction": 0.4, "batch_size": 4}
    config = {
        "model": {"class_path": "PolicyStage", "init_args": model},
        "data": {"class_path": "PromptData", "init_args": data},
    }
    Path("run.yaml").write_text(yaml.safe_dump(config))
    folder = run("out", "fit", "--config", "run.yaml")

    (gap,) = column(folder, "reference/gap")
    assert gap == 0 if kind in EXACT else 0 < gap < 1
    first, second = column(folder, "kl/reference")
    assert first == pytest.approx(0, abs=1e-5) if kind in EXACT else first != 0
    assert abs(second) > 1e-4  # the policy moved, the reference did not
