"""Memory of LoRA PPO with four roles (policy, reference, critic, reward model): on one base, on four models, and the model alone.

usage: python benchmarks/memory.py [--hidden 768] [--layers 12] [--rows 4]
       python benchmarks/memory.py --device cuda --dtype bfloat16 --quantization nf4 --hidden 4096 --layers 32 \
           --vocabulary 32000 --prompt 512 --response 512

Each in a process of its own, one rollout of two responses to each of --rows prompts and its eight optimiser steps, on a Llama
from a config with random weights (the second line: one of 6.7 billion), activations recomputed:

alone        the model is loaded, held, and reads as many tokens once
policy only  the policy's adapter learns by REINFORCE from the length of its replies: no critic, no reward model
one base     critic and reward model are adapters on the policy's base, the reference is the base; also with AdamW8bit
four models  share_base false, reference full
with, without a reference
             all weights of the policy learn by REINFORCE without a KL penalty; reference full, or none

`weights` are all that the roles hold, each tensor once. `resident` and `peak` are what is held in the end and was held at most,
with gradients, moments, activations and loading: on a GPU by tensors, on the CPU by the process (VmRSS and VmHWM of Linux) above
what it held after the same with a toy model, so that libraries do not count.
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
from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader

from rlhf_lightning.models.loading import LoraOptions, ModelConfig, load_causal_lm, load_reward_model, load_tokenizer
from rlhf_lightning.models.quantization import quantize_

REFERENCES = {"with a reference": "full", "without a reference": "none"}
KINDS = ("alone", "policy only", "one base", "one base, AdamW8bit", "four models", *REFERENCES)
LORA = LoraOptions(r=16)


class Prompts(LightningDataModule):
    """One batch of prompts of so many tokens."""

    def __init__(self, rows, tokens):
        super().__init__()
        self.rows = [{"prompt": f"please {i} " + "say hello " * tokens} for i in range(rows)]

    def train_dataloader(self):
        return DataLoader(self.rows, len(self.rows), collate_fn=list)


def resident(which="VmRSS"):
    """MiB, from the kernel."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(which):
            return int(line.split()[1]) / 1024
    raise LookupError(which)


def prepare(folder, hidden, layers, vocabulary, dtype):
    """A base, and a reward model that is an adapter of it."""
    from rlhf_lightning.models.export import export_model

    sizes = {"hidden_size": hidden, "intermediate_size": hidden * 8 // 3, "num_hidden_layers": layers}
    more = {"num_attention_heads": hidden // 64, "num_key_value_heads": hidden // 64, "vocab_size": vocabulary}
    config = {"model_type": "llama", **sizes, **more}
    base = ModelConfig(config=config, tokenizer="playground/sft", dtype=dtype)
    export_model(load_causal_lm(base), load_tokenizer(base), folder / "base", [2])
    reward = ModelConfig(str(folder / "base"), lora=LORA, dtype=dtype)
    export_model(load_reward_model(reward), load_tokenizer(reward), folder / "reward", [2])


def tensors(*modules):
    """MiB of the weights of modules, what they share once."""
    found = {p.data_ptr(): p.numel() * p.element_size() for module in modules for p in module.parameters()}
    return sum(found.values()) / 2**20


def alone(folder, options):
    model = load_causal_lm(ModelConfig(str(folder / "base"), dtype=options.dtype))
    model = (quantize_(model, options.quantization) if options.quantization else model).to(options.device)
    with torch.no_grad():
        model(torch.ones(2 * options.rows, options.prompt + options.response, dtype=torch.long, device=options.device))
    return tensors(model), model


def run(folder, options, kind):
    from bitsandbytes.optim import AdamW8bit

    from rlhf_lightning.algorithms.kl_penalty import KLPenalty
    from rlhf_lightning.algorithms.ppo import PPO
    from rlhf_lightning.algorithms.reinforce import REINFORCE
    from rlhf_lightning.generation.local import Sampler
    from rlhf_lightning.rewards import LengthReward, ModelReward
    from rlhf_lightning.stages import PolicyStage

    only, adamw = kind in ("policy only", *REFERENCES), AdamW8bit if "8bit" in kind else torch.optim.AdamW
    lora, kl = (None, KLPenalty(coef=0.0)) if kind in REFERENCES else (LORA, KLPenalty())
    kept = {"dtype": options.dtype, "quantization": options.quantization, "gradient_checkpointing": True}
    stage = PolicyStage(
        ModelConfig(str(folder / "base"), lora=lora, **kept),
        (REINFORCE if only else PPO)(responses_per_prompt=2, epochs=1, minibatches=8, kl=kl),
        LengthReward(8) if only else ModelReward(str(folder / "reward"), dtype=options.dtype),
        reference={"four models": "full", **REFERENCES}.get(kind, "adapter"),
        critic="separate",
        share_base=kind != "four models",
        generation=Sampler(options.response),
        max_prompt_length=options.prompt,
        iterations=1,
        optimizer=partial(adamw, lr=1e-5),
    )
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = Trainer(accelerator=options.device, devices=1, max_epochs=1, default_root_dir=folder, **quiet)
    trainer.fit(stage, datamodule=Prompts(options.rows, options.prompt))
    others = [] if only else [stage.reward.model]
    others += [stage.collector.reference._model] if kind in ("four models", "with a reference") else []
    return tensors(stage, *others), stage


def measure(kind, folder, options):
    def held_by(size):
        return alone(folder / size, options) if kind == "alone" else run(folder / size, options, kind)

    if options.device == "cuda":
        weights, still_there = held_by("real")
        found = torch.cuda.memory_allocated() / 2**20, torch.cuda.max_memory_allocated() / 2**20
    else:
        held_by("toy")
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = resident()
        weights, still_there = held_by("real")
        found = resident() - before, resident("VmHWM") - before
    del still_there
    return {"weights": weights, "resident": found[0], "peak": found[1]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--rows", type=int, default=4, help="prompts")
    parser.add_argument("--prompt", type=int, default=10, help="tokens")
    parser.add_argument("--response", type=int, default=16, help="tokens at most")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the weights")
    parser.add_argument("--quantization", choices=("nf4", "int8"), help="of every base")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--one", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.folder, options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder) / "toy", 64, 1, options.vocabulary, options.dtype)
        prepare(Path(folder) / "real", options.hidden, options.layers, options.vocabulary, options.dtype)
        found = {}
        for kind in options.kinds:
            command = [sys.executable, __file__, *sys.argv[1:], "--one", kind, "--folder", folder]
            said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            found[kind] = json.loads(said.splitlines()[-1])
    base = found[options.kinds[0]]
    print(
        f"| MiB | weights | of {options.kinds[0]} | resident | of {options.kinds[0]} | peak | of {options.kinds[0]} |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for kind, numbers in found.items():
        cells = (f"{value:.0f} | {value / base[name]:.2f}" for name, value in numbers.items())
        print(f"| {kind} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
