"""Command lines of options drawn at random, which nobody thought of trying together."""

from __future__ import annotations

import json
import os
from random import Random
from typing import Any

from tests.conftest import ARCHITECTURES as TINY

SEEDS = range(int(os.environ.get("COMBINATIONS", "12")))
"""`COMBINATIONS=200 pytest -m slow -k drawn_at_random` tries as many."""

SIZES = TINY["llama"]
GROUPED = {**SIZES, "num_key_value_heads": 2, "head_dim": 8}
ARCHITECTURES: list[dict[str, Any]] = [
    *({"model_type": kind, **sizes} for kind, sizes in TINY.items()),
    {"model_type": "qwen3", **GROUPED},
    {"model_type": "gemma2", **GROUPED, "sliding_window": 12},
    {"model_type": "gemma3_text", **GROUPED, "sliding_window": 12},
    {"model_type": "gpt_oss", **GROUPED, "num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 12},
    {"model_type": "mistral", **SIZES, "num_key_value_heads": 2, "sliding_window": 10},
    {"model_type": "mixtral", **SIZES, "num_key_value_heads": 2, "num_local_experts": 2},
    {"model_type": "bloom", "hidden_size": 32, "n_layer": 2, "n_head": 4},
    {"model_type": "falcon", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    {"model_type": "phi", **SIZES},
    {"model_type": "stablelm", **SIZES, "num_key_value_heads": 4},
]
STAGES = ["ppo", "ppo", "reinforce", "grpo", "dpo", "dpo_offline", "sft", "reward"]

Options = list[tuple[float, list[str]]]
"""How often one of these is on a command line; MODEL stands for where a stage keeps its model, ALGORITHM for model.algorithm."""

ANY: Options = [
    (1.0, ["--trainer.accumulate_grad_batches 1", "--trainer.accumulate_grad_batches 2"]),
    (1.0, ["--trainer.max_epochs 1", "--trainer.max_epochs 2"]),
    (1.0, ["--data.batch_size 3", "--data.batch_size 4", "--data.batch_size 5"]),
    (0.4, ["MODEL.max_tokens_per_batch 30", "MODEL.max_tokens_per_batch 60", "MODEL.max_tokens_per_batch null"]),
    (0.25, ["MODEL.pack false"]),
    (0.2, ["MODEL.gradient_checkpointing true"]),
    (0.2, ["MODEL.attention eager"]),
    (0.2, ["--trainer.gradient_clip_val null"]),
    (0.3, ["--trainer.precision bf16-mixed", "--trainer.precision bf16-true"]),
    (0.2, ["--model.on_nonfinite skip"]),
    (0.3, ["--model.optimizer torch.optim.RMSprop --model.optimizer.lr 0.001", "--model.optimizer torch.optim.Adam"]),
    (0.3, ["--model.lr_scheduler torch.optim.lr_scheduler.LinearLR"]),
]
QUANTISED: Options = [(0.4, ["MODEL.quantization nf4", "MODEL.quantization int8"])]
DROPOUT: Options = [(0.5, ["MODEL.lora.dropout 0.1"])]
WRITING: Options = [
    (1.0, ["--model.iterations 2", "--model.iterations 3"]),
    (1.0, ["--model.generation.max_new_tokens 1", "--model.generation.max_new_tokens 8"]),
    (0.5, ["--model.generation.temperature 0.7"]),
    (0.4, ["--model.generation.max_batch_size 1", "--model.generation.max_batch_size 3"]),
    (0.2, ["--model.generation.continuous_batching false"]),
    (0.3, ["--model.reference full", "--model.reference int8"]),
    (0.2, ["--model.max_prompt_length 6"]),
]
GRADIENTS: Options = [
    (
        0.3,
        [
            "ALGORITHM.kl.placement loss ALGORITHM.kl.estimator k2",
            "ALGORITHM.kl.placement loss ALGORITHM.kl.estimator k3",
            "ALGORITHM.kl.placement loss ALGORITHM.kl.ratio_weighted true",
        ],
    ),
    (0.3, ["ALGORITHM.kl.target 0.05"]),
    (1.0, ["ALGORITHM.minibatches 1", "ALGORITHM.minibatches 2", "ALGORITHM.minibatches 3"]),
]
OWN: dict[str, Options] = {
    "ppo": [
        (0.4, ["--model.critic separate"]),
        (0.2, ["--model.share_base false"]),
        (0.5, ["ALGORITHM.responses_per_prompt 2", "ALGORITHM.responses_per_prompt 3"]),
        (0.3, ["ALGORITHM.entropy_coef 0.01"]),
        (0.2, ["ALGORITHM.value_clip_range null"]),
        (0.2, ["ALGORITHM.dual_clip 3.0"]),
        (0.3, ["ALGORITHM.update_kl_limit 0.01"]),
        (0.4, ["ALGORITHM.truncation_penalty 1.0", "ALGORITHM.bootstrap_truncated true"]),
        (0.2, ["ALGORITHM.value_lambda 1.0"]),
        (0.2, ["ALGORITHM.critic_warmup 1"]),
        (0.2, ["ALGORITHM.whiten_advantages false"]),
    ],
    "reinforce": [(1.0, [f"ALGORITHM.baseline {name}" for name in ("none", "moving", "batch", "leave_one_out")])],
    "grpo": [(1.0, ["ALGORITHM.responses_per_prompt 2", "ALGORITHM.responses_per_prompt 4"])],
    "dpo": [
        (1.0, ["ALGORITHM.responses_per_prompt 2", "ALGORITHM.responses_per_prompt 3"]),
        (0.5, ["ALGORITHM.epochs 2"]),
    ],
    "dpo_offline": [
        (0.4, ["ALGORITHM.epochs 2"]),
        (0.6, ["ALGORITHM.loss_type ipo", "ALGORITHM.loss_type hinge", "ALGORITHM.loss_type apo_zero"]),
        (0.3, ["ALGORITHM.nll_coef 0.5"]),
        (0.3, ["ALGORITHM.ld_alpha 0.5"]),
        (0.3, ["ALGORITHM.label_smoothing 0.1", "ALGORITHM.label_smoothing 0.1 ALGORITHM.robust true"]),
        (0.3, ["--model.max_length 24"]),
    ],
    "sft": [(0.3, ["--model.max_length 16", "--model.max_length 24"])],
    "reward": [(0.3, ["--model.max_length 24"])],
}


def drawn(random: Random) -> list[str]:
    """The words of a small run of any stage."""
    stage = random.choice(STAGES)
    recorded = stage in ("sft", "reward")
    words = f"--config {stage}.yaml --data.size 14 --data.validation_size 6 --trainer.val_check_interval 1.0".split()
    place = "--model.model" if recorded else "--model.policy"
    if random.random() < 0.7:
        described = json.dumps(random.choice(ARCHITECTURES))
        words += [f"{place}.name_or_path", "null", f"{place}.tokenizer", "playground/sft", f"{place}.config", described]
    options = [*ANY, *OWN[stage]]
    if random.random() < 0.35:
        words += [f"{place}.lora", '{"r": 4, "alpha": 8}']
        options += QUANTISED
        options += [] if "experts" in " ".join(words) else DROPOUT  # which peft has not for experts
    if not recorded and stage != "dpo_offline":
        options += WRITING
        options += GRADIENTS if stage != "dpo" else []
    for share, alternatives in options:
        if random.random() < share:
            chosen = random.choice(alternatives)
            words += chosen.replace("MODEL", place).replace("ALGORITHM", "--model.algorithm").split()
    return words
