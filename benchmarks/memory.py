"""Memory of LoRA PPO with four roles (policy, reference, critic, reward model): on one base, on four models, and the model alone.

usage: python benchmarks/memory.py [--hidden 768] [--layers 12] [--rows 4]

Each in a process of its own, one rollout of two short responses to each of --rows prompts and its eight optimiser steps, on a
Llama from a config, on the CPU in float32, activations recomputed:

alone        the model is loaded, held, and reads as many tokens once
policy only  the policy's adapter learns by REINFORCE from the length of its replies: no critic, no reward model
one base     critic and reward model are adapters on the policy's base, the reference is the base; also with AdamW8bit
four models  share_base false, reference full

`weights` are all that the roles hold, each tensor once. `resident` and `peak` are what the process holds in the end and held at
most (VmRSS and VmHWM of Linux), above what it held after the same with a toy model: libraries do not count, but gradients,
moments, activations and loading do.
"""

import argparse
import gc
import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch

from rlhf_lightning.models.loading import LoraOptions, ModelConfig, load_causal_lm, load_reward_model, load_tokenizer

KINDS = ("alone", "policy only", "one base", "one base, AdamW8bit", "four models")
LORA = LoraOptions(r=16)


def held(what):
    """MiB, from the kernel."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(what):
            return int(line.split()[1]) / 1024
    raise LookupError(what)


def prepare(folder, hidden, layers):
    """A base, and a reward model that is an adapter of it."""
    from rlhf_lightning.models.export import export_model

    sizes = {"hidden_size": hidden, "intermediate_size": hidden * 8 // 3, "num_hidden_layers": layers}
    more = {"num_attention_heads": hidden // 64, "num_key_value_heads": hidden // 64, "vocab_size": 8192}
    config = ModelConfig(config={"model_type": "llama", **sizes, **more}, tokenizer="playground/sft")
    export_model(load_causal_lm(config), load_tokenizer(config), folder / "base", [2])
    reward = ModelConfig(str(folder / "base"), lora=LORA)
    export_model(load_reward_model(reward), load_tokenizer(reward), folder / "reward", [2])


def tensors(*modules):
    """MiB of the weights of modules, what they share once."""
    found = {p.data_ptr(): p.numel() * p.element_size() for module in modules for p in module.parameters()}
    return sum(found.values()) / 2**20


def alone(folder, rows):
    model = load_causal_lm(ModelConfig(str(folder / "base")))
    with torch.no_grad():
        model(torch.ones(2 * rows, 32, dtype=torch.long))
    return tensors(model), model


def run(folder, rows, kind):
    from bitsandbytes.optim import AdamW8bit
    from lightning.pytorch import Trainer

    from rlhf_lightning.algorithms.ppo import PPO
    from rlhf_lightning.algorithms.reinforce import REINFORCE
    from rlhf_lightning.playground import PlaygroundPrompts
    from rlhf_lightning.rewards import LengthReward, ModelReward
    from rlhf_lightning.rollouts.generation import Sampler
    from rlhf_lightning.stages import PolicyStage

    only, adamw = kind == "policy only", AdamW8bit if "8bit" in kind else torch.optim.AdamW
    stage = PolicyStage(
        ModelConfig(str(folder / "base"), lora=LORA, gradient_checkpointing=True),
        (REINFORCE if only else PPO)(responses_per_prompt=2, epochs=1, minibatches=8),
        LengthReward(8) if only else ModelReward(str(folder / "reward")),
        reference="full" if kind == "four models" else "adapter",
        critic="separate",
        share_base=kind != "four models",
        generation=Sampler(16),
        iterations=1,
        optimizer=partial(adamw, lr=1e-5),
    )
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = Trainer(accelerator="cpu", max_epochs=1, limit_val_batches=0, default_root_dir=folder, **quiet)
    trainer.fit(stage, datamodule=PlaygroundPrompts(size=rows, validation_size=1, batch_size=rows))
    assert trainer.global_step == 8
    others = [] if only else [stage.reward.model]
    others += [stage.collector.reference._model] if kind == "four models" else []
    return tensors(stage, *others), stage


def measure(kind, folder, rows):
    def held_by(size):
        return alone(folder / size, rows) if kind == "alone" else run(folder / size, rows, kind)

    held_by("toy")
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = held("VmRSS")
    weights, still_there = held_by("real")
    numbers = {"weights": weights, "resident": held("VmRSS") - before, "peak": held("VmHWM") - before}
    del still_there
    return numbers


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--one", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.folder, options.rows)))
        return
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder) / "toy", 64, 1)
        prepare(Path(folder) / "real", options.hidden, options.layers)
        found = {}
        for kind in KINDS:
            command = [sys.executable, __file__, "--one", kind, "--folder", folder, "--rows", str(options.rows)]
            said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            found[kind] = json.loads(said.splitlines()[-1])
    print("| MiB | weights | of the model | resident | of the model | peak | of the model |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for kind, numbers in found.items():
        cells = (f"{value:.0f} | {value / found['alone'][name]:.2f}" for name, value in numbers.items())
        print(f"| {kind} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
